import Synchronization
import VMM

/// A machine's time: the host's, but standing still while the machine is paused. The wall clock goes on, as a battery's
/// does.
///
/// Running or not, reading it costs one atomic load more than reading the host's.
final class MachineClock: Clock {
    /// Where time is, which the timers know too.
    private final class Position: Sendable {
        /// The host's clock is this far ahead; while time stands still, and the top bit says so, where it stands.
        let word = Atomic<UInt64>(0)
        static let stopped: UInt64 = 1 << 63

        var isStopped: Bool { word.load(ordering: .acquiring) & Self.stopped != 0 }
    }

    private let position = Position()
    private let host: any Clock
    private let timers = Mutex<[Timer]>([])

    init(_ host: any Clock) { self.host = host }

    func now() -> UInt64 {
        let word = position.word.load(ordering: .acquiring)
        return word & Position.stopped != 0 ? word & ~Position.stopped : host.now() &- word
    }

    func wallClock() -> UInt64 { host.wallClock() }

    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer {
        let timer = Timer(position, fire)
        timer.host.withLock { [host] in $0 = host.makeTimer { [weak timer] in timer?.expire() } }
        timers.withLock { $0.append(timer) }
        return timer
    }

    /// Time stands still from here on, and no timer fires but one that was firing. vCPU thread.
    func stop() {
        guard !position.isStopped else { return }
        position.word.store(now() | Position.stopped, ordering: .releasing)
        for timer in timers.withLock({ $0 }) { timer.cancelHost() }
    }

    /// Time goes on from where it stands. vCPU thread.
    func start() {
        guard position.isStopped else { return }
        let time = now()
        position.word.store(host.now() &- time, ordering: .releasing)
        for timer in timers.withLock({ $0 }) { timer.resume(at: time) }
    }

    /// A deadline that is carried over pauses.
    private final class Timer: DeviceTimer {
        /// The last deadline, also when it has passed. `.max` for none.
        private let deadline = Atomic<UInt64>(.max)
        /// It came due while time stood still.
        private let isOwed = Atomic(false)
        let host = Mutex<(any DeviceTimer)?>(nil)
        private let position: Position
        private let fire: @Sendable () -> Void

        init(_ position: Position, _ fire: @escaping @Sendable () -> Void) {
            self.position = position
            self.fire = fire
        }

        func arm(at time: UInt64) {
            deadline.store(time, ordering: .sequentiallyConsistent)
            let word = position.word.load(ordering: .sequentiallyConsistent)
            guard word & Position.stopped == 0 else { return isOwed.store(true, ordering: .sequentiallyConsistent) }
            let (sum, overflow) = time.addingReportingOverflow(word)
            host.withLock { $0 }?.arm(at: overflow ? .max : sum)
        }

        func cancel() {
            deadline.store(.max, ordering: .sequentiallyConsistent)
            isOwed.store(false, ordering: .sequentiallyConsistent)
            cancelHost()
        }

        func cancelHost() { host.withLock { $0 }?.cancel() }

        func expire() {
            if position.isStopped { isOwed.store(true, ordering: .sequentiallyConsistent) } else { fire() }
        }

        /// Devices bear a timer that fires for nothing, so one too many is armed rather than one too few.
        func resume(at time: UInt64) {
            let deadline = deadline.load(ordering: .sequentiallyConsistent)
            let isOwed = isOwed.exchange(false, ordering: .sequentiallyConsistent)
            guard deadline != .max, isOwed || deadline > time else { return }
            arm(at: deadline)
        }
    }
}
