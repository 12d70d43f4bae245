import CLinux
import Glibc

/// An eventfd: lets any thread wake an event loop.
public struct EventDescriptor: ~Copyable, Sendable {
    private let descriptor: FileDescriptor
    /// Borrowed, for `EventLoop.watch`.
    public var raw: CInt { descriptor.raw }

    /// - Parameter waits: whether reading it waits for a signal. On an event loop it must not.
    public init(waits: Bool = false) throws(SystemError) {
        let flags = CInt(EFD_CLOEXEC) | (waits ? 0 : CInt(EFD_NONBLOCK))
        let number = try retrying("eventfd") { eventfd(0, flags) }
        descriptor = FileDescriptor(owning: number)
    }

    /// Makes it readable. Any thread; never blocks.
    public borrowing func signal() { eventfd_write(descriptor.raw, 1) }

    /// Makes it quiet again.
    public borrowing func clear() {
        var count: eventfd_t = 0
        eventfd_read(descriptor.raw, &count)
    }
}

/// A timerfd on `CLOCK_MONOTONIC` with absolute deadlines: exact to the kernel's timers, whatever the slack of the
/// thread, and still right after a wait that took longer than meant.
public struct TimerDescriptor: ~Copyable, Sendable {
    private let descriptor: FileDescriptor
    /// Borrowed, for `EventLoop.watch`.
    public var raw: CInt { descriptor.raw }

    /// - Parameter waits: whether `wait` sleeps. On an event loop it must not: a timer that is armed again between its
    ///   event and `wait` has not fired yet.
    public init(waits: Bool = true) throws(SystemError) {
        let flags = CInt(TFD_CLOEXEC) | (waits ? 0 : CInt(TFD_NONBLOCK))
        let number = try retrying("timerfd_create") { timerfd_create(CLOCK_MONOTONIC, flags) }
        descriptor = FileDescriptor(owning: number)
    }

    /// Fires at `deadline` (a past one at once), or never for `nil`. Any thread.
    public borrowing func arm(at deadline: UInt64?) {
        // Zero would disarm it; a time the kernel cannot hold means never.
        let never = UInt64(Int64.max)
        let value = deadline.map { $0 < never ? Swift.max($0, 1) : 0 } ?? 0
        var setting = itimerspec(it_interval: timespec(), it_value: timespec(nanoseconds: value))
        // TFD_TIMER_ABSTIME
        timerfd_settime(descriptor.raw, 1, &setting, nil)
    }

    /// Gives the number away; the caller closes it.
    public consuming func release() -> CInt { descriptor.release() }

    /// Sleeps until it fires, unless it was made not to; makes it quiet again.
    public borrowing func wait() {
        var count: UInt64 = 0
        _ = try? retrying("read") { Glibc.read(descriptor.raw, &count, 8) }
    }
}

/// Signals as readable events instead of handlers: nothing asynchronous runs in the middle of other code.
public struct SignalDescriptor: ~Copyable, Sendable {
    private let descriptor: FileDescriptor
    /// Borrowed, for `EventLoop.watch`.
    public var raw: CInt { descriptor.raw }

    /// Blocks the signals in this thread and in those it starts later. Call it before starting any: a signal takes
    /// its default action if one thread does not block it. A signal the process was started with as ignored
    /// (nohup) stays so.
    public init(_ signals: [CInt]) throws(SystemError) {
        var set = sigset_t()
        sigemptyset(&set)
        for number in signals where !Self.isIgnored(number) { sigaddset(&set, number) }
        pthread_sigmask(SIG_BLOCK, &set, nil)
        let number = try retrying("signalfd") {
            signalfd(-1, &set, CInt(SFD_CLOEXEC | SFD_NONBLOCK))
        }
        descriptor = FileDescriptor(owning: number)
    }

    private static func isIgnored(_ number: CInt) -> Bool {
        var action = sigaction()
        guard sigaction(number, nil, &action) == 0 else { return false }
        return unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self) == 1
    }

    /// The next signal that arrived, or `nil`.
    /// - Parameter descriptor: `raw` of a living `SignalDescriptor`.
    public static func next(in descriptor: CInt) -> CInt? {
        var info = signalfd_siginfo()
        let size = MemoryLayout<signalfd_siginfo>.size
        guard let count = try? retrying("read", { Glibc.read(descriptor, &info, size) }), count == size
        else { return nil }
        return CInt(truncatingIfNeeded: info.ssi_signo)
    }
}

/// Becomes readable when the host's time of day was set, also by waking from sleep (timerfd_create(2),
/// TFD_TIMER_CANCEL_ON_SET); until then it costs nothing.
public struct TimeChangeDescriptor: ~Copyable, Sendable {
    private let descriptor: FileDescriptor
    /// Borrowed, for `EventLoop.watch`.
    public var raw: CInt { descriptor.raw }

    public init() throws(SystemError) {
        let number = try retrying("timerfd_create") { timerfd_create(CLOCK_REALTIME, CInt(TFD_CLOEXEC | TFD_NONBLOCK)) }
        descriptor = FileDescriptor(owning: number)
        arm()
    }

    /// Makes it quiet again: `true` when the time was set.
    public borrowing func clear() -> Bool {
        var count: UInt64 = 0
        let number = descriptor.raw
        var wasSet = false
        do {
            _ = try retrying("read") { Glibc.read(number, &count, 8) }
        } catch {
            wasSet = error.errno == ECANCELED
        }
        arm()
        return wasSet
    }

    private borrowing func arm() {
        // A time that does not come.
        var setting = itimerspec(it_interval: timespec(), it_value: timespec(tv_sec: Int.max >> 32, tv_nsec: 0))
        // TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
        timerfd_settime(descriptor.raw, 3, &setting, nil)
    }
}
