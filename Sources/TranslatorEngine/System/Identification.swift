internal import CLinux
internal import VMM

// CPUID, model-specific registers and the time-stamp counter.
extension TranslatorCPU {
    enum Vendor { case intel, amd }

    /// Whose manual decides where the two differ. Asked on cold paths only.
    var vendor: Vendor {
        let leaf = policy.cpuid(0, 0, cr4: context.pointee.cr4, xcr0: context.pointee.xcr0)
        // "Auth", "Hygo"
        return leaf.ebx == 0x6874_7541 || leaf.ebx == 0x6F67_7948 ? .amd : .intel
    }

    /// MAXPHYADDR.
    @inline(__always)
    var physicalAddressWidth: UInt64 { UInt64(policy.physicalAddressBits) }

    func identify() {
        let leaf = policy.cpuid(
            UInt32(truncatingIfNeeded: rax), UInt32(truncatingIfNeeded: rcx), cr4: context.pointee.cr4,
            xcr0: context.pointee.xcr0, isAPICEnabled: apic?.isEnabled ?? false)
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
        if instruction.pointee.kind == .rdtscp && !policy.features.contains(.rdtscp) { throw .invalidOpcode }
        setPair(timeStamp)
        if instruction.pointee.kind == .rdtscp { rcx = context.pointee.msr.tscAux & 0xFFFF_FFFF }
    }

    func readProcessorID(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if !policy.features.contains(.rdpid) { throw .invalidOpcode }
        setRegister(
            instruction.pointee.rm, context.pointee.msr.tscAux & 0xFFFF_FFFF,
            size: instruction.pointee.operandSize == 8 ? 8 : 4)
    }

    // MARK: MSRs

    func readModelSpecific() throws(GuestException) {
        try requireSupervisor()
        let index = UInt32(truncatingIfNeeded: rcx)
        if let apic, MSRIndex.isLocalAPIC(index) {
            guard let value = apic.readMSR(index) else { throw .generalProtection() }
            return setPair(value)
        }
        switch index {
        case MSRIndex.tsc: setPair(timeStamp)
        case MSRIndex.fsBase: setPair(context.pointee.fsBase)
        case MSRIndex.gsBase: setPair(context.pointee.gsBase)
        default:
            guard let value = policy.readMSR(index, context.pointee.msr) else { throw .generalProtection() }
            setPair(value)
        }
    }

    func writeModelSpecific() throws(GuestException) {
        try requireSupervisor()
        let value = pair
        let index = UInt32(truncatingIfNeeded: rcx)
        if let apic, MSRIndex.isLocalAPIC(index) {
            guard apic.writeMSR(index, value, timeStamp: timeStamp) else { throw .generalProtection() }
            if index == MSRIndex.apicBase { localAPICMoved() }
            return
        }
        switch index {
        case MSRIndex.tsc:
            context.pointee.msr.tscOffset = value &- clinux_rdtsc()
            apic?.timeStampChanged(to: value)
            // The clock's page counts from the old value.
            let systemTime = context.pointee.msr.kvmSystemTime
            if systemTime & 1 != 0 { _ = clock?.writeSystemTime(systemTime, tscOffset: context.pointee.msr.tscOffset) }
        case MSRIndex.fsBase:
            guard Self.isCanonical(value) else { throw .generalProtection() }
            context.pointee.fsBase = value
        case MSRIndex.gsBase:
            guard Self.isCanonical(value) else { throw .generalProtection() }
            context.pointee.gsBase = value
        case MSRIndex.efer: try writeEFER(value)
        default:
            switch policy.writeMSR(index, value, &context.pointee.msr) {
            case .done, .ignored: break
            case .generalProtection: throw .generalProtection()
            case .paravirtualClock(let register): try writeClock(register, value)
            }
        }
    }

    /// The local APIC's page of registers may be elsewhere.
    func localAPICMoved() {
        let page = apic?.registerPage ?? ~0
        guard page != apicPage else { return }
        apicPage = page
        flushTLB(global: true)
    }

    /// EFER (SDM Vol. 3, 2.2.1): LMA follows CR0.PG, LME is fixed while paging is on.
    private func writeEFER(_ value: UInt64) throws(GuestException) {
        let old = context.pointee.msr.efer
        let paging = context.pointee.cr0 & CR0.pg != 0
        guard let new = policy.efer(writing: value, over: old, pagingEnabled: paging) else {
            throw .generalProtection()
        }
        context.pointee.msr.efer = new
        if (new ^ old) & EFER.nxe != 0 { flushTLB(global: true) }
        if new != old { modeChanged() }
    }

    /// KVM_SYSTEM_TIME and KVM_WALL_CLOCK: the pages have to be RAM.
    private func writeClock(_ register: ParavirtualClockRegister, _ value: UInt64) throws(GuestException) {
        guard let clock else { return }
        switch register {
        case .systemTime:
            guard clock.writeSystemTime(value, tscOffset: context.pointee.msr.tscOffset) else { throw .generalProtection() }
            context.pointee.msr.kvmSystemTime = value
        case .wallClock:
            guard clock.writeWallClock(value) else { throw .generalProtection() }
            context.pointee.msr.kvmWallClock = value
        }
    }
}
