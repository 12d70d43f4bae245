import VMM

/// An ELF kernel with a PVH entry point (Xen's "x86/HVM direct boot ABI"): the note XEN_ELFNOTE_PHYS32_ENTRY gives
/// an address that is entered in 32-bit protected mode without paging, EBX pointing to `hvm_start_info`.
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory.
struct PVHImage {
    private struct Segment {
        let offset: UInt64
        let address: UInt64
        let fileByteCount: UInt64
        let memoryByteCount: UInt64
    }

    private let segments: [Segment]
    private let entry: UInt64

    private static let loadType: UInt32 = 1
    private static let noteType: UInt32 = 4
    private static let physicalEntryNote: UInt32 = 18
    /// XEN_HVM_START_MAGIC_VALUE
    private static let startMagic: UInt32 = 0x336E_C578
    /// Linux cuts longer ones off without a word (COMMAND_LINE_SIZE).
    private static let commandLineLimit: UInt64 = 2047
    /// Linux reads a ramdisk from below 2 GB in every version.
    private static let initrdAddressMax: UInt64 = 0x7FFF_FFFF

    /// Takes the headers apart (ELF-64 Object File Format; System V ABI, chapter 5).
    init(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        guard let elfClass = head.load(4, as: UInt8.self), let encoding = head.load(5, as: UInt8.self),
            let machine = head.load(18, as: UInt16.self)
        else { throw kernel.truncated() }
        guard elfClass == 1 || elfClass == 2 else {
            throw kernel.error("has a damaged ELF header", "copy it again")
        }
        // EM_386, EM_X86_64
        guard encoding == 1, machine == 3 || machine == 62 else {
            throw kernel.error("is an ELF file for another processor", "give one for x86")
        }
        let is64 = elfClass == 2
        guard let tableOffset = Self.word(head, is64 ? 32 : 28, is64),
            let entrySize = head.load(is64 ? 54 : 42, as: UInt16.self),
            let entryCount = head.load(is64 ? 56 : 44, as: UInt16.self)
        else { throw kernel.truncated() }
        guard Int(entrySize) == (is64 ? 56 : 32), entryCount > 0, entryCount <= 256 else {
            throw kernel.error("has no usable program headers", "give a linked kernel, not an object file")
        }
        let tableByteCount = Int(entrySize) * Int(entryCount)
        guard Self.lies(tableOffset, UInt64(tableByteCount), within: kernel.byteCount) else {
            throw kernel.truncated()
        }
        let table = try kernel.read(at: tableOffset, count: tableByteCount)

        var segments: [Segment] = []
        var entry: UInt64?
        for index in 0..<Int(entryCount) {
            let start = index * Int(entrySize)
            guard let type = table.load(start, as: UInt32.self),
                let offset = Self.word(table, start + (is64 ? 8 : 4), is64),
                let address = Self.word(table, start + (is64 ? 24 : 12), is64),
                let fileByteCount = Self.word(table, start + (is64 ? 32 : 16), is64),
                let memoryByteCount = Self.word(table, start + (is64 ? 40 : 20), is64)
            else { throw kernel.truncated() }
            guard type == Self.loadType || type == Self.noteType else { continue }
            guard Self.lies(offset, fileByteCount, within: kernel.byteCount) else { throw kernel.truncated() }
            if type == Self.noteType {
                let notes = try kernel.read(at: offset, count: Int(min(fileByteCount, 1 << 16)))
                entry = entry ?? Self.physicalEntry(notes)
            } else if memoryByteCount > 0 {
                guard fileByteCount <= memoryByteCount else {
                    throw kernel.error("has a segment longer than its memory", "copy it again")
                }
                segments.append(
                    Segment(
                        offset: offset, address: address, fileByteCount: fileByteCount,
                        memoryByteCount: memoryByteCount))
            }
        }
        guard let entry else {
            throw kernel.error("has no PVH entry note", "give the bzImage, or build with CONFIG_PVH")
        }
        guard
            segments.contains(where: {
                entry >= $0.address && entry - $0.address < $0.fileByteCount && entry < MemoryMap.fourGigabytes
            })
        else { throw kernel.error("has its entry point outside of its segments", "copy it again") }
        self.entry = entry
        self.segments = segments
    }

    /// Lays out everything; see `KernelLoader.load`.
    func load(
        _ loader: KernelLoader, into memory: GuestMemory, _ map: MemoryMap, rsdp: UInt64?
    ) throws(MachineError) -> CPUState {
        var end = MemoryMap.oneMegabyte
        for segment in segments {
            let (segmentEnd, overflow) = segment.address.addingReportingOverflow(segment.memoryByteCount)
            guard segment.address >= MemoryMap.oneMegabyte, !overflow, segmentEnd <= MemoryMap.acpiBase else {
                throw loader.kernel.error(
                    "has a segment at \(hexText(segment.address)), where no memory can be",
                    "link it between 1 MB and \(hexText(MemoryMap.acpiBase))")
            }
            guard segmentEnd <= map.lowEnd else {
                throw loader.kernel.error(
                    "does not fit in \(sizeText(map.byteCount)) of memory",
                    "give at least -m \(megabytesText(segmentEnd))")
            }
            end = max(end, segmentEnd)
            try loader.kernel.load(
                at: segment.offset, count: segment.fileByteCount, into: memory, segment.address)
        }
        try BootStructures.writeCommandLine(loader.commandLine, limit: Self.commandLineLimit, memory)
        let initrd = try loader.loadInitrd(into: memory, map, above: end, highest: Self.initrdAddressMax)

        let info = BootStructures.pvhStartInfo
        let modules = info + 64
        let table = modules + 32
        var writer = ByteWriter()
        writer.append(Self.startMagic)
        // Version 1 has the memory map.
        writer.append(UInt32(1))
        writer.append(UInt32(0))
        writer.append(UInt32(initrd == nil ? 0 : 1))
        writer.append(initrd == nil ? UInt64(0) : modules)
        writer.append(BootStructures.commandLine)
        writer.append(rsdp ?? 0)
        writer.append(table)
        writer.append(UInt32(truncatingIfNeeded: map.entries.count))
        writer.append(UInt32(0))
        memory.write(writer.bytes, at: info)
        if let initrd {
            memory.store(modules, initrd.lowerBound)
            memory.store(modules + 8, UInt64(initrd.count))
        }
        writer = ByteWriter()
        for entry in map.entries {
            writer.append(entry.base)
            writer.append(entry.byteCount)
            writer.append(entry.kind.rawValue)
            writer.append(UInt32(0))
        }
        memory.write(writer.bytes, at: table)

        var state = CPUState()
        BootStructures.setSegments(&state, code: 0xC09B)
        state.gdtr = BootStructures.writeDescriptorTable(memory, code: BootStructures.code32)
        // PE, ET
        state.cr0 = 0x11
        state.rip = entry
        state[.rbx] = info
        return state
    }

    private static func word(_ reader: ByteReader, _ offset: Int, _ is64: Bool) -> UInt64? {
        is64 ? reader.load(offset, as: UInt64.self) : reader.load(offset, as: UInt32.self).map(UInt64.init)
    }

    private static func lies(_ offset: UInt64, _ count: UInt64, within byteCount: UInt64) -> Bool {
        offset <= byteCount && byteCount - offset >= count
    }

    /// Looks for the entry among notes: name length, description length, type, then both padded to four bytes.
    private static func physicalEntry(_ notes: ByteReader) -> UInt64? {
        var offset = 0
        while let nameLength = notes.load(offset, as: UInt32.self),
            let length = notes.load(offset + 4, as: UInt32.self),
            let type = notes.load(offset + 8, as: UInt32.self)
        {
            let description = offset + 12 + (Int(nameLength) + 3) & ~3
            if type == physicalEntryNote, nameLength == 4, notes.has([0x58, 0x65, 0x6E, 0], at: offset + 12) {
                return length >= 8
                    ? notes.load(description, as: UInt64.self)
                    : notes.load(description, as: UInt32.self).map(UInt64.init)
            }
            offset = description + (Int(length) + 3) & ~3
        }
        return nil
    }
}
