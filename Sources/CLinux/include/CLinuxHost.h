// The processor's own clock, futexes, epoll, and the terminal guard that crash handlers need.
#ifndef CLINUX_HOST_H
#define CLINUX_HOST_H

#include <linux/futex.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <syslog.h>
#include <unistd.h>

// The time-stamp counter, ordered against the loads and calls around it (SDM Vol. 2, RDTSC: LFENCE before and after).
static inline uint64_t clinux_ordered_tsc(void) {
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

// In a loop that waits for another processor.
static inline void clinux_relax(void) { __asm__ volatile("pause"); }

// Private futexes; both return what the system call returns.
static inline int clinux_futex_wait(void *word, uint32_t expected) {
    return (int)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}
static inline int clinux_futex_wake(void *word, int count) {
    return (int)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

// epoll_event is a packed union that Swift would have to take apart.
static inline int clinux_epoll_control(int epoll, int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data = {.fd = fd}};
    return epoll_ctl(epoll, operation, fd, &event);
}
// Fills `fds` and `events` with at most `capacity` (up to 16) ready descriptors.
static inline int clinux_epoll_wait(int epoll, int *fds, uint32_t *events, int capacity, int timeout_milliseconds) {
    struct epoll_event ready[16];
    int count = epoll_wait(epoll, ready, capacity < 16 ? capacity : 16, timeout_milliseconds);
    for (int i = 0; i < count; i++) {
        fds[i] = ready[i].data.fd;
        events[i] = ready[i].events;
    }
    return count;
}

// The terminal guard is C because the handlers of fatal signals run it: it may use only async-signal-safe calls.

// Remembers the attributes of terminal `fd` as those to restore. -1 and errno when it is not a terminal.
int clinux_terminal_guard(int fd);
// Puts the guarded terminal into raw mode (no echo, no signals, bytes as they come).
int clinux_terminal_raw(void);
// Puts the remembered attributes back, unless the terminal now belongs to another foreground job. Any thread, any
// signal handler; nothing happens without a guarded terminal.
void clinux_terminal_restore(void);
// Restores, and forgets the terminal.
void clinux_terminal_release(void);
// Makes signals that kill the process, and exit(), restore the terminal first. Handlers installed later win.
void clinux_terminal_guard_exits(void);

// syslog is variadic. The identity must be a literal: the library keeps the pointer.
static inline void clinux_openlog(const char *identity, int facility) { openlog(identity, LOG_PID | LOG_NDELAY, facility); }
static inline void clinux_syslog(int priority, const char *text) { syslog(priority, "%s", text); }

#endif
