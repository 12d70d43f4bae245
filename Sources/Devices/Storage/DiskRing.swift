import Glibc
import Linux

/// The ring of a disk queue, and how its thread is woken.
///
/// The thread sleeps in the kernel until something is complete; so what wakes it is a read of an eventfd.
@safe final class DiskRing: @unchecked Sendable {
    // `@unchecked Sendable`: nothing changes but the eventfd's count, which only the kernel writes and nobody reads.

    let ring: IORing
    private let event: EventDescriptor
    private let count: UnsafeMutablePointer<UInt64>
    private let vector: UnsafeMutablePointer<iovec>

    /// The name of the read that wakes the thread; transfers have their numbers.
    static let wakeName = UInt64.max

    /// Threads of the kernel's own that work for a ring: as many as the queue has itself.
    private static let workerCount: UInt32 = 4

    init(depth: Int) throws(SystemError) {
        // An entry for each transfer and one for the wake-up.
        ring = try IORing(capacity: depth + 1, allowing: [.read, .write], workerCount: Self.workerCount)
        event = try EventDescriptor(waits: true)
        unsafe count = .allocate(capacity: 1)
        unsafe count.initialize(to: 0)
        unsafe vector = .allocate(capacity: 1)
        unsafe vector.initialize(to: iovec(iov_base: count, iov_len: 8))
    }

    // `vector` and `count` are never freed: closing a ring cancels its requests some time later, and until then the kernel may
    // write what it read. They are 24 bytes.

    /// Any thread.
    func wake() { event.signal() }

    /// The ring's thread: the next wake-up becomes a completion.
    func awaitWake() {
        // SAFETY: both live for ever.
        let buffers = unsafe IOBuffers(UnsafeBufferPointer(start: vector, count: 1), byteCount: 8)
        ring.push(.read, descriptor: event.raw, buffers, offset: 0, name: Self.wakeName)
    }
}
