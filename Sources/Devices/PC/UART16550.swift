/// The 16550A as the guest sees it: a value, with no clock, descriptor or thread (National PC16550D datasheet).
///
/// Modelled: both FIFOs, trigger levels, all interrupts, loopback, modem status changes, break, divisor latch,
/// scratch register. Not modelled: the speed and form of characters; no character is ever damaged on the way.
///
/// Quirks: sending takes no time, so the transmitter is always empty. The character timeout comes at once instead
/// of after four character times: the host has nothing more to give at that moment, and a shell answers sooner.
///
/// What a hostile guest could try: nothing here grows; the receiver holds sixteen bytes and the rest stays with
/// the host.
public struct UART16550: Codable, Hashable, Sendable {
    public private(set) var ier: IER = []
    public private(set) var fcr: FCR = []
    public private(set) var lcr: LCR = []
    public private(set) var mcr: MCR = []
    public private(set) var scratch: UInt8 = 0
    /// 1 is 115 200 baud on a PC's 1.8432 MHz crystal.
    public private(set) var divisor: UInt16 = 12
    public private(set) var receiver = ReceiverFIFO()
    /// The lines from the other side: a terminal that is always there.
    public private(set) var modemInputs: MSR
    private var modemDeltas: MSR = []
    private var hasOverrun = false
    /// The transmitter became empty, or its interrupt was enabled, and IIR has not shown it yet.
    private var transmitterEmptied = false
    /// The driver had RTS up while it took receive interrupts: from then on dropping RTS means "wait".
    private var controlsFlow = false
    /// Reads of LSR in a row that found nothing to receive.
    private var idlePolls: UInt8 = 0

    /// - Parameter modemInputs: the levels of CTS, DSR, RI and DCD, which a reset does not change.
    public init(modemInputs: MSR = [.cts, .dsr, .dcd]) { self.modemInputs = modemInputs.intersection(.lines) }

    // MARK: Derived registers

    public var lsr: LSR {
        var lsr: LSR = [.thre, .temt]
        if !receiver.isEmpty { lsr.insert(.dr) }
        if hasOverrun { lsr.insert(.oe) }
        if receiver.isFirstMarked { lsr.insert(.bi) }
        if fcr.contains(.enable), receiver.hasMarks { lsr.insert(.fifoError) }
        return lsr
    }

    public var msr: MSR { modemLines.union(modemDeltas) }

    /// The modem lines as the chip sees them; in loopback its own outputs.
    private var modemLines: MSR {
        guard mcr.contains(.loop) else { return modemInputs }
        var lines: MSR = []
        if mcr.contains(.rts) { lines.insert(.cts) }
        if mcr.contains(.dtr) { lines.insert(.dsr) }
        if mcr.contains(.out1) { lines.insert(.ri) }
        if mcr.contains(.out2) { lines.insert(.dcd) }
        return lines
    }

    /// The interrupt with the highest priority.
    public var interrupt: InterruptID {
        if ier.contains(.elsi), hasOverrun || receiver.isFirstMarked { return .lineStatus }
        if ier.contains(.erbfi), !receiver.isEmpty {
            let level = fcr.contains(.enable) ? fcr.triggerLevel : 1
            return receiver.count >= level ? .receivedData : .characterTimeout
        }
        if ier.contains(.etbei), transmitterEmptied { return .transmitterEmpty }
        if ier.contains(.edssi), !modemDeltas.isEmpty { return .modemStatus }
        return .none
    }

    /// The level of the line to the interrupt controller. OUT2 is off the pin in loopback, and then lets nothing
    /// through.
    public var interruptPending: Bool {
        mcr.intersection([.out2, .loop]) == .out2 && interrupt != .none
    }

    // MARK: Input from the host

    /// Polls without input after which a guest counts as waiting for it.
    private static let idlePollLimit: UInt8 = 32

    /// Whether the guest is ready to receive: it raised RTS, or enabled the interrupt, or keeps polling. A terminal
    /// holds its input back until then, since a driver clears the FIFOs when it starts. A driver that drops RTS while
    /// it takes interrupts asks the other side to wait, as with any hardware flow control.
    public var isListening: Bool {
        guard !mcr.contains(.loop) else { return false }
        if controlsFlow { return mcr.contains(.rts) }
        return mcr.contains(.rts) || ier.contains(.erbfi) || idlePolls >= Self.idlePollLimit
    }

    /// What a driver sets once, when it opens the line; the transmitter's interrupt comes and goes with each text.
    var setUp: UInt32 {
        UInt32(lcr.rawValue) << 24 | UInt32(mcr.rawValue) << 16 | UInt32(fcr.rawValue) << 8
            | UInt32(ier.intersection(.erbfi).rawValue)
    }

    private mutating func noteFlowControl() {
        guard ier.contains(.erbfi) else {
            controlsFlow = false
            return
        }
        if mcr.intersection([.rts, .loop]) == .rts { controlsFlow = true }
    }

    /// How many bytes `receive` takes now.
    public var room: Int {
        guard isListening else { return 0 }
        return Int((fcr.contains(.enable) ? ReceiverFIFO.capacity : 1) - min(receiver.count, capacity))
    }

    private var capacity: UInt8 { fcr.contains(.enable) ? ReceiverFIFO.capacity : 1 }

    /// A byte arrives. Ignored without room.
    public mutating func receive(_ byte: UInt8) {
        if room > 0 { receiver.append(byte) }
    }

    /// A break arrives: a zero byte with BI. `false` when there was no room for it.
    public mutating func receiveBreak() -> Bool {
        guard room > 0 else { return false }
        receiver.append(0, isMarked: true)
        return true
    }

    /// The other side changed CTS, DSR, RI or DCD.
    public mutating func setModemInputs(_ lines: MSR) {
        changeModemLines { $0.modemInputs = lines.intersection(.lines) }
    }

    private mutating func changeModemLines(_ change: (inout Self) -> Void) {
        let before = modemLines
        change(&self)
        let changed = before.symmetricDifference(modemLines)
        if changed.contains(.cts) { modemDeltas.insert(.dcts) }
        if changed.contains(.dsr) { modemDeltas.insert(.ddsr) }
        if changed.contains(.dcd) { modemDeltas.insert(.ddcd) }
        if changed.contains(.ri), before.contains(.ri) { modemDeltas.insert(.teri) }
    }

    // MARK: Ports

    public mutating func read(_ register: Register) -> UInt8 {
        switch register {
        case .data:
            if lcr.contains(.dlab) { return UInt8(truncatingIfNeeded: divisor) }
            return receiver.removeFirst() ?? 0
        case .ier:
            return lcr.contains(.dlab) ? UInt8(truncatingIfNeeded: divisor >> 8) : ier.rawValue
        case .iir:
            let interrupt = interrupt
            if interrupt == .transmitterEmpty { transmitterEmptied = false }
            return interrupt.rawValue | (fcr.contains(.enable) ? 0xC0 : 0)
        case .lcr: return lcr.rawValue
        case .mcr: return mcr.rawValue
        case .lsr:
            let value = lsr
            hasOverrun = false
            receiver.unmarkFirst()
            if receiver.isEmpty, idlePolls < Self.idlePollLimit { idlePolls += 1 }
            return value.rawValue
        case .msr:
            let value = msr
            modemDeltas = []
            return value.rawValue
        case .scr: return scratch
        }
    }

    /// Returns the byte to put on the wire, if this write sends one. Then `finishSending` has to follow, after the
    /// interrupt line has been set from the state in between: an edge-triggered controller has to see it fall.
    public mutating func write(_ register: Register, _ value: UInt8) -> UInt8? {
        idlePolls = 0
        switch register {
        case .data where lcr.contains(.dlab):
            divisor = divisor & 0xFF00 | UInt16(value)
        case .data:
            return send(value)
        case .ier where lcr.contains(.dlab):
            divisor = divisor & 0x00FF | UInt16(value) << 8
        case .ier:
            let new = IER(rawValue: value).intersection(.writable)
            if !new.contains(.etbei) {
                transmitterEmptied = false
            } else if !ier.contains(.etbei) {
                // Enabling it with an empty transmitter is an interrupt; drivers test for that.
                transmitterEmptied = true
            }
            ier = new
            noteFlowControl()
        case .iir: control(FCR(rawValue: value))
        case .lcr: lcr = LCR(rawValue: value)
        case .mcr:
            changeModemLines { $0.mcr = MCR(rawValue: value).intersection(.writable) }
            noteFlowControl()
        // LSR can be written in the datasheet for factory tests only, MSR not at all.
        case .lsr, .msr: break
        case .scr: scratch = value
        }
        return nil
    }

    private mutating func send(_ value: UInt8) -> UInt8? {
        transmitterEmptied = false
        guard mcr.contains(.loop) else { return value }
        if receiver.count < capacity {
            receiver.append(value)
        } else {
            hasOverrun = true
        }
        finishSending()
        return nil
    }

    /// The byte has left.
    public mutating func finishSending() { transmitterEmptied = ier.contains(.etbei) }

    /// FCR: switching the FIFOs on or off empties them; the other bits count only when they are on.
    private mutating func control(_ new: FCR) {
        if new.contains(.enable) != fcr.contains(.enable) || new.isSuperset(of: [.enable, .clearReceiver]) {
            receiver.removeAll()
        }
        fcr = new.contains(.enable) ? new.intersection(.kept) : []
    }
}
