// What the kernels here share, which have no C library: ports, a console on the first serial port, and words of a
// command line. They are compiled with these flags in the Makefile: KERNEL_FLAGS.
#pragma once
#include <stdint.h>

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void put(char c)
{
    while (!(in8(0x3FD) & 0x20)) {
    }
    out8(0x3F8, (uint8_t)c);
}
static inline void print(const char *text)
{
    while (*text) put(*text++);
}
static inline void hex(uint32_t value, int digits)
{
    while (digits--) put("0123456789abcdef"[value >> (4 * digits) & 15]);
}
static inline void wide(uint64_t value) { print("0x"), hex((uint32_t)(value >> 32), 8), hex((uint32_t)value, 8); }

// One `name=value` a line, which is what tests read.
static inline void field(const char *name, uint32_t value, int digits)
{
    print(name), print("=0x"), hex(value, digits), put('\n');
}
static inline void text(const char *name, const char *value) { print(name), put('='), print(value), put('\n'); }
static inline void range(const char *name, uint64_t base, uint64_t length, uint32_t type)
{
    print(name), put('='), wide(base), put('+'), wide(length), put(':'), hex(type, 1), put('\n');
}

// So that a test can tell whether bytes arrived as they were.
static inline uint32_t sum(const uint8_t *from, const uint8_t *to)
{
    uint32_t sum = 0;
    for (const uint8_t *at = from; at < to; at++) sum = sum * 31 + *at;
    return sum;
}

// What follows a word in a line, or 0.
static inline const char *find(const char *line, const char *word)
{
    for (; *line; line++) {
        int i = 0;
        while (word[i] && line[i] == word[i]) i++;
        if (!word[i]) return line + i;
    }
    return 0;
}

// Flat segments as they are loaded now: their rights and limits.
static inline void segments(uint32_t cs, uint32_t ds, uint32_t es, uint32_t fs, uint32_t gs, uint32_t ss)
{
    uint32_t rights, limit;
    const uint32_t selectors[] = {cs, ds, es, fs, gs, ss};
    for (int i = 0; i < 6; i++) {
        __asm__("lar %2, %0\n lsl %2, %1" : "=&r"(rights), "=r"(limit) : "r"(selectors[i]));
        field("rights", rights & 0xC0FE00, 8), field("limit", limit, 8);
    }
}
