import VMM

/// The local APIC of one CPU as a value (SDM Vol. 3, chapter 12; APM Vol. 2, chapter 16).
///
/// Modelled: xAPIC and x2APIC mode and disabled, all registers of both, priorities, fixed, NMI and external interrupts by
/// message, pin and timer, one-shot, periodic and TSC-deadline timer, suppressed EOI broadcasts, error status. Time is nanoseconds that
/// come in as a parameter.
///
/// Quirks: the ID register is read-only, as on CPUs since 2008. LVT entries of sensors and performance counters are there and never fire.
/// There is no CMCI entry. Levels of LINT0 and LINT1 in fixed mode count as edges. The delivery status always reads idle. A
/// periodic timer comes at most every 20 µs: ticks in between are lost, as they are for a CPU that is late.
///
/// Every bit pattern of every field is a valid state: neither a guest nor a damaged snapshot can make it trap.
public struct LocalAPIC: Codable, Hashable, Sendable {
    /// The local vector table, in the order of its registers from 0x320 on.
    public enum LVT: Int, CaseIterable, Sendable {
        case timer, thermal, performance, lint0, lint1, error

        static let masked: UInt32 = 1 << 16

        /// Bits that a guest may write (SDM Vol. 3, figure 12-8).
        var writable: UInt32 {
            switch self {
            case .timer: 0x7_00FF
            case .thermal, .performance: 0x1_07FF
            case .lint0, .lint1: 0x1_A7FF
            case .error: 0x1_00FF
            }
        }

        /// Delivery status, and the remote IRR of the pins.
        var readOnly: UInt32 { self == .lint0 || self == .lint1 ? 0x5000 : 0x1000 }
    }

    public enum Mode: Sendable { case disabled, xAPIC, x2APIC }

    /// Bits of the error status register (SDM Vol. 3, figure 12-9).
    public struct Errors: OptionSet, Codable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let sendIllegalVector = Errors(rawValue: 0x20)
        public static let receivedIllegalVector = Errors(rawValue: 0x40)
        public static let illegalRegister = Errors(rawValue: 0x80)
    }

    /// What a message or a pin comes to outside of the APIC.
    public enum Outcome: Hashable, Sendable {
        case none, nmi, initialize
    }

    /// The x2APIC id; its low 8 bits are the other's.
    public internal(set) var id: UInt32
    /// IA32_APIC_BASE.
    public private(set) var base: UInt64
    public private(set) var tpr: UInt8 = 0
    /// The logical id of xAPIC mode.
    var ldr: UInt8 = 0
    /// The model's four bits.
    var dfr: UInt8 = 0xF
    public internal(set) var svr: UInt32 = 0xFF
    public private(set) var isr = VectorSet()
    public private(set) var tmr = VectorSet()
    public private(set) var irr = VectorSet()
    /// As it reads: what the last write found.
    var esr: Errors = []
    var errors: Errors = []
    var icr: UInt64 = 0
    /// By `LVT.rawValue`.
    private var table = SIMD8<UInt32>(repeating: LVT.masked)
    var timer = APICTimer()

    /// As after power-on (SDM Vol. 3, 12.4.7.1): enabled by IA32_APIC_BASE, not by the spurious vector register.
    public init(id: UInt32, isBootProcessor: Bool) {
        self.id = id
        base = 0xFEE0_0000 | Base.enabled | (isBootProcessor ? Base.bootProcessor : 0)
    }

    /// Back to power-on.
    public mutating func reset() { self = LocalAPIC(id: id, isBootProcessor: base & Base.bootProcessor != 0) }

    /// What a PC's firmware leaves behind: software without APIC gets the 8259 pair's interrupts through it
    /// (SDM Vol. 3, 12.1; MP specification 3.6.2.2).
    public mutating func enterVirtualWireMode() {
        svr = 0x1FF
        self[.lint0] = UInt32(InterruptMessage.Delivery.external.rawValue) << 8
        self[.lint1] = UInt32(InterruptMessage.Delivery.nmi.rawValue) << 8
    }

    // MARK: Modes

    /// Bits of IA32_APIC_BASE (SDM Vol. 3, figures 12-5 and 12-26).
    enum Base {
        static let bootProcessor: UInt64 = 1 << 8
        static let x2APIC: UInt64 = 1 << 10
        static let enabled: UInt64 = 1 << 11
    }

    private static func mode(_ base: UInt64) -> Mode {
        base & Base.enabled == 0 ? .disabled : base & Base.x2APIC == 0 ? .xAPIC : .x2APIC
    }

    public var mode: Mode { Self.mode(base) }
    /// Where its registers lie in xAPIC mode.
    public var page: UInt64 { base & ~0xFFF }

    /// Writes IA32_APIC_BASE (SDM Vol. 3, 12.12.5).
    /// - Returns: `false` for #GP(0).
    public mutating func writeBase(_ value: UInt64, physicalAddressBits: UInt8) -> Bool {
        let reserved = 0x2FF | ~0 &<< UInt64(min(physicalAddressBits, 63))
        guard value & reserved == 0 else { return false }
        switch (mode, Self.mode(value)) {
        case (_, .disabled) where value & Base.x2APIC != 0: return false
        case (.x2APIC, .xAPIC), (.disabled, .x2APIC): return false
        case (.xAPIC, .x2APIC): icr &= 0xFFFF_FFFF
        case (.xAPIC, .disabled), (.x2APIC, .disabled): reset()
        default: break
        }
        base = value & ~Base.bootProcessor | base & Base.bootProcessor
        return true
    }

    var isSoftwareEnabled: Bool { svr & 0x100 != 0 }

    subscript(_ entry: LVT) -> UInt32 {
        get { table[entry.rawValue] }
        set { table[entry.rawValue] = newValue }
    }

    func isMasked(_ entry: LVT) -> Bool { self[entry] & LVT.masked != 0 }

    func delivery(_ entry: LVT) -> InterruptMessage.Delivery? { .init(rawValue: UInt8(truncatingIfNeeded: self[entry] >> 8 & 7)) }

    // MARK: Acceptance and priority

    /// The processor priority (SDM Vol. 3, 12.8.3.1).
    public var ppr: UInt8 {
        let inService = (isr.highest ?? 0) & 0xF0
        return tpr & 0xF0 >= inService ? tpr : inService
    }

    mutating func setTaskPriority(_ value: UInt8) { tpr = value }

    /// Whether it has an interrupt that the CPU may take.
    public var isInterrupting: Bool {
        guard let vector = irr.highest, mode != .disabled else { return false }
        return vector & 0xF0 > ppr & 0xF0
    }

    /// Whether INTR of the 8259 pair is the CPU's, past this APIC: through LINT0, or because it is off.
    public var passesExternal: Bool { mode == .disabled || !isMasked(.lint0) && delivery(.lint0) == .external }

    /// Moves the best request into service; the spurious vector when there is none any more (SDM Vol. 3, 12.9).
    public mutating func acknowledge() -> UInt8 {
        guard isInterrupting, let vector = irr.highest else { return UInt8(truncatingIfNeeded: svr) }
        irr.remove(vector)
        isr.insert(vector)
        return vector
    }

    /// Ends the best interrupt in service (SDM Vol. 3, 12.8.5).
    /// - Returns: the vector, where I/O APICs are to hear of it.
    mutating func endInterrupt() -> UInt8? {
        guard let vector = isr.highest else { return nil }
        isr.remove(vector)
        return tmr.contains(vector) && svr & 1 << 12 == 0 ? vector : nil
    }

    /// Takes a fixed interrupt, unless software has turned the APIC off (SDM Vol. 3, 12.4.7.2).
    mutating func request(_ vector: UInt8, isLevel: Bool) {
        guard isSoftwareEnabled, mode != .disabled else { return }
        guard vector >= 16 else { return report(.receivedIllegalVector) }
        irr.insert(vector)
        if isLevel { tmr.insert(vector) } else { tmr.remove(vector) }
    }

    /// Notes an error, and interrupts for it (SDM Vol. 3, 12.5.3).
    mutating func report(_ error: Errors) {
        guard !errors.contains(error) else { return }
        errors.insert(error)
        if !isMasked(.error) { request(UInt8(truncatingIfNeeded: self[.error]), isLevel: false) }
    }

    // MARK: Messages and pins

    /// The logical id of x2APIC mode: cluster and bit (SDM Vol. 3, 12.12.10.2).
    var wideLogicalID: UInt32 { (id & ~0xF) << 12 | 1 &<< (id & 0xF) }

    /// Whether a message is for this one (SDM Vol. 3, 12.6.2). Shorthands are the sender's.
    public func isDestination(of message: InterruptMessage) -> Bool {
        guard mode != .disabled else { return false }
        let destination = message.destination
        if message.isBroadcast { return true }
        guard message.isLogical else { return destination == id }
        if mode == .x2APIC {
            return destination >> 16 == wideLogicalID >> 16 && destination & wideLogicalID & 0xFFFF != 0
        }
        let own = UInt32(ldr)
        // Flat model, else clusters of four.
        if dfr == 0xF { return destination & own & 0xFF != 0 }
        let isCluster = destination >> 4 & 0xF == own >> 4 || destination >> 4 & 0xF == 0xF
        return isCluster && destination & own & 0xF != 0
    }

    /// Takes a message that is for this one. There is no system management mode, an external interrupt comes from the
    /// 8259 pair by its pin alone, and a CPU that runs ignores a start-up message.
    public mutating func accept(_ message: InterruptMessage) -> Outcome {
        switch message.delivery {
        case .fixed, .lowestPriority: request(message.vector, isLevel: message.isLevel)
        case .nmi: return .nmi
        case .initialize: return .initialize
        case .smi, .startUp, .external: break
        }
        return .none
    }

    /// LINT0 or LINT1 rises. An external interrupt is not taken here, but by `passesExternal`.
    public mutating func raise(_ pin: LVT) -> Outcome {
        // Without APIC they are INTR and NMI.
        guard mode != .disabled else { return pin == .lint1 ? .nmi : .none }
        guard !isMasked(pin) else { return .none }
        switch delivery(pin) {
        case .fixed: request(UInt8(truncatingIfNeeded: self[pin]), isLevel: false)
        case .nmi: return .nmi
        case .initialize: return .initialize
        default: break
        }
        return .none
    }
}
