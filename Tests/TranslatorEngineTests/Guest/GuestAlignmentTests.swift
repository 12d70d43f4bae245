import Testing
import TranslatorEngine
import VMM

/// #AC (SDM Vol. 3, 6.15, interrupt 17 and table 6-7; which accesses have which alignment was compared with an AMD CPU).
@Suite struct GuestAlignmentTests {
    static let ac: UInt64 = 1 << 18

    /// Instructions on `[rbx]`, with the alignment that they want: 0 for none.
    static let accesses: [(name: String, bytes: [UInt8], alignment: UInt64)] = [
        ("mov byte", [0x88, 0x03], 1), ("mov word", [0x66, 0x8B, 0x03], 2), ("mov dword", [0x89, 0x03], 4),
        ("mov qword", [0x48, 0x8B, 0x03], 8), ("push", [0xFF, 0x33], 8), ("pop", [0x8F, 0x03], 8),
        ("pop through rsp", [0x48, 0x89, 0xDC, 0x58], 8), ("bts", [0x0F, 0xAB, 0x03], 4), ("xadd", [0x0F, 0xC1, 0x03], 4),
        ("cmpxchg8b", [0x0F, 0xC7, 0x0B], 8), ("movups", [0x0F, 0x10, 0x03], 16), ("movdqu", [0xF3, 0x0F, 0x7F, 0x03], 16),
        ("lddqu", [0xF2, 0x0F, 0xF0, 0x03], 16), ("vmovups ymm", [0xC5, 0xFC, 0x10, 0x03], 16),
        ("vaddps", [0xC5, 0xF8, 0x58, 0x03], 16), ("movss", [0xF3, 0x0F, 0x10, 0x03], 4), ("movhps", [0x0F, 0x16, 0x03], 8),
        ("pinsrw", [0x66, 0x0F, 0xC4, 0x03, 0], 2), ("fld tbyte", [0xDB, 0x2B], 8), ("fld qword", [0xDD, 0x03], 8),
        ("fnstenv", [0xD9, 0x33], 4), ("fnsave", [0xDD, 0x33], 4), ("fnstcw", [0xD9, 0x3B], 2), ("fbstp", [0xDF, 0x33], 8),
        ("lodsq", [0x48, 0xAD], 8), ("stosd", [0xAB], 4), ("rep movsw", [0x66, 0xF3, 0xA5], 2),
        ("stmxcsr", [0x0F, 0xAE, 0x1B], 4), ("movq mmx", [0x0F, 0x6F, 0x03], 8), ("prefetch", [0x0F, 0x18, 0x0B], 0),
        ("vmaskmovps", [0xC4, 0xE2, 0x71, 0x2C, 0x03], 0),
    ]

    private func outcome(_ bytes: [UInt8], at offset: UInt64, level: Int = 3, am: Bool = true, ac: Bool = true) throws -> Outcome {
        let machine = try TestMachine.small()
        machine.enter(level: level)
        if !am { machine.context.pointee.cr0 &= ~CR0.am }
        machine.context.pointee.rflags |= ac ? Self.ac : 0
        let address = TestMachine.data + 0x40 + offset
        for register in [.rbx, .rsi, .rdi] as [GeneralRegister] { machine[register] = address }
        machine[.rcx] = 1
        machine[.rsp] = TestMachine.stack - 64
        var code = GuestCode()
        for byte in bytes { code.emit(byte) }
        code.done()
        return try machine.run(code)
    }

    @Test func `accesses that are not naturally aligned are refused, before anything happens`() throws {
        for access in Self.accesses {
            for offset in [1, 2, 4, 8, 16] as [UInt64] {
                let result = try outcome(access.bytes, at: offset)
                let isMisaligned = access.alignment > 0 && offset % access.alignment != 0
                #expect(result.vector == (isMisaligned ? 17 : Outcome.done), "\(access.name) at \(offset)")
                if isMisaligned && access.name != "pop through rsp" {
                    #expect(result.rip == GuestCode.start && result.errorCode == 0, "\(access.name) at \(offset)")
                }
            }
        }
    }

    @Test func `vector operands that must be aligned are general protection faults all the same`() throws {
        for bytes in [[0x0F, 0x28, 0x03], [0x0F, 0x58, 0x03], [0x48, 0x0F, 0xC7, 0x0B]] as [[UInt8]] {
            for offset in [1, 4, 8] as [UInt64] { #expect(try outcome(bytes, at: offset).vector == 13) }
        }
        // FXSAVE: #AC below 4, #GP below 16; XSAVE: #GP.
        for (offset, vector) in [(1, 17), (2, 17), (4, 13), (8, 13), (16, Outcome.done)] as [(UInt64, Int)] {
            #expect(try outcome([0x0F, 0xAE, 0x03], at: offset).vector == vector)
        }
        #expect(try outcome([0x0F, 0xAE, 0x23], at: 1).vector == 13)
    }

    @Test func `only user code with AM and AC is checked`() throws {
        let load: [UInt8] = [0x48, 0x8B, 0x03]
        #expect(try outcome(load, at: 1).vector == 17)
        #expect(try outcome(load, at: 1, level: 0).vector == Outcome.done)
        #expect(try outcome(load, at: 1, am: false).vector == Outcome.done)
        #expect(try outcome(load, at: 1, ac: false).vector == Outcome.done)
    }

    @Test func `it comes before a page fault, but behind an address that is not canonical`() throws {
        #expect(try outcome([0x48, 0x8B, 0x03], at: 0x10_0001).vector == 17)
        #expect(try outcome([0x48, 0x8B, 0x03], at: 0x10_0000).vector == 14)
        #expect(try outcome([0x48, 0x8B, 0x03], at: 0x1_0000_0000_0001).vector == 13)
        // Over the end of the last page.
        #expect(try outcome([0x48, 0x8B, 0x03], at: 8 * 4096 - 0x40 - 4).vector == 17)
    }

    @Test func `POPF turns it on and off between two instructions`() throws {
        let machine = try TestMachine.small()
        machine.enter(level: 3)
        machine[.rbx] = TestMachine.data + 1
        var code = GuestCode()
        code.emit(0x48, 0x8B, 0x03)  // mov rax, [rbx]
        code.emit(0x68, 0x02, 0x00, 0x04, 0x00)  // push AC
        code.emit(0x6A, 0x02)  // push 2
        code.emit(0x9D)  // popfq
        code.emit(0x48, 0x8B, 0x03)
        code.emit(0x9D)  // popfq
        code.label("refused")
        code.emit(0x48, 0x8B, 0x03)
        let result = try machine.run(code)
        #expect(result.vector == 17)
        #expect(result.rip == code.address(of: "refused"))
    }
}
