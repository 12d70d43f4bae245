/// Time as devices see it: nanoseconds since some fixed point, never going back, and the wall clock.
/// Tests give devices a clock that they turn by hand.
public protocol Clock: AnyObject, Sendable {
    /// Monotonic nanoseconds.
    func now() -> UInt64
    /// Nanoseconds since 1970 UTC.
    func wallClock() -> UInt64
    /// Makes a timer; `fire` runs on the machine's timer thread, without locks held.
    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer
}

/// One deadline. Any thread.
public protocol DeviceTimer: AnyObject, Sendable {
    /// Fires once at `deadline` (nanoseconds of `Clock.now()`), instead of any earlier deadline.
    func arm(at deadline: UInt64)
    /// A firing already under way may still come.
    func cancel()
}

/// What devices ask of the machine they are in. Any thread; never blocks.
public protocol PowerControl: AnyObject, Sendable {
    func requestReset(_ reason: String)
    func requestPowerOff()
}
