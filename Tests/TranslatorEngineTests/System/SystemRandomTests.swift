import TestSupport
import Testing
import TranslatorEngine
import VMM

/// Whatever a guest does must end in a state or a fault, never in a trap of the host's process.
@Suite("Hostile system code") struct SystemRandomTests {
    typealias M = SystemMachine

    /// Opcodes of system instructions, without what follows them.
    static let opcodes: [[UInt8]] = [
        [0xFA], [0xFB], [0xFC], [0xFD], [0x9C], [0x9D], [0xF4], [0xCF], [0xCD], [0xCC], [0xF1], [0xCE],
        [0x0F, 0x05], [0x0F, 0x07], [0x0F, 0x34], [0x0F, 0x35], [0xEA], [0x9A], [0xCB], [0xCA], [0xFF],
        [0x0F, 0x20], [0x0F, 0x22], [0x0F, 0x21], [0x0F, 0x23], [0x0F, 0x06], [0x0F, 0x01], [0x0F, 0x00],
        [0x8C], [0x8E], [0x0F, 0xA0], [0x0F, 0xA1], [0x0F, 0xA8], [0x0F, 0xA9], [0x06], [0x07], [0x16], [0x17],
        [0x1E], [0x1F], [0xC4], [0xC5], [0x0F, 0xB2], [0x0F, 0xB4], [0x0F, 0xB5], [0x0F, 0x02], [0x0F, 0x03],
        [0x63], [0xE4], [0xE5], [0xE6], [0xE7], [0xEC], [0xED], [0xEE], [0xEF], [0x6C], [0x6D], [0x6E], [0x6F],
        [0x0F, 0xA2], [0x0F, 0x30], [0x0F, 0x32], [0x0F, 0x31], [0x0F, 0x33], [0x0F, 0xC7], [0x0F, 0x08],
        [0x0F, 0x09], [0x0F, 0xAE], [0x0F, 0x0B], [0xC8], [0xD7], [0x62], [0x27], [0x2F], [0x37], [0x3F], [0xD4],
        [0xD5], [0xD6], [0x60], [0x61], [0xA4], [0xA5], [0xA6], [0xA7], [0xAA], [0xAB], [0xAC], [0xAD], [0xAE], [0xAF],
    ]
    static let prefixes: [UInt8] = [0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65]

    private func value(_ random: inout SplitMix64) -> UInt64 {
        let edges: [UInt64] = [
            0, 1, 3, 8, 0x10, 0x23, 0x2B, 0x60, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF, 0x8000_0000_0000, ~0,
            M.scratch, M.userStack, M.kernelStack, M.gdt, M.idt, M.tss, 0xFF_FFFC, 0xFFFF, 0xFFFE, 0x8000_0000_0000_0000,
        ]
        switch random.next() % 4 {
        case 0: return random.next()
        case 1: return random.next() & 0xFF_FFFF
        default: return edges[Int(random.next() % UInt64(edges.count))]
        }
    }

    private func scramble(_ m: SystemMachine, _ random: inout SplitMix64) {
        let c = m.context
        for index in 0..<16 { c.pointee.gpr[index] = value(&random) }
        // A repetition of 2^64 elements ends only when somebody asks.
        c.pointee.interruptRequest = 1
        if random.next() % 2 == 0 {
            c.pointee.gpr[1] &= 0x3F
            c.pointee.interruptRequest = 0
        }
        if random.next() % 2 == 0 { c.pointee.gpr[4] = M.kernelStack }
        c.pointee.rflags = random.next() & 0x3F_7FD5 & ~RFLAGS.vm | c.pointee.systemFlags & RFLAGS.vm
        c.pointee.rip = random.next() % 8 == 0 ? value(&random) : M.code
        switch random.next() % 8 {
        case 0: m.memory.store(M.gdt + (random.next() & 0xF8), random.next())
        case 1: m.memory.store(M.idt + (random.next() & 0xFF8), random.next())
        case 2: m.memory.store(M.tss + (random.next() & 0x7F), value(&random))
        case 3: m.memory.store(M.kernelStack + (random.next() & 0x38), value(&random))
        case 4: m.memory.store(M.scratch + (random.next() & 0x3F8), value(&random))
        case 5: c.pointee.tr.limit = UInt32(truncatingIfNeeded: value(&random))
        case 6: c.pointee.fsBase = value(&random)
        default: c.pointee.gdtr.limit = UInt16(truncatingIfNeeded: value(&random))
        }
    }

    @Test(arguments: SystemMachine.Mode.allCases)
    func `random instructions in random states end in a state or a fault`(mode: SystemMachine.Mode) throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SplitMix64(seed: seed)
        var performed = 0
        for _ in 0..<60 {
            let m = try M(mode, level: random.next() % 2 == 0 ? 0 : 3)
            for vector in 0..<32 as Range<UInt8> where random.next() % 4 != 0 {
                if mode == .long || mode == .compatibility {
                    m.setGate(vector, value(&random), type: 14 + random.next() % 2, dpl: random.next() % 4,
                        ist: random.next() % 3)
                } else {
                    m.setGate32(vector, value(&random), type: 5 + random.next() % 11, dpl: random.next() % 4)
                }
            }
            for _ in 0..<100 {
                scramble(m, &random)
                var bytes: [UInt8] = []
                while random.next() % 3 == 0 {
                    bytes.append(Self.prefixes[Int(random.next() % UInt64(Self.prefixes.count))])
                }
                if m.context.pointee.is64Bit && random.next() % 2 == 0 { bytes.append(0x40 | UInt8(random.next() & 15)) }
                bytes += Self.opcodes[Int(random.next() % UInt64(Self.opcodes.count))]
                for _ in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: random.next())) }
                guard var instruction = try? m.decode(Array(bytes.prefix(15))) else { continue }
                performed += 1
                let before = m.registers
                let rip = m.context.pointee.rip
                let cs = m.context.pointee.cs
                let task = m.context.pointee.tr
                do throws(GuestException) {
                    try m.cpu.perform(&instruction)
                } catch {
                    let isString = instruction.kind.isStringOperation
                        || instruction.kind == .inString || instruction.kind == .outString
                    if !isString {
                        // What goes wrong behind a task switch is the new task's.
                        #expect(m.registers == before || m.context.pointee.tr != task, "seed \(seed), \(bytes)")
                    }
                    #expect(m.context.pointee.rip == rip || m.context.pointee.tr != task, "seed \(seed), \(bytes)")
                    #expect(m.context.pointee.cs == cs || m.context.pointee.tr != task, "seed \(seed), \(bytes)")
                    do throws(TripleFault) { try m.cpu.deliver(error) } catch { m.context.pointee.rip = M.code }
                }
            }
        }
        #expect(performed > 1000)
    }
}
