// Segments of a program's own (modify_ldt(2)): 16-bit code, bases, limits, types, 16-bit stacks (SDM volume 3,
// chapters 3 and 5). A 64-bit kernel runs them in compatibility mode.
#include "../test/check.h"
#include <asm/ldt.h>
#include <sys/syscall.h>
#include <sys/time.h>

enum { DATA = 0, DOWN = 1, CODE = 2, ENTRY = 3, SELECTOR = ENTRY << 3 | 7, WHOLE = 0xfffff };

enum { BIG = 1, READ_ONLY = 2, PAGES = 4 };

static unsigned selector(unsigned entry) { return entry << 3 | 7; }

static void set(unsigned entry, const void *base, unsigned limit, unsigned contents, unsigned flags)
{
    struct user_desc description = {
        .entry_number = entry,
        .base_addr = (unsigned)(uintptr_t)base,
        .limit = limit,
        .seg_32bit = (flags & BIG) != 0,
        .contents = contents,
        .read_exec_only = (flags & READ_ONLY) != 0,
        .limit_in_pages = (flags & PAGES) != 0,
        .useable = 1,
    };
    long result = syscall(SYS_modify_ldt, 1, &description, sizeof description);
    if (result != 0 && errno == EINVAL && !(flags & BIG)) skip("the kernel has no 16-bit segments: CONFIG_X86_16BIT");
    CHECK(result == 0, "modify_ldt: %s", strerror(errno));
}

// A far call of code that returns with `lretl`, 66 cb in 16-bit code.
struct far {
    uint32_t offset;
    uint16_t selector;
} __attribute__((packed));
struct registers {
    uint32_t a, b, c, d;
};
static void call(unsigned segment, uint32_t offset, struct registers *r)
{
    struct far target = {offset, (uint16_t)segment};
    __asm__ volatile("lcall *%[target]"
                     : "+a"(r->a), "+b"(r->b), "+c"(r->c), "+d"(r->d)
                     : [target] "m"(target)
                     : "cc", "memory");
}
static void call_again(void *argument)
{
    struct registers r = {0};
    call(SELECTOR, *(uint32_t *)argument, &r);
}

// The same code at the start of a 64 KB segment, and at an offset in it.
static uint8_t *segment16(const uint8_t *text, size_t size, size_t offset)
{
    uint8_t *memory = pages(16, PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy(memory + offset, text, size);
    set(ENTRY, memory, 0xffff, CODE, 0);
    return memory;
}
#define SEGMENT16(offset, ...) ({ static const uint8_t text_[] = {__VA_ARGS__}; segment16(text_, sizeof text_, offset); })

TEST(code16_sizes)
{
    SEGMENT16(0,
        0xb8, 0x34, 0x12,                         // mov $0x1234, %ax
        0x66, 0x05, 0x00, 0x00, 0x01, 0x00,       // add $0x10000, %eax
        0x43,                                     // inc %bx
        0x66, 0x41,                               // inc %ecx
        0x0f, 0xb7, 0xd0,                         // movzx %ax, %dx
        0xf7, 0xd2,                               // not %dx
        0x66, 0x0f, 0xca,                         // bswap %edx
        0x66, 0xcb);                              // lretl
    struct registers r = {0xabcd0000, 0x1234ffff, 0x0000ffff, 0x55550000};
    call(SELECTOR, 0, &r);
    EQUAL(r.a, 0xabce1234);
    EQUAL(r.b, 0x12340000);
    EQUAL(r.c, 0x00010000);
    EQUAL(r.d, 0xcbed5555);
}

TEST(code16_in_a_loop)
{
    // Long enough for the timer to come in between.
    SEGMENT16(0x123,
        0x66, 0xb9, 0x00, 0x00, 0x10, 0x00,       // mov $0x100000, %ecx
        0x66, 0x31, 0xc0,                         // xor %eax, %eax
        0x66, 0x01, 0xc8,                         // 1: add %ecx, %eax
        0xe8, 0x06, 0x00,                         // call 2f
        0x66, 0x49,                               // dec %ecx
        0x75, 0xf6,                               // jnz 1b
        0x66, 0xcb,                               // lretl
        0x40,                                     // 2: inc %ax
        0x48,                                     // dec %ax
        0xc3);                                    // ret
    struct registers r = {0};
    call(SELECTOR, 0x123, &r);
    EQUAL(r.a, (uint32_t)(((uint64_t)0x100000 * 0x100001) / 2));
    EQUAL(r.c, 0);
}

TEST(code16_wraps)
{
    // A near jump below 0 leads to the top of the segment.
    uint8_t *memory = SEGMENT16(0x10, 0xe9, 0x00, 0xff); // jmp 0xff13
    static const uint8_t top[] = {0x66, 0xb8, 1, 2, 3, 4, 0x66, 0xcb};
    memcpy(memory + 0xff13, top, sizeof top);
    struct registers r = {0};
    for (int i = 0; i < 100; i++) {
        r.a = 0;
        call(SELECTOR, 0x10, &r);
        EQUAL(r.a, 0x04030201);
    }
    // So it does in a segment that does not begin at a page, where half a page is another segment's.
    set(ENTRY, memory + 0x230, 0xffff - 0x230, CODE, 0);
    memory[0x240] = 0xe9, memory[0x241] = 0, memory[0x242] = 0xf0; // jmp 0xf013
    memcpy(memory + 0x230 + 0xf013, top, sizeof top);
    for (int i = 0; i < 100; i++) {
        r.a = 0;
        call(SELECTOR, 0x10, &r);
        EQUAL(r.a, 0x04030201);
    }
}

TEST(code_limit)
{
    struct fault fault;
    uint8_t *memory = pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    memset(memory, 0x90, 16);
    // Running on over the limit.
    set(ENTRY, memory, 4, CODE, BIG);
    CHECK(catches(&fault, call_again, &(uint32_t){0}), "code ran beyond its limit");
    EQUAL(fault.signal, SIGSEGV);
    EQUAL(fault.registers[REG_EIP], 5);
    EQUAL(fault.registers[REG_TRAPNO], 13);
    EQUAL((uint16_t)fault.registers[REG_CS], SELECTOR);
    // An instruction with its last byte beyond it.
    memory[4] = 0x31, memory[5] = 0xc0;
    CHECK(catches(&fault, call_again, &(uint32_t){0}), "half an instruction was executed");
    EQUAL(fault.registers[REG_EIP], 4);
    // Branches beyond it fault where they stand, with nothing pushed and nothing counted.
    memory[0] = 0xe8, memory[1] = 0x20, memory[2] = memory[3] = memory[4] = 0; // call 0x25
    CHECK(catches(&fault, call_again, &(uint32_t){0}), "call");
    EQUAL(fault.registers[REG_EIP], 0);
    uint32_t esp = (uint32_t)fault.registers[REG_ESP];
    memory[0] = 0xeb; // jmp 0x22
    CHECK(catches(&fault, call_again, &(uint32_t){0}), "jmp");
    EQUAL(fault.registers[REG_EIP], 0);
    EQUAL((uint32_t)fault.registers[REG_ESP], esp);
    memory[0] = 0xb1, memory[1] = 5, memory[2] = 0xe2, memory[3] = 0x20; // mov $5, %cl; loop 0x24
    CHECK(catches(&fault, call_again, &(uint32_t){0}), "loop");
    EQUAL(fault.registers[REG_EIP], 2);
    EQUAL(fault.registers[REG_ECX], 5);
}

// 32-bit code with 16-bit branches: the instruction pointer is cut.
TEST(narrow_branches)
{
    uint8_t *memory = pages(32, PROT_READ | PROT_WRITE | PROT_EXEC);
    set(ENTRY, memory, 32 * PAGE - 1, CODE, BIG);
    static const uint8_t first[] = {
        0x66, 0xe8, 0x0c, 0x00,                   // 0x8000: callw 0x8010
        0x50, 0x58,                               // push, pop
        0x66, 0xe9, 0xf6, 0x7f,                   // jmpw 0x18000 & 0xffff
    };
    static const uint8_t second[] = {0x83, 0xc0, 0x01, 0x66, 0xc3};         // 0x8010: add $1, %eax; retw
    static const uint8_t third[] = {0x83, 0xc0, 0x10, 0xcb};                // 0: add $0x10, %eax; lret
    memcpy(memory + 0x8000, first, sizeof first);
    memcpy(memory + 0x8010, second, sizeof second);
    memcpy(memory, third, sizeof third);
    for (uint32_t i = 0; i < 100; i++) {
        struct registers r = {.a = i};
        call(SELECTOR, 0x8000, &r);
        EQUAL(r.a, i + 0x11);
    }
    // Taken or not, near the top of 64 KB, with the flags as they were.
    static const uint8_t conditional[] = {
        0x39, 0xc8,                               // 0x1fff0: cmp %ecx, %eax
        0x66, 0x0f, 0x84, 0x0a, 0x00,             // jew 0x10001 & 0xffff, that is 1
        0x0f, 0x92, 0xc2,                         // setb %dl
        0xcb,
    };
    memcpy(memory + 0x1fff0, conditional, sizeof conditional);
    memory[1] = 0x0f, memory[2] = 0x94, memory[3] = 0xc3, memory[4] = 0xcb; // sete %bl; lret
    for (uint32_t i = 0; i < 100; i++) {
        struct registers r = {.a = i, .c = 50};
        call(SELECTOR, 0x1fff0, &r);
        EQUAL(r.b, i == 50);
        EQUAL(r.d, i < 50);
    }
}

static uint32_t es_read(unsigned segment, uint32_t offset)
{
    uint32_t value;
    __asm__ volatile("push %%es\n\tmov %w[segment], %%es\n\tmov %%es:(%[offset]), %[value]\n\tpop %%es"
                     : [value] "=&r"(value)
                     : [segment] "r"(segment), [offset] "r"(offset)
                     : "memory");
    return value;
}
static void es_write(unsigned segment, uint32_t offset, uint32_t value)
{
    __asm__ volatile("push %%es\n\tmov %w[segment], %%es\n\tmov %[value], %%es:(%[offset])\n\tpop %%es"
                     :
                     : [value] "r"(value), [segment] "r"(segment), [offset] "r"(offset)
                     : "memory");
}
static void read_again(void *offset) { es_read(SELECTOR, *(uint32_t *)offset); }
static void write_again(void *offset) { es_write(SELECTOR, *(uint32_t *)offset, 1); }

// Which offsets may be read and written, by the edges.
static void expect_range(const char *name, uint32_t good, uint32_t bad)
{
    struct fault fault;
    es_write(SELECTOR, good, 0x600df00d);
    EQUAL(es_read(SELECTOR, good), 0x600df00d);
    CHECK(catches(&fault, read_again, &bad), "%s: %#x was read", name, bad);
    EQUAL(fault.signal, SIGSEGV);
    EQUAL(fault.registers[REG_TRAPNO], 13);
    CHECK(catches(&fault, write_again, &bad), "%s: %#x was written", name, bad);
    EQUAL(fault.registers[REG_TRAPNO], 13);
}

TEST(data_limit)
{
    uint8_t *memory = pages(16, PROT_READ | PROT_WRITE);
    for (int flags = BIG; flags >= 0; flags -= BIG) {
        set(ENTRY, memory + 0x123, 0x1fff, DATA, (unsigned)flags);
        expect_range("up", 0x1ffc, 0x1ffd);
        EQUAL(*(uint32_t *)(memory + 0x123 + 0x1ffc), 0x600df00d);
        expect_range("up", 0, 0x2000);
        expect_range("up", 0, 0xffffffff);
        set(ENTRY, memory, 0xffe, DOWN, (unsigned)flags);
        expect_range("down", 0xfff, 0xffe);
        expect_range("down", 0xfffc, 0);
        if (flags) expect_range("down", 0x1000, 0xfffffffd);
        if (!flags) expect_range("down", 0x1000, 0xfffd);
    }
    set(ENTRY, (void *)4096, WHOLE, DATA, BIG | PAGES);
    EQUAL(es_read(SELECTOR, (uint32_t)(uintptr_t)memory - 4096), *(uint32_t *)memory);
    // Addresses wrap at 4 GB.
    set(ENTRY, (void *)0xfffff000, WHOLE, DATA, BIG | PAGES);
    *(uint32_t *)memory = 0x1234;
    EQUAL(es_read(SELECTOR, (uint32_t)(uintptr_t)memory + 4096), 0x1234);
}

TEST(data_types)
{
    struct fault fault;
    uint8_t *memory = pages(1, PROT_READ | PROT_WRITE);
    uint32_t zero = 0;
    set(ENTRY, memory, 0xfff, DATA, BIG | READ_ONLY);
    *(uint32_t *)memory = 77;
    EQUAL(es_read(SELECTOR, 0), 77);
    CHECK(catches(&fault, write_again, &zero), "a read-only segment was written");
    set(ENTRY, memory, 0xfff, CODE, BIG);
    EQUAL(es_read(SELECTOR, 0), 77);
    CHECK(catches(&fault, write_again, &zero), "a code segment was written");
    EQUAL(fault.registers[REG_TRAPNO], 13);
}

static void cs_override(void *offset)
{
    struct registers r = {.b = *(uint32_t *)offset};
    call(SELECTOR, 0, &r);
    EQUAL(r.a, 0x1234);
}

TEST(code_as_data)
{
    struct fault fault;
    uint32_t offset = 0x100, beyond = 0xffd;
    uint8_t *memory = pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    static const uint8_t text[] = {0x2e, 0x8b, 0x03, 0xcb}; // mov %cs:(%ebx), %eax; lret
    memcpy(memory, text, sizeof text);
    memory[0x100] = 0x34, memory[0x101] = 0x12;
    set(ENTRY, memory, 0xfff, CODE, BIG);
    cs_override(&offset);
    CHECK(catches(&fault, cs_override, &beyond), "read over the limit of cs");
    EQUAL(fault.registers[REG_EIP], 0);
    set(ENTRY, memory, 0xfff, CODE, BIG | READ_ONLY);
    CHECK(catches(&fault, cs_override, &offset), "an execute-only segment was read");
    memory[1] = 0x89; // mov %eax, %cs:(%ebx)
    set(ENTRY, memory, 0xfff, CODE, BIG);
    CHECK(catches(&fault, cs_override, &offset), "cs was written through");
}

static void through_fs(void *unused)
{
    (void)unused;
    __asm__ volatile("push %%fs\n\tmov %0, %%fs\n\tmov %%fs:0, %%eax\n\tpop %%fs" : : "r"(0) : "eax", "memory");
}
static void through_null_ds(void *unused)
{
    (void)unused;
    uint32_t value = 1;
    __asm__ volatile("mov %w1, %%ds\n\tmov (%2), %0" : "=r"(value) : "r"(3), "r"(&value) : "memory");
}

TEST(null_segments)
{
    struct fault fault;
    CHECK(catches(&fault, through_fs, NULL), "memory through a null fs");
    EQUAL(fault.signal, SIGSEGV);
    EQUAL(fault.registers[REG_TRAPNO], 13);
    CHECK(catches(&fault, through_null_ds, NULL), "memory through a null ds");
    EQUAL(fault.registers[REG_TRAPNO], 13);
}

TEST(strings_by_segment)
{
    uint8_t *memory = pages(2, PROT_READ | PROT_WRITE);
    set(ENTRY, memory + 7, 0xff, DATA, BIG);
    set(ENTRY + 1, memory + PAGE, 0xff, DATA, BIG);
    for (int i = 0; i < 300; i++) memory[i] = (uint8_t)i;
    uint32_t count = 100, source = 1, target = 3;
    __asm__ volatile("push %%es\n\tpush %%fs\n\tmov %w[to], %%es\n\tmov %w[from], %%fs\n\trep movsb %%fs:(%%esi), %%es:(%%edi)\n\t"
                     "pop %%fs\n\tpop %%es"
                     : "+c"(count), "+S"(source), "+D"(target)
                     : [to] "r"(selector(ENTRY + 1)), [from] "a"(selector(ENTRY))
                     : "memory");
    EQUAL(count, 0);
    EQUAL(source, 101);
    EQUAL(target, 103);
    EQUAL(memcmp(memory + PAGE + 3, memory + 8, 100), 0);
    EQUAL(memory[PAGE + 103], 0);
}

static void fill_over_the_limit(void *unused)
{
    (void)unused;
    __asm__ volatile("mov %w[segment], %%es\n\trep stosl" : : [segment] "d"(SELECTOR), "c"(100), "D"(4), "a"(0x55) : "memory");
}

TEST(string_stops_at_the_limit)
{
    struct fault fault;
    uint8_t *memory = pages(1, PROT_READ | PROT_WRITE);
    set(ENTRY, memory, 0x5f, DATA, BIG);
    CHECK(catches(&fault, fill_over_the_limit, NULL), "stos over the limit");
    EQUAL(fault.registers[REG_ECX], 100 - 0x5c / 4);
    EQUAL(fault.registers[REG_EDI], 0x60);
    EQUAL(*(uint32_t *)(memory + 0x5c), 0x55);
    EQUAL(*(uint32_t *)(memory + 0x60), 0);
}

// SS with 16 bits: only SP moves, and it wraps.
TEST(stack16)
{
    uint8_t *memory = pages(16, PROT_READ | PROT_WRITE);
    set(ENTRY, memory, 0xffff, DATA, 0);
    uint32_t esp = 0, popped = 0, called = 0;
    __asm__ volatile("mov %%esp, %%edi\n\t"
                     "mov %%ss, %%esi\n\t"
                     "mov %w[segment], %%ss\n\t"
                     "mov $0xabcd0000, %%esp\n\t"
                     "pushl $0x11223344\n\t"
                     "mov %%esp, %[esp]\n\t"
                     "mov %w[bottom], %%sp\n\t"
                     "pushl $0x55667788\n\t"
                     "pushw $0x99\n\t"
                     "popw %%ax\n\t"
                     "call 1f\n\t"
                     "1: popl %[called]\n\t"
                     "popl %[popped]\n\t"
                     "mov %%esi, %%ss\n\t"
                     "mov %%edi, %%esp"
                     : [esp] "=&r"(esp), [popped] "=&d"(popped), [called] "=&c"(called)
                     : [segment] "a"(SELECTOR), [bottom] "1"(0x8000)
                     : "esi", "edi", "memory", "cc");
    EQUAL(esp, 0xabcdfffc);
    EQUAL(*(uint32_t *)(memory + 0xfffc), 0x11223344);
    EQUAL(popped, 0x55667788);
    EQUAL(*(uint32_t *)(memory + 0x7ffc), 0x55667788);
}

// The kernel returns to a 16-bit stack with the upper half of ESP as it was ("espfix").
TEST(stack16_keeps_esp)
{
    uint8_t *memory = pages(16, PROT_READ | PROT_WRITE);
    set(ENTRY, memory, 0xffff, DATA, 0);
    uint32_t different = 0;
    __asm__ volatile("mov %%esp, %%edi\n\t"
                     "mov %%ss, %%esi\n\t"
                     "mov %w[segment], %%ss\n\t"
                     "mov $0x56789000, %%esp\n\t"
                     "mov $200000000, %%ecx\n\t"
                     "1: cmp $0x56789000, %%esp\n\t"
                     "setne %%al\n\t"
                     "or %%al, %%dl\n\t"
                     "dec %%ecx\n\t"
                     "jnz 1b\n\t"
                     "mov %%esi, %%ss\n\t"
                     "mov %%edi, %%esp"
                     : "+d"(different)
                     : [segment] "a"(SELECTOR)
                     : "ecx", "esi", "edi", "memory", "cc");
    EQUAL(different, 0);
}

static volatile sig_atomic_t ticks, code_segment;
static void tick(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    ticks++;
    code_segment = (uint16_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_CS];
}

TEST(signal_in_code16)
{
    SEGMENT16(0,
        0x66, 0xff, 0xc0,                         // 1: inc %eax
        0x66, 0x83, 0xd2, 0x00,                   // adc $0, %edx
        0x66, 0x49,                               // dec %ecx
        0x75, 0xf5,                               // jnz 1b
        0x66, 0xcb);
    handle(SIGALRM, tick, 0);
    struct itimerval often = {{0, 10000}, {0, 10000}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &often, NULL);
    int seen = 0;
    for (int i = 0; i < 100 && seen < 3; i++) {
        int before = ticks;
        struct registers r = {.c = 10000000};
        call(SELECTOR, 0, &r);
        EQUAL(r.a, 10000000);
        EQUAL(r.c, 0);
        if (ticks != before && code_segment == SELECTOR) seen++;
    }
    setitimer(ITIMER_REAL, &never, NULL);
    CHECK(seen > 0, "no signal came while 16-bit code ran");
}

TEST(questions_about_selectors)
{
    uint8_t *memory = pages(1, PROT_READ | PROT_WRITE);
    set(ENTRY, memory, 0x123, DATA, BIG | READ_ONLY);
    uint32_t limit = 0, rights = 0;
    uint8_t readable, writable, known;
    __asm__("verr %w1\n\tsete %0" : "=q"(readable) : "r"(SELECTOR) : "cc");
    __asm__("verw %w1\n\tsete %0" : "=q"(writable) : "r"(SELECTOR) : "cc");
    __asm__("lsl %2, %1\n\tsete %0" : "=&q"(known), "+r"(limit) : "r"(SELECTOR) : "cc");
    __asm__("lar %1, %0" : "+r"(rights) : "r"(SELECTOR) : "cc");
    EQUAL(readable, 1);
    EQUAL(writable, 0);
    EQUAL(known, 1);
    EQUAL(limit, 0x123);
    EQUAL(rights & 0xfe00, 0xf000);
    __asm__("lsl %2, %1\n\tsete %0" : "=&q"(known), "+r"(limit) : "r"(SELECTOR + 8 * 40) : "cc");
    EQUAL(known, 0);
}
