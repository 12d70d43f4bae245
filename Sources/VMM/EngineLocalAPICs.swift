/// What signals an interrupt: a word that is written to an address (SDM Vol. 3, 12.11).
public struct MessageSignal: Hashable, Sendable {
    public var address: UInt64
    public var data: UInt32

    public init(address: UInt64, data: UInt32) {
        self.address = address
        self.data = data
    }
}

/// The local APICs of an engine that has them itself, as the kernel's KVM does. Devices, the I/O APIC and the 8259 pair stay
/// the machine's: they send messages, and what the boot CPU takes past its APIC still comes from `Wiring.interrupts`.
///
/// A CPU with such an APIC halts inside of `VirtualCPU.run`: `Exit.halt` then says that nothing but an NMI can end the halt.
public protocol EngineLocalAPICs: AnyObject, Sendable {
    /// Sends a message. Any thread; may be called with a device's lock held, waits for no CPU and calls nobody back.
    func deliver(_ signal: MessageSignal)
    /// Keeps back what `deliver` is given from now on, and returns when nothing is on its way any more: before a CPU's state is read
    /// that is written back later, which would undo what arrived in between. The CPU stands still until `sendHeldBack`.
    func holdBack()
    /// Sends what was kept back, each signal once, in the order of their first arrival: a request that is made twice before
    /// a CPU takes it is one. Later ones are sent at once again.
    func sendHeldBack()
    /// Says what the I/O APIC's pins send, so that the end of their levels can be told. As `deliver`.
    func setPins(_ signals: [MessageSignal])
    /// Sets what hears of the end of a level's interrupt, by its vector. It is called on the CPU's thread, without locks.
    func onEndOfInterrupt(_ tell: @escaping @Sendable (UInt8) -> Void)
}

/// The local APIC of a CPU whose engine has it itself.
public struct LocalAPICState: Codable, Hashable, Sendable {
    /// Bytes of registers in the page (SDM Vol. 3, 12.4.1).
    public static let byteCount = 1024

    /// IA32_APIC_BASE.
    public var base: UInt64
    /// The page's registers. The current count is what is left of the timer's.
    public var registers: [UInt8]
    /// IA32_TSC_DEADLINE.
    public var deadline: UInt64 = 0

    public init(base: UInt64, registers: [UInt8], deadline: UInt64) {
        self.base = base
        self.registers = registers
        self.deadline = deadline
    }

    /// What a PC's firmware leaves behind after power-on: the boot CPU gets the 8259 pair's interrupts through LINT0, NMIs
    /// through LINT1 (SDM Vol. 3, 12.4.7.1; MP specification 3.6.2.2).
    public static let virtualWire: Self = {
        var state = Self(base: CPUPolicy.apicBaseValue | 1 << 11, registers: Array(repeating: 0, count: byteCount), deadline: 0)
        state[0xE0] = 0xFFFF_FFFF
        state[spuriousVector] = 0x1FF
        for entry in stride(from: 0x320, through: 0x370, by: 16) { state[entry] = 1 << 16 }
        state[lint0] = 7 << 8
        state[lint1] = 4 << 8
        return state
    }()

    public static let taskPriority = 0x80
    public static let spuriousVector = 0xF0
    public static let lint0 = 0x350
    public static let lint1 = 0x360

    /// A register by its offset in the page; one that is not there reads 0.
    public subscript(offset: Int) -> UInt32 {
        get {
            guard offset >= 0 && offset <= registers.count - 4 else { return 0 }
            return (0..<4).reduce(0) { $0 | UInt32(registers[offset + $1]) << UInt32($1 * 8) }
        }
        set {
            guard offset >= 0 && offset <= registers.count - 4 else { return }
            for byte in 0..<4 { registers[offset + byte] = UInt8(truncatingIfNeeded: newValue >> UInt32(byte * 8)) }
        }
    }

    /// Whether INTR of the 8259 pair is the CPU's: through LINT0, or because the APIC is off.
    public var passesExternal: Bool { base & 1 << 11 == 0 || self[Self.lint0] & 0x1_0700 == 7 << 8 }

    /// Whether the I/O APIC is not to hear of the end of interrupts here (SDM Vol. 3, 12.8.5).
    public var suppressesBroadcasts: Bool { self[Self.spuriousVector] & 1 << 12 != 0 }
}
