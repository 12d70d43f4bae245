// How long an interrupt takes to reach a guest that loops without an exit, for each shape of loop: from the request on
// another thread to the acknowledgement on the CPU's thread. First in time that that thread ran, which is what the engine
// is good for, then in time on the wall, in which the host may have let it wait.

import Glibc
import Linux
import LoopShapes
import Synchronization
import TranslatorEngine
import VMM

/// Requests one vector, and notes when it is acknowledged.
final class TimedInterrupts: InterruptSource {
    private let requestedAt = Atomic<UInt64>(0)
    private let requestedAfter = Atomic<UInt64>(0)
    let latency = Atomic<UInt64>(0)
    let runLatency = Atomic<UInt64>(0)
    /// The clock of the time that the CPU's thread has run.
    let clock = Atomic<Int32>(CLOCK_MONOTONIC)
    let taken = Atomic<Int>(0)

    static func now(_ clock: Int32 = CLOCK_MONOTONIC) -> UInt64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
    func raise() {
        requestedAfter.store(Self.now(clock.load(ordering: .relaxed)), ordering: .sequentiallyConsistent)
        requestedAt.store(Self.now(), ordering: .sequentiallyConsistent)
    }
    var isPending: Bool { requestedAt.load(ordering: .sequentiallyConsistent) != 0 }
    func acknowledge() -> UInt8 {
        let requested = requestedAt.exchange(0, ordering: .sequentiallyConsistent)
        latency.store(Self.now() &- requested, ordering: .sequentiallyConsistent)
        let ran = Self.now(clock.load(ordering: .relaxed)) &- requestedAfter.load(ordering: .sequentiallyConsistent)
        runLatency.store(ran, ordering: .sequentiallyConsistent)
        taken.add(1, ordering: .sequentiallyConsistent)
        return 0x30
    }
}

/// A CPU in 64-bit mode at CPL 0 with 128 MB mapped one to one. The interrupt's handler is IRETQ.
struct LoopMachine {
    static let code: UInt64 = 0x40_0000, stack: UInt64 = 0x50_0000
    static let gdt: UInt64 = 0x8000, idt: UInt64 = 0x9000, tables: UInt64 = 0x1000, handler: UInt64 = 0x7000
    let cpu: TranslatorCPU
    let memory: GuestMemory
    let interrupts = TimedInterrupts()

    init(_ code: [UInt8], isNarrow: Bool) throws {
        memory = try GuestMemory(ranges: [(0, 128 << 20)])
        let policy = try CPUPolicy(model: nil, engine: .translator, tscFrequencyHz: 2_000_000_000)
        cpu = try TranslatorCPU(
            wiring: Wiring(memory: memory, ports: PortBus([]), mmio: MMIOBus([]), interrupts: interrupts, policy: policy))
        memory.store(Self.tables, 0x2003 as UInt64)
        memory.store(0x2000, 0x3003 as UInt64)
        for index in 0..<64 as Range<UInt64> { memory.store(0x3000 + index * 8, index << 21 | 0x83) }
        for (selector, value) in [(0x10, 0x00AF_9B00_0000_FFFF), (0x18, 0x00CF_9B00_0000_FFFF), (0x20, 0x00CF_9300_0000_FFFF)] as [(UInt64, UInt64)] {
            memory.store(Self.gdt + selector, value)
        }
        func gate(_ vector: UInt64, _ handler: UInt64) { memory.store(Self.idt + vector * 16, handler & 0xFFFF | 0x10 << 16 | 0x8E << 40 | (handler >> 16) << 48) }
        gate(0x30, Self.handler)
        memory.write([0x48, 0xCF], at: Self.handler)
        // #UD: over the two bytes of UD2.
        gate(6, Self.handler + 16)
        memory.write([0x48, 0x83, 0x04, 0x24, 2, 0x48, 0xCF], at: Self.handler + 16)
        memory.write(code, at: Self.code)
        let c = cpu.context
        c.pointee.cr0 = CR0.pe | CR0.et | CR0.ne | CR0.wp | CR0.pg
        c.pointee.cr3 = Self.tables
        c.pointee.cr4 = CR4.pae | CR4.pge | CR4.osfxsr | CR4.osxsave
        c.pointee.msr.efer = EFER.lme | EFER.lma
        c.pointee.xcr0 = 7
        c.pointee.gdtr = DescriptorTableRegister(base: Self.gdt, limit: 0xFF)
        c.pointee.idtr = DescriptorTableRegister(base: Self.idt, limit: 0xFFF)
        let data = SegmentRegister(selector: 0x20, attributes: 0xC093, limit: 0xFFFF_FFFF)
        c.pointee.cs =
            isNarrow
            ? SegmentRegister(selector: 0x18, attributes: 0xC09B, limit: 0xFFFF_FFFF)
            : SegmentRegister(selector: 0x10, attributes: 0xA09B, limit: 0xFFFF_FFFF)
        c.pointee.ss = data
        c.pointee.ds = data
        c.pointee.es = data
        c.pointee.dr7 = 0x400
        c.pointee.gpr[4] = Self.stack
        c.pointee.rip = Self.code
        c.pointee.rflags = 0x202
        cpu.modeChanged()
    }

    /// Nanoseconds of so many interrupts, at random distances, sorted: that the thread ran, and that passed.
    func measure(count: Int) throws -> (ran: [UInt64], passed: [UInt64]) {
        let isOver = Atomic<Bool>(false)
        let cpu = cpu, interrupts = interrupts
        return try withExtendedLifetime(isOver) {
            let thread = try PosixThread("guest") {
                var id: clockid_t = CLOCK_MONOTONIC
                pthread_getcpuclockid(pthread_self(), &id)
                interrupts.clock.store(id, ordering: .relaxed)
                while !isOver.load(ordering: .relaxed) { _ = try? cpu.run() }
            }
            var ran: [UInt64] = [], passed: [UInt64] = []
            usleep(20_000)
            for _ in 0..<count {
                usleep(UInt32.random(in: 200...1500))
                let before = interrupts.taken.load(ordering: .sequentiallyConsistent)
                interrupts.raise()
                cpu.interruptRequested()
                while interrupts.taken.load(ordering: .sequentiallyConsistent) == before { usleep(50) }
                ran.append(interrupts.runLatency.load(ordering: .sequentiallyConsistent))
                passed.append(interrupts.latency.load(ordering: .sequentiallyConsistent))
            }
            isOver.store(true, ordering: .relaxed)
            cpu.stop()
            thread.join()
            return (ran.sorted(), passed.sorted())
        }
    }
}

let count = CommandLine.arguments.dropFirst().first.flatMap { Int($0) } ?? 300
print("interrupt latency, microseconds".padding(36), "CPU time: median  worst   wall: median  worst")
for shape in LoopShape.all {
    let machine = try LoopMachine(shape.code, isNarrow: shape.isNarrow)
    let (ran, passed) = try machine.measure(count: count)
    func text(_ nanoseconds: UInt64, _ width: Int) -> String {
        String(Double(nanoseconds / 100) / 10).padding(width, isLeft: true)
    }
    print(
        shape.name.padding(36), text(ran[ran.count / 2], 16), text(ran[ran.count - 1], 6), text(passed[passed.count / 2], 14),
        text(passed[passed.count - 1], 7))
}

extension String {
    func padding(_ width: Int, isLeft: Bool = false) -> String {
        let space = String(repeating: " ", count: max(0, width - count))
        return isLeft ? space + self : self + space
    }
}
