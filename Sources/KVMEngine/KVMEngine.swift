import CLinux
import Glibc
public import Linux
import Synchronization
public import VMM

/// The `kvm` engine: guest code runs on the CPU's own virtualisation through `/dev/kvm`. One object per machine.
///
/// Interrupt controllers and timers are ours, not the kernel's: the machine looks the same on both engines and a
/// snapshot of one fits the other. Two things are the kernel's: the paravirtual clock, because it knows its own TSC scaling, and the local APICs,
/// whose every access would be an exit (`KVMLocalAPICs`).
public final class KVMEngine: Engine {
    public let name = "kvm"
    /// For `CPUPolicy`: what this kernel can give to guests.
    public let features: EngineFeatures
    /// `nil` where the kernel cannot have local APICs without the other interrupt controllers: then CPUs get the 8259 pair's interrupts alone.
    public var localAPICs: (any EngineLocalAPICs)? { localAPIC }
    let localAPIC: KVMLocalAPICs?

    private let device: FileDescriptor
    private let machine: KVMMachine
    private let runByteCount: Int
    /// Whether the policy's MSR table rules; otherwise (before Linux 5.10) the kernel's does.
    let filtersMSRs: Bool
    /// Whether the top entries of PAE paging can be read and written (Linux 5.14); else the kernel reads them from memory.
    let hasPageDirectoryPointers: Bool
    private let memory = Mutex<GuestMemory?>(nil)

    /// Opens `/dev/kvm` and makes an empty machine.
    /// - Parameter usesLocalAPICs: `false` for a machine as on a kernel that has none.
    public convenience init(usesLocalAPICs: Bool = true) throws(KVMError) {
        try self.init(device: try Self.open(), usesLocalAPICs: usesLocalAPICs)
    }

    /// Makes an empty machine.
    /// - Parameter device: `/dev/kvm`, opened for reading and writing.
    public init(device opened: consuming FileDescriptor, usesLocalAPICs: Bool = true) throws(KVMError) {
        device = opened
        let version = try kvm("KVM_GET_API_VERSION", device.raw, clinux_kvm_get_api_version)
        guard version == 12 else { throw .wrongVersion(version) }
        var reported = try supportedFeatures(device.raw)
        if !Self.showsVirtualisation { reported = reported.union(try forcedFeatures(device.raw)) }
        machine = KVMMachine(owning: try kvm("KVM_CREATE_VM", device.raw, clinux_kvm_create_vm))
        for (capability, name) in [
            (KVM_CAP_USER_MEMORY, "user memory"), (KVM_CAP_IMMEDIATE_EXIT, "immediate exit (Linux 4.12)"),
            (KVM_CAP_XSAVE, "XSAVE state"), (KVM_CAP_VCPU_EVENTS, "event state"),
            (KVM_CAP_DEBUGREGS, "debug registers"),
        ] {
            guard try Self.check(machine.raw, capability) > 0 else { throw .missingCapability(name) }
        }
        runByteCount = Int(
            try kvm("KVM_GET_VCPU_MMAP_SIZE", device.raw, clinux_kvm_get_vcpu_mmap_size))
        guard runByteCount >= MemoryLayout<kvm_run>.size else { throw .missingCapability("a run area of known size") }

        // Intel CPUs without unrestricted guest mode keep a TSS and an identity page table in guest-physical
        // memory, in the hole below 4 GB where no device is.
        if try Self.check(machine.raw, KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0 {
            var address: UInt64 = 0xFEFF_C000
            try kvm("KVM_SET_IDENTITY_MAP_ADDR", machine.raw, clinux_kvm_set_identity_map_addr, &address)
        }
        if try Self.check(machine.raw, KVM_CAP_SET_TSS_ADDR) > 0 {
            try kvm("KVM_SET_TSS_ADDR", machine.raw, clinux_kvm_set_tss_addr, 0xFEFF_D000)
        }
        localAPIC = usesLocalAPICs ? try KVMLocalAPICs(machine) : nil
        features = .kvm(reported: reported, apic: localAPIC?.features)
        filtersMSRs = try Self.filterMSRs(machine.raw, hasLocalAPICs: localAPIC != nil)
        hasPageDirectoryPointers = try Self.check(machine.raw, KVM_CAP_SREGS2) > 0
    }

    public func makeVirtualCPU(index: Int, wiring: Wiring) throws -> any VirtualCPU {
        try memory.withLock { mapped in
            guard mapped !== wiring.memory else { return }
            precondition(mapped == nil, "one machine has one memory")
            try map(wiring.memory)
            mapped = wiring.memory
        }
        let cpu = try kvm(
            "KVM_CREATE_VCPU", machine.raw, clinux_kvm_create_vcpu, UInt(index))
        return try KVMVirtualCPU(
            engine: self, descriptor: FileDescriptor(owning: cpu), runByteCount: runByteCount, wiring: wiring)
    }

    /// The paravirtual clock is the machine's, and the kernel's: what it says now.
    func clockNanoseconds() throws(KVMError) -> UInt64 {
        var data = kvm_clock_data()
        try kvm("KVM_GET_CLOCK", machine.raw, clinux_kvm_get_clock, &data)
        return data.clock
    }

    func setClock(nanoseconds: UInt64) throws(KVMError) {
        var data = kvm_clock_data()
        data.clock = nanoseconds
        try kvm("KVM_SET_CLOCK", machine.raw, clinux_kvm_set_clock, &data)
    }

    private func map(_ memory: GuestMemory) throws(KVMError) {
        for (slot, range) in memory.ranges.enumerated() {
            if range.isReadOnly, try Self.check(machine.raw, KVM_CAP_READONLY_MEM) == 0 {
                throw .missingCapability("read-only memory (Linux 3.7)")
            }
            // Writes to it come back as accesses to device memory.
            var region = kvm_userspace_memory_region(
                slot: UInt32(slot), flags: range.isReadOnly ? Self.readOnlyFlag : 0, guest_phys_addr: range.base, memory_size: range.byteCount,
                userspace_addr: UInt64(UInt(bitPattern: memory.hostBase)) + range.offset)
            try kvm("KVM_SET_USER_MEMORY_REGION", machine.raw, clinux_kvm_set_user_memory_region, &region)
        }
    }

    /// KVM_MEM_READONLY
    private static let readOnlyFlag: UInt32 = 1 << 1

    static func open() throws(KVMError) -> FileDescriptor {
        do throws(SystemError) {
            return try FileDescriptor(open: "/dev/kvm", flags: O_RDWR)
        } catch {
            throw .cannotOpen(error)
        }
    }

    static func check(_ machine: CInt, _ capability: CInt) throws(KVMError) -> CInt {
        try kvm("KVM_CHECK_EXTENSION", machine, clinux_kvm_check_extension, UInt(capability))
    }

    static func enable(_ machine: CInt, _ capability: CInt, _ argument: UInt64) throws(KVMError) {
        var request = kvm_enable_cap()
        request.cap = UInt32(capability)
        request.args.0 = argument
        try kvm("KVM_ENABLE_CAP", machine, clinux_kvm_enable_cap, &request)
    }

    /// Registers that hold the CPU's state stay with the kernel; all others come to us and the policy's table.
    private static let kernelMSRs: [(base: UInt32, count: UInt32)] = [
        (MSRIndex.tsc, 1), (MSRIndex.sysenterCS, 3), (MSRIndex.pat, 1), (MSRIndex.efer, 5), (MSRIndex.fsBase, 4),
        (MSRIndex.kvmWallClock, 2),
    ]
    /// Those of its local APICs. x2APIC mode's are never filtered.
    private static let localAPICMSRs: [(base: UInt32, count: UInt32)] = [(MSRIndex.apicBase, 1), (MSRIndex.tscDeadline, 1)]

    private static func filterMSRs(_ machine: CInt, hasLocalAPICs: Bool) throws(KVMError) -> Bool {
        guard try check(machine, KVM_CAP_X86_USER_SPACE_MSR) > 0, try check(machine, KVM_CAP_X86_MSR_FILTER) > 0
        else { return false }
        try enable(
            machine, KVM_CAP_X86_USER_SPACE_MSR,
            UInt64(KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER))

        // One bit per register, set for "the kernel's". The kernel copies it.
        var bitmap: UInt64 = ~0
        return try withUnsafeMutableBytes(of: &bitmap) { bytes throws(KVMError) in
            var filter = kvm_msr_filter()
            filter.flags = UInt32(KVM_MSR_FILTER_DEFAULT_DENY)
            withUnsafeMutableBytes(of: &filter.ranges) { area in
                let ranges = area.bindMemory(to: kvm_msr_filter_range.self)
                for (index, range) in (kernelMSRs + (hasLocalAPICs ? localAPICMSRs : [])).enumerated() {
                    ranges[index] = kvm_msr_filter_range(
                        flags: UInt32(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE), nmsrs: range.count,
                        base: range.base, bitmap: bytes.baseAddress?.assumingMemoryBound(to: UInt8.self))
                }
            }
            try kvm("KVM_X86_SET_MSR_FILTER", machine, clinux_kvm_x86_set_msr_filter, &filter)
            return true
        }
    }
}

extension KVMEngine {
    /// Whether `auto` takes this engine.
    public static var isUsable: Bool { whyNotUsable() == nil }

    /// Why `auto` does not take this engine, or `nil` when it does: the CPU shows virtualisation and `/dev/kvm` opens.
    ///
    /// Without either flag a `/dev/kvm` may still open: such a KVM emulates guest kernels, slowly and not
    /// completely. A user who asks for `kvm` by name gets it.
    public static func whyNotUsable() -> String? {
        guard showsVirtualisation else { return "the host's CPU shows neither vmx nor svm" }
        do throws(KVMError) {
            _ = try open()
            return nil
        } catch {
            return error.description
        }
    }

    /// VMX (SDM Vol. 2, CPUID.1:ECX) or SVM (APM Vol. 3, CPUID.0x80000001:ECX).
    public static var showsVirtualisation: Bool {
        clinux_cpuid(1, 0).ecx & 1 << 5 != 0
            || clinux_cpuid(0x8000_0000, 0).eax > 0x8000_0000 && clinux_cpuid(0x8000_0001, 0).ecx & 1 << 2 != 0
    }
}
