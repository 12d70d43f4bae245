internal import VMM

// Instructions on RFLAGS (SDM Vol. 2, CLI, STI, PUSHF, POPF, CLAC, STAC).
extension TranslatorCPU {
    /// CLI and STI outside of privilege: IOPL decides, then VME's and PVI's virtual interrupt flag.
    @inline(__always)
    func setInterruptFlag(_ on: Bool) throws(GuestException) {
        if context.pointee.privilegeLevel <= ioPrivilegeLevel {
            let wasOn = context.pointee.systemFlags & RFLAGS.if != 0
            if on {
                context.pointee.systemFlags |= RFLAGS.if
                if !wasOn { context.pointee.interruptShadow = true }
            } else {
                context.pointee.systemFlags &= ~RFLAGS.if
            }
            return
        }
        try setVirtualInterruptFlag(on)
    }

    private func setVirtualInterruptFlag(_ on: Bool) throws(GuestException) {
        let isVirtual = context.pointee.systemFlags & RFLAGS.vm != 0
        let allowed = context.pointee.cr4 & (isVirtual ? CR4.vme : CR4.pvi) != 0 && isUser
        guard allowed, !(on && context.pointee.systemFlags & RFLAGS.vip != 0) else { throw .generalProtection() }
        if on {
            context.pointee.systemFlags |= RFLAGS.vif
        } else {
            context.pointee.systemFlags &= ~RFLAGS.vif
        }
    }

    @inline(__always)
    func pushFlags(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        // VM and RF always read as zero.
        var image = context.pointee.rflags & ~(RFLAGS.vm | RFLAGS.rf)
        if context.pointee.systemFlags & RFLAGS.vm != 0 && ioPrivilegeLevel != 3 {
            guard context.pointee.cr4 & CR4.vme != 0, size == 2 else { throw .generalProtection() }
            image = image & ~RFLAGS.if | RFLAGS.iopl | (image & RFLAGS.vif) >> 10
        }
        var stack = context.pointee.gpr[4]
        try push(&stack, image, size: size)
        setStackPointer(stack)
    }

    @inline(__always)
    func popFlags(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let size = instruction.pointee.operandSize
        let level = context.pointee.privilegeLevel
        let iopl = ioPrivilegeLevel
        if context.pointee.systemFlags & RFLAGS.vm != 0 && iopl != 3 {
            try popVirtualFlags(size: size)
            return
        }
        var stack = context.pointee.gpr[4]
        let image = try pop(&stack, size: size)
        setStackPointer(stack)
        // RF is cleared; VM, VIF and VIP stay (SDM Vol. 2, table 4-15).
        var writable = RFLAGS.defined & ~(RFLAGS.rf | RFLAGS.vm | RFLAGS.vif | RFLAGS.vip)
        if size == 2 { writable &= 0xFFFF }
        if level != 0 { writable &= ~RFLAGS.iopl }
        if level > iopl { writable &= ~RFLAGS.if }
        setFlags(image, writable)
    }

    /// POPF in virtual-8086 mode below IOPL 3: with VME the image's IF goes to VIF.
    private func popVirtualFlags(size: UInt8) throws(GuestException) {
        guard context.pointee.cr4 & CR4.vme != 0, size == 2 else { throw .generalProtection() }
        var stack = rsp
        let image = try pop(&stack, size: 2)
        let wantsInterrupts = image & RFLAGS.if != 0
        if image & RFLAGS.tf != 0 || wantsInterrupts && context.pointee.systemFlags & RFLAGS.vip != 0 {
            throw .generalProtection()
        }
        setStackPointer(stack)
        setFlags(
            image & ~RFLAGS.vif | (wantsInterrupts ? RFLAGS.vif : 0),
            RFLAGS.defined & 0xFFFF & ~(RFLAGS.if | RFLAGS.iopl) | RFLAGS.vif)
    }

    @inline(__always)
    private func setFlags(_ image: UInt64, _ writable: UInt64) {
        let old = context.pointee.rflags
        let new = (old & ~writable | image & writable) & ~RFLAGS.rf
        context.pointee.rflags = new
        if (old ^ new) & (RFLAGS.tf | RFLAGS.ac) != 0 { modeChanged() }
    }

    /// CLAC and STAC.
    @inline(__always)
    func setAccessCheck(_ on: Bool) throws(GuestException) {
        if context.pointee.privilegeLevel != 0 || !policy.features.contains(.smap) {
            throw .invalidOpcode
        }
        let old = context.pointee.systemFlags
        let new = on ? old | RFLAGS.ac : old & ~RFLAGS.ac
        if old != new {
            context.pointee.systemFlags = new
            modeChanged()
        }
    }

    func halt() throws(GuestException) {
        try requireSupervisor()
        context.pointee.isHalted = true
    }
}
