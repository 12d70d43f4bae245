import Testing
import TranslatorEngine
import VMM

/// Paging as running code meets it: what the software TLB keeps, drops and checks.
@Suite struct GuestPagingTests {
    private typealias Flags = TestMachine.PageFlags
    private static let page: UInt64 = 0x50_0000
    private static let accessed: UInt64 = 0x20, dirty: UInt64 = 0x40

    /// Where code goes that runs after other code: what is translated already would not notice being overwritten
    /// from outside.
    private static let second = GuestCode.start + 0x1000

    /// `mov rax, [page]`, and something else before it.
    private func reading(_ first: UInt8...) -> GuestCode {
        var code = GuestCode(at: first.isEmpty ? GuestCode.start : Self.second)
        code.load(.rsi, Self.page)
        for byte in first { code.emit(byte) }
        code.emit(0x48, 0x8B, 0x06)
        code.done()
        return code
    }

    /// Two pages of data that differ in their first word; the first is mapped at `page`.
    private func twoPages(_ flags: TestMachine.PageFlags = [.writable]) throws -> TestMachine {
        let machine = try TestMachine.small()
        machine.setData(0, 0x1111)
        machine.setData(0x1000, 0x2222)
        machine.map(Self.page, to: TestMachine.dataPhysical, flags)
        return machine
    }
    private func remap(_ machine: TestMachine, _ flags: TestMachine.PageFlags = [.writable]) {
        machine.map(Self.page, to: TestMachine.dataPhysical + 0x1000, flags)
    }

    // MARK: Flushing

    @Test func `INVLPG makes a changed entry seen`() throws {
        for flags in [[.writable], [.writable, .global]] as [TestMachine.PageFlags] {
            let machine = try twoPages(flags)
            try machine.run(reading())
            #expect(machine[.rax] == 0x1111)
            remap(machine, flags)
            let code = reading(0x0F, 0x01, 0x3E)  // invlpg [rsi]
            machine.load(code)
            try machine.run(from: code.base)
            #expect(machine[.rax] == 0x2222)
        }
    }

    @Test func `INVLPG in the middle of a block is in time for the next instruction`() throws {
        let machine = try twoPages()
        // The page table's own page, as data.
        machine.map(0x51_0000, to: machine.entryAddress(Self.page) & ~0xFFF, [.writable])
        var code = GuestCode()
        code.load(.rsi, Self.page)
        code.load(.rdi, 0x51_0000 + machine.entryAddress(Self.page) & 0xFFF)
        code.emit(0x48, 0x8B, 0x1E)  // mov rbx, [rsi]
        code.emit(0x48, 0x81, 0x07, 0, 0x10, 0, 0)  // add qword [rdi], 0x1000
        code.emit(0x0F, 0x01, 0x3E)
        code.emit(0x48, 0x8B, 0x06)
        code.done()
        try machine.run(code)
        #expect(machine[.rbx] == 0x1111)
        #expect(machine[.rax] == 0x2222)
    }

    @Test func `a reload of CR3 makes changed entries seen`() throws {
        let machine = try twoPages()
        try machine.run(reading())
        remap(machine)
        let code = reading(0x0F, 0x20, 0xDA, 0x0F, 0x22, 0xDA)  // mov rdx, cr3; mov cr3, rdx
        machine.load(code)
        try machine.run(from: code.base)
        #expect(machine[.rax] == 0x2222)
    }

    @Test func `a change of CR4.PGE makes changed global entries seen`() throws {
        let machine = try twoPages([.writable, .global])
        try machine.run(reading())
        remap(machine, [.writable, .global])
        // mov rdx, cr4; btc rdx, 7; mov cr4, rdx; btc rdx, 7; mov cr4, rdx
        let code = reading(
            0x0F, 0x20, 0xE2, 0x48, 0x0F, 0xBA, 0xFA, 7, 0x0F, 0x22, 0xE2, 0x48, 0x0F, 0xBA, 0xFA, 7, 0x0F, 0x22, 0xE2)
        machine.load(code)
        try machine.run(from: code.base)
        #expect(machine[.rax] == 0x2222)
    }

    @Test func `another CR3 is another address space for data and code`() throws {
        let machine = try twoPages()
        // The second root shares the kernel's half and the stack, but has other code and data.
        let other: UInt64 = 0x5_0000
        machine.memory.store(other + 256 * 8, machine.memory.load(TestMachine.pageTables + 256 * 8, as: UInt64.self) ?? 0)
        machine.map(GuestCode.start, to: TestMachine.codePhysical, [.writable], root: other)
        machine.map(GuestCode.start + 0x1000, to: TestMachine.codePhysical + 0x2000, [.writable], root: other)
        machine.map(Self.page, to: TestMachine.dataPhysical + 0x1000, [.writable], root: other)
        machine.map(TestMachine.stack - 4096, to: 0x30_1000, [.writable], root: other)
        // function: mov eax, n; ret
        machine.memory.write([0xB8, 1, 0, 0, 0, 0xC3], at: TestMachine.codePhysical + 0x1000)
        machine.memory.write([0xB8, 2, 0, 0, 0, 0xC3], at: TestMachine.codePhysical + 0x2000)
        var code = GuestCode()
        code.load(.rsi, Self.page)
        code.load(.rdi, GuestCode.start + 0x1000)
        for (root, sum) in [(TestMachine.pageTables, UInt8(0xC3)), (other, 0xC5), (TestMachine.pageTables, 0xC3), (other, 0xC5)] {
            code.load(.rdx, root)
            code.emit(0x0F, 0x22, 0xDA)
            code.emit(0xFF, 0xD7)  // call rdi
            code.emit(0x48, 0x01, sum)  // add rbx or rbp, rax
            code.emit(0x48, 0x03, sum == 0xC3 ? 0x1E : 0x2E)  // add rbx or rbp, [rsi]
        }
        code.done()
        machine[.rbx] = 0
        machine[.rbp] = 0
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == 2 * (1 + 0x1111))
        #expect(machine[.rbp] == 2 * (2 + 0x2222))
    }

    @Test func `INVLPG drops all of a large page`() throws {
        let machine = try TestMachine.small()
        let linear: UInt64 = 0x4000_0000
        // A 2 MB page over the data, by hand: PDPT and directory are those that `entryAddress` makes.
        _ = machine.entryAddress(linear)
        let table = machine.memory.load(TestMachine.pageTables, as: UInt64.self).map { $0 & ~0xFFF } ?? 0
        let directory = machine.memory.load(table + 8, as: UInt64.self).map { $0 & ~0xFFF } ?? 0
        machine.memory.store(directory, 0x20_0000 | 0x83 as UInt64)
        machine.setData(0x3000, 0x1111)
        machine.memory.store(0x40_3000, 0x2222 as UInt64)
        var code = GuestCode()
        code.load(.rsi, linear + 0x3000)
        code.emit(0x48, 0x8B, 0x1E)  // mov rbx, [rsi]
        code.done()
        try machine.run(code)
        #expect(machine[.rbx] == 0x1111)
        machine.memory.store(directory, 0x40_0000 | 0x83 as UInt64)
        code = GuestCode(at: Self.second)
        code.load(.rsi, linear)
        code.emit(0x0F, 0x01, 0x3E)
        code.emit(0x48, 0x8B, 0x9E, 0, 0x30, 0, 0)  // mov rbx, [rsi + 0x3000]
        code.done()
        machine.load(code)
        try machine.run(from: code.base)
        #expect(machine[.rbx] == 0x2222)
    }

    // MARK: Rights

    /// `mov [page], rax` or `mov rax, [page]`.
    private func access(write: Bool) -> GuestCode {
        var code = GuestCode()
        code.load(.rsi, Self.page)
        code.emit(0x48, write ? 0x89 : 0x8B, 0x06)
        code.done()
        return code
    }
    private func outcome(_ machine: TestMachine, write: Bool) throws -> (Int, UInt32) {
        machine[.rsp] = TestMachine.stack
        let outcome = try machine.run(access(write: write))
        return (outcome.vector, outcome.errorCode)
    }

    @Test func `a supervisor's write to a read-only page needs CR0 WP clear`() throws {
        let machine = try twoPages([])
        #expect(try outcome(machine, write: false) == (Outcome.done, 0))
        #expect(try outcome(machine, write: true) == (14, 3))
        machine.context.pointee.cr0 &= ~CR0.wp
        machine[.rax] = 0x77
        #expect(try outcome(machine, write: true) == (Outcome.done, 0))
        #expect(machine.data(0) == 0x77)
        machine.context.pointee.cr0 |= CR0.wp
        #expect(try outcome(machine, write: true) == (14, 3))
    }

    @Test func `WP set by code holds from the next instruction`() throws {
        let machine = try twoPages([])
        machine.context.pointee.cr0 &= ~CR0.wp
        var code = GuestCode()
        code.load(.rsi, Self.page)
        code.emit(0xC6, 0x06, 1)  // mov byte [rsi], 1
        code.emit(0x0F, 0x20, 0xC2)  // mov rdx, cr0
        code.emit(0x48, 0x0F, 0xBA, 0xEA, 16)  // bts rdx, 16
        code.emit(0x0F, 0x22, 0xC2)
        code.label("fault")
        code.emit(0xC6, 0x06, 2)
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 14)
        #expect(outcome.errorCode == 3)
        #expect(outcome.rip == code.address(of: "fault"))
        #expect(machine.data(0) & 0xFF == 1)
    }

    @Test func `a user reaches user pages alone`() throws {
        let machine = try twoPages([.writable])
        machine.enter(level: 3)
        #expect(try outcome(machine, write: false) == (14, 5))
        machine.enter(level: 3)
        #expect(try outcome(machine, write: true) == (14, 7))
        machine.map(Self.page, to: TestMachine.dataPhysical, [.user])
        machine.enter(level: 3)
        #expect(try outcome(machine, write: false) == (Outcome.done, 0))
        machine.enter(level: 3)
        #expect(try outcome(machine, write: true) == (14, 7))
        machine.unmap(Self.page)
        machine.enter(level: 3)
        #expect(try outcome(machine, write: true) == (14, 6))
    }

    @Test func `the supervisor's TLB entries do not serve the user`() throws {
        let machine = try twoPages([.writable])
        machine.load(access(write: false))
        machine.cpu.writeState(machine.cpu.readState())
        #expect(try machine.run(from: GuestCode.start).vector == Outcome.done)
        machine.enter(level: 3)
        let outcome = try machine.run(from: GuestCode.start)
        #expect(outcome.vector == 14)
        #expect(outcome.errorCode == 5)
    }

    @Test func `SMAP keeps the supervisor from user pages but under AC`() throws {
        let machine = try twoPages([.writable, .user])
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 4, [.writable])
        machine.context.pointee.cr4 |= CR4.smap
        #expect(try outcome(machine, write: false) == (14, 1))
        #expect(try outcome(machine, write: true) == (14, 3))
        var code = GuestCode()
        code.load(.rsi, Self.page)
        code.emit(0x0F, 0x01, 0xCB)  // stac
        code.emit(0x48, 0x8B, 0x06)
        code.emit(0x0F, 0x01, 0xCA)  // clac
        code.label("fault")
        code.emit(0x48, 0x8B, 0x1E)
        code.done()
        machine[.rsp] = TestMachine.stack
        let outcome = try machine.run(code)
        #expect(machine[.rax] == 0x1111)
        #expect(outcome.rip == code.address(of: "fault"))
        #expect(outcome.errorCode == 1)
    }

    @Test func `execution needs NX clear, and SMEP a supervisor page`() throws {
        let machine = try twoPages([.noExecute])
        machine.setData(0, 0x80CD)
        var code = GuestCode()
        code.load(.rsi, Self.page)
        code.emit(0xFF, 0xE6)  // jmp rsi
        func check(_ vector: Int, _ error: UInt32) throws {
            let outcome = try machine.run(code)
            #expect(outcome.vector == vector)
            #expect(outcome.errorCode == error)
            if vector == 14 {
                #expect(outcome.rip == Self.page)
                #expect(outcome.address == Self.page)
            }
        }
        try check(14, 0x11)
        machine.map(Self.page, to: TestMachine.dataPhysical, [.user])
        try check(Outcome.done, 0)
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 4, [.writable])
        machine.context.pointee.cr4 |= CR4.smep
        try check(14, 0x11)
        machine.unmap(Self.page)
        try check(14, 0x10)
    }

    @Test func `a reserved bit in an entry is a fault of its own`() throws {
        let machine = try twoPages()
        machine.memory.store(machine.entryAddress(Self.page), TestMachine.dataPhysical | 3 | 1 << 51)
        #expect(try outcome(machine, write: false) == (14, 9))
        #expect(try outcome(machine, write: true) == (14, 11))
    }

    // MARK: Accessed and dirty

    @Test func `a read sets accessed, a write behind it sets dirty`() throws {
        let machine = try twoPages()
        machine.load(access(write: false))
        try machine.run(from: GuestCode.start)
        #expect(machine.entry(Self.page) & (Self.accessed | Self.dirty) == Self.accessed)
        // The entry is in the TLB now, for reading.
        var code = GuestCode(at: Self.second)
        code.load(.rsi, Self.page)
        code.emit(0x48, 0x89, 0x06)
        code.done()
        machine.load(code)
        try machine.run(from: code.base)
        #expect(machine.entry(Self.page) & (Self.accessed | Self.dirty) == Self.accessed | Self.dirty)
    }

    @Test func `a write that faults sets nothing`() throws {
        let machine = try twoPages([])
        #expect(try outcome(machine, write: true) == (14, 3))
        #expect(machine.entry(Self.page) & Self.dirty == 0)
    }

    @Test func `a flag that was cleared is set again behind INVLPG`() throws {
        let machine = try twoPages()
        try machine.run(access(write: true))
        machine.memory.store(machine.entryAddress(Self.page), machine.entry(Self.page) & ~(Self.accessed | Self.dirty))
        var code = GuestCode(at: Self.second)
        code.load(.rsi, Self.page)
        code.emit(0x0F, 0x01, 0x3E)
        code.emit(0x48, 0x89, 0x06)
        code.done()
        machine.load(code)
        try machine.run(from: code.base)
        #expect(machine.entry(Self.page) & (Self.accessed | Self.dirty) == Self.accessed | Self.dirty)
    }

    // MARK: Two pages at once

    /// Stores and loads of `rsi`, which leads across a page border.
    static let crossing: [(name: String, bytes: [UInt8], isWrite: Bool, isRead: Bool)] = [
        ("mov [rsi], rax", [0x48, 0x89, 0x06], true, false), ("mov rax, [rsi]", [0x48, 0x8B, 0x06], false, true),
        ("add [rsi], rax", [0x48, 0x01, 0x06], true, true), ("xchg [rsi], rax", [0x48, 0x87, 0x06], true, true),
        ("lock xadd [rsi], rax", [0xF0, 0x48, 0x0F, 0xC1, 0x06], true, true),
        ("movups [rsi], xmm0", [0x0F, 0x11, 0x06], true, false), ("vmovups [rsi], ymm0", [0xC5, 0xFC, 0x11, 0x06], true, false),
        ("fst qword [rsi]", [0xDD, 0x16], true, false), ("mov [rsi], r13d", [0x44, 0x89, 0x2E], true, false),
        ("push", [0x48, 0x8D, 0x66, 8, 0x50], true, false), ("stosq", [0x48, 0x89, 0xF7, 0x48, 0xAB], true, false),
        ("movsq", [0x48, 0x8D, 0x3D, 0, 1, 0, 0, 0x48, 0xA5], false, true),
    ]

    @Test(arguments: crossing.indices) func `a fault in either page leaves the other one alone`(index: Int) throws {
        let (name, bytes, isWrite, isRead) = Self.crossing[index]
        for missing in 0..<2 as Range<UInt64> {
            let machine = try TestMachine.small()
            machine.map(Self.page, to: TestMachine.dataPhysical + 0x2000, [.writable])
            machine.map(Self.page + 0x1000, to: TestMachine.dataPhysical, [.writable])
            machine.unmap(Self.page + missing * 0x1000)
            var code = GuestCode()
            code.load(.rsi, Self.page + 0xFFD)
            code.emit(0xD9, 0xE8)  // fld1
            for byte in bytes { code.emit(byte) }
            code.done()
            machine[.rax] = 0x1234_5678_9ABC_DEF0
            machine.setData(0, 0)
            machine.setData(0x2FF8, 0)
            let outcome = try machine.run(code)
            #expect(outcome.vector == 14, "\(name)")
            #expect(outcome.errorCode == (isWrite ? 2 : 0), "\(name)")
            #expect(outcome.address == (missing == 0 ? Self.page + 0xFFD : Self.page + 0x1000), "\(name)")
            #expect(machine.data(0) == 0)
            #expect(machine.data(0x2FF8) == 0)
            if isRead && isWrite { #expect(machine[.rax] == 0x1234_5678_9ABC_DEF0) }
        }
    }

    @Test func `an access across pages that lie apart is put together`() throws {
        let machine = try TestMachine.small()
        machine.map(Self.page, to: TestMachine.dataPhysical + 0x2000, [.writable])
        machine.map(Self.page + 0x1000, to: TestMachine.dataPhysical, [.writable])
        machine.setData(0x2FF8, 0x1122_3344_5566_7788)
        machine.setData(0, 0x99AA_BBCC_DDEE_FF00)
        var code = GuestCode()
        code.load(.rsi, Self.page + 0xFFD)
        code.emit(0x48, 0x8B, 0x06)  // mov rax, [rsi]
        code.emit(0x48, 0xF7, 0x16)  // not qword [rsi]
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 0xCCDD_EEFF_0011_2233)
        #expect(machine.data(0x2FF8) == 0xEEDD_CC44_5566_7788)
        #expect(machine.data(0) == 0x99AA_BB33_2211_00FF)
    }
}
