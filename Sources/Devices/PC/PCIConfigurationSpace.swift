import VMM

/// The 256 bytes of a PCI function's configuration space, with what a guest may write (PCI 3.0, section 6.1).
///
/// A register is declared by its reset value and two masks: bits that can be written, and bits that a written one
/// clears. Accesses of any width at any offset are allowed; bytes behind the end read ones.
public struct PCIConfigurationSpace: Codable, Hashable, Sendable {
    public static let byteCount = 256

    /// Offsets of the type 0 header (PCI 3.0, figure 6-1).
    public enum Register {
        public static let vendor: UInt8 = 0x00
        public static let device: UInt8 = 0x02
        public static let command: UInt8 = 0x04
        public static let status: UInt8 = 0x06
        public static let revision: UInt8 = 0x08
        public static let classCode: UInt8 = 0x09
        public static let cacheLineSize: UInt8 = 0x0C
        public static let latencyTimer: UInt8 = 0x0D
        public static let headerType: UInt8 = 0x0E
        public static let baseAddress0: UInt8 = 0x10
        public static let subsystemVendor: UInt8 = 0x2C
        public static let subsystem: UInt8 = 0x2E
        public static let capabilities: UInt8 = 0x34
        public static let interruptLine: UInt8 = 0x3C
        public static let interruptPin: UInt8 = 0x3D
    }

    private var bytes: [UInt8]
    private var writable: [UInt8]
    private var writeOneToClear: [UInt8]

    /// A function without base addresses, interrupt or capabilities.
    /// - Parameter classCode: class, subclass and programming interface, from the highest byte.
    public init(
        vendor: UInt16, device: UInt16, classCode: UInt32, revision: UInt8 = 0, subsystemVendor: UInt16 = 0,
        subsystem: UInt16 = 0
    ) {
        bytes = Array(repeating: 0, count: Self.byteCount)
        writable = bytes
        writeOneToClear = bytes
        set(Register.vendor, vendor)
        set(Register.device, device)
        set(Register.revision, revision)
        set(Register.classCode, UInt16(truncatingIfNeeded: classCode))
        set(Register.classCode + 2, UInt8(truncatingIfNeeded: classCode >> 16))
        set(Register.subsystemVendor, subsystemVendor)
        set(Register.subsystem, subsystem)
        // I/O and memory decoding, bus master, parity, SERR#, INTx disable.
        allowWrites(Register.command, 0x0547 as UInt16)
        setWriteOneToClear(Register.status, 0xF900 as UInt16)
        allowWrites(Register.cacheLineSize, 0xFF as UInt8)
        allowWrites(Register.latencyTimer, 0xFF as UInt8)
        allowWrites(Register.interruptLine, 0xFF as UInt8)
    }

    private enum CodingKeys: CodingKey { case bytes, writable, writeOneToClear }

    /// - Throws: `DecodingError` when a part does not have 256 bytes.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        func decode(_ key: CodingKeys) throws -> [UInt8] {
            let bytes = try container.decode([UInt8].self, forKey: key)
            guard bytes.count == Self.byteCount else {
                throw DecodingError.dataCorruptedError(
                    forKey: key, in: container, debugDescription: "PCI configuration space has 256 bytes")
            }
            return bytes
        }
        bytes = try decode(.bytes)
        writable = try decode(.writable)
        writeOneToClear = try decode(.writeOneToClear)
    }

    // MARK: The device's side

    private static func put<T: FixedWidthInteger>(_ value: T, _ offset: UInt8, in bytes: inout [UInt8]) {
        for index in 0..<T.bitWidth / 8 where Int(offset) + index < byteCount {
            bytes[Int(offset) + index] = UInt8(truncatingIfNeeded: value >> T(index * 8))
        }
    }

    /// Sets a register whatever its masks say.
    public mutating func set<T: FixedWidthInteger & UnsignedInteger>(_ offset: UInt8, _ value: T) {
        Self.put(value, offset, in: &bytes)
    }

    public func get<T: FixedWidthInteger & UnsignedInteger>(_ offset: UInt8, as type: T.Type) -> T {
        Self.get(offset, in: bytes)
    }

    private static func get<T: FixedWidthInteger & UnsignedInteger>(_ offset: UInt8, in bytes: [UInt8]) -> T {
        var value: T = 0
        for index in 0..<T.bitWidth / 8 where Int(offset) + index < byteCount {
            value |= T(bytes[Int(offset) + index]) << T(index * 8)
        }
        return value
    }

    /// Lets a guest write the bits of `mask`, and no others of that register.
    public mutating func allowWrites<T: FixedWidthInteger & UnsignedInteger>(_ offset: UInt8, _ mask: T) {
        Self.put(mask, offset, in: &writable)
    }

    /// What of a register a guest may write.
    func writableBits<T: FixedWidthInteger & UnsignedInteger>(_ offset: UInt8, as type: T.Type) -> T {
        Self.get(offset, in: writable)
    }

    /// Takes over what a guest had written in a saved space. What it cannot write stays as the device made it, so a
    /// forged space is no more than a hostile guest.
    public mutating func adopt(_ saved: PCIConfigurationSpace) {
        for index in bytes.indices {
            let mask = writable[index] | writeOneToClear[index]
            bytes[index] = bytes[index] & ~mask | saved.bytes[index] & mask
        }
    }

    /// Makes writing a one to these bits clear them.
    public mutating func setWriteOneToClear<T: FixedWidthInteger & UnsignedInteger>(_ offset: UInt8, _ mask: T) {
        Self.put(mask, offset, in: &writeOneToClear)
    }

    // MARK: The guest's side

    public func read(_ offset: UInt8, _ width: AccessWidth) -> UInt32 {
        var value: UInt32 = 0
        for index in 0..<min(width.rawValue, 4) {
            let place = Int(offset) + index
            value |= UInt32(place < Self.byteCount ? bytes[place] : 0xFF) << UInt32(index * 8)
        }
        return value
    }

    public mutating func write(_ offset: UInt8, _ width: AccessWidth, _ value: UInt32) {
        for index in 0..<min(width.rawValue, 4) {
            let place = Int(offset) + index
            guard place < Self.byteCount else { return }
            let byte = UInt8(truncatingIfNeeded: value >> UInt32(index * 8))
            bytes[place] = (bytes[place] & ~writable[place] | byte & writable[place]) & ~(byte & writeOneToClear[place])
        }
    }
}
