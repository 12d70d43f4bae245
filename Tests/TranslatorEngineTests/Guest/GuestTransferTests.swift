import Testing
import TranslatorEngine
import VMM

/// Instructions of the system half that have code of their own in blocks, where running code meets them: what is usual
/// stays in translated code, what is not goes the long way, and a guest sees no difference.
@Suite struct GuestTransferTests {
    private static let kernel = GuestCode.start + 0x2000

    // MARK: SYSCALL and SYSRET

    /// A program at CPL 3 that makes system calls in a loop; each adds one to r8 and leaves RFLAGS in r9.
    private func calling(_ machine: TestMachine, times: UInt64, flags: UInt64, mask: UInt64) throws -> Outcome {
        machine.context.pointee.msr.star = 0x0023_0010 << 32
        machine.context.pointee.msr.lstar = Self.kernel
        machine.context.pointee.msr.sfmask = mask
        var handler = GuestCode(at: Self.kernel)
        handler.emit(0x4D, 0x8D, 0x40, 0x01)  // lea r8, [r8 + 1]
        handler.emit(0x9C, 0x41, 0x59)  // pushfq; pop r9
        handler.emit(0x48, 0x0F, 0x07)  // sysretq
        machine.load(handler)
        var code = GuestCode()
        code.load(.rbx, times)
        code.label("again")
        code.load(.rdx, flags)
        code.emit(0x52, 0x9D)  // push rdx; popfq
        code.emit(0x0F, 0x05)
        code.emit(0x4D, 0x89, 0xDA)  // mov r10, r11
        code.emit(0x9C, 0x41, 0x5E)  // pushfq; pop r14
        code.emit(0x48, 0xFF, 0xCB)  // dec rbx
        code.jump(if: 5, "again")
        code.done()
        machine.enter(level: 3)
        return try machine.run(code)
    }

    @Test(arguments: [0, RFLAGS.cf | RFLAGS.of, RFLAGS.zf | RFLAGS.df, RFLAGS.ac, RFLAGS.id | RFLAGS.sf] as [UInt64])
    func `system calls in a loop keep flags, masks and selectors`(flags: UInt64) throws {
        let machine = try TestMachine.small()
        machine.context.pointee.cr0 &= ~CR0.am
        let outcome = try calling(machine, times: 50, flags: flags, mask: RFLAGS.df | RFLAGS.cf)
        #expect(outcome.vector == Outcome.done)
        #expect(machine[.r8] == 50)
        #expect(machine[.r10] == flags | 2)
        #expect(machine[.r9] == flags & ~(RFLAGS.df | RFLAGS.cf) | 2)
        #expect(machine[.r14] == flags | 2)
        #expect(machine.memory.load(TestMachine.stackTop - 32, as: UInt64.self) == 0x33)
        #expect(machine.memory.load(TestMachine.stackTop - 8, as: UInt64.self) == 0x2B)
    }

    @Test func `system calls are undefined once EFER.SCE is clear`() throws {
        let machine = try TestMachine.small()
        #expect(try calling(machine, times: 3, flags: 0, mask: 0).vector == Outcome.done)
        machine.context.pointee.msr.efer &= ~EFER.sce
        machine.enter(level: 3)
        #expect(try machine.run(from: GuestCode.start).vector == 6)
        #expect(machine[.r8] == 3)
    }

    // MARK: STAC and CLAC

    /// A machine under SMAP, whose stack is the supervisor's and whose data is the user's. So is its code, with SMEP off.
    private func guarded() throws -> TestMachine {
        let machine = try TestMachine.small()
        machine.context.pointee.cr4 |= CR4.smap
        machine.map(TestMachine.stack - 8192, to: 0x30_0000, count: 2, [.writable])
        machine.cpu.modeChanged()
        return machine
    }

    @Test func `STAC and CLAC open and close user pages`() throws {
        let machine = try guarded()
        var code = GuestCode()
        code.load(.rsi, TestMachine.data)
        code.load(.rbx, 30)
        code.label("again")
        code.emit(0x0F, 0x01, 0xCB)  // stac
        code.emit(0x48, 0xFF, 0x06)  // inc qword [rsi]
        code.emit(0x0F, 0x01, 0xCA)  // clac
        code.emit(0x48, 0xFF, 0xCB)
        code.jump(if: 5, "again")
        code.label("closed")
        code.emit(0x48, 0xFF, 0x06)
        code.done()
        let outcome = try machine.run(code)
        #expect(machine.data(0) == 30)
        #expect(outcome.vector == 14 && outcome.errorCode == 3 && outcome.rip == code.address(of: "closed"))
        #expect(outcome.rflags & RFLAGS.ac == 0)
    }

    @Test func `STAC at the end of a page opens user pages for what follows`() throws {
        let machine = try guarded()
        var code = GuestCode()
        code.load(.rsi, TestMachine.data)
        code.load(.rbx, 30)
        code.jump("last")
        code.pad(to: 4096 - 3)
        code.label("last")
        code.emit(0x0F, 0x01, 0xCB)
        code.emit(0x48, 0xFF, 0x06)
        code.emit(0x0F, 0x01, 0xCA)
        code.emit(0x48, 0xFF, 0xCB)
        code.jump(if: 5, "last")
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine.data(0) == 30)
    }

    // MARK: String runs

    /// REP with the given opcode bytes, three times so that the page is in the TLB, from a copy of the registers.
    private func repeated(_ machine: TestMachine, _ opcode: [UInt8], source: UInt64, target: UInt64, count: UInt64) throws -> Outcome {
        var code = GuestCode()
        code.load(.rbx, 3)
        code.load(.rax, 0x1122_3344_5566_7788)
        code.label("again")
        code.load(.rsi, source)
        code.load(.rdi, target)
        code.load(.rcx, count)
        code.emit(0xF3)
        for byte in opcode { code.emit(byte) }
        code.emit(0x48, 0xFF, 0xCB)
        code.jump(if: 5, "again")
        code.done()
        return try machine.run(code)
    }

    @Test(arguments: [([0xA4], 1), ([0x66, 0xA5], 2), ([0xA5], 4), ([0x48, 0xA5], 8)] as [([UInt8], UInt64)])
    func `REP MOVS copies and leaves its registers behind the last element`(opcode: [UInt8], size: UInt64) throws {
        for (from, to, count) in [(0, 0x100, 0), (0, 0x100, 7), (0xFF0, 0x1FF8, 9), (0x10, 0x10 + size, 5)] as [(UInt64, UInt64, UInt64)] {
            let machine = try TestMachine.small()
            for index in 0..<1024 as Range<UInt64> { machine.setData(index * 8, index &* 0x9E37_79B9_7F4A_7C15) }
            var expected = machine.memory.read(TestMachine.dataPhysical, count: 0x4000) ?? []
            for _ in 0..<3 {
                for byte in 0..<Int(count * size) { expected[Int(to) + byte] = expected[Int(from) + byte] }
            }
            let outcome = try repeated(
                machine, opcode, source: TestMachine.data + from, target: TestMachine.data + to, count: count)
            #expect(outcome.vector == Outcome.done)
            #expect(machine.memory.read(TestMachine.dataPhysical, count: 0x4000) == expected)
            #expect(machine[.rcx] == 0)
            #expect(machine[.rsi] == TestMachine.data + from + count * size)
            #expect(machine[.rdi] == TestMachine.data + to + count * size)
        }
    }

    @Test func `REP STOS into the page after writable memory stops at the fault`() throws {
        let machine = try TestMachine.small()
        machine.unmap(TestMachine.data + 0x1000)
        let outcome = try repeated(machine, [0x48, 0xAB], source: 0, target: TestMachine.data + 0xFE0, count: 6)
        #expect(outcome.vector == 14 && outcome.address == TestMachine.data + 0x1000 && outcome.errorCode == 2)
        #expect(machine[.rcx] == 2)
        #expect(machine[.rdi] == TestMachine.data + 0x1000)
        #expect(machine.data(0xFF8) == 0x1122_3344_5566_7788)
    }

    // MARK: FS and GS bases

    @Test func `WRGSBASE of an address that is not canonical is a general protection fault`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.load(.rax, 0x1234_5678_9ABC)
        code.emit(0xF3, 0x48, 0x0F, 0xAE, 0xD8)  // wrgsbase rax
        code.emit(0xF3, 0x4D, 0x0F, 0xAE, 0xCD)  // rdgsbase r13
        code.load(.rax, 0x8000_0000_0000)
        code.label("bad")
        code.emit(0xF3, 0x48, 0x0F, 0xAE, 0xD8)
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 13 && outcome.rip == code.address(of: "bad"))
        #expect(machine[.r13] == 0x1234_5678_9ABC)
        #expect(machine.context.pointee.gsBase == 0x1234_5678_9ABC)
    }
}
