import Devices
import Foundation
import Synchronization
import TestSupport
import Testing
import VMM

/// The interrupt controllers of a PC on a virtual clock, with a CPU that counts what it is told.
final class InterruptBench {
    let clock: VirtualClock
    let system: InterruptSystem
    let cpus: [any LocalInterruptController]
    var cpu: any LocalInterruptController { cpus[0] }
    /// All of ISA's and four slots of PCI's.
    let wires: [InterruptLine]
    let notified = Counter()
    let outcomes = Mutex<[LocalAPIC.Outcome]>([])

    final class Counter: Sendable {
        let value = Atomic(0)
    }

    static let ioAPIC: UInt64 = 0xFEC0_0000

    init(now: UInt64 = 1000, processors: Int = 1) {
        clock = VirtualClock(now: now)
        system = InterruptSystem(
            clock: clock, sharedLines: [3, 9],
            processors: .init(count: processors, timeStampFrequency: 1_000_000_000, physicalAddressBits: 40))
        cpus = system.localAPICs
        let system = system
        wires = (0..<16).map { system.line($0) } + (1...4).map { system.pciLine(slot: $0, 3) }
        system.onInterruptRequest { [notified] in notified.value.add(1, ordering: .relaxed) }
    }

    var notifications: Int { notified.value.load(ordering: .relaxed) }

    /// The CPU's time-stamp counter runs with the clock.
    @discardableResult
    func write(_ msr: UInt32, _ value: UInt64, cpu: Int = 0) -> Bool { cpus[cpu].writeMSR(msr, value, timeStamp: clock.now()) }

    func enterX2APIC() {
        for cpu in cpus.indices {
            write(0x1B, 0xFEE0_0C00 | (cpu == 0 ? 0x100 : 0), cpu: cpu)
            write(0x80F, 0x1FF, cpu: cpu)
        }
    }

    func setPin(_ pin: UInt64, _ entry: UInt64) {
        for (half, value) in [(1, entry >> 32), (0, entry & 0xFFFF_FFFF)] as [(UInt64, UInt64)] {
            device.write(0, .dword, 0x10 + pin * 2 + half)
            device.write(0x10, .dword, value)
        }
    }

    var device: any MMIODevice { system.memoryClaims[0].device }

    /// Makes the 8259 pair ready, with vectors from 0x20 on and all lines open.
    func openPair() {
        let bus = PortBus(system.claims)
        for (port, value) in [
            (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x28), (0xA1, 2), (0xA1, 1), (0x21, 0), (0xA1, 0),
        ] as [(UInt16, UInt32)] { bus.write(port, .byte, value) }
    }

    func takeAll() -> [UInt8] {
        var vectors: [UInt8] = []
        while cpu.isPending, vectors.count < 100 {
            vectors.append(cpu.acknowledge())
            write(0x80B, 0)
        }
        return vectors
    }
}

@Suite("Interrupt controllers together") struct InterruptSystemTests {
    @Test func `without local APICs it is the 8259 pair`() {
        let clock = VirtualClock()
        let system = InterruptSystem(clock: clock, sharedLines: [3], processors: nil)
        #expect(system.localAPICs.isEmpty)
        #expect(system.memoryClaims.isEmpty)
        #expect(system.messages == nil)
        #expect(system.description == nil)
        #expect(system.globalInterrupt(slot: 1) == nil)
        let bus = PortBus(system.claims)
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] as [(UInt16, UInt32)] {
            bus.write(port, .byte, value)
        }
        system.line(4).set(true)
        #expect(system.isPending)
        #expect(system.acknowledge() == 0x24)
        system.pciLine(slot: 1, 3).set(true)
        #expect(system.acknowledge() == 0x23)
    }

    @Test func `after power-on the pair's interrupts reach the CPU through LINT0`() {
        let bench = InterruptBench()
        bench.openPair()
        bench.system.line(4).set(true)
        #expect(bench.notifications == 1)
        #expect(bench.cpu.isPending)
        #expect(bench.system.isPending)
        #expect(bench.cpu.acknowledge() == 0x24)
        #expect(!bench.cpu.isPending)
    }

    @Test func `masked LINT0 keeps the pair's interrupts back until it is opened`() {
        let bench = InterruptBench()
        bench.openPair()
        bench.enterX2APIC()
        bench.write(0x835, 0x1_0700)
        bench.system.line(4).set(true)
        #expect(!bench.cpu.isPending)
        #expect(bench.notifications == 0)
        bench.write(0x835, 0x700)
        #expect(bench.notifications > 0)
        #expect(bench.cpu.acknowledge() == 0x24)
    }

    @Test func `CPU with its APIC turned off gets the pair's interrupts`() {
        let bench = InterruptBench()
        bench.openPair()
        bench.write(0x1B, 0xFEE0_0100)
        #expect(!bench.cpu.isEnabled)
        #expect(bench.cpu.registerPage == nil)
        bench.system.line(4).set(true)
        #expect(bench.cpu.acknowledge() == 0x24)
    }

    @Test func `lines reach the I/O APIC's pins and the timer's is pin 2`() {
        let bench = InterruptBench()
        bench.enterX2APIC()
        for pin in 0..<24 as Range<UInt64> { bench.setPin(pin, 0x40 + pin) }
        for line in [0, 1, 4, 8, 9, 15] as [UInt8] {
            let wire = bench.system.line(line)
            wire.set(true)
            #expect(bench.takeAll() == [0x40 + (line == 0 ? 2 : line)])
            wire.set(false)
        }
    }

    @Test func `PCI's lines have pins of their own beside the pair's`() throws {
        let bench = InterruptBench()
        bench.enterX2APIC()
        for pin in 0..<24 as Range<UInt64> { bench.setPin(pin, IOAPIC.Entry.isLevel | 0x40 + pin) }
        for slot in 1...9 as ClosedRange<UInt8> {
            let pin = try #require(bench.system.globalInterrupt(slot: slot))
            #expect(pin == 16 + (slot - 1) % 8)
            let wire = bench.system.pciLine(slot: slot, 9)
            wire.set(true)
            // Level: it comes again until the device lets go.
            #expect(bench.cpu.acknowledge() == 0x40 + pin)
            bench.write(0x80B, 0)
            #expect(bench.cpu.acknowledge() == 0x40 + pin)
            wire.set(false)
            bench.write(0x80B, 0)
            #expect(!bench.cpu.isPending)
        }
    }

    @Test func `with suppressed broadcasts the I/O APIC's own register ends a level`() {
        let bench = InterruptBench()
        bench.enterX2APIC()
        bench.write(0x80F, 0x11FF)
        bench.setPin(9, IOAPIC.Entry.isLevel | 0x49)
        bench.system.line(9).set(true)
        #expect(bench.cpu.acknowledge() == 0x49)
        bench.write(0x80B, 0)
        #expect(!bench.cpu.isPending)
        bench.device.write(0x40, .dword, 0x49)
        #expect(bench.cpu.acknowledge() == 0x49)
    }

    @Test func `device's message interrupts the CPU that it names`() throws {
        let bench = InterruptBench(processors: 3)
        bench.enterX2APIC()
        let sink = try #require(bench.system.messages)
        sink.deliver(address: 0xFEE0_1000, data: 0x55)
        #expect(bench.cpus.map(\.isPending) == [false, true, false])
        #expect(bench.cpus[1].acknowledge() == 0x55)
        bench.write(0x80B, 0, cpu: 1)
        sink.deliver(address: 0xFEE0_4000, data: 0x55)
        #expect(bench.cpus.map(\.isPending) == [false, false, false])
        sink.deliver(address: 0xFEEF_F000, data: 0x56)
        #expect(bench.cpus.map(\.isPending) == [true, true, true])
    }

    @Test func `lowest priority goes to the CPU with the least to do`() throws {
        let bench = InterruptBench(processors: 3)
        bench.enterX2APIC()
        bench.cpus[0].setTaskPriority(5)
        bench.cpus[1].setTaskPriority(2)
        bench.cpus[2].setTaskPriority(3)
        try #require(bench.system.messages).deliver(address: 0xFEE0_7004, data: 0x1F1)
        #expect(bench.cpus.map(\.isPending) == [false, true, false])
    }

    @Test(arguments: [
        (0x0000_0002_0000_0040, [false, false, true]), (0x4_0040, [true, false, false]), (0x8_0040, [true, true, true]),
        (0xC_0040, [false, true, true]), (0x0000_0007_0000_0840, [true, true, true]), (0xFFFF_FFFF_0000_0040, [true, true, true]),
        (0x0000_0009_0000_0040, [false, false, false]),
    ] as [(UInt64, [Bool])])
    func `interrupts between CPUs go where the command says`(command: UInt64, pending: [Bool]) {
        let bench = InterruptBench(processors: 3)
        bench.enterX2APIC()
        #expect(bench.write(0x830, command))
        #expect(bench.cpus.map(\.isPending) == pending)
    }

    @Test func `INIT and start-up to absent CPUs vanish, and NMI and INIT to itself are told`() throws {
        let bench = InterruptBench()
        bench.system.onOutcome { [bench = UncheckedBench(bench)] outcome in bench.value.outcomes.withLock { $0.append(outcome) } }
        bench.enterX2APIC()
        for command in [0x0000_0001_0000_4500, 0x0000_0001_0000_0608, 0xC_4500, 0xC_0608] as [UInt64] {
            #expect(bench.write(0x830, command))
        }
        #expect(bench.outcomes.withLock { $0 } == [])
        bench.write(0x830, 0x0000_0000_0000_0400)
        bench.write(0x830, 0x0000_0000_0000_4500)
        #expect(bench.outcomes.withLock { $0 } == [.nmi, .initialize])
    }

    @Test func `registers in memory are those of the manual and wider or narrower writes are nothing`() {
        let bench = InterruptBench()
        #expect(bench.cpu.registerPage == 0xFEE0_0000)
        #expect(bench.cpu.read(0x30, .dword) == 0x0105_0014)
        #expect(bench.cpu.read(0x32, .byte) == 0x05)
        #expect(bench.cpu.read(0x34, .dword) == 0)
        bench.cpu.write(0x80, .dword, 0x20)
        bench.cpu.write(0x80, .byte, 0x30)
        bench.cpu.write(0x84, .dword, 0x30)
        #expect(bench.cpu.taskPriority == 2)
        #expect(bench.cpu.read(0x80, .dword) == 0x20)
    }

    // MARK: Timer

    @Test func `deadline interrupts at its time and tells the CPU once`() {
        let bench = InterruptBench()
        bench.enterX2APIC()
        bench.write(0x832, 0x4_0055)
        bench.write(0x6E0, bench.clock.now() + 50_000)
        bench.clock.advance(by: 49_999)
        #expect(!bench.cpu.isPending)
        bench.clock.advance(by: 2)
        #expect(bench.notifications == 1)
        #expect(bench.takeAll() == [0x55])
        #expect(bench.cpu.readMSR(0x6E0) == 0)
        #expect(bench.clock.armedCount == 0)
    }

    @Test func `deadline in the past interrupts at once`() {
        let bench = InterruptBench()
        bench.enterX2APIC()
        bench.write(0x832, 0x4_0055)
        bench.write(0x6E0, 1)
        #expect(bench.cpu.acknowledge() == 0x55)
    }

    @Test func `deadline moves with a write of the time-stamp counter`() {
        let bench = InterruptBench()
        bench.enterX2APIC()
        bench.write(0x832, 0x4_0055)
        bench.write(0x6E0, 1_000_000)
        bench.cpu.timeStampChanged(to: 999_000)
        bench.clock.advance(by: 1002)
        #expect(bench.cpu.acknowledge() == 0x55)
    }

    @Test func `periodic timer beats until it is stopped`() {
        let bench = InterruptBench(now: 0)
        bench.enterX2APIC()
        bench.write(0x832, 0x2_0055)
        bench.write(0x83E, 0xB)
        bench.write(0x838, 25_000)
        var ticks = 0
        for _ in 0..<10 {
            bench.clock.advance(by: 1_000_000)
            ticks += bench.takeAll().count
        }
        #expect(ticks == 10)
        bench.write(0x838, 0)
        bench.clock.advance(by: 10_000_000)
        #expect(!bench.cpu.isPending)
        #expect(bench.clock.armedCount == 0)
    }

    @Test func `tick that waits is known to the interval timer, on either side`() {
        let bench = InterruptBench()
        bench.enterX2APIC()
        bench.setPin(2, 0x42)
        PortBus(bench.system.claims).write(0x21, .byte, 0xFF)
        let wire = bench.system.line(0)
        #expect(!bench.system.isWaiting(0))
        wire.pulse()
        #expect(bench.system.isWaiting(0))
        _ = bench.cpu.acknowledge()
        #expect(!bench.system.isWaiting(0))
    }

    // MARK: State

    /// Random registers, lines, messages and time.
    private func harass(_ bench: InterruptBench, _ count: Int, _ random: inout SplitMix64) {
        for _ in 0..<count {
            let value = UInt64.random(in: 0...UInt64.max, using: &random) >> UInt64.random(in: 0..<64, using: &random)
            let offset = UInt64.random(in: 0..<0x1000, using: &random)
            let width = AccessWidth.allCases.randomElement(using: &random) ?? .dword
            let cpu = bench.cpus.randomElement(using: &random) ?? bench.cpu
            switch UInt8.random(in: 0..<16, using: &random) {
            case 0, 1: _ = cpu.writeMSR(0x800 + UInt32(offset & 0xFF), value, timeStamp: bench.clock.now())
            case 2: _ = cpu.readMSR(0x800 + UInt32(offset & 0xFF))
            case 3: _ = cpu.writeMSR(0x6E0, value, timeStamp: bench.clock.now())
            case 4: _ = cpu.writeMSR(0x1B, 0xFEE0_0000 | value & 0xD00, timeStamp: 0)
            case 5, 6: cpu.write(offset & 0x3F0, .dword, value & 0xFFFF_FFFF)
            case 7: cpu.write(offset, width, value)
            case 8: _ = cpu.read(offset, width)
            case 9: bench.device.write([0, 0x10, 0x40, offset].randomElement(using: &random) ?? 0, width, value)
            case 10: bench.setPin(value % 24, UInt64.random(in: 0...UInt64.max, using: &random) & ~IOAPIC.Entry.masked)
            case 11: bench.wires.randomElement(using: &random)?.set(value & 1 != 0)
            case 12: bench.system.messages?.deliver(address: 0xFEE0_0000 | offset << 4, data: UInt32(truncatingIfNeeded: value))
            case 13: bench.clock.advance(by: value & 0xF_FFFF)
            case 14: cpu.setTaskPriority(UInt8(value & 15))
            default: if cpu.isPending { _ = cpu.acknowledge() }
            }
        }
    }

    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func `random accesses trap nothing`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        harass(InterruptBench(now: seed == 8 ? .max / 2 : 1, processors: 2), 5000, &random)
    }

    @Test(arguments: 11...20 as ClosedRange<UInt64>)
    func `restored machine goes on where the saved one was`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let bench = InterruptBench(processors: 2)
        harass(bench, 500, &random)
        let saved = bench.system.save()
        let state = try JSONDecoder().decode(InterruptSystem.State.self, from: JSONEncoder().encode(saved))
        #expect(state == saved)
        let other = InterruptBench(now: 999_999_999, processors: 2)
        other.system.restore(state)
        #expect(other.system.save() == saved)
        #expect(other.cpus.map(\.isPending) == bench.cpus.map(\.isPending))
        let left = bench.clock.nextDeadline.map { $0 - bench.clock.now() }
        let otherLeft = other.clock.nextDeadline.map { $0 - other.clock.now() }
        #expect(left == otherLeft)
    }

    @Test(arguments: 21...24 as ClosedRange<UInt64>)
    func `forged states trap nothing`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let bench = InterruptBench(processors: 2)
        var accepted = 0
        for _ in 0..<150 {
            harass(bench, 30, &random)
            let state = bench.system.save()
            accepted += try restoreForged(state.locals[0], &random) {
                bench.system.restore(.init(pair: state.pair, locals: [$0], ioAPIC: state.ioAPIC))
            }
            accepted += try restoreForged(state.ioAPIC, &random) {
                bench.system.restore(.init(pair: state.pair, locals: state.locals, ioAPIC: $0))
            }
            harass(bench, 100, &random)
        }
        #expect(accepted > 20)
    }

    @Test func `reset is power-on with firmware's virtual wire, and a second one changes nothing`() {
        var random = SplitMix64(seed: 50)
        let bench = InterruptBench()
        harass(bench, 1000, &random)
        bench.system.reset()
        let state = bench.system.save()
        bench.system.reset()
        #expect(bench.system.save() == state)
        #expect(state.locals[0].passesExternal)
        #expect(bench.cpu.readMSR(0x1B) == 0xFEE0_0900)
    }
}

/// An engine's local APICs that note what they get.
private final class RecordedAPICs: EngineLocalAPICs {
    struct State {
        var delivered: [MessageSignal] = []
        var pins: [[MessageSignal]] = []
        var tell: (@Sendable (UInt8) -> Void)?
    }
    let state = Mutex(State())
    var delivered: [MessageSignal] { state.withLock { $0.delivered } }
    var pins: [[MessageSignal]] { state.withLock { $0.pins } }
    func deliver(_ signal: MessageSignal) { state.withLock { $0.delivered.append(signal) } }
    func holdBack() {}
    func sendHeldBack() {}
    func setPins(_ signals: [MessageSignal]) { state.withLock { $0.pins.append(signals) } }
    func onEndOfInterrupt(_ tell: @escaping @Sendable (UInt8) -> Void) { state.withLock { $0.tell = tell } }
    func end(_ vector: UInt8) { state.withLock { $0.tell }?(vector) }
}

@Suite("Interrupt controllers before an engine's local APICs") struct EngineInterruptSystemTests {
    private let apics = RecordedAPICs()
    private let system: InterruptSystem

    init() {
        system = InterruptSystem(
            clock: VirtualClock(now: 0), sharedLines: [3],
            processors: .init(timeStampFrequency: 1_000_000_000, physicalAddressBits: 40, engine: apics))
    }

    private func setPin(_ pin: UInt64, _ entry: UInt64) {
        let device = system.memoryClaims[0].device
        for (half, value) in [(1, entry >> 32), (0, entry & 0xFFFF_FFFF)] as [(UInt64, UInt64)] {
            device.write(0, .dword, 0x10 + pin * 2 + half)
            device.write(0x10, .dword, value)
        }
    }

    @Test func `machine has no local APICs of its own, and all that leads to them`() {
        #expect(system.localAPICs.isEmpty)
        #expect(system.messages != nil)
        #expect(system.description != nil)
        #expect(system.globalInterrupt(slot: 2) == 17)
        #expect(system.save().locals.isEmpty)
    }

    @Test func `8259 pair's interrupts are the CPU's to take`() {
        let bus = PortBus(system.claims)
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] as [(UInt16, UInt32)] {
            bus.write(port, .byte, value)
        }
        system.line(4).set(true)
        #expect(system.isPending && system.acknowledge() == 0x24)
        #expect(apics.delivered == [])
    }

    @Test func `messages of devices go on as they are, and others nowhere`() {
        system.messages?.deliver(address: 0xFEE0_1004, data: 0x1055)
        for (address, data) in [(0x1000, 0x55), (0xFEE0_0000, 0x8055), (0xFEE0_0000, 0x355), (1 << 40, 0x55)] as [(UInt64, UInt32)] {
            system.messages?.deliver(address: address, data: data)
        }
        #expect(apics.delivered == [MessageSignal(address: 0xFEE0_1004, data: 0x1055)])
    }

    @Test func `engine knows a pin's message before it gets it, and nothing of masks`() {
        setPin(4, 0x0300_0000_0000_0000 | 1 << 11 | 0x144)
        #expect(apics.pins.last?[4] == MessageSignal(address: 0xFEE0_3004, data: 0x144))
        #expect(apics.pins.last?.count == IOAPIC.pinCount)
        system.line(4).pulse()
        #expect(apics.delivered == [MessageSignal(address: 0xFEE0_3004, data: 0x144)])
        let count = apics.pins.count
        setPin(4, 0x0300_0000_0000_0000 | 1 << 11 | IOAPIC.Entry.masked | 0x144)
        #expect(apics.pins.count == count)
        system.reset()
        #expect(apics.pins.count == count + 1 && apics.pins.last?[4] == MessageSignal(address: 0xFEE0_0000, data: 0))
    }

    @Test func `level comes again when its end is told and the line is up`() {
        setPin(17, IOAPIC.Entry.isLevel | 0x45)
        let level = MessageSignal(address: 0xFEE0_0000, data: 0xC045)
        #expect(apics.pins.last?[17] == level)
        let wire = system.pciLine(slot: 2, 3)
        wire.set(true)
        wire.set(true)
        #expect(apics.delivered == [level])
        apics.end(0x46)
        #expect(apics.delivered == [level])
        apics.end(0x45)
        #expect(apics.delivered == [level, level])
        wire.set(false)
        apics.end(0x45)
        #expect(apics.delivered == [level, level])
    }
}

/// A bench that a closure holds: the test's thread makes every access.
private final class UncheckedBench: @unchecked Sendable {
    let value: InterruptBench
    init(_ value: InterruptBench) { self.value = value }
}
