internal import VMM

extension TranslatorCPU {
    /// Carries out one instruction that the translator did not copy.
    ///
    /// On entry `context.rip` is the address of the instruction and all registers are exact. Afterwards RIP is where
    /// the guest goes on: the next instruction, a target, or the instruction itself when a repeated string operation
    /// made way for an interrupt.
    /// - Throws: the fault; registers and RIP are as before, but for elements that a string operation finished.
    package func perform(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        switch instruction.pointee.kind {
        // Control transfers set RIP themselves.
        case .iret: return try interruptReturn(instruction)
        case .syscall: return try systemCall(instruction)
        case .sysret: return try systemReturn(instruction)
        case .sysenter: return try systemEnter()
        case .sysexit: return try systemExit(instruction)
        case .farJumpDirect, .farJumpIndirect: return try farJump(instruction)
        case .farCallDirect, .farCallIndirect: return try farCall(instruction)
        case .farReturn: return try farReturn(instruction)
        case .int, .int3, .int1, .into: return try interruptInstruction(instruction)

        case .cli: try setInterruptFlag(false)
        case .sti: try setInterruptFlag(true)
        case .cld: context.pointee.systemFlags &= ~RFLAGS.df
        case .std: context.pointee.systemFlags |= RFLAGS.df
        case .clac: try setAccessCheck(false)
        case .stac: try setAccessCheck(true)
        case .pushFlags: try pushFlags(instruction)
        case .popFlags: try popFlags(instruction)
        case .hlt: try halt()
        case .swapgs: try swapGS()
        case .readFSBase, .readGSBase, .writeFSBase, .writeGSBase: try accessBase(instruction)
        case .readControl: try readControl(instruction)
        case .writeControl: try writeControl(instruction)
        case .readDebug, .writeDebug: try accessDebug(instruction)
        case .clts: try clearTaskSwitched()
        case .lmsw: try loadMachineStatus(instruction)
        case .smsw: try storeMachineStatus(instruction)
        case .xgetbv: try readExtendedControl()
        case .xsetbv: try writeExtendedControl()
        case .lgdt, .lidt: try loadTable(instruction)
        case .sgdt, .sidt: try storeTable(instruction)
        case .lldt: try loadLDT(instruction)
        case .ltr: try loadTask(instruction)
        case .sldt: try storeSelector(instruction, context.pointee.ldtr.selector)
        case .str: try storeSelector(instruction, context.pointee.tr.selector)
        case .storeSegment: try storeSegment(instruction)
        case .loadSegment: try moveToSegment(instruction)
        case .pushSegment: try pushSegment(instruction)
        case .popSegment: try popSegment(instruction)
        case .loadFarPointer: try loadFarPointer(instruction)
        case .verr, .verw: try verify(instruction)
        case .lar: try loadAccessRights(instruction)
        case .lsl: try loadSegmentLimit(instruction)
        case .arpl: try adjustPrivilege(instruction)
        case .inPort: try portIn(instruction)
        case .outPort: try portOut(instruction)
        case .inString: if !(try portInString(instruction)) { return }
        case .outString: if !(try portOutString(instruction)) { return }
        case .maskedMove: try maskedMove(instruction)
        case .maskedBytes: try maskedBytes(instruction)
        case .gather: try gather(instruction)
        case .maskedGather: try maskedGather(instruction)
        case .scatter: try scatter(instruction)
        case .cpuid: identify()
        case .rdmsr: try readModelSpecific()
        case .wrmsr: try writeModelSpecific()
        case .rdtsc, .rdtscp: try readTimeStamp(instruction)
        case .rdpid: try readProcessorID(instruction)
        // No performance counters: every index is out of range.
        case .rdpmc: throw .generalProtection()
        case .invlpg: try invalidatePage(instruction)
        case .invpcid: try invalidateSpaces(instruction)
        case .cacheInvalidate: try requireSupervisor()
        case .lineFlush: try flushLine(instruction)
        case .xsave, .xsaveopt: try saveXState(instruction)
        case .xrstor: try restoreXState(instruction)
        case .xsavec, .xsaves: try saveCompacted(instruction)
        case .xrstors: try restoreSupervisor(instruction)
        case .fxsave: try saveFXState(instruction)
        case .fxrstor: try restoreFXState(instruction)
        case .undefined: throw .invalidOpcode
        case .nop: break
        case .enter: try enterFrame(instruction)
        case .xlat: try translateByte(instruction)
        case .bound: try checkBounds(instruction)
        case .daa: decimalAdjust(subtract: false)
        case .das: decimalAdjust(subtract: true)
        case .aaa: asciiAdjust(subtract: false)
        case .aas: asciiAdjust(subtract: true)
        case .aam: try asciiAdjustMultiply(UInt64(bitPattern: instruction.pointee.immediate))
        case .aad: asciiAdjustDivide(UInt64(bitPattern: instruction.pointee.immediate))
        case .salc: setALFromCarry()
        case .pushAll: try pushAll(instruction)
        case .popAll: try popAll(instruction)
        case .movs, .cmps, .scas, .lods, .stos: if !(try stringOperation(instruction)) { return }
        }
        context.pointee.rip = next(instruction)
    }

    /// INT n, INT3, INTO, INT1 (SDM Vol. 2, INT n/INTO/INT3/INT1).
    private func interruptInstruction(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        let returnAddress = next(instruction)
        switch instruction.pointee.kind {
        case .int3: try softwareInterrupt(3, source: .software, returnAddress: returnAddress)
        case .int1: try softwareInterrupt(1, source: .privilegedSoftware, returnAddress: returnAddress)
        case .into:
            if context.pointee.rflags & RFLAGS.of == 0 {
                context.pointee.rip = returnAddress
                return
            }
            try softwareInterrupt(4, source: .software, returnAddress: returnAddress)
        default:
            let vector = UInt8(truncatingIfNeeded: instruction.pointee.immediate)
            if context.pointee.systemFlags & RFLAGS.vm != 0 {
                try virtualInterrupt(vector, returnAddress: returnAddress)
            } else {
                try softwareInterrupt(vector, source: .software, returnAddress: returnAddress)
            }
        }
    }

    /// INVLPG: any address is good, also one that is not canonical, for which it does nothing.
    private func invalidatePage(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        try requireSupervisor()
        let i = instruction.pointee
        var address = effectiveAddress(instruction)
        if context.pointee.is64Bit {
            if i.segment == SegmentNumber.fs { address &+= context.pointee.fsBase }
            if i.segment == SegmentNumber.gs { address &+= context.pointee.gsBase }
            if !Self.isCanonical(address) { return }
        } else {
            let base =
                i.segment == SegmentNumber.fs
                ? context.pointee.fsBase
                : i.segment == SegmentNumber.gs ? context.pointee.gsBase : segmentRegister(i.segment).base
            address = (address &+ base) & 0xFFFF_FFFF
        }
        flushTLB(page: address)
    }

    /// CLFLUSH, CLFLUSHOPT, CLWB: guest and host caches are the same, so only the checks of a load remain.
    private func flushLine(_ instruction: UnsafePointer<SystemInstruction>) throws(GuestException) {
        _ = try read(instruction.pointee.segment, effectiveAddress(instruction), size: 1)
    }
}
