import CZydis

/// Every instruction form: encodings from all opcode maps with all prefixes, sorted by what Zydis makes of them.
///
/// Nothing is listed by hand. The maps are walked with each mandatory prefix, REX.W or VEX.W and L, with each ModRM.reg
/// where it selects an instruction, with registers and with memory operands of all kinds; two encodings are of the
/// same form when map, opcode, mnemonic, prefixes that matter and the kinds of all operands are the same.
final class SiliconForms {
    struct Form {
        let bytes: [UInt8]
        let treatment: SiliconTreatment
        /// Not UD1 and UD0: some CPUs do not look for their operands.
        var canBePadded: Bool { !(bytes.contains(0xB9) || bytes.contains(0xFF)) || !bytes.contains(0x0F) }
    }
    /// In the order in which they were met.
    private(set) var forms: [Form] = []
    /// The forms' keys, and how many encodings of each were kept.
    private(set) var keys: [UInt64: Int] = [:]
    private var random: SiliconRandom
    private let decoder: SiliconDecoder
    private let perForm: Int
    private let undefinedShare: Int
    private let buffer = UnsafeMutablePointer<UInt8>.allocate(capacity: 32)
    private var length = 0

    /// - Parameters:
    ///   - perForm: so many encodings of each form are kept.
    ///   - undefinedShare: so many in a hundred of what is no instruction are kept.
    ///   - isWide: AVX-512's, and no others.
    init(seed: UInt64, decoder: SiliconDecoder, perForm: Int = 1, undefinedShare: Int = 100, isWide: Bool = false) {
        random = SiliconRandom(seed: seed)
        self.decoder = decoder
        self.perForm = perForm
        self.undefinedShare = undefinedShare
        if isWide {
            wide()
            return
        }
        legacy()
        vectors()
        foreign()
    }
    deinit { buffer.deallocate() }

    // MARK: Bytes

    private func put(_ value: UInt8) {
        buffer[length] = value
        length += 1
    }

    /// Segments without bases of their own. Code that lies in one is not read: its ends differ.
    private var overrides: [UInt8] { decoder.mode.isSegmented ? [0x26, 0x36, 0x3E] : [0x26, 0x2E, 0x36, 0x3E] }

    /// How ModRM's mod and rm are made.
    private enum Operand: CaseIterable {
        case register, base, sib, relative
    }

    /// ModRM, SIB, and noise behind them.
    private func putOperand(_ operand: Operand, reg: UInt8, rm: UInt8? = nil) {
        let low = rm ?? random.byte() & 7
        switch operand {
        case .register: put(0xC0 | reg << 3 | low)
        case .base: put((random.byte() & 0xC0) % 0xC0 | reg << 3 | low)
        case .sib: put((random.byte() & 0xC0) % 0xC0 | reg << 3 | 4)
        case .relative: put(reg << 3 | 5)
        }
        for _ in 0..<14 { put(random.byte()) }
    }

    // MARK: Keeping

    /// Decodes what is in the buffer and keeps it if its form is a new one. Returns its mnemonic, 0 for none.
    @discardableResult
    private func take(_ context: UInt64) -> UInt32 {
        let status = decoder.decode(buffer, min(length, 15))
        var key = SiliconKey()
        guard status & 0x8000_0000 == 0 else {
            key.add(context)
            key.add(UInt64(status))
            if random.percent(undefinedShare) {
                keep(key.value, Array(UnsafeBufferPointer(start: buffer, count: 15)), isRisky ? .hidden : .undefined)
            }
            return 0
        }
        let mnemonic = decoder.mnemonic.rawValue
        decoder.addForm(to: &key, isThorough: undefinedShare == 100)
        let count = keys[key.value] ?? 0
        guard count < perForm else { return mnemonic }
        keep(key.value, Array(UnsafeBufferPointer(start: buffer, count: decoder.length)), decoder.treatment)
        return mnemonic
    }

    /// VMCALL, VMMCALL and their like: the CPU may take them where Zydis does not, and this host may be a guest.
    private var isRisky: Bool {
        for at in 0..<8 where buffer[at] == 0x0F { return buffer[at + 1] == 0x01 }
        return false
    }

    private func keep(_ key: UInt64, _ bytes: @autoclosure () -> [UInt8], _ treatment: @autoclosure () -> SiliconTreatment) {
        let count = keys[key, default: 0]
        guard count < perForm else { return }
        keys[key] = count + 1
        forms.append(Form(bytes: bytes(), treatment: treatment()))
    }

    // MARK: Maps

    private static let prefixes: [[UInt8]] = [
        [], [0x66], [0xF3], [0xF2], [0x66, 0xF3], [0xF2, 0x66], [0xF0], [0x66, 0xF0], [0x67], [0xF2, 0xF3], [0xF3, 0xF2],
        [0xF0, 0xF2], [0xF3, 0xF0],
    ]
    private static let escapes: [[UInt8]] = [[], [0x0F], [0x0F, 0x38], [0x0F, 0x3A]]

    private func legacy() {
        for (map, escape) in Self.escapes.enumerated() {
            for opcode in 0...255 as ClosedRange<UInt8> where !isPrefix(map, opcode) {
                for (number, prefix) in Self.prefixes.enumerated() {
                    legacy(UInt64(map), escape, opcode, UInt64(number), prefix)
                }
            }
        }
    }

    /// Bytes that do not stand for an opcode of the map.
    private func isPrefix(_ map: Int, _ opcode: UInt8) -> Bool {
        switch (map, opcode) {
        case (0, 0x26), (0, 0x2E), (0, 0x36), (0, 0x3E), (0, 0x64...0x67), (0, 0xF0), (0, 0xF2), (0, 0xF3), (0, 0x0F): true
        case (0, 0x40...0x4F), (0, 0xC4), (0, 0xC5), (0, 0x62): decoder.isLong
        case (1, 0x0F), (1, 0x38), (1, 0x3A): true
        default: false
        }
    }

    private func legacy(_ map: UInt64, _ escape: [UInt8], _ opcode: UInt8, _ number: UInt64, _ prefix: [UInt8]) {
        let context = map << 24 | UInt64(opcode) << 16 | number << 8
        func one(_ operand: Operand, reg: UInt8, rm: UInt8? = nil, rex: UInt8) -> UInt32 {
            length = 0
            // Overrides, needless ones among them: before the mandatory prefix and behind it.
            // 16-bit addresses reach the arena by fs and gs alone.
            if random.percent(prefix == [0x67] && !decoder.isLong ? 70 : 12) { put(random.pick([0x64, 0x65])) }
            if random.percent(4) { put(random.pick(overrides)) }
            for byte in prefix { put(byte) }
            if random.percent(3) { put(random.pick(overrides)) }
            if decoder.isLong {
                // A REX prefix in front of another prefix counts for nothing.
                if random.percent(2) {
                    put(0x40 | random.byte() & 15)
                    put(0x2E)
                }
                if rex != 0 { put(rex) }
            }
            for byte in escape { put(byte) }
            put(opcode)
            putOperand(operand, reg: reg, rm: rm)
            return take(context | (operand == .register ? 1 : 0))
        }
        // Does ModRM choose the instruction?
        var registers: Set<UInt32> = [], memories: Set<UInt32> = []
        for reg in 0..<8 as Range<UInt8> {
            registers.insert(one(.register, reg: reg, rex: 0))
            memories.insert(one(.base, reg: reg, rex: 0))
        }
        let isGroup = registers.count > 1 || memories.count > 1
        if isGroup && (opcode >= 0xD8 && opcode <= 0xDF && map == 0 || map == 1) {
            for modRM in 0..<64 as Range<UInt8> { _ = one(.register, reg: modRM >> 3, rm: modRM & 7, rex: 0) }
        }
        for rex in decoder.isLong ? [0, 0x40, 0x48, 0x40 | random.byte() & 7, 0x48 | random.byte() & 7] : [0, 0] as [UInt8] {
            for operand in Operand.allCases {
                for _ in 0..<(isGroup ? 1 : 2) {
                    for reg in 0..<(isGroup ? 8 : 1) as Range<UInt8> {
                        _ = one(operand, reg: isGroup ? reg : random.byte() & 7, rex: rex)
                    }
                }
            }
        }
    }

    private func vectors() {
        for map in 0..<32 as Range<UInt8> {
            for opcode in 0...255 as ClosedRange<UInt8> {
                for prefix in 0..<4 as Range<UInt8> {
                    // Empty maps are looked at, but not closely.
                    let isEmpty = map == 0 || map > 3
                    for form in 0..<(isEmpty ? 1 : 4) as Range<UInt8> { vex(map, opcode, prefix, form, isEmpty) }
                }
            }
        }
    }

    private func vex(_ map: UInt8, _ opcode: UInt8, _ prefix: UInt8, _ form: UInt8, _ isEmpty: Bool) {
        let context = 8 << 24 | UInt64(map) << 32 | UInt64(opcode) << 16 | UInt64(prefix) << 12 | UInt64(form) << 8
        func one(_ operand: Operand, reg: UInt8, hasRegister: Bool) -> UInt32 {
            length = 0
            let vvvv: UInt8 = hasRegister ? (random.byte() & 15) << 3 : 0x78
            let l = form >> 1, w = form & 1
            if random.percent(6) { put(random.pick([0x64, 0x65, 0x67, 0x3E])) }
            if map == 1 && w == 0 && random.percent(50) {
                put(0xC5)
                put((decoder.isLong ? random.byte() & 0x80 : 0x80) | vvvv | l << 2 | prefix)
            } else {
                put(0xC4)
                put((decoder.isLong ? random.byte() & 0xE0 : random.byte() & 0x20 | 0xC0) | map)
                put(w << 7 | vvvv | l << 2 | prefix)
            }
            // Outside of 64-bit code vvvv's top bit is part of what tells VEX from LDS in the short form.
            if !decoder.isLong && buffer[length - 2] == 0xC5 { buffer[length - 1] |= 0x40 }
            put(opcode)
            putOperand(operand, reg: reg)
            return take(context | (operand == .register ? 1 : 0) | (hasRegister ? 2 : 0))
        }
        if isEmpty {
            _ = one(.register, reg: random.byte() & 7, hasRegister: true)
            return
        }
        for hasRegister in [false, true] {
            var kinds: Set<UInt32> = []
            for reg in 0..<8 as Range<UInt8> { kinds.insert(one(.register, reg: reg, hasRegister: hasRegister)) }
            let isGroup = kinds.count > 1
            guard kinds != [0] || one(.base, reg: 1, hasRegister: hasRegister) != 0 else { continue }
            for operand in Operand.allCases {
                for reg in 0..<(isGroup ? 8 : 2) as Range<UInt8> {
                    _ = one(operand, reg: isGroup ? reg : random.byte() & 7, hasRegister: hasRegister)
                }
            }
        }
    }

    /// EVEX encodings, and the opmask instructions among VEX's.
    private func wide() {
        for map in [1, 2, 3, 5, 6] as [UInt8] {
            for opcode in 0...255 as ClosedRange<UInt8> {
                for prefix in 0..<4 as Range<UInt8> {
                    // The same in all modes, but for their registers: a part of them does outside of 64-bit code.
                    for form in 0..<8 as Range<UInt8> where decoder.isLong || undefinedShare == 100 || random.percent(20) {
                        evex(map, opcode, prefix, form)
                    }
                }
            }
        }
        for (map, opcodes) in [(1, 0x41...0x4B), (1, 0x90...0x93), (1, 0x98...0x99), (3, 0x30...0x33)] as [(UInt8, ClosedRange<UInt8>)] {
            for opcode in opcodes {
                for prefix in 0..<4 as Range<UInt8> {
                    for form in 0..<4 as Range<UInt8> { vex(map, opcode, prefix, form, false) }
                }
            }
        }
    }

    /// - Parameter form: bit 0 is W, bits 1 and 2 the length.
    private func evex(_ map: UInt8, _ opcode: UInt8, _ prefix: UInt8, _ form: UInt8) {
        let context = 12 << 24 | UInt64(map) << 32 | UInt64(opcode) << 16 | UInt64(prefix) << 12 | UInt64(form) << 8
        func one(_ operand: Operand, reg: UInt8, hasRegister: Bool, broadcast: Bool = false, mask: UInt8 = 0, zero: Bool = false) -> UInt32 {
            length = 0
            if random.percent(6) { put(random.pick([0x64, 0x65, 0x67, 0x3E])) }
            put(0x62)
            // Registers above 15 as often as not; outside of 64-bit code the bits are nobody's, or BOUND's.
            put((decoder.isLong ? random.byte() & 0xF0 : 0xC0 | (random.percent(90) ? 0x30 : random.byte() & 0x30)) | map)
            put((form & 1) << 7 | (hasRegister ? random.byte() & 0x78 : 0x78) | 4 | prefix)
            put(
                (zero ? 0x80 : 0) | (form >> 1) << 5 | (broadcast ? 0x10 : 0) | (hasRegister && decoder.isLong ? random.byte() & 8 : 8)
                    | mask)
            put(opcode)
            putOperand(operand, reg: reg)
            return take(context | (operand == .register ? 1 : 0) | (hasRegister ? 2 : 0) | (broadcast ? 4 : 0) | (mask != 0 ? 8 : 0) | (zero ? 16 : 0))
        }
        let isGroup = opcode >= 0x71 && opcode <= 0x73 && map == 1 || opcode & 0xFE == 0xC6 && map == 2
        for hasRegister in [false, true] {
            var kinds: Set<UInt32> = []
            for reg in 0..<(isGroup ? 8 : 1) as Range<UInt8> {
                kinds.insert(one(.register, reg: reg, hasRegister: hasRegister))
                kinds.insert(one(.base, reg: reg, hasRegister: hasRegister))
                kinds.insert(one(.sib, reg: reg, hasRegister: hasRegister, mask: 1))
            }
            guard kinds != [0] else { continue }
            for operand in Operand.allCases {
                for reg in 0..<(isGroup ? 8 : 1) as Range<UInt8> {
                    for broadcast in [false, true] {
                        for (mask, zero) in [(0, false), (1, false), (1, true)] as [(UInt8, Bool)] {
                            let mask = mask == 0 ? 0 : 1 + random.byte() % 7
                            _ = one(
                                operand, reg: isGroup ? reg : random.byte() & 7, hasRegister: hasRegister, broadcast: broadcast,
                                mask: mask, zero: zero)
                        }
                    }
                }
            }
        }
    }

    /// What CPUID does not show to every guest: 3DNow!, XOP, EVEX.
    private func foreign() {
        for opcode in 0...255 as ClosedRange<UInt8> {
            for operand in [.register, .base] as [Operand] {
                length = 0
                put(0x0F)
                put(0x0F)
                put(operand == .register ? 0xC1 : 0x01)
                put(opcode)
                for _ in 0..<12 { put(random.byte()) }
                take(9 << 24 | UInt64(opcode) << 16)
                for map in 8..<12 as Range<UInt8> {
                    length = 0
                    put(0x8F)
                    put(0xE0 | map)
                    put(random.byte() & 0x84 | 0x78)
                    put(opcode)
                    putOperand(operand, reg: random.byte() & 7)
                    take(10 << 24 | UInt64(opcode) << 16 | UInt64(map) << 8)
                }
                for map in 1..<7 as Range<UInt8> {
                    for prefix in 0..<4 as Range<UInt8> {
                        length = 0
                        put(0x62)
                        put((decoder.isLong ? random.byte() & 0xF0 : 0xF0) | map)
                        put(random.byte() & 0x80 | (random.percent(50) ? 0x78 : random.byte() & 0x38 | 0x40) | 4 | prefix)
                        put(random.byte() & 0x77 | 8)
                        put(opcode)
                        putOperand(operand, reg: random.byte() & 7)
                        take(11 << 24 | UInt64(opcode) << 16 | UInt64(map) << 8 | UInt64(prefix) << 4)
                    }
                }
            }
        }
    }
}

/// A hash of small numbers (FNV-1a on words): Swift's own is another one in each process.
struct SiliconKey {
    var value: UInt64 = 0xCBF2_9CE4_8422_2325
    mutating func add(_ word: UInt64) { value = (value ^ word) &* 0x0000_0100_0000_01B3 ^ value >> 29 }
}
