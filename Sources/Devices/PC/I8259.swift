/// The 8259A programmable interrupt controller as a value (Intel 8259A datasheet; edge/level control as in the
/// 82371SB, section 2.5.3).
///
/// Modelled: ICW1-4, OCW1-3, edge and level inputs, all end-of-interrupt and rotation commands, special mask,
/// poll, automatic EOI and special fully nested mode. A chip that was never initialised asserts nothing.
///
/// Quirks: an edge stays latched when its line falls before it is acknowledged, so that one-shot sources need no
/// acknowledgement (the datasheet answers it with IR7). LTIM is ignored, as in all PCs with an ELCR. ICW3 and the
/// MCS-80 mode are accepted and have no effect: the cascade is wired and the CPU is an x86.
///
/// Every bit pattern of every field is a valid state: neither a guest nor a damaged snapshot can make it trap.
public struct I8259: Codable, Hashable, Sendable {
    /// What the next write to the odd port means.
    public enum Initialization: UInt8, Codable, Sendable {
        /// Power-on: no ICW1 seen yet.
        case never
        case expectsICW2, expectsICW3, expectsICW4
        case done
    }

    /// Initialization command word 1 (datasheet, figure 7).
    public struct ICW1: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let ic4 = ICW1(rawValue: 0x01)
        public static let sngl = ICW1(rawValue: 0x02)
        public static let ltim = ICW1(rawValue: 0x08)
        /// Set in ICW1 itself; what tells it from OCW2 and OCW3.
        public static let select = ICW1(rawValue: 0x10)
    }

    /// Initialization command word 4.
    public struct ICW4: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let upm = ICW4(rawValue: 0x01)
        public static let aeoi = ICW4(rawValue: 0x02)
        public static let ms = ICW4(rawValue: 0x04)
        public static let buf = ICW4(rawValue: 0x08)
        public static let sfnm = ICW4(rawValue: 0x10)
    }

    public private(set) var initialization = Initialization.never
    public private(set) var icw1: ICW1 = []
    public private(set) var icw4: ICW4 = []
    public private(set) var vectorBase: UInt8 = 0
    public private(set) var imr: UInt8 = 0
    public private(set) var isr: UInt8 = 0
    /// Edges seen and not acknowledged; meaningful for edge-triggered inputs only.
    public private(set) var edges: UInt8 = 0
    /// The inputs' levels.
    public private(set) var lines: UInt8 = 0
    public private(set) var elcr: UInt8 = 0
    /// The input with the lowest priority.
    public private(set) var lowest: UInt8 = 7
    public private(set) var rotatesOnAutoEOI = false
    public private(set) var specialMask = false
    public private(set) var readsISR = false
    public private(set) var polls = false

    /// Inputs that carry a slave's INT output: they follow it, so that a request which a slave withdraws is
    /// withdrawn here as well.
    public let slaves: UInt8
    /// ELCR bits that exist: IRQ 0, 1, 2, 8 and 13 are always edge-triggered.
    public let levelCapable: UInt8

    public init(slaves: UInt8, levelCapable: UInt8) {
        self.slaves = slaves
        self.levelCapable = levelCapable
    }

    /// Requests: latched edges, and levels as they are now.
    public var irr: UInt8 {
        let level = elcr | slaves
        return edges & ~level | lines & level
    }

    /// Whether INT is asserted.
    public var isInterrupting: Bool { best != nil }

    /// Moves inputs so that the highest priority is bit 0.
    private func rotated(_ mask: UInt8) -> UInt8 {
        let shift = (lowest &+ 1) & 7
        return mask &>> shift | mask &<< (8 &- shift)
    }

    /// 0 for the highest, 8 for none.
    private func priority(of mask: UInt8) -> Int { rotated(mask).trailingZeroBitCount }

    private func input(atPriority priority: Int) -> UInt8 {
        (lowest &+ 1 &+ UInt8(truncatingIfNeeded: priority)) & 7
    }

    /// The input that would be acknowledged now.
    private var best: UInt8? {
        let requests = irr & ~imr
        guard requests != 0, initialization == .done else { return nil }
        var blocking = isr
        if specialMask { blocking &= ~imr }
        if icw4.contains(.sfnm) { blocking &= ~slaves }
        let wanted = priority(of: requests)
        return wanted < priority(of: blocking) ? input(atPriority: wanted) : nil
    }

    /// Sets one input's level.
    public mutating func setInput(_ number: UInt8, _ asserted: Bool) {
        let bit = 1 as UInt8 &<< (number & 7)
        if asserted {
            edges |= bit & ~(lines | elcr | slaves)
            lines |= bit
        } else {
            lines &= ~bit
        }
    }

    /// The CPU's acknowledgement: moves the best request into service and returns its input; `nil` when there is
    /// none, which the chip answers with the vector of IR7 and no bit in service.
    public mutating func accept() -> UInt8? {
        guard let number = best else { return nil }
        let bit = 1 as UInt8 &<< number
        edges &= ~bit
        if icw4.contains(.aeoi) {
            if rotatesOnAutoEOI { lowest = number }
        } else {
            isr |= bit
        }
        return number
    }

    /// The vector of an input; of IR7, the spurious one, for `nil`.
    public func vector(of number: UInt8?) -> UInt8 { vectorBase | (number ?? 7) & 7 }

    /// Whether an input is requested and not masked: a further edge on it would be lost.
    public func isWaiting(_ number: UInt8) -> Bool { irr & ~imr & 1 &<< (number & 7) != 0 }

    /// Back to power-on. The devices' lines stay as they are.
    public mutating func reset() {
        let lines = lines
        self = I8259(slaves: slaves, levelCapable: levelCapable)
        self.lines = lines
    }

    // MARK: Ports

    /// A read takes part in polling, so it may change the chip.
    public mutating func read(odd: Bool) -> UInt8 {
        if polls {
            polls = false
            return accept().map { 0x80 | $0 } ?? 0
        }
        if odd { return imr }
        return readsISR ? isr : irr
    }

    public mutating func write(odd: Bool, _ value: UInt8) {
        switch (odd, initialization) {
        case (false, _) where value & ICW1.select.rawValue != 0:
            begin(ICW1(rawValue: value))
        case (false, _):
            if value & 0x08 == 0 { command2(value) } else { command3(value) }
        case (true, .expectsICW2):
            vectorBase = value & 0xF8
            initialization = icw1.contains(.sngl) ? afterICW3 : .expectsICW3
        case (true, .expectsICW3):
            initialization = afterICW3
        case (true, .expectsICW4):
            icw4 = ICW4(rawValue: value & 0x1F)
            initialization = .done
        case (true, .done), (true, .never):
            imr = value
        }
    }

    private var afterICW3: Initialization { icw1.contains(.ic4) ? .expectsICW4 : .done }

    /// ICW1 (datasheet, "Initialization Command Words 1 and 2"). The edge detectors are reset: inputs have to
    /// fall and rise again.
    private mutating func begin(_ word: ICW1) {
        icw1 = word
        icw4 = []
        initialization = .expectsICW2
        imr = 0
        isr = 0
        edges = 0
        lowest = 7
        rotatesOnAutoEOI = false
        specialMask = false
        readsISR = false
        polls = false
    }

    /// OCW2: end of interrupt and rotation.
    private mutating func command2(_ value: UInt8) {
        let number = value & 7
        switch value >> 5 {
        case 0b000: rotatesOnAutoEOI = false
        case 0b100: rotatesOnAutoEOI = true
        case 0b001: endOfInterrupt()
        case 0b101:
            if let ended = endOfInterrupt() { lowest = ended }
        case 0b011: isr &= ~(1 &<< number)
        case 0b111:
            isr &= ~(1 &<< number)
            lowest = number
        case 0b110: lowest = number
        default: break
        }
    }

    /// Ends the interrupt with the highest priority. In special mask mode masked ones are left alone.
    @discardableResult
    private mutating func endOfInterrupt() -> UInt8? {
        let candidates = specialMask ? isr & ~imr : isr
        guard candidates != 0 else { return nil }
        let number = input(atPriority: priority(of: candidates))
        isr &= ~(1 &<< number)
        return number
    }

    /// OCW3: which register reads show, poll, special mask.
    private mutating func command3(_ value: UInt8) {
        polls = value & 0x04 != 0
        if !polls, value & 0x02 != 0 { readsISR = value & 0x01 != 0 }
        if value & 0x40 != 0 { specialMask = value & 0x20 != 0 }
    }

    public mutating func writeELCR(_ value: UInt8) {
        elcr = value & levelCapable
        edges &= ~elcr
    }
}

/// The two chips of a PC: the slave's INT is the master's IR2.
public struct I8259Cascade: Codable, Hashable, Sendable {
    public private(set) var master = I8259(slaves: 0x04, levelCapable: 0xF8)
    public private(set) var slave = I8259(slaves: 0, levelCapable: 0xDE)

    public init() {}

    /// Whether INTR is asserted.
    public var isInterrupting: Bool { master.isInterrupting }

    /// Sets the level of IRQ 0 to 15. IRQ 2 does not exist on a PC; other numbers are nobody's.
    public mutating func setLine(_ number: UInt8, _ asserted: Bool) {
        switch number {
        case 2: break
        case 0..<8: master.setInput(number, asserted)
        case 8..<16: changeSlave { $0.setInput(number & 7, asserted) }
        default: break
        }
    }

    public mutating func changeMaster<R>(_ change: (inout I8259) -> R) -> R { change(&master) }

    public mutating func changeSlave<R>(_ change: (inout I8259) -> R) -> R {
        let result = change(&slave)
        master.setInput(2, slave.isInterrupting)
        return result
    }

    /// The INTA cycle.
    public mutating func acknowledge() -> UInt8 {
        let number = master.accept()
        guard number == 2, !master.icw1.contains(.sngl) else { return master.vector(of: number) }
        return changeSlave { slave in
            let number = slave.accept()
            return slave.vector(of: number)
        }
    }

    /// Whether IRQ `number` is requested, not masked and not acknowledged yet.
    public func isWaiting(_ number: UInt8) -> Bool {
        number < 8 ? master.isWaiting(number) : slave.isWaiting(number & 7)
    }

    public mutating func reset() {
        master.reset()
        changeSlave { $0.reset() }
    }
}
