import VMM

/// A kernel with a multiboot 2 header (Multiboot2 Specification 2.0): an ELF file of either class, or any file whose
/// header says by an address tag what to load where. It is entered in 32-bit protected mode without paging.
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory.
struct Multiboot2Image {
    private let segments: [KernelSegment]
    private let entry: UInt64
    private let relocation: Multiboot2Header.Relocation?
    /// `nil` when it is none, or its header says more than it.
    private let file: ELFFile?

    private static let loaderMagic: UInt64 = 0x36D7_6289

    /// - Returns: `nil` when the file has no multiboot 2 header.
    init?(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        guard let header = try Multiboot2Header(kernel, head) else { return nil }
        relocation = header.relocation
        if let addresses = header.addresses {
            segments = [try addresses.segment(kernel, headerOffset: header.offset)]
            guard let address = header.entry else {
                throw kernel.error("has a multiboot 2 header with addresses and without an entry point", "link it again")
            }
            entry = try MultibootAddresses.entry(address, in: segments, kernel)
            file = nil
        } else if ELFFile.isELF(head) {
            let file = try ELFFile(kernel, head)
            segments = file.segments
            if let address = header.entry {
                entry = try MultibootAddresses.entry(address, in: segments, kernel)
            } else {
                entry = try file.physicalEntry(kernel)
            }
            self.file = file
        } else {
            throw kernel.error("has a multiboot 2 header without addresses and is no ELF file", "link it again")
        }
    }

    /// Lays out everything; see `KernelLoader.load`.
    func load(
        _ loader: KernelLoader, into memory: GuestMemory, _ map: MemoryMap, rsdp: UInt64?
    ) throws(MachineError) -> CPUState {
        let kernel = loader.kernel
        let first = segments.map(\.address).min() ?? 0
        let base = try relocation.map { wish throws(MachineError) in try place(wish, first, kernel, map) } ?? first
        // The differences may be negative: both wrap.
        let moved = segments.map { $0.moved(by: base &- first) }
        let end = try KernelSegment.load(moved, of: kernel, into: memory, map)
        let (below, above) = (MemoryMap.oneMegabyte..<max(base, MemoryMap.oneMegabyte), end..<map.lowEnd)
        var room = below.count > above.count ? below : above

        var info = Multiboot2Information(commandLine: loader.namedCommandLine, map: map)
        if relocation != nil { info.addLoadBase(base) }
        if let rsdp { info.addACPI(at: rsdp, memory) }
        if let file, let sections = try ELFSections(kernel, file) {
            info.addSections(try Self.load(sections, of: kernel, in: &room, into: memory))
        }
        for module in try BootModule.load(loader.allModules, in: room, into: memory, map) { info.addModule(module) }
        try info.write(memory)

        var state = CPUState()
        BootStructures.setProtectedMode(&state, memory)
        state.rip = entry &+ (base &- first)
        state[.rax] = Self.loaderMagic
        state[.rbx] = Multiboot2Information.address
        return state
    }

    /// Where a kernel goes that can be moved: its first byte.
    private func place(
        _ wish: Multiboot2Header.Relocation, _ first: UInt64, _ kernel: BootFile, _ map: MemoryMap
    ) throws(MachineError) -> UInt64 {
        let alignment = UInt64(max(wish.alignment, 1))
        guard alignment.nonzeroBitCount == 1 else {
            throw kernel.error("wants to be aligned to \(hexText(alignment)), which is no power of two", "link it again")
        }
        var end = first
        for segment in segments {
            let (segmentEnd, overflow) = segment.address.addingReportingOverflow(segment.memoryByteCount)
            guard !overflow else {
                throw kernel.error("has a segment at \(hexText(segment.address)), where no memory can be", "link it again")
            }
            end = max(end, segmentEnd)
        }
        let byteCount = end - first
        let limit = min(UInt64(wish.highest) + 1, map.lowEnd)
        let lowest = (max(UInt64(wish.lowest), MemoryMap.oneMegabyte) + alignment - 1) & ~(alignment - 1)
        func fits(_ base: UInt64) -> Bool { base >= lowest && base <= limit && byteCount <= limit - base }
        let highest = byteCount <= limit ? (limit - byteCount) & ~(alignment - 1) : 0
        let candidates =
            switch wish.preference {
            case .none: [first, lowest]
            case .lowest: [lowest]
            case .highest: [highest]
            }
        guard let base = candidates.first(where: { $0 & (alignment - 1) == 0 && fits($0) }) else {
            throw kernel.error(
                "has \(sizeText(byteCount)), which do not fit between \(hexText(lowest)) and \(hexText(limit))",
                "give more memory with -m")
        }
        return base
    }

    /// Loads the sections that are in no segment, symbols among them, and notes in the table where they are: by that a
    /// kernel knows its own symbols (3.6.7).
    private static func load(
        _ sections: ELFSections, of kernel: BootFile, in room: inout Range<UInt64>, into memory: GuestMemory
    ) throws(MachineError) -> ELFSections {
        var result = sections
        for (index, section) in sections.sections.enumerated()
        where section.address == 0 && section.type != ELFSections.noBits && section.type != 0 && section.byteCount > 0 {
            let start = min((room.lowerBound + 15) & ~15, room.upperBound)
            try ELFSections.load(section, of: kernel, into: memory, start, below: room.upperBound)
            result.setAddress(index, start)
            room = start + section.byteCount..<room.upperBound
        }
        return result
    }
}

extension KernelSegment {
    fileprivate func moved(by distance: UInt64) -> KernelSegment {
        KernelSegment(
            offset: offset, address: address &+ distance, fileByteCount: fileByteCount, memoryByteCount: memoryByteCount)
    }
}
