import Testing
import VMM

@testable import TranslatorEngine

/// Control flow that nobody would write: into the middle of instructions, returns that no call made, code that changes under
/// its own feet at every offset.
@Suite struct AttackFlowTests {
    @Test func `a jump into the middle of an instruction runs what the bytes say there`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        var code = GuestCode()
        code.load(.rcx, 50)
        code.label("loop")
        code.jump("first")
        code.label("first")
        // mov rax, imm64, whose immediate is: add rbx, 1; jmp +2
        code.emit(0x48, 0xB8)
        code.label("middle")
        code.emit(0x48, 0x83, 0xC3, 1, 0xEB, 0x02, 0x90, 0x90)
        code.emit(0xEB, 0x02)  // jmp over the next two bytes, which the other way through jumps to
        code.emit(0xEB, 0x02)
        code.emit(0x0F, 0x0B)
        code.emit(0x90, 0x90)
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 4, "end")
        code.emit(0xF6, 0xC1, 1)  // test cl, 1
        code.jump(if: 5, "middle")
        code.jump("loop")
        code.label("end")
        code.done()
        machine[.rbx] = 0
        let outcome = try machine.run(code)
        #expect(outcome.vector == Outcome.done || outcome.vector == 6, "\(outcome)")
        fortress.checkAll()
    }

    /// Enters a run of bytes at each of its offsets, many of them inside instructions, again and again: the outcome of an
    /// entry never changes, whatever other blocks over the same bytes there are.
    @Test(arguments: 1...4 as ClosedRange<UInt64>) func `overlapping blocks do not disturb each other`(seed: UInt64) throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        var random = SiliconRandom(seed: seed)
        // Register arithmetic with immediates: whole at any offset, mostly.
        var bytes: [UInt8] = []
        while bytes.count < 120 {
            bytes += random.pick([
                [0x05, random.byte(), random.byte(), 0x05, random.byte()], [0x48, 0x83, 0xC0 | random.byte() & 7 & ~4, random.byte()],
                [0x69, 0xC0, random.byte(), 0x90, 0x01, 0xD8], [0xB8, 0x01, 0xD8, 0x29, 0xC3], [0x48, 0x8D, 0x40, random.byte()],
            ])
        }
        bytes += [UInt8](repeating: 0x90, count: 16) + [0xCD, 0x80]
        machine.memory.write(bytes, at: TestMachine.codePhysical)
        func enter(_ offset: Int) throws -> [UInt64] {
            for register in 0..<8 where register != 4 { machine.context.pointee.gpr[register] = UInt64(register) }
            machine[.rsp] = TestMachine.stack
            machine.context.pointee.rflags = 2
            let outcome = try machine.run(from: GuestCode.start + UInt64(offset))
            return (0..<8).map { machine.context.pointee.gpr[$0] } + [UInt64(outcome.vector), outcome.rip]
        }
        var first: [[UInt64]] = []
        for offset in 0..<120 {
            machine.cpu.flushCode()
            first.append(try enter(offset))
        }
        for _ in 0..<400 {
            let offset = random.below(120)
            #expect(try enter(offset) == first[offset], "offset \(offset)")
        }
        fortress.checkAll()
    }

    enum Store: CaseIterable { case near, alias, wide, crossing, x87, string, vector }

    /// A store changes each instruction of the block that it is in, in turn.
    @Test(arguments: Store.allCases) func `a store to any offset of its own page is seen by the next instruction`(store: Store) throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        machine.map(0x90_0000, to: TestMachine.codePhysical, [.writable])
        let body = 48
        for target in 0..<body {
            var code = GuestCode()
            code.emit(0x31, 0xDB)  // xor ebx, ebx
            let address = GuestCode.start + 0x80 + UInt64(target * 2) + 1
            let alias = address - GuestCode.start + 0x90_0000
            // FF C3 is inc ebx, FF CB is dec ebx, in a body of such pairs.
            switch store {
            case .near:
                code.load(.rdi, address)
                code.emit(0xC6, 0x07, 0xCB)
            case .alias:
                code.load(.rdi, alias)
                code.emit(0xC6, 0x07, 0xCB)
            case .wide:
                code.load(.rdi, address)
                code.load(.rax, 0x9090_9090_9090_90CB)
                code.emit(0x8A, 0x67, 1, 0x88, 0x07, 0xB0, 0xCB, 0x66, 0x89, 0x07)  // mov ah, [rdi + 1]; mov [rdi], al; mov al, 0xCB; mov [rdi], ax
            case .crossing:
                code.load(.rdi, alias)
                code.emit(0xF0, 0x80, 0x37, 0x08)  // lock xor byte [rdi], 8
            case .x87:
                code.load(.rdi, address)
                code.load(.rsi, TestMachine.data)
                code.emit(0x48, 0x8B, 0x07, 0x34, 0x08, 0x48, 0x89, 0x06)  // mov rax, [rdi]; xor al, 8; mov [rsi], rax
                code.emit(0xDF, 0x2E, 0xDF, 0x3F)  // fild qword [rsi]; fistp qword [rdi]
            case .string:
                code.load(.rdi, address)
                code.emit(0xB0, 0xCB, 0xB9, 1, 0, 0, 0, 0xF3, 0xAA)  // mov al, 0xCB; mov ecx, 1; rep stosb
            case .vector:
                code.load(.rdi, address)
                code.emit(0xF3, 0x0F, 0x6F, 0x07)  // movdqu xmm0, [rdi]
                code.emit(0xB8, 8, 0, 0, 0, 0x66, 0x0F, 0x6E, 0xC8)  // mov eax, 8; movd xmm1, eax
                code.emit(0x66, 0x0F, 0xEF, 0xC1, 0xF3, 0x0F, 0x7F, 0x07)  // pxor xmm0, xmm1; movdqu [rdi], xmm0
            }
            code.pad(to: 0x80)
            for _ in 0..<body { code.emit(0xFF, 0xC3) }
            code.done()
            code.pad(to: 0x120)
            #expect(try machine.run(code).vector == Outcome.done)
            #expect(machine[.rbx] == UInt64(body - 2), "\(store), \(target): \(Int32(truncatingIfNeeded: machine[.rbx]))")
        }
        fortress.checkAll()
    }

    @Test func `calls without returns and returns without calls go where the stack says`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        machine.map(0x80_0000, to: 0x50_0000, count: 64, [.writable, .user])
        // 10000 calls deep, then as many returns.
        var deep = GuestCode()
        deep.load(.rcx, 10_000)
        deep.label("loop")
        deep.call("next")
        deep.emit(0x48, 0xFF, 0xC3, 0xC3)  // inc rbx; ret
        deep.label("next")
        deep.emit(0x48, 0xFF, 0xC9)
        deep.jump(if: 5, "loop")
        deep.emit(0x48, 0x8D, 0x05)
        deep.reference("end")
        // The lowest frame of all is the end's.
        deep.emit(0x48, 0xA3)
        for byte in 0..<8 as Range<UInt64> { deep.emit(UInt8(truncatingIfNeeded: (0x83_FFF8 as UInt64) >> (byte * 8))) }
        deep.emit(0xC3)
        deep.label("end")
        deep.done()
        machine[.rbx] = 0
        machine.load(deep)
        machine.cpu.writeState(machine.cpu.readState())
        machine[.rsp] = 0x84_0000
        let outcome = try machine.run(from: deep.base)
        #expect(outcome.vector == Outcome.done && machine[.rbx] == 9_999, "\(outcome), \(machine[.rbx])")
        fortress.check()

        // A stack of addresses that nobody pushed by a call: gadgets in the middle of instructions among them.
        var gadgets = GuestCode()
        gadgets.done()
        gadgets.label("one")
        gadgets.emit(0x48, 0xFF, 0xC3, 0xC3)
        gadgets.label("two")
        gadgets.emit(0x48, 0xB8)
        gadgets.label("inside")
        gadgets.emit(0x48, 0x83, 0xC3, 0x10, 0xC3, 0x90, 0x90, 0x90, 0xC3)
        machine.load(gadgets)
        machine.cpu.writeState(machine.cpu.readState())
        var random = SiliconRandom(seed: 5)
        for _ in 0..<20 {
            var expected: UInt64 = 0
            for slot in 0..<200 as Range<UInt64> {
                let name = random.pick(["one", "two", "inside"])
                expected += name == "one" ? 1 : name == "inside" ? 0x10 : 0
                machine.memory.store(0x50_0000 + slot * 8, gadgets.address(of: name))
            }
            machine.memory.store(0x50_0000 + 200 * 8, gadgets.base)
            machine[.rbx] = 0
            machine[.rsp] = 0x80_0000
            #expect(try machine.run(from: gadgets.address(of: "one")).vector == Outcome.done)
            #expect(machine[.rbx] == expected + 1)
        }
        fortress.checkAll()
    }

    @Test func `a return address that was changed is where the return goes`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        var code = GuestCode()
        code.load(.rcx, 1000)
        code.label("loop")
        code.call("function")
        code.emit(0x48, 0x83, 0xC3, 1)  // add rbx, 1
        code.emit(0x48, 0x83, 0xC3, 0x10)  // add rbx, 16: where every second return goes
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        code.label("function")
        code.emit(0x89, 0xC8, 0x83, 0xE0, 1)  // mov eax, ecx; and eax, 1
        code.emit(0xC1, 0xE0, 2)  // shl eax, 2
        code.emit(0x48, 0x01, 0x04, 0x24)  // add [rsp], rax
        code.emit(0xC3)
        machine[.rbx] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 500 * 17 + 500 * 16)
        fortress.checkAll()
    }

    /// Blocks that are linked to each other, in a page that is rewritten between rounds.
    @Test func `links to blocks that are gone are undone`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        var random = SiliconRandom(seed: 9)
        for round in 0..<60 {
            // A ring of 16 pieces in random places, each adds its number and goes on to the next; the store goes first.
            var places = (0..<16).map { 0x200 + $0 * 32 }
            for index in places.indices { places.swapAt(index, random.below(16)) }
            var expected: UInt64 = 0
            var code = GuestCode()
            code.load(.rcx, 3)
            code.jump("piece 0")
            var parts: [(Int, String)] = places.enumerated().map { ($0.element, "piece \($0.offset)") }
            parts.sort { $0.0 < $1.0 }
            for (place, name) in parts {
                code.pad(to: place)
                code.label(name)
                let number = Int(name.dropFirst(6)) ?? 0
                let value = random.byte() & 0x7F
                expected += UInt64(value)
                code.emit(0x48, 0x83, 0xC3, value)
                if number == 15 { code.jump("end") } else { code.jump("piece \(number + 1)") }
            }
            code.pad(to: 0x600)
            code.label("end")
            code.emit(0x48, 0xFF, 0xC9)
            code.jump(if: 5, "piece 0")
            code.done()
            // The guest itself copies the new code over the old, so that the translator sees stores.
            let bytes = code.linked
            machine.memory.write(bytes, at: TestMachine.dataPhysical)
            var copy = GuestCode(at: GuestCode.start + 0x1000)
            copy.load(.rsi, TestMachine.data)
            copy.load(.rdi, GuestCode.start)
            copy.load(.rcx, UInt64(bytes.count))
            copy.emit(0xF3, 0xA4)
            copy.load(.rax, GuestCode.start)
            copy.emit(0xFF, 0xE0)
            if round == 0 { machine.load(copy) } else { machine.memory.write(copy.linked, at: TestMachine.codePhysical + 0x1000) }
            machine[.rbx] = 0
            #expect(try machine.run(from: copy.base).vector == Outcome.done)
            #expect(machine[.rbx] == 3 * expected, "round \(round)")
            fortress.checkAll("round \(round)")
        }
    }
}
