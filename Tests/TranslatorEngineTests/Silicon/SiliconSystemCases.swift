import CSilicon
import VMM

/// What user code does to descriptors, flags and control flow by hand-made encodings: the processor's own state is what
/// differs here, so each case sets up tables, frames and images that mean something.
enum SiliconSubject: CaseIterable, Sendable {
    case flags, segmentLoads, farTransfers, interruptReturns, descriptorQueries, softwareInterrupts, branches
    case fxsave, xsave, xrstor, x87Environment
}

extension SiliconGenerator {
    /// In the arena: an operand, and what the stack pointer points at.
    private static let operand = 1024, stack = 3 * 4096 + 1024
    /// ID, AC, NT, OF, DF, IF, TF, SF, ZF, AF, PF, CF: IOPL and IF stay as they are.
    private static let allFlags: UInt64 = 0x24_4FD5

    mutating func systemCase(_ subject: SiliconSubject) -> SiliconCase {
        switch subject {
        case .flags: flagsCase()
        case .segmentLoads: segmentLoad()
        case .farTransfers: farTransfer()
        case .interruptReturns: interruptReturn()
        case .descriptorQueries: descriptorQuery()
        case .softwareInterrupts: softwareInterrupt()
        case .branches: branchCase()
        case .fxsave: imageCase(.fxsave)
        case .xsave: imageCase(.xsave)
        case .xrstor: imageCase(.xrstor)
        case .x87Environment: environmentCase()
        }
    }

    // MARK: Parts

    private var mode: SiliconMode { decoder.mode }
    private var is16Bit: Bool { mode == .segmented16 }
    /// What an offset in the arena is to the case's code.
    private func address(_ offset: Int) -> UInt64 { mode.isSegmented ? UInt64(offset) : UInt64(SILICON_ARENA) + UInt64(offset) }
    /// ModRM of the memory at rbx, or bx.
    private func atBase(_ reg: Int) -> UInt8 { UInt8(reg << 3) | (is16Bit ? 7 : 3) }
    /// The operand-size prefix, if the operand's is not the code's own (4 bytes in 64-bit code).
    private func sizePrefix(_ size: Int) -> [UInt8] { (size == 2) == is16Bit ? [] : [0x66] }
    /// Bytes that a far pointer's offset, or a word of the stack, may have.
    private mutating func narrowSize() -> Int { random.percent(50) == is16Bit ? 4 : 2 }

    private mutating func systemState() -> SiliconState {
        var state = state()
        state.rflags &= ~SiliconState.alignmentCheck
        state[gpr: 3] = address(Self.operand)
        state[gpr: 4] = address(Self.stack)
        return state
    }

    private mutating func finish(_ pieces: [SiliconPiece], _ state: SiliconState, patch: SiliconPatch? = nil) -> SiliconCase {
        var one = SiliconCase(
            pieces: pieces, state: state, flags: Self.allFlags, mode: mode, pattern: UInt32(random.below(Int(SILICON_PATTERNS))),
            codeOffset: random.below(1024), flushesTLB: random.percent(30))
        one.faultFlags = Self.allFlags
        one.patch = patch
        one.canBeReduced = false
        return one
    }

    /// RFLAGS as POPF and IRET may find them. TF is followed by a trap behind the next instruction.
    private mutating func flagsImage() -> UInt64 {
        random.next() & (random.percent(15) ? ~0 : ~0x100)
    }

    /// A selector: good, bad, of every kind of descriptor that user code and Linux agree on.
    mutating func selector() -> UInt16 {
        let level = UInt16(random.percent(75) ? 3 : random.below(4))
        let number: UInt16
        switch random.below(12) {
        case 0: return UInt16(random.below(4))
        case 1: number = random.pick([0x20, 0x28, 0x30])
        // The kernel's own, and none: #GP or ZF clear. Linux's TLS and per-CPU segments are left out.
        case 2: number = random.pick([0x08, 0x10, 0x18])
        case 3: number = random.pick([UInt16(SILICON_DATA_16), UInt16(SILICON_DATA_32)]) & ~3
        case 4: number = UInt16(random.below(8)) << 3 | 4
        case 5: number = random.pick([UInt16(SILICON_CODE_16), UInt16(SILICON_CODE_32)]) & ~3
        case 6: number = UInt16(SILICON_SEGMENT_COUNT) << 3 | 4
        case 7: number = 0xFFFC
        default: number = (UInt16(SILICON_SPECIAL_SEGMENTS) + UInt16(random.below(Int(SILICON_SPECIAL_SEGMENT_COUNT)))) << 3 | 4
        }
        return number & ~3 | level
    }

    /// A selector that no code can run in.
    private mutating func noCode() -> UInt16 {
        random.pick([
            0, 3, 0x2B, 0x13, 0x1B, UInt16(SILICON_DATA_32), UInt16(SILICON_DATA_16), (UInt16(SILICON_SPECIAL_SEGMENTS) + 6) << 3 | 7,
            (UInt16(SILICON_SPECIAL_SEGMENTS) + 8) << 3 | 7, (UInt16(SILICON_SPECIAL_SEGMENTS) + 7) << 3 | 7,
            UInt16(SILICON_SEGMENT_COUNT) << 3 | 7, 0xFFFF,
        ])
    }

    private func bytes(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }

    // MARK: Subjects

    private mutating func flagsCase() -> SiliconCase {
        let size = isLong ? (random.percent(50) ? 8 : 2) : narrowSize()
        let prefix = size == 8 ? [] : sizePrefix(size)
        var state = systemState()
        if random.percent(10) { state.rflags |= SiliconState.alignmentCheck }
        // popf, nop, pushf
        return finish(
            [SiliconPiece(bytes: prefix + [0x9D]), SiliconPiece(bytes: [0x90]), SiliconPiece(bytes: prefix + [0x9C])], state,
            patch: SiliconPatch(offset: Self.stack, bytes: bytes(flagsImage(), 8)))
    }

    private mutating func segmentLoad() -> SiliconCase {
        var state = systemState()
        let size = isLong ? random.pick([2, 4, 8]) : narrowSize()
        let prefix: [UInt8] = size == 8 ? [0x48] : sizePrefix(size)
        let selector = selector()
        // es, cs, ss, ds, fs, gs, and none
        var register = random.pick([0, 0, 2, 2, 3, 3, 4, 4, 5, 5, 1, 6])
        var load: [UInt8]
        var patch = SiliconPatch(offset: Self.operand, bytes: bytes(UInt64(selector), 8))
        switch random.below(3) {
        case 0:
            if random.percent(50) {
                state[gpr: 0] = state[gpr: 0] & ~0xFFFF | UInt64(selector)
                load = prefix + [0x8E, 0xC0 | UInt8(register << 3)]
            } else {
                load = prefix + [0x8E, atBase(register)]
            }
        case 1:
            patch = SiliconPatch(offset: Self.stack, bytes: bytes(UInt64(selector) | random.next() << 16, 8))
            if isLong && register < 4 || register == 1 || register == 6 { register = 4 + random.below(2) }
            load = (size == 8 ? [] : prefix) + (register < 4 ? [UInt8(register << 3 | 7)] : [0x0F, register == 4 ? 0xA1 : 0xA9])
        default:
            if isLong && (register == 0 || register == 3) || register == 1 || register == 6 { register = random.pick([2, 4, 5]) }
            // AMD's CPUs have no far pointers with offsets of 8 bytes.
            let narrow = size == 8 ? 4 : size
            patch.bytes = bytes(random.next(), narrow) + bytes(UInt64(selector), 2)
            let opcode: [UInt8] = [[0xC4], [], [0x0F, 0xB2], [0xC5], [0x0F, 0xB4], [0x0F, 0xB5]][register]
            load = sizePrefix(narrow) + opcode + [atBase(0)]
        }
        // What may be read through it: mov al, [rsi] with each override.
        state[gpr: 6] = random.pick([0, 0x7F, 0x80, 0xFFF, 0x1000, 0x2FFF, 0x3FFF, 0x4FFF, 0xFFFF, address(64), 0x0001_0000, 0xFFFF_F000])
        let override: [UInt8] = [[0x26], [0x2E], [0x36], [0x3E], [0x64], [0x65], [0x3E]][register]
        let isWrite = random.percent(40)
        let probe: [UInt8] = override + [isWrite ? 0x88 : 0x8A, is16Bit ? 0x04 : 0x06]
        var pieces = [SiliconPiece(bytes: load)]
        // Code is not the same on both sides: where it ends.
        let isCode = [UInt16(SILICON_CODE_16), UInt16(SILICON_CODE_32)].contains(selector | 3)
        if register != 1 && !isCode && !(isWrite && register == 6) { pieces.append(SiliconPiece(bytes: probe)) }
        if register == 2 && random.percent(50) { pieces.append(SiliconPiece(bytes: [0x50])) }
        var one = finish(pieces, state, patch: patch)
        // A null selector clears the base on some CPUs.
        one.ignoresBases = selector & ~3 == 0
        return one
    }

    private mutating func landing() -> SiliconMode { random.pick([.flat32, .long, .segmented16, .segmented32]) }

    private mutating func farTransfer() -> SiliconCase {
        var landing = landing()
        let size = narrowSize()
        let state = systemState()
        let isGood = random.percent(75)
        let level = random.percent(85) ? 3 : random.below(4)
        var pieces: [SiliconPiece]
        var patch = SiliconPatch(offset: Self.operand, bytes: bytes(0xFFFF_F000, size) + bytes(UInt64(noCode()), 2))
        // The pieces: the transfer, UD2, the landing.
        let kind = random.below(isLong ? 3 : 5)
        let isCall = kind == 1 || kind == 4
        // AMD's CPUs push by the new mode's rules, which know no base of the stack's.
        if isCall && mode.isSegmented && landing == .long { landing = .flat32 }
        if isGood { patch.addresses = [(0, size, 2, landing), (size, 0, 2, landing)] }
        switch kind {
        case 0: pieces = [SiliconPiece(bytes: sizePrefix(size) + [0xFF, atBase(5)])]
        case 1: pieces = [SiliconPiece(bytes: sizePrefix(size) + [0xFF, atBase(3)])]
        case 2:
            let size = isLong && random.percent(50) ? 8 : size
            let prefix: [UInt8] = size == 8 ? [0x48] : sizePrefix(size)
            patch = SiliconPatch(offset: Self.stack, bytes: bytes(0xFFFF_F000, size) + bytes(UInt64(noCode()), size))
            if isGood { patch.addresses = [(0, size, 2, landing), (size, 0, 2, landing)] }
            pieces = [SiliconPiece(bytes: prefix + (random.percent(50) ? [0xCB] : [0xCA, UInt8(random.below(64)) & ~7, 0]))]
        default:
            let prefix = sizePrefix(size)
            let code = prefix + [isCall ? 0x9A : 0xEA]
            pieces = [
                isGood
                    ? SiliconPiece(bytes: code + patch.bytes, fix: .far(at: code.count, size: size, to: 2, landing))
                    : SiliconPiece(bytes: code + patch.bytes)
            ]
        }
        if isGood && level != 3 { patch.addresses.removeLast() }
        pieces.append(SiliconPiece(bytes: [0x0F, 0x0B]))
        pieces += SiliconPiece.ends(landing)
        return finish(pieces, state, patch: patch)
    }

    private mutating func interruptReturn() -> SiliconCase {
        let landing = landing()
        let size = isLong ? random.pick([2, 4, 8]) : narrowSize()
        let prefix: [UInt8] = size == 8 ? [0x48] : sizePrefix(size)
        var state = systemState()
        if random.percent(8) { state.rflags |= 0x4000 }
        var frame = bytes(0xFFFF_F000, size) + bytes(UInt64(noCode()), size) + bytes(flagsImage(), size)
        if isLong {
            let stack = UInt64(Self.stack) + UInt64(SILICON_ARENA) + 256
            frame += bytes(random.percent(90) ? stack : random.next(), size)
            frame += bytes(UInt64(random.percent(60) ? 0x2B : selector()), size)
        }
        var patch = SiliconPatch(offset: Self.stack, bytes: frame)
        if random.percent(80) { patch.addresses = [(0, size, 2, landing), (size, 0, 2, landing)] }
        let pieces = [SiliconPiece(bytes: prefix + [0xCF]), SiliconPiece(bytes: [0x0F, 0x0B])] + SiliconPiece.ends(landing)
        return finish(pieces, state, patch: patch)
    }

    private mutating func descriptorQuery() -> SiliconCase {
        var state = systemState()
        let size = isLong ? random.pick([2, 4, 8]) : narrowSize()
        let prefix: [UInt8] = size == 8 ? [0x48] : sizePrefix(size)
        let opcode: ([UInt8], Int) = random.pick([([0x0F, 0x02], 1), ([0x0F, 0x03], 1), ([0x0F, 0x00], 4), ([0x0F, 0x00], 5)])
        let selector = selector()
        state[gpr: 0] = state[gpr: 0] & ~0xFFFF | UInt64(selector)
        let modRM = random.percent(50) ? 0xC0 | UInt8(opcode.1 << 3) : atBase(opcode.1)
        return finish(
            [SiliconPiece(bytes: prefix + opcode.0 + [modRM])], state,
            patch: SiliconPatch(offset: Self.operand, bytes: bytes(UInt64(selector), 2)))
    }

    private mutating func softwareInterrupt() -> SiliconCase {
        let state = systemState()
        var vector = random.byte()
        if vector == 0x80 { vector = 3 }
        let instruction: [UInt8] = random.pick([[0xCC], [0xCD, vector], [0xCD, vector], [0xCE], [0xCD, 3], [0xCD, 4]])
        return finish([SiliconPiece(bytes: instruction), SiliconPiece(bytes: [0x90])], state)
    }

    /// Near branches with prefixes that mean nothing to them, or another operand or address size.
    private mutating func branchCase() -> SiliconCase {
        if isLong && random.percent(25) { return refusedBranch() }
        var state = systemState()
        state[gpr: 1] = random.pick([0, 1, 2, 0x1_0000, 0x1_0001])
        if !isLong { state[gpr: 1] &= 0xFFFF_FFFF }
        var prefix: [UInt8] = []
        for _ in 0..<random.below(3) {
            prefix.append(random.pick(isLong || !mode.isSegmented ? [0xF2, 0xF3, 0x2E, 0x3E, 0x36, 0x26, 0x64, 0x65] : [0xF2, 0xF3, 0x36, 0x3E]))
        }
        // In 64-bit code Intel's CPUs ignore it and AMD's do not.
        let turned = !isLong && random.percent(40)
        if turned { prefix.append(0x66) }
        let size = isLong ? 8 : turned == is16Bit ? 4 : 2
        let displacement = size == 2 ? 2 : 4
        // The pieces: the branch, what follows when it is not taken, and the landing.
        let to = 2
        func relative(_ opcode: [UInt8], _ count: Int) -> SiliconPiece {
            let code = prefix + opcode
            return SiliconPiece(
                bytes: code + [UInt8](repeating: 0, count: count), fix: .branch(at: code.count, size: count, from: code.count + count, to: to))
        }
        var patch: SiliconPatch?
        let piece: SiliconPiece
        switch random.below(9) {
        case 0: piece = relative([0x70 | random.byte() & 15], 1)
        case 1: piece = relative([0x0F, 0x80 | random.byte() & 15], displacement)
        case 2: piece = relative([0xEB], 1)
        case 3: piece = relative([0xE9], displacement)
        case 4: piece = relative([0xE8], displacement)
        case 5:
            // With an operand-size prefix AMD's CPUs take the condition from a repeat prefix, no manual says why.
            if turned { prefix.removeAll { $0 == 0xF2 || $0 == 0xF3 } }
            if random.percent(50) { prefix.append(0x67) }
            piece = relative([0xE0 | random.byte() & 3], 1)
        case 6:
            patch = SiliconPatch(offset: Self.stack, bytes: bytes(0, size), addresses: [(0, size, to, mode)])
            piece = SiliconPiece(bytes: prefix + (random.percent(50) ? [0xC3] : [0xC2, UInt8(random.below(64)) & ~7, 0]))
        default:
            // Through memory, by every form of address.
            prefix.removeAll { ($0 == 0x64 || $0 == 0x65) }
            patch = SiliconPatch(offset: Self.operand, bytes: bytes(0, size), addresses: [(0, size, to, mode)])
            let reg: UInt8 = random.percent(50) ? 4 : 2
            var modRM: [UInt8]
            if is16Bit {
                modRM = [reg << 3 | 7]
            } else {
                state[gpr: 6] = UInt64(random.below(16))
                state[gpr: 5] = state[gpr: 3]
                let scale = random.below(4)
                let offset = Int64(state[gpr: 6]) << scale
                switch random.below(4) {
                case 0: modRM = [reg << 3 | 3]
                case 1: modRM = [0x44 | reg << 3, UInt8(scale << 6 | 6 << 3 | 3), UInt8(truncatingIfNeeded: -offset)]
                case 2: modRM = [0x84 | reg << 3, UInt8(scale << 6 | 6 << 3 | 3)] + bytes(UInt64(bitPattern: -offset), 4)
                default: modRM = [reg << 3 | 4, 0x25] + bytes(address(Self.operand), 4)
                }
            }
            piece = SiliconPiece(bytes: prefix + [0xFF] + modRM)
        }
        // mov al, 0x11 where it is not taken
        return finish([piece, SiliconPiece(bytes: [0xB0, 0x11])] + SiliconPiece.ends(mode), state, patch: patch)
    }

    /// A near jump, call or return to an address that is not canonical: it faults itself, before any of its effects.
    private mutating func refusedBranch() -> SiliconCase {
        var state = systemState()
        var target = random.next()
        while CPUPolicy.isCanonical(target) {
            target = random.pick([0x8000_0000_0000, 0xFFFF_8000_0000_0000, 1 << 63]) &+ UInt64(random.below(17)) &- 8
        }
        // The push would fault too.
        if random.percent(30) {
            state[gpr: 4] = random.pick([
                address(0), address(Int(SILICON_ARENA_READ_ONLY_PAGE) * 4096 + 64), address(4096) + 4, random.next(),
            ])
        }
        var patch = SiliconPatch(offset: Self.operand, bytes: bytes(target, 8))
        // Pieces in front make both sides run the case more than once.
        var pieces = [SiliconPiece(bytes: [0x90])]
        let reg = UInt8(random.percent(50) ? 4 : 2)
        let release = UInt8(random.below(64))
        let ret: [UInt8] = random.percent(50) ? [0xC3] : [0xC2, release, 0]
        switch random.below(4) {
        case 0:
            patch.offset = Self.stack
            pieces.append(SiliconPiece(bytes: ret))
        case 1:
            // call; mov [rsp], rax; ret
            state[gpr: 0] = target
            pieces.append(SiliconPiece(bytes: [0xE8, 0, 0, 0, 0]))
            pieces.append(SiliconPiece(bytes: [0x48, 0x89, 0x04, 0x24] + ret))
        case 2: pieces.append(SiliconPiece(bytes: [0xFF, atBase(Int(reg))]))
        default:
            let register = random.below(16)
            state[gpr: register] = target
            pieces.append(SiliconPiece(bytes: (register > 7 ? [0x41] : []) + [0xFF, 0xC0 | reg << 3 | UInt8(register & 7)]))
        }
        return finish(pieces, state, patch: patch)
    }

    // MARK: Extended state

    private enum Image { case fxsave, xsave, xrstor }

    /// FXSAVE and FXRSTOR, the XSAVE family, and XRSTOR of images that are good, compacted, or malformed.
    private mutating func imageCase(_ kind: Image) -> SiliconCase {
        var state = systemState()
        var place = 1024
        if random.percent(10) { place += random.pick([4, 8, 16, 32]) }
        state[gpr: 3] = address(place)
        state[gpr: 0] = UInt64(random.percent(70) ? 7 : random.below(8))
        state[gpr: 2] = 0
        if random.percent(20) { state[xsave: 0] &= ~0xFFFF_0000_0000 }
        let rex: [UInt8] = isLong && random.percent(50) ? [0x48] : []
        var image: [UInt8] = []
        for _ in 0..<(576 + 256) / 8 {
            let word = random.vectorWord()
            image += bytes(word, 8)
        }
        // FCW, FSW, FTW and no addresses; MXCSR and its mask; what software may use
        image.replaceSubrange(0..<32, with: bytes(state[xsave: 0], 8) + bytes(0, 16) + bytes(UInt64(random.percent(90) ? 0x1F80 | random.next() & 0x603F : random.next() & ~0x2_0000), 8))
        var header = bytes(UInt64(random.percent(60) ? 7 : random.below(8)), 8) + bytes(0, 56)
        if kind == .xrstor && random.percent(40) {
            switch random.below(6) {
            case 0: header[2] = 0x10  // a component that no CPU has
            case 1: header[8 + random.below(8)] = UInt8(1 << random.below(8))
            case 2: header[16 + random.below(48)] = 1
            case 3: header[7] = 0x80
            case 4: header.replaceSubrange(8..<16, with: bytes(1 << 63 | UInt64(random.below(8)), 8))
            default: header.replaceSubrange(8..<16, with: bytes(1 << 63 | 7, 8))
            }
        }
        image.replaceSubrange(512..<576, with: header)
        var instruction: [UInt8]
        switch kind {
        case .fxsave: instruction = rex + [0x0F, 0xAE, atBase(random.below(2))]
        case .xsave: instruction = rex + (random.percent(60) ? [0x0F, 0xAE, atBase(random.percent(60) ? 4 : 6)] : [0x0F, 0xC7, atBase(4)])
        case .xrstor: instruction = rex + [0x0F, 0xAE, atBase(5)]
        }
        if random.percent(3) { instruction.insert(0x66, at: 0) }
        var one = finish([SiliconPiece(bytes: instruction)], state, patch: SiliconPatch(offset: place, bytes: image))
        one.isWide = true
        // MXCSR_MASK: the bits that the guest's CPU has, without AMD's MISALIGNSSE.
        one.ignored = [place + 28..<place + 32]
        return one
    }

    private mutating func environmentCase() -> SiliconCase {
        var state = systemState()
        let size = is16Bit || random.percent(50) ? narrowSize() : 4
        let prefix = sizePrefix(size)
        let place = 1024 + random.below(64)
        state[gpr: 3] = address(place)
        let choice: (UInt8, UInt8) = random.pick([(0xD9, 6), (0xD9, 4), (0xDD, 6), (0xDD, 4)])
        // Control word with most exceptions masked, status word, tags; no addresses.
        let environment = [state[xsave: 0] & 0xFFFF | 0x3F, random.next() & 0x7F00, random.next() & 0xFFFF]
        var image = environment.flatMap { bytes($0, size) } + [UInt8](repeating: 0, count: size * 4)
        for _ in 0..<8 {
            let (significand, exponent) = random.extended()
            image += bytes(significand, 8) + bytes(UInt64(exponent), 2)
        }
        var one = finish(
            [SiliconPiece(bytes: prefix + [choice.0, atBase(Int(choice.1))])], state, patch: SiliconPatch(offset: place, bytes: image))
        one.isWide = true
        return one
    }
}
