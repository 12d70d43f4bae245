import Synchronization
import Testing
import TranslatorEngine
import VMM

/// Each exception that a guest's instruction can raise: its vector, its error code, and whether the frame points at the
/// instruction or behind it (SDM Vol. 3, table 6-1).
@Suite struct GuestVectorTests {
    struct Row: Sendable, CustomTestStringConvertible {
        var name: String
        /// Run before it without any fault.
        var before: [UInt8] = []
        var bytes: [UInt8]
        var vector: Int
        var code: UInt32 = 0
        var isTrap = false
        var isSupervisor = false
        var testDescription: String { name }
    }

    /// rbx: data; rcx: 0; rdx: an address that is not mapped; rsi: one that is not canonical; rdi: selectors.
    static let rows: [Row] = [
        Row(name: "division by zero", bytes: [0xF7, 0xF1], vector: 0),
        Row(name: "INT1", bytes: [0xF1], vector: 1, isTrap: true),
        Row(name: "single step", before: [0x9C, 0x80, 0x4C, 0x24, 0x01, 0x01, 0x9D], bytes: [0x90], vector: 1, isTrap: true),
        Row(name: "INT3", bytes: [0xCC], vector: 3, isTrap: true),
        Row(name: "INT 3", bytes: [0xCD, 0x03], vector: 3, isTrap: true),
        Row(name: "UD2", bytes: [0x0F, 0x0B], vector: 6),
        Row(name: "LOCK NOP", bytes: [0xF0, 0x90], vector: 6),
        Row(name: "data segment that is not present", bytes: [0x8E, 0xDF], vector: 11, code: 0x18),
        Row(name: "segment beyond the table", before: [0xBF, 0x00, 0x01, 0x00, 0x00], bytes: [0x8E, 0xDF], vector: 13, code: 0x100),
        Row(name: "stack segment that is not present", bytes: [0x8E, 0xD7], vector: 12, code: 0x18, isSupervisor: true),
        Row(name: "push to what is not canonical", before: [0x48, 0x89, 0xF4], bytes: [0x50], vector: 12),
        Row(name: "read of what is not canonical", bytes: [0x48, 0x8B, 0x06], vector: 13),
        Row(name: "bad CR0", before: [0xB8, 0, 0, 0, 0x80], bytes: [0x0F, 0x22, 0xC0], vector: 13, isSupervisor: true),
        Row(name: "INT of a gate that is not present", bytes: [0xCD, 0x40], vector: 11, code: 0x40 << 3 | 2),
        Row(name: "read of a page that is not there", bytes: [0x48, 0x8B, 0x02], vector: 14, code: 0),
        Row(name: "write to a page that is not there", bytes: [0x48, 0x89, 0x02], vector: 14, code: 2),
        Row(name: "read-modify-write of a page that is not there", bytes: [0x48, 0xFF, 0x02], vector: 14, code: 2),
        Row(
            name: "x87 exception", before: [0xD9, 0x6B, 0x10, 0xD9, 0xE8, 0xD8, 0x73, 0x20], bytes: [0x9B], vector: 16),
        Row(name: "misaligned SSE operand", bytes: [0x0F, 0x28, 0x43, 0x08], vector: 13),
        Row(name: "SSE exception", before: [0x0F, 0xAE, 0x53, 0x18], bytes: [0x0F, 0x5E, 0x43, 0x20], vector: 19),
    ]

    @Test(arguments: rows, [0, 3]) func `vector, error code and place are the manual's`(row: Row, level: Int) throws {
        if row.isSupervisor && level == 3 { return }
        let machine = try TestMachine.small()
        // A data segment and a gate that are not present.
        machine.memory.store(TestMachine.gdt + 0x18, (level == 0 ? 0x00CF_1300_0000_FFFF : 0x00CF_7300_0000_FFFF) as UInt64)
        machine.memory.store(TestMachine.idt + 0x40 * 16 + 5, 0x6E as UInt8)
        machine.enter(level: level)
        machine[.rbx] = TestMachine.data
        machine[.rcx] = 0
        machine[.rdx] = 0x1234_5000
        machine[.rsi] = 0x8000_0000_0000_0000
        machine[.rdi] = 0x18
        machine.setData(0x10, 0x340)
        machine.setData(0x18, 0)
        machine.setData(0x20, 0)
        var code = GuestCode()
        for byte in row.before { code.emit(byte) }
        code.label("it")
        for byte in row.bytes { code.emit(byte) }
        code.label("behind")
        code.emit(0x90)
        code.done()
        let outcome = try machine.run(code)
        // A user's fault is told apart in a page fault's code.
        let user: UInt32 = row.vector == 14 && level == 3 ? 4 : 0
        #expect(outcome.vector == row.vector, "\(outcome)")
        #expect(outcome.errorCode == row.code | user)
        #expect(outcome.rip == code.address(of: row.isTrap ? "behind" : "it"))
        // RF is set for faults, so that an instruction breakpoint there does not hit again.
        #expect((outcome.rflags & RFLAGS.rf != 0) == !row.isTrap)
        if row.vector == 14 { #expect(outcome.address == 0x1234_5000) }
    }

    @Test(arguments: [0xD9, 0x9B] as [UInt8]) func `x87 instructions without a coprocessor's state are #NM`(opcode: UInt8) throws {
        let machine = try TestMachine.small()
        machine.context.pointee.cr0 |= CR0.ts
        machine.cpu.modeChanged()
        var code = GuestCode()
        code.emit(0x90)
        code.label("it")
        code.emit(opcode, 0xE8)
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 7)
        #expect(outcome.rip == code.address(of: "it"))
    }

    // MARK: Shadows

    @Test func `NMI waits for the instruction behind a load of SS`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0x48, 0xFF, 0xC0)  // inc rax
        code.label("after")
        code.emit(0x48, 0xFF, 0xC0)
        code.done()
        machine[.rax] = 0
        // As the load has left it.
        machine.context.pointee.interruptShadow = true
        machine.context.pointee.stackShadow = true
        machine.cpu.injectNMI()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 2)
        #expect(outcome.rip == code.address(of: "after"))
        #expect(machine[.rax] == 1)
    }

    @Test(arguments: [true, false]) func `LSS has no shadow of its own, MOV SS has`(isMove: Bool) throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xFB)  // sti
        if isMove { code.emit(0x8E, 0xD1) } else { code.emit(0x0F, 0xB2, 0x0B) }  // mov ss, ecx; lss ecx, [rbx]
        code.label("behind")
        code.emit(0x48, 0xFF, 0xC0)  // inc rax
        code.label("later")
        code.done()
        machine[.rbx] = TestMachine.data
        machine[.rcx] = 0
        machine.setData(0, 0)
        machine.interrupts.raise(0x31)
        machine.cpu.interruptRequested()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 0x31)
        #expect(outcome.rip == code.address(of: isMove ? "later" : "behind"))
    }

    @Test func `exception behind STI comes before the interrupt that waits, and ends the shadow`() throws {
        let machine = try TestMachine.small()
        var code = GuestCode()
        code.emit(0xFB)  // sti
        code.label("it")
        code.emit(0x0F, 0x0B)  // ud2
        machine.interrupts.raise(0x31)
        machine.cpu.interruptRequested()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 6)
        #expect(outcome.rip == code.address(of: "it"))
        #expect(!machine.context.pointee.interruptShadow)
        #expect(machine.interrupts.taken.load(ordering: .relaxed) == 0)
    }
}
