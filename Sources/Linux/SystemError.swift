import CLinux
import Glibc

/// A failed system call: the call's name and its errno. Callers add what it was about.
public struct SystemError: Error, Hashable, Sendable, CustomStringConvertible {
    public let call: String
    public let errno: CInt

    public init(_ call: String, errno: CInt) {
        self.call = call
        self.errno = errno
    }

    /// The kernel's text for the errno alone, for messages that name the object themselves.
    public var reason: String { String(cString: strerror(errno)) }
    public var description: String { "\(call): \(reason)" }
}

/// Runs a call that returns -1 and sets errno on failure, again after EINTR.
@inline(always)
public func retrying<T: SignedInteger>(_ call: StaticString, _ body: () -> T) throws(SystemError) -> T {
    while true {
        let result = body()
        if result != -1 { return result }
        // Read before anything else can change it.
        let code = errno
        if code != EINTR { throw SystemError("\(call)", errno: code) }
    }
}

extension SystemError {
    /// EACCES or EPERM: a matter of rights.
    public var isPermission: Bool { errno == EACCES || errno == EPERM }
    /// ENOENT or ENOTDIR: there is nothing by that name.
    public var isMissing: Bool { errno == ENOENT || errno == ENOTDIR }
    /// ENOMEM: no memory or address space.
    public var isOutOfMemory: Bool { errno == ENOMEM }
}
