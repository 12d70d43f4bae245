import CLinux
import Testing
import TranslatorEngine
import VMM

@Suite("Control registers, MSRs, identification") struct SystemRegisterTests {
    typealias M = SystemMachine

    @Test func `moves to and from control registers`() throws {
        let m = try M()
        m.context.pointee.gpr[3] = 0x5000
        try m.run(0x0F, 0x22, 0xDB)
        #expect(m.context.pointee.cr3 == 0x5000)
        try m.run(0x0F, 0x20, 0xD9)
        #expect(m.context.pointee.gpr[1] == 0x5000)
        m.context.pointee.gpr[3] = 0xDEAD_BEEF_0000
        try m.run(0x0F, 0x22, 0xD3)
        #expect(m.context.pointee.cr2 == 0xDEAD_BEEF_0000)
        m.context.pointee.gpr[3] = 7
        try m.run(0x44, 0x0F, 0x22, 0xC3)
        #expect(m.context.pointee.cr8 == 7)
        m.context.pointee.gpr[3] = 16
        #expect(try m.fault(0x44, 0x0F, 0x22, 0xC3) == .generalProtection())
    }

    @Test func `control registers are closed to level 3`() throws {
        let m = try M(level: 3)
        #expect(try m.fault(0x0F, 0x20, 0xC0) == .generalProtection())
        #expect(try m.fault(0x0F, 0x22, 0xC0) == .generalProtection())
        #expect(try m.fault(0x0F, 0x06) == .generalProtection())
        #expect(try m.fault(0x0F, 0x01, 0xF0) == .generalProtection())
        #expect(try m.fault(0x0F, 0x32) == .generalProtection())
        #expect(try m.fault(0x0F, 0x30) == .generalProtection())
        #expect(try m.fault(0xF4) == .generalProtection())
        #expect(try m.fault(0x0F, 0x09) == .generalProtection())
        #expect(try m.fault(0x0F, 0x01, 0x38) == .generalProtection())
        #expect(try m.fault(0x0F, 0x21, 0xC0) == .generalProtection())
    }

    @Test func `CR0 refuses PG without PE, NW without CD and high bits`() throws {
        let m = try M(.protected32)
        for value in [CR0.pg, CR0.pe | CR0.nw] {
            m.context.pointee.gpr[0] = value
            #expect(try m.fault(0x0F, 0x22, 0xC0) == .generalProtection())
        }
        let n = try M()
        n.context.pointee.gpr[0] = n.context.pointee.cr0 | 1 << 32
        #expect(try n.fault(0x0F, 0x22, 0xC0) == .generalProtection())
        n.context.pointee.gpr[0] = n.context.pointee.cr0 & ~CR0.pg
        #expect(try n.fault(0x0F, 0x22, 0xC0) == .generalProtection())
    }

    @Test func `paging with EFER_LME activates long mode, and clearing it ends it`() throws {
        let m = try M(.protected32)
        m.memory.store(M.gdt + 0x90, 0 as UInt64)
        m.context.pointee.cr3 = M.pageTables
        m.context.pointee.msr.efer = EFER.lme
        m.context.pointee.gpr[0] = m.context.pointee.cr0 | CR0.pg
        #expect(try m.fault(0x0F, 0x22, 0xC0) == .generalProtection())
        m.context.pointee.cr4 = CR4.pae
        try m.run(0x0F, 0x22, 0xC0)
        #expect(m.context.pointee.isLongMode)
        #expect(!m.context.pointee.is64Bit)
        // Into 64-bit code.
        m.push(0)
        m.context.pointee.gpr[4] -= 8
        m.memory.store(M.scratch, 0x20_0000 as UInt32)
        m.memory.store(M.scratch + 4, M.kernelCode)
        m.context.pointee.gpr[0] = M.scratch
        try m.run(0xFF, 0x28)
        #expect(m.context.pointee.is64Bit)
        m.context.pointee.gpr[0] = CR4.pge
        #expect(try m.fault(0x0F, 0x22, 0xE0) == .generalProtection())
        m.context.pointee.cs = m.loaded(M.kernelCode32)
        m.context.pointee.gpr[0] = m.context.pointee.cr0 & ~CR0.pg
        try m.run(0x0F, 0x22, 0xC0)
        #expect(!m.context.pointee.isLongMode)
    }

    @Test func `LMSW sets PE but never clears it; SMSW shows the low word`() throws {
        let m = try M(.real)
        m.context.pointee.gpr[0] = 1
        try m.run(0x0F, 0x01, 0xF0)
        #expect(m.context.pointee.cr0 & 1 == 1)
        m.context.pointee.gpr[0] = 8
        try m.run(0x0F, 0x01, 0xF0)
        #expect(m.context.pointee.cr0 & 0xF == 9)
        try m.run(0x0F, 0x01, 0xE1)
        #expect(m.context.pointee.gpr[1] & 0xFFFF == m.context.pointee.cr0 & 0xFFFF)
        try m.run(0x0F, 0x06)
        #expect(m.context.pointee.cr0 & 8 == 0)
    }

    @Test func `bases and the TSC are read and written as MSRs`() throws {
        let m = try M()
        func write(_ index: UInt64, _ value: UInt64) {
            m.context.pointee.gpr[1] = index
            m.context.pointee.gpr[0] = value & 0xFFFF_FFFF
            m.context.pointee.gpr[2] = value >> 32
        }
        for index in [0xC000_0100, 0xC000_0101, 0xC000_0102] as [UInt64] {
            write(index, 0xFFFF_8123_4567_89AB)
            try m.run(0x0F, 0x30)
            m.context.pointee.gpr[0] = ~0
            m.context.pointee.gpr[2] = ~0
            try m.run(0x0F, 0x32)
            #expect(m.context.pointee.gpr[2] << 32 | m.context.pointee.gpr[0] == 0xFFFF_8123_4567_89AB)
            write(index, 0x8000_0000_0000)
            #expect(try m.fault(0x0F, 0x30) == .generalProtection())
        }
        #expect(m.context.pointee.fsBase == 0xFFFF_8123_4567_89AB)
        write(0x10, 0)
        try m.run(0x0F, 0x30)
        try m.run(0x0F, 0x31)
        #expect(m.context.pointee.gpr[2] == 0)
        write(0x1234_5678, 0)
        #expect(try m.fault(0x0F, 0x32) == .generalProtection())
    }

    @Test func `EFER keeps LMA, and LME cannot change while paging is on`() throws {
        let m = try M()
        m.context.pointee.gpr[1] = 0xC000_0080
        m.context.pointee.gpr[0] = EFER.lme | EFER.nxe
        try m.run(0x0F, 0x30)
        #expect(m.context.pointee.msr.efer == EFER.lme | EFER.lma | EFER.nxe)
        m.context.pointee.gpr[0] = EFER.nxe
        #expect(try m.fault(0x0F, 0x30) == .generalProtection())
        m.context.pointee.gpr[0] = EFER.lme | 1 << 1
        #expect(try m.fault(0x0F, 0x30) == .generalProtection())
    }

    @Test func `RDTSC obeys CR4_TSD at level 3, RDTSCP adds TSC_AUX`() throws {
        let m = try M(level: 3)
        m.context.pointee.msr.tscAux = 0x1234
        m.context.pointee.msr.tscOffset = 0 &- clinux_rdtsc()
        try m.run(0x0F, 0x01, 0xF9)
        #expect(m.context.pointee.gpr[1] == 0x1234)
        #expect(m.context.pointee.gpr[2] < 100)
        m.context.pointee.cr4 |= CR4.tsd
        #expect(try m.fault(0x0F, 0x31) == .generalProtection())
        #expect(try m.fault(0x0F, 0x33) == .generalProtection())
    }

    @Test func `CPUID answers by the policy and clears upper halves`() throws {
        let m = try M(level: 3)
        for index in 0..<4 { m.context.pointee.gpr[index] = 0xFFFF_FFFF_0000_0000 }
        try m.run(0x0F, 0xA2)
        let leaf = m.cpu.policy.cpuid(0, 0, cr4: m.context.pointee.cr4, xcr0: 7)
        #expect(m.context.pointee.gpr[0] == UInt64(leaf.eax))
        #expect(m.context.pointee.gpr[3] == UInt64(leaf.ebx))
        #expect(m.context.pointee.rip == M.code + 2)
    }

    @Test func `XSETBV checks its value, XGETBV reads it back`() throws {
        let m = try M()
        m.context.pointee.gpr[0] = 3
        try m.run(0x0F, 0x01, 0xD1)
        #expect(m.context.pointee.xcr0 == 3)
        for bad in [0, 2, 5, 1 << 9 | 1] as [UInt64] {
            m.context.pointee.gpr[0] = bad
            #expect(try m.fault(0x0F, 0x01, 0xD1) == .generalProtection())
        }
        try m.run(0x0F, 0x01, 0xD0)
        #expect(m.context.pointee.gpr[0] == 3)
        m.context.pointee.cr4 &= ~CR4.osxsave
        #expect(try m.fault(0x0F, 0x01, 0xD0) == .invalidOpcode)
    }

    @Test func `debug registers keep their fixed bits, and DR4 is DR6 without CR4_DE`() throws {
        let m = try M()
        m.context.pointee.gpr[0] = 0xFFFF_FFFF
        try m.run(0x0F, 0x23, 0xE0)
        #expect(m.context.pointee.dr6 == 0xFFFF_EFFF)
        m.context.pointee.gpr[0] = 0
        try m.run(0x0F, 0x23, 0xF8)
        #expect(m.context.pointee.dr7 == 0x400)
        m.context.pointee.cr4 |= CR4.de
        #expect(try m.fault(0x0F, 0x23, 0xE0) == .invalidOpcode)
        m.context.pointee.dr7 = 0x2400
        #expect(try m.fault(0x0F, 0x21, 0xC0) == GuestException(vector: 1))
        #expect(m.context.pointee.dr6 & 1 << 13 != 0)
    }

    @Test(arguments: [
        [0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9], [0x0F, 0x01, 0xC8], [0x0F, 0x01, 0xC9], [0x0F, 0x01, 0xD8],
        [0x66, 0x0F, 0x38, 0x82, 0x00], [0x0F, 0x0B], [0x0F, 0xFF, 0xC0], [0x0F, 0xB9, 0xC0], [0x0F, 0xAA],
        [0xC7, 0xF8, 0, 0, 0, 0], [0x0F, 0x01, 0xD5], [0x0F, 0x01, 0xEE], [0x0F, 0x01, 0xFC],
        [0x0F, 0x01, 0xFD], [0x0F, 0x37],
    ] as [[UInt8]])
    func `instructions of hidden features are undefined`(bytes: [UInt8]) throws {
        let m = try M()
        var instruction = try #require(try m.decode(bytes))
        #expect(throws: GuestException.invalidOpcode) { try m.cpu.perform(&instruction) }
    }
}
