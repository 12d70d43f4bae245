import CLinux
import Glibc

/// One end of a SOCK_SEQPACKET connection on this host: whole packets, descriptors with them, and a peer whose
/// user the kernel vouches for. Never blocks: close-on-exec and non-blocking from birth.
public struct UnixSocket: ~Copyable, Sendable {
    let descriptor: FileDescriptor
    /// Borrowed, for `EventLoop.watch` and for handing on.
    public var raw: CInt { descriptor.raw }

    /// Why a socket could not be reached or made.
    public enum Failure: Error, Equatable, CustomStringConvertible {
        case system(SystemError)
        /// The kernel keeps names of `limit` bytes (sun_path).
        case badPath(limit: Int)
        /// Somebody answers there already.
        case inUse
        /// The path, or the descriptor handed over, is something else.
        case notSocket
        /// It is a socket, but not one of whole packets, or not listening.
        case wrongKind

        public var description: String {
            switch self {
            case .system(let error): error.reason
            case .badPath(let limit): "a socket's path must have 1 to \(limit) bytes"
            case .inUse: "another program listens there"
            case .notSocket: "is not a socket"
            case .wrongKind: "is not a listening socket of packets (SOCK_SEQPACKET)"
            }
        }
    }

    static let kind = CInt(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)

    /// Takes over a connected socket.
    init(owning descriptor: consuming FileDescriptor) { self.descriptor = descriptor }

    /// Takes over a connected socket that was passed in, and makes it non-blocking and close-on-exec.
    /// - Throws: `notSocket`, `wrongKind`, or what fcntl(2) says.
    public init(adopting passed: consuming FileDescriptor) throws(Failure) {
        try passed.prepareSocket(isListening: false)
        descriptor = passed
    }

    /// Connects to a listener's path.
    /// - Parameter timeoutMilliseconds: how long to wait while the listener's queue is full (EAGAIN afterwards).
    /// - Throws: `badPath`, or what connect(2) says: ENOENT and ECONNREFUSED when nobody listens, EACCES, EAGAIN;
    ///   EPROTOTYPE is `wrongKind`.
    public init(connectingTo path: String, timeoutMilliseconds: Int = 5000) throws(Failure) {
        guard let address = UnixAddress(path) else { throw .badPath(limit: UnixAddress.longestPath) }
        do {
            // connect waits only on a socket that blocks.
            let number = try retrying("socket") {
                socket(AF_UNIX, CInt(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue), 0)
            }
            let opened = FileDescriptor(owning: number)
            var patience = timeval(
                tv_sec: timeoutMilliseconds / 1000, tv_usec: suseconds_t(max(1, timeoutMilliseconds % 1000 * 1000)))
            _ = try retrying("setsockopt") {
                setsockopt(number, SOL_SOCKET, SO_SNDTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
            }
            _ = try retrying("connect") { address.withSocketAddress { connect(number, $0, $1) } }
            try opened.setNonBlocking()
            descriptor = opened
        } catch where error.errno == EPROTOTYPE {
            throw .wrongKind
        } catch {
            throw .system(error)
        }
    }

    /// A further descriptor of the same connection.
    /// - Throws: EMFILE.
    public init(duplicating other: borrowing UnixSocket) throws(SystemError) {
        descriptor = try FileDescriptor(duplicating: other.raw)
    }

    /// Gives the descriptor away.
    public consuming func release() -> FileDescriptor { descriptor }

    /// The name that it is bound to, as the kernel keeps it; that of the listener which accepted it; empty for a pair.
    public borrowing func localName() throws(SystemError) -> [UInt8] { try descriptor.socketName() }

    /// Who is at the other end.
    public struct Credentials: Hashable, Sendable {
        public let processID: pid_t
        public let userID: uid_t
        public let groupID: gid_t
        /// The supplementary groups.
        public let groups: [gid_t]
    }

    /// The peer as it was when it connected (or called listen, or made the pair): SO_PEERCRED and SO_PEERGROUPS.
    public borrowing func peerCredentials() throws(SystemError) -> Credentials {
        let number = raw
        var (pid, uid, gid): (Int32, UInt32, UInt32) = (0, 0, 0)
        _ = try retrying("getsockopt") { clinux_peer_credentials(number, &pid, &uid, &gid) }
        return Credentials(processID: pid, userID: uid, groupID: gid, groups: try Self.peerGroups(number))
    }

    private static func peerGroups(_ number: CInt) throws(SystemError) -> [gid_t] {
        let peerGroups: CInt = 59  // SO_PEERGROUPS
        var groups = [gid_t](repeating: 0, count: 32)
        while true {
            var size = socklen_t(groups.count * MemoryLayout<gid_t>.stride)
            do {
                _ = try retrying("getsockopt") { getsockopt(number, SOL_SOCKET, peerGroups, &groups, &size) }
                return Array(groups.prefix(Int(size) / MemoryLayout<gid_t>.stride))
            } catch where error.errno == ERANGE && Int(size) > groups.count * MemoryLayout<gid_t>.stride {
                // The kernel says how much it needs.
                groups = [gid_t](repeating: 0, count: Int(size) / MemoryLayout<gid_t>.stride)
            }
        }
    }
}

extension UnixSocket {
    /// Two connected ends.
    public struct Pair: ~Copyable {
        public let first: UnixSocket
        public let second: UnixSocket

        /// Both ends as values of their own.
        public consuming func split(_ body: (consuming UnixSocket, consuming UnixSocket) -> Void) { body(first, second) }
    }

    public static func pair() throws(SystemError) -> Pair {
        var ends: [CInt] = [0, 0]
        _ = try retrying("socketpair") { socketpair(AF_UNIX, kind, 0, &ends) }
        return Pair(
            first: UnixSocket(owning: FileDescriptor(owning: ends[0])),
            second: UnixSocket(owning: FileDescriptor(owning: ends[1])))
    }
}

extension FileDescriptor {
    /// Reads and writes return EAGAIN instead of waiting. Of the open file, so of its duplicates too.
    public borrowing func setNonBlocking() throws(SystemError) { try Stream.setNonBlocking(raw) }

    /// Other programs that this one runs do not get it.
    public borrowing func setCloseOnExec() throws(SystemError) {
        let number = raw
        _ = try retrying("fcntl") { clinux_fcntl(number, F_SETFD, Int(FD_CLOEXEC)) }
    }

    /// Checks that a descriptor from outside is the socket that we want, and sets its flags.
    borrowing func prepareSocket(isListening: Bool) throws(UnixSocket.Failure) {
        do {
            guard try socketOption(SO_DOMAIN) == AF_UNIX, try socketOption(SO_TYPE) == CInt(SOCK_SEQPACKET.rawValue),
                try (socketOption(SO_ACCEPTCONN) != 0) == isListening
            else { throw UnixSocket.Failure.wrongKind }
            try setNonBlocking()
            try setCloseOnExec()
        } catch let error as SystemError {
            throw error.errno == ENOTSOCK ? .notSocket : .system(error)
        } catch {
            throw .wrongKind
        }
    }

    /// What getsockname(2) says, without the family.
    borrowing func socketName() throws(SystemError) -> [UInt8] {
        let number = raw
        var address = sockaddr_un()
        var size = socklen_t(MemoryLayout<sockaddr_un>.size)
        _ = try retrying("getsockname") {
            withUnsafeMutablePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(number, $0, &size) }
            }
        }
        let family = MemoryLayout<sa_family_t>.size
        return withUnsafeBytes(of: address) { Array($0.prefix(Int(size)).dropFirst(family)) }
    }

    private borrowing func socketOption(_ option: CInt) throws(SystemError) -> CInt {
        let number = raw
        var value: CInt = 0
        var size = socklen_t(MemoryLayout<CInt>.size)
        _ = try retrying("getsockopt") { getsockopt(number, SOL_SOCKET, option, &value, &size) }
        return value
    }
}
