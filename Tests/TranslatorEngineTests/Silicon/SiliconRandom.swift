import TestSupport

/// Reproducible random numbers, and operands made of them.
struct SiliconRandom: RandomNumberGenerator {
    private var generator: SplitMix64
    init(seed: UInt64) { generator = SplitMix64(seed: seed) }
    mutating func next() -> UInt64 { generator.next() }
    mutating func below(_ limit: Int) -> Int { Int(truncatingIfNeeded: next() >> 33) % limit }
    mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: next() >> 40) }
    /// `true` in so many of a hundred cases.
    mutating func percent(_ share: Int) -> Bool { below(100) < share }
    mutating func pick<T>(_ values: [T]) -> T { values[below(values.count)] }

    // MARK: Operand values

    /// Integers at which instructions behave differently more often than at random ones.
    mutating func integer() -> UInt64 {
        switch below(8) {
        case 0: return UInt64(below(256))
        case 1: return pick(Self.edges)
        case 2: return 0 &- UInt64(below(256))
        case 3: return 1 << UInt64(below(64))
        case 4: return next() & 0xFFFF_FFFF
        case 5: return (1 << UInt64(below(64))) &- 1
        default: return next()
        }
    }
    private static let edges: [UInt64] = [
        0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF,
        0x8000_0000_0000_0000, ~0,
    ]

    /// 64 bits of a vector register: bytes, or one double, or two floats, often special ones.
    mutating func vectorWord() -> UInt64 {
        switch below(8) {
        case 0: return 0
        case 1: return pick(Self.doubles)
        case 2: return Double(Int64(truncatingIfNeeded: next()) >> Int64(below(60))).bitPattern
        case 3, 4: return UInt64(pick(Self.floats)) | UInt64(pick(Self.floats)) << 32
        case 5:
            let a = Float(Int32(truncatingIfNeeded: next()) >> Int32(below(30))).bitPattern
            let b = Float(Int32(truncatingIfNeeded: next()) >> Int32(below(30))).bitPattern
            return UInt64(a) | UInt64(b) << 32
        default: return next()
        }
    }
    private static let doubles: [UInt64] = [
        0, 0x8000_0000_0000_0000, 0x3FF0_0000_0000_0000, 0xBFF8_0000_0000_0000, 0x7FF0_0000_0000_0000,
        0xFFF0_0000_0000_0000, 0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0001, 1, 0x000F_FFFF_FFFF_FFFF,
        0x7FEF_FFFF_FFFF_FFFF, 0x41DF_FFFF_FFC0_0000, 0xC1E0_0000_0000_0000, 0x43E0_0000_0000_0000,
    ]
    private static let floats: [UInt32] = [
        0, 0x8000_0000, 0x3F80_0000, 0xBFC0_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 1, 0x007F_FFFF,
        0x7F7F_FFFF, 0x4F00_0000, 0xCF00_0000, 0x4B80_0000,
    ]

    /// Significand and sign with exponent of an x87 register.
    mutating func extended() -> (UInt64, UInt16) {
        switch below(7) {
        case 0: return (0, percent(50) ? 0 : 0x8000)
        case 1: return (0x8000_0000_0000_0000, percent(50) ? 0x7FFF : 0x3FFF)
        case 2: return (next() | 1 << 63, 0x7FFF)
        case 3: return (next() >> UInt64(below(40)), 0)
        case 4: return (next() | 1 << 63, UInt16(0x3FFF + below(80) - 10))
        case 5: return (next() | 1 << 63, UInt16(truncatingIfNeeded: next()))
        default: return (next(), UInt16(truncatingIfNeeded: next()))
        }
    }
}
