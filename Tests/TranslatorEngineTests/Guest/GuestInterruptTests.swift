import Foundation
import Synchronization
import Testing
import TranslatorEngine
import VMM

/// Loops of linked blocks look for interrupts; what may not be interrupted is not.
@Suite struct GuestInterruptTests {
    /// Loops without an end, at `loop`.
    private static let loops: [(name: String, make: @Sendable (inout GuestCode) -> Void)] = [
        ("jmp .", { $0.jump("loop") }),
        (
            "two blocks",
            {
                $0.emit(0x90)
                $0.jump("second")
                $0.label("second")
                $0.jump("loop")
            }
        ),
        (
            "conditional",
            {
                $0.emit(0x31, 0xC0)  // xor eax, eax
                $0.jump(if: 4, "loop")
            }
        ),
        (
            "two pages",
            {
                $0.jump("far")
                $0.pad(to: 0x1800)
                $0.label("far")
                $0.jump("loop")
            }
        ),
        (
            "indirect",
            {
                $0.emit(0x48, 0x8D, 0x05)
                $0.reference("loop")
                $0.emit(0xFF, 0xE0)
            }
        ),
        (
            "call and return",
            {
                $0.call("function")
                $0.jump("loop")
                $0.label("function")
                $0.emit(0xC3)
            }
        ),
        (
            "push and return",
            {
                $0.emit(0x48, 0x8D, 0x05)
                $0.reference("loop")
                $0.emit(0x50, 0xC3)
            }
        ),
        (
            "loop",
            {
                $0.emit(0xB9, 2, 0, 0, 0)  // mov ecx, 2: never reaches zero
                $0.emit(0xE2, 0xF9)
                $0.jump("loop")
            }
        ),
        (
            "memory",
            {
                $0.emit(0x48, 0xFF, 0x44, 0x24, 0xF8)  // inc qword [rsp - 8]
                $0.jump("loop")
            }
        ),
        (
            "string",
            {
                $0.emit(0xB9, 0xFF, 0, 0, 0)  // mov ecx, 255
                $0.emit(0x48, 0x8D, 0xBC, 0x24, 0, 0xFF, 0xFF, 0xFF)  // lea rdi, [rsp - 256]
                $0.emit(0xF3, 0xAA)
                $0.jump("loop")
            }
        ),
    ]

    private func loop(_ index: Int, enabled: Bool) -> GuestCode {
        var code = GuestCode()
        code.emit(enabled ? 0xFB : 0xFA)
        code.label("loop")
        Self.loops[index].make(&code)
        return code
    }

    /// Runs code while an interrupt waits.
    private func run(_ code: GuestCode, on machine: TestMachine, waiting vector: UInt8) throws -> Outcome {
        machine.interrupts.raise(vector)
        machine.cpu.interruptRequested()
        return try machine.run(code)
    }

    @Test(.timeLimit(.minutes(1)), arguments: loops.indices)
    func `an endless loop takes an interrupt`(index: Int) throws {
        let machine = try TestMachine.small()
        let code = loop(index, enabled: true)
        for _ in 0..<3 {
            let cpu = machine.cpu, interrupts = machine.interrupts
            let raised = Thread {
                usleep(20_000)
                interrupts.raise(0x30)
                cpu.interruptRequested()
            }
            raised.start()
            machine[.rsp] = TestMachine.stack
            let outcome = try machine.run(code)
            #expect(outcome.vector == 0x30, "\(Self.loops[index].name)")
            #expect(outcome.rflags & RFLAGS.if != 0)
        }
        #expect(machine.interrupts.taken.load(ordering: .relaxed) == 3)
    }

    @Test(arguments: loops.indices) func `an endless loop with interrupts off ends by stop alone`(index: Int) throws {
        let machine = try TestMachine.small()
        machine.load(loop(index, enabled: false))
        let cpu = machine.cpu, interrupts = machine.interrupts
        interrupts.raise(0x30)
        Thread {
            cpu.interruptRequested()
            usleep(30_000)
            cpu.stop()
        }.start()
        machine.context.pointee.rip = GuestCode.start
        #expect(try cpu.run() == .stopped, "\(Self.loops[index].name)")
        #expect(interrupts.taken.load(ordering: .relaxed) == 0)
    }

    @Test(.timeLimit(.minutes(1))) func `a stopped loop goes on where it was`() throws {
        let machine = try TestMachine.small()
        let count: UInt64 = 1 << 60
        var code = GuestCode()
        code.load(.rcx, count)
        code.label("loop")
        code.emit(0x48, 0xFF, 0xC0)  // inc rax
        code.emit(0x48, 0xFF, 0xC9)  // dec rcx
        code.jump(if: 5, "loop")
        code.done()
        machine.load(code)
        machine[.rax] = 0
        machine.context.pointee.rip = code.base
        let timer = StopTimer(machine.cpu, milliseconds: 0)
        defer { timer.end() }
        timer.arm()
        for _ in 0..<20 {
            #expect(try machine.cpu.run() == .stopped)
            #expect(machine[.rcx] < count)
        }
        timer.disarm()
        // All but the last thousand are taken as done.
        let skipped = machine[.rcx] - 1000
        machine[.rcx] -= skipped
        machine[.rax] += skipped
        var stops = 0
        while try machine.cpu.run() == .stopped {
            stops += 1
            try #require(stops < 1000)
        }
        #expect(machine[.rax] == count)
    }

    @Test func `one instruction runs behind STI before a waiting interrupt`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xFB)  // sti
        code.emit(0x48, 0xFF, 0xC0)  // inc rax
        code.label("after")
        code.emit(0x48, 0xFF, 0xC0)
        code.done()
        let outcome = try run(code, on: machine, waiting: 0x31)
        #expect(outcome.vector == 0x31)
        #expect(outcome.rip == code.address(of: "after"))
        #expect(machine[.rax] == 1)
    }

    @Test func `STI and CLI in a row let no interrupt in`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        for _ in 0..<50 { code.emit(0xFB, 0xFA) }
        code.done()
        #expect(try run(code, on: machine, waiting: 0x31).vector == Outcome.done)
        #expect(machine.interrupts.taken.load(ordering: .relaxed) == 0)
    }

    @Test func `one instruction runs behind a load of SS before a waiting interrupt`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xFB)  // sti
        code.emit(0x8E, 0xD1)  // mov ss, ecx: its own shadow follows STI's
        code.emit(0x48, 0xFF, 0xC0)
        code.label("after")
        code.done()
        machine[.rcx] = 0
        let outcome = try run(code, on: machine, waiting: 0x31)
        #expect(outcome.vector == 0x31)
        #expect(outcome.rip == code.address(of: "after"))
    }

    @Test func `POPF lets a waiting interrupt in at once`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x68, 0x02, 0x02, 0, 0)  // push 0x202
        code.emit(0x9D)
        code.label("after")
        code.emit(0x48, 0xFF, 0xC0)
        code.done()
        machine[.rax] = 0
        let outcome = try run(code, on: machine, waiting: 0x32)
        #expect(outcome.vector == 0x32)
        #expect(outcome.rip == code.address(of: "after"))
        #expect(machine[.rax] == 0)
    }

    @Test func `a halted CPU says so and wakes up behind HLT`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xFB, 0xF4)  // sti; hlt
        code.label("after")
        code.done()
        machine.load(code)
        machine.context.pointee.rip = code.base
        #expect(try machine.cpu.run() == .halt(interruptsEnabled: true))
        // Nothing happened: still halted.
        #expect(try machine.cpu.run() == .halt(interruptsEnabled: true))
        machine.interrupts.raise(0x33)
        machine.cpu.interruptRequested()
        #expect(try machine.cpu.run() == .halt(interruptsEnabled: false))
        #expect(machine.context.pointee.rip == TestMachine.kernelBase + TestMachine.handlers + 0x34)
        #expect(machine.memory.load(TestMachine.stackTop - 40, as: UInt64.self) == code.address(of: "after"))
    }

    @Test(.timeLimit(.minutes(1))) func `flags survive an interrupt in the middle of a loop`() throws {
        let machine = try TestMachine.small()
        // A handler that destroys all flags but those in its frame: the loop's carry chain must not notice.
        var handler = GuestCode(at: GuestCode.start + 0x2000)
        handler.emit(0x48, 0xFF, 0x05)  // inc qword [count]
        handler.reference("count")
        handler.emit(0x48, 0x31, 0xC0)  // xor rax, rax
        handler.emit(0xF9)
        handler.emit(0x48, 0xCF)  // iretq
        handler.label("count")
        handler.emit(0, 0, 0, 0, 0, 0, 0, 0)
        machine.load(handler)
        machine.setHandler(0x34, handler.base)
        var code = GuestCode()
        code.load(.rsi, handler.address(of: "count"))
        code.emit(0xFB)
        code.label("loop")
        code.emit(0xF9)  // stc
        code.jump("middle")
        code.label("middle")
        code.emit(0x48, 0x83, 0xD3, 0)  // adc rbx, 0
        code.emit(0x48, 0xFF, 0xC2)  // inc rdx
        code.emit(0x48, 0x83, 0x3E, 100)  // cmp qword [rsi], 100
        code.jump(if: 2, "loop")
        code.emit(0xFA)
        code.done()
        let cpu = machine.cpu, interrupts = machine.interrupts
        let isOver = Flag()
        defer { isOver.raise() }
        Thread {
            while interrupts.taken.load(ordering: .relaxed) < 100, !isOver.isRaised {
                usleep(200)
                interrupts.raise(0x34)
                cpu.interruptRequested()
            }
        }.start()
        machine[.rbx] = 0
        machine[.rdx] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == machine[.rdx] && machine[.rdx] >= 100)
    }
}
