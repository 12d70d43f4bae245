import Testing
import TranslatorEngine
import VMM

/// Virtual-8086 mode under a protected-mode kernel, in translated blocks (SDM Vol. 3, 21.2 and 21.3).
@Suite("Virtual-8086 mode") struct GuestVirtual8086Tests {
    typealias M = SystemMachine

    @Test func `code runs with 8086 segments at level 3`() throws {
        let m = try M(.virtual8086)
        m[.rbx] = 0x10
        let end = try m.runBlocks([
            0xC7, 0x07, 0x34, 0x12,  // movw $0x1234, (%bx)
            0xB8, 0x00, 0x40,  // mov $0x4000, %ax
            0x8E, 0xC0,  // mov %ax, %es
            0x26, 0xC7, 0x07, 0x78, 0x56,  // movw $0x5678, %es:(%bx)
            0x50,  // push %ax
            0xF4,
        ])
        // HLT is the kernel's: #GP(0) where it stands.
        #expect(end.vector == 13)
        #expect(end.errorCode == 0)
        #expect(end.ip == 0x10F)
        #expect(end.cs == 0x1000)
        #expect(end.flags & RFLAGS.vm != 0)
        #expect(m.word(0x3_0010) == 0x1234)
        #expect(m.word(0x4_0010) == 0x5678)
        #expect(m.word(0x2_7FFE) == 0x4000)
    }

    @Test(arguments: [[0xFA], [0xFB], [0x9C], [0x9D], [0xCF], [0xCD, 0x21]] as [[UInt8]])
    func `below IOPL 3 what touches IF faults`(bytes: [UInt8]) throws {
        let m = try M(.virtual8086)
        let end = try m.runBlocks(bytes + [0xF4])
        #expect(end.vector == 13)
        #expect(end.ip == 0x100)
    }

    @Test func `at IOPL 3 it does not, and INT goes to the kernel`() throws {
        let m = try M(.virtual8086)
        m.context.pointee.systemFlags |= RFLAGS.iopl
        let end = try m.runBlocks([0xFA, 0x9C, 0x58, 0xCD, 0x21])
        #expect(end.vector == 0x21)
        #expect(end.ip == 0x105)
        #expect(m[.rax] & 0x3200 == 0x3000)
    }

    @Test func `with VME an INT is redirected to the program's own table`() throws {
        let m = try M(.virtual8086)
        m.context.pointee.cr4 |= CR4.vme
        // The I/O bitmap at 0x88, the redirection bitmap in the 32 bytes before it: all clear.
        m.memory.store(M.tss + 102, 0x88 as UInt16)
        m.memory.store(0x21 * 4, 0x4000_0010 as UInt32)
        m.memory.write([0xF4], at: 0x4_0010)
        let end = try m.runBlocks([0xCD, 0x21])
        #expect(end.vector == 13)
        #expect(end.cs == 0x4000)
        #expect(end.ip == 0x10)
        #expect(m.word(0x2_7FFA) == 0x102)
        #expect(m.word(0x2_7FFC) == 0x1000)
    }

    @Test func `limits are 64 KB, for SS a stack fault`() throws {
        let m = try M(.virtual8086)
        #expect(try m.runBlocks([0xA1, 0xFF, 0xFF], at: 0x100).vector == 13)
        m.enter(.virtual8086, level: 3)
        m[.rbp] = 0xFFFF
        #expect(try m.runBlocks([0x8B, 0x46, 0x00], at: 0x100).vector == 12)
        m.enter(.virtual8086, level: 3)
        m[.rbx] = 0x1_0000
        #expect(try m.runBlocks([0x67, 0x8A, 0x03], at: 0x100).vector == 13)
    }

    @Test func `addresses above 1 MB are reached through the top of the last segment`() throws {
        let m = try M(.virtual8086)
        m.memory.store(0x10_FFEF, 0x42 as UInt8)
        m[.rax] = 0xFFFF
        let end = try m.runBlocks([0x8E, 0xD8, 0x8A, 0x0E, 0xFF, 0xFF, 0xF4])  // mov %ax, %ds; mov 0xFFFF, %cl
        #expect(end.ip == 0x106)
        #expect(m[.rcx] & 0xFF == 0x42)
    }
}
