import Foundation
import Synchronization
import TranslatorEngine
import VMM

/// How a run of a `TestMachine` ended.
struct Outcome: Hashable, CustomStringConvertible {
    /// The exception or interrupt that was delivered, `Outcome.done` for the guest's own end.
    var vector: Int
    var errorCode: UInt32
    /// CR2 for page faults.
    var address: UInt64
    /// Where the handler would return to.
    var rip: UInt64
    var rflags: UInt64

    /// `int 0x80` is how guest code says that it is done.
    static let done = 0x80

    var description: String {
        vector == Self.done
            ? "done" : "vector \(vector) code \(errorCode) at 0x\(String(rip, radix: 16)), address 0x\(String(address, radix: 16))"
    }
}

/// A translated CPU in 64-bit mode whose every interrupt gate leads to a HLT, so that a run ends at the first exception
/// or interrupt: for guests of a few instructions.
///
/// The tables lie in the first 512 KB of RAM, which the supervisor sees at `kernelBase`; everything else is the test's
/// to map. RAM from `free` on is the test's.
final class TestMachine {
    let memory: GuestMemory
    let cpu: TranslatorCPU
    let interrupts: TestInterrupts
    var context: UnsafeMutablePointer<Context> { cpu.context }

    static let kernelBase: UInt64 = 0xFFFF_8000_0000_0000
    static let pageTables: UInt64 = 0x1000
    static let gdt: UInt64 = 0x4_0000
    static let idt: UInt64 = 0x4_1000
    static let tss: UInt64 = 0x4_2000
    static let handlers: UInt64 = 0x4_3000
    static let stackTop: UInt64 = 0x4_C000
    static let free: UInt64 = 0x8_0000

    /// Linux's selectors, so that user code reads what it would read on the host.
    static let kernelCode: UInt16 = 0x10
    static let userData: UInt16 = 0x2B
    static let userCode: UInt16 = 0x33
    static let taskState: UInt16 = 0x40

    private var nextTable: UInt64 = 0x2000

    init(
        ramByteCount: UInt64 = 8 << 20, mmio: [MMIOBus.Claim] = [], ports: [PortBus.Claim] = [], codeByteCount: Int = 48 << 20,
        interrupts: TestInterrupts = TestInterrupts(), model: CPUModel? = nil, host: HostCPU = .current
    ) throws {
        self.interrupts = interrupts
        memory = try GuestMemory(ranges: [(0, ramByteCount)])
        let policy = try CPUPolicy(model: model, engine: .translator, host: host, tscFrequencyHz: 2_000_000_000)
        cpu = try TranslatorCPU(
            wiring: Wiring(
                memory: memory, ports: PortBus(ports), mmio: MMIOBus(mmio), interrupts: interrupts, policy: policy),
            codeByteCount: codeByteCount)
        buildTables()
        let c = context
        c.pointee.cr0 = CR0.pe | CR0.mp | CR0.et | CR0.ne | CR0.wp | CR0.am | CR0.pg
        c.pointee.cr3 = Self.pageTables
        c.pointee.cr4 = CR4.pae | CR4.pge | CR4.osfxsr | CR4.osxmmexcpt | CR4.osxsave | CR4.fsgsbase
        c.pointee.msr.efer = EFER.sce | EFER.lme | EFER.lma | EFER.nxe
        c.pointee.xcr0 = 7 | policy.xcr0Mask & 0xE0
        c.pointee.gdtr = DescriptorTableRegister(base: Self.kernelBase + Self.gdt, limit: 0xFF)
        c.pointee.idtr = DescriptorTableRegister(base: Self.kernelBase + Self.idt, limit: 0xFFF)
        c.pointee.tr = SegmentRegister(
            selector: Self.taskState, attributes: 0x8B, limit: 0x67, base: Self.kernelBase + Self.tss)
        c.pointee.dr7 = 0x400
        enter(level: 0)
    }

    private func buildTables() {
        map(Self.kernelBase, to: 0, count: 128, [.writable])
        for (selector, value) in [
            (Self.kernelCode, 0x00AF_9B00_0000_FFFF), (Self.userData, 0x00CF_F300_0000_FFFF), (Self.userCode, 0x00AF_FB00_0000_FFFF),
        ] as [(UInt16, UInt64)] {
            memory.store(Self.gdt + UInt64(selector & ~3), value)
        }
        let base = Self.kernelBase + Self.tss
        memory.store(
            Self.gdt + UInt64(Self.taskState), 0x67 | (base & 0xFF_FFFF) << 16 | 0x8B << 40 | (base >> 24 & 0xFF) << 56)
        memory.store(Self.gdt + UInt64(Self.taskState) + 8, base >> 32)
        // IST 1: frames lie at the same place wherever the guest's stack pointer is.
        memory.store(Self.tss + 0x24, Self.kernelBase + Self.stackTop)
        memory.store(Self.tss + 4, Self.kernelBase + Self.stackTop)
        // No I/O bitmap.
        memory.store(Self.tss + 102, 0xFFFF as UInt16)
        for vector in 0..<256 as Range<UInt64> {
            memory.store(Self.handlers + vector, 0xF4 as UInt8)
            setHandler(vector, Self.kernelBase + Self.handlers + vector, level: 3)
        }
    }

    /// An interrupt gate to a handler of the kernel's, on the stack of IST 1.
    /// - Parameter level: the gate's DPL: 3 lets programs use it by INT n.
    func setHandler(_ vector: UInt64, _ handler: UInt64, level: UInt64 = 0) {
        let gate = Self.idt + vector * 16
        let offset = handler & 0xFFFF | (handler >> 16 & 0xFFFF) << 48
        memory.store(gate, offset | UInt64(Self.kernelCode) << 16 | 1 << 32 | 0x8E << 40 | level << 45)
        memory.store(gate + 8, handler >> 32)
    }

    /// CPL 0 or 3, with flat segments and cleared registers.
    func enter(level: Int) {
        let c = context
        c.pointee.cs = SegmentRegister(
            selector: level == 0 ? Self.kernelCode : Self.userCode, attributes: level == 0 ? 0xA09B : 0xA0FB,
            limit: 0xFFFF_FFFF)
        c.pointee.ss =
            level == 0
            ? SegmentRegister(selector: 0)
            : SegmentRegister(selector: Self.userData, attributes: 0xC0F3, limit: 0xFFFF_FFFF)
        for path in [\Context.ds, \Context.es, \Context.fs, \Context.gs] { c.pointee[keyPath: path] = SegmentRegister(selector: 0) }
        c.pointee.isHalted = false
        c.pointee.interruptShadow = false
        cpu.modeChanged()
    }

    // MARK: Page tables

    struct PageFlags: OptionSet {
        let rawValue: UInt64
        static let writable = PageFlags(rawValue: 1 << 1)
        static let user = PageFlags(rawValue: 1 << 2)
        static let accessed = PageFlags(rawValue: 1 << 5)
        static let dirty = PageFlags(rawValue: 1 << 6)
        static let global = PageFlags(rawValue: 1 << 8)
        static let noExecute = PageFlags(rawValue: 1 << 63)
    }

    /// Where the page-table entry of a linear address lies; tables above it are made.
    func entryAddress(_ linear: UInt64, root: UInt64 = TestMachine.pageTables) -> UInt64 {
        var table = root
        for shift in [39, 30, 21] as [UInt64] {
            let at = table + (linear >> shift & 511) * 8
            var entry = memory.load(at, as: UInt64.self) ?? 0
            if entry & 1 == 0 {
                entry = nextTable | 7
                nextTable += 4096
                precondition(nextTable <= Self.gdt, "no room for page tables")
                memory.store(at, entry)
            }
            table = entry & 0x000F_FFFF_FFFF_F000
        }
        return table + (linear >> 12 & 511) * 8
    }

    /// Maps pages; the TLB is not told.
    func map(_ linear: UInt64, to physical: UInt64, count: UInt64 = 1, _ flags: PageFlags, root: UInt64 = TestMachine.pageTables) {
        for page in 0..<count {
            memory.store(entryAddress(linear + page * 4096, root: root), (physical + page * 4096) | 1 | flags.rawValue)
        }
    }
    func unmap(_ linear: UInt64) { memory.store(entryAddress(linear), 0 as UInt64) }
    func entry(_ linear: UInt64) -> UInt64 { memory.load(entryAddress(linear), as: UInt64.self) ?? 0 }


    // MARK: Running

    subscript(register: GeneralRegister) -> UInt64 {
        get { context.pointee.gpr[register.rawValue] }
        set { context.pointee.gpr[register.rawValue] = newValue }
    }

    struct UnexpectedExit: Error { let exit: Exit }

    /// Makes runs that take longer than some seconds end with `UnexpectedExit`: for guests that may loop.
    func watch(seconds: Int) {
        let cpu = cpu, runs = runs
        let watcher = Thread {
            while !runs.isOver.load(ordering: .relaxed) {
                let before = runs.count.load(ordering: .relaxed)
                for _ in 0..<seconds * 10 where !runs.isOver.load(ordering: .relaxed) && runs.count.load(ordering: .relaxed) == before {
                    usleep(100_000)
                }
                if runs.count.load(ordering: .relaxed) == before && before & 1 == 1 { cpu.stop() }
            }
        }
        watcher.start()
    }
    deinit { runs.isOver.store(true, ordering: .relaxed) }

    /// Counts starts and ends of runs.
    final class Runs: Sendable {
        let count = Atomic<Int>(0)
        let isOver = Atomic<Bool>(false)
    }
    private let runs = Runs()

    /// Runs from `rip` until a handler halts. The registers are then those of the guest, rsp, rip and flags those in the
    /// handler's frame.
    @discardableResult
    func run(from rip: UInt64) throws -> Outcome {
        context.pointee.rip = rip
        context.pointee.isHalted = false
        runs.count.add(1, ordering: .relaxed)
        defer { runs.count.add(1, ordering: .relaxed) }
        let exit = try cpu.run()
        guard exit == .halt(interruptsEnabled: false) else { throw UnexpectedExit(exit: exit) }
        let vector = Int(context.pointee.rip &- Self.kernelBase &- Self.handlers) - 1
        func frame(_ offset: UInt64) -> UInt64 { memory.load(Self.stackTop - offset, as: UInt64.self) ?? 0 }
        let hasCode = [8, 10, 11, 12, 13, 14, 17, 21].contains(vector)
        context.pointee.gpr[4] = frame(16)
        return Outcome(
            vector: vector, errorCode: hasCode ? UInt32(truncatingIfNeeded: frame(48)) : 0,
            address: vector == 14 ? context.pointee.cr2 : 0, rip: frame(40), rflags: frame(24))
    }
}

/// An interrupt source with one vector at a time.
final class TestInterrupts: InterruptSource {
    private let request = Atomic<Int>(-1)
    let taken = Atomic<Int>(0)
    func raise(_ vector: UInt8) { request.store(Int(vector), ordering: .sequentiallyConsistent) }
    var isPending: Bool { request.load(ordering: .sequentiallyConsistent) >= 0 }
    func acknowledge() -> UInt8 {
        taken.add(1, ordering: .sequentiallyConsistent)
        return UInt8(truncatingIfNeeded: request.exchange(-1, ordering: .sequentiallyConsistent))
    }
}
