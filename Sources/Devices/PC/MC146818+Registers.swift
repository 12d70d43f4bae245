/// The registers of the MC146818A with the datasheet's names.
extension MC146818 {
    /// Register A: divider and rate. UIP is derived, not kept.
    public struct RegisterA: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let uip = RegisterA(rawValue: 0x80)
        /// DV2 and DV1 together hold the divider in reset, whatever DV0 is.
        public static let dividerReset = RegisterA(rawValue: 0x60)
        public static let writable = RegisterA(rawValue: 0x7F)

        /// Ticks of the 32.768 kHz crystal between periodic interrupts; `nil` for none. The two fastest rates of
        /// other crystals give 256 and 128 Hz (table 5).
        public var periodTicks: UInt64? {
            switch rawValue & 0x0F {
            case 0: nil
            case 1: 128
            case 2: 256
            case let rate: 1 << UInt64(rate - 1)
            }
        }
    }

    /// Register B: format and interrupt enables, whose bits stand where register C has the flags.
    public struct RegisterB: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let dse = RegisterB(rawValue: 0x01)
        /// 24-hour mode.
        public static let h24 = RegisterB(rawValue: 0x02)
        /// Binary instead of BCD.
        public static let dm = RegisterB(rawValue: 0x04)
        public static let sqwe = RegisterB(rawValue: 0x08)
        public static let uie = RegisterB(rawValue: 0x10)
        public static let aie = RegisterB(rawValue: 0x20)
        public static let pie = RegisterB(rawValue: 0x40)
        public static let set = RegisterB(rawValue: 0x80)
    }

    /// Register C: what happened since it was read.
    public struct RegisterC: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let uf = RegisterC(rawValue: 0x10)
        public static let af = RegisterC(rawValue: 0x20)
        public static let pf = RegisterC(rawValue: 0x40)
        public static let irqf = RegisterC(rawValue: 0x80)
    }

    /// The bytes of the time as they stand in the chip, in the format that register B says.
    public struct TimeRegisters: Codable, Hashable, Sendable {
        public var seconds: UInt8
        public var minutes: UInt8
        public var hours: UInt8
        public var weekday: UInt8
        public var day: UInt8
        public var month: UInt8
        public var year: UInt8
        /// At 0x32, where PCs agree to keep it.
        public var century: UInt8

        static func isTime(_ index: UInt8) -> Bool {
            switch index {
            case 0, 2, 4, 6, 7, 8, 9, 0x32: true
            default: false
            }
        }

        public subscript(_ index: UInt8) -> UInt8 {
            get {
                switch index {
                case 0: seconds
                case 2: minutes
                case 4: hours
                case 6: weekday
                case 7: day
                case 8: month
                case 9: year
                default: century
                }
            }
            set {
                switch index {
                case 0: seconds = newValue
                case 2: minutes = newValue
                case 4: hours = newValue
                case 6: weekday = newValue
                case 7: day = newValue
                case 8: month = newValue
                case 9: year = newValue
                default: century = newValue
                }
            }
        }
    }
}

extension MC146818.RegisterB {
    func encode(_ value: Int64) -> UInt8 {
        let value = UInt8(truncatingIfNeeded: value)
        return contains(.dm) ? value : (value / 10) << 4 | value % 10
    }

    func decode(_ byte: UInt8) -> Int64 {
        contains(.dm) ? Int64(byte) : Int64(byte >> 4) * 10 + Int64(byte & 15)
    }

    /// Bit 7 is PM in 12-hour mode.
    func encodeHour(_ hour: Int64) -> UInt8 {
        guard !contains(.h24) else { return encode(hour) }
        return encode((hour + 11) % 12 + 1) | (hour >= 12 ? 0x80 : 0)
    }

    func decodeHour(_ byte: UInt8) -> Int64 {
        guard !contains(.h24) else { return decode(byte) }
        return decode(byte & 0x7F) % 12 + (byte & 0x80 != 0 ? 12 : 0)
    }

    func encode(_ time: CivilTime) -> MC146818.TimeRegisters {
        .init(
            seconds: encode(time.second), minutes: encode(time.minute), hours: encodeHour(time.hour),
            weekday: encode(time.weekday + 1), day: encode(time.day), month: encode(time.month),
            year: encode(time.year % 100), century: encode(time.year / 100))
    }

    func decode(_ registers: MC146818.TimeRegisters) -> CivilTime {
        CivilTime(
            year: decode(registers.century) * 100 + decode(registers.year), month: decode(registers.month),
            day: decode(registers.day), hour: decodeHour(registers.hours), minute: decode(registers.minutes),
            second: decode(registers.seconds))
    }
}
