import Testing
import TranslatorEngine
import VMM

/// Real mode in translated blocks (SDM Vol. 3, chapter 21). CS is 1000, SS 2000 with SP 8000, DS and ES 3000; code
/// starts at offset 100.
@Suite("Real mode") struct GuestRealModeTests {
    typealias M = SystemMachine

    @Test func `operand and address sizes have 16 bits unless a prefix says otherwise`() throws {
        let m = try M(.real)
        m[.rax] = 0xAAAA_0000
        m[.rbx] = 0xFFFF_8000
        m[.rsi] = 0x8010
        m.memory.store(0x3_0010, 0x1234_5678 as UInt32)
        let end = try m.runBlocks([
            0x8B, 0x00,  // mov (%bx,%si), %ax: at 0010
            0x66, 0x8B, 0x08,  // mov (%bx,%si), %ecx
            0x66, 0xBA, 0x10, 0x00, 0x00, 0x00,  // mov $0x10, %edx
            0x67, 0x8B, 0x2A,  // mov (%edx), %bp
            0x66, 0x67, 0x8B, 0x3C, 0x52,  // mov (%edx,%edx,2), %edi: at 0030
            0x66, 0x0F, 0xB7, 0xF0,  // movzwl %ax, %esi
            0xF4,
        ])
        #expect(end.vector == nil)
        #expect(m[.rax] == 0xAAAA_5678)
        #expect(m[.rcx] == 0x1234_5678)
        #expect(m[.rbp] & 0xFFFF == 0x5678)
        #expect(m[.rdi] == 0)
        #expect(m[.rsi] == 0x5678)
    }

    /// Its offset is smaller than that of the page in the segment: the page starts before the segment does.
    @Test func `an instruction on two pages runs in the first page of a segment that starts inside of it`() throws {
        let m = try M(.real)
        m.context.pointee.cs.selector = 0x107E
        m.context.pointee.cs.base = 0x1_07E0
        let end = try m.runBlocks([0xB8, 0x01, 0x53, 0xF4], at: 0x81F)  // mov $0x5301, %ax; hlt
        #expect(end.vector == nil)
        #expect(end.ip == 0x822)
        #expect(m[.rax] & 0xFFFF == 0x5301)
    }

    /// The same as the element by element way, which a backward copy takes.
    @Test func `copies and fills of many elements go over pages and stop where the segment ends`() throws {
        let m = try M(.real)
        let bytes = (0..<0x3000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        m.memory.write(bytes, at: 0x3_0003)
        (m[.rsi], m[.rdi], m[.rcx]) = (0xABCD_0003, 0x1234_6001, 0x5678_1500)
        let end = try m.runBlocks([0xFC, 0xF3, 0xA5, 0xF4])  // cld; rep movsw
        #expect(end.vector == nil)
        #expect(m.memory.read(0x3_6001, count: 0x2A00) == Array(bytes[..<0x2A00]))
        #expect(m.memory.read(0x3_6001 + 0x2A00, count: 1) == [0])
        #expect(m[.rsi] == 0xABCD_2A03 && m[.rdi] == 0x1234_8A01 && m[.rcx] == 0x5678_0000)

        m.enter(.real, level: 0)
        (m[.rdi], m[.rcx], m[.rax]) = (0xFF02, 0x80, 0x4433_2211)
        #expect(try m.runBlocks([0xFC, 0x66, 0xF3, 0xAB, 0xF4]).vector == 13)  // rep stosl: one element is over the end
        #expect(m[.rdi] & 0xFFFF == 0xFFFE && m[.rcx] & 0xFFFF == 0x41)
        #expect(m.memory.load(0x3_FFFA, as: UInt32.self) == 0x4433_2211)

        m.enter(.real, level: 0)
        (m[.rdi], m[.rcx], m[.rax]) = (0xFF00, 0x180, 0x55)
        #expect(try m.runBlocks([0xFC, 0xF3, 0xAA, 0xF4]).vector == nil)  // rep stosb: offsets wrap
        #expect(m[.rdi] & 0xFFFF == 0x80 && m[.rcx] & 0xFFFF == 0)
        #expect(m.memory.read(0x3_0000, count: 0x80) == Array(repeating: 0x55, count: 0x80))

        m.enter(.real, level: 0)
        m.memory.store(0x3_2000, 0x5A as UInt8)
        (m[.rsi], m[.rdi], m[.rcx]) = (0x2000, 0x2001, 0x1FFF)
        #expect(try m.runBlocks([0xFC, 0xF3, 0xA4, 0xF4]).vector == nil)  // rep movsb onto itself repeats a byte
        #expect(m.memory.read(0x3_2000, count: 0x2000) == Array(repeating: 0x5A, count: 0x2000))
    }

    @Test func `accesses over 64 KB fault, the last byte does not`() throws {
        let m = try M(.real)
        m.memory.store(0x3_FFFF, 0x77 as UInt8)
        #expect(try m.runBlocks([0xA0, 0xFF, 0xFF, 0xF4], at: 0x100).vector == nil)
        #expect(m[.rax] & 0xFF == 0x77)
        // mov 0xFFFF, %ax
        let fault = try m.runBlocks([0xA1, 0xFF, 0xFF, 0xF4], at: 0x100)
        #expect(fault.vector == 13)
        #expect(fault.ip == 0x100)
        m.enter(.real, level: 0)
        m[.rdx] = 0x1_0000
        // mov (%edx), %al
        #expect(try m.runBlocks([0x67, 0x8A, 0x02, 0xF4], at: 0x100).vector == 13)
        m.enter(.real, level: 0)
        m[.rbp] = 0xFFFF
        // mov (%bp), %ax: by SS
        #expect(try m.runBlocks([0x8B, 0x46, 0x00, 0xF4], at: 0x100).vector == 12)
    }

    @Test func `branches wrap at 64 KB, running on does not`() throws {
        let m = try M(.real)
        m.memory.write([0xF4], at: 0x1_FFF0)
        // jmp to 10103 - 10113
        #expect(try m.runBlocks([0xE9, 0xED, 0xFE], at: 0x100) == ModeOutcome(vector: nil, ip: 0xFFF0, cs: 0x1000, flags: 2))
        m.enter(.real, level: 0)
        // jmp over the top to 0100
        m.memory.write([0xF4], at: 0x1_0100)
        #expect(try m.runBlocks([0xE9, 0x0D, 0x01], at: 0xFFF0).ip == 0x100)
        m.enter(.real, level: 0)
        let fault = try m.runBlocks([0x90, 0x90], at: 0xFFFE)
        #expect(fault.vector == 13)
        #expect(fault.ip == 0)
        m.enter(.real, level: 0)
        // An instruction of two bytes, the second one beyond the limit.
        let half = try m.runBlocks([0xB0, 0x01], at: 0xFFFF)
        #expect(half.vector == 13)
        #expect(half.ip == 0xFFFF)
    }

    @Test func `a 32-bit branch beyond the limit faults before it pushes`() throws {
        let m = try M(.real)
        // calll 0x10000
        let fault = try m.runBlocks([0x66, 0xE8, 0xFA, 0xFE, 0x00, 0x00], at: 0x100)
        #expect(fault.vector == 13)
        #expect(fault.ip == 0x100)
        // The frame of three words is all that is on the stack.
        #expect(m[.rsp] == 0x7FFA)
    }

    @Test func `calls push words, with a prefix double words`() throws {
        let m = try M(.real)
        let end = try m.runBlocks([
            0xE8, 0x0D, 0x00,  // 0100: call 0110
            0x66, 0xE8, 0x08, 0x00, 0x00, 0x00,  // calll 0111
            0xF4,
            0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
            0xC3,  // 0110: ret
            0x66, 0xC3,  // retl
        ])
        #expect(end.vector == nil)
        #expect(m[.rsp] == 0x8000)
        #expect(m.word(0x2_7FFE) == 0)
        #expect(m.dword(0x2_7FFC) == 0x109)
    }

    @Test func `the stack pointer has 16 bits and wraps`() throws {
        let m = try M(.real)
        m[.rsp] = 0xABCD_0000
        m[.rax] = 0x1122_3344
        _ = try m.runBlocks([0x66, 0x50, 0x50, 0x5B, 0xF4])  // push %eax; push %ax; pop %bx
        #expect(m[.rsp] == 0xABCD_FFFC)
        #expect(m.dword(0x2_FFFC) == 0x1122_3344)
        #expect(m[.rbx] == 0x3344)
        m.enter(.real, level: 0)
        m[.rbp] = 0x1234_9000
        m.memory.store(0x2_9000, 0x5566 as UInt16)
        _ = try m.runBlocks([0xC9, 0xF4], at: 0x100)  // leave
        #expect(m[.rbp] == 0x1234_5566)
        #expect(m[.rsp] & 0xFFFF == 0x9002)
    }

    @Test func `a push over the end of the segment is a stack fault that shuts down`() throws {
        let m = try M(.real)
        m[.rsp] = 1
        m.memory.write([0x50, 0xF4], at: m.codeAddress(0x100))
        m.cpu.modeChanged()
        // The handler's frame does not fit either.
        guard case .shutdown = try m.cpu.run() else {
            Issue.record("it ran on")
            return
        }
    }

    @Test func `INT goes by the vector table and IRET comes back`() throws {
        let m = try M(.real)
        m.memory.write([0x66, 0xB8, 1, 0, 0, 0, 0xCF], at: 0x4_0123)
        m.memory.write([0xCD, 0x21, 0x40, 0xF4], at: m.codeAddress(0x100))
        _ = try m.runBlocks([0xF4], at: 0x200)  // makes the table
        m.memory.store(0x21 * 4, 0x4000_0123 as UInt32)
        m.context.pointee.rip = 0x100
        m.context.pointee.isHalted = false
        #expect(try m.cpu.run() == .halt(interruptsEnabled: false))
        #expect(m.context.pointee.rip == 0x104)
        #expect(m[.rax] == 2)
        #expect(m[.rsp] == 0x8000)
    }

    @Test func `code in a segment that starts within a page loops, calls and returns`() throws {
        let m = try M(.real)
        // The segment's first page begins at offset -340.
        m.context.pointee.cs = SegmentRegister(selector: 0x1234, attributes: 0x9B, limit: 0xFFFF, base: 0x12340)
        let end = try m.runBlocks(
            [
                0xB9, 0xE8, 0x03,  // 0000: mov $1000, %cx
                0xE8, 0x04, 0x00,  // 1: call 000a
                0xE2, 0xFB,  // loop 1b
                0xF4,
                0x90,
                0x43,  // 000a: inc %bx
                0xC3,
            ], at: 0)
        #expect(end.vector == nil)
        #expect(m[.rbx] == 1000)
        #expect(m[.rcx] == 0)
    }

    @Test func `blocks serve every CS that leads to them`() throws {
        let m = try M(.real)
        // The same code by 1000:0300, 1010:0200 and 1020:0100, each by a far call, twice; it pushes its IP.
        let code: [UInt8] = [
            0xB2, 0x02,  // 0100: mov $2, %dl
            0x9A, 0x00, 0x03, 0x00, 0x10,  // 1: lcall 1000:0300
            0x9A, 0x00, 0x02, 0x10, 0x10,
            0x9A, 0x00, 0x01, 0x20, 0x10,
            0xFE, 0xCA,  // dec %dl
            0x75, 0xED,  // jnz 1b
            0xF4,
        ]
        let callee: [UInt8] = [
            0xE8, 0x00, 0x00,  // call to the next
            0x58,  // pop %ax
            0x01, 0xC3,  // add %ax, %bx
            0xEB, 0x01,  // jmp over
            0xF4,
            0xCB,  // lret
        ]
        m.memory.write(callee, at: 0x1_0300)
        let end = try m.runBlocks(code)
        #expect(end.vector == nil)
        #expect(m[.rbx] == 2 * (0x303 + 0x203 + 0x103))
        #expect(m[.rsp] == 0x8000)
    }

    @Test func `big real mode reaches memory above 1 MB`() throws {
        let m = try M(.real)
        m.context.pointee.fs = SegmentRegister(selector: 0, attributes: 0xC093, limit: 0xFFFF_FFFF)
        m.context.pointee.fsBase = 0
        m.memory.store(0x80_0000, 0x1234_5678 as UInt32)
        m[.rsi] = 0x80_0000
        let end = try m.runBlocks([
            0x66, 0x67, 0x64, 0x8B, 0x06,  // mov %fs:(%esi), %eax
            0x8E, 0xE3,  // mov %bx, %fs: base 0 again, the limit stays
            0x66, 0x67, 0x64, 0x89, 0x46, 0x04,  // mov %eax, %fs:4(%esi)
            0xF4,
        ])
        #expect(end.vector == nil)
        #expect(m.dword(0x80_0004) == 0x1234_5678)
    }

    @Test func `string instructions stop at the limit with their counts exact`() throws {
        let m = try M(.real)
        m[.rdi] = 0xFFFD
        m[.rcx] = 10
        m[.rax] = 0x55
        let fault = try m.runBlocks([0xF3, 0xAB, 0xF4])  // rep stosw
        #expect(fault.vector == 13)
        #expect(fault.ip == 0x100)
        #expect(m[.rcx] == 9)
        #expect(m[.rdi] == 0xFFFF)
    }

    @Test func `LOOP and JCXZ count in CX, with a prefix in ECX`() throws {
        let m = try M(.real)
        m[.rcx] = 0x5_0003
        let end = try m.runBlocks([
            0x40,  // 1: inc %ax
            0xE2, 0xFD,  // loop 1b
            0xE3, 0x01,  // jcxz over
            0xF4,
            0x67, 0xE3, 0x02,  // jecxz: not taken
            0x43,  // inc %bx
            0x67, 0xE2, 0x00,  // loopl to the next
            0xF4,
        ])
        #expect(end.ip == 0x10D)
        #expect(m[.rax] == 3)
        #expect(m[.rbx] == 1)
        #expect(m[.rcx] == 0x4_FFFF)
    }

    @Test func `VEX encodings and protected-mode instructions do not exist`() throws {
        let m = try M(.real)
        for bytes in [[0xC5, 0xF8, 0x77], [0x0F, 0x00, 0xC8], [0x0F, 0x02, 0xC0], [0x63, 0xC0]] as [[UInt8]] {
            m.enter(.real, level: 0)
            #expect(try m.runBlocks(bytes, at: 0x100).vector == 6)
        }
    }

    @Test func `code that writes itself is seen`() throws {
        let m = try M(.real)
        let end = try m.runBlocks([
            0xB9, 0x05, 0x00,  // mov $5, %cx
            0x2E, 0xFE, 0x06, 0x09, 0x01,  // 1: incb %cs:0x109
            0x05, 0x00, 0x00,  // add $0, %ax
            0xE2, 0xF6,  // loop 1b
            0xF4,
        ])
        #expect(end.vector == nil)
        #expect(m[.rax] == 1 + 2 + 3 + 4 + 5)
    }
}
