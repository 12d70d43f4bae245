import VMM

/// The interrupt controllers of a PC: the 8259 pair, and, where CPUs take interrupts from them, a local APIC for each CPU
/// and the I/O APIC. The local APICs may be the engine's own; then all but them is here.
///
/// A device's line goes to both sides, as on a board, and software masks one of them. ISA's lines have the same number on
/// both but for the timer's, which is the I/O APIC's pin 2, since pin 0 is the 8259 pair's. PCI's lines share some of the
/// 8259 pair's with ISA, and have the upper eight pins of the I/O APIC to themselves.
public final class InterruptSystem: InterruptSource, Resettable {
    /// What the local APICs have to know of their CPUs.
    public struct Processors: Sendable {
        public var count: Int
        public var timeStampFrequency: UInt64?
        public var physicalAddressBits: UInt8
        /// Where the engine has them itself.
        public var engine: (any EngineLocalAPICs)?

        public init(count: Int = 1, timeStampFrequency: UInt64?, physicalAddressBits: UInt8, engine: (any EngineLocalAPICs)? = nil) {
            self.count = count
            self.engine = engine
            self.timeStampFrequency = timeStampFrequency
            self.physicalAddressBits = physicalAddressBits
        }
    }

    private struct Advanced {
        let carrier: any InterruptCarrier
        let ioAPIC: IOAPICPort
        let processorCount: Int
        /// Without those of the engine.
        let locals: [LocalAPICPort]
        let processors: [ProcessorInterrupts]
        /// The upper pins of the I/O APIC.
        let pciPins: [SharedInterruptLine]
    }

    /// The I/O APIC's pins of PCI: 16 to 23.
    public static let firstPCIPin: UInt8 = 16
    private static let pciPinCount = 8

    private let pair = I8259Pair()
    private let advanced: Advanced?
    /// Lines of the 8259 pair that several devices pull, level-triggered.
    private let shared: [UInt8: SharedInterruptLine]

    /// - Parameters:
    ///   - sharedLines: those of the 8259 pair that PCI has.
    ///   - processors: `nil` for CPUs that know the 8259 pair alone.
    public init(clock: any Clock, sharedLines: [UInt8], processors: Processors?) {
        var shared: [UInt8: SharedInterruptLine] = [:]
        for line in sharedLines { shared[line] = SharedInterruptLine(InterruptLine(pair, line)) }
        self.shared = shared
        defer { leaveAsFirmware() }
        guard let processors else {
            advanced = nil
            return
        }
        let carrier: any InterruptCarrier
        let ioAPIC: IOAPICPort
        let locals: [LocalAPICPort]
        let cpus: [ProcessorInterrupts]
        if let engine = processors.engine {
            carrier = EngineInterruptBus(engine)
            ioAPIC = IOAPICPort(id: Self.ioAPICID(processors: processors.count), bus: carrier)
            engine.onEndOfInterrupt { [weak ioAPIC] in ioAPIC?.endInterrupt($0) }
            locals = []
            cpus = []
        } else {
            locals = (0..<processors.count).map { index in
                LocalAPICPort(
                    id: UInt32(truncatingIfNeeded: index), isBootProcessor: index == 0, clock: clock,
                    timeStampFrequency: processors.timeStampFrequency, physicalAddressBits: processors.physicalAddressBits)
            }
            let bus = InterruptBus(locals)
            let port = IOAPICPort(id: Self.ioAPICID(processors: processors.count), bus: bus)
            cpus = locals.indices.map { [pair] in ProcessorInterrupts(index: $0, bus: bus, ioAPIC: port, pair: pair) }
            carrier = bus
            ioAPIC = port
        }
        advanced = Advanced(
            carrier: carrier, ioAPIC: ioAPIC, processorCount: processors.count, locals: locals, processors: cpus,
            pciPins: (0..<Self.pciPinCount).map {
                SharedInterruptLine(InterruptLine(ioAPIC, Self.firstPCIPin + UInt8(truncatingIfNeeded: $0)))
            })
    }

    /// Firmware gives it the number behind the CPUs'.
    private static func ioAPICID(processors: Int) -> UInt8 { UInt8(truncatingIfNeeded: processors & 0xF) }

    /// What firmware does: the ELCR says which lines are level-triggered, and the boot CPU gets the 8259 pair's interrupts.
    private func leaveAsFirmware() {
        pair.setLevelTriggered(shared.keys)
        advanced?.locals.first?.enterVirtualWireMode()
    }

    // MARK: Lines

    private func pairLine(_ number: UInt8) -> InterruptLine { shared[number]?.connect() ?? InterruptLine(pair, number) }

    /// The wire of an ISA device.
    public func line(_ number: UInt8) -> InterruptLine {
        let line = pairLine(number)
        guard let advanced else { return line }
        return InterruptLine(ForkedLine(line, InterruptLine(advanced.ioAPIC, Self.pin(number))), number)
    }

    private static func pin(_ line: UInt8) -> UInt8 { line == 0 ? 2 : line }

    /// The wire of a PCI slot's interrupt pin.
    /// - Parameters:
    ///   - slot: from 1 on.
    ///   - number: the line of the 8259 pair.
    public func pciLine(slot: UInt8, _ number: UInt8) -> InterruptLine {
        let line = pairLine(number)
        guard let advanced else { return line }
        let pin = advanced.pciPins[Int(slot &- 1) % Self.pciPinCount].connect()
        return InterruptLine(ForkedLine(line, pin), number)
    }

    /// The I/O APIC's pin of a PCI slot, if there is one.
    public func globalInterrupt(slot: UInt8) -> UInt8? {
        advanced.map { _ in Self.firstPCIPin + (slot &- 1) % UInt8(Self.pciPinCount) }
    }

    /// One end of a wire that leads to two places.
    private final class ForkedLine: InterruptController {
        private let first: InterruptLine
        private let second: InterruptLine

        init(_ first: InterruptLine, _ second: InterruptLine) {
            self.first = first
            self.second = second
        }

        func setLine(_ number: UInt8, _ asserted: Bool) {
            first.set(asserted)
            second.set(asserted)
        }
    }

    /// Whether a line's interrupt is requested and not masked: another edge would be lost. Any thread; may be called with
    /// a device's lock held.
    public func isWaiting(_ number: UInt8) -> Bool {
        pair.isWaiting(number) || advanced?.ioAPIC.isWaiting(pin: Int(Self.pin(number))) ?? false
    }

    // MARK: The boot CPU, or what of its interrupts is not the engine's

    public var isPending: Bool { advanced?.processors.first?.isPending ?? pair.isPending }

    public func acknowledge() -> UInt8 { advanced?.processors.first?.acknowledge() ?? pair.acknowledge() }

    /// Sets what is called when `isPending` becomes true, and calls it when it is. It runs on the thread that caused
    /// that, which may be the virtual CPU's own, with devices' locks held.
    public func onInterruptRequest(_ notify: (@Sendable () -> Void)?) {
        if let processor = advanced?.processors.first { processor.onInterruptRequest(notify) } else { pair.onInterruptRequest(notify) }
    }

    /// Sets what is called when the boot CPU gets an NMI or INIT. Any thread.
    public func onOutcome(_ tell: (@Sendable (LocalAPIC.Outcome) -> Void)?) { advanced?.processors.first?.onOutcome(tell) }

    // MARK: Wiring

    /// For the engine, by CPU; none where it has them itself.
    public var localAPICs: [any LocalInterruptController] { advanced?.processors ?? [] }

    /// Where devices send messages; `nil` where nobody would take them.
    public var messages: (any MSISink)? { advanced?.carrier }

    public var claims: [PortBus.Claim] { pair.claims }

    public var memoryClaims: [MMIOBus.Claim] { advanced.map { [MMIOBus.Claim(IOAPICPort.addresses, $0.ioAPIC)] } ?? [] }

    /// What ACPI says of it.
    public var description: ACPITables.InterruptControllers? {
        advanced.map { .init(processorCount: $0.processorCount, ioAPICID: Self.ioAPICID(processors: $0.processorCount)) }
    }

    /// Power-on, and what firmware does behind it.
    public func reset() {
        pair.reset()
        if let advanced {
            advanced.ioAPIC.reset()
            for local in advanced.locals { local.reset() }
        }
        leaveAsFirmware()
    }

    // MARK: State

    public struct State: Codable, Hashable, Sendable {
        public var pair: I8259Cascade
        public var locals: [LocalAPIC]
        public var ioAPIC: IOAPIC?

        public init(pair: I8259Cascade, locals: [LocalAPIC], ioAPIC: IOAPIC?) {
            self.pair = pair
            self.locals = locals
            self.ioAPIC = ioAPIC
        }
    }

    public func save() -> State {
        State(pair: pair.save(), locals: advanced?.locals.map { $0.save() } ?? [], ioAPIC: advanced?.ioAPIC.save())
    }

    /// The local APICs that the machine has take what there is for them.
    public func restore(_ state: State) {
        pair.restore(state.pair)
        guard let advanced else { return }
        if let ioAPIC = state.ioAPIC { advanced.ioAPIC.restore(ioAPIC) }
        for (local, chip) in zip(advanced.locals, state.locals) { local.restore(chip) }
    }
}
