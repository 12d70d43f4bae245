import Testing
import TranslatorEngine
import VMM

/// Slots in front of the TLB, and runs of accesses under one check: that they forget what the TLB forgets, and that
/// faults stay where they belong.
@Suite struct GuestSlotTests {
    private static let page: UInt64 = 0x50_0000

    @Test func `the access of a run that reaches a missing page faults by itself`() throws {
        let machine = try TestMachine.small()
        machine.map(Self.page, to: TestMachine.dataPhysical, [.writable])
        machine[.rax] = 0x1234
        var code = GuestCode()
        code.load(.rsi, Self.page + 0xFF0)
        code.emit(0x48, 0x89, 0x06)  // mov [rsi], rax
        code.emit(0x48, 0x89, 0x46, 8)
        code.label("fault")
        code.emit(0x48, 0x89, 0x46, 16)
        code.emit(0x48, 0x89, 0x46, 24)
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 14)
        #expect(outcome.rip == code.address(of: "fault"))
        #expect(outcome.address == Self.page + 0x1000)
        #expect(machine.data(0xFF0) == 0x1234)
        #expect(machine.data(0xFF8) == 0x1234)
        machine.map(Self.page + 0x1000, to: TestMachine.dataPhysical + 0x3000, [.writable])
        #expect(try machine.run(from: code.base).vector == Outcome.done)
        #expect(machine.data(0x3000) == 0x1234)
        #expect(machine.data(0x3008) == 0x1234)
        #expect(EmittedCodeVerifier(machine.cpu).violations() == [])
    }

    @Test func `pushes and pops over a page's end keep their order, and flags live through them`() throws {
        let machine = try TestMachine.small()
        machine[.rsp] = TestMachine.stack - 4096 + 16
        machine[.rax] = 1
        machine[.rbx] = 2
        machine[.rcx] = 3
        machine[.rdx] = 4
        var code = GuestCode()
        code.emit(0x48, 0x39, 0xC0)  // cmp rax, rax
        code.emit(0x50, 0x53, 0x51, 0x52)  // push rax, rbx, rcx, rdx
        code.emit(0x5E, 0x5F, 0x5D, 0x41, 0x5D)  // pop rsi, rdi, rbp, r13
        code.jump(if: 4, "equal")
        code.emit(0x31, 0xF6)  // xor esi, esi
        code.label("equal")
        code.done()
        for _ in 0..<2 {
            machine[.rsp] = TestMachine.stack - 4096 + 16
            #expect(try machine.run(code).vector == Outcome.done)
            #expect(machine[.rsi] == 4)
            #expect(machine[.rdi] == 3)
            #expect(machine[.rbp] == 2)
            #expect(machine[.r13] == 1)
            #expect(machine[.rsp] == TestMachine.stack - 4096 + 16)
        }
        #expect(EmittedCodeVerifier(machine.cpu).violations() == [])
    }

    @Test func `INVLPG in a loop is in time for the loop's own slots`() throws {
        let machine = try TestMachine.small()
        for page in 0..<4 as Range<UInt64> { machine.setData(page * 0x1000, page + 1) }
        machine.map(Self.page, to: TestMachine.dataPhysical, [.writable])
        // The page table's own page, as data.
        machine.map(0x51_0000, to: machine.entryAddress(Self.page) & ~0xFFF, [.writable])
        var code = GuestCode()
        code.load(.rsi, Self.page)
        code.load(.rdi, 0x51_0000 + machine.entryAddress(Self.page) & 0xFFF)
        code.load(.rcx, 3)
        code.load(.rax, 0)
        code.label("loop")
        code.emit(0x48, 0x03, 0x06)  // add rax, [rsi]
        code.emit(0x48, 0x81, 0x07, 0, 0x10, 0, 0)  // add qword [rdi], 0x1000
        code.emit(0x0F, 0x01, 0x3E)  // invlpg [rsi]
        code.emit(0xFF, 0xC9)  // dec ecx
        code.jump(if: 5, "loop")
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 1 + 2 + 3)
    }

    @Test func `a store to the stack's page, which has become code, is seen`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.load(.rax, 0x9090_C300_0000_01B8)  // mov eax, 1; ret
        code.emit(0x50)  // push rax
        code.emit(0xFF, 0xD4)  // call rsp
        code.emit(0x89, 0xC3)  // mov ebx, eax
        code.emit(0xC6, 0x44, 0x24, 1, 2)  // mov byte [rsp + 1], 2
        code.emit(0xFF, 0xD4)
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 1)
        #expect(machine[.rax] == 2)
    }

    @Test func `an address that is not canonical faults though it looks like an empty slot`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.load(.rsi, 1 << 63)
        code.load(.rcx, 4)
        code.label("loop")
        code.emit(0x48, 0x8B, 0x46, 0x10)  // mov rax, [rsi + 16]
        code.emit(0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        var outcome = try machine.run(code)
        #expect(outcome.vector == 13)
        #expect(outcome.errorCode == 0)
        #expect(outcome.rip == code.address(of: "loop"))
        #expect(machine[.rcx] == 4)

        code = GuestCode(at: GuestCode.start + 0x1000)
        code.load(.rsp, 1 << 63)
        code.label("pop")
        code.emit(0x58)
        code.done()
        machine.load(code)
        outcome = try machine.run(from: code.base)
        #expect(outcome.vector == 12)
        #expect(outcome.errorCode == 0)
        #expect(outcome.rip == code.address(of: "pop"))
        #expect(machine[.rsp] == 1 << 63)
    }

    @Test func `a loop that never stays in a page gives its slot up and goes on`() throws {
        let machine = try TestMachine.small()
        machine.setData(0x400, 1)
        machine.setData(0x1C00, 2)
        /// The most jumps that a slot of a loop counts.
        func jumps() -> UInt64 {
            (0..<TLBSlots.loopCount).map { number in
                UnsafeRawPointer(machine.context).load(
                    fromByteOffset: TLBSlots.loop(table: 0, writes: false, number: number) + TLBSlots.jumps, as: UInt64.self)
            }.max() ?? 0
        }
        var code = GuestCode()
        code.load(.rsi, TestMachine.data + 0x400)
        code.load(.rax, 0)
        code.label("loop")
        code.emit(0x48, 0x03, 0x06)  // add rax, [rsi]
        code.emit(0x48, 0x81, 0xF6, 0, 0x18, 0, 0)  // xor rsi, 0x1800
        code.emit(0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        machine.load(code)
        // The first run ends in a handler that is code from then on, which empties all slots.
        for _ in 0..<2 {
            machine[.rcx] = 20
            #expect(try machine.run(from: code.base).vector == Outcome.done)
            #expect(machine[.rax] == 30)
        }
        #expect(jumps() >= 10 && jumps() < TLBSlots.jumpLimit)
        machine[.rcx] = 400
        #expect(try machine.run(from: code.base).vector == Outcome.done)
        #expect(machine[.rax] == 600)
        #expect(jumps() < 10, "the loop no longer fills it")
        #expect(EmittedCodeVerifier(machine.cpu).violations() == [])
        machine.unmap(TestMachine.data + 0x1000)
        machine.cpu.flushTLB(page: TestMachine.data + 0x1000)
        machine[.rcx] = 400
        let outcome = try machine.run(from: code.base)
        #expect(outcome.vector == 14)
        #expect(outcome.address == TestMachine.data + 0x1C00)
        #expect(outcome.rip == code.address(of: "loop"))
        #expect(machine[.rax] == 1)
    }
}
