import CLinux
import Glibc

/// The host's time-stamp counter and its rate.
///
/// The rate comes from comparing the counter with `CLOCK_MONOTONIC` over the life of the process, because that is
/// exact everywhere and free: two readings 100 ns apart from the truth give 10 parts in a million after 10 ms, and
/// one in ten million after a second. What CPUID and the kernel say about the frequency is rounded, or missing.
public enum TimeStampCounter {
    /// The counter and the clock at one moment.
    public struct Reading: Hashable, Sendable {
        public let counter: UInt64
        public let nanoseconds: UInt64
        public init(counter: UInt64, nanoseconds: UInt64) {
            self.counter = counter
            self.nanoseconds = nanoseconds
        }
    }

    /// The counter now, in order with the code around it.
    @inline(always)
    public static func now() -> UInt64 { clinux_ordered_tsc() }

    /// Both at once: of a few tries the one that was interrupted least.
    public static func read() -> Reading {
        var best = Reading(counter: 0, nanoseconds: 0)
        var bestSpan = UInt64.max
        for _ in 0..<5 {
            let before = clinux_ordered_tsc()
            let time = SystemTime.monotonic()
            let span = clinux_ordered_tsc() &- before
            if span < bestSpan {
                bestSpan = span
                best = Reading(counter: before &+ span / 2, nanoseconds: time)
            }
        }
        return best
    }

    private static let first = read()

    /// Takes the first reading. The sooner, the better the first frequency.
    public static func start() { _ = first }

    /// Ticks a second, as measured since the first reading; waits until that was 2 ms ago.
    public static func frequency() -> UInt64 {
        let start = first
        while true {
            let end = read()
            let elapsed = end.nanoseconds &- start.nanoseconds
            if elapsed >= 2_000_000 { return frequency(from: start, to: end) }
        }
    }

    /// Ticks a second between two readings.
    static func frequency(from start: Reading, to end: Reading) -> UInt64 {
        let ticks = end.counter &- start.counter
        let nanoseconds = max(1, end.nanoseconds &- start.nanoseconds)
        let (high, low) = ticks.multipliedFullWidth(by: 1_000_000_000)
        guard high < nanoseconds else { return .max }
        return nanoseconds.dividingFullWidth((high, low)).quotient
    }
}
