import TestSupport
import Testing
import TranslatorEngine
import VMM

/// String instructions: what blocks make of them is what the system half's own way, element by element, makes of them,
/// whatever mode, segments, sizes, direction and place. 64-bit code is compared with the CPU itself as well (Silicon).
@Suite("String instructions") struct GuestStringTests {
    typealias M = SystemMachine

    /// MOVS, CMPS, STOS, LODS, SCAS.
    private static let opcodes: [UInt8] = [0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF]
    private static let prefixes: [[UInt8]] = [
        [], [0x66], [0x67], [0x66, 0x67], [0x26], [0x2E], [0x36], [0x64], [0x65, 0x66], [0x36, 0x67],
    ]
    /// Where data is, and the base of its segments where they have one.
    private static let data = 0x3_0000 ..< 0x5_0100 as Range<UInt64>

    private struct Case {
        var bytes: [UInt8]
        var registers: [16 of UInt64]
        var flags: UInt64
        var limits: [UInt32]
        var isSpecial: [Bool]
    }

    private struct Result: Equatable, CustomStringConvertible {
        var vector: Int?
        var registers: [UInt64]
        var flags: UInt64
        var data: [UInt8]
        var description: String {
            let hex = registers.map { String($0, radix: 16) }.joined(separator: " ")
            return "vector \(vector.map(String.init) ?? "none"), registers \(hex), flags \(String(flags, radix: 16))"
        }
    }

    private static let arithmetic: UInt64 = 0x8D5

    private func prepare(_ m: M, _ mode: M.Mode, _ c: Case, _ contents: [UInt8]) {
        m.enter(mode, level: mode == .compatibility || mode == .virtual8086 ? 3 : 0)
        m.memory.write(contents, at: Self.data.lowerBound)
        // Programs reach all of memory.
        for entry in 0..<8 as Range<UInt64> { m.memory.store(0x3000 + entry * 8, entry * 0x20_0000 | 0x87) }
        let context = m.context
        switch mode {
        case .protected32, .compatibility, .long:
            context.pointee.rip = M.code
            // Short addresses shall not lead to the tables.
            for segment in [\Context.ds, \.es, \.ss, \.fs, \.gs] { context.pointee[keyPath: segment].base = Self.data.lowerBound }
            if mode == .long { context.pointee.ss.base = 0 }
            (context.pointee.fsBase, context.pointee.gsBase) = (Self.data.lowerBound, Self.data.lowerBound)
        case .real, .virtual8086, .protected16: m.memory.write(Array(repeating: 0, count: 0x40), at: 0x2_7FC0)
        }
        if mode != .long {
            // Not at the beginning of a page, and of different ones.
            context.pointee.ds.base += 0x110
            context.pointee.es.base += 0x20
        }
        if mode != .real && mode != .virtual8086 {
            (context.pointee.ds.limit, context.pointee.es.limit) = (c.limits[0], c.limits[1])
            // Expand-down and read-only.
            if c.isSpecial[0] { context.pointee.ds.attributes |= 4 }
            if c.isSpecial[1] { context.pointee.es.attributes &= ~2 }
        }
        for number in 0..<16 where number != 4 { context.pointee.gpr[number] = c.registers[number] }
        context.pointee.systemFlags = context.pointee.systemFlags & ~RFLAGS.df | c.flags & RFLAGS.df
        context.pointee.rflags = context.pointee.systemFlags | c.flags & Self.arithmetic
        m.memory.write(c.bytes + [0xF4], at: m.codeAddress(context.pointee.rip))
        m.cpu.writeState(m.cpu.readState())
    }

    private func result(_ m: M, _ vector: Int?) -> Result {
        Result(
            vector: vector, registers: (0..<16).map { $0 == 4 ? 0 : m.context.pointee.gpr[$0] },
            flags: vector == nil ? m.context.pointee.rflags & Self.arithmetic : 0,
            data: m.memory.read(Self.data.lowerBound, count: Self.data.count) ?? [])
    }

    @Test(arguments: M.Mode.allCases)
    func `one in a block does what the system half does`(mode: M.Mode) throws {
        try compare(mode, repeats: [[]], rounds: 4)
    }

    /// Pages at once, upward and downward, against element by element.
    @Test(arguments: M.Mode.allCases)
    func `many do what each of them would do`(mode: M.Mode) throws {
        try compare(mode, repeats: [[0xF3], [0xF2]], rounds: 2)
    }

    private func compare(_ mode: M.Mode, repeats: [[UInt8]], rounds: Int) throws {
        var random = SplitMix64(seed: 0x57_21_46)
        let expected = try M(mode), actual = try M(mode)
        var faultCount = 0, count = 0
        let contents = (0..<Self.data.count).map { _ in UInt8(truncatingIfNeeded: random.next() & 3) }
        let isFlatCode = mode == .compatibility || mode == .protected32
        for opcode in Self.opcodes {
            for prefix in Self.prefixes where !(prefix == [0x2E] && isFlatCode) {
                for number in 0..<rounds {
                    // REX.W where there is one.
                    let rex: [UInt8] = mode == .long && number % 2 == 0 ? [0x48] : []
                    let c = makeCase(prefix + repeats[number % repeats.count] + rex + [opcode], mode, &random)
                    prepare(expected, mode, c, contents)
                    var vector: Int?
                    var instruction = try #require(try expected.decode(c.bytes))
                    do throws(GuestException) { try expected.cpu.perform(&instruction) } catch { vector = Int(error.vector) }
                    let right = result(expected, vector)

                    prepare(actual, mode, c, contents)
                    let found = result(actual, try run(actual, c))
                    #expect(found == right, "\(mode) \(c.bytes)")
                    if found != right { return }
                    faultCount += vector == nil ? 0 : 1
                    count += 1
                }
            }
        }
        #expect(EmittedCodeVerifier(actual.cpu).violations() == [])
        // Both happen.
        #expect((mode == .long || faultCount > count / 20) && faultCount < count * 3 / 4, "\(faultCount) of \(count)")
    }

    /// - Returns: the vector of the exception, if the instruction raised one and not the HLT behind it, which programs may not use.
    private func run(_ m: M, _ c: Case) throws -> Int? {
        let behind = m.context.pointee.rip + UInt64(c.bytes.count)
        let outcome = try m.runBlocks()
        guard outcome.vector == 13, outcome.ip == behind else { return outcome.vector }
        m.context.pointee.rflags = m.context.pointee.systemFlags | outcome.flags & Self.arithmetic
        return nil
    }

    private func makeCase(_ bytes: [UInt8], _ mode: M.Mode, _ random: inout SplitMix64) -> Case {
        var c = Case(bytes: bytes, registers: .init(repeating: 0), flags: 0, limits: [], isSpecial: [])
        for number in 0..<16 { c.registers[number] = random.next() }
        c.registers[1] = ([0, 1, 2, 3, 16, 0x7FF, 0x1234] as [UInt64]).randomElement(using: &random) ?? 0
        for pointer in [6, 7] {
            // Ends of segments and pages, and places between.
            let places: [UInt64] = [
                0, 1, 0xFFC, 0xFFD, 0xFFF, 0x7FFD, 0x7FFF, 0x8000, 0xFFF9, 0xFFFE, 0xFFFF, 0x1_0000, random.next() & 0xFFFF,
            ]
            let offset = places.randomElement(using: &random) ?? 0
            // 16-bit addresses take no notice of the upper half.
            let upper = random.next() & 3 == 0 && mode != .long ? random.next() & 0xFFFF_0000 : 0
            c.registers[pointer] = (mode == .long ? Self.data.lowerBound : 0) + offset | upper
        }
        c.flags = random.next() & Self.arithmetic | (random.next() & 1 == 0 ? 0 : RFLAGS.df)
        for _ in 0..<2 {
            c.limits.append(([0xFFFF, 0x7FFF, 0x7FFE, ~0] as [UInt32]).randomElement(using: &random) ?? 0)
            c.isSpecial.append(random.next() & 7 == 0)
        }
        return c
    }

    @Test(arguments: [false, true])
    func `a loop of LODS and STOS copies over pages in both directions`(isDownward: Bool) throws {
        let m = try M(.real)
        let bytes = (0..<0x3000).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
        m.memory.write(bytes, at: 0x3_0003)
        (m[.rsi], m[.rdi], m[.rcx]) =
            isDownward ? (0xABCD_3002, 0x1234_9000, 0x3000) : (0xABCD_0003, 0x1234_6001, 0x3000)
        let end = try m.runBlocks([
            isDownward ? 0xFD : 0xFC,
            0xAC,  // 1: lodsb
            0x04, 0x01,  // add $1, %al
            0xAA,  // stosb
            0xE2, 0xFA,  // loop 1b
            0xF4,
        ])
        #expect(end.vector == nil)
        #expect(m.memory.read(0x3_6001, count: 0x3000) == bytes.map { $0 &+ 1 })
        #expect(m[.rsi] == (isDownward ? 0xABCD_0002 : 0xABCD_3003) && m[.rdi] == (isDownward ? 0x1234_6000 : 0x1234_9001))
    }

    @Test func `flags of a SCAS live over the instructions that follow, those before it over a LODS`() throws {
        let m = try M(.real)
        m.memory.write([5, 6], at: 0x3_0010)
        (m[.rsi], m[.rdi], m[.rax]) = (0x10, 0x10, 0x05)
        let end = try m.runBlocks([
            0xF9,  // stc
            0xAC,  // lodsb: 5
            0x14, 0x00,  // adc $0, %al: 6
            0x47,  // inc %di
            0xAE,  // scasb: equal
            0xAC,  // lodsb: 6
            0x74, 0x01,  // je over
            0xF4,
            0x90, 0xF4,
        ])
        #expect(end.ip == 0x10B)
        #expect(m[.rax] & 0xFF == 6)
    }
}
