import Testing
import TranslatorEngine
import VMM

/// Debug registers as tests set them.
extension TestMachine {
    enum BreakpointKind: UInt64 { case execute, write, port, access }

    /// Sets DR0-DR3 and DR7, and DR6 to its reset value. Takes effect with the next `run(_:)`.
    func setBreakpoints(_ breakpoints: [(address: UInt64, kind: BreakpointKind, length: UInt64)]) {
        context.pointee.dr6 = 0xFFFF_0FF0
        context.pointee.dr7 = 0x400
        for (index, breakpoint) in breakpoints.enumerated() {
            let length: UInt64 = breakpoint.length == 8 ? 2 : breakpoint.length - 1
            context.pointee.dr[index] = breakpoint.address
            context.pointee.dr7 |= 1 << UInt64(index * 2) | (breakpoint.kind.rawValue | length << 2) << UInt64(16 + index * 4)
        }
        cpu.writeState(cpu.readState())
    }

    /// B0-B3, BD, BS and BT.
    var debugStatus: UInt64 { context.pointee.dr6 & 0xE00F }

    /// Goes on as the handler's IRET would, at the same level.
    func resume(_ outcome: Outcome) throws -> Outcome {
        context.pointee.rflags = outcome.rflags
        return try run(from: outcome.rip)
    }
}

@Suite struct GuestBreakpointTests {
    static let resumeFlag: UInt64 = 1 << 16

    // MARK: Instructions

    @Test func `instruction breakpoint stops before its instruction, and RF passes it once`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xB8, 1, 0, 0, 0)  // mov eax, 1
        code.label("here")
        code.emit(0xFF, 0xC0)  // inc eax
        code.emit(0xFF, 0xC0)
        code.done()
        machine.setBreakpoints([(code.address(of: "here"), .execute, 1)])
        var stop = try machine.run(code)
        for _ in 0..<2 {
            #expect(stop.vector == 1)
            #expect(stop.rip == code.address(of: "here"))
            #expect(stop.rflags & Self.resumeFlag == 0)
            #expect(machine.debugStatus == 1)
            #expect(machine[.rax] == 1)
            // Without RF it is met again.
            stop = try machine.resume(stop)
        }
        stop.rflags |= Self.resumeFlag
        #expect(try machine.resume(stop).vector == Outcome.done)
        #expect(machine[.rax] == 3)
    }

    @Test func `instruction breakpoint in a loop is met on every way round`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xB9, 5, 0, 0, 0)  // mov ecx, 5
        code.label("loop")
        code.emit(0xFF, 0xC0)  // inc eax
        code.label("here")
        code.emit(0xFF, 0xC9)  // dec ecx
        code.jump(if: 5, "loop")
        code.done()
        // Run once before, so that blocks and links exist.
        #expect(try machine.run(code).vector == Outcome.done)
        machine[.rax] = 0
        machine.setBreakpoints([(code.address(of: "here"), .execute, 1)])
        var stop = try machine.run(from: code.base)
        var count: UInt64 = 0
        while stop.vector == 1 && count < 10 {
            count += 1
            #expect(stop.rip == code.address(of: "here"))
            #expect(machine[.rax] == count)
            stop.rflags |= Self.resumeFlag
            stop = try machine.resume(stop)
        }
        #expect(count == 5)
        #expect(stop.vector == Outcome.done)
    }

    @Test func `instruction breakpoint is met through a jump, a call, a return and an indirect jump`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.jump("one")
        code.pad(to: 0x20)
        code.label("one")
        code.call("two")
        code.label("three")
        code.emit(0x48, 0x8D, 0x05)  // lea rax, [four]
        code.reference("four")
        code.emit(0xFF, 0xE0)  // jmp rax
        code.label("two")
        code.emit(0xC3)
        code.pad(to: 0x1400)
        code.label("four")
        code.emit(0x90)
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        let names = ["one", "two", "three", "four"]
        machine.setBreakpoints(names.map { (code.address(of: $0), .execute, 1) })
        for round in 0..<3 {
            var stop = try machine.run(from: code.base)
            for (index, name) in names.enumerated() {
                #expect(stop.vector == 1, "round \(round)")
                #expect(stop.rip == code.address(of: name))
                #expect(machine.debugStatus == 1 << UInt64(index))
                stop.rflags |= Self.resumeFlag
                stop = try machine.resume(stop)
            }
            #expect(stop.vector == Outcome.done)
        }
    }

    @Test func `breakpoint comes before the page fault of fetching its instruction, and another place is none`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.jump("gone")
        code.pad(to: 0x4010)
        code.label("gone")
        let gone = code.address(of: "gone")
        machine.setBreakpoints([(gone, .execute, 1)])
        var stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == gone)
        stop.rflags |= Self.resumeFlag
        stop = try machine.resume(stop)
        #expect(stop.vector == 14)
        #expect(stop.rip == gone)
        // The same offset of another page, and an address that is not an instruction's first byte.
        machine.setBreakpoints([(gone + 0x1000, .execute, 1), (code.base + 1, .execute, 1)])
        #expect(try machine.run(from: code.base).vector == 14)
    }

    // MARK: Data

    /// Instructions on `[rbx]` with the bytes that they access, and whether they write.
    private static let accesses: [(name: String, bytes: [UInt8], count: Int64, writes: Bool)] = [
        ("mov byte", [0x88, 0x03], 1, true), ("mov word", [0x66, 0x89, 0x03], 2, true), ("mov dword", [0x89, 0x03], 4, true),
        ("mov qword", [0x48, 0x89, 0x03], 8, true), ("load", [0x48, 0x8B, 0x0B], 8, false), ("add", [0x01, 0x03], 4, true),
        ("test", [0x85, 0x03], 4, false), ("xchg", [0x48, 0x87, 0x0B], 8, true), ("movups", [0x0F, 0x11, 0x03], 16, true),
        ("push", [0xFF, 0x33], 8, false), ("pop", [0x8F, 0x03], 8, true), ("fld", [0xDD, 0x03], 8, false),
        ("cmpxchg", [0xF0, 0x0F, 0xB1, 0x0B], 4, true),
    ]

    @Test(arguments: [1, 2, 4, 8] as [UInt64])
    func `data breakpoint traps behind every instruction that touches its bytes`(length: UInt64) throws {
        let machine = try TestMachine.small()
        let watched = TestMachine.data + 0x100
        for (kind, name) in [(.write, "write"), (.access, "access")] as [(TestMachine.BreakpointKind, String)] {
            machine.setBreakpoints([(watched, kind, length)])
            for access in Self.accesses {
                var code = GuestCode()
                code.emit(0x50)  // push rax
                code.label("access")
                for byte in access.bytes { code.emit(byte) }
                code.label("behind")
                code.emit(0x90)
                code.done()
                for offset in [-16, -8, -4, -1, 0, 1, 3, 7, 8] as [Int64] {
                    machine[.rbx] = UInt64(bitPattern: Int64(watched) + offset)
                    machine[.rsp] = TestMachine.stack
                    machine.context.pointee.dr6 = 0xFFFF_0FF0
                    let outcome = try machine.run(code)
                    let touches = offset < Int64(length) && offset + access.count > 0 && (access.writes || kind == .access)
                    let what = "\(name) \(length), \(access.name) at \(offset)"
                    if touches {
                        #expect(outcome.vector == 1, "\(what)")
                        #expect(outcome.rip == code.address(of: "behind"), "\(what)")
                        #expect(machine.debugStatus == 1, "\(what)")
                    } else {
                        #expect(outcome.vector == Outcome.done, "\(what)")
                    }
                }
            }
        }
    }

    @Test func `the store is done when its trap comes, and the address is aligned to the length`() throws {
        let machine = try TestMachine.small()
        machine.setData(0x100, 0)
        machine.setBreakpoints([(TestMachine.data + 0x106, .write, 4)])
        var code = GuestCode()
        code.load(.rbx, TestMachine.data + 0x100)
        code.emit(0xC6, 0x43, 0x04, 0x55)  // mov byte [rbx + 4], 0x55
        code.label("behind")
        code.done()
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "behind"))
        #expect(machine.data(0x100) == 0x55_0000_0000)
    }

    @Test func `access over the end of a page hits on either side`() throws {
        let machine = try TestMachine.small()
        for watched in [TestMachine.data + 0xFFE, TestMachine.data + 0x1001] {
            machine.setBreakpoints([(watched, .write, 1)])
            var code = GuestCode()
            code.load(.rbx, TestMachine.data + 0xFFC)
            code.load(.rax, 0x1122_3344_5566_7788)
            code.emit(0x48, 0x89, 0x03)
            code.label("behind")
            code.done()
            let stop = try machine.run(code)
            #expect(stop.vector == 1)
            #expect(stop.rip == code.address(of: "behind"))
            #expect(machine.data(0xFFC) == 0x1122_3344_5566_7788)
        }
    }

    @Test func `an instruction that faults has hit nothing`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([(TestMachine.data + 0x100, .access, 8)])
        var code = GuestCode()
        code.load(.rbx, TestMachine.data + 0x100)
        code.load(.rsp, 0x1000)
        code.label("access")
        code.emit(0xFF, 0x33)  // push qword [rbx]
        let stop = try machine.run(code)
        #expect(stop.vector == 14)
        #expect(stop.rip == code.address(of: "access"))
        #expect(machine.debugStatus == 0)
        #expect(machine.context.pointee.pendingDebug == 0)
    }

    @Test func `repeated string instruction traps behind the element that hits, with RF set`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([(TestMachine.data + 3, .write, 1)])
        var code = GuestCode()
        code.load(.rdi, TestMachine.data)
        code.load(.rcx, 8)
        code.load(.rax, 0xAB)
        code.label("string")
        code.emit(0xF3, 0xAA)
        code.label("behind")
        code.done()
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "string"))
        #expect(stop.rflags & Self.resumeFlag != 0)
        #expect(machine[.rcx] == 4)
        #expect(machine.data(0) == 0xABAB_ABAB)
        #expect(try machine.resume(stop).vector == Outcome.done)
        #expect(machine.data(0) == 0xABAB_ABAB_ABAB_ABAB)
        // The last element's trap comes behind the instruction.
        machine.setBreakpoints([(TestMachine.data + 7, .write, 1)])
        let last = try machine.run(code)
        #expect(last.vector == 1)
        #expect(last.rip == code.address(of: "behind"))
        #expect(last.rflags & Self.resumeFlag == 0)
    }

    @Test func `interrupt between the elements of a string instruction pushes RF`() throws {
        let machine = try TestMachine.small()
        machine.interrupts.raise(0x30)
        var code = GuestCode()
        code.load(.rdi, TestMachine.data)
        code.load(.rcx, 4096)
        code.emit(0xFB)  // sti
        code.label("string")
        code.emit(0xF3, 0xAA)
        code.done()
        let stop = try machine.run(code)
        #expect(stop.vector == 0x30)
        #expect((stop.rflags & Self.resumeFlag != 0) == (stop.rip == code.address(of: "string") && machine[.rcx] != 4096))
    }

    @Test func `stack, vector, mask and system accesses hit too`() throws {
        let machine = try TestMachine.small()
        let watched = TestMachine.data + 0x200
        for bytes in [
            [0x48, 0x89, 0xDC, 0x48, 0x83, 0xC4, 0x08, 0x50],  // mov rsp, rbx; add rsp, 8; push rax
            [0x48, 0x89, 0xDC, 0x48, 0x83, 0xC4, 0x08, 0x9C],  // ...; pushfq
            [0x0F, 0xAE, 0x03],  // fxsave [rbx]
            [0x0F, 0x01, 0x03],  // sgdt [rbx]
            [0x8C, 0x1B],  // mov [rbx], ds
        ] as [[UInt8]] {
            machine.setBreakpoints([(watched, .write, 1)])
            machine[.rsp] = TestMachine.stack
            var code = GuestCode()
            code.load(.rbx, watched)
            for byte in bytes { code.emit(byte) }
            code.label("behind")
            code.done()
            let stop = try machine.run(code)
            #expect(stop.vector == 1, "\(bytes)")
            #expect(stop.rip == code.address(of: "behind"), "\(bytes)")
        }
    }

    @Test func `frame pushed onto a watched stack traps at the handler's first instruction`() throws {
        let machine = try TestMachine.small()
        // #UD by IST 2: the frame of #DB must not hit again.
        let watched = TestMachine.kernelBase + TestMachine.stackTop - 0x1000
        machine.memory.store(TestMachine.tss + 0x2C, watched + 16)
        let gate = machine.memory.load(TestMachine.idt + 6 * 16, as: UInt64.self) ?? 0
        machine.memory.store(TestMachine.idt + 6 * 16, gate ^ 3 << 32)
        machine.setBreakpoints([(watched, .write, 8)])
        var code = GuestCode()
        code.emit(0x0F, 0x0B)  // ud2
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == TestMachine.kernelBase + TestMachine.handlers + 6)
    }

    // MARK: Ports

    @Test func `port breakpoint needs CR4.DE and traps behind IN and OUT`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xE7, 0x70)  // out 0x70, eax
        code.label("behind out")
        code.emit(0xE4, 0x73)  // in al, 0x73
        code.label("behind in")
        code.emit(0xE4, 0x74)  // in al, 0x74
        code.done()
        machine.setBreakpoints([(0x73, .port, 1)])
        #expect(try machine.run(code).vector == Outcome.done)
        machine.context.pointee.cr4 |= CR4.de
        var stop = try machine.run(code)
        for name in ["behind out", "behind in"] {
            #expect(stop.vector == 1)
            #expect(stop.rip == code.address(of: name))
            #expect(machine.debugStatus == 1)
            stop = try machine.resume(stop)
        }
        #expect(stop.vector == Outcome.done)
    }

    // MARK: Registers

    @Test func `general detect faults before the access and gives the handler the registers`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        machine.context.pointee.dr7 |= 1 << 13
        var code = GuestCode()
        code.emit(0x0F, 0x21, 0xC0)  // mov rax, dr0
        code.done()
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.base)
        #expect(machine.debugStatus == 1 << 13)
        #expect(machine.context.pointee.dr7 & 1 << 13 == 0)
        #expect(try machine.resume(stop).vector == Outcome.done)
    }

    @Test func `DR4 and DR5 are DR6 and DR7 without CR4.DE, and undefined with it`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.emit(0x0F, 0x21, 0xE0)  // mov rax, dr4
        code.emit(0x0F, 0x21, 0xEB)  // mov rbx, dr5
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 0xFFFF_0FF0)
        #expect(machine[.rbx] == 0x400)
        machine.context.pointee.cr4 |= CR4.de
        #expect(try machine.run(code).vector == 6)
    }

    @Test func `fixed bits of DR6 and DR7 stay, their upper halves are refused`() throws {
        let machine = try TestMachine.small()
        machine.setBreakpoints([])
        var code = GuestCode()
        code.load(.rax, 0xFFFF_FF00)
        code.emit(0x0F, 0x23, 0xF0)  // mov dr6, rax
        code.emit(0x0F, 0x21, 0xF3)  // mov rbx, dr6
        code.load(.rax, 0x0000_D800)
        code.emit(0x0F, 0x23, 0xF8)  // mov dr7, rax
        code.emit(0x0F, 0x21, 0xF9)  // mov rcx, dr7
        code.load(.rax, 1 << 32)
        code.emit(0x0F, 0x23, 0xF8)
        #expect(try machine.run(code).vector == 13)
        #expect(machine[.rbx] == 0xFFFF_EFF0)
        #expect(machine[.rcx] == 0x400)
    }

    // MARK: Behind loads of SS

    @Test func `load of SS holds its data breakpoint back for one instruction and hides the next's own`() throws {
        let machine = try TestMachine.small()
        machine.setData(0x100, 0)
        var code = GuestCode()
        code.load(.rbx, TestMachine.data + 0x100)
        code.emit(0x8E, 0x13)  // mov ss, [rbx]
        code.label("next")
        code.emit(0xFF, 0xC0)  // inc eax
        code.label("behind")
        code.done()
        machine.setBreakpoints([(TestMachine.data + 0x100, .access, 2), (code.address(of: "next"), .execute, 1)])
        machine[.rax] = 0
        let stop = try machine.run(code)
        #expect(stop.vector == 1)
        #expect(stop.rip == code.address(of: "behind"))
        #expect(machine.debugStatus == 1)
        #expect(machine[.rax] == 1)
    }

    @Test func `trap held back by a load of SS comes at the first instruction of a handler`() throws {
        for instruction in [[0xCD, 0x40], [0x0F, 0x0B]] as [[UInt8]] {
            let machine = try TestMachine.small()
            machine.setData(0x100, 0)
            machine.setBreakpoints([(TestMachine.data + 0x100, .access, 2)])
            var code = GuestCode()
            code.load(.rbx, TestMachine.data + 0x100)
            code.emit(0x8E, 0x13)  // mov ss, [rbx]
            for byte in instruction { code.emit(byte) }
            let stop = try machine.run(code)
            #expect(stop.vector == 1)
            #expect(stop.rip == TestMachine.kernelBase + TestMachine.handlers + (instruction[0] == 0xCD ? 0x40 : 6))
        }
    }
}
