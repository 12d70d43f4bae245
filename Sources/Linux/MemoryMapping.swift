import CLinux
import Glibc

/// An owned mapping, unmapped when it goes out of scope.
public struct MemoryMapping: ~Copyable, @unchecked Sendable {
    public let base: UnsafeMutableRawPointer
    public let byteCount: Int

    /// Maps `byteCount` bytes (rounded up to pages by the kernel).
    /// - Parameters:
    ///   - descriptor: a file to map, or -1 for anonymous memory.
    public init(
        byteCount: Int, protection: CInt, flags: CInt, descriptor: CInt = -1, offset: Int = 0
    ) throws(SystemError) {
        guard let address = mmap(nil, byteCount, protection, flags, descriptor, offset), address != MAP_FAILED else {
            throw SystemError("mmap", errno: errno)
        }
        base = address
        self.byteCount = byteCount
    }

    deinit { munmap(base, byteCount) }
}

extension FileDescriptor {
    /// Anonymous memory that can be mapped more than once and handed to another process.
    public static func memory(_ name: String, byteCount: Int) throws(SystemError) -> FileDescriptor {
        // MFD_CLOEXEC
        let number = try retrying("memfd_create") { clinux_memfd_create(name, 1) }
        let descriptor = FileDescriptor(owning: number)
        _ = try retrying("ftruncate") { ftruncate(number, byteCount) }
        return descriptor
    }
}
