/// An instruction that must not be copied, taken apart: what `TranslatorCPU.perform` needs and nothing else.
///
/// Plain data without references, so that blocks can hold it in their own memory and pass its address.
package struct SystemInstruction {
    package enum Kind: UInt8, Sendable {
        // Flags and interrupts
        case cli, sti, cld, std, clac, stac, pushFlags, popFlags, hlt
        // Control transfers
        case iret, int, int3, int1, into, syscall, sysret, sysenter, sysexit
        case farJumpDirect, farJumpIndirect, farCallDirect, farCallIndirect, farReturn
        // Bases and control registers
        case swapgs, readFSBase, readGSBase, writeFSBase, writeGSBase
        case readControl, writeControl, readDebug, writeDebug, clts, lmsw, smsw, xgetbv, xsetbv
        // Descriptor tables and segments
        case lgdt, lidt, sgdt, sidt, lldt, ltr, sldt, str
        case storeSegment, loadSegment, pushSegment, popSegment, loadFarPointer
        case verr, verw, lar, lsl, arpl
        // Input and output
        case inPort, outPort, inString, outString
        // The processor itself
        case cpuid, rdmsr, wrmsr, rdtsc, rdtscp, rdpid, rdpmc
        case invlpg, invpcid, cacheInvalidate, lineFlush
        case xsave, xsaveopt, xsavec, xsaves, xrstor, xrstors, fxsave, fxrstor
        case undefined, nop
        // Instructions of user programs that are seldom worth generated code
        case enter, xlat, bound, daa, das, aaa, aas, aam, aad, salc, pushAll, popAll
        // Vector instructions whose elements touch memory one by one
        case maskedMove, maskedBytes, gather, maskedGather, scatter
        case movs, cmps, scas, lods, stos

        /// MOVS, CMPS, SCAS, LODS, STOS: the translator has faster ways for the usual cases.
        package var isStringOperation: Bool { rawValue >= Kind.movs.rawValue }
    }

    package struct Options: OptionSet, Sendable {
        package let rawValue: UInt8
        package init(rawValue: UInt8) { self.rawValue = rawValue }
        package static let rep = Options(rawValue: 1)
        package static let repne = Options(rawValue: 2)
        /// The r/m operand is memory.
        package static let memory = Options(rawValue: 4)
        /// The address is relative to the next instruction.
        package static let ripRelative = Options(rawValue: 8)
        package static let endsBlock = Options(rawValue: 16)
    }

    /// No base or no index.
    package static let none: UInt8 = 0xFF

    package var kind: Kind
    package var length: UInt8 = 0
    /// In bytes: 1, 2, 4 or 8.
    package var operandSize: UInt8 = 4
    /// In bytes: 2, 4 or 8.
    package var addressSize: UInt8 = 8
    /// The general, segment, control or debug register that ModRM.reg or the opcode names.
    package var register: UInt8 = 0
    /// The general register that ModRM.rm names, unless `options` has `memory`.
    package var rm: UInt8 = 0
    package var base: UInt8 = none
    package var index: UInt8 = none
    package var scale: UInt8 = 0
    /// Of the memory operand, override and default already applied.
    package var segment: UInt8 = SegmentNumber.ds
    package var options: Options = []
    package var displacement: Int64 = 0
    /// Interrupt or port number, ENTER's sizes, bytes that RET releases, selector << 32 | offset of a far pointer.
    package var immediate: Int64 = 0

    package init(kind: Kind) { self.kind = kind }

    package var isMemory: Bool { options.contains(.memory) }
    /// REP, REPE or REPNE. In one test: an array literal of the two would be allocated.
    @inline(__always) package var isRepeated: Bool { options.rawValue & (Options.rep.rawValue | Options.repne.rawValue) != 0 }
    /// Whether control flow, mode or translation may be others after it. The translator must not go on with the
    /// instructions that follow as if nothing had happened.
    package var endsBlock: Bool { options.contains(.endsBlock) }
}
