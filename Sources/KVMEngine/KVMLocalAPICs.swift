import CLinux
import Linux
import Synchronization
import VMM

/// The descriptor of a machine: devices may send messages for as long as they live, also when the engine is gone.
final class KVMMachine: Sendable {
    private let descriptor: FileDescriptor
    var raw: CInt { descriptor.raw }

    init(owning raw: CInt) { descriptor = FileDescriptor(owning: raw) }
}

/// The kernel's local APICs (KVM_CAP_SPLIT_IRQCHIP). I/O APIC and 8259 pair are ours: the former's interrupts are messages
/// (KVM_SIGNAL_MSI), the end of its levels arrives as an exit, the latter's are injected past the local APIC as without one.
///
/// The kernel says what passes LINT0: it has no window for interrupts where LINT0 is masked or of another mode.
///
/// Quirks: LINT0 in fixed or NMI mode delivers nothing. INIT to the boot CPU restarts that CPU alone. A vector of the pair that was taken
/// and not delivered when the machine was reset is delivered after it.
final class KVMLocalAPICs: EngineLocalAPICs {
    private static let pinCount: UInt64 = 24

    /// What the kernel can do with them.
    let features: EngineFeatures.KernelAPIC
    private let machine: KVMMachine
    /// What waits for a CPU's state to be written back; `nil` while nothing is kept back. There are no more than devices have
    /// vectors and pins: a CPU that stands still makes no others. The kernel is told under the lock, so that none is on its way
    /// when the state is read; that waits for no CPU.
    private let heldBack = Mutex<[MessageSignal]?>(nil)
    private let endOfInterrupt = Mutex<(@Sendable (UInt8) -> Void)?>(nil)

    /// Turns them on, before the first CPU is made.
    /// - Returns: `nil` where the kernel lacks something that is needed for them.
    init?(_ machine: KVMMachine) throws(KVMError) {
        let raw = machine.raw
        for capability in [KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SIGNAL_MSI, KVM_CAP_IRQ_ROUTING, KVM_CAP_MP_STATE] {
            guard try KVMEngine.check(raw, capability) > 0 else { return nil }
        }
        self.machine = machine
        try KVMEngine.enable(raw, KVM_CAP_SPLIT_IRQCHIP, Self.pinCount)
        // The timer counts nanoseconds unless told otherwise (Linux 6.11).
        var countsCrystal = false
        if try KVMEngine.check(raw, clinux_kvm_cap_apic_bus_cycles) > 0 {
            try KVMEngine.enable(raw, clinux_kvm_cap_apic_bus_cycles, 1_000_000_000 / CPUPolicy.crystalHz)
            countsCrystal = true
        }
        features = .init(
            hasDeadlines: try KVMEngine.check(raw, KVM_CAP_TSC_DEADLINE_TIMER) > 0, countsCrystal: countsCrystal)
    }

    func deliver(_ signal: MessageSignal) {
        heldBack.withLock { signals in
            if signals == nil {
                send(signal)
            } else if signals?.contains(signal) == false {
                signals?.append(signal)
            }
        }
    }

    func holdBack() { heldBack.withLock { $0 = $0 ?? [] } }

    func sendHeldBack() {
        heldBack.withLock { signals in
            for signal in signals ?? [] { send(signal) }
            signals = nil
        }
    }

    private func send(_ signal: MessageSignal) {
        var message = kvm_msi()
        message.address_lo = UInt32(truncatingIfNeeded: signal.address)
        message.address_hi = UInt32(truncatingIfNeeded: signal.address >> 32)
        message.data = signal.data
        // One that nobody takes is lost, as on hardware.
        _ = try? kvm("KVM_SIGNAL_MSI", machine.raw, clinux_kvm_signal_msi, &message)
    }

    func setPins(_ signals: [MessageSignal]) {
        let routes = Counted(
            signals.prefix(Int(Self.pinCount)).enumerated().map { pin, signal in
                var route = clinux_kvm_route()
                route.pin = UInt32(pin)
                route.type = UInt32(KVM_IRQ_ROUTING_MSI)
                route.address_low = UInt32(truncatingIfNeeded: signal.address)
                route.address_high = UInt32(truncatingIfNeeded: signal.address >> 32)
                route.data = signal.data
                return route
            })
        // Refused for want of memory alone: then levels of these pins come once.
        _ = try? kvm("KVM_SET_GSI_ROUTING", machine.raw, clinux_kvm_set_gsi_routing, routes.address)
    }

    func onEndOfInterrupt(_ tell: @escaping @Sendable (UInt8) -> Void) { endOfInterrupt.withLock { $0 = tell } }

    func interruptEnded(_ vector: UInt8) { endOfInterrupt.withLock { $0 }?(vector) }
}
