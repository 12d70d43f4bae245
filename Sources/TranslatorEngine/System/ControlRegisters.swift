internal import VMM

// Control and extended control registers (SDM Vol. 2, MOV and XSETBV; Vol. 3, 2.5, 4.1 and 10.11).
extension TranslatorCPU {
    // MARK: MOV to and from CRn

    func readControl(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireSupervisor()
        let value: UInt64
        switch instruction.pointee.register {
        case 0: value = context.pointee.cr0
        case 2: value = context.pointee.cr2
        case 3: value = context.pointee.cr3
        case 4: value = context.pointee.cr4
        case 8: value = apic.map { UInt64($0.taskPriority) } ?? context.pointee.cr8
        default: throw .invalidOpcode
        }
        setRegister(instruction.pointee.rm, value, size: instruction.pointee.operandSize)
    }

    func writeControl(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireSupervisor()
        let value = register(instruction.pointee.rm) & Self.mask(instruction.pointee.operandSize)
        switch instruction.pointee.register {
        case 0: try writeCR0(value)
        case 2: context.pointee.cr2 = value
        case 3: try writeCR3(value)
        case 4: try writeCR4(value)
        case 8:
            if value > 15 { throw .generalProtection() }
            if let apic { apic.setTaskPriority(UInt8(truncatingIfNeeded: value)) } else { context.pointee.cr8 = value }
        default: throw .invalidOpcode
        }
    }

    func writeCR0(_ value: UInt64) throws(GuestException) {
        guard let new = policy.cr0(writing: value) else { throw .generalProtection() }
        let old = context.pointee.cr0
        let changed = old ^ new
        if changed & CR0.pg != 0 {
            if new & CR0.pg != 0 {
                if context.pointee.msr.efer & EFER.lme != 0 {
                    // Long mode comes up through compatibility mode with PAE (SDM Vol. 3, 10.8.5).
                    if context.pointee.cr4 & CR4.pae == 0 || context.pointee.cs.isLong { throw .generalProtection() }
                    context.pointee.msr.efer |= EFER.lma
                }
            } else {
                if context.pointee.is64Bit || context.pointee.cr4 & CR4.pcide != 0 { throw .generalProtection() }
                context.pointee.msr.efer &= ~EFER.lma
            }
        }
        let reloads = changed & (CR0.pg | CR0.cd | CR0.nw) != 0 && new & CR0.pg != 0
        if reloads && context.pointee.cr4 & CR4.pae != 0 && context.pointee.msr.efer & EFER.lma == 0 {
            try loadPDPTEs(context.pointee.cr3)
        }
        context.pointee.cr0 = new
        // Without paging before and after there is nothing that the TLB could hold wrongly: 16-bit programs that call
        // firmware, as boot loaders do for each sector, change PE all the time.
        if (old | new) & CR0.pg != 0 && changed & (CR0.pg | CR0.pe | CR0.wp) != 0 { flushTLB(global: true) }
        if changed != 0 { modeChanged() }
    }

    func writeCR3(_ value: UInt64) throws(GuestException) {
        if context.pointee.cr4 & CR4.pcide != 0 {
            try switchAddressSpace(value)
            return
        }
        if context.pointee.isLongMode {
            if value >> physicalAddressWidth != 0 { throw .generalProtection() }
        } else if context.pointee.cr0 & CR0.pg != 0 && context.pointee.cr4 & CR4.pae != 0 {
            try loadPDPTEs(value)
        }
        context.pointee.cr3 = value
        flushTLB(global: false)
    }

    func writeCR4(_ value: UInt64) throws(GuestException) {
        let isLong = context.pointee.isLongMode
        guard policy.allowsCR4(value, longModeActive: isLong) else { throw .generalProtection() }
        let changed = context.pointee.cr4 ^ value
        // PCIDs are long mode's, and begin with 0 (SDM Vol. 3, 4.10.1).
        if changed & value & CR4.pcide != 0 && (!isLong || context.pointee.cr3 & 0xFFF != 0) { throw .generalProtection() }
        let pagingBits = CR4.pae | CR4.pse | CR4.pge | CR4.smep
        if changed & pagingBits != 0 && value & CR4.pae != 0 && !isLong && context.pointee.cr0 & CR0.pg != 0 {
            try loadPDPTEs(context.pointee.cr3)
        }
        context.pointee.cr4 = value
        if changed & (pagingBits | CR4.smap | CR4.pcide) != 0 { flushTLB(global: true) }
        if changed & CR4.de != 0 { debugChanged() }
        if changed != 0 { modeChanged() }
    }

    /// PAE paging loads its four top entries along with CR3, and checks them then (SDM Vol. 3, 4.4.1).
    private func loadPDPTEs(_ cr3: UInt64) throws(GuestException) {
        let entries = readPDPTEs(cr3)
        for index in 0..<4 {
            let entry = entries[index]
            if entry & 1 != 0 && (entry & 0xFFF0_0000_0000_01E6 != 0 || entry >> physicalAddressWidth != 0) {
                throw .generalProtection()
            }
        }
        context.pointee.pdpte = entries
    }

    func readPDPTEs(_ cr3: UInt64) -> [4 of UInt64] {
        .init { memory.load(cr3 & 0xFFFF_FFE0 &+ UInt64($0) &* 8, as: UInt64.self) ?? ~0 }
    }

    func clearTaskSwitched() throws(GuestException) {
        try requireSupervisor()
        if context.pointee.cr0 & CR0.ts != 0 {
            context.pointee.cr0 &= ~CR0.ts
            modeChanged()
        }
    }

    /// LMSW sets PE, MP, EM and TS; it cannot clear PE.
    func loadMachineStatus(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireSupervisor()
        let value = try readOperand(instruction, size: 2)
        let old = context.pointee.cr0
        try writeCR0(old & ~0xE | value & 0xF)
    }

    func storeMachineStatus(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireNoUMIP()
        let size = instruction.pointee.isMemory ? 2 : instruction.pointee.operandSize
        try writeOperand(instruction, context.pointee.cr0, size: size)
    }

    /// SGDT, SIDT, SLDT, STR and SMSW at CPL 3 (SDM Vol. 3, 2.5, CR4.UMIP).
    @inline(__always)
    func requireNoUMIP() throws(GuestException) {
        if context.pointee.cr4 & CR4.umip != 0 && isUser { throw .generalProtection() }
    }

    // MARK: XCR0

    func readExtendedControl() throws(GuestException) {
        if context.pointee.cr4 & CR4.osxsave == 0 { throw .invalidOpcode }
        let value: UInt64
        switch rcx & 0xFFFF_FFFF {
        case 0: value = context.pointee.xcr0
        case 1 where xsaveFeatures & 4 != 0: value = extendedStateInUse() & context.pointee.xcr0
        default: throw .generalProtection()
        }
        setPair(value)
    }

    func writeExtendedControl() throws(GuestException) {
        if context.pointee.cr4 & CR4.osxsave == 0 { throw .invalidOpcode }
        try requireSupervisor()
        let value = pair
        guard rcx & 0xFFFF_FFFF == 0, policy.allowsXCR0(value) else { throw .generalProtection() }
        context.pointee.xcr0 = value
        modeChanged()
    }

    /// CPUID.(EAX=0DH,ECX=1):EAX.
    private var xsaveFeatures: UInt32 {
        policy.cpuid(0xD, 1, cr4: context.pointee.cr4, xcr0: context.pointee.xcr0).eax
    }

    /// EDX:EAX.
    @inline(__always)
    var pair: UInt64 { rdx << 32 | rax & 0xFFFF_FFFF }

    @inline(__always)
    func setPair(_ value: UInt64) {
        rax = value & 0xFFFF_FFFF
        rdx = value >> 32
    }
}
