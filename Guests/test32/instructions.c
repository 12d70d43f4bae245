// What 32-bit programs have and 64-bit ones do not: system calls by INT 80 and SYSENTER, 64-bit code by a far jump,
// decimal arithmetic, far pointers, and addresses and counts of 16 bits.
#include "../test/check.h"
#include <elf.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

// main.c's way to the test of execve, which is the 64-bit program's.
int executed(int count, char **arguments)
{
    (void)arguments;
    return count;
}

TEST(system_calls)
{
    uint32_t by_int, by_gate, page = (uint32_t)getauxval(AT_SYSINFO);
    __asm__ volatile("int $0x80" : "=a"(by_int) : "a"(SYS_getpid) : "memory");
    EQUAL(by_int, getpid());
    CHECK(page != 0, "no AT_SYSINFO");
    for (int i = 0; i < 1000; i++) {
        // SYSENTER or SYSCALL, whichever the kernel has chosen for this CPU.
        __asm__ volatile("call *%1" : "=a"(by_gate) : "r"(page), "a"(SYS_getpid) : "memory", "ecx", "edx");
        EQUAL(by_gate, by_int);
    }
    // Six arguments.
    uint8_t *memory = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap2");
    memory[2 * PAGE] = 1;
}

TEST(code64_by_far_jump)
{
    for (uint64_t i = 0; i < 1000; i++) {
        uint32_t low = (uint32_t)i, high = 0;
        __asm__ volatile("lcall $0x33, $1f\n\t"
                         "jmp 2f\n\t"
                         ".code64\n\t"
                         "1: movabs $0x100000001, %%r8\n\t"
                         "imul %%r8, %%rax\n\t"
                         "mov %%rax, %%rdx\n\t"
                         "shr $32, %%rdx\n\t"
                         "lretl\n\t"
                         ".code32\n\t"
                         "2:"
                         : "+a"(low), "=d"(high)
                         :
                         : "memory", "cc");
        EQUAL(low, i);
        EQUAL(high, i);
    }
}

TEST(decimal)
{
    uint32_t a = 0x79;
    __asm__("add $0x35, %%al\n\tdaa" : "+a"(a) : : "cc");
    EQUAL(a, 0x14);
    a = 0x35;
    __asm__("sub $0x47, %%al\n\tdas" : "+a"(a) : : "cc");
    EQUAL(a, 0x88);
    a = 0x0109;
    __asm__("add $7, %%al\n\taaa" : "+a"(a) : : "cc");
    EQUAL(a, 0x0206);
    a = 57;
    __asm__("aam" : "+a"(a) : : "cc");
    EQUAL(a, 0x0507);
    __asm__("aad" : "+a"(a) : : "cc");
    EQUAL(a, 57);
}

static void by_zero(void *unused)
{
    (void)unused;
    __asm__ volatile(".byte 0xd4, 0" : : : "eax", "cc"); // aam $0
}
static void out_of_bounds(void *unused)
{
    (void)unused;
    static const int32_t bounds[2] = {-5, 5};
    __asm__ volatile("bound %0, %1" : : "r"(6), "m"(bounds));
}
static void overflow(void *unused)
{
    (void)unused;
    __asm__ volatile("mov $0x7f, %%al\n\tinc %%al\n\tinto" : : : "eax", "cc");
}

TEST(old_traps)
{
    struct fault fault;
    CHECK(catches(&fault, by_zero, NULL), "aam");
    EQUAL(fault.signal, SIGFPE);
    CHECK(catches(&fault, out_of_bounds, NULL), "bound");
    EQUAL(fault.registers[REG_TRAPNO], 5);
    CHECK(catches(&fault, overflow, NULL), "into");
    EQUAL(fault.registers[REG_TRAPNO], 4);
}

TEST(stack_frames)
{
    uint32_t before, after, size;
    __asm__ volatile("mov %%esp, %0\n\tpusha\n\tmov 12(%%esp), %%ecx\n\tpopa\n\tmov %%esp, %1"
                     : "=&S"(before), "=&D"(after) : : "ecx", "memory");
    EQUAL(before, after);
    __asm__ volatile("push %%ebp\n\tmov %%esp, %%ecx\n\tenter $16, $3\n\tsub %%esp, %%ecx\n\tleave\n\tpop %%ebp"
                     : "=&c"(size) : : "memory");
    EQUAL(size, 4 + 3 * 4 + 16);
}

TEST(far_pointers)
{
    static const struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) pointer = {0x12345678, 0x2b};
    uint32_t offset, selector;
    __asm__ volatile("push %%es\n\tles %2, %0\n\tmov %%es, %1\n\tpop %%es" : "=&r"(offset), "=&r"(selector) : "m"(pointer));
    EQUAL(offset, 0x12345678);
    EQUAL(selector, 0x2b);
}

TEST(counts_of_16_bits)
{
    uint32_t count = 0xabcd0003, rounds = 0;
    __asm__ volatile("1: inc %1\n\t.byte 0x67, 0xe2, 0xfc" : "+c"(count), "+a"(rounds) : : "cc"); // loopw 1b
    EQUAL(rounds, 3);
    EQUAL(count, 0xabcd0000);
    uint32_t taken = 0;
    __asm__ volatile(".byte 0x67, 0xe3, 2\n\tjmp 1f\n\tinc %1\n\t1:" : "+c"(count), "+a"(taken) : : "cc"); // jcxz
    EQUAL(taken, 1);
    count = 0x10000;
    rounds = 0;
    // loopnew, and the carry flag stays.
    uint8_t carry = 0;
    __asm__ volatile("mov $5, %%cx\n\tstc\n\t1: lea 1(%1), %1\n\tmov $4, %%dl\n\tcmp %%dl, %b1\n\tstc\n\t.byte 0x67, 0xe0, 0xf5\n\tsetc %2"
                     : "+c"(count), "+a"(rounds), "=q"(carry) : : "edx", "cc");
    EQUAL(rounds, 4);
    EQUAL(count, 0x10001);
    EQUAL(carry, 1);
}

TEST(addresses_of_16_bits)
{
    uint32_t result;
    __asm__ volatile("addr16 lea -2(%%bx,%%si), %0" : "=r"(result) : "b"(0xffff8001), "S"(0x12348002));
    EQUAL(result, 1);
    __asm__ volatile(".byte 0x67, 0x8d, 0x06, 0xf0, 0xff\n\t" : "=a"(result) : ); // lea 0xfff0, %eax
    EQUAL(result, 0xfff0);
}

TEST(bits_beyond_the_operand)
{
    uint32_t words[64] = {0};
    words[0] = 1, words[63] = 0x80000000;
    uint8_t first, last;
    __asm__("bt %2, %1\n\tsetc %0" : "=q"(first) : "m"(words[32]), "r"(-32 * 32) : "cc", "memory");
    __asm__("bts %2, %1\n\tsetc %0" : "=q"(last) : "m"(words[32]), "r"(31 * 32 + 31) : "cc", "memory");
    EQUAL(first, 1);
    EQUAL(last, 1);
}
