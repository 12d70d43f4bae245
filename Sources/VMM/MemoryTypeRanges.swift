/// The memory type range registers (SDM Vol. 3, 12.11): firmware sets them up, kernels read them and some write them.
///
/// They keep what is written and refuse what a CPU refuses; memory is the host's write-back memory whatever they say.
public struct MemoryTypeRanges: Codable, Hashable, Sendable {
    public static let capabilitiesIndex: UInt32 = 0xFE
    private static let variableIndices: ClosedRange<UInt32> = 0x200...0x20F
    private static let defaultTypeIndex: UInt32 = 0x2FF
    /// Of 64 KB from 0, 16 KB from 0x80000 and 0xA0000, 4 KB from 0xC0000.
    private static let fixedIndices: [UInt32] = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
    ]

    /// Eight variable ranges, fixed ranges, write combining.
    private static let capabilities: UInt64 = 8 | 1 << 8 | 1 << 10
    private static let enable: UInt64 = 1 << 11
    private static let enableFixed: UInt64 = 1 << 10
    private static let valid: UInt64 = 1 << 11

    /// The memory types of table 12-8 that may be in a register.
    private enum MemoryType {
        static let uncacheable: UInt64 = 0
        static let writeProtected: UInt64 = 5
        static let writeBack: UInt64 = 6
        static func isValid(_ type: UInt64) -> Bool { type < 7 && 1 << type & (0b111_0011 as UInt64) != 0 }
    }

    private var defaultType: UInt64 = 0
    /// In the order of `fixedIndices`.
    private var fixed = SIMD16<UInt64>()
    /// Base and mask in turn.
    private var variable = SIMD16<UInt64>()

    /// After power-on: all disabled.
    public init() {}

    /// As firmware leaves them: everything is write-back but the screen, the ROMs and, from `devices` to 4 GB, devices.
    public init(devices: UInt32, physicalAddressBits: UInt8) {
        defaultType = Self.enable | Self.enableFixed | MemoryType.writeBack
        for (place, index) in Self.fixedIndices.enumerated() {
            let type =
                switch index {
                case 0x250, 0x258: MemoryType.writeBack
                case 0x259: MemoryType.uncacheable
                default: MemoryType.writeProtected
                }
            fixed[place] = type &* 0x0101_0101_0101_0101
        }
        variable[0] = UInt64(devices) | MemoryType.uncacheable
        variable[1] = (0 &- (1 << 32 - UInt64(devices))) & Self.addressMask(physicalAddressBits) | Self.valid
    }

    private static func addressMask(_ bits: UInt8) -> UInt64 { (1 << UInt64(bits)) &- 1 }

    /// `nil` for a register that is none of these.
    public func read(_ index: UInt32) -> UInt64? {
        switch index {
        case Self.capabilitiesIndex: return Self.capabilities
        case Self.defaultTypeIndex: return defaultType
        case Self.variableIndices: return variable[Int(index - Self.variableIndices.lowerBound)]
        default: return Self.fixedIndices.firstIndex(of: index).map { fixed[$0] }
        }
    }

    /// - Returns: `nil` for a register that is none of these, `false` for a value that the CPU refuses.
    public mutating func write(_ index: UInt32, _ value: UInt64, physicalAddressBits: UInt8) -> Bool? {
        switch index {
        case Self.capabilitiesIndex: return false
        case Self.defaultTypeIndex:
            guard value & ~(0xFF | Self.enable | Self.enableFixed) == 0, MemoryType.isValid(value & 0xFF) else { return false }
            defaultType = value
        case Self.variableIndices:
            let isMask = index & 1 != 0
            let address = Self.addressMask(physicalAddressBits) & ~0xFFF
            guard value & ~(address | (isMask ? Self.valid : 0xFF)) == 0, isMask || MemoryType.isValid(value & 0xFF) else {
                return false
            }
            variable[Int(index - Self.variableIndices.lowerBound)] = value
        default:
            guard let place = Self.fixedIndices.firstIndex(of: index) else { return nil }
            for shift in stride(from: 0, to: 64 as UInt64, by: 8) where !MemoryType.isValid(value >> shift & 0xFF) {
                return false
            }
            fixed[place] = value
        }
        return true
    }
}
