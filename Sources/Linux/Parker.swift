import CLinux
import Glibc
import Synchronization

/// Lets one thread sleep until another says go on: how a halted vCPU waits without using the processor.
/// A call to `unpark` while nobody sleeps is remembered, once, so no wake-up is lost; it is then one atomic
/// exchange and no system call, cheap enough for every interrupt of a running vCPU.
///
/// `@unchecked Sendable`: the pointer never changes, the word, which the kernel needs the address of, lives as long as
/// the object, and all access to it is atomic.
public final class Parker: @unchecked Sendable {
    private let word: UnsafeMutablePointer<Atomic<UInt32>>
    private static let empty: UInt32 = 0
    private static let notified: UInt32 = 1
    private static let parked: UInt32 = 2

    public init() {
        word = .allocate(capacity: 1)
        word.initialize(to: Atomic(Self.empty))
    }

    deinit {
        word.deinitialize(count: 1)
        word.deallocate()
    }

    /// Sleeps until `unpark`; may also return without cause, so callers look at their condition again.
    /// One thread only.
    public func park() {
        let (slept, _) = word.pointee.compareExchange(
            expected: Self.empty, desired: Self.parked, ordering: .sequentiallyConsistent)
        if slept { clinux_futex_wait(word, Self.parked) }
        _ = word.pointee.exchange(Self.empty, ordering: .sequentiallyConsistent)
    }

    /// Any thread; never blocks.
    public func unpark() {
        let before = word.pointee.exchange(Self.notified, ordering: .sequentiallyConsistent)
        if before == Self.parked { clinux_futex_wake(word, 1) }
    }
}
