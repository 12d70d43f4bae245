// The loads of the benchmark program, a file a subject. Each does its work once and says whether the result is
// right; what takes time to make ready and is no part of the measure, it makes ready before it calls `begin`.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// The clock starts anew: all so far was preparation.
void begin(void);

uint32_t random32(void);

// Calculation: code and data in the caches.
bool crc(void);
bool sort(void);
bool sieve(void);
bool matrix(void);
bool tree(void);
bool fib(void);
bool indirect(void);
bool interpreter(void);
bool sha256(void);
bool lz(void);
bool sse2(void);
bool avx2(void);

// Memory in bulk: by the C library and by the string instructions, blocks of 64 bytes, 4 KB and 1 MB.
bool memcpy_64(void);
bool memcpy_4k(void);
bool memcpy_1m(void);
bool movs_64(void);
bool movs_4k(void);
bool movs_1m(void);
bool stos_64(void);
bool stos_4k(void);
bool stos_1m(void);

// The kernel: calls, faults, processes, turns, signals.
bool getppid_calls(void);
bool faults(void);
bool forks(void);
bool execs(void);
bool pipes(void);
bool futexes(void);
bool signals(void);
