// Memory in bulk, the same number of bytes for each size of block: what one block costs besides its bytes shows in
// the small ones. Source and target are blocks of a window, so that not one page alone is hot.
#include "bench.h"
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 2 << 20 };

static void copy_by_library(uint8_t *to, const uint8_t *from, size_t size) { memcpy(to, from, size); }
static void copy_by_string(uint8_t *to, const uint8_t *from, size_t size)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}
static void fill_by_string(uint8_t *to, const uint8_t *from, size_t size)
{
    size_t words = size / 8;
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"((uint64_t)*from) : "memory");
}

// `blocks` blocks of `size` bytes, one after the other around the window.
static bool in_blocks(void (*operation)(uint8_t *, const uint8_t *, size_t), size_t size, int blocks)
{
    uint8_t *from = aligned_alloc(4096, WINDOW), *to = aligned_alloc(4096, WINDOW);
    if (!from || !to) return false;
    for (size_t i = 0; i < WINDOW; i++) from[i] = (uint8_t)(i >> 6);
    memset(to, 1, WINDOW);
    begin();
    size_t at = 0;
    for (int i = 0; i < blocks; i++) {
        operation(to + at, from + at, size);
        at = (at + size) % WINDOW;
    }
    bool right = operation == fill_by_string || memcmp(from, to, WINDOW) == 0;
    free(from), free(to);
    return right;
}

bool memcpy_64(void) { return in_blocks(copy_by_library, 64, 4000000); }
bool memcpy_4k(void) { return in_blocks(copy_by_library, 4096, 300000); }
bool memcpy_1m(void) { return in_blocks(copy_by_library, 1 << 20, 1200); }
bool movs_64(void) { return in_blocks(copy_by_string, 64, 2000000); }
bool movs_4k(void) { return in_blocks(copy_by_string, 4096, 600000); }
bool movs_1m(void) { return in_blocks(copy_by_string, 1 << 20, 2400); }
bool stos_64(void) { return in_blocks(fill_by_string, 64, 2000000); }
bool stos_4k(void) { return in_blocks(fill_by_string, 4096, 1000000); }
bool stos_1m(void) { return in_blocks(fill_by_string, 1 << 20, 4000); }
