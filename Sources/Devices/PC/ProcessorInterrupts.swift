import VMM

/// What a CPU has to do with interrupts: its local APIC with the bus that it sends on, and the 8259 pair behind LINT0.
public final class ProcessorInterrupts: LocalInterruptController {
    private let index: Int
    private let local: LocalAPICPort
    private let bus: InterruptBus
    private let ioAPIC: IOAPICPort
    private let pair: I8259Pair

    /// - Precondition: the bus has that many local APICs: the machine's own wiring.
    init(index: Int, bus: InterruptBus, ioAPIC: IOAPICPort, pair: I8259Pair) {
        self.index = index
        local = bus.locals[index]
        self.bus = bus
        self.ioAPIC = ioAPIC
        self.pair = pair
    }

    // MARK: Interrupts

    public var isPending: Bool { local.isInterrupting || local.passesExternal && pair.isPending }

    /// External interrupts have no priority of the APIC's and come first. A line that has fallen since is the pair's to answer
    /// for, by its spurious vector, unless the APIC has something.
    public func acknowledge() -> UInt8 {
        local.passesExternal && (pair.isPending || !local.isInterrupting) ? pair.acknowledge() : local.acknowledge()
    }

    /// Sets what is called when `isPending` becomes true, and calls it when it is. Any thread, with locks held.
    func onInterruptRequest(_ notify: (@Sendable () -> Void)?) {
        local.onInterruptRequest(notify)
        pair.onInterruptRequest { [local] in
            local.raise(.lint0)
            if local.passesExternal { notify?() }
        }
        if isPending { notify?() }
    }

    /// Sets what is called for an NMI and for INIT. Any thread.
    func onOutcome(_ tell: (@Sendable (LocalAPIC.Outcome) -> Void)?) { local.onOutcome(tell) }

    // MARK: Registers

    public var isEnabled: Bool { local.mode != .disabled }
    public var registerPage: UInt64? { local.registerPage }
    public var taskPriority: UInt8 { local.taskPriority >> 4 }
    public func setTaskPriority(_ class: UInt8) { local.setTaskPriority(`class` << 4) }

    private func act(_ effect: LocalAPIC.Effect) -> Bool {
        switch effect {
        case .none: break
        case .endOfInterrupt(let vector): ioAPIC.endInterrupt(vector)
        case .send(let message): bus.deliver(message, from: index)
        case .refused: return false
        }
        return true
    }

    public func readMSR(_ index: UInt32) -> UInt64? {
        switch index {
        case MSRIndex.apicBase: local.base
        case MSRIndex.tscDeadline: local.deadline
        case MSRIndex.x2APIC: local.readWide(UInt16(truncatingIfNeeded: index & 0xFF))
        default: nil
        }
    }

    public func writeMSR(_ index: UInt32, _ value: UInt64, timeStamp: UInt64) -> Bool {
        switch index {
        case MSRIndex.x2APIC: return act(local.writeWide(UInt16(truncatingIfNeeded: index & 0xFF), value))
        case MSRIndex.tscDeadline:
            local.setDeadline(value, timeStamp: timeStamp)
            return true
        case MSRIndex.apicBase: return local.writeBase(value)
        default: return false
        }
    }

    public func timeStampChanged(to timeStamp: UInt64) {
        let deadline = local.deadline
        if deadline != 0 { local.setDeadline(deadline, timeStamp: timeStamp) }
    }

    /// Registers have 32 bits at multiples of 16; narrower reads see their part, writes of another size nothing
    /// (SDM Vol. 3, 12.4.1).
    public func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        guard offset & 0xC == 0 else { return 0 }
        return UInt64(local.read(UInt16(truncatingIfNeeded: offset >> 4 & 0xFF))) >> ((offset & 3) * 8) & width.allOnes
    }

    public func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
        guard offset & 0xF == 0, width == .dword else { return }
        _ = act(local.write(UInt16(truncatingIfNeeded: offset >> 4 & 0xFF), UInt32(truncatingIfNeeded: value)))
    }
}
