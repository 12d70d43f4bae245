import Testing
import TranslatorEngine
import VMM

@Suite("Ports, strings, flags") struct SystemPortTests {
    typealias M = SystemMachine

    // MARK: IN and OUT

    @Test func `IN and OUT take width and port from the instruction`() throws {
        let m = try M()
        m.context.pointee.gpr[0] = 0x1122_3344_5566_7788
        try m.run(0xE6, 0x41)
        m.context.pointee.gpr[2] = 0x42
        try m.run(0xEF)
        #expect(m.ports.writes.map { [UInt32($0.port), UInt32($0.width.rawValue), $0.value] }
            == [[1, 1, 0x88], [2, 4, 0x5566_7788]])
        try m.run(0xEC)
        #expect(m.context.pointee.gpr[0] == 0x1122_3344_5566_7702)
        try m.run(0xED)
        #expect(m.context.pointee.gpr[0] == 0xA5A5_A502)
        m.context.pointee.gpr[2] = 0x1234
        try m.run(0x66, 0xED)
        #expect(m.context.pointee.gpr[0] == 0xA5A5_FFFF)
    }

    @Test func `level 3 needs IOPL or a clear bit in the bitmap`() throws {
        let m = try M(level: 3)
        #expect(try m.fault(0xE4, 0x40) == .generalProtection())
        m.context.pointee.rflags |= RFLAGS.iopl
        #expect(try m.fault(0xE4, 0x40) == nil)
        m.context.pointee.rflags &= ~RFLAGS.iopl
        m.memory.store(M.tss + 102, 104 as UInt16)
        m.memory.store(M.tss + 104 + 8, 0xFFFD as UInt16)
        #expect(try m.fault(0xE4, 0x40) == .generalProtection())
        #expect(try m.fault(0xE4, 0x41) == nil)
        m.context.pointee.gpr[2] = 0x41
        #expect(try m.fault(0x66, 0xED) == .generalProtection())
        m.context.pointee.tr.limit = 104 + 8
        #expect(try m.fault(0xE4, 0x41) == .generalProtection())
    }

    @Test func `REP INS and OUTS move elements one by one`() throws {
        let m = try M()
        m.context.pointee.gpr[1] = 3
        m.context.pointee.gpr[2] = 0x43
        m.context.pointee.gpr[7] = M.scratch
        try m.run(0xF3, 0x66, 0x6D)
        #expect(m.memory.read(M.scratch, count: 6) == [0x03, 0xA5, 0x03, 0xA5, 0x03, 0xA5])
        #expect(m.context.pointee.gpr[7] == M.scratch + 6)
        #expect(m.context.pointee.gpr[1] == 0)
        m.context.pointee.gpr[1] = 2
        m.context.pointee.gpr[6] = M.scratch + 1
        m.context.pointee.systemFlags |= RFLAGS.df
        try m.run(0xF3, 0x6E)
        #expect(m.ports.writes.map(\.value) == [0xA5, 0x03])
        #expect(m.context.pointee.gpr[6] == M.scratch - 1)
    }

    @Test func `INS to a page that is missing takes nothing from the device and can be restarted`() throws {
        let m = try M()
        m.context.pointee.gpr[1] = 4
        m.context.pointee.gpr[2] = 0x43
        m.context.pointee.gpr[7] = 0xFF_FFFE
        var instruction = try #require(try m.decode([0xF3, 0x6C]))
        #expect(throws: GuestException.pageFault(0x100_0000, 2)) { try m.cpu.perform(&instruction) }
        #expect(m.ports.reads == 2)
        #expect(m.context.pointee.gpr[1] == 2)
        #expect(m.context.pointee.gpr[7] == 0x100_0000)
        #expect(m.context.pointee.rip == M.code)
    }

    // MARK: Strings

    @Test func `MOVS in both directions, widths and with a segment override`() throws {
        let m = try M()
        m.memory.write(Array(0..<32), at: M.scratch)
        m.context.pointee.gpr[1] = 3
        m.context.pointee.gpr[6] = M.scratch + 16
        m.context.pointee.gpr[7] = M.scratch + 0x110
        m.context.pointee.systemFlags |= RFLAGS.df
        try m.run(0xF3, 0x48, 0xA5)
        #expect(m.memory.read(M.scratch + 0x100, count: 24) == Array(0..<24))
        #expect(m.context.pointee.gpr[6] == M.scratch - 8)
        m.context.pointee.systemFlags &= ~RFLAGS.df
        m.context.pointee.gsBase = 0x10
        m.context.pointee.gpr[6] = M.scratch
        try m.run(0x65, 0xA4)
        #expect(m.memory.read(M.scratch + 0xF8, count: 1) == [16])
    }

    @Test func `32-bit addresses wrap and clear upper halves`() throws {
        let m = try M()
        m.context.pointee.gpr[7] = 0xFFFF_FFFF_0000_0000 | M.scratch
        m.context.pointee.gpr[1] = 0xFFFF_FFFF_0000_0002
        m.context.pointee.gpr[0] = 0x77
        try m.run(0xF3, 0x67, 0xAA)
        #expect(m.context.pointee.gpr[7] == M.scratch + 2)
        #expect(m.context.pointee.gpr[1] == 0)
        #expect(m.memory.read(M.scratch, count: 3) == [0x77, 0x77, 0])
    }

    @Test func `CMPS and SCAS stop by their condition and set flags`() throws {
        let m = try M()
        m.memory.write(Array("hello world".utf8) + [0], at: M.scratch)
        m.context.pointee.gpr[7] = M.scratch
        m.context.pointee.gpr[1] = ~0
        m.context.pointee.gpr[0] = 0
        try m.run(0xF2, 0xAE)
        #expect(~m.context.pointee.gpr[1] == 12)
        #expect(m.context.pointee.rflags & RFLAGS.zf != 0)
        m.memory.write(Array("help".utf8), at: M.scratch + 0x100)
        m.context.pointee.gpr[6] = M.scratch
        m.context.pointee.gpr[7] = M.scratch + 0x100
        m.context.pointee.gpr[1] = 10
        try m.run(0xF3, 0xA6)
        #expect(m.context.pointee.gpr[1] == 6)
        // 'l' - 'p'
        #expect(m.context.pointee.rflags & 0x8D5 == RFLAGS.cf | RFLAGS.pf | RFLAGS.sf)
    }

    @Test func `LODS loads, STOS of quadwords stores`() throws {
        let m = try M()
        m.memory.store(M.scratch, 0x1122_3344_5566_7788 as UInt64)
        m.context.pointee.gpr[6] = M.scratch
        m.context.pointee.gpr[0] = ~0
        try m.run(0xAD)
        #expect(m.context.pointee.gpr[0] == 0x5566_7788)
        m.context.pointee.gpr[7] = M.scratch + 8
        try m.run(0x48, 0xAB)
        #expect(m.memory.load(M.scratch + 8, as: UInt64.self) == 0x5566_7788)
    }

    @Test func `repeated strings make way for interrupts`() throws {
        let m = try M()
        m.context.pointee.interruptRequest = 1
        m.context.pointee.gpr[7] = M.scratch
        m.context.pointee.gpr[1] = 2
        try m.run(0xF3, 0xAA)
        #expect(m.context.pointee.rip == M.code)
        #expect(m.context.pointee.gpr[1] == 1)
        try m.run(0xF3, 0xAA)
        #expect(m.context.pointee.rip == M.code + 2)
    }

    // MARK: Flags

    @Test func `CLI and STI obey IOPL, STI shadows the next instruction`() throws {
        let m = try M(level: 3)
        #expect(try m.fault(0xFA) == .generalProtection())
        m.context.pointee.rflags |= RFLAGS.iopl
        try m.run(0xFB)
        #expect(m.context.pointee.interruptShadow)
        #expect(m.context.pointee.rflags & RFLAGS.if != 0)
        m.context.pointee.interruptShadow = false
        try m.run(0xFB)
        #expect(!m.context.pointee.interruptShadow)
        try m.run(0xFA)
        #expect(m.context.pointee.rflags & RFLAGS.if == 0)
    }

    @Test func `PUSHF hides RF and VM, POPF loads what its level may`() throws {
        let m = try M(level: 3)
        m.context.pointee.rflags = 0x1_0A97
        try m.run(0x9C)
        #expect(m.stack(1) == [0xA97])
        m.memory.store(m.context.pointee.gpr[4], 0x3F_7FD7 as UInt64)
        try m.run(0x9D)
        #expect(m.context.pointee.rflags == 0x24_4DD7 | (m.context.pointee.rflags & RFLAGS.if))
        #expect(m.context.pointee.gpr[4] == M.userStack)
        let kernel = try M()
        kernel.push(0x3F_7FD7)
        try kernel.run(0x9D)
        #expect(kernel.context.pointee.rflags == 0x24_7FD7)
        kernel.context.pointee.gpr[4] -= 2
        kernel.memory.store(kernel.context.pointee.gpr[4], 2 as UInt16)
        try kernel.run(0x66, 0x9D)
        #expect(kernel.context.pointee.rflags == 0x24_0002)
        #expect(kernel.context.pointee.gpr[4] == M.kernelStack)
    }

    @Test func `CLAC and STAC at level 0 only`() throws {
        let m = try M()
        try m.run(0x0F, 0x01, 0xCB)
        #expect(m.context.pointee.rflags & RFLAGS.ac != 0)
        try m.run(0x0F, 0x01, 0xCA)
        #expect(m.context.pointee.rflags & RFLAGS.ac == 0)
        #expect(try M(level: 3).fault(0x0F, 0x01, 0xCB) == .invalidOpcode)
    }

    @Test func `HLT halts`() throws {
        let m = try M()
        try m.run(0xF4)
        #expect(m.context.pointee.isHalted)
        #expect(m.context.pointee.rip == M.code + 1)
    }
}
