// Floating point, against numbers worked out beforehand: x87 at its 64-bit precision, SSE at its own.
#include "check.h"
#include <float.h>
#include <math.h>
#include <xmmintrin.h>

static void bits_are(long double value, uint64_t mantissa, uint16_t exponent, const char *what)
{
    uint64_t m;
    uint16_t e;
    memcpy(&m, &value, 8);
    memcpy(&e, (char *)&value + 8, 2);
    CHECK(m == mantissa && e == exponent, "%s is %04x:%016lx", what, e, (unsigned long)m);
}

TEST(x87_constants)
{
    long double x;
    __asm__("fldpi" : "=t"(x));
    bits_are(x, 0xc90fdaa22168c235, 0x4000, "pi");
    __asm__("fldl2e" : "=t"(x));
    bits_are(x, 0xb8aa3b295c17f0bc, 0x3fff, "log2 e");
    __asm__("fldln2" : "=t"(x));
    bits_are(x, 0xb17217f7d1cf79ac, 0x3ffe, "ln 2");
    __asm__("fldlg2" : "=t"(x));
    bits_are(x, 0x9a209a84fbcff799, 0x3ffd, "log10 2");
}

TEST(x87_arithmetic)
{
    volatile long double two = 2, three = 3, ten = 10;
    bits_are(1 / three, 0xaaaaaaaaaaaaaaab, 0x3ffd, "1/3");
    bits_are(sqrtl(two), 0xb504f333f9de6484, 0x3fff, "sqrt 2");
    long double power = 1;
    for (int i = 0; i < 27; i++) power *= ten;
    bits_are(power, 0xcecb8f27f4200f3a, 0x4058, "1e27");
    long double rest;
    __asm__("fprem" : "=t"(rest) : "0"(17.5L), "u"(5.0L) : "cc");
    CHECK(rest == 2.5L, "17.5 fprem 5 is %Lg", rest);
    long double sine;
    __asm__("fsin" : "=t"(sine) : "0"(0.5L));
    CHECK(fabsl(sine - 0.479425538604203000273L) < 1e-18L, "sin 0.5 is %.20Lg", sine);
    long double raised;
    __asm__("fscale" : "=t"(raised) : "0"(1.5L), "u"(-4.0L));
    CHECK(raised == 0.09375L, "fscale gives %Lg", raised);
    long double quotient;
    __asm__("fyl2x" : "=t"(quotient) : "0"(8.0L), "u"(3.0L) : "st(1)");
    CHECK(quotient == 9, "3 log2 8 is %Lg", quotient);
    uint8_t decimal[10];
    __asm__ volatile("fbstp %0" : "=m"(decimal) : "t"(-1234567890123.0L) : "st");
    static const uint8_t expected[] = {0x23, 0x01, 0x89, 0x67, 0x45, 0x23, 0x01, 0, 0, 0x80};
    CHECK(memcmp(decimal, expected, 10) == 0, "fbstp gives other digits");
}

TEST(x87_rounding_and_status)
{
    static const int32_t expected[4][4] = {{2, 4, -2, -4}, {2, 3, -3, -4}, {3, 4, -2, -3}, {2, 3, -2, -3}};
    static const double values[4] = {2.5, 3.5, -2.5, -3.5};
    for (uint16_t mode = 0; mode < 4; mode++)
        for (int i = 0; i < 4; i++) {
            uint16_t control = (uint16_t)(0x37f | mode << 10), usual = 0x37f, status;
            int32_t got;
            __asm__ volatile("fldcw %3\n fldl %2\n fistpl %0\n fnstsw %1\n fldcw %4" : "=m"(got), "=a"(status) : "m"(values[i]), "m"(control), "m"(usual));
            EQUAL(got, (uint64_t)(int64_t)expected[mode][i]);
            EQUAL(status >> 5 & 1, 1); // PE: inexact
            __asm__ volatile("fnclex");
        }
    uint16_t status;
    __asm__ volatile("fninit\n fldz\n fldz\n fdivp\n fnstsw %0\n fninit" : "=a"(status));
    EQUAL(status & 0x3f, 1); // IE: 0/0
    __asm__ volatile("fninit\n fld1\n fldz\n fcomip\n fstp %%st\n pushfq\n pop %%rax" : "=a"(status)::"cc");
    EQUAL(status & 1, 1); // 0 < 1
    uint8_t image[108] __attribute__((aligned(16)));
    long double back;
    __asm__ volatile("fninit\n fldpi\n fld1\n fnsave %1\n fldz\n frstor %1\n fstp %%st\n fstpt %0\n fninit" : "=m"(back), "=m"(image)::"memory");
    bits_are(back, 0xc90fdaa22168c235, 0x4000, "pi after fnsave and frstor");
}

// An x87 operand over a page boundary, all ten bytes of it.
TEST(x87_memory_operands)
{
    uint8_t *base = pages(2, PROT_READ | PROT_WRITE);
    for (int at = PAGE - 12; at <= PAGE; at++) {
        long double back;
        __asm__ volatile("fldpi\n fstpt (%1)\n fldt (%1)\n fstpt %0" : "=m"(back) : "r"(base + at) : "memory");
        bits_are(back, 0xc90fdaa22168c235, 0x4000, "pi through memory");
    }
}

TEST(sse_arithmetic)
{
    volatile double one = 1, three = 3, zero = 0, huge = DBL_MAX;
    volatile float f = 16777216.0f;
    CHECK(one / three == 0x1.5555555555555p-2, "1/3 is %a", one / three);
    CHECK(sqrt(three) == 0x1.bb67ae8584caap+0, "sqrt 3 is %a", sqrt(three));
    CHECK(f + 1.0f == f, "2^24 + 1 in single precision is %a", (double)(f + 1.0f));
    CHECK(huge * 2 == INFINITY && isnan(zero / zero) && 1 / -zero == -INFINITY, "infinities");
    int64_t integer;
    __asm__("cvttsd2si %1, %0" : "=r"(integer) : "x"(1e30));
    EQUAL(integer, INT64_MIN);
    __asm__("cvtsd2si %1, %0" : "=r"(integer) : "x"(2.5));
    EQUAL(integer, 2);
    double least = NAN;
    __asm__("minsd %1, %0" : "+x"(least) : "x"(1.0));
    CHECK(least == 1, "min(NaN, 1) is the second operand, not %g", least);
    double sum = 0;
    for (int i = 1; i <= 100000; i++) sum += 1.0 / i;
    CHECK(fabs(sum - 12.090146129863428) < 1e-12, "the harmonic sum is %.17g", sum);
    CHECK(fabs(sin(1) - 0.8414709848078965) < 1e-15 && fabs(exp(1) - 2.718281828459045) < 1e-15, "sin and exp of the C library");
}

TEST(mxcsr_modes)
{
    volatile double third, one = 1, three = 3;
    static const double expected[4] = {0x1.5555555555555p-2, 0x1.5555555555555p-2, 0x1.5555555555556p-2, 0x1.5555555555555p-2};
    for (unsigned mode = 0; mode < 4; mode++) {
        _mm_setcsr(0x1f80 | mode << 13);
        third = one / three;
        EQUAL(_mm_getcsr() & 0x3f, 0x20); // PE alone
        _mm_setcsr(0x1f80);
        CHECK(third == expected[mode], "1/3 in mode %u is %a", mode, third);
    }
    volatile double tiny = DBL_MIN, half = 0.5, result;
    result = tiny * half;
    CHECK(result == 0x1p-1023, "a denormal result is %a", result);
    _mm_setcsr(0x9f80); // flush to zero
    result = tiny * half;
    CHECK(result == 0, "a flushed result is %a", result);
    _mm_setcsr(0x1fc0); // denormals are zero
    volatile double denormal = 0x1p-1030;
    result = denormal * 0x1p100;
    CHECK(result == 0, "a denormal operand counts as %a", result);
    _mm_setcsr(0x1f80);
}
