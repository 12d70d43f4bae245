import VMM

/// What a BIOS would have left for software that calls it: interrupt vectors of real mode, with handlers behind them that
/// know no function. There is no firmware, but kernels that go back to real mode ask it without looking whether there
/// is any: without these they would run whatever lies at address 0.
enum RealModeVectors {
    private static let segment: UInt64 = 0xF000
    /// Where IBM's BIOS has its IRET.
    private static let nothing: UInt64 = 0xFF53
    private static let unsupported: UInt64 = 0xFF40
    /// BIOS services: video to time of day.
    private static let services: ClosedRange<UInt64> = 0x10...0x1A

    /// push %bp; mov %sp, %bp; orb $1, 6(%bp); pop %bp; mov $0x86, %ah; iret: carry, "function not supported".
    private static let refusal: [UInt8] = [0x55, 0x8B, 0xEC, 0x80, 0x4E, 0x06, 0x01, 0x5D, 0xB4, 0x86, 0xCF]
    private static let iret: UInt8 = 0xCF

    static func write(_ memory: GuestMemory) {
        for vector in UInt64(0)..<256 {
            let handler = services.contains(vector) ? unsupported : nothing
            memory.store(vector * 4, UInt32(truncatingIfNeeded: segment << 16 | handler))
        }
        memory.write(refusal, at: segment << 4 + unsupported)
        memory.store(segment << 4 + nothing, iret)
    }
}
