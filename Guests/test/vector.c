// SSE, AVX and what came with them: results against constants, faults in the middle, and registers that must
// survive other processes.
#include "closed_page.h"
#include <immintrin.h>
#include <sched.h>

#define NEEDS(feature) \
    if (!__builtin_cpu_supports(feature)) skip("this CPU has no " feature)
#define WITH(features) __attribute__((target(features)))

TEST(sse2_integers)
{
    __m128i a = _mm_set_epi8(-1, 127, -128, 5, 6, 7, 8, 9, 100, -100, 50, -50, 1, 2, 3, 4), b = _mm_set1_epi8(100);
    uint8_t got[16];
    _mm_storeu_si128((__m128i *)got, _mm_adds_epi8(a, b));
    EQUAL(got[14], 127);
    EQUAL(got[15], 99);
    _mm_storeu_si128((__m128i *)got, _mm_subs_epu8(a, b));
    EQUAL(got[7], 0);
    EQUAL(got[15], 155);
    EQUAL(_mm_movemask_epi8(a), 0xa050);
    EQUAL(_mm_extract_epi16(_mm_madd_epi16(a, a), 0), (uint16_t)(0x304 * 0x304 + 0x102 * 0x102));
    EQUAL(_mm_cvtsi128_si64(_mm_sad_epu8(a, b)), 0 + 56 + 50 + 106 + 99 + 98 + 97 + 96);
    EQUAL(_mm_cvtsi128_si64(_mm_mul_epu32(_mm_set1_epi64x(UINT32_MAX), _mm_set1_epi64x(UINT32_MAX))), 0xfffffffe00000001);
    EQUAL(_mm_cvtsi128_si64(_mm_shuffle_epi32(_mm_set_epi32(4, 3, 2, 1), 0x1b)), 0x300000004);
}

WITH("sse4.2,ssse3") static void sse4(void)
{
    __m128i text = _mm_setr_epi8('h', 'e', 'l', 'l', 'o', ',', ' ', 'w', 'o', 'r', 'l', 'd', 0, 0, 0, 0);
    EQUAL(_mm_cmpistri(_mm_setr_epi8('w', 'o', 'r', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), text, _SIDD_CMP_EQUAL_ORDERED), 7);
    EQUAL(_mm_cmpestri(_mm_setr_epi8('a', 'd', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 2, text, 12, _SIDD_CMP_RANGES), 11);
    EQUAL(_mm_crc32_u64(0xffffffff, 0x3837363534333231), _mm_crc32_u32(_mm_crc32_u32(0xffffffff, 0x34333231), 0x38373635));
    uint32_t crc = 0xffffffff; // "123456789" is the check word of CRC-32C
    for (int i = 0; i < 9; i++) crc = _mm_crc32_u8(crc, (uint8_t)('1' + i));
    EQUAL(~crc, 0xe3069283);
    EQUAL(_mm_cvtsi128_si64(_mm_shuffle_epi8(text, _mm_setr_epi8(4, 3, 2, 1, 0, -128, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0))), _mm_cvtsi128_si64(_mm_setr_epi8('o', 'l', 'l', 'e', 'h', 0, 'w', 'w', 0, 0, 0, 0, 0, 0, 0, 0)));
    EQUAL(_mm_testz_si128(text, _mm_setzero_si128()), 1);
    EQUAL(_mm_extract_epi32(_mm_mullo_epi32(_mm_set1_epi32(-3), _mm_set1_epi32(7)), 2), (uint64_t)(int64_t)-21);
    EQUAL(_mm_popcnt_u64(0xf0f0f0f0f0f0f0f1), 33);
}
TEST(sse4_instructions)
{
    NEEDS("sse4.2");
    sse4();
}

WITH("avx2") static void avx2(void)
{
    uint32_t table[64];
    for (uint32_t i = 0; i < 64; i++) table[i] = i * i;
    __m256i a = _mm256_setr_epi32(1, -2, 3, -4, 5, -6, 7, -8), b = _mm256_set1_epi32(1000);
    uint32_t got[8];
    _mm256_storeu_si256((__m256i *)got, _mm256_mullo_epi32(a, b));
    for (int i = 0; i < 8; i++) EQUAL((int32_t)got[i], (uint64_t)(int64_t)((i % 2 ? -1 : 1) * (i + 1) * 1000));
    _mm256_storeu_si256((__m256i *)got, _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0)));
    EQUAL(got[0], (uint32_t)-8);
    EQUAL(got[7], 1);
    _mm256_storeu_si256((__m256i *)got, _mm256_i32gather_epi32((int *)table, _mm256_setr_epi32(9, 1, 60, 3, 7, 33, 2, 63), 4));
    EQUAL(got[2], 3600);
    EQUAL(got[7], 3969);
    _mm256_storeu_si256((__m256i *)got, _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_setr_epi32(0, 1, 31, 32, 33, 5, 6, 7)));
    EQUAL(got[2], 0x80000000);
    EQUAL(got[3], 0);
    EQUAL(_mm256_movemask_epi8(_mm256_cmpgt_epi32(a, _mm256_setzero_si256())), 0x0f0f0f0f);
    uint64_t sums[4], total = 0;
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < 100000; i++) sum = _mm256_add_epi64(sum, _mm256_mul_epu32(_mm256_set1_epi64x(i), _mm256_set1_epi64x(i)));
    _mm256_storeu_si256((__m256i *)sums, sum);
    for (uint64_t i = 0; i < 100000; i++) total += i * i;
    for (int i = 0; i < 4; i++) EQUAL(sums[i], total);
    // A 128-bit instruction clears the upper half in its VEX form and leaves it in the old one.
    __asm__ volatile("vpcmpeqd %%ymm1, %%ymm1, %%ymm1\n vpcmpeqd %%ymm2, %%ymm2, %%ymm2\n vpxor %%xmm1, %%xmm1, %%xmm1\n pxor %%xmm2, %%xmm2\n"
                     "vextracti128 $1, %%ymm1, %%xmm3\n vmovq %%xmm3, %0\n vextracti128 $1, %%ymm2, %%xmm3\n vmovq %%xmm3, %1"
                     : "=r"(sums[0]), "=r"(sums[1])::"xmm1", "xmm2", "xmm3");
    EQUAL(sums[0], 0);
    EQUAL(sums[1], UINT64_MAX);
    uint8_t *base = pages(2, PROT_READ | PROT_WRITE);
    for (int at = PAGE - 32; at <= PAGE; at += 3) {
        _mm256_storeu_si256((__m256i *)(base + at), a);
        CHECK(memcmp(base + at, &a, 32) == 0, "a 32-byte store at %d", at);
        _mm256_storeu_si256((__m256i *)got, _mm256_add_epi32(_mm256_loadu_si256((__m256i *)(base + at)), b));
        EQUAL(got[7], 992);
    }
}
TEST(avx2_integers)
{
    NEEDS("avx2");
    avx2();
}

WITH("fma,avx") static void fma_constants(void)
{
    double x = 1.0 + 0x1p-30, got[4];
    _mm256_storeu_pd(got, _mm256_fmsub_pd(_mm256_set1_pd(x), _mm256_set1_pd(x), _mm256_set1_pd(1.0 + 0x1p-29)));
    for (int i = 0; i < 4; i++) CHECK(got[i] == 0x1p-60, "a fused product is rounded twice: %a", got[i]);
    float f[8];
    _mm256_storeu_ps(f, _mm256_fnmadd_ps(_mm256_set1_ps(3), _mm256_set1_ps(0.1f), _mm256_set1_ps(0.3f)));
    CHECK(f[5] == -0x1p-25f + 0x1p-24f || f[5] == 0.3f - 3 * (double)0.1f, "fnmadd gives %a", (double)f[5]);
}
TEST(fma_results)
{
    NEEDS("fma");
    fma_constants();
}

static void masked(void (*body)(uint8_t *))
{
    uint8_t *base = pages(1, PROT_READ | PROT_WRITE);
    for (int i = 0; i < PAGE; i++) base[i] = (uint8_t)i;
    body(base + PAGE - 16); // 16 bytes that are there, 16 that are not
}
WITH("avx2") static void masked_moves(uint8_t *end)
{
    __m256i mask = _mm256_setr_epi32(-1, 0, -1, -1, 0, 0, 0, 0), all = _mm256_set1_epi32(-1), value = _mm256_set1_epi32(0x55);
    uint32_t got[8], before[4];
    memcpy(before, end, 16);
    _mm256_storeu_si256((__m256i *)got, _mm256_maskload_epi32((int *)end, mask));
    EQUAL(got[0], before[0]);
    EQUAL(got[1], 0);
    EQUAL(got[4], 0);
    _mm256_maskstore_epi32((int *)end, mask, value);
    uint32_t after[4];
    memcpy(after, end, 16);
    EQUAL(after[0], 0x55);
    EQUAL(after[1], before[1]);
    (void)all;
}
WITH("avx2") static void masked_load_all(void *end)
{
    volatile __m256i got = _mm256_maskload_epi32(end, _mm256_set1_epi32(-1));
    (void)got;
}
TEST(masked_moves_near_a_guard_page)
{
    NEEDS("avx2");
    masked(masked_moves);
    struct fault fault;
    uint8_t *base = pages(1, PROT_READ | PROT_WRITE);
    CHECK(catches(&fault, masked_load_all, base + PAGE - 16), "a masked load went into the guard page");
    EQUAL(fault.address, base + PAGE);
}

// A gather that faults keeps the elements it has and clears their mask bits; run again, it goes on.
WITH("avx2") static void gather(int32_t *cells, int round)
{
    (void)round;
    int32_t got[8];
    _mm256_storeu_si256((__m256i *)got, _mm256_i32gather_epi32(cells, _mm256_setr_epi32(0, 1, 2, 1023, 1024, 1500, 3, 2047), 4));
    static const int32_t expected[] = {0, 1, 2, 1023, 1024, 1500, 3, 2047};
    for (int i = 0; i < 8; i++) CHECK(got[i] == expected[i] * 3, "element %d is %d", i, got[i]);
}
TEST(gather_with_a_fault)
{
    NEEDS("avx2");
    with_closed_page(gather);
}

WITH("bmi,bmi2,lzcnt,popcnt") static void bits(void)
{
    EQUAL(_pext_u64(0x123456789abcdef0, 0xff00), 0xde);
    EQUAL(_pdep_u64(0xabc, 0xf0f0f0), 0xa0b0c0);
    EQUAL(_andn_u64(0xf0f0, 0xffff), 0x0f0f);
    EQUAL(_bextr_u64(0x123456789a, 8, 12), 0x678);
    EQUAL(_blsr_u64(0xb0), 0xa0);
    EQUAL(_blsi_u64(0xb0), 0x10);
    EQUAL(_tzcnt_u64(0), 64);
    EQUAL(_lzcnt_u32(1), 31);
    EQUAL(_bzhi_u64(UINT64_MAX, 5), 31);
    unsigned long long high;
    EQUAL(_mulx_u64(UINT64_MAX, UINT64_MAX, &high), 1);
    EQUAL(high, UINT64_MAX - 1);
    uint64_t rotated, flags;
    __asm__ volatile("stc\n rorx $8, %2, %0\n sarx %2, %0, %%rcx\n pushfq\n pop %1" : "=&r"(rotated), "=r"(flags) : "r"(0x1122334455667788) : "rcx", "cc");
    EQUAL(rotated, 0x8811223344556677);
    EQUAL(flags & 1, 1); // these leave the flags alone
}
TEST(bmi_instructions)
{
    NEEDS("bmi");
    NEEDS("bmi2");
    bits();
}

WITH("aes,pclmul,sse4.1") static void aes(void)
{
    // FIPS 197, appendix B: the first round of the example.
    __m128i state = _mm_setr_epi8(0x19, 0x3d, (char)0xe3, (char)0xbe, (char)0xa0, (char)0xf4, (char)0xe2, 0x2b, (char)0x9a, (char)0xc6, (char)0x8d, 0x2a, (char)0xe9, (char)0xf8, 0x48, 0x08);
    __m128i key = _mm_setr_epi8((char)0xa0, (char)0xfa, (char)0xfe, 0x17, (char)0x88, 0x54, 0x2c, (char)0xb1, 0x23, (char)0xa3, 0x39, 0x39, 0x2a, 0x6c, 0x76, 0x05);
    EQUAL(_mm_cvtsi128_si64(_mm_aesenc_si128(state, key)), _mm_cvtsi128_si64(_mm_setr_epi8((char)0xa4, (char)0x9c, 0x7f, (char)0xf2, 0x68, (char)0x9f, 0x35, 0x2b, 0, 0, 0, 0, 0, 0, 0, 0)));
    EQUAL(_mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_set_epi64x(0, 7), _mm_set_epi64x(0, 5), 0)), 27);
}
TEST(aes_and_carryless_product)
{
    NEEDS("aes");
    NEEDS("pclmul");
    aes();
}

// Every vector register filled with a number of this process's own, through as many switches as fit.
WITH("avx") static uint64_t hold_avx(uint64_t seed, uint64_t loops)
{
    uint64_t cells[16][4] __attribute__((aligned(32)));
    for (uint64_t r = 0; r < 16; r++)
        for (uint64_t i = 0; i < 4; i++) cells[r][i] = seed * 1000003 + r * 16 + i;
    uint64_t(*at)[4] = cells;
#define EACH(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11) x(12) x(13) x(14) x(15)
#define FILL(n) "vmovdqa " #n "*32(%0), %%ymm" #n "\n"
#define SPILL(n) "vmovdqa %%ymm" #n ", " #n "*32(%0)\n"
    __asm__ volatile(EACH(FILL) "1: dec %1\n jnz 1b\n" EACH(SPILL) "vzeroupper"
                     : "+r"(at), "+r"(loops)::"memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                       "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    uint64_t wrong = 0;
    for (uint64_t r = 0; r < 16; r++)
        for (uint64_t i = 0; i < 4; i++) wrong += cells[r][i] != seed * 1000003 + r * 16 + i;
    return wrong;
}
static uint64_t hold_x87(uint64_t seed, uint64_t loops)
{
    uint64_t out, in = seed;
    uint32_t mxcsr = 0x1f80 | (uint32_t)(seed & 3) << 13, mxcsr_out;
    uint16_t control = (uint16_t)(0x37f & ~(seed << 10 & 0xc00)), control_out;
    __asm__ volatile("fninit\n fldcw %4\n ldmxcsr %5\n fildq %6\n fld1\n faddp\n 1: dec %0\n jnz 1b\n fistpq %1\n fnstcw %2\n stmxcsr %3\n fninit"
                     : "+r"(loops), "=m"(out), "=m"(control_out), "=m"(mxcsr_out) : "m"(control), "m"(mxcsr), "m"(in)
                     : "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    return (out != seed + 1) + (control_out != control) + ((mxcsr_out ^ (0x1f80 | (seed & 3) << 13)) & 0xffc0);
}
TEST(registers_survive_other_processes)
{
    bool avx = __builtin_cpu_supports("avx");
    enum { PROCESSES = 4 };
    for (int p = 0; p < PROCESSES; p++)
        if (fork() == 0) {
            double until = seconds(CLOCK_MONOTONIC) + 0.5;
            for (uint64_t round = 0; round < 20 || seconds(CLOCK_MONOTONIC) < until; round++) {
                uint64_t seed = (uint64_t)getpid() * 100 + round;
                if (avx) EQUAL(hold_avx(seed, 200000), 0);
                EQUAL(hold_x87(seed, 200000), 0);
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

WITH("xsave") static void save_and_restore(void)
{
    static uint8_t area[16384] __attribute__((aligned(64)));
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    double kept;
    __asm__ volatile("movq %1, %%xmm5\n mov $3, %%eax\n xor %%edx, %%edx\n xsave %2\n pxor %%xmm5, %%xmm5\n xrstor %2\n movq %%xmm5, %0"
                     : "=r"(kept) : "r"(1.25), "m"(area) : "rax", "rdx", "xmm5", "memory");
    CHECK(kept == 1.25, "xrstor gives %g", kept);
    EQUAL(area[512] & 2, 2); // XSTATE_BV: the SSE state was in use
}
TEST(xsave_area)
{
    if (!__builtin_cpu_supports("avx")) skip("this CPU has no avx");
    save_and_restore();
    static uint8_t area[512] __attribute__((aligned(16)));
    uint64_t kept;
    __asm__ volatile("movq %1, %%xmm9\n fxsave %2\n pxor %%xmm9, %%xmm9\n fxrstor %2\n movq %%xmm9, %0" : "=r"(kept) : "r"(77UL), "m"(area) : "xmm9", "memory");
    EQUAL(kept, 77);
}

static void misaligned(void *address) { __asm__ volatile("movaps (%0), %%xmm0" ::"r"(address) : "xmm0"); }
TEST(alignment_of_vectors)
{
    struct fault fault;
    static uint8_t block[64] __attribute__((aligned(32)));
    misaligned(block + 16);
    CHECK(catches(&fault, misaligned, block + 8), "a misaligned movaps went on");
    EQUAL(fault.registers[REG_TRAPNO], 13);
    // A prefetch never faults, whatever its address.
    __asm__ volatile("prefetcht0 0\n prefetchnta (%0)\n prefetchw (%0)" ::"r"(0x8000000000000000));
    // Non-temporal stores and fences.
    long long cell;
    _mm_stream_si64(&cell, 99);
    _mm_sfence();
    _mm_mfence();
    _mm_lfence();
    _mm_clflush(&cell);
    EQUAL(cell, 99);
}
