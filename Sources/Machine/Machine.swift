public import Devices
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
    private let loader: KernelLoader
    private let board: Board
    private let cpu: any VirtualCPU
    private let clock: any Clock
    private let guestClock: ParavirtualClock
    private let requests: MachineRequests
    private let parker = Parker()
    private let log: @Sendable (String) -> Void
    private let thread = Mutex<PosixThread?>(nil)

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
        map = try MemoryMap(byteCount: configuration.memoryByteCount)
        loader = try KernelLoader(
            kernel: configuration.kernel, initrd: configuration.initrd, modules: configuration.modules,
            commandLine: configuration.commandLine)
        let policy = try Self.policy(configuration.cpuModel, features)
        memory = try Self.allocate(map)
        requests = MachineRequests()
        guestClock = ParavirtualClock(memory: memory, clock: clock)
        board = try Board(
            clock: clock, requests: requests, terminal: terminal, map: map, debugExitPort: configuration.debugExitPort)
        self.clock = clock
        self.log = log
        let wiring = Wiring(
            memory: memory, ports: board.ports, mmio: MMIOBus([]), interrupts: board.interrupts, policy: policy,
            clock: guestClock, a20: board.a20)
        do {
            cpu = try engine.makeVirtualCPU(index: 0, wiring: wiring)
        } catch {
            throw MachineError("engine \(engine.name): \(error)")
        }
        log(
            "engine \(engine.name), CPU \(policy.model), \(sizeText(map.byteCount)) of memory, "
                + "kernel \(configuration.kernel)")
        try loadGuest()
        board.interrupts.onInterruptRequest { [cpu, parker] in
            cpu.interruptRequested()
            parker.unpark()
        }
        requests.onRequest { [cpu, parker] in
            cpu.stop()
            parker.unpark()
        }
    }

    /// The serial port, to give it input.
    public var serialPort: SerialPort { board.serialPort }

    /// Starts the CPU.
    /// - Parameter onEnd: called once, on the machine's thread, when it has ended.
    public func start(_ onEnd: @escaping @Sendable (Outcome) -> Void) throws(MachineError) {
        do {
            let started = try PosixThread("vcpu0") { [self] in onEnd(run()) }
            thread.withLock { $0 = started }
        } catch {
            throw MachineError("CPU thread: \(error): raise the limit on processes")
        }
    }

    /// Ends the machine soon, whatever the guest does. Any thread.
    public func requestStop() { requests.requestStop() }

    /// Asks the guest to shut down. Any thread.
    public func pressPowerButton() { board.powerManagement.pressPowerButton() }

    /// Cuts the power or pulls the reset line, as a device would. Any thread.
    public var power: any PowerControl { requests }

    /// Waits until the machine's thread is gone; it ends after `onEnd`.
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
            return try GuestMemory(ranges: map.ranges)
        } catch {
            throw MachineError(
                "memory size \(sizeText(map.byteCount)): the host cannot map that much (\(error.reason)): "
                    + "give less with -m")
        }
    }

    /// Puts firmware tables, kernel and files into memory and the CPU at the kernel's entry.
    private func loadGuest() throws(MachineError) {
        let rsdp = board.writeTables(memory)
        var state = try loader.load(into: memory, map, rsdp: rsdp)
        // The guest's counter starts at zero, as after power-on.
        state.msr.tscOffset = 0 &- TimeStampCounter.now()
        do {
            try cpu.writeState(state)
        } catch {
            throw MachineError("CPU: \(error)")
        }
        log("kernel entry at \(hexText(state.rip)), \(state.modeName)")
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
                    try restart(
                        ShutdownReason(rip: state.rip, mode: state.modeName, reason: reason), &limiter)
                case nil: break
                }
                let exit = try cpu.run()
                // What a guest asked for counts, not how it waits for that: by a halt, or by a triple fault.
                guard requests.isEmpty else { continue }
                switch exit {
                case .stopped: break
                case .halt(interruptsEnabled: true):
                    while !board.interrupts.isPending, requests.isEmpty { parker.park() }
                case .halt(interruptsEnabled: false):
                    let state = try cpu.readState()
                    throw MachineError(
                        "guest halted for good: interrupts are off at rip \(hexText(state.rip)), \(state.modeName)")
                case .shutdown(let reason):
                    try restart(reason, &limiter)
                case .failure(let text):
                    throw MachineError("guest cannot go on: \(text)")
                }
            }
        } catch {
            return .failed("\(error)")
        }
    }

    /// The reset line: everything as after power-on but the battery's clock and the files.
    private func restart(_ reason: ShutdownReason, _ limiter: inout RestartLimiter) throws(MachineError) {
        let place = "\(reason.reason) at rip \(hexText(reason.rip)), \(reason.mode)"
        guard limiter.allowsRestart(at: clock.now()) else {
            throw MachineError("guest restarted more than \(RestartLimiter.limit) times within 6 s: \(place)")
        }
        log("guest restarts: \(place)")
        board.reset()
        guestClock.reset()
        memory.clear()
        try loadGuest()
    }
}

extension CPUState {
    var modeName: String {
        ShutdownReason.modeName(cr0: cr0, rflags: rflags, efer: msr.efer, is64Bit: cs.isLong)
    }
}
