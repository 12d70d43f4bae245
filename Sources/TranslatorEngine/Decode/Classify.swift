import CZydis

/// Which way each instruction goes, from its opcode: the order of cases is that of the opcode maps (SDM Vol. 2,
/// appendix A).
enum Classifier {
    /// Sets everything but `offset`, `flagsLive` and `system`. `.system` still has to be taken apart.
    /// - Parameter shown: what CPUID shows; the rest raises #UD.
    static func classify(
        _ decoded: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>, mode: BlockMode,
        shown: InstructionSets
    ) -> Instruction {
        var result = Instruction(
            kind: .generic, vector: 0, length: decoded.pointee.length, usesVectors: false, offset: 0, flagsRead: 0,
            flagsWritten: 0, flagsLive: 0, modifiesFlags: false, system: 0)
        takeFlags(decoded, &result)
        let opcode = decoded.pointee.opcode
        let digit = decoded.pointee.raw.modrm.reg
        if decoded.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY {
            if decoded.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT {
                result.kind = oneByte(opcode, digit, decoded)
            } else if decoded.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F {
                result.kind = twoByte(opcode, digit, decoded, operands)
            } else if decoded.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F38 && (opcode >= 0x80 && opcode <= 0x82 || opcode >= 0xF5) {
                // CRC32 and MOVBE, ADCX and ADOX are copied; INVPCID and kin are not.
                let isUser = opcode == 0xF0 || opcode == 0xF1 || opcode == 0xF6
                result.kind = isUser ? .generic : .system
            }
        }
        // Hints of hidden extensions are NOPs; LAHF is in doubt in 64-bit code only.
        if result.kind != .nothing && !shown.contains(decoded.pointee.meta.isa_set)
            && (decoded.pointee.meta.isa_set != ZYDIS_ISA_SET_LAHF || mode.codeSize == 0)
        {
            raise(6, &result)
        }
        switch result.kind {
        case .generic: restrict(decoded, operands, mode, &result)
        case .ret, .callIndirect, .jumpIndirect, .call, .jump, .system:
            result.flagsRead = arithmeticFlags
        default: break
        }
        return result
    }

    /// What Zydis says of the arithmetic flags.
    static func takeFlags(_ decoded: UnsafePointer<ZydisDecodedInstruction>, _ result: inout Instruction) {
        guard let flags = decoded.pointee.cpu_flags else { return }
        result.flagsRead = flags.pointee.tested & arithmeticFlags
        let written =
            (flags.pointee.modified | flags.pointee.set_0 | flags.pointee.set_1 | flags.pointee.undefined) & arithmeticFlags
        result.modifiesFlags = written != 0
        result.flagsWritten = written
        if written != 0 && countMayBeZero(decoded) { result.flagsWritten = 0 }
    }

    /// Shifts and rotates leave all flags alone when the masked count is 0.
    private static func countMayBeZero(_ decoded: UnsafePointer<ZydisDecodedInstruction>) -> Bool {
        guard decoded.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY else { return false }
        let opcode = decoded.pointee.opcode
        if decoded.pointee.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT {
            return opcode == 0xC0 || opcode == 0xC1 ? decoded.pointee.raw.imm.0.value.u & 0x1F == 0 : opcode == 0xD2 || opcode == 0xD3
        }
        if decoded.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F {
            return opcode == 0xA4 || opcode == 0xAC
                ? decoded.pointee.raw.imm.0.value.u & 0x1F == 0 : opcode == 0xA5 || opcode == 0xAD
        }
        return false
    }

    private static func oneByte(
        _ opcode: UInt8, _ digit: UInt8, _ decoded: UnsafePointer<ZydisDecodedInstruction>
    ) -> InstructionKind {
        switch opcode {
        case 0x00..<0x40:
            // Pushes and pops of segments, and the decimal adjustments.
            return opcode & 7 >= 6 ? .system : .generic
        case 0x40..<0x50: return .generic
        case 0x50..<0x58: return .push
        case 0x58..<0x60: return .pop
        case 0x63: return decoded.pointee.mnemonic == ZYDIS_MNEMONIC_MOVSXD ? .generic : .system
        case 0x68, 0x6A: return .push
        case 0x69, 0x6B: return .generic
        case 0x70..<0x80: return .conditional
        case 0x80...0x8B: return .generic
        case 0x8D: return .lea
        case 0x8F: return .pop
        case 0x90:
            // XCHG with r8 has the same opcode.
            return decoded.pointee.mnemonic == ZYDIS_MNEMONIC_NOP ? .nothing : .generic
        case 0x91...0x99, 0x9B, 0x9E, 0x9F, 0xA8, 0xA9, 0xB0..<0xC0, 0xC0, 0xC1: return .generic
        case 0xA0...0xA3: return .absoluteMove
        case 0xC2, 0xC3: return .ret
        case 0xC6, 0xC7: return digit == 0 ? .generic : .system
        case 0xC9: return .leave
        case 0xD0...0xD3, 0xD8...0xDF: return .generic
        case 0xE0...0xE3: return .counted
        case 0xE8: return .call
        case 0xE9, 0xEB: return .jump
        case 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFE: return .generic
        case 0xFF:
            switch digit {
            case 0, 1: return .generic
            case 2: return .callIndirect
            case 4: return .jumpIndirect
            case 6: return .push
            default: return .system
            }
        default: return .system
        }
    }

    private static func twoByte(
        _ opcode: UInt8, _ digit: UInt8, _ decoded: UnsafePointer<ZydisDecodedInstruction>,
        _ operands: UnsafePointer<ZydisDecodedOperand>
    ) -> InstructionKind {
        switch opcode {
        case 0x0D where decoded.pointee.raw.modrm.mod == 3:
            // A NOP on Intel's CPUs, #UD on AMD's: as the host has it.
            return .generic
        case 0x0D, 0x18...0x1F:
            // Hints and wide NOPs, which the hidden extensions in this range (CET, MPX) become.
            return .nothing
        case 0x10...0x17, 0x28...0x2F, 0x40..<0x78, 0x7C...0x7F, 0x90..<0xA0: return .generic
        case 0x80..<0x90: return .conditional
        case 0xA3, 0xAB, 0xB3, 0xBB: return operands.pointee.type == ZYDIS_OPERAND_TYPE_MEMORY ? .bitString : .generic
        case 0xA4, 0xA5, 0xAC, 0xAD, 0xAF, 0xB0, 0xB1, 0xB6, 0xB7, 0xB8, 0xBA, 0xBC...0xBF: return .generic
        case 0xAE:
            // LDMXCSR, STMXCSR and the fences; not FXSAVE and kin, not the fs and gs base moves, not CLFLUSH.
            switch decoded.pointee.mnemonic {
            case ZYDIS_MNEMONIC_LDMXCSR, ZYDIS_MNEMONIC_STMXCSR, ZYDIS_MNEMONIC_LFENCE, ZYDIS_MNEMONIC_MFENCE,
                ZYDIS_MNEMONIC_SFENCE:
                return .generic
            default: return .system
            }
        case 0xC7:
            switch decoded.pointee.mnemonic {
            case ZYDIS_MNEMONIC_CMPXCHG8B, ZYDIS_MNEMONIC_CMPXCHG16B, ZYDIS_MNEMONIC_RDRAND, ZYDIS_MNEMONIC_RDSEED:
                return .generic
            default: return .system
            }
        case 0xC0...0xC6, 0xC8..<0xD0: return .generic
        case 0xD0...0xFE: return .generic
        default: return .system
        }
    }

    /// Vector instructions in a mode that forbids them, and extensions that CPUID hides.
    private static func restrict(
        _ decoded: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>, _ mode: BlockMode,
        _ result: inout Instruction
    ) {
        switch decoded.pointee.encoding {
        case ZYDIS_INSTRUCTION_ENCODING_LEGACY: break
        case ZYDIS_INSTRUCTION_ENCODING_VEX where !mode.has(BlockMode.eightySix),
            ZYDIS_INSTRUCTION_ENCODING_EVEX where !mode.has(BlockMode.eightySix):
            break
        default:
            raise(6, &result)
            return
        }
        var isVector = false
        for index in 0..<Int(decoded.pointee.operand_count) {
            let operand = operands + index
            if operand.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER && Operand.isVector(operand.pointee.reg.value) {
                isVector = true
            }
            // The inline check and the bounce buffer need a length, and not one longer than FNSAVE's.
            if operand.pointee.type == ZYDIS_OPERAND_TYPE_MEMORY && operand.pointee.mem.type == ZYDIS_MEMOP_TYPE_MEM
                && (operand.pointee.size == 0 || operand.pointee.size > 128 * 8)
            {
                raise(6, &result)
                return
            }
        }
        let extensionSet = decoded.pointee.meta.isa_ext
        switch extensionSet {
        case ZYDIS_ISA_EXT_BASE: break
        case ZYDIS_ISA_EXT_X87:
            isVector = false
            let traps =
                decoded.pointee.mnemonic == ZYDIS_MNEMONIC_FWAIT
                ? BlockMode.waitTrap : BlockMode.fpuTrap | BlockMode.fpuAbsent
            if mode.has(traps) { raise(7, &result) }
            return
        case ZYDIS_ISA_EXT_AVX, ZYDIS_ISA_EXT_AVX2, ZYDIS_ISA_EXT_AVX2GATHER, ZYDIS_ISA_EXT_AVXAES, ZYDIS_ISA_EXT_F16C,
            ZYDIS_ISA_EXT_FMA, ZYDIS_ISA_EXT_VAES, ZYDIS_ISA_EXT_VPCLMULQDQ:
            isVector = true
        case ZYDIS_ISA_EXT_AVX512EVEX, ZYDIS_ISA_EXT_AVX512VEX:
            isVector = true
            result.usesWideState = true
        default: break
        }
        if !isVector && usesControl(decoded.pointee.mnemonic) { isVector = true }
        if isVector {
            result.usesVectors = true
            if decoded.pointee.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY {
                // A move of 64 bits to or from a general register, which 32-bit code does not have. EVEX.W is ignored there.
                let isWide =
                    decoded.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && decoded.pointee.raw.vex.W != 0 && mode.codeSize != 0 && decoded.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F3A
                    && (decoded.pointee.opcode == 0x16 || decoded.pointee.opcode == 0x22)
                if mode.has(result.usesWideState ? BlockMode.noAVX512 : BlockMode.noAVX) || isWide {
                    raise(6, &result)
                    return
                }
            } else if mode.has(BlockMode.fpuAbsent) || mode.has(BlockMode.noSSE) && extensionSet != ZYDIS_ISA_EXT_MMX {
                raise(6, &result)
                return
            }
            if mode.has(BlockMode.fpuTrap) { raise(7, &result) }
        }
        if result.kind == .generic && isVector && touchesElements(decoded.pointee.mnemonic) {
            result.kind = .system
            result.usesVectors = false
        }
    }

    /// Conversions from memory to a general register: no vector register, but MXCSR.
    private static func usesControl(_ mnemonic: ZydisMnemonic) -> Bool {
        switch mnemonic {
        case ZYDIS_MNEMONIC_CVTSS2SI, ZYDIS_MNEMONIC_CVTSD2SI, ZYDIS_MNEMONIC_CVTTSS2SI, ZYDIS_MNEMONIC_CVTTSD2SI,
            ZYDIS_MNEMONIC_VCVTSS2SI, ZYDIS_MNEMONIC_VCVTSD2SI, ZYDIS_MNEMONIC_VCVTTSS2SI, ZYDIS_MNEMONIC_VCVTTSD2SI:
            return true
        default: return false
        }
    }

    /// Gathers, scatters and AVX's moves under a mask, which the system half does element by element.
    private static func touchesElements(_ mnemonic: ZydisMnemonic) -> Bool {
        switch mnemonic {
        case ZYDIS_MNEMONIC_VMASKMOVPS, ZYDIS_MNEMONIC_VMASKMOVPD, ZYDIS_MNEMONIC_VPMASKMOVD, ZYDIS_MNEMONIC_VPMASKMOVQ,
            ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU, ZYDIS_MNEMONIC_MASKMOVQ, ZYDIS_MNEMONIC_VGATHERDPS,
            ZYDIS_MNEMONIC_VGATHERDPD, ZYDIS_MNEMONIC_VGATHERQPS, ZYDIS_MNEMONIC_VGATHERQPD, ZYDIS_MNEMONIC_VPGATHERDD,
            ZYDIS_MNEMONIC_VPGATHERDQ, ZYDIS_MNEMONIC_VPGATHERQD, ZYDIS_MNEMONIC_VPGATHERQQ, ZYDIS_MNEMONIC_VSCATTERDPS,
            ZYDIS_MNEMONIC_VSCATTERDPD, ZYDIS_MNEMONIC_VSCATTERQPS, ZYDIS_MNEMONIC_VSCATTERQPD, ZYDIS_MNEMONIC_VPSCATTERDD,
            ZYDIS_MNEMONIC_VPSCATTERDQ, ZYDIS_MNEMONIC_VPSCATTERQD, ZYDIS_MNEMONIC_VPSCATTERQQ:
            return true
        default: return false
        }
    }

    private static func raise(_ vector: UInt8, _ result: inout Instruction) {
        result.kind = .exception
        result.vector = vector
        result.usesVectors = false
        result.flagsRead = arithmeticFlags
    }
}
