import CLinux
import Linux
import VMM

// The local APIC that the kernel keeps for a CPU, and what follows from it: the CPU halts in the kernel.
extension KVMVirtualCPU {
    /// KVM_MP_STATE_RUNNABLE and KVM_MP_STATE_HALTED.
    private static let runnable: UInt32 = 0
    private static let halted: UInt32 = 3

    func isHaltedInKernel() throws(KVMError) -> Bool {
        var state = kvm_mp_state()
        try kvm("KVM_GET_MP_STATE", descriptor.raw, clinux_kvm_get_mp_state, &state)
        return state.mp_state == Self.halted
    }

    func setHaltedInKernel(_ isHalted: Bool) throws(KVMError) {
        var state = kvm_mp_state(mp_state: isHalted ? Self.halted : Self.runnable)
        try kvm("KVM_SET_MP_STATE", descriptor.raw, clinux_kvm_set_mp_state, &state)
    }

    /// Tells the I/O APIC of an EOI. The kernel does so even where the guest wants to tell it by itself.
    func interruptEnded(_ apics: KVMLocalAPICs) throws(KVMError) {
        let vector = clinux_kvm_ended_vector(area)
        if !(try readRegisters().suppressesBroadcasts) { apics.interruptEnded(vector) }
    }

    /// - Parameter base: IA32_APIC_BASE, which KVM_GET_SREGS has.
    func readLocalAPIC(base: UInt64) throws(KVMError) -> LocalAPICState {
        var state = try readRegisters()
        state.base = base
        guard engine.localAPIC?.features.hasDeadlines == true else { return state }
        let one = Counted([kvm_msr_entry(index: MSRIndex.tscDeadline, reserved: 0, data: 0)])
        try kvm("KVM_GET_MSRS", descriptor.raw, clinux_kvm_get_msrs, one.address)
        state.deadline = one[0].data
        return state
    }

    private func readRegisters() throws(KVMError) -> LocalAPICState {
        var page = kvm_lapic_state()
        try kvm("KVM_GET_LAPIC", descriptor.raw, clinux_kvm_get_lapic, &page)
        return LocalAPICState(base: 0, registers: withUnsafeBytes(of: &page) { Array($0) }, deadline: 0)
    }

    /// The mode must be there already (KVM_SET_SREGS), and the time-stamp counter: the timer goes on by it from now.
    func writeLocalAPIC(_ state: LocalAPICState) throws(KVMError) {
        var page = kvm_lapic_state()
        withUnsafeMutableBytes(of: &page) { $0.copyBytes(from: state.registers.prefix($0.count)) }
        try kvm("KVM_SET_LAPIC", descriptor.raw, clinux_kvm_set_lapic, &page)
        guard engine.localAPIC?.features.hasDeadlines == true else { return }
        let one = Counted([kvm_msr_entry(index: MSRIndex.tscDeadline, reserved: 0, data: state.deadline)])
        try kvm("KVM_SET_MSRS", descriptor.raw, clinux_kvm_set_msrs, one.address)
    }
}
