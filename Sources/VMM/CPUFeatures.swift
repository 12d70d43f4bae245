/// One bit that CPUID answers with. The raw value is the register's place in `CPUFeatures` times 100, plus the
/// bit: `1_26` is bit 26 of the second word, CPUID.1:EDX.
///
/// Only bits that some guest may be shown are here: what has no name can never be shown. Names are those of the
/// Intel SDM (Vol. 2, CPUID) and the AMD APM (Vol. 3, appendix E).
public enum CPUFeature: Int, CaseIterable, Sendable {
    // CPUID.1:ECX
    case sse3 = 0_00, pclmulqdq = 0_01, ssse3 = 0_09, fma = 0_12, cx16 = 0_13, pcid = 0_17, sse41 = 0_19, sse42 = 0_20
    case x2apic = 0_21, movbe = 0_22, popcnt = 0_23, tscDeadline = 0_24, aes = 0_25, xsave = 0_26, avx = 0_28, f16c = 0_29, rdrand = 0_30
    /// Not a feature of any silicon: "you run on a hypervisor".
    case hypervisor = 0_31
    // CPUID.1:EDX
    case fpu = 1_00, vme = 1_01, de = 1_02, pse = 1_03, tsc = 1_04, msr = 1_05, pae = 1_06, cx8 = 1_08, apic = 1_09
    case sep = 1_11, pge = 1_13, cmov = 1_15, pat = 1_16, pse36 = 1_17, clfsh = 1_19, mmx = 1_23, fxsr = 1_24
    case sse = 1_25, sse2 = 1_26
    case mtrr = 1_12
    // CPUID.7.0:EBX
    case fsgsbase = 2_00, bmi1 = 2_03, avx2 = 2_05, fdpExceptionOnly = 2_06, smep = 2_07, bmi2 = 2_08, erms = 2_09, invpcid = 2_10
    case zeroFCSFDS = 2_13, avx512f = 2_16, avx512dq = 2_17, rdseed = 2_18, adx = 2_19, smap = 2_20
    case avx512ifma = 2_21, clflushopt = 2_23, clwb = 2_24, avx512cd = 2_28, sha = 2_29, avx512bw = 2_30
    case avx512vl = 2_31
    // CPUID.7.0:ECX
    case avx512vbmi = 3_01, umip = 3_02, avx512vbmi2 = 3_06, gfni = 3_08, vaes = 3_09, vpclmulqdq = 3_10
    case avx512vnni = 3_11, avx512bitalg = 3_12, avx512vpopcntdq = 3_14, rdpid = 3_22
    // CPUID.7.0:EDX
    case fsrm = 4_04, avx512vp2intersect = 4_08, mdClear = 4_10, avx512fp16 = 4_23, archCapabilities = 4_29
    // CPUID.0xD.1:EAX
    case xsaveopt = 5_00, xsavec = 5_01, xgetbv1 = 5_02, xsaves = 5_03
    // CPUID.0x80000001:ECX
    case lahf = 6_00, lzcnt = 6_05, sse4a = 6_06, misalignsse = 6_07, prefetchw = 6_08, topoext = 6_22
    // CPUID.0x80000001:EDX (AMD repeats many bits of CPUID.1:EDX here; the table does that)
    case syscall = 7_11, nx = 7_20, mmxext = 7_22, ffxsr = 7_25, pdpe1gb = 7_26, rdtscp = 7_27, lm = 7_29
    // CPUID.0x80000007:EDX
    case invariantTSC = 8_08
    // CPUID.0x80000008:EBX
    case clzero = 9_00, restoreFPErrorPointers = 9_02, ssbNo = 9_26, btcNo = 9_29
    // CPUID.0x80000021:EAX
    case lfenceSerializing = 10_02, nullSelectorClearsBase = 10_06, automaticIBRS = 10_08, srsoNo = 10_29
    // CPUID.0x80000021:ECX
    case tsaSQNo = 11_01, tsaL1No = 11_02
    // CPUID.7.1:EAX
    case avx512bf16 = 12_05
    // CPUID.6:EAX: the local APIC's timer runs whatever the CPU does.
    case arat = 13_02

    fileprivate var word: Int { rawValue / 100 }
    fileprivate var mask: UInt32 { 1 << UInt32(rawValue % 100) }
}

/// A set of CPUID bits, kept as the registers that CPUID answers with. A plain value: no storage behind it.
public struct CPUFeatures: Hashable, Sendable, ExpressibleByArrayLiteral {
    /// Which register a word is.
    public enum Word: Int, CaseIterable, Sendable {
        case leaf1ECX, leaf1EDX, leaf7EBX, leaf7ECX, leaf7EDX, leafD1EAX
        case extended1ECX, extended1EDX, extended7EDX, extended8EBX, extended21EAX, extended21ECX, leaf7Sub1EAX, leaf6EAX
    }

    private var words = SIMD16<UInt32>()

    public init() {}
    public init(arrayLiteral elements: CPUFeature...) {
        for element in elements { insert(element) }
    }

    public subscript(word: Word) -> UInt32 {
        get { words[word.rawValue] }
        set { words[word.rawValue] = newValue }
    }

    public mutating func insert(_ feature: CPUFeature) { words[feature.word] |= feature.mask }
    public mutating func remove(_ feature: CPUFeature) { words[feature.word] &= ~feature.mask }
    public func contains(_ feature: CPUFeature) -> Bool { words[feature.word] & feature.mask != 0 }
    public var isEmpty: Bool { words == SIMD16() }

    public func union(_ other: Self) -> Self {
        var result = self
        result.words |= other.words
        return result
    }
    public func intersection(_ other: Self) -> Self {
        var result = self
        result.words &= other.words
        return result
    }
    public func subtracting(_ other: Self) -> Self {
        var result = self
        result.words &= ~other.words
        return result
    }
    public func isSubset(of other: Self) -> Bool { subtracting(other).isEmpty }

    /// The features by name, for messages.
    public var names: [String] { CPUFeature.allCases.filter(contains).map { "\($0)" } }

    /// Every bit that has a name.
    public static let all: Self = {
        var result = Self()
        for feature in CPUFeature.allCases { result.insert(feature) }
        return result
    }()

    /// Takes out what cannot work because what it builds on is missing (SDM Vol. 1, 13.1 and 15.2).
    func withoutOrphans() -> Self {
        var result = self
        if !result.contains(.xsave) { result = result.subtracting([.avx, .xsaveopt, .xsavec, .xgetbv1, .xsaves]) }
        if !result.contains(.avx) {
            result = result.subtracting([.fma, .f16c, .avx2, .vaes, .vpclmulqdq])
        }
        if !result.contains(.avx2) { result = result.subtracting(.avx512) }
        if !result.contains(.avx512f) { result = result.subtracting(.avx512) }
        return result
    }

    static let avx512: Self = [
        .avx512f, .avx512dq, .avx512ifma, .avx512cd, .avx512bw, .avx512vl, .avx512vbmi, .avx512vbmi2, .avx512vnni,
        .avx512bitalg, .avx512vpopcntdq, .avx512bf16, .avx512fp16, .avx512vp2intersect,
    ]
}

/// What an engine can do with a guest's instructions.
public struct EngineFeatures: Hashable, Sendable {
    /// "kvm" or "translator", for messages.
    public let name: String
    /// What it runs if the host's CPU has it.
    public let supported: CPUFeatures
    /// What it tells guests on AMD's and on Intel's CPUs whatever the host has: promises of its own.
    public let promisedOnAMD: CPUFeatures
    public let promisedOnIntel: CPUFeatures
    /// What devices or the kernel make up for it whatever the host has: a local APIC, where the engine takes interrupts from one.
    public let emulated: CPUFeatures
    /// Whether the local APIC's timer counts the crystal that CPUID.0x15 names.
    public let countsCrystal: Bool

    public init(
        name: String, supported: CPUFeatures, promisedOnAMD: CPUFeatures = [], promisedOnIntel: CPUFeatures = [],
        emulated: CPUFeatures = [], countsCrystal: Bool = true
    ) {
        self.name = name
        self.supported = supported
        self.promisedOnAMD = promisedOnAMD
        self.promisedOnIntel = promisedOnIntel
        self.emulated = emulated
        self.countsCrystal = countsCrystal
    }

    /// What the translator runs.
    ///
    /// The promises: a guest's own mitigations against speculation cannot work here, because its branches, returns and
    /// page tables are not the CPU's, so guests are told not to pay for them. What protects is the process
    /// around the machine.
    public static let translator = EngineFeatures(
        name: "translator", supported: translatorFeatures,
        promisedOnAMD: [.ssbNo, .btcNo, .nullSelectorClearsBase, .automaticIBRS, .srsoNo, .tsaSQNo, .tsaL1No],
        promisedOnIntel: [.archCapabilities, .arat], emulated: localAPIC)

    private static let translatorFeatures: CPUFeatures = [
        .sse3, .pclmulqdq, .ssse3, .fma, .cx16, .sse41, .sse42, .movbe, .popcnt, .aes, .xsave, .avx, .f16c, .rdrand,
        .mtrr, .fpu, .de, .pse, .tsc, .msr, .pae, .cx8, .sep, .pge, .cmov, .pat, .pse36, .clfsh, .mmx, .fxsr, .sse, .sse2,
        .fsgsbase, .bmi1, .avx2, .erms, .fdpExceptionOnly, .smep, .bmi2, .zeroFCSFDS, .rdseed, .adx, .smap, .sha,
        .rdpid, .lahf, .lzcnt, .syscall, .nx, .mmxext, .pdpe1gb, .rdtscp, .lm,
        .invariantTSC, .restoreFPErrorPointers, .lfenceSerializing, .vaes, .vpclmulqdq, .gfni,
        .clflushopt, .clwb, .prefetchw, .umip, .fsrm, .xsaveopt, .xsavec, .xgetbv1, .xsaves, .ffxsr, .pcid,
        .invpcid,
        .avx512f, .avx512dq, .avx512ifma, .avx512cd, .avx512bw, .avx512vl, .avx512vbmi, .avx512vbmi2, .avx512vnni,
        .avx512bitalg, .avx512vpopcntdq, .avx512bf16, .avx512fp16, .avx512vp2intersect,
    ]

    /// Its timer never stops. On AMD's CPUs Linux knows that by itself, late enough to have the interval timer tick until
    /// it takes the APIC's; told by CPUID it has no tick at all for that long, and its time of day, which counts ticks until
    /// then, falls behind by 60 ms (2 ms otherwise). So only those of Intel's, where it would stay with the interval timer,
    /// are told.
    private static let localAPIC: CPUFeatures = [.apic, .x2apic, .tscDeadline]

    /// What the host's KVM has besides features: local APICs, and how their timers count.
    public struct KernelAPIC: Hashable, Sendable {
        public var hasDeadlines: Bool
        public var countsCrystal: Bool

        public init(hasDeadlines: Bool, countsCrystal: Bool) {
            self.hasDeadlines = hasDeadlines
            self.countsCrystal = countsCrystal
        }
    }

    /// What may be shown to a guest of a CPU with hardware virtualisation, given what the host's KVM reports.
    /// - Parameter apic: `nil` where interrupts come from the 8259 pair alone.
    public static func kvm(reported: CPUFeatures, apic: KernelAPIC? = nil) -> EngineFeatures {
        let everything = CPUFeatures.all.subtracting([.archCapabilities, .hypervisor, .topoext, .xsaves, .ffxsr])
            .subtracting(localAPIC.union([.arat]))
        var emulated = apic == nil ? [] : localAPIC
        if apic?.hasDeadlines == false { emulated.remove(.tscDeadline) }
        return EngineFeatures(
            name: "kvm", supported: reported.intersection(everything), promisedOnIntel: apic == nil ? [] : [.arat], emulated: emulated,
            countsCrystal: apic?.countsCrystal ?? true)
    }
}
