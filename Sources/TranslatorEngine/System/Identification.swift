import CLinux
import VMM

// CPUID, model-specific registers and the time-stamp counter.
extension TranslatorCPU {
    enum Vendor { case intel, amd }

    /// Whose manual decides where the two differ. Asked on cold paths only.
    var vendor: Vendor {
        let leaf = policy.cpuid(0, 0, cr4: context.pointee.cr4, xcr0: context.pointee.xcr0)
        // "Auth", "Hygo"
        return leaf.ebx == 0x6874_7541 || leaf.ebx == 0x6F67_7948 ? .amd : .intel
    }

    /// MAXPHYADDR. Asked on cold paths only.
    var physicalAddressWidth: UInt64 {
        let leaf = policy.cpuid(0x8000_0008, 0, cr4: context.pointee.cr4, xcr0: context.pointee.xcr0)
        // CPUs without the leaf have 36 bits (SDM Vol. 3, 4.1.4).
        return leaf.eax & 0xFF == 0 ? 36 : min(UInt64(leaf.eax & 0xFF), 52)
    }

    func identify() {
        let leaf = policy.cpuid(
            UInt32(truncatingIfNeeded: rax), UInt32(truncatingIfNeeded: rcx), cr4: context.pointee.cr4,
            xcr0: context.pointee.xcr0)
        rax = UInt64(leaf.eax)
        context.pointee.gpr[3] = UInt64(leaf.ebx)
        rcx = UInt64(leaf.ecx)
        rdx = UInt64(leaf.edx)
    }

    // MARK: Time-stamp counter

    @inline(__always)
    var timeStamp: UInt64 { clinux_rdtsc() &+ context.pointee.msr.tscOffset }

    func readTimeStamp(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if context.pointee.cr4 & CR4.tsd != 0 && context.pointee.privilegeLevel != 0 { throw .generalProtection() }
        setPair(timeStamp)
        if instruction.pointee.kind == .rdtscp { rcx = context.pointee.msr.tscAux & 0xFFFF_FFFF }
    }

    func readProcessorID(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let leaf = policy.cpuid(7, 0, cr4: context.pointee.cr4, xcr0: context.pointee.xcr0)
        if leaf.ecx & 1 << 22 == 0 { throw .invalidOpcode }
        setRegister(
            instruction.pointee.rm, context.pointee.msr.tscAux & 0xFFFF_FFFF,
            size: instruction.pointee.operandSize == 8 ? 8 : 4)
    }

    // MARK: MSRs

    private enum MSR {
        static let timeStampCounter: UInt32 = 0x10
        static let efer: UInt32 = 0xC000_0080
        static let fsBase: UInt32 = 0xC000_0100
        static let gsBase: UInt32 = 0xC000_0101
        static let kernelGSBase: UInt32 = 0xC000_0102
    }

    func readModelSpecific() throws(GuestException) {
        try requireSupervisor()
        switch UInt32(truncatingIfNeeded: rcx) {
        case MSR.timeStampCounter: setPair(timeStamp)
        case MSR.fsBase: setPair(context.pointee.fsBase)
        case MSR.gsBase: setPair(context.pointee.gsBase)
        case MSR.kernelGSBase: setPair(context.pointee.msr.kernelGSBase)
        case MSR.efer: setPair(context.pointee.msr.efer)
        case let index:
            guard let value = policyRead(index) else { throw .generalProtection() }
            setPair(value)
        }
    }

    func writeModelSpecific() throws(GuestException) {
        try requireSupervisor()
        let value = pair
        switch UInt32(truncatingIfNeeded: rcx) {
        case MSR.timeStampCounter: context.pointee.msr.tscOffset = value &- clinux_rdtsc()
        case MSR.fsBase:
            guard Self.isCanonical(value) else { throw .generalProtection() }
            context.pointee.fsBase = value
        case MSR.gsBase:
            guard Self.isCanonical(value) else { throw .generalProtection() }
            context.pointee.gsBase = value
        case MSR.kernelGSBase:
            guard Self.isCanonical(value) else { throw .generalProtection() }
            context.pointee.msr.kernelGSBase = value
        case MSR.efer: try writeEFER(value)
        case let index: if !policyWrite(index, value) { throw .generalProtection() }
        }
    }

    /// EFER (SDM Vol. 3, 2.2.1): LMA follows CR0.PG, LME is fixed while paging is on.
    private func writeEFER(_ value: UInt64) throws(GuestException) {
        let leaf = policy.cpuid(0x8000_0001, 0, cr4: context.pointee.cr4, xcr0: context.pointee.xcr0)
        var writable = EFER.sce
        if leaf.edx & 1 << 29 != 0 { writable |= EFER.lme }
        if leaf.edx & 1 << 20 != 0 { writable |= EFER.nxe }
        let old = context.pointee.msr.efer
        let wanted = value & ~EFER.lma
        if (wanted & ~old) & ~writable != 0 { throw .generalProtection() }
        if (wanted ^ old) & EFER.lme != 0 && context.pointee.cr0 & CR0.pg != 0 { throw .generalProtection() }
        context.pointee.msr.efer = wanted | old & EFER.lma
        if (wanted ^ old) & EFER.nxe != 0 { flushTLB(global: true) }
        modeChanged()
    }

    /// The registers that hold a value and nothing else.
    private func policyRead(_ index: UInt32) -> UInt64? {
        let msr = context.pointee.msr
        switch index {
        case 0xC000_0081: return msr.star
        case 0xC000_0082: return msr.lstar
        case 0xC000_0083: return msr.cstar
        case 0xC000_0084: return msr.sfmask
        case 0xC000_0103: return msr.tscAux
        case 0x174: return msr.sysenterCS
        case 0x175: return msr.sysenterESP
        case 0x176: return msr.sysenterEIP
        case 0x277: return msr.pat
        case 0x1A0: return msr.miscEnable
        case 0x8B, 0x17: return 0
        default: return nil
        }
    }

    private func policyWrite(_ index: UInt32, _ value: UInt64) -> Bool {
        switch index {
        case 0xC000_0081: context.pointee.msr.star = value
        case 0xC000_0082:
            guard Self.isCanonical(value) else { return false }
            context.pointee.msr.lstar = value
        case 0xC000_0083:
            guard Self.isCanonical(value) else { return false }
            context.pointee.msr.cstar = value
        case 0xC000_0084: context.pointee.msr.sfmask = value & 0xFFFF_FFFF
        case 0xC000_0103: context.pointee.msr.tscAux = value & 0xFFFF_FFFF
        case 0x174: context.pointee.msr.sysenterCS = value & 0xFFFF_FFFF
        case 0x175: context.pointee.msr.sysenterESP = value
        case 0x176: context.pointee.msr.sysenterEIP = value
        case 0x277:
            for shift in stride(from: 0 as UInt64, to: 64, by: 8) {
                let type = value >> shift & 0xFF
                if type == 2 || type == 3 || type > 7 { return false }
            }
            context.pointee.msr.pat = value
        default: break
        }
        return true
    }
}
