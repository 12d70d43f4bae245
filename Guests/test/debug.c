// The debug registers, single steps over what is not one step, and alignment checks: as a debugger uses them.
#include "check.h"
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>

enum { AC = 1 << 18 };
static volatile uint64_t watched[4] __attribute__((aligned(64)));

static __attribute__((noinline, noclone)) void touch(void)
{
    __asm__ volatile("lea %0, %%rax\n movq $1, 8(%%rax)\n mov (%%rax), %%rcx\n .globl touch_store\n"
                     "touch_store: movl $5, 4(%%rax)\n .globl touch_stored\n touch_stored: nop\n"
                     ".globl touch_code\n touch_code: nop\n nop"
                     : "+m"(watched[0])::"rax", "rcx", "memory");
}
extern char touch_stored[], touch_code[], steps_start[], steps_string[], steps_call[], steps_called[];

static __attribute__((noinline, noclone)) void steps(void)
{
    static char from[8] = "abcdefg", to[8];
    char *source = from, *destination = to;
    uint64_t count = 4, result = SYS_getppid;
    __asm__ volatile(".globl steps_start\n steps_start: nop\n .globl steps_string\n steps_string: rep movsb\n"
                     ".globl steps_call\n steps_call: syscall\n .globl steps_called\n steps_called: nop"
                     : "+S"(source), "+D"(destination), "+c"(count), "+a"(result)::"r11", "memory");
}

static pid_t stopped_child(void (*body)(void))
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        body();
        _exit(7);
    }
    waitpid(child, &status, 0);
    EQUAL(WSTOPSIG(status), SIGSTOP);
    return child;
}
static void set_debug(pid_t child, int number, uint64_t value)
{
    CHECK(ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg) + (size_t)number * 8, value) == 0,
          "debug register %d: %s", number, strerror(errno));
}
static uint64_t debug_status(pid_t child)
{
    return (uint64_t)ptrace(PTRACE_PEEKUSER, child, offsetof(struct user, u_debugreg) + 6 * 8, NULL);
}
static uint64_t wait_trap(pid_t child)
{
    int status;
    struct user_regs_struct registers;
    waitpid(child, &status, 0);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "status %#x", status);
    ptrace(PTRACE_GETREGS, child, NULL, &registers);
    return registers.rip;
}
static void expect_end(pid_t child)
{
    int status;
    ptrace(PTRACE_CONT, child, NULL, NULL);
    waitpid(child, &status, 0);
    EQUAL(status, 7 << 8);
}

TEST(hardware_watchpoint)
{
    pid_t child = stopped_child(touch);
    // Four bytes, writes only.
    set_debug(child, 0, (uintptr_t)watched + 4);
    set_debug(child, 7, 1 | 0xD << 16);
    ptrace(PTRACE_CONT, child, NULL, NULL);
    EQUAL(wait_trap(child), touch_stored);
    EQUAL(debug_status(child) & 15, 1);
    EQUAL(ptrace(PTRACE_PEEKDATA, child, watched, NULL), 5ul << 32);
    expect_end(child);
    // One that is not touched, and one that the program's fork does not have.
    child = stopped_child(touch);
    set_debug(child, 2, (uintptr_t)watched + 16);
    set_debug(child, 7, 1 << 4 | 0xBul << 24);
    expect_end(child);
    touch();
}

TEST(hardware_breakpoint)
{
    touch();
    pid_t child = stopped_child(touch);
    set_debug(child, 3, (uintptr_t)touch_code);
    set_debug(child, 7, 1 << 6);
    ptrace(PTRACE_CONT, child, NULL, NULL);
    EQUAL(wait_trap(child), touch_code);
    EQUAL(debug_status(child) & 15, 8);
    expect_end(child);
}

TEST(stepping_strings_and_calls)
{
    pid_t child = stopped_child(steps);
    set_debug(child, 0, (uintptr_t)steps_start);
    set_debug(child, 7, 1);
    ptrace(PTRACE_CONT, child, NULL, NULL);
    EQUAL(wait_trap(child), steps_start);
    struct user_regs_struct registers;
    // One stop for each byte that is moved, the last one behind the instruction; the call is one step.
    for (uint64_t left = 4; left > 0; left--) {
        ptrace(PTRACE_SINGLESTEP, child, NULL, NULL);
        EQUAL(wait_trap(child), steps_string);
        ptrace(PTRACE_GETREGS, child, NULL, &registers);
        EQUAL(registers.rcx, left);
    }
    ptrace(PTRACE_SINGLESTEP, child, NULL, NULL);
    EQUAL(wait_trap(child), steps_call);
    ptrace(PTRACE_SINGLESTEP, child, NULL, NULL);
    EQUAL(wait_trap(child), steps_called);
    ptrace(PTRACE_GETREGS, child, NULL, &registers);
    EQUAL(registers.rax, getpid());
    expect_end(child);
}

static void load_misaligned(void *address)
{
    __asm__ volatile("sub $128, %%rsp\n pushfq\n orl %1, (%%rsp)\n popfq\n mov (%0), %%rax\n"
                     "pushfq\n andl %2, (%%rsp)\n popfq\n add $128, %%rsp"
                     ::"r"(address), "i"(AC), "i"(~AC) : "rax", "cc", "memory");
}
static void alignment_off(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    __asm__ volatile("sub $128, %%rsp\n pushfq\n andl %0, (%%rsp)\n popfq\n add $128, %%rsp" ::"i"(~AC) : "cc", "memory");
    EQUAL(info->si_code, BUS_ADRALN);
    EQUAL(registers[REG_TRAPNO], 17);
    registers[REG_EFL] &= ~AC;
    watched[3]++;
}
TEST(alignment_check)
{
    static uint64_t words[2] __attribute__((aligned(16)));
    handle(SIGBUS, alignment_off, 0);
    load_misaligned(words);
    EQUAL(watched[3], 0);
    load_misaligned((char *)words + 1);
    EQUAL(watched[3], 1);
    load_misaligned((char *)words + 8);
    EQUAL(watched[3], 1);
}
