import CLinux
import Glibc

/// A pipe that other programs inherit only when they are handed an end.
public struct Pipe: ~Copyable, Sendable {
    public let reader: FileDescriptor
    private var writer: FileDescriptor?

    /// - Throws: EMFILE.
    public init() throws(SystemError) {
        var ends: [CInt] = [-1, -1]
        _ = try retrying("pipe2") { clinux_pipe(&ends) }
        reader = FileDescriptor(owning: ends[0])
        writer = FileDescriptor(owning: ends[1])
    }

    /// Borrowed; `nil` once it is closed.
    public var writingEnd: CInt? {
        switch writer {
        case .some(let end): end.raw
        case .none: nil
        }
    }

    /// The reader sees the end when all others have closed theirs too.
    public mutating func closeWriter() { writer = nil }
}

/// The two ends of a stream of bytes in both directions.
public struct StreamPair: ~Copyable, Sendable {
    public let first: FileDescriptor
    public let second: FileDescriptor

    /// - Throws: EMFILE.
    public init() throws(SystemError) {
        var ends: [CInt] = [-1, -1]
        let kind = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        _ = try retrying("socketpair") { socketpair(AF_UNIX, kind, 0, &ends) }
        first = FileDescriptor(owning: ends[0])
        second = FileDescriptor(owning: ends[1])
    }
}

extension Stream {
    /// Whether the peer has gone for good: nothing can be sent any more, and no more comes than is here.
    public static func hasHungUp(_ descriptor: CInt) -> Bool {
        var entry = pollfd(fd: descriptor, events: 0, revents: 0)
        return poll(&entry, 1, 0) > 0 && entry.revents & Int16(POLLHUP | POLLERR) != 0
    }

    /// Waits until a descriptor takes something; `false` when it never will again.
    public static func waitUntilWritable(_ descriptor: CInt) -> Bool {
        var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
        guard let count = try? retrying("poll", { poll(&entry, 1, -1) }), count > 0 else { return false }
        return entry.revents & Int16(POLLOUT) != 0
    }
}
