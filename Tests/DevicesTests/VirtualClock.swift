import Synchronization
import VMM

/// A clock that tests turn by hand. Timers fire from inside `advance`, in the order of their deadlines, each at
/// its own time.
final class VirtualClock: Clock {
    private struct State {
        var now: UInt64
        var wallOffset: Int64
        var timers: [Timer] = []
    }

    final class Timer: DeviceTimer {
        let deadline = Mutex<UInt64?>(nil)
        let arms = Atomic(0)
        let fire: @Sendable () -> Void

        init(_ fire: @escaping @Sendable () -> Void) { self.fire = fire }

        func arm(at time: UInt64) {
            arms.add(1, ordering: .relaxed)
            deadline.withLock { $0 = time }
        }
        func cancel() { deadline.withLock { $0 = nil } }
    }

    private let state: Mutex<State>

    /// - Parameter wall: nanoseconds since 1970 at the start.
    init(now: UInt64 = 0, wall: UInt64 = 0) {
        state = Mutex(State(now: now, wallOffset: Int64(bitPattern: wall &- now)))
    }

    func now() -> UInt64 { state.withLock { $0.now } }
    func wallClock() -> UInt64 { state.withLock { $0.now &+ UInt64(bitPattern: $0.wallOffset) } }

    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer {
        let timer = Timer(fire)
        state.withLock { $0.timers.append(timer) }
        return timer
    }

    /// The earliest deadline of all timers.
    var nextDeadline: UInt64? {
        state.withLock { $0.timers }.compactMap { timer in timer.deadline.withLock { $0 } }.min()
    }

    /// How many timers wait.
    var armedCount: Int { state.withLock { $0.timers }.count { timer in timer.deadline.withLock { $0 != nil } } }

    /// Goes on to a time and fires what falls due on the way.
    func advance(to target: UInt64) {
        while let (timer, time) = takeDue(target) {
            state.withLock { $0.now = max($0.now, time) }
            timer.fire()
        }
        state.withLock { $0.now = max($0.now, target) }
    }

    func advance(by nanoseconds: UInt64) { advance(to: now() + nanoseconds) }

    /// Time passes but no timer gets to run until the end: the process was stopped, or the host was busy.
    func jump(by nanoseconds: UInt64) {
        state.withLock { $0.now += nanoseconds }
        advance(by: 0)
    }

    /// Somebody set the host's clock.
    func stepWall(by nanoseconds: Int64) { state.withLock { $0.wallOffset += nanoseconds } }

    private func takeDue(_ target: UInt64) -> (Timer, UInt64)? {
        var best: (Timer, UInt64)?
        for timer in state.withLock({ $0.timers }) {
            guard let time = timer.deadline.withLock({ $0 }), time <= target else { continue }
            if time < best?.1 ?? .max { best = (timer, time) }
        }
        best?.0.cancel()
        return best
    }
}
