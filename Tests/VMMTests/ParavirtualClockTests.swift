import Linux
import Synchronization
import Testing

@testable import VMM

/// Time and a counter of 2.5 GHz that a test turns by hand; the timer fires when told.
private final class HandClock: Clock {
    struct State {
        var now: UInt64 = 1_000_000_000_000
        var deadline: UInt64?
        var fire: (@Sendable () -> Void)?
    }
    let state = Mutex(State())
    let wallOffset: UInt64 = 1_700_000_000_000_000_000

    func now() -> UInt64 { state.withLock { $0.now } }
    func wallClock() -> UInt64 { now() + wallOffset }
    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer {
        state.withLock { $0.fire = fire }
        return Timer(self)
    }

    func advance(_ nanoseconds: UInt64) {
        let fire = state.withLock { state -> (@Sendable () -> Void)? in
            state.now += nanoseconds
            guard let deadline = state.deadline, deadline <= state.now else { return nil }
            state.deadline = nil
            return state.fire
        }
        fire?()
    }

    final class Timer: DeviceTimer {
        private let clock: HandClock
        init(_ clock: HandClock) { self.clock = clock }
        func arm(at deadline: UInt64) { clock.state.withLock { $0.deadline = deadline } }
        func cancel() { clock.state.withLock { $0.deadline = nil } }
    }
}

@Suite("Paravirtual clock") struct ParavirtualClockTests {
    private let memory: GuestMemory
    private let clock = HandClock()

    init() throws { memory = try GuestMemory(ranges: [(base: 0, byteCount: 1 << 20)]) }

    /// What a guest's driver computes (Linux, pvclock.h).
    private func guestTime(_ page: UInt64, counter: UInt64) throws -> UInt64 {
        let version = try #require(memory.load(page, as: UInt32.self))
        #expect(version % 2 == 0 && version > 0)
        let timestamp = try #require(memory.load(page + 8, as: UInt64.self))
        let system = try #require(memory.load(page + 16, as: UInt64.self))
        let multiplier = try #require(memory.load(page + 24, as: UInt32.self))
        let shift = Int8(bitPattern: try #require(memory.load(page + 28, as: UInt8.self)))
        let delta = counter &- timestamp
        let shifted = shift < 0 ? delta >> UInt64(-shift) : delta << UInt64(shift)
        let (high, low) = shifted.multipliedFullWidth(by: UInt64(multiplier))
        return system + (high << 32 | low >> 32)
    }

    private func makeClock() -> ParavirtualClock {
        ParavirtualClock(memory: memory, clock: clock)
    }

    @Test func `pause is no time to the guest, and the page says that it stood still`() throws {
        let paravirtual = ParavirtualClock(memory: memory, clock: clock) { [clock] in
            TimeStampCounter.Reading(counter: (clock.now() - 1_000_000_000_000) * 5 / 2, nanoseconds: clock.now())
        }
        #expect(paravirtual.writeSystemTime(0x1001, tscOffset: 500))
        func counter() -> UInt64 { (clock.now() - 1_000_000_000_000) * 5 / 2 }
        clock.advance(300_000_000)
        let before = try guestTime(0x1000, counter: counter() + 500)
        paravirtual.suspend()
        let ticks: UInt64 = 25_000_000_000
        clock.advance(10_000_000_000)
        #expect(clock.state.withLock { $0.deadline } == nil)
        paravirtual.resume(nanoseconds: 10_000_000_000, ticks: ticks)
        let after = try guestTime(0x1000, counter: counter() + 500 - ticks)
        #expect(after == before)
        #expect(memory.load(0x101D, as: UInt8.self) == 3)
        // It stays until the guest has seen it, and corrections go on without a jump.
        clock.advance(1_000_000_000)
        #expect(memory.load(0x101D, as: UInt8.self) == 3)
        memory.store(0x101D, UInt8(1))
        clock.advance(2_000_000_000)
        #expect(memory.load(0x101D, as: UInt8.self) == 1)
        // The host's clock is 13 s further, the guest's 3.
        #expect(memory.load(0x1010, as: UInt64.self).map { $0 < 5_000_000_000 } == true)
    }

    @Test func `page turns the host's counter into time since the machine began`() throws {
        TimeStampCounter.start()
        let start = SystemTime.monotonic()
        let pvclock = ParavirtualClock(memory: memory, clock: RealClock())
        #expect(pvclock.writeSystemTime(0x5001, tscOffset: 12345))
        let before = SystemTime.monotonic()
        let counter = TimeStampCounter.now()
        let after = SystemTime.monotonic()
        let time = try guestTime(0x5000, counter: counter &+ 12345)
        // The machine began between `start` and `before`; the rate is good to 200 parts in a million.
        #expect(time <= after - start + 100_000)
        #expect(after - before < 1_000_000_000)
        #expect(memory.load(0x5000 + 29, as: UInt8.self) == 1)
    }

    @Test func `wall clock is that of the machine's beginning`() throws {
        let pvclock = makeClock()
        let zero = clock.wallClock()
        clock.advance(5_500_000_000)
        #expect(pvclock.writeWallClock(0x6000))
        #expect(memory.load(0x6000, as: UInt32.self).map { $0 % 2 } == 0)
        #expect(memory.load(0x6004, as: UInt32.self) == UInt32(zero / 1_000_000_000))
        #expect(memory.load(0x6008, as: UInt32.self) == UInt32(zero % 1_000_000_000))
    }

    @Test(arguments: [0xFFFF_0001, 0xF_FFF1, 0x5FF1, .max] as [UInt64])
    func `page outside of RAM or over its edge is refused`(value: UInt64) {
        #expect(!makeClock().writeSystemTime(value, tscOffset: 0))
    }

    @Test(arguments: [0xF_FFF8, 1 << 40, .max] as [UInt64])
    func `wall clock outside of RAM is refused`(value: UInt64) {
        #expect(!makeClock().writeWallClock(value))
    }

    @Test func `disabled page and one from before a reset are left alone`() {
        let pvclock = makeClock()
        #expect(pvclock.writeSystemTime(0x5001, tscOffset: 0))
        pvclock.reset()
        memory.clear()
        clock.advance(10_000_000_000)
        #expect(memory.load(0x5000, as: UInt32.self) == 0)
        #expect(pvclock.writeSystemTime(0x5001, tscOffset: 0))
        #expect(pvclock.writeSystemTime(0, tscOffset: 0))
        memory.clear()
        clock.advance(10_000_000_000)
        #expect(memory.load(0x5000, as: UInt32.self) == 0)
    }

    /// On virtual time: the counter is the clock, 1 GHz or whatever the host's frequency makes of it.
    @Test func `restored clock goes on from its reading at the page it had`() throws {
        let clock = clock
        let pvclock = ParavirtualClock(memory: memory, clock: clock) { .init(counter: clock.now(), nanoseconds: clock.now()) }
        clock.advance(7_000_000_000)
        #expect(pvclock.reading() == 7_000_000_000)
        // The state's page was being read when the guest was stopped.
        memory.store(0x5000, 40 as UInt32)
        let other = ParavirtualClock(memory: memory, clock: clock) { .init(counter: clock.now(), nanoseconds: clock.now()) }
        clock.advance(1_000_000_000)
        other.restore(nanoseconds: 7_000_000_000, systemTime: 0x5001, tscOffset: 500)
        #expect(other.reading() == 7_000_000_000)
        #expect(try guestTime(0x5000, counter: clock.now() + 500) == 7_000_000_000)
        let version = try #require(memory.load(0x5000, as: UInt32.self))
        #expect(version > 40)
        // Corrections go on.
        clock.advance(1_000_000_000)
        #expect(try #require(memory.load(0x5000, as: UInt32.self)) > version)
        // Switched off in the state: the page is left alone, and time goes on.
        let reading = other.reading()
        other.restore(nanoseconds: nil, systemTime: 0, tscOffset: 500)
        memory.store(0x5000, 7 as UInt32)
        clock.advance(100_000_000_000)
        #expect(memory.load(0x5000, as: UInt32.self) == 7)
        #expect(other.reading() >= reading)
    }

    @Test func `state with a page that no guest can have given leaves the clock without one`() {
        for systemTime in [0xFFFF_0001, 0xF_FFF1, .max] as [UInt64] {
            let pvclock = makeClock()
            pvclock.restore(nanoseconds: 1, systemTime: systemTime, tscOffset: 0)
            clock.advance(100_000_000_000)
        }
        #expect((0..<256).allSatisfy { memory.load($0 * 4096 + 8, as: UInt64.self) == 0 })
    }

    @Test func `page is written anew when the correction is due`() throws {
        let pvclock = makeClock()
        #expect(pvclock.writeSystemTime(0x5001, tscOffset: 0))
        let version = try #require(memory.load(0x5000, as: UInt32.self))
        clock.advance(500_000_000)
        #expect(memory.load(0x5000, as: UInt32.self) == version)
        clock.advance(500_000_000)
        #expect(memory.load(0x5000, as: UInt32.self) == version + 4)
    }

    @Test(arguments: [1_000_000, 999_999_999, 1_000_000_000, 2_445_431_000, 4_999_999_999, 1_000_000_000_000] as [UInt64])
    func `line runs at the counter's rate`(frequency: UInt64) {
        let line = ClockLine(counter: 1000, nanoseconds: 7, frequency: frequency)
        #expect(line.multiplier >= 1 << 31)
        for seconds in [1, 60, 3600] as [UInt64] {
            let value = line.value(at: 1000 + frequency * seconds)
            let error = Int64(bitPattern: value &- 7 &- seconds * 1_000_000_000)
            #expect(abs(error) <= Int64(seconds))
        }
    }

    @Test(arguments: [-400_000, -1000, 0, 1000, 400_000] as [Int64])
    func `correction does not jump and meets the truth`(error: Int64) {
        let frequency: UInt64 = 2_500_000_000
        let line = ClockLine(counter: 0, nanoseconds: 0, frequency: frequency)
        let truth = UInt64(1_000_000_000 + error)
        let corrected = line.corrected(at: frequency, to: truth, within: 1_000_000_000, frequency: frequency)
        #expect(corrected.value(at: frequency) == line.value(at: frequency))
        let end = Int64(corrected.value(at: 2 * frequency)) - Int64(truth) - 1_000_000_000
        #expect(abs(end) < 500)
    }

    @Test func `guest far behind is set forward, and one far ahead only slowed`() {
        let frequency: UInt64 = 2_500_000_000
        let line = ClockLine(counter: 0, nanoseconds: 0, frequency: frequency)
        let forward = line.corrected(at: frequency, to: 5_000_000_000, within: 1_000_000_000, frequency: frequency)
        #expect(forward.value(at: frequency) == 5_000_000_000)
        let back = line.corrected(at: frequency, to: 100_000_000, within: 1_000_000_000, frequency: frequency)
        #expect(back.value(at: frequency) == line.value(at: frequency))
        #expect(back.value(at: 2 * frequency) - back.value(at: frequency) >= 999_499_000)
    }

    private final class RealClock: Clock {
        func now() -> UInt64 { SystemTime.monotonic() }
        func wallClock() -> UInt64 { SystemTime.wallClock() }
        func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer { HandClock.Timer(HandClock()) }
    }
}
