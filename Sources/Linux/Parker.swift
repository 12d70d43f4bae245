import CLinux
import Glibc
import Synchronization

/// Lets one thread sleep until another says go on: how a halted vCPU waits without using the processor.
/// A call to `unpark` while nobody sleeps is remembered, once, so no wake-up is lost; it is then one atomic
/// exchange and no system call, cheap enough for every interrupt of a running vCPU.
///
/// Two threads that hand work to and fro, a guest and its disk, would spend more on falling asleep and waking up than on
/// the work. So who was woken soon, several times in a row, looks out for the next time before he sleeps (`Patience`).
///
/// `@unchecked Sendable`: the pointer never changes, the word, which the kernel needs the address of, lives as long as
/// the object, and all access to it is atomic; the patience is the parking thread's alone.
public final class Parker: @unchecked Sendable {
    private let word: UnsafeMutablePointer<Atomic<UInt32>>
    private var patience = Patience()
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
        if patience.isWorthwhile {
            let isOver = spin()
            patience.spun(isOver)
            if isOver { return }
        }
        let (slept, _) = word.pointee.compareExchange(
            expected: Self.empty, desired: Self.parked, ordering: .sequentiallyConsistent)
        if slept {
            let start = SystemTime.monotonic()
            clinux_futex_wait(word, Self.parked)
            patience.slept(SystemTime.monotonic() &- start)
        }
        _ = word.pointee.exchange(Self.empty, ordering: .sequentiallyConsistent)
    }

    /// - Returns: whether `unpark` was called.
    private func spin() -> Bool {
        let start = SystemTime.monotonic()
        repeat {
            for _ in 0..<16 {
                if word.pointee.load(ordering: .relaxed) == Self.notified {
                    _ = word.pointee.exchange(Self.empty, ordering: .sequentiallyConsistent)
                    return true
                }
                clinux_relax()
            }
        } while SystemTime.monotonic() &- start < Patience.spinNanoseconds
        return false
    }

    /// Any thread; never blocks.
    public func unpark() {
        let before = word.pointee.exchange(Self.notified, ordering: .sequentiallyConsistent)
        if before == Self.parked { clinux_futex_wake(word, 1) }
    }
}

/// Whether to look out for a wake-up instead of sleeping at once: it pays when sleeps have been short. A thread that has looked
/// out in vain does so more and more rarely, so that an idle machine and a busy host lose little to it.
struct Patience {
    /// About what a sleep and the way back cost, and what a disk needs to write a megabyte to the host's memory.
    static let spinNanoseconds: UInt64 = 100_000
    /// A sleep that looking out would have spared, with the way back.
    static let shortNanoseconds: UInt64 = 150_000
    /// How many short sleeps in a row make it worthwhile: fewer by one with each success, twice as many with each failure.
    static let leastSleeps = 2
    static let mostSleeps = 1024

    private var shortSleeps = 0
    private var neededSleeps = leastSleeps

    var isWorthwhile: Bool { shortSleeps >= neededSleeps }

    mutating func slept(_ nanoseconds: UInt64) {
        shortSleeps = nanoseconds < Self.shortNanoseconds ? min(shortSleeps + 1, Self.mostSleeps) : 0
    }

    mutating func spun(_ wasWoken: Bool) {
        if wasWoken {
            neededSleeps = max(neededSleeps - 1, Self.leastSleeps)
        } else {
            shortSleeps = 0
            neededSleeps = min(neededSleeps * 2, Self.mostSleeps)
        }
    }
}
