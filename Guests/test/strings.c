// String instructions: every width, both directions, across pages, and stopped half-way by a fault.
#include "check.h"

struct regs { uint64_t rdi, rsi, rcx, rax; };
#define STRING(name, text)                                                                              \
    static void name(struct regs *r)                                                                    \
    {                                                                                                   \
        __asm__ volatile(text : "+D"(r->rdi), "+S"(r->rsi), "+c"(r->rcx), "+a"(r->rax)::"memory", "cc"); \
    }
STRING(movsb, "rep movsb") STRING(movsw, "rep movsw") STRING(movsl, "rep movsl") STRING(movsq, "rep movsq")
STRING(movsb_down, "std\n rep movsb\n cld") STRING(movsq_down, "std\n rep movsq\n cld")
STRING(stosb, "rep stosb") STRING(stosw, "rep stosw") STRING(stosl, "rep stosl") STRING(stosq, "rep stosq")
STRING(scasb, "repne scasb") STRING(scasl_while, "repe scasl")
STRING(cmpsb, "repe cmpsb") STRING(cmpsq, "repe cmpsq")
STRING(lodsw, "lodsw") STRING(movsb_one, "movsb") STRING(stosq_one, "stosq")
STRING(movsb_32, "addr32 rep movsb")

static uint8_t *fresh(void)
{
    uint8_t *base = pages(6, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 6 * PAGE; i++) base[i] = (uint8_t)(i * 7 + i / 256);
    return base;
}
#define AT(pointer) ((uint64_t)(uintptr_t)(pointer))

TEST(rep_movs)
{
    void (*const moves[])(struct regs *) = {movsb, movsw, movsl, movsq};
    for (int which = 0; which < 4; which++)
        for (int offset = 0; offset < 20; offset += 3)
            for (int count = 0; count <= 2000; count = count * 3 + 1) {
                uint8_t *base = fresh(), *from = base + PAGE - 17 + offset, *to = base + 4 * PAGE - 9 - offset;
                struct regs r = {AT(to), AT(from), (uint64_t)count, 0};
                int size = 1 << which, bytes = count * size;
                if (bytes > PAGE) bytes = PAGE, r.rcx = (uint64_t)(bytes / size);
                uint8_t *expected = malloc((size_t)bytes + 1), before = to[-1], after = to[bytes];
                memcpy(expected, from, (size_t)bytes);
                moves[which](&r);
                CHECK(memcmp(to, expected, (size_t)bytes) == 0, "width %d, count %d: wrong bytes", size, count);
                EQUAL(to[-1], before);
                EQUAL(to[bytes], after);
                EQUAL(r.rcx, 0);
                EQUAL(r.rdi, AT(to) + (uint64_t)bytes);
                EQUAL(r.rsi, AT(from) + (uint64_t)bytes);
                free(expected);
                munmap(base, 7 * PAGE);
            }
}

// Source one byte below the target: the first byte is spread over all the rest.
TEST(overlapping_rep_movs)
{
    uint8_t *base = fresh();
    base[100] = 0xee;
    movsb(&(struct regs){AT(base + 101), AT(base + 100), 2 * PAGE, 0});
    for (int i = 100; i <= 100 + 2 * PAGE; i++) EQUAL(base[i], 0xee);
    for (int i = 0; i < 300; i++) base[i] = (uint8_t)i;
    movsq(&(struct regs){AT(base + 3), AT(base), 20, 0}); // three bytes on, eight at a time
    uint8_t model[300];
    for (int i = 0; i < 300; i++) model[i] = (uint8_t)i;
    for (int i = 0; i < 20; i++) memmove(model + 3 + 8 * i, model + 8 * i, 8);
    CHECK(memcmp(base, model, 300) == 0, "an overlapping movsq is not eight bytes at a time");
}

TEST(downward_strings)
{
    uint8_t *base = fresh(), *copy = fresh();
    struct regs r = {AT(base + 3 * PAGE + 10), AT(base + PAGE + 700), PAGE + 500, 0};
    movsb_down(&r);
    EQUAL(r.rcx, 0);
    EQUAL(r.rdi, AT(base + 2 * PAGE + 10 - 500));
    CHECK(memcmp(base + 2 * PAGE + 11 - 500, copy + 201, PAGE + 500) == 0, "downward movsb");
    r = (struct regs){AT(base + 5 * PAGE + 4), AT(base + 4), 100, 0};
    memcpy(base, copy, 100);
    r.rsi = AT(base + 792), r.rdi = AT(base + 5 * PAGE + 300);
    movsq_down(&r);
    EQUAL(r.rsi, AT(base + 792 - 800));
    EQUAL(r.rdi, AT(base + 5 * PAGE + 300 - 800));
}

TEST(rep_stos)
{
    void (*const fills[])(struct regs *) = {stosb, stosw, stosl, stosq};
    const uint64_t value = 0x8877665544332211;
    for (int which = 0; which < 4; which++)
        for (int offset = 0; offset < 9; offset++) {
            uint8_t *base = fresh(), *to = base + PAGE - 5 + offset;
            struct regs r = {AT(to), 1, 1200, value};
            uint8_t before = to[-1];
            fills[which](&r);
            int size = 1 << which;
            for (int i = 0; i < 1200 * size; i++) EQUAL(to[i], (uint8_t)(value >> (i % size * 8)));
            EQUAL(to[-1], before);
            EQUAL(r.rdi, AT(to) + (uint64_t)(1200 * size));
            EQUAL(r.rsi, 1);
            EQUAL(r.rax, value);
            munmap(base, 7 * PAGE);
        }
}

TEST(scas_and_cmps)
{
    uint8_t *base = pages(4, PROT_READ | PROT_WRITE), *other = pages(4, PROT_READ | PROT_WRITE);
    for (int length = 0; length < 3 * PAGE; length = length * 2 + 3) {
        memset(base, 'x', 3 * PAGE);
        base[length] = 'y';
        struct regs r = {AT(base), 0, UINT64_MAX, 'y'};
        scasb(&r);
        EQUAL(r.rdi, AT(base) + (uint64_t)length + 1);
        EQUAL(~r.rcx, (uint64_t)length + 1);
        memset(other, 'x', 3 * PAGE);
        r = (struct regs){AT(base), AT(other), 3 * PAGE, 0};
        bool above;
        __asm__ volatile("repe cmpsb" : "+D"(r.rdi), "+S"(r.rsi), "+c"(r.rcx), "=@ccb"(above)::"memory");
        EQUAL(r.rcx, 3 * PAGE - length - 1);
        EQUAL(above, true); // 'x' in the source is below 'y' in the target
    }
    struct regs r = {AT(base), AT(base), 0, 0};
    bool zero, carry;
    __asm__ volatile("stc\n repe cmpsb" : "+D"(r.rdi), "+S"(r.rsi), "+c"(r.rcx), "=@ccc"(carry), "=@ccnz"(zero)::"memory");
    EQUAL(carry, true); // no round, no change of flags
    memset(base, 0, 4 * PAGE);
    memset(other, 0, 4 * PAGE);
    other[2 * PAGE + 16] = 1;
    r = (struct regs){AT(base), AT(other), 4 * PAGE / 8, 0};
    cmpsq(&r);
    EQUAL(r.rcx, 4 * PAGE / 8 - (2 * PAGE + 16) / 8 - 1);
    memset(base, 0x11, PAGE);
    r = (struct regs){AT(base), 0, 2 * PAGE / 4, 0x11111111};
    scasl_while(&r);
    EQUAL(r.rdi, AT(base) + PAGE + 4);
    cmpsb(&(struct regs){AT(base), AT(base), 10, 0});
}

TEST(single_string_instructions)
{
    uint8_t *base = fresh(), first = base[0];
    uint16_t word;
    memcpy(&word, base + PAGE - 1, 2);
    struct regs r = {AT(base + 100), AT(base + PAGE - 1), 5, 0xffff0000};
    lodsw(&r);
    EQUAL(r.rax, 0xffff0000 | word);
    EQUAL(r.rsi, AT(base + PAGE + 1));
    EQUAL(r.rcx, 5);
    r.rsi = AT(base);
    movsb_one(&r);
    EQUAL(base[100], first);
    stosq_one(&r);
    EQUAL(r.rdi, AT(base + 109));
    // A 32-bit address size: only the low halves count, and the high ones are cleared.
    uint8_t *low = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED) fail("MAP_32BIT: %s", strerror(errno));
    low[0] = 55;
    r = (struct regs){0xab00000000 | AT(low + 8), 0xcd00000000 | AT(low), 0xef00000004, 0};
    movsb_32(&r);
    EQUAL(low[8], 55);
    EQUAL(r.rcx, 0);
    EQUAL(r.rdi, AT(low + 12));
    EQUAL(r.rsi, AT(low + 4));
}

// A fault in the middle leaves the registers at the element that failed, with all before it done.
static struct regs stopped;
static uint8_t *opened;
static void open_page(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    stopped = (struct regs){(uint64_t)g[REG_RDI], (uint64_t)g[REG_RSI], (uint64_t)g[REG_RCX], AT(info->si_addr)};
    mprotect(opened, PAGE, PROT_READ | PROT_WRITE);
}
TEST(fault_inside_rep_movs)
{
    handle(SIGSEGV, open_page, 0);
    for (int round = 0; round < 40; round++) {
        uint8_t *base = pages(8, PROT_READ | PROT_WRITE), *from = base + 100 + round, *to = base + 4 * PAGE + 8 * round;
        for (int i = 0; i < 3 * PAGE; i++) from[i] = (uint8_t)(i * 3 + round);
        bool source = round % 2;
        opened = source ? base + 2 * PAGE : base + 6 * PAGE;
        mprotect(opened, PAGE, round % 4 < 2 ? PROT_NONE : source ? PROT_NONE : PROT_READ);
        struct regs r = {AT(to), AT(from), 3 * PAGE / 8, 0};
        movsq(&r);
        EQUAL(r.rcx, 0);
        uint64_t done = 3 * PAGE / 8 - stopped.rcx;
        EQUAL(stopped.rdi, AT(to) + done * 8);
        EQUAL(stopped.rsi, AT(from) + done * 8);
        uint64_t at = source ? stopped.rsi : stopped.rdi;
        CHECK(at <= stopped.rax && stopped.rax < at + 8, "stopped at %#lx for a fault at %#lx", (unsigned long)at, (unsigned long)stopped.rax);
        EQUAL(stopped.rax, opened);
        for (int i = 0; i < 3 * PAGE; i++) EQUAL(to[i], (uint8_t)(i * 3 + round));
        munmap(base, 9 * PAGE);
    }
}
TEST(fault_inside_rep_stos)
{
    handle(SIGSEGV, open_page, 0);
    uint8_t *base = pages(4, PROT_READ | PROT_WRITE);
    opened = base + 2 * PAGE;
    mprotect(opened, PAGE, PROT_READ);
    struct regs r = {AT(base + 5), 0, 3 * PAGE, 0xa5};
    stosb(&r);
    EQUAL(stopped.rdi, AT(opened));
    EQUAL(stopped.rcx, PAGE + 5);
    for (int i = 0; i < 3 * PAGE; i++) EQUAL(base[5 + i], 0xa5);
    EQUAL(base[4], 0);
    EQUAL(base[3 * PAGE + 5], 0);
}
