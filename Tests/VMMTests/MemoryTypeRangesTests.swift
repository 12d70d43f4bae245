import Testing
import VMM

@Suite("Memory type ranges") struct MemoryTypeRangesTests {
    private func write(_ index: UInt32, _ value: UInt64) -> (isGood: Bool?, after: UInt64?) {
        var ranges = MemoryTypeRanges()
        let isGood = ranges.write(index, value, physicalAddressBits: 40)
        return (isGood, ranges.read(index))
    }

    @Test(arguments: [
        (0x2FF, 0xC06), (0x2FF, 0), (0x200, 0xFF_E000_0000), (0x20E, 0x6), (0x201, 0xFF_E000_0800), (0x20F, 0xFF_FFFF_F800),
        (0x250, 0x0606_0504_0100_0606), (0x258, .max / 255 * 6), (0x259, 0), (0x268, .max / 255 * 5), (0x26F, .max / 255),
    ] as [(UInt32, UInt64)])
    func `what a CPU takes is kept`(index: UInt32, value: UInt64) {
        #expect(write(index, value) == (true, value))
    }

    @Test(arguments: [
        // Read-only; types 2, 3 and above 6; reserved bits; addresses beyond the CPU's.
        (0xFE, 0x508), (0x2FF, 0xC02), (0x2FF, 0xC07), (0x2FF, 0x100), (0x2FF, 1 << 12), (0x200, 3), (0x200, 0x100), (0x200, 1 << 40),
        (0x201, 1), (0x201, 0x400), (0x201, 1 << 40 | 0x800), (0x250, 0x02), (0x26F, 0x07 << 56), (0x259, 0xFF),
    ] as [(UInt32, UInt64)])
    func `what a CPU refuses changes nothing`(index: UInt32, value: UInt64) {
        #expect(write(index, value) == (false, index == 0xFE ? 0x508 : 0))
    }

    @Test(arguments: [0xFD, 0x1FF, 0x210, 0x24F, 0x251, 0x257, 0x25A, 0x267, 0x270, 0x2FE, 0x300, 0xC000_0080] as [UInt32])
    func `other registers are others'`(index: UInt32) { #expect(write(index, 0) == (nil, nil)) }

    @Test func `firmware's set-up is one that a CPU takes`() {
        let ranges = MemoryTypeRanges(devices: 0xF000_0000, physicalAddressBits: 40)
        #expect(ranges.read(0x2FF) == 0xC06)
        #expect(ranges.read(0x200) == 0xF000_0000 && ranges.read(0x201) == 0xFF_F000_0800)
        var copy = MemoryTypeRanges()
        for index in Array(0x200...0x26F) + [0x2FF] as [UInt32] {
            guard let value = ranges.read(index) else { continue }
            #expect(copy.write(index, value, physicalAddressBits: 40) == true)
        }
        #expect(copy == ranges)
    }

    @Test func `guest meets them as the policy says`() throws {
        let policy = try CPUPolicy(model: nil, engine: .translator, tscFrequencyHz: nil)
        var msrs = ModelSpecificRegisters()
        #expect(policy.cpuid(1, 0, cr4: 0, xcr0: 1).edx & 1 << 12 != 0)
        #expect(policy.readMSR(0xFE, msrs) == 0x508)
        #expect(policy.writeMSR(0x2FF, 0xC06, &msrs) == .done)
        #expect(policy.readMSR(0x2FF, msrs) == 0xC06)
        #expect(policy.writeMSR(0x2FF, 0xFFFF, &msrs) == .generalProtection)
        #expect(policy.writeMSR(0x300, 1, &msrs) == .ignored)
    }
}
