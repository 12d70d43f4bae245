import VMM

/// Firmware for the machine: an image that is all there when the CPU starts, at the end of the first 4 GB, where the
/// CPU's first instruction is, and its top once more at the end of the first megabyte, where 16-bit code reaches it.
///
/// The upper one is ROM, the lower one RAM: it is shadowed already, as firmware for PCs wants it before it can work.
struct FirmwareImage: Sendable {
    let file: BootFile

    /// The end of the ISA bus's addresses, where a PC has conventional memory; the image's top may come down to here.
    private static let lowest = MemoryMap.conventionalEnd

    /// The smallest and the largest image, as on OpenBSD.
    static let byteCounts: ClosedRange<UInt64> = 15...MemoryMap.largestFirmware

    /// - Precondition: the file has as many bytes as `byteCounts` allows.
    init(_ file: BootFile) {
        precondition(Self.byteCounts.contains(file.byteCount))
        self.file = file
    }

    /// Whether a file that is no kernel may be firmware. What is text or has nothing at the CPU's first instruction was
    /// given by mistake.
    static func isPlausible(_ file: BootFile) throws(MachineError) -> Bool {
        guard byteCounts.contains(file.byteCount) else { return false }
        let tail = try file.read(at: file.byteCount - min(file.byteCount, 64), count: 64).bytes
        func isText(_ byte: UInt8) -> Bool { (0x20..<0x7F).contains(byte) || [0x09, 0x0A, 0x0D].contains(byte) }
        return !tail.allSatisfy(isText) && !tail.suffix(16).allSatisfy { $0 == 0 || $0 == 0xFF }
    }

    /// Lays the image into memory that reads as zeros.
    /// - Returns: the state after power-on.
    func load(into memory: GuestMemory) throws(MachineError) -> CPUState {
        let bytes = try file.read(at: 0, count: Int(file.byteCount)).bytes
        guard UInt64(bytes.count) == file.byteCount else { throw file.truncated() }
        memory.writeROM(bytes, at: MemoryMap.fourGigabytes - file.byteCount)
        let top = bytes.suffix(Int(MemoryMap.oneMegabyte - Self.lowest))
        memory.write(Array(top), at: MemoryMap.oneMegabyte - UInt64(top.count))
        return CPUState()
    }
}
