// What Swift cannot import: variadic functions, macros with casts, unions. No logic.
#ifndef CLINUX_H
#define CLINUX_H

// Without _GNU_SOURCE: Swift's own Glibc module is built without it, and the two would disagree about fd_set,
// which is an error as soon as one compilation sees both.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "CLinuxFile.h"
#include "CLinuxKVM.h"
#include "CLinuxHost.h"
#include "CLinuxProcess.h"
#include "CLinuxRing.h"

static inline int clinux_open(const char *path, int flags, unsigned mode) { return open(path, flags, mode); }
static inline int clinux_ioctl(int fd, unsigned long request, uintptr_t argument) { return ioctl(fd, request, argument); }
static inline int clinux_memfd_create(const char *name, unsigned flags) { return (int)syscall(SYS_memfd_create, name, flags); }
// Never waits once the host has booted.
static inline ssize_t clinux_getrandom(void *buffer, size_t count) { return syscall(SYS_getrandom, buffer, count, 0); }
// Names the calling thread; the kernel keeps 15 bytes.
static inline int clinux_set_thread_name(const char *name) { return prctl(PR_SET_NAME, name); }
static inline int clinux_tgkill(int pid, int tid, int signal) { return (int)syscall(SYS_tgkill, pid, tid, signal); }
// preadv2(2) with RWF_NOWAIT: what is in memory, or EAGAIN. glibc declares it for _GNU_SOURCE only.
static inline ssize_t clinux_preadv_nowait(int fd, const void *vectors, int count, int64_t offset) {
    return syscall(SYS_preadv2, fd, vectors, (unsigned long)count, offset, 0L, 8);
}
static inline uint64_t clinux_rdtsc(void) { return __builtin_ia32_rdtsc(); }
static inline int clinux_gettid(void) { return (int)syscall(SYS_gettid); }

// Points this thread's gs segment base at `base` (arch_prctl ARCH_SET_GS).
static inline int clinux_set_gs_base(uint64_t base) { return (int)syscall(SYS_arch_prctl, 0x1001, base); }
// The same thread's gs base; 0 when it cannot be read (ARCH_GET_GS). Safe in signal handlers.
static inline uint64_t clinux_get_gs_base(void) {
    uint64_t base = 0;
    return syscall(SYS_arch_prctl, 0x1004, &base) == 0 ? base : 0;
}

#endif
