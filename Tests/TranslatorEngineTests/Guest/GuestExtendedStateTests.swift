import Testing
import TranslatorEngine
import VMM

/// The compacted format, init optimisation and the checks of headers (SDM Vol. 1, chapter 13); what XINUSE says of MXCSR
/// was compared with an AMD CPU.
@Suite struct GuestExtendedStateTests {
    static let area: UInt64 = 0x1000
    static let compacted: UInt64 = 1 << 63

    private enum Form: UInt8, CaseIterable {
        case save, saveOptimised, saveCompacted, saveSupervisor
        var bytes: [UInt8] {
            switch self {
            case .save: [0x48, 0x0F, 0xAE, 0x23]
            case .saveOptimised: [0x48, 0x0F, 0xAE, 0x33]
            case .saveCompacted: [0x48, 0x0F, 0xC7, 0x23]
            case .saveSupervisor: [0x48, 0x0F, 0xC7, 0x2B]
            }
        }
        var isCompacted: Bool { self == .saveCompacted || self == .saveSupervisor }
    }
    private static let restore: [UInt8] = [0x48, 0x0F, 0xAE, 0x2B]
    private static let restoreSupervisor: [UInt8] = [0x48, 0x0F, 0xC7, 0x1B]

    private func machine() throws -> TestMachine? {
        let machine = try TestMachine.small()
        guard machine.cpu.policy.features.contains(.xsaves) else { return nil }
        machine[.rbx] = TestMachine.data + Self.area
        machine[.rax] = 7
        return machine
    }
    private func run(_ machine: TestMachine, _ instructions: [UInt8]...) throws -> Outcome {
        var code = GuestCode()
        for bytes in instructions { for byte in bytes { code.emit(byte) } }
        code.done()
        return try machine.run(code)
    }
    private func fill(_ machine: TestMachine, header: [UInt64]) {
        for offset in stride(from: 0, to: 832, by: 8) as StrideTo<UInt64> {
            machine.setData(Self.area + offset, 0x5555_5555_5555_5555)
        }
        for word in 0..<8 { machine.setData(Self.area + 512 + UInt64(word) * 8, word < header.count ? header[word] : 0) }
    }
    /// `ldmxcsr` of a value that is not the initial one, and a register that is not zero.
    private static let setControl: [UInt8] = [0x68, 0xA0, 0x1F, 0, 0, 0x0F, 0xAE, 0x14, 0x24]
    private static let setVector: [UInt8] = [0x66, 0x0F, 0x76, 0xDB]  // pcmpeqd xmm3, xmm3

    @Test func `XSTATE_BV tells what is in use, by each form's view of MXCSR`() throws {
        for form in Form.allCases {
            guard let machine = try machine() else { return }
            for (setUp, plain, withControl) in [
                ([], 0, 0), (Self.setControl, 0, 2), (Self.setVector, 2, 2),
            ] as [([UInt8], UInt64, UInt64)] {
                fill(machine, header: [])
                machine.cpu.writeState({ var state = machine.cpu.readState(); state.xsave = CPUState().xsave; return state }())
                #expect(try run(machine, setUp, form.bytes).vector == Outcome.done)
                #expect(machine.data(Self.area + 512) == (form.isCompacted ? withControl : plain), "\(form)")
                #expect(machine.data(Self.area + 520) == (form.isCompacted ? Self.compacted | 7 : 0), "\(form)")
                // XSAVE writes initial components, the others leave them.
                let x87 = machine.data(Self.area) & 0xFFFF
                #expect(x87 == (form == .save ? 0x37F : 0x5555), "\(form)")
                let control = UInt32(truncatingIfNeeded: machine.data(Self.area + 24))
                let isWritten = !form.isCompacted || withControl != 0
                #expect((control == 0x5555_5555) == !isWritten, "\(form)")
            }
        }
    }

    @Test func `XGETBV of 1 says what is in use, MXCSR with SSE`() throws {
        guard let machine = try machine() else { return }
        for (setUp, expected) in [(Self.setControl, 2), ([0xD9, 0xE8], 1)] as [([UInt8], UInt64)] {
            machine.cpu.writeState({ var state = machine.cpu.readState(); state.xsave = CPUState().xsave; return state }())
            machine[.rcx] = 1
            #expect(try run(machine, setUp, [0x0F, 0x01, 0xD0]).vector == Outcome.done)
            #expect(machine[.rax] == expected)
        }
    }

    @Test func `what a compacted save wrote comes back by either restore`() throws {
        for restore in [Self.restore, Self.restoreSupervisor] {
            guard let machine = try machine() else { return }
            fill(machine, header: [])
            let clear: [UInt8] = [0x66, 0x0F, 0xEF, 0xDB]  // pxor xmm3, xmm3
            let store: [UInt8] = [0x0F, 0x11, 0x9B, 0x00, 0x04, 0, 0]  // movups [rbx + 0x400], xmm3
            #expect(try run(machine, Self.setVector, Form.saveCompacted.bytes, clear, restore, store).vector == Outcome.done)
            #expect(machine.data(Self.area + 0x400) == ~0)
            // Without SSE in the image it takes its initial state, MXCSR with it.
            fill(machine, header: [0, Self.compacted | 7])
            #expect(
                try run(machine, Self.setControl, Self.setVector, restore, store, [0x0F, 0xAE, 0x9B, 0x10, 0x04, 0, 0]).vector
                    == Outcome.done)
            #expect(machine.data(Self.area + 0x400) == 0)
            #expect(machine.data(Self.area + 0x410) & 0xFFFF_FFFF == 0x1F80)
        }
    }

    @Test func `headers that are not well formed are refused`() throws {
        let bad: [[UInt64]] = [
            [4, Self.compacted | 3], [0, Self.compacted | 0x100], [0, Self.compacted | 7, 1], [0, 1], [0, 0, 1], [8],
        ]
        for header in bad {
            guard let machine = try machine() else { return }
            fill(machine, header: header)
            machine.setData(Self.area + 24, 0x1F80)
            #expect(try run(machine, Self.restore).vector == 13, "\(header)")
            #expect(try run(machine, Self.restoreSupervisor).vector == 13, "\(header)")
        }
        guard let machine = try machine() else { return }
        // XRSTORS takes nothing but the compacted format.
        fill(machine, header: [])
        machine.setData(Self.area + 24, 0x1F80)
        #expect(try run(machine, Self.restore).vector == Outcome.done)
        #expect(try run(machine, Self.restoreSupervisor).vector == 13)
        // A compacted image with SSE has its MXCSR checked, one without has not.
        fill(machine, header: [2, Self.compacted | 7])
        #expect(try run(machine, Self.restore).vector == 13)
        fill(machine, header: [0, Self.compacted | 7])
        #expect(try run(machine, Self.restore).vector == Outcome.done)
        machine[.rbx] += 32
        #expect(try run(machine, Form.saveCompacted.bytes).vector == 13)
    }

    @Test func `XSAVES and XRSTORS are the supervisor's, and IA32_XSS has no bits`() throws {
        for bytes in [Form.saveSupervisor.bytes, Self.restoreSupervisor] {
            guard let machine = try machine() else { return }
            machine.enter(level: 3)
            #expect(try run(machine, bytes).vector == 13)
        }
        guard let machine = try machine() else { return }
        machine[.rcx] = 0xDA0
        #expect(try run(machine, [0x0F, 0x32], [0x0F, 0x30]).vector == Outcome.done)
        #expect(machine[.rax] == 0)
        machine[.rax] = 0x100
        #expect(try run(machine, [0x0F, 0x30]).vector == 13)
    }

    @Test func `CPUID tells the size of the compacted area`() throws {
        guard let machine = try machine() else { return }
        machine[.rax] = 0xD
        machine[.rcx] = 1
        #expect(try run(machine, [0x0F, 0xA2]).vector == Outcome.done)
        #expect(machine[.rbx] == 832)
        #expect(machine[.rax] == 0xF)
    }

    @Test func `fast FXSAVE leaves the vectors out at CPL 0 only`() throws {
        for (level, fast, moves) in [(0, true, false), (3, true, true), (0, false, true)] {
            let machine = try TestMachine.small()
            guard machine.cpu.policy.features.contains(.ffxsr) else { return }
            if fast { machine.context.pointee.msr.efer |= EFER.ffxsr }
            machine.enter(level: level)
            machine[.rbx] = TestMachine.data + Self.area
            fill(machine, header: [])
            #expect(try run(machine, Self.setVector, [0x0F, 0xAE, 0x03]).vector == Outcome.done)
            #expect((machine.data(Self.area + 160 + 48) == ~0) == moves)
        }
    }
}

/// CR0.EM, TS and MP (SDM Vol. 3, 2.5 and table 2-2).
@Suite struct GuestFloatingPointTrapTests {
    @Test func `each class of instructions raises what CR0 says`() throws {
        let x87: [UInt8] = [0xD9, 0xE8], wait: [UInt8] = [0x9B], mmx: [UInt8] = [0x0F, 0x6F, 0xC1]
        let sse: [UInt8] = [0x0F, 0x28, 0xC1], avx: [UInt8] = [0xC5, 0xF8, 0x28, 0xC1]
        let fxsave: [UInt8] = [0x0F, 0xAE, 0x03], xsave: [UInt8] = [0x0F, 0xAE, 0x23]
        let fence: [UInt8] = [0x0F, 0xAE, 0xF0], popcnt: [UInt8] = [0xF3, 0x0F, 0xB8, 0xC1]
        let done = Outcome.done
        for (bits, expected) in [
            (0, [done, done, done, done, done, done, done]),
            (CR0.ts, [7, done, 7, 7, 7, 7, 7]), (CR0.ts | CR0.mp, [7, 7, 7, 7, 7, 7, 7]),
            (CR0.em, [7, done, 6, 6, done, 7, done]), (CR0.em | CR0.mp, [7, done, 6, 6, done, 7, done]),
            (CR0.em | CR0.ts, [7, done, 6, 6, 7, 7, 7]), (CR0.mp, [done, done, done, done, done, done, done]),
        ] as [(UInt64, [Int])] {
            for (bytes, vector) in zip([x87, wait, mmx, sse, avx, fxsave, xsave], expected) {
                let machine = try TestMachine.small()
                machine.context.pointee.cr0 = machine.context.pointee.cr0 & ~(CR0.em | CR0.ts | CR0.mp) | bits
                machine[.rbx] = TestMachine.data
                machine[.rax] = 3
                var code = GuestCode()
                for byte in bytes { code.emit(byte) }
                code.done()
                #expect(try machine.run(code).vector == vector, "CR0 bits \(String(bits, radix: 16)), \(bytes)")
            }
            for bytes in [fence, popcnt] {
                let machine = try TestMachine.small()
                machine.context.pointee.cr0 |= bits
                var code = GuestCode()
                for byte in bytes { code.emit(byte) }
                code.done()
                #expect(try machine.run(code).vector == done)
            }
        }
    }
}
