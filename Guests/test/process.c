// Processes: fork, wait, exec, pipes, and what a tracer sees.
#include "check.h"
#include <poll.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/user.h>

TEST(fork_wait)
{
    int status;
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) _exit(i);
        CHECK(child > 0, "fork: %s", strerror(errno));
        EQUAL(waitpid(child, &status, 0), child);
        EQUAL(status, i << 8);
    }
    pid_t child = fork();
    if (child == 0) {
        raise(SIGKILL);
        _exit(0);
    }
    waitpid(child, &status, 0);
    EQUAL(status, SIGKILL);
}

TEST(many_children)
{
    enum { COUNT = 40 };
    volatile int *cells = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < COUNT; i++)
        if (fork() == 0) {
            cells[i] = i * i;
            _exit(0);
        }
    for (int i = 0; i < COUNT; i++) {
        int status = -1;
        CHECK(wait(&status) > 0 && status == 0, "child %d: status %#x", i, status);
    }
    for (int i = 0; i < COUNT; i++) EQUAL(cells[i], i * i);
}

TEST(pipe_megabytes)
{
    enum { TOTAL = 4 << 20 };
    int ends[2];
    CHECK(pipe(ends) == 0, "pipe");
    pid_t child = fork();
    static uint8_t buffer[7777];
    uint32_t state = 1;
    if (child == 0) {
        close(ends[0]);
        for (int sent = 0; sent < TOTAL;) {
            int count = TOTAL - sent < (int)sizeof buffer ? TOTAL - sent : (int)sizeof buffer;
            for (int i = 0; i < count; i++) buffer[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
            for (int done = 0; done < count;) done += (int)write(ends[1], buffer + done, (size_t)(count - done));
            sent += count;
        }
        _exit(0);
    }
    close(ends[1]);
    int total = 0;
    for (ssize_t count; (count = read(ends[0], buffer, sizeof buffer)) > 0; total += (int)count)
        for (ssize_t i = 0; i < count; i++) {
            uint8_t expected = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
            CHECK(buffer[i] == expected, "byte %d is %d, not %d", total + (int)i, buffer[i], expected);
        }
    EQUAL(total, TOTAL);
}

TEST(ping_pong)
{
    int there[2], back[2];
    CHECK(pipe(there) == 0 && pipe(back) == 0, "pipe");
    int value = 0;
    if (fork() == 0) {
        close(there[1]);
        while (read(there[0], &value, sizeof value) == sizeof value) {
            value++;
            if (write(back[1], &value, sizeof value) < 0) break;
        }
        _exit(0);
    }
    for (int i = 0; i < 5000; i++) {
        CHECK(write(there[1], &value, sizeof value) == sizeof value, "write");
        CHECK(read(back[0], &value, sizeof value) == sizeof value, "read");
        EQUAL(value, i + 1);
    }
}

TEST(poll_and_sockets)
{
    int pair[2], event = eventfd(0, 0), poller = epoll_create1(0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    struct epoll_event interest = {.events = EPOLLIN, .data.u64 = 0x1122334455667788}, got;
    epoll_ctl(poller, EPOLL_CTL_ADD, pair[0], &interest);
    interest.data.u64 = 7;
    epoll_ctl(poller, EPOLL_CTL_ADD, event, &interest);
    EQUAL(epoll_wait(poller, &got, 1, 0), 0);
    CHECK(write(pair[1], "x", 1) == 1, "write");
    EQUAL(epoll_wait(poller, &got, 1, 1000), 1);
    EQUAL(got.data.u64, 0x1122334455667788);
    char byte;
    EQUAL(read(pair[0], &byte, 1), 1);
    uint64_t one = 1;
    CHECK(write(event, &one, 8) == 8, "eventfd");
    EQUAL(epoll_wait(poller, &got, 1, 1000), 1);
    EQUAL(got.data.u64, 7);
    struct pollfd wait_for = {.fd = pair[0], .events = POLLIN};
    double before = seconds(CLOCK_MONOTONIC);
    EQUAL(poll(&wait_for, 1, 50), 0);
    CHECK(seconds(CLOCK_MONOTONIC) - before >= 0.049, "poll came back early");
}

// Called in the new image: reports what arrived by its exit status.
int executed(int argc, char **argv)
{
    const char *value = getenv("GUEST_TEST");
    return argc == 4 && strcmp(argv[2], "a b") == 0 && argv[3][0] == 0 && value && strcmp(value, "yes") == 0 ? 42 : 1;
}
TEST(exec_self)
{
    char *arguments[] = {"guest-test", "--executed", "a b", "", NULL}, *environment[] = {"GUEST_TEST=yes", NULL};
    int status;
    for (volatile int i = 0; i < 10; i++) {
        pid_t child = i % 2 ? vfork() : fork();
        if (child == 0) {
            execve("/proc/self/exe", arguments, environment);
            _exit(99);
        }
        EQUAL(waitpid(child, &status, 0), child);
        EQUAL(status, 42 << 8);
    }
    pid_t child;
    EQUAL(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environment), 0);
    waitpid(child, &status, 0);
    EQUAL(status, 42 << 8);
}

// A tracer reads registers, steps one instruction at a time, and plants code into another process.
extern char planted[];
static __attribute__((noinline, noclone)) int traced(void)
{
    int result;
    __asm__ volatile("mov $1, %%eax\n inc %%eax\n inc %%eax\n .globl planted\n planted: nop\n nop" : "=a"(result)::"cc");
    return result;
}
TEST(tracing)
{
    int status;
    struct user_regs_struct registers;
    pid_t child = fork();
    if (child == 0) {
        traced(); // once as it is: the tracer then changes code that has run
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        traced();
        _exit(traced());
    }
    waitpid(child, &status, 0);
    EQUAL(WSTOPSIG(status), SIGSTOP);
    long word = ptrace(PTRACE_PEEKTEXT, child, planted, NULL);
    ptrace(PTRACE_POKETEXT, child, planted, (word & ~0xffL) | 0xcc);
    for (int round = 0; round < 2; round++) {
        ptrace(PTRACE_CONT, child, NULL, NULL);
        waitpid(child, &status, 0);
        EQUAL(WSTOPSIG(status), SIGTRAP);
        ptrace(PTRACE_GETREGS, child, NULL, &registers);
        EQUAL(registers.rip, planted + 1);
        EQUAL(registers.rax, 3);
    }
    registers.rax = 77;
    registers.rip = (uintptr_t)planted;
    ptrace(PTRACE_SETREGS, child, NULL, &registers);
    ptrace(PTRACE_POKETEXT, child, planted, word);
    for (int i = 1; i <= 2; i++) {
        ptrace(PTRACE_SINGLESTEP, child, NULL, NULL);
        waitpid(child, &status, 0);
        ptrace(PTRACE_GETREGS, child, NULL, &registers);
        EQUAL(registers.rip, planted + i);
    }
    ptrace(PTRACE_CONT, child, NULL, NULL);
    waitpid(child, &status, 0);
    EQUAL(status, 77 << 8);
}

TEST(system_calls)
{
    pid_t self = getpid();
    for (int i = 0; i < 20000; i++) EQUAL(syscall(SYS_getpid), self);
    // rcx and r11 hold rip and rflags afterwards; all the others are kept.
    uint64_t result, rcx, r11, flags, r8 = 0x8888;
    register uint64_t r9 __asm__("r9") = 0x9999, r10 __asm__("r10") = 0x1010;
    __asm__ volatile("mov %[call], %%eax\n stc\n std\n syscall\n 1: pushfq\n cld\n pop %[flags]\n"
                     "lea 1b(%%rip), %%rdx\n sub %%rdx, %%rcx\n mov %%r11, %%rdx"
                     : "=a"(result), "=&c"(rcx), "=&d"(r11), "+r"(r8), "+r"(r9), "+r"(r10), [flags] "=&r"(flags)
                     : [call] "i"(SYS_getppid)
                     : "r11", "cc", "memory");
    EQUAL(result, getppid());
    EQUAL(rcx, 0);
    EQUAL(r11, flags);
    EQUAL(flags & 0x401, 0x401);
    EQUAL(r8, 0x8888);
    EQUAL(r9, 0x9999);
    EQUAL(r10, 0x1010);
    // An address that is not the program's is an error of the call, not a fault.
    EQUAL(syscall(SYS_write, 1, 0x10, 4), -1);
    EQUAL(errno, EFAULT);
}

// The way of 32-bit programs into the kernel, through the interrupt table.
TEST(interrupt_0x80)
{
    uint32_t result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "r8", "r9", "r10", "r11", "memory");
    EQUAL(result, getpid());
}
