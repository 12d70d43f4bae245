package import CZydis
package import VMM

/// The instruction sets that a guest is shown, as Zydis names them: what is hidden raises #UD, although the host's CPU
/// would run it.
package struct InstructionSets: Sendable {
    private var bits = SIMD4<UInt64>()
    /// Not shown: their prefixes are ignored, so that they are BSR and BSF (SDM Vol. 2, LZCNT and TZCNT).
    package let hasLZCNT: Bool
    package let hasTZCNT: Bool

    package init(_ features: CPUFeatures) {
        hasLZCNT = features.contains(.lzcnt)
        hasTZCNT = features.contains(.bmi1)
        for number in 0...ZYDIS_ISA_SET_MAX_VALUE.rawValue {
            guard let needed = Self.needed(ZydisISASet(rawValue: number)), needed.isSubset(of: features) else { continue }
            bits[Int(number >> 6) & 3] |= 1 << UInt64(number & 63)
        }
    }

    @inline(__always) package func contains(_ set: ZydisISASet) -> Bool {
        bits[Int(set.rawValue >> 6) & 3] >> UInt64(set.rawValue & 63) & 1 != 0
    }

    /// The CPUID bits that show an instruction set; `nil` where no guest has it.
    private static func needed(_ set: ZydisISASet) -> CPUFeatures? {
        switch set {
        case ZYDIS_ISA_SET_ADOX_ADCX: [.adx]
        case ZYDIS_ISA_SET_AES: [.aes]
        case ZYDIS_ISA_SET_AVX: [.avx]
        case ZYDIS_ISA_SET_AVX2, ZYDIS_ISA_SET_AVX2GATHER: [.avx2]
        case ZYDIS_ISA_SET_AVXAES: [.avx, .aes]
        case ZYDIS_ISA_SET_AVX_GFNI: [.avx, .gfni]
        case ZYDIS_ISA_SET_BMI1: [.bmi1]
        case ZYDIS_ISA_SET_BMI2: [.bmi2]
        case ZYDIS_ISA_SET_CLFLUSHOPT: [.clflushopt]
        case ZYDIS_ISA_SET_CLFSH: [.clfsh]
        case ZYDIS_ISA_SET_CLWB: [.clwb]
        case ZYDIS_ISA_SET_CMPXCHG16B: [.cx16]
        case ZYDIS_ISA_SET_F16C: [.f16c]
        case ZYDIS_ISA_SET_FMA: [.fma]
        case ZYDIS_ISA_SET_GFNI: [.gfni]
        case ZYDIS_ISA_SET_LAHF: [.lahf]
        case ZYDIS_ISA_SET_LZCNT: [.lzcnt]
        case ZYDIS_ISA_SET_MOVBE: [.movbe]
        case ZYDIS_ISA_SET_PCLMULQDQ: [.pclmulqdq]
        case ZYDIS_ISA_SET_POPCNT: [.popcnt]
        case ZYDIS_ISA_SET_RDPID: [.rdpid]
        case ZYDIS_ISA_SET_RDRAND: [.rdrand]
        case ZYDIS_ISA_SET_RDSEED: [.rdseed]
        case ZYDIS_ISA_SET_RDTSCP: [.rdtscp]
        case ZYDIS_ISA_SET_RDWRFSGS: [.fsgsbase]
        case ZYDIS_ISA_SET_SHA: [.sha]
        case ZYDIS_ISA_SET_SMAP: [.smap]
        case ZYDIS_ISA_SET_SSE3, ZYDIS_ISA_SET_SSE3X87: [.sse3]
        case ZYDIS_ISA_SET_SSSE3, ZYDIS_ISA_SET_SSSE3MMX: [.ssse3]
        case ZYDIS_ISA_SET_SSE4: [.sse41]
        case ZYDIS_ISA_SET_SSE42: [.sse42]
        case ZYDIS_ISA_SET_VAES: [.avx, .vaes]
        case ZYDIS_ISA_SET_VPCLMULQDQ: [.avx, .vpclmulqdq]
        case ZYDIS_ISA_SET_XSAVE: [.xsave]
        case ZYDIS_ISA_SET_XSAVEOPT: [.xsaveopt]
        case ZYDIS_ISA_SET_XSAVEC: [.xsavec]
        case ZYDIS_ISA_SET_XSAVES: [.xsaves]
        case ZYDIS_ISA_SET_INVPCID: [.invpcid]
        case ZYDIS_ISA_SET_AMD3DNOW, ZYDIS_ISA_SET_AMD_INVLPGB, ZYDIS_ISA_SET_AMX_BF16, ZYDIS_ISA_SET_AMX_INT8,
            ZYDIS_ISA_SET_AMX_TILE, ZYDIS_ISA_SET_AVX_VNNI, ZYDIS_ISA_SET_CET, ZYDIS_ISA_SET_CLZERO,
            ZYDIS_ISA_SET_ENQCMD, ZYDIS_ISA_SET_FMA4, ZYDIS_ISA_SET_HRESET, ZYDIS_ISA_SET_KEYLOCKER, ZYDIS_ISA_SET_KEYLOCKER_WIDE,
            ZYDIS_ISA_SET_KNCE, ZYDIS_ISA_SET_KNCJKBR, ZYDIS_ISA_SET_KNCSTREAM, ZYDIS_ISA_SET_KNCV, ZYDIS_ISA_SET_KNC_MISC,
            ZYDIS_ISA_SET_KNC_PF_HINT, ZYDIS_ISA_SET_LWP, ZYDIS_ISA_SET_MCOMMIT, ZYDIS_ISA_SET_MONITOR,
            ZYDIS_ISA_SET_MONITORX, ZYDIS_ISA_SET_MOVDIR, ZYDIS_ISA_SET_MPX, ZYDIS_ISA_SET_PADLOCK_ACE,
            ZYDIS_ISA_SET_PADLOCK_PHE, ZYDIS_ISA_SET_PADLOCK_PMM, ZYDIS_ISA_SET_PADLOCK_RNG, ZYDIS_ISA_SET_PCONFIG,
            ZYDIS_ISA_SET_PKU, ZYDIS_ISA_SET_PT, ZYDIS_ISA_SET_RDPRU, ZYDIS_ISA_SET_RTM, ZYDIS_ISA_SET_SERIALIZE,
            ZYDIS_ISA_SET_SGX, ZYDIS_ISA_SET_SGX_ENCLV, ZYDIS_ISA_SET_SMX, ZYDIS_ISA_SET_SNP, ZYDIS_ISA_SET_SSE4A,
            ZYDIS_ISA_SET_SVM, ZYDIS_ISA_SET_TBM, ZYDIS_ISA_SET_TDX, ZYDIS_ISA_SET_TSX_LDTRK, ZYDIS_ISA_SET_UINTR,
            ZYDIS_ISA_SET_VMFUNC, ZYDIS_ISA_SET_VTX, ZYDIS_ISA_SET_WAITPKG, ZYDIS_ISA_SET_XOP:
            nil
        default: isAVX512(set) ? neededByAVX512(set) : []
        }
    }

    private static func isAVX512(_ set: ZydisISASet) -> Bool {
        set.rawValue >= ZYDIS_ISA_SET_AVX512BW_128.rawValue && set.rawValue <= ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_512.rawValue
    }

    /// AVX-512: shorter vectors than 512 bits are AVX512VL's, but for those that have no longer form.
    private static func neededByAVX512(_ set: ZydisISASet) -> CPUFeatures? {
        switch set {
        case ZYDIS_ISA_SET_AVX512F_128, ZYDIS_ISA_SET_AVX512F_256: [.avx512f, .avx512vl]
        case ZYDIS_ISA_SET_AVX512F_128N, ZYDIS_ISA_SET_AVX512F_512, ZYDIS_ISA_SET_AVX512F_KOP, ZYDIS_ISA_SET_AVX512F_SCALAR: [.avx512f]
        case ZYDIS_ISA_SET_AVX512BW_128, ZYDIS_ISA_SET_AVX512BW_256: [.avx512f, .avx512bw, .avx512vl]
        case ZYDIS_ISA_SET_AVX512BW_128N, ZYDIS_ISA_SET_AVX512BW_512, ZYDIS_ISA_SET_AVX512BW_KOP: [.avx512f, .avx512bw]
        case ZYDIS_ISA_SET_AVX512DQ_128, ZYDIS_ISA_SET_AVX512DQ_256: [.avx512f, .avx512dq, .avx512vl]
        case ZYDIS_ISA_SET_AVX512DQ_128N, ZYDIS_ISA_SET_AVX512DQ_512, ZYDIS_ISA_SET_AVX512DQ_KOP, ZYDIS_ISA_SET_AVX512DQ_SCALAR:
            [.avx512f, .avx512dq]
        case ZYDIS_ISA_SET_AVX512CD_128, ZYDIS_ISA_SET_AVX512CD_256: [.avx512f, .avx512cd, .avx512vl]
        case ZYDIS_ISA_SET_AVX512CD_512: [.avx512f, .avx512cd]
        case ZYDIS_ISA_SET_AVX512_IFMA_128, ZYDIS_ISA_SET_AVX512_IFMA_256: [.avx512f, .avx512ifma, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_IFMA_512: [.avx512f, .avx512ifma]
        case ZYDIS_ISA_SET_AVX512_VBMI_128, ZYDIS_ISA_SET_AVX512_VBMI_256: [.avx512f, .avx512vbmi, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_VBMI_512: [.avx512f, .avx512vbmi]
        case ZYDIS_ISA_SET_AVX512_VBMI2_128, ZYDIS_ISA_SET_AVX512_VBMI2_256: [.avx512f, .avx512vbmi2, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_VBMI2_512: [.avx512f, .avx512vbmi2]
        case ZYDIS_ISA_SET_AVX512_VNNI_128, ZYDIS_ISA_SET_AVX512_VNNI_256: [.avx512f, .avx512vnni, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_VNNI_512: [.avx512f, .avx512vnni]
        case ZYDIS_ISA_SET_AVX512_BITALG_128, ZYDIS_ISA_SET_AVX512_BITALG_256: [.avx512f, .avx512bitalg, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_BITALG_512: [.avx512f, .avx512bitalg]
        case ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_128, ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_256: [.avx512f, .avx512vpopcntdq, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_512: [.avx512f, .avx512vpopcntdq]
        case ZYDIS_ISA_SET_AVX512_BF16_128, ZYDIS_ISA_SET_AVX512_BF16_256: [.avx512f, .avx512bf16, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_BF16_512: [.avx512f, .avx512bf16]
        case ZYDIS_ISA_SET_AVX512_FP16_128, ZYDIS_ISA_SET_AVX512_FP16_256: [.avx512f, .avx512fp16, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_FP16_128N, ZYDIS_ISA_SET_AVX512_FP16_512, ZYDIS_ISA_SET_AVX512_FP16_SCALAR: [.avx512f, .avx512fp16]
        case ZYDIS_ISA_SET_AVX512_VP2INTERSECT_128, ZYDIS_ISA_SET_AVX512_VP2INTERSECT_256: [.avx512f, .avx512vp2intersect, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_VP2INTERSECT_512: [.avx512f, .avx512vp2intersect]
        case ZYDIS_ISA_SET_AVX512_GFNI_128, ZYDIS_ISA_SET_AVX512_GFNI_256: [.avx512f, .gfni, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_GFNI_512: [.avx512f, .gfni]
        case ZYDIS_ISA_SET_AVX512_VAES_128, ZYDIS_ISA_SET_AVX512_VAES_256: [.avx512f, .vaes, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_VAES_512: [.avx512f, .vaes]
        case ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_128, ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_256: [.avx512f, .vpclmulqdq, .avx512vl]
        case ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_512: [.avx512f, .vpclmulqdq]
        // Xeon Phi's: exponentials, prefetching gathers, operands of four registers.
        default: nil
        }
    }
}
