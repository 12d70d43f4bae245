import Testing
import TranslatorEngine
import VMM

/// PCIDs and INVPCID (SDM Vol. 3, 4.10.1 and 4.10.4; Vol. 2, INVPCID).
@Suite struct GuestAddressSpaceTests {
    /// Under an entry of its own in the top table.
    static let page: UInt64 = 0x100_0000_0000
    static let firstRoot: UInt64 = TestMachine.pageTables
    static let secondRoot: UInt64 = 0x38_000
    static let keep: UInt64 = 1 << 63

    /// A machine with PCIDs on and two address spaces, whose `page` leads to data pages 1 and 2.
    private func machine() throws -> TestMachine? {
        let machine = try TestMachine.small(model: .host)
        guard machine.cpu.policy.features.contains(.pcid) && machine.cpu.policy.features.contains(.invpcid) else { return nil }
        machine.context.pointee.cr4 |= CR4.pcide
        machine.map(Self.page, to: TestMachine.dataPhysical + 0x1000, [.writable])
        // The second root has the first's entries, but for the page's own.
        for index in 0..<512 as Range<UInt64> {
            machine.memory.store(
                Self.secondRoot + index * 8, machine.memory.load(Self.firstRoot + index * 8, as: UInt64.self) ?? 0)
        }
        machine.memory.store(Self.secondRoot + (Self.page >> 39 & 511) * 8, 0 as UInt64)
        let linear = Self.page
        machine.map(linear, to: TestMachine.dataPhysical + 0x2000, [.writable], root: Self.secondRoot)
        machine.setData(0x1000, 0x11)
        machine.setData(0x2000, 0x22)
        machine.setData(0x3000, 0x33)
        machine[.rbx] = Self.page
        return machine
    }
    private func switchTo(_ root: UInt64, _ pcid: UInt64, keep: Bool, _ code: inout GuestCode) {
        code.load(.rax, root | pcid | (keep ? Self.keep : 0))
        code.emit(0x0F, 0x22, 0xD8)  // mov cr3, rax
    }
    private static let read: [UInt8] = [0x48, 0x8B, 0x0B]  // mov rcx, [rbx]
    /// Changes the first space's page to data page 3.
    private func change(_ machine: TestMachine, _ code: inout GuestCode) {
        machine.map(0x70_0000_0000, to: machine.entryAddress(Self.page) & ~0xFFF, [.writable])
        machine.memory.store(
            Self.secondRoot + (0x70_0000_0000 >> 39 & 511) * 8,
            machine.memory.load(Self.firstRoot + (0x70_0000_0000 >> 39 & 511) * 8, as: UInt64.self) ?? 0)
        code.load(.rdx, 0x70_0000_0000 | (machine.entryAddress(Self.page) & 0xFFF))
        code.load(.rax, TestMachine.dataPhysical + 0x3000 | 3)
        code.emit(0x48, 0x89, 0x02)  // mov [rdx], rax
    }
    /// `invpcid rsi, [rdi]` with a descriptor in data.
    private func invalidate(_ machine: TestMachine, type: UInt64, pcid: UInt64, _ linear: UInt64, _ code: inout GuestCode) {
        machine.setData(0x100, pcid)
        machine.setData(0x108, linear)
        code.load(.rsi, type)
        code.load(.rdi, TestMachine.data + 0x100)
        code.emit(0x66, 0x0F, 0x38, 0x82, 0x37)
    }
    private func emit(_ bytes: [UInt8], _ code: inout GuestCode) { for byte in bytes { code.emit(byte) } }

    @Test func `each address space has its own translations, and CR3 reads without bit 63`() throws {
        guard let machine = try machine() else { return }
        var code = GuestCode()
        for (root, pcid, slot) in [
            (Self.firstRoot, 1, 0x200), (Self.secondRoot, 2, 0x208), (Self.firstRoot, 1, 0x210), (Self.secondRoot, 2, 0x218),
        ] as [(UInt64, UInt64, UInt64)] {
            switchTo(root, pcid, keep: true, &code)
            emit(Self.read, &code)
            code.load(.rdx, TestMachine.data + slot)
            code.emit(0x48, 0x89, 0x0A)  // mov [rdx], rcx
        }
        code.emit(0x0F, 0x20, 0xD8)  // mov rax, cr3
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect([0x200, 0x208, 0x210, 0x218].map { machine.data($0) } == [0x11, 0x22, 0x11, 0x22])
        #expect(machine[.rax] == Self.secondRoot | 2)
    }

    /// What makes a changed entry of the first space (PCID 1) seen when it comes back with its translations kept.
    enum Flush: CaseIterable { case cr3, address, space, everything, allSpaces, cr4, invlpg }

    @Test(arguments: Flush.allCases)
    func `a changed entry is seen after each way of flushing`(flush: Flush) throws {
        guard let machine = try machine() else { return }
        var code = GuestCode()
        switchTo(Self.firstRoot, 1, keep: false, &code)
        emit(Self.read, &code)
        if flush != .invlpg { switchTo(Self.secondRoot, 2, keep: true, &code) }
        change(machine, &code)
        switch flush {
        case .cr3: break
        case .address: invalidate(machine, type: 0, pcid: 1, Self.page, &code)
        case .space: invalidate(machine, type: 1, pcid: 1, 0, &code)
        case .everything: invalidate(machine, type: 2, pcid: 0, 0, &code)
        case .allSpaces: invalidate(machine, type: 3, pcid: 0, 0, &code)
        case .cr4:
            code.emit(0x0F, 0x20, 0xE0, 0x48, 0x89, 0xC2, 0x34, 0x80)  // mov rax, cr4; mov rdx, rax; xor al, PGE
            code.emit(0x0F, 0x22, 0xE0, 0x0F, 0x22, 0xE2)  // mov cr4, rax; mov cr4, rdx
        case .invlpg:
            code.emit(0x0F, 0x01, 0x3B)  // invlpg [rbx]
            switchTo(Self.secondRoot, 2, keep: true, &code)
        }
        switchTo(Self.firstRoot, 1, keep: flush != .cr3, &code)
        emit(Self.read, &code)
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rcx] == 0x33)
    }

    @Test func `bad requests are general protection faults`() throws {
        for (type, pcid, linear, pcide) in [
            (4, 0, 0, true), (0, 0x1000, 0, true), (0, 1, 1 << 62, true), (0, 1, 0, false), (1, 1, 0, false), (2, 1 << 12, 0, true),
        ] as [(UInt64, UInt64, UInt64, Bool)] {
            guard let machine = try machine() else { return }
            if !pcide { machine.context.pointee.cr4 &= ~CR4.pcide }
            var code = GuestCode()
            invalidate(machine, type: type, pcid: pcid, linear, &code)
            code.done()
            #expect(try machine.run(code).vector == 13, "type \(type)")
        }
        guard let machine = try machine() else { return }
        machine.enter(level: 3)
        var code = GuestCode()
        invalidate(machine, type: 2, pcid: 0, 0, &code)
        #expect(try machine.run(code).vector == 13)
    }

    @Test func `PCIDE wants PCID 0 first, bit 63 wants PCIDE, and PG stays with it`() throws {
        guard let machine = try machine() else { return }
        var code = GuestCode()
        code.emit(0x0F, 0x20, 0xC0)  // mov rax, cr0
        code.emit(0x48, 0x0F, 0xBA, 0xF0, 31)  // btr rax, 31
        code.emit(0x0F, 0x22, 0xC0)
        #expect(try machine.run(code).vector == 13)
        machine.context.pointee.cr4 &= ~CR4.pcide
        code = GuestCode()
        switchTo(Self.firstRoot, 0, keep: true, &code)
        #expect(try machine.run(code).vector == 13)
        code = GuestCode()
        switchTo(Self.firstRoot, 8, keep: false, &code)
        code.emit(0x0F, 0x20, 0xE0)  // mov rax, cr4
        code.emit(0x48, 0x0F, 0xBA, 0xE8, 17)  // bts rax, 17
        code.label("cr4")
        code.emit(0x0F, 0x22, 0xE0)
        let outcome = try machine.run(code)
        #expect(outcome.vector == 13)
        #expect(outcome.rip == code.address(of: "cr4"))
    }

    @Test func `INVPCID is undefined where CPUID hides it`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x66, 0x0F, 0x38, 0x82, 0x37)
        #expect(try machine.run(code).vector == 6)
    }
}
