package import VMM

/// One translated CPU in raw memory, addressed by translated code through the `gs` segment base.
///
/// The first fields are touched by generated code at the offsets in `ContextOffset`; a test compares those
/// numbers with the compiler's layout. The rest is for Swift only. Nothing here owns memory.
package struct Context {
    // MARK: Touched by generated code

    /// Guest registers in encoding order. While translated code runs the identity-mapped ones live in host
    /// registers and these are stale; in every Swift helper they are exact.
    package var gpr: [16 of UInt64] = .init(repeating: 0)
    /// Guest instruction pointer; exact in Swift helpers, stale in translated code.
    package var rip: UInt64 = 0
    /// What added to an offset in the page that the running block lies in gives the instruction pointer: the page's
    /// linear address less the base of CS.
    package var ripPage: UInt64 = 0
    /// Arithmetic flags as LAHF and SETO leave them: AH = SF ZF AF PF CF, AL = OF.
    package var lahf: UInt64 = 0x0200
    /// Not zero: leave translated code at the next poll. Written by other threads.
    package var interruptRequest: UInt32 = 0
    /// 1 while the guest's vector registers are in `ymm`, 0 while they are in the host's registers.
    package var vectorsSaved: UInt32 = 1
    /// ANDed into jump cache indices; 0 sends every look-up to the always-missing first entry.
    package var jumpMask: UInt64 = 0
    package var fsBase: UInt64 = 0
    package var gsBase: UInt64 = 0
    /// The host stack while translated code runs.
    package var hostStack: UInt64 = 0
    /// Scratch for generated code.
    package var spill: [4 of UInt64] = .init(repeating: 0)
    /// Generated code leaves through here with what happened.
    package var exitReason: UInt64 = 0
    /// The `TranslatorCPU`, unretained: passed to helpers.
    package var owner: UInt64 = 0
    /// MXCSR and, beside it, the host's default while the guest's is in here.
    package var mxcsr: UInt32 = 0x1F80
    package var hostMXCSR: UInt32 = 0x1F80
    package var padding: UInt64 = 0
    /// Bounce buffer for accesses that have no single host address; 64-byte aligned, room for 64 bytes at any alignment.
    package var bounce: [24 of UInt64] = .init(repeating: 0)
    /// Guest vector registers (YMM0-15, 32 bytes each) while `vectorsSaved`.
    package var ymm: [64 of UInt64] = .init(repeating: 0)
    /// Scratch and address register while a bounced access is written back.
    package var bounceScratch: UInt64 = 0
    package var bounceAddress: UInt64 = 0
    /// 1: the vectors have to be back in host registers behind the bounced access.
    package var bounceVectors: UInt32 = 0
    /// Of a 64-bit jump or return that missed the jump cache: its offset from the code page, and from bit 13 on the bytes
    /// that it popped; `noBranch` for what does not fault itself when its target is not canonical.
    package var branch: UInt32 = noBranch
    package static let noBranch: UInt32 = .max
    /// Spills inside one guest instruction.
    package var temporary: [6 of UInt64] = .init(repeating: 0)
    /// RFLAGS without the arithmetic flags: TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP, ID and bit 1.
    package var systemFlags: UInt64 = 2
    /// 1: INTR was seen while interrupts were off, or may be asserted: look when they are on again.
    package var interruptWaiting: UInt32 = 0
    package var padding3: UInt32 = 0
    /// The stack pointer of translated code while no return is foreseen; see `ReturnStack`.
    package var returnBase: UInt64 = 0
    /// Calls with a stack pointer at or below it leave; all ones while an interrupt request waits.
    package var returnLimit: UInt64 = 0
    /// The stack pointer of translated code while a helper runs on the host's stack.
    package var savedStack: UInt64 = 0
    /// 1: the state of AVX-512 below counts, and is saved and restored with `ymm`; 0: all of it is in its initial
    /// state, zeros here and not there in the host.
    package var wideState: UInt32 = 0
    package var padding4: UInt32 = 0
    package var padding5: UInt64 = 0
    /// Guest vector registers as `ymm`: bits 256 to 511 of ZMM0-15, the whole of ZMM16-31, and the opmask registers.
    package var zmmHigh: [64 of UInt64] = .init(repeating: 0)
    package var zmmUpper: [128 of UInt64] = .init(repeating: 0)
    package var opmask: [8 of UInt64] = .init(repeating: 0)

    /// What blocks are keyed by now (`BlockMode`), and for which mode each jump cache was filled.
    package var mode: UInt64 = 0
    package var jumpCacheMode: [3 of UInt64] = .init(repeating: ~0)

    // MARK: Segments as generated code checks them outside of 64-bit code (`updateSegments` keeps them)

    /// Added to an instruction pointer gives its linear address; 0 in 64-bit code.
    package var csBase: UInt64 = 0
    /// The last instruction pointer that a branch may lead to.
    package var csLimit: UInt64 = ~0
    /// The highest `ripPage` with which a whole page lies in CS; less than 0 when none does.
    package var csPageLimit: Int64 = .max
    package var segments: [6 of SegmentView] = .init(repeating: SegmentView())

    // MARK: Swift only, but for what `ContextOffset` names

    package var es = SegmentRegister()
    package var cs = SegmentRegister()
    package var ss = SegmentRegister()
    package var ds = SegmentRegister()
    /// The bases of fs and gs are in `fsBase` and `gsBase`; those in here are ignored.
    package var fs = SegmentRegister()
    package var gs = SegmentRegister()
    package var ldtr = SegmentRegister()
    package var tr = SegmentRegister()
    package var gdtr = DescriptorTableRegister()
    package var idtr = DescriptorTableRegister()
    package var cr0: UInt64 = 0
    package var cr2: UInt64 = 0
    package var cr3: UInt64 = 0
    package var cr4: UInt64 = 0
    package var cr8: UInt64 = 0
    /// The top entries of PAE paging outside of long mode, as the last load of CR3 found them.
    package var pdpte: [4 of UInt64] = .init(repeating: 0)
    package var dr: [4 of UInt64] = .init(repeating: 0)
    package var dr6: UInt64 = 0
    package var dr7: UInt64 = 0
    /// Conditions, in DR6's places, whose #DB is yet to be delivered.
    package var pendingDebug: UInt64 = 0
    package var xcr0: UInt64 = 1
    package var msr = ModelSpecificRegisters()
    /// No interrupt before the next instruction has run (after STI, MOV SS, POP SS).
    package var interruptShadow = false
    /// The shadow is that of MOV SS or POP SS, which holds debug exceptions back too.
    package var stackShadow = false
    package var nmiBlocked = false
    package var isHalted = false

    // MARK: For the signal handler

    package var codeBase: UInt64 = 0
    package var codeEnd: UInt64 = 0
    /// Where it sends the thread, and the exit descriptor it stores.
    package var signalExit: UInt64 = 0
    package var signalReason: UInt64 = 0
    /// What it found: host address, host flags and trap number.
    package var faultAddress: UInt64 = 0
    package var faultFlags: UInt64 = 0
    package var faultTrap: Int64 = 0
    /// The signal's number and, of page faults, the host address that was accessed.
    package var faultSignal: Int64 = 0
    package var faultOperand: UInt64 = 0
    /// Page faults of the host in translated code. There is no way to one but through a mistake of the translator's (or
    /// a host that cannot back the guest's RAM): tests look that there is none.
    package var hostPageFaults: UInt64 = 0

    package init() {}

    /// The privilege level is SS.DPL by the manual's words, CS.RPL in practice; 0 in real mode.
    package var privilegeLevel: Int {
        if cr0 & CR0.pe == 0 { return 0 }
        if systemFlags & RFLAGS.vm != 0 { return 3 }
        return Int(cs.selector & 3)
    }
    package var isLongMode: Bool { msr.efer & EFER.lma != 0 }
    /// 64-bit code, as opposed to compatibility mode and all else.
    package var is64Bit: Bool { isLongMode && cs.isLong }

    /// The whole of RFLAGS.
    package var rflags: UInt64 {
        get {
            let ah = lahf >> 8 & 0xD5
            return systemFlags | ah | (lahf & 1) << 11
        }
        set {
            lahf = (newValue & 0xD5 | 2) << 8 | (newValue >> 11 & 1)
            systemFlags = newValue & ~0x8D5 & 0x3F_7FD7 | 2
        }
    }
}

/// Where generated code finds things, relative to the `gs` base. A test compares the first part with `Context`.
package enum ContextOffset {
    package static let gpr = 0
    package static let rip = 128
    package static let ripPage = 136
    package static let lahf = 144
    package static let interruptRequest = 152
    package static let vectorsSaved = 156
    package static let jumpMask = 160
    package static let fsBase = 168
    package static let gsBase = 176
    package static let hostStack = 184
    package static let spill = 192
    package static let exitReason = 224
    package static let owner = 232
    package static let mxcsr = 240
    package static let hostMXCSR = 244
    package static let bounce = 256
    package static let ymm = 448
    package static let bounceScratch = 960
    package static let bounceAddress = 968
    package static let bounceVectors = 976
    package static let branch = 980
    package static let temporary = 984
    package static let systemFlags = 1032
    package static let interruptWaiting = 1040
    package static let returnBase = 1048
    package static let returnLimit = 1056
    package static let savedStack = 1064
    package static let wideState = 1072
    package static let zmmHigh = 1088
    package static let zmmUpper = 1600
    package static let opmask = 2624
    // Behind the fixed part: the compiler's own numbers.
    package static let mode = field(\.mode)
    package static let jumpCacheMode = field(\.jumpCacheMode)
    package static let csBase = field(\.csBase)
    package static let csLimit = field(\.csLimit)
    package static let csPageLimit = field(\.csPageLimit)
    package static let segments = field(\.segments)
    package static let selectors = field(\.es)
    package static let codeSegment = field(\.cs)
    package static let stackSegment = field(\.ss)
    package static let cr4 = field(\.cr4)
    package static let efer = msr(\.efer)
    package static let star = msr(\.star)
    package static let lstar = msr(\.lstar)
    package static let sfmask = msr(\.sfmask)
    /// In a segment register.
    package static let selectorField = segment(\.selector)
    package static let attributesField = segment(\.attributes)
    package static let limitField = segment(\.limit)
    package static let baseField = segment(\.base)
    package static let kernelGSBase = msr(\.kernelGSBase)
    package static let tscOffset = msr(\.tscOffset)
    package static let tscAux = msr(\.tscAux)
    private static func field(_ field: PartialKeyPath<Context>) -> Int {
        MemoryLayout<Context>.offset(of: field).unsafelyUnwrapped
    }
    private static func segment(_ field: PartialKeyPath<SegmentRegister>) -> Int {
        MemoryLayout<SegmentRegister>.offset(of: field).unsafelyUnwrapped
    }
    private static func msr(_ field: PartialKeyPath<ModelSpecificRegisters>) -> Int {
        MemoryLayout<Context>.offset(of: \.msr).unsafelyUnwrapped
            + MemoryLayout<ModelSpecificRegisters>.offset(of: field).unsafelyUnwrapped
    }

    /// Software TLBs, one a `TLB.Table`; see MMU/TLB.swift.
    package static let tlb = 0x2000
    /// Jump caches, one a `TLB.Table`.
    package static let jumpCache = tlb + TLB.tableCount * TLB.entryCount * TLB.entrySize
    /// Slots in front of the TLBs, and a flag for each table whose slots have been filled; see MMU/TLBSlots.swift.
    package static let slots = jumpCache + TLB.tableCount * JumpCache.entryCount * JumpCache.entrySize
    package static let slotsUsed = slots + TLB.tableCount * TLBSlots.countPerTable * TLBSlots.size
    package static let end = slotsUsed + 64
}

/// A fault or trap to be delivered to the guest (SDM Vol. 3, chapter 6).
package struct GuestException: Error, Hashable {
    package var vector: UInt8
    package var errorCode: UInt32?
    /// The faulting linear address: only for #PF, where delivery loads it into CR2.
    package var address: UInt64 = 0

    package static let divideError = GuestException(vector: 0)
    package static let invalidOpcode = GuestException(vector: 6)
    package static let deviceNotAvailable = GuestException(vector: 7)
    package static let alignmentCheck = GuestException(vector: 17, errorCode: 0)
    package static func generalProtection(_ code: UInt32 = 0) -> Self { .init(vector: 13, errorCode: code) }
    package static func stackFault(_ code: UInt32 = 0) -> Self { .init(vector: 12, errorCode: code) }
    package static func segmentNotPresent(_ code: UInt32) -> Self { .init(vector: 11, errorCode: code) }
    package static func invalidTSS(_ code: UInt32) -> Self { .init(vector: 10, errorCode: code) }
    package static func pageFault(_ address: UInt64, _ code: UInt32) -> Self {
        .init(vector: 14, errorCode: code, address: address)
    }

    package init(vector: UInt8, errorCode: UInt32? = nil, address: UInt64 = 0) {
        self.vector = vector
        self.errorCode = errorCode
        self.address = address
    }
}
