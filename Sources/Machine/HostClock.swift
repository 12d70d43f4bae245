import Linux
public import VMM

/// The host's clocks and one timer thread, as devices want them.
public final class HostClock: Clock {
    private let timers: TimerThread

    /// Starts the timer thread.
    public init() throws(MachineError) {
        do {
            timers = try TimerThread()
        } catch {
            throw MachineError("timer thread: \(error): raise the limit on processes or open files")
        }
    }

    public func now() -> UInt64 { SystemTime.monotonic() }
    public func wallClock() -> UInt64 { SystemTime.wallClock() }
    public func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer { timers.makeTimer(fire) }

    /// Ends the timer thread; nothing fires afterwards.
    public func stop() { timers.stop() }
}

extension TimerThread.Timer: DeviceTimer {}
