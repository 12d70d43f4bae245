// Code that changes, and control flow out of the ordinary. A processor that keeps translations or decoded
// instructions must notice each change (SDM volume 3, 8.1.3 and 11.6).
#include "check.h"
#include <setjmp.h>

enum { RWX = PROT_READ | PROT_WRITE | PROT_EXEC };
typedef uint64_t (*code)(uint64_t);

// mov $value, %eax; ret
static void plant(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

TEST(modify_code)
{
    uint8_t *page = pages(1, RWX);
    for (uint32_t i = 0; i < 3000; i++) {
        plant(page + 64, i);
        EQUAL(((code)(page + 64))(0), i);
    }
    // The operand alone, in code that has run often.
    plant(page, 1);
    for (int i = 0; i < 1000; i++) EQUAL(((code)page)(0), 1);
    page[2] = 1;
    EQUAL(((code)page)(0), 257);
}

// A store to the instruction right behind it, in one straight line.
TEST(modify_the_next_instruction)
{
    static const uint8_t text[] = {
        0x40, 0x88, 0x3d, 0x01, 0x00, 0x00, 0x00, // mov %dil, 1(%rip)
        0xb8, 0x00, 0x00, 0x00, 0x00,             // mov $0, %eax
        0xc3,
    };
    uint8_t *page = pages(1, RWX);
    memcpy(page, text, sizeof text);
    for (int i = 0; i < 500; i++) EQUAL(((code)page)((uint64_t)i), (uint8_t)i);
}

// A loop that rewrites its own body while it runs: add $n, %eax with n counted up.
TEST(modify_a_running_loop)
{
    static const uint8_t text[] = {
        0x31, 0xc0,                               // xor %eax, %eax
        0x89, 0xf9,                               // mov %edi, %ecx
        0x83, 0xc0, 0x00,                         // 1: add $0, %eax
        0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff,       // incb -7(%rip): the immediate above
        0xff, 0xc9,                               // dec %ecx
        0x75, 0xf3,                               // jnz 1b
        0xc3,
    };
    uint8_t *page = pages(1, RWX);
    memcpy(page, text, sizeof text);
    EQUAL(((code)page)(100), 99 * 100 / 2);
}

TEST(modify_through_another_mapping)
{
    int file = memfd_create("code", 0);
    CHECK(ftruncate(file, PAGE) == 0, "ftruncate");
    uint8_t *writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint8_t *executable = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    for (uint32_t i = 0; i < 500; i++) {
        plant(writable + 100, i);
        EQUAL(((code)(executable + 100))(0), i);
    }
    // The kernel writes it, by its own mapping.
    for (uint32_t i = 500; i < 700; i++) {
        CHECK(pwrite(file, &i, 4, 101) == 4, "pwrite");
        EQUAL(((code)(executable + 100))(0), i);
    }
}

TEST(code_across_pages)
{
    uint8_t *page = pages(3, RWX);
    for (int start = PAGE - 6; start <= PAGE; start++)
        for (uint32_t i = 0; i < 50; i++) {
            plant(page + start, i << 16 | i);
            EQUAL(((code)(page + start))(0), i << 16 | i);
        }
    // The second page is replaced under an instruction that begins in the first.
    plant(page + PAGE - 2, 0x01010101);
    EQUAL(((code)(page + PAGE - 2))(0), 0x01010101);
    uint8_t old[16];
    memcpy(old, page + PAGE, sizeof old);
    CHECK(mmap(page + PAGE, PAGE, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page + PAGE, "mmap");
    memcpy(page + PAGE, old, sizeof old);
    page[PAGE + 2] = 0x02;
    EQUAL(((code)(page + PAGE - 2))(0), 0x02010101);
    // An instruction whose second page may not be executed faults there.
    struct fault fault;
    mprotect(page + PAGE, PAGE, PROT_READ | PROT_WRITE);
    CHECK(catches(&fault, (void (*)(void *))(void *)(page + PAGE - 2), NULL), "half an instruction was executed");
    EQUAL(fault.registers[REG_RIP], page + PAGE - 2);
    EQUAL(fault.registers[REG_CR2], page + PAGE);
}

// The same address with other code: after munmap, in another process, after copy on write.
TEST(other_code_at_one_address)
{
    uint8_t *place = pages(1, RWX);
    for (uint32_t i = 0; i < 50; i++) {
        CHECK(mmap(place, PAGE, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == place, "mmap");
        plant(place, i);
        EQUAL(((code)place)(0), i);
    }
    int status;
    for (int i = 0; i < 20; i++) {
        plant(place, 1000);
        EQUAL(((code)place)(0), 1000);
        pid_t child = fork();
        if (child == 0) {
            EQUAL(((code)place)(0), 1000);
            plant(place, (uint32_t)i);
            _exit((int)((code)place)(0));
        }
        EQUAL(((code)place)(0), 1000);
        waitpid(child, &status, 0);
        EQUAL(status, i << 8);
    }
}

// Code beside data that changes all the time: each store hits the page, none of them the code.
TEST(data_beside_code)
{
    uint8_t *page = pages(1, RWX);
    plant(page, 5);
    volatile uint32_t *cell = (volatile uint32_t *)(page + 2048);
    for (uint32_t i = 0; i < 20000; i++) {
        *cell += (uint32_t)((code)page)(0);
        EQUAL(*cell, 5 * (i + 1));
    }
}

// One byte sequence, two ways to read it: a jump into the middle of an instruction.
TEST(overlapping_instructions)
{
    static const uint8_t text[] = {0xb8, 0x05, 0x01, 0x00, 0x00, 0xc3, 0x90}; // mov $0x105, %eax; ret
    uint8_t *page = pages(1, RWX);
    memcpy(page, text, sizeof text);
    page[1] = 0x31; // mov $0xc3c031..., and from its second byte: xor %eax, %eax; ret
    page[2] = 0xc0;
    page[3] = 0xc3;
    for (int i = 0; i < 100; i++) {
        EQUAL(((code)page)(0), 0xc3c031);
        EQUAL(((code)(page + 1))(0), 0);
    }
}

TEST(instruction_length_limit)
{
    struct fault fault;
    uint8_t *page = pages(1, RWX);
    memset(page, 0x66, 14);
    page[14] = 0x90;
    page[15] = 0xc3;
    ((code)page)(0); // 15 bytes: the longest there is
    memset(page, 0x66, 15);
    page[15] = 0x90;
    page[16] = 0xc3;
    CHECK(catches(&fault, (void (*)(void *))(void *)page, NULL), "16 bytes were one instruction");
    EQUAL(fault.signal, SIGSEGV);
    EQUAL(fault.registers[REG_RIP], page);
}

// Returns that do not go where the call came from.
TEST(unbalanced_returns)
{
    for (int i = 0; i < 1000; i++) {
        uint64_t result = 0;
        __asm__ volatile(
            "sub $128, %%rsp\n"
            "call 1f\n ud2\n"                       // dropped
            "1: add $8, %%rsp\n add $1, %0\n"
            "lea 2f(%%rip), %%rax\n push %%rax\n ret\n ud2\n" // return as a jump
            "2: add $2, %0\n"
            "call 3f\n jmp 4f\n add $4, %0\n jmp 5f\n"
            "3: addq $2, (%%rsp)\n ret\n"           // return beyond a two-byte jump
            "4: ud2\n"
            "5: call 6f\n 6: pop %%rax\n lea 6b(%%rip), %%rcx\n sub %%rcx, %%rax\n add %%rax, %0\n" // where am I
            "push %%rax\n push %%rax\n lea 7f(%%rip), %%rax\n push %%rax\n ret $16\n ud2\n"
            "7: add $128, %%rsp\n"
            : "+r"(result)::"rax", "rcx", "memory", "cc");
        EQUAL(result, 7);
    }
}

static jmp_buf top;
static __attribute__((noinline)) int descend(int depth, int end)
{
    if (depth == end) longjmp(top, depth);
    return depth < 1000000 ? descend(depth + 1, end) + 1 : 0;
}
TEST(long_jumps)
{
    for (volatile int i = 1; i < 500; i++) {
        int value = setjmp(top);
        if (value == 0) {
            descend(0, i);
            fail("came back from a long jump");
        }
        EQUAL(value, i);
    }
}

static uint64_t add_one(uint64_t x) { return x + 1; }
static uint64_t twice(uint64_t x) { return x * 2; }
static uint64_t square(uint64_t x) { return x * x; }
static uint64_t flip(uint64_t x) { return ~x; }
TEST(indirect_calls)
{
    code volatile table[] = {add_one, twice, square, flip};
    uint64_t x = 1, y = 1;
    for (uint32_t i = 0; i < 100000; i++) {
        uint32_t which = (i * 2654435761u) >> 30;
        x = table[which](x);
        switch (which) {
        case 0: y = y + 1; break;
        case 1: y = y * 2; break;
        case 2: y = y * y; break;
        default: y = ~y;
        }
    }
    EQUAL(x, y);
}

// loop, jrcxz, enter, leave, xlat, far return and iret to user space.
TEST(rare_control_flow)
{
    uint64_t rax = 0, rbx = 0;
    __asm__ volatile("mov $10, %%ecx\n 1: inc %%rax\n loop 1b\n"
                     "jrcxz 2f\n ud2\n 2: mov $3, %%ecx\n 3: inc %%rax\n cmp %%eax, %%eax\n loope 3b\n"
                     "mov $0x100000000, %%rcx\n jecxz 4f\n ud2\n 4: jrcxz 5f\n jmp 6f\n 5: ud2\n 6:"
                     : "+a"(rax)::"rcx", "cc");
    EQUAL(rax, 13);
    __asm__ volatile("mov %%rsp, %%rbx\n push %%rbp\n enter $32, $1\n mov -8(%%rbp), %%rax\n sub %%rbp, %%rax\n leave\n pop %%rbp\n"
                     "sub %%rsp, %%rbx" : "+a"(rax), "+b"(rbx)::"memory", "cc");
    EQUAL(rax, 0);
    EQUAL(rbx, 0);
    static const char table[] = "0123456789abcdef";
    rax = 0xff00 | 11;
    __asm__ volatile("xlatb" : "+a"(rax) : "b"(table), "m"(table));
    EQUAL(rax, 0xff00 | 'b');

    uint16_t cs, ss, ds;
    __asm__ volatile("mov %%cs, %0\n mov %%ss, %1\n mov %%ds, %2" : "=r"(cs), "=r"(ss), "=r"(ds));
    EQUAL(cs, 0x33);
    EQUAL(ss, 0x2b);
    __asm__ volatile("mov $0, %%eax\n movzwl %w1, %%ecx\n push %%rcx\n lea 1f(%%rip), %%rcx\n push %%rcx\n lretq\n ud2\n 1: inc %%eax"
                     : "=&a"(rax) : "r"(cs) : "rcx", "memory", "cc");
    EQUAL(rax, 1);
    __asm__ volatile("mov %%rsp, %%rcx\n xor %%eax, %%eax\n movzwl %w2, %%edx\n push %%rdx\n push %%rcx\n pushfq\n orq $1, (%%rsp)\n"
                     "movzwl %w1, %%edx\n push %%rdx\n lea 1f(%%rip), %%rdx\n push %%rdx\n iretq\n ud2\n 1: adc $0, %%eax"
                     : "=&a"(rax) : "r"(cs), "r"(ss) : "rcx", "rdx", "memory", "cc");
    EQUAL(rax, 1);
}

// The fs and gs bases, and what a user may ask of selectors.
TEST(segments)
{
    static uint64_t cells[4] = {11, 22, 33, 44};
    extern int arch_prctl(int, unsigned long);
    enum { ARCH_SET_GS = 0x1001, ARCH_GET_FS = 0x1003 };
    uint64_t value, base = 0;
    EQUAL(arch_prctl(ARCH_SET_GS, (unsigned long)cells), 0);
    __asm__ volatile("mov %%gs:16, %0" : "=r"(value));
    EQUAL(value, 33);
    __asm__ volatile("addq $5, %%gs:(%1)\n mov %%gs:8(,%1,2), %0" : "=r"(value) : "r"(8UL) : "memory", "cc");
    EQUAL(value, 44);
    EQUAL(cells[1], 27);
    arch_prctl(ARCH_GET_FS, (unsigned long)&base);
    __asm__ volatile("mov %%fs:0, %0" : "=r"(value));
    EQUAL(value, base);
    for (int i = 0; i < 3; i++) usleep(1000); // another process ran meanwhile
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    EQUAL(value, 11);
    uint32_t rights = 0, limit = 0;
    bool valid;
    uint16_t es;
    __asm__ volatile("lar %2, %0" : "=r"(rights), "=@ccz"(valid) : "r"(0x33));
    CHECK(valid && (rights & 0xfb00) == 0xfb00 && (rights & 0x200000), "access rights %#x of the code segment", rights);
    __asm__ volatile("lsl %2, %0" : "=r"(limit), "=@ccz"(valid) : "r"(0x2b));
    CHECK(valid && limit == 0xffffffff, "limit %#x of the data segment", limit);
    __asm__ volatile("verw %1" : "=@ccz"(valid) : "r"((uint16_t)0x2b));
    EQUAL(valid, true);
    __asm__ volatile("verw %1" : "=@ccz"(valid) : "r"((uint16_t)0x33));
    EQUAL(valid, false);
    __asm__ volatile("lar %2, %0" : "=r"(rights), "=@ccz"(valid) : "r"(0x10));
    EQUAL(valid, false); // a kernel segment is not for ring 3 to see
    __asm__ volatile("mov %%es, %0\n mov %0, %%es\n push %%gs\n pop %%gs" : "=r"(es)::"memory");
}
