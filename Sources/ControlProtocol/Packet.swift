/// One message as it goes over a socket that keeps messages apart (SOCK_SEQPACKET): eight bytes of header, then the
/// fields of its kind.
///
/// | bytes | |
/// |---|---|
/// | 0-3 | "vmd" and the version of the protocol |
/// | 4-5 | kind, little-endian |
/// | 6 | number of descriptors that come along |
/// | 7 | zero |
///
/// The version counts up when a message changes its meaning. Kinds are only ever added, so a newer client meets an
/// older daemon with "unknown request" and not with a misunderstanding.
public enum Packet {
    /// The version that this side speaks.
    public static let version: UInt8 = 1
    /// Longer packets are refused unread.
    public static let longest = 32 << 10
    /// Descriptors that one packet of a client or to one may carry.
    public static let mostDescriptors = 4
    static let headerByteCount = 8
    private static let mark = Array("vmd".utf8)

    /// A packet taken apart as far as all kinds are alike.
    struct Header: Hashable {
        var kind: UInt16
        var descriptorCount: Int
    }

    /// - Throws: when a field is too long.
    static func encode(
        kind: UInt16, descriptorCount: Int, longest: Int, mostDescriptors: Int, _ body: (inout MessageWriter) -> Void
    ) throws(MalformedMessage) -> [UInt8] {
        var writer = MessageWriter()
        for byte in mark { writer.put(byte) }
        writer.put(version)
        writer.put(kind)
        writer.put(UInt8(truncatingIfNeeded: descriptorCount))
        writer.put(0 as UInt8)
        body(&writer)
        guard !writer.isTooLong, writer.bytes.count <= longest, descriptorCount <= mostDescriptors else {
            throw MalformedMessage("message is too long: \(writer.bytes.count) bytes, \(longest) are the most")
        }
        return writer.bytes
    }

    /// - Returns: the header, and a reader of what follows.
    static func decode(_ bytes: [UInt8], longest: Int, mostDescriptors: Int) throws(MalformedMessage) -> (Header, MessageReader) {
        guard bytes.count <= longest else { throw MalformedMessage("message is too long") }
        guard bytes.count >= headerByteCount, Array(bytes[0..<3]) == mark else {
            throw MalformedMessage("not a message of vmd's")
        }
        guard bytes[3] == version else {
            throw MalformedMessage("protocol version \(bytes[3]), this side speaks \(version): use vmctl and vmd of one release")
        }
        guard bytes[7] == 0, Int(bytes[6]) <= mostDescriptors else { throw MalformedMessage("header of no version") }
        let kind = UInt16(bytes[4]) | UInt16(bytes[5]) << 8
        return (Header(kind: kind, descriptorCount: Int(bytes[6])), MessageReader(bytes[headerByteCount...]))
    }
}

/// A set of messages that one side of a socket sends: requests, answers, or what vmd's processes say to each other.
public protocol Message: Sendable {
    /// Bytes of a packet: messages that carry others need more room than those.
    static var longestPacket: Int { get }
    /// Descriptors that one packet may carry.
    static var mostDescriptors: Int { get }
    /// How many descriptors come along.
    var descriptorCount: Int { get }
    var kind: UInt16 { get }
    func writeFields(to writer: inout MessageWriter)
    /// - Throws: for an unknown kind too.
    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage)
}

extension Message {
    public static var longestPacket: Int { Packet.longest }
    public static var mostDescriptors: Int { Packet.mostDescriptors }
    public var descriptorCount: Int { 0 }

    /// The whole packet.
    /// - Throws: when a field is too long to be sent.
    public func encoded() throws(MalformedMessage) -> [UInt8] {
        try Packet.encode(
            kind: kind, descriptorCount: descriptorCount, longest: Self.longestPacket, mostDescriptors: Self.mostDescriptors
        ) { writeFields(to: &$0) }
    }

    /// - Parameter descriptorCount: how many came along.
    /// - Throws: unless the packet is exactly one message, with as many descriptors as it says and needs.
    public init(packet: [UInt8], descriptorCount: Int) throws(MalformedMessage) {
        var (header, reader) = try Packet.decode(
            packet, longest: Self.longestPacket, mostDescriptors: Self.mostDescriptors)
        self = try Self(kind: header.kind, from: &reader)
        try reader.finish()
        guard header.descriptorCount == descriptorCount, self.descriptorCount == descriptorCount else {
            throw MalformedMessage("\(descriptorCount) descriptors, \(self.descriptorCount) belong to this message")
        }
    }
}
