import Testing
import VMM

@testable import TranslatorEngine

/// What the translator emits, without running it: for bytes of every kind and each mode the verifier finds nothing, and it
/// does find what is wrong.
@Suite struct AttackCodeTests {
    /// 64-bit and 32-bit code in each TLB's mode, and with vector instructions and time stamps forbidden.
    static let modes: [UInt64] = [
        0, 1, 2, 1 << 2, 1 << 2 | 1, 1 << 2 | 2, BlockMode.fpuTrap, BlockMode.noSSE | 1, BlockMode.noAVX, BlockMode.timeStampTrap | 1,
        BlockMode.outerRing, BlockMode.alignmentCheck | 1, BlockMode.breakpoints,
        1 << 2 | BlockMode.segmented, 1 << 2 | BlockMode.segmented | BlockMode.smallStack | BlockMode.expandDown | 1,
        1 << 2 | BlockMode.segmented | BlockMode.partialPage | BlockMode.alignmentCheck | 1,
        2 << 2 | BlockMode.segmented | BlockMode.smallStack, 2 << 2 | BlockMode.segmented | BlockMode.smallStack | BlockMode.eightySix,
        2 << 2 | BlockMode.segmented | BlockMode.partialPage | BlockMode.expandDown | 1,
    ]

    @Test func `the bits of a block's mode are distinct`() {
        let bits = [
            3, 3 << 2, BlockMode.fpuTrap, BlockMode.noSSE, BlockMode.noAVX, BlockMode.segmented, BlockMode.outerRing,
            BlockMode.timeStampTrap, BlockMode.breakpoints, BlockMode.alignmentCheck, BlockMode.smallStack, BlockMode.eightySix,
            BlockMode.expandDown, BlockMode.partialPage,
        ]
        #expect(bits.reduce(0, |).nonzeroBitCount == bits.map(\.nonzeroBitCount).reduce(0, +))
    }

    /// Translates the code page's bytes from an offset, to be found by nobody.
    private static func translate(_ machine: TestMachine, _ offset: Int, _ mode: UInt64, limit: Int = BlockWorkspace.instructionLimit) throws -> Block {
        let linear = GuestCode.start + UInt64(offset)
        let page = try machine.cpu.codePage(linear)
        machine.context.pointee.ripPage = linear & ~0xFFF
        let index = try machine.cpu.translate(
            linear, page: page, mode: BlockMode(rawValue: mode), limit: limit, isIsolated: limit == 1)
        return machine.cpu.cache.blocks[index]
    }

    @Test func `blocks of random bytes pass the verifier`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        var random = SiliconRandom(seed: 1)
        for round in 0..<Self.modes.count {
            machine.memory.write(AttackFuzzTests.fill(2 * 4096, &random), at: TestMachine.codePhysical)
            machine.cpu.flushCode()
            let mode = Self.modes[round % Self.modes.count]
            for offset in stride(from: 0, to: 4096, by: 1 + random.below(7)) {
                do { _ = try Self.translate(machine, offset, mode) } catch is GuestException {}
            }
            fortress.checkAll("round \(round), mode \(mode)")
        }
        #expect(fortress.verifier.instructionCount > 100_000)
    }

    /// Whole instructions, one after the other, of all maps and shapes.
    @Test func `blocks of instructions pass the verifier`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        let decoder = SiliconDecoder()
        var generator = SiliconGenerator(seed: 2, decoder: decoder)
        for round in 0..<Self.modes.count {
            let mode = Self.modes[round % Self.modes.count]
            var bytes: [UInt8] = []
            while bytes.count < 4096 {
                let map = generator.random.pick([SiliconGenerator.Map.one, .two, .three38, .three3A, .x87, .vex])
                let opcode = map == .x87 ? 0xD8 | generator.random.byte() & 7 : generator.random.byte()
                let candidate = Array(generator.bytes(map, opcode: opcode, .any)[..<15])
                guard decoder.decode(candidate) else { continue }
                bytes += candidate[..<decoder.length]
            }
            machine.memory.write(bytes, at: TestMachine.codePhysical)
            machine.cpu.flushCode()
            var offset = 0
            while offset < 4080 {
                let block = try? Self.translate(machine, offset, mode)
                offset += max(1, Int(block?.length ?? 1))
            }
            fortress.checkAll("round \(round), mode \(mode)")
        }
        #expect(fortress.verifier.instructionCount > 100_000)
    }

    @Test func `the most and the longest instructions fit in a block`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        let decoder = SiliconDecoder()
        var generator = SiliconGenerator(seed: 3, decoder: decoder)
        // The instructions that need most code, found by trying.
        var worst: [(size: Int, bytes: [UInt8])] = []
        var tries = 0
        while tries < 6000 {
            let map = generator.random.pick([SiliconGenerator.Map.one, .two, .three38, .x87, .vex])
            let opcode = map == .x87 ? 0xD8 | generator.random.byte() & 7 : generator.random.byte()
            let candidate = Array(generator.bytes(map, opcode: opcode, .any)[..<15])
            guard decoder.decode(candidate) else { continue }
            tries += 1
            let bytes = Array(candidate[..<decoder.length])
            machine.memory.write(bytes, at: TestMachine.codePhysical + 64)
            guard let block = try? Self.translate(machine, 64, 0, limit: 1), block.length == UInt16(bytes.count) else { continue }
            worst.append((Int(block.end - block.savedEntry), bytes))
            if worst.count > 200 { worst = Array(worst.sorted { $0.size > $1.size }.prefix(40)) }
        }
        worst.sort { $0.size > $1.size }
        var longest = 0
        for (_, bytes) in worst.prefix(40) {
            var code: [UInt8] = []
            // Flags live before each: what follows reads them.
            for _ in 0..<BlockWorkspace.instructionLimit { code += bytes }
            machine.memory.write(code + [0x0F, 0x92, 0xC0], at: TestMachine.codePhysical)
            for mode in [0, 1] as [UInt64] {
                machine.cpu.flushCode()
                let block = try Self.translate(machine, 0, mode)
                let size = Int(block.end - block.savedEntry)
                longest = max(longest, size)
                #expect(size <= CodeCache.longestBlock / 2, "\(bytes)")
                fortress.checkAll("\(bytes)")
            }
        }
        // The search found something longer than a plain access.
        #expect(longest > 64 * 60)
        #expect((worst.first?.size ?? 0) * 64 <= CodeCache.longestBlock)
    }

    /// Copies of one page of code under many addresses: the caches fill up, and all goes on with new ones.
    @Test func `a guest that makes more code than fits goes on`() throws {
        let machine = try TestMachine(codeByteCount: 256 << 10)
        let fortress = Fortress(machine)
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 4, [.writable])
        machine.map(TestMachine.stack - 8192, to: 0x30_0000, count: 2, [.writable])
        machine.watch(seconds: 60)
        var code = GuestCode()
        code.load(.rcx, 12_000)
        code.label("loop")
        code.emit(0x89, 0x0D)  // mov [operand], ecx
        code.reference("operand")
        code.emit(0x51)  // push rcx
        code.call("function")
        code.emit(0x59)  // pop rcx
        code.emit(0x48, 0xFF, 0xC9)  // dec rcx
        code.jump(if: 5, "loop")
        code.done()
        code.pad(to: 0x1000)
        code.label("function")
        // Sixteen system instructions: their pool is bounded too.
        for _ in 0..<16 { code.emit(0x31, 0xC0, 0x0F, 0xA2) }
        code.emit(0x81, 0xC7)  // add edi, imm32
        code.label("operand")
        code.emit(0, 0, 0, 0)
        code.emit(0xC3)
        machine[.rsp] = TestMachine.stack
        machine[.rdi] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rdi] == 12_000 * 12_001 / 2)
        fortress.checkAll()
    }

    // MARK: The verifier itself

    /// Host code put in the place of an emitted block's, and whether the verifier takes it.
    @Test(arguments: [
        ([0x49, 0x8B, 0x06], "mov rax, [r14] without a check"), ([0x48, 0x8B, 0x00], "mov rax, [rax]"),
        ([0x48, 0x89, 0x03], "mov [rbx], rax"), ([0x65, 0x48, 0x8B, 0x00], "mov rax, gs:[rax]"),
        ([0x65, 0x48, 0x89, 0x04, 0x25, 0xE8, 0, 0, 0], "mov gs:[owner], rax"),
        ([0x65, 0x48, 0x8B, 0x04, 0x25, 0, 0, 0x10, 0], "mov rax, gs:[0x100000]"),
        ([0x64, 0x48, 0x8B, 0x04, 0x25, 0, 0, 0, 0], "mov rax, fs:[0]"), ([0x48, 0x8B, 0x05, 0, 0, 0, 0], "mov rax, [rip]"),
        ([0x0F, 0x05], "syscall"), ([0xCD, 0x80], "int 0x80"), ([0x50], "push rax"), ([0x58], "pop rax"), ([0xC3], "ret"),
        ([0x48, 0x89, 0xE0], "mov rax, rsp"), ([0x48, 0x83, 0xC4, 8], "add rsp, 8"), ([0xF3, 0x48, 0x0F, 0xAE, 0xD8], "wrgsbase rax"),
        ([0xAA], "stosb"), ([0xF3, 0xA4], "rep movsb"), ([0x0F, 0x01, 0xEF], "wrpkru"), ([0x8E, 0xE8], "mov gs, eax"),
        ([0x9C], "pushf"), ([0xFF, 0xE0], "jmp rax"), ([0xFF, 0xD0], "call rax"), ([0xE9, 0, 0x10, 0, 0], "jmp elsewhere"),
        ([0xE8, 0, 0x10, 0, 0], "call elsewhere"), ([0x0F, 0xA2], "cpuid"), ([0xD7], "xlatb"), ([0x4C, 0x89, 0xF0], "mov rax, r14"),
        ([0x66, 0x0F, 0xF7, 0xC1], "maskmovdqu"), ([0xC4, 0xE2, 0xF1, 0x90, 0x04, 0x08], "vpgatherdq"), ([0xFD], "std"),
    ] as [([UInt8], String)])
    func `the verifier finds what must not be there`(bytes: [UInt8], name: String) throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        for _ in 0..<4 { code.emit(0x48, 0x05, 0, 0, 0, 0x11) }  // add rax, imm32
        code.emit(0x48, 0x8B, 0x03)  // mov rax, [rbx]
        code.done()
        machine.load(code)
        let block = try Self.translate(machine, 0, 0)
        let verifier = EmittedCodeVerifier(machine.cpu)
        #expect(verifier.violations() == [])
        let at = machine.cpu.cache.memory.writableBase + Int(block.savedEntry)
        for place in 0..<24 { at[place] = 0x90 }
        for (place, byte) in bytes.enumerated() { at[place] = byte }
        #expect(verifier.violations().count == 1, "\(name)")
    }

    @Test func `the verifier finds a check of the wrong size`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x48, 0x8B, 0x03)  // mov rax, [rbx]
        code.done()
        machine.load(code)
        let block = try Self.translate(machine, 0, 0)
        let verifier = EmittedCodeVerifier(machine.cpu)
        #expect(verifier.violations() == [])
        let base = machine.cpu.cache.memory.writableBase
        var changed = 0
        for at in Int(block.savedEntry)..<Int(block.end) - 7 {
            // cmp r14, 4096 - 8
            guard base[at] == 0x49, base[at + 1] == 0x81, base[at + 2] == 0xFE, base[at + 3] == 0xF8, base[at + 4] == 0x0F else { continue }
            base[at + 3] = 0xFC
            changed += 1
        }
        #expect(changed == 1)
        #expect(verifier.violations().count == 1)
    }
}
