public import Devices
import DiskImage
import Linux
import Synchronization
public import VMM

/// One machine: memory, devices, a virtual CPU on a thread of its own, and the files it boots from.
///
/// The thread "vcpu0" owns the CPU. Everyone else asks through `MachineRequests` and wakes it.
public final class Machine: Sendable {
    /// How a machine ended.
    public enum Outcome: Hashable, Sendable {
        /// The guest switched itself off.
        case poweredOff
        /// The guest ended it with a status, at the debug exit port.
        case exited(UInt8)
        /// `requestStop` was called.
        case stopped
        /// It cannot go on; one line says why.
        case failed(String)
    }

    private let memory: GuestMemory
    private let map: MemoryMap
    let disks: [DiskSource]
    private let physicalAddressBits: UInt8
    private let boot: Boot
    let board: Board
    private let cpu: any VirtualCPU
    /// The engine's own.
    private let localAPICs: (any EngineLocalAPICs)?
    private let hostClock: any Clock
    private let clock: MachineClock
    private let guestClock: ParavirtualClock
    let requests: MachineRequests
    let shutdown: ShutdownControl
    private let events: EventSink
    private let parker = Parker()
    /// An NMI ends a halt too; the CPU knows of it.
    private let hasNMI = Atomic(false)
    private let log: @Sendable (String) -> Void
    private let thread = Mutex<PosixThread?>(nil)
    /// For a CPU that halts where nobody sees it.
    let haltWatch: HaltWatch?

    /// Builds the machine and loads its kernel; nothing runs yet.
    /// - Parameters:
    ///   - engine: makes the virtual CPU.
    ///   - features: what the engine can run, for the CPU policy.
    ///   - terminal: the other end of the serial console.
    ///   - log: gets a line for what a curious user wants to see. Any thread.
    public init(
        _ configuration: MachineConfiguration, engine: any Engine, features: EngineFeatures, clock: any Clock,
        terminal: any SerialTerminal, log: @escaping @Sendable (String) -> Void = { _ in }
    ) throws(MachineError) {
        boot = try Boot(configuration)
        disks = configuration.disks
        map = try MemoryMap(byteCount: configuration.memoryByteCount, firmwareByteCount: boot.firmwareByteCount)
        let policy = try Self.policy(configuration.cpuModel, features)
        physicalAddressBits = policy.physicalAddressBits
        memory = try Self.allocate(map)
        requests = MachineRequests()
        guestClock = ParavirtualClock(memory: memory, clock: clock)
        hostClock = clock
        let machineClock = MachineClock(clock)
        self.clock = machineClock
        let events = EventSink()
        self.events = events
        board = try Board(
            clock: machineClock, requests: requests, terminal: terminal, map: map, memory: memory,
            disks: configuration.disks, cdrom: configuration.cdrom, firmware: boot.firmwareOptions,
            processors: policy.features.contains(.apic)
                ? .init(
                    timeStampFrequency: policy.tscFrequencyHz, physicalAddressBits: policy.physicalAddressBits, engine: engine.localAPICs)
                : nil,
            debugExitPort: configuration.debugExitPort, onControl: { events.report(Event($0)) }, log: log)
        shutdown = ShutdownControl(board, clock: machineClock) { events.report($0) }
        self.log = log
        let wiring = Wiring(
            memory: memory, ports: board.ports, mmio: board.mmio, interrupts: board.interrupts,
            localAPICs: board.interrupts.localAPICs, policy: policy, clock: guestClock, a20: board.a20)
        do {
            cpu = try engine.makeVirtualCPU(index: 0, wiring: wiring)
        } catch {
            throw MachineError("engine \(engine.name): \(error)")
        }
        localAPICs = engine.localAPICs
        haltWatch = localAPICs == nil ? nil : HaltWatch(cpu, clock: clock)
        log(
            "engine \(engine.name), CPU \(policy.model), \(sizeText(map.byteCount)) of memory, "
                + "\(boot.firmwareOptions == nil ? "kernel" : "firmware") \(boot.file.path)")
        try loadGuest()
        board.interrupts.onInterruptRequest { [cpu, parker] in
            cpu.interruptRequested()
            parker.unpark()
        }
        board.interrupts.onOutcome { [weak self, cpu, parker, requests] outcome in
            switch outcome {
            case .none: break
            case .nmi:
                cpu.injectNMI()
                self?.hasNMI.store(true, ordering: .releasing)
                parker.unpark()
            case .initialize: requests.requestReset("INIT message to the CPU")
            }
        }
        requests.onRequest { [cpu, parker] in
            cpu.stop()
            parker.unpark()
        }
    }

    /// The serial port, to give it input.
    public var serialPort: SerialPort { board.serialPort }

    /// Starts the CPU.
    /// - Parameter onEvent: hears of all that happens to the machine; `Event.ended` comes last, once, on its thread.
    public func start(_ onEvent: @escaping @Sendable (Event) -> Void) throws(MachineError) {
        events.connect(onEvent)
        do {
            let started = try PosixThread("vcpu0") { [self] in
                events.report(.started)
                haltWatch?.start()
                let outcome = closeDisks(run())
                haltWatch?.stop()
                requests.didEnd()
                events.report(.ended(outcome))
            }
            thread.withLock { $0 = started }
        } catch {
            throw MachineError("CPU thread: \(error): raise the limit on processes")
        }
    }

    /// What the guest wrote is on its disks before anybody hears of the end, however it came.
    private func closeDisks(_ outcome: Outcome) -> Outcome {
        // Waits for requests that are under way.
        board.reset()
        var outcome = outcome
        for (index, disk) in disks.enumerated() {
            do {
                try disk.image.close()
            } catch {
                outcome = .failed("disk \(index): \(error): what the guest wrote since it last asked for safety may be lost")
            }
        }
        return outcome
    }

    /// Ends the machine soon, whatever the guest does. Any thread.
    public func requestStop() { requests.requestStop() }

    /// Presses ACPI's power button, whatever the guest makes of it. Any thread.
    public func pressPowerButton() { board.powerManagement.pressPowerButton() }

    /// Cuts the power or pulls the reset line, as a device would. Any thread.
    public var power: any PowerControl { requests }

    /// Waits until the machine's thread is gone; it ends after `Event.ended`.
    public func join() {
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
    }

    // MARK: - Building

    private static func policy(_ name: String?, _ features: EngineFeatures) throws(MachineError) -> CPUPolicy {
        do {
            return try CPUPolicy(
                model: try name.map { name throws(CPUPolicyError) in try CPUModel(named: name) }, engine: features,
                tscFrequencyHz: HostCPU.current.features.contains(.invariantTSC) ? TimeStampCounter.frequency() : nil)
        } catch {
            throw MachineError("\(error)")
        }
    }

    private static func allocate(_ map: MemoryMap) throws(MachineError) -> GuestMemory {
        do {
            return try GuestMemory(ranges: map.ranges, rom: map.rom)
        } catch {
            throw MachineError(
                "memory size \(sizeText(map.byteCount)): the host cannot map that much (\(error.reason)): "
                    + "give less with -m")
        }
    }

    /// Puts firmware, or its tables, kernel and files, into memory and the CPU at the entry.
    private func loadGuest() throws(MachineError) {
        var state: CPUState
        switch boot {
        case .kernel(let loader):
            let rsdp = board.writeTables(memory)
            state = try loader.load(into: memory, map, rsdp: rsdp)
            state.msr.memoryTypes = MemoryTypeRanges(
                devices: UInt32(PCIBus.memoryWindow.lowerBound), physicalAddressBits: physicalAddressBits)
        case .firmware(let image, _):
            state = try image.load(into: memory)
            board.startScreen()
        }
        // The guest's counter starts at zero, as after power-on.
        state.msr.tscOffset = 0 &- TimeStampCounter.now()
        do {
            // With it goes an NMI from before a reset, which writing alone leaves.
            _ = try cpu.readState()
            try cpu.writeState(state)
        } catch {
            throw MachineError("CPU: \(error)")
        }
        if case .kernel = boot { log("kernel entry at \(hexText(state.rip)), \(state.modeName)") }
    }

    // MARK: - The CPU's thread

    private func run() -> Outcome {
        var limiter = RestartLimiter()
        do {
            while true {
                switch requests.take() {
                case .stop: return .stopped
                case .powerOff: return .poweredOff
                case .exit(let status): return .exited(status)
                case .reset(let reason):
                    let state = try cpu.readState()
                    let reason = ShutdownReason(rip: state.rip, mode: state.modeName, reason: reason)
                    guard try restart(reason, &limiter) else { return .poweredOff }
                case nil: break
                }
                if requests.isRestWanted { try rest() }
                let exit = try cpu.run()
                // What a guest asked for counts, not how it waits for that: by a halt, or by a triple fault.
                guard requests.isEmpty else { continue }
                switch exit {
                case .stopped: break
                case .halt(interruptsEnabled: true):
                    while !board.interrupts.isPending, requests.isEmpty, !hasNMI.exchange(false, ordering: .acquiring) {
                        if requests.isRestWanted { try rest() } else { parker.park() }
                    }
                case .halt(interruptsEnabled: false):
                    if shutdown.isExpected { return .poweredOff }
                    let state = try cpu.readState()
                    throw MachineError(
                        "guest halted for good: interrupts are off at rip \(hexText(state.rip)), \(state.modeName)")
                case .shutdown(let reason):
                    guard try restart(reason, &limiter) else { return .poweredOff }
                case .failure(let text):
                    throw MachineError("guest cannot go on: \(text)")
                }
            }
        } catch {
            // Those whose hold was granted, in a pause that failed to end, are not done yet.
            if requests.isHoldWanted { standHeld() }
            return .failed("\(error)")
        }
    }

    /// Returns when nobody wants the CPU to stand still. What ends the machine ends a pause, but waits for those who hold the CPU.
    private func rest() throws {
        while true {
            if requests.isHoldWanted {
                standHeld()
            } else if requests.isPauseWanted, !requests.isEnding {
                try standStill()
            } else {
                return
            }
        }
    }

    private func standHeld() {
        requests.didHold(true)
        while requests.isHoldWanted { parker.park() }
        requests.didHold(false)
    }

    /// Waits until the pause is over, or the machine is to end. The CPU is between two instructions.
    private func standStill() throws {
        // Before anybody looks whether the CPU is held: who was granted that meanwhile is found then.
        defer { requests.leavePause() }
        clock.stop()
        guestClock.suspend()
        // With its local APIC's timer as it is now, where the engine has one: it runs on behind the machine's back. Devices go on as well,
        // and what they request would be overwritten with the rest of that APIC.
        localAPICs?.holdBack()
        var state = try cpu.readState()
        let since = (time: hostClock.now(), counter: TimeStampCounter.now())
        events.report(.paused)
        requests.didPause(true)
        while requests.isPauseWanted, !requests.isEnding { parker.park() }
        guard !requests.isEnding else { return }
        let ticks = TimeStampCounter.now() &- since.counter
        state.msr.tscOffset &-= ticks
        try cpu.writeState(state)
        localAPICs?.sendHeldBack()
        guestClock.resume(nanoseconds: hostClock.now() &- since.time, ticks: ticks)
        clock.start()
        events.report(.unpaused)
        requests.didPause(false)
        synchronizeClock()
    }

    /// The reset line: everything as after power-on but the battery's clock and the files.
    /// - Returns: `false` when the guest was asked to shut down, and this is how it does.
    private func restart(_ reason: ShutdownReason, _ limiter: inout RestartLimiter) throws(MachineError) -> Bool {
        let place = "\(reason.reason) at rip \(hexText(reason.rip)), \(reason.mode)"
        guard !shutdown.isExpected else {
            log("guest ends by a reset, as it was asked: \(place)")
            return false
        }
        guard limiter.allowsRestart(at: clock.now()) else {
            throw MachineError("guest restarted more than \(RestartLimiter.limit) times within 6 s: \(place)")
        }
        log("guest restarts: \(place)")
        board.reset()
        guestClock.reset()
        memory.clear()
        try loadGuest()
        haltWatch?.start()
        events.report(.restarted(place))
        return true
    }
}

extension CPUState {
    var modeName: String {
        ShutdownReason.modeName(cr0: cr0, rflags: rflags, efer: msr.efer, is64Bit: cs.isLong)
    }
}
