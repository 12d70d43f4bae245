// Integer instructions where flags, widths and addresses have edges.
#include "check.h"
#include <cpuid.h>

enum { CF = 1, PF = 4, AF = 0x10, ZF = 0x40, SF = 0x80, DF = 0x400, OF = 0x800, AC = 0x40000, ID = 0x200000 };
enum { STATUS = CF | PF | AF | ZF | SF | OF };
#define FLAGS(variable, text, ...) \
    __asm__ volatile(text "\n pushfq\n pop %0" : "=&r"(variable) __VA_ARGS__)

// A bit offset in a register reaches beyond the operand: 64 is the next quadword, -1 the one before.
TEST(bit_offsets_beyond_the_operand)
{
    uint8_t *base = pages(3, PROT_READ | PROT_WRITE), *middle = base + PAGE;
    for (int64_t bit = -PAGE * 8; bit < PAGE * 8; bit += 37) {
        uint8_t *byte = middle + (bit >> 3), mask = (uint8_t)(1 << (bit & 7));
        bool set;
        __asm__ volatile("btsq %2, %1" : "=@ccc"(set), "+m"(*(uint64_t *)middle) : "r"(bit) : "memory");
        EQUAL(set, false);
        EQUAL(*byte, mask);
        __asm__ volatile("btl %2, %1" : "=@ccc"(set) : "m"(*(uint32_t *)middle), "r"((int32_t)bit) : "memory");
        EQUAL(set, true);
        __asm__ volatile("lock; btcw %2, %1" : "=@ccc"(set), "+m"(*(uint16_t *)middle) : "r"((int16_t)bit) : "memory");
        EQUAL(set, true);
        EQUAL(*byte, 0);
        __asm__ volatile("lock; btsl %2, %1" : "=@ccc"(set), "+m"(*(uint32_t *)middle) : "r"((int32_t)bit) : "memory");
        __asm__ volatile("btrq %2, %1" : "=@ccc"(set), "+m"(*(uint64_t *)middle) : "r"(bit) : "memory");
        EQUAL(set, true);
        EQUAL(*byte, 0);
    }
    uint64_t word = 0; // an immediate offset stays inside
    __asm__ volatile("btsq $65, %0" : "+m"(word)::"cc");
    EQUAL(word, 2);
    struct fault fault; // and the page that faults is the bit's, not the operand's
    extern void far_bit(void *);
    CHECK(catches(&fault, far_bit, base + 3 * PAGE - 8), "a bit in the guard page was read");
    EQUAL(fault.address, base + 3 * PAGE);
}
void far_bit(void *base) { __asm__ volatile("bt %1, %0" ::"m"(*(uint64_t *)base), "r"(64L) : "cc"); }

TEST(flags_across_calls)
{
    for (int i = 0; i < 1000; i++) {
        uint64_t sum = 0;
        __asm__ volatile("sub $128, %%rsp\n call 1f\n adc $0, %0\n call 2f\n adc $0, %0\n call 3f\n setz %%al\n movzbl %%al, %%eax\n add %%rax, %0\n"
                         "jmp 4f\n 1: stc\n ret\n 2: clc\n ret\n 3: cmp %%ecx, %%ecx\n jmp 5f\n 5: ret\n 4: add $128, %%rsp"
                         : "+r"(sum)::"rax", "cc", "memory");
        EQUAL(sum, 2);
    }
}

TEST(flags_image)
{
    uint64_t flags;
    FLAGS(flags, "stc\n std\n");
    __asm__ volatile("cld");
    EQUAL(flags & (CF | DF), CF | DF);
    EQUAL(flags & 0x202, 0x202); // bit 1 is one, interrupts are on
    EQUAL(flags & 0x3000, 0);    // IOPL 0
    for (int i = 0; i < 64; i++) { // all combinations of the six, there and back
        uint64_t all = (uint64_t)((i & 1) | (i & 2) << 1 | (i & 4) << 2 | (i & 8) << 3 | (i & 16) << 3 | (i & 32) << 6), back;
        __asm__ volatile("push %1\n popfq\n pushfq\n pop %0" : "=r"(back) : "r"(all | 0x202) : "cc");
        EQUAL(back & STATUS, all);
        if (all & OF) continue; // lahf knows five of them
        uint64_t rax = all << 8 | 2 << 8;
        __asm__ volatile("sahf\n lahf" : "+a"(rax)::"cc");
        EQUAL(rax >> 8 & 0xff, all | 2);
    }
    // A user may set ID and AC, and neither IF nor IOPL: those are quietly kept.
    uint64_t back;
    __asm__ volatile("pushfq\n pop %%rcx\n mov %%rcx, %%rdx\n xor %1, %%rdx\n push %%rdx\n popfq\n pushfq\n pop %0\n push %%rcx\n popfq"
                     : "=&r"(back) : "i"(ID | 0x3200) : "rcx", "rdx", "cc");
    FLAGS(flags, "");
    EQUAL((back ^ flags) & (ID | 0x3200), ID);
    __asm__ volatile("pushw $0x0203\n popfw\n pushfw\n pop %w0" : "=r"(back)::"cc");
    EQUAL(back & 0xffff, 0x203);
}

TEST(flags_that_stay)
{
    uint64_t flags, x = 0x7fffffffffffffff;
    FLAGS(flags, "stc\n inc %1", , "+r"(x)::"cc");
    EQUAL(flags & STATUS, CF | PF | AF | SF | OF); // inc leaves the carry
    FLAGS(flags, "stc\n dec %1", , "+r"(x)::"cc");
    EQUAL(flags & STATUS, CF | PF | AF | OF);
    x = 5;
    FLAGS(flags, "cmp %1, %1\n stc\n mov $0, %%ecx\n shl %%cl, %1\n shr %%cl, %1\n rol %%cl, %1\n shld %%cl, %1, %1", , "+r"(x)::"rcx", "cc");
    EQUAL(flags & (CF | ZF), CF | ZF); // a count of zero changes none
    FLAGS(flags, "cmp %1, %1\n stc\n mov $64, %%ecx\n shl %%cl, %1\n lea 1(%1), %1\n not %1\n mov %1, %1\n xchg %1, %1", , "+r"(x)::"rcx", "cc");
    EQUAL(flags & (CF | ZF), CF | ZF);
    x = 0x8000000000000001;
    FLAGS(flags, "clc\n rcl $1, %1", , "+r"(x)::"cc");
    EQUAL(x, 2);
    EQUAL(flags & (CF | OF), CF | OF);
    FLAGS(flags, "rcr $1, %1", , "+r"(x)::"cc");
    EQUAL(x & 0x7fffffffffffffff, 1);
}

// Long additions through memory: each step may miss a TLB, none may lose the carry.
TEST(carry_chain)
{
    enum { WORDS = 512 * 8 };
    uint64_t *a = (uint64_t *)(pages(9, PROT_READ | PROT_WRITE) + 3), *b = (uint64_t *)(pages(9, PROT_READ | PROT_WRITE) + 5);
    memset(a, 0xff, WORDS * 8);
    memset(b, 0, WORDS * 8);
    b[0] = 1;
    uint64_t i = 0, count = WORDS, carry;
    __asm__ volatile("clc\n 1: mov (%3,%0,8), %%rax\n adc %%rax, (%2,%0,8)\n inc %0\n dec %1\n jnz 1b\n setc %%al\n movzbl %%al, %%eax"
                     : "+r"(i), "+r"(count), "+r"(a), "+r"(b), "=&a"(carry)::"memory", "cc");
    EQUAL(carry, 1);
    for (int n = 0; n < WORDS; n++) EQUAL(a[n], 0);
    i = 0, count = WORDS;
    __asm__ volatile("stc\n 1: mov (%3,%0,8), %%rax\n sbb %%rax, (%2,%0,8)\n inc %0\n dec %1\n jnz 1b\n setc %%al\n movzbl %%al, %%eax"
                     : "+r"(i), "+r"(count), "+r"(a), "+r"(b), "=&a"(carry)::"memory", "cc");
    EQUAL(carry, 1);
    EQUAL(a[0], UINT64_MAX - 1);
    EQUAL(a[WORDS - 1], UINT64_MAX);
}

// Each of the sixteen conditions against its definition, as set, move and jump.
TEST(conditions)
{
#define CONDITION(cc, expression)                                                                            \
    for (int i = 0; i < 64; i++) {                                                                           \
        int c = i & 1, p = i >> 1 & 1, z = i >> 2 & 1, s = i >> 3 & 1, o = i >> 4 & 1;                       \
        uint64_t all = (uint64_t)(c | p << 2 | z << 6 | s << 7 | o << 11) | 0x202, set = 7, move = 1, jump = 1; \
        (void)c, (void)p, (void)z, (void)s, (void)o;                                                         \
        __asm__ volatile("push %3\n popfq\n set" #cc " %b0\n cmov" #cc " %4, %1\n j" #cc " 1f\n mov $0, %k2\n 1:" \
                         : "+r"(set), "+r"(move), "+r"(jump) : "r"(all), "m"(two) : "cc");                   \
        uint64_t expected = (expression) != 0;                                                               \
        CHECK(set == expected && move == expected + 1 && jump == expected, "%s with flags %#lx", #cc, (unsigned long)all); \
    }
    uint64_t two = 2;
    CONDITION(o, o) CONDITION(no, !o) CONDITION(b, c) CONDITION(ae, !c) CONDITION(z, z) CONDITION(nz, !z)
    CONDITION(be, c | z) CONDITION(a, !(c | z)) CONDITION(s, s) CONDITION(ns, !s) CONDITION(p, p) CONDITION(np, !p)
    CONDITION(l, s != o) CONDITION(ge, s == o) CONDITION(le, z | (s != o)) CONDITION(g, !z && s == o)
}

static void conditional_load(void *address)
{
    __asm__ volatile("cmp %%eax, %%eax\n cmovnz (%0), %%rax" ::"r"(address) : "rax", "cc");
}
TEST(conditional_move_always_loads)
{
    struct fault fault;
    CHECK(catches(&fault, conditional_load, (void *)64), "a cmov whose condition is false did not read");
    EQUAL(fault.address, 64);
    uint64_t x = UINT64_MAX;
    __asm__ volatile("cmp %%eax, %%eax\n cmovnzl %%eax, %k0" : "+r"(x)::"cc");
    EQUAL(x, UINT32_MAX); // the high half is cleared even so
}

TEST(partial_registers)
{
    uint64_t rax = 0x1122334455667788, rbx = rax;
    __asm__ volatile("mov $0xaa, %%ah\n add $1, %%al\n mov %%ah, %%bl\n movb %%bl, %%bh" : "+a"(rax), "+b"(rbx)::"cc");
    EQUAL(rax, 0x112233445566aa89);
    EQUAL(rbx, 0x112233445566aaaa);
    __asm__ volatile("mov $0x1234, %%ax\n xchg %%ah, %%al" : "+a"(rax)::"cc");
    EQUAL(rax, 0x1122334455663412);
    __asm__ volatile("movsbl %%ah, %%ebx\n movl %%eax, %%eax" : "+a"(rax), "=b"(rbx) :: "cc"); // no REX with ah
    EQUAL(rax, 0x55663412);
}

TEST(multiply_and_divide)
{
    uint64_t low = UINT64_MAX, high, flags;
    __asm__ volatile("mul %%rax\n pushfq\n pop %2" : "+a"(low), "=d"(high), "=r"(flags)::"cc");
    EQUAL(low, 1);
    EQUAL(high, UINT64_MAX - 1);
    EQUAL(flags & (CF | OF), CF | OF);
    high = 1, low = 0;
    __asm__ volatile("mov $3, %%ecx\n div %%rcx" : "+a"(low), "+d"(high)::"rcx", "cc");
    EQUAL(low, 0x5555555555555555);
    int64_t quotient = INT64_MIN + 1, rest = -1;
    __asm__ volatile("idivq %2" : "+a"(quotient), "+d"(rest) : "r"(-1L) : "cc");
    EQUAL(quotient, INT64_MAX);
    EQUAL(rest, 0);
    uint16_t ax = 0xfff9; // -7 / 2 as bytes: -3, remainder -1
    __asm__ volatile("idivb %1" : "+a"(ax) : "q"((uint8_t)2) : "cc");
    EQUAL(ax, 0xfffd);
    int64_t product;
    bool over;
    __asm__ volatile("imulq $-2, %2, %0" : "=r"(product), "=@cco"(over) : "r"(INT64_MIN));
    EQUAL(product, 0);
    EQUAL(over, true);
}

TEST(bit_scans_and_swaps)
{
    uint64_t x = 0x55;
    bool zero;
    __asm__ volatile("bsf %2, %0" : "+r"(x), "=@ccz"(zero) : "r"(0L));
    EQUAL(zero, true);
    __asm__ volatile("bsr %2, %0" : "+r"(x), "=@ccz"(zero) : "r"(0x8000000000000000));
    EQUAL(x, 63);
    x = 0x0102030405060708;
    __asm__ volatile("bswap %0" : "+r"(x));
    EQUAL(x, 0x0807060504030201);
    uint64_t y = 0xf000000000000000;
    __asm__ volatile("shld $8, %1, %0" : "+r"(x) : "r"(y) : "cc");
    EQUAL(x, 0x07060504030201f0);
    uint64_t cell = 5, old = 5, other = 4;
    bool same;
    __asm__ volatile("cmpxchgq %3, %1" : "+a"(old), "+m"(cell), "=@ccz"(same) : "r"(9UL) : "memory");
    CHECK(same && cell == 9, "cmpxchg of equal values: %lu", (unsigned long)cell);
    __asm__ volatile("lock; cmpxchgq %3, %1" : "+a"(other), "+m"(cell), "=@ccz"(same) : "r"(7UL) : "memory");
    CHECK(!same && cell == 9 && other == 9, "cmpxchg of unequal values: %lu", (unsigned long)cell);
    __asm__ volatile("xadd %1, %0" : "+r"(cell), "+r"(old)::"cc");
    EQUAL(cell, 14);
    EQUAL(old, 9);
}

static void misaligned16(void *cell) { __asm__ volatile("cmpxchg16b %0" : "+m"(*(__int128 *)cell)::"rax", "rbx", "rcx", "rdx", "cc"); }
TEST(compare_exchange_16)
{
    static uint64_t cell[4] __attribute__((aligned(16))) = {1, 2, 3, 4};
    uint64_t low = 1, high = 2;
    bool same;
    __asm__ volatile("cmpxchg16b %0" : "+m"(*(__int128 *)cell), "+a"(low), "+d"(high), "=@ccz"(same) : "b"(10UL), "c"(20UL));
    CHECK(same && cell[0] == 10 && cell[1] == 20, "cmpxchg16b of equal values");
    __asm__ volatile("lock; cmpxchg16b %0" : "+m"(*(__int128 *)cell), "+a"(low), "+d"(high), "=@ccz"(same) : "b"(0UL), "c"(0UL));
    CHECK(!same && low == 10 && high == 20 && cell[0] == 10, "cmpxchg16b of unequal values");
    struct fault fault;
    CHECK(catches(&fault, misaligned16, cell + 1), "a misaligned cmpxchg16b went on");
    EQUAL(fault.registers[REG_TRAPNO], 13);
}

// Addresses: every base and index with its encoding's exception, and wrap-around by a 32-bit address size.
TEST(addressing)
{
    uint64_t cells[16];
    for (int i = 0; i < 16; i++) cells[i] = (uint64_t)i * 111;
    uint64_t value;
#define ADDRESS(base, index)                                                                              \
    __asm__ volatile("mov %1, %%" base "\n mov $3, %%" index "d\n movslq %%" index "d, %%" index "\n"      \
                     "mov 16(%%" base ",%%" index ",8), %0" : "=r"(value) : "r"(cells) : base, index, "memory"); \
    EQUAL(value, 555);
    ADDRESS("r12", "r13") ADDRESS("r13", "r12") ADDRESS("r8", "r9") ADDRESS("r15", "r14") ADDRESS("r11", "r10")
    __asm__ volatile("mov %%rsp, %%rcx\n mov %1, %%rsp\n mov 24(%%rsp), %0\n mov %%rcx, %%rsp" : "=r"(value) : "r"(cells) : "rcx", "memory");
    EQUAL(value, 333);
    static uint32_t here = 0xfeedface; // below 4 GB: the program is linked there
    uint32_t got;
    __asm__ volatile("mov $0xfffffffff0000000, %%rcx\n mov %k1, %%edx\n sub %%ecx, %%edx\n mov (%%edx,%%ecx), %0"
                     : "=&r"(got) : "r"(&here) : "rcx", "rdx", "cc", "memory");
    EQUAL(got, 0xfeedface);
    __asm__ volatile("movabs %c1, %%eax" : "=a"(got) : "i"(&here));
    EQUAL(got, 0xfeedface);
}

TEST(cpuid_and_proc_agree)
{
    unsigned a, b, c, d;
    char vendor[13] = {0}, line[256];
    CHECK(__get_cpuid(0, &a, (unsigned *)vendor, (unsigned *)(vendor + 8), (unsigned *)(vendor + 4)), "no cpuid");
    CHECK(a >= 1, "highest leaf %u", a);
    __cpuid(1, a, b, c, d);
    const unsigned needed = 1 | 1 << 4 | 1 << 8 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26; // FPU TSC CX8 CMOV MMX FXSR SSE SSE2
    EQUAL(d & needed, needed);
    FILE *file = fopen("/proc/cpuinfo", "r");
    bool found = false;
    while (file && fgets(line, sizeof line, file)) found |= strncmp(line, "vendor_id", 9) == 0 && strstr(line, vendor);
    CHECK(found, "/proc/cpuinfo knows no vendor %s", vendor);
    // A feature shown must be one that works: SSE, AVX and FMA are run by vector.c.
    if (c & 1 << 27) {
        uint32_t low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        EQUAL(low & 3, 3);
        if (c & 1 << 28) EQUAL(low & 4, 4);
    }
    __cpuid(0x80000000, a, b, c, d);
    CHECK(a >= 0x80000001, "highest extended leaf %#x", a);
    __cpuid(0x80000001, a, b, c, d);
    EQUAL(d >> 29 & 1, 1); // long mode
    EQUAL(d >> 11 & 1, 1); // syscall
    // cpuid clears the high halves of all four.
    uint64_t rax = 1, rbx = UINT64_MAX, rcx = UINT64_MAX << 32, rdx = UINT64_MAX;
    __asm__ volatile("cpuid" : "+a"(rax), "+b"(rbx), "+c"(rcx), "+d"(rdx));
    EQUAL((rax | rbx | rcx | rdx) >> 32, 0);
}
