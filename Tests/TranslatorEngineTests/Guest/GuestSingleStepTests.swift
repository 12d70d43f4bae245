import Testing
import TranslatorEngine
import VMM

/// RFLAGS.TF (SDM Vol. 3, 18.3.1.4).
@Suite struct GuestSingleStepTests {
    static let step: UInt64 = 1 << 14
    static let trapFlag: UInt64 = 1 << 8

    /// Sets TF and runs, noting where each trap comes, until another event.
    private func trace(_ machine: TestMachine, _ code: GuestCode, limit: Int = 40) throws -> (places: [UInt64], end: Outcome) {
        machine.setBreakpoints([])
        machine.context.pointee.rflags |= Self.trapFlag
        var places: [UInt64] = []
        var stop = try machine.run(code)
        while stop.vector == 1 && places.count < limit {
            #expect(machine.debugStatus == Self.step)
            machine.context.pointee.dr6 = 0xFFFF_0FF0
            places.append(stop.rip - code.base)
            stop = try machine.resume(stop)
        }
        return (places, stop)
    }

    @Test func `a trap follows each instruction but the one that enters a handler`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x90)
        code.emit(0x50)  // push rax
        code.emit(0x58)  // pop rax
        code.emit(0xEB, 0x02)  // jmp over two bytes
        code.emit(0x0F, 0x0B)
        code.emit(0x0F, 0xA2)  // cpuid
        code.emit(0xFA)  // cli
        code.done()
        let (places, end) = try trace(machine, code)
        #expect(places == [1, 2, 3, 7, 9, 10])
        #expect(end.vector == Outcome.done)
    }

    @Test func `an instruction that faults is not followed by a trap`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x90)
        code.emit(0x0F, 0x0B)
        let (places, end) = try trace(machine, code)
        #expect(places == [1])
        #expect(end.vector == 6)
        #expect(end.rflags & Self.trapFlag != 0)
        #expect(machine.debugStatus == 0)
    }

    @Test func `repeated string instruction traps behind each element`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xF3, 0xA4)  // rep movsb
        code.emit(0xF3, 0xAB)  // rep stosd, with nothing left to do
        code.done()
        machine[.rcx] = 4
        machine[.rsi] = TestMachine.data
        machine[.rdi] = TestMachine.data + 0x100
        machine.setData(0, 0x1122_3344)
        machine.setData(0x100, 0)
        let (places, end) = try trace(machine, code)
        #expect(places == [0, 0, 0, 2, 4])
        #expect(end.vector == Outcome.done)
        #expect(machine.data(0x100) == 0x1122_3344)
        #expect(machine[.rcx] == 0)
    }

    @Test func `REPE ends where its condition does, with a trap there`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xF3, 0xAE)  // repe scasb
        code.done()
        machine[.rcx] = 9
        machine[.rax] = 0x77
        machine[.rdi] = TestMachine.data
        machine.setData(0, 0x11_7777)
        let (places, _) = try trace(machine, code)
        #expect(places == [0, 0, 2])
        #expect(machine[.rcx] == 6)
    }

    @Test func `POPF that sets TF is not trapped, the next instruction is; POPF that clears it is`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.emit(0x9C)  // pushfq
        code.emit(0x80, 0x4C, 0x24, 0x01, 0x01)  // or byte [rsp + 1], 1
        code.emit(0x9D)  // popfq
        code.emit(0x90)
        code.label("first")
        code.emit(0x9C)
        code.label("second")
        code.emit(0x80, 0x64, 0x24, 0x01, 0xFE)  // and byte [rsp + 1], ~1
        code.label("third")
        code.emit(0x9D)
        code.label("fourth")
        code.emit(0x90)
        code.done()
        var stop = try machine.run(code)
        for name in ["first", "second", "third", "fourth"] {
            #expect(stop.vector == 1)
            #expect(stop.rip == code.address(of: name))
            stop = try machine.resume(stop)
        }
        #expect(stop.vector == Outcome.done)
    }

    @Test func `IRET that loads TF is followed by one instruction, then the trap`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.emit(0x6A, 0x00)  // push 0: ss
        code.emit(0x54)  // push rsp
        code.emit(0x68, 0x02, 0x01, 0, 0)  // push TF
        code.emit(0x6A, 0x10)  // push cs
        code.emit(0x48, 0x8D, 0x05)  // lea rax, [target]
        code.reference("target")
        code.emit(0x50)
        code.emit(0x48, 0xCF)  // iretq
        code.label("target")
        code.emit(0x90)
        code.label("trap")
        code.done()
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "trap"))
    }

    @Test func `load of SS swallows its trap, a second one in a row does not`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x31, 0xC0)  // xor eax, eax
        code.emit(0x8E, 0xD0)  // mov ss, eax
        code.emit(0x90)
        code.emit(0x8E, 0xD0)
        code.emit(0x8E, 0xD0)
        code.emit(0x90)
        code.done()
        let (places, end) = try trace(machine, code)
        #expect(places == [2, 5, 9, 10])
        #expect(end.vector == Outcome.done)
    }

    @Test func `SYSCALL is trapped by what SFMASK leaves, SYSRET by what it loads`() throws {
        for mask in [0, Self.trapFlag] {
            let machine = try TestMachine.small()
            var code = GuestCode()
            code.label("call")
            code.emit(0x0F, 0x05)
            code.pad(to: 0x40)
            code.label("kernel")
            code.emit(0x90)
            code.label("in kernel")
            code.done()
            machine.context.pointee.msr.lstar = code.address(of: "kernel")
            machine.context.pointee.msr.sfmask = mask
            machine.context.pointee.msr.star = UInt64(TestMachine.kernelCode) << 32
            let (places, end) = try trace(machine, code)
            #expect(places == (mask == 0 ? [0x40, 0x41] : []))
            #expect(end.vector == Outcome.done)
            #expect(machine[.r11] & Self.trapFlag != 0)
        }
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.emit(0x48, 0x8D, 0x0D)  // lea rcx, [user]
        code.reference("user")
        code.load(.r11, 0x102)
        code.emit(0x48, 0x0F, 0x07)  // sysretq
        code.label("user")
        code.emit(0x90)
        machine.context.pointee.msr.star = (UInt64(TestMachine.userData) - 8) << 48
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "user"))
    }

    @Test func `INT n goes to its handler untraced, and what comes back from it is traced`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.emit(0xCD, 0x41)
        code.label("behind")
        code.emit(0x90)
        code.label("trap")
        code.done()
        machine.context.pointee.rflags |= Self.trapFlag
        var stop = try machine.run(code)
        #expect(stop.vector == 0x41)
        #expect(stop.rip == code.address(of: "behind"))
        stop = try machine.resume(stop)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "trap"))
    }

    @Test func `single step and data breakpoint are one exception`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([(TestMachine.data, .access, 8), (TestMachine.data + 4, .write, 4)])
        var code = GuestCode()
        code.emit(0x48, 0x89, 0x03)  // mov [rbx], rax
        code.label("behind")
        code.done()
        machine[.rbx] = TestMachine.data
        machine.context.pointee.rflags |= Self.trapFlag
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "behind"))
        #expect(machine.debugStatus == Self.step | 3)
    }

    @Test func `INT1 leaves DR6 alone, and HLT under TF does not halt`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.emit(0xF1)
        code.label("behind")
        code.emit(0xF4)
        code.label("halted")
        code.done()
        var stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "behind"))
        #expect(machine.debugStatus == 0)
        stop.rflags |= Self.trapFlag
        stop = try machine.resume(stop)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "halted"))
        #expect(machine.debugStatus == Self.step)
    }

    @Test func `trap comes before an interrupt that waits`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.emit(0xFB)  // sti
        code.emit(0x90)
        code.label("behind")
        code.done()
        machine.context.pointee.rflags |= Self.trapFlag
        machine.interrupts.raise(0x33)
        var stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.base + 1)
        stop = try machine.resume(stop)
        // The shadow of STI ended with the trap.
        #expect(stop.vector == 0x33)
        #expect(stop.rip == code.base + 1)
    }

    @Test func `user code is stepped in the same way`() throws {
        let machine = try TestMachine.small()
        machine.enter(level: 3)
        var code = GuestCode()
        code.emit(0x90)
        code.label("behind")
        code.emit(0x48, 0x89, 0x03)
        machine.setBreakpoints([])
        machine.context.pointee.rflags |= Self.trapFlag
        machine[.rbx] = TestMachine.data
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "behind"))
        #expect(machine.debugStatus == Self.step)
    }
}

/// NMIs and what IRET has to do with them (SDM Vol. 3, 6.7.1).
@Suite struct GuestNonMaskableTests {
    /// A frame whose return address is not canonical, and IRETQ.
    private func badReturn(_ code: inout GuestCode) {
        code.load(.rax, 1 << 62)
        code.emit(0x6A, 0x00, 0x54, 0x9C, 0x6A, 0x10, 0x50)  // push 0; push rsp; pushfq; push cs; push rax
        code.label("return")
        code.emit(0x48, 0xCF)
    }

    /// As it does in a pause, and before a reset.
    @Test func `NMI that comes after a state was read survives its writing, and one from before does not`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x90, 0x90)
        code.done()
        machine.load(code)
        machine.context.pointee.rip = code.base
        let before = machine.cpu.readState()
        machine.cpu.injectNMI()
        machine.cpu.writeState(before)
        let after = machine.cpu.readState()
        #expect(!before.nmiPending && after.nmiPending)
        #expect(try machine.run(from: code.base).vector == 2)
        machine.cpu.injectNMI()
        #expect(machine.cpu.readState().nmiPending)
        machine.cpu.writeState(before)
        #expect(!machine.cpu.readState().nmiPending)
        #expect(try machine.run(from: code.base).vector == Outcome.done)
    }

    @Test func `a blocked NMI waits for IRET, also for one that faults`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x90)
        badReturn(&code)
        machine.load(code)
        machine.context.pointee.nmiBlocked = true
        machine.cpu.injectNMI()
        // #GP is delivered first; the NMI at its handler's first instruction.
        var stop = try machine.run(from: code.base)
        #expect(stop.vector == 2)
        #expect(stop.rip == TestMachine.kernelBase + TestMachine.handlers + 13)
        #expect(machine.context.pointee.nmiBlocked)
        // Blocked until the next IRET.
        machine.cpu.injectNMI()
        code = GuestCode()
        code.emit(0x90, 0x90)
        code.done()
        stop = try machine.run(code)
        #expect(stop.vector == Outcome.done)
    }
}

/// What is the supervisor's whatever RFLAGS.AC says (SDM Vol. 3, 4.6.1).
@Suite struct GuestImplicitAccessTests {
    @Test func `SMAP keeps descriptor tables off user pages even under AC`() throws {
        let machine = try TestMachine.small()
        // A copy of the GDT in a user page.
        for offset in stride(from: 0, to: 0x100, by: 8) as StrideTo<UInt64> {
            machine.setData(offset, machine.memory.load(TestMachine.gdt + offset, as: UInt64.self) ?? 0)
        }
        machine.context.pointee.cr4 |= CR4.smap
        machine.context.pointee.gdtr.base = TestMachine.data
        machine.context.pointee.rflags |= 1 << 18
        machine[.rax] = UInt64(TestMachine.userData)
        var code = GuestCode(at: TestMachine.kernelBase + 0x7_0000)
        code.load(.rbx, TestMachine.data)
        code.emit(0x48, 0x8B, 0x1B)  // mov rbx, [rbx]: explicit, exempt
        code.label("load")
        code.emit(0x8E, 0xD8)  // mov ds, eax
        machine.memory.write(code.linked, at: 0x7_0000)
        machine.cpu.writeState(machine.cpu.readState())
        machine.context.pointee.gpr[4] = TestMachine.kernelBase + 0x7_F000
        machine.memory.store(TestMachine.idt + 14 * 16 + 2, TestMachine.kernelCode)
        // The handler's selector cannot be loaded either: the machine ends.
        do {
            let outcome = try machine.run(from: code.base)
            Issue.record("\(outcome)")
        } catch let error as TestMachine.UnexpectedExit {
            guard case .shutdown(let reason) = error.exit else {
                Issue.record("\(error.exit)")
                return
            }
            #expect(reason.reason.contains("#PF(0x1)"))
            #expect(reason.rip == code.address(of: "load"))
        }
    }
}
