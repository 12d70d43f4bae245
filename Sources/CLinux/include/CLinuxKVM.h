// The CPU's own questions and KVM's interface. No logic.
#ifndef CLINUX_KVM_H
#define CLINUX_KVM_H

#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>

struct clinux_cpuid { uint32_t eax, ebx, ecx, edx; };

static inline struct clinux_cpuid clinux_cpuid(uint32_t leaf, uint32_t subleaf) {
    struct clinux_cpuid r;
    // Not by cpuid.h: it belongs to a clang module that is built without _GNU_SOURCE and has its own fd_set.
    __asm__("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "0"(leaf), "2"(subleaf));
    return r;
}

// XCR0; only where CPUID.1:ECX.OSXSAVE is set.
static inline uint64_t clinux_xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

// Request numbers: macros with sizes in them.
static const unsigned long clinux_kvm_get_api_version = KVM_GET_API_VERSION;
static const unsigned long clinux_kvm_create_vm = KVM_CREATE_VM;
static const unsigned long clinux_kvm_check_extension = KVM_CHECK_EXTENSION;
static const unsigned long clinux_kvm_get_vcpu_mmap_size = KVM_GET_VCPU_MMAP_SIZE;
static const unsigned long clinux_kvm_create_vcpu = KVM_CREATE_VCPU;
static const unsigned long clinux_kvm_run = KVM_RUN;
static const unsigned long clinux_kvm_nmi = KVM_NMI;
static const unsigned long clinux_kvm_set_tss_addr = KVM_SET_TSS_ADDR;
static const unsigned long clinux_kvm_get_supported_cpuid = KVM_GET_SUPPORTED_CPUID;
static const unsigned long clinux_kvm_set_user_memory_region = KVM_SET_USER_MEMORY_REGION;
static const unsigned long clinux_kvm_set_identity_map_addr = KVM_SET_IDENTITY_MAP_ADDR;
static const unsigned long clinux_kvm_enable_cap = KVM_ENABLE_CAP;
static const unsigned long clinux_kvm_x86_set_msr_filter = KVM_X86_SET_MSR_FILTER;
static const unsigned long clinux_kvm_set_cpuid2 = KVM_SET_CPUID2;
static const unsigned long clinux_kvm_get_cpuid2 = KVM_GET_CPUID2;
static const unsigned long clinux_kvm_interrupt = KVM_INTERRUPT;
static const unsigned long clinux_kvm_get_regs = KVM_GET_REGS;
static const unsigned long clinux_kvm_set_regs = KVM_SET_REGS;
static const unsigned long clinux_kvm_get_sregs = KVM_GET_SREGS;
static const unsigned long clinux_kvm_set_sregs = KVM_SET_SREGS;
static const unsigned long clinux_kvm_get_sregs2 = KVM_GET_SREGS2;
static const unsigned long clinux_kvm_set_sregs2 = KVM_SET_SREGS2;
static const unsigned long clinux_kvm_get_clock = KVM_GET_CLOCK;
static const unsigned long clinux_kvm_set_clock = KVM_SET_CLOCK;
static const unsigned long clinux_kvm_get_xsave = KVM_GET_XSAVE;
static const unsigned long clinux_kvm_set_xsave = KVM_SET_XSAVE;
static const unsigned long clinux_kvm_get_xcrs = KVM_GET_XCRS;
static const unsigned long clinux_kvm_set_xcrs = KVM_SET_XCRS;
static const unsigned long clinux_kvm_get_msrs = KVM_GET_MSRS;
static const unsigned long clinux_kvm_set_msrs = KVM_SET_MSRS;
static const unsigned long clinux_kvm_get_debugregs = KVM_GET_DEBUGREGS;
static const unsigned long clinux_kvm_set_debugregs = KVM_SET_DEBUGREGS;
static const unsigned long clinux_kvm_get_vcpu_events = KVM_GET_VCPU_EVENTS;
static const unsigned long clinux_kvm_set_vcpu_events = KVM_SET_VCPU_EVENTS;
static const unsigned long clinux_kvm_signal_msi = KVM_SIGNAL_MSI;
static const unsigned long clinux_kvm_set_gsi_routing = KVM_SET_GSI_ROUTING;
static const unsigned long clinux_kvm_get_lapic = KVM_GET_LAPIC;
static const unsigned long clinux_kvm_set_lapic = KVM_SET_LAPIC;
static const unsigned long clinux_kvm_get_mp_state = KVM_GET_MP_STATE;
static const unsigned long clinux_kvm_set_mp_state = KVM_SET_MP_STATE;
static const unsigned long clinux_kvm_has_device_attr = KVM_HAS_DEVICE_ATTR;
static const unsigned long clinux_kvm_get_device_attr = KVM_GET_DEVICE_ATTR;
static const unsigned long clinux_kvm_set_device_attr = KVM_SET_DEVICE_ATTR;

// Since Linux 6.11's headers.
static const int clinux_kvm_cap_apic_bus_cycles = 237;

// The members of kvm_run's union, copied out, so that nobody copies the union.
struct clinux_kvm_io { uint8_t direction, size; uint16_t port; uint32_t count; uint64_t data_offset; };
struct clinux_kvm_mmio { uint64_t address, data; uint32_t length; uint8_t is_write; };
struct clinux_kvm_msr { uint32_t reason, index; uint64_t data; };
struct clinux_kvm_internal { uint32_t suberror, count; uint64_t data[16]; };

static inline struct clinux_kvm_io clinux_kvm_io(const struct kvm_run *run) {
    return (struct clinux_kvm_io){run->io.direction, run->io.size, run->io.port, run->io.count, run->io.data_offset};
}
static inline struct clinux_kvm_mmio clinux_kvm_mmio(const struct kvm_run *run) {
    struct clinux_kvm_mmio m = {run->mmio.phys_addr, 0, run->mmio.len, run->mmio.is_write};
    __builtin_memcpy(&m.data, run->mmio.data, sizeof m.data);
    return m;
}
static inline void clinux_kvm_mmio_answer(struct kvm_run *run, uint64_t data) {
    __builtin_memcpy(run->mmio.data, &data, sizeof data);
}
static inline struct clinux_kvm_msr clinux_kvm_msr(const struct kvm_run *run) {
    return (struct clinux_kvm_msr){run->msr.reason, run->msr.index, run->msr.data};
}
static inline void clinux_kvm_msr_answer(struct kvm_run *run, uint8_t error, uint64_t data) {
    run->msr.error = error;
    run->msr.data = data;
}
static inline struct clinux_kvm_internal clinux_kvm_internal(const struct kvm_run *run) {
    struct clinux_kvm_internal i = {run->internal.suberror, run->internal.ndata, {0}};
    __builtin_memcpy(i.data, run->internal.data, sizeof i.data);
    return i;
}
static inline uint64_t clinux_kvm_entry_failure(const struct kvm_run *run) {
    return run->fail_entry.hardware_entry_failure_reason;
}

static inline uint8_t clinux_kvm_ended_vector(const struct kvm_run *run) { return run->eoi.vector; }

// kvm_irq_routing_entry for a pin whose interrupts are messages, without its union, which Swift's generic code does not copy.
struct clinux_kvm_route {
    uint32_t pin, type, flags, padding, address_low, address_high, data, rest[5];
};
_Static_assert(sizeof(struct clinux_kvm_route) == sizeof(struct kvm_irq_routing_entry), "an entry of its own size");
_Static_assert(
    __builtin_offsetof(struct clinux_kvm_route, data) == __builtin_offsetof(struct kvm_irq_routing_entry, u.msi.data), "a message in its place");

static inline int clinux_sigrtmin(void) { return SIGRTMIN; }

// Other threads write this byte while the vCPU's thread and the kernel read it.
static inline void clinux_kvm_set_immediate_exit(struct kvm_run *run, uint8_t value) {
    __atomic_store_n(&run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

#endif
