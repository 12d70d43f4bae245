package import CZydis

// From Zydis's decode to `SystemInstruction`. Everything that is not named here is copied by the translator, so
// what must not run on the host's CPU is named even if the guest's CPU does not have it: it becomes #UD.
extension SystemInstruction {
    /// `nil` when the instruction is none of the system's: it may be copied.
    /// - Parameter operands: all operands of a full decode, hidden ones included.
    package init?(
        _ decoded: UnsafePointer<ZydisDecodedInstruction>, operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        guard let kind = Self.kind(decoded, operands) else { return nil }
        self.init(kind: kind)
        let instruction = decoded.pointee
        length = instruction.length
        operandSize = instruction.operand_width / 8
        addressSize = instruction.address_width / 8
        let attributes = instruction.attributes
        if attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE) != 0 { options.insert(.rep) }
        if attributes & ZYDIS_ATTRIB_HAS_REPNE != 0 { options.insert(.repne) }
        takeOperands(instruction, operands)
        takeSpecial(instruction, operands)
        if Self.endsBlock(kind, isLong: instruction.machine_mode == ZYDIS_MACHINE_MODE_LONG_64, register: register) {
            options.insert(.endsBlock)
        }
        // A repeated string instruction may stop in the middle for an interrupt, with RIP at itself.
        if isRepeated { options.insert(.endsBlock) }
    }

    // MARK: Operands

    private mutating func takeOperands(
        _ instruction: ZydisDecodedInstruction, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        for number in 0..<Int(instruction.operand_count) {
            let operand = operands[number]
            switch operand.type {
            case ZYDIS_OPERAND_TYPE_REGISTER:
                guard operand.visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN else { continue }
                let id = UInt8(truncatingIfNeeded: Int(ZydisRegisterGetId(operand.reg.value)))
                switch operand.encoding {
                case ZYDIS_OPERAND_ENCODING_MODRM_RM: rm = id & 15
                case ZYDIS_OPERAND_ENCODING_MODRM_REG: register = id & 15
                default:
                    if ZydisRegisterGetClass(operand.reg.value) == ZYDIS_REGCLASS_SEGMENT { register = id & 15 }
                }
            case ZYDIS_OPERAND_TYPE_MEMORY:
                guard operand.encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM else { continue }
                takeAddress(operand.mem)
            case ZYDIS_OPERAND_TYPE_IMMEDIATE:
                immediate = operand.imm.value.s
            case ZYDIS_OPERAND_TYPE_POINTER:
                immediate = Int64(operand.ptr.segment) << 32 | Int64(operand.ptr.offset)
            default: continue
            }
        }
    }

    mutating func takeAddress(_ memory: ZydisDecodedOperandMem) {
        options.insert(.memory)
        segment = Self.segmentNumber(memory.segment)
        displacement = memory.disp.has_displacement != 0 ? memory.disp.value : 0
        if memory.base == ZYDIS_REGISTER_RIP || memory.base == ZYDIS_REGISTER_EIP {
            options.insert(.ripRelative)
        } else if memory.base != ZYDIS_REGISTER_NONE {
            base = UInt8(truncatingIfNeeded: Int(ZydisRegisterGetId(memory.base))) & 15
        }
        if memory.index != ZYDIS_REGISTER_NONE {
            index = UInt8(truncatingIfNeeded: Int(ZydisRegisterGetId(memory.index))) & 15
            scale = memory.scale
        }
    }

    private static func segmentNumber(_ segment: ZydisRegister) -> UInt8 {
        let id = UInt8(truncatingIfNeeded: Int(ZydisRegisterGetId(segment)))
        return id <= SegmentNumber.gs ? id : SegmentNumber.ds
    }

    /// What the general rule above does not give right.
    private mutating func takeSpecial(
        _ instruction: ZydisDecodedInstruction, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) {
        switch kind {
        case .pushFlags, .popFlags, .iret, .pushAll, .popAll: operandSize = Self.sizeByMnemonic(instruction.mnemonic)
        case .inPort:
            operandSize = UInt8(truncatingIfNeeded: operands[0].size / 8)
            takePort(operands[1])
        case .outPort:
            operandSize = UInt8(truncatingIfNeeded: operands[1].size / 8)
            takePort(operands[0])
        case .inString, .outString, .movs, .cmps, .scas, .lods, .stos:
            operandSize = Self.stringWidth(instruction.opcode, operandWidth: operandSize)
            segment = SegmentNumber.ds
            for number in 0..<Int(instruction.operand_count) where operands[number].type == ZYDIS_OPERAND_TYPE_MEMORY {
                // The destination is always ES:DI; an override is the source's.
                let memory = operands[number].mem
                if ZydisRegisterGetId(memory.base) == 6 { segment = Self.segmentNumber(memory.segment) }
            }
        case .xlat:
            for number in 0..<Int(instruction.operand_count) where operands[number].type == ZYDIS_OPERAND_TYPE_MEMORY {
                segment = Self.segmentNumber(operands[number].mem.segment)
            }
        case .storeSegment:
            // A register destination takes the operand size, memory always 16 bits.
            operandSize = isMemory ? 2 : UInt8(truncatingIfNeeded: operands[0].size / 8)
        case .readControl, .writeControl, .readDebug, .writeDebug:
            operandSize = instruction.machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? 8 : 4
        case .readFSBase, .readGSBase, .writeFSBase, .writeGSBase, .rdpid:
            operandSize = UInt8(truncatingIfNeeded: operands[0].size / 8)
        case .loadFarPointer:
            switch instruction.mnemonic {
            case ZYDIS_MNEMONIC_LES: immediate = Int64(SegmentNumber.es)
            case ZYDIS_MNEMONIC_LDS: immediate = Int64(SegmentNumber.ds)
            case ZYDIS_MNEMONIC_LSS: immediate = Int64(SegmentNumber.ss)
            case ZYDIS_MNEMONIC_LFS: immediate = Int64(SegmentNumber.fs)
            default: immediate = Int64(SegmentNumber.gs)
            }
            operandSize = UInt8(truncatingIfNeeded: operands[0].size / 8)
        case .farJumpIndirect, .farCallIndirect:
            // m16:16, m16:32, m16:64
            operandSize = UInt8(truncatingIfNeeded: operands[0].size / 8 &- 2)
        case .enter:
            // Size and nesting level are two immediates.
            immediate = Int64(bitPattern: operands[0].imm.value.u & 0xFFFF | (operands[1].imm.value.u & 0x1F) << 16)
        case .sysret, .sysexit, .xsave, .xsaveopt, .xsavec, .xsaves, .xrstor, .xrstors, .fxsave, .fxrstor:
            operandSize = Self.hasWideOperand(instruction) ? 8 : 4
        default: break
        }
    }

    private mutating func takePort(_ operand: ZydisDecodedOperand) {
        // -1: the port is in DX.
        immediate = operand.type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? Int64(bitPattern: operand.imm.value.u & 0xFF) : -1
    }

    private static func hasWideOperand(_ instruction: ZydisDecodedInstruction) -> Bool {
        instruction.attributes & ZYDIS_ATTRIB_HAS_REX != 0 && instruction.raw.rex.W != 0
    }

    private static func sizeByMnemonic(_ mnemonic: ZydisMnemonic) -> UInt8 {
        switch mnemonic {
        case ZYDIS_MNEMONIC_PUSHF, ZYDIS_MNEMONIC_POPF, ZYDIS_MNEMONIC_IRET, ZYDIS_MNEMONIC_PUSHA,
            ZYDIS_MNEMONIC_POPA:
            return 2
        case ZYDIS_MNEMONIC_PUSHFQ, ZYDIS_MNEMONIC_POPFQ, ZYDIS_MNEMONIC_IRETQ: return 8
        default: return 4
        }
    }

    /// Even opcodes of string instructions are the byte forms; port strings have no 64-bit form.
    private static func stringWidth(_ opcode: UInt8, operandWidth: UInt8) -> UInt8 {
        if opcode & 1 == 0 { return 1 }
        if opcode & 0xFC == 0x6C { return operandWidth == 2 ? 2 : 4 }
        return operandWidth
    }

    // MARK: Which instructions

    private static func kind(
        _ decoded: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) -> Kind? {
        switch decoded.pointee.mnemonic {
        case ZYDIS_MNEMONIC_MOV: return moveKind(decoded, operands)
        case ZYDIS_MNEMONIC_PUSH: return isSegment(operands[0]) ? .pushSegment : nil
        case ZYDIS_MNEMONIC_POP: return isSegment(operands[0]) ? .popSegment : nil
        case ZYDIS_MNEMONIC_JMP:
            guard decoded.pointee.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR else { return nil }
            return operands[0].type == ZYDIS_OPERAND_TYPE_POINTER ? .farJumpDirect : .farJumpIndirect
        case ZYDIS_MNEMONIC_CALL:
            guard decoded.pointee.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR else { return nil }
            return operands[0].type == ZYDIS_OPERAND_TYPE_POINTER ? .farCallDirect : .farCallIndirect
        case ZYDIS_MNEMONIC_RET:
            return decoded.pointee.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? .farReturn : nil
        default: break
        }
        switch decoded.pointee.meta.category {
        case ZYDIS_CATEGORY_STRINGOP, ZYDIS_CATEGORY_IOSTRINGOP: return stringKind(decoded.pointee.mnemonic)
        default: break
        }
        if let kind = systemKind(decoded.pointee.mnemonic) ?? userKind(decoded.pointee.mnemonic) { return kind }
        return isForeign(decoded.pointee) ? .undefined : nil
    }

    private static func isSegment(_ operand: ZydisDecodedOperand) -> Bool {
        operand.type == ZYDIS_OPERAND_TYPE_REGISTER
            && ZydisRegisterGetClass(operand.reg.value) == ZYDIS_REGCLASS_SEGMENT
    }

    private static func moveKind(
        _ decoded: UnsafePointer<ZydisDecodedInstruction>, _ operands: UnsafePointer<ZydisDecodedOperand>
    ) -> Kind? {
        guard decoded.pointee.operand_count >= 2 else { return nil }
        if operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER {
            switch ZydisRegisterGetClass(operands[0].reg.value) {
            case ZYDIS_REGCLASS_SEGMENT: return .loadSegment
            case ZYDIS_REGCLASS_CONTROL: return .writeControl
            case ZYDIS_REGCLASS_DEBUG: return .writeDebug
            case ZYDIS_REGCLASS_TEST: return .undefined
            default: break
            }
        }
        if operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER {
            switch ZydisRegisterGetClass(operands[1].reg.value) {
            case ZYDIS_REGCLASS_SEGMENT: return .storeSegment
            case ZYDIS_REGCLASS_CONTROL: return .readControl
            case ZYDIS_REGCLASS_DEBUG: return .readDebug
            case ZYDIS_REGCLASS_TEST: return .undefined
            default: break
            }
        }
        return nil
    }

    private static func stringKind(_ mnemonic: ZydisMnemonic) -> Kind? {
        switch mnemonic {
        case ZYDIS_MNEMONIC_MOVSB, ZYDIS_MNEMONIC_MOVSW, ZYDIS_MNEMONIC_MOVSD, ZYDIS_MNEMONIC_MOVSQ: .movs
        case ZYDIS_MNEMONIC_CMPSB, ZYDIS_MNEMONIC_CMPSW, ZYDIS_MNEMONIC_CMPSD, ZYDIS_MNEMONIC_CMPSQ: .cmps
        case ZYDIS_MNEMONIC_SCASB, ZYDIS_MNEMONIC_SCASW, ZYDIS_MNEMONIC_SCASD, ZYDIS_MNEMONIC_SCASQ: .scas
        case ZYDIS_MNEMONIC_LODSB, ZYDIS_MNEMONIC_LODSW, ZYDIS_MNEMONIC_LODSD, ZYDIS_MNEMONIC_LODSQ: .lods
        case ZYDIS_MNEMONIC_STOSB, ZYDIS_MNEMONIC_STOSW, ZYDIS_MNEMONIC_STOSD, ZYDIS_MNEMONIC_STOSQ: .stos
        case ZYDIS_MNEMONIC_INSB, ZYDIS_MNEMONIC_INSW, ZYDIS_MNEMONIC_INSD: .inString
        case ZYDIS_MNEMONIC_OUTSB, ZYDIS_MNEMONIC_OUTSW, ZYDIS_MNEMONIC_OUTSD: .outString
        default: nil
        }
    }

    private static func systemKind(_ mnemonic: ZydisMnemonic) -> Kind? {
        switch mnemonic {
        case ZYDIS_MNEMONIC_CLI: .cli
        case ZYDIS_MNEMONIC_STI: .sti
        case ZYDIS_MNEMONIC_CLAC: .clac
        case ZYDIS_MNEMONIC_STAC: .stac
        case ZYDIS_MNEMONIC_PUSHF, ZYDIS_MNEMONIC_PUSHFD, ZYDIS_MNEMONIC_PUSHFQ: .pushFlags
        case ZYDIS_MNEMONIC_POPF, ZYDIS_MNEMONIC_POPFD, ZYDIS_MNEMONIC_POPFQ: .popFlags
        case ZYDIS_MNEMONIC_HLT: .hlt
        case ZYDIS_MNEMONIC_IRET, ZYDIS_MNEMONIC_IRETD, ZYDIS_MNEMONIC_IRETQ: .iret
        case ZYDIS_MNEMONIC_INT: .int
        case ZYDIS_MNEMONIC_INT3: .int3
        case ZYDIS_MNEMONIC_INT1: .int1
        case ZYDIS_MNEMONIC_INTO: .into
        case ZYDIS_MNEMONIC_SYSCALL: .syscall
        case ZYDIS_MNEMONIC_SYSRET: .sysret
        case ZYDIS_MNEMONIC_SYSENTER: .sysenter
        case ZYDIS_MNEMONIC_SYSEXIT: .sysexit
        case ZYDIS_MNEMONIC_SWAPGS: .swapgs
        case ZYDIS_MNEMONIC_RDFSBASE: .readFSBase
        case ZYDIS_MNEMONIC_RDGSBASE: .readGSBase
        case ZYDIS_MNEMONIC_WRFSBASE: .writeFSBase
        case ZYDIS_MNEMONIC_WRGSBASE: .writeGSBase
        case ZYDIS_MNEMONIC_CLTS: .clts
        case ZYDIS_MNEMONIC_LMSW: .lmsw
        case ZYDIS_MNEMONIC_SMSW: .smsw
        case ZYDIS_MNEMONIC_XGETBV: .xgetbv
        case ZYDIS_MNEMONIC_XSETBV: .xsetbv
        case ZYDIS_MNEMONIC_LGDT: .lgdt
        case ZYDIS_MNEMONIC_LIDT: .lidt
        case ZYDIS_MNEMONIC_SGDT: .sgdt
        case ZYDIS_MNEMONIC_SIDT: .sidt
        case ZYDIS_MNEMONIC_LLDT: .lldt
        case ZYDIS_MNEMONIC_LTR: .ltr
        case ZYDIS_MNEMONIC_SLDT: .sldt
        case ZYDIS_MNEMONIC_STR: .str
        case ZYDIS_MNEMONIC_LDS, ZYDIS_MNEMONIC_LES, ZYDIS_MNEMONIC_LFS, ZYDIS_MNEMONIC_LGS, ZYDIS_MNEMONIC_LSS:
            .loadFarPointer
        case ZYDIS_MNEMONIC_VERR: .verr
        case ZYDIS_MNEMONIC_VERW: .verw
        case ZYDIS_MNEMONIC_LAR: .lar
        case ZYDIS_MNEMONIC_LSL: .lsl
        case ZYDIS_MNEMONIC_ARPL: .arpl
        case ZYDIS_MNEMONIC_IN: .inPort
        case ZYDIS_MNEMONIC_OUT: .outPort
        case ZYDIS_MNEMONIC_CPUID: .cpuid
        case ZYDIS_MNEMONIC_RDMSR: .rdmsr
        case ZYDIS_MNEMONIC_WRMSR: .wrmsr
        case ZYDIS_MNEMONIC_RDTSC: .rdtsc
        case ZYDIS_MNEMONIC_RDTSCP: .rdtscp
        case ZYDIS_MNEMONIC_RDPID: .rdpid
        case ZYDIS_MNEMONIC_RDPMC: .rdpmc
        case ZYDIS_MNEMONIC_INVLPG: .invlpg
        case ZYDIS_MNEMONIC_INVPCID: .invpcid
        case ZYDIS_MNEMONIC_INVD, ZYDIS_MNEMONIC_WBINVD: .cacheInvalidate
        case ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT, ZYDIS_MNEMONIC_CLWB: .lineFlush
        case ZYDIS_MNEMONIC_XSAVE, ZYDIS_MNEMONIC_XSAVE64: .xsave
        case ZYDIS_MNEMONIC_XSAVEOPT, ZYDIS_MNEMONIC_XSAVEOPT64: .xsaveopt
        case ZYDIS_MNEMONIC_XSAVEC, ZYDIS_MNEMONIC_XSAVEC64: .xsavec
        case ZYDIS_MNEMONIC_XSAVES, ZYDIS_MNEMONIC_XSAVES64: .xsaves
        case ZYDIS_MNEMONIC_XRSTOR, ZYDIS_MNEMONIC_XRSTOR64: .xrstor
        case ZYDIS_MNEMONIC_XRSTORS, ZYDIS_MNEMONIC_XRSTORS64: .xrstors
        case ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXSAVE64: .fxsave
        case ZYDIS_MNEMONIC_FXRSTOR, ZYDIS_MNEMONIC_FXRSTOR64: .fxrstor
        case ZYDIS_MNEMONIC_UD0, ZYDIS_MNEMONIC_UD1, ZYDIS_MNEMONIC_UD2: .undefined
        // Without shadow stacks these are NOPs; the host may have them on (SDM Vol. 2, RDSSPD).
        case ZYDIS_MNEMONIC_RDSSPD, ZYDIS_MNEMONIC_RDSSPQ, ZYDIS_MNEMONIC_ENDBR32, ZYDIS_MNEMONIC_ENDBR64: .nop
        default: nil
        }
    }

    private static func userKind(_ mnemonic: ZydisMnemonic) -> Kind? {
        switch mnemonic {
        case ZYDIS_MNEMONIC_CLD: .cld
        case ZYDIS_MNEMONIC_STD: .std
        case ZYDIS_MNEMONIC_ENTER: .enter
        case ZYDIS_MNEMONIC_XLAT: .xlat
        case ZYDIS_MNEMONIC_BOUND: .bound
        case ZYDIS_MNEMONIC_DAA: .daa
        case ZYDIS_MNEMONIC_DAS: .das
        case ZYDIS_MNEMONIC_AAA: .aaa
        case ZYDIS_MNEMONIC_AAS: .aas
        case ZYDIS_MNEMONIC_AAM: .aam
        case ZYDIS_MNEMONIC_AAD: .aad
        case ZYDIS_MNEMONIC_SALC: .salc
        case ZYDIS_MNEMONIC_PUSHA, ZYDIS_MNEMONIC_PUSHAD: .pushAll
        case ZYDIS_MNEMONIC_POPA, ZYDIS_MNEMONIC_POPAD: .popAll
        default: nil
        }
    }

    /// Extensions that no guest is shown: on the host they would run, or touch memory at an address the
    /// translator does not see. CPUID's policy hides each of them.
    private static func isForeign(_ instruction: ZydisDecodedInstruction) -> Bool {
        switch instruction.meta.isa_ext {
        case ZYDIS_ISA_EXT_VTX, ZYDIS_ISA_EXT_SVM, ZYDIS_ISA_EXT_SMX, ZYDIS_ISA_EXT_SGX, ZYDIS_ISA_EXT_SGX_ENCLV,
            ZYDIS_ISA_EXT_SNP, ZYDIS_ISA_EXT_TDX, ZYDIS_ISA_EXT_VMFUNC, ZYDIS_ISA_EXT_AMD_INVLPGB,
            ZYDIS_ISA_EXT_PCONFIG, ZYDIS_ISA_EXT_HRESET, ZYDIS_ISA_EXT_PT,
            ZYDIS_ISA_EXT_MONITOR, ZYDIS_ISA_EXT_MONITORX, ZYDIS_ISA_EXT_WAITPKG, ZYDIS_ISA_EXT_MCOMMIT,
            ZYDIS_ISA_EXT_CET, ZYDIS_ISA_EXT_UINTR, ZYDIS_ISA_EXT_PKU, ZYDIS_ISA_EXT_RDPRU,
            ZYDIS_ISA_EXT_RTM, ZYDIS_ISA_EXT_TSX_LDTRK, ZYDIS_ISA_EXT_MPX,
            ZYDIS_ISA_EXT_AMX_BF16, ZYDIS_ISA_EXT_AMX_INT8, ZYDIS_ISA_EXT_AMX_TILE,
            ZYDIS_ISA_EXT_KEYLOCKER, ZYDIS_ISA_EXT_KEYLOCKER_WIDE, ZYDIS_ISA_EXT_PADLOCK,
            ZYDIS_ISA_EXT_ENQCMD, ZYDIS_ISA_EXT_MOVDIR, ZYDIS_ISA_EXT_CLZERO, ZYDIS_ISA_EXT_SERIALIZE,
            ZYDIS_ISA_EXT_KNC, ZYDIS_ISA_EXT_KNCE, ZYDIS_ISA_EXT_KNCV:
            return true
        default: break
        }
        // LWP's control blocks, and RSM outside of system management mode.
        return instruction.meta.isa_set == ZYDIS_ISA_SET_LWP || instruction.mnemonic == ZYDIS_MNEMONIC_RSM
    }

    // MARK: Ends of blocks

    private static func endsBlock(_ kind: Kind, isLong: Bool, register: UInt8) -> Bool {
        switch kind {
        case .cli, .cld, .std, .pushFlags, .swapgs, .readFSBase, .readGSBase, .writeFSBase, .writeGSBase,
            .readControl, .readDebug, .smsw, .xgetbv, .sgdt, .sidt, .sldt, .str, .storeSegment, .pushSegment,
            .verr, .verw, .lar, .lsl, .arpl, .inPort, .outPort, .inString, .outString, .cpuid, .rdmsr, .rdtsc,
            .rdtscp, .rdpid, .rdpmc, .lineFlush, .xsave, .xsaveopt, .xsavec, .xsaves, .xrstor, .xrstors, .fxsave, .fxrstor, .nop,
            .enter, .xlat, .bound, .daa, .das, .aaa, .aas, .aam, .aad, .salc, .pushAll, .popAll, .movs, .cmps, .scas, .lods, .stos:
            return false
        case .loadSegment, .popSegment:
            // Loads of SS open an interrupt shadow; other segments matter to translation outside of 64-bit mode.
            return !isLong || register == SegmentNumber.ss
        case .loadFarPointer: return true
        case .writeControl:
            // CR2 and CR8 change no translation.
            return register != 2 && register != 8
        default: return true
        }
    }
}
