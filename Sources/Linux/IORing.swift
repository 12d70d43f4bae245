import CLinux
import Glibc
import Synchronization

/// A queue of reads and writes in the kernel: io_uring(7), by its system calls.
///
/// A ring takes only the operations that it was made for, and no registrations: io_uring does what it does past the
/// process's filter of system calls, so that must be nothing which the filter would forbid.
///
/// `@unchecked Sendable`: pointers and numbers never change. One thread at a time calls `push` and `submit...`; one thread at a
/// time calls `popCompletion`.
public struct IORing: ~Copyable, @unchecked Sendable {
    /// With the kernel's numbers.
    public enum Operation: UInt8, Sendable {
        case nothing = 0
        case read = 1
        case write = 2
    }

    public struct Completion: Sendable {
        /// What `push` was given.
        public let name: UInt64
        /// Bytes transferred, or a negative errno.
        public let result: Int32
    }

    private let descriptor: FileDescriptor
    private let rings: MemoryMapping
    private let entries: MemoryMapping
    private let tail: UnsafeMutablePointer<Atomic<UInt32>>
    private let completionHead: UnsafeMutablePointer<Atomic<UInt32>>
    private let completionTail: UnsafeMutablePointer<Atomic<UInt32>>
    private let completions: UnsafeRawPointer
    private let mask: UInt32
    private let completionMask: UInt32
    /// How many entries there is room for.
    public let capacity: Int

    /// - Parameters:
    ///   - capacity: most entries that are pushed before they are submitted, and in flight at a time; rounded up.
    ///   - workerCount: most threads of the kernel's own for what cannot be done without waiting.
    /// - Throws: ENOSYS, EPERM or EACCES where the kernel or a container forbids it, EINVAL before Linux 5.10.
    public init(capacity: Int, allowing operations: [Operation], workerCount: UInt32) throws(SystemError) {
        var ring = clinux_ring()
        let count = UInt32(clamping: max(1, capacity))
        _ = try retrying("io_uring_setup") { clinux_ring_setup(count, &ring) }
        let descriptor = FileDescriptor(owning: ring.descriptor)
        let number = ring.descriptor
        let rings = try MemoryMapping(
            byteCount: ring.ring_bytes, protection: PROT_READ | PROT_WRITE, flags: MAP_SHARED | MAP_POPULATE, descriptor: number)
        let entries = try MemoryMapping(
            byteCount: ring.entries_bytes, protection: PROT_READ | PROT_WRITE, flags: MAP_SHARED | MAP_POPULATE,
            descriptor: number, offset: ring.entries_place)
        _ = clinux_ring_limit_workers(number, workerCount)
        let allowed = operations.map(\.rawValue)
        _ = try retrying("io_uring_register") { clinux_ring_restrict_and_enable(number, allowed, UInt32(allowed.count)) }
        self.init(ring, descriptor, rings, entries)
    }

    private init(
        _ ring: clinux_ring, _ descriptor: consuming FileDescriptor, _ rings: consuming MemoryMapping,
        _ entries: consuming MemoryMapping
    ) {
        let base = rings.base
        func word(_ offset: UInt32) -> UnsafeMutablePointer<Atomic<UInt32>> {
            (base + Int(offset)).assumingMemoryBound(to: Atomic<UInt32>.self)
        }
        tail = word(ring.submission_tail)
        completionHead = word(ring.completion_head)
        completionTail = word(ring.completion_tail)
        completions = UnsafeRawPointer(base + Int(ring.completions))
        // Both counts are powers of two (io_uring_setup(2)).
        mask = ring.submission_count &- 1
        completionMask = ring.completion_count &- 1
        capacity = Int(ring.submission_count)
        // Which entry is next: always the one at the same place.
        let order = (base + Int(ring.submission_array)).assumingMemoryBound(to: UInt32.self)
        for index in 0..<Int(ring.submission_count) { order[index] = UInt32(index) }
        self.descriptor = descriptor
        self.rings = rings
        self.entries = entries
    }

    /// Puts an entry behind those to submit; the vectors must stay until it was submitted, the memory until it is complete.
    /// - Parameter waits: otherwise it completes with EAGAIN when it cannot be done at once, and EOPNOTSUPP where the file
    ///   system cannot tell.
    /// - Precondition: fewer than `capacity` wait to be submitted.
    public borrowing func push(
        _ operation: Operation, descriptor: CInt, _ buffers: IOBuffers, offset: UInt64, waits: Bool = true, name: UInt64
    ) {
        let place = tail.pointee.load(ordering: .relaxed)
        clinux_ring_prepare(
            entries.base, place & mask, operation.rawValue, descriptor, buffers.vectors.baseAddress,
            UInt32(truncatingIfNeeded: buffers.vectors.count), offset, waits ? 0 : 8 /* RWF_NOWAIT */, name)
        tail.pointee.store(place &+ 1, ordering: .releasing)
    }

    /// Submits so many entries, oldest first, and returns when something is complete that was not popped.
    /// - Returns: how many were submitted.
    /// - Throws: EINTR: a signal came; EAGAIN, EBUSY: the kernel has no room for more at the moment.
    public borrowing func submitAndWait(_ count: UInt32) throws(SystemError) -> UInt32 {
        let result = clinux_ring_enter(descriptor.raw, count, 1)
        let code = errno
        guard result >= 0 else { throw SystemError("io_uring_enter", errno: code) }
        return UInt32(result)
    }

    /// The oldest completion that was not popped.
    public borrowing func popCompletion() -> Completion? {
        let head = completionHead.pointee.load(ordering: .relaxed)
        guard head != completionTail.pointee.load(ordering: .acquiring) else { return nil }
        var (name, result): (UInt64, Int32) = (0, 0)
        clinux_ring_completion(completions, head & completionMask, &name, &result)
        completionHead.pointee.store(head &+ 1, ordering: .releasing)
        return Completion(name: name, result: result)
    }
}
