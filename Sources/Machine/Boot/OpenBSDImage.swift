import VMM

/// An OpenBSD kernel, 64-bit or 32-bit, entered as OpenBSD's vmd enters one: in 32-bit code with the arguments of
/// boot(8) on the stack, a 64-bit one with long mode already on.
///
/// Its symbols go behind it as loadfile(9) leaves them: a copy of the ELF header, the section headers, then the tables.
/// `end`, of which the kernel is told, is behind those.
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory.
struct OpenBSDImage {
    private let file: ELFFile
    private let entry: UInt64

    /// What the kernel finds in low memory (vmd's vmm.h).
    private enum Place {
        static let bootArguments: UInt64 = 0x2000
        static let stackEnd: UInt64 = 0x1_0000
        static let descriptorTable: UInt64 = 0x1_0000
        static let pageMapLevel4: UInt64 = 0x1_1000
        static let pagePointers: UInt64 = 0x1_2000
        static let pageDirectory: UInt64 = 0x1_3000
    }

    /// BOOTARG_*
    private enum Argument {
        static let memoryMap: UInt32 = 0
        static let console: UInt32 = 5
        static let bootAddress: UInt32 = 7
        static let end: UInt32 = 0xFFFF_FFFF
    }

    /// A kernel's addresses are as it is linked; this much of them is where they are in memory.
    private static let addressMask: UInt64 = 0x0FFF_FFFF
    /// BAPIV_VECTOR, _ENV and _BMEMMAP: how the arguments are given.
    private static let interfaceVersion: UInt32 = 0x0E
    /// MAKEBOOTDEV(4, 0, 0, 0, 0): sd0a.
    private static let bootDevice: UInt32 = 0xA000_0004
    /// More than any kernel has, so that random bytes are soon made.
    private static let randomByteCountMax: UInt64 = 1 << 20

    /// Whether a file says that it is one: by the memory it wants filled with random bytes, or by OpenBSD's note.
    static func isOpenBSD(_ file: ELFFile, _ kernel: BootFile) throws(MachineError) -> Bool {
        if file.programHeaders.contains(where: { $0.type == ELFFile.randomize }) { return true }
        return try file.note("OpenBSD", type: 1, kernel) != nil
    }

    init(_ kernel: BootFile, _ file: ELFFile) throws(MachineError) {
        self.file = file
        entry = file.entry & Self.addressMask
        let entry = entry
        guard file.segments.contains(where: { $0.contains(entry) }) else {
            throw kernel.error("has its entry point \(hexText(entry)) outside of its segments", "link it again")
        }
    }

    /// Lays out everything; see `KernelLoader.load`.
    func load(_ loader: KernelLoader, into memory: GuestMemory, _ map: MemoryMap) throws(MachineError) -> CPUState {
        let kernel = loader.kernel
        if let initrd = loader.initrd { throw initrd.error("the kernel is OpenBSD's and takes none", "leave it out") }
        guard (loader.commandLine ?? "").isEmpty else {
            throw MachineError("command line: the kernel is OpenBSD's and takes none: leave --cmdline out")
        }
        let segments = file.segments
        let loaded = try KernelSegment.load(segments, of: kernel, into: memory, map)
        try fillRandom(segments, kernel, memory)
        let end = try loadSymbols(kernel, behind: loaded, into: memory, map)
        guard end <= Self.addressMask else {
            throw kernel.error("reaches to \(hexText(end))", "link and strip it so that it ends below 256 MB")
        }

        let arguments = try bootArguments(loader, map)
        memory.write(arguments, at: Place.bootArguments)
        // The last is pushed last; below it stays free for a return address.
        let stack = [
            UInt32(Place.bootArguments), UInt32(arguments.count), 0, 0, UInt32(truncatingIfNeeded: end),
            Self.interfaceVersion, Self.bootDevice, 0,
        ]
        for (index, word) in stack.enumerated() { memory.store(Place.stackEnd - UInt64(index + 1) * 4, word) }
        var state = entryState(memory)
        state[.rsp] = Place.stackEnd - UInt64(stack.count + 1) * 4
        state.rip = entry
        return state
    }

    /// Fills what the kernel wants random, which lies in what was loaded.
    private func fillRandom(
        _ segments: [KernelSegment], _ kernel: BootFile, _ memory: GuestMemory
    ) throws(MachineError) {
        var random = SystemRandomNumberGenerator()
        var room = Self.randomByteCountMax
        for header in file.programHeaders where header.type == ELFFile.randomize {
            let (address, count) = (header.physicalAddress, header.fileByteCount)
            guard count > 0 else { continue }
            guard count <= room,
                segments.contains(where: {
                    $0.contains(address) && count <= $0.memoryByteCount - (address - $0.address)
                })
            else {
                throw kernel.error(
                    "wants \(sizeText(count)) of random data at \(hexText(address)), outside of its segments", "link it again")
            }
            room -= count
            var bytes = ByteWriter()
            for _ in 0..<(count + 7) / 8 { bytes.append(random.next()) }
            memory.write(Array(bytes.bytes[..<Int(count)]), at: address)
        }
    }

    // MARK: - Symbols

    /// - Returns: the end of all that was loaded.
    private func loadSymbols(
        _ kernel: BootFile, behind end: UInt64, into memory: GuestMemory, _ map: MemoryMap
    ) throws(MachineError) -> UInt64 {
        let alignment = file.wordByteCount
        func aligned(_ value: UInt64) -> UInt64 { (value + alignment - 1) & ~(alignment - 1) }
        let start = aligned(end)
        var next = start + UInt64(file.header.count)
        if var sections = try ELFSections(kernel, file) {
            let table = next
            next += aligned(UInt64(sections.table.count))
            let hasSymbols = sections.sections.contains { $0.type == ELFSections.symbolTable }
            for (index, section) in sections.sections.enumerated() where isWanted(section, sections) {
                // Of no use by themselves, but counted: so does loadfile(9).
                if hasSymbols {
                    try ELFSections.load(section, of: kernel, into: memory, next, below: map.lowEnd)
                } else if section.byteCount > map.lowEnd {
                    throw kernel.truncated()
                }
                sections.setOffset(index, next - start)
                sections.setAllocated(index)
                next = aligned(next + section.byteCount)
            }
            try write(sections.table, at: table, kernel, memory, map)
        }
        try write(symbolHeader, at: start, kernel, memory, map)
        return next
    }

    private func isWanted(_ section: ELFSections.Section, _ sections: ELFSections) -> Bool {
        switch section.type {
        case ELFSections.symbolTable, ELFSections.stringTable: true
        case ELFSections.noBits: false
        default:
            sections.isNamed(section, ".debug_line") || file.is64 && sections.isNamed(section, ".SUNW_ctf")
        }
    }

    /// The ELF header, changed to have no program headers, and the section headers right behind it.
    private var symbolHeader: [UInt8] {
        var fields = ByteWriter()
        if file.is64 {
            fields.append(UInt64(0))
            fields.append(UInt64(file.header.count))
        } else {
            fields.append(UInt32(0))
            fields.append(UInt32(file.header.count))
        }
        // e_phoff and e_shoff; then e_phentsize and e_phnum, zero.
        var header = file.header
        let (offsets, sizes) = file.is64 ? (32, 54) : (28, 42)
        header.replaceSubrange(offsets..<offsets + fields.bytes.count, with: fields.bytes)
        header.replaceSubrange(sizes..<sizes + 4, with: [0, 0, 0, 0])
        return header
    }

    private func write(
        _ bytes: [UInt8], at address: UInt64, _ kernel: BootFile, _ memory: GuestMemory, _ map: MemoryMap
    ) throws(MachineError) {
        guard address <= map.lowEnd, UInt64(bytes.count) <= map.lowEnd - address else {
            throw kernel.error(
                "and its symbols do not fit in \(sizeText(map.byteCount)) of memory", "give more memory with -m, or strip it")
        }
        memory.write(bytes, at: address)
    }

    // MARK: - What the kernel is told, and how it is entered

    /// Words: a type, the length of all of it, twice, then its data.
    private func bootArguments(_ loader: KernelLoader, _ map: MemoryMap) throws(MachineError) -> [UInt8] {
        var words = ByteWriter()
        func add(_ type: UInt32, _ data: [UInt8], _ words: inout ByteWriter) {
            let byteCount = UInt32(12 + data.count)
            words.append(type)
            words.append(byteCount)
            words.append(byteCount)
            words.append(contentsOf: data)
        }
        // bios_memmap_t, packed; BIOS_MAP_FREE and _RES are the map's own numbers, and zeros end it.
        var table = ByteWriter()
        for entry in map.entries {
            table.append(entry.base)
            table.append(entry.byteCount)
            table.append(entry.kind.rawValue)
        }
        table.append(contentsOf: [UInt8](repeating: 0, count: 20))
        add(Argument.memoryMap, table.bytes, &words)

        // bios_consdev_t as amd64 has it since 7.3: device (com0), speed, address, frequency, flags, register width and
        // shift. Earlier ones, and i386's, have an address of 32 bits and end after the frequency, which is zero then.
        var console = ByteWriter()
        console.append(UInt32(8 << 8 | 0))
        console.append(UInt32(115200))
        console.append(UInt64(0x3F8))
        for _ in 0..<4 { console.append(UInt32(0)) }
        add(Argument.console, console.bytes, &words)

        if let address = loader.bootAddress {
            guard address.count == 6 else {
                throw MachineError("boot device: an interface's address of \(address.count) bytes: give one of 6")
            }
            add(Argument.bootAddress, address + [0, 0], &words)
        }
        words.append(Argument.end)
        return words.bytes
    }

    /// 32-bit code in flat segments with paging on, the first addresses mapped to themselves: for a 64-bit kernel the
    /// first GB in long mode's tables, so that this is compatibility mode; for a 32-bit one all 4 GB.
    private func entryState(_ memory: GuestMemory) -> CPUState {
        let presentWritable: UInt64 = 3
        let largePage: UInt64 = 1 << 7
        var state = CPUState()
        BootStructures.setSegments(&state, code: 0xC09F, codeSelector: 0x08, dataSelector: 0x10)
        let descriptors = [0, BootStructures.code32, BootStructures.data, BootStructures.code64]
        state.gdtr = BootStructures.writeDescriptorTable(memory, descriptors, at: Place.descriptorTable)
        // PE, ET, PG
        state.cr0 = 0x8000_0011
        var entries = ByteWriter()
        if file.is64 {
            memory.store(Place.pageMapLevel4, Place.pagePointers | presentWritable)
            memory.store(Place.pagePointers, Place.pageDirectory | presentWritable)
            for page in UInt64(0)..<512 { entries.append(page << 21 | largePage | presentWritable) }
            memory.write(entries.bytes, at: Place.pageDirectory)
            state.cr3 = Place.pageMapLevel4
            // PAE, PSE
            state.cr4 = 1 << 5 | 1 << 4
            // LME, LMA
            state.msr.efer = 1 << 8 | 1 << 10
        } else {
            for page in UInt32(0)..<1024 { entries.append(page << 22 | UInt32(largePage | presentWritable)) }
            memory.write(entries.bytes, at: Place.pagePointers)
            state.cr3 = Place.pagePointers
            state.cr4 = 1 << 4
        }
        return state
    }
}
