import Synchronization
import VMM

/// Has a CPU that halts in the kernel looked at now and then: one that halted with interrupts off stays there for good, and only
/// somebody who looks finds out.
///
/// The looks become rarer, so that a machine at rest costs nothing: who expects such a halt starts over.
final class HaltWatch: Sendable {
    private static let shortest: UInt64 = 1_000_000_000
    private static let longest: UInt64 = 32_000_000_000

    private struct State {
        var timer: (any DeviceTimer)?
        var period: UInt64 = 0
    }

    private let state = Mutex(State())
    private let clock: any Clock

    /// - Parameter clock: the host's: a pause need not end it.
    init(_ cpu: any VirtualCPU, clock: any Clock) {
        self.clock = clock
        let made = clock.makeTimer { [weak self] in
            cpu.interruptRequested()
            self?.lookAgain()
        }
        state.withLock { $0.timer = made }
    }

    /// Looks soon, then less and less often. Any thread.
    func start() {
        state.withLock { $0.period = Self.shortest / 2 }
        lookAgain()
    }

    private func lookAgain() {
        state.withLock { state in
            state.period = min(state.period * 2, Self.longest)
            state.timer?.arm(at: clock.now() &+ state.period)
        }
    }

    /// A look that is under way may be the last.
    func stop() {
        state.withLock { state in
            state.timer?.cancel()
            state.timer = nil
        }
    }
}
