import CLinux
import Glibc

/// The file that a socket is found by: who may connect is who may write it (unix(7)).
public struct SocketFile: Hashable, Sendable {
    public let owner: uid_t
    public let group: gid_t
    public let mode: mode_t

    /// - Throws: what stat says: ENOENT, EACCES for a folder on the way.
    public init(_ path: String) throws(SystemError) {
        var status = stat()
        _ = try retrying("stat") { stat(path, &status) }
        owner = status.st_uid
        group = status.st_gid
        mode = status.st_mode
    }

    public var isSocket: Bool { mode & S_IFMT == S_IFSOCK }
    public var groupMayConnect: Bool { mode & S_IWGRP != 0 }
}

/// The user that this process acts for.
public enum CurrentUser {
    public static var id: uid_t { geteuid() }
    public static var name: String { UserDatabase.name(ofUser: id) }
}

/// Paths, as the kernel finds what they name.
public enum FilePaths {
    /// The same file by a path that starts at the root and has no symbolic link in it (realpath(3)).
    /// - Throws: ENOENT and what else stands in the way.
    public static func resolved(_ path: String) throws(SystemError) -> String {
        guard let text = realpath(path, nil) else { throw SystemError("realpath", errno: errno) }
        defer { free(text) }
        return String(cString: text)
    }
}

extension Stream {
    public enum Readiness: Sendable { case readable, writable }

    /// Waits until a descriptor can be read or written, or has failed or hung up, which reading and writing then tell.
    /// - Parameter timeoutMilliseconds: `nil` for as long as it takes.
    /// - Returns: `false` when the time is over.
    public static func wait(
        for descriptor: CInt, _ readiness: Readiness, timeoutMilliseconds: Int?
    ) throws(SystemError) -> Bool {
        let deadline = timeoutMilliseconds.map { SystemTime.monotonic() &+ UInt64(max(0, $0)) &* 1_000_000 }
        var entry = pollfd(fd: descriptor, events: Int16(readiness == .readable ? POLLIN : POLLOUT), revents: 0)
        // Again after a signal, for what is left of the time.
        while true {
            var patience: CInt = -1
            if let deadline {
                let now = SystemTime.monotonic()
                patience = now >= deadline ? 0 : CInt(clamping: (deadline - now + 999_999) / 1_000_000)
            }
            let count = poll(&entry, 1, patience)
            if count > 0 { return true }
            if count == 0 { return false }
            let code = errno
            if code != EINTR { throw SystemError("poll", errno: code) }
        }
    }
}
