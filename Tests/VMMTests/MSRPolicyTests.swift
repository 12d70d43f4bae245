import TestSupport
import Testing
import VMM

@Suite("Model-specific registers") struct MSRPolicyTests {
    static let canonical: UInt64 = 0xFFFF_8000_0000_1234
    static let notCanonical: UInt64 = 0x0000_8000_0000_0000

    @Test(arguments: [
        (0xC000_0081, 0x0123_4567_89AB_CDEF, 0x0123_4567_89AB_CDEF),
        (0xC000_0082, canonical, canonical), (0xC000_0083, canonical, canonical),
        (0xC000_0084, 0xFFFF_FFFF_0004_7700, 0x0004_7700),
        (0xC000_0102, canonical, canonical), (0xC000_0103, 0xFFFF_FFFF, 0xFFFF_FFFF),
        (0x174, 0x1_0000_0010, 0x10), (0x175, canonical, canonical), (0x176, canonical, canonical),
        (0x277, 0x0007_0106_0007_0106, 0x0007_0106_0007_0106),
    ] as [(UInt32, UInt64, UInt64)])
    func `state register reads back what was written`(index: UInt32, written: UInt64, read: UInt64) throws {
        let policy = try policy()
        var msrs = ModelSpecificRegisters()
        #expect(policy.writeMSR(index, written, &msrs) == .done)
        #expect(policy.readMSR(index, msrs) == read)
    }

    @Test(arguments: [
        (0xC000_0082, notCanonical), (0xC000_0083, notCanonical), (0xC000_0102, notCanonical), (0x175, notCanonical),
        (0x176, notCanonical), (0xC000_0103, 1 << 32), (0xC000_0080, 1 << 1), (0xC000_0080, 1 << 12),
        (0xC000_0080, 1 << 63),
        (0x277, 2), (0x277, 3 << 56), (0x277, 8), (0x277, 0xFF00), (0x1B, 0xFEE0_1100), (0x1B, 0xFEE0_0800),
        (0x1B, 1 << 63),
        (0x3A, 5), (0x9B, 1),
    ] as [(UInt32, UInt64)])
    func `illegal value is a general protection fault and changes nothing`(index: UInt32, value: UInt64) throws {
        let policy = try policy()
        var msrs = ModelSpecificRegisters()
        #expect(policy.writeMSR(index, value, &msrs) == .generalProtection)
        #expect(msrs == ModelSpecificRegisters())
    }

    @Test(arguments: [0, 1, 4, 5, 6, 7, 2, 3, 8, 0x10, 0x80] as [UInt64], 0..<8)
    func `PAT takes the six memory types in every field`(type: UInt64, field: Int) {
        #expect(CPUPolicy.isValidPAT(type << UInt64(field * 8)) == [0, 1, 4, 5, 6, 7].contains(type))
    }

    @Test func `local APIC base of a machine without one reads disabled on the boot processor and swallows being enabled`() throws {
        let policy = try policy()
        var msrs = ModelSpecificRegisters()
        #expect(policy.readMSR(0x1B, msrs) == 0xFEE0_0100)
        #expect(policy.writeMSR(0x1B, 0xFEE0_0900, &msrs) == .ignored)
    }

    @Test(arguments: [0x10, 0xC000_0100, 0xC000_0101] as [UInt32])
    func `registers that the engine answers for are not in the table`(index: UInt32) throws {
        #expect(try policy().readMSR(index, ModelSpecificRegisters()) == nil)
    }

    @Test(arguments: CPUIDTests.vendors)
    func `unknown register faults on read and is ignored on write`(name: CPUIDLeaf) throws {
        let policy = try policy(name)
        var msrs = ModelSpecificRegisters()
        let unknown: [UInt32] = [
            0, 1, 0x11, 0x12, 0x3B, 0x48, 0xCE, 0xFD, 0x179, 0x2FE, 0x345, 0x6E0, 0x802, 0x4B56_4D02, 0xC001_0117, ~0,
        ]
        for index in unknown {
            #expect(policy.readMSR(index, msrs) == nil, "\(String(index, radix: 16))")
            #expect(policy.writeMSR(index, ~0, &msrs) == .ignored, "\(String(index, radix: 16))")
        }
        #expect(msrs == ModelSpecificRegisters())
    }

    @Test func `vendor's registers are there for that vendor alone`() throws {
        let msrs = ModelSpecificRegisters()
        let amd = try policy(amdName)
        let intel = try policy(intelName)
        // SYS_CFG, HWCR with TscFreqSel, INT_PENDING, P-state 0, DE_CFG with LFENCE serialising
        let values: [(UInt32, UInt64)] = [
            (0xC001_0010, 0), (0xC001_0015, 1 << 24), (0xC001_001F, 0), (0xC001_0055, 0), (0xC001_0064, 0),
            (0xC001_1029, 2),
        ]
        for (index, value) in values {
            #expect(amd.readMSR(index, msrs) == value)
            #expect(intel.readMSR(index, msrs) == nil)
        }
        for index: UInt32 in [0x17, 0x3A, 0x1A0, 0x10A] {
            #expect(amd.readMSR(index, msrs) == nil)
            #expect(intel.readMSR(index, msrs) != nil)
        }
        #expect(amd.readMSR(0x8B, msrs) == 0)
        #expect(intel.readMSR(0x8B, msrs) == 0)
    }

    @Test func `MISC_ENABLE shows fast strings and no execute-disable lock`() throws {
        let policy = try policy()
        var msrs = ModelSpecificRegisters()
        #expect(policy.readMSR(0x1A0, msrs) == 0x1801)
        #expect(policy.writeMSR(0x1A0, ~0, &msrs) == .done)
        #expect(policy.readMSR(0x1A0, msrs) == 0x1801)
        #expect(policy.writeMSR(0x1A0, 0, &msrs) == .done)
        #expect(policy.readMSR(0x1A0, msrs) == 0x1800)
    }

    @Test func `clock registers go to the clock, unless there is none`() throws {
        var msrs = ModelSpecificRegisters()
        let with = try policy()
        #expect(with.writeMSR(0x4B56_4D01, 0x1001, &msrs) == .paravirtualClock(.systemTime))
        #expect(with.writeMSR(0x4B56_4D00, 0x1000, &msrs) == .paravirtualClock(.wallClock))
        #expect(msrs == ModelSpecificRegisters())
        #expect(with.readMSR(0x4B56_4D01, msrs) == 0)
        let without = try policy(tsc: nil)
        #expect(without.writeMSR(0x4B56_4D01, 0x1001, &msrs) == .ignored)
        #expect(without.readMSR(0x4B56_4D01, msrs) == nil)
    }

    @Test func `model without RDTSCP and RDPID has no TSC_AUX`() throws {
        let policy = try CPUPolicy(
            model: nil, engine: .translator, host: host(intelName, without: [.rdtscp, .rdpid]), tscFrequencyHz: nil)
        var msrs = ModelSpecificRegisters()
        #expect(policy.readMSR(0xC000_0103, msrs) == nil)
        #expect(policy.writeMSR(0xC000_0103, 1, &msrs) == .ignored)
    }

    @Test func `EFER keeps LMA and refuses to change LME while paging`() throws {
        let policy = try policy()
        var msrs = ModelSpecificRegisters()
        #expect(policy.writeMSR(0xC000_0080, 0xD01, &msrs) == .done)
        #expect(msrs.efer == 0x901, "LMA is not for software to set")
        msrs.efer |= EFER.lma
        #expect(policy.writeMSR(0xC000_0080, 0x801, &msrs) == .generalProtection)
        #expect(policy.writeMSR(0xC000_0080, 0x101, &msrs) == .done)
        #expect(msrs.efer == 0x501)
        #expect(policy.efer(writing: EFER.lme, over: 0, pagingEnabled: true) == nil)
    }

    @Test func `any register and value is answered`() throws {
        for name in CPUIDTests.vendors {
            let policy = try policy(name)
            var msrs = ModelSpecificRegisters()
            var noise = SplitMix64(seed: 3)
            for _ in 0..<50_000 {
                let masks: [UInt32] = [0x7FF, 0xC000_01FF, 0xC001_1FFF, ~0]
                let index = UInt32.random(in: 0 ... .max, using: &noise) & masks[Int.random(in: 0..<4, using: &noise)]
                _ = policy.writeMSR(index, noise.next(), &msrs)
                _ = policy.readMSR(index, msrs)
            }
            #expect(CPUPolicy.isCanonical(msrs.lstar))
            #expect(msrs.efer & ~policy.validEFERBits == 0)
        }
    }
}

@Suite("Control registers") struct ControlRegisterTests {
    @Test(arguments: [
        (0x8005_0033, 0x8005_0033), (0, 0x10), (0x6000_0010, 0x6000_0010), (0x2000_0001, nil), (0x8000_0000, nil),
        (1 << 32, nil), (0x0000_FFC1, 0x11),
    ] as [(UInt64, UInt64?)])
    func `CR0 reads as written or faults`(written: UInt64, read: UInt64?) throws {
        #expect(try policy().cr0(writing: written) == read)
    }

    @Test func `CR4 takes what Linux sets and refuses what is not shown`() throws {
        let policy = try policy()
        // PSE PAE PGE OSFXSR OSXMMEXCPT UMIP FSGSBASE OSXSAVE SMEP SMAP
        #expect(policy.allowsCR4(0x35_0EB0, longModeActive: true))
        for bit in [0, 1, 6, 12, 13, 14, 15, 17, 19, 22, 23, 24, 25, 32, 63] {
            #expect(!policy.allowsCR4(0x20 | 1 << UInt64(bit), longModeActive: false), "bit \(bit)")
        }
        #expect(!policy.allowsCR4(0, longModeActive: true))
        #expect(policy.allowsCR4(0, longModeActive: false))
    }

    @Test(arguments: [
        (1, true), (3, true), (7, true), (0, false), (2, false), (5, false), (6, false), (0xF, false), (0xE7, false),
        (1 << 63 | 1, false),
    ] as [(UInt64, Bool)])
    func `XCR0 takes sets that build on each other`(value: UInt64, allowed: Bool) throws {
        #expect(try policy().allowsXCR0(value) == allowed)
    }

    @Test(arguments: [
        (0, true), (0x7FFF_FFFF_FFFF, true), (0x8000_0000_0000, false), (0xFFFF_7FFF_FFFF_FFFF, false),
        (0xFFFF_8000_0000_0000, true), (.max, true),
    ] as [(UInt64, Bool)])
    func `canonical addresses extend bit 47`(address: UInt64, canonical: Bool) {
        #expect(CPUPolicy.isCanonical(address) == canonical)
    }
}
