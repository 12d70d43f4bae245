import CLinux
import Glibc

/// An owned mapping, unmapped when it goes out of scope.
///
/// `@unchecked Sendable`: the fields never change, and any thread may unmap. Who may touch the bytes, and when, is for
/// the owner to say.
public struct MemoryMapping: ~Copyable, @unchecked Sendable {
    public let base: UnsafeMutableRawPointer
    public let byteCount: Int
    /// Address space before and behind it that nothing may touch.
    public let guardByteCount: Int

    /// What guards are good for: an access that a guest's address computation takes past an end by a page and a half,
    /// by a displacement, or by a small array's worth faults instead of reaching a neighbour.
    public static let standardGuard = 1 << 20

    /// Maps `byteCount` bytes (rounded up to pages by the kernel).
    /// - Parameters:
    ///   - descriptor: a file to map, or -1 for anonymous memory.
    ///   - guardByteCount: inaccessible bytes on both sides, whole pages.
    public init(
        byteCount: Int, protection: CInt, flags: CInt, descriptor: CInt = -1, offset: Int = 0, guardByteCount: Int = 0
    ) throws(SystemError) {
        let (whole, overflows) = ((byteCount + 4095) & ~4095).addingReportingOverflow(2 * guardByteCount)
        guard !overflows else { throw SystemError("mmap", errno: ENOMEM) }
        var place: UnsafeMutableRawPointer?
        if guardByteCount > 0 {
            guard let reserved = mmap(nil, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
                reserved != MAP_FAILED
            else { throw SystemError("mmap", errno: errno) }
            place = reserved + guardByteCount
        }
        let fixed = guardByteCount > 0 ? MAP_FIXED : 0
        guard let address = mmap(place, byteCount, protection, flags | fixed, descriptor, offset), address != MAP_FAILED else {
            let error = errno
            if let place { munmap(place - guardByteCount, whole) }
            throw SystemError("mmap", errno: error)
        }
        base = address
        self.byteCount = byteCount
        self.guardByteCount = guardByteCount
    }

    deinit { munmap(base - guardByteCount, ((byteCount + 4095) & ~4095) + 2 * guardByteCount) }
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
