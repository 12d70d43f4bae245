import CZydis
import TranslatorEngine

/// Which form the decoded instruction is of, and what to do with it.
extension SiliconDecoder {
    /// Opcode, mnemonic, sizes, prefixes that matter, and what kinds of operands there are.
    /// - Parameter isThorough: with each kind of register as a part of addresses.
    func addForm(to key: inout SiliconKey, isThorough: Bool) {
        let i = instruction
        key.add(UInt64(i.pointee.mnemonic.rawValue))
        key.add(UInt64(i.pointee.encoding.rawValue) << 32 | UInt64(i.pointee.opcode_map.rawValue) << 8 | UInt64(i.pointee.opcode))
        key.add(UInt64(i.pointee.operand_width) << 8 | UInt64(i.pointee.address_width))
        let marks = [ZYDIS_ATTRIB_HAS_LOCK, ZYDIS_ATTRIB_HAS_REP, ZYDIS_ATTRIB_HAS_REPE, ZYDIS_ATTRIB_HAS_REPNE]
        var attributes: UInt64 = 0
        for mark in marks where i.pointee.attributes & UInt64(mark) != 0 { attributes |= UInt64(mark) }
        key.add(attributes)
        key.add(UInt64(i.pointee.avx.vector_length))
        if i.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX {
            let avx = i.pointee.avx
            key.add(UInt64(avx.mask.mode.rawValue) << 32 | UInt64(avx.broadcast.mode.rawValue) << 8 | UInt64(avx.rounding.mode.rawValue))
            key.add(UInt64(avx.has_sae))
        }
        for number in 0..<Int(i.pointee.operand_count) {
            let operand = operands + number
            key.add(UInt64(operand.pointee.type.rawValue) << 32 | UInt64(operand.pointee.size))
            if operand.pointee.type == ZYDIS_OPERAND_TYPE_REGISTER {
                key.add(kind(operand.pointee.reg.value))
            } else if operand.pointee.type == ZYDIS_OPERAND_TYPE_MEMORY {
                let memory = operand.pointee.mem
                key.add(UInt64(memory.type.rawValue) << 8 | (memory.disp.has_displacement != 0 ? 1 : 0))
                // The forms of AVX-512 are many, and addresses are made alike for all instructions.
                let isCoarse = i.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && !isThorough
                let base = kind(memory.base), index = kind(memory.index)
                key.add(isCoarse ? (base == 2 ? 2 : 1) << 8 | min(index, 1) : base << 8 | index)
                key.add(UInt64(memory.segment == ZYDIS_REGISTER_FS || memory.segment == ZYDIS_REGISTER_GS ? 1 : 0))
            }
        }
    }

    var hasWideOperand: Bool {
        (0..<Int(instruction.pointee.operand_count)).contains {
            operands[$0].type == ZYDIS_OPERAND_TYPE_MEMORY && operands[$0].size >= 128
        }
    }

    var isMasked: Bool { instruction.pointee.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && instruction.pointee.raw.evex.aaa != 0 }

    /// Registers that the translator treats alike.
    private func kind(_ register: ZydisRegister) -> UInt64 {
        let value = register.rawValue
        if register == ZYDIS_REGISTER_RIP || register == ZYDIS_REGISTER_EIP { return 2 }
        let general = Operand.general(register)
        guard general >= 0 else { return value == 0 ? 0 : 1 }
        if Operand.isHighByte(register) { return 3 }
        if general == 4 { return 4 }
        return general >= 13 ? 5 : 6
    }

    var treatment: SiliconTreatment {
        let i = instruction
        if !shown.contains(i.pointee.meta.isa_set) { return isHarmless ? .hidden : .skip }
        if Self.skipped.contains(i.pointee.mnemonic.rawValue) { return .skip }
        switch i.pointee.meta.category {
        case ZYDIS_CATEGORY_SYSCALL, ZYDIS_CATEGORY_SYSRET, ZYDIS_CATEGORY_RDRAND, ZYDIS_CATEGORY_RDSEED, ZYDIS_CATEGORY_XSAVE,
            ZYDIS_CATEGORY_XSAVEOPT, ZYDIS_CATEGORY_CALL, ZYDIS_CATEGORY_COND_BR, ZYDIS_CATEGORY_UNCOND_BR, ZYDIS_CATEGORY_RET:
            return .skip
        default: break
        }
        if isComparable { return .compare }
        switch mnemonic {
        case ZYDIS_MNEMONIC_INT3, ZYDIS_MNEMONIC_INTO, ZYDIS_MNEMONIC_BOUND: return .compare
        default: break
        }
        // In ring 3 these are #GP, whatever their operands are.
        if i.pointee.attributes & UInt64(ZYDIS_ATTRIB_IS_PRIVILEGED) != 0 { return .compare }
        switch i.pointee.meta.category {
        case ZYDIS_CATEGORY_IO, ZYDIS_CATEGORY_IOSTRINGOP: return .compare
        default: return .skip
        }
    }

    /// Zydis tells LZCNT and TZCNT from BSR and BSF by a prefix that CPUs without them ignore; hints are NOPs.
    private var isHarmless: Bool {
        switch mnemonic {
        case ZYDIS_MNEMONIC_LZCNT, ZYDIS_MNEMONIC_TZCNT: false
        default: !(instruction.pointee.opcode_map == ZYDIS_OPCODE_MAP_0F && 0x18...0x1F ~= instruction.pointee.opcode)
        }
    }

    private static let skipped: Set<UInt32> = Set(
        [
            // Calls of the host's kernel and its hypervisor.
            ZYDIS_MNEMONIC_INT, ZYDIS_MNEMONIC_SYSCALL, ZYDIS_MNEMONIC_SYSENTER, ZYDIS_MNEMONIC_VMCALL, ZYDIS_MNEMONIC_VMMCALL,
            // A hypervisor below may not know where it was.
            ZYDIS_MNEMONIC_INT1,
            // The host's kernel answers for the CPU (UMIP).
            ZYDIS_MNEMONIC_SGDT, ZYDIS_MNEMONIC_SIDT, ZYDIS_MNEMONIC_SLDT, ZYDIS_MNEMONIC_STR, ZYDIS_MNEMONIC_SMSW,
            // The translator's may come or go.
            ZYDIS_MNEMONIC_INVPCID,
            // Depend on tables, time, and what else runs.
            ZYDIS_MNEMONIC_LAR, ZYDIS_MNEMONIC_LSL, ZYDIS_MNEMONIC_VERR, ZYDIS_MNEMONIC_VERW, ZYDIS_MNEMONIC_RDPMC,
            ZYDIS_MNEMONIC_IRET, ZYDIS_MNEMONIC_IRETD, ZYDIS_MNEMONIC_IRETQ,
        ].map(\.rawValue))
}
