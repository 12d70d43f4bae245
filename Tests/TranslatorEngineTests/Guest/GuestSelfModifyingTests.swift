import Testing
import TranslatorEngine
import VMM

/// Code that changes: the next fetch sees what was written, as on a CPU with coherent instruction caches.
@Suite struct GuestSelfModifyingTests {
    @Test func `a store into its own block changes what follows`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xC6, 0x05)  // mov byte [patched + 1], 42
        code.reference("operand", behind: 1)
        code.emit(42)
        code.emit(0x90)
        code.emit(0xB8)  // mov eax, 1
        code.label("operand")
        code.emit(1, 0, 0, 0)
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 42)
        // Once more, from the code that is there now.
        machine[.rax] = 0
        #expect(try machine.run(from: code.base).vector == Outcome.done)
        #expect(machine[.rax] == 42)
    }

    /// Stores of every kind, each changing the number that a function returns: the byte is at `rdi`, its new value in
    /// `al`, and rax goes on with the bytes behind it as they are.
    static let stores: [(name: String, bytes: [UInt8])] = [
        ("mov byte", [0x88, 0x07]), ("mov word", [0x66, 0x89, 0x07]), ("mov dword", [0x89, 0x07]), ("xchg", [0x87, 0x07]),
        ("lock xadd", [0xC7, 0x07, 0, 0, 0, 0, 0xF0, 0x0F, 0xC1, 0x07]), ("stosb", [0xAA]),
        ("rep stosd", [0xB9, 1, 0, 0, 0, 0xF3, 0xAB]),
        ("movd", [0x66, 0x0F, 0x6E, 0xC0, 0x66, 0x0F, 0x7E, 0x07]),
        ("movss", [0x66, 0x0F, 0x6E, 0xC0, 0xF3, 0x0F, 0x11, 0x07]),
        ("vmovd", [0xC5, 0xF9, 0x6E, 0xC0, 0xC5, 0xF9, 0x7E, 0x07]),
        // push word, with the stack pointer behind it
        ("push", [0x48, 0x87, 0xFC, 0x48, 0x83, 0xC4, 2, 0x66, 0x50, 0x48, 0x87, 0xFC]),
        ("add", [0x80, 0x2F, 1, 0x00, 0x07]),
        // movd xmm0, eax; push 0x80; movq xmm1, [rsp]; pop rdx
        ("maskmovdqu", [0x66, 0x0F, 0x6E, 0xC0, 0x68, 0x80, 0, 0, 0, 0xF3, 0x0F, 0x7E, 0x0C, 0x24, 0x5A, 0x66, 0x0F, 0xF7, 0xC1]),
    ]

    @Test(arguments: stores.indices) func `any kind of store changes code that has run`(index: Int) throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.call("function")
        code.emit(0x89, 0xC3)  // mov ebx, eax
        code.emit(0x48, 0x8D, 0x3D)  // lea rdi, [function + 1]
        code.reference("operand")
        code.emit(0xB8, 2, 0, 0, 0)
        code.emit(0x89, 0xC5)
        for byte in Self.stores[index].bytes { code.emit(byte) }
        code.call("function")
        code.done()
        code.label("function")
        code.emit(0xB8)
        code.label("operand")
        code.emit(1, 0, 0, 0, 0xC3)
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 1)
        #expect(machine[.rax] == 2, "\(Self.stores[index].name)")
    }

    @Test func `a store through another mapping of the page changes code`() throws {
        let machine = try TestMachine.small()
        machine.map(0x50_0000, to: TestMachine.codePhysical, [.writable])
        var code = GuestCode()
        code.load(.rdi, 0x50_0000)
        code.call("function")
        code.emit(0x89, 0xC3)
        code.emit(0xC6, 0x87, 0x80, 0, 0, 0, 2)  // mov byte [rdi + 0x80], 2
        code.call("function")
        code.done()
        code.pad(to: 0x7F)
        code.label("function")
        code.emit(0xB8, 1, 0, 0, 0, 0xC3)
        // The alias is in the TLB, as writable, before any code is there.
        machine.load(code)
        machine.cpu.writeState(machine.cpu.readState())
        #expect(try machine.run(from: code.base).vector == Outcome.done)
        #expect(machine[.rbx] == 1)
        #expect(machine[.rax] == 2)
    }

    /// An instruction whose opcode ends one page and whose operand begins the next.
    private func straddling() -> GuestCode {
        var code = GuestCode()
        code.call("function")
        code.emit(0x89, 0xC3)
        code.emit(0xC6, 0x05)  // mov byte [operand], 2
        code.reference("operand", behind: 1)
        code.emit(2)
        code.call("function")
        code.done()
        code.pad(to: 0xFFD)
        code.label("function")
        code.emit(0x90, 0xB8, 1)  // nop; mov eax, imm32 at ...FFE
        code.label("operand")
        code.emit(0, 0, 0)  // second byte of the operand, in the next page
        code.emit(0xC3)
        return code
    }

    @Test func `an instruction in two pages changes with its second page`() throws {
        let machine = try TestMachine.small()
        #expect(try machine.run(straddling()).vector == Outcome.done)
        #expect(machine[.rbx] == 1)
        #expect(machine[.rax] == 0x201)
    }

    @Test func `an instruction in two pages follows the mapping of its second page`() throws {
        let machine = try TestMachine.small()
        let code = straddling()
        #expect(try machine.run(code).vector == Outcome.done)
        // Another page behind the first, with another operand in it.
        machine.memory.write([0x44, 0, 0, 0xC3], at: 0x40_0000)
        machine.map(GuestCode.start + 0x1000, to: 0x40_0000, [.writable])
        var flush = GuestCode(at: GuestCode.start + 0x2000)
        flush.load(.rax, GuestCode.start + 0x1000)
        flush.emit(0x0F, 0x01, 0x38)  // invlpg [rax]
        flush.jump("away")
        flush.label("away")
        flush.load(.rcx, code.address(of: "function"))
        flush.emit(0xFF, 0xD1)  // call rcx
        flush.done()
        machine.load(flush)
        machine[.rsp] = TestMachine.stack
        #expect(try machine.run(from: flush.base).vector == Outcome.done)
        #expect(machine[.rax] == 0x4401)
        // And one that is not there: the fetch of the second page faults, at the instruction.
        machine.unmap(GuestCode.start + 0x1000)
        machine[.rsp] = TestMachine.stack
        let outcome = try machine.run(from: flush.base)
        #expect(outcome == Outcome(
            vector: 14, errorCode: 0x10, address: GuestCode.start + 0x1000, rip: GuestCode.start + 0xFFE, rflags: outcome.rflags))
    }

    @Test func `a store that crosses from data into code changes the code`() throws {
        let machine = try TestMachine.small()
        // Data page, then a code page, behind each other.
        machine.map(0x50_0000, to: TestMachine.dataPhysical, [.writable])
        machine.map(0x50_1000, to: TestMachine.codePhysical, [.writable])
        var code = GuestCode()
        code.jump("start")
        code.pad(to: 8)
        code.label("start")
        code.emit(0x48, 0xFF, 0xC3)  // inc rbx
        code.emit(0x48, 0x83, 0xFB, 2)  // cmp rbx, 2
        code.jump(if: 4, "end")
        code.load(.rdi, 0x50_0FFC)
        code.load(.rax, 0xCD_0000_0000 | 0x1122_3344)
        code.emit(0x48, 0x89, 0x07)  // mov [rdi], rax: the page now starts with CD 00 00 00
        code.emit(0xC6, 0x47, 5, 0x80)  // mov byte [rdi + 5], 0x80
        code.load(.rcx, GuestCode.start)
        code.emit(0xFF, 0xE1)  // jmp rcx
        code.label("end")
        code.emit(0x0F, 0x0B)
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 1)
        #expect(machine.data(0xFF8) >> 32 == 0x1122_3344)
    }

    @Test func `rep stosb over what follows it changes what follows`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x48, 0x8D, 0x3D)
        code.reference("patched")
        code.emit(0xB9, 5, 0, 0, 0, 0xB0, 0x90)  // mov ecx, 5; mov al, nop
        code.emit(0xF3, 0xAA)
        code.label("patched")
        code.emit(0xB8, 1, 0, 0, 0)
        code.done()
        machine[.rax] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 0x90)
    }

    @Test func `data beside code can be written without losing the code`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.load(.rcx, 1000)
        code.label("loop")
        code.emit(0x48, 0xFF, 0x05)  // inc qword [counter]
        code.reference("counter")
        code.emit(0x48, 0xFF, 0xC9)  // dec rcx
        code.jump(if: 5, "loop")
        code.emit(0x48, 0x8B, 0x05)
        code.reference("counter")
        code.done()
        code.pad(to: 256)
        code.label("counter")
        code.emit(0, 0, 0, 0, 0, 0, 0, 0)
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 1000)
    }
}
