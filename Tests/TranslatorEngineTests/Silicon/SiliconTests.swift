import CSilicon
import Foundation
import Testing
import VMM

/// The translator against the CPU it runs on: the same instructions with the same registers and memory must do the same.
///
/// `VMD_FUZZ_SECONDS=n` goes on with new seeds for so long; a failure's first line says how to repeat it alone
/// (`VMD_FUZZ_SEED`), and `VMD_FUZZ_ONLY` takes the test's short name.
@Suite(.enabled(if: SiliconRunner.needed.isSubset(of: HostCPU.current.features), "made for hosts with AVX2"))
struct SiliconTests {
    static let environment = ProcessInfo.processInfo.environment
    static let seconds = environment["VMD_FUZZ_SECONDS"].flatMap { Double($0) } ?? 0
    /// So many failures are looked at closely.
    static let failureLimit = 1000
    static let onlySeed = environment["VMD_FUZZ_SEED"].flatMap { UInt64($0) }

    /// Runs batches of cases with the seeds from 1, and with others as long as the environment says.
    /// - Parameters:
    ///   - make: all cases of a seed.
    ///   - model: what the guest's CPUID shows; `nil` is the usual model.
    private func run(
        _ kind: String, seeds: Int, mode: SiliconMode = .long, model: CPUModel? = nil, sourceLocation: SourceLocation = #_sourceLocation,
        _ make: (inout SiliconGenerator) -> [SiliconCase]
    ) throws {
        let name = mode == .long ? kind : "\(mode) \(kind)"
        if let only = Self.environment["VMD_FUZZ_ONLY"], only != name { return }
        let runner = try SiliconRunner(model: model)
        guard runner.has(mode) else { return }
        var failed = 0, count = 0, hangs = 0
        var kinds: [String: Int] = [:]
        var mnemonics: Set<String> = []
        func batch(_ cases: [SiliconCase], _ seed: UInt64, _ first: Int) throws {
            for failure in try runner.run(cases) {
                failed += 1
                if failure.isHang { hangs += 1 }
                guard failed <= Self.failureLimit else { continue }
                let reduced = try runner.reduce(failure)
                let kind = runner.kind(reduced)
                kinds[kind, default: 0] += 1
                guard kinds[kind] == 1 else { continue }
                Issue.record(
                    "\(name): VMD_FUZZ_SEED=\(seed), case \(first + failure.slot)\n\(runner.report(reduced))",
                    sourceLocation: sourceLocation)
            }
        }
        func all(_ seed: UInt64) throws {
            var generator = SiliconGenerator(seed: seed, decoder: runner.decoders[Int(mode.rawValue)])
            let cases = make(&generator)
            count += cases.count
            if Self.seconds > 0 {
                for piece in cases.flatMap(\.pieces) { mnemonics.insert(runner.decoders[Int(mode.rawValue)].name(piece.bytes + [0, 0, 0, 0])) }
            }
            for start in stride(from: 0, to: cases.count, by: Int(SILICON_CASES)) {
                guard hangs < 3 else { return }
                try batch(Array(cases[start..<min(cases.count, start + Int(SILICON_CASES))]), seed, start)
            }
        }
        defer {
            if failed > 0 || Self.seconds > 0 { print("\(name): \(count) cases, \(mnemonics.count) instructions, \(failed) failed") }
            for (kind, count) in kinds.sorted(by: { $0.key < $1.key }) { print("  \(count) x \(kind)") }
        }
        if let seed = Self.onlySeed {
            try all(seed)
            return
        }
        for seed in 1...UInt64(seeds) { try all(seed) }
        let end = ContinuousClock.now + .seconds(Self.seconds)
        var seed = UInt64(Date().timeIntervalSince1970 * 1000) << 16
        while ContinuousClock.now < end {
            try all(seed)
            seed += 1
        }
    }

    /// A batch of cases that are made one by one.
    private func batch(_ make: () -> SiliconCase) -> [SiliconCase] { (0..<SILICON_CASES).map { _ in make() } }

    @Test func `single instructions do what they do on the CPU`() throws {
        try run("single", seeds: 60) { generator in batch { generator.single() } }
    }

    @Test(arguments: SiliconMode.allCases)
    func `every instruction form does what it does on the CPU`(mode: SiliconMode) throws {
        try run("forms", seeds: 1, mode: mode) { generator in
            let forms = SiliconForms(
                seed: generator.random.next(), decoder: generator.decoder, undefinedShare: Self.seconds > 0 ? 100 : 10)
            if Self.seconds > 0 { Self.report(forms) }
            return forms.forms.compactMap { generator.instance($0) }
        }
    }

    @Test(arguments: SiliconMode.allCases, SiliconSubject.allCases)
    func `flags, segments, far transfers and state images do what they do on the CPU`(mode: SiliconMode, subject: SiliconSubject) throws {
        try run("\(subject)", seeds: 4, mode: mode) { generator in batch { generator.systemCase(subject) } }
    }

    // Not 16-bit code: its branches and addresses are others.
    @Test(arguments: [SiliconMode.long, .flat32, .segmented32])
    func `sequences of instructions do what they do on the CPU`(mode: SiliconMode) throws {
        try run("sequence", seeds: mode == .long ? 100 : 40, mode: mode) { generator in batch { SiliconSequence.make(&generator) } }
    }

    private static let hasAVX512: CPUFeatures = [.avx512f, .avx512vl, .avx512bw, .avx512dq]
    private static let reason: Comment = "the CPU here has no AVX-512"

    @Test(.enabled(if: hasAVX512.isSubset(of: HostCPU.current.features), reason))
    func `single AVX-512 instructions do what they do on the CPU`() throws {
        try run("wide single", seeds: 60, model: .host) { generator in batch { generator.single() } }
    }

    @Test(.enabled(if: hasAVX512.isSubset(of: HostCPU.current.features), reason), arguments: SiliconMode.allCases)
    func `every AVX-512 form does what it does on the CPU`(mode: SiliconMode) throws {
        try run("wide forms", seeds: 1, mode: mode, model: .host) { generator in
            let forms = SiliconForms(
                seed: generator.random.next(), decoder: generator.decoder, undefinedShare: Self.seconds > 0 ? 100 : 10, isWide: true)
            if Self.seconds > 0 { Self.report(forms) }
            return forms.forms.compactMap { generator.instance($0) }
        }
    }

    @Test(.enabled(if: hasAVX512.isSubset(of: HostCPU.current.features), reason), arguments: [SiliconMode.long, .flat32, .segmented32])
    func `sequences with AVX-512 do what they do on the CPU`(mode: SiliconMode) throws {
        try run("wide sequence", seeds: mode == .long ? 60 : 20, mode: mode, model: .host) { generator in
            batch { SiliconSequence.make(&generator) }
        }
    }

    /// How many forms there are, and what is done with them.
    private static func report(_ forms: SiliconForms) {
        var counts: [SiliconTreatment: Int] = [:]
        for form in forms.forms { counts[form.treatment, default: 0] += 1 }
        print("forms: \(counts.map { "\($0.key) \($0.value)" }.sorted().joined(separator: ", "))")
    }
}
