// What a 32-bit program asks of its kernel and CPU, for guests with a 32-bit kernel: one line `ok NAME` or `FAIL NAME`
// for each check, and `guest-test: N passed, M failed` at the end. No C library: what runs is what stands here.
#include <stdint.h>

typedef unsigned long word;

enum { SYS_exit = 1, SYS_fork = 2, SYS_write = 4, SYS_waitpid = 7, SYS_getpid = 20, SYS_modify_ldt = 123, SYS_rt_sigaction = 174, SYS_set_thread_area = 243 };

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static word vsyscall;  // The kernel's page with SYSENTER or whatever else is fastest.

static long fast_call(long number)
{
    long result;
    __asm__ volatile("call *%2" : "=a"(result) : "a"(number), "m"(vsyscall) : "memory");
    return result;
}

static unsigned length(const char *text)
{
    unsigned count = 0;
    while (text[count]) count++;
    return count;
}

static void print(const char *text) { call(SYS_write, 1, (long)text, length(text)); }

static void print_number(unsigned value)
{
    char digits[12], *at = digits + sizeof digits;
    *--at = 0;
    do *--at = (char)('0' + value % 10);
    while (value /= 10);
    print(at);
}

static int passed, failed;
static void check(const char *name, int right)
{
    print(right ? "ok " : "FAIL ");
    print(name);
    print("\n");
    right ? passed++ : failed++;
}

struct user_desc {
    unsigned entry, base, limit;
    unsigned seg_32bit : 1, contents : 2, read_exec_only : 1, limit_in_pages : 1, seg_not_present : 1, useable : 1;
};

struct sigaction {
    void *handler;
    unsigned long flags;
    void *restorer;
    unsigned mask[2];
};

static volatile word faults, resume_at;
enum { SIGFPE = 8, SIGSEGV = 11, SIGILL = 4, SA_SIGINFO = 4, SA_RESTORER = 0x04000000, SA_NODEFER = 0x40000000 };

__asm__("restore: mov $173, %eax\n int $0x80\n");
extern char restore[];

// The saved instruction pointer is the 15th word of the context's registers, which lie 20 bytes into it.
static void on_signal(int number, void *info, void *context)
{
    (void)info;
    faults = faults * 100 + (word)number;
    ((word *)context)[5 + 14] = resume_at;
}

static void handle(int number)
{
    struct sigaction action = {on_signal, SA_SIGINFO | SA_RESTORER | SA_NODEFER, restore, {0, 0}};
    register long size __asm__("esi") = 8;
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(SYS_rt_sigaction), "b"(number), "c"(&action), "d"(0), "r"(size) : "memory");
}

// Runs code that faults; the handler goes on behind it.
#define FAULTS(expected, code, ...)                                                                       \
    ({                                                                                                    \
        faults = 0;                                                                                       \
        __asm__ volatile("movl $9f, %0\n" code "\n9:" : "=m"(resume_at) : __VA_ARGS__ : "memory", "eax", "edx", "ecx"); \
        faults == (expected);                                                                             \
    })

static word thread_area[4] = {0x11111111, 0x22222222, 0x33333333, 0x44444444};

static void segments(void)
{
    struct user_desc area = {.entry = -1u, .base = (word)thread_area, .limit = 7, .seg_32bit = 1, .useable = 1};
    int set = call(SYS_set_thread_area, (long)&area, 0, 0) == 0;
    check("set_thread_area", set);
    if (!set) return;
    word first, second;
    __asm__ volatile("mov %2, %%gs\n mov %%gs:0, %0\n mov %%gs:4, %1"
                     : "=&r"(first), "=r"(second) : "r"(area.entry * 8 + 3));
    check("gs base", first == 0x11111111 && second == 0x22222222);
    __asm__ volatile("incl %%gs:4" : : : "memory");
    call(SYS_getpid, 0, 0, 0);
    __asm__ volatile("mov %%gs:4, %0" : "=r"(second));
    check("gs base after a system call", second == 0x22222223);
    check("gs limit", FAULTS(SIGSEGV, "mov %%gs:8, %%eax", "m"(resume_at)));
    __asm__ volatile("mov %0, %%gs" : : "r"(0));
    check("null gs", FAULTS(SIGSEGV, "mov %%gs:0, %%eax", "m"(resume_at)));
}

// Segments of 16 bit, as DOS and Windows programs have them. Selectors: table 1 is the LDT, privilege 3.
static int ldt_entry(unsigned number, const void *base, unsigned contents)
{
    struct user_desc entry = {.entry = number, .base = (word)base, .limit = 0xFFF, .contents = contents, .useable = 1};
    return call(SYS_modify_ldt, 0x11, (long)&entry, sizeof entry) == 0;
}

__asm__(".code16\n"
        "code16: mov $0xfffe, %ax\n mov $3, %cx\n"
        "1: inc %ax\n loop 1b\n"
        "lretl\n"
        ".code32\n");
extern const char code16[];

static void sixteen_bits(void)
{
    static char stack16[0x1000] __attribute__((aligned(16)));
    int set = ldt_entry(1, stack16, 0) && ldt_entry(2, code16, 2);
    check("modify_ldt", set);
    if (!set) return;

    const struct __attribute__((packed)) {
        uint32_t offset;
        uint16_t selector;
    } far = {0, 2 * 8 + 7};
    uint32_t ax = 0x55550000, cx = 0x77770000;
    __asm__ volatile("lcall *%2" : "+a"(ax), "+c"(cx) : "m"(far) : "cc");
    check("16-bit code", ax == 0x55550001 && cx == 0x77770000);

    // An interrupt's return to such a stack leaves the upper half of ESP as it was, by the kernel's effort.
    static word old_esp;
    static uint16_t old_ss, new_ss = 1 * 8 + 7;
    word esp, popped, wrong;
    __asm__ volatile("mov %%esp, %[old_esp]\n mov %%ss, %[old_ss]\n"
                     "mov %[new_ss], %%ss\n mov $0xABCD0FF0, %%esp\n"
                     "mov $20, %%eax\n int $0x80\n"
                     "mov %%esp, %[esp]\n"
                     "push $0x1234567\n pop %[popped]\n"
                     "xor %[wrong], %[wrong]\n mov $30000000, %%ecx\n"
                     "1: cmp $0xABCD0FF0, %%esp\n je 2f\n inc %[wrong]\n 2: dec %%ecx\n jnz 1b\n"
                     "mov %[old_ss], %%ss\n mov %[old_esp], %%esp\n"
                     : [old_esp] "=m"(old_esp), [old_ss] "=m"(old_ss), [esp] "=&S"(esp), [popped] "=&D"(popped), [wrong] "=&d"(wrong)
                     : [new_ss] "m"(new_ss) : "eax", "ecx", "cc", "memory");
    check("16-bit stack over a system call", esp == 0xABCD0FF0);
    check("16-bit stack pushes and pops", popped == 0x1234567 && *(word *)(stack16 + 0xFEC) == 0x1234567);
    check("16-bit stack over interrupts", wrong == 0);
}

static int fork_and_wait(void)
{
    long child = call(SYS_fork, 0, 0, 0);
    if (child == 0) call(SYS_exit, 7, 0, 0);
    int status = 0;
    return call(SYS_waitpid, child, (long)&status, 0) == child && status == 7 << 8;
}

static int floating(void)
{
    double sum = 0;
    for (int i = 1; i <= 1000; i++) sum += 1.0 / i;
    return sum > 7.48547086 && sum < 7.48547087;
}

__attribute__((target("sse2"))) static int vectors(void)
{
    typedef int v4 __attribute__((vector_size(16)));
    v4 sum = {0, 0, 0, 0}, step = {1, 2, 3, 4};
    for (int i = 0; i < 1000; i++) {
        sum += step;
        if (i % 100 == 0) call(SYS_getpid, 0, 0, 0);
    }
    return sum[0] == 1000 && sum[3] == 4000;
}

static int divides(void)
{
    uint32_t low, high;
    __asm__("mul %3" : "=a"(low), "=d"(high) : "a"(0xFFFFFFFFu), "r"(0xFFFFFFFEu));
    uint32_t quotient, remainder;
    __asm__("div %4" : "=a"(quotient), "=d"(remainder) : "a"(low), "d"(high), "r"(0xFFFFFFFFu));
    return quotient == 0xFFFFFFFE && remainder == 0;
}

static int legacy(void)
{
    uint32_t a, d;
    // Only 32-bit code has these: decimal adjustment, PUSHA, one-byte INC, LES would need a segment.
    __asm__("mov $0x19, %%eax\n add $0x28, %%al\n daa\n pusha\n xor %%eax, %%eax\n inc %%eax\n dec %%edx\n popa" : "=a"(a) : : "cc");
    __asm__("mov $0x0207, %%eax\n aad\n mov $5, %%edx\n aam" : "=a"(d) : : "edx", "cc");
    return a == 0x47 && d == 0x0207;
}

void run(word *stack)
{
    // argc, argv, 0, environment, 0, auxiliary vector
    word *at = stack + 1 + stack[0] + 1;
    while (*at) at++;
    for (at++; *at; at += 2)
        if (*at == 32) vsyscall = at[1];  // AT_SYSINFO

    long self = call(SYS_getpid, 0, 0, 0);
    check("int 0x80", self > 0);
    // vdso32=0 takes the page away.
    if (vsyscall) check("vsyscall", fast_call(SYS_getpid) == self);
    check("multiply and divide", divides());
    check("instructions that only 32-bit code has", legacy());
    check("x87", floating());
    check("SSE2", vectors());
    check("fork", fork_and_wait());
    handle(SIGSEGV), handle(SIGILL), handle(SIGFPE);
    check("page fault", FAULTS(SIGSEGV, "movl $1, 0", "m"(resume_at)));
    check("ud2", FAULTS(SIGILL, "ud2", "m"(resume_at)));
    check("divide by zero", FAULTS(SIGFPE, "xor %%ecx, %%ecx\n mov $1, %%eax\n cltd\n idiv %%ecx", "m"(resume_at)));
    check("hlt", FAULTS(SIGSEGV, "hlt", "m"(resume_at)));
    check("into", FAULTS(SIGSEGV, "mov $0x7f, %%al\n inc %%al\n into", "m"(resume_at)));
    segments();
    sixteen_bits();
    print("guest-test: ");
    print_number((unsigned)passed);
    print(" passed, ");
    print_number((unsigned)failed);
    print(" failed\n");
    call(SYS_exit, failed != 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %esp, %eax\n and $-16, %esp\n sub $12, %esp\n push %eax\n call run\n");
