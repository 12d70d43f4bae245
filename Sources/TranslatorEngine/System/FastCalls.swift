internal import VMM

// SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS/GS base instructions.
extension TranslatorCPU {
    /// Flat segments that the fast calls load without looking at a table: attributes of SDM Vol. 2, SYSCALL.
    private static let code64: UInt32 = 0xA09B
    private static let code32: UInt32 = 0xC09B
    private static let data: UInt32 = 0xC093
    private static let level3: UInt32 = 0x60

    @inline(__always)
    private static func flat(_ selector: UInt64, _ attributes: UInt32) -> SegmentRegister {
        SegmentRegister(
            selector: UInt16(truncatingIfNeeded: selector), attributes: attributes, limit: 0xFFFF_FFFF, base: 0)
    }

    /// SYSCALL (SDM Vol. 2; AMD APM Vol. 3). Outside of 64-bit mode only AMD's CPUs have it.
    @inline(__always)
    func systemCall(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let context = context
        if context.pointee.msr.efer & EFER.sce == 0 { throw .invalidOpcode }
        guard context.pointee.is64Bit else {
            try narrowSystemCall(instruction)
            return
        }
        context.pointee.gpr[1] = next(instruction)
        let flags = context.pointee.rflags & ~RFLAGS.rf
        context.pointee.gpr[11] = flags
        context.pointee.rip = context.pointee.msr.lstar
        context.pointee.rflags = flags & ~context.pointee.msr.sfmask
        let selector = context.pointee.msr.star >> 32 & 0xFFFC
        context.pointee.cs = Self.flat(selector, Self.code64)
        context.pointee.ss = Self.flat(selector &+ 8, Self.data)
        modeChanged()
        stepByNewFlag()
    }

    private func narrowSystemCall(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        if isRealOrVirtual8086 || vendor != .amd { throw .invalidOpcode }
        let selector = context.pointee.msr.star >> 32 & 0xFFFC
        rcx = next(instruction)
        if context.pointee.isLongMode {
            let flags = context.pointee.rflags & ~RFLAGS.rf
            context.pointee.gpr[11] = flags
            context.pointee.rip = context.pointee.msr.cstar
            context.pointee.rflags = flags & ~context.pointee.msr.sfmask
            context.pointee.cs = Self.flat(selector, Self.code64)
        } else {
            context.pointee.rip = context.pointee.msr.star & 0xFFFF_FFFF
            context.pointee.systemFlags &= ~(RFLAGS.if | RFLAGS.vm | RFLAGS.rf)
            context.pointee.cs = Self.flat(selector, Self.code32)
        }
        context.pointee.ss = Self.flat(selector &+ 8, Self.data)
        modeChanged()
        stepByNewFlag()
    }

    /// SYSRET. Intel's CPUs refuse a return address that is not canonical while still at CPL 0; on AMD's the fault
    /// comes after the return.
    @inline(__always)
    func systemReturn(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let context = context
        if context.pointee.msr.efer & EFER.sce == 0 { throw .invalidOpcode }
        if !context.pointee.is64Bit { try checkNarrowSystemReturn() }
        try requireSupervisor()
        let selector = context.pointee.msr.star >> 48
        if context.pointee.isLongMode {
            if instruction.pointee.operandSize == 8 {
                let target = context.pointee.gpr[1]
                if !Self.isCanonical(target) && vendor != .amd { throw .generalProtection() }
                context.pointee.rip = target
                context.pointee.cs = Self.flat(selector &+ 16 | 3, Self.code64 | Self.level3)
            } else {
                context.pointee.rip = context.pointee.gpr[1] & 0xFFFF_FFFF
                context.pointee.cs = Self.flat(selector | 3, Self.code32 | Self.level3)
            }
            context.pointee.rflags = context.pointee.gpr[11] & RFLAGS.defined & ~(RFLAGS.rf | RFLAGS.vm)
        } else {
            context.pointee.rip = context.pointee.gpr[1] & 0xFFFF_FFFF
            context.pointee.cs = Self.flat(selector | 3, Self.code32 | Self.level3)
            context.pointee.systemFlags |= RFLAGS.if
        }
        context.pointee.ss = Self.flat(selector &+ 8 | 3, Self.data | Self.level3)
        modeChanged()
        stepByNewFlag()
    }

    private func checkNarrowSystemReturn() throws(GuestException) {
        if isRealOrVirtual8086 || vendor != .amd { throw .invalidOpcode }
    }

    /// SYSENTER. AMD's CPUs do not have it in long mode.
    func systemEnter() throws(GuestException) {
        let msr = context.pointee.msr
        let isLong = context.pointee.isLongMode
        if isLong && vendor == .amd { throw .invalidOpcode }
        if context.pointee.cr0 & CR0.pe == 0 || msr.sysenterCS & 0xFFFC == 0 { throw .generalProtection() }
        context.pointee.systemFlags &= ~(RFLAGS.vm | RFLAGS.if | RFLAGS.rf)
        let mask: UInt64 = isLong ? ~0 : 0xFFFF_FFFF
        rsp = msr.sysenterESP & mask
        context.pointee.rip = msr.sysenterEIP & mask
        let selector = msr.sysenterCS & 0xFFFC
        context.pointee.cs = Self.flat(selector, isLong ? Self.code64 : Self.code32)
        context.pointee.ss = Self.flat(selector &+ 8, Self.data)
        modeChanged()
    }

    func systemExit(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let isLong = context.pointee.isLongMode
        if isLong && vendor == .amd { throw .invalidOpcode }
        let selector = context.pointee.msr.sysenterCS
        if context.pointee.cr0 & CR0.pe == 0 || selector & 0xFFFC == 0 { throw .generalProtection() }
        try requireSupervisor()
        let base = selector & 0xFFFC
        if instruction.pointee.operandSize == 8 {
            guard Self.isCanonical(rdx), Self.isCanonical(rcx) else { throw .generalProtection() }
            context.pointee.rip = rdx
            rsp = rcx
            context.pointee.cs = Self.flat(base &+ 32 | 3, Self.code64 | Self.level3)
            context.pointee.ss = Self.flat(base &+ 40 | 3, Self.data | Self.level3)
        } else {
            context.pointee.rip = rdx & 0xFFFF_FFFF
            rsp = rcx & 0xFFFF_FFFF
            context.pointee.cs = Self.flat(base &+ 16 | 3, Self.code32 | Self.level3)
            context.pointee.ss = Self.flat(base &+ 24 | 3, Self.data | Self.level3)
        }
        modeChanged()
    }

    @inline(__always)
    func swapGS() throws(GuestException) {
        if !context.pointee.is64Bit { throw .invalidOpcode }
        try requireSupervisor()
        let base = context.pointee.gsBase
        context.pointee.gsBase = context.pointee.msr.kernelGSBase
        context.pointee.msr.kernelGSBase = base
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
    func accessBase(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        guard context.pointee.is64Bit, context.pointee.cr4 & CR4.fsgsbase != 0 else { throw .invalidOpcode }
        let i = instruction.pointee
        let value = register(i.rm) & Self.mask(i.operandSize)
        switch i.kind {
        case .readFSBase: setRegister(i.rm, context.pointee.fsBase, size: i.operandSize)
        case .readGSBase: setRegister(i.rm, context.pointee.gsBase, size: i.operandSize)
        default:
            guard Self.isCanonical(value) else { throw .generalProtection() }
            if i.kind == .writeFSBase { context.pointee.fsBase = value } else { context.pointee.gsBase = value }
        }
    }
}
