import Synchronization
package import VMM

/// Architectural state in the form that both engines share.
extension TranslatorCPU {
    package func readState() -> CPUState {
        var state = CPUState()
        let c = context.pointee
        for index in 0..<16 { state.registers[index] = c.gpr[index] }
        state.rip = c.rip
        state.rflags = c.rflags
        state.es = c.es
        state.cs = c.cs
        state.ss = c.ss
        state.ds = c.ds
        state.fs = c.fs
        state.fs.base = c.fsBase
        state.gs = c.gs
        state.gs.base = c.gsBase
        state.ldtr = c.ldtr
        state.tr = c.tr
        state.gdtr = c.gdtr
        state.idtr = c.idtr
        state.cr0 = c.cr0
        state.cr2 = c.cr2
        state.cr3 = c.cr3
        state.cr4 = c.cr4
        state.cr8 = apic.map { UInt64($0.taskPriority) } ?? c.cr8
        if hasPDPTEs { state.pageDirectoryPointers = (0..<4).map { c.pdpte[$0] } }
        state.clockNanoseconds = clock?.reading()
        for index in 0..<4 { state.dr[index] = c.dr[index] }
        state.dr6 = c.dr6
        state.dr7 = c.dr7
        state.xcr0 = c.xcr0
        state.msr = c.msr
        state.pendingDebug = c.pendingDebug
        state.interruptShadow = c.interruptShadow
        state.stackShadow = c.stackShadow
        state.nmiBlocked = c.nmiBlocked
        takeNMI()
        state.nmiPending = nmiPending
        state.isHalted = c.isHalted
        let size = stateAreaSize
        let area = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
        defer { area.deallocate() }
        area.initializeMemory(as: UInt8.self, repeating: 0, count: size)
        saveExtendedState(to: area, mask: stateComponents)
        // FOP, FIP and FDP are the host's.
        for offset in 6..<24 { area.storeBytes(of: 0, toByteOffset: offset, as: UInt8.self) }
        area.storeBytes(of: stateComponents, toByteOffset: 512, as: UInt64.self)
        state.xsave = Array(UnsafeRawBufferPointer(start: area, count: size))
        return state
    }

    /// What a state holds: the components that the guest may enable, AVX's in any case.
    private var stateComponents: UInt64 { Component.known | policy.xcr0Mask & Component.wide }
    private var stateAreaSize: Int { max(1088, Int(policy.xsaveAreaSize(stateComponents))) }

    package func writeState(_ state: CPUState) {
        for index in 0..<16 { context.pointee.gpr[index] = index < state.registers.count ? state.registers[index] : 0 }
        context.pointee.rip = state.rip
        context.pointee.rflags = state.rflags
        context.pointee.es = state.es
        context.pointee.cs = state.cs
        context.pointee.ss = state.ss
        context.pointee.ds = state.ds
        context.pointee.fs = state.fs
        context.pointee.fsBase = state.fs.base
        context.pointee.gs = state.gs
        context.pointee.gsBase = state.gs.base
        context.pointee.ldtr = state.ldtr
        context.pointee.tr = state.tr
        context.pointee.gdtr = state.gdtr
        context.pointee.idtr = state.idtr
        context.pointee.cr0 = state.cr0
        context.pointee.cr2 = state.cr2
        context.pointee.cr3 = state.cr3
        context.pointee.cr4 = state.cr4
        context.pointee.cr8 = state.cr8
        // The local APIC, whose state is no part of this one, has a finer value.
        if let apic, UInt64(apic.taskPriority) != state.cr8 { apic.setTaskPriority(UInt8(truncatingIfNeeded: state.cr8 & 15)) }
        apicPage = apic?.registerPage ?? ~0
        for index in 0..<4 { context.pointee.dr[index] = index < state.dr.count ? state.dr[index] : 0 }
        context.pointee.dr6 = state.dr6
        context.pointee.dr7 = state.dr7
        context.pointee.xcr0 = state.xcr0
        context.pointee.msr = state.msr
        context.pointee.pendingDebug = state.pendingDebug
        context.pointee.interruptShadow = state.interruptShadow
        context.pointee.stackShadow = state.stackShadow
        context.pointee.nmiBlocked = state.nmiBlocked
        nmiPending = state.nmiPending
        context.pointee.isHalted = state.isHalted
        let size = stateAreaSize
        let area = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
        defer { area.deallocate() }
        area.initializeMemory(as: UInt8.self, repeating: 0, count: size)
        state.xsave.withUnsafeBytes { bytes in
            if let base = bytes.baseAddress { area.copyMemory(from: base, byteCount: min(size, bytes.count)) }
        }
        restoreExtendedState(from: area, mask: stateComponents)
        if hasPDPTEs {
            context.pointee.pdpte = readPDPTEs(state.cr3)
            if let entries = state.pageDirectoryPointers, entries.count == 4 {
                for index in 0..<4 { context.pointee.pdpte[index] = entries[index] }
            }
        }
        clock?.restore(
            nanoseconds: state.clockNanoseconds, systemTime: state.msr.kvmSystemTime, tscOffset: state.msr.tscOffset)
        // Memory may be another machine's: nothing that was derived from it holds.
        flushTLB(global: true)
        flushCode()
        debugChanged()
        interruptWaiting = true
    }

    /// PAE paging outside of long mode, whose top entries are registers.
    private var hasPDPTEs: Bool {
        let c = context
        return c.pointee.cr0 & CR0.pg != 0 && c.pointee.cr4 & CR4.pae != 0 && c.pointee.msr.efer & EFER.lma == 0
    }
}
