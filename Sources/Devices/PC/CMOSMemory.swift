/// The 128 bytes of battery-backed memory in a PC's clock chip, and what a PC's firmware keeps in them.
public struct CMOSMemory: Codable, Hashable, Sendable {
    private var bytes: [UInt8]

    public static let byteCount = 128

    public init() { bytes = Array(repeating: 0, count: Self.byteCount) }

    /// - Throws: `DecodingError` when there are not exactly 128 bytes: everything else relies on that.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        bytes = try container.decode([UInt8].self)
        guard bytes.count == Self.byteCount else {
            throw DecodingError.dataCorruptedError(in: container, debugDescription: "CMOS memory has 128 bytes")
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(bytes)
    }

    /// The highest bit of an index is not the memory's.
    public subscript(_ index: UInt8) -> UInt8 {
        get { bytes[Int(index & 0x7F)] }
        set { bytes[Int(index & 0x7F)] = newValue }
    }

    private mutating func setWord(_ index: UInt8, _ value: UInt64) {
        self[index] = UInt8(truncatingIfNeeded: value)
        self[index &+ 1] = UInt8(truncatingIfNeeded: value >> 8)
    }

    /// Writes memory sizes where a BIOS looks for them, and the checksum over the standard bytes.
    /// - Parameters:
    ///   - base: bytes of RAM from 0, at most 640 KB.
    ///   - below4G: end of the RAM below 4 GB.
    ///   - above4G: bytes of RAM from 4 GB.
    public mutating func setMemory(base: UInt64, below4G: UInt64, above4G: UInt64, processors: Int = 1) {
        let megabyte: UInt64 = 1 << 20
        setWord(0x15, min(base, 640 << 10) >> 10)
        let extended = below4G > megabyte ? min((below4G - megabyte) >> 10, 0xFFFF) : 0
        setWord(0x17, extended)
        setWord(0x30, extended)
        setWord(0x34, below4G > 16 * megabyte ? min((below4G - 16 * megabyte) >> 16, 0xFFFF) : 0)
        let high = min(above4G >> 16, 0xFF_FFFF)
        setWord(0x5B, high)
        self[0x5D] = UInt8(truncatingIfNeeded: high >> 16)
        self[0x5F] = UInt8(truncatingIfNeeded: min(max(processors, 1), 256) - 1)
        setChecksum()
    }

    /// What SeaBIOS boots from when nobody gives it an order: QEMU's numbers, 1 floppy, 2 disk, 3 CD, 4 network; first and
    /// second in 0x3D, third in 0x38, whose bit 0 lets a boot sector without signature pass.
    public mutating func setBootOrder() {
        self[0x3D] = 0x32
        self[0x38] = 0x41
    }

    private mutating func setChecksum() {
        // The sum of 0x10 to 0x2D, high byte first.
        var sum: UInt16 = 0
        for index in 0x10...0x2D as ClosedRange<UInt8> { sum &+= UInt16(self[index]) }
        self[0x2E] = UInt8(sum >> 8)
        self[0x2F] = UInt8(truncatingIfNeeded: sum)
    }
}
