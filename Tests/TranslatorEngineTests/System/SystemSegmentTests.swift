import Testing
import TranslatorEngine
import VMM

@Suite("Segments, descriptor tables, far transfers") struct SystemSegmentTests {
    typealias M = SystemMachine

    // MARK: Loads and stores of segment registers

    @Test func `MOV to a data segment register loads its descriptor`() throws {
        let m = try M()
        m.context.pointee.gpr[0] = UInt64(M.userData | 3)
        try m.run(0x8E, 0xD8)
        #expect(m.context.pointee.ds == m.loaded(M.userData | 3))
        #expect(m.context.pointee.rip == M.code + 2)
        m.context.pointee.gpr[0] = 0
        try m.run(0x8E, 0xE0)
        #expect(m.context.pointee.fs.isUnusable)
        #expect(m.context.pointee.fsBase == 0)
    }

    @Test(arguments: [
        (SystemMachine.kernelData, GuestException.generalProtection(0x10)),
        (SystemMachine.absent | 3, .segmentNotPresent(0x38)),
        (SystemMachine.tssSelector | 3, .generalProtection(0x40)), (0x100, .generalProtection(0x100)),
        (0xC, .generalProtection(0xC)),
    ] as [(UInt16, GuestException)])
    func `MOV to DS at level 3 refuses`(selector: UInt16, expected: GuestException) throws {
        let m = try M(level: 3)
        m.memory.store(M.gdt + UInt64(M.absent), 0x00CF_7300_0000_FFFF as UInt64)
        m.context.pointee.gpr[0] = UInt64(selector)
        #expect(try m.fault(0x8E, 0xD8) == expected)
    }

    @Test func `MOV to SS opens an interrupt shadow and takes null in 64-bit mode only below level 3`() throws {
        let m = try M()
        m.context.pointee.gpr[0] = 0
        try m.run(0x8E, 0xD0)
        #expect(m.context.pointee.interruptShadow)
        let user = try M(level: 3)
        user.context.pointee.gpr[0] = 3
        #expect(try user.fault(0x8E, 0xD0) == .generalProtection())
        m.context.pointee.gpr[0] = UInt64(M.userData)
        #expect(try m.fault(0x8E, 0xD0) == .generalProtection(0x20))
        m.memory.store(M.gdt + UInt64(M.absent), 0x00CF_1300_0000_FFFF as UInt64)
        m.context.pointee.gpr[0] = UInt64(M.absent)
        #expect(try m.fault(0x8E, 0xD0) == .stackFault(0x38))
    }

    @Test func `segment registers are stored, pushed and popped`() throws {
        let m = try M(level: 3)
        m.context.pointee.gpr[1] = ~0
        try m.run(0x8C, 0xD9)
        #expect(m.context.pointee.gpr[1] == 0x23)
        m.context.pointee.gpr[1] = ~0
        try m.run(0x66, 0x8C, 0xD9)
        #expect(m.context.pointee.gpr[1] == 0xFFFF_FFFF_FFFF_0023)
        try m.run(0x0F, 0xA0)
        #expect(m.context.pointee.gpr[4] == M.userStack - 8)
        #expect(m.stack(1) == [0x23])
        m.context.pointee.gs = SegmentRegister()
        try m.run(0x0F, 0xA9)
        #expect(m.context.pointee.gs.selector == 0x23)
        #expect(m.context.pointee.gpr[4] == M.userStack)
    }

    @Test func `real mode loads set the base and keep the limit`() throws {
        let m = try M(.real)
        m.context.pointee.ds.limit = 0xFFFF_FFFF
        m.context.pointee.gpr[0] = 0x4567
        try m.run(0x8E, 0xD8)
        #expect(m.context.pointee.ds.base == 0x45670)
        #expect(m.context.pointee.ds.limit == 0xFFFF_FFFF)
    }

    @Test func `LSS, LFS and LDS load register and segment together`() throws {
        let m = try M(.protected32)
        m.memory.store(M.scratch, 0x1234_5678 as UInt32)
        m.memory.store(M.scratch + 4, M.kernelData)
        m.context.pointee.gpr[0] = M.scratch
        try m.run(0x0F, 0xB2, 0x18)
        #expect(m.context.pointee.gpr[3] == 0x1234_5678)
        #expect(m.context.pointee.ss == m.loaded(M.kernelData))
        try m.run(0xC5, 0x08)
        #expect(m.context.pointee.gpr[1] == 0x1234_5678)
        #expect(m.context.pointee.ds == m.loaded(M.kernelData))
    }

    // MARK: Table registers

    @Test func `GDTR and IDTR are loaded and stored`() throws {
        let m = try M()
        m.memory.store(M.scratch, 0x123 as UInt16)
        m.memory.store(M.scratch + 2, 0xFFFF_8000_0000_4000 as UInt64)
        m.context.pointee.gpr[0] = M.scratch
        try m.run(0x0F, 0x01, 0x18)
        #expect(m.context.pointee.idtr == DescriptorTableRegister(base: 0xFFFF_8000_0000_4000, limit: 0x123))
        m.context.pointee.gpr[0] = M.scratch + 0x20
        try m.run(0x0F, 0x01, 0x08)
        #expect(m.memory.load(M.scratch + 0x20, as: UInt16.self) == 0x123)
        #expect(m.memory.load(M.scratch + 0x22, as: UInt64.self) == 0xFFFF_8000_0000_4000)
        m.memory.store(M.scratch + 2, 0x8000_0000_0000 as UInt64)
        m.context.pointee.gpr[0] = M.scratch
        #expect(try m.fault(0x0F, 0x01, 0x10) == .generalProtection())
        let narrow = try M(.protected16)
        narrow.memory.store(0x20000, 0xFF12_3456_0010 as UInt64)
        narrow.context.pointee.gpr[3] = 0
        try narrow.run(0x0F, 0x01, 0x17)
        #expect(narrow.context.pointee.gdtr == DescriptorTableRegister(base: 0x12_3456, limit: 0x10))
    }

    @Test func `LTR marks its descriptor busy and takes 16 bytes in long mode`() throws {
        let m = try M()
        m.setSystemDescriptor(M.tssSelector, type: 9, base: 0xFFFF_8000_0012_3000, limit: 0x67, isLong: true)
        m.context.pointee.gpr[0] = UInt64(M.tssSelector)
        try m.run(0x0F, 0x00, 0xD8)
        #expect(m.context.pointee.tr.base == 0xFFFF_8000_0012_3000)
        #expect(m.context.pointee.tr.attributes == 0x8B)
        #expect(try m.fault(0x0F, 0x00, 0xD8) == .generalProtection(0x40))
        try m.run(0x0F, 0x00, 0xC9)
        #expect(m.context.pointee.gpr[1] == 0x40)
    }

    @Test func `LLDT takes LDTs and null; descriptors come from it then`() throws {
        let m = try M()
        m.memory.store(M.ldt + 8, 0x00CF_F300_0000_FFFF as UInt64)
        m.context.pointee.gpr[0] = 0xF
        #expect(try m.fault(0x8E, 0xD8) == .generalProtection(0xC))
        m.context.pointee.gpr[0] = UInt64(M.ldtSelector)
        try m.run(0x0F, 0x00, 0xD0)
        m.context.pointee.gpr[0] = 0xF
        try m.run(0x8E, 0xD8)
        #expect(m.context.pointee.ds.selector == 0xF)
        m.context.pointee.gpr[0] = UInt64(M.kernelData)
        #expect(try m.fault(0x0F, 0x00, 0xD0) == .generalProtection(0x10))
        m.context.pointee.gpr[0] = 0
        try m.run(0x0F, 0x00, 0xD0)
        #expect(m.context.pointee.ldtr.isUnusable)
    }

    // MARK: Questions

    @Test func `LAR, LSL, VERR and VERW answer by ZF`() throws {
        let m = try M(level: 3)
        func ask(_ bytes: [UInt8], _ selector: UInt16) throws -> Bool {
            m.context.pointee.gpr[1] = UInt64(selector)
            m.context.pointee.gpr[0] = 0
            var instruction = try #require(try m.decode(bytes))
            try m.cpu.perform(&instruction)
            return m.context.pointee.rflags & RFLAGS.zf != 0
        }
        let lar: [UInt8] = [0x0F, 0x02, 0xC1]
        let lsl: [UInt8] = [0x0F, 0x03, 0xC1]
        #expect(try ask(lar, M.userData | 3))
        #expect(m.context.pointee.gpr[0] == 0xCF_F300)
        #expect(try ask(lsl, M.userData | 3))
        #expect(m.context.pointee.gpr[0] == 0xFFFF_FFFF)
        #expect(try !ask(lar, M.kernelData))
        #expect(try !ask(lsl, 0))
        #expect(try !ask(lar, 0x1000))
        #expect(try ask(lar, M.conforming))
        let verr: [UInt8] = [0x0F, 0x00, 0xE1]
        let verw: [UInt8] = [0x0F, 0x00, 0xE9]
        #expect(try ask(verr, M.userData | 3))
        #expect(try ask(verw, M.userData | 3))
        #expect(try !ask(verw, M.userCode | 3))
        #expect(try ask(verr, M.userCode | 3))
        #expect(try !ask(verw, M.tssSelector))
        let real = try M(.real)
        #expect(try real.fault(0x0F, 0x00, 0xE1) == .invalidOpcode)
        #expect(try real.fault(0x0F, 0x02, 0xC1) == .invalidOpcode)
    }

    @Test func `ARPL raises the requested level`() throws {
        let m = try M(.protected32, level: 3)
        m.context.pointee.gpr[0] = 0x10
        m.context.pointee.gpr[3] = 0x13
        try m.run(0x63, 0xD8)
        #expect(m.context.pointee.gpr[0] == 0x13)
        #expect(m.context.pointee.rflags & RFLAGS.zf != 0)
        try m.run(0x63, 0xD8)
        #expect(m.context.pointee.rflags & RFLAGS.zf == 0)
    }

    // MARK: Far transfers

    @Test func `far return to the same and to an outer level`() throws {
        let m = try M()
        m.push(0x20_1000, UInt64(M.kernelCode32))
        try m.run(0x48, 0xCB)
        #expect(!m.context.pointee.is64Bit)
        #expect(m.context.pointee.rip == 0x20_1000)
        let n = try M()
        n.push(0x80_1000, UInt64(M.userCode | 3), 0, 0, M.userStack, UInt64(M.userData | 3))
        try n.run(0x48, 0xCA, 0x10, 0x00)
        #expect(n.context.pointee.privilegeLevel == 3)
        #expect(n.context.pointee.gpr[4] == M.userStack + 16)
        #expect(n.context.pointee.rip == 0x80_1000)
        #expect(try n.fault(0x48, 0xCB) == .generalProtection())
    }

    @Test func `far jumps check type, level and presence`() throws {
        let m = try M(.protected32)
        func jump(_ selector: UInt16) throws -> GuestException? {
            let bytes: [UInt8] = [0xEA, 0x00, 0x10, 0x20, 0x00, UInt8(selector & 0xFF), UInt8(selector >> 8)]
            var instruction = try #require(try m.decode(bytes))
            do throws(GuestException) {
                try m.cpu.perform(&instruction)
                return nil
            } catch { return error }
        }
        #expect(try jump(0) == .generalProtection())
        #expect(try jump(M.kernelData) == .generalProtection(0x10))
        #expect(try jump(M.userCode32 | 3) == .generalProtection(0x18))
        #expect(try jump(0x1000) == .generalProtection(0x1000))
        #expect(m.context.pointee.rip == M.code)
        #expect(try jump(M.kernelCode32 | 3) == .generalProtection(0x70))
        #expect(try jump(M.conforming) == nil)
        m.context.pointee.cs = m.loaded(M.kernelCode32)
        #expect(try jump(M.kernelCode32) == nil)
        #expect(m.context.pointee.rip == 0x20_1000)
        m.context.pointee.cs.limit = 0xFFF
        m.memory.store(M.gdt + UInt64(M.kernelCode32), 0x0040_9B00_0000_0FFF as UInt64)
        #expect(try jump(M.kernelCode32) == .generalProtection())
    }

    @Test func `far call pushes CS and the next address`() throws {
        let m = try M(.protected32)
        try m.run(0x9A, 0x00, 0x10, 0x20, 0x00, 0x70, 0x00)
        #expect(m.stack32(2) == [UInt32(M.code) + 7, 0x70])
        #expect(m.context.pointee.rip == 0x20_1000)
        try m.run(0xCB)
        #expect(m.context.pointee.rip == M.code + 7)
        #expect(m.context.pointee.gpr[4] == M.kernelStack)
    }

    @Test func `call gate switches the stack and copies parameters`() throws {
        let m = try M(.protected32, level: 3)
        // 2 parameters, level 3, to 0x201000.
        m.memory.store(M.gdt + UInt64(M.callGate), 0x0020_EC02_0070_1000 as UInt64)
        m.context.pointee.gpr[4] -= 8
        m.memory.store(m.context.pointee.gpr[4], 0x2222_2222_1111_1111 as UInt64)
        try m.run(0x9A, 0, 0, 0, 0, 0x63, 0x00)
        #expect(m.context.pointee.rip == 0x20_1000)
        #expect(m.context.pointee.privilegeLevel == 0)
        #expect(m.context.pointee.ss == m.loaded(M.kernelData))
        #expect(
            m.stack32(6) == [
                UInt32(M.code) + 7, 0x1B, 0x1111_1111, 0x2222_2222, UInt32(M.userStack) - 8, 0x23,
            ])
        try m.run(0xCA, 8, 0)
        #expect(m.context.pointee.privilegeLevel == 3)
        #expect(m.context.pointee.gpr[4] == M.userStack)
    }

    @Test func `call gate of long mode has 16 bytes and eight-byte pushes`() throws {
        let m = try M(level: 3)
        m.memory.store(M.gdt + UInt64(M.callGate), 0x0020_EC00_0008_1000 as UInt64)
        m.memory.store(M.gdt + UInt64(M.callGate) + 8, 0 as UInt64)
        m.memory.store(M.scratch, 0 as UInt32)
        m.memory.store(M.scratch + 4, M.callGate | 3)
        m.context.pointee.gpr[0] = M.scratch
        try m.run(0xFF, 0x18)
        #expect(m.context.pointee.rip == 0x20_1000)
        #expect(m.stack(4) == [M.code + 2, 0x2B, M.userStack, 0x23])
        #expect(m.context.pointee.ss.isUnusable)
        m.memory.store(M.gdt + UInt64(M.callGate) + 8, 0x1F00_0000_0000 as UInt64)
        let n = try M(level: 3)
        n.memory.store(M.gdt + UInt64(M.callGate), 0x0020_8C00_0008_1000 as UInt64)
        n.memory.store(M.scratch + 4, M.callGate | 3)
        n.context.pointee.gpr[0] = M.scratch
        #expect(try n.fault(0xFF, 0x18) == .generalProtection(0x60))
    }

    @Test func `real mode far jump and call`() throws {
        let m = try M(.real)
        try m.run(0x9A, 0x34, 0x12, 0x00, 0x50)
        #expect(m.context.pointee.rip == 0x1234)
        #expect(m.context.pointee.cs.base == 0x50000)
        #expect(m.memory.load(0x20000 + 0x7FFC, as: UInt32.self) == 0x1000_0105)
        try m.run(0xCB)
        #expect(m.context.pointee.rip == 0x105)
        #expect(m.context.pointee.cs.base == 0x10000)
        #expect(m.context.pointee.gpr[4] == 0x8000)
    }
}
