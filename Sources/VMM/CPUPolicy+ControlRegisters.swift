// Which values control registers take; a value that is refused is #GP(0) for the guest.

/// Bits of CR0 (SDM Vol. 3, 2.5).
public enum CR0 {
    public static let pe: UInt64 = 1 << 0
    public static let mp: UInt64 = 1 << 1
    public static let em: UInt64 = 1 << 2
    public static let ts: UInt64 = 1 << 3
    public static let et: UInt64 = 1 << 4
    public static let ne: UInt64 = 1 << 5
    public static let wp: UInt64 = 1 << 16
    public static let am: UInt64 = 1 << 18
    public static let nw: UInt64 = 1 << 29
    public static let cd: UInt64 = 1 << 30
    public static let pg: UInt64 = 1 << 31
}

/// Bits of CR4 (SDM Vol. 3, 2.5).
public enum CR4 {
    public static let vme: UInt64 = 1 << 0
    public static let pvi: UInt64 = 1 << 1
    public static let tsd: UInt64 = 1 << 2
    public static let de: UInt64 = 1 << 3
    public static let pse: UInt64 = 1 << 4
    public static let pae: UInt64 = 1 << 5
    public static let mce: UInt64 = 1 << 6
    public static let pge: UInt64 = 1 << 7
    public static let pce: UInt64 = 1 << 8
    public static let osfxsr: UInt64 = 1 << 9
    public static let osxmmexcpt: UInt64 = 1 << 10
    public static let umip: UInt64 = 1 << 11
    public static let fsgsbase: UInt64 = 1 << 16
    public static let pcide: UInt64 = 1 << 17
    public static let osxsave: UInt64 = 1 << 18
    public static let smep: UInt64 = 1 << 20
    public static let smap: UInt64 = 1 << 21
}

/// Bits of EFER (SDM Vol. 3, 2.2.1; APM Vol. 2, 3.1.7).
public enum EFER {
    public static let sce: UInt64 = 1 << 0
    public static let lme: UInt64 = 1 << 8
    public static let lma: UInt64 = 1 << 10
    public static let nxe: UInt64 = 1 << 11
    public static let ffxsr: UInt64 = 1 << 14
    public static let automaticIBRS: UInt64 = 1 << 21
}

extension CPUPolicy {
    /// Whether bits 63...47 are all alike (SDM Vol. 1, 3.3.7.1).
    @inlinable public static func isCanonical(_ address: UInt64) -> Bool {
        UInt64(bitPattern: Int64(bitPattern: address << 16) >> 16) == address
    }

    /// CR0 as it reads after this write, or `nil` for #GP. What depends on other registers (PG with LME needs PAE,
    /// CS.L clear) the engine checks.
    public func cr0(writing value: UInt64) -> UInt64? {
        guard value >> 32 == 0 else { return nil }
        if value & CR0.pg != 0, value & CR0.pe == 0 { return nil }
        if value & CR0.nw != 0, value & CR0.cd == 0 { return nil }
        // Reserved bits below 32 are ignored; ET is always set.
        return value & 0xE005_002F | CR0.et
    }

    /// Every CR4 bit that the shown features define.
    public var validCR4Bits: UInt64 {
        var bits = CR4.tsd | CR4.pce
        func add(_ bit: UInt64, _ feature: CPUFeature) { if features.contains(feature) { bits |= bit } }
        add(CR4.vme | CR4.pvi, .vme)
        add(CR4.de, .de)
        add(CR4.pse, .pse)
        add(CR4.pae, .pae)
        add(CR4.pge, .pge)
        add(CR4.osfxsr, .fxsr)
        add(CR4.osxmmexcpt, .sse)
        add(CR4.umip, .umip)
        add(CR4.fsgsbase, .fsgsbase)
        add(CR4.pcide, .pcid)
        add(CR4.osxsave, .xsave)
        add(CR4.smep, .smep)
        add(CR4.smap, .smap)
        return bits
    }

    /// Whether CR4 takes this value; PAE cannot be cleared in long mode.
    public func allowsCR4(_ value: UInt64, longModeActive: Bool) -> Bool {
        value & ~validCR4Bits == 0 && !(longModeActive && value & CR4.pae == 0)
    }

    /// Whether XSETBV takes this value for XCR0 (SDM Vol. 1, 13.3).
    public func allowsXCR0(_ value: UInt64) -> Bool {
        guard value & ~xcr0Mask == 0, value & 1 != 0 else { return false }
        if value & 4 != 0, value & 2 == 0 { return false }
        let avx512 = value & 0xE0
        return avx512 == 0 || avx512 == 0xE0 && value & 4 != 0
    }

    /// Every EFER bit that a guest may set, LMA with them: it is the CPU's, and writes do not change it.
    public var validEFERBits: UInt64 {
        var bits: UInt64 = 0
        if features.contains(.syscall) { bits |= EFER.sce }
        if features.contains(.lm) { bits |= EFER.lme | EFER.lma }
        if features.contains(.nx) { bits |= EFER.nxe }
        if features.contains(.ffxsr) { bits |= EFER.ffxsr }
        if features.contains(.automaticIBRS) { bits |= EFER.automaticIBRS }
        return bits
    }

    /// EFER as it reads after this write, or `nil` for #GP: a reserved bit, or LME changed with paging on.
    public func efer(writing value: UInt64, over old: UInt64, pagingEnabled: Bool) -> UInt64? {
        guard value & ~validEFERBits == 0 else { return nil }
        if pagingEnabled, (value ^ old) & EFER.lme != 0 { return nil }
        return value & ~EFER.lma | old & EFER.lma
    }
}
