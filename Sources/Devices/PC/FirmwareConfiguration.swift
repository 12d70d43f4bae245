/// QEMU's firmware configuration device as a value ("QEMU Firmware Configuration (fw_cfg) Device"): numbered items of
/// bytes, read one byte after the other. Test kernels ask it how many CPUs and how much memory there are.
///
/// Modelled: the selector, the traditional data register, the items below, a file directory with nothing in it. Not
/// modelled, and not announced: the DMA interface. Items can be read only: QEMU, too, has long ignored writes.
///
/// A guest can select any number and read for ever: what does not exist, and what lies behind an item's end, is zero.
public struct FirmwareConfiguration: Hashable, Sendable {
    /// Item numbers (FW_CFG_*).
    public enum Key: UInt16, CaseIterable, Sendable {
        case signature = 0x00
        /// What the interface can do.
        case interface = 0x01
        case uuid = 0x02
        /// In bytes.
        case memorySize = 0x03
        /// Whether the console is a serial line.
        case noGraphic = 0x04
        case processorCount = 0x05
        case bootMenu = 0x0E
        /// How many there can be, as the highest number of an APIC plus one.
        case maximumProcessorCount = 0x0F
        /// FW_CFG_FILE_DIR, the only one that is big-endian.
        case fileDirectory = 0x19
    }

    /// What changes: which item is read, and where.
    public struct Selection: Codable, Hashable, Sendable {
        public var key: UInt16 = Key.signature.rawValue
        public var offset: UInt32 = 0
        public init() {}
    }

    /// FW_CFG_VERSION: the traditional interface.
    private static let traditional: UInt32 = 1
    /// FW_CFG_WRITE_CHANNEL, which means nothing any more.
    private static let writeChannel: UInt16 = 0x4000

    private let items: [UInt16: [UInt8]]
    public var selection = Selection()

    /// - Parameter uuid: the machine's, 16 bytes; all zeros when it has none.
    public init(memoryByteCount: UInt64, processors: UInt16, uuid: [UInt8] = Array(repeating: 0, count: 16)) {
        var items: [UInt16: [UInt8]] = [:]
        for key in Key.allCases {
            items[key.rawValue] =
                switch key {
                case .signature: Array("QEMU".utf8)
                case .interface: Self.bytes(Self.traditional)
                case .uuid: uuid
                case .memorySize: Self.bytes(memoryByteCount)
                case .noGraphic: Self.bytes(UInt16(1))
                case .processorCount, .maximumProcessorCount: Self.bytes(processors)
                case .bootMenu: Self.bytes(UInt16(0))
                // The number of files.
                case .fileDirectory: Self.bytes(UInt32(0).bigEndian)
                }
        }
        self.items = items
    }

    /// Little-endian.
    private static func bytes<T: FixedWidthInteger & UnsignedInteger>(_ value: T) -> [UInt8] {
        (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
    }

    /// The selector: what is read next, from its first byte.
    public mutating func select(_ key: UInt16) {
        selection.key = key & ~Self.writeChannel
        selection.offset = 0
    }

    /// The data register: the next byte.
    public mutating func readData() -> UInt8 {
        guard let item = items[selection.key], let offset = Int(exactly: selection.offset), offset < item.count else {
            return 0
        }
        selection.offset += 1
        return item[offset]
    }

    public mutating func reset() { selection = Selection() }
}
