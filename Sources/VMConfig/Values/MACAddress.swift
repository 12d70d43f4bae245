/// The link-layer address of a network interface, six bytes.
public struct MACAddress: Hashable, Sendable, Codable, CustomStringConvertible {
    public let bytes: [UInt8]

    /// `nil` unless the text is six groups of one or two hexadecimal digits with colons between, and the address can
    /// be an interface's own: a group address (lowest bit of the first byte) and all zeros cannot.
    public init?(_ text: String) {
        let groups = text.split(separator: ":", omittingEmptySubsequences: false)
        let bytes = groups.compactMap { $0.utf8.count <= 2 ? UInt16(hexadecimal: $0.utf8).map { UInt8(truncatingIfNeeded: $0) } : nil }
        guard groups.count == 6, bytes.count == 6, bytes[0] & 1 == 0, bytes.contains(where: { $0 != 0 }) else { return nil }
        self.bytes = bytes
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        let text = try container.decode(String.self)
        guard let address = MACAddress(text) else {
            throw DecodingError.dataCorruptedError(in: container, debugDescription: "'\(text)' is no link-layer address")
        }
        self = address
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }

    public var description: String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
    }
}

extension UInt16 {
    /// The number that one to four hexadecimal digits spell.
    init?(hexadecimal digits: some Collection<UInt8>) {
        guard (1...4).contains(digits.count) else { return nil }
        self = 0
        for byte in digits {
            switch byte {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): self = self << 4 | UInt16(byte - UInt8(ascii: "0"))
            case UInt8(ascii: "a")...UInt8(ascii: "f"): self = self << 4 | UInt16(byte - UInt8(ascii: "a") + 10)
            case UInt8(ascii: "A")...UInt8(ascii: "F"): self = self << 4 | UInt16(byte - UInt8(ascii: "A") + 10)
            default: return nil
            }
        }
    }
}
