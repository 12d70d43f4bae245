// What Swift cannot import: variadic functions, macros with casts, unions. No logic.
#ifndef CLINUX_H
#define CLINUX_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static inline int clinux_open(const char *path, int flags, unsigned mode) { return open(path, flags, mode); }
static inline int clinux_ioctl(int fd, unsigned long request, uintptr_t argument) { return ioctl(fd, request, argument); }
static inline int clinux_memfd_create(const char *name, unsigned flags) { return (int)syscall(SYS_memfd_create, name, flags); }
static inline int clinux_tgkill(int pid, int tid, int signal) { return (int)syscall(SYS_tgkill, pid, tid, signal); }
static inline int clinux_gettid(void) { return (int)syscall(SYS_gettid); }

#include "CLinuxKVM.h"

#endif
