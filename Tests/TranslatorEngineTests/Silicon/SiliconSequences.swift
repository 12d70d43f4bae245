import CSilicon
import CZydis

/// Straight lines of instructions with branches forward. What one instruction leaves in flags and registers the next
/// ones read, across memory accesses that clobber the host's flags on their way.
struct SiliconSequence {
    private var generator: SiliconGenerator
    private var pieces: [SiliconPiece] = []
    /// Registers that hold arena addresses, and one that holds a small number: instructions leave them alone, but for
    /// pushes, pops and string operations.
    private let pointers: [Int]
    private let index: Int
    /// Counts the rounds, if the sequence is a loop.
    private let counter: Int?
    /// Flags that are not defined here, and at the targets of branches.
    private var undefined: UInt64 = 0
    private var undefinedAt: [Int: UInt64] = [:]
    private let count: Int
    private var isFaultLoose = false
    private var isMasked = false

    static func make(_ generator: inout SiliconGenerator) -> SiliconCase {
        var sequence = SiliconSequence(generator)
        let result = sequence.build()
        generator = sequence.generator
        return result
    }

    private init(_ generator: SiliconGenerator) {
        var random = generator.random
        let registers = generator.registerCount
        var pointers = [4]
        if random.percent(30) { pointers += [6, 7] }
        while pointers.count < 4 {
            let register = registers == 16 && random.percent(40) ? 13 + random.below(3) : random.below(registers)
            if !pointers.contains(register) { pointers.append(register) }
        }
        var index = 4
        while pointers.contains(index) { index = random.below(registers) }
        self.pointers = pointers
        self.index = index
        let counter = random.below(registers)
        self.counter = random.percent(30) && counter != index && !pointers.contains(counter) ? counter : nil
        count = 3 + random.below(10)
        self.generator = generator
        self.generator.random = random
    }

    private mutating func build() -> SiliconCase {
        while pieces.count < count {
            undefined |= undefinedAt[pieces.count] ?? 0
            if generator.random.percent(18) { branch() } else { instruction() }
        }
        undefined |= undefinedAt[pieces.count] ?? 0
        loop()
        var state = generator.state()
        for register in pointers {
            // Away from the arena's ends and the read-only page, at times across the two pages' border.
            let page: UInt64 = generator.random.percent(50) ? 0 : 3 * 4096
            let inside =
                generator.random.percent(25)
                ? 4096 - 40 + UInt64(generator.random.below(80)) : 512 + UInt64(generator.random.below(110)) * 64
            state[gpr: register] = (generator.decoder.mode.isSegmented ? 0 : UInt64(SILICON_ARENA)) + page + inside
        }
        state[gpr: index] = UInt64(generator.random.below(40))
        if let counter { state[gpr: counter] = 1 + UInt64(generator.random.below(4)) }
        let length = pieces.reduce(0) { $0 + $1.bytes.count }
        return SiliconCase(
            pieces: pieces, state: state, flags: SiliconState.arithmeticFlags & ~undefined, isFaultLoose: isFaultLoose, isMasked: isMasked, mode: generator.decoder.mode,
            pattern: UInt32(generator.random.below(Int(SILICON_PATTERNS))), codeOffset: generator.codeOffset(length: length),
            devicePages: generator.random.percent(12) && !state.hasUnmaskedX87 ? generator.random.byte() & 0x1B : 0,
            flushesTLB: generator.random.percent(60))
    }

    // MARK: Branches

    private var reserved: [Int] { pointers + [index] + (counter.map { [$0] } ?? []) }

    /// Back to one of the instructions, with all flags defined as they may have been there.
    private mutating func loop() {
        guard let counter else { return }
        // sub counter, 1; jnz
        var bytes: [UInt8] = generator.isLong ? [0x48 | UInt8(counter >> 3)] : []
        bytes += [0x83, 0xE8 | UInt8(counter & 7), 1, 0x0F, 0x85, 0, 0, 0, 0]
        let to = generator.random.below(pieces.count)
        undefined = 0
        pieces.append(SiliconPiece(bytes: bytes, fix: .branch(at: bytes.count - 4, size: 4, from: bytes.count, to: to)))
    }

    /// A branch over a few of the next instructions.
    private mutating func branch() {
        let to = pieces.count + 1 + generator.random.below(4)
        guard to <= count else { return instruction() }
        var piece: SiliconPiece
        switch generator.random.below(12) {
        case 0: piece = SiliconPiece(bytes: [0xEB, 0], fix: .branch(at: 1, size: 1, from: 2, to: to))
        case 1: piece = SiliconPiece(bytes: [0xE9, 0, 0, 0, 0], fix: .branch(at: 1, size: 4, from: 5, to: to))
        case 2:
            let opcode = 0xE0 + UInt8(generator.random.below(4))
            if opcode != 0xE3 && reserved.contains(1) { return instruction() }
            piece = SiliconPiece(bytes: [opcode, 0], fix: .branch(at: 1, size: 1, from: 2, to: to))
            if generator.random.percent(20) {
                piece = SiliconPiece(bytes: [0x67, opcode, 0], fix: .branch(at: 2, size: 1, from: 3, to: to))
            }
        case 3: piece = SiliconPiece(bytes: [0xE8, 0, 0, 0, 0], fix: .branch(at: 1, size: 4, from: 5, to: to))
        case 4: return indirectBranch(to)
        case 5..<9:
            let condition = generator.random.byte() & 15
            piece = SiliconPiece(bytes: [0x70 | condition, 0], fix: .branch(at: 1, size: 1, from: 2, to: to))
        default:
            let condition = generator.random.byte() & 15
            piece = SiliconPiece(bytes: [0x0F, 0x80 | condition, 0, 0, 0, 0], fix: .branch(at: 2, size: 4, from: 6, to: to))
        }
        guard generator.decoder.decode(piece.bytes + [0, 0, 0]), generator.decoder.testedFlags & undefined == 0 else { return }
        undefinedAt[to, default: 0] |= undefined
        pieces.append(piece)
    }

    /// LEA of the target, and a jump, call or return there: one piece, since the two belong together.
    private mutating func indirectBranch(_ to: Int) {
        // LEA has the instruction pointer in 64-bit code only.
        guard generator.isLong else { return instruction() }
        let register = generator.random.below(16)
        if reserved.contains(register) { return instruction() }
        let low = UInt8(register & 7), high = UInt8(register >> 3)
        var bytes: [UInt8] = [0x48 | high << 2, 0x8D, 5 | low << 3, 0, 0, 0, 0]
        switch generator.random.below(3) {
        case 0: bytes += (high == 1 ? [0x41] : []) + [0xFF, 0xE0 | low]
        case 1: bytes += (high == 1 ? [0x41] : []) + [0xFF, 0xD0 | low]
        default: bytes += (high == 1 ? [0x41] : []) + [0x50 | low, 0xC3]
        }
        undefinedAt[to, default: 0] |= undefined
        pieces.append(SiliconPiece(bytes: bytes, fix: .branch(at: 3, size: 4, from: 7, to: to)))
    }

    // MARK: Instructions

    /// Opcodes of the two main maps that make and take flags, or are common.
    private static let oneByte: [UInt8] =
        [UInt8](0..<0x40).filter { $0 & 7 < 6 } + [
            0x50, 0x52, 0x55, 0x57, 0x58, 0x5B, 0x5E, 0x5F, 0x68, 0x69, 0x6A, 0x6B, 0x80, 0x80, 0x81, 0x81, 0x83, 0x83, 0x83, 0x84,
            0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0x89, 0x8B, 0x8D, 0x98, 0x99, 0x9C, 0x9E, 0x9F, 0xA8, 0xA9, 0xC0, 0xC1,
            0xC1, 0xC6, 0xC7, 0xD0, 0xD1, 0xD2, 0xD3, 0xD3, 0xF5, 0xF6, 0xF6, 0xF7, 0xF7, 0xF8, 0xF9, 0xFE, 0xFE, 0xFF, 0xFF, 0xA4, 0xA5,
            0xA6, 0xAA, 0xAB, 0xAC, 0xAE, 0xAF,
        ]
    private static let twoByte: [UInt8] =
        [UInt8](0x40..<0x50) + [UInt8](0x90..<0xA0) + [
            0xA3, 0xA4, 0xA5, 0xAB, 0xAC, 0xAD, 0xAF, 0xB0, 0xB1, 0xB3, 0xB6, 0xB7, 0xB8, 0xBA, 0xBA, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF, 0xC0,
            0xC1, 0xC7, 0xC8, 0xCB, 0xCD, 0x10, 0x11, 0x28, 0x29, 0x2A, 0x2C, 0x2D, 0x2E, 0x2F, 0x58, 0x59, 0x6E, 0x7E, 0xD6,
        ]

    private mutating func instruction() {
        while true {
            let addressing: SiliconGenerator.Addressing =
                switch generator.random.below(100) {
                case 0..<45: .register
                case 45..<52: .relative
                default:
                    .memory(
                        base: generator.random.pick(pointers),
                        index: generator.random.percent(25) && index != 4 ? index : nil, scale: generator.random.below(4))
                }
            let isWide = generator.decoder.hasAVX512 && generator.random.percent(50)
            let candidate: [UInt8] =
                switch isWide ? 100 : generator.random.below(100) {
                case 100: generator.bytes(generator.random.percent(90) ? .evex : .vex, opcode: generator.random.byte(), addressing)
                case 0..<50: generator.bytes(.one, opcode: generator.random.pick(Self.oneByte), addressing)
                case 50..<78: generator.bytes(.two, opcode: generator.random.pick(Self.twoByte), addressing)
                case 78..<80: generator.bytes(.three38, opcode: 0xF0 + generator.random.byte() % 8, addressing)
                case 80..<86: generator.bytes(.vex, opcode: 0xF0 + generator.random.byte() % 8, addressing)
                case 86..<89: generator.bytes(.x87, opcode: 0xD8 | generator.random.byte() & 7, addressing)
                case 89..<94: generator.bytes(.vex, opcode: generator.random.byte(), addressing)
                default: generator.bytes(generator.random.percent(50) ? .two : .one, opcode: generator.random.byte(), addressing)
                }
            guard generator.decoder.decode(Array(candidate[..<15])), generator.decoder.isComparable else { continue }
            if let piece = accept(Array(candidate[..<generator.decoder.length])) {
                pieces.append(piece)
                return
            }
        }
    }

    private func isPointer(_ register: ZydisRegister) -> Bool { pointers.contains(generator.number(register)) }

    /// The instruction, if it leaves the pointers alone, reads only flags that are defined, and its memory operands are
    /// in the arena.
    private mutating func accept(_ bytes: [UInt8]) -> SiliconPiece? {
        let decoder = generator.decoder
        let instruction = decoder.instruction.pointee
        if decoder.testedFlags & undefined != 0 { return nil }
        let attributes = instruction.attributes
        let category = instruction.meta.category
        let isStack = category == ZYDIS_CATEGORY_PUSH || category == ZYDIS_CATEGORY_POP
        let isString = category == ZYDIS_CATEGORY_STRINGOP
        var piece = SiliconPiece(bytes: bytes)
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_DIV, ZYDIS_MNEMONIC_IDIV: if generator.random.percent(85) { return nil }
        case ZYDIS_MNEMONIC_ENTER, ZYDIS_MNEMONIC_LEAVE: return nil
        case ZYDIS_MNEMONIC_PUSHF, ZYDIS_MNEMONIC_PUSHFQ: if undefined != 0 { return nil }
        case ZYDIS_MNEMONIC_LDMXCSR, ZYDIS_MNEMONIC_VLDMXCSR, ZYDIS_MNEMONIC_FLDCW, ZYDIS_MNEMONIC_FLDENV: return nil
        default: break
        }
        let repeated = UInt64(ZYDIS_ATTRIB_HAS_REP) | UInt64(ZYDIS_ATTRIB_HAS_REPE) | UInt64(ZYDIS_ATTRIB_HAS_REPNE)
        if attributes & repeated != 0 && index != 1 { return nil }
        for number in 0..<Int(instruction.operand_count) {
            let operand = decoder.operands[number]
            let isWritten = operand.actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
            if operand.type == ZYDIS_OPERAND_TYPE_REGISTER && isWritten {
                let register = generator.number(operand.reg.value)
                let isImplicit = operand.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN
                if register == index && !(isString && isImplicit) || register >= 0 && register == counter { return nil }
                if pointers.contains(register) && !(isImplicit && (isStack || isString)) { return nil }
            }
            guard operand.type == ZYDIS_OPERAND_TYPE_MEMORY else { continue }
            if operand.mem.type == ZYDIS_MEMOP_TYPE_VSIB { return nil }
            if operand.mem.type == ZYDIS_MEMOP_TYPE_AGEN && operand.mem.base != ZYDIS_REGISTER_RIP { continue }
            if operand.mem.segment == ZYDIS_REGISTER_FS || operand.mem.segment == ZYDIS_REGISTER_GS { return nil }
            let raw = instruction.raw
            if operand.mem.base == ZYDIS_REGISTER_RIP || operand.mem.base == ZYDIS_REGISTER_EIP {
                let target = UInt64(SILICON_ARENA) + 512 + UInt64(generator.random.below(110)) * 64
                piece.fix = .displacement(at: Int(raw.disp.offset), target: target)
                continue
            }
            guard isPointer(operand.mem.base) else { return nil }
            let memoryIndex = generator.number(operand.mem.index)
            if memoryIndex >= 0 && memoryIndex != index && operand.mem.index != ZYDIS_REGISTER_AL { return nil }
        }
        // A bit index reaches as far as its register.
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_BT, ZYDIS_MNEMONIC_BTS, ZYDIS_MNEMONIC_BTR, ZYDIS_MNEMONIC_BTC:
            if decoder.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY, decoder.operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER,
                generator.number(decoder.operands[1].reg.value) != index
            {
                return nil
            }
        default: break
        }
        // Counts that may be 0 leave the flags as they were.
        let mayKeep =
            category == ZYDIS_CATEGORY_SHIFT || category == ZYDIS_CATEGORY_ROTATE || attributes & repeated != 0
        if !mayKeep { undefined &= ~decoder.definedFlags }
        undefined |= decoder.undefinedFlags
        if decoder.isFaultLoose { isFaultLoose = true }
        if decoder.isMasked { isMasked = true }
        return piece
    }
}
