/// The fixed hardware registers of ACPI as a value (ACPI 6.4, section 4.8.3): power management 1a event and control
/// blocks and the power management timer.
///
/// Modelled: power button, timer overflow, S5. ACPI is always on: there is no SMI command and SCI_EN reads one. Not
/// modelled: sleep states but S5, wake-up, general purpose events.
///
/// Every field may have any value: neither a guest nor a damaged snapshot can make it trap.
public struct ACPIRegisters: Codable, Hashable, Sendable {
    /// PM1 status and enable share their bits (tables 4.13 and 4.14).
    public struct Event: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        public static let timer = Event(rawValue: 0x0001)
        public static let busMaster = Event(rawValue: 0x0010)
        public static let globalLock = Event(rawValue: 0x0020)
        public static let powerButton = Event(rawValue: 0x0100)
        public static let sleepButton = Event(rawValue: 0x0200)
        public static let rtc = Event(rawValue: 0x0400)
        public static let wake = Event(rawValue: 0x8000)
        /// Events that can be enabled.
        public static let enables: Event = [.timer, .globalLock, .powerButton, .sleepButton, .rtc]
    }

    /// PM1 control (table 4.15).
    public struct Control: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        public static let sciEnable = Control(rawValue: 0x0001)
        public static let busMasterReload = Control(rawValue: 0x0002)
        public static let sleepType = Control(rawValue: 0x1C00)
        public static let sleepEnable = Control(rawValue: 0x2000)
        /// SCI_EN belongs to the hardware; SLP_EN and GBL_RLS read as zero.
        public static let kept: Control = [.busMasterReload, .sleepType]
    }

    /// The value of SLP_TYP that the DSDT's \_S5 names.
    public static let softOff: UInt16 = 5

    public private(set) var status: Event = []
    public private(set) var enable: Event = []
    private var control: Control = []
    /// 24 or 32.
    public let timerBits: UInt8
    /// Added to the clock's ticks.
    private var offset: UInt64 = 0
    /// The tick up to which overflows are accounted for.
    private var accounted: UInt64 = 0

    public init(timerBits: UInt8 = 24) { self.timerBits = timerBits }

    /// The level of the SCI.
    public var interruptPending: Bool { !status.intersection(enable).intersection(.enables).isEmpty }

    public mutating func pressPowerButton() { status.insert(.powerButton) }

    // MARK: Timer

    /// The bit whose change is an event.
    private var topBit: UInt64 { timerBits == 32 ? 31 : 23 }

    public func timer(_ now: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: (now &+ offset) & (2 << topBit - 1))
    }

    /// Works out TMR_STS until now, in ticks of the timer's crystal.
    public mutating func account(_ now: UInt64) {
        let time = now &+ offset
        if time >> topBit != accounted >> topBit { status.insert(.timer) }
        accounted = time
    }

    /// The tick at which `account` should be called next for the sake of an interrupt.
    public func nextOverflow(_ now: UInt64) -> UInt64? {
        guard enable.contains(.timer), !interruptPending else { return nil }
        return (((now &+ offset) >> topBit) &+ 1) << topBit &- offset
    }

    /// Moves the state to another clock.
    public mutating func shift(by ticks: UInt64) { offset = offset &- ticks }

    /// The timer keeps counting.
    public mutating func reset(_ now: UInt64) {
        account(now)
        status = []
        enable = []
        control = []
    }

    // MARK: Ports

    /// Bytes 0-1 status, 2-3 enable, 8-9 control, 12-15 timer; nothing in between.
    public mutating func read(_ offset: UInt16, _ now: UInt64) -> UInt8 {
        let shift = UInt16(offset & 1) * 8
        switch offset {
        case 0, 1:
            account(now)
            return UInt8(truncatingIfNeeded: status.rawValue >> shift)
        case 2, 3: return UInt8(truncatingIfNeeded: enable.rawValue >> shift)
        case 8, 9: return UInt8(truncatingIfNeeded: control.union(.sciEnable).rawValue >> shift)
        case 12...15: return UInt8(truncatingIfNeeded: timer(now) >> (UInt32(offset & 3) * 8))
        default: return 0xFF
        }
    }

    /// Returns whether the machine is to be switched off.
    public mutating func write(_ offset: UInt16, _ value: UInt8, _ now: UInt64) -> Bool {
        account(now)
        let shift = UInt16(offset & 1) * 8
        let bits = UInt16(value) << shift
        let mask: UInt16 = 0xFF << shift
        switch offset {
        case 0, 1: status.subtract(Event(rawValue: bits))
        case 2, 3: enable = Event(rawValue: enable.rawValue & ~mask | bits).intersection(.enables)
        case 8, 9:
            let new = Control(rawValue: control.rawValue & ~mask | bits)
            control = new.intersection(.kept)
            return offset == 9 && new.contains(.sleepEnable)
                && new.intersection(.sleepType).rawValue >> 10 == Self.softOff
        default: break
        }
        return false
    }
}
