import Testing
import TranslatorEngine
import VMM

@Suite("IRET, SYSCALL, SYSRET, SWAPGS") struct SystemReturnTests {
    typealias M = SystemMachine

    // MARK: IRETQ

    @Test func `IRETQ to level 3 loads RIP, CS, RFLAGS with RF, RSP and SS`() throws {
        let m = try M()
        m.context.pointee.nmiBlocked = true
        m.push(0x80_1234, UInt64(M.userCode | 3), 0x13202, M.userStack, UInt64(M.userData | 3))
        try m.run(0x48, 0xCF)
        #expect(m.context.pointee.rip == 0x80_1234)
        #expect(m.context.pointee.privilegeLevel == 3)
        #expect(m.context.pointee.cs == m.loaded(M.userCode | 3))
        #expect(m.context.pointee.ss == m.loaded(M.userData | 3))
        #expect(m.context.pointee.gpr[4] == M.userStack)
        #expect(m.context.pointee.rflags == 0x13202)
        #expect(!m.context.pointee.nmiBlocked)
    }

    @Test func `IRETQ to level 0 with a null SS stays in 64-bit mode`() throws {
        let m = try M()
        m.push(0x20_1234, UInt64(M.kernelCode), 0x46, 0x12_3451, 0)
        try m.run(0x48, 0xCF)
        #expect(m.context.pointee.gpr[4] == 0x12_3451)
        #expect(m.context.pointee.rip == 0x20_1234)
        #expect(m.context.pointee.rflags == 0x46)
    }

    @Test func `IRETQ to compatibility mode`() throws {
        let m = try M()
        m.push(0x80_1234, UInt64(M.userCode32 | 3), 0x202, M.userStack, UInt64(M.userData | 3))
        try m.run(0x48, 0xCF)
        #expect(m.context.pointee.isLongMode)
        #expect(!m.context.pointee.is64Bit)
        #expect(m.context.pointee.rip == 0x80_1234)
    }

    @Test(arguments: [
        (0x20_0000, 0x08, 0, 0x10, GuestException.generalProtection(0x10), "SS of level 0 with RPL 3"),
        (0x20_0000, 0, 0, 0, .generalProtection(0), "null CS"),
        (0x20_0000, 0x10, 0, 0, .generalProtection(0x10), "data segment in CS"),
        (0x20_0000, 0xF08, 0, 0, .generalProtection(0xF08), "CS outside of the table"),
        (0x20_0000, 0x2B, 0, 0, .generalProtection(0), "null SS for level 3"),
        (0x20_0000, 0x2B, 0, 0x20, .generalProtection(0x20), "SS.RPL other than CS.RPL"),
        (0x20_0000, 0x2B, 0, 0x7B, .generalProtection(0x78), "read-only SS"),
        (0x8000_0000_0000, 0x08, 0, 0, .generalProtection(0), "RIP not canonical"),
        (0x20_0000, 0x08, 1 << 14, 0, nil, "NT in the image is fine"),
    ] as [(UInt64, UInt64, UInt64, UInt64, GuestException?, String)])
    func `IRETQ checks its frame`(
        rip: UInt64, cs: UInt64, flags: UInt64, ss: UInt64, expected: GuestException?, what: String
    ) throws {
        let m = try M()
        let wanted = what == "SS of level 0 with RPL 3" ? ss | 3 : ss
        m.push(rip, cs, flags, M.kernelStack, wanted)
        #expect(try m.fault(0x48, 0xCF) == expected, Comment(rawValue: what))
    }

    @Test func `IRET with NT set in long mode is a general protection fault`() throws {
        let m = try M()
        m.context.pointee.rflags = 0x4002
        m.push(M.code, UInt64(M.kernelCode), 2, M.kernelStack, 0)
        #expect(try m.fault(0x48, 0xCF) == .generalProtection())
    }

    @Test func `level 3 cannot change IOPL, and IF only with IOPL`() throws {
        let m = try M(level: 3)
        m.context.pointee.rflags = 0x202
        m.push(0x80_0000, UInt64(M.userCode | 3), 0x3002, M.userStack, UInt64(M.userData | 3))
        try m.run(0x48, 0xCF)
        #expect(m.context.pointee.rflags == 0x202)
    }

    @Test func `return to an outer level drops data segments of the inner one`() throws {
        let m = try M()
        m.context.pointee.ds = m.loaded(M.kernelData)
        m.push(0x80_0000, UInt64(M.userCode | 3), 2, M.userStack, UInt64(M.userData | 3))
        try m.run(0x48, 0xCF)
        #expect(m.context.pointee.ds.isUnusable)
        #expect(m.context.pointee.ds.selector == 0)
        #expect(!m.context.pointee.es.isUnusable)
    }

    @Test func `fault in the frame reports the stack's page`() throws {
        let m = try M()
        m.context.pointee.gpr[4] = 0x4000_0000
        #expect(try m.fault(0x48, 0xCF) == .pageFault(0x4000_0000, 0))
    }

    @Test func `delivery and IRETQ are inverse`() throws {
        let m = try M(level: 3)
        m.setGate(14, 0x30_0000)
        m.context.pointee.rflags = 0xA97
        let before = m.registers
        try m.cpu.deliver(.pageFault(0, 4))
        m.context.pointee.gpr[4] += 8
        try m.run(0x48, 0xCF)
        #expect(m.registers == before)
        #expect(m.context.pointee.rip == M.code)
        #expect(m.context.pointee.rflags == 0x10A97)
        #expect(m.context.pointee.cs == m.loaded(M.userCode | 3))
    }

    // MARK: SYSCALL and SYSRET

    private func withStar(_ m: SystemMachine) {
        m.context.pointee.msr.star = 0x0018_0008 << 32
        m.context.pointee.msr.lstar = 0xFFFF_8000_0000_1000
        m.context.pointee.msr.sfmask = 0x4_7701
    }

    @Test func `SYSCALL saves RIP and RFLAGS and loads flat segments`() throws {
        let m = try M(level: 3)
        withStar(m)
        m.context.pointee.rflags = 0xA47
        try m.run(0x0F, 0x05)
        #expect(m.context.pointee.gpr[1] == M.code + 2)
        #expect(m.context.pointee.gpr[11] == 0xA47)
        #expect(m.context.pointee.rip == 0xFFFF_8000_0000_1000)
        #expect(m.context.pointee.rflags == 0x846)
        #expect(m.context.pointee.cs.selector == 8)
        #expect(m.context.pointee.ss.selector == 0x10)
        #expect(m.context.pointee.is64Bit)
        #expect(m.context.pointee.privilegeLevel == 0)
        #expect(m.context.pointee.gpr[4] == M.userStack)
    }

    @Test func `SYSRET goes back to 64-bit code at level 3`() throws {
        let m = try M()
        withStar(m)
        m.context.pointee.gpr[1] = 0x80_0042
        m.context.pointee.gpr[11] = 0x1_0246
        try m.run(0x48, 0x0F, 0x07)
        #expect(m.context.pointee.rip == 0x80_0042)
        #expect(m.context.pointee.cs.selector == 0x2B)
        #expect(m.context.pointee.ss.selector == 0x23)
        #expect(m.context.pointee.ss.privilegeLevel == 3)
        #expect(m.context.pointee.is64Bit)
        #expect(m.context.pointee.rflags == 0x246)
    }

    @Test func `SYSRET without REX_W goes to compatibility mode`() throws {
        let m = try M()
        withStar(m)
        m.context.pointee.gpr[1] = 0x1_0080_0042
        try m.run(0x0F, 0x07)
        #expect(m.context.pointee.rip == 0x80_0042)
        #expect(m.context.pointee.cs.selector == 0x1B)
        #expect(!m.context.pointee.is64Bit)
    }

    @Test func `SYSCALL without EFER_SCE is undefined, SYSRET at level 3 is refused`() throws {
        let m = try M(level: 3)
        #expect(try m.fault(0x48, 0x0F, 0x07) == .generalProtection())
        m.context.pointee.msr.efer &= ~EFER.sce
        #expect(try m.fault(0x0F, 0x05) == .invalidOpcode)
    }

    @Test func `SYSENTER and SYSEXIT take their MSRs in protected mode`() throws {
        let m = try M(.protected32, level: 3)
        #expect(try m.fault(0x0F, 0x34) == .generalProtection())
        m.context.pointee.msr.sysenterCS = 0x70
        m.context.pointee.msr.sysenterESP = 0x12_3456
        m.context.pointee.msr.sysenterEIP = 0x20_0000
        m.context.pointee.rflags = 0x202
        try m.run(0x0F, 0x34)
        #expect(m.context.pointee.gpr[4] == 0x12_3456)
        #expect(m.context.pointee.rip == 0x20_0000)
        #expect(m.context.pointee.cs.selector == 0x70)
        #expect(m.context.pointee.rflags == 2)
        m.context.pointee.gpr[1] = M.userStack
        m.context.pointee.gpr[2] = 0x80_0000
        try m.run(0x0F, 0x35)
        #expect(m.context.pointee.rip == 0x80_0000)
        #expect(m.context.pointee.gpr[4] == M.userStack)
        #expect(m.context.pointee.cs.selector == 0x83)
    }

    // MARK: Bases

    @Test func `SWAPGS exchanges the bases at level 0 only`() throws {
        let m = try M()
        m.context.pointee.gsBase = 1
        m.context.pointee.msr.kernelGSBase = 2
        try m.run(0x0F, 0x01, 0xF8)
        #expect(m.context.pointee.gsBase == 2)
        #expect(m.context.pointee.msr.kernelGSBase == 1)
        #expect(try M(level: 3).fault(0x0F, 0x01, 0xF8) == .generalProtection())
    }

    @Test func `FS and GS base instructions follow CR4_FSGSBASE and check addresses`() throws {
        let m = try M(level: 3)
        #expect(try m.fault(0xF3, 0x48, 0x0F, 0xAE, 0xC0) == .invalidOpcode)
        m.context.pointee.cr4 |= CR4.fsgsbase
        m.context.pointee.fsBase = 0x1234_5678_9ABC
        try m.run(0xF3, 0x48, 0x0F, 0xAE, 0xC0)
        #expect(m.context.pointee.gpr[0] == 0x1234_5678_9ABC)
        try m.run(0xF3, 0x0F, 0xAE, 0xC1)
        #expect(m.context.pointee.gpr[1] == 0x5678_9ABC)
        try m.run(0xF3, 0x48, 0x0F, 0xAE, 0xD8)
        #expect(m.context.pointee.gsBase == 0x1234_5678_9ABC)
        m.context.pointee.gpr[0] = 1 << 63
        #expect(try m.fault(0xF3, 0x48, 0x0F, 0xAE, 0xD0) == .generalProtection())
    }
}
