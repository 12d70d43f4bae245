import TestSupport
import Testing
import VMM

let intelName = CPUIDLeaf(ebx: 0x756E_6547, ecx: 0x6C65_746E, edx: 0x4965_6E69)
let amdName = CPUIDLeaf(ebx: 0x6874_7541, ecx: 0x444D_4163, edx: 0x6974_6E65)

/// A made-up CPU with every feature that has a name, but for some.
func host(_ name: CPUIDLeaf, without missing: CPUFeatures = [], xcr0: UInt64 = 7) -> HostCPU {
    HostCPU(
        vendorLeaf: name, signature: 0x00A0_0F11,
        features: CPUFeatures.all.subtracting(missing).subtracting([.hypervisor]), xcr0: xcr0)
}

func policy(
    _ name: CPUIDLeaf = intelName, _ model: CPUModel? = nil, engine: EngineFeatures = .translator,
    tsc: UInt64? = 2_445_406_000
) throws -> CPUPolicy {
    try CPUPolicy(model: model, engine: engine, host: host(name), tscFrequencyHz: tsc)
}

func text(_ words: UInt32...) -> String {
    let bytes = words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
    return String(decoding: bytes, as: UTF8.self)
}

@Suite("CPU models") struct CPUModelTests {
    @Test func `default is x86-64-v3 where the host has it`() throws {
        #expect(try policy().model == .v3)
    }

    @Test(arguments: [
        ([.avx2], .v2), ([.movbe], .v2), ([.xsave], .v2), ([.popcnt], .v1), ([.sse42, .avx], .v1),
    ] as [(CPUFeatures, CPUModel)])
    func `default falls back to the level that the host has`(missing: CPUFeatures, expected: CPUModel) throws {
        let policy = try CPUPolicy(
            model: nil, engine: .translator, host: host(intelName, without: missing), tscFrequencyHz: nil)
        #expect(policy.model == expected)
        #expect(missing.names.allSatisfy { !policy.features.names.contains($0) })
    }

    @Test func `named model that the host lacks is refused with names and advice`() throws {
        let error = try #require(throws: CPUPolicyError.self) {
            _ = try CPUPolicy(
                model: .v3, engine: .translator, host: host(intelName, without: [.avx2, .bmi2]), tscFrequencyHz: nil)
        }
        #expect(error == .missingInHost(.v3, [.avx2, .bmi2], best: .v2))
        #expect(error.description == "CPU model x86-64-v3: this host's CPU lacks avx2 bmi2; use x86-64-v2")
    }

    @Test func `model that the engine cannot run is refused in the engine's name`() throws {
        let engine = EngineFeatures(name: "small", supported: EngineFeatures.translator.supported.subtracting([.avx512bw, .avx512vl]))
        let error = try #require(throws: CPUPolicyError.self) {
            _ = try CPUPolicy(model: .v4, engine: engine, host: host(intelName, xcr0: 0xE7), tscFrequencyHz: nil)
        }
        #expect(
            error.description
                == "CPU model x86-64-v4: the small engine lacks avx512bw avx512vl on this host; use x86-64-v3")
    }

    @Test func `model with AVX-512 is refused where the CPU or its kernel has none`() throws {
        let text = "CPU model x86-64-v4: this host's CPU lacks avx512f avx512dq avx512cd avx512bw avx512vl; use x86-64-v3"
        for host in [host(intelName), host(intelName, without: [.avx512f, .avx512dq, .avx512cd, .avx512bw, .avx512vl], xcr0: 0xE7)] {
            let error = try #require(throws: CPUPolicyError.self) {
                _ = try CPUPolicy(model: .v4, engine: .translator, host: host, tscFrequencyHz: nil)
            }
            #expect(error.description == text)
        }
    }

    @Test func `host without the base level gets no CPU at all`() throws {
        let error = try #require(throws: CPUPolicyError.self) {
            _ = try CPUPolicy(
                model: nil, engine: .translator, host: host(intelName, without: [.cx8]), tscFrequencyHz: nil)
        }
        #expect(error == .missingInHost(.v1, [.cx8], best: nil))
    }

    @Test func `unknown name is refused with the list of names`() throws {
        let error = try #require(throws: CPUPolicyError.self) { _ = try CPUModel(named: "486") }
        #expect(
            error.description
                == "CPU model '486' is unknown: use one of x86-64, x86-64-v2, x86-64-v3, x86-64-v4, host")
        #expect(try CPUModel(named: "x86-64-v2") == .v2)
    }

    @Test(arguments: CPUModel.allCases)
    func `each level contains the one below`(model: CPUModel) throws {
        let engine = EngineFeatures(name: "all", supported: .all)
        let all = host(intelName, xcr0: 0xE7)
        let order: [CPUModel] = [.v1, .v2, .v3, .v4, .host]
        let index = try #require(order.firstIndex(of: model))
        guard index > 0 else { return }
        let upper = try CPUPolicy(model: model, engine: engine, host: all, tscFrequencyHz: nil)
        let lower = try CPUPolicy(model: order[index - 1], engine: engine, host: all, tscFrequencyHz: nil)
        #expect(lower.features.isSubset(of: upper.features))
    }

    @Test(arguments: [CPUModel.v1, .v2])
    func `level without AVX shows none of it`(model: CPUModel) throws {
        let policy = try policy(intelName, model)
        for feature in [CPUFeature.avx, .avx2, .fma, .f16c, .bmi1, .bmi2, .movbe, .lzcnt] {
            #expect(!policy.features.contains(feature), "\(feature)")
        }
        #expect(policy.xcr0Mask & ~3 == 0)
    }
}

@Suite("CPUID") struct CPUIDTests {
    static let vendors = [intelName, amdName]

    @Test func `bits of CPUs whose features are random are those that host and engine share`() throws {
        var noise = SplitMix64(seed: 1)
        let promises = EngineFeatures.translator.promisedOnAMD.union(EngineFeatures.translator.promisedOnIntel)
            .union(EngineFeatures.translator.emulated)
        let always: CPUFeatures = [.hypervisor, .topoext]
        var made = 0
        for _ in 0..<2000 {
            var missing: CPUFeatures = []
            for _ in 0..<4 { missing.insert(try #require(CPUFeature.allCases.randomElement(using: &noise))) }
            let name = try #require(Self.vendors.randomElement(using: &noise))
            let host = host(name, without: missing)
            let model = CPUModel.allCases.randomElement(using: &noise)
            guard let policy = try? CPUPolicy(model: model, engine: .translator, host: host, tscFrequencyHz: nil)
            else { continue }
            made += 1
            let runs = host.features.intersection(EngineFeatures.translator.supported)
            let excess = policy.features.subtracting(runs).subtracting(promises).subtracting(always)
            #expect(excess.isEmpty, "\(excess.names) without \(missing.names)")
            #expect(policy.features.contains(.xsave) || !policy.features.contains(.avx))
            #expect(policy.features.contains(.avx) || policy.features.intersection([.fma, .f16c, .avx2]).isEmpty)
        }
        #expect(made > 200)
    }

    @Test func `this machine's CPU gives a policy within its own features`() throws {
        let policy = try CPUPolicy(model: nil, engine: .translator, tscFrequencyHz: nil)
        let promises = EngineFeatures.translator.promisedOnAMD.union(EngineFeatures.translator.promisedOnIntel)
            .union(EngineFeatures.translator.emulated)
        let excess = policy.features.subtracting(HostCPU.current.features).subtracting(promises)
        #expect(excess.isSubset(of: [.hypervisor, .topoext]), "\(excess.names)")
    }

    /// What would have the guest look for machine checks, performance counters...
    @Test(arguments: vendors, CPUModel.allCases.filter { $0 != .v4 })
    func `nothing is shown that no device or engine backs`(name: CPUIDLeaf, model: CPUModel) throws {
        let policy = try policy(name, model)
        let one = policy.cpuid(1, 0, cr4: ~0, xcr0: 7)
        // DTES64 MONITOR DSCPL VMX SMX EST TM2 CNXTID SDBG XTPR PDCM PCID DCA
        for bit in [2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 17, 18] where !(bit == 17 && model == .host) {
            #expect(one.ecx >> bit & 1 == 0, "1:ECX \(bit)")
        }
        // VME MCE MCA PSN DS ACPI SS HTT TM PBE
        for bit in [1, 7, 14, 18, 21, 22, 27, 28, 29, 31] { #expect(one.edx >> bit & 1 == 0, "1:EDX \(bit)") }
        let seven = policy.cpuid(7, 0, cr4: ~0, xcr0: 7)
        // TSC_ADJUST SGX HLE INVPCID RTM PQM MPX AVX512... PT
        for bit in [1, 2, 4, 10, 11, 12, 14, 15, 16, 17, 21, 22, 25, 26, 27, 28, 30, 31] where !(bit == 10 && model == .host) {
            #expect(seven.ebx >> bit & 1 == 0, "7:EBX \(bit)")
        }
        // PKU OSPKE WAITPKG CET_SS LA57 ENQCMD
        for bit in [3, 4, 5, 7, 16, 29] { #expect(seven.ecx >> bit & 1 == 0, "7:ECX \(bit)") }
        // UINTR IBT AMX... IBRS STIBP L1D_FLUSH CORE_CAP SSBD
        for bit in [5, 20, 22, 24, 25, 26, 27, 28, 30, 31] { #expect(seven.edx >> bit & 1 == 0, "7:EDX \(bit)") }
        #expect(seven.eax == 0)
        let e1 = policy.cpuid(0x8000_0001, 0, cr4: 0, xcr0: 1)
        // SVM EXTAPIC IBS XOP SKINIT WDT LWP FMA4 PERFCTR MWAITX
        for bit in [2, 3, 10, 11, 12, 13, 15, 16, 23, 24, 28, 29] { #expect(e1.ecx >> bit & 1 == 0, "81:ECX \(bit)") }
        #expect(e1.edx & (1 << 7 | 1 << 14) == 0)
        for leaf: UInt32 in [3, 5, 8, 9, 0xA, 0xC, 0xE, 0xF, 0x10, 0x12, 0x14] {
            #expect(policy.cpuid(leaf, 0, cr4: 0, xcr0: 1) == CPUIDLeaf(), "leaf \(leaf)")
        }
        #expect(policy.cpuid(0xD, 1, cr4: 0, xcr0: 7).eax >> 4 == 0, "XFD")
        #expect(policy.cpuid(0xD, 1, cr4: 0, xcr0: 7).ecx == 0, "supervisor states")
        // No IBPB, IBRS, STIBP, SSBD
        #expect(policy.cpuid(0x8000_0008, 0, cr4: 0, xcr0: 1).ebx & (1 << 12 | 1 << 14 | 1 << 15 | 1 << 24) == 0)
    }

    /// APIC, x2APIC, TSC deadline, ARAT.
    private func localAPIC(_ policy: CPUPolicy, isEnabled: Bool = true) -> [Bool] {
        func leaf(_ number: UInt32) -> CPUIDLeaf { policy.cpuid(number, 0, cr4: 0, xcr0: 1, isAPICEnabled: isEnabled) }
        return [leaf(1).edx >> 9 & 1 != 0, leaf(1).ecx >> 21 & 1 != 0, leaf(1).ecx >> 24 & 1 != 0, leaf(6).eax >> 2 & 1 != 0]
    }

    @Test(arguments: vendors, CPUModel.allCases.filter { $0 != .v4 })
    func `local APIC is shown where the engine has it, whatever the host`(name: CPUIDLeaf, model: CPUModel) throws {
        // On AMD's CPUs nobody asks for the last.
        #expect(try localAPIC(policy(name, model)) == [true, true, true, name == intelName])
        let kvm = EngineFeatures.kvm(reported: .all)
        #expect(try localAPIC(policy(name, model, engine: kvm)) == [false, false, false, false])
        let whole = EngineFeatures.kvm(reported: .all, apic: .init(hasDeadlines: true, countsCrystal: true))
        #expect(try localAPIC(policy(name, model, engine: whole)) == [true, true, true, name == intelName])
        #expect(try policy(name, model, engine: whole).cpuid(0x15, 0, cr4: 0, xcr0: 1) == policy(name, model).cpuid(0x15, 0, cr4: 0, xcr0: 1))
    }

    @Test func `KVM's local APIC without deadlines, and one that counts no crystal, are shown as they are`() throws {
        let plain = try policy(engine: .kvm(reported: .all, apic: .init(hasDeadlines: false, countsCrystal: false)))
        #expect(localAPIC(plain) == [true, true, false, true])
        #expect(plain.highestBasicLeaf == 0xD && plain.cpuid(0x15, 0, cr4: 0, xcr0: 1) == CPUIDLeaf())
        #expect(plain.tscFrequencyHz != nil)
    }

    @Test func `deadlines are not shown without a known frequency`() throws {
        #expect(try localAPIC(policy(tsc: nil)) == [true, true, false, true])
    }

    @Test(arguments: vendors)
    func `APIC bits follow IA32_APIC_BASE`(name: CPUIDLeaf) throws {
        let policy = try policy(name)
        #expect(localAPIC(policy, isEnabled: false)[0] == false)
        let repeated = policy.cpuid(0x8000_0001, 0, cr4: 0, xcr0: 1).edx >> 9 & 1
        #expect(repeated == (name == amdName ? 1 : 0))
        #expect(policy.cpuid(0x8000_0001, 0, cr4: 0, xcr0: 1, isAPICEnabled: false).edx >> 9 & 1 == 0)
    }

    @Test func `OSXSAVE follows CR4`() throws {
        let policy = try policy()
        #expect(policy.cpuid(1, 0, cr4: 0, xcr0: 1).ecx >> 27 & 1 == 0)
        #expect(policy.cpuid(1, 0, cr4: CR4.osxsave, xcr0: 1).ecx >> 27 & 1 == 1)
    }

    @Test(arguments: [(1, 576), (3, 576), (7, 832), (5, 832)] as [(UInt64, UInt32)])
    func `XSAVE area size follows XCR0`(xcr0: UInt64, size: UInt32) throws {
        let answer = try policy().cpuid(0xD, 0, cr4: 0, xcr0: xcr0)
        #expect(answer == CPUIDLeaf(eax: 7, ebx: size, ecx: 832))
    }

    @Test func `XSAVE component of AVX has the silicon's place and others are empty`() throws {
        let policy = try policy()
        #expect(policy.cpuid(0xD, 2, cr4: 0, xcr0: 7) == CPUIDLeaf(eax: 256, ebx: 576))
        for index: UInt32 in [3, 4, 5, 8, 9, 10, 62, 63, ~0] {
            #expect(policy.cpuid(0xD, index, cr4: 0, xcr0: 7) == CPUIDLeaf())
        }
    }

    @Test(arguments: [CPUModel.v3, .v4, .host])
    func `AVX-512 is shown with its components or not at all`(model: CPUModel) throws {
        let policy = try CPUPolicy(model: model, engine: .translator, host: host(intelName, xcr0: 0xE7), tscFrequencyHz: nil)
        let isShown = model != .v3
        let seven = policy.cpuid(7, 0, cr4: 0, xcr0: 7)
        for bit in [16, 17, 21, 28, 30, 31] { #expect((seven.ebx >> bit & 1 != 0) == isShown, "7:EBX \(bit)") }
        for bit in [1, 6, 11, 12, 14] { #expect((seven.ecx >> bit & 1 != 0) == isShown, "7:ECX \(bit)") }
        for bit in [8, 23] { #expect((seven.edx >> bit & 1 != 0) == isShown, "7:EDX \(bit)") }
        #expect(seven.eax == (isShown ? 1 : 0))
        #expect(policy.cpuid(7, 1, cr4: 0, xcr0: 7) == CPUIDLeaf(eax: isShown ? 1 << 5 : 0))
        #expect(policy.cpuid(0xD, 0, cr4: 0, xcr0: 7) == CPUIDLeaf(eax: isShown ? 0xE7 : 7, ebx: 832, ecx: isShown ? 2688 : 832))
        guard isShown else { return }
        #expect(policy.cpuid(0xD, 0, cr4: 0, xcr0: 0xE7).ebx == 2688)
        #expect(policy.cpuid(0xD, 1, cr4: 0, xcr0: 0xE7).ebx == 576 + 256 + 64 + 512 + 1024)
        for (index, size, offset) in [(5, 64, 1088), (6, 512, 1152), (7, 1024, 1664)] as [(UInt32, UInt32, UInt32)] {
            #expect(policy.cpuid(0xD, index, cr4: 0, xcr0: 7) == CPUIDLeaf(eax: size, ebx: offset))
        }
        for (value, isTaken) in [(0xE7, true), (7, true), (0xE3, false), (0x67, false), (0xE5, false), (0x1E7, false)] as [(UInt64, Bool)] {
            #expect(policy.allowsXCR0(value) == isTaken, "\(value)")
        }
    }

    @Test func `CPU without XSAVE has no leaf 0xD`() throws {
        let policy = try CPUPolicy(
            model: nil, engine: .translator, host: host(intelName, without: [.xsave]), tscFrequencyHz: nil)
        #expect(policy.xcr0Mask == 0)
        #expect(policy.cpuid(0xD, 0, cr4: 0, xcr0: 1) == CPUIDLeaf())
        #expect(policy.validCR4Bits & CR4.osxsave == 0)
    }

    @Test func `hypervisor leaves carry both signatures and clock bits`() throws {
        let policy = try policy()
        let vmm = policy.cpuid(0x4000_0000, 0, cr4: 0, xcr0: 1)
        #expect(text(vmm.ebx, vmm.ecx, vmm.edx) == "OpenBSDVMM58")
        #expect(vmm.eax == 0)
        #expect(policy.cpuid(0x4000_0001, 0, cr4: 0, xcr0: 1).eax == 0x0100_0008)
        let kvm = policy.cpuid(0x4000_0100, 0, cr4: 0, xcr0: 1)
        #expect(text(kvm.ebx, kvm.ecx, kvm.edx) == "KVMKVMKVM\0\0\0")
        #expect(kvm.eax == 0x4000_0101)
        #expect(policy.cpuid(0x4000_0101, 0, cr4: 0, xcr0: 1).eax == 0x0100_000A)
        #expect(policy.cpuid(1, 0, cr4: 0, xcr0: 1).ecx >> 31 == 1)
    }

    @Test func `unknown TSC frequency hides the clocks`() throws {
        let policy = try policy(tsc: nil)
        #expect(policy.cpuid(0x4000_0001, 0, cr4: 0, xcr0: 1) == CPUIDLeaf())
        #expect(policy.cpuid(0x4000_0100, 0, cr4: 0, xcr0: 1) == CPUIDLeaf())
        #expect(policy.cpuid(0, 0, cr4: 0, xcr0: 1).eax == 0xD)
        #expect(policy.cpuid(0x15, 0, cr4: 0, xcr0: 1) == CPUIDLeaf())
    }

    @Test(arguments: [1_000_000_000, 2_445_406_000, 4_200_000_000] as [UInt64])
    func `leaf 0x15 gives the TSC frequency to 12.5 kHz, in 32 bits`(frequency: UInt64) throws {
        let answer = try policy(tsc: frequency).cpuid(0x15, 0, cr4: 0, xcr0: 1)
        #expect(UInt64(answer.ecx) == CPUPolicy.crystalHz)
        let told = UInt64(answer.ecx) * UInt64(answer.ebx) / UInt64(answer.eax)
        #expect(max(told, frequency) - min(told, frequency) <= 12_500)
        // As Linux computes it.
        #expect(!(answer.ecx / 1000).multipliedReportingOverflow(by: answer.ebx).overflow)
    }

    @Test(arguments: [0, 999, 1 << 62, UInt64.max])
    func `absurd TSC frequency counts as unknown`(frequency: UInt64) throws {
        #expect(try policy(tsc: frequency).tscFrequencyHz == nil)
    }

    @Test(arguments: vendors)
    func `brand names the model and ends with a zero byte`(name: CPUIDLeaf) throws {
        let policy = try policy(name)
        let leaves = (2...4).map { policy.cpuid(0x8000_0000 + $0, 0, cr4: 0, xcr0: 1) }
        let brand = leaves.map { text($0.eax, $0.ebx, $0.ecx, $0.edx) }.joined()
        #expect(brand.utf8.count == 48)
        #expect(brand.hasPrefix("vmd x86-64-v3 CPU\0"))
        #expect(brand.hasSuffix("\0"))
    }

    @Test(arguments: vendors)
    func `vendor and signature are the host's and there is one processor`(name: CPUIDLeaf) throws {
        let policy = try policy(name)
        let zero = policy.cpuid(0, 0, cr4: 0, xcr0: 1)
        #expect((zero.ebx, zero.ecx, zero.edx) == (name.ebx, name.ecx, name.edx))
        let one = policy.cpuid(1, 0, cr4: 0, xcr0: 1)
        #expect(one.eax == 0x00A0_0F11)
        #expect(one.ebx == 0x0001_0800)
        let cacheLeaf: UInt32 = name == amdName ? 0x8000_001D : 4
        let cache = policy.cpuid(cacheLeaf, 0, cr4: 0, xcr0: 1)
        #expect(cache.eax == 0x121, "shared by one thread of one core")
        #expect(policy.cpuid(cacheLeaf, 1, cr4: 0, xcr0: 1).eax & 0x1F == 0)
        #expect(policy.cpuid(0xB, 0, cr4: 0, xcr0: 1) == CPUIDLeaf(ebx: 1, ecx: 0x100))
        #expect(policy.cpuid(0xB, 1, cr4: 0, xcr0: 1) == CPUIDLeaf(ebx: 1, ecx: 0x201))
        #expect(policy.cpuid(0xB, 2, cr4: 0, xcr0: 1) == CPUIDLeaf(ecx: 2))
    }

    @Test func `AMD repeats basic bits in its extended leaf and Intel does not`() throws {
        let amd = try policy(amdName)
        let repeated = amd.cpuid(1, 0, cr4: 0, xcr0: 1).edx & 0x0183_F3FF
        #expect(amd.cpuid(0x8000_0001, 0, cr4: 0, xcr0: 1).edx & 0x0183_F3FF == repeated)
        #expect(try policy(intelName).cpuid(0x8000_0001, 0, cr4: 0, xcr0: 1).edx & 0x0183_F3FF == 0)
    }

    @Test(arguments: [(36, 36), (40, 40), (52, 46), (1, 36), (255, 46)] as [(UInt8, UInt32)])
    func `address width is what the machine needs within what the host has`(asked: UInt8, shown: UInt32) throws {
        let policy = try CPUPolicy(
            model: nil, engine: .translator, host: host(intelName), physicalAddressBits: asked, tscFrequencyHz: nil)
        #expect(policy.cpuid(0x8000_0008, 0, cr4: 0, xcr0: 1).eax == 48 << 8 | shown)
    }

    @Test(arguments: vendors)
    func `any leaf and subleaf answers and those beyond the highest read zero`(name: CPUIDLeaf) throws {
        let policy = try policy(name)
        var noise = SplitMix64(seed: 2)
        for _ in 0..<20_000 {
            let leaf = UInt32.random(in: 0...0x30, using: &noise) | UInt32.random(in: 0...3, using: &noise) << 30
            let subleaf: UInt32 = Bool.random(using: &noise) ? .random(in: 0...70, using: &noise) : noise.next()
            let answer = policy.cpuid(leaf, subleaf, cr4: noise.next(), xcr0: noise.next())
            let highest =
                leaf < 0x4000_0000 ? policy.highestBasicLeaf : leaf >> 30 == 2 ? policy.highestExtendedLeaf : ~0
            if leaf > highest || leaf >= 0xC000_0000 { #expect(answer == CPUIDLeaf()) }
        }
        for leaf: UInt32 in [~0, 0x3FFF_FFFF, 0x7FFF_FFFF, 0x4000_01FF, 0x4000_0200] {
            #expect(policy.cpuid(leaf, ~0, cr4: ~0, xcr0: ~0) == CPUIDLeaf())
        }
    }
}
