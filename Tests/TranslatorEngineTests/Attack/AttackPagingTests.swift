import Foundation
import Testing
import VMM

@testable import TranslatorEngine

/// Page tables that mean harm: they lead to themselves, into code, to device memory, past RAM's end and to the top of
/// physical space, and change under the accesses that use them. A stale translation is the guest's right and leads to guest
/// RAM.
@Suite struct AttackPagingTests {
    private static let window: UInt64 = 0x90_0000

    /// Physical addresses that no RAM is at, and some that RAM is at.
    private static func targets(_ machine: TestMachine) -> [UInt64] {
        [
            machine.memory.byteCount, machine.memory.byteCount - 4096, 0xFEE0_0000, 0xFFFF_F000, 0x1_0000_0000, 0x100_0000_0000,
            0x3F_FFFF_F000, 0x7F_FFFF_F000, 0x000F_FFFF_FFFF_F000, 0x0008_0000_0000_0000, TestMachine.pageTables, 0,
        ]
    }

    @Test func `pages anywhere in physical space read and write as RAM, as nothing, or fault`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        for target in Self.targets(machine) where target != TestMachine.pageTables && target != 0 {
            for size in 0..<4 {
                machine.map(Self.window, to: target & 0x000F_FFFF_FFFF_F000, [.writable])
                machine.map(Self.window + 4096, to: target & 0x000F_FFFF_FFFF_F000, [.writable])
                var code = GuestCode()
                code.load(.rbx, Self.window + [0, 0xFF8, 0xFFC, 0x1000][size])
                code.load(.rax, 0x1122_3344_5566_7788)
                code.emit(0x48, 0x89, 0x03)  // mov [rbx], rax
                code.emit(0x48, 0x8B, 0x0B)  // mov rcx, [rbx]
                code.emit(0x0F, 0x10, 0x03)  // movups xmm0, [rbx]
                code.emit(0x0F, 0x11, 0x03)
                code.emit(0xF0, 0x48, 0x0F, 0xC1, 0x03)  // lock xadd [rbx], rax
                code.emit(0xDD, 0x33)  // fnsave [rbx]
                code.emit(0xDD, 0x23)  // frstor [rbx]
                code.done()
                let outcome = try machine.run(code)
                let text = "\(String(target, radix: 16)): \(outcome), rcx \(String(machine[.rcx], radix: 16))"
                if outcome.vector == 14 {
                    // Beyond the physical width: a reserved bit.
                    #expect(outcome.errorCode & 8 != 0 && target >> 36 != 0, "\(text)")
                } else if target < machine.memory.byteCount {
                    #expect(outcome.vector == Outcome.done && (machine[.rcx] == 0x1122_3344_5566_7788 || size == 2), "\(text)")
                } else if outcome.vector == Outcome.done {
                    #expect(machine[.rcx] == ~0, "\(text)")
                }
                fortress.checkAll(text)
            }
        }
    }

    @Test func `code from nowhere is no instruction`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        for target in Self.targets(machine).filter({ $0 >= machine.memory.byteCount && $0 >> 36 == 0 }) {
            machine.map(Self.window, to: target, [.writable])
            for offset in [0, 1, 0xFFF] as [UInt64] {
                var code = GuestCode()
                code.load(.rax, Self.window + offset)
                code.emit(0xFF, 0xE0)
                let outcome = try machine.run(code)
                #expect(outcome.vector == 6 && outcome.rip == Self.window + offset, "\(outcome)")
                fortress.check()
            }
        }
        // An instruction that begins in RAM's last page and goes on where there is none.
        machine.map(Self.window, to: machine.memory.byteCount - 4096, count: 2, [.writable])
        machine.memory.write([0x48, 0xB8], at: machine.memory.byteCount - 2)
        let outcome = try machine.run(from: Self.window + 0xFFE)
        #expect(outcome.vector == Outcome.done || outcome.vector == 6, "\(outcome)")
        fortress.check()
        // And one at the end of the low half, at the end of all addresses, and code that falls off both.
        machine.map(0x7FFF_FFFF_F000, to: 0x40_0000, [.writable])
        machine.map(0xFFFF_FFFF_FFFF_F000, to: 0x40_0000, [.writable])
        machine.memory.write([UInt8](repeating: 0x90, count: 4094) + [0x48, 0xB8], at: 0x40_0000)
        for start in [0x7FFF_FFFF_F000, 0x7FFF_FFFF_FFF0, 0xFFFF_FFFF_FFFF_FFF0] as [UInt64] {
            let outcome = try machine.run(from: start)
            #expect(outcome.vector == 13 || outcome.vector == 14, "\(outcome)")
            #expect(outcome.rip == start | 0xFFF - 1, "\(outcome)")
            fortress.check()
        }
        machine.memory.write([UInt8](repeating: 0x90, count: 4096), at: 0x40_0000)
        let off = try machine.run(from: 0x7FFF_FFFF_F000)
        #expect(off.vector == 13 && off.rip == 0x8000_0000_0000, "\(off)")
        fortress.checkAll()
    }

    @Test func `page tables that lead to themselves can be read and rewritten through themselves`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        // Entry 256 + 255 of the top table is the top table.
        machine.memory.store(TestMachine.pageTables + 511 * 8, TestMachine.pageTables | 3)
        let top: UInt64 = 0xFFFF_FFFF_FFFF_F000
        var code = GuestCode()
        code.load(.rbx, top)
        code.emit(0x48, 0x8B, 0x83, 0xF8, 0x0F, 0, 0)  // mov rax, [rbx + 0xFF8]
        // The window's page-table entry by way of the recursion.
        let entry = 0xFFFF_FF80_0000_0000 | (Self.window >> 9 & 0x7F_FFFF_FFF8)
        code.load(.rsi, entry)
        code.load(.rdi, Self.window)
        code.load(.rcx, 64)
        code.label("loop")
        code.emit(0x48, 0x89, 0xCA)  // mov rdx, rcx
        code.emit(0x48, 0xC1, 0xE2, 12)  // shl rdx, 12
        code.emit(0x48, 0x81, 0xCA, 3, 0, 0x20, 0)  // or rdx, 0x200003
        code.emit(0x48, 0x89, 0x16)  // mov [rsi], rdx
        code.emit(0x0F, 0x01, 0x3F)  // invlpg [rdi]
        code.emit(0x48, 0x89, 0x0F)  // mov [rdi], rcx
        code.emit(0x48, 0x03, 0x1F)  // add rbx, [rdi]
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        _ = machine.entryAddress(Self.window)
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] & ~0x60 == TestMachine.pageTables | 3)
        #expect(machine[.rbx] == top &+ 64 * 65 / 2)
        for page in 1...64 as ClosedRange<UInt64> {
            #expect(machine.memory.load(0x20_0000 | page << 12, as: UInt64.self) == page)
        }
        fortress.checkAll()
    }

    @Test func `a page table that is code at the same time runs and translates`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        // The table for the window, seen by the code below at an address of its own; its unused entries are code.
        let entry = machine.entryAddress(Self.window)
        let table = entry & ~0xFFF
        let view: UInt64 = 0xA0_0000
        machine.map(view, to: table, [.writable])
        machine.map(Self.window, to: TestMachine.dataPhysical, [.writable])
        let inside = GuestCode.start + 0x3000
        machine.map(inside, to: table, [.writable])
        // In the table's first entries (of linear addresses that nobody uses).
        var part = GuestCode(at: inside)
        part.emit(0x48, 0xFF, 0x03)  // inc qword [rbx]: sets the dirty flag in this very page
        part.emit(0x48, 0x8B, 0x03)  // mov rax, [rbx]
        part.emit(0xC3)
        machine.memory.write(part.linked, at: table)
        var code = GuestCode()
        code.load(.rbx, Self.window)
        code.load(.rcx, 100)
        code.load(.rsi, view + (entry & 0xFFF))
        code.load(.rdi, inside)
        code.label("loop")
        code.emit(0x48, 0x81, 0x26, 0x9F, 0xFF, 0xFF, 0xFF)  // and qword [rsi], ~0x60: not accessed, not dirty
        code.emit(0x0F, 0x01, 0x3B)  // invlpg [rbx]
        code.emit(0xFF, 0xD7)  // call rdi
        code.emit(0x48, 0x8B, 0x16)  // mov rdx, [rsi]
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        machine.load(code)
        machine.memory.write(part.linked, at: table)
        machine.cpu.writeState(machine.cpu.readState())
        machine[.rsp] = TestMachine.stack
        let outcome = try machine.run(from: code.base)
        #expect(outcome.vector == Outcome.done, "\(outcome)")
        #expect(machine[.rax] == 100)
        #expect(machine[.rdx] & 0x60 == 0x60)
        fortress.checkAll()
    }

    /// The walk's own writes change code: accessed flags in bytes that are instructions.
    @Test func `an accessed flag set in code changes the code`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        let entry = machine.entryAddress(Self.window)
        let inside = GuestCode.start + 0x3000
        machine.map(inside, to: entry & ~0xFFF, [.writable])
        // The entry itself is the immediate of a MOV: mov rax, imm64; ret.
        let at = entry & 0xFFF
        machine.memory.write([0x48, 0xB8], at: entry - 2)
        machine.memory.store(entry, TestMachine.dataPhysical | 3)
        machine.memory.write([0xC3], at: entry + 8)
        var code = GuestCode()
        code.load(.rdi, inside + at - 2)
        code.load(.rbx, Self.window)
        code.emit(0xFF, 0xD7)  // call rdi
        code.emit(0x48, 0x89, 0xC2)  // mov rdx, rax
        code.emit(0x48, 0x8B, 0x0B)  // mov rcx, [rbx]
        code.emit(0x0F, 0xA2)  // cpuid: as code that was changed by another agent wants it
        code.emit(0x48, 0x8D, 0x3D)
        code.reference("again")
        code.load(.rdi, inside + at - 2)
        code.label("again")
        code.emit(0xFF, 0xD7)
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == Outcome.done, "\(outcome)")
        #expect(machine[.rax] == TestMachine.dataPhysical | 0x23)
        fortress.checkAll()
    }

    /// Another thread rewrites the tables while the CPU uses them.
    @Test func `tables that change under the accesses never lead out of RAM`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        let targets = Self.targets(machine)
        let entry = machine.entryAddress(Self.window)
        machine.map(Self.window + 4096, to: TestMachine.dataPhysical, [.writable])
        let directory = machine.memory.load(TestMachine.pageTables, as: UInt64.self) ?? 0
        var code = GuestCode()
        code.load(.rcx, 150_000)
        code.load(.rbx, Self.window)
        code.label("loop")
        code.emit(0x48, 0x8B, 0x03)  // mov rax, [rbx]
        code.emit(0x48, 0x89, 0x83, 0xFC, 0x0F, 0, 0)  // mov [rbx + 0xFFC], rax: into the next page
        code.emit(0x0F, 0x10, 0x43, 0x40)
        code.emit(0xF6, 0xC1, 7)  // test cl, 7
        code.jump(if: 5, "keep")
        code.emit(0x0F, 0x01, 0x3B)  // invlpg [rbx]
        code.label("keep")
        code.emit(0x48, 0xFF, 0xC9)
        code.jump(if: 5, "loop")
        code.done()
        machine.load(code)
        machine.cpu.writeState(machine.cpu.readState())
        let memory = machine.memory
        let isOver = Flag()
        defer { isOver.raise() }
        let hasEnded = Flag()
        Thread {
            var random = SiliconRandom(seed: 7)
            while !isOver.isRaised {
                // Not the tables of the code itself, which would end the run at once.
                let target = random.pick(targets.filter { $0 != 0 && $0 != TestMachine.pageTables })
                memory.store(entry, target & 0x000F_FFFF_FFFF_F000 | 3 | (random.percent(20) ? 4 : 0))
                if random.percent(10) { memory.store(entry, 0 as UInt64) }
            }
            memory.store(TestMachine.pageTables, directory)
            hasEnded.raise()
        }.start()
        var faults = 0
        machine[.rsp] = TestMachine.stack
        var rip = code.base
        for _ in 0..<300 {
            let outcome = try machine.run(from: rip)
            if outcome.vector == Outcome.done { break }
            #expect(outcome.vector == 14, "\(outcome)")
            faults += 1
            // Behind the interrupted instruction's place the loop goes on, as a handler would let it.
            rip = outcome.rip
            machine.enter(level: 0)
        }
        isOver.raise()
        hasEnded.wait()
        #expect(faults > 0)
        fortress.checkAll()
    }
}
