import Testing
import VMM

@testable import TranslatorEngine

/// What blocks remember of each other: a cache that is too small, returns that are foreseen, links between pages.
@Suite struct GuestCodeCacheTests {
    /// Two segments of 60 KB or so.
    static let smallest = 160 << 10

    private static func machine(codeByteCount: Int) throws -> TestMachine {
        let machine = try TestMachine(codeByteCount: codeByteCount)
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 64, [.writable])
        machine.map(TestMachine.stack - (32 << 12), to: 0x60_0000, count: 32, [.writable])
        machine[.rsp] = TestMachine.stack
        machine.watch(seconds: 60)
        return machine
    }

    /// A chain of functions through many pages, more than the cache holds, and again and again. One of them changes in
    /// each round.
    @Test(arguments: [smallest, 1 << 20]) func `code that does not fit is dropped and made again`(codeByteCount: Int) throws {
        let machine = try Self.machine(codeByteCount: codeByteCount)
        let fortress = Fortress(machine)
        let count = 1800, rounds = 6
        var code = GuestCode()
        code.load(.rbx, UInt64(rounds))
        code.label("round")
        code.call("first")
        code.emit(0xFF, 0x05)  // inc dword [operand]
        code.reference("operand")
        code.emit(0xFF, 0xCB)  // dec ebx
        code.jump(if: 5, "round")
        code.done()
        for index in 0..<count {
            code.pad(to: 0x100 + index * 80)
            if index == 0 { code.label("first") }
            code.label("f\(index)")
            code.emit(0x05)  // add eax, 1
            if index == count / 2 { code.label("operand") }
            code.emit(1, 0, 0, 0)
            code.emit(0x48, 0x85, 0xDB)  // test rbx, rbx: never zero
            code.jump(if: 4, "f0")
            if index % 9 == 0 { code.call("leaf") }
            if index == count - 1 { code.emit(0xC3) } else { code.jump("f\(index + 1)") }
        }
        code.label("leaf")
        code.emit(0x48, 0xFF, 0xC2, 0xC3)  // inc rdx; ret
        #expect(code.bytes.count < 64 * 4096)
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == UInt64(rounds * count + rounds * (rounds - 1) / 2))
        #expect(machine[.rdx] == UInt64(rounds * ((count + 8) / 9)))
        if codeByteCount == Self.smallest { #expect(machine.cpu.cache.evictionCount > 2) }
        fortress.checkAll()
    }

    /// A few functions that are called again and again, between many that run once in a round.
    @Test func `what is hot stays while cold code passes`() throws {
        let machine = try Self.machine(codeByteCount: Self.smallest)
        let fortress = Fortress(machine)
        let hotCount = 50, slices = 60, sliceCount = 50
        var code = GuestCode()
        for slice in 0..<slices {
            code.call("hot0")
            code.call("cold\(slice * sliceCount)")
        }
        code.done()
        var hot: [UInt64] = []
        func function(_ name: String, _ index: Int, isLast: Bool) {
            code.pad(to: (code.bytes.count + 63) / 64 * 64)
            code.label(name + "\(index)")
            if name == "hot" { hot.append(TestMachine.codePhysical + UInt64(code.bytes.count)) }
            code.emit(0x05, 1, 0, 0, 0)  // add eax, 1
            if isLast { code.emit(0xC3) } else { code.jump(name + "\(index + 1)") }
        }
        for index in 0..<hotCount { function("hot", index, isLast: index == hotCount - 1) }
        for index in 0..<slices * sliceCount { function("cold", index, isLast: index % sliceCount == sliceCount - 1) }
        #expect(code.bytes.count < 64 * 4096)
        let cache = machine.cpu.cache
        #expect(try machine.run(code).vector == Outcome.done)
        let blocks = hot.map { cache.find($0, machine.cpu.mode) }
        #expect(!blocks.contains(0))
        let (evictions, made) = (cache.evictionCount, cache.madeCount)
        #expect(try machine.run(from: code.base).vector == Outcome.done)
        #expect(machine[.rax] == UInt64(2 * slices * (hotCount + sliceCount)))
        // The cold code was made again, and threw only itself out.
        #expect(cache.evictionCount > evictions + 2)
        #expect(cache.madeCount - made >= slices * sliceCount)
        #expect(cache.madeCount - made < slices * (sliceCount + 5))
        #expect(hot.map { cache.find($0, machine.cpu.mode) } == blocks)
        fortress.checkAll()
    }

    @Test func `calls deeper than the return stack come back`() throws {
        let machine = try Self.machine(codeByteCount: 4 << 20)
        var code = GuestCode()
        code.load(.rcx, 12_000)
        code.call("function")
        code.done()
        code.label("function")
        code.emit(0xFF, 0xC9)  // dec ecx
        code.jump(if: 4, "end")
        code.call("function")
        code.label("end")
        code.emit(0xFF, 0xC0, 0xC3)  // inc eax; ret
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 12_000)
        #expect(machine[.rsp] == TestMachine.stack)
    }

    @Test func `a return goes where the guest's stack says`() throws {
        let machine = try Self.machine(codeByteCount: 4 << 20)
        var code = GuestCode()
        code.load(.rbx, 3)
        code.label("round")
        code.call("outer")
        code.emit(0xFF, 0xCB)  // dec ebx
        code.jump(if: 5, "round")
        code.done()
        code.label("outer")
        code.call("inner")
        code.emit(0xFF, 0xC0)  // inc eax, skipped
        code.label("behind")
        code.emit(0xFF, 0xC2, 0xC3)  // inc edx; ret
        code.label("inner")
        code.call("thunk")
        code.label("thunk")
        code.emit(0x59)  // pop rcx: a call that does not return
        code.emit(0x48, 0x83, 0x04, 0x24, 2)  // add qword [rsp], 2: behind the skipped instruction
        code.emit(0xC3)
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 0)
        #expect(machine[.rdx] == 3)
        #expect(machine[.rsp] == TestMachine.stack)
    }

    @Test func `a return finds code that the callee changed`() throws {
        let machine = try Self.machine(codeByteCount: 4 << 20)
        var code = GuestCode()
        code.load(.rbx, 4)
        code.label("round")
        code.call("function")
        code.emit(0x05)  // add eax, 1
        code.label("operand")
        code.emit(1, 0, 0, 0)
        code.emit(0xFF, 0xCB)  // dec ebx
        code.jump(if: 5, "round")
        code.done()
        code.label("function")
        code.emit(0xFF, 0x05)  // inc dword [operand]
        code.reference("operand")
        code.emit(0xC3)
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 2 + 3 + 4 + 5)
    }

    /// A page that runs at two places, with different pages behind it.
    @Test func `links between pages hold at one place only`() throws {
        let machine = try Self.machine(codeByteCount: 4 << 20)
        let fortress = Fortress(machine)
        machine.map(0x70_0000, to: TestMachine.codePhysical + 0x1000, [.writable])
        machine.map(0x70_1000, to: TestMachine.codePhysical + 0x3000, [.writable])
        var code = GuestCode()
        code.load(.rbx, 4)
        code.label("round")
        code.emit(0x01, 0xC0)  // add eax, eax
        code.call("function")
        code.load(.rdx, 0x70_0000)
        code.emit(0xFF, 0xD2)  // call rdx: the same page elsewhere
        code.emit(0xFF, 0xCB)  // dec ebx
        code.jump(if: 5, "round")
        code.done()
        code.pad(to: 0x1000)
        code.label("function")
        code.jump("next")
        code.pad(to: 0x2000)
        code.label("next")
        code.emit(0x83, 0xC0, 1, 0xC3)  // add eax, 1; ret
        code.pad(to: 0x3000)
        code.emit(0x83, 0xC0, 16, 0xC3)  // add eax, 16; ret
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 17 * 15)
        fortress.checkAll()
    }

    /// The page behind a link becomes another one.
    @Test func `links between pages do not outlive the page tables`() throws {
        let machine = try Self.machine(codeByteCount: 4 << 20)
        var code = GuestCode()
        code.emit(0x0F, 0x20, 0xDA, 0x0F, 0x22, 0xDA)  // mov rdx, cr3; mov cr3, rdx
        for _ in 0..<3 { code.call("function") }
        code.done()
        code.pad(to: 0x1000)
        code.label("function")
        code.emit(0x83, 0xC0, 1, 0xC3)  // add eax, 1; ret
        code.pad(to: 0x2000)
        code.emit(0x83, 0xC0, 16, 0xC3)  // add eax, 16; ret
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 3)
        machine.map(GuestCode.start + 0x1000, to: TestMachine.codePhysical + 0x2000, [.writable])
        #expect(try machine.run(from: code.base).vector == Outcome.done)
        #expect(machine[.rax] == 3 + 48)
    }
}
