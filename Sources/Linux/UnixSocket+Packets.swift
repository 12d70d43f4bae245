import CLinux
import Glibc

extension UnixSocket {
    /// How many descriptors one packet may carry.
    public static let mostDescriptors = Int(CLINUX_PACKET_DESCRIPTORS)

    /// One packet and the descriptors that came with it.
    public struct Packet: ~Copyable, Sendable {
        public let bytes: [UInt8]
        public var descriptors: FileDescriptorList
    }

    /// What a look for a packet found.
    public enum Arrival: ~Copyable, Sendable {
        case packet(Packet)
        /// None yet.
        case nothing
        /// The peer is gone. An empty packet looks the same, so there are none.
        case closed
    }

    /// A packet that is not one of ours. It is gone, and its descriptors are closed.
    public enum ReceiveFailure: Error, Equatable, CustomStringConvertible {
        case system(SystemError)
        /// Longer than the limit (MSG_TRUNC).
        case packetTooLong(limit: Int)
        /// More than the limit, or some did not fit into this process (MSG_CTRUNC).
        case tooManyDescriptors(limit: Int)

        public var description: String {
            switch self {
            case .system(let error): error.description
            case .packetTooLong(let limit): "packet of more than \(limit) bytes"
            case .tooManyDescriptors(let limit): "packet with more than \(limit) descriptors, or no room for them here"
            }
        }
    }

    /// Sends one packet; the descriptors are borrowed, the peer gets duplicates.
    /// - Returns: `false` when the peer's queue is full: wait until it is writable.
    /// - Throws: EPIPE when the peer is gone, EMSGSIZE for more than the send buffer holds, EINVAL for an empty packet,
    ///   E2BIG for more than `mostDescriptors`.
    public borrowing func send(_ bytes: [UInt8], descriptors: [CInt] = []) throws(SystemError) -> Bool {
        // It would look like the end.
        guard !bytes.isEmpty else { throw SystemError("sendmsg", errno: EINVAL) }
        let number = raw
        do {
            _ = try retrying("sendmsg") {
                clinux_send_packet(number, bytes, bytes.count, descriptors, CInt(clamping: descriptors.count))
            }
            return true
        } catch where error.errno == EAGAIN {
            return false
        }
    }

    /// The next packet, without waiting.
    /// - Parameters:
    ///   - limit: how many bytes it may have.
    ///   - descriptorLimit: how many descriptors may come with it.
    /// - Throws: `packetTooLong`, `tooManyDescriptors`.
    public borrowing func receive(
        limit: Int, descriptorLimit: Int = mostDescriptors
    ) throws(ReceiveFailure) -> Arrival {
        let number = raw
        let capacity = max(1, limit)
        var arrived = [CInt](repeating: -1, count: Self.mostDescriptors)
        var arrivedCount: CInt = 0
        var flags: CInt = 0
        var received = 0
        let bytes: [UInt8]
        do {
            bytes = try Self.fill(capacity) { buffer throws(SystemError) in
                func look() throws(SystemError) -> Int {
                    try retrying("recvmsg") {
                        clinux_receive_packet(number, buffer, capacity, &arrived, &arrivedCount, &flags)
                    }
                }
                do throws(SystemError) {
                    received = try look()
                } catch where error.errno == ECONNRESET {
                    // The peer went without reading what we sent. The kernel says so once, before it gives out what the
                    // peer sent; that may say why.
                    received = try look()
                }
                return received
            }
        } catch where error.errno == EAGAIN {
            return .nothing
        } catch {
            throw .system(error)
        }
        // Owned from here on, whatever is thrown.
        let descriptors = FileDescriptorList(owning: Array(arrived.prefix(Int(arrivedCount))))
        if received == 0 { return .closed }
        if flags & CInt(MSG_TRUNC) != 0 { throw .packetTooLong(limit: limit) }
        if flags & CInt(MSG_CTRUNC) != 0 || descriptors.count > descriptorLimit {
            throw .tooManyDescriptors(limit: descriptorLimit)
        }
        return .packet(Packet(bytes: bytes, descriptors: descriptors))
    }

    private static func fill(
        _ capacity: Int, _ body: (UnsafeMutableRawPointer) throws(SystemError) -> Int
    ) throws(SystemError) -> [UInt8] {
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
        defer { buffer.deallocate() }
        let count = try body(buffer)
        return [UInt8](UnsafeRawBufferPointer(start: buffer, count: min(count, capacity)))
    }
}
