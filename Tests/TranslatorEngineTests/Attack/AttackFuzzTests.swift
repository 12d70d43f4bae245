import Foundation
import Synchronization
import Testing
import VMM

@testable import TranslatorEngine

/// Guests of random bytes: whatever they are, the host's process lives, its memory is untouched, `run` comes back, and
/// every block that was made passes the verifier.
///
/// `VMD_FUZZ_SECONDS=n` goes on with new seeds for so long.
@Suite(.serialized) struct AttackFuzzTests {
    enum CodeSize: CaseIterable { case long, compatibility, protected, real }

    /// Bytes that are code more often than random ones are: what instructions begin with, and what the translator treats
    /// in ways of its own.
    static func fill(_ count: Int, _ random: inout SiliconRandom) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count + 16)
        let prefixes: [UInt8] = [0x66, 0x67, 0xF2, 0xF3, 0xF0, 0x64, 0x65, 0x2E, 0x36, 0x3E, 0x26]
        while bytes.count < count {
            switch random.below(16) {
            case 0: bytes.append(random.byte())
            case 1: bytes += [random.pick(prefixes), random.pick(prefixes)]
            case 2: bytes += [0x0F, random.byte(), random.byte()]
            case 3: bytes += [0xC4, random.byte() & 0xE0 | UInt8(1 + random.below(3)), random.byte(), random.byte(), random.byte()]
            case 4: bytes += [0x40 | random.byte() & 15, random.byte() & 0x3F, random.byte()]
            case 5: bytes += [0x48 | random.byte() & 7, random.pick([0x89, 0x8B, 0x01, 0x87, 0x63, 0x8D, 0xF7, 0xD3, 0xFF]), random.byte()]
            case 6: bytes += [0x70 | random.byte() & 15, random.byte()]
            case 7: bytes += [random.pick([0xEB, 0xE0, 0xE1, 0xE2, 0xE3]), random.byte()]
            case 8: bytes += [0x0F, 0x80 | random.byte() & 15, random.byte(), random.pick([0, 0xFF]), 0, 0]
            case 9: bytes += [random.pick([0xE8, 0xE9]), random.byte(), random.byte() & 3, 0, 0]
            case 10: bytes += [0x50 | random.byte() & 15]
            case 11: bytes += [0xD8 | random.byte() & 7, random.byte()]
            case 12: bytes += [random.pick([0xF2, 0xF3, 0x66]), 0x0F, random.byte(), random.byte()]
            case 13: bytes += [random.pick([0xC3, 0xC2, 0xCF, 0xCB, 0xCD, 0xFA, 0xFB, 0x9C, 0x9D, 0xCC, 0xF4, 0xEA, 0x9A, 0xA4, 0xA5, 0xAA, 0xAB])]
            case 14: bytes += [0x0F, random.pick([0x01, 0x00, 0x20, 0x22, 0x30, 0x32, 0x05, 0x07, 0xAE, 0xC7, 0x38, 0x3A]), random.byte()]
            default: bytes += [random.byte(), random.byte(), random.byte()]
            }
        }
        return Array(bytes.prefix(count))
    }

    /// Register values that aim at edges.
    static func value(_ random: inout SiliconRandom) -> UInt64 {
        let edges: [UInt64] = [
            0, 1, 0xFFF, 0x1000, 0xFFFF_FFFF, 0x1_0000_0000, 0xFFFF_F000, 0x7FFF_FFFF_FFFF, 0x8000_0000_0000, 0x7FFF_FFFF_F000,
            0xFFFF_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, ~0, ~0xFFF, 0x8000_0000_0000_0001, GuestCode.start, GuestCode.start + 0xFFF,
            TestMachine.data, TestMachine.data + 0x7FFC, TestMachine.stack, TestMachine.kernelBase, TestMachine.kernelBase + TestMachine.pageTables,
            TestMachine.kernelBase + TestMachine.idt, TestMachine.kernelBase + TestMachine.gdt,
        ]
        switch random.below(5) {
        case 0: return random.next()
        case 1: return TestMachine.data + UInt64(random.below(0x8000))
        case 2: return random.pick(edges) &+ UInt64(random.below(64)) &- 32
        case 3: return GuestCode.start + UInt64(random.below(0x4000))
        default: return UInt64(random.below(256))
        }
    }

    static func machine() throws -> TestMachine {
        let machine = try TestMachine(codeByteCount: 1 << 20)
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 4, [.writable, .user])
        machine.map(TestMachine.data, to: TestMachine.dataPhysical, count: 8, [.writable, .user])
        machine.map(TestMachine.stack - 8192, to: 0x30_0000, count: 2, [.writable, .user])
        // The same code at another address, page tables as data, RAM's last page, and one that is not RAM.
        machine.map(0x50_0000, to: TestMachine.codePhysical, count: 4, [.writable, .user])
        machine.map(0x7FFF_FFFF_F000, to: 0x7F_F000, [.writable, .user])
        machine.map(0xFFFF_F000, to: 0x7F_F000, [.writable, .user])
        machine.map(0x1_0000_0000, to: 0x80_0000, [.writable, .user])
        machine.map(0xFFFF_FFFF_FFFF_F000, to: 0x7F_E000, [.writable, .user])
        machine.map(0, to: 0x31_0000, count: 2, [.writable, .user])
        return machine
    }

    /// Makes every exception and interrupt go on somewhere in the code, so that a guest lasts.
    private static func survive(_ machine: TestMachine, _ random: inout SiliconRandom) {
        var code = GuestCode(at: TestMachine.kernelBase + TestMachine.handlers + 0x400)
        code.emit(0x48, 0xFF, 0x05)  // inc qword [counter]
        code.reference("counter")
        code.emit(0x48, 0x8B, 0x05)  // mov rax, [counter]
        code.reference("counter")
        code.emit(0x48, 0x69, 0xC0, 0xB1, 0x79, 0x37, 0x1E)  // imul rax, rax, 0x1E3779B1
        code.emit(0x48, 0xC1, 0xE8, 9)  // shr rax, 9
        code.emit(0x25, 0xFF, 0x3F, 0, 0)  // and eax, 0x3FFF
        code.emit(0x48, 0x05, 0, 0, 0x40, 0)  // add rax, 0x400000
        code.load(.rsp, TestMachine.stack - 0x800)
        code.emit(0xFF, 0xE0)  // jmp rax
        code.pad(to: 0x80)
        code.label("counter")
        for _ in 0..<8 { code.emit(random.byte()) }
        machine.memory.write(code.linked, at: TestMachine.handlers + 0x400)
        for vector in 0..<256 as Range<UInt64> {
            let at = TestMachine.idt + vector * 16
            let low = machine.memory.load(at, as: UInt64.self) ?? 0
            machine.memory.store(at, low & 0x0000_FFFF_FFFF_0000 | code.base & 0xFFFF | (code.base >> 16 & 0xFFFF) << 48)
        }
    }

    /// Protected mode without paging or real mode, with segments of any kind over the code, the data and all of memory, and
    /// gates that lead into the code.
    private static func leaveLongMode(_ machine: TestMachine, _ size: CodeSize, level: Int, _ random: inout SiliconRandom) {
        let c = machine.context
        let isReal = size == .real
        c.pointee.cr0 &= ~(CR0.pg | CR0.wp | (isReal ? CR0.pe : 0))
        c.pointee.cr4 &= ~CR4.pae
        c.pointee.msr.efer = 0
        for register in 0..<16 { c.pointee.gpr[register] &= random.percent(70) ? 0xFFFF : 0xFFFF_FFFF }
        func segment(code: Bool) -> SegmentRegister {
            let bases: [UInt64] = [0, TestMachine.codePhysical, TestMachine.dataPhysical, 0xFFFF_F000, machine.memory.byteCount - 4096, 0xFFF]
            let limits: [UInt32] = [0xFFFF, 0xFFFF_FFFF, 0x3FFF, 0xFFF, 0, 1, 0x7FFF_FFFF]
            var attributes: UInt32 = code ? 0x9B : random.pick([0x93, 0x93, 0x93, 0x97, 0x91, 0x9B, 0x1_0000])
            if random.percent(50) { attributes |= 0x4000 }
            if isReal { attributes = 0x93 }
            return SegmentRegister(
                selector: UInt16(truncatingIfNeeded: random.next()) & ~3 | UInt16(level), attributes: attributes | UInt32(level) << 5,
                limit: isReal && random.percent(60) ? 0xFFFF : random.pick(limits), base: code ? TestMachine.codePhysical : random.pick(bases))
        }
        c.pointee.cs = segment(code: true)
        c.pointee.ss = segment(code: false)
        c.pointee.ds = segment(code: false)
        c.pointee.es = segment(code: false)
        c.pointee.fs = segment(code: false)
        c.pointee.gs = segment(code: false)
        c.pointee.fsBase = c.pointee.fs.base
        c.pointee.gsBase = c.pointee.gs.base
        c.pointee.rip &= 0x3FFF
        c.pointee.gdtr = DescriptorTableRegister(base: TestMachine.gdt, limit: 0xFF)
        c.pointee.idtr = DescriptorTableRegister(base: TestMachine.idt, limit: 0x7FF)
        c.pointee.tr = SegmentRegister(selector: TestMachine.taskState, attributes: 0x8B, limit: 0x67, base: TestMachine.tss)
        // Descriptors of all kinds, among them flat code and data.
        for selector in stride(from: 8, to: 0x100, by: 8) as StrideTo<UInt64> {
            let type: UInt64 = random.pick([0x9B, 0x93, 0x9F, 0xFB, 0xF3, 0x97, 0x8C, 0x84, 0x86, 0x85, 0x89, 0x82])
            let wide = random.percent(50) ? UInt64(0x00CF_0000_0000_FFFF) : 0x0000_0000_0000_FFFF
            let base = random.pick([0, TestMachine.codePhysical, TestMachine.dataPhysical])
            machine.memory.store(TestMachine.gdt + selector, wide | type << 40 | (base & 0xFF_FFFF) << 16)
        }
        for vector in 0..<256 as Range<UInt64> {
            let selector = UInt64(random.below(31) + 1) << 3
            let type: UInt64 = random.pick([0x8E, 0xEE, 0x8F, 0x86, 0xE6, 0x87, 0x85])
            machine.memory.store(TestMachine.idt + vector * 8, UInt64(random.below(0x4000)) | selector << 16 | type << 40)
            // Real mode's vectors.
            machine.memory.store(vector * 4, UInt32(random.below(0x4000)) | 0xF000_0000 * (random.percent(20) ? 1 : 0) | 0x0000_0000)
        }
        machine.memory.store(TestMachine.tss + 4, UInt32(0x8000))
        machine.memory.store(TestMachine.tss + 8, UInt32(random.below(31) + 1) << 3)
        if isReal { c.pointee.idtr = DescriptorTableRegister(base: 0, limit: 0x3FF) }
    }

    /// One guest: code and registers by the seed, run for so long as a stop from outside allows.
    static func attack(_ machine: TestMachine, _ fortress: Fortress, size: CodeSize, seed: UInt64, stops: StopTimer) throws {
        var random = SiliconRandom(seed: seed)
        machine.memory.write(fill(4 * 4096, &random), at: TestMachine.codePhysical)
        machine.memory.write(fill(4096, &random), at: TestMachine.dataPhysical)
        for runs in 0..<3 {
            fortress.reset()
            if random.percent(60) { survive(machine, &random) }
            let level = random.percent(70) ? 0 : 3
            machine.enter(level: level)
            let c = machine.context
            for register in 0..<16 { c.pointee.gpr[register] = value(&random) }
            if random.percent(70) { c.pointee.gpr[4] = TestMachine.stack &- UInt64(random.below(4096)) }
            if random.percent(30) { c.pointee.gpr[1] = UInt64(random.below(64)) }
            c.pointee.fsBase = value(&random)
            c.pointee.gsBase = value(&random)
            c.pointee.msr.kernelGSBase = value(&random)
            c.pointee.msr.lstar = GuestCode.start + UInt64(random.below(0x4000))
            c.pointee.rflags = random.next() & 0xCD5 | 2 | (random.percent(5) ? RFLAGS.tf : 0) | (random.percent(20) ? RFLAGS.ac : 0)
            if size == .compatibility {
                c.pointee.cs = SegmentRegister(
                    selector: level == 0 ? 0x18 : 0x23, attributes: level == 0 ? 0xC09B : 0xC0FB, limit: 0xFFFF_FFFF)
                let data = SegmentRegister(selector: 0x2B, attributes: 0xC0F3, limit: 0xFFFF_FFFF)
                c.pointee.ss = level == 0 ? SegmentRegister(selector: 0x20, attributes: 0xC093, limit: 0xFFFF_FFFF) : data
                c.pointee.ds = data
                c.pointee.es = data
                for register in 0..<16 { c.pointee.gpr[register] &= 0xFFFF_FFFF }
            }
            c.pointee.rip = GuestCode.start + UInt64(random.below(0x4000))
            if size == .protected || size == .real { leaveLongMode(machine, size, level: level, &random) }
            machine.cpu.modeChanged()
            c.pointee.isHalted = false
            stops.arm()
            _ = try machine.cpu.run()
            stops.disarm()
            fortress.check("seed \(seed), run \(runs), \(size)")
        }
    }

    private func run(_ size: CodeSize, guests: Int) throws {
        func batch(_ seeds: some Sequence<UInt64>) throws {
            let machine = try Self.machine()
            let fortress = Fortress(machine)
            let stops = StopTimer(machine.cpu)
            defer { stops.end() }
            for seed in seeds { try Self.attack(machine, fortress, size: size, seed: seed, stops: stops) }
            fortress.checkAll("\(size)")
        }
        if let seed = SiliconTests.onlySeed {
            try batch([seed])
            return
        }
        for first in stride(from: 1, through: UInt64(guests), by: 25) { try batch(first..<min(first + 25, UInt64(guests) + 1)) }
        let end = ContinuousClock.now + .seconds(SiliconTests.seconds / 4)
        var seed = UInt64(Date().timeIntervalSince1970 * 1000) << 16
        while ContinuousClock.now < end {
            try batch(seed..<seed + 25)
            seed += 25
        }
    }

    @Test func `random bytes as 64-bit code do not get out`() throws { try run(.long, guests: 150) }
    @Test func `random bytes in protected mode do not get out`() throws { try run(.protected, guests: 150) }
    @Test func `random bytes in real mode do not get out`() throws { try run(.real, guests: 150) }
    @Test func `random bytes as 32-bit code do not get out`() throws { try run(.compatibility, guests: 150) }
}

/// Stops a CPU that runs for too long, again and again until it is disarmed.
final class StopTimer: Sendable {
    private let armedAt = Atomic<UInt64>(0)
    private let isOver = Atomic<Bool>(false)
    init(_ cpu: TranslatorCPU, milliseconds: UInt64 = 5) {
        let thread = Thread { [self] in
            while !isOver.load(ordering: .relaxed) {
                usleep(1000)
                let armed = armedAt.load(ordering: .relaxed)
                if armed != 0 && DispatchTime.now().uptimeNanoseconds > armed + milliseconds * 1_000_000 { cpu.stop() }
            }
        }
        thread.start()
    }
    func arm() { armedAt.store(DispatchTime.now().uptimeNanoseconds, ordering: .relaxed) }
    func disarm() { armedAt.store(0, ordering: .relaxed) }
    func end() { isOver.store(true, ordering: .relaxed) }
}
