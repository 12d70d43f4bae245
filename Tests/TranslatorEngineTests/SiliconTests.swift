import CSilicon
import Foundation
import Testing
import VMM

/// The translator against the CPU it runs on: the same instructions with the same registers and memory must do the same.
///
/// `VMD_FUZZ_SECONDS=n` goes on with new seeds for so long; a failure's first line says how to repeat it alone
/// (`VMD_FUZZ_SEED`).
@Suite(.enabled(if: SiliconRunner.needed.isSubset(of: HostCPU.current.features), "made for hosts with AVX2"))
struct SiliconTests {
    static let environment = ProcessInfo.processInfo.environment
    static let seconds = environment["VMD_FUZZ_SECONDS"].flatMap { Double($0) } ?? 0
    /// So many failures are looked at closely.
    static let failureLimit = 1000
    static let onlySeed = environment["VMD_FUZZ_SEED"].flatMap { UInt64($0) }

    /// Runs batches of cases with the seeds from 1, and with others as long as the environment says.
    private func run(
        _ name: String, batches: Int, sourceLocation: SourceLocation = #_sourceLocation, _ make: (inout SiliconGenerator) -> SiliconCase
    ) throws {
        let runner = try SiliconRunner()
        var failed = 0, count = 0, hangs = 0
        var kinds: [String: Int] = [:]
        var mnemonics: Set<String> = []
        func batch(_ seed: UInt64) throws {
            guard hangs < 3 else { return }
            var generator = SiliconGenerator(seed: seed, decoder: runner.decoder)
            var cases: [SiliconCase] = []
            for _ in 0..<SILICON_CASES { cases.append(make(&generator)) }
            count += cases.count
            if Self.seconds > 0 {
                for piece in cases.flatMap(\.pieces) { mnemonics.insert(runner.decoder.name(piece.bytes + [0, 0, 0, 0])) }
            }
            for failure in try runner.run(cases) {
                failed += 1
                if failure.isHang { hangs += 1 }
                guard failed <= Self.failureLimit else { continue }
                let reduced = try runner.reduce(failure)
                let kind = runner.kind(reduced)
                kinds[kind, default: 0] += 1
                guard kinds[kind] == 1 else { continue }
                Issue.record(
                    "\(name): VMD_FUZZ_SEED=\(seed), case \(failure.slot)\n\(runner.report(reduced))",
                    sourceLocation: sourceLocation)
            }
        }
        defer {
            if failed > 0 || Self.seconds > 0 { print("\(name): \(count) cases, \(mnemonics.count) instructions, \(failed) failed") }
            for (kind, count) in kinds.sorted(by: { $0.key < $1.key }) { print("  \(count) x \(kind)") }
        }
        if let seed = Self.onlySeed {
            try batch(seed)
            return
        }
        for seed in 1...UInt64(batches) { try batch(seed) }
        let end = ContinuousClock.now + .seconds(Self.seconds)
        var seed = UInt64(Date().timeIntervalSince1970 * 1000) << 16
        while ContinuousClock.now < end {
            try batch(seed)
            seed += 1
        }
    }

    @Test func `single instructions do what they do on the CPU`() throws {
        try run("single", batches: 150) { $0.single() }
    }

    @Test func `sequences of instructions do what they do on the CPU`() throws {
        try run("sequence", batches: 150) { SiliconSequence.make(&$0) }
    }
}
