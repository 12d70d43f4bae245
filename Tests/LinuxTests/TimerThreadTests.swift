import Linux
import Testing

@Suite("Timer thread", .timeLimit(.minutes(1))) struct TimerThreadTests {
    private static let millisecond: UInt64 = 1_000_000

    @Test func `timers fire in the order of their deadlines, and not before`() throws {
        let timers = try TimerThread()
        defer { timers.stop() }
        let fired = Monitor<[(Int, UInt64)]>([])
        let start = SystemTime.monotonic()
        for (name, milliseconds) in [(3, 30), (1, 10), (2, 20)] as [(Int, UInt64)] {
            let timer = timers.makeTimer {
                fired.withLock { $0.append((name, SystemTime.monotonic())) }
                fired.broadcast()
            }
            timer.arm(at: start + milliseconds * Self.millisecond)
        }
        let result = fired.withLock(waitingWhile: { $0.count < 3 }) { $0 }
        #expect(result.map(\.0) == [1, 2, 3])
        #expect(result.allSatisfy { name, time in time >= start + UInt64(name) * 10 * Self.millisecond })
    }

    @Test func `deadline in the past fires at once`() throws {
        let timers = try TimerThread()
        defer { timers.stop() }
        let fired = Monitor(false)
        timers.makeTimer {
            fired.withLock { $0 = true }
            fired.broadcast()
        }.arm(at: 0)
        #expect(fired.withLock(waitingWhile: { !$0 }) { $0 })
    }

    @Test func `later deadline replaces an earlier one, and a cancelled one is gone`() throws {
        let timers = try TimerThread()
        defer { timers.stop() }
        let fired = Monitor<[String]>([])
        func timer(_ name: String) -> TimerThread.Timer {
            timers.makeTimer {
                fired.withLock { $0.append(name) }
                fired.broadcast()
            }
        }
        let now = SystemTime.monotonic()
        let moved = timer("moved")
        let cancelled = timer("cancelled")
        let last = timer("last")
        moved.arm(at: now + 20 * Self.millisecond)
        moved.arm(at: now + 60 * Self.millisecond)
        cancelled.arm(at: now + 20 * Self.millisecond)
        cancelled.cancel()
        last.arm(at: now + 40 * Self.millisecond)
        #expect(fired.withLock(waitingWhile: { $0.count < 2 }) { $0 } == ["last", "moved"])
    }

    @Test func `timer can arm itself again from its own closure`() throws {
        let timers = try TimerThread()
        defer { timers.stop() }
        let count = Monitor(0)
        let holder = Monitor<TimerThread.Timer?>(nil)
        let timer = timers.makeTimer {
            count.withLock { $0 += 1 }
            count.broadcast()
            holder.withLock { $0 }?.arm(at: SystemTime.monotonic() + 100_000)
        }
        holder.withLock { $0 = timer }
        timer.arm(at: 1)
        #expect(count.withLock(waitingWhile: { $0 < 100 }) { $0 } >= 100)
        holder.withLock { $0 = nil }
    }

    @Test func `deadline beyond what the kernel can hold never fires`() throws {
        let timers = try TimerThread()
        defer { timers.stop() }
        let fired = Monitor(0)
        let never = timers.makeTimer { fired.withLock { $0 += 100 } }
        let soon = timers.makeTimer {
            fired.withLock { $0 += 1 }
            fired.broadcast()
        }
        never.arm(at: .max)
        never.arm(at: .max - 1)
        soon.arm(at: SystemTime.monotonic() + 5 * Self.millisecond)
        #expect(fired.withLock(waitingWhile: { $0 == 0 }) { $0 } == 1)
    }

    @Test func `nothing fires after stop`() throws {
        let timers = try TimerThread()
        let fired = Monitor(0)
        let timer = timers.makeTimer { fired.withLock { $0 += 1 } }
        timer.arm(at: SystemTime.monotonic() + 1000 * Self.millisecond)
        timers.stop()
        timer.arm(at: 1)
        #expect(fired.withLock { $0 } == 0)
    }
}
