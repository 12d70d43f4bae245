import VMM

/// An ELF kernel with a PVH entry point (Xen's "x86/HVM direct boot ABI"): the note XEN_ELFNOTE_PHYS32_ENTRY gives
/// an address that is entered in 32-bit protected mode without paging, EBX pointing to `hvm_start_info`.
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory.
struct PVHImage {
    private let segments: [KernelSegment]
    private let entry: UInt64

    private static let physicalEntryNote: UInt32 = 18
    /// XEN_HVM_START_MAGIC_VALUE
    private static let startMagic: UInt32 = 0x336E_C578
    /// Linux cuts longer ones off without a word (COMMAND_LINE_SIZE).
    private static let commandLineLimit: UInt64 = 2047
    /// Linux reads a ramdisk from below 2 GB in every version.
    private static let initrdAddressMax: UInt64 = 0x7FFF_FFFF

    /// Takes the headers apart.
    init(_ kernel: BootFile, _ file: ELFFile) throws(MachineError) {
        let note = try file.note("Xen", type: Self.physicalEntryNote, kernel)
        let entry: UInt64? = note.flatMap { $0.load(0) } ?? note.flatMap { $0.load(0, as: UInt32.self) }.map(UInt64.init)
        segments = file.segments
        guard let entry else {
            throw kernel.error("has no PVH entry note", "give the bzImage, or build with CONFIG_PVH")
        }
        guard
            segments.contains(where: {
                entry >= $0.address && entry - $0.address < $0.fileByteCount && entry < MemoryMap.fourGigabytes
            })
        else { throw kernel.error("has its entry point outside of its segments", "copy it again") }
        self.entry = entry
    }

    /// Lays out everything; see `KernelLoader.load`.
    func load(
        _ loader: KernelLoader, into memory: GuestMemory, _ map: MemoryMap, rsdp: UInt64?
    ) throws(MachineError) -> CPUState {
        let end = try KernelSegment.load(segments, of: loader.kernel, into: memory, map)
        try BootStructures.writeCommandLine(
            loader.commandLine ?? MachineConfiguration.defaultCommandLine, limit: Self.commandLineLimit, memory)
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
        BootStructures.setProtectedMode(&state, memory)
        state.rip = entry
        state[.rbx] = info
        return state
    }
}
