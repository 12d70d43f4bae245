import CLinux
import Glibc

/// A socket's name as the kernel takes it (unix(7)).
struct UnixAddress {
    private var address = sockaddr_un()
    private let length: socklen_t

    /// What fits with its NUL: sizeof(sun_path) - 1.
    static let longestPath = MemoryLayout.size(ofValue: sockaddr_un().sun_path) - 1

    /// `nil` for a name that is empty, too long, or has a NUL in it.
    /// - Parameter isAbstract: a name without a file; it may hold any byte.
    init?(_ name: String, isAbstract: Bool = false) {
        let bytes = [UInt8](name.utf8)
        guard !bytes.isEmpty, bytes.count <= Self.longestPath, isAbstract || !bytes.contains(0) else { return nil }
        let offset = MemoryLayout.offset(of: \sockaddr_un.sun_path) ?? 2
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { path in
            // An abstract name begins with a NUL and ends where the length says.
            let place = isAbstract ? 1 : 0
            for (index, byte) in bytes.enumerated() { path[place + index] = byte }
        }
        length = socklen_t(offset + bytes.count + 1)
    }

    /// Lends the address to `bind`, `connect` or `sendto`.
    func withSocketAddress<Result>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
        withUnsafePointer(to: address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, length) }
        }
    }
}
