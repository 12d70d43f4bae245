/// The four registers that CPUID answers with.
public struct CPUIDLeaf: Hashable, Sendable {
    public var eax: UInt32
    public var ebx: UInt32
    public var ecx: UInt32
    public var edx: UInt32
    public init(eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0) {
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx
    }
}

/// The CPU that a guest sees: CPUID, model-specific registers, control registers. One table for both engines, so a
/// guest cannot tell them apart by it and neither engine shows what it cannot run.
///
/// A value without storage behind it but for this struct itself: asking it allocates nothing.
public struct CPUPolicy: Sendable {
    public let model: CPUModel
    /// All bits that CPUID shows, dynamic ones (OSXSAVE) apart.
    public let features: CPUFeatures
    /// Known and constant, or `nil`: then no paravirtual clock is offered.
    public let tscFrequencyHz: UInt64?
    public let physicalAddressBits: UInt8
    /// The components of XCR0 that the guest may enable; 0 without XSAVE.
    public let xcr0Mask: UInt64
    /// IA32_ARCH_CAPABILITIES, if it is shown.
    public let archCapabilities: UInt64

    /// Whether CPUID.0x15 names the crystal: it has to be what the local APIC's timer counts.
    let showsCrystal: Bool
    let vendor: HostCPU.Vendor
    let vendorLeaf: CPUIDLeaf
    let signature: UInt32
    /// Components 2...9 of the XSAVE area: size and offset.
    let components: [8 of CPUIDLeaf]
    let caches: [4 of CPUIDLeaf]
    let cacheLeaf5: CPUIDLeaf
    let cacheLeaf6: CPUIDLeaf
    let brand: [3 of CPUIDLeaf]

    /// Chooses what to show.
    /// - Parameters:
    ///   - requested: the model the user named; `nil` takes `CPUModel.standard` or, where that does not work, the
    ///     best lower level.
    ///   - engine: what the engine can run.
    ///   - physicalAddressBits: what the machine's memory map needs; at most the host's are shown.
    ///   - tscFrequencyHz: the guest's, if the counter is invariant.
    public init(
        model requested: CPUModel?, engine: EngineFeatures, host: HostCPU = .current, physicalAddressBits: UInt8 = 40,
        tscFrequencyHz: UInt64?
    ) throws(CPUPolicyError) {
        let usable = host.features.intersection(engine.supported).withoutOrphans()
        func missing(_ model: CPUModel) -> CPUFeatures { model.required.subtracting(usable) }
        func best(from start: CPUModel) -> CPUModel? {
            var model: CPUModel? = start
            while let candidate = model {
                if missing(candidate).isEmpty { return candidate }
                model = candidate.lower
            }
            return nil
        }
        func error(for model: CPUModel) -> CPUPolicyError {
            let inHost = model.required.subtracting(host.features)
            let alternative = best(from: .v4)
            return inHost.isEmpty
                ? .missingInEngine(model, missing(model), engine: engine.name, best: alternative)
                : .missingInHost(model, inHost, best: alternative)
        }
        if let requested {
            guard missing(requested).isEmpty else { throw error(for: requested) }
            model = requested
        } else {
            guard let found = best(from: .standard) else { throw error(for: .v1) }
            model = found
        }

        vendor = host.vendor
        var features = usable.intersection(model.allowed)
        features.insert(.hypervisor)
        switch host.vendor {
        case .amd:
            features = features.union(engine.promisedOnAMD)
            features.insert(.topoext)
        case .intel: features = features.union(engine.promisedOnIntel)
        case .other: break
        }
        features = features.union(engine.emulated)
        // An odd value would only make a wrong clock: 0x15 has room for 2^32 kHz.
        self.tscFrequencyHz = tscFrequencyHz.flatMap { (1_000_000..<4_000_000_000_000).contains($0) ? $0 : nil }
        // A deadline in an unknown unit is none.
        if self.tscFrequencyHz == nil { features.remove(.tscDeadline) }
        self.features = features
        showsCrystal = self.tscFrequencyHz != nil && engine.countsCrystal
        archCapabilities = features.contains(.archCapabilities) ? Self.allImmunities : 0

        var mask: UInt64 = features.contains(.xsave) ? 3 : 0
        if features.contains(.avx) { mask |= 4 }
        if features.contains(.avx512f) { mask |= 0xE0 }
        xcr0Mask = mask & host.xcr0

        self.physicalAddressBits = min(max(physicalAddressBits, 36), host.physicalAddressBits)

        vendorLeaf = host.vendorLeaf
        signature = host.signature
        components = .init { $0 < host.components.count ? host.components[$0] : CPUIDLeaf() }
        caches = .init { $0 < host.caches.count ? host.caches[$0] : CPUIDLeaf() }
        cacheLeaf5 = host.cacheLeaf5
        cacheLeaf6 = host.cacheLeaf6
        brand = Self.brandLeaves("vmd \(model.rawValue) CPU")
    }

    /// Up to 47 characters as CPUID.0x80000002...4 give them.
    private static func brandLeaves(_ text: String) -> [3 of CPUIDLeaf] {
        let bytes = Array(text.utf8.prefix(47))
        func word(_ index: Int) -> UInt32 {
            (0..<4).reduce(0) { sum, byte in
                let position = index * 4 + byte
                return sum | (position < bytes.count ? UInt32(bytes[position]) << UInt32(byte * 8) : 0)
            }
        }
        return .init { leaf in
            CPUIDLeaf(
                eax: word(leaf * 4), ebx: word(leaf * 4 + 1), ecx: word(leaf * 4 + 2), edx: word(leaf * 4 + 3))
        }
    }
}
