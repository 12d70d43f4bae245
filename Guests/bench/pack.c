// What a compressor and a hash do: byte and word loads at unforeseeable places, short copies, shifts and adds in
// long chains.
#include "bench.h"
#include <stdlib.h>
#include <string.h>

static uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

// The first 32 bits of the fractional parts of cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static void sha256_block(uint32_t state[8], const uint8_t *data)
{
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
        memcpy(&w[i], data + 4 * i, 4);
        w[i] = __builtin_bswap32(w[i]);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
        uint32_t t2 = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

bool sha256(void)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint32_t state[8];
    uint8_t abc[64] = {'a', 'b', 'c', 0x80, [63] = 24};
    memcpy(state, start, sizeof state);
    sha256_block(state, abc);
    bool right = state[0] == 0xba7816bf && state[7] == 0xf20015ad;

    static uint8_t data[1 << 16];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)random32();
    for (int round = 0; round < 300; round++)
        for (size_t i = 0; i < sizeof data; i += 64) sha256_block(state, data + i);
    return right && state[0] != 0;
}

// A byte-wise Lempel-Ziv of its own kind: a byte L < 128 and L + 1 literal bytes, or a byte M >= 128, a two-byte
// distance, and a match of M - 124 bytes. One hash table, greedy.
enum { MATCH_MIN = 4, MATCH_MAX = 131, LITERALS_MAX = 128, DISTANCE_MAX = 65535, HASH_BITS = 14 };

static uint32_t word_at(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static uint8_t *put_literals(uint8_t *out, const uint8_t *from, size_t count)
{
    while (count > 0) {
        size_t part = count < LITERALS_MAX ? count : LITERALS_MAX;
        *out++ = (uint8_t)(part - 1);
        for (size_t i = 0; i < part; i++) *out++ = *from++;
        count -= part;
    }
    return out;
}

static size_t compress(uint8_t *out, const uint8_t *in, size_t count)
{
    static uint32_t last[1 << HASH_BITS];
    memset(last, 0, sizeof last);
    uint8_t *start = out;
    size_t at = 1, literals = 0;
    while (at + MATCH_MIN <= count) {
        uint32_t word = word_at(in + at);
        uint32_t *slot = &last[word * 2654435761u >> (32 - HASH_BITS)];
        size_t candidate = *slot;
        *slot = (uint32_t)at;
        if (at - candidate > DISTANCE_MAX || word_at(in + candidate) != word) {
            at++;
            continue;
        }
        size_t length = MATCH_MIN;
        while (length < MATCH_MAX && at + length < count && in[candidate + length] == in[at + length]) length++;
        out = put_literals(out, in + literals, at - literals);
        *out++ = (uint8_t)(length + 124);
        *out++ = (uint8_t)(at - candidate);
        *out++ = (uint8_t)((at - candidate) >> 8);
        at += length;
        literals = at;
    }
    return (size_t)(put_literals(out, in + literals, count - literals) - start);
}

static size_t expand(uint8_t *out, const uint8_t *in, size_t count)
{
    uint8_t *start = out;
    for (const uint8_t *end = in + count; in < end;) {
        unsigned code = *in++;
        if (code < 128) {
            for (unsigned i = 0; i <= code; i++) *out++ = *in++;
        } else {
            const uint8_t *from = out - (in[0] | in[1] << 8);
            in += 2;
            for (unsigned i = 124; i < code; i++) *out++ = *from++;
        }
    }
    return (size_t)(out - start);
}

// Text of sorts: words of a small vocabulary, the frequent ones frequent.
bool lz(void)
{
    enum { COUNT = 1 << 20, WORDS = 2048, LETTERS = 10 };
    static uint8_t text[COUNT + LETTERS + 1], packed[COUNT + COUNT / LITERALS_MAX + 256], again[COUNT];
    static uint8_t words[WORDS][LETTERS];
    for (int i = 0; i < WORDS; i++)
        for (int k = 0; k < LETTERS; k++) words[i][k] = (uint8_t)('a' + random32() % 26);
    for (size_t at = 0; at < COUNT;) {
        uint32_t choice = random32();
        const uint8_t *word = words[choice % WORDS >> (choice >> 16) % 8];
        size_t length = 2 + (choice >> 24) % (LETTERS - 1);
        memcpy(text + at, word, length);
        text[at + length] = ' ';
        at += length + 1;
    }
    begin();
    size_t size = 0;
    for (int round = 0; round < 6; round++) {
        size = compress(packed, text, COUNT);
        if (expand(again, packed, size) != COUNT || memcmp(text, again, COUNT) != 0) return false;
    }
    return size > COUNT / 8 && size < COUNT;
}
