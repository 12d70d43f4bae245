// The benchmark program: one line `NAME SECONDS` for each of a handful of small loads, each of which leans on one
// thing that running a guest can make slow. The same static binary runs natively and in guests, so the columns
// compare. What a load computes is printed nowhere, but checked, so that no compiler leaves it out.
//
// guest-bench [NAME...]    the named loads only
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static uint32_t random_state = 1;
static uint32_t random32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

// Table look-ups and shifts.
static bool crc(void)
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
static bool sort(void)
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
static bool sieve(void)
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
static bool matrix(void)
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
static bool tree(void)
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
static bool fib(void) { return fibonacci(36) == 14930352; }

// A bytecode interpreter's loop: indirect jumps.
static bool interpreter(void)
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
__attribute__((target("avx2"))) static bool avx2(void)
{
    static uint32_t cells[4096] __attribute__((aligned(32)));
    __m256i sum = _mm256_setzero_si256();
    for (int round = 0; round < 60000; round++)
        for (int i = 0; i < 4096; i += 8)
            sum = _mm256_add_epi32(_mm256_xor_si256(sum, _mm256_load_si256((__m256i *)(cells + i))), _mm256_set1_epi32(i));
    return _mm256_extract_epi32(sum, 0) == _mm256_extract_epi32(sum, 7);
}
static bool sse2(void)
{
    static uint16_t cells[8192] __attribute__((aligned(16)));
    __m128i sum = _mm_setzero_si128();
    for (int round = 0; round < 30000; round++)
        for (int i = 0; i < 8192; i += 8)
            sum = _mm_adds_epu16(_mm_sub_epi16(sum, _mm_load_si128((__m128i *)(cells + i))), _mm_set1_epi16(1));
    return _mm_extract_epi16(sum, 0) == _mm_extract_epi16(sum, 7);
}

static bool copy(void)
{
    enum { SIZE = 8 << 20 };
    uint8_t *from = malloc(SIZE), *to = malloc(SIZE);
    memset(from, 7, SIZE);
    for (int round = 0; round < 100; round++) {
        from[round] = (uint8_t)round;
        memcpy(to, from, SIZE);
    }
    bool right = to[99] == 99 && to[SIZE - 1] == 7;
    free(from), free(to);
    return right;
}

// Into the kernel and out.
static bool getppid_calls(void)
{
    pid_t parent = getppid();
    for (int i = 0; i < 300000; i++)
        if (syscall(SYS_getppid) != parent) return false;
    return true;
}

// Address spaces made and taken down.
static bool forks(void)
{
    for (int i = 0; i < 300; i++) {
        pid_t child = fork();
        if (child == 0) _exit(7);
        int status;
        if (waitpid(child, &status, 0) != child || status != 7 << 8) return false;
    }
    return true;
}

// Page faults.
static bool faults(void)
{
    enum { SIZE = 32 << 20 };
    for (int round = 0; round < 8; round++) {
        uint8_t *base = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(base, SIZE, MADV_NOHUGEPAGE);
        for (int i = 0; i < SIZE; i += 4096) base[i] = 1;
        munmap(base, SIZE);
    }
    return true;
}

// Two processes in turn.
static bool pipes(void)
{
    int there[2], back[2];
    char byte = 1;
    if (pipe(there) || pipe(back)) return false;
    pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1) {
        }
        _exit(0);
    }
    close(there[0]);
    for (int i = 0; i < 20000; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return false;
    close(there[1]);
    return waitpid(child, NULL, 0) == child;
}

static const struct {
    const char *name;
    bool (*run)(void);
    const char *needs;
} loads[] = {
    {"crc", crc, NULL},         {"sort", sort, NULL},   {"sieve", sieve, NULL},
    {"matrix", matrix, NULL},   {"tree", tree, NULL},   {"fib", fib, NULL},
    {"interpreter", interpreter, NULL}, {"sse2", sse2, NULL}, {"avx2", avx2, "avx2"},
    {"memcpy", copy, NULL},     {"getppid", getppid_calls, NULL}, {"fork", forks, NULL},
    {"faults", faults, NULL},   {"pipe", pipes, NULL},
};

int main(int argc, char **argv)
{
    int status = 0;
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++) {
        bool wanted = argc == 1;
        for (int k = 1; k < argc; k++) wanted |= strcmp(argv[k], loads[i].name) == 0;
        if (!wanted || (loads[i].needs && !__builtin_cpu_supports("avx2"))) continue;
        fflush(stdout);
        double before = now();
        bool right = loads[i].run();
        double took = now() - before;
        if (right) {
            printf("%s %.6f\n", loads[i].name, took);
        } else {
            printf("%s WRONG\n", loads[i].name);
            status = 1;
        }
    }
    return status;
}
