/// QEMU's firmware configuration device as a value ("QEMU Firmware Configuration (fw_cfg) Device"): numbered items of
/// bytes, read one byte after the other or by transfers to memory. Firmware finds files there; test kernels ask it how many
/// CPUs and how much memory there are.
///
/// Modelled: the selector, the traditional data register, the items below, the file directory, transfers (their bytes; the
/// port has the memory). Items can be read only: QEMU, too, has long ignored writes to the data register.
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

    /// An item with a name.
    public struct File: Hashable, Sendable {
        public let name: String
        public let bytes: [UInt8]

        /// - Precondition: the name has at most 55 bytes.
        public init(_ name: String, _ bytes: [UInt8]) {
            precondition(name.utf8.count < FirmwareConfiguration.nameByteCount)
            self.name = name
            self.bytes = bytes
        }

        /// A file that holds a number.
        public init<T: FixedWidthInteger & UnsignedInteger>(_ name: String, _ value: T) {
            self.init(name, FirmwareConfiguration.bytes(value))
        }
    }

    /// What changes: which item is read, and where.
    public struct Selection: Codable, Hashable, Sendable {
        public var key: UInt16 = Key.signature.rawValue
        public var offset: UInt32 = 0
        public init() {}
    }

    /// FW_CFG_VERSION: the traditional interface.
    private static let traditional: UInt32 = 1
    /// FW_CFG_VERSION_DMA: transfers.
    private static let transfers: UInt32 = 2
    /// FW_CFG_WRITE_CHANNEL, which means nothing any more.
    private static let writeChannel: UInt16 = 0x4000
    /// FW_CFG_FILE_FIRST
    private static let firstFile: UInt16 = 0x20
    private static let nameByteCount = 56

    private let items: [UInt16: [UInt8]]
    public var selection = Selection()

    /// - Parameters:
    ///   - uuid: the machine's, 16 bytes; all zeros when it has none.
    ///   - hasTransfers: whether the port can reach memory.
    public init(
        memoryByteCount: UInt64, processors: UInt16, uuid: [UInt8] = Array(repeating: 0, count: 16), files: [File] = [],
        hasTransfers: Bool = false
    ) {
        // SeaBIOS and others search from the front, Linux's sysfs shows them so.
        let files = files.sorted { $0.name < $1.name }
        var items: [UInt16: [UInt8]] = [:]
        for key in Key.allCases {
            items[key.rawValue] =
                switch key {
                case .signature: Array("QEMU".utf8)
                case .interface: Self.bytes(Self.traditional | (hasTransfers ? Self.transfers : 0))
                case .uuid: uuid
                case .memorySize: Self.bytes(memoryByteCount)
                case .noGraphic: Self.bytes(UInt16(1))
                case .processorCount, .maximumProcessorCount: Self.bytes(processors)
                case .bootMenu: Self.bytes(UInt16(0))
                case .fileDirectory: Self.directory(files)
                }
        }
        for (file, key) in zip(files, Self.firstFile...) { items[key] = file.bytes }
        self.items = items
    }

    /// The number of files, then size, key, reserved and name of each.
    private static func directory(_ files: [File]) -> [UInt8] {
        var result = bytes(UInt32(files.count).bigEndian)
        for (file, key) in zip(files, firstFile...) {
            result += bytes(UInt32(file.bytes.count).bigEndian) + bytes(key.bigEndian) + [0, 0]
            result += Array(file.name.utf8) + Array(repeating: 0, count: nameByteCount - file.name.utf8.count)
        }
        return result
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
    public mutating func readData() -> UInt8 { take(1).first ?? 0 }

    /// Goes on by `count` bytes.
    /// - Returns: those that the item has; the rest are zeros.
    public mutating func take(_ count: UInt32) -> ArraySlice<UInt8> {
        guard let item = items[selection.key], let offset = Int(exactly: selection.offset), offset < item.count else {
            return []
        }
        let end = offset + min(Int(count), item.count - offset)
        selection.offset = UInt32(end)
        return item[offset..<end]
    }

    public mutating func reset() { selection = Selection() }
}
