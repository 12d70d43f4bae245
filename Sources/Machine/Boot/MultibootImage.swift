import VMM

/// A kernel with a multiboot 1 header (Multiboot Specification 0.6.96): an ELF file of either class, or any file whose
/// header says by its address fields what to load where. It is entered in 32-bit protected mode without paging.
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory.
struct MultibootImage {
    private let segments: [KernelSegment]
    private let entry: UInt32

    private static let loaderMagic: UInt64 = 0x2BAD_B002

    /// - Returns: `nil` when the file has no multiboot header.
    init?(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        guard let header = try MultibootHeader(kernel, head) else { return nil }
        if let addresses = header.addresses {
            (segments, entry) = try Self.segment(addresses, header, kernel)
        } else if ELFFile.isELF(head) {
            (segments, entry) = try Self.segments(ELFFile(kernel, head), kernel)
        } else {
            throw kernel.error("has a multiboot header without addresses and is no ELF file", "link it again")
        }
    }

    /// What the header's addresses tell.
    private static func segment(
        _ addresses: MultibootHeader.Addresses, _ header: MultibootHeader, _ kernel: BootFile
    ) throws(MachineError) -> ([KernelSegment], UInt32) {
        func wrong(_ field: String, _ value: UInt32, _ reason: String) -> MachineError {
            kernel.error("has a multiboot header whose \(field) \(hexText(UInt64(value))) \(reason)", "link it again")
        }
        guard addresses.header >= addresses.load else {
            throw wrong("header_addr", addresses.header, "lies below load_addr \(hexText(UInt64(addresses.load)))")
        }
        let before = UInt64(addresses.header - addresses.load)
        guard before <= UInt64(header.offset) else {
            throw wrong("load_addr", addresses.load, "lies before the file's first byte")
        }
        let offset = UInt64(header.offset) - before
        // A file that has grown since it was opened has its header behind the length of then.
        guard offset <= kernel.byteCount else { throw kernel.truncated() }
        let available = kernel.byteCount - offset
        var fileByteCount = available
        if addresses.loadEnd != 0 {
            guard addresses.loadEnd > addresses.load else {
                throw wrong("load_end_addr", addresses.loadEnd, "lies below load_addr \(hexText(UInt64(addresses.load)))")
            }
            fileByteCount = UInt64(addresses.loadEnd - addresses.load)
            guard fileByteCount <= available else { throw kernel.truncated() }
        }
        var memoryByteCount = fileByteCount
        if addresses.bssEnd != 0 {
            guard UInt64(addresses.bssEnd) >= UInt64(addresses.load) + fileByteCount else {
                throw wrong("bss_end_addr", addresses.bssEnd, "lies below the end of what is loaded")
            }
            memoryByteCount = UInt64(addresses.bssEnd - addresses.load)
        }
        let segment = KernelSegment(
            offset: offset, address: UInt64(addresses.load), fileByteCount: fileByteCount,
            memoryByteCount: memoryByteCount)
        guard segment.contains(UInt64(addresses.entry)) else {
            throw wrong("entry_addr", addresses.entry, "lies outside of what is loaded")
        }
        return ([segment], addresses.entry)
    }

    /// What an ELF file's program headers tell. The entry point may be given as a virtual address.
    private static func segments(
        _ file: ELFFile, _ kernel: BootFile
    ) throws(MachineError) -> ([KernelSegment], UInt32) {
        let headers = file.programHeaders.filter { $0.type == ELFFile.load }
        let segments = headers.map {
            KernelSegment(
                offset: $0.offset, address: $0.physicalAddress, fileByteCount: $0.fileByteCount,
                memoryByteCount: $0.memoryByteCount)
        }
        let virtual = headers.first {
            file.entry >= $0.virtualAddress && file.entry - $0.virtualAddress < $0.memoryByteCount
        }
        let entry = virtual.map { $0.physicalAddress &+ (file.entry - $0.virtualAddress) } ?? file.entry
        guard segments.contains(where: { $0.contains(entry) }), let entry = UInt32(exactly: entry) else {
            throw kernel.error("has its entry point \(hexText(file.entry)) outside of its segments", "link it again")
        }
        return (segments, entry)
    }

    /// Lays out everything; see `KernelLoader.load`.
    func load(_ loader: KernelLoader, into memory: GuestMemory, _ map: MemoryMap) throws(MachineError) -> CPUState {
        let end = try KernelSegment.load(segments, of: loader.kernel, into: memory, map)
        // Where a name comes first as on any other command line, which is how QEMU does it.
        let commandLine = [loader.kernel.path, loader.commandLine ?? ""].filter { !$0.isEmpty }.joined(separator: " ")
        try BootStructures.writeCommandLine(commandLine, limit: .max, memory)
        var modules = loader.modules
        if let initrd = loader.initrd { modules.insert(BootModule(file: initrd, arguments: ""), at: 0) }
        let info = MultibootInformation(
            modules: try Self.load(modules, above: end, into: memory, map), map: map,
            commandLine: BootStructures.commandLine)
        try info.write(memory)

        var state = CPUState()
        BootStructures.setProtectedMode(&state, memory)
        state.rip = UInt64(entry)
        state[.rax] = Self.loaderMagic
        state[.rbx] = BootStructures.multibootInformation
        return state
    }

    /// Loads the modules one after the other, each on a page of its own.
    private static func load(
        _ modules: [BootModule], above start: UInt64, into memory: GuestMemory, _ map: MemoryMap
    ) throws(MachineError) -> [MultibootInformation.Module] {
        var loaded: [MultibootInformation.Module] = []
        var end = start
        for module in modules {
            let base = (end + 0xFFF) & ~0xFFF
            let count = module.file.byteCount
            let room = map.lowEnd - min(base, map.lowEnd)
            guard count <= room else {
                let advice =
                    map.lowEnd < MemoryMap.acpiBase
                    ? "give at least -m \(megabytesText(base + min(count, MemoryMap.largest)))" : "use a smaller one"
                throw module.file.error(
                    "its \(sizeText(count)) do not fit beside the kernel, there is room for \(sizeText(room))", advice)
            }
            try module.file.load(at: 0, count: count, into: memory, base)
            end = base + count
            let text = [module.file.path, module.arguments].filter { !$0.isEmpty }.joined(separator: " ")
            loaded.append(MultibootInformation.Module(range: base..<end, text: text))
        }
        return loaded
    }
}
