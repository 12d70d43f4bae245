import Testing
import VMM

@testable import TranslatorEngine

/// Addresses at the edges: past memory's end, 4 GB, the canonical hole, 2^64. The outcome is what hardware gives, and no
/// access gets out of guest RAM.
@Suite struct AttackAddressTests {
    /// Pages that are mapped beside code, data and stack: one before each edge, and 0. RAM's last page is the first.
    private static let mapped: [UInt64] = [
        0x7FFF_FFFF_F000, 0xFFFF_F000, 0xFFFF_FFFF_FFFF_F000, 0, 0xFFFF_8000_0000_0000 + 0x40_0000, 0x90_0000,
    ]
    private static let edges: [UInt64] = [
        0x8000_0000_0000, 0x1_0000_0000, 0, 0xFFFF_8000_0000_0000, 0x90_1000, 0x8000_0000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF,
    ]

    private static func machine() throws -> TestMachine {
        let machine = try TestMachine.small()
        for (index, page) in mapped.enumerated() where page >> 47 != 0x1FFFF || page >= 0xFFFF_FFFF_0000_0000 {
            // The last page of RAM, then those before it.
            machine.map(page, to: machine.memory.byteCount - UInt64(index + 1) * 4096, [.writable, .user])
        }
        // The first page of 4 GB is device memory.
        machine.map(0x1_0000_0000, to: machine.memory.byteCount, [.writable, .user])
        return machine
    }

    /// What an access must end with: `nil` when it goes through.
    private static func expected(_ machine: TestMachine, _ address: UInt64, _ size: UInt64, stack: Bool) -> (vector: Int, address: UInt64)? {
        func isCanonical(_ linear: UInt64) -> Bool { linear >> 47 == 0 || linear >> 47 == 0x1FFFF }
        let last = address &+ size &- 1
        // Which part faults first is hardware's secret only when both would.
        if !isCanonical(address) { return (stack ? 12 : 13, 0) }
        if machine.entryIfMapped(address) & 1 == 0 { return (14, address) }
        if !isCanonical(last) { return (stack ? 12 : 13, 0) }
        if machine.entryIfMapped(last) & 1 == 0 { return (14, last & ~0xFFF) }
        return nil
    }

    struct Form {
        let name: String
        let size: UInt64
        var writes = false
        var stack = false
        /// Sets up the address in registers or segment bases, and gives the instruction.
        let make: (TestMachine, UInt64) -> [UInt8]
    }

    nonisolated(unsafe) static let forms: [Form] = [
        Form(name: "mov al, [rbx]", size: 1) { $0[.rbx] = $1; return [0x8A, 0x03] },
        Form(name: "mov rax, [rbx]", size: 8) { $0[.rbx] = $1; return [0x48, 0x8B, 0x03] },
        Form(name: "mov [rbx], rax", size: 8, writes: true) { $0[.rbx] = $1; return [0x48, 0x89, 0x03] },
        Form(name: "mov [rbx + disp], eax", size: 4, writes: true) { $0[.rbx] = $1 &+ 0x7000_0000; return [0x89, 0x83, 0, 0, 0, 0x90] },
        Form(name: "mov rax, [r13 + r14 * 8]", size: 8) {
            $0[.r14] = 0x1FFF_FFFF_FFFF_FFFF
            $0[.r13] = $1 &+ 8
            return [0x4B, 0x8B, 0x44, 0xF5, 0]
        },
        Form(name: "mov r15, [r15]", size: 8) { $0[.r15] = $1; return [0x4D, 0x8B, 0x3F] },
        Form(name: "mov rax, [rsp + rbx]", size: 8, stack: true) {
            $0[.rbx] = $1 &- (TestMachine.stack - 64)
            return [0x48, 0x8B, 0x04, 0x1C]
        },
        Form(name: "mov rax, gs:[rbx]", size: 8) {
            $0.context.pointee.gsBase = 0xFFFF_FFFF_FFFF_FF00
            $0[.rbx] = $1 &+ 0x100
            return [0x65, 0x48, 0x8B, 0x03]
        },
        Form(name: "mov fs:[rbx], rax", size: 8, writes: true) {
            $0.context.pointee.fsBase = 0x7FFF_FFFF_0000
            $0[.rbx] = $1 &- 0x7FFF_FFFF_0000
            return [0x64, 0x48, 0x89, 0x03]
        },
        Form(name: "movups xmm0, [rbx]", size: 16) { $0[.rbx] = $1; return [0x0F, 0x10, 0x03] },
        Form(name: "vmovups [rbx], ymm1", size: 32, writes: true) { $0[.rbx] = $1; return [0xC5, 0xFC, 0x11, 0x0B] },
        Form(name: "lock xadd [rbx], rax", size: 8, writes: true) { $0[.rbx] = $1; return [0xF0, 0x48, 0x0F, 0xC1, 0x03] },
        Form(name: "fnsave [rbx]", size: 108, writes: true) { $0[.rbx] = $1; return [0xDD, 0x33] },
        Form(name: "add [rbx], ah", size: 1, writes: true) { $0[.rbx] = $1; return [0x00, 0x23] },
        Form(name: "push [rbx]", size: 8) { $0[.rbx] = $1; return [0xFF, 0x33] },
        Form(name: "pop [rbx]", size: 8, writes: true) { $0[.rbx] = $1; return [0x8F, 0x03] },
        Form(name: "push rax", size: 8, writes: true, stack: true) { $0[.rsp] = $1 &+ 8; return [0x50] },
        Form(name: "leave", size: 8, stack: true) { $0[.rbp] = $1; return [0xC9] },
        Form(name: "lodsq", size: 8) { $0[.rsi] = $1; return [0x48, 0xAD] },
        Form(name: "stosq", size: 8, writes: true) { $0[.rdi] = $1; return [0x48, 0xAB] },
        Form(name: "bts [rbx], rcx", size: 8, writes: true) {
            $0[.rcx] = 0x8000_0000_0000_0000
            $0[.rbx] = $1 &+ 0x1000_0000_0000_0000
            return [0x48, 0x0F, 0xAB, 0x0B]
        },
        Form(name: "cmpxchg8b [rbx]", size: 8, writes: true) { $0[.rbx] = $1; return [0x0F, 0xC7, 0x0B] },
    ]

    @Test(arguments: forms.indices) func `accesses at edges fault as on hardware`(index: Int) throws {
        let form = Self.forms[index]
        let machine = try Self.machine()
        let fortress = Fortress(machine)
        for level in [0, 3] {
            for edge in Self.edges {
                for back in [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 32, 107, 108, 4096] as [UInt64] {
                    let address = edge &- back
                    machine.enter(level: level)
                    machine[.rsp] = TestMachine.stack - 64
                    var code = GuestCode()
                    for byte in form.make(machine, address) { code.emit(byte) }
                    code.done()
                    let outcome = try machine.run(code)
                    let kernel = level == 3 && address >> 63 == 1 && address < 0xFFFF_FFFF_FFFF_0000
                    let text = "\(form.name) at \(String(address, radix: 16)), level \(level): \(outcome)"
                    if let expected = Self.expected(machine, address, form.size, stack: form.stack) {
                        #expect(outcome.vector == expected.vector, "\(text)")
                        if expected.vector == 14 { #expect(outcome.address == expected.address, "\(text)") }
                        #expect(outcome.vector == Outcome.done || outcome.rip == GuestCode.start, "\(text)")
                    } else if !kernel {
                        #expect(outcome.vector == Outcome.done, "\(text)")
                    }
                    fortress.check(text)
                }
            }
        }
    }

    /// Guest gs-relative operands name guest memory, whatever the displacement: never a field of the context.
    @Test func `gs operands reach guest memory alone`() throws {
        let machine = try TestMachine.small()
        let fortress = Fortress(machine)
        let secret = machine.context.pointee.owner
        machine.enter(level: 3)
        for at in stride(from: 0, to: 0x1000, by: 8) as StrideTo<Int> {
            machine.setData(UInt64(at), UInt64(at) | 0xABCD_0000_0000_0000)
        }
        let prefixes: [[UInt8]] = [[0x65], [0x64, 0x65], [0x65, 0x2E, 0x65], [0x26, 0x65], [0x67, 0x65], [0x65, 0x67]]
        for prefix in prefixes {
            for at in stride(from: 0, to: 1100, by: 8) as StrideTo<Int> {
                let displacement = [UInt8(at & 0xFF), UInt8(at >> 8), 0, 0]
                machine.context.pointee.gsBase = TestMachine.data
                machine.context.pointee.fsBase = TestMachine.data + 0x2000
                machine[.rax] = 0
                var code = GuestCode()
                // mov rax, gs:[at]; mov gs:[at], rax; lock xadd gs:[at], rax; movq xmm0, gs:[at]
                let shapes: [[UInt8]] = [[0x48, 0x8B], [0x48, 0x89], [0x48, 0x0F, 0x6F]]
                for byte in prefix + shapes[0] + [0x04, 0x25] + displacement { code.emit(byte) }
                for byte in prefix + shapes[1] + [0x04, 0x25] + displacement { code.emit(byte) }
                for byte in prefix + shapes[2] + [0x04, 0x25] + displacement { code.emit(byte) }
                for byte in prefix + [0xFF, 0x34, 0x25] + displacement { code.emit(byte) }  // push gs:[at]
                code.done()
                machine.enter(level: 3)
                machine[.rsp] = TestMachine.stack
                machine.context.pointee.gsBase = TestMachine.data
                #expect(try machine.run(code).vector == Outcome.done)
                #expect(machine[.rax] == UInt64(at) | 0xABCD_0000_0000_0000)
                #expect(machine.data(UInt64(at)) == UInt64(at) | 0xABCD_0000_0000_0000)
            }
        }
        #expect(machine.context.pointee.owner == secret)
        fortress.checkAll()
    }
}

extension TestMachine {
    /// The page-table entry of an address, 0 when a table above it is missing. Makes no table.
    func entryIfMapped(_ linear: UInt64) -> UInt64 {
        var table = Self.pageTables
        for shift in [39, 30, 21] as [UInt64] {
            let entry = memory.load(table + (linear >> shift & 511) * 8, as: UInt64.self) ?? 0
            if entry & 1 == 0 { return 0 }
            table = entry & 0x000F_FFFF_FFFF_F000
        }
        return memory.load(table + (linear >> 12 & 511) * 8, as: UInt64.self) ?? 0
    }
}
