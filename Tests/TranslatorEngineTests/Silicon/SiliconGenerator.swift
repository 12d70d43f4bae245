import CSilicon
import CZydis

/// Makes instructions out of random bytes, kept when they are ones that both sides should agree on.
struct SiliconGenerator {
    var random: SiliconRandom
    let decoder: SiliconDecoder

    init(seed: UInt64, decoder: SiliconDecoder) {
        random = SiliconRandom(seed: seed)
        self.decoder = decoder
    }

    var isLong: Bool { decoder.isLong }
    /// General registers that code can name.
    var registerCount: Int { isLong ? 16 : 8 }

    /// Registers to start with.
    mutating func state() -> SiliconState {
        var state = SiliconState.random(&random, isWide: decoder.hasAVX512)
        if !isLong {
            state.cutToNarrow()
            state.fsBase = UInt64(SILICON_FS_BASE)
            state.gsBase = UInt64(SILICON_GS_BASE)
        }
        return state
    }

    /// How the ModRM byte is made.
    enum Addressing {
        /// Anything, as often memory as not.
        case any
        case register
        case memory(base: Int, index: Int?, scale: Int)
        case relative
    }

    // MARK: Bytes

    enum Map { case one, two, three38, three3A, x87, vex, evex }

    /// A random encoding, mostly of an instruction that exists; 15 bytes or more.
    mutating func bytes(_ map: Map, opcode: UInt8, _ addressing: Addressing) -> [UInt8] {
        var result: [UInt8] = []
        if random.percent(5) { result.append(random.pick([0x64, 0x65])) }
        if random.percent(4) { result.append(0x67) }
        if random.percent(2) { result.append(random.pick(decoder.mode.isSegmented ? [0x26, 0x36, 0x3E] : [0x26, 0x2E, 0x36, 0x3E])) }
        var modRM = random.byte()
        var tail: [UInt8] = []
        // Extension bits of base and index; -1: as they come.
        var b = -1, x = -1
        switch addressing {
        case .any: if random.percent(40) { modRM |= 0xC0 }
        case .register: modRM |= 0xC0
        case .relative: modRM = modRM & 0x38 | 5
        case .memory(let base, let index, let scale):
            let isWide = random.percent(20)
            modRM = modRM & 0x38 | (isWide ? 0x80 : 0x40)
            b = base >> 3
            if let index {
                modRM |= 4
                tail.append(UInt8(scale << 6 | (index & 7) << 3 | base & 7))
                x = index >> 3
            } else {
                modRM |= UInt8(base & 7)
                if base & 7 == 4 { tail.append(0x24) }
                x = 0
            }
            // Short ones of EVEX count in vectors or elements.
            let displacement = map == .evex && !isWide ? Int32(random.below(8)) - 4 : Int32(random.below(96)) - 32
            for byte in 0..<(isWide ? 4 : 1) { tail.append(UInt8(truncatingIfNeeded: displacement >> Int32(byte * 8))) }
        }
        if map == .vex {
            vex(&result, opcode, b, x)
        } else if map == .evex {
            evex(&result, opcode, b, x, isRegister: modRM >= 0xC0)
        } else {
            legacy(&result, map, opcode, b, x)
        }
        result.append(modRM)
        result += tail
        while result.count < 24 { result.append(random.byte()) }
        return result
    }

    private mutating func legacy(_ result: inout [UInt8], _ map: Map, _ opcode: UInt8, _ b: Int, _ x: Int) {
        if random.percent(20) { result.append(0x66) }
        if random.percent(8) { result.append(0xF3) } else if random.percent(6) { result.append(0xF2) }
        if map == .two || map == .three38, random.percent(12) { result.append(random.pick([0xF2, 0xF3])) }
        if random.percent(4) { result.append(0xF0) }
        var rex: UInt8 = isLong && random.percent(60) ? 0x40 | random.byte() & 0xF : 0
        if b > 0 || x > 0 { rex |= 0x40 }
        if rex != 0 {
            if b >= 0 { rex = rex & ~1 | UInt8(b) }
            if x >= 0 { rex = rex & ~2 | UInt8(x) << 1 }
            result.append(rex)
        }
        switch map {
        case .two: result.append(0x0F)
        case .three38: result += [0x0F, 0x38]
        case .three3A: result += [0x0F, 0x3A]
        default: break
        }
        result.append(opcode)
    }

    private mutating func vex(_ result: inout [UInt8], _ opcode: UInt8, _ b: Int, _ x: Int) {
        let vvvv: UInt8 = random.percent(60) ? random.byte() & 0x78 : 0x78
        let prefix = random.percent(50) ? 1 : random.byte() & 3
        if b <= 0 && x <= 0 && random.percent(25) {
            result += [0xC5, (isLong ? random.byte() & 0x84 : 0x80 | random.byte() & 4) | (isLong ? vvvv : vvvv | 0x40) | prefix, opcode]
            return
        }
        var first = (isLong ? random.byte() & 0xE0 : 0xC0 | random.byte() & 0x20) | UInt8(1 + random.below(3))
        if b >= 0 { first = first & ~0x20 | (b == 0 ? 0x20 : 0) }
        if x >= 0 { first = first & ~0x40 | (x == 0 ? 0x40 : 0) }
        result += [0xC4, first, random.byte() & 0x84 | vvvv | prefix, opcode]
    }

    private mutating func evex(_ result: inout [UInt8], _ opcode: UInt8, _ b: Int, _ x: Int, isRegister: Bool) {
        var first = (isLong ? random.byte() & 0xF0 : 0xF0) | random.pick([1, 1, 1, 2, 2, 2, 3, 5, 6])
        if b >= 0 { first = first & ~0x20 | (b == 0 ? 0x20 : 0) }
        if x >= 0 { first = first & ~0x40 | (x == 0 ? 0x40 : 0) }
        let hasVector = random.percent(70)
        let second = random.byte() & 0x80 | (hasVector ? random.byte() & 0x78 : 0x78) | 4 | (random.percent(50) ? 1 : random.byte() & 3)
        let length = UInt8(random.below(random.percent(10) ? 4 : 3)) << 5
        let third =
            (random.percent(30) ? 0x80 : 0) | length | (random.percent(20) ? 0x10 : 0) | (hasVector && isLong ? random.byte() & 8 : 8)
            | (random.percent(60) ? random.byte() & 7 : 0)
        result += [0x62, first, second, third, opcode]
    }

    private mutating func anyMap() -> Map {
        // Mostly AVX-512 where that is what the guest has more than others.
        if decoder.hasAVX512 && random.percent(75) { return random.percent(85) ? .evex : .vex }

        return switch random.below(100) {
        case 0..<28: .one
        case 28..<55: .two
        case 55..<64: .three38
        case 64..<71: .three3A
        case 71..<78: .x87
        default: .vex
        }
    }

    // MARK: Single instructions

    /// One instruction with registers that make its memory operands lie in the arena, mostly.
    mutating func single() -> SiliconCase {
        while true {
            let map = anyMap()
            let opcode = map == .x87 ? 0xD8 | random.byte() & 7 : random.byte()
            let candidate = bytes(map, opcode: opcode, .any)
            guard decoder.decode(Array(candidate[..<15])), decoder.isComparable else { continue }
            return decoded(Array(candidate[..<decoder.length]))
        }
    }

    /// The instruction that the decoder has just seen, with registers for it.
    private mutating func decoded(_ bytes: [UInt8]) -> SiliconCase {
        var piece = SiliconPiece(bytes: bytes)
        var state = state()
        placeOperands(&piece, &state)
        return SiliconCase(
            pieces: [piece], state: state, flags: SiliconState.arithmeticFlags & ~decoder.undefinedFlags,
            faultFlags: SiliconState.arithmeticFlags & ~decoder.writtenFlags, isFaultLoose: decoder.isFaultLoose,
            isWide: decoder.hasWideOperand, isMasked: decoder.isMasked, mode: decoder.mode,
            pattern: UInt32(random.below(Int(SILICON_PATTERNS))), codeOffset: codeOffset(length: piece.bytes.count),
            devicePages: random.percent(15) && !state.hasUnmaskedX87 ? random.byte() & 0x1F : 0,
            flushesTLB: random.percent(60))
    }

    /// An encoding of a form, or `nil` if there is nothing to compare.
    mutating func instance(_ form: SiliconForms.Form) -> SiliconCase? {
        switch form.treatment {
        case .skip: return nil
        case .compare:
            var bytes = form.bytes
            // Up to the longest that an instruction may be, and beyond.
            if random.percent(2) && form.canBePadded {
                while bytes.count < 14 || bytes.count == 14 && random.percent(70) || bytes.count == 15 && random.percent(30) {
                    bytes.insert(0x3E, at: 0)
                }
            }
            guard decoder.decode(bytes) else {
                return SiliconCase(pieces: [SiliconPiece(bytes: bytes)], state: state(), faultFlags: 0, mode: decoder.mode)
            }
            return decoded(bytes)
        case .hidden, .undefined:
            return SiliconCase(
                pieces: [SiliconPiece(bytes: form.bytes)], state: state(), isHidden: form.treatment == .hidden,
                isUndefined: form.treatment == .undefined, mode: decoder.mode, codeOffset: random.below(2048))
        }
    }

    /// Where code of some length lies in its two pages: often across their border.
    mutating func codeOffset(length: Int) -> Int {
        random.percent(25) ? 4096 - random.below(length + 2) : random.below(2048)
    }

    /// Where addresses end: the canonical ones, and those of 32 bits.
    private static let edges: [UInt64] = [0, 0x8000_0000_0000, 0xFFFF_8000_0000_0000, 0x1_0000_0000]

    /// An address in the arena for an access of `size` bytes.
    mutating func target(_ size: Int, hasBase: Bool = false) -> UInt64 {
        let arena = UInt64(SILICON_ARENA)
        let readOnly = UInt64(SILICON_ARENA_READ_ONLY_PAGE) * 4096
        func before(_ border: UInt64, _ random: inout SiliconRandom) -> UInt64 {
            arena &+ border &- UInt64(1 + random.below(max(1, size - 1)))
        }
        switch random.below(100) {
        case 0..<50: return arena + UInt64(random.below(110)) * 64
        case 50..<70: return arena + UInt64(random.below(8000))
        case 70..<82: return before(4096, &random)
        case 82..<86: return before(readOnly, &random)
        case 86..<89: return before(readOnly + 4096, &random)
        case 89..<92: return arena + readOnly + UInt64(random.below(4096 - size))
        case 92..<95: return before(0, &random)
        case 95..<98: return before(UInt64(SILICON_ARENA_BYTES), &random)
        default:
            // Of an address beyond an edge AMD's CPUs look at the effective address too, Intel's at the linear one alone.
            switch random.below(hasBase ? 2 : 4) {
            case 0: return random.next()
            case 1: return arena &- UInt64(random.below(8192))
            default: return random.pick(Self.edges) &- UInt64(random.below(size + 2))
            }
        }
    }

    private mutating func placeOperands(_ piece: inout SiliconPiece, _ state: inout SiliconState) {
        let instruction = decoder.instruction.pointee
        for number in 0..<Int(instruction.operand_count) where decoder.operands[number].type == ZYDIS_OPERAND_TYPE_MEMORY {
            let operand = decoder.operands[number]
            if operand.mem.type == ZYDIS_MEMOP_TYPE_MEM {
                let hasBase = operand.mem.segment == ZYDIS_REGISTER_FS || operand.mem.segment == ZYDIS_REGISTER_GS
                place(operand.mem, target(max(1, Int(operand.size) / 8), hasBase: hasBase), &piece, &state)
            } else if operand.mem.type == ZYDIS_MEMOP_TYPE_VSIB {
                placeVector(operand.mem, &state)
            }
        }
        let attributes = instruction.attributes
        let repeated = UInt64(ZYDIS_ATTRIB_HAS_REP) | UInt64(ZYDIS_ATTRIB_HAS_REPE) | UInt64(ZYDIS_ATTRIB_HAS_REPNE)
        if attributes & repeated != 0 { state[gpr: 1] = UInt64(random.below(random.percent(10) ? 9000 : 40)) }
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_DIV, ZYDIS_MNEMONIC_IDIV:
            if random.percent(60) { state[gpr: 2] = random.percent(50) ? 0 : UInt64(random.below(40)) }
        case ZYDIS_MNEMONIC_BT, ZYDIS_MNEMONIC_BTS, ZYDIS_MNEMONIC_BTR, ZYDIS_MNEMONIC_BTC:
            // The index reaches beyond the operand.
            let index = decoder.operands[1]
            if index.type == ZYDIS_OPERAND_TYPE_REGISTER, decoder.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY,
                random.percent(85)
            {
                let register = number(index.reg.value)
                let memory = decoder.operands[0].mem
                if register >= 0 && register != number(memory.base) && register != number(memory.index) {
                    let bit = UInt64(bitPattern: Int64(random.below(12000) - 6000))
                    // What is above a narrow index does not count.
                    let noise = index.size < 64 && random.percent(30) ? random.next() << 32 : 0
                    state[gpr: register] = bit ^ noise
                }
            }
        default:
            if random.percent(20) { state[gpr: 1] = state[gpr: 1] & ~0xFF | random.pick([0, 32, 64, 1, 31]) }
        }
    }

    /// The number of a general register of any width, -1 for none.
    func number(_ register: ZydisRegister) -> Int {
        let wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, register)
        let value = Int(wide.rawValue) - Int(ZYDIS_REGISTER_RAX.rawValue)
        return value >= 0 && value < 16 ? value : -1
    }

    /// Sets the registers of an address, or the displacement if there are none.
    private mutating func place(
        _ memory: ZydisDecodedOperandMem, _ target: UInt64, _ piece: inout SiliconPiece, _ state: inout SiliconState
    ) {
        var wanted = target
        switch memory.segment {
        case ZYDIS_REGISTER_FS: wanted &-= state.fsBase
        case ZYDIS_REGISTER_GS: wanted &-= state.gsBase
        default: if decoder.mode.isSegmented { wanted &-= UInt64(SILICON_ARENA) }
        }
        let raw = decoder.instruction.pointee.raw
        let width = decoder.instruction.pointee.address_width
        let isNarrow = width != 64
        let mask: UInt64 = width == 64 ? ~0 : width == 32 ? 0xFFFF_FFFF : 0xFFFF
        if memory.base == ZYDIS_REGISTER_RIP || memory.base == ZYDIS_REGISTER_EIP {
            piece.fix = .displacement(at: Int(raw.disp.offset), target: wanted & 0x3FFF_FFFF)
            return
        }
        let base = number(memory.base), index = number(memory.index)
        if base < 0 && index < 0 {
            guard raw.disp.size >= 16 else { return }
            for byte in 0..<Int(raw.disp.size) / 8 {
                piece.bytes[Int(raw.disp.offset) + byte] = UInt8(truncatingIfNeeded: wanted >> UInt64(byte * 8))
            }
            return
        }
        wanted &-= UInt64(bitPattern: memory.disp.value)
        wanted &= mask
        let registers: UInt64 = isLong ? ~0 : 0xFFFF_FFFF
        func high(_ value: UInt64, _ random: inout SiliconRandom) -> UInt64 {
            isNarrow ? (value & mask | (random.percent(50) ? random.next() & ~mask : 0)) & registers : value
        }
        if base < 0 {
            let value = isNarrow ? wanted / UInt64(memory.scale) : UInt64(bitPattern: Int64(bitPattern: wanted) / Int64(memory.scale))
            state[gpr: index] = high(value, &random)
        } else if index == base {
            let factor = UInt64(memory.scale) + 1
            let value = isNarrow ? wanted / factor : UInt64(bitPattern: Int64(bitPattern: wanted) / Int64(factor))
            state[gpr: base] = high(value, &random)
        } else {
            if index >= 0 {
                if random.percent(60) { state[gpr: index] = UInt64(random.below(64)) }
                let value = memory.index == ZYDIS_REGISTER_AL ? state[gpr: index] & 0xFF : state[gpr: index]
                wanted &-= value &* UInt64(max(1, memory.scale))
            }
            state[gpr: base] = high(wanted, &random)
        }
    }

    /// A gather's base and indices.
    private mutating func placeVector(_ memory: ZydisDecodedOperandMem, _ state: inout SiliconState) {
        let base = number(memory.base)
        let index = Int(ZydisRegisterGetId(memory.index)) & 31
        if base >= 0 { state[gpr: base] = UInt64(SILICON_ARENA) &- UInt64(bitPattern: memory.disp.value) }
        let isQuad: Bool =
            switch decoder.mnemonic {
            case ZYDIS_MNEMONIC_VGATHERQPS, ZYDIS_MNEMONIC_VGATHERQPD, ZYDIS_MNEMONIC_VPGATHERQD, ZYDIS_MNEMONIC_VPGATHERQQ,
                ZYDIS_MNEMONIC_VSCATTERQPS, ZYDIS_MNEMONIC_VSCATTERQPD, ZYDIS_MNEMONIC_VPSCATTERQD, ZYDIS_MNEMONIC_VPSCATTERQQ:
                true
            default: false
            }
        let limit = random.percent(80) ? 8000 : 24000
        // Not where the state is to begin as the initial one.
        let isWide = state[xsave: 512] == SiliconState.components && SiliconState.hasWide
        if index >= 16 && !isWide { return }
        for word in 0..<(isWide ? 8 : 4) {
            let low = UInt64(random.below(limit) / max(1, Int(memory.scale)))
            let high = UInt64(random.below(limit) / max(1, Int(memory.scale)))
            state[vector: index, word] = isQuad ? low : low | high << 32
        }
    }
}
