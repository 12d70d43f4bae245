import Synchronization
import Testing
import VMM

@testable import Machine

/// A host's clock that tests turn by hand.
private final class HandClock: Clock {
    final class Timer: DeviceTimer {
        let deadline = Mutex<UInt64?>(nil)
        let fire: @Sendable () -> Void
        init(_ fire: @escaping @Sendable () -> Void) { self.fire = fire }
        func arm(at time: UInt64) { deadline.withLock { $0 = time } }
        func cancel() { deadline.withLock { $0 = nil } }
    }

    private let time = Mutex<UInt64>(1_000)
    private let timers = Mutex<[Timer]>([])

    func now() -> UInt64 { time.withLock { $0 } }
    func wallClock() -> UInt64 { now() + 1_000_000 }
    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer {
        let timer = Timer(fire)
        timers.withLock { $0.append(timer) }
        return timer
    }

    var armedCount: Int { timers.withLock { $0 }.count { $0.deadline.withLock { $0 } != nil } }

    func advance(_ nanoseconds: UInt64) {
        let now = time.withLock {
            $0 += nanoseconds
            return $0
        }
        for timer in timers.withLock({ $0 }) {
            let isDue = timer.deadline.withLock { deadline in
                guard let time = deadline, time <= now else { return false }
                deadline = nil
                return true
            }
            if isDue { timer.fire() }
        }
    }
}

@Suite("Machine clock") struct MachineClockTests {
    private let host = HandClock()
    private let clock: MachineClock

    init() { clock = MachineClock(host) }

    /// A timer, and the times at which it fired.
    private final class Probe: Sendable {
        let fired = Mutex<[UInt64]>([])
        let timer = Mutex<(any DeviceTimer)?>(nil)
        init(_ clock: MachineClock) {
            let timer = clock.makeTimer { [weak self, weak clock] in
                guard let clock else { return }
                self?.fired.withLock { $0.append(clock.now()) }
            }
            self.timer.withLock { $0 = timer }
        }
        func arm(at time: UInt64) { timer.withLock { $0 }?.arm(at: time) }
        func cancel() { timer.withLock { $0 }?.cancel() }
        var times: [UInt64] { fired.withLock { $0 } }
    }

    @Test func `time stands still in a pause and goes on where it was`() {
        #expect(clock.now() == 1_000)
        host.advance(10)
        clock.stop()
        host.advance(500)
        #expect(clock.now() == 1_010)
        #expect(clock.wallClock() == 1_001_510)
        clock.start()
        host.advance(5)
        #expect(clock.now() == 1_015)
        clock.stop()
        host.advance(7)
        clock.start()
        #expect(clock.now() == 1_015)
    }

    @Test func `deadline moves by the length of the pause`() {
        let probe = Probe(clock)
        probe.arm(at: 1_100)
        clock.stop()
        #expect(host.armedCount == 0)
        host.advance(1_000)
        #expect(probe.times == [])
        clock.start()
        host.advance(99)
        #expect(probe.times == [])
        host.advance(1)
        #expect(probe.times == [1_100])
        clock.stop()
        clock.start()
        host.advance(1_000)
        #expect(probe.times == [1_100])
    }

    @Test func `timer that is armed or cancelled in a pause keeps to it`() {
        let armed = Probe(clock)
        let cancelled = Probe(clock)
        let past = Probe(clock)
        cancelled.arm(at: 1_050)
        clock.stop()
        armed.arm(at: 1_020)
        past.arm(at: 900)
        cancelled.cancel()
        host.advance(100)
        #expect(armed.times == [])
        clock.start()
        host.advance(20)
        #expect(armed.times == [1_020])
        #expect(past.times == [1_020])
        host.advance(100)
        #expect(cancelled.times == [])
    }

    @Test func `end of time stays the end of time`() {
        host.advance(100)
        clock.stop()
        host.advance(100)
        clock.start()
        let probe = Probe(clock)
        probe.arm(at: .max - 50)
        host.advance(1_000_000)
        #expect(probe.times == [])
    }
}
