/// Tables that do not know yet where they will be.
public struct RelocatableTables: Hashable, Sendable {
    /// A little-endian field that holds an offset into the tables, to become an address.
    public struct Pointer: Hashable, Sendable {
        public let offset: Int
        public let byteCount: Int
    }

    /// A byte that makes the sum of some bytes, itself among them, zero.
    public struct Checksum: Hashable, Sendable {
        public let range: Range<Int>
        public let offset: Int
    }

    public internal(set) var bytes: [UInt8] = []
    public internal(set) var pointers: [Pointer] = []
    public internal(set) var checksums: [Checksum] = []

    /// Puts others behind these; their pointers are offsets into the whole already.
    mutating func append(_ other: RelocatableTables) {
        let start = bytes.count
        bytes += other.bytes
        pointers += other.pointers.map { Pointer(offset: $0.offset + start, byteCount: $0.byteCount) }
        checksums += other.checksums.map {
            Checksum(range: $0.range.lowerBound + start..<$0.range.upperBound + start, offset: $0.offset + start)
        }
    }

    /// The bytes, with the tables that the pointers mean at `address`.
    public func relocated(by address: UInt64) -> [UInt8] {
        var result = bytes
        for pointer in pointers {
            let old = (0..<pointer.byteCount).reduce(0 as UInt64) { $0 | UInt64(bytes[pointer.offset + $1]) << UInt64($1 * 8) }
            let new = old &+ address
            for index in 0..<pointer.byteCount {
                result[pointer.offset + index] = UInt8(truncatingIfNeeded: new >> UInt64(index * 8))
            }
        }
        for checksum in checksums { result[checksum.offset] &-= result[checksum.range].reduce(0, &+) }
        return result
    }
}

/// The commands by which firmware puts tables into memory, QEMU's `etc/table-loader`: where to have room for a file, which
/// fields of it are pointers, which bytes are checksums. 128 bytes each, little-endian.
public enum TableLoader {
    public static let commandByteCount = 128
    private static let nameByteCount = 56

    /// Where a file may go.
    public enum Zone: UInt8, Sendable {
        /// Anywhere below 4 GB.
        case high = 1
        /// The segment F000, where the RSDP is looked for.
        case segmentF = 2
    }

    /// A file of the firmware configuration device.
    public struct File: Sendable {
        public let name: String
        public let tables: RelocatableTables
        public let alignment: Int
        public let zone: Zone
    }

    /// - Parameter target: the name of the file that all pointers lead into.
    public static func commands(_ files: [File], pointersInto target: String) -> [UInt8] {
        files.flatMap { file in
            command(1, text(file.name) + number(UInt32(file.alignment)) + [file.zone.rawValue])
        }
            + files.flatMap { file in
                file.tables.pointers.flatMap { pointer in
                    command(
                        2,
                        text(file.name) + text(target) + number(UInt32(pointer.offset)) + [UInt8(pointer.byteCount)])
                }
            }
            + files.flatMap { file in
                file.tables.checksums.flatMap { checksum in
                    command(
                        3,
                        text(file.name) + number(UInt32(checksum.offset)) + number(UInt32(checksum.range.lowerBound))
                            + number(UInt32(checksum.range.count)))
                }
            }
    }

    private static func command(_ code: UInt32, _ content: [UInt8]) -> [UInt8] {
        let bytes = number(code) + content
        return bytes + Array(repeating: 0, count: commandByteCount - bytes.count)
    }

    private static func text(_ name: String) -> [UInt8] {
        let bytes = Array(name.utf8)
        precondition(bytes.count < nameByteCount)
        return bytes + Array(repeating: 0, count: nameByteCount - bytes.count)
    }

    private static func number(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }
}

extension ACPITables {
    static let tablesFile = "etc/acpi/tables"
    static let pointerFile = "etc/acpi/rsdp"

    /// The files by which firmware lays down the same tables that `build` makes.
    public static func firmwareFiles(_ configuration: Configuration) -> [FirmwareConfiguration.File] {
        let (tables, rsdp) = files(configuration)
        let commands = TableLoader.commands(
            [
                .init(name: tablesFile, tables: tables, alignment: alignment, zone: .high),
                .init(name: pointerFile, tables: rsdp, alignment: 16, zone: .segmentF),
            ], pointersInto: tablesFile)
        return [
            .init(tablesFile, tables.bytes), .init(pointerFile, rsdp.bytes), .init("etc/table-loader", commands),
        ]
    }
}
