// Model-specific registers (SDM Vol. 4; APM Vol. 2, appendix A).
//
// The rule is OpenBSD's: a read of an unknown register is #GP, a write of one is ignored.
//
// The local APIC's registers are its own, where there is one (`LocalInterruptController`).
//
// The engine answers for four registers itself, before it asks this table, because their value is not in
// `ModelSpecificRegisters`: the TSC (which runs), FS_BASE and GS_BASE (in the segment registers), and the write of
// EFER where it knows that paging is on without long mode (`efer(writing:over:pagingEnabled:)`). Canonical
// checks for the two bases: `CPUPolicy.isCanonical`.

/// Numbers of the registers that mean something here.
public enum MSRIndex {
    public static let tsc: UInt32 = 0x10
    public static let platformID: UInt32 = 0x17
    public static let apicBase: UInt32 = 0x1B
    public static let featureControl: UInt32 = 0x3A
    public static let biosSignature: UInt32 = 0x8B
    public static let smmMonitorControl: UInt32 = 0x9B
    public static let archCapabilities: UInt32 = 0x10A
    public static let sysenterCS: UInt32 = 0x174
    public static let sysenterESP: UInt32 = 0x175
    public static let sysenterEIP: UInt32 = 0x176
    public static let miscEnable: UInt32 = 0x1A0
    public static let pat: UInt32 = 0x277
    public static let kvmWallClock: UInt32 = 0x4B56_4D00
    public static let kvmSystemTime: UInt32 = 0x4B56_4D01
    public static let xss: UInt32 = 0xDA0
    public static let efer: UInt32 = 0xC000_0080
    public static let star: UInt32 = 0xC000_0081
    public static let lstar: UInt32 = 0xC000_0082
    public static let cstar: UInt32 = 0xC000_0083
    public static let sfmask: UInt32 = 0xC000_0084
    public static let fsBase: UInt32 = 0xC000_0100
    public static let gsBase: UInt32 = 0xC000_0101
    public static let kernelGSBase: UInt32 = 0xC000_0102
    public static let tscAux: UInt32 = 0xC000_0103
    public static let amdSysCfg: UInt32 = 0xC001_0010
    public static let amdHWCR: UInt32 = 0xC001_0015
    public static let amdNBCfg: UInt32 = 0xC001_001F
    public static let amdInterruptPendingMessage: UInt32 = 0xC001_0055
    public static let amdPStateDefinitions: ClosedRange<UInt32> = 0xC001_0064...0xC001_006B
    public static let amdSEVStatus: UInt32 = 0xC001_0131
    public static let amdDECfg: UInt32 = 0xC001_1029
}

/// What a write to a model-specific register comes to.
public enum MSRWriteOutcome: Hashable, Sendable {
    /// Stored.
    case done
    /// Not stored; the guest goes on.
    case ignored
    /// #GP(0); nothing stored.
    case generalProtection
    /// For the paravirtual clock, which checks the address, stores the value in `ModelSpecificRegisters` and acts, or
    /// answers #GP(0). Not stored yet.
    case paravirtualClock(ParavirtualClockRegister)
}

public enum ParavirtualClockRegister: Hashable, Sendable {
    /// KVM_SYSTEM_TIME: bit 0 enables, the rest is the address of the CPU's time page.
    case systemTime
    /// KVM_WALL_CLOCK: the address that the wall clock at boot is written to, once.
    case wallClock
}

extension CPUPolicy {
    /// Every "not vulnerable" bit of IA32_ARCH_CAPABILITIES: RDCL, IBRS_ALL, L1D flush, SSB, MDS, page-size change
    /// machine checks, TAA, SBDR/SSDP, FBSDP, PSDP, BHI, PBRSB, GDS, RFDS, ITS (SDM Vol. 4, table 2-2).
    static let allImmunities: UInt64 =
        1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 20
        | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62

    /// The local APIC at its usual place, disabled; this is the boot processor (SDM Vol. 3, 12.4.4).
    public static let apicBaseValue: UInt64 = 0xFEE0_0000 | 1 << 8

    /// What RDMSR gives, or `nil` for #GP(0).
    public func readMSR(_ index: UInt32, _ msrs: ModelSpecificRegisters) -> UInt64? {
        switch index {
        case MSRIndex.efer: return msrs.efer
        case MSRIndex.star: return msrs.star
        case MSRIndex.lstar: return msrs.lstar
        case MSRIndex.cstar: return msrs.cstar
        case MSRIndex.sfmask: return msrs.sfmask
        case MSRIndex.kernelGSBase: return msrs.kernelGSBase
        case MSRIndex.tscAux: return showsTSCAux ? msrs.tscAux : nil
        case MSRIndex.sysenterCS: return msrs.sysenterCS
        case MSRIndex.sysenterESP: return msrs.sysenterESP
        case MSRIndex.sysenterEIP: return msrs.sysenterEIP
        case MSRIndex.pat: return msrs.pat
        // No supervisor state components.
        case MSRIndex.xss: return features.contains(.xsaves) ? 0 : nil
        case MSRIndex.apicBase: return Self.apicBaseValue
        // No microcode was ever loaded.
        case MSRIndex.biosSignature: return 0
        case MSRIndex.kvmSystemTime: return tscFrequencyHz != nil ? msrs.kvmSystemTime : nil
        case MSRIndex.kvmWallClock: return tscFrequencyHz != nil ? msrs.kvmWallClock : nil
        default: break
        }
        if features.contains(.mtrr), let value = msrs.memoryTypes.read(index) { return value }
        switch vendor {
        case .amd: return readAMD(index)
        case .intel: return readIntel(index, msrs)
        case .other: return nil
        }
    }

    private func readIntel(_ index: UInt32, _ msrs: ModelSpecificRegisters) -> UInt64? {
        switch index {
        case MSRIndex.platformID: 0
        // Locked, with VMX off.
        case MSRIndex.featureControl: 1
        // No branch trace store, no precise sampling.
        case MSRIndex.miscEnable: msrs.miscEnable & 1 | 1 << 11 | 1 << 12
        case MSRIndex.archCapabilities: features.contains(.archCapabilities) ? archCapabilities : nil
        default: nil
        }
    }

    private func readAMD(_ index: UInt32) -> UInt64? {
        switch index {
        // OpenBSD's vmm has no NB_CFG; Linux reads it, to reach extended PCI registers, unprepared for #GP.
        case MSRIndex.amdSysCfg, MSRIndex.amdNBCfg, MSRIndex.amdInterruptPendingMessage, MSRIndex.amdSEVStatus: 0
        // TscFreqSel: the TSC counts at the P0 frequency. Linux calls the firmware broken without it.
        case MSRIndex.amdHWCR: 1 << 24
        // Not enabled: no P-states, and no frequency to derive from them.
        case MSRIndex.amdPStateDefinitions: 0
        // LFENCE serialises.
        case MSRIndex.amdDECfg: 1 << 1
        default: nil
        }
    }

    /// Carries out WRMSR.
    public func writeMSR(_ index: UInt32, _ value: UInt64, _ msrs: inout ModelSpecificRegisters) -> MSRWriteOutcome {
        switch index {
        case MSRIndex.efer:
            // LMA tells of paging in long mode; the engine has looked at paging without it.
            let paging = msrs.efer & EFER.lma != 0
            guard let new = efer(writing: value, over: msrs.efer, pagingEnabled: paging) else {
                return .generalProtection
            }
            msrs.efer = new
            return .done
        case MSRIndex.star:
            msrs.star = value
            return .done
        case MSRIndex.lstar: return Self.store(address: value, in: &msrs.lstar)
        case MSRIndex.cstar: return Self.store(address: value, in: &msrs.cstar)
        case MSRIndex.kernelGSBase: return Self.store(address: value, in: &msrs.kernelGSBase)
        case MSRIndex.sysenterESP: return Self.store(address: value, in: &msrs.sysenterESP)
        case MSRIndex.sysenterEIP: return Self.store(address: value, in: &msrs.sysenterEIP)
        case MSRIndex.sysenterCS:
            msrs.sysenterCS = value & 0xFFFF_FFFF
            return .done
        case MSRIndex.sfmask:
            // Only RFLAGS has flags to mask.
            msrs.sfmask = value & 0xFFFF_FFFF
            return .done
        case MSRIndex.tscAux:
            guard showsTSCAux else { return .ignored }
            guard value >> 32 == 0 else { return .generalProtection }
            msrs.tscAux = value
            return .done
        case MSRIndex.xss where features.contains(.xsaves): return value == 0 ? .done : .generalProtection
        case MSRIndex.pat:
            guard Self.isValidPAT(value) else { return .generalProtection }
            msrs.pat = value
            return .done
        case MSRIndex.miscEnable where vendor == .intel:
            // Fast strings can be turned off; the rest is read-only or not there.
            msrs.miscEnable = value & 1
            return .done
        case MSRIndex.apicBase:
            // Fixed base, and no APIC to enable: bits that do not move anything are swallowed.
            let fixed: UInt64 = ~0xFFF | 1 << 8
            return value & fixed == Self.apicBaseValue & fixed ? .ignored : .generalProtection
        case MSRIndex.featureControl where vendor == .intel: return .generalProtection
        case MSRIndex.smmMonitorControl, MSRIndex.archCapabilities: return .generalProtection
        case MSRIndex.kvmSystemTime: return tscFrequencyHz != nil ? .paravirtualClock(.systemTime) : .ignored
        case MSRIndex.kvmWallClock: return tscFrequencyHz != nil ? .paravirtualClock(.wallClock) : .ignored
        default:
            guard features.contains(.mtrr),
                let isGood = msrs.memoryTypes.write(index, value, physicalAddressBits: physicalAddressBits)
            else { return .ignored }
            return isGood ? .done : .generalProtection
        }
    }

    private var showsTSCAux: Bool { features.contains(.rdtscp) || features.contains(.rdpid) }

    private static func store(address: UInt64, in register: inout UInt64) -> MSRWriteOutcome {
        guard isCanonical(address) else { return .generalProtection }
        register = address
        return .done
    }

    /// Eight memory types of 0, 1, 4, 5, 6 or 7, in a byte each (SDM Vol. 3, 13.12.2).
    public static func isValidPAT(_ value: UInt64) -> Bool {
        // No bit above 2, and not 2 or 3: bit 1 only with bit 2.
        value & 0xF8F8_F8F8_F8F8_F8F8 == 0 && (value & 0x0202_0202_0202_0202) << 1 & ~value == 0
    }
}
