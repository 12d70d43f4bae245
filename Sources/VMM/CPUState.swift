/// Names of the general registers in encoding order (Intel SDM Vol. 2, table 3-1).
public enum GeneralRegister: Int, CaseIterable, Sendable {
    case rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
}

/// A segment register with its hidden part (SDM Vol. 3, 3.4.3).
public struct SegmentRegister: Codable, Hashable, Sendable {
    public var selector: UInt16
    /// Descriptor attributes as VMX encodes them: bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G,
    /// 16 unusable (SDM Vol. 3, 25.4.1).
    public var attributes: UInt32
    /// In bytes: granularity already applied.
    public var limit: UInt32
    public var base: UInt64

    public init(selector: UInt16 = 0, attributes: UInt32 = 0x10000, limit: UInt32 = 0, base: UInt64 = 0) {
        self.selector = selector
        self.attributes = attributes
        self.limit = limit
        self.base = base
    }

    public var type: UInt32 { attributes & 0xF }
    public var privilegeLevel: UInt32 { attributes >> 5 & 3 }
    public var isPresent: Bool { attributes & 0x80 != 0 }
    public var isLong: Bool { attributes & 0x2000 != 0 }
    public var isBig: Bool { attributes & 0x4000 != 0 }
    public var isUnusable: Bool { attributes & 0x10000 != 0 }
}

/// GDTR or IDTR.
public struct DescriptorTableRegister: Codable, Hashable, Sendable {
    public var base: UInt64
    public var limit: UInt16
    public init(base: UInt64 = 0, limit: UInt16 = 0xFFFF) {
        self.base = base
        self.limit = limit
    }
}

/// The model-specific registers that carry CPU state (the policy table says which a guest may touch).
public struct ModelSpecificRegisters: Codable, Hashable, Sendable {
    public var efer: UInt64 = 0
    public var star: UInt64 = 0
    public var lstar: UInt64 = 0
    public var cstar: UInt64 = 0
    public var sfmask: UInt64 = 0
    public var kernelGSBase: UInt64 = 0
    public var sysenterCS: UInt64 = 0
    public var sysenterESP: UInt64 = 0
    public var sysenterEIP: UInt64 = 0
    public var tscAux: UInt64 = 0
    /// Reset value: SDM Vol. 3, 12.12.4.
    public var pat: UInt64 = 0x0007_0406_0007_0406
    public var miscEnable: UInt64 = 1
    public var memoryTypes = MemoryTypeRanges()
    /// Written values of the paravirtual clock registers (KVM_SYSTEM_TIME, KVM_WALL_CLOCK).
    public var kvmSystemTime: UInt64 = 0
    public var kvmWallClock: UInt64 = 0
    /// Added to the host's time-stamp counter.
    public var tscOffset: UInt64 = 0
    public init() {}
}

/// An exception or interrupt that has been accepted but not delivered yet.
public struct PendingEvent: Codable, Hashable, Sendable {
    public var vector: UInt8
    public var errorCode: UInt32?
    public init(vector: UInt8, errorCode: UInt32? = nil) {
        self.vector = vector
        self.errorCode = errorCode
    }
}

/// All of a virtual CPU that software can see, in the form that both engines read and write and snapshots hold.
public struct CPUState: Codable, Hashable, Sendable {
    /// Indexed by `GeneralRegister.rawValue`.
    public var registers: [UInt64] = Array(repeating: 0, count: 16)
    public var rip: UInt64 = 0xFFF0
    public var rflags: UInt64 = 2

    public var es = SegmentRegister(attributes: 0x93, limit: 0xFFFF)
    public var cs = SegmentRegister(selector: 0xF000, attributes: 0x9B, limit: 0xFFFF, base: 0xFFFF_0000)
    public var ss = SegmentRegister(attributes: 0x93, limit: 0xFFFF)
    public var ds = SegmentRegister(attributes: 0x93, limit: 0xFFFF)
    public var fs = SegmentRegister(attributes: 0x93, limit: 0xFFFF)
    public var gs = SegmentRegister(attributes: 0x93, limit: 0xFFFF)
    public var ldtr = SegmentRegister(attributes: 0x82, limit: 0xFFFF)
    public var tr = SegmentRegister(attributes: 0x8B, limit: 0xFFFF)
    public var gdtr = DescriptorTableRegister()
    public var idtr = DescriptorTableRegister()

    public var cr0: UInt64 = 0x6000_0010
    public var cr2: UInt64 = 0
    public var cr3: UInt64 = 0
    public var cr4: UInt64 = 0
    public var cr8: UInt64 = 0
    /// The four top entries of PAE paging outside of long mode, as the last load of CR3 found them (SDM Vol. 3, 4.4.1).
    /// `nil`: those in memory at CR3 now.
    public var pageDirectoryPointers: [UInt64]?
    public var dr: [UInt64] = [0, 0, 0, 0]
    public var dr6: UInt64 = 0xFFFF_0FF0
    public var dr7: UInt64 = 0x400
    public var xcr0: UInt64 = 1
    public var msr = ModelSpecificRegisters()

    /// x87, SSE, AVX and AVX-512 state in the standard XSAVE format (SDM Vol. 1, 13.4), at least 576 bytes. Where AVX-512's
    /// components lie, CPUID says: Intel's CPUs have them elsewhere than AMD's.
    public var xsave: [UInt8]

    /// Set for one instruction after STI or a load of SS (SDM Vol. 3, 6.8).
    public var interruptShadow = false
    /// The shadow is that of a load of SS, which holds debug exceptions back too.
    public var stackShadow = false
    /// Debug conditions in DR6's places whose #DB is yet to be delivered.
    public var pendingDebug: UInt64 = 0
    public var nmiBlocked = false
    public var nmiPending = false
    public var isHalted = false
    public var pendingEvent: PendingEvent?

    /// The local APIC, where the engine has it itself. `nil`: as firmware leaves it after power-on, or there is none.
    public var localAPIC: LocalAPICState?

    /// What the guest's paravirtual clock says, in nanoseconds since the guest's time zero: it goes on from there, at the
    /// place and with the guest's counter that `msr` has. `nil`: it says what it said, or there is none.
    public var clockNanoseconds: UInt64?

    /// The state after power-on or INIT (SDM Vol. 3, table 10-1).
    public init() {
        xsave = Array(repeating: 0, count: 1088)
        // FCW 0x37F, MXCSR 0x1F80
        xsave[0] = 0x7F
        xsave[1] = 0x03
        xsave[24] = 0x80
        xsave[25] = 0x1F
    }

    public subscript(_ register: GeneralRegister) -> UInt64 {
        get { registers[register.rawValue] }
        set { registers[register.rawValue] = newValue }
    }
}
