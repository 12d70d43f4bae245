import Testing
import VMM

@testable import TranslatorEngine

/// Code that reaches for more than it may have: another privilege level's code, another address space's, instructions of
/// the host's.
@Suite struct AttackPrivilegeTests {
    private static let kernelFunction: UInt64 = TestMachine.kernelBase + 0x5_0000

    /// Ways to go to the address in rax, which is also at `TestMachine.data`.
    static let ways: [(name: String, bytes: [UInt8])] = [
        ("jmp rax", [0xFF, 0xE0]), ("call rax", [0xFF, 0xD0]), ("push rax; ret", [0x50, 0xC3]), ("jmp [mem]", [0xFF, 0x24, 0x25, 0, 0, 0x60, 0]),
        ("call [mem]", [0xFF, 0x14, 0x25, 0, 0, 0x60, 0]), ("push; ret 8", [0x50, 0xC2, 8, 0]),
        ("jmp r13", [0x49, 0x89, 0xC5, 0x41, 0xFF, 0xE5]), ("call r14", [0x49, 0x89, 0xC6, 0x41, 0xFF, 0xD6]),
    ]

    @Test(arguments: ways.indices) func `user code that goes to cached kernel code gets a page fault`(index: Int) throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        machine.setData(0, Self.kernelFunction)
        // inc qword [data + 8]; ret: what a supervisor may do, and a page that users could write too.
        machine.memory.write([0x48, 0xFF, 0x04, 0x25, 8, 0, 0x60, 0, 0xC3], at: 0x5_0000)
        var kernel = GuestCode()
        kernel.load(.rcx, 50)
        kernel.label("loop")
        kernel.load(.rax, Self.kernelFunction)
        kernel.emit(0xFF, 0xD0)  // call rax
        kernel.emit(0x48, 0xFF, 0xC9)
        kernel.jump(if: 5, "loop")
        kernel.done()
        #expect(try machine.run(kernel).vector == Outcome.done)
        #expect(machine.data(8) == 50)
        machine.enter(level: 3)
        machine[.rsp] = TestMachine.stack
        var user = GuestCode(at: GuestCode.start + 0x1000)
        user.load(.rax, Self.kernelFunction)
        for byte in Self.ways[index].bytes { user.emit(byte) }
        user.done()
        machine.load(user)
        for _ in 0..<5 {
            machine.enter(level: 3)
            machine[.rsp] = TestMachine.stack
            let outcome = try machine.run(from: user.base)
            #expect(outcome.vector == 14 && outcome.errorCode == 0x15, "\(outcome)")
            #expect(outcome.rip == Self.kernelFunction && outcome.address == Self.kernelFunction)
        }
        #expect(machine.data(8) == 50)
        fortress.checkAll(Self.ways[index].name)
    }

    @Test func `kernel code that goes to cached user code gets a page fault under SMEP`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        machine.context.pointee.cr4 |= CR4.smep
        machine.map(GuestCode.start + 0x8000, to: TestMachine.codePhysical, [.writable])
        var user = GuestCode(at: GuestCode.start + 0x1000)
        user.done()
        machine.load(user)
        machine.enter(level: 3)
        #expect(try machine.run(from: user.base).vector == Outcome.done)
        var kernel = GuestCode()
        kernel.load(.rax, user.base)
        kernel.emit(0xFF, 0xE0)
        machine.load(kernel)
        machine.enter(level: 0)
        machine[.rsp] = TestMachine.stack
        let outcome = try machine.run(from: GuestCode.start + 0x8000)
        #expect(outcome.vector == 14 && outcome.rip == user.base && outcome.errorCode == 0x11, "\(outcome)")
        fortress.checkAll()
    }

    /// The same linear addresses lead to other pages in another address space, whichever way the code goes there.
    @Test(arguments: ways.indices) func `the code of an address space is not run in another`(index: Int) throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        let function = GuestCode.start + 0x1_0000
        let second: UInt64 = 0x7_0000
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 4, [.writable, .user], root: second)
        machine.map(TestMachine.data, to: TestMachine.dataPhysical, count: 8, [.writable, .user], root: second)
        machine.map(TestMachine.stack - 8192, to: 0x30_0000, count: 2, [.writable, .user], root: second)
        machine.map(TestMachine.kernelBase, to: 0, count: 128, [.writable], root: second)
        machine.map(function, to: 0x40_0000, [.writable, .user])
        machine.map(function, to: 0x40_1000, [.writable, .user], root: second)
        // add rbx, 1 / add rbx, 0x10000; jmp rdx
        machine.memory.write([0x48, 0x81, 0xC3, 1, 0, 0, 0, 0xFF, 0xE2], at: 0x40_0000)
        machine.memory.write([0x48, 0x81, 0xC3, 0, 0, 1, 0, 0xFF, 0xE2], at: 0x40_1000)
        machine.setData(0, function)
        var code = GuestCode()
        code.load(.rsi, TestMachine.pageTables)
        code.load(.rdi, second)
        code.load(.rcx, 100)
        code.label("loop")
        code.emit(0x48, 0x87, 0xF7)  // xchg rdi, rsi
        code.emit(0x0F, 0x22, 0xDE)  // mov cr3, rsi
        code.load(.rax, function)
        code.emit(0x48, 0x8D, 0x15)  // lea rdx, [back]
        code.reference("back")
        for byte in Self.ways[index].bytes { code.emit(byte) }
        code.label("back")
        code.load(.rsp, TestMachine.stack)
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        machine[.rbx] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 50 + 50 * 0x10000, "\(Self.ways[index].name): \(String(machine[.rbx], radix: 16))")
        fortress.checkAll()
    }

    /// A return goes where the stack says in the address space of the moment.
    @Test func `a return into another address space runs its code`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        let page = GuestCode.start + 0x1_0000
        let second: UInt64 = 0x7_0000
        for root in [TestMachine.pageTables, second] {
            machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 4, [.writable], root: root)
            machine.map(TestMachine.stack - 8192, to: 0x30_0000, count: 2, [.writable], root: root)
            machine.map(TestMachine.kernelBase, to: 0, count: 128, [.writable], root: root)
        }
        machine.map(page, to: 0x40_0000, [.writable])
        machine.map(page, to: 0x40_1000, [.writable], root: second)
        // call r8 (which switches); add rbx, n; jmp rdx
        machine.memory.write([0x41, 0xFF, 0xD0, 0x48, 0x81, 0xC3, 1, 0, 0, 0, 0xFF, 0xE2], at: 0x40_0000)
        machine.memory.write([0x41, 0xFF, 0xD0, 0x48, 0x81, 0xC3, 0, 0, 1, 0, 0xFF, 0xE2], at: 0x40_1000)
        var code = GuestCode()
        code.load(.rsi, TestMachine.pageTables)
        code.load(.rdi, second)
        code.load(.rcx, 100)
        code.emit(0x4C, 0x8D, 0x05)  // lea r8, [switch]
        code.reference("switch")
        code.emit(0x48, 0x8D, 0x15)  // lea rdx, [back]
        code.reference("back")
        code.load(.rax, page)
        code.label("loop")
        code.emit(0xFF, 0xE0)
        code.label("back")
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        code.label("switch")
        code.emit(0x48, 0x87, 0xF7, 0x0F, 0x22, 0xDE, 0xC3)  // xchg rdi, rsi; mov cr3, rsi; ret
        machine[.rbx] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 50 + 50 * 0x10000, "\(String(machine[.rbx], radix: 16))")
        fortress.checkAll()
    }

    /// Instructions that would reach the host or the machine, from user code, and what they get.
    static let reaching: [(bytes: [UInt8], vector: Int, name: String)] = [
        ([0x0F, 0x34], HostCPU.current.vendor == .amd ? 6 : 13, "sysenter"), ([0x0F, 0x07], 6, "sysret without SCE"), ([0x0F, 0x05], 6, "syscall without SCE"),
        ([0xF4], 13, "hlt"), ([0xFA], 13, "cli"), ([0xEC], 13, "in al, dx"), ([0xEE], 13, "out dx, al"), ([0x6C], 13, "insb"),
        ([0x0F, 0x22, 0xD8], 13, "mov cr3, rax"), ([0x0F, 0x20, 0xC0], 13, "mov rax, cr0"), ([0x0F, 0x23, 0xF8], 13, "mov dr7, rax"),
        ([0x0F, 0x30], 13, "wrmsr"), ([0x0F, 0x32], 13, "rdmsr"), ([0x0F, 0x33], 13, "rdpmc"), ([0x0F, 0x01, 0xC1], 6, "vmcall"),
        ([0x0F, 0x01, 0xC2], 6, "vmlaunch"), ([0x0F, 0x01, 0xD4], 6, "vmfunc"), ([0x0F, 0x01, 0xD8], 6, "vmrun"), ([0x0F, 0x01, 0xD9], 6, "vmmcall"),
        ([0x0F, 0xAA], 6, "rsm"), ([0x0F, 0x0B], 6, "ud2"), ([0x0F, 0xFF, 0xC0], 6, "ud0"), ([0x0F, 0xB9, 0xC0], 6, "ud1"),
        ([0x0F, 0x01, 0xEF], 6, "wrpkru"), ([0x0F, 0x01, 0xEE], 6, "rdpkru"), ([0x0F, 0x01, 0xCF], 6, "encls"), ([0x0F, 0x01, 0xD7], 6, "enclu"),
        ([0xC7, 0xF8, 0, 0, 0, 0], 6, "xbegin"), ([0x0F, 0x01, 0xD5], 6, "xend"), ([0xC6, 0xF8, 0], 6, "xabort"),
        ([0x0F, 0x37], 6, "getsec"), ([0x0F, 0x01, 0xFC], 6, "clzero"), ([0x0F, 0x01, 0xFD], 6, "rdpru"), ([0x0F, 0x01, 0xF8], 13, "swapgs"),
        ([0xF3, 0x0F, 0xC7, 0xF0], 6, "senduipi rax"), ([0xF3, 0x0F, 0x01, 0xEF], 6, "stui"), ([0x0F, 0x01, 0xE8], 6, "serialize"),
        ([0x66, 0x0F, 0xAE, 0xF0], 6, "tpause"), ([0xF3, 0x0F, 0xAE, 0xF0], 6, "umonitor"), ([0xF2, 0x0F, 0xAE, 0xF0], 6, "umwait"),
        ([0xF3, 0x0F, 0xAE, 0xE0], 6, "ptwrite eax"), ([0xF3, 0x0F, 0x38, 0xFA, 0xC0], 6, "encodekey128"), ([0xF3, 0x0F, 0x38, 0xD8, 0x03], 6, "aesencwide128kl"),
        ([0x66, 0x0F, 0x38, 0xF8, 0x03], 6, "movdir64b"), ([0x0F, 0x38, 0xF9, 0x03], 6, "movdiri"), ([0xF2, 0x0F, 0x38, 0xF8, 0x03], 6, "enqcmd"),
        ([0x0F, 0x01, 0xCA], 6, "clac without SMAP"), ([0x0F, 0x08], 13, "invd"), ([0x0F, 0x09], 13, "wbinvd"), ([0x0F, 0x06], 13, "clts"),
        ([0x0F, 0x01, 0x3B], 13, "invlpg"), ([0x0F, 0x00, 0xD8], 13, "ltr ax"), ([0x0F, 0x01, 0x13], 13, "lgdt"), ([0x0F, 0x01, 0xF0], 13, "lmsw ax"),
        ([0x0F, 0x01, 0xD1], 13, "xsetbv"), ([0x8E, 0xE8], 13, "mov gs, kernel selector"), ([0x8E, 0xD0], 13, "mov ss, kernel selector"),
        ([0xC5, 0xF8, 0x48, 0xC1], 6, "a KNC instruction"), ([0xC4, 0xE2, 0x78, 0x49, 0x03], 6, "ldtilecfg"), ([0xC4, 0xE2, 0x78, 0x49, 0xC0], 6, "tilerelease"),
        ([0x62, 0x63, 0x7D, 0x48, 0x00, 0xC0, 0], 6, "a hidden EVEX form"), ([0x8F, 0xE9, 0x78, 0x12, 0xC0], 6, "llwpcb"),
        ([0xCA, 0, 0], 13, "retf to nothing"), ([0x48, 0xCB], 13, "retf to nothing"), ([0xFF, 0x2B], 13, "jmp far to nothing"), ([0x48, 0xCF], 13, "iret to nothing"),
        ([0xCD, 0x81], 0x81, "int 0x81"), ([0xF1], 1, "int1"), ([0xCC], 3, "int3"), ([0xEA, 0, 0, 0, 0, 0, 0], 6, "jmp far in 64-bit code"),
    ]

    @Test(arguments: reaching.indices) func `an instruction that would reach the host is the guest's own affair`(index: Int) throws {
        let (bytes, vector, name) = Self.reaching[index]
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        machine.context.pointee.msr.efer &= ~EFER.sce
        // No permission bitmap.
        machine.memory.store(TestMachine.tss + 0x66, 0xFFFF as UInt16)
        machine.enter(level: 3)
        machine[.rax] = UInt64(TestMachine.kernelCode)
        machine[.rbx] = TestMachine.data
        machine[.rdx] = 0x80
        machine[.rcx] = 0x1234
        machine[.rsp] = TestMachine.stack - 64
        var code = GuestCode()
        for byte in bytes { code.emit(byte) }
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == vector, "\(name): \(outcome)")
        fortress.checkAll(name)
    }

    @Test func `bases of fs and gs that a program sets are its own`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        machine.enter(level: 3)
        machine.setData(0, 0x1111)
        machine.setData(0x1000, 0x2222)
        var code = GuestCode()
        code.load(.rax, TestMachine.data)
        code.emit(0xF3, 0x48, 0x0F, 0xAE, 0xD8)  // wrgsbase rax
        code.load(.rax, TestMachine.data + 0x1000)
        code.emit(0xF3, 0x48, 0x0F, 0xAE, 0xD0)  // wrfsbase rax
        code.emit(0x65, 0x48, 0x8B, 0x1C, 0x25, 0, 0, 0, 0)  // mov rbx, gs:[0]
        code.emit(0x64, 0x48, 0x8B, 0x0C, 0x25, 0, 0, 0, 0)  // mov rcx, fs:[0]
        code.emit(0xF3, 0x48, 0x0F, 0xAE, 0xCA)  // rdgsbase rdx
        code.emit(0xF3, 0x48, 0x0F, 0xAE, 0xC6)  // rdfsbase rsi
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 0x1111 && machine[.rcx] == 0x2222)
        #expect(machine[.rdx] == TestMachine.data && machine[.rsi] == TestMachine.data + 0x1000)
        fortress.checkAll()
    }
}
