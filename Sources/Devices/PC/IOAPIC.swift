/// The I/O APIC as a value (82093AA datasheet; EOI register as in later ones): 24 pins, each with an entry that says what
/// message its interrupt becomes.
///
/// Quirks: polarity is kept and has no effect, lines have levels of their own. Pins do not deliver external
/// interrupts: the 8259 pair's way is LINT0.
///
/// Every bit pattern of every field is a valid state: neither a guest nor a damaged snapshot can make it trap.
public struct IOAPIC: Codable, Hashable, Sendable {
    public static let pinCount = 24

    /// Bits of an entry of the redirection table (datasheet, 3.2.4).
    public enum Entry {
        public static let vector: UInt64 = 0xFF
        public static let isLogical: UInt64 = 1 << 11
        public static let remoteIRR: UInt64 = 1 << 14
        public static let isLevel: UInt64 = 1 << 15
        public static let masked: UInt64 = 1 << 16
        static let writable: UInt64 = 0xFF00_0000_0001_AFFF
    }

    /// Registers behind IOREGSEL and IOWIN (datasheet, 3.2).
    private enum Index {
        static let id: UInt8 = 0
        static let version: UInt8 = 1
        static let arbitration: UInt8 = 2
        static let table: UInt8 = 0x10
    }

    private static let version: UInt32 = 0x20 | UInt32(pinCount - 1) << 16

    private let firmwareID: UInt8
    private var id: UInt8
    private var select: UInt8 = 0
    /// 24 are used.
    private var table = SIMD32<UInt64>(repeating: Entry.masked)
    /// The pins' levels.
    private var lines: UInt32 = 0

    /// - Parameter id: as firmware sets it.
    public init(id: UInt8) {
        firmwareID = id
        self.id = id & 0xF
    }

    /// Back to power-on. The devices' lines stay as they are.
    public mutating func reset() {
        let lines = lines
        self = IOAPIC(id: firmwareID)
        self.lines = lines
    }

    private func isHigh(_ pin: Int) -> Bool { lines & 1 &<< UInt32(pin & 31) != 0 }

    /// What the pin's entry says to send, masked or not.
    func message(ofPin pin: Int) -> InterruptMessage? {
        let entry = table[pin & 31]
        guard let delivery = InterruptMessage.Delivery(rawValue: UInt8(truncatingIfNeeded: entry >> 8 & 7)) else { return nil }
        return InterruptMessage(
            delivery, vector: UInt8(truncatingIfNeeded: entry), destination: UInt32(truncatingIfNeeded: entry >> 56),
            isLogical: entry & Entry.isLogical != 0, isLevel: entry & Entry.isLevel != 0)
    }

    /// The vector that a pin requests, if it may and does so as a fixed interrupt.
    public func vector(ofPin pin: Int) -> UInt8? {
        guard pin >= 0 && pin < Self.pinCount, table[pin] & Entry.masked == 0, table[pin] & 0x600 == 0 else { return nil }
        return UInt8(truncatingIfNeeded: table[pin])
    }

    /// A level that is up, is let through and was not taken yet: it is now.
    private mutating func takeLevel(_ pin: Int) -> InterruptMessage? {
        let entry = table[pin & 31]
        guard isHigh(pin), entry & (Entry.isLevel | Entry.masked | Entry.remoteIRR) == Entry.isLevel else { return nil }
        // Fixed and lowest priority are ended by an EOI, the others by nobody.
        if entry & 0x600 == 0 { table[pin & 31] |= Entry.remoteIRR }
        return message(ofPin: pin)
    }

    /// Sets one pin's level.
    /// - Returns: what to send.
    public mutating func setPin(_ pin: Int, _ asserted: Bool) -> InterruptMessage? {
        guard pin >= 0 && pin < Self.pinCount else { return nil }
        let rises = asserted && !isHigh(pin)
        if asserted { lines |= 1 &<< UInt32(pin) } else { lines &= ~(1 &<< UInt32(pin)) }
        if table[pin] & Entry.isLevel != 0 { return takeLevel(pin) }
        // An edge on a masked pin is lost.
        return rises && table[pin] & Entry.masked == 0 ? message(ofPin: pin) : nil
    }

    /// Hears that an interrupt has ended, of one pin.
    /// - Returns: what to send, since the line is still up.
    public mutating func endInterrupt(_ vector: UInt8, pin: Int) -> InterruptMessage? {
        let mask = Entry.isLevel | Entry.remoteIRR
        guard pin >= 0 && pin < Self.pinCount, table[pin] & mask == mask, table[pin] & Entry.vector == UInt64(vector) else {
            return nil
        }
        table[pin] &= ~Entry.remoteIRR
        return takeLevel(pin)
    }

    // MARK: Registers

    /// IOREGSEL.
    public var selected: UInt8 {
        get { select }
        set { select = newValue }
    }

    /// Reads IOWIN.
    public func read() -> UInt32 {
        switch select {
        case Index.id, Index.arbitration: return UInt32(id) << 24
        case Index.version: return Self.version
        case Index.table..<Index.table + UInt8(Self.pinCount * 2):
            let entry = table[Int((select - Index.table) / 2)]
            return UInt32(truncatingIfNeeded: select & 1 == 0 ? entry : entry >> 32)
        default: return 0
        }
    }

    /// Writes IOWIN.
    /// - Returns: what to send: a level that was waiting.
    public mutating func write(_ value: UInt32) -> InterruptMessage? {
        switch select {
        case Index.id: id = UInt8(truncatingIfNeeded: value >> 24 & 0xF)
        case Index.table..<Index.table + UInt8(Self.pinCount * 2):
            let pin = Int((select - Index.table) / 2)
            let shift: UInt64 = select & 1 == 0 ? 0 : 32
            let mask = Entry.writable & 0xFFFF_FFFF << shift
            table[pin] = table[pin] & ~mask | UInt64(value) << shift & mask
            // Software without an EOI register clears the remote IRR by making the pin an edge's for a moment.
            if table[pin] & Entry.isLevel == 0 { table[pin] &= ~Entry.remoteIRR }
            return takeLevel(pin)
        default: break
        }
        return nil
    }
}
