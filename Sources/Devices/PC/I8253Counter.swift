/// One counter of the 8254 as a value (Intel 82C54 datasheet, "Mode Definitions").
///
/// Nothing counts here: a counter knows at which tick its counting element was loaded, and everything else (count,
/// OUT, edges) follows from the tick that a caller passes. Ticks never go back between calls.
///
/// Every field may have any value: neither a guest nor a damaged snapshot can make it trap.
public struct I8253Counter: Codable, Hashable, Sendable {
    public enum Mode: UInt8, Codable, Sendable {
        case interruptOnTerminalCount, oneShot, rateGenerator, squareWave, softwareStrobe, hardwareStrobe

        /// The modes that go on by themselves.
        public var isPeriodic: Bool { self == .rateGenerator || self == .squareWave }
        /// The modes that a rising gate starts and a low gate does not stop.
        public var isTriggered: Bool { self == .oneShot || self == .hardwareStrobe }
    }

    /// Which bytes of the count the port carries (RW1, RW0).
    public enum Access: UInt8, Codable, Sendable { case low = 1, high, lowThenHigh }

    /// What the counting element does.
    public enum Phase: Codable, Hashable, Sendable {
        /// No count since the control word, or no trigger since the count.
        case stopped
        /// Holds the full count at tick `since`, which may lie ahead: a load takes place on the next clock pulse.
        case counting(since: UInt64)
        /// The gate is low; so many ticks were counted.
        case held(UInt64)
    }

    /// A count that was written and takes effect at a tick, or with the next trigger.
    public struct Reload: Codable, Hashable, Sendable {
        public var count: UInt32
        public var tick: UInt64?
    }

    public private(set) var mode = Mode.interruptOnTerminalCount
    public private(set) var access = Access.lowThenHigh
    public private(set) var isBCD = false
    public private(set) var gate: Bool
    public private(set) var phase = Phase.stopped
    /// The count in use, 1 to 65536; 0 before the first.
    public private(set) var count: UInt32 = 0
    public private(set) var reload: Reload?

    /// The first byte of two.
    private var writtenLow: UInt8?
    /// A one-shot that is triggered again stays low until it is loaded again.
    private var isLowUntilLoad = false
    private var readsHighNext = false
    private var latchedCount: UInt16?
    private var latchedStatus: UInt8?

    public init(gate: Bool) { self.gate = gate }

    /// At least 1: what divides by it must not trap.
    private var period: UInt64 { UInt64(max(count, 1)) }

    /// Ticks counted since the load; `nil` before it.
    private func elapsed(_ now: UInt64) -> UInt64? {
        switch phase {
        case .stopped: nil
        case .held(let ticks): ticks
        case .counting(let since):
            Int64(bitPattern: now &- since) < 0 ? nil : now &- since
        }
    }

    /// The level of OUT.
    public func output(_ now: UInt64) -> Bool {
        if mode.isPeriodic && !gate { return true }
        guard let elapsed = elapsed(now) else { return mode != .interruptOnTerminalCount && !isLowUntilLoad }
        switch mode {
        case .interruptOnTerminalCount, .oneShot: return elapsed >= period
        case .rateGenerator: return elapsed % period != period &- 1 || period == 1
        case .squareWave: return elapsed % period < (period &+ 1) / 2
        case .softwareStrobe, .hardwareStrobe: return elapsed != period
        }
    }

    /// The counting element as a read of the port shows it.
    public func value(_ now: UInt64) -> UInt16 {
        let elapsed = elapsed(now) ?? 0
        let modulus: UInt64 = isBCD ? 10_000 : 65_536
        let value: UInt64
        switch mode {
        case .rateGenerator:
            value = period &- elapsed % period
        case .squareWave:
            // Counts down by two in each half; an odd count starts one lower (datasheet, "Mode 3").
            let step = elapsed % period
            let half = (period &+ 1) / 2
            value = (period & ~1) &- 2 &* (step < half ? step : step &- half)
        default:
            value = period % modulus &+ modulus &- elapsed % modulus
        }
        return encode(value % modulus)
    }

    private func encode(_ value: UInt64) -> UInt16 {
        guard isBCD else { return UInt16(truncatingIfNeeded: value) }
        let digits = (value / 1000 % 10) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | value % 10
        return UInt16(truncatingIfNeeded: digits)
    }

    /// The count that a written word stands for; 0 is the largest. Digits above nine count as what they are.
    private func decode(_ word: UInt16) -> UInt32 {
        let word = UInt32(word)
        guard isBCD else { return word == 0 ? 65_536 : word }
        let value = (word >> 12) * 1000 + (word >> 8 & 15) * 100 + (word >> 4 & 15) * 10 + (word & 15)
        return value == 0 ? 10_000 : value
    }

    // MARK: Time

    /// Takes over a count whose tick has come. Everything below wants this done for its tick first.
    public mutating func advance(to now: UInt64) {
        guard case .counting = phase, let reload, let tick = reload.tick, Int64(bitPattern: now &- tick) >= 0 else {
            return
        }
        // A square wave may change its count in the middle of a period, when OUT falls: there the new period is
        // entered at its second half.
        let isMiddle = mode == .squareWave && !output(tick)
        count = reload.count
        phase = .counting(since: isMiddle ? tick &- (period &+ 1) / 2 : tick)
        self.reload = nil
    }

    /// Goes from one tick to a later one and returns how often OUT rose on the way.
    public mutating func edges(after start: UInt64, through end: UInt64) -> UInt64 {
        var start = start
        var edges: UInt64 = 0
        if let tick = reload?.tick, Int64(bitPattern: end &- tick) >= 0, Int64(bitPattern: tick &- start) > 0 {
            edges = edgesWithoutReload(after: start, through: tick)
            start = tick
        }
        advance(to: end)
        return edges &+ edgesWithoutReload(after: start, through: end)
    }

    private func edgesWithoutReload(after start: UInt64, through end: UInt64) -> UInt64 {
        guard case .counting(let since) = phase, Int64(bitPattern: end &- since) > 0 else { return 0 }
        let from = Int64(bitPattern: start &- since) < 0 ? 0 : start &- since
        let to = end &- since
        switch mode {
        case .rateGenerator, .squareWave:
            return gate && to > from ? to / period &- from / period : 0
        case .interruptOnTerminalCount, .oneShot:
            return from < period && period <= to ? 1 : 0
        case .softwareStrobe, .hardwareStrobe:
            return from < period &+ 1 && period &+ 1 <= to ? 1 : 0
        }
    }

    /// The tick at which OUT rises next, if nobody touches the counter.
    public func nextEdge(after now: UInt64) -> UInt64? {
        guard case .counting(let since) = phase else { return nil }
        let elapsed = elapsed(now) ?? 0
        switch mode {
        case .rateGenerator, .squareWave:
            guard gate else { return nil }
            let edge = since &+ (elapsed / period &+ 1) &* period
            guard let reload, let tick = reload.tick, Int64(bitPattern: edge &- tick) > 0 else { return edge }
            return tick &+ UInt64(max(reload.count / 2, 1))
        case .interruptOnTerminalCount, .oneShot:
            return elapsed < period ? since &+ period : nil
        case .softwareStrobe, .hardwareStrobe:
            return elapsed < period &+ 1 ? since &+ period &+ 1 : nil
        }
    }

    /// Ticks between two edges of a periodic mode.
    public var tickPeriod: UInt64? { mode.isPeriodic && count > 0 ? period : nil }

    /// Moves every tick in the state, so that a snapshot does not depend on when the host started.
    public mutating func shift(by ticks: UInt64) {
        if case .counting(let since) = phase { phase = .counting(since: since &+ ticks) }
        if let tick = reload?.tick { reload?.tick = tick &+ ticks }
    }

    // MARK: Ports

    /// A control word for this counter (not a latch command).
    public mutating func program(mode: Mode, access: Access, isBCD: Bool) {
        self = I8253Counter(gate: gate)
        self.mode = mode
        self.access = access
        self.isBCD = isBCD
    }

    public mutating func write(_ value: UInt8, _ now: UInt64) {
        switch (access, writtenLow) {
        case (.low, _): load(UInt16(value), now)
        case (.high, _): load(UInt16(value) << 8, now)
        case (.lowThenHigh, let low?):
            writtenLow = nil
            load(UInt16(value) << 8 | UInt16(low), now)
        case (.lowThenHigh, nil):
            writtenLow = value
            // "Writing the first byte disables counting. OUT is set low immediately" (Mode 0).
            if mode == .interruptOnTerminalCount { phase = .stopped }
        }
    }

    private mutating func load(_ word: UInt16, _ now: UInt64) {
        let new = decode(word)
        switch mode {
        case .interruptOnTerminalCount, .softwareStrobe:
            start(new, now)
        case .rateGenerator, .squareWave:
            if case .counting = phase {
                reload = Reload(count: new, tick: endOfCycle(now))
            } else if gate {
                start(new, now)
            } else {
                reload = Reload(count: new, tick: nil)
            }
        case .oneShot, .hardwareStrobe:
            reload = Reload(count: new, tick: nil)
        }
    }

    private mutating func start(_ new: UInt32, _ now: UInt64) {
        count = new
        reload = nil
        phase = gate || mode.isTriggered ? .counting(since: now &+ 1) : .held(0)
    }

    /// Where a new count takes effect: the end of the period, of the half-period for a square wave.
    private func endOfCycle(_ now: UInt64) -> UInt64 {
        guard case .counting(let since) = phase else { return now }
        let elapsed = elapsed(now) ?? 0
        let start = elapsed - elapsed % period
        let half = (period &+ 1) / 2
        let isFirstHalf = mode == .squareWave && elapsed % period < half && half < period
        return since &+ start &+ (isFirstHalf ? half : period)
    }

    /// - Parameter level: GATE 0 and 1 of a PC are tied high; GATE 2 is bit 0 of port 0x61.
    public mutating func setGate(_ level: Bool, _ now: UInt64) {
        guard level != gate else { return }
        gate = level
        switch mode {
        case .interruptOnTerminalCount, .softwareStrobe:
            if level, case .held(let ticks) = phase { phase = .counting(since: now &- ticks) }
            if !level, case .counting = phase { phase = .held(elapsed(now) ?? 0) }
        case .rateGenerator, .squareWave:
            if !level, case .counting = phase {
                phase = .held(elapsed(now) ?? 0)
                // What waited for the end of a cycle that does not come is loaded with the trigger.
                reload?.tick = nil
            }
            if level { trigger(now) }
        case .oneShot, .hardwareStrobe:
            if level { trigger(now) }
        }
    }

    private mutating func trigger(_ now: UInt64) {
        guard let new = reload?.count ?? (count > 0 ? count : nil) else { return }
        isLowUntilLoad = mode == .oneShot && !output(now)
        start(new, now)
    }

    public mutating func read(_ now: UInt64) -> UInt8 {
        if let status = latchedStatus {
            latchedStatus = nil
            return status
        }
        let word = latchedCount ?? value(now)
        switch access {
        case .low:
            latchedCount = nil
            return UInt8(truncatingIfNeeded: word)
        case .high:
            latchedCount = nil
            return UInt8(truncatingIfNeeded: word >> 8)
        case .lowThenHigh:
            let isHigh = readsHighNext
            readsHighNext.toggle()
            if isHigh { latchedCount = nil }
            return UInt8(truncatingIfNeeded: isHigh ? word >> 8 : word)
        }
    }

    /// A second latch before the first was read is ignored (datasheet, "Counter Latch Command").
    public mutating func latchCount(_ now: UInt64) {
        if latchedCount == nil { latchedCount = value(now) }
    }

    /// The status byte of the read-back command: OUT, NULL COUNT, and the mode as programmed.
    public mutating func latchStatus(_ now: UInt64) {
        guard latchedStatus == nil else { return }
        let isNull = reload != nil || elapsed(now) == nil
        latchedStatus =
            (output(now) ? 0x80 : 0) | (isNull ? 0x40 : 0) | access.rawValue << 4 | mode.rawValue << 1
            | (isBCD ? 1 : 0)
    }
}
