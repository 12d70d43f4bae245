public import Linux
import Synchronization

/// kvmclock: a page of guest memory that says how to turn the time-stamp counter into nanoseconds, so that a guest
/// reads its clock without an exit (Linux, "KVM-specific MSRs", MSR_KVM_WALL_CLOCK_NEW and MSR_KVM_SYSTEM_TIME_NEW;
/// OpenBSD's pvclock(4) reads the same page).
///
/// The guest's clock is to follow the host's `CLOCK_MONOTONIC`, which the host's time daemon steers. The rate of the
/// counter is measured against that clock since the process began: good to about 10 parts in a million when a
/// kernel first asks. From then on the line is corrected at growing intervals. A correction never makes the
/// guest's time jump: the new line starts where the old one is and meets the host's clock at the next correction.
public final class ParavirtualClock: Sendable {
    /// KVM_WALL_CLOCK and KVM_SYSTEM_TIME.
    public static let wallClockMSR: UInt32 = 0x4B56_4D00
    public static let systemTimeMSR: UInt32 = 0x4B56_4D01

    private struct State {
        /// Host `CLOCK_MONOTONIC` at the guest's time zero.
        var origin: UInt64
        var line: ClockLine?
        /// Where the guest wants the page, once it has enabled it.
        var page: UInt64?
        var tscOffset: UInt64 = 0
        var version: UInt32 = 0
        var interval = ParavirtualClock.firstInterval
        /// The machine is paused: its time stands still.
        var isSuspended = false
    }

    private let memory: GuestMemory
    private let clock: any Clock
    private let read: @Sendable () -> TimeStampCounter.Reading
    private let state: Mutex<State>
    private let timer = Mutex<(any DeviceTimer)?>(nil)

    private static let firstInterval: UInt64 = 1_000_000_000
    private static let longestInterval: UInt64 = 64_000_000_000
    /// struct pvclock_vcpu_time_info, struct pvclock_wall_clock
    private static let systemTimeByteCount: UInt64 = 32
    private static let wallClockByteCount: UInt64 = 12
    /// PVCLOCK_TSC_STABLE_BIT: one line holds for all CPUs, so the guest need not guard against going back.
    private static let stableFlag: UInt8 = 1
    /// PVCLOCK_GUEST_STOPPED: the host did not run the guest for a while; its watchdogs are to look away once. The guest
    /// clears it.
    private static let stoppedFlag: UInt8 = 2

    /// - Parameters:
    ///   - clock: for wall time and the timer of the corrections.
    ///   - read: the counter and the monotonic clock at one moment.
    public init(
        memory: GuestMemory, clock: any Clock,
        read: @escaping @Sendable () -> TimeStampCounter.Reading = { TimeStampCounter.read() }
    ) {
        self.memory = memory
        self.clock = clock
        self.read = read
        state = Mutex(State(origin: clock.now()))
        let timer = clock.makeTimer { [weak self] in self?.refine() }
        self.timer.withLock { $0 = timer }
    }

    /// A write to KVM_SYSTEM_TIME: bit 0 enables, the rest is the page's address. vCPU thread.
    /// - Parameter tscOffset: what the guest's counter has over the host's.
    /// - Returns: `false` when the structure would not lie in one page of RAM: the guest gets #GP.
    public func writeSystemTime(_ value: UInt64, tscOffset: UInt64) -> Bool {
        guard value & 1 != 0 else {
            state.withLock { $0.page = nil }
            return true
        }
        let address = value & ~1
        guard holds(address, Self.systemTimeByteCount) else { return false }
        let deadline = state.withLock { state in
            if state.line == nil {
                let now = read()
                state.line = ClockLine(
                    counter: now.counter, nanoseconds: now.nanoseconds &- state.origin,
                    frequency: TimeStampCounter.frequency())
            }
            state.page = address
            state.tscOffset = tscOffset
            state.interval = Self.firstInterval
            publish(&state)
            return clock.now() &+ state.interval
        }
        timer.withLock { $0 }?.arm(at: deadline)
        return true
    }

    /// A write to KVM_WALL_CLOCK: the guest wants the wall-clock time of its time zero at this address. vCPU thread.
    /// - Returns: `false` when the structure would not lie in one page of RAM: the guest gets #GP.
    public func writeWallClock(_ address: UInt64) -> Bool {
        guard holds(address, Self.wallClockByteCount) else { return false }
        state.withLock { state in
            let zero = clock.wallClock() &- (clock.now() &- state.origin)
            store(at: address, version: &state.version) {
                memory.store(address + 4, UInt32(truncatingIfNeeded: zero / 1_000_000_000))
                memory.store(address + 8, UInt32(truncatingIfNeeded: zero % 1_000_000_000))
            }
        }
        return true
    }

    /// What the guest's clock says now, for a saved state.
    public func reading() -> UInt64 {
        state.withLock { state in
            let now = read()
            return state.line?.value(at: now.counter) ?? now.nanoseconds &- state.origin
        }
    }

    /// A state has been loaded into the CPU: the clock goes on from what it said then.
    /// - Parameters:
    ///   - nanoseconds: the clock's reading, `nil` to keep the present one's.
    ///   - systemTime: the CPU's KVM_SYSTEM_TIME. One that could not have been written turns the page off.
    public func restore(nanoseconds: UInt64?, systemTime: UInt64, tscOffset: UInt64) {
        timer.withLock { $0 }?.cancel()
        state.withLock { state in
            if let nanoseconds { state = State(origin: read().nanoseconds &- nanoseconds) }
            state.page = nil
            // A guest that was stopped while it read its page has to see that the page has changed.
            if systemTime & 1 != 0, let version = memory.load(systemTime & ~1, as: UInt32.self) { state.version = version }
        }
        if systemTime & 1 != 0 { _ = writeSystemTime(systemTime, tscOffset: tscOffset) }
    }

    /// The machine starts again: the page is forgotten and time counts from zero.
    public func reset() {
        timer.withLock { $0 }?.cancel()
        state.withLock { $0 = State(origin: clock.now()) }
    }

    /// The machine pauses: nothing is corrected until `resume`.
    public func suspend() {
        timer.withLock { $0 }?.cancel()
        state.withLock { $0.isSuspended = true }
    }

    /// The machine goes on. Its time stood still meanwhile, and so did its counter: the caller takes `ticks` off the
    /// virtual CPU's offset as well. vCPU thread.
    /// - Parameters:
    ///   - nanoseconds: how long the pause was on `CLOCK_MONOTONIC`,
    ///   - ticks: and on the host's counter.
    public func resume(nanoseconds: UInt64, ticks: UInt64) {
        let deadline: UInt64? = state.withLock { state in
            state.isSuspended = false
            state.origin &+= nanoseconds
            state.tscOffset &-= ticks
            guard let line = state.line else { return nil }
            state.line = line.moved(by: ticks)
            guard state.page != nil else { return nil }
            state.interval = Self.firstInterval
            publish(&state, setting: Self.stoppedFlag)
            return clock.now() &+ state.interval
        }
        if let deadline { timer.withLock { $0 }?.arm(at: deadline) }
    }

    /// Bends the line towards the host's clock.
    private func refine() {
        let deadline: UInt64? = state.withLock { state in
            guard state.page != nil, !state.isSuspended, let line = state.line else { return nil }
            state.interval = min(state.interval * 2, Self.longestInterval)
            let now = read()
            state.line = line.corrected(
                at: now.counter, to: now.nanoseconds &- state.origin, within: state.interval,
                frequency: TimeStampCounter.frequency())
            // What the guest has not seen yet stays.
            let flags = state.page.flatMap { memory.load($0 + Self.flagsOffset, as: UInt8.self) } ?? 0
            publish(&state, setting: flags & Self.stoppedFlag)
            return clock.now() &+ state.interval
        }
        if let deadline { timer.withLock { $0 }?.arm(at: deadline) }
    }

    private func holds(_ address: UInt64, _ count: UInt64) -> Bool {
        address & (GuestMemory.pageSize - 1) <= GuestMemory.pageSize - count && memory.contains(address, count: count)
    }

    private static let flagsOffset: UInt64 = 29

    /// Writes the line into the guest's page.
    private func publish(_ state: inout State, setting flags: UInt8 = 0) {
        guard let page = state.page, let line = state.line else { return }
        let timestamp = line.counter &+ state.tscOffset
        store(at: page, version: &state.version) {
            memory.store(page + 8, timestamp)
            memory.store(page + 16, line.nanoseconds)
            memory.store(page + 24, line.multiplier)
            memory.store(page + 28, UInt8(bitPattern: line.shift))
            memory.store(page + Self.flagsOffset, Self.stableFlag | flags)
        }
    }

    /// The guest reads again when the version was odd or has changed meanwhile.
    private func store(at address: UInt64, version: inout UInt32, _ body: () -> Void) {
        version = (version | 1) &+ 2
        memory.store(address, version)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        body()
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        version &+= 1
        memory.store(address, version)
    }
}

/// Nanoseconds as a straight line over the host's time-stamp counter, in the terms of the pvclock page:
/// `nanoseconds + ((counter now - counter) << shift) * multiplier >> 32`, a negative shift going right.
struct ClockLine: Hashable, Sendable {
    let counter: UInt64
    let nanoseconds: UInt64
    let multiplier: UInt32
    let shift: Int8

    private init(counter: UInt64, nanoseconds: UInt64, multiplier: UInt32, shift: Int8) {
        self.counter = counter
        self.nanoseconds = nanoseconds
        self.multiplier = multiplier
        self.shift = shift
    }

    /// The same line that begins `ticks` later.
    func moved(by ticks: UInt64) -> ClockLine {
        ClockLine(counter: counter &+ ticks, nanoseconds: nanoseconds, multiplier: multiplier, shift: shift)
    }

    init(counter: UInt64, nanoseconds: UInt64, frequency: UInt64) {
        self.counter = counter
        self.nanoseconds = nanoseconds
        // A multiplier with its top bit set keeps the most digits.
        var numerator: UInt64 = 1_000_000_000
        var denominator = min(max(frequency, 1_000_000), 1_000_000_000_000)
        var shift: Int8 = 0
        while numerator >= denominator {
            denominator *= 2
            shift += 1
        }
        while numerator * 2 < denominator {
            numerator *= 2
            shift -= 1
        }
        let quotient = denominator.dividingFullWidth((numerator >> 32, numerator << 32)).quotient
        multiplier = UInt32(truncatingIfNeeded: quotient)
        self.shift = shift
    }

    /// The line's value at a later counter.
    func value(at now: UInt64) -> UInt64 {
        let delta = now &- counter
        let shifted = shift < 0 ? delta >> UInt64(-shift) : delta << UInt64(shift)
        let (high, low) = shifted.multipliedFullWidth(by: UInt64(multiplier))
        return nanoseconds &+ (high << 32 | low >> 32)
    }

    /// The line from here on: continuous, and on the truth after `interval` nanoseconds. A guest that is more than
    /// 10 ms behind (the counter stood still) is set forward instead; one that is ahead is only ever slowed down.
    func corrected(
        at now: UInt64, to truth: UInt64, within interval: UInt64, frequency: UInt64
    ) -> ClockLine {
        let current = value(at: now)
        let error = Int64(bitPattern: truth &- current)
        if error > 10_000_000 { return ClockLine(counter: now, nanoseconds: truth, frequency: frequency) }
        // At most 500 parts in a million, what time daemons allow themselves: a guest's may be at work too.
        let limit = Int64(truncatingIfNeeded: interval / 2000)
        let bend = min(max(error, -limit), limit)
        let slower = Double(frequency) * Double(interval) / (Double(interval) + Double(bend))
        return ClockLine(counter: now, nanoseconds: current, frequency: UInt64(slower))
    }
}
