import Synchronization
import VMM

/// Has a CPU that halts in the kernel looked at now and then: one that halted with interrupts off stays there for good, and only
/// somebody who looks finds out.
final class HaltWatch: Sendable {
    /// How long such a halt may last unseen. A look costs a running guest some microseconds.
    private static let period: UInt64 = 1_000_000_000

    private let timer = Mutex<(any DeviceTimer)?>(nil)
    private let clock: any Clock

    /// - Parameter clock: the host's: a pause need not end it.
    init(_ cpu: any VirtualCPU, clock: any Clock) {
        self.clock = clock
        let made = clock.makeTimer { [weak self] in
            cpu.interruptRequested()
            self?.start()
        }
        timer.withLock { $0 = made }
    }

    func start() { timer.withLock { $0?.arm(at: clock.now() &+ Self.period) } }

    /// A look that is under way may be the last.
    func stop() {
        timer.withLock { timer in
            timer?.cancel()
            timer = nil
        }
    }
}
