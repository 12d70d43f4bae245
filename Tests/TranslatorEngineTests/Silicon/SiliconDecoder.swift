import CZydis
import TranslatorEngine
import VMM

/// What a test does with an instruction.
enum SiliconTreatment {
    /// Both sides are expected to do the same.
    case compare
    /// CPUID does not show it: the translator raises #UD, whatever the CPU would do.
    case hidden
    /// Not an instruction: both sides raise #UD.
    case undefined
    /// Answers differ by design, or the CPU may not be asked.
    case skip
}

/// Zydis with room for one instruction.
final class SiliconDecoder {
    let mode: SiliconMode
    var isLong: Bool { mode == .long }
    var hasAVX512: Bool { shown.contains(ZYDIS_ISA_SET_AVX512F_512) }
    private var decoder = ZydisDecoder()
    private var formatter = ZydisFormatter()
    let instruction = UnsafeMutablePointer<ZydisDecodedInstruction>.allocate(capacity: 1)
    let operands = UnsafeMutablePointer<ZydisDecodedOperand>.allocate(capacity: 10)

    /// What the guest's CPUID shows.
    let shown: InstructionSets

    init(_ mode: SiliconMode = .long, shown: InstructionSets = InstructionSets(.all)) {
        self.mode = mode
        self.shown = shown
        switch mode {
        case .long: ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        case .flat32, .segmented32: ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32)
        case .segmented16: ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16)
        }
        ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_MPX, 0)
        ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)
        instruction.initialize(to: ZydisDecodedInstruction())
        operands.initialize(repeating: ZydisDecodedOperand(), count: 10)
    }
    deinit {
        instruction.deallocate()
        operands.deallocate()
    }

    func decode(_ bytes: [UInt8]) -> Bool {
        ZydisDecoderDecodeFull(&decoder, bytes, bytes.count, instruction, operands) & 0x8000_0000 == 0
    }

    func decode(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> ZyanStatus {
        ZydisDecoderDecodeFull(&decoder, bytes, count, instruction, operands)
    }

    func text(_ bytes: [UInt8], at address: UInt64) -> String {
        guard decode(bytes) else { return "?" }
        return withUnsafeTemporaryAllocation(of: CChar.self, capacity: 128) { buffer in
            guard let base = buffer.baseAddress else { return "" }
            let status = ZydisFormatterFormatInstruction(
                &formatter, instruction, operands, instruction.pointee.operand_count_visible, base, 128, address, nil)
            return status & 0x8000_0000 == 0 ? String(cString: base) : "?"
        }
    }

    func name(_ bytes: [UInt8]) -> String {
        guard decode(bytes), let name = ZydisMnemonicGetString(mnemonic) else { return "?" }
        return String(cString: name) + (operands.pointee.type == ZYDIS_OPERAND_TYPE_MEMORY ? " m" : "")
    }

    var length: Int { Int(instruction.pointee.length) }
    var mnemonic: ZydisMnemonic { instruction.pointee.mnemonic }
    var undefinedFlags: UInt64 { UInt64(instruction.pointee.cpu_flags?.pointee.undefined ?? 0) & SiliconState.arithmeticFlags }
    var testedFlags: UInt64 { UInt64(instruction.pointee.cpu_flags?.pointee.tested ?? 0) & SiliconState.arithmeticFlags }
    /// Flags that may be others behind it.
    var writtenFlags: UInt64 { definedFlags | undefinedFlags }
    /// Two memory operands, one in several parts, or many elements chosen one by one: CPU models differ in which fault they find first, and
    /// whether what a mask leaves out may fault.
    var isFaultLoose: Bool { Self.loose.contains(mnemonic.rawValue) }
    private static let loose: Set<UInt32> = Set(
        [
            ZYDIS_MNEMONIC_CMPSB, ZYDIS_MNEMONIC_CMPSW, ZYDIS_MNEMONIC_CMPSD, ZYDIS_MNEMONIC_CMPSQ, ZYDIS_MNEMONIC_FLDENV,
            ZYDIS_MNEMONIC_FRSTOR, ZYDIS_MNEMONIC_FBLD, ZYDIS_MNEMONIC_FBSTP, ZYDIS_MNEMONIC_MASKMOVQ, ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU,
            ZYDIS_MNEMONIC_VGATHERDPS, ZYDIS_MNEMONIC_VGATHERDPD, ZYDIS_MNEMONIC_VGATHERQPS, ZYDIS_MNEMONIC_VGATHERQPD,
            ZYDIS_MNEMONIC_VPGATHERDD, ZYDIS_MNEMONIC_VPGATHERDQ, ZYDIS_MNEMONIC_VPGATHERQD, ZYDIS_MNEMONIC_VPGATHERQQ,
            ZYDIS_MNEMONIC_VSCATTERDPS, ZYDIS_MNEMONIC_VSCATTERDPD, ZYDIS_MNEMONIC_VSCATTERQPS, ZYDIS_MNEMONIC_VSCATTERQPD,
            ZYDIS_MNEMONIC_VPSCATTERDD, ZYDIS_MNEMONIC_VPSCATTERDQ, ZYDIS_MNEMONIC_VPSCATTERQD, ZYDIS_MNEMONIC_VPSCATTERQQ,
        ].map(\.rawValue))

    /// Flags that have a defined value behind the instruction whatever they were before.
    var definedFlags: UInt64 {
        guard let flags = instruction.pointee.cpu_flags else { return 0 }
        return UInt64(flags.pointee.modified | flags.pointee.set_0 | flags.pointee.set_1) & SiliconState.arithmeticFlags
    }

    /// Whether both sides are expected to do the same: user instructions that the CPU model has, without control flow,
    /// the system's registers, time and chance.
    var isComparable: Bool {
        let i = instruction.pointee
        switch i.encoding {
        case ZYDIS_INSTRUCTION_ENCODING_LEGACY, ZYDIS_INSTRUCTION_ENCODING_VEX, ZYDIS_INSTRUCTION_ENCODING_EVEX: break
        default: return false
        }
        guard shown.contains(i.meta.isa_set) || i.meta.isa_ext == ZYDIS_ISA_EXT_BASE else { return false }
        guard Self.extensions.contains(i.meta.isa_ext.rawValue), !Self.categories.contains(i.meta.category.rawValue),
            !Self.mnemonics.contains(i.mnemonic.rawValue)
        else { return false }
        if i.attributes & UInt64(ZYDIS_ATTRIB_IS_PRIVILEGED) != 0 { return false }
        // A prefetch of a register: no instruction on AMD's CPUs, nothing on Intel's.
        if i.opcode_map == ZYDIS_OPCODE_MAP_0F && i.opcode == 0x0D && i.raw.modrm.mod == 3 { return false }
        // Loads of segment registers.
        for number in 0..<Int(i.operand_count) where operands[number].type == ZYDIS_OPERAND_TYPE_REGISTER {
            let register = operands[number].reg.value.rawValue
            let isWritten = operands[number].actions & UInt8(truncatingIfNeeded: ZYDIS_OPERAND_ACTION_MASK_WRITE.rawValue) != 0
            if register >= ZYDIS_REGISTER_ES.rawValue && register <= ZYDIS_REGISTER_GS.rawValue && isWritten { return false }
            if register >= ZYDIS_REGISTER_CR0.rawValue && register <= ZYDIS_REGISTER_DR15.rawValue { return false }
        }
        return true
    }

    private static let extensions: Set<UInt32> = Set(
        [
            ZYDIS_ISA_EXT_BASE, ZYDIS_ISA_EXT_LONGMODE, ZYDIS_ISA_EXT_X87, ZYDIS_ISA_EXT_MMX, ZYDIS_ISA_EXT_SSE,
            ZYDIS_ISA_EXT_SSE2, ZYDIS_ISA_EXT_SSE3, ZYDIS_ISA_EXT_SSSE3, ZYDIS_ISA_EXT_SSE4, ZYDIS_ISA_EXT_AES,
            ZYDIS_ISA_EXT_PCLMULQDQ, ZYDIS_ISA_EXT_AVX, ZYDIS_ISA_EXT_AVX2, ZYDIS_ISA_EXT_AVX2GATHER,
            ZYDIS_ISA_EXT_AVXAES, ZYDIS_ISA_EXT_F16C, ZYDIS_ISA_EXT_FMA, ZYDIS_ISA_EXT_BMI1, ZYDIS_ISA_EXT_BMI2,
            ZYDIS_ISA_EXT_LZCNT, ZYDIS_ISA_EXT_MOVBE, ZYDIS_ISA_EXT_ADOX_ADCX, ZYDIS_ISA_EXT_SHA, ZYDIS_ISA_EXT_PAUSE,
            ZYDIS_ISA_EXT_RDWRFSGS, ZYDIS_ISA_EXT_CLFSH, ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH, ZYDIS_ISA_EXT_AVX512EVEX,
            ZYDIS_ISA_EXT_AVX512VEX,
        ].map(\.rawValue))

    private static let categories: Set<UInt32> = Set(
        [
            ZYDIS_CATEGORY_CALL, ZYDIS_CATEGORY_COND_BR, ZYDIS_CATEGORY_UNCOND_BR, ZYDIS_CATEGORY_RET, ZYDIS_CATEGORY_SYSCALL,
            ZYDIS_CATEGORY_SYSRET, ZYDIS_CATEGORY_SYSTEM, ZYDIS_CATEGORY_INTERRUPT, ZYDIS_CATEGORY_IO, ZYDIS_CATEGORY_IOSTRINGOP,
            ZYDIS_CATEGORY_RDRAND, ZYDIS_CATEGORY_RDSEED, ZYDIS_CATEGORY_XSAVE, ZYDIS_CATEGORY_XSAVEOPT,
        ].map(\.rawValue))

    private static let mnemonics: Set<UInt32> = Set(
        [
            // Host addresses in the image.
            ZYDIS_MNEMONIC_FNSTENV, ZYDIS_MNEMONIC_FNSAVE, ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXSAVE64,
            ZYDIS_MNEMONIC_FXRSTOR, ZYDIS_MNEMONIC_FXRSTOR64,
            // Tables of the host's.
            ZYDIS_MNEMONIC_LAR, ZYDIS_MNEMONIC_LSL, ZYDIS_MNEMONIC_VERR, ZYDIS_MNEMONIC_VERW, ZYDIS_MNEMONIC_LFS,
            ZYDIS_MNEMONIC_LGS, ZYDIS_MNEMONIC_LSS, ZYDIS_MNEMONIC_SLDT, ZYDIS_MNEMONIC_STR, ZYDIS_MNEMONIC_SGDT,
            ZYDIS_MNEMONIC_SIDT, ZYDIS_MNEMONIC_SMSW,
            // TF, and IF under another IOPL.
            ZYDIS_MNEMONIC_POPF, ZYDIS_MNEMONIC_POPFD, ZYDIS_MNEMONIC_POPFQ, ZYDIS_MNEMONIC_CLI, ZYDIS_MNEMONIC_STI,
            // Answers that differ by design.
            ZYDIS_MNEMONIC_CPUID, ZYDIS_MNEMONIC_XGETBV, ZYDIS_MNEMONIC_RDPID, ZYDIS_MNEMONIC_RDTSC, ZYDIS_MNEMONIC_RDTSCP,
        ].map(\.rawValue))
}
