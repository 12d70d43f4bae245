import Testing
import TranslatorEngine
import VMM

@Suite("Exception delivery in long mode") struct SystemExceptionTests {
    typealias M = SystemMachine

    @Test func `fault at level 0 pushes five words on the same aligned stack and sets RF in the image`() throws {
        let m = try M()
        m.setGate(6, 0xFFFF_8000_1234_5678)
        m.context.pointee.gpr[4] = M.kernelStack - 3
        m.context.pointee.rflags = 0x246
        try m.cpu.deliver(.invalidOpcode)
        #expect(m.context.pointee.rip == 0xFFFF_8000_1234_5678)
        #expect(m.context.pointee.gpr[4] == M.kernelStack - 16 - 40)
        #expect(m.stack(5) == [M.code, 8, 0x10246, M.kernelStack - 3, 0])
        #expect(m.context.pointee.rflags == 0x46)
    }

    @Test func `page fault from level 3 switches to RSP0, pushes its error code and loads CR2`() throws {
        let m = try M(level: 3)
        m.setGate(14, 0x30_0000)
        m.context.pointee.rflags = 0x202
        try m.cpu.deliver(.pageFault(0x1234, 6))
        #expect(m.context.pointee.cr2 == 0x1234)
        #expect(m.context.pointee.gpr[4] == M.kernelStack - 48)
        #expect(m.stack(6) == [6, M.code, 0x2B, 0x10202, M.userStack, 0x23])
        #expect(m.context.pointee.privilegeLevel == 0)
        #expect(m.context.pointee.cs.selector == 8)
        #expect(m.context.pointee.ss.selector == 0)
        #expect(m.context.pointee.ss.isUnusable)
    }

    @Test func `interrupt stack table is used at the same level too`() throws {
        let m = try M()
        m.setGate(2, 0x30_0000, ist: 1)
        try m.cpu.deliverNMI()
        #expect(m.context.pointee.gpr[4] == M.interruptStack - 40)
        #expect(m.context.pointee.nmiBlocked)
    }

    @Test func `trap gate leaves IF, interrupt gate clears it; both clear TF and NT`() throws {
        for (type, expected) in [(15, 0x202), (14, 0x2)] as [(UInt64, UInt64)] {
            let m = try M()
            m.setGate(0x20, 0x30_0000, type: type)
            m.context.pointee.rflags = 0x4302
            try m.cpu.deliverInterrupt(vector: 0x20)
            #expect(m.context.pointee.rflags == expected)
            #expect(m.stack(3)[2] == 0x4302)
        }
    }

    @Test func `interrupt ends a halt and the interrupt shadow`() throws {
        let m = try M()
        m.setGate(0x20, 0x30_0000)
        m.context.pointee.isHalted = true
        m.context.pointee.interruptShadow = true
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(!m.context.pointee.isHalted)
        #expect(!m.context.pointee.interruptShadow)
    }

    @Test func `INT n needs a gate of its level`() throws {
        let m = try M(level: 3)
        m.setGate(0x80, 0x30_0000)
        #expect(try m.fault(0xCD, 0x80) == .generalProtection(0x80 * 8 + 2))
        m.setGate(0x80, 0x30_0000, dpl: 3)
        try m.run(0xCD, 0x80)
        #expect(m.stack(1) == [M.code + 2])
    }

    @Test func `INT3 pushes the next address with RF clear`() throws {
        let m = try M(level: 3)
        m.setGate(3, 0x30_0000, dpl: 3)
        try m.run(0xCC)
        #expect(m.stack(3) == [M.code + 1, 0x2B, 2])
    }

    @Test func `vector beyond the table is a general protection fault`() throws {
        let m = try M()
        m.setGate(13, 0x30_0000)
        m.context.pointee.idtr.limit = 14 * 16 - 1
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.stack(2) == [0x20 * 8 + 3, M.code])
    }

    @Test func `gate that is not present is #NP with the vector`() throws {
        let m = try M()
        m.setGate(0x20, 0x30_0000, present: false)
        m.setGate(11, 0x31_0000)
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.context.pointee.rip == 0x31_0000)
        #expect(m.stack(1) == [0x20 * 8 + 3])
    }

    @Test(arguments: [
        (SystemMachine.userCode, 13, 0x29), (SystemMachine.kernelData, 13, 0x11), (0, 13, 1), (0xF00, 13, 0xF01),
        (SystemMachine.kernelCode32, 13, 0x71),
    ] as [(UInt16, UInt8, UInt64)])
    func `bad code segment in a gate is refused`(selector: UInt16, vector: UInt8, code: UInt64) throws {
        let m = try M()
        m.setGate(0x20, 0x30_0000, selector: selector)
        m.setGate(vector, 0x31_0000)
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.context.pointee.rip == 0x31_0000)
        #expect(m.stack(1) == [code])
    }

    @Test func `two contributory faults make a double fault with error code 0`() throws {
        let m = try M()
        m.setGate(8, 0x32_0000)
        try m.cpu.deliver(.generalProtection(0x50))
        #expect(m.context.pointee.rip == 0x32_0000)
        #expect(m.stack(2) == [0, M.code])
    }

    @Test func `page fault while delivering a general protection fault is delivered`() throws {
        let m = try M(level: 3)
        m.setGate(13, 0x31_0000)
        m.setGate(14, 0x32_0000, ist: 1)
        // A kernel stack outside of the page tables.
        m.memory.store(M.tss + 4, 0x4000_0000 as UInt64)
        try m.cpu.deliver(.generalProtection())
        #expect(m.context.pointee.rip == 0x32_0000)
        #expect(m.context.pointee.cr2 == 0x4000_0000 - 48)
        #expect(m.stack(3) == [2, M.code, 0x2B])
    }

    @Test func `page fault while delivering a page fault is a double fault, and again a triple fault`() throws {
        let m = try M(level: 3)
        m.setGate(14, 0x32_0000)
        m.setGate(8, 0x33_0000, ist: 1)
        m.memory.store(M.tss + 4, 0x4000_0000 as UInt64)
        try m.cpu.deliver(.pageFault(0x10, 4))
        #expect(m.context.pointee.rip == 0x33_0000)
        let n = try M(level: 3)
        n.setGate(14, 0x32_0000)
        n.memory.store(M.tss + 4, 0x4000_0000 as UInt64)
        let before = n.registers
        #expect {
            try n.cpu.deliver(.pageFault(0x10, 4))
        } throws: { error in
            let text = (error as? TripleFault)?.reason ?? ""
            return text.contains("double fault") && text.contains("#PF(0x4) at 0x10")
        }
        #expect(n.registers == before)
    }

    @Test func `stack pointer that is not canonical is a stack fault`() throws {
        let m = try M()
        m.setGate(0x20, 0x30_0000)
        m.setGate(12, 0x31_0000, ist: 1)
        m.context.pointee.gpr[4] = 0x8000_0000_0000
        // The lowest canonical addresses above the gap are fine, those below it are not.
        m.context.pointee.gpr[4] = 0x0001_0000_0000_0000
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.context.pointee.rip == 0x31_0000)
        #expect(m.stack(1) == [1])
    }

    @Test func `conforming handler keeps the level`() throws {
        let m = try M(level: 3)
        m.setGate(0x20, 0x83_0000, selector: M.conforming)
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.context.pointee.privilegeLevel == 3)
        #expect(m.context.pointee.gpr[4] == M.userStack - 40)
    }

    @Test func `compatibility mode enters 64-bit handlers`() throws {
        let m = try M(.compatibility)
        m.setGate(14, 0x30_0000)
        try m.cpu.deliver(.pageFault(0x10, 4))
        #expect(m.context.pointee.is64Bit)
        #expect(m.stack(6) == [4, M.code, 0x1B, 0x10002, M.userStack, 0x23])
    }

    @Test func `accessed flag of the code segment is set in its table`() throws {
        let m = try M()
        m.setGate(0x20, 0x30_0000)
        m.memory.store(M.gdt + 8, 0x00AF_9A00_0000_FFFF as UInt64)
        try m.cpu.deliverInterrupt(vector: 0x20)
        #expect(m.memory.load(M.gdt + 8, as: UInt64.self) == 0x00AF_9B00_0000_FFFF)
        #expect(m.context.pointee.cs.attributes & 1 == 1)
    }
}
