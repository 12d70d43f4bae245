// AVX-512: registers that must survive other processes and signals, and masks that keep elements from faulting.
#include "closed_page.h"
#include <immintrin.h>
#include <sched.h>

#define NEEDS(feature) \
    if (!__builtin_cpu_supports(feature)) skip("this CPU has no " feature)
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl")))

struct wide {
    uint64_t vectors[32][8], masks[8];
} __attribute__((aligned(64)));

#define TEN(x, t) x(t##0) x(t##1) x(t##2) x(t##3) x(t##4) x(t##5) x(t##6) x(t##7) x(t##8) x(t##9)
#define VECTORS(x) TEN(x, ) TEN(x, 1) TEN(x, 2) x(30) x(31)
#define MASKS(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7)
#define FILL(n) "vmovdqa64 " #n "*64(%0), %%zmm" #n "\n"
#define SPILL(n) "vmovdqa64 %%zmm" #n ", " #n "*64(%0)\n"
#define FILL_MASK(n) "kmovq 2048+" #n "*8(%0), %%k" #n "\n"
#define SPILL_MASK(n) "kmovq %%k" #n ", 2048+" #n "*8(%0)\n"
#define CLOBBER(n) "xmm" #n,

// Every register filled with a number of its own while `body` runs: how many are others afterwards.
#define HOLD(cells, body, counter)                                                                                  \
    __asm__ volatile(VECTORS(FILL) MASKS(FILL_MASK) body VECTORS(SPILL) MASKS(SPILL_MASK) "vzeroupper"              \
                     : "+r"(cells), "+r"(counter)                                                                   \
                     :                                                                                              \
                     : TEN(CLOBBER, ) TEN(CLOBBER, 1) TEN(CLOBBER, 2) "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", \
                       "k6", "k7", "rax", "rcx", "rsi", "rdi", "r11", "memory", "cc")

static void number(struct wide *cells, uint64_t seed)
{
    uint64_t *words = (uint64_t *)cells;
    for (size_t i = 0; i < sizeof *cells / 8; i++) words[i] = seed * 1000003 + i;
}
static uint64_t differences(struct wide *cells, uint64_t seed)
{
    uint64_t *words = (uint64_t *)cells, wrong = 0;
    for (size_t i = 0; i < sizeof *cells / 8; i++) wrong += words[i] != seed * 1000003 + i;
    return wrong;
}

WIDE static uint64_t hold(uint64_t seed, uint64_t loops)
{
    struct wide cells, *at = &cells;
    number(at, seed);
    HOLD(at, "1: dec %1\n jnz 1b\n", loops);
    return differences(&cells, seed);
}
TEST(wide_registers_survive_other_processes)
{
    NEEDS("avx512bw");
    enum { PROCESSES = 4 };
    for (int p = 0; p < PROCESSES; p++)
        if (fork() == 0) {
            double until = seconds(CLOCK_MONOTONIC) + 0.4;
            for (uint64_t round = 0; round < 20 || seconds(CLOCK_MONOTONIC) < until; round++) {
                // One of them uses none of it: the kernel restores the initial state then.
                if (p) EQUAL(hold((uint64_t)getpid() * 100 + round, 200000), 0);
                if (round % 8 == 0) sched_yield();
            }
            _exit(0);
        }
    for (int p = 0; p < PROCESSES; p++) {
        int status = -1;
        wait(&status);
        if (status) _exit(WIFSIGNALED(status) ? 100 : WEXITSTATUS(status)); // the child has told why
    }
}

WIDE static void spoil(int signal)
{
    (void)signal;
    struct wide cells, *at = &cells;
    uint64_t once = 1;
    number(at, 7);
    HOLD(at, "dec %1\n", once);
}
WIDE static uint64_t hold_through_signal(void)
{
    struct wide cells, *at = &cells;
    uint64_t thread = (uint64_t)getpid();
    number(at, 5);
    // kill(getpid(), SIGUSR1) in the middle
    HOLD(at, "mov %1, %%rdi\n mov $10, %%esi\n push %0\n mov $62, %%eax\n syscall\n pop %0\n", thread);
    return differences(&cells, 5);
}
TEST(wide_registers_survive_a_signal)
{
    NEEDS("avx512bw");
    signal(SIGUSR1, spoil);
    for (int i = 0; i < 50; i++) EQUAL(hold_through_signal(), 0);
}

WIDE static void masked_load_all(void *end)
{
    volatile __m512i got = _mm512_maskz_loadu_epi8(0x1ffff, end);
    (void)got;
}
WIDE static void masked_moves(void)
{
    uint8_t *base = pages(1, PROT_READ | PROT_WRITE), *end = base + PAGE;
    for (int i = 0; i < PAGE; i++) base[i] = (uint8_t)i;
    for (int count = 0; count <= 64; count++) {
        __mmask64 mask = count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
        uint8_t got[64];
        _mm512_storeu_si512(got, _mm512_maskz_loadu_epi8(mask, end - count));
        for (int i = 0; i < 64; i++) EQUAL(got[i], i < count ? (uint8_t)(PAGE - count + i) : 0);
        _mm512_mask_storeu_epi8(end - count, mask, _mm512_loadu_si512(got));
        _mm512_mask_compressstoreu_epi32(end - (count & ~3), (__mmask16)((1 << count / 4) - 1), _mm512_maskz_expandloadu_epi32((__mmask16)((1 << count / 4) - 1), end - (count & ~3)));
    }
    for (int i = 0; i < PAGE; i++) EQUAL(base[i], (uint8_t)i);
    struct fault fault;
    CHECK(catches(&fault, masked_load_all, end - 16), "a masked load went into the guard page");
    EQUAL(fault.address, end);
}
TEST(wide_masked_moves_near_a_guard_page)
{
    NEEDS("avx512bw");
    masked_moves();
}

// Fault in the middle, and go on when the page is there.
WIDE static void gather_and_scatter(int32_t *cells, int round)
{
    int32_t got[16];
    __m512i index = _mm512_setr_epi32(0, 1, 2, 1023, 1024, 1500, 3, 2047, 4, 5, 1025, 6, 7, 8, 9, 2046);
    if (round % 2) {
        _mm512_i32scatter_epi32(cells, index, _mm512_mullo_epi32(index, _mm512_set1_epi32(3)), 4);
    } else {
        _mm512_storeu_si512(got, _mm512_i32gather_epi32(index, cells, 4));
        _mm512_i32scatter_epi32(cells, index, _mm512_loadu_si512(got), 4);
    }
}
TEST(wide_gather_and_scatter_with_a_fault)
{
    NEEDS("avx512bw");
    const int32_t *cells = with_closed_page(gather_and_scatter);
    for (int i = 0; i < 2048; i++) EQUAL(cells[i], i * 3);
}
