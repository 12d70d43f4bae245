/// The programmable interval timer of a PC as a value: an 8254 (Intel 82C54 datasheet) and the system control
/// port 0x61 that goes with it (82371SB, section 2.5.5).
///
/// Modelled: three counters, all modes, all access modes, BCD, counter latch and read-back; gate 2, the speaker
/// bits, the refresh toggle, the state of OUT 2. Not modelled: sound.
///
/// OUT 0 is IRQ 0. When its edges come late or too fast for the guest, they are owed and made up for, so that a
/// guest that counts ticks keeps time on average; a gap of more than a second is forgotten, since nobody gains
/// from a storm of ticks after a pause.
///
/// A hostile guest can ask for a tick every microsecond: ticks are delivered at most every 50 µs.
public struct I8253: Codable, Hashable, Sendable {
    /// What the line to the interrupt controller does.
    public struct Interrupt: Hashable, Sendable {
        /// OUT 0 has risen since the last time.
        public var rises: Bool
        /// Its level now.
        public var level: Bool
    }

    private var counter0 = I8253Counter(gate: true)
    private var counter1 = I8253Counter(gate: true)
    private var counter2 = I8253Counter(gate: false)
    /// Port 0x61, the bits that can be written: gate 2, speaker data, and two NMI enables.
    public private(set) var control: UInt8 = 0
    /// The tick up to which edges of OUT 0 are accounted for.
    private var accounted: UInt64 = 0
    /// Ticks that the guest has not had yet.
    public private(set) var owed: UInt64 = 0

    public init() {}

    /// The counters by number; there is none beyond 2.
    public subscript(_ index: UInt8) -> I8253Counter {
        get {
            switch index {
            case 0: counter0
            case 1: counter1
            default: counter2
            }
        }
        set {
            switch index {
            case 0: counter0 = newValue
            case 1: counter1 = newValue
            default: counter2 = newValue
            }
        }
    }

    // MARK: Interrupt

    /// The shortest time between two deliveries.
    private static let minimumTicks = TickRate.pit.hertz / 20_000

    /// Accounts for all edges until now and says what to do with the line.
    /// - Parameter isWaiting: whether the interrupt controller still holds the tick before, so that another edge
    ///   would be lost.
    public mutating func interrupt(_ now: UInt64, isWaiting: @autoclosure () -> Bool) -> Interrupt {
        let passed = counter0.edges(after: accounted, through: now)
        accounted = now
        let level = counter0.output(now)
        guard passed > 0 || owed > 0 else { return Interrupt(rises: false, level: level) }
        guard let period = counter0.tickPeriod else {
            owed = 0
            return Interrupt(rises: passed > 0, level: level)
        }
        let second = TickRate.pit.hertz / period
        // One that has to wait for the guest, at least, whatever the period.
        owed = passed > second &+ 1 ? 1 : min(owed &+ passed, max(second, 1))
        guard !isWaiting() else { return Interrupt(rises: false, level: level) }
        owed &-= 1
        return Interrupt(rises: true, level: level)
    }

    /// The tick at which `interrupt` should be called next, if at all.
    public func nextInterrupt(_ now: UInt64) -> UInt64? {
        guard let edge = counter0.nextEdge(after: now) else { return nil }
        guard let period = counter0.tickPeriod else { return edge }
        let soon = now &+ Self.minimumTicks
        let due = owed > 0 ? min(edge, now &+ period / 2) : edge
        return max(due, soon)
    }

    /// Moves every tick in the state, so that a snapshot does not depend on when the host started.
    public mutating func shift(by ticks: UInt64) {
        counter0.shift(by: ticks)
        counter1.shift(by: ticks)
        counter2.shift(by: ticks)
        accounted = accounted &+ ticks
    }

    /// Forgets counts, as after power-on.
    public mutating func reset(_ now: UInt64) {
        self = I8253()
        accounted = now
    }

    // MARK: Ports

    /// Ports 0x40 to 0x43.
    public mutating func read(_ offset: UInt16, _ now: UInt64) -> UInt8 {
        guard offset < 3 else { return 0xFF }
        return change(UInt8(offset), now) { $0.read(now) }
    }

    /// Ports 0x40 to 0x43. After a write `interrupt` has to be asked.
    public mutating func write(_ offset: UInt16, _ value: UInt8, _ now: UInt64) {
        switch offset {
        case 0, 1, 2: change(UInt8(offset), now) { $0.write(value, now) }
        case 3: command(value, now)
        default: break
        }
    }

    private mutating func change<R>(_ index: UInt8, _ now: UInt64, _ body: (inout I8253Counter) -> R) -> R {
        switch index {
        case 0: Self.change(&counter0, now, body)
        case 1: Self.change(&counter1, now, body)
        default: Self.change(&counter2, now, body)
        }
    }

    private static func change<R>(
        _ counter: inout I8253Counter, _ now: UInt64, _ body: (inout I8253Counter) -> R
    ) -> R {
        counter.advance(to: now)
        return body(&counter)
    }

    /// A control word, a counter latch command (RW = 0) or a read-back command (counter 3).
    private mutating func command(_ value: UInt8, _ now: UInt64) {
        let index = value >> 6
        guard index < 3 else {
            for index in 0..<3 as Range<UInt8> where value & 2 &<< index != 0 {
                change(index, now) { counter in
                    if value & 0x20 == 0 { counter.latchCount(now) }
                    if value & 0x10 == 0 { counter.latchStatus(now) }
                }
            }
            return
        }
        guard let access = I8253Counter.Access(rawValue: value >> 4 & 3) else {
            change(index, now) { $0.latchCount(now) }
            return
        }
        // Modes 6 and 7 are 2 and 3: their highest bit is "don't care".
        let number = value >> 1 & 7
        let mode = I8253Counter.Mode(rawValue: number > 5 ? number & 3 : number) ?? .interruptOnTerminalCount
        change(index, now) { $0.program(mode: mode, access: access, isBCD: value & 1 != 0) }
        if index == 0 { owed = 0 }
    }

    /// Port 0x61. Memory refresh takes place every 18 ticks on any PC, programmed or not.
    public mutating func readControl(_ now: UInt64) -> UInt8 {
        counter2.advance(to: now)
        return control | UInt8(truncatingIfNeeded: now / 18 & 1) << 4 | (counter2.output(now) ? 0x20 : 0)
    }

    public mutating func writeControl(_ value: UInt8, _ now: UInt64) {
        control = value & 0x0F
        change(2, now) { $0.setGate(value & 1 != 0, now) }
    }
}
