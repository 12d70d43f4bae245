// The CPU's own questions and KVM's interface. No logic.
#ifndef CLINUX_KVM_H
#define CLINUX_KVM_H

#include <cpuid.h>
#include <linux/kvm.h>
#include <stdint.h>

struct clinux_cpuid { uint32_t eax, ebx, ecx, edx; };

static inline struct clinux_cpuid clinux_cpuid(uint32_t leaf, uint32_t subleaf) {
    struct clinux_cpuid r;
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    return r;
}

// XCR0; only where CPUID.1:ECX.OSXSAVE is set.
static inline uint64_t clinux_xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

#endif
