import CZydis

/// What takes the place of an instruction's register-or-memory operand.
enum Place {
    /// As it is: a register whose number is in the original encoding or given.
    case register(Int)
    /// `[address]`.
    case address
    /// `[base + displacement]`, in a run.
    case held(base: Int, Int32)
    /// `[base]` of an instruction that may not have a REX prefix.
    case legacyBase(Int)
    /// `gs:[offset]`: a guest register that lives in the context.
    case context(Int)
}

/// Copies of instructions with other registers and operands.
extension BlockBuilder {
    /// INC and DEC in one byte: in 64-bit code those bytes are REX prefixes.
    func isShortIncrement(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        !is64Bit && instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY
            && instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && instruction.pointee.opcode & 0xF0 == 0x40
    }
    /// Opcode 82 is another name for 80, which 64-bit code does not have.
    func isByteAlias(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        !is64Bit && instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY
            && instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && instruction.pointee.opcode == 0x82
    }

    /// Whether VEX.W or EVEX.W is the width of a general register.
    private static func hasGeneralWidth(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        let set = instruction.pointee.meta.isa_ext
        if set == ZYDIS_ISA_EXT_BMI1 || set == ZYDIS_ISA_EXT_BMI2 { return true }
        switch instruction.pointee.mnemonic {
        case ZYDIS_MNEMONIC_VCVTSI2SS, ZYDIS_MNEMONIC_VCVTSI2SD, ZYDIS_MNEMONIC_VCVTSS2SI, ZYDIS_MNEMONIC_VCVTSD2SI,
            ZYDIS_MNEMONIC_VCVTTSS2SI, ZYDIS_MNEMONIC_VCVTTSD2SI, ZYDIS_MNEMONIC_VMOVD, ZYDIS_MNEMONIC_VPCMPESTRI,
            ZYDIS_MNEMONIC_VPCMPESTRM, ZYDIS_MNEMONIC_VCVTUSI2SS, ZYDIS_MNEMONIC_VCVTUSI2SD, ZYDIS_MNEMONIC_VCVTSS2USI,
            ZYDIS_MNEMONIC_VCVTSD2USI, ZYDIS_MNEMONIC_VCVTTSS2USI, ZYDIS_MNEMONIC_VCVTTSD2USI, ZYDIS_MNEMONIC_VCVTSI2SH,
            ZYDIS_MNEMONIC_VCVTUSI2SH, ZYDIS_MNEMONIC_VCVTSH2SI, ZYDIS_MNEMONIC_VCVTSH2USI, ZYDIS_MNEMONIC_VCVTTSH2SI,
            ZYDIS_MNEMONIC_VCVTTSH2USI, ZYDIS_MNEMONIC_VPBROADCASTD:
            return true
        // VEX.W is not.
        case ZYDIS_MNEMONIC_VPINSRD, ZYDIS_MNEMONIC_VPEXTRD:
            return instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX
        default: return false
        }
    }

    /// VZEROUPPER and VZEROALL outside of 64-bit code: registers 8 to 15 keep their values.
    mutating func clearNarrow(_ instruction: UnsafePointer<ZydisDecodedInstruction>) {
        for register in 0..<8 as Range<UInt8> {
            code.byte(0xC5)
            if instruction.pointee.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER {
                // vmovaps xmm, xmm
                code.byte(0xF8)
                code.byte(0x28)
            } else {
                // vxorps xmm, xmm, xmm
                code.byte(0x80 | (~register & 15) << 3)
                code.byte(0x57)
            }
            code.byte(0xC0 | register << 3 | register)
        }
    }

    /// BSF and BSR, where the host may have TZCNT and LZCNT: a prefix before them is not copied.
    func isPlainScan(_ instruction: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        instruction.pointee.mnemonic == ZYDIS_MNEMONIC_BSF || instruction.pointee.mnemonic == ZYDIS_MNEMONIC_BSR
    }

    /// The EVEX prefix of `reencode`, and the opcode (SDM Vol. 2, 2.7.1). Bits that extend register numbers are inverted.
    private mutating func emitEVEX(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ bytes: UnsafePointer<UInt8>, reg: Int, place: Place, rmField: Int
    ) {
        let evex = Int(instruction.pointee.raw.evex.offset)
        // R, X, B, R' and the map; W, vvvv and pp; z, length, b, V' and the mask.
        var first = bytes[evex + 1], second = bytes[evex + 2], third = bytes[evex + 3]
        if !is64Bit {
            // As with VEX: ignored there, but not in the copy.
            first |= 0xF0
            second |= 0x40
            third |= 8
            if Self.hasGeneralWidth(instruction) { second &= 0x7F }
        }
        // General registers have no number above 15.
        if reg >= 0 { first = first & 0x6F | (reg & 8 == 0 ? 0x90 : 0x10) }
        if case .register(let number) = place, number < 0 {} else { first = first & 0x9F | (rmField & 8 == 0 ? 0x60 : 0x40) }
        code.byte(0x62)
        code.byte(first)
        code.byte(second)
        code.byte(third)
        code.byte(bytes[evex + 4])
    }

    /// Writes the instruction anew with other registers and operand places; -1 keeps what the original has.
    mutating func reencode(
        _ instruction: UnsafePointer<ZydisDecodedInstruction>, _ bytes: UnsafePointer<UInt8>, _ info: Instruction,
        reg: Int, place: Place, vvvv: Int, low: Int
    ) {
        let raw = instruction.pointee.raw
        let length = Int(info.length)
        if isShortIncrement(instruction) {
            if instruction.pointee.operand_width == 16 { code.byte(0x66) }
            code.rex(w: false, reg: 0, base: low)
            code.byte(0xFF)
            code.modRM(3, instruction.pointee.opcode & 8 == 0 ? 0 : 1, low)
            return
        }
        let hasModRM = raw.modrm.offset != 0
        // What follows ModRM, SIB and displacement is copied as it is.
        var immediate = length
        if raw.disp.size != 0 && hasModRM {
            immediate = Int(raw.disp.offset) + Int(raw.disp.size) / 8
        } else if raw.sib.offset != 0 {
            immediate = Int(raw.sib.offset) + 1
        } else if hasModRM {
            immediate = Int(raw.modrm.offset) + 1
        } else if raw.imm.0.size != 0 {
            immediate = Int(raw.imm.0.offset)
        }
        var regField = 0, rmField = 0
        var b = 0

        if instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX {
            let vex = Int(raw.vex.offset)
            let short = bytes[vex] == 0xC5
            let first = bytes[vex + 1]
            var second = short ? first & 0x7F : bytes[vex + 2]
            let map: UInt8 = short ? 1 : first & 0x1F
            let originalR = first & 0x80 == 0 ? 8 : 0
            // Outside of 64-bit code B, the top of vvvv and, for general registers, W are ignored; in the copy they
            // would name other registers and another width.
            let originalB = short || first & 0x20 != 0 || !is64Bit ? 0 : 8
            if !is64Bit {
                second |= 0x40
                if Self.hasGeneralWidth(instruction) { second &= 0x7F }
            }
            let opcodeAt = vex + (short ? 2 : 3)
            regField = reg >= 0 ? reg : Int(raw.modrm.reg) & 7 | originalR
            switch place {
            case .register(let number): rmField = number >= 0 ? number : Int(raw.modrm.rm) & 7 | originalB
            case .address: rmField = address
            case .held(let base, _): rmField = base
            case .legacyBase(let base): rmField = base
            case .context: rmField = 4
            }
            let v = vvvv >= 0 ? UInt8(truncatingIfNeeded: ~vvvv & 15) : second >> 3 & 15
            if case .context = place { code.byte(0x65) } else { b = rmField & 8 }
            code.byte(0xC4)
            code.byte((regField & 8 == 0 ? 0x80 : 0) | 0x40 | (b == 0 ? 0x20 : 0) | map)
            code.byte(second & 0x87 | v << 3)
            code.byte(bytes[opcodeAt])
        } else if instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX {
            regField = reg >= 0 ? reg : Int(raw.modrm.reg) & 7
            switch place {
            case .register(let number): rmField = number >= 0 ? number : Int(raw.modrm.rm) & 7
            case .address: rmField = address
            case .held(let base, _): rmField = base
            case .legacyBase(let base): rmField = base
            case .context: rmField = 4
            }
            emitEVEX(instruction, bytes, reg: reg, place: place, rmField: rmField)
        } else {
            // Prefixes that mean something to the copy: operand size, lock, and what F2 and F3 say.
            if case .context = place { code.byte(0x65) }
            // Each once: the copy may need bytes more than the original has, and 15 is the limit.
            // In 16-bit code the prefix means the other size.
            let isTurned = mode.codeSize == 2 && takesOperandSize(instruction)
            var position = 0
            var rexByte: UInt8 = 0
            var hasOperandSize = false, hasLock = false
            var repetition: UInt8 = 0
            while position < length {
                let prefix = bytes[position]
                if prefix == 0x66 || prefix == 0xF0 || prefix == 0xF2 || prefix == 0xF3 {
                    if prefix == 0x66 { hasOperandSize = true } else if prefix == 0xF0 { hasLock = true } else { repetition = prefix }
                    rexByte = 0
                } else if mode.codeSize == 0 && prefix & 0xF0 == 0x40 {
                    rexByte = prefix
                } else if prefix == 0x26 || prefix == 0x2E || prefix == 0x36 || prefix == 0x3E || prefix == 0x64
                    || prefix == 0x65 || prefix == 0x67
                {
                    rexByte = 0
                } else {
                    break
                }
                position += 1
            }
            if isTurned { hasOperandSize = instruction.pointee.operand_width == 16 }
            if hasOperandSize { code.byte(0x66) }
            if hasLock { code.byte(0xF0) }
            if repetition != 0 && (repetition != 0xF3 || !isPlainScan(instruction)) { code.byte(repetition) }
            let w = rexByte & 8
            if hasModRM {
                regField = reg >= 0 ? reg : Int(raw.modrm.reg) & 7 | Int(rexByte & 4) << 1
                switch place {
                case .register(let number): rmField = number >= 0 ? number : Int(raw.modrm.rm) & 7 | Int(rexByte & 1) << 3
                case .address: rmField = address
                case .held(let base, _): rmField = base
                case .legacyBase(let base): rmField = base
                case .context: rmField = 4
                }
                if case .context = place {} else { b = rmField & 8 }
            } else {
                b = low >= 0 ? low & 8 : Int(rexByte & 1) << 3
            }
            let rex = 0x40 | w | UInt8(truncatingIfNeeded: (regField & 8) >> 1 | b >> 3)
            if rex != 0x40 || rexByte != 0 { code.byte(rex) }
            // Escape bytes and the opcode: everything up to ModRM or, without it, the immediate.
            let opcodeEnd = hasModRM ? Int(raw.modrm.offset) : immediate
            while position < opcodeEnd {
                var value = isByteAlias(instruction) ? 0x80 : bytes[position]
                if !hasModRM && low >= 0 && position == opcodeEnd - 1 {
                    value = value & 0xF8 | UInt8(truncatingIfNeeded: low & 7)
                }
                code.byte(value)
                position += 1
            }
        }
        if hasModRM {
            switch place {
            case .register: code.modRM(3, regField, rmField)
            case .address: code.modRM(0, regField, rmField)
            case .held(_, let displacement) where instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && displacement != 0:
                // A short displacement would count in vectors or elements.
                code.modRM(2, regField, rmField)
                code.dword(displacement)
            case .held(_, let displacement): code.memory(regField, base: rmField, displacement)
            case .legacyBase(let base): code.modRM(0, regField, base)
            case .context(let offset): code.absolute(regField, Int32(truncatingIfNeeded: offset))
            }
        }
        for index in immediate..<length { code.byte(bytes[index]) }
        if !is64Bit && instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX
            && instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F3A && (0x4A...0x4C).contains(instruction.pointee.opcode)
        {
            // A register in the immediate: its top bit is ignored too.
            code.maskLastByte(0x7F)
        }
    }
}
