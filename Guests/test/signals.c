// Signals: how the kernel enters and leaves a program at an instruction not of its choosing.
#include "check.h"
#include <fenv.h>
#include <sys/time.h>

static volatile sig_atomic_t count;
static siginfo_t last;
static greg_t last_rip;
static void note(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    count++;
    last = *info;
    last_rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
}

TEST(signal_info)
{
    handle(SIGUSR1, note, 0);
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 12345});
    EQUAL(count, 1);
    EQUAL(last.si_code, SI_QUEUE);
    EQUAL(last.si_pid, getpid());
    EQUAL(last.si_value.sival_int, 12345);
    for (int i = 0; i < 1000; i++) raise(SIGUSR1);
    EQUAL(count, 1001);
}

TEST(blocked_signals)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    handle(SIGUSR1, note, 0);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    raise(SIGUSR1);
    EQUAL(count, 0);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    EQUAL(count, 1);
}

// Two handlers deep, a fault, and out of all three by siglongjmp.
static int depth;
static void nest(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    depth++;
    if (signal == SIGUSR1) raise(SIGUSR2);
    if (signal == SIGUSR2) *(volatile int *)16 = 0;
}
static void raise_first(void *unused)
{
    (void)unused;
    raise(SIGUSR1);
}
TEST(nested_signals)
{
    struct fault fault;
    handle(SIGUSR1, nest, 0);
    handle(SIGUSR2, nest, 0);
    for (int i = 1; i <= 50; i++) {
        CHECK(catches(&fault, raise_first, NULL), "no fault inside two handlers");
        EQUAL(fault.address, 16);
        EQUAL(depth, 2 * i);
    }
}

static void *stack_low, *stack_high;
static volatile bool on_alternate;
static void overflow(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    void *here = __builtin_frame_address(0);
    on_alternate = here > stack_low && here < stack_high;
    EQUAL(on_alternate, true);
    ucontext_t *user = context;
    CHECK(user->uc_mcontext.gregs[REG_CR2] >> 12 != 0, "no fault address");
    _exit(0);
}
static __attribute__((noinline)) int endless(volatile char *before, unsigned rounds)
{
    volatile char block[2000];
    block[0] = before ? before[0] : 1;
    return rounds == 0 ? 0 : endless(block, rounds - 1) + block[0];
}
TEST(alternate_stack)
{
    stack_low = pages(8, PROT_READ | PROT_WRITE);
    stack_high = (char *)stack_low + 8 * PAGE;
    stack_t stack = {.ss_sp = stack_low, .ss_size = 8 * PAGE};
    CHECK(sigaltstack(&stack, NULL) == 0, "sigaltstack");
    handle(SIGSEGV, overflow, SA_ONSTACK);
    endless(NULL, UINT32_MAX);
    fail("the stack never overflowed");
}

#define AT(name) extern char name[]
AT(at_div); AT(at_ud2); AT(at_int3); AT(at_hlt);
static void divide(void *divisor)
{
    __asm__ volatile("xor %%edx, %%edx\n mov $10, %%eax\n .globl at_div\n at_div: divl (%0)" ::"r"(divisor) : "rax", "rdx", "cc");
}
static void divide_min(void *unused)
{
    (void)unused;
    __asm__ volatile("mov $0x8000000000000000, %%rax\n cqo\n mov $-1, %%rcx\n idiv %%rcx" ::: "rax", "rcx", "rdx", "cc");
}
static void undefined(void *unused) { (void)unused; __asm__ volatile(".globl at_ud2\n at_ud2: ud2"); }
static void breakpoint(void *unused) { (void)unused; __asm__ volatile(".globl at_int3\n at_int3: int3"); }
static void privileged(void *unused) { (void)unused; __asm__ volatile(".globl at_hlt\n at_hlt: hlt"); }
static void port(void *unused) { (void)unused; __asm__ volatile("in $0x71, %%al" ::: "rax"); }
static void control(void *unused) { (void)unused; __asm__ volatile("mov %%cr3, %%rax" ::: "rax"); }
static void model_specific(void *unused) { (void)unused; __asm__ volatile("rdmsr" ::: "rax", "rdx"); }
static void interrupts_off(void *unused) { (void)unused; __asm__ volatile("cli"); }
static void return_to_user(void *unused) { (void)unused; __asm__ volatile("sysretq" ::: "rcx", "r11"); }
static void soft_interrupt(void *unused) { (void)unused; __asm__ volatile("int $0x21"); }

TEST(divide_error)
{
    struct fault fault;
    uint32_t zero = 0;
    CHECK(catches(&fault, divide, &zero), "a division by zero went on");
    EQUAL(fault.signal, SIGFPE);
    EQUAL(fault.code, FPE_INTDIV);
    EQUAL(fault.address, at_div);
    EQUAL(fault.registers[REG_RIP], at_div);
    EQUAL(fault.registers[REG_RAX], 10);
    CHECK(catches(&fault, divide_min, NULL), "a quotient that does not fit went on");
    EQUAL(fault.signal, SIGFPE);
    EQUAL(fault.registers[REG_RAX], 0x8000000000000000);
    EQUAL(fault.registers[REG_RDX], -1);
}

TEST(undefined_instruction)
{
    struct fault fault;
    CHECK(catches(&fault, undefined, NULL), "ud2 went on");
    EQUAL(fault.signal, SIGILL);
    EQUAL(fault.code, ILL_ILLOPN);
    EQUAL(fault.address, at_ud2);
}

TEST(breakpoint_instruction)
{
    struct fault fault;
    CHECK(catches(&fault, breakpoint, NULL), "int3 went on");
    EQUAL(fault.signal, SIGTRAP);
    EQUAL(fault.registers[REG_RIP], at_int3 + 1);
}

TEST(privileged_instructions)
{
    struct fault fault;
    void (*const all[])(void *) = {privileged, port, control, model_specific, interrupts_off, return_to_user, soft_interrupt};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        CHECK(catches(&fault, all[i], NULL), "instruction %u went on in user mode", i);
        // sysret is #UD where the kernel has not enabled it for this mode, #GP elsewhere.
        CHECK(fault.signal == SIGSEGV || fault.signal == SIGILL, "instruction %u: signal %d", i, fault.signal);
    }
    CHECK(catches(&fault, privileged, NULL), "hlt went on in user mode");
    EQUAL(fault.registers[REG_TRAPNO], 13);
    EQUAL(fault.registers[REG_RIP], at_hlt);
}

// The trap flag: a debug exception after each instruction, with the next one's address.
static greg_t steps[16];
static void step(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (count < 16) steps[count] = registers[REG_RIP];
    count++;
}
AT(step_0); AT(step_1); AT(step_2); AT(step_3); AT(step_4);
TEST(single_step)
{
    handle(SIGTRAP, step, 0);
    __asm__ volatile("sub $128, %%rsp\n pushfq\n orq $0x100, (%%rsp)\n popfq\n"
                     ".globl step_0\n step_0: nop\n"
                     ".globl step_1\n step_1: mov $5, %%ecx\n"
                     ".globl step_2\n step_2: jmp step_3\n ud2\n"
                     ".globl step_3\n step_3: pushfq\n andq $~0x100, (%%rsp)\n popfq\n"
                     ".globl step_4\n step_4: nop\n add $128, %%rsp"
                     ::: "rcx", "cc", "memory");
    // After popfq sets the flag, the next instruction still completes before the first trap.
    EQUAL(steps[0], step_1);
    EQUAL(steps[1], step_2);
    EQUAL(steps[2], step_3);
    EQUAL(count, 6);
    EQUAL(steps[5], step_4);
}

// A handler that uses the vector unit and the FPU leaves the interrupted program's untouched.
static void clobber(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    count++;
    __asm__ volatile("fninit\n fldpi\n fldpi\n pxor %%xmm0, %%xmm0\n pcmpeqd %%xmm7, %%xmm7\n pcmpeqd %%xmm15, %%xmm15"
                     ::: "xmm0", "xmm7", "xmm15");
}
TEST(signal_keeps_fpu_state)
{
    handle(SIGALRM, clobber, 0);
    struct itimerval every = {{0, 2000}, {0, 2000}};
    setitimer(ITIMER_REAL, &every, NULL);
    double until = seconds(CLOCK_MONOTONIC) + 0.3;
    uint64_t rounds = 0;
    while (count < 20 || seconds(CLOCK_MONOTONIC) < until) {
        uint64_t low, seven, fifteen;
        double sum;
        __asm__ volatile(
            "movq %[a], %%xmm0\n movq %[b], %%xmm7\n movq %[c], %%xmm15\n fninit\n fld1\n fldl2t\n"
            "mov $20000, %%ecx\n 1: dec %%ecx\n jnz 1b\n"
            "faddp\n fstpl %[sum]\n movq %%xmm0, %[x]\n movq %%xmm7, %[y]\n movq %%xmm15, %[z]\n"
            : [x] "=r"(low), [y] "=r"(seven), [z] "=r"(fifteen), [sum] "=m"(sum)
            : [a] "r"(rounds), [b] "r"(rounds * 3), [c] "r"(~rounds)
            : "ecx", "xmm0", "xmm7", "xmm15", "st", "st(1)", "st(2)", "st(3)", "cc");
        EQUAL(low, rounds);
        EQUAL(seven, rounds * 3);
        EQUAL(fifteen, ~rounds);
        CHECK(sum > 4.32192809 && sum < 4.32192810, "the FPU stack was lost: %.17g", sum);
        rounds++;
    }
}

// Unmasked floating-point exceptions arrive at the instruction that raised them.
static void sse_divide(void *unused)
{
    (void)unused;
    volatile double zero = 0, one = 1;
    volatile double result = one / zero;
    (void)result;
}
static void x87_divide(void *unused)
{
    (void)unused;
    uint16_t word = 0x37b; // all masked but division by zero
    __asm__ volatile("fninit\n fldcw %0\n fld1\n fldz\n fdivrp\n fwait" ::"m"(word));
}
TEST(unmasked_sse_exception)
{
    struct fault fault;
    feenableexcept(FE_DIVBYZERO);
    CHECK(catches(&fault, sse_divide, NULL), "an unmasked division by zero went on");
    EQUAL(fault.signal, SIGFPE);
    EQUAL(fault.code, FPE_FLTDIV);
    EQUAL(fault.registers[REG_TRAPNO], 19);
}
TEST(unmasked_x87_exception)
{
    struct fault fault;
    CHECK(catches(&fault, x87_divide, NULL), "an unmasked x87 division by zero went on");
    EQUAL(fault.signal, SIGFPE);
    EQUAL(fault.code, FPE_FLTDIV);
    EQUAL(fault.registers[REG_TRAPNO], 16);
}
