import KVMEngine
import Testing
import VMM

@Suite("KVM: state and policy", .needsKVM, .serialized) struct KVMStateTests {
    @Test(arguments: TinyGuest.Mode.allCases)
    func `state reads back as it was written`(mode: TinyGuest.Mode) throws {
        let guest = try TinyGuest([0xF4], mode: mode)
        var state = guest.entryState(mode)
        for index in 0..<16 { state.registers[index] = 0x0101_0101_0101_0101 &* UInt64(index + 1) }
        state.rflags = 0x246
        state.cr2 = 0xDEAD_B000
        state.cr8 = 3
        state.dr = [0x1000, 0x2000, 0x3000, 0x4000]
        state.msr.star = 0x0023_0010_0000_0000
        state.msr.lstar = 0xFFFF_FFFF_8100_0000
        state.msr.cstar = 0xFFFF_FFFF_8100_1000
        state.msr.sfmask = 0x4_7700
        state.msr.kernelGSBase = 0xFFFF_8880_0000_0000
        state.msr.sysenterCS = 0x10
        state.msr.sysenterESP = 0xFFFF_FFFF_8200_0000
        state.msr.sysenterEIP = 0xFFFF_FFFF_8100_2000
        state.msr.pat = 0x0007_0106_0007_0106
        state.msr.kvmWallClock = 0x6000
        state.msr.tscOffset = 0x1234_5678_0000
        // x87 and SSE: a control word, XMM0 and XMM15.
        state.xsave[0] = 0x7E
        state.xsave[512] = 3
        for byte in 0..<16 {
            state.xsave[160 + byte] = UInt8(byte + 1)
            state.xsave[400 + byte] = UInt8(byte + 0x80)
        }
        if mode == .long {
            state.fs.base = 0x7F00_1234_5000
            state.gs.base = 0xFFFF_8880_1234_0000
        }
        try guest.cpu.writeState(state)
        var read = try guest.cpu.readState()
        // XSTATE_BV may also name components in their initial state; the rest of the header is zero.
        #expect(read.xsave[512] & 3 == 3)
        read.xsave[512] = 3
        // MXCSR_MASK is the CPU's.
        for byte in 28..<32 { read.xsave[byte] = 0 }
        // DR6's constant bits.
        #expect(read.dr6 & 0xF == 0)
        read.dr6 = state.dr6
        withKnownIssue("this KVM has no TSC offset") {
            #expect(read.msr.tscOffset == state.msr.tscOffset)
        } when: {
            !KVMEngine.isUsable
        }
        read.msr.tscOffset = state.msr.tscOffset
        #expect(read.registers == state.registers)
        #expect(read.msr == state.msr)
        #expect(zip(read.xsave, state.xsave).enumerated().allSatisfy { $0.element.0 == $0.element.1 })
        #expect([read.es, read.cs, read.ss] == [state.es, state.cs, state.ss])
        #expect([read.ds, read.fs, read.gs] == [state.ds, state.fs, state.gs])
        #expect(read.tr == state.tr)
        #expect(read.ldtr == state.ldtr)
        #expect(read.clockNanoseconds != nil)
        read.clockNanoseconds = nil
        #expect(read == state)
    }

    /// AVX's upper halves lie behind the legacy region and the header.
    @Test(.enabled(if: HostCPU.current.features.contains(.avx), "the host has no AVX"))
    func `upper halves of vector registers are part of the state`() throws {
        let guest = try TinyGuest([0xF4], mode: .long)
        try withKnownIssue("this KVM has no AVX for guests", isIntermittent: true) {
            var state = guest.entryState(.long)
            state.cr4 |= CR4.osxsave
            state.xcr0 = 7
            state.xsave[512] = 7
            for byte in 0..<16 { state.xsave[576 + byte] = UInt8(byte + 1) }
            try guest.cpu.writeState(state)
            let read = try guest.cpu.readState()
            #expect(read.xcr0 == 7)
            #expect(read.xsave[512] & 4 == 4)
            #expect(read.xsave[576..<592] == state.xsave[576..<592])
        } when: {
            guest.policy.xcr0Mask & 4 == 0
        }
    }

    @Test func `halted, shadowed and blocked are part of the state`() throws {
        let guest = try TinyGuest([0xF4])
        for (halted, shadow, blocked) in [(true, false, true), (false, true, false), (false, false, false)] {
            var state = guest.entryState(.real)
            state.isHalted = halted
            state.interruptShadow = shadow
            state.nmiBlocked = blocked
            try guest.cpu.writeState(state)
            let read = try guest.cpu.readState()
            #expect(read.isHalted == halted)
            #expect(read.nmiBlocked == blocked)
            #expect(read.interruptShadow == shadow)
        }
    }

    @Test func `top entries of PAE paging are part of the state, not of memory`() throws {
        let guest = try TinyGuest([0xF4], mode: .protected)
        // Two tables: the first GB at itself, and nothing.
        guest.memory.store(0x9000, 0xA001 as UInt64)
        guest.memory.store(0xA000, 0x83 as UInt64)
        var state = guest.entryState(.protected)
        state.cr3 = 0x9000
        state.cr4 |= CR4.pae
        state.cr0 |= CR0.pg
        try guest.cpu.writeState(state)
        let read = try guest.cpu.readState()
        try withKnownIssue("this KVM does not tell them", isIntermittent: true) {
            #expect(try #require(read.pageDirectoryPointers) == [0xA001, 0, 0, 0])
            // What the guest stored since it loaded CR3 counts only with the next load.
            guest.memory.store(0x9000, 0 as UInt64)
            try guest.cpu.writeState(read)
            #expect(try guest.cpu.readState().pageDirectoryPointers == [0xA001, 0, 0, 0])
            expectHalt(try guest.cpu.run())
        } when: {
            !KVMEngine.isUsable
        }
    }

    @Test func `16-bit code and enabled breakpoints are part of the state`() throws {
        let guest = try TinyGuest([0xF4], mode: .protected)
        var state = guest.entryState(.protected)
        state.cs = SegmentRegister(selector: 0x18, attributes: 0x9B, limit: 0xFFFF, base: 0x1000)
        state.ss = SegmentRegister(selector: 0x20, attributes: 0x93, limit: 0xFFFF, base: 0x2000)
        state.rip = 0
        state.dr = [TinyGuest.codeAddress + 1, 0x5000, 0, 0x6000]
        state.dr7 = 0x5000_0441
        try guest.cpu.writeState(state)
        let read = try guest.cpu.readState()
        #expect(read.cs == state.cs && read.ss == state.ss && read.rip == 0)
        #expect(read.dr == state.dr && read.dr7 == state.dr7)
        expectHalt(try guest.cpu.run())
    }

    @Test func `paravirtual clock goes on from the state's reading`() throws {
        let guest = try TinyGuest([0xF4])
        var state = guest.entryState(.real)
        state.clockNanoseconds = 5_000_000_000_000
        try guest.cpu.writeState(state)
        let read = try #require(try guest.cpu.readState().clockNanoseconds)
        #expect(5_000_000_000_000..<5_060_000_000_000 ~= read)
    }

    @Test func `event that was pending in the state is delivered first`() throws {
        // mov al, 2; out 0xE9, al; hlt
        let guest = try TinyGuest([0xB0, 2, 0xE6, 0xE9, 0xF4])
        guest.setHandler(0x30, [0xB0, 1, 0xE6, 0xE9, 0xCF], at: 0x4000, mode: .real)
        var state = guest.entryState(.real)
        state.pendingEvent = PendingEvent(vector: 0x30)
        try guest.cpu.writeState(state)
        #expect(try guest.cpu.readState().pendingEvent == PendingEvent(vector: 0x30))
        expectHalt(try guest.cpu.run())
        #expect(guest.port.values == [1, 2])
    }

    @Test func `state that no CPU can have is an error`() throws {
        let guest = try TinyGuest([0xF4])
        var state = guest.entryState(.real)
        state.cr0 = CR0.pg
        #expect(throws: KVMError.self) { try guest.cpu.writeState(state) }
    }

    @Test func `guest's CPUID is the policy's`() throws {
        // cpuid; hlt
        let guest = try TinyGuest([0x0F, 0xA2, 0xF4], mode: .long)
        var leaves: [(UInt32, UInt32)] = (0...guest.policy.highestBasicLeaf).map { ($0, 0) }
        leaves += [(4, 1), (0xB, 1), (0xD, 1), (0xD, 2), (0xD, 3)]
        leaves += [0x4000_0000, 0x4000_0001, 0x4000_0100, 0x4000_0101].map { ($0, 0) }
        leaves += (0x8000_0000...guest.policy.highestExtendedLeaf).map { ($0, 0) }
        for (leaf, subleaf) in leaves {
            var state = guest.entryState(.long)
            state[.rax] = UInt64(leaf)
            state[.rcx] = UInt64(subleaf)
            try guest.cpu.writeState(state)
            expectHalt(try guest.cpu.run())
            let read = try guest.cpu.readState()
            let answer = CPUIDLeaf(
                eax: UInt32(read[.rax]), ebx: UInt32(read[.rbx]), ecx: UInt32(read[.rcx]), edx: UInt32(read[.rdx]))
            let expected = guest.policy.cpuid(leaf, subleaf, cr4: state.cr4, xcr0: state.xcr0)
            // A KVM without hardware virtualisation adds the host's own bits to these leaves.
            withKnownIssue("this KVM changes leaf \(leaf)", isIntermittent: true) {
                #expect(answer == expected, "leaf 0x\(String(leaf, radix: 16)).\(subleaf)")
            } when: {
                !KVMEngine.isUsable && [1, 7, 0xD].contains(leaf) && subleaf <= 1
            }
        }
    }

    /// The register's number in ECX; RDX:RAX afterwards, or `nil` when #GP came.
    private func readMSR(_ guest: TinyGuest, _ index: UInt32) throws -> UInt64? {
        // rdmsr; hlt       handler of #GP: mov bl, 1; hlt
        guest.memory.write([0x0F, 0x32, 0xF4], at: TinyGuest.codeAddress)
        guest.setHandler(13, [0xB3, 1, 0xF4], at: 0x4000, mode: .long)
        var state = guest.entryState(.long)
        state[.rcx] = UInt64(index)
        try guest.cpu.writeState(state)
        expectHalt(try guest.cpu.run())
        let read = try guest.cpu.readState()
        return read[.rbx] == 1 ? nil : read[.rdx] << 32 | read[.rax]
    }

    @Test(arguments: [0x8B, 0x1B, 0x17, 0x3A, 0x1A0, 0x10A, 0xC001_0015, 0xC001_1029, 0x12345, 0x2FF, 0x48] as [UInt32])
    func `RDMSR of a register of the table gives the table's answer`(index: UInt32) throws {
        let guest = try TinyGuest([], mode: .long)
        let expected = guest.policy.readMSR(index, ModelSpecificRegisters())
        let answer = try readMSR(guest, index)
        #expect(answer == expected)
    }

    @Test func `RDMSR of the CPU's own registers gives their state`() throws {
        let guest = try TinyGuest([], mode: .long)
        #expect(try readMSR(guest, MSRIndex.efer) == EFER.lme | EFER.lma)
        #expect(try readMSR(guest, MSRIndex.pat) == 0x0007_0406_0007_0406)
    }

    @Test(arguments: [
        (0x12345, ~0, false), (0x8B, 0, false), (0x3A, 5, false), (0x9B, 1, true), (0x277, 2, true), (0x1B, 0, true),
    ] as [(UInt32, UInt64, Bool)])
    func `WRMSR faults where the table says so`(index: UInt32, value: UInt64, faults: Bool) throws {
        // wrmsr; hlt       handler of #GP: mov bl, 1; hlt
        let guest = try TinyGuest([0x0F, 0x30, 0xF4], mode: .long)
        guest.setHandler(13, [0xB3, 1, 0xF4], at: 0x4000, mode: .long)
        var state = guest.entryState(.long)
        state[.rcx] = UInt64(index)
        state[.rax] = value & 0xFFFF_FFFF
        state[.rdx] = value >> 32
        try guest.cpu.writeState(state)
        expectHalt(try guest.cpu.run())
        var msrs = ModelSpecificRegisters()
        let expected = guest.policy.writeMSR(index, value, &msrs) == .generalProtection
        let read = try guest.cpu.readState()
        withKnownIssue("this KVM takes any PAT") {
            #expect((read[.rbx] == 1) == expected)
        } when: {
            !KVMEngine.isUsable && index == MSRIndex.pat
        }
        if index != 0x3A { #expect(expected == faults) }
    }

    @Test func `automatic choice says why it does not take this engine`() {
        let reason = KVMEngine.whyNotUsable()
        #expect(KVMEngine.isUsable == (reason == nil))
        if let reason { #expect(!reason.isEmpty) }
    }

    @Test func `paravirtual clock writes its page`() throws {
        // wrmsr; hlt
        let guest = try TinyGuest([0x0F, 0x30, 0xF4], mode: .long)
        try #require(guest.policy.tscFrequencyHz != nil)
        var state = guest.entryState(.long)
        state[.rcx] = UInt64(MSRIndex.kvmSystemTime)
        state[.rax] = 0x6001
        try guest.cpu.writeState(state)
        expectHalt(try guest.cpu.run())
        #expect(try guest.cpu.readState().msr.kvmSystemTime == 0x6001)
        // Version even and not zero, a multiplier, TSC stamp.
        let version = try #require(guest.memory.load(0x6000, as: UInt32.self))
        #expect(version != 0 && version % 2 == 0)
        #expect(guest.memory.load(0x6018, as: UInt32.self) != 0)
        #expect(guest.memory.load(0x6008, as: UInt64.self) != 0)
    }
}

@Suite("KVM: errors") struct KVMErrorTests {
    @Test func `text of each error says what to do`() {
        #expect(
            KVMError.wrongVersion(11).description
                == "/dev/kvm: its interface has version 11 instead of 12: use the translator engine")
        #expect(KVMError.missingCapability("user memory").description.hasSuffix("use the translator engine"))
    }
}
