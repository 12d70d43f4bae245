// Calculation: loops, branches, calls, pointers, vectors.
#include "bench.h"
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

// Table look-ups and shifts.
bool crc(void)
{
    static uint32_t table[256];
    static uint8_t data[1 << 16];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
        table[i] = c;
    }
    memcpy(data, "123456789", 9);
    uint32_t c = UINT32_MAX;
    for (int i = 0; i < 9; i++) c = table[(c ^ data[i]) & 255] ^ c >> 8;
    bool right = ~c == 0xcbf43926;
    for (int round = 0; round < 800; round++)
        for (size_t i = 0; i < sizeof data; i++) c = table[(c ^ data[i]) & 255] ^ c >> 8;
    return right && c != 0;
}

// Branches that cannot be foreseen, calls through a pointer.
static int compare(const void *a, const void *b) { return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b); }
bool sort(void)
{
    enum { COUNT = 700000 };
    static int cells[COUNT];
    for (int i = 0; i < COUNT; i++) cells[i] = (int)random32();
    qsort(cells, COUNT, sizeof *cells, compare);
    for (int i = 1; i < COUNT; i++)
        if (cells[i - 1] > cells[i]) return false;
    return true;
}

// Stores with a stride: TLB reach.
bool sieve(void)
{
    enum { LIMIT = 16000000 };
    uint8_t *composite = calloc(1, LIMIT);
    int count = 0;
    for (int i = 2; i < LIMIT; i++) {
        if (composite[i]) continue;
        count++;
        for (long j = (long)i * i; j < LIMIT; j += i) composite[j] = 1;
    }
    free(composite);
    return count == 1031130;
}

// Scalar floating point.
bool matrix(void)
{
    enum { N = 300 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) a[i][j] = i + j, b[i][j] = i - j;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int k = 0; k < N; k++) sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
    return c[0][0] == 8955050;
}

// Pointers after pointers.
struct node {
    struct node *child[2];
    uint32_t key;
};
bool tree(void)
{
    enum { COUNT = 250000 };
    struct node *nodes = calloc(COUNT, sizeof *nodes), *root = NULL;
    int depth = 0;
    for (int i = 0; i < COUNT; i++) {
        struct node *new = &nodes[i], **at = &root;
        new->key = random32();
        int level = 0;
        for (; *at; level++) at = &(*at)->child[new->key > (*at)->key];
        *at = new;
        if (level > depth) depth = level;
    }
    free(nodes);
    return depth > 20 && depth < 80;
}

// Calls and returns.
static __attribute__((noinline)) int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
bool fib(void) { return fibonacci(36) == 14930352; }

// Calls through a table, the next one unforeseeable.
#define TARGET(name, expression) static __attribute__((noinline)) uint32_t name(uint32_t x) { return expression; }
TARGET(target0, x + 0x9e3779b9)
TARGET(target1, x ^ x >> 15)
TARGET(target2, x * 0x85ebca6b)
TARGET(target3, x << 13 | x >> 19)
TARGET(target4, x - 0x7f4a7c15)
TARGET(target5, x ^ x << 7)
TARGET(target6, x * 5 + 1)
TARGET(target7, ~x)
bool indirect(void)
{
    static uint32_t (*volatile const table[])(uint32_t) = {target0, target1, target2, target3,
                                                           target4, target5, target6, target7};
    uint32_t x = 1, order = 1;
    for (int i = 0; i < 12000000; i++) {
        order = order * 1664525 + 1013904223;
        x = table[order >> 29](x);
    }
    return x != order;
}

// A bytecode interpreter's loop: indirect jumps.
bool interpreter(void)
{
    static const uint8_t program[] = {0, 1, 2, 3, 1, 4, 2, 1, 5};
    static const void *const labels[] = {&&add, &&rotate, &&xor, &&multiply, &&subtract, &&loop};
    uint64_t x = 1, y = 0x9e3779b97f4a7c15, rounds = 3000000;
    const uint8_t *at = program;
#define NEXT goto *labels[*at++]
    NEXT;
add: x += y; NEXT;
rotate: x = x << 7 | x >> 57; NEXT;
xor: x ^= y; NEXT;
multiply: y *= 3; NEXT;
subtract: y -= x; NEXT;
loop:
    if (--rounds == 0) return x != y;
    at = program;
    NEXT;
}

// Vector arithmetic: what a build for a recent CPU does in its hot loops.
__attribute__((target("avx2"))) bool avx2(void)
{
    static uint32_t cells[4096] __attribute__((aligned(32)));
    __m256i sum = _mm256_setzero_si256();
    for (int round = 0; round < 60000; round++)
        for (int i = 0; i < 4096; i += 8)
            sum = _mm256_add_epi32(_mm256_xor_si256(sum, _mm256_load_si256((__m256i *)(cells + i))), _mm256_set1_epi32(i));
    return _mm256_extract_epi32(sum, 0) == _mm256_extract_epi32(sum, 7);
}
bool sse2(void)
{
    static uint16_t cells[8192] __attribute__((aligned(16)));
    __m128i sum = _mm_setzero_si128();
    for (int round = 0; round < 30000; round++)
        for (int i = 0; i < 8192; i += 8)
            sum = _mm_adds_epu16(_mm_sub_epi16(sum, _mm_load_si128((__m128i *)(cells + i))), _mm_set1_epi16(1));
    return _mm_extract_epi16(sum, 0) == _mm_extract_epi16(sum, 7);
}
