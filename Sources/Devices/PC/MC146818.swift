/// The real-time clock and CMOS memory of a PC as a value (Motorola MC146818A datasheet).
///
/// Modelled: BCD and binary, 12 and 24 hours, SET, divider reset, update in progress, alarm with "don't care" bytes,
/// update-ended and periodic interrupts, century at 0x32, 128 bytes of memory. Not modelled: daylight saving, the
/// square wave output, crystals other than 32.768 kHz.
///
/// Time comes in as nanoseconds of the host's wall clock; the chip keeps what the guest's clock is ahead. When
/// somebody sets the host's clock, the guest's goes with it. Flags are worked out when somebody looks.
///
/// Quirks: the day of the week follows from the date.
///
/// Every field may have any value: neither a guest nor a damaged snapshot can make it trap.
public struct MC146818: Codable, Hashable, Sendable {
    /// Time while it stands still: the guest is setting it.
    private struct Halt: Codable, Hashable, Sendable {
        var registers: TimeRegisters
        /// The divider was in reset, so that the next second comes half a second after it is let go.
        var dividerWasReset: Bool
    }

    private static let second: UInt64 = 1_000_000_000
    private static let crystal = TickRate(hertz: 32_768)
    /// UIP rises 244 µs before an update, which takes 1984 µs (table 6).
    private static let updateNanoseconds: UInt64 = 244_000 + 1_984_000

    public private(set) var index: UInt8 = 0
    public private(set) var a = RegisterA(rawValue: 0x26)
    public private(set) var b: RegisterB = [.h24]
    private var flags: RegisterC = []
    private var alarmSeconds: UInt8 = 0
    private var alarmMinutes: UInt8 = 0
    private var alarmHours: UInt8 = 0
    public var memory = CMOSMemory()

    /// Added to the wall clock: where in a second the divider stands...
    private var phase: UInt64 = 0
    /// ...and whole seconds.
    private var offset: Int64 = 0
    private var halt: Halt?
    /// The divider's time up to which the flags are worked out.
    private var accounted: UInt64 = 0

    public init() {}

    // MARK: Time

    private func divider(_ wall: UInt64) -> UInt64 { wall &+ phase }

    private func seconds(_ divider: UInt64) -> Int64 { Int64(bitPattern: divider / Self.second) &+ offset }

    private func registers(_ wall: UInt64) -> TimeRegisters {
        halt?.registers ?? b.encode(CivilTime(secondsSince1970: seconds(divider(wall))))
    }

    private var isDividerReset: Bool { a.contains(.dividerReset) }

    /// Changes registers A and B and stops or starts the time with them.
    private mutating func control(_ wall: UInt64, _ change: (inout Self) -> Void) {
        account(wall)
        let registers = registers(wall)
        change(&self)
        guard isDividerReset || b.contains(.set) else {
            resume(wall)
            return
        }
        let wasReset = halt?.dividerWasReset ?? false
        halt = Halt(registers: halt?.registers ?? registers, dividerWasReset: wasReset || isDividerReset)
    }

    private mutating func resume(_ wall: UInt64) {
        guard let halt else { return }
        self.halt = nil
        if halt.dividerWasReset {
            phase = Self.second + Self.second / 2 - wall % Self.second
        }
        offset = b.decode(halt.registers).secondsSince1970 &- Int64(bitPattern: divider(wall) / Self.second)
        accounted = divider(wall)
    }

    private mutating func setTime(_ index: UInt8, _ value: UInt8, _ wall: UInt64) {
        account(wall)
        let isRunning = halt == nil
        var new = halt ?? Halt(registers: registers(wall), dividerWasReset: false)
        new.registers[index] = value
        halt = new
        if isRunning { resume(wall) }
    }

    /// Whether the time is about to change. The new time is there when this ends.
    private func isUpdating(_ wall: UInt64) -> Bool {
        halt == nil && divider(wall) % Self.second >= Self.second - Self.updateNanoseconds
    }

    // MARK: Interrupts

    /// The level of IRQ 8.
    public var interruptPending: Bool { flags.rawValue & b.rawValue & 0x70 != 0 }

    /// Works out the flags until now.
    public mutating func account(_ wall: UInt64) {
        let now = divider(wall)
        // Somebody set the host's clock back: nothing is due from a time that comes again.
        let start = min(accounted, now)
        accounted = now
        guard !isDividerReset, now > start else { return }
        if let period = a.periodTicks,
            Self.crystal.ticks(at: now) / period != Self.crystal.ticks(at: start) / period
        {
            flags.insert(.pf)
        }
        guard halt == nil else { return }
        if now / Self.second != start / Self.second { flags.insert(.uf) }
        if let wait = secondsToAlarm(after: seconds(start)), wait <= now / Self.second - start / Self.second {
            flags.insert(.af)
        }
    }

    /// Nanoseconds from now until `account` should be called next for the sake of an interrupt. While one is pending
    /// nothing can be added to it.
    public func nanosecondsToInterrupt(_ wall: UInt64) -> UInt64? {
        guard !interruptPending, !isDividerReset else { return nil }
        let now = divider(wall)
        var next: UInt64?
        func consider(_ time: UInt64) { next = min(next ?? .max, time &- now) }
        if b.contains(.pie), let period = a.periodTicks {
            consider(Self.crystal.nanoseconds(at: (Self.crystal.ticks(at: now) / period &+ 1) &* period))
        }
        guard halt == nil else { return next }
        let second = now - now % Self.second
        if b.contains(.uie) { consider(second &+ Self.second) }
        if b.contains(.aie), let wait = secondsToAlarm(after: seconds(now)) { consider(second &+ wait &* Self.second) }
        return next
    }

    /// Seconds from a time to the next that matches the alarm: 1 to 86 400.
    private func secondsToAlarm(after time: Int64) -> UInt64? {
        func matches(_ alarm: UInt8, _ value: UInt8) -> Bool { alarm >= 0xC0 || alarm == value }
        let start = (time % 86_400 + 86_400) % 86_400
        var next = start + 1
        while next <= start + 86_400 {
            let hour = next / 3600 % 24
            if !matches(alarmHours, b.encodeHour(hour)) {
                next = (next / 3600 + 1) * 3600
            } else if !matches(alarmMinutes, b.encode(next / 60 % 60)) {
                next = (next / 60 + 1) * 60
            } else if !matches(alarmSeconds, b.encode(next % 60)) {
                next += 1
            } else {
                return UInt64(next - start)
            }
        }
        return nil
    }

    /// The RESET pin: interrupts off; time, alarm and memory stay (datasheet, "RESET").
    public mutating func reset() {
        b.subtract([.pie, .aie, .uie, .sqwe])
        flags = []
        index = 0
    }

    // MARK: Ports

    /// Port 0x70. Bit 7 masks NMI on a PC and is not the chip's.
    public mutating func select(_ value: UInt8) { index = value & 0x7F }

    /// Port 0x71.
    public mutating func read(_ wall: UInt64) -> UInt8 {
        switch index {
        case 1: return alarmSeconds
        case 3: return alarmMinutes
        case 5: return alarmHours
        case 0x0A: return isUpdating(wall) ? a.union(.uip).rawValue : a.rawValue
        case 0x0B: return b.rawValue
        case 0x0C:
            account(wall)
            let value = interruptPending ? flags.union(.irqf) : flags
            flags = []
            return value.rawValue
        // VRT: the battery is good.
        case 0x0D: return 0x80
        case let index where TimeRegisters.isTime(index): return registers(wall)[index]
        default: return memory[index]
        }
    }

    /// Port 0x71.
    public mutating func write(_ value: UInt8, _ wall: UInt64) {
        switch index {
        case 1:
            account(wall)
            alarmSeconds = value
        case 3:
            account(wall)
            alarmMinutes = value
        case 5:
            account(wall)
            alarmHours = value
        case 0x0A: control(wall) { $0.a = RegisterA(rawValue: value).intersection(.writable) }
        case 0x0B:
            control(wall) { chip in
                chip.b = RegisterB(rawValue: value)
                // "UIE is cleared by SET going high".
                if chip.b.contains(.set) { chip.b.remove(.uie) }
            }
        case 0x0C, 0x0D: break
        case let index where TimeRegisters.isTime(index): setTime(index, value, wall)
        default: memory[index] = value
        }
    }
}
