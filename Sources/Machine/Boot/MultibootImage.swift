import VMM

/// A kernel with a multiboot 1 header (Multiboot Specification 0.6.96): an ELF file of either class, or any file whose
/// header says by its address fields what to load where. It is entered in 32-bit protected mode without paging.
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory.
struct MultibootImage {
    private let segments: [KernelSegment]
    private let entry: UInt64

    private static let loaderMagic: UInt64 = 0x2BAD_B002

    /// - Returns: `nil` when the file has no multiboot header.
    init?(_ kernel: BootFile, _ head: ByteReader) throws(MachineError) {
        guard let header = try MultibootHeader(kernel, head) else { return nil }
        if let addresses = header.addresses {
            segments = [try addresses.segment(kernel, headerOffset: header.offset)]
            entry = try MultibootAddresses.entry(header.entry, in: segments, kernel)
        } else if ELFFile.isELF(head) {
            let file = try ELFFile(kernel, head)
            (segments, entry) = (file.segments, try file.physicalEntry(kernel))
        } else {
            throw kernel.error("has a multiboot header without addresses and is no ELF file", "link it again")
        }
    }

    /// Where its first byte goes.
    var start: UInt64 { segments.first?.address ?? 0 }

    /// Lays out everything; see `KernelLoader.load`.
    func load(_ loader: KernelLoader, into memory: GuestMemory, _ map: MemoryMap) throws(MachineError) -> CPUState {
        let end = try KernelSegment.load(segments, of: loader.kernel, into: memory, map)
        try BootStructures.writeCommandLine(loader.namedCommandLine, limit: .max, memory)
        let info = MultibootInformation(
            modules: try BootModule.load(loader.allModules, in: end..<map.lowEnd, into: memory, map), map: map,
            commandLine: BootStructures.commandLine)
        try info.write(memory)

        var state = CPUState()
        BootStructures.setProtectedMode(&state, memory)
        state.rip = entry
        state[.rax] = Self.loaderMagic
        state[.rbx] = BootStructures.multibootInformation
        return state
    }
}
