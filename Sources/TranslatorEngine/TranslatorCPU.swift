package import VMM

/// A virtual CPU of the translator engine.
package final class TranslatorCPU: @unchecked Sendable {
    /// Owned; allocated with the TLB and jump caches behind it.
    package let context: UnsafeMutablePointer<Context>
    package let memory: GuestMemory
    package let ports: PortBus
    package let mmio: MMIOBus
    package let interrupts: any InterruptSource
    package let policy: CPUPolicy

    package init(wiring: Wiring) {
        memory = wiring.memory
        ports = wiring.ports
        mmio = wiring.mmio
        interrupts = wiring.interrupts
        policy = wiring.policy
        context = .allocate(capacity: 1)
        context.initialize(to: Context())
    }
}

// What the system half (System/, MMU/PageWalk.swift) may ask of the translated half.
extension TranslatorCPU {
    /// Forgets cached translations. `global`: those of global pages too (CR0, CR4.PGE/PAE/PSE..., not CR3).
    package func flushTLB(global: Bool) {}
    /// INVLPG.
    package func flushTLB(page linear: UInt64) {}
    /// CPL, CR0, CR4, EFER, CS.L/D, RFLAGS.AC or TF changed: blocks are keyed by mode.
    package func modeChanged() {}
    /// Loads guest memory at a linear address with the checks of an access at privilege `user`; up to 8 bytes, may cross a page.
    package func load(_ linear: UInt64, byteCount: Int, user: Bool) throws(GuestException) -> UInt64 { 0 }
    package func store(_ linear: UInt64, _ value: UInt64, byteCount: Int, user: Bool) throws(GuestException) {}
    /// The same for longer runs (XSAVE areas, string I/O); nothing is written if any page of it would fault.
    package func load(_ linear: UInt64, into buffer: UnsafeMutableRawBufferPointer, user: Bool) throws(GuestException) {}
    package func store(_ linear: UInt64, from buffer: UnsafeRawBufferPointer, user: Bool) throws(GuestException) {}
    /// Moves the guest's x87, SSE and AVX state between the host CPU and an XSAVE image of standard format
    /// (64-byte aligned, at least 832 bytes): `mask` says which components.
    package func saveExtendedState(to area: UnsafeMutableRawPointer, mask: UInt64) {}
    package func restoreExtendedState(from area: UnsafeRawPointer, mask: UInt64) {}
}
