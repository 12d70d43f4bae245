import CLinux
import Glibc

/// The host's network interfaces, by route netlink (rtnetlink(7)). The socket is opened once and works on in a sandbox.
public struct NetworkLinks: ~Copyable, Sendable {
    public struct Link: Hashable, Sendable {
        public let index: Int32
        public let isUp: Bool
        public let isBridge: Bool
    }

    private let descriptor: FileDescriptor

    /// - Throws: EAFNOSUPPORT and EPERM where there is no netlink.
    public init() throws(SystemError) {
        let number = try retrying("socket") {
            socket(AF_NETLINK, CInt(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), 0)
        }
        descriptor = FileDescriptor(owning: number)
    }

    // linux/netlink.h and linux/rtnetlink.h
    private static let errorType: UInt16 = 2, newLink: UInt16 = 16, getLink: UInt16 = 18
    private static let request: UInt16 = 1, acknowledge: UInt16 = 4
    private static let name: UInt16 = 3, linkInformation: UInt16 = 18, linkKind: UInt16 = 1
    private static let up: UInt32 = 1
    private static let headerByteCount = 16, informationByteCount = 16

    /// - Parameter name: at most 15 bytes.
    /// - Returns: `nil` when there is none of that name.
    public borrowing func link(named name: String) throws(SystemError) -> Link? {
        guard (1...15).contains(name.utf8.count) else { return nil }
        var attribute = Self.bytes(UInt16(4 + name.utf8.count + 1)) + Self.bytes(Self.name) + Array(name.utf8) + [0]
        while attribute.count % 4 != 0 { attribute.append(0) }
        do {
            let answer = try exchange(Self.getLink, Self.request, index: 0, flags: 0, change: 0, attribute)
            return Self.parse(answer)
        } catch where error.errno == ENODEV {
            return nil
        }
    }

    public borrowing func set(_ link: Link, isUp: Bool) throws(SystemError) {
        _ = try exchange(
            Self.newLink, Self.request | Self.acknowledge, index: link.index, flags: isUp ? Self.up : 0, change: Self.up, [])
    }

    private static func bytes<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
        withUnsafeBytes(of: value.littleEndian) { Array($0) }
    }

    private static func number<Number: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int) -> Number? {
        guard offset >= 0, offset + MemoryLayout<Number>.size <= bytes.count else { return nil }
        return bytes.withUnsafeBytes { Number(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: Number.self)) }
    }

    /// One request and its answer.
    private borrowing func exchange(
        _ type: UInt16, _ flags: UInt16, index: Int32, flags linkFlags: UInt32, change: UInt32, _ attributes: [UInt8]
    ) throws(SystemError) -> [UInt8] {
        let length = UInt32(Self.headerByteCount + Self.informationByteCount + attributes.count)
        var message = Self.bytes(length) + Self.bytes(type) + Self.bytes(flags) + Self.bytes(1 as UInt32) + Self.bytes(0 as UInt32)
        message += [0, 0, 0, 0] + Self.bytes(index) + Self.bytes(linkFlags) + Self.bytes(change) + attributes
        let number = descriptor.raw
        _ = try retrying("send") { send(number, message, message.count, CInt(MSG_NOSIGNAL)) }
        var answer = [UInt8](repeating: 0, count: 32 << 10)
        let count = try retrying("recv") { recv(number, &answer, answer.count, 0) }
        answer.removeLast(answer.count - count)
        if Self.number(answer, 4) == Self.errorType, let code: Int32 = Self.number(answer, Self.headerByteCount), code != 0 {
            throw SystemError("netlink", errno: -code)
        }
        return answer
    }

    private static func parse(_ answer: [UInt8]) -> Link? {
        guard number(answer, 4) == newLink, let index: Int32 = number(answer, headerByteCount + 4),
            let flags: UInt32 = number(answer, headerByteCount + 8)
        else { return nil }
        var kind: [UInt8] = []
        attributes(answer[(headerByteCount + informationByteCount)...]) { type, value in
            guard type == linkInformation else { return }
            attributes(value) { type, value in if type == linkKind { kind = value.filter { $0 != 0 } } }
        }
        return Link(index: index, isUp: flags & up != 0, isBridge: kind == Array("bridge".utf8))
    }

    private static func attributes(_ bytes: ArraySlice<UInt8>, _ body: (UInt16, ArraySlice<UInt8>) -> Void) {
        var rest = bytes
        while rest.count >= 4 {
            let header = Array(rest.prefix(4))
            guard let length: UInt16 = number(header, 0), let type: UInt16 = number(header, 2), length >= 4,
                Int(length) <= rest.count
            else { return }
            body(type & 0x3FFF, rest.dropFirst(4).prefix(Int(length) - 4))
            rest = rest.dropFirst((Int(length) + 3) & ~3)
        }
    }
}
