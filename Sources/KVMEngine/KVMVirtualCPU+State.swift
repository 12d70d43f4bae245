import CLinux
import Linux
import VMM

// All of a CPU, in and out of the kernel. The kernel checks what it is given; a state that it refuses is an error.
extension KVMVirtualCPU {
    func readState() throws -> CPUState {
        var state = CPUState()
        try takeNMI()
        try readRegisters(&state)
        try readSystemRegisters(&state)
        try readExtendedState(&state)
        try readModelSpecificRegisters(&state)
        try readEvents(&state)
        state.isHalted = engine.localAPIC == nil ? isHalted : try isHaltedInKernel()
        state.clockNanoseconds = try engine.clockNanoseconds()
        return state
    }

    func writeState(_ state: CPUState) throws {
        try writeSystemRegisters(state)
        if let nanoseconds = state.clockNanoseconds { try engine.setClock(nanoseconds: nanoseconds) }
        try writeExtendedState(state)
        try writeModelSpecificRegisters(state)
        if engine.localAPIC != nil {
            try writeLocalAPIC(localAPIC(of: state))
            try setHaltedInKernel(state.isHalted)
        }
        try writeRegisters(state)
        try writeEvents(state)
        isHalted = engine.localAPIC == nil && state.isHalted
        interruptsEnabled = state.rflags & 1 << 9 != 0
        // Until the kernel has looked at the new state: it opens a window if it can, but looks at no halted CPU.
        canInject = engine.localAPIC != nil && state.isHalted && interruptsEnabled && localAPIC(of: state).passesExternal
        isCompleting = false
        // Read by the kernel at each entry.
        area.pointee.cr8 = state.cr8
    }

    /// What a state says of the local APIC: nothing means that firmware has left it so.
    private func localAPIC(of state: CPUState) -> LocalAPICState {
        if let apic = state.localAPIC { return apic }
        var apic = LocalAPICState.virtualWire
        apic[LocalAPICState.taskPriority] = UInt32(truncatingIfNeeded: state.cr8 & 0xF) << 4
        return apic
    }

    // MARK: General registers

    private func readRegisters(_ state: inout CPUState) throws(KVMError) {
        var r = kvm_regs()
        try kvm("KVM_GET_REGS", descriptor.raw, clinux_kvm_get_regs, &r)
        state.registers = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi,
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
        ]
        state.rip = r.rip
        state.rflags = r.rflags
    }

    private func writeRegisters(_ state: CPUState) throws(KVMError) {
        var r = kvm_regs()
        r.rax = state[.rax]
        r.rcx = state[.rcx]
        r.rdx = state[.rdx]
        r.rbx = state[.rbx]
        r.rsp = state[.rsp]
        r.rbp = state[.rbp]
        r.rsi = state[.rsi]
        r.rdi = state[.rdi]
        r.r8 = state[.r8]
        r.r9 = state[.r9]
        r.r10 = state[.r10]
        r.r11 = state[.r11]
        r.r12 = state[.r12]
        r.r13 = state[.r13]
        r.r14 = state[.r14]
        r.r15 = state[.r15]
        r.rip = state.rip
        r.rflags = state.rflags
        try kvm("KVM_SET_REGS", descriptor.raw, clinux_kvm_set_regs, &r)
    }

    // MARK: Segments, control and debug registers

    private func readSystemRegisters(_ state: inout CPUState) throws(KVMError) {
        var s = kvm_sregs()
        try kvm("KVM_GET_SREGS", descriptor.raw, clinux_kvm_get_sregs, &s)
        state.es = SegmentRegister(s.es)
        state.cs = SegmentRegister(s.cs)
        state.ss = SegmentRegister(s.ss)
        state.ds = SegmentRegister(s.ds)
        state.fs = SegmentRegister(s.fs)
        state.gs = SegmentRegister(s.gs)
        state.ldtr = SegmentRegister(s.ldt)
        state.tr = SegmentRegister(s.tr)
        state.gdtr = DescriptorTableRegister(base: s.gdt.base, limit: s.gdt.limit)
        state.idtr = DescriptorTableRegister(base: s.idt.base, limit: s.idt.limit)
        state.cr0 = s.cr0
        state.cr2 = s.cr2
        state.cr3 = s.cr3
        state.cr4 = s.cr4
        state.cr8 = s.cr8
        state.msr.efer = s.efer
        if engine.localAPIC != nil { state.localAPIC = try readLocalAPIC(base: s.apic_base) }
        if engine.hasPageDirectoryPointers && Self.hasPageDirectoryPointers(s) {
            var wide = kvm_sregs2()
            try kvm("KVM_GET_SREGS2", descriptor.raw, clinux_kvm_get_sregs2, &wide)
            let entries = wide.pdptrs
            if wide.flags & Self.pointersValid != 0 {
                state.pageDirectoryPointers = [entries.0, entries.1, entries.2, entries.3]
            }
        }

        var d = kvm_debugregs()
        try kvm("KVM_GET_DEBUGREGS", descriptor.raw, clinux_kvm_get_debugregs, &d)
        state.dr = [d.db.0, d.db.1, d.db.2, d.db.3]
        state.dr6 = d.dr6
        state.dr7 = d.dr7
    }

    private func writeSystemRegisters(_ state: CPUState) throws(KVMError) {
        var s = kvm_sregs()
        s.es = kvm_segment(state.es)
        s.cs = kvm_segment(state.cs)
        s.ss = kvm_segment(state.ss)
        s.ds = kvm_segment(state.ds)
        s.fs = kvm_segment(state.fs)
        s.gs = kvm_segment(state.gs)
        s.ldt = kvm_segment(state.ldtr)
        s.tr = kvm_segment(state.tr)
        s.gdt = kvm_dtable(base: state.gdtr.base, limit: state.gdtr.limit, padding: (0, 0, 0))
        s.idt = kvm_dtable(base: state.idtr.base, limit: state.idtr.limit, padding: (0, 0, 0))
        s.cr0 = state.cr0
        s.cr2 = state.cr2
        s.cr3 = state.cr3
        s.cr4 = state.cr4
        s.cr8 = state.cr8
        s.efer = state.msr.efer
        // Disabled where there is none: so the kernel leaves CPUID's APIC bit clear.
        s.apic_base = engine.localAPIC == nil ? CPUPolicy.apicBaseValue : localAPIC(of: state).base
        try kvm("KVM_SET_SREGS", descriptor.raw, clinux_kvm_set_sregs, &s)
        // That has read the entries from memory, where the guest may have changed them since it loaded CR3.
        if let entries = state.pageDirectoryPointers, entries.count == 4, engine.hasPageDirectoryPointers,
            Self.hasPageDirectoryPointers(s)
        {
            var wide = kvm_sregs2()
            try kvm("KVM_GET_SREGS2", descriptor.raw, clinux_kvm_get_sregs2, &wide)
            wide.flags |= Self.pointersValid
            wide.pdptrs = (entries[0], entries[1], entries[2], entries[3])
            try kvm("KVM_SET_SREGS2", descriptor.raw, clinux_kvm_set_sregs2, &wide)
        }

        var d = kvm_debugregs()
        let dr = state.dr
        if dr.count >= 4 { d.db = (dr[0], dr[1], dr[2], dr[3]) }
        d.dr6 = state.dr6
        d.dr7 = state.dr7
        try kvm("KVM_SET_DEBUGREGS", descriptor.raw, clinux_kvm_set_debugregs, &d)
    }

    /// KVM_SREGS2_FLAGS_PDPTRS_VALID
    private static let pointersValid: UInt64 = 1

    /// PAE paging outside of long mode, whose top entries are registers.
    private static func hasPageDirectoryPointers(_ s: kvm_sregs) -> Bool {
        s.cr0 & CR0.pg != 0 && s.cr4 & CR4.pae != 0 && s.efer & EFER.lma == 0
    }

    // MARK: x87, SSE and AVX

    /// What a state may hold: what the guest may enable, and what a KVM that shows more than it is told lets it enable.
    private var components: UInt64 { wiring.policy.xcr0Mask | HostCPU.current.xcr0 & 7 | 3 }

    private func readExtendedState(_ state: inout CPUState) throws(KVMError) {
        var buffer = kvm_xsave()
        try kvm("KVM_GET_XSAVE", descriptor.raw, clinux_kvm_get_xsave, &buffer)
        let size = max(state.xsave.count, Int(wiring.policy.xsaveAreaSize(wiring.policy.xcr0Mask)))
        state.xsave = withUnsafeBytes(of: &buffer) { Array($0.prefix(size)) }
        // The kernel leaves notes of its own where software may (SDM Vol. 1, 10.5.1).
        for byte in 464..<512 { state.xsave[byte] = 0 }
        // XSTATE_BV, without components that a guest cannot have (the host's protection keys).
        for byte in 0..<8 { state.xsave[512 + byte] &= UInt8(truncatingIfNeeded: components >> UInt64(byte * 8)) }

        guard HostCPU.current.xcr0 != 0 else { return }
        var registers = kvm_xcrs()
        try kvm("KVM_GET_XCRS", descriptor.raw, clinux_kvm_get_xcrs, &registers)
        withUnsafeBytes(of: &registers.xcrs) { area in
            for entry in area.bindMemory(to: kvm_xcr.self).prefix(Int(registers.nr_xcrs)) where entry.xcr == 0 {
                state.xcr0 = entry.value
            }
        }
    }

    private func writeExtendedState(_ state: CPUState) throws(KVMError) {
        var buffer = kvm_xsave()
        withUnsafeMutableBytes(of: &buffer) { area in
            area.copyBytes(from: state.xsave.prefix(area.count))
            // XSTATE_BV: what this guest does not have is not there; a compacted image is none of ours.
            let present = area.loadUnaligned(fromByteOffset: 512, as: UInt64.self)
            area.storeBytes(of: present & components, toByteOffset: 512, as: UInt64.self)
            area.storeBytes(of: 0, toByteOffset: 520, as: UInt64.self)
        }
        if HostCPU.current.xcr0 != 0 {
            var registers = kvm_xcrs()
            registers.nr_xcrs = 1
            registers.xcrs.0 = kvm_xcr(xcr: 0, reserved: 0, value: state.xcr0)
            try kvm("KVM_SET_XCRS", descriptor.raw, clinux_kvm_set_xcrs, &registers)
        }
        try kvm("KVM_SET_XSAVE", descriptor.raw, clinux_kvm_set_xsave, &buffer)
    }

    // MARK: Model-specific registers

    /// Those that the kernel keeps, and where they are in our state.
    private var kernelRegisters: [(index: UInt32, path: WritableKeyPath<ModelSpecificRegisters, UInt64>)] {
        var list: [(UInt32, WritableKeyPath<ModelSpecificRegisters, UInt64>)] = [
            (MSRIndex.star, \.star), (MSRIndex.lstar, \.lstar), (MSRIndex.cstar, \.cstar), (MSRIndex.sfmask, \.sfmask),
            (MSRIndex.kernelGSBase, \.kernelGSBase), (MSRIndex.sysenterCS, \.sysenterCS),
            (MSRIndex.sysenterESP, \.sysenterESP), (MSRIndex.sysenterEIP, \.sysenterEIP), (MSRIndex.pat, \.pat),
            (MSRIndex.kvmSystemTime, \.kvmSystemTime),
            (MSRIndex.kvmWallClock, \.kvmWallClock),
        ]
        let features = wiring.policy.features
        if features.contains(.rdtscp) || features.contains(.rdpid) { list.append((MSRIndex.tscAux, \.tscAux)) }
        return list
    }

    private func readModelSpecificRegisters(_ state: inout CPUState) throws(KVMError) {
        state.msr.miscEnable = tableMSRs.miscEnable
        state.msr.memoryTypes = tableMSRs.memoryTypes
        let registers = kernelRegisters
        let list = Counted(registers.map { kvm_msr_entry(index: $0.index, reserved: 0, data: 0) })
        let count = try kvm("KVM_GET_MSRS", descriptor.raw, clinux_kvm_get_msrs, list.address)
        guard count == registers.count else { throw .missingCapability(Self.name(registers, count)) }
        for (position, register) in registers.enumerated() { state.msr[keyPath: register.path] = list[position].data }
        if state.msr.kvmWallClock == 0 { state.msr.kvmWallClock = tableMSRs.kvmWallClock }

        if hasTSCOffset {
            state.msr.tscOffset = try tscOffset(clinux_kvm_get_device_attr, 0)
        } else {
            let one = Counted([kvm_msr_entry(index: MSRIndex.tsc, reserved: 0, data: 0)])
            try kvm("KVM_GET_MSRS", descriptor.raw, clinux_kvm_get_msrs, one.address)
            state.msr.tscOffset = one[0].data &- clinux_rdtsc()
        }
    }

    private func writeModelSpecificRegisters(_ state: CPUState) throws(KVMError) {
        tableMSRs = state.msr
        let registers = kernelRegisters
        // Writing the wall clock's register is an order to write the time into the guest's memory. It was carried
        // out when the guest gave it; 0 makes the kernel forget it.
        var msrs = state.msr
        msrs.kvmWallClock = 0
        let list = Counted(
            registers.map { kvm_msr_entry(index: $0.index, reserved: 0, data: msrs[keyPath: $0.path]) })
        let count = try kvm("KVM_SET_MSRS", descriptor.raw, clinux_kvm_set_msrs, list.address)
        guard count == registers.count else { throw .missingCapability(Self.name(registers, count)) }

        if hasTSCOffset {
            _ = try tscOffset(clinux_kvm_set_device_attr, state.msr.tscOffset)
        } else {
            let now = clinux_rdtsc() &+ state.msr.tscOffset
            let one = Counted([kvm_msr_entry(index: MSRIndex.tsc, reserved: 0, data: now)])
            try kvm("KVM_SET_MSRS", descriptor.raw, clinux_kvm_set_msrs, one.address)
        }
    }

    /// Which register the kernel stopped at.
    private static func name(
        _ registers: [(index: UInt32, path: WritableKeyPath<ModelSpecificRegisters, UInt64>)], _ count: CInt
    ) -> String {
        let position = Int(count)
        let index = registers.indices.contains(position) ? registers[position].index : 0
        return "model-specific register 0x\(String(index, radix: 16)) with this value"
    }

    /// Reads or writes the distance between the guest's and the host's time-stamp counter.
    private func tscOffset(_ request: UInt, _ value: UInt64) throws(KVMError) -> UInt64 {
        var offset = value
        try withUnsafeMutablePointer(to: &offset) { pointer throws(KVMError) in
            var attribute = Self.tscOffsetAttribute
            attribute.addr = UInt64(UInt(bitPattern: pointer))
            try kvm("KVM_VCPU_TSC_OFFSET", descriptor.raw, request, &attribute)
        }
        return offset
    }

    private static var tscOffsetAttribute: kvm_device_attr {
        kvm_device_attr(flags: 0, group: UInt32(KVM_VCPU_TSC_CTRL), attr: UInt64(KVM_VCPU_TSC_OFFSET), addr: 0)
    }

    /// Since Linux 5.16; before, the counter itself is read and written, which drifts by the time that takes.
    static func supportsTSCOffset(_ cpu: CInt) -> Bool {
        var attribute = tscOffsetAttribute
        return withUnsafeMutablePointer(to: &attribute) {
            clinux_ioctl(cpu, clinux_kvm_has_device_attr, UInt(bitPattern: $0)) == 0
        }
    }

    // MARK: Events

    private func readEvents(_ state: inout CPUState) throws(KVMError) {
        var e = kvm_vcpu_events()
        try kvm("KVM_GET_VCPU_EVENTS", descriptor.raw, clinux_kvm_get_vcpu_events, &e)
        state.interruptShadow = e.interrupt.shadow != 0
        // AMD's CPUs do not know which of the two it is, and the kernel then names both.
        state.stackShadow = e.interrupt.shadow == KVM_X86_SHADOW_INT_MOV_SS
        state.nmiBlocked = e.nmi.masked != 0
        state.nmiPending = e.nmi.pending != 0 || e.nmi.injected != 0
        // A software interrupt is left out: rip still points at its instruction, which runs again. So are #BP and #OF.
        if e.interrupt.injected != 0, e.interrupt.soft == 0 {
            state.pendingEvent = PendingEvent(vector: e.interrupt.nr)
        } else if e.exception.injected != 0, e.exception.nr != 3, e.exception.nr != 4 {
            state.pendingEvent = PendingEvent(
                vector: e.exception.nr, errorCode: e.exception.has_error_code != 0 ? e.exception.error_code : nil)
        }
    }

    private func writeEvents(_ state: CPUState) throws(KVMError) {
        var e = kvm_vcpu_events()
        e.flags = UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW)
        let kind = state.stackShadow ? KVM_X86_SHADOW_INT_MOV_SS : KVM_X86_SHADOW_INT_STI
        e.interrupt.shadow = state.interruptShadow ? UInt8(kind) : 0
        e.nmi.masked = state.nmiBlocked ? 1 : 0
        e.nmi.pending = state.nmiPending ? 1 : 0
        if let event = state.pendingEvent {
            if let code = event.errorCode {
                e.exception.injected = 1
                e.exception.nr = event.vector
                e.exception.has_error_code = 1
                e.exception.error_code = code
            } else {
                // Both kinds are delivered alike without an error code.
                e.interrupt.injected = 1
                e.interrupt.nr = event.vector
            }
        }
        try kvm("KVM_SET_VCPU_EVENTS", descriptor.raw, clinux_kvm_set_vcpu_events, &e)
    }
}

extension SegmentRegister {
    fileprivate init(_ s: kvm_segment) {
        var attributes = UInt32(s.type & 0xF) | UInt32(s.s & 1) << 4 | UInt32(s.dpl & 3) << 5
        attributes |= UInt32(s.present & 1) << 7 | UInt32(s.avl & 1) << 12 | UInt32(s.l & 1) << 13
        attributes |= UInt32(s.db & 1) << 14 | UInt32(s.g & 1) << 15 | UInt32(s.unusable & 1) << 16
        self.init(selector: s.selector, attributes: attributes, limit: s.limit, base: s.base)
    }
}

extension kvm_segment {
    fileprivate init(_ s: SegmentRegister) {
        func bit(_ number: UInt32) -> UInt8 { UInt8(truncatingIfNeeded: s.attributes >> number & 1) }
        self.init(
            base: s.base, limit: s.limit, selector: s.selector, type: UInt8(truncatingIfNeeded: s.type),
            present: bit(7), dpl: UInt8(truncatingIfNeeded: s.privilegeLevel), db: bit(14), s: bit(4), l: bit(13),
            g: bit(15), avl: bit(12), unusable: bit(16), padding: 0)
    }
}
