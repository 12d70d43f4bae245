/// Writes ACPI machine language: as much of it as a fixed description of a PC needs (ACPI 6.4, section 20.2).
///
/// Objects are appended one after the other; what contains others takes a closure that appends those.
public struct AML: Sendable {
    public private(set) var bytes: [UInt8] = []

    public init() {}

    /// An element of a package.
    public indirect enum Value: Sendable {
        case integer(UInt64)
        case eisaID(String)
        case package([Value])
    }

    // MARK: Objects

    public mutating func scope(_ path: String, _ body: (inout AML) -> Void) {
        block([0x10], Self.name(path), body)
    }

    public mutating func device(_ name: String, _ body: (inout AML) -> Void) {
        block([0x5B, 0x82], Self.name(name), body)
    }

    public mutating func define(_ name: String, _ value: Value) {
        bytes += [0x08] + Self.name(name) + Self.encode(value)
    }

    public mutating func define(_ name: String, resources: Resources) {
        let template = resources.bytes + [0x79, 0]
        let content = Self.integer(UInt64(template.count)) + template
        bytes += [0x08] + Self.name(name) + [0x11] + Self.lengthPrefixed(content)
    }

    // MARK: Methods

    public mutating func method(_ name: String, arguments: UInt8, _ body: (inout AML) -> Void) {
        block([0x14], Self.name(name) + [arguments & 7], body)
    }

    /// Store (ArgN, name)
    public mutating func storeArgument(_ number: UInt8, in name: String) {
        bytes += [0x70, 0x68 + number % 7] + Self.name(name)
    }

    /// If (name) { ... }
    public mutating func ifSet(_ name: String, _ body: (inout AML) -> Void) { block([0xA0], Self.name(name), body) }

    public mutating func returns(_ value: Value) { bytes += [0xA4] + Self.encode(value) }

    private mutating func block(_ opcode: [UInt8], _ head: [UInt8], _ body: (inout AML) -> Void) {
        var inner = AML()
        body(&inner)
        bytes += opcode + Self.lengthPrefixed(head + inner.bytes)
    }

    // MARK: Encodings

    /// PkgLength counts itself (20.2.4).
    static func lengthPrefixed(_ content: [UInt8]) -> [UInt8] {
        let count = content.count
        if count + 1 < 0x40 { return [UInt8(count + 1)] + content }
        for extra in 1...3 where count + 1 + extra < 1 << (4 + 8 * extra) {
            let total = count + 1 + extra
            let lead = UInt8(extra << 6 | total & 15)
            return [lead] + (0..<extra).map { UInt8(truncatingIfNeeded: total >> (4 + 8 * $0)) } + content
        }
        preconditionFailure("an AML object has less than 256 MB")
    }

    /// Up to two name segments, with or without the root (20.2.2). Short segments are filled up with `_`.
    static func name(_ path: String) -> [UInt8] {
        let isRooted = path.hasPrefix("\\")
        let segments = path.dropFirst(isRooted ? 1 : 0).split(separator: ".")
        precondition((1...2).contains(segments.count) && segments.allSatisfy { $0.utf8.count <= 4 })
        let root: [UInt8] = isRooted ? [0x5C] : []
        let dual: [UInt8] = segments.count == 2 ? [0x2E] : []
        return root + dual
            + segments.flatMap { Array($0.utf8) + Array(repeating: UInt8(ascii: "_"), count: 4 - $0.utf8.count) }
    }

    static func integer(_ value: UInt64) -> [UInt8] {
        func little(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) } }
        switch value {
        case 0: return [0x00]
        case 1: return [0x01]
        case ...0xFF: return [0x0A] + little(1)
        case ...0xFFFF: return [0x0B] + little(2)
        case ...0xFFFF_FFFF: return [0x0C] + little(4)
        default: return [0x0E] + little(8)
        }
    }

    /// "PNP0A03" as a number: three letters of five bits, four hexadecimal digits, highest byte first (6.1.5).
    static func eisaID(_ id: String) -> [UInt8] {
        let text = Array(id.utf8)
        guard text.count == 7, let product = UInt32(id.suffix(4), radix: 16) else {
            preconditionFailure("\(id) is not an EISA id")
        }
        let letters = text.prefix(3).reduce(0 as UInt32) { $0 << 5 | UInt32($1 & 0x1F) }
        return integer(UInt64((letters << 16 | product).byteSwapped))
    }

    static func encode(_ value: Value) -> [UInt8] {
        switch value {
        case .integer(let number): integer(number)
        case .eisaID(let id): eisaID(id)
        case .package(let elements):
            [0x12] + lengthPrefixed([UInt8(truncatingIfNeeded: elements.count)] + elements.flatMap(encode))
        }
    }

    // MARK: Resources

    /// The resource descriptors of a `_CRS` (ACPI 6.4, section 6.4).
    public struct Resources: Sendable {
        public private(set) var bytes: [UInt8] = []

        public init() {}

        private static func little<T: FixedWidthInteger>(_ values: T...) -> [UInt8] {
            values.flatMap { value in
                (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
            }
        }

        /// Ports that the device decodes itself, all 16 address bits.
        public func ports(_ first: UInt16, count: UInt8) -> Resources {
            appending([0x47, 0x01] + Self.little(first, first) + [0x01, count])
        }

        /// An edge-triggered interrupt line.
        public func interrupt(_ line: UInt8) -> Resources {
            appending([0x22] + Self.little((1 as UInt16) << UInt16(line & 15)))
        }

        /// Bus numbers behind a bridge.
        public func buses(_ range: ClosedRange<UInt16>) -> Resources {
            word(type: 2, flags: 0, range)
        }

        /// Ports that a bridge passes on.
        public func portWindow(_ range: ClosedRange<UInt16>) -> Resources {
            word(type: 1, flags: 0x03, range)
        }

        private func word(type: UInt8, flags: UInt8, _ range: ClosedRange<UInt16>) -> Resources {
            // Positive decoding, both ends fixed.
            appending(
                [0x88, 0x0D, 0x00, type, 0x0C, flags]
                    + Self.little(0, range.lowerBound, range.upperBound, 0, UInt16(range.count)))
        }

        /// Addresses that a bridge passes on: writable, not cached.
        public func memoryWindow(_ range: ClosedRange<UInt32>) -> Resources {
            appending(
                [0x87, 0x17, 0x00, 0x00, 0x0C, 0x01]
                    + Self.little(0, range.lowerBound, range.upperBound, 0, UInt32(range.count)))
        }

        private func appending(_ more: [UInt8]) -> Resources {
            var all = self
            all.bytes += more
            return all
        }
    }
}
