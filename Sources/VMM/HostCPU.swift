import CLinux

/// What the policy needs to know of the host's CPU. Tests make their own.
public struct HostCPU: Hashable, Sendable {
    public enum Vendor: Sendable {
        case intel, amd, other
    }

    /// CPUID.0 EBX, ECX, EDX.
    public var vendorLeaf: CPUIDLeaf
    /// CPUID.1:EAX: family, model, stepping.
    public var signature: UInt32
    public var features: CPUFeatures
    public var physicalAddressBits: UInt8
    /// XCR0 as the host's kernel set it; 0 without XSAVE.
    public var xcr0: UInt64
    /// Size and offset in the standard XSAVE format of the components 2...9 (CPUID.0xD.n EAX, EBX).
    public var components: [CPUIDLeaf]
    /// CPUID.4 or 0x8000001D, the first four subleaves.
    public var caches: [CPUIDLeaf]
    /// CPUID.0x80000005 and 0x80000006: AMD's form of cache and TLB sizes.
    public var cacheLeaf5: CPUIDLeaf
    public var cacheLeaf6: CPUIDLeaf

    public var vendor: Vendor { Self.vendor(vendorLeaf) }

    private static func vendor(_ leaf: CPUIDLeaf) -> Vendor {
        switch (leaf.ebx, leaf.edx, leaf.ecx) {
        case (0x756E_6547, 0x4965_6E69, 0x6C65_746E): .intel
        // AuthenticAMD, HygonGenuine
        case (0x6874_7541, 0x6974_6E65, 0x444D_4163), (0x6F67_7948, 0x656E_476E, 0x656E_6975): .amd
        default: .other
        }
    }

    /// A CPU made up by a test, with one cache, and AVX's place in the XSAVE area as all CPUs have it.
    public init(
        vendorLeaf: CPUIDLeaf, signature: UInt32, features: CPUFeatures, physicalAddressBits: UInt8 = 46,
        xcr0: UInt64 = 7
    ) {
        self.vendorLeaf = vendorLeaf
        self.signature = signature
        self.features = xcr0 & 0xE6 == 0xE6 ? features : features.subtracting(.avx512)
        self.physicalAddressBits = physicalAddressBits
        self.xcr0 = xcr0
        // Intel's places: MPX's components 3 and 4 are in front of AVX-512's.
        components = [CPUIDLeaf(eax: 256, ebx: 576)]
        if xcr0 & 0xE0 != 0 {
            components += [
                CPUIDLeaf(), CPUIDLeaf(), CPUIDLeaf(eax: 64, ebx: 1088), CPUIDLeaf(eax: 512, ebx: 1152),
                CPUIDLeaf(eax: 1024, ebx: 1664),
            ]
        }
        caches = [CPUIDLeaf(eax: 0x1C00_4121, ebx: 0x01C0_003F, ecx: 0x3F)]
        cacheLeaf5 = CPUIDLeaf()
        cacheLeaf6 = CPUIDLeaf()
    }

    /// Asks the CPU that this runs on.
    public static let current = HostCPU()

    private init() {
        vendorLeaf = cpuid(0)
        let highest = vendorLeaf.eax
        let one = cpuid(1)
        signature = one.eax
        let highestExtended = cpuid(0x8000_0000).eax
        func basic(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> CPUIDLeaf {
            leaf <= highest ? cpuid(leaf, subleaf) : CPUIDLeaf()
        }
        func extended(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> CPUIDLeaf {
            leaf <= highestExtended ? cpuid(leaf, subleaf) : CPUIDLeaf()
        }
        features = CPUFeatures(leaf: basic, extended: extended)

        // CPUID.1:ECX.OSXSAVE; a host kernel may leave AVX off ("noxsave", old kernels).
        xcr0 = one.ecx & 1 << 27 != 0 ? clinux_xgetbv0() : 0
        if xcr0 == 0 { features.remove(.xsave) }
        if xcr0 & 6 != 6 { features.remove(.avx) }
        if xcr0 & 0xE6 != 0xE6 { features = features.subtracting(.avx512) }
        features = features.withoutOrphans()

        components = (2...9).map { basic(0xD, $0) }
        let bits = UInt8(truncatingIfNeeded: extended(0x8000_0008).eax)
        physicalAddressBits = bits == 0 ? 36 : bits
        let isAMD = Self.vendor(vendorLeaf) == .amd
        caches = (0..<4).map { isAMD ? extended(0x8000_001D, $0) : basic(4, $0) }
        cacheLeaf5 = extended(0x8000_0005)
        cacheLeaf6 = extended(0x8000_0006)
    }
}

extension CPUFeatures {
    /// Collects the words from CPUID answers, keeping only bits with a name.
    public init(
        leaf: (_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf,
        extended: (_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf
    ) {
        self.init()
        self[.leaf1ECX] = leaf(1, 0).ecx
        self[.leaf1EDX] = leaf(1, 0).edx
        self[.leaf7EBX] = leaf(7, 0).ebx
        self[.leaf7ECX] = leaf(7, 0).ecx
        self[.leaf7EDX] = leaf(7, 0).edx
        self[.leaf6EAX] = leaf(6, 0).eax
        if leaf(7, 0).eax >= 1 { self[.leaf7Sub1EAX] = leaf(7, 1).eax }
        self[.leafD1EAX] = leaf(0xD, 1).eax
        self[.extended1ECX] = extended(0x8000_0001, 0).ecx
        self[.extended1EDX] = extended(0x8000_0001, 0).edx
        self[.extended7EDX] = extended(0x8000_0007, 0).edx
        self[.extended8EBX] = extended(0x8000_0008, 0).ebx
        self[.extended21EAX] = extended(0x8000_0021, 0).eax
        self[.extended21ECX] = extended(0x8000_0021, 0).ecx
        self = intersection(.all)
    }
}

private func cpuid(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> CPUIDLeaf {
    let answer = clinux_cpuid(leaf, subleaf)
    return CPUIDLeaf(eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx)
}
