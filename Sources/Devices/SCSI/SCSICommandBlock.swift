/// A command descriptor block (SPC-4, section 4.2): what an initiator asks a device for. Big-endian.
public struct SCSICommandBlock: Sendable {
    /// As much as a transport carries at most.
    public static let byteCount = 32

    private var bytes: [32 of UInt8]

    /// - Parameters:
    ///   - count: how many bytes there are; what is beyond 32 is left out.
    ///   - byte: gives each.
    public init(count: Int, _ byte: (Int) -> UInt8) {
        bytes = InlineArray(repeating: 0)
        for index in 0..<max(0, min(count, Self.byteCount)) { bytes[index] = byte(index) }
    }

    public init(_ bytes: [UInt8]) { self.init(count: bytes.count) { bytes[$0] } }

    /// A byte; 0 for those that there are none of.
    public subscript(_ index: Int) -> UInt8 { index >= 0 && index < Self.byteCount ? bytes[index] : 0 }

    var operation: UInt8 { self[0] }

    /// A number of so many bytes.
    func number(_ index: Int, byteCount: Int) -> UInt64 {
        var value: UInt64 = 0
        for offset in 0..<byteCount { value = value << 8 | UInt64(self[index + offset]) }
        return value
    }
}

/// The operation codes that a CD or DVD drive knows (SPC-4, SBC-3, MMC-6).
enum SCSIOperation: UInt8 {
    case testUnitReady = 0x00
    case requestSense = 0x03
    case read6 = 0x08
    case inquiry = 0x12
    case modeSense6 = 0x1A
    case startStopUnit = 0x1B
    case preventAllowMediumRemoval = 0x1E
    case readCapacity10 = 0x25
    case read10 = 0x28
    case seek10 = 0x2B
    case readSubChannel = 0x42
    case readTOC = 0x43
    case getConfiguration = 0x46
    case getEventStatusNotification = 0x4A
    case readDiscInformation = 0x51
    case modeSense10 = 0x5A
    case read16 = 0x88
    case serviceActionIn16 = 0x9E
    case reportLUNs = 0xA0
    case read12 = 0xA8
    case readDVDStructure = 0xAD
    case setCDSpeed = 0xBB
    case mechanismStatus = 0xBD
    case readCD = 0xBE
}
