import CLinux
import Glibc
import Synchronization

/// Runs closures at points of `CLOCK_MONOTONIC`, all on one thread named "timer".
///
/// One timerfd holds the earliest deadline. The thread reads it directly: with a single descriptor to wait for,
/// epoll would only add a system call to each firing. A deadline that moves later or is cancelled leaves the
/// timerfd alone, since guests move their deadlines far more often than they let them pass; the thread then wakes
/// once for nothing and sets it anew.
public final class TimerThread: Sendable {
    /// One deadline.
    public final class Timer: Sendable {
        fileprivate let index: Int
        fileprivate let fire: @Sendable () -> Void
        private let owner: TimerThread

        fileprivate init(_ index: Int, _ owner: TimerThread, _ fire: @escaping @Sendable () -> Void) {
            self.index = index
            self.owner = owner
            self.fire = fire
        }

        /// Fires once at `deadline` (nanoseconds of `CLOCK_MONOTONIC`) instead of any earlier deadline.
        /// Any thread; never blocks.
        public func arm(at deadline: UInt64) { owner.setDeadline(index, Swift.min(deadline, .max - 1)) }
        /// A firing already under way may still come. Any thread.
        public func cancel() { owner.setDeadline(index, .max) }
    }

    private struct State {
        var timers: [Timer] = []
        /// By `Timer.index`; `.max` for none.
        var deadlines: [UInt64] = []
        /// What the timerfd is set to.
        var programmed: UInt64 = .max
        var isStopped = false
    }

    private let descriptor: TimerDescriptor
    private let state = Mutex(State())
    private let thread = Mutex<PosixThread?>(nil)

    /// Starts the thread. `stop` ends it; until then it keeps the object alive.
    public init() throws(SystemError) {
        descriptor = try TimerDescriptor()
        let started = try PosixThread("timer") { [self] in run() }
        thread.withLock { $0 = started }
    }

    /// Makes a timer; `fire` runs on the timer thread without locks held. Timers last as long as the thread.
    public func makeTimer(_ fire: @escaping @Sendable () -> Void) -> Timer {
        state.withLock { state in
            let timer = Timer(state.timers.count, self, fire)
            state.timers.append(timer)
            state.deadlines.append(.max)
            return timer
        }
    }

    /// Ends the thread and waits for it; nothing fires afterwards. Not from a timer's own closure.
    public func stop() {
        state.withLock { state in
            state.isStopped = true
            descriptor.arm(at: 1)
        }
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
        state.withLock { $0.timers = [] }
    }

    private func setDeadline(_ index: Int, _ deadline: UInt64) {
        state.withLock { state in
            state.deadlines[index] = deadline
            guard deadline < state.programmed, !state.isStopped else { return }
            state.programmed = deadline
            descriptor.arm(at: deadline)
        }
    }

    private func run() {
        var due: [Timer] = []
        while true {
            descriptor.wait()
            let isStopped = state.withLock { state in
                let now = SystemTime.monotonic()
                var next = UInt64.max
                for (index, deadline) in state.deadlines.enumerated() where deadline != .max {
                    if deadline <= now {
                        state.deadlines[index] = .max
                        due.append(state.timers[index])
                    } else {
                        next = min(next, deadline)
                    }
                }
                state.programmed = next
                if !state.isStopped { descriptor.arm(at: next == .max ? nil : next) }
                return state.isStopped
            }
            if isStopped { return }
            for timer in due { timer.fire() }
            due.removeAll(keepingCapacity: true)
        }
    }
}
