package import CZydis

/// How the translator treats an instruction.
package enum InstructionKind: UInt8 {
    /// Copied, with registers and memory operand exchanged.
    case generic
    /// No effect that a guest can see: NOP, ENDBR, prefetches (which must not fault).
    case nothing
    case lea, push, pop, leave
    case call, callIndirect, jump, jumpIndirect, ret, conditional, counted
    /// BT, BTS, BTR, BTC with a memory operand and a register index: the index reaches beyond the operand.
    case bitString
    /// MOV between the accumulator and an absolute 64-bit address.
    case absoluteMove
    /// For the system half: as the block's end, in the middle of it, or by code of its own.
    case system, systemCall, systemInline
    /// Raises an exception instead of running.
    case exception
}

/// One decoded guest instruction of the block at hand.
package struct Instruction {
    package var kind: InstructionKind
    /// Exception vector of `.exception`.
    package var vector: UInt8
    package var length: UInt8
    package var usesVectors: Bool
    /// AVX-512: EVEX, or an opmask register.
    package var usesWideState = false
    /// From the start of the code page.
    package var offset: Int
    /// Arithmetic flags (RFLAGS bits) read, surely written, and live before it.
    package var flagsRead: UInt32
    package var flagsWritten: UInt32
    package var flagsLive: UInt32
    /// Of a conditional branch: live where it leads to.
    package var flagsTaken: UInt32 = 0
    /// Whether it may write any: a shift by CL writes none when the count is 0.
    package var modifiesFlags: Bool
    /// Index in the pool, for `.system`.
    package var system: Int
}

/// The arithmetic flags in RFLAGS: CF PF AF ZF SF OF.
package let arithmeticFlags: UInt32 = 0x8D5

/// Zydis as the translator uses it: a decoder for each code size.
package struct Decoder {
    private var long = ZydisDecoder()
    private var protected = ZydisDecoder()
    private var real = ZydisDecoder()
    package static let operandLimit = 10

    package init(shown: InstructionSets) {
        ZydisDecoderInit(&long, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        ZydisDecoderInit(&protected, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        ZydisDecoderInit(&real, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16)
        setModes(&long, shown)
        setModes(&protected, shown)
        setModes(&real, shown)
    }

    private func setModes(_ decoder: UnsafeMutablePointer<ZydisDecoder>, _ shown: InstructionSets) {
        // Without MPX its opcodes are NOPs with any operands (SDM Vol. 2, appendix A).
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, 0)
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_LZCNT, shown.hasLZCNT ? 1 : 0)
        ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_TZCNT, shown.hasTZCNT ? 1 : 0)
    }

    /// Decodes with operands. `false`: not an instruction, or cut short.
    @inline(__always)
    package mutating func decode(
        codeSize: Int, _ bytes: UnsafeRawPointer, _ count: Int, _ instruction: UnsafeMutablePointer<ZydisDecodedInstruction>,
        _ operands: UnsafeMutablePointer<ZydisDecodedOperand>
    ) -> ZyanStatus {
        switch codeSize {
        case 0: ZydisDecoderDecodeFull(&long, bytes, ZyanUSize(count), instruction, operands)
        case 1: ZydisDecoderDecodeFull(&protected, bytes, ZyanUSize(count), instruction, operands)
        default: ZydisDecoderDecodeFull(&real, bytes, ZyanUSize(count), instruction, operands)
        }
    }

    /// Decodes without operands.
    @inline(__always)
    package mutating func decodeBriefly(
        codeSize: Int, _ bytes: UnsafeRawPointer, _ count: Int, _ instruction: UnsafeMutablePointer<ZydisDecodedInstruction>
    ) -> Bool {
        let status =
            switch codeSize {
            case 0: ZydisDecoderDecodeInstruction(&long, nil, bytes, ZyanUSize(count), instruction)
            case 1: ZydisDecoderDecodeInstruction(&protected, nil, bytes, ZyanUSize(count), instruction)
            default: ZydisDecoderDecodeInstruction(&real, nil, bytes, ZyanUSize(count), instruction)
            }
        return status & 0x8000_0000 == 0
    }
}

/// Register numbers behind Zydis's names.
package enum Operand {
    /// The number (0-15) of a general register of any width, -1 for anything else. High bytes give 4-7: use
    /// `isHighByte` first.
    @inline(__always) package static func general(_ register: ZydisRegister) -> Int {
        let value = Int(register.rawValue)
        if value >= Int(ZYDIS_REGISTER_RAX.rawValue) && value <= Int(ZYDIS_REGISTER_R15.rawValue) {
            return value - Int(ZYDIS_REGISTER_RAX.rawValue)
        }
        if value >= Int(ZYDIS_REGISTER_EAX.rawValue) && value <= Int(ZYDIS_REGISTER_R15D.rawValue) {
            return value - Int(ZYDIS_REGISTER_EAX.rawValue)
        }
        if value >= Int(ZYDIS_REGISTER_AX.rawValue) && value <= Int(ZYDIS_REGISTER_R15W.rawValue) {
            return value - Int(ZYDIS_REGISTER_AX.rawValue)
        }
        if value >= Int(ZYDIS_REGISTER_AL.rawValue) && value <= Int(ZYDIS_REGISTER_BL.rawValue) {
            return value - Int(ZYDIS_REGISTER_AL.rawValue)
        }
        if value >= Int(ZYDIS_REGISTER_SPL.rawValue) && value <= Int(ZYDIS_REGISTER_R15B.rawValue) {
            return value - Int(ZYDIS_REGISTER_SPL.rawValue) + 4
        }
        if isHighByte(register) { return value - Int(ZYDIS_REGISTER_AH.rawValue) + 4 }
        return -1
    }
    @inline(__always) package static func isHighByte(_ register: ZydisRegister) -> Bool {
        register.rawValue >= ZYDIS_REGISTER_AH.rawValue && register.rawValue <= ZYDIS_REGISTER_BH.rawValue
    }
    /// 32-bit general registers, as address parts under a 67 prefix.
    @inline(__always) package static func is32Bit(_ register: ZydisRegister) -> Bool {
        register.rawValue >= ZYDIS_REGISTER_EAX.rawValue && register.rawValue <= ZYDIS_REGISTER_R15D.rawValue
    }
    /// 16-bit general registers, as parts of 16-bit addresses.
    @inline(__always) package static func is16Bit(_ register: ZydisRegister) -> Bool {
        register.rawValue >= ZYDIS_REGISTER_AX.rawValue && register.rawValue <= ZYDIS_REGISTER_R15W.rawValue
    }
    /// x87, MMX, SSE and AVX registers and MXCSR.
    @inline(__always) package static func isVector(_ register: ZydisRegister) -> Bool {
        let value = register.rawValue
        return (value >= ZYDIS_REGISTER_ST0.rawValue && value <= ZYDIS_REGISTER_ZMM31.rawValue)
            || register == ZYDIS_REGISTER_MXCSR
    }
}
