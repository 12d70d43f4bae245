import Testing
import TranslatorEngine
import VMM

@Suite("Protected, real and virtual-8086 mode") struct SystemLegacyTests {
    typealias M = SystemMachine

    @Test func `protected-mode fault from level 3 switches stacks by the TSS, and IRETD goes back`() throws {
        let m = try M(.protected32, level: 3)
        m.setGate32(13, 0x30_0000)
        m.context.pointee.rflags = 0x206
        try m.cpu.deliver(.generalProtection(0x50))
        #expect(m.context.pointee.rip == 0x30_0000)
        #expect(m.context.pointee.ss == m.loaded(M.kernelData))
        #expect(m.stack32(6) == [0x50, UInt32(M.code), 0x1B, 0x1_0206, UInt32(M.userStack), 0x23])
        #expect(m.context.pointee.rflags == 6)
        m.context.pointee.gpr[4] += 4
        try m.run(0xCF)
        #expect(m.context.pointee.rip == M.code)
        #expect(m.context.pointee.privilegeLevel == 3)
        #expect(m.context.pointee.gpr[4] == M.userStack)
        #expect(m.context.pointee.rflags == 0x1_0206)
    }

    @Test func `same-level interrupt pushes three words, 16-bit gates push halves`() throws {
        let m = try M(.protected32)
        m.setGate32(0x20, 0x30_0000, type: 15)
        m.context.pointee.rflags = 0x202
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.stack32(3) == [UInt32(M.code), 0x70, 0x202])
        #expect(m.context.pointee.rflags == 0x202)
        let n = try M(.protected32)
        n.context.pointee.rip = 0x1234
        n.setGate32(0x20, 0x3000, type: 6)
        n.context.pointee.rflags = 0x202
        try n.cpu.deliverInterrupt(vector: 0x20)
        #expect(n.context.pointee.gpr[4] == M.kernelStack - 6)
        #expect(n.memory.load(n.context.pointee.gpr[4], as: UInt16.self) == 0x1234)
        #expect(n.context.pointee.rflags == 2)
        try n.run(0x66, 0xCF)
        #expect(n.context.pointee.rip == 0x1234)
    }

    @Test func `bad stack in the TSS is an invalid-TSS fault`() throws {
        let m = try M(.protected32, level: 3)
        m.setGate32(0x20, 0x30_0000)
        m.setGate32(10, 0x83_0000, selector: M.conforming)
        m.memory.store(M.tss + 8, UInt32(M.userData | 3))
        // The handler of #TS keeps the level, so that its frame can be looked at.
        m.memory.store(M.gdt + UInt64(M.conforming), 0x00CF_9F00_0000_FFFF as UInt64)
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.context.pointee.rip == 0x83_0000)
        #expect(m.stack32(1) == [UInt32(M.userData) | 1])
    }

    @Test func `level 1 call by the stack limit faults with no effect`() throws {
        let m = try M(.protected32)
        m.setGate32(0x20, 0x30_0000, dpl: 0)
        m.setGate32(8, 0x31_0000)
        m.context.pointee.ss.attributes = 0x4093
        m.context.pointee.ss.limit = 7
        m.context.pointee.gpr[4] = 4
        let before = m.registers
        #expect(throws: TripleFault.self) { try m.cpu.deliverInterrupt(vector: 0x20) }
        #expect(m.registers == before)
    }

    // MARK: Real mode

    @Test func `real mode goes by the vector table and back by IRET`() throws {
        let m = try M(.real)
        m.memory.store(0x21 * 4, 0x4000_1234 as UInt32)
        m.context.pointee.rflags = 0x246
        try m.run(0xCD, 0x21)
        #expect(m.context.pointee.rip == 0x1234)
        #expect(m.context.pointee.cs.base == 0x40000)
        #expect(m.context.pointee.rflags == 0x46)
        #expect(m.memory.read(0x20000 + 0x7FFA, count: 6) == [0x02, 0x01, 0x00, 0x10, 0x46, 0x02])
        try m.run(0xCF)
        #expect(m.context.pointee.rip == 0x102)
        #expect(m.context.pointee.cs.base == 0x10000)
        #expect(m.context.pointee.rflags == 0x246)
        #expect(m.context.pointee.gpr[4] == 0x8000)
    }

    @Test func `stack pointer of 16-bit stacks wraps`() throws {
        let m = try M(.real)
        m.context.pointee.gpr[4] = 0xFFFF_0000_0000
        try m.run(0x9C)
        #expect(m.context.pointee.gpr[4] == 0xFFFF_0000_FFFE)
    }

    // MARK: Virtual-8086 mode

    @Test func `virtual-8086 mode is entered by IRETD and left by an interrupt`() throws {
        let m = try M(.protected32)
        m.setGate32(0x20, 0x30_0000)
        m.context.pointee.gpr[4] -= 36
        let frame: [UInt32] = [0x100, 0x1000, 0x2_3202, 0x8000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]
        for (index, value) in frame.enumerated() {
            m.memory.store(m.context.pointee.gpr[4] + UInt64(index) * 4, value)
        }
        try m.run(0xCF)
        #expect(m.context.pointee.privilegeLevel == 3)
        #expect(m.context.pointee.cs == SegmentRegister(selector: 0x1000, attributes: 0xF3, limit: 0xFFFF, base: 0x10000))
        #expect(m.context.pointee.gs.base == 0x60000)
        #expect(m.context.pointee.gpr[4] == 0x8000)
        #expect(m.context.pointee.rip == 0x100)
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.context.pointee.privilegeLevel == 0)
        #expect(m.context.pointee.rflags & RFLAGS.vm == 0)
        #expect(m.stack32(9) == frame)
        #expect(m.context.pointee.gs.isUnusable)
        #expect(m.context.pointee.es.isUnusable)
    }

    @Test func `sensitive instructions in virtual-8086 mode need IOPL 3`() throws {
        let m = try M(.virtual8086)
        #expect(try m.fault(0xFA) == .generalProtection())
        #expect(try m.fault(0x9C) == .generalProtection())
        #expect(try m.fault(0x9D) == .generalProtection())
        #expect(try m.fault(0xCF) == .generalProtection())
        #expect(try m.fault(0xCD, 0x21) == .generalProtection())
        #expect(try m.fault(0xF4) == .generalProtection())
        #expect(try m.fault(0x0F, 0x00, 0xC8) == .invalidOpcode)
        m.context.pointee.rflags |= RFLAGS.iopl
        try m.run(0xFA)
        m.context.pointee.gpr[0] = 0x4321
        try m.run(0x8E, 0xD8)
        #expect(m.context.pointee.ds.base == 0x43210)
    }

    // MARK: 32-bit user instructions

    @Test func `PUSHA and POPA keep the stack pointer`() throws {
        let m = try M(.protected32)
        for index in 0..<8 where index != 4 { m.context.pointee.gpr[index] = UInt64(index) * 0x1111 }
        let before = m.registers
        try m.run(0x60)
        #expect(m.stack32(8) == [0x7777, 0x6666, 0x5555, UInt32(M.kernelStack), 0x3333, 0x2222, 0x1111, 0])
        for index in 0..<8 where index != 4 { m.context.pointee.gpr[index] = 0 }
        try m.run(0x61)
        #expect(m.registers == before)
    }

    @Test func `BOUND raises vector 5 outside of its bounds`() throws {
        let m = try M(.protected32)
        m.memory.store(M.scratch, UInt32(bitPattern: -5))
        m.memory.store(M.scratch + 4, 10 as UInt32)
        m.context.pointee.gpr[0] = M.scratch
        m.context.pointee.gpr[3] = 0xFFFF_FFFB
        #expect(try m.fault(0x62, 0x18) == nil)
        m.context.pointee.gpr[3] = 11
        #expect(try m.fault(0x62, 0x18) == GuestException(vector: 5))
    }

    @Test(arguments: [
        // AX, flags, opcode, result, flags after (CF AF), of SDM Vol. 2's examples and edges
        (0xAE, 0, 0x27, 0x14, 0x11), (0x9A, 0, 0x27, 0x00, 0x11), (0x0F, 0, 0x27, 0x15, 0x10),
        (0xEE, 0x11, 0x2F, 0x88, 0x11), (0x05, 0x10, 0x2F, 0xFF, 0x11), (0x99, 0, 0x27, 0x99, 0),
        (0x000F, 0, 0x37, 0x0105, 0x11), (0x0105, 0, 0x37, 0x0105, 0), (0x02FF, 0, 0x3F, 0x0109, 0x11),
        (0x00FB, 0x10, 0x37, 0x0201, 0x11),
    ] as [(UInt64, UInt64, UInt8, UInt64, UInt64)])
    func `decimal adjustments`(ax: UInt64, flags: UInt64, opcode: UInt8, result: UInt64, after: UInt64) throws {
        let m = try M(.protected32)
        m.context.pointee.gpr[0] = ax
        m.context.pointee.rflags = flags | 2
        try m.run(opcode)
        #expect(m.context.pointee.gpr[0] == result)
        #expect(m.context.pointee.rflags & 0x11 == after)
    }

    @Test func `AAM divides, AAD multiplies, AAM by zero faults`() throws {
        let m = try M(.protected32)
        m.context.pointee.gpr[0] = 0x3F
        try m.run(0xD4, 0x0A)
        #expect(m.context.pointee.gpr[0] == 0x0603)
        try m.run(0xD5, 0x0A)
        #expect(m.context.pointee.gpr[0] == 0x3F)
        #expect(try m.fault(0xD4, 0x00) == .divideError)
    }

    @Test func `ENTER builds nested frames, XLAT looks up, SALC spreads carry`() throws {
        let m = try M(.protected32)
        m.context.pointee.gpr[5] = 0x0F_0000
        m.memory.store(0x0F_0000 - 4, 0xAAAA as UInt32)
        try m.run(0xC8, 0x10, 0x00, 0x02)
        #expect(m.context.pointee.gpr[5] == M.kernelStack - 4)
        #expect(m.context.pointee.gpr[4] == M.kernelStack - 12 - 16)
        m.context.pointee.gpr[4] += 16
        #expect(m.stack32(3) == [UInt32(M.kernelStack) - 4, 0xAAAA, 0x0F_0000])
        m.memory.store(M.scratch + 7, 0x99 as UInt8)
        m.context.pointee.gpr[3] = M.scratch
        m.context.pointee.gpr[0] = 0x1207
        try m.run(0xD7)
        #expect(m.context.pointee.gpr[0] == 0x1299)
        m.context.pointee.rflags |= RFLAGS.cf
        try m.run(0xD6)
        #expect(m.context.pointee.gpr[0] == 0x12FF)
    }

    @Test func `INTO traps on overflow only`() throws {
        let m = try M(.protected32)
        m.setGate32(4, 0x30_0000)
        try m.run(0xCE)
        #expect(m.context.pointee.rip == M.code + 1)
        m.context.pointee.rflags |= RFLAGS.of
        try m.run(0xCE)
        #expect(m.context.pointee.rip == 0x30_0000)
    }
}

@Suite("Hardware task switches") struct SystemTaskTests {
    typealias M = SystemMachine
    static let second: UInt64 = 0xB000
    static let selector: UInt16 = 0x90

    /// A second task at level 0.
    private func machine() throws -> SystemMachine {
        let m = try M(.protected32)
        m.setSystemDescriptor(Self.selector, type: 9, base: Self.second, limit: 0x67, isLong: false)
        m.setSystemDescriptor(M.tssSelector, type: 11, base: M.tss, limit: 0x1FF, isLong: false)
        m.memory.store(Self.second + 0x20, UInt32(0x30_0000))
        m.memory.store(Self.second + 0x24, 0x2 as UInt32)
        m.memory.store(Self.second + 0x38, UInt32(M.interruptStack))
        for (index, selector) in [M.kernelData, M.kernelCode32, M.kernelData, M.kernelData, 0, 0].enumerated() {
            m.memory.store(Self.second + 0x48 + UInt64(index) * 4, selector)
        }
        return m
    }

    @Test func `far call saves the old task and links it, IRET goes back`() throws {
        let m = try machine()
        m.context.pointee.gpr[3] = 0x3333
        m.context.pointee.rflags = 0x206
        try m.run(0x9A, 0, 0, 0, 0, 0x90, 0)
        #expect(m.context.pointee.rip == 0x30_0000)
        #expect(m.context.pointee.gpr[4] == M.interruptStack)
        #expect(m.context.pointee.tr.selector == Self.selector)
        #expect(m.context.pointee.rflags == 0x4002)
        #expect(m.context.pointee.cr0 & CR0.ts != 0)
        #expect(m.memory.load(Self.second, as: UInt16.self) == M.tssSelector)
        #expect(m.memory.load(M.tss + 0x20, as: UInt32.self) == UInt32(M.code) + 7)
        #expect(m.memory.load(M.tss + 0x24, as: UInt32.self) == 0x206)
        try m.run(0xCF)
        #expect(m.context.pointee.rip == M.code + 7)
        #expect(m.context.pointee.gpr[3] == 0x3333)
        #expect(m.context.pointee.gpr[4] == M.kernelStack)
        #expect(m.context.pointee.rflags == 0x206)
        #expect(m.context.pointee.tr.selector == M.tssSelector)
        #expect(m.memory.load(M.gdt + UInt64(Self.selector) + 5, as: UInt8.self) == 0x89)
    }

    @Test func `task gate takes a double fault on a stack of its own`() throws {
        let m = try machine()
        m.memory.store(M.idt + 8 * 8, 0x8500_0090_0000 as UInt64)
        m.context.pointee.gpr[4] = 2
        m.context.pointee.ss.limit = 0
        try m.cpu.deliver(.generalProtection())
        #expect(m.context.pointee.rip == 0x30_0000)
        #expect(m.context.pointee.gpr[4] == M.interruptStack - 4)
        #expect(m.stack32(1) == [0])
        #expect(m.memory.load(M.tss + 0x38, as: UInt32.self) == 2)
    }

    @Test func `task whose TSS has T set begins with a debug trap`() throws {
        for traps in [true, false] {
            let m = try machine()
            m.memory.store(Self.second + 0x64, (traps ? 1 : 0) as UInt16)
            m.setGate32(1, 0x30_8000)
            m.memory.store(0x30_0000, 0x90F4 as UInt16)  // hlt
            m.memory.store(0x30_8000, 0x90F4 as UInt16)
            m.context.pointee.dr6 = 0xFFFF_0FF0
            try m.run(0xEA, 0, 0, 0, 0, 0x90, 0)
            #expect(try m.cpu.run() == .halt(interruptsEnabled: false))
            #expect(m.context.pointee.rip == (traps ? 0x30_8001 : 0x30_0001))
            #expect(m.context.pointee.dr6 == (traps ? 0xFFFF_8FF0 : 0xFFFF_0FF0))
            if traps { #expect(m.stack32(1) == [0x30_0000]) }
        }
    }

    @Test func `jump leaves the old task available, a busy task is refused`() throws {
        let m = try machine()
        try m.run(0xEA, 0, 0, 0, 0, 0x90, 0)
        #expect(m.memory.load(M.gdt + UInt64(M.tssSelector) + 5, as: UInt8.self) == 0x89)
        #expect(m.context.pointee.rflags & RFLAGS.nt == 0)
        #expect(try m.fault(0xEA, 0, 0, 0, 0, 0x90, 0) == .generalProtection(0x90))
    }
}
