import CLinux
import Glibc

/// An owned file descriptor, closed when it goes out of scope.
public struct FileDescriptor: ~Copyable, Sendable {
    /// The number, for calls that borrow it. Valid as long as the owner lives.
    public let raw: CInt

    /// Takes over `raw`: nobody else may close it.
    public init(owning raw: CInt) { self.raw = raw }

    /// Opens a path with O_CLOEXEC added.
    public init(open path: String, flags: CInt, mode: mode_t = 0o600) throws(SystemError) {
        raw = try retrying("open") { clinux_open(path, flags | O_CLOEXEC, UInt32(mode)) }
    }

    /// A further descriptor of the same open file, with O_CLOEXEC.
    /// - Throws: EMFILE.
    public init(duplicating other: CInt) throws(SystemError) {
        raw = try retrying("fcntl") { clinux_fcntl(other, F_DUPFD_CLOEXEC, 0) }
    }

    deinit { Glibc.close(raw) }

    /// Gives the number away; the caller closes it.
    public consuming func release() -> CInt {
        let number = raw
        discard self
        return number
    }
}
