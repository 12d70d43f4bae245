import CLinux
import Glibc

extension timespec {
    init(nanoseconds: UInt64) {
        self.init(
            tv_sec: Int(truncatingIfNeeded: nanoseconds / 1_000_000_000),
            tv_nsec: Int(truncatingIfNeeded: nanoseconds % 1_000_000_000))
    }
    var nanoseconds: UInt64 {
        UInt64(truncatingIfNeeded: tv_sec) &* 1_000_000_000 &+ UInt64(truncatingIfNeeded: tv_nsec)
    }
}

/// The kernel's clocks in nanoseconds.
public enum SystemTime {
    /// `CLOCK_MONOTONIC`: never goes back, runs at the rate of the wall clock, stands still while the host sleeps.
    public static func monotonic() -> UInt64 { read(CLOCK_MONOTONIC) }
    /// `CLOCK_REALTIME`: since 1970 UTC.
    public static func wallClock() -> UInt64 { read(CLOCK_REALTIME) }

    /// Whole seconds since 1970 UTC.
    public static func seconds() -> UInt64 { wallClock() / 1_000_000_000 }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return time.nanoseconds
    }
}
