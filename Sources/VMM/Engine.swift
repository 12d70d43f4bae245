/// Why a virtual CPU stopped running. Values only, never an engine's own types.
public enum Exit: Hashable, Sendable {
    /// HLT; run again when `InterruptSource.isPending`, an NMI or a stop request arrives.
    /// With interrupts disabled nothing but NMI or reset ends it. An engine with local APICs of its own says only that, and
    /// only when it looks: after `interruptRequested`.
    case halt(interruptsEnabled: Bool)
    /// Triple fault: the machine resets.
    case shutdown(ShutdownReason)
    /// `VirtualCPU.stop()` was called.
    case stopped
    /// The engine cannot go on with this guest; the text says why and where.
    case failure(String)
}

/// What led to a triple fault, for the one line that a user sees.
public struct ShutdownReason: Hashable, Sendable {
    public let rip: UInt64
    /// "long mode", "protected mode", "real mode"...
    public let mode: String
    public let reason: String
    public init(rip: UInt64, mode: String, reason: String) {
        self.rip = rip
        self.mode = mode
        self.reason = reason
    }

    /// The mode of operation, for messages (SDM Vol. 3, 2.2).
    /// - Parameter is64Bit: the L bit of CS.
    public static func modeName(cr0: UInt64, rflags: UInt64, efer: UInt64, is64Bit: Bool) -> String {
        if cr0 & CR0.pe == 0 { return "real mode" }
        // RFLAGS.VM
        if rflags & 1 << 17 != 0 { return "virtual-8086 mode" }
        if efer & EFER.lma == 0 { return "protected mode" }
        return is64Bit ? "long mode" : "compatibility mode"
    }
}

/// Where a virtual CPU gets its external interrupts: its local APIC, or the i8259 pair where there is none.
public protocol InterruptSource: AnyObject, Sendable {
    /// Whether INTR is asserted. Any thread.
    var isPending: Bool { get }
    /// The INTA cycle: returns the vector and moves the request into service. vCPU thread only.
    /// A source whose request went away answers its spurious vector.
    func acknowledge() -> UInt8
}

/// A virtual CPU. Everything but `stop`, `interruptRequested` and `injectNMI` is for its own thread only.
public protocol VirtualCPU: AnyObject, Sendable {
    /// Reads all architectural state, with what was injected until now.
    func readState() throws -> CPUState
    /// Replaces all architectural state. Guest memory may have been replaced too (a reset, a snapshot), so
    /// nothing derived from its contents survives: no translated code, no TLB entry. An NMI that was injected since
    /// `readState` is no part of either state, and stays.
    func writeState(_ state: CPUState) throws
    /// Runs guest code until something outside has to act. Port and memory I/O go to the buses from inside.
    func run() throws -> Exit
    /// Makes `run` return `.stopped` soon, now or the next time it is called. Any thread.
    func stop()
    /// INTR changed: the engine looks at its `InterruptSource` soon. Any thread; never blocks.
    func interruptRequested()
    /// Any thread.
    func injectNMI()
}

/// What a virtual CPU is wired to. One value per machine, shared by all its CPUs.
public struct Wiring: Sendable {
    public let memory: GuestMemory
    public let ports: PortBus
    public let mmio: MMIOBus
    /// The i8259 pair, or what stands for it: for CPUs without a local APIC.
    public let interrupts: any InterruptSource
    /// By CPU; empty for a machine without, and for one whose engine has them.
    public let localAPICs: [any LocalInterruptController]
    public let policy: CPUPolicy
    /// Takes the guest's writes to KVM_WALL_CLOCK and KVM_SYSTEM_TIME; without it they are refused.
    public let clock: ParavirtualClock?
    /// Without it A20 is always open.
    public let a20: AddressLine20?
    public init(
        memory: GuestMemory, ports: PortBus, mmio: MMIOBus, interrupts: any InterruptSource,
        localAPICs: [any LocalInterruptController] = [], policy: CPUPolicy, clock: ParavirtualClock? = nil,
        a20: AddressLine20? = nil
    ) {
        self.memory = memory
        self.ports = ports
        self.mmio = mmio
        self.interrupts = interrupts
        self.localAPICs = localAPICs
        self.policy = policy
        self.clock = clock
        self.a20 = a20
    }
}

/// vmm(4)'s place: makes virtual CPUs.
public protocol Engine: AnyObject, Sendable {
    /// "kvm" or "translator".
    var name: String { get }
    /// Those that it has itself; `nil` where its CPUs take interrupts from `Wiring`.
    var localAPICs: (any EngineLocalAPICs)? { get }
    func makeVirtualCPU(index: Int, wiring: Wiring) throws -> any VirtualCPU
}
