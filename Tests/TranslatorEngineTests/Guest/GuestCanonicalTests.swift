import Testing
import VMM

@testable import TranslatorEngine

/// Near branches to addresses that are not canonical fault themselves, before any of their effects (SDM Vol. 2, JMP, CALL,
/// RET, Jcc and LOOP).
@Suite struct GuestCanonicalTests {
    static let targets: [UInt64] = [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0x8000_0000_0000_0001, 1 << 62]
    private static let untouched: UInt64 = 0x5A5A_5A5A_5A5A_5A5A

    enum Branch: CaseIterable {
        case jumpRegister, jumpDisplaced, jumpMemory, callRegister, callDisplaced, callMemory, ret, retAndRelease

        /// The target is in rax, r14 and at rbx; a return finds it on top of the stack.
        var bytes: [UInt8] {
            switch self {
            case .jumpRegister: [0xFF, 0xE0]
            case .jumpDisplaced: [0x41, 0xFF, 0xE6]
            case .jumpMemory: [0xFF, 0x23]
            case .callRegister: [0xFF, 0xD0]
            case .callDisplaced: [0x41, 0xFF, 0xD6]
            case .callMemory: [0xFF, 0x13]
            case .ret: [0xC3]
            case .retAndRelease: [0xC2, 0x10, 0x00]
            }
        }
        var isReturn: Bool { self == .ret || self == .retAndRelease }
        var isCall: Bool { self == .callRegister || self == .callDisplaced || self == .callMemory }
    }

    /// Code at `base` that brings the target to where the branches look for it.
    private func setUp(_ code: inout GuestCode, _ target: UInt64) {
        code.load(.rax, target)
        code.load(.rbx, TestMachine.data)
        code.emit(0x49, 0x89, 0xC6)  // mov r14, rax
        code.emit(0x48, 0x89, 0x03)  // mov [rbx], rax
    }

    private func expectSound(_ machine: TestMachine, sourceLocation: SourceLocation = #_sourceLocation) {
        #expect(EmittedCodeVerifier(machine.cpu).violations() == [], sourceLocation: sourceLocation)
    }

    @Test(arguments: Branch.allCases, targets)
    func `the branch faults, and neither stack nor stack pointer has changed`(branch: Branch, target: UInt64) throws {
        for (level, isStepped) in [(0, false), (3, false), (3, true)] {
            let machine = try TestMachine.small()
            machine.enter(level: level)
            let top = TestMachine.stack - 64
            machine[.rsp] = top
            machine.memory.store(0x30_2000 - 72, Self.untouched)
            machine.memory.store(0x30_2000 - 64, target)
            var code = GuestCode()
            setUp(&code, target)
            if isStepped {
                // The branch alone, behind POPF with TF, is a block of one instruction; its trap does not come.
                code.emit(0x9C, 0x48, 0x81, 0x0C, 0x24, 0x00, 0x01, 0x00, 0x00, 0x9D)  // pushf; or qword [rsp], 0x100; popf
            }
            code.label("branch")
            for byte in branch.bytes { code.emit(byte) }
            code.done()
            // What PUSHF left below the stack pointer.
            if isStepped { machine.memory.store(0x30_2000 - 72, 0 as UInt64) }
            let outcome = try machine.run(code)
            #expect(outcome.vector == 13 && outcome.errorCode == 0, "\(outcome)")
            #expect(outcome.rip == code.address(of: "branch"))
            #expect(machine[.rsp] == top)
            if !isStepped { #expect(machine.memory.load(0x30_2000 - 72, as: UInt64.self) == Self.untouched) }
            expectSound(machine)
        }
    }

    @Test(arguments: Branch.allCases.filter(\.isCall))
    func `whether a fault of the push comes first is the vendor's choice`(branch: Branch) throws {
        for (stack, vector) in [(0x1234_0000, 14), (1 << 62, 12)] as [(UInt64, Int)] {
            let machine = try TestMachine.small()
            machine[.rsp] = stack
            var code = GuestCode()
            setUp(&code, Self.targets[0])
            code.label("branch")
            for byte in branch.bytes { code.emit(byte) }
            let outcome = try machine.run(code)
            #expect(outcome.vector == (machine.cpu.vendor == .amd ? vector : 13) && outcome.rip == code.address(of: "branch"))
            #expect(outcome.address == (outcome.vector == 14 ? stack - 8 : 0))
            #expect(machine[.rsp] == stack)
        }
    }

    @Test(arguments: Branch.allCases.filter { !$0.isReturn })
    func `a branch that went elsewhere before faults when its target is not canonical`(branch: Branch) throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x31, 0xC9)  // xor ecx, ecx
        code.load(.rbx, TestMachine.data)
        code.emit(0x48, 0x8D, 0x05)  // lea rax, [rip + good]
        code.reference("good")
        code.label("again")
        code.emit(0x49, 0x89, 0xC6, 0x48, 0x89, 0x03)  // mov r14, rax; mov [rbx], rax
        code.label("branch")
        for byte in branch.bytes { code.emit(byte) }
        code.pad(to: 0x80, with: 0xCC)
        code.label("good")
        if branch.isCall { code.emit(0x48, 0x83, 0xC4, 0x08) }  // add rsp, 8
        code.emit(0xFF, 0xC1, 0x83, 0xF9, 0x05)  // inc ecx; cmp ecx, 5
        code.jump(if: 5, "again")
        code.load(.rax, Self.targets[2])
        code.jump("again")
        let outcome = try machine.run(code)
        #expect(outcome.vector == 13 && outcome.rip == code.address(of: "branch"), "\(outcome)")
        #expect(machine[.rcx] == 5)
        #expect(machine[.rsp] == TestMachine.stack)
    }

    @Test func `a canonical target that is not mapped faults there`() throws {
        for branch in Branch.allCases {
            let machine = try TestMachine.small()
            machine[.rsp] = TestMachine.stack - 64
            machine.memory.store(0x30_2000 - 64, JumpCache.never)
            var code = GuestCode()
            setUp(&code, JumpCache.never)
            for byte in branch.bytes { code.emit(byte) }
            let outcome = try machine.run(code)
            #expect(outcome.vector == 14 && outcome.rip == JumpCache.never && outcome.address == JumpCache.never, "\(outcome)")
        }
    }

    // MARK: Direct branches

    private static let lastPage: UInt64 = 0x7FFF_FFFF_F000

    /// Runs code of the last page before the hole.
    private func runLast(_ bytes: [UInt8], at offset: UInt64, _ prepare: (TestMachine) -> Void = { _ in }) throws -> (TestMachine, Outcome) {
        let machine = try TestMachine.small()
        machine.map(Self.lastPage, to: 0x40_0000, [.writable, .user])
        machine.memory.store(0x30_2000 - 8, Self.untouched)
        machine.memory.write(bytes, at: 0x40_0000 + offset)
        prepare(machine)
        let outcome = try machine.run(from: Self.lastPage + offset)
        expectSound(machine)
        return (machine, outcome)
    }

    @Test(arguments: [
        ("jmp", [0xE9, 0x00, 0x10, 0, 0], 0xF00), ("jmp short", [0xEB, 0x40], 0xFE0), ("call", [0xE8, 0x00, 0x10, 0, 0], 0xF00),
        ("jz", [0x0F, 0x84, 0x00, 0x10, 0, 0], 0xF00), ("jz short", [0x74, 0x40], 0xFE0), ("loop", [0xE2, 0x40], 0xFE0),
        ("loope", [0xE1, 0x40], 0xFE0), ("loop ecx", [0x67, 0xE2, 0x40], 0xFE0), ("far end", [0xE9, 0xFF, 0xFF, 0xFF, 0x7F], 0x800),
    ] as [(String, [UInt8], UInt64)])
    func `a direct branch into the hole faults itself`(name: String, bytes: [UInt8], offset: UInt64) throws {
        let (machine, outcome) = try runLast(bytes, at: offset) { machine in
            machine[.rcx] = 0x1_0000_0002
            machine.context.pointee.rflags = 0x42
        }
        #expect(outcome.vector == 13 && outcome.errorCode == 0 && outcome.rip == Self.lastPage + offset, "\(name): \(outcome)")
        #expect(machine[.rcx] == 0x1_0000_0002)
        #expect(machine[.rsp] == TestMachine.stack)
        #expect(machine.memory.load(0x30_2000 - 8, as: UInt64.self) == Self.untouched)
        #expect(outcome.rflags & 0x40 != 0)
    }

    @Test func `JRCXZ into the hole faults itself`() throws {
        let (_, outcome) = try runLast([0xE3, 0x40], at: 0xFE0) { $0[.rcx] = 0 }
        #expect(outcome.vector == 13 && outcome.rip == Self.lastPage + 0xFE0)
    }

    @Test func `a direct branch into the hole from above faults itself`() throws {
        let machine = try TestMachine.small()
        machine.memory.write([0xE9, 0, 0xF0, 0xFF, 0xFF], at: 0x100)
        let outcome = try machine.run(from: TestMachine.kernelBase + 0x100)
        #expect(outcome.vector == 13 && outcome.rip == TestMachine.kernelBase + 0x100)
    }

    @Test func `branches that are not taken, and those to elsewhere, go on near the hole`() throws {
        // jnz +0x1000; loop +0x40 with 1; call back by a page less 5, and there ret; int 0x80
        let (machine, outcome) = try runLast(
            [0x0F, 0x85, 0x00, 0x10, 0, 0, 0xE2, 0x40, 0xE8, 0xF3, 0xEF, 0xFF, 0xFF, 0xCD, 0x80], at: 0xFE0
        ) { machine in
            machine.map(Self.lastPage - 0x1000, to: 0x40_1000, [.writable, .user])
            // At page - 0x20 by the call's displacement: mov bl, 7; ret
            machine.memory.write([0xB3, 0x07, 0xC3], at: 0x40_1FE0)
            machine[.rcx] = 1
            machine.context.pointee.rflags = 0x42
        }
        #expect(outcome.vector == Outcome.done, "\(outcome)")
        #expect(machine[.rbx] == 7 && machine[.rcx] == 0)
    }

    @Test func `running into the hole faults there`() throws {
        let (_, outcome) = try runLast([0x90], at: 0xFFF)
        #expect(outcome.vector == 13 && outcome.rip == 0x8000_0000_0000)
    }

    /// The call pushes the hole's first address, which no return may go to.
    @Test(arguments: [[0xE8, 0x00, 0xF8, 0xFF, 0xFF], [0x90, 0x90, 0x90, 0xFF, 0xD0]] as [[UInt8]])
    func `the return to behind a call that ends at the hole faults itself`(call: [UInt8]) throws {
        let (machine, outcome) = try runLast(call, at: 0xFFB) { machine in
            machine[.rax] = Self.lastPage + 0x800
            machine.memory.store(0x40_0800, 0xC3 as UInt8)
        }
        #expect(outcome.vector == 13 && outcome.rip == Self.lastPage + 0x800, "\(outcome)")
        #expect(machine[.rsp] == TestMachine.stack - 8)
        #expect(machine.memory.load(0x30_2000 - 8, as: UInt64.self) == 0x8000_0000_0000)
    }
}
