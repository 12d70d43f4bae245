// The kernel at work: what enters and leaves it, makes and takes down address spaces, and takes turns.
#define _GNU_SOURCE
#include "bench.h"
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// Into the kernel and out.
bool getppid_calls(void)
{
    pid_t parent = getppid();
    for (int i = 0; i < 300000; i++)
        if (syscall(SYS_getppid) != parent) return false;
    return true;
}

// Address spaces made and taken down.
bool forks(void)
{
    for (int i = 0; i < 300; i++) {
        pid_t child = fork();
        if (child == 0) _exit(7);
        int status;
        if (waitpid(child, &status, 0) != child || status != 7 << 8) return false;
    }
    return true;
}

// Page faults.
bool faults(void)
{
    enum { SIZE = 32 << 20 };
    for (int round = 0; round < 8; round++) {
        uint8_t *base = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(base, SIZE, MADV_NOHUGEPAGE);
        for (int i = 0; i < SIZE; i += 4096) base[i] = 1;
        munmap(base, SIZE);
    }
    return true;
}

// Two processes in turn.
bool pipes(void)
{
    int there[2], back[2];
    char byte = 1;
    if (pipe(there) || pipe(back)) return false;
    pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1) {
        }
        _exit(0);
    }
    close(there[0]);
    for (int i = 0; i < 20000; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return false;
    close(there[1]);
    return waitpid(child, NULL, 0) == child;
}

// A program started, run and waited for: this one, told to end at once.
bool execs(void)
{
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "guest-bench", "--nothing", NULL);
            _exit(1);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0) return false;
    }
    return true;
}

// Two threads in turn.
static _Atomic uint32_t turn;
static void take_turns(uint32_t mine)
{
    for (int i = 0; i < 20000; i++) {
        while (atomic_load(&turn) != mine) syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, !mine, NULL, NULL, 0);
        atomic_store(&turn, !mine);
        syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}
static void *other_thread(void *nothing)
{
    take_turns(1);
    return nothing;
}
bool futexes(void)
{
    pthread_t other;
    if (pthread_create(&other, NULL, other_thread, NULL) != 0) return false;
    take_turns(0);
    return pthread_join(other, NULL) == 0;
}

// A handler entered and left.
static volatile int delivered;
static void deliver(int number) { delivered += number == SIGUSR1; }
bool signals(void)
{
    enum { COUNT = 60000 };
    struct sigaction action = {.sa_handler = deliver};
    if (sigaction(SIGUSR1, &action, NULL) < 0) return false;
    pid_t self = getpid();
    delivered = 0;
    for (int i = 0; i < COUNT; i++) kill(self, SIGUSR1);
    return delivered == COUNT;
}
