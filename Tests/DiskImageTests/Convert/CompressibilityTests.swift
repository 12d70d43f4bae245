import Testing
import TestSupport

@testable import DiskImage

@Suite("Compressibility") struct CompressibilityTests {
    private func isHopeless(_ bytes: [UInt8]) -> Bool { bytes.withUnsafeBytes { Compressibility.isHopeless($0) } }

    @Test(arguments: 0..<20) func `random bytes are not worth it`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        let bytes = (0..<65536).map { _ in UInt8.random(in: 0...255, using: &random) }
        #expect(isHopeless(bytes))
        // Half of them twice, or fewer values: they are.
        #expect(!isHopeless(Array(bytes.prefix(32768)) + Array(bytes.prefix(32768))))
        #expect(!isHopeless(bytes.map { $0 & 0x7F }))
        #expect(!isHopeless(bytes.map { $0 < 24 ? 0 : $0 }))
        #expect(!isHopeless(Array(bytes.prefix(60_000)) + [UInt8](repeating: 0, count: 5536)))
    }

    @Test func `text, counters and zeros are`() {
        #expect(!isHopeless([UInt8](repeating: 0, count: 65536)))
        #expect(!isHopeless((0..<65536).map { UInt8(truncatingIfNeeded: $0) }))
        #expect(!isHopeless((0..<65536).map { UInt8(truncatingIfNeeded: $0 &* $0 >> 7) & 0x5F }))
        #expect(!isHopeless([1, 2, 3]))
        #expect(!isHopeless([]))
    }
}
