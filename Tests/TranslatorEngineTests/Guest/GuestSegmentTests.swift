import Testing
import TranslatorEngine
import VMM

/// Segments of protected and compatibility mode in translated blocks (SDM Vol. 3, chapters 3 and 5).
@Suite("Segments in translated code") struct GuestSegmentTests {
    typealias M = SystemMachine
    /// A free slot of the GDT.
    static let own: UInt16 = 0x90, other: UInt16 = 0x98

    /// Loads ES and reads or writes a double word at EBX.
    static let read: [UInt8] = [0x8E, 0xC0, 0x26, 0x8B, 0x0B, 0xF4]
    static let write: [UInt8] = [0x8E, 0xC0, 0x26, 0x89, 0x0B, 0xF4]

    private func vector(_ m: M, _ bytes: [UInt8], selector: UInt16, _ offset: UInt64, mode: M.Mode = .protected32) throws -> Int? {
        m.enter(mode, level: 0)
        m[.rax] = UInt64(selector)
        m[.rbx] = offset
        return try m.runBlocks(bytes, at: mode == .compatibility ? M.userStart : M.code).vector
    }

    @Test(arguments: [
        // base, limit, attributes; offset good to the end, offset one too far
        (0x40_0123, 0xFFF, 0x4093, 0xFFC, 0xFFD), (0x40_0000, 0x7, 0x4092, 4, 5),
        (0x40_0000, 0xFFE, 0x0097, 0xFFF, 0xFFE), (0x40_0000, 0xFFE, 0x0097, 0xFFFC, 0xFFFD),
        (0x40_0000, 0xFFE, 0x4097, 0x1_0000, 0x10), (0xFFC0_0000, 0xFF, 0xC093, 0xF_FFFC, 0xF_FFFD),
    ] as [(UInt64, UInt64, UInt64, UInt64, UInt64)])
    func `accesses are good up to the limit`(base: UInt64, limit: UInt64, attributes: UInt64, good: UInt64, bad: UInt64) throws {
        let m = try M(.protected32)
        m.setSegment(Self.own, base: base, limit: limit, attributes: attributes)
        if (base + good) & 0xFFFF_FFFF < 16 << 20 {
            #expect(try vector(m, Self.read, selector: Self.own, good) == nil)
            m[.rcx] = 0x1234
            #expect(try vector(m, Self.write, selector: Self.own, good) == nil)
            #expect(m.dword((base + good) & 0xFFFF_FFFF) == UInt32(truncatingIfNeeded: m[.rcx]))
        }
        #expect(try vector(m, Self.read, selector: Self.own, bad) == 13)
        #expect(try vector(m, Self.write, selector: Self.own, bad) == 13)
        #expect(try vector(m, Self.read, selector: Self.own, 0xFFFF_FFFE) == 13)
    }

    @Test func `types forbid what they forbid`() throws {
        let m = try M(.protected32)
        // Read-only data, readable and execute-only code
        m.setSegment(Self.own, base: 0x40_0000, limit: 0xFFFF, attributes: 0x4091)
        #expect(try vector(m, Self.read, selector: Self.own, 0) == nil)
        #expect(try vector(m, Self.write, selector: Self.own, 0) == 13)
        m.setSegment(Self.own, base: 0x40_0000, limit: 0xFFFF, attributes: 0x409B)
        #expect(try vector(m, Self.read, selector: Self.own, 0) == nil)
        #expect(try vector(m, Self.write, selector: Self.own, 0) == 13)
        // Null may be loaded, not used.
        let end = try vector(m, Self.read, selector: 0, 0)
        #expect(end == 13)
        // mov %cs:(%ebx), %ecx, and to it, in execute-only code
        m.enter(.protected32, level: 0)
        m.context.pointee.cs.attributes = 0xC099
        #expect(try m.runBlocks([0x2E, 0x8B, 0x0B, 0xF4], at: M.code).vector == 13)
        m.enter(.protected32, level: 0)
        m[.rbx] = 0x40_0000
        #expect(try m.runBlocks([0x2E, 0x8B, 0x0B, 0xF4], at: M.code).vector == nil)
        m.enter(.protected32, level: 0)
        #expect(try m.runBlocks([0x2E, 0x89, 0x0B, 0xF4], at: M.code).vector == 13)
    }

    @Test func `DS and SS with bases and limits are checked in every kind of access`() throws {
        let m = try M(.protected32)
        m.setSegment(Self.own, base: 0x40_0000, limit: 0xFFF, attributes: 0x4093)
        for bytes in [
            [0xFF, 0x33], [0x8F, 0x03], [0xFF, 0x13], [0xFF, 0x23], [0x0F, 0xAB, 0x0B], [0xA1, 0x00, 0x10, 0, 0], [0x0F, 0x10, 0x03],
            [0xD9, 0x03], [0xF0, 0xFF, 0x03], [0x0F, 0xC7, 0x0B], [0x8E, 0x03], [0x0F, 0x01, 0x03], [0xA5], [0xD7], [0x62, 0x0B],
        ] as [[UInt8]] {
            m.enter(.protected32, level: 0)
            m.context.pointee.cr4 |= CR4.osfxsr
            m[.rax] = 0xFF
            m[.rbx] = 0x1000
            m[.rsi] = 0x1000
            m[.rcx] = 0
            m.context.pointee.ds = m.loaded(Self.own)
            let before = m[.rsp]
            let end = try m.runBlocks(bytes + [0xF4], at: M.code)
            #expect(end.vector == 13, "\(bytes)")
            #expect(end.ip == M.code)
            // Error code, EIP, CS, EFLAGS and nothing else.
            #expect(m[.rsp] == before - 16, "\(bytes)")
        }
        for bytes in [[0x50], [0x58], [0xC3], [0xC9], [0x6A, 1], [0xE8, 0, 0, 0, 0], [0x60], [0x9C], [0x06], [0x8B, 0x45, 0]] as [[UInt8]] {
            m.enter(.protected32, level: 0)
            // Nothing takes the fault: the machine shuts down and says which it was.
            m.context.pointee.idtr.limit = 0
            m.context.pointee.isHalted = false
            m.context.pointee.ss = m.loaded(Self.own)
            m[.rsp] = bytes[0] == 0x58 || bytes[0] == 0xC3 ? 0xFFD : 2
            m[.rbp] = 0xFFD
            m.memory.write(bytes, at: M.code)
            m.context.pointee.rip = M.code
            m.cpu.writeState(m.cpu.readState())
            guard case .shutdown(let reason) = try m.cpu.run() else {
                Issue.record("\(bytes) ran on")
                continue
            }
            #expect(reason.reason.contains("#SS(0x0)"), "\(bytes): \(reason.reason)")
        }
    }

    @Test func `16-bit protected mode has its own bases`() throws {
        let m = try M(.protected16)
        m[.rbx] = 0x20
        let end = try m.runBlocks([
            0xC7, 0x07, 0x34, 0x12,  // movw $0x1234, (%bx)
            0x66, 0xFF, 0x37,  // pushl (%bx)
            0x59,  // pop %cx
            0x5A,  // pop %dx
            0xE8, 0x01, 0x00,  // call over
            0xF4,
            0xC3,  // ret
        ])
        #expect(end.vector == nil)
        #expect(m.word(0x2_0020) == 0x1234)
        #expect(m[.rcx] & 0xFFFF == 0x1234)
        #expect(m[.rsp] == 0x8000)
    }

    @Test func `code beyond the limit of CS is not executed`() throws {
        let m = try M(.protected32)
        m.setSegment(Self.own, base: M.code, limit: 0x1F, attributes: 0x409B)
        let bytes = [UInt8](repeating: 0x90, count: 0x40)
        func enter() {
            m.enter(.protected32, level: 0)
            m.context.pointee.cs = m.loaded(Self.own)
        }
        enter()
        let over = try m.runBlocks(bytes, at: 0)
        #expect(over == ModeOutcome(vector: 13, ip: 0x20, cs: Self.own, flags: over.flags))
        for (code, at) in [
            ([0xEB, 0x1E], 0), ([0xE9, 0x1B, 0, 0, 0], 0), ([0x74, 0x1E], 0), ([0xE8, 0x1B, 0, 0, 0], 0), ([0xFF, 0xE3], 0),
            ([0xFF, 0xD3], 0), ([0x53, 0xC3], 1), ([0xE2, 0x1E], 0), ([0xB8, 0, 0, 0, 0], 0x1C),
        ] as [([UInt8], UInt64)] {
            enter()
            m.context.pointee.rflags |= RFLAGS.zf
            m[.rbx] = 0x20
            m[.rcx] = 7
            m.memory.write([UInt8](repeating: 0x90, count: 0x40), at: M.code)
            let end = try m.runBlocks(code, at: at == 0x1C ? at : 0)
            #expect(end.vector == 13, "\(code)")
            #expect(end.ip == at, "\(code)")
            #expect(m[.rcx] == 7)
        }
    }

    @Test func `16-bit branches of 32-bit code cut the instruction pointer`() throws {
        let m = try M(.protected32)
        m.context.pointee.cs.base = M.code
        m.memory.write([0xF4], at: M.code + 0x10)
        // jmpw from 18000
        #expect(try m.runBlocks([0x66, 0xE9, 0x0C, 0x80], at: 0x1_8000).ip == 0x10)
        // Flat, where the target is code that lies elsewhere
        let flat = try M(.protected32)
        flat.memory.write([0x40, 0x66, 0xC3], at: 0x8010)
        flat[.rax] = 0
        let end = try flat.runBlocks([0x66, 0xE8, 0x0C, 0x00], at: 0x20_8000)  // callw 8010
        // The return address has 16 bits.
        #expect(flat[.rax] == 1)
        #expect(end.ip == 0x8004 || end.vector != nil)
    }

    @Test func `call gates lead from 16-bit to 32-bit code and back`() throws {
        let m = try M(.protected16)
        // A 32-bit gate to flat code; the 16-bit caller pushes through it double words.
        let wide: UInt64 = 0x0030_8C00_0000_1000
        m.memory.store(M.gdt + UInt64(M.callGate), wide | UInt64(M.kernelCode32) << 16)
        m.memory.write([0x66, 0xB8, 0x78, 0x56, 0x05, 0, 0, 1, 0, 0xCB], at: 0x30_1000)  // mov, add $0x10000, lret
        let end = try m.runBlocks([0x9A, 0, 0, UInt8(M.callGate), 0, 0xF4])
        #expect(end.vector == nil)
        #expect(end.ip == 0x105)
        #expect(m[.rax] & 0xFFFF_FFFF == 0x1_5678)
        #expect(m[.rsp] == 0x8000)
        // And a 16-bit gate the other way.
        let n = try M(.protected32)
        let narrow: UInt64 = 0x8400_0000_0200
        n.memory.store(M.gdt + UInt64(M.callGate), narrow | UInt64(M.kernelCode16) << 16)
        n.memory.write([0xB8, 0x34, 0x12, 0xCB], at: 0x1_0200)
        // The caller's offset has to fit in 16 bits.
        n.setSegment(Self.own, base: M.code, limit: 0xFFFF, attributes: 0x409B)
        n.context.pointee.cs = n.loaded(Self.own)
        let back = try n.runBlocks([0x9A, 0, 0, 0, 0, UInt8(M.callGate), 0, 0xF4], at: 0)
        #expect(back.vector == nil)
        #expect(back.ip == 7)
        #expect(n[.rax] & 0xFFFF == 0x1234)
        #expect(n[.rsp] == M.kernelStack)
    }

    @Test func `compatibility mode has segments too`() throws {
        let m = try M(.compatibility)
        m.setSegment(Self.own, base: M.scratch, limit: 0xFFF, attributes: 0x40F3)
        m.context.pointee.gdtr.limit = 0xFF
        func run(_ bytes: [UInt8], _ offset: UInt64) throws -> ModeOutcome {
            m.enter(.compatibility, level: 3)
            m[.rax] = UInt64(Self.own | 3)
            m[.rbx] = offset
            return try m.runBlocks(bytes, at: M.userStart)
        }
        let good = try run(Self.read, 0xFFC)
        #expect(good.vector == 13)
        #expect(good.ip == M.userStart + 5)  // the HLT
        #expect(try run(Self.read, 0xFFD).ip == M.userStart + 2)
        #expect(try run([0x8E, 0xE0, 0x64, 0x8B, 0x0B, 0xF4], 0xFFC).ip == M.userStart + 5)
        #expect(try run([0x8E, 0xE0, 0x64, 0x8B, 0x0B, 0xF4], 0xFFD).ip == M.userStart + 2)
    }

    @Test func `vector instructions go by segments in 16-bit code`() throws {
        let m = try M(.protected16)
        m.context.pointee.cr4 |= CR4.osfxsr
        m.memory.store(0x2_0010, 0x1111_2222_3333_4444 as UInt64)
        m.memory.store(0x2_0018, 0x5555_6666_7777_8888 as UInt64)
        m[.rbx] = 0x10
        let end = try m.runBlocks([
            0xF3, 0x0F, 0x6F, 0x07,  // movdqu (%bx), %xmm0
            0x66, 0x0F, 0xEF, 0xC9,  // pxor %xmm1, %xmm1
            0x66, 0x0F, 0x7F, 0x47, 0x10,  // movdqa %xmm0, 16(%bx)
            0x0F, 0x28, 0xD0,  // movaps %xmm0, %xmm2
            0x66, 0x0F, 0x7E, 0xD0,  // movd %xmm2, %eax
            0xF4,
        ])
        #expect(end.vector == nil)
        #expect(m.memory.load(0x2_0028, as: UInt64.self) == 0x5555_6666_7777_8888)
        #expect(m[.rax] == 0x3333_4444)
    }
}
