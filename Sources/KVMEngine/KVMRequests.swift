import CLinux

// For who filters system calls: all that this engine asks of the kernel.
extension KVMEngine {
    /// The requests of a machine that runs, is paused or is reset. The most frequent comes first.
    public static let runningRequests: [UInt32] = [
        clinux_kvm_run, clinux_kvm_signal_msi, clinux_kvm_interrupt, clinux_kvm_nmi, clinux_kvm_set_gsi_routing,
        clinux_kvm_get_regs, clinux_kvm_set_regs, clinux_kvm_get_sregs, clinux_kvm_set_sregs, clinux_kvm_get_sregs2, clinux_kvm_set_sregs2,
        clinux_kvm_get_xsave, clinux_kvm_set_xsave, clinux_kvm_get_xcrs, clinux_kvm_set_xcrs, clinux_kvm_get_msrs, clinux_kvm_set_msrs,
        clinux_kvm_get_debugregs, clinux_kvm_set_debugregs, clinux_kvm_get_vcpu_events, clinux_kvm_set_vcpu_events,
        clinux_kvm_get_lapic, clinux_kvm_set_lapic, clinux_kvm_get_mp_state, clinux_kvm_set_mp_state, clinux_kvm_get_clock,
        clinux_kvm_set_clock, clinux_kvm_get_device_attr, clinux_kvm_set_device_attr,
    ].map { UInt32(truncatingIfNeeded: $0) }

    /// The requests of one that is built, which ends with a state for its CPU.
    public static let buildingRequests: [UInt32] =
        runningRequests
        + [
            clinux_kvm_get_api_version, clinux_kvm_create_vm, clinux_kvm_check_extension, clinux_kvm_get_vcpu_mmap_size,
            clinux_kvm_create_vcpu, clinux_kvm_set_tss_addr, clinux_kvm_get_supported_cpuid, clinux_kvm_set_user_memory_region,
            clinux_kvm_set_identity_map_addr, clinux_kvm_enable_cap, clinux_kvm_x86_set_msr_filter, clinux_kvm_set_cpuid2,
            clinux_kvm_get_cpuid2, clinux_kvm_has_device_attr,
        ].map { UInt32(truncatingIfNeeded: $0) }
}
