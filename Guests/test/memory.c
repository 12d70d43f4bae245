// Mappings, protection, and faults: that each access reaches the right byte or faults, and that a fault says
// exactly where, why and with which registers.
#include "check.h"

static void load8(void *address) { (void)*(volatile uint8_t *)address; }
static void store8(void *address) { *(volatile uint8_t *)address = 1; }
static void load64(void *address) { __asm__ volatile("mov (%0), %%rax" ::"r"(address) : "rax"); }
static void store64(void *address) { __asm__ volatile("mov %0, (%0)" ::"r"(address) : "memory"); }
static void call(void *address) { ((void (*)(void))address)(); }

// Bits of the page-fault error code (SDM volume 3, 4.7).
enum { PRESENT = 1, WRITE = 2, USER = 4, FETCH = 16 };

TEST(mmap_munmap)
{
    struct fault fault;
    for (int round = 0; round < 20; round++) {
        uint8_t *base = pages(64, PROT_READ | PROT_WRITE);
        for (int i = 0; i < 64 * PAGE; i += 512) {
            EQUAL(base[i], 0);
            base[i] = (uint8_t)(i / 512 + round);
        }
        for (int i = 0; i < 64 * PAGE; i += 512) EQUAL(base[i], (uint8_t)(i / 512 + round));
        munmap(base, 65 * PAGE);
        CHECK(catches(&fault, load8, base + 5 * PAGE + 7), "an unmapped page was read");
        EQUAL(fault.signal, SIGSEGV);
        EQUAL(fault.code, SEGV_MAPERR);
        EQUAL(fault.address, base + 5 * PAGE + 7);
        EQUAL(fault.registers[REG_ERR], USER);
    }
}

TEST(null_pointer)
{
    struct fault fault;
    CHECK(catches(&fault, load8, NULL), "address 0 was read");
    EQUAL(fault.address, 0);
    CHECK(catches(&fault, store8, (void *)8), "address 8 was written");
    EQUAL(fault.address, 8);
    EQUAL(fault.registers[REG_ERR], USER | WRITE);
}

// A non-canonical address is a general protection fault: no address, no page-fault code.
TEST(non_canonical)
{
    struct fault fault;
    CHECK(catches(&fault, load8, (void *)0x8000000000000000), "a non-canonical address was read");
    EQUAL(fault.signal, SIGSEGV);
    EQUAL(fault.code, SI_KERNEL);
    EQUAL(fault.registers[REG_TRAPNO], 13);
    CHECK(catches(&fault, call, (void *)0x123456789abcdef0), "a non-canonical address was called");
    EQUAL(fault.registers[REG_TRAPNO], 13);
}

TEST(kernel_address)
{
    struct fault fault;
    void *kernel = (void *)0xffffffff81000000;
    CHECK(catches(&fault, load8, kernel), "kernel memory was read");
    EQUAL(fault.signal, SIGSEGV);
    CHECK(catches(&fault, store8, kernel), "kernel memory was written");
    CHECK(catches(&fault, call, kernel), "kernel code was called");
    CHECK(fault.registers[REG_RIP] == (greg_t)(uintptr_t)kernel, "rip is %#llx", fault.registers[REG_RIP]);
}

TEST(write_to_read_only_page)
{
    struct fault fault;
    uint8_t *base = pages(2, PROT_READ | PROT_WRITE);
    base[100] = 42;
    mprotect(base, PAGE, PROT_READ);
    EQUAL(base[100], 42);
    CHECK(catches(&fault, store8, base + 100), "a read-only page was written");
    EQUAL(fault.code, SEGV_ACCERR);
    EQUAL(fault.address, base + 100);
    EQUAL(fault.registers[REG_ERR], PRESENT | WRITE | USER);
    EQUAL(base[100], 42);
}

TEST(execute_data)
{
    struct fault fault;
    uint8_t *base = pages(1, PROT_READ | PROT_WRITE);
    base[16] = 0xc3;
    CHECK(catches(&fault, call, base + 16), "data was executed");
    EQUAL(fault.address, base + 16);
    EQUAL(fault.registers[REG_RIP], base + 16);
    EQUAL(fault.registers[REG_ERR], PRESENT | USER | FETCH);
    mprotect(base, PAGE, PROT_READ | PROT_EXEC);
    call(base + 16);
    mprotect(base, PAGE, PROT_READ);
    CHECK(catches(&fault, call, base + 16), "code ran after its page lost the right");
}

// A fault in the second page of an access leaves the first page untouched and names the second.
TEST(fault_on_second_page)
{
    struct fault fault;
    uint8_t *base = pages(1, PROT_READ | PROT_WRITE), *guard = base + PAGE;
    for (int back = 1; back < 8; back++) {
        memset(guard - 8, 0x5a, 8);
        CHECK(catches(&fault, load64, guard - back), "a load went into the guard page");
        EQUAL(fault.address, guard);
        CHECK(catches(&fault, store64, guard - back), "a store went into the guard page");
        EQUAL(fault.address, guard);
        for (int i = 1; i <= 8; i++) EQUAL(guard[-i], 0x5a);
    }
}

// Every register and flag of the interrupted program, as the handler sees them and as it sets them.
extern char fault_at[], fault_after[];
static greg_t at_fault[NGREG];
static void step_over(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    ucontext_t *user = context;
    memcpy(at_fault, user->uc_mcontext.gregs, sizeof at_fault);
    user->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)fault_after;
    user->uc_mcontext.gregs[REG_R10] = 0x1010;
    user->uc_mcontext.gregs[REG_RBP] = 0xb0b0;
    user->uc_mcontext.gregs[REG_EFL] ^= 0x8d5; // CF PF AF ZF SF OF: all six turned round
}
TEST(registers_at_a_fault)
{
    handle(SIGSEGV, step_over, 0);
    uint64_t r10, rbp, flags, rsp;
    __asm__ volatile(
        "push %%rbp\n push %%rbx\n sub $128, %%rsp\n"
        "mov %%rsp, %%r15\n"
        "mov $0x11, %%eax\n mov $0x22, %%ebx\n mov $0x33, %%ecx\n mov $0x44, %%edx\n mov $0x55, %%esi\n"
        "mov $0x66, %%edi\n mov $0x77, %%ebp\n mov $0x88, %%r8d\n mov $0x99, %%r9d\n mov $0xaa, %%r10d\n"
        "mov $0xbb, %%r11d\n mov $0xcc, %%r12d\n mov $0xdd, %%r13d\n mov $0xee, %%r14d\n"
        "cmp %%eax, %%eax\n stc\n"
        ".globl fault_at\n fault_at: mov %%rbx, 0x1000(,%%rcx,8)\n"
        "mov $0xbad, %%r10d\n mov $0xbad, %%ebp\n"
        ".globl fault_after\n fault_after:\n"
        "pushf\n pop %%rax\n mov %%rsp, %%rcx\n sub %%r15, %%rcx\n mov %%rbp, %%rdx\n"
        "add $128, %%rsp\n pop %%rbx\n pop %%rbp\n"
        "mov %%r10, %%rsi\n"
        : "=a"(flags), "=d"(rbp), "=S"(r10), "=c"(rsp)
        :
        : "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    static const int order[] = {REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RBP, REG_R8,
                                REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14};
    for (int i = 0; i < 14; i++)
        CHECK(at_fault[order[i]] == 0x11 * (i + 1), "register %d is %#llx", i, at_fault[order[i]]);
    EQUAL(at_fault[REG_RSP], at_fault[REG_R15]);
    EQUAL(at_fault[REG_RIP], fault_at);
    EQUAL(at_fault[REG_CR2], 0x1000 + 0x33 * 8);
    EQUAL(at_fault[REG_EFL] & 0xcd5, 0x45); // ZF and PF by cmp, CF by stc
    EQUAL(r10, 0x1010);
    EQUAL(rbp, 0xb0b0);
    EQUAL(rsp, 0);
    EQUAL(flags & 0xcd5, 0x45 ^ 0x8d5);
}

// Each change of protection must be seen by the very next access.
static uint8_t *toggled;
static int toggles;
static void make_writable(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    toggles++;
    mprotect(toggled, PAGE, PROT_READ | PROT_WRITE);
}
TEST(mprotect_toggle)
{
    handle(SIGSEGV, make_writable, 0);
    toggled = pages(1, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 2000; i++) {
        volatile uint32_t *cell = (volatile uint32_t *)(toggled + i % PAGE / 4 * 4);
        *cell = 7;
        mprotect(toggled, PAGE, i % 2 ? PROT_READ : PROT_NONE);
        *cell += 1; // faults, is repaired, and runs again
        EQUAL(*cell, 8);
        EQUAL(toggles, i + 1);
    }
}

TEST(copy_on_write)
{
    enum { COUNT = 256 };
    uint8_t *base = pages(COUNT, PROT_READ | PROT_WRITE);
    uint8_t *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < COUNT; i++) base[i * PAGE] = (uint8_t)i;
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < COUNT; i++) {
            EQUAL(base[i * PAGE], (uint8_t)i);
            base[i * PAGE] ^= 0xff;
        }
        for (int i = 0; i < COUNT; i++) EQUAL(base[i * PAGE], (uint8_t)~i);
        shared[9] = 99;
        _exit(0);
    }
    for (int i = 0; i < COUNT; i += 2) base[i * PAGE] += 1;
    int status = -1;
    waitpid(child, &status, 0);
    EQUAL(status, 0);
    for (int i = 0; i < COUNT; i++) EQUAL(base[i * PAGE], (uint8_t)(i % 2 ? i : i + 1));
    EQUAL(shared[9], 99);
}

TEST(two_mappings_of_one_page)
{
    int file = memfd_create("page", 0);
    CHECK(ftruncate(file, 2 * PAGE) == 0, "ftruncate");
    uint8_t *one = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint8_t *two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (int i = 0; i < 2 * PAGE; i += 3) {
        one[i] = (uint8_t)(i * 7);
        EQUAL(two[i], (uint8_t)(i * 7));
        two[i]++;
        EQUAL(one[i], (uint8_t)(i * 7 + 1));
    }
    char text[4] = "abc";
    CHECK(pwrite(file, text, 4, PAGE - 2) == 4, "pwrite");
    EQUAL(one[PAGE - 1], 'b');
    EQUAL(two[PAGE], 'c');
}

TEST(remap_and_discard)
{
    uint8_t *base = pages(4, PROT_READ | PROT_WRITE);
    memset(base, 0x77, 4 * PAGE);
    madvise(base + PAGE, PAGE, MADV_DONTNEED);
    EQUAL(base[PAGE], 0);
    EQUAL(base[2 * PAGE], 0x77);
    uint8_t *moved = mremap(base + 2 * PAGE, PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED, "mremap: %s", strerror(errno));
    EQUAL(moved[PAGE - 1], 0x77);
    EQUAL(moved[PAGE], 0);
    // Another file's page at an address whose old page was just read.
    EQUAL(base[0], 0x77);
    void *again = mmap(base, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    EQUAL(again, base);
    EQUAL(base[0], 0);
}

TEST(bus_error_beyond_file_end)
{
    struct fault fault;
    int file = memfd_create("short", 0);
    CHECK(ftruncate(file, PAGE + 1) == 0, "ftruncate");
    uint8_t *base = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    EQUAL(base[PAGE + 5], 0);
    CHECK(catches(&fault, load8, base + 2 * PAGE + 3), "a byte beyond the file's end was read");
    EQUAL(fault.signal, SIGBUS);
    EQUAL(fault.code, BUS_ADRERR);
    EQUAL(fault.address, base + 2 * PAGE + 3);
}

#define CROSS(type)                                                                         \
    for (int at = PAGE - 40; at < PAGE + 8; at++) {                                         \
        type value, back;                                                                   \
        memset(&value, at, sizeof value);                                                   \
        ((uint8_t *)&value)[sizeof value - 1] ^= 0x3c;                                      \
        *(volatile type *)(base + at) = value;                                              \
        for (size_t i = 0; i < sizeof value; i++) EQUAL(base[at + i], ((uint8_t *)&value)[i]); \
        back = *(volatile type *)(base + at);                                               \
        CHECK(memcmp(&back, &value, sizeof value) == 0, "%s at %d reads back wrong", #type, at); \
    }
typedef uint16_t half __attribute__((aligned(1)));
typedef uint32_t word __attribute__((aligned(1)));
typedef uint64_t quad __attribute__((aligned(1)));
typedef float vector128 __attribute__((vector_size(16), aligned(1)));
TEST(page_crossing)
{
    uint8_t *base = pages(2, PROT_READ | PROT_WRITE);
    CROSS(half) CROSS(word) CROSS(quad) CROSS(vector128)
    // Read-modify-write, and a stack that straddles.
    for (int at = PAGE - 8; at < PAGE; at++) {
        volatile quad *cell = (volatile quad *)(base + at);
        *cell = 0x1122334455667788;
        uint64_t two = 2;
        __asm__ volatile("addq $1, (%0)\n lock; xaddq %1, (%0)" : "+r"(cell), "+r"(two)::"memory", "cc");
        EQUAL(two, 0x1122334455667789);
        EQUAL(*cell, 0x112233445566778b);
        uint64_t popped;
        __asm__ volatile("mov %%rsp, %%r12\n lea 8(%1), %%rsp\n push %2\n pop %0\n mov %%r12, %%rsp"
                         : "=&r"(popped) : "r"(cell), "r"(0x0102030405060708) : "r12", "memory");
        EQUAL(popped, 0x0102030405060708);
        EQUAL(*cell, 0x0102030405060708);
    }
}

TEST(many_pages)
{
    enum { MEGABYTES = 48 };
    const size_t count = (size_t)MEGABYTES * 256;
    uint8_t *base = pages(count, PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < count; i++) *(uint64_t *)(base + i * PAGE + i % 500 * 8) = i * 0x9e3779b97f4a7c15;
    for (size_t i = count; i-- > 0;) EQUAL(*(uint64_t *)(base + i * PAGE + i % 500 * 8), i * 0x9e3779b97f4a7c15);
}

// Deep recursion grows the stack page by page, below the stack pointer's first place.
static __attribute__((noinline)) uint64_t deep(uint64_t depth)
{
    volatile uint64_t here = depth;
    return depth == 0 ? 0 : deep(depth - 1) + (here & 1);
}
TEST(deep_recursion) { EQUAL(deep(100000), 50000); }
