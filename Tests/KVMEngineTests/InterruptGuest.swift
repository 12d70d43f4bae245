import Devices
import Glibc
import KVMEngine
import Linux
import Synchronization
import Testing
import TranslatorEngine
import VMM

/// An engine whose CPUs have local APICs.
enum TestedEngine: String, CaseIterable, CustomTestStringConvertible {
    case translator, kvm

    var testDescription: String { rawValue }

    func make() throws -> (engine: any Engine, features: EngineFeatures) {
        guard self == .kvm else { return (TranslatorEngine(), .translator) }
        guard kvmOpens else { try Test.cancel("/dev/kvm does not open here") }
        let engine = try KVMEngine()
        guard engine.localAPICs != nil else { try Test.cancel("this KVM has no local APICs without the other controllers") }
        return (engine, engine.features)
    }

    /// A page-table-based KVM ends each interrupt when the CPU takes it.
    var endsInterruptsEarly: Bool { self == .kvm && !KVMEngine.isUsable }
}

/// Code for a CPU in long mode.
struct Code {
    private(set) var bytes: [UInt8] = []

    init(_ write: (inout Code) -> Void) { write(&self) }

    mutating func raw(_ bytes: UInt8...) { self.bytes += bytes }
    private mutating func word(_ opcode: UInt8, _ value: UInt32) {
        bytes.append(opcode)
        bytes += (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) }
    }

    /// Tells the test a number.
    mutating func say(_ value: UInt8) { raw(0xB0, value, 0xE6, 0xE9) }
    /// Tells it what is in EAX.
    mutating func sayEAX() { raw(0xE7, 0xE9) }
    /// Lets the test do something.
    mutating func act() { raw(0xE6, 0xEA) }
    /// Ends the run.
    mutating func end() { raw(0xE6, 0xEB, 0xEB, 0xFC) }
    mutating func wrmsr(_ index: UInt32, _ value: UInt64) {
        word(0xB9, index)
        word(0xB8, UInt32(truncatingIfNeeded: value))
        word(0xBA, UInt32(truncatingIfNeeded: value >> 32))
        raw(0x0F, 0x30)
    }
    mutating func rdmsr(_ index: UInt32) {
        word(0xB9, index)
        raw(0x0F, 0x32)
    }
    /// mov $value, address
    mutating func store(_ address: UInt32, _ value: UInt32) {
        word(0xBB, address)
        raw(0xC7)
        word(0x03, value)
    }
    /// mov address, %eax
    mutating func load(_ address: UInt32) {
        word(0xBB, address)
        raw(0x8B, 0x03)
    }
    /// mov $value, %eax; mov %rax, %cr8
    mutating func setCR8(_ value: UInt32) {
        word(0xB8, value)
        raw(0x44, 0x0F, 0x22, 0xC0)
    }
    /// Time for what is pending to arrive: port reads.
    mutating func wait() {
        word(0xB9, 200)
        raw(0xE4, 0xE8, 0xFF, 0xC9, 0x75, 0xFA)
    }
    /// hlt; jmp to it
    mutating func sleep() { raw(0xF4, 0xEB, 0xFD) }
    /// In x2APIC mode, enabled.
    mutating func enterX2APIC(spurious: UInt64 = 0x1FF) {
        wrmsr(MSRIndex.apicBase, 0xFEE0_0D00)
        wrmsr(0x80F, spurious)
    }
}

/// A program of a few instructions on a CPU with a local APIC, an I/O APIC and an 8259 pair, on either engine.
final class InterruptGuest: Sendable {
    private struct State {
        var said: [UInt32] = []
        var isOver = false
        var isLate = false
        var onAct: (@Sendable () -> Void)?
        var onSay: (@Sendable (Int) -> Bool)?
    }

    let memory: GuestMemory
    let system: InterruptSystem
    let cpu: any VirtualCPU
    let policy: CPUPolicy
    private let localAPICs: (any EngineLocalAPICs)?
    let ports: PortBus
    private let clock: TestClock
    private let state: Mutex<State>
    private let port: Port

    init(_ tested: TestedEngine) throws {
        let (engine, features) = try tested.make()
        memory = try TinyGuest.makeMemory()
        policy = try CPUPolicy(model: nil, engine: features, tscFrequencyHz: TimeStampCounter.frequency())
        clock = try TestClock()
        localAPICs = engine.localAPICs
        system = InterruptSystem(
            clock: clock, sharedLines: [3],
            processors: .init(
                timeStampFrequency: policy.tscFrequencyHz, physicalAddressBits: policy.physicalAddressBits, engine: engine.localAPICs))
        state = Mutex(State())
        port = Port()
        ports = PortBus(system.claims + [.init(0xE8...0xEB, port)])
        cpu = try engine.makeVirtualCPU(
            index: 0,
            wiring: Wiring(
                memory: memory, ports: ports, mmio: MMIOBus(system.memoryClaims), interrupts: system, localAPICs: system.localAPICs,
                policy: policy))
        system.onInterruptRequest { [cpu] in cpu.interruptRequested() }
        let heard: @Sendable (UInt16, UInt32) -> Void = { [weak self] in self?.heard($0, $1) }
        port.guest.withLock { $0 = heard }
    }

    deinit { clock.stop() }

    private final class Port: PortDevice {
        let guest = Mutex<(@Sendable (UInt16, UInt32) -> Void)?>(nil)
        func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 { 0 }
        func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) { guest.withLock { $0 }?(offset, value) }
    }

    private func heard(_ offset: UInt16, _ value: UInt32) {
        let (act, isOver) = state.withLock { state -> ((@Sendable () -> Void)?, Bool) in
            switch offset {
            case 1:
                state.said.append(value)
                let isEnough = state.onSay?(state.said.count) ?? false
                state.isOver = state.isOver || isEnough
            case 2: return (state.onAct, false)
            default: state.isOver = true
            }
            return (nil, state.isOver)
        }
        act?()
        if isOver { cpu.stop() }
    }

    /// What happens when the guest asks for it. On the CPU's thread.
    func onAct(_ act: @escaping @Sendable () -> Void) { state.withLock { $0.onAct = act } }

    /// A handler that says its vector, lets the test act if asked, and ends the interrupt.
    func setHandler(_ vector: UInt8, acts: Bool = false, end: (inout Code) -> Void = { $0.wrmsr(0x80B, 0) }) {
        let code = Code {
            $0.raw(0x50, 0x51, 0x52, 0x53)
            $0.say(vector)
            if acts { $0.act() }
            end(&$0)
            $0.raw(0x5B, 0x5A, 0x59, 0x58, 0x48, 0xCF)
        }
        TinyGuest.setHandler(memory, vector, code.bytes, at: 0x4000 + UInt64(vector) * 128, mode: .long)
    }

    /// Runs a program from its start until it ends itself or has said so many numbers.
    /// - Returns: what it said.
    func run(until count: Int = .max, _ write: (inout Code) -> Void) throws -> [UInt32] {
        try start(write)
        return try goOn(until: count)
    }

    /// Turns interrupts on, has the test act, waits, says 0x99 and ends.
    func runActing() throws -> [UInt32] {
        try run {
            $0.enterX2APIC()
            $0.raw(0xFB)
            $0.act()
            $0.wait()
            $0.say(0x99)
            $0.end()
        }
    }

    func start(_ write: (inout Code) -> Void) throws {
        memory.write(Code(write).bytes, at: TinyGuest.codeAddress)
        var entry = TinyGuest.entryState(.long, memory)
        entry.msr.tscOffset = 0 &- TimeStampCounter.now()
        try cpu.writeState(entry)
    }

    /// Reads the CPU's state, and writes it back after something happened, as a pause does.
    func pause(_ body: () throws -> Void) throws {
        localAPICs?.holdBack()
        let state = try cpu.readState()
        try body()
        try cpu.writeState(state)
        localAPICs?.sendHeldBack()
    }

    func goOn(until count: Int = .max) throws -> [UInt32] {
        state.withLock {
            $0.said = []
            $0.isOver = false
            $0.isLate = false
            $0.onSay = { $0 >= count }
        }
        // A guest that waits for what does not come.
        let timer = clock.makeTimer { [weak self] in
            self?.state.withLock { $0.isLate = true }
            self?.cpu.stop()
        }
        timer.arm(at: clock.now() + 10_000_000_000)
        defer { timer.cancel() }
        while true {
            let exit = try cpu.run()
            let (isOver, isLate, said) = state.withLock { ($0.isOver, $0.isLate, $0.said) }
            if isOver { return said }
            switch exit {
            case .halt(interruptsEnabled: true): sched_yield()
            case .stopped: break
            case let other: throw Failure(description: "\(other)")
            }
            if isLate { throw Failure(description: "nothing more came after \(said)") }
        }
    }

    struct Failure: Error, CustomStringConvertible { var description: String }

    /// Writes an entry of the I/O APIC.
    func setPin(_ pin: UInt64, _ entry: UInt64) {
        guard let device = system.memoryClaims.first?.device else { return }
        for (half, value) in [(1, entry >> 32), (0, entry & 0xFFFF_FFFF)] as [(UInt64, UInt64)] {
            device.write(0, .dword, 0x10 + pin * 2 + half)
            device.write(0x10, .dword, value)
        }
    }

    /// Makes the 8259 pair ready, with vectors from 0x20 on and all lines open.
    func openPair() {
        for (port, value) in [
            (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x28), (0xA1, 2), (0xA1, 1), (0x21, 0), (0xA1, 0),
        ] as [(UInt16, UInt32)] { ports.write(port, .byte, value) }
    }
}

/// The host's clock.
private final class TestClock: VMM.Clock {
    private let timers: TimerThread
    init() throws { timers = try TimerThread() }
    func now() -> UInt64 { SystemTime.monotonic() }
    func wallClock() -> UInt64 { SystemTime.wallClock() }
    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DeviceTimer { Timer(timers.makeTimer(fire)) }
    func stop() { timers.stop() }

    private final class Timer: DeviceTimer {
        private let timer: TimerThread.Timer
        init(_ timer: TimerThread.Timer) { self.timer = timer }
        func arm(at deadline: UInt64) { timer.arm(at: deadline) }
        func cancel() { timer.cancel() }
    }
}
