import Synchronization
import VMM

/// A local APIC with the clock that drives it, and the INTR and NMI lines to its CPU.
///
/// What it sends to others its caller carries (`ProcessorInterrupts`), so it knows no other device. Its lock nests inside
/// devices' and the I/O APIC's; nothing but timer and CPU is called with it held.
public final class LocalAPICPort: Resettable {
    private struct State {
        var chip: LocalAPIC
        var timer: (any DeviceTimer)?
        /// What the timer is armed for.
        var armed: UInt64?
        var notify: (@Sendable () -> Void)?
        var outcome: (@Sendable (LocalAPIC.Outcome) -> Void)?
    }

    private struct Lines {
        static let interrupting: UInt8 = 1
        static let passesExternal: UInt8 = 2
    }

    public let id: UInt32
    private let state: Mutex<State>
    /// What CPUs and other threads may look at without the lock: `Lines`.
    private let lines: Atomic<UInt8>
    private let clock: any Clock
    /// Of the time-stamp counter; 0 for unknown.
    private let timeStampFrequency: UInt64
    private let physicalAddressBits: UInt8

    public init(
        id: UInt32, isBootProcessor: Bool, clock: any Clock, timeStampFrequency: UInt64?, physicalAddressBits: UInt8
    ) {
        self.id = id
        self.clock = clock
        self.timeStampFrequency = timeStampFrequency ?? 0
        self.physicalAddressBits = physicalAddressBits
        let chip = LocalAPIC(id: id, isBootProcessor: isBootProcessor)
        state = Mutex(State(chip: chip))
        lines = Atomic(Self.lines(chip))
        let timer = clock.makeTimer { [weak self] in self?.expire() }
        state.withLock { $0.timer = timer }
    }

    private static func lines(_ chip: LocalAPIC) -> UInt8 {
        (chip.isInterrupting ? Lines.interrupting : 0) | (chip.passesExternal ? Lines.passesExternal : 0)
    }

    /// Changes the chip, and brings timer and lines into accord with it.
    @inline(__always)
    private func change<R>(_ body: (inout LocalAPIC) -> R) -> R {
        state.withLock { state in
            let result = body(&state.chip)
            settle(&state)
            return result
        }
    }

    private func settle(_ state: inout State) {
        if state.chip.expiry != state.armed {
            state.armed = state.chip.expiry
            if let expiry = state.armed { state.timer?.arm(at: expiry) } else { state.timer?.cancel() }
        }
        let now = Self.lines(state.chip)
        let before = lines.exchange(now, ordering: .acquiringAndReleasing)
        if now & ~before != 0 { state.notify?() }
    }

    private func expire() {
        state.withLock { state in
            // A deadline that moved later left the timer as it was: it is armed again.
            state.armed = nil
            state.chip.advance(clock.now())
            settle(&state)
        }
    }

    // MARK: The CPU's side

    /// Whether it has an interrupt for its CPU. Any thread.
    var isInterrupting: Bool { lines.load(ordering: .acquiring) & Lines.interrupting != 0 }
    /// Whether INTR of the 8259 pair is the CPU's. Any thread.
    var passesExternal: Bool { lines.load(ordering: .acquiring) & Lines.passesExternal != 0 }

    func acknowledge() -> UInt8 { change { $0.acknowledge() } }

    var base: UInt64 { state.withLock { $0.chip.base } }
    var mode: LocalAPIC.Mode { state.withLock { $0.chip.mode } }
    var registerPage: UInt64? { state.withLock { $0.chip.mode == .xAPIC ? $0.chip.page : nil } }
    var taskPriority: UInt8 { state.withLock { $0.chip.tpr } }
    func setTaskPriority(_ value: UInt8) { change { $0.setTaskPriority(value) } }
    func writeBase(_ value: UInt64) -> Bool { change { $0.writeBase(value, physicalAddressBits: physicalAddressBits) } }

    var deadline: UInt64 { state.withLock { $0.chip.deadline } }

    func setDeadline(_ value: UInt64, timeStamp: UInt64) {
        let now = clock.now()
        change { chip in
            chip.advance(now)
            chip.setDeadline(value, timeStamp: timeStamp, frequency: timeStampFrequency, now)
            chip.advance(now)
        }
    }

    /// Registers whose meaning hangs on time: the others need no look at the clock.
    @inline(__always)
    private func access<Result>(_ register: UInt16, _ body: (inout LocalAPIC, UInt64) -> Result) -> Result {
        let now = LocalAPIC.Register.isTimed(register) ? clock.now() : nil
        return change { chip in
            if let now { chip.advance(now) }
            return body(&chip, now ?? 0)
        }
    }

    func read(_ register: UInt16) -> UInt32 { access(register) { $0.read(register, $1) } }

    func write(_ register: UInt16, _ value: UInt32) -> LocalAPIC.Effect { access(register) { $0.write(register, value, $1) } }

    func readWide(_ register: UInt16) -> UInt64? { access(register) { $0.readWide(register, $1) } }

    func writeWide(_ register: UInt16, _ value: UInt64) -> LocalAPIC.Effect {
        access(register) { $0.writeWide(register, value, $1) }
    }

    // MARK: The others' side

    /// Takes a message if it is for this one. Any thread.
    /// - Returns: whether it was.
    @discardableResult
    func accept(_ message: InterruptMessage, unconditionally: Bool = false) -> Bool {
        let (isTaken, outcome, tell) = state.withLock { state in
            guard unconditionally || state.chip.isDestination(of: message) else {
                return (false, LocalAPIC.Outcome.none, nil as (@Sendable (LocalAPIC.Outcome) -> Void)?)
            }
            let outcome = state.chip.accept(message)
            settle(&state)
            return (true, outcome, state.outcome)
        }
        if outcome != .none { tell?(outcome) }
        return isTaken
    }

    /// The processor priority, if a message is for this one: among several, the one with the lowest takes it.
    func priority(for message: InterruptMessage) -> UInt8? {
        state.withLock { $0.chip.isDestination(of: message) ? $0.chip.ppr : nil }
    }

    /// LINT0 or LINT1 rises.
    func raise(_ pin: LocalAPIC.LVT) {
        let (outcome, tell) = state.withLock { state in
            let outcome = state.chip.raise(pin)
            settle(&state)
            return (outcome, state.outcome)
        }
        if outcome != .none { tell?(outcome) }
    }

    /// Whether a vector is requested: another request would be lost.
    func isWaiting(_ vector: UInt8) -> Bool { state.withLock { $0.chip.irr.contains(vector) } }

    // MARK: Wiring

    /// Sets what is called when there is something for the CPU to take. Any thread, with locks held.
    func onInterruptRequest(_ notify: (@Sendable () -> Void)?) { state.withLock { $0.notify = notify } }

    /// Sets what is called for an NMI and for INIT. Any thread.
    func onOutcome(_ tell: (@Sendable (LocalAPIC.Outcome) -> Void)?) { state.withLock { $0.outcome = tell } }

    /// As firmware leaves it.
    func enterVirtualWireMode() { change { $0.enterVirtualWireMode() } }

    public func reset() { change { $0.reset() } }

    /// The chip with its time counted from now.
    public func save() -> LocalAPIC {
        let now = clock.now()
        return change { chip in
            chip.advance(now)
            var chip = chip
            chip.shift(by: 0 &- now)
            return chip
        }
    }

    public func restore(_ chip: LocalAPIC) {
        let now = clock.now()
        change { current in
            current = chip
            current.id = id
            current.shift(by: now)
            current.advance(now)
        }
    }
}

extension LocalAPIC.Register {
    static func isTimed(_ register: UInt16) -> Bool {
        register == localVectors.lowerBound || register >= initialCount
    }
}
