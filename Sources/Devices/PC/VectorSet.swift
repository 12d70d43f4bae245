/// The 256 bits of one of a local APIC's registers of vectors: ISR, TMR, IRR (SDM Vol. 3, 12.8.4). A plain value.
public struct VectorSet: Codable, Hashable, Sendable {
    private var words = SIMD4<UInt64>()

    public init() {}

    public func contains(_ vector: UInt8) -> Bool { words[Int(vector >> 6)] & 1 &<< UInt64(vector & 63) != 0 }
    public mutating func insert(_ vector: UInt8) { words[Int(vector >> 6)] |= 1 &<< UInt64(vector & 63) }
    public mutating func remove(_ vector: UInt8) { words[Int(vector >> 6)] &= ~(1 &<< UInt64(vector & 63)) }

    public var isEmpty: Bool { words == SIMD4() }

    /// The vector with the highest priority.
    public var highest: UInt8? {
        var index = 4
        while index > 0 {
            index -= 1
            let word = words[index]
            if word != 0 { return UInt8(truncatingIfNeeded: index << 6 | 63 &- word.leadingZeroBitCount) }
        }
        return nil
    }

    /// The register of 32 vectors with this number, modulo 8.
    public func register(_ number: UInt16) -> UInt32 {
        UInt32(truncatingIfNeeded: words[Int(number >> 1 & 3)] &>> (number & 1 != 0 ? 32 : 0))
    }
}
