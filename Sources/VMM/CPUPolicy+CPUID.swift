// CPUID as the guest sees it (Intel SDM Vol. 2, CPUID; AMD APM Vol. 3, appendix E).
//
// One virtual CPU, whose APIC id is 0: HTT, MONITOR and machine check are never shown. The local APIC is where the
// engine takes its interrupts from one (`EngineFeatures.emulated`).
//
// Quirk: a leaf above the highest one reads zeros on every vendor, where Intel's repeats its highest basic leaf.

extension CPUPolicy {
    /// 0x15 tells the TSC's frequency, so there is no more to say behind it.
    public var highestBasicLeaf: UInt32 { showsCrystal ? 0x15 : 0xD }
    public var highestExtendedLeaf: UInt32 { vendor == .amd ? 0x8000_0021 : 0x8000_0008 }

    /// The register pages of two hypervisors, so that OpenBSD's clock driver and Linux's both find theirs.
    public static let vmmLeaf: UInt32 = 0x4000_0000
    public static let kvmLeaf: UInt32 = 0x4000_0100

    /// NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE.
    private static let kvmClockFeatures: UInt32 = 1 << 1 | 1 << 3 | 1 << 24
    private static let vmmClockFeatures: UInt32 = 1 << 3 | 1 << 24

    /// What CPUID.0x15 says, and what the local APIC's timer counts (SDM Vol. 3, 12.5.4). Its kHz times the
    /// numerator stay below 2^32, where Linux computes, and Linux finds a timer of 1 MHz too slow.
    public static let crystalHz: UInt64 = 25_000_000

    /// CPUID as the guest sees it. `cr4` and `xcr0` are the guest's: OSXSAVE and the XSAVE area size follow them.
    /// - Parameter isAPICEnabled: whether IA32_APIC_BASE has the local APIC on (SDM Vol. 3, 12.4.3).
    public func cpuid(
        _ leaf: UInt32, _ subleaf: UInt32, cr4: UInt64, xcr0: UInt64, isAPICEnabled: Bool = true
    ) -> CPUIDLeaf {
        var answer = cpuid(leaf, subleaf, cr4, xcr0)
        if !isAPICEnabled && (leaf == 1 || leaf == 0x8000_0001 && vendor == .amd) { answer.edx &= ~(1 << 9) }
        return answer
    }

    private func cpuid(_ leaf: UInt32, _ subleaf: UInt32, _ cr4: UInt64, _ xcr0: UInt64) -> CPUIDLeaf {
        switch leaf {
        case 0...highestBasicLeaf: basic(leaf, subleaf, cr4: cr4, xcr0: xcr0)
        case 0x4000_0000...0x4000_01FF: hypervisor(leaf)
        case 0x8000_0000...highestExtendedLeaf: extended(leaf, subleaf)
        default: CPUIDLeaf()
        }
    }

    private func basic(_ leaf: UInt32, _ subleaf: UInt32, cr4: UInt64, xcr0: UInt64) -> CPUIDLeaf {
        switch leaf {
        case 0:
            return CPUIDLeaf(eax: highestBasicLeaf, ebx: vendorLeaf.ebx, ecx: vendorLeaf.ecx, edx: vendorLeaf.edx)
        case 1:
            // EBX: CLFLUSH lines of 8 quadwords, 1 logical processor, APIC id 0.
            let osxsave: UInt32 = features.contains(.xsave) && cr4 & CR4.osxsave != 0 ? 1 << 27 : 0
            return CPUIDLeaf(
                eax: signature, ebx: 0x0001_0800, ecx: features[.leaf1ECX] | osxsave, edx: features[.leaf1EDX])
        case 2:
            // 0xFF: "see leaf 4".
            return vendor == .intel ? CPUIDLeaf(eax: 0x0000_FF01) : CPUIDLeaf()
        case 4:
            return vendor == .amd ? CPUIDLeaf() : cache(subleaf)
        case 6:
            return CPUIDLeaf(eax: features[.leaf6EAX])
        case 7:
            // EAX of the first subleaf: the number of the last.
            let further = features[.leaf7Sub1EAX]
            if subleaf == 1 { return CPUIDLeaf(eax: further) }
            guard subleaf == 0 else { return CPUIDLeaf() }
            return CPUIDLeaf(
                eax: further != 0 ? 1 : 0, ebx: features[.leaf7EBX], ecx: features[.leaf7ECX], edx: features[.leaf7EDX])
        case 0xB:
            return topology(subleaf)
        case 0xD:
            return extendedState(subleaf, xcr0: xcr0)
        case 0x15:
            // TSC frequency = crystal * EBX / EAX with a made-up crystal: exact to 12.5 kHz.
            guard showsCrystal, let frequency = tscFrequencyHz else { return CPUIDLeaf() }
            let unit = Self.crystalHz / 1000
            return CPUIDLeaf(
                eax: 1000, ebx: UInt32(truncatingIfNeeded: (frequency + unit / 2) / unit),
                ecx: UInt32(truncatingIfNeeded: Self.crystalHz))
        default:
            return CPUIDLeaf()
        }
    }

    /// The host's cache, belonging to this CPU alone.
    private func cache(_ subleaf: UInt32) -> CPUIDLeaf {
        guard subleaf < 4 else { return CPUIDLeaf() }
        var answer = caches[Int(subleaf)]
        guard answer.eax & 0x1F != 0 else { return CPUIDLeaf() }
        // Cores in the package and threads that share it, both minus one; AMD has only the second.
        answer.eax &= 0x3FFF
        // Bit 2: complex indexing, meaningful only with the host's sharing; the others are inclusive and WBINVD scope.
        return answer
    }

    /// One thread, one core: SDM Vol. 3, 10.9.
    private func topology(_ subleaf: UInt32) -> CPUIDLeaf {
        switch subleaf {
        case 0: CPUIDLeaf(ebx: 1, ecx: 0x100)
        case 1: CPUIDLeaf(ebx: 1, ecx: 0x201)
        default: CPUIDLeaf(ecx: subleaf & 0xFF)
        }
    }

    private func extendedState(_ subleaf: UInt32, xcr0: UInt64) -> CPUIDLeaf {
        guard xcr0Mask != 0 else { return CPUIDLeaf() }
        switch subleaf {
        case 0:
            return CPUIDLeaf(
                eax: UInt32(truncatingIfNeeded: xcr0Mask), ebx: xsaveAreaSize(xcr0), ecx: xsaveAreaSize(xcr0Mask),
                edx: UInt32(truncatingIfNeeded: xcr0Mask >> 32))
        case 1:
            // AVX and the components of AVX-512 follow one another in the compacted format as in the standard one.
            let compacts = features.contains(.xsavec) || features.contains(.xsaves)
            return CPUIDLeaf(eax: features[.leafD1EAX], ebx: compacts ? compactedAreaSize(xcr0) : 0)
        case 2...9 where xcr0Mask >> UInt64(subleaf) & 1 != 0:
            let component = components[Int(subleaf) - 2]
            return CPUIDLeaf(eax: component.eax, ebx: component.ebx)
        default:
            return CPUIDLeaf()
        }
    }

    /// Bytes of a standard-format XSAVE area for these components (SDM Vol. 1, 13.2): legacy region and header
    /// always, then up to the end of the last component.
    public func xsaveAreaSize(_ xcr0: UInt64) -> UInt32 {
        var size: UInt32 = 576
        for index in 2...9 where xcr0 & xcr0Mask & 1 << UInt64(index) != 0 {
            let component = components[index - 2]
            size = max(size, component.eax &+ component.ebx)
        }
        return size
    }

    /// The same for the compacted format (SDM Vol. 1, 13.4.3): the components one behind the other.
    private func compactedAreaSize(_ xcr0: UInt64) -> UInt32 {
        var size: UInt32 = 576
        for index in 2...9 where xcr0 & xcr0Mask & 1 << UInt64(index) != 0 { size &+= components[index - 2].eax }
        return size
    }

    private func hypervisor(_ leaf: UInt32) -> CPUIDLeaf {
        guard tscFrequencyHz != nil else {
            return leaf == Self.vmmLeaf ? CPUIDLeaf(ebx: 0x6E65_704F, ecx: 0x5644_5342, edx: 0x3835_4D4D) : CPUIDLeaf()
        }
        return switch leaf {
        // "OpenBSDVMM58"
        case Self.vmmLeaf: CPUIDLeaf(ebx: 0x6E65_704F, ecx: 0x5644_5342, edx: 0x3835_4D4D)
        case Self.vmmLeaf + 1: CPUIDLeaf(eax: Self.vmmClockFeatures)
        // "KVMKVMKVM\0\0\0"
        case Self.kvmLeaf: CPUIDLeaf(eax: Self.kvmLeaf + 1, ebx: 0x4B4D_564B, ecx: 0x564B_4D56, edx: 0x0000_004D)
        case Self.kvmLeaf + 1: CPUIDLeaf(eax: Self.kvmClockFeatures)
        default: CPUIDLeaf()
        }
    }

    private func extended(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf {
        switch leaf {
        case 0x8000_0000:
            return vendor == .amd
                ? CPUIDLeaf(
                    eax: highestExtendedLeaf, ebx: vendorLeaf.ebx, ecx: vendorLeaf.ecx, edx: vendorLeaf.edx)
                : CPUIDLeaf(eax: highestExtendedLeaf)
        case 0x8000_0001:
            // AMD repeats most of CPUID.1:EDX here (APM Vol. 3, E.4.2).
            let repeated = vendor == .amd ? features[.leaf1EDX] & 0x0183_F3FF : 0
            return CPUIDLeaf(
                eax: vendor == .amd ? signature : 0, ecx: features[.extended1ECX],
                edx: features[.extended1EDX] | repeated)
        case 0x8000_0002...0x8000_0004:
            return brand[Int(leaf - 0x8000_0002)]
        case 0x8000_0005:
            return vendor == .amd ? cacheLeaf5 : CPUIDLeaf()
        case 0x8000_0006:
            return cacheLeaf6
        case 0x8000_0007:
            return CPUIDLeaf(edx: features[.extended7EDX])
        case 0x8000_0008:
            return CPUIDLeaf(eax: UInt32(physicalAddressBits) | 48 << 8, ebx: features[.extended8EBX])
        case 0x8000_001D where vendor == .amd:
            return cache(subleaf)
        case 0x8000_0021 where vendor == .amd:
            return CPUIDLeaf(eax: features[.extended21EAX], ecx: features[.extended21ECX])
        default:
            // With 0x8000001E: APIC id, core and node 0.
            return CPUIDLeaf()
        }
    }
}
