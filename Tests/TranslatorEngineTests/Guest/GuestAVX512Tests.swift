import Testing
import VMM

@testable import TranslatorEngine

/// AVX-512 where it meets the system: faults under masks, exceptions, and its state in XSAVE areas and snapshots
/// (SDM Vol. 1, chapter 13; Vol. 2, 2.7).
@Suite(.enabled(if: ([.avx512f, .avx512bw, .avx512vl] as CPUFeatures).isSubset(of: HostCPU.current.features), "the CPU here has no AVX-512"))
struct GuestAVX512Tests {
    private static let ones: [UInt8] = [0x62, 0xF3, 0x65, 0x48, 0x25, 0xDB, 0xFF]  // vpternlogd zmm3, zmm3, zmm3, -1
    private static let upperOnes: [UInt8] = [0x62, 0xA3, 0x75, 0x40, 0x25, 0xC9, 0xFF]  // vpternlogd zmm17, zmm17, zmm17, -1
    private static let setMask: [UInt8] = [0xC4, 0xE1, 0xFB, 0x92, 0xC9]  // kmovq k1, rcx
    private static let getMask: [UInt8] = [0xC4, 0xE1, 0xFB, 0x93, 0xC9]  // kmovq rcx, k1
    private static let load: [UInt8] = [0x62, 0xF1, 0x7F, 0xC9, 0x6F, 0x0B]  // vmovdqu8 zmm1 {k1} {z}, [rbx]
    private static let store: [UInt8] = [0x62, 0xF1, 0x7F, 0x49, 0x7F, 0x1B]  // vmovdqu8 [rbx] {k1}, zmm3
    private static let compress: [UInt8] = [0x62, 0xF2, 0x7D, 0x49, 0x8B, 0x1B]  // vpcompressd [rbx] {k1}, zmm3
    private static let expand: [UInt8] = [0x62, 0xF2, 0x7D, 0xC9, 0x89, 0x0B]  // vpexpandd zmm1 {k1} {z}, [rbx]
    private static let broadcast: [UInt8] = [0x62, 0xF1, 0x75, 0x59, 0xFE, 0x13]  // vpaddd zmm2 {k1}, zmm1, [rbx] {1to16}
    private static let gather: [UInt8] = [0x62, 0xF2, 0x7D, 0x49, 0x90, 0x0C, 0x13]  // vpgatherdd zmm1 {k1}, [rbx + zmm2]
    private static let scatter: [UInt8] = [0x62, 0xF2, 0x7D, 0x49, 0xA0, 0x1C, 0x13]  // vpscatterdd [rbx + zmm2] {k1}, zmm3
    private static let indices: [UInt8] = [0x62, 0xF1, 0x7E, 0x48, 0x6F, 0x16]  // vmovdqu32 zmm2, [rsi]

    private static let pages: UInt64 = 0x50_0000
    /// Two pages of user data, nothing behind them.
    private func machine(model: CPUModel = .host) throws -> TestMachine {
        let machine = try TestMachine(model: model)
        machine.map(GuestCode.start, to: 0x10_0000, count: 1, [.user])
        machine.map(Self.pages, to: 0x11_0000, count: 2, [.user, .writable])
        machine.enter(level: 3)
        return machine
    }
    private func run(_ machine: TestMachine, _ instructions: [UInt8]...) throws -> Outcome {
        var bytes: [UInt8] = []
        for one in instructions { bytes += one }
        machine.memory.write(bytes + [0xCD, 0x80], at: 0x10_0000)
        machine.cpu.writeState(machine.cpu.readState())
        return try machine.run(from: GuestCode.start)
    }
    private func word(_ machine: TestMachine, _ offset: UInt64) -> UInt64 { machine.memory.load(0x11_0000 + offset, as: UInt64.self) ?? 0 }

    @Test func `what a mask leaves out does not fault, what it takes does at its own address`() throws {
        let end = Self.pages + 8192
        // From 24 bytes before the end on; the mask's bits are bytes.
        for (bytes, mask, distance, fault) in [
            (Self.load, 0, 1, nil), (Self.load, 0xFF_FFFF, 24, nil), (Self.load, 0x1FF_FFFF, 24, 0),
            (Self.load, 1 << 63 | 1, 24, 39), (Self.load, 1 << 40, 24, 16), (Self.load, 0, 0, nil), (Self.load, 1, 0, 0),
            (Self.store, 0, 0, nil), (Self.store, 0xFF_FFFF, 24, nil), (Self.store, 1 << 63, 24, 39),
            // Six double words before the end, as many as bits are set.
            (Self.compress, 0xFC00, 24, nil), (Self.compress, 0xFE00, 24, 0), (Self.expand, 0x8421, 16, nil), (Self.expand, 0xF8, 16, 0),
            (Self.broadcast, 0, 0, nil), (Self.broadcast, 0x8000, 0, 0), (Self.broadcast, 0xFFFF, 4, nil),
        ] as [([UInt8], UInt64, UInt64, UInt64?)] {
            let machine = try machine()
            machine[.rcx] = mask
            machine[.rbx] = end - distance
            let outcome = try run(machine, Self.ones, Self.setMask, bytes)
            #expect(outcome.vector == (fault == nil ? Outcome.done : 14), "\(bytes) \(mask) \(distance)")
            if let fault { #expect(outcome.address == end + fault, "\(bytes) \(mask) \(distance)") }
        }
    }

    @Test func `masked store over two pages writes what its mask says, or nothing`() throws {
        for isReadOnly in [false, true] {
            let machine = try machine()
            for offset in stride(from: 4032, to: 4160, by: 8) as StrideTo<UInt64> { machine.memory.store(0x11_0000 + offset, 0x5555_5555_5555_5555 as UInt64) }
            if isReadOnly { machine.map(Self.pages + 4096, to: 0x11_1000, count: 1, [.user]) }
            machine[.rcx] = 0xF00F_0000_F00F
            machine[.rbx] = Self.pages + 4096 - 20
            let outcome = try run(machine, Self.ones, Self.setMask, Self.store)
            #expect(outcome.vector == (isReadOnly ? 14 : Outcome.done))
            if isReadOnly { #expect(outcome.address == Self.pages + 4096 + 12) }
            // Bits 0 to 3, 12 to 15, 32 to 35 and 44 to 47.
            for byte in 0..<64 as Range<UInt64> {
                let got = machine.memory.load(0x11_0000 + 4076 + byte, as: UInt8.self)
                #expect(got == (0xF00F_0000_F00F as UInt64 >> byte & 1 != 0 && !isReadOnly ? 0xFF : 0x55), "byte \(byte)")
            }
        }
    }

    @Test func `gather and scatter that fault have the elements before done`() throws {
        for isStore in [false, true] {
            let machine = try machine()
            // Elements 0 to 4 in the pages, 5 outside, the rest inside.
            for element in 0..<16 as Range<UInt64> {
                machine.memory.store(0x11_0000 + element * 4, UInt32(element == 5 ? 0x8000 : 256 + element * 4))
                machine.memory.store(0x11_0000 + 256 + element * 4, UInt32(1000 + element))
            }
            machine[.rsi] = Self.pages
            machine[.rbx] = Self.pages
            machine[.rcx] = 0xFFF7
            let outcome = try run(machine, Self.ones, Self.indices, Self.setMask, isStore ? Self.scatter : Self.gather)
            #expect(outcome.vector == 14)
            #expect(outcome.address == Self.pages + 0x8000)
            #expect(outcome.errorCode == (isStore ? 6 : 4))
            #expect(machine.context.pointee.opmask[1] == 0xFFE0)
            for element in 0..<5 as Range<UInt64> {
                let memory = machine.memory.load(0x11_0000 + 256 + element * 4, as: UInt32.self)
                let register = machine.context.pointee.ymm[4 + Int(element / 2)] >> (element % 2 * 32) & 0xFFFF_FFFF
                if isStore { #expect(memory == (element == 3 ? 1003 : 0xFFFF_FFFF)) } else { #expect(register == (element == 3 ? 0 : 1000 + element)) }
            }
            // With the page there, it goes on.
            machine.map(Self.pages + 0x8000, to: 0x12_0000, count: 1, [.user, .writable])
            machine.cpu.flushTLB(global: true)
            #expect(try machine.run(from: outcome.rip).vector == Outcome.done)
            #expect(machine.context.pointee.opmask[1] == 0)
        }
    }

    @Test func `CR4, XCR0 and CR0 decide as for AVX`() throws {
        let kxor: [UInt8] = [0xC5, 0xF4, 0x47, 0xC9]
        for bytes in [Self.ones, kxor] {
            for (set, vector) in [
                ({ _ in }, Outcome.done), ({ $0.pointee.xcr0 = 7 }, 6), ({ $0.pointee.xcr0 = 1 }, 6), ({ $0.pointee.xcr0 = 3 }, 6),
                ({ $0.pointee.cr4 &= ~CR4.osxsave }, 6), ({ $0.pointee.cr0 |= CR0.ts }, 7), ({ $0.pointee.cr0 |= CR0.ts; $0.pointee.xcr0 = 7 }, 6),
                ({ $0.pointee.cr0 |= CR0.em }, Outcome.done),
            ] as [((UnsafeMutablePointer<Context>) -> Void, Int)] {
                let machine = try machine()
                set(machine.context)
                machine.cpu.modeChanged()
                #expect(try run(machine, bytes).vector == vector)
            }
        }
    }

    @Test func `XSETBV takes AVX-512's components together or not at all`() throws {
        for (value, vector) in [(0xE7, Outcome.done), (7, Outcome.done), (0x27, 13), (0xC7, 13), (0xE3, 13), (0xE1, 13)] as [(UInt64, Int)] {
            let machine = try machine()
            machine.enter(level: 0)
            machine.map(GuestCode.start, to: 0x10_0000, count: 1, [])
            machine[.rax] = value
            machine[.rcx] = 0
            machine[.rdx] = 0
            #expect(try run(machine, [0x0F, 0x01, 0xD1]).vector == vector, "\(value)")
        }
    }

    @Test func `unmasked floating-point exception is #XM, and {sae} suppresses it`() throws {
        let control: [UInt8] = [0x0F, 0xAE, 0x16]  // ldmxcsr [rsi]
        // vdivps zmm3, zmm2, zmm1 and the same with {rz-sae}: 0 / 0
        for (bytes, vector) in [([0x62, 0xF1, 0x6C, 0x48, 0x5E, 0xD9], 19), ([0x62, 0xF1, 0x6C, 0x78, 0x5E, 0xD9], Outcome.done)] as [([UInt8], Int)] {
            let machine = try machine()
            machine.memory.store(0x11_0000, 0x1F00 as UInt32)
            machine[.rsi] = Self.pages
            #expect(try run(machine, control, bytes).vector == vector)
        }
    }

    @Test func `neighbouring accesses of 64 bytes share a check, and go on over a page's end without it`() throws {
        // vmovdqu32 zmm1, [rdi]; zmm18, [rdi + 64]; zmm19, [rdi + 128]; [rdi + 192], zmm18
        let code: [UInt8] = [
            0x62, 0xF1, 0x7E, 0x48, 0x6F, 0x0F, 0x62, 0xE1, 0x7E, 0x48, 0x6F, 0x57, 0x01, 0x62, 0xE1, 0x7E, 0x48, 0x6F, 0x5F, 0x02,
            0x62, 0xE1, 0x7E, 0x48, 0x7F, 0x57, 0x03,
        ]
        for (start, fault) in [(0, nil), (3840, nil), (4096 - 30, nil), (4096 - 100, nil), (4096 - 200, nil), (8192 - 160, 0), (8192 - 200, 0)] as [(UInt64, UInt64?)] {
            let machine = try machine()
            for offset in stride(from: 0, to: 8192, by: 8) as StrideTo<UInt64> { machine.memory.store(0x11_0000 + offset, offset) }
            machine[.rdi] = Self.pages + start
            let outcome = try run(machine, code)
            #expect(outcome.vector == (fault == nil ? Outcome.done : 14), "\(start)")
            if let fault {
                #expect(outcome.address == Self.pages + 8192 + fault, "\(start)")
            } else {
                for offset in stride(from: 0, to: 64, by: 8) as StrideTo<UInt64> { #expect(word(machine, start + 192 + offset) == word(machine, start + 64 + offset)) }
            }
            #expect(EmittedCodeVerifier(machine.cpu).violations() == [])
        }
    }

    @Test func `state counts from the first instruction that uses it`() throws {
        let machine = try machine()
        #expect(try run(machine, [0xC5, 0xE5, 0x76, 0xDB]).vector == Outcome.done)  // vpcmpeqd ymm3, ymm3, ymm3
        #expect(machine.context.pointee.wideState == 0)
        #expect(try run(machine, Self.ones).vector == Outcome.done)
        #expect(machine.context.pointee.wideState == 1)
        #expect(machine.context.pointee.zmmHigh[3 * 4 + 3] == ~0)
        // An AVX instruction clears what is above it.
        #expect(try run(machine, [0xC5, 0xE5, 0x76, 0xDB]).vector == Outcome.done)
        #expect(machine.context.pointee.zmmHigh[3 * 4 + 3] == 0)
        #expect(machine.context.pointee.ymm[3 * 4 + 3] == ~0)
    }

    @Test func `snapshot holds all of it`() throws {
        let machine = try machine()
        machine[.rcx] = 0x1234_5678_9ABC_DEF0
        #expect(try run(machine, Self.ones, Self.upperOnes, Self.setMask).vector == Outcome.done)
        let state = machine.cpu.readState()
        let other = try self.machine()
        other.cpu.writeState(state)
        #expect(other.cpu.readState() == state)
        #expect(other.context.pointee.wideState == 1)
        #expect(other.context.pointee.opmask[1] == 0x1234_5678_9ABC_DEF0)
        #expect(other.context.pointee.zmmUpper[8] == ~0)
        #expect(other.context.pointee.zmmHigh[3 * 4] == ~0)
        // Back to one that was taken before there was any.
        other.cpu.writeState(CPUState())
        #expect(other.context.pointee.wideState == 0)
        #expect(other.context.pointee.opmask[1] == 0)
    }
}

/// Its components in XSAVE areas of both formats.
@Suite(.enabled(if: ([.avx512f, .avx512bw, .xsaves] as CPUFeatures).isSubset(of: HostCPU.current.features), "the CPU here has no AVX-512"))
struct GuestAVX512AreaTests {
    private static let save: [UInt8] = [0x48, 0x0F, 0xAE, 0x23], saveOptimised: [UInt8] = [0x48, 0x0F, 0xAE, 0x33]
    private static let saveCompacted: [UInt8] = [0x48, 0x0F, 0xC7, 0x23], restore: [UInt8] = [0x48, 0x0F, 0xAE, 0x2B]
    private static let area: UInt64 = 0x1000
    private static let value: UInt64 = 0x1234_5678_9ABC_DEF0

    private func machine() throws -> TestMachine {
        let machine = try TestMachine(model: .host)
        machine.map(GuestCode.start, to: TestMachine.codePhysical, count: 1, [])
        machine.map(TestMachine.data, to: TestMachine.dataPhysical, count: 4, [.writable])
        machine[.rbx] = TestMachine.data + Self.area
        machine[.rdx] = 0
        return machine
    }
    private func run(_ machine: TestMachine, _ requested: UInt64, _ instructions: [UInt8]...) throws -> Outcome {
        machine[.rax] = requested
        var bytes: [UInt8] = []
        for one in instructions { bytes += one }
        machine.memory.write(bytes + [0xCD, 0x80], at: TestMachine.codePhysical)
        machine.cpu.writeState(machine.cpu.readState())
        return try machine.run(from: GuestCode.start)
    }
    /// k1, zmm3 and zmm17 as no initial state has them.
    private func use(_ machine: TestMachine) {
        machine.context.pointee.wideState = 1
        machine.context.pointee.opmask[1] = Self.value
        machine.context.pointee.zmmHigh[3 * 4] = Self.value &+ 1
        machine.context.pointee.zmmUpper[8] = Self.value &+ 2
        machine.context.pointee.ymm[3 * 4 + 2] = Self.value &+ 3
    }
    private func fill(_ machine: TestMachine) {
        for offset in stride(from: 0, to: 3072, by: 8) as StrideTo<UInt64> { machine.setData(Self.area + offset, 0x5555_5555_5555_5555) }
        for word in 0..<8 as Range<UInt64> { machine.setData(Self.area + 512 + word * 8, 0) }
        machine.setData(Self.area + 24, 0x1F80)
    }
    /// Where the four words of `use` are: AVX, opmask, ZMM_Hi256, Hi16_ZMM.
    private func places(_ machine: TestMachine, compacted held: UInt64?) -> [(bit: UInt64, offset: UInt64, word: UInt64)] {
        let inside: [(bit: Int, offset: UInt64, word: UInt64)] = [(2, 48, 3), (5, 8, 0), (6, 96, 1), (7, 64, 2)]
        var next: UInt64 = 576
        return inside.map { one in
            let leaf = machine.cpu.policy.cpuid(0xD, UInt32(one.bit), cr4: 0, xcr0: 0xE7)
            var start = UInt64(leaf.ebx)
            if let held {
                start = next
                if held >> UInt64(one.bit) & 1 != 0 { next += UInt64(leaf.eax) }
            }
            return (1 << UInt64(one.bit), start + one.offset, Self.value &+ one.word)
        }
    }

    @Test(arguments: [0xE7, 0xE6, 0xE3, 0xA4, 0x20, 0x60, 0xC0, 0x80, 7] as [UInt64])
    func `each form writes the components that are asked for, and they come back`(requested: UInt64) throws {
        for form in [Self.save, Self.saveOptimised, Self.saveCompacted] {
            let machine = try machine()
            fill(machine)
            use(machine)
            #expect(try run(machine, requested, form).vector == Outcome.done)
            let isCompacted = form == Self.saveCompacted
            #expect(machine.data(Self.area + 520) == (isCompacted ? requested | 1 << 63 : 0))
            #expect(machine.data(Self.area + 512) & 0xE4 == requested & 0xE4)
            for (bit, offset, word) in places(machine, compacted: isCompacted ? requested : nil) where requested & bit != 0 {
                #expect(machine.data(Self.area + offset) == word, "component \(bit) of \(requested), \(form)")
            }
            // Bytes behind the last component are not written.
            let last = 576 + size(machine, requested, isCompacted: isCompacted)
            #expect(machine.data(Self.area + UInt64(last)) == 0x5555_5555_5555_5555)
            let before = machine.cpu.readState()
            machine.cpu.writeState({ var state = before; state.xsave = CPUState().xsave; return state }())
            #expect(machine.context.pointee.wideState == 0)
            #expect(try run(machine, 0xE7, Self.restore).vector == Outcome.done)
            #expect((machine.context.pointee.opmask[1] == Self.value) == (requested & 0x20 != 0))
            #expect((machine.context.pointee.zmmHigh[3 * 4] == Self.value &+ 1) == (requested & 0x40 != 0))
            #expect((machine.context.pointee.zmmUpper[8] == Self.value &+ 2) == (requested & 0x80 != 0))
            #expect((machine.context.pointee.ymm[3 * 4 + 2] == Self.value &+ 3) == (requested & 4 != 0))
            #expect(machine.context.pointee.wideState == (requested & 0xE0 != 0 ? 1 : 0))
        }
    }
    private func size(_ machine: TestMachine, _ requested: UInt64, isCompacted: Bool) -> Int {
        var end = 0
        for bit in [2, 5, 6, 7] where requested >> UInt64(bit) & 1 != 0 {
            let leaf = machine.cpu.policy.cpuid(0xD, UInt32(bit), cr4: 0, xcr0: 0xE7)
            end = isCompacted ? end + Int(leaf.eax) : max(end, Int(leaf.ebx + leaf.eax) - 576)
        }
        return end
    }

    @Test func `components in their initial state are left out and taken as such`() throws {
        for form in [Self.saveOptimised, Self.saveCompacted] {
            let machine = try machine()
            fill(machine)
            #expect(try run(machine, 0xE7, form).vector == Outcome.done)
            #expect(machine.data(Self.area + 512) & 0xE0 == 0)
            #expect(machine.data(Self.area + 904) == 0x5555_5555_5555_5555)
            use(machine)
            #expect(try run(machine, 0xE7, Self.restore).vector == Outcome.done)
            #expect(machine.context.pointee.wideState == 0)
            #expect(machine.context.pointee.opmask[1] == 0)
            // Not asked for, it stays.
            use(machine)
            #expect(try run(machine, 7, Self.restore).vector == Outcome.done)
            #expect(machine.context.pointee.wideState == 1)
            #expect(machine.context.pointee.opmask[1] == Self.value)
        }
    }

    @Test func `XGETBV tells what is in use`() throws {
        let machine = try machine()
        let ask: [UInt8] = [0xB9, 1, 0, 0, 0, 0x0F, 0x01, 0xD0]
        #expect(try run(machine, 0, ask).vector == Outcome.done)
        #expect(machine[.rax] & 0xE0 == 0)
        use(machine)
        machine.context.pointee.zmmHigh[3 * 4] = 0
        #expect(try run(machine, 0, ask).vector == Outcome.done)
        #expect(machine[.rax] & 0xE0 == 0xA0)
    }

    @Test func `headers that name components beyond XCR0 are refused`() throws {
        for (enabled, present, compacted) in [(7, 0x20, 0), (7, 0, 0x8000_0000_0000_00E7), (0xE7, 0x100, 0), (0xE7, 0, 0x8000_0000_0000_0100)] as [(UInt64, UInt64, UInt64)] {
            let machine = try machine()
            fill(machine)
            machine.context.pointee.xcr0 = enabled
            machine.setData(Self.area + 512, present)
            machine.setData(Self.area + 520, compacted)
            #expect(try run(machine, 0xE7, Self.restore).vector == 13)
        }
    }
}
