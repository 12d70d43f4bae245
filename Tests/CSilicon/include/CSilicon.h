// Runs a few instructions on the CPU itself, in a process of its own, and says what they did.
//
// The process is a fork that touches nothing but the memory declared here: it loads every user register from a case,
// jumps to its code and stores every register back, or, when the code faults, what the kernel's signal frame says.
#ifndef CSILICON_H
#define CSILICON_H

#include <stdint.h>

// Linear addresses that a guest maps alike, so that addresses mean the same on both sides. Below 2 GB: absolute
// 32-bit displacements reach them; far from where Linux puts a program.
enum {
    SILICON_CODE = 0x21000000,
    SILICON_CODE_PAGES = 128,
    SILICON_ARENA = 0x20000000,
    // Two pages to write, one read-only, two to write; not mapped on either side.
    SILICON_ARENA_PAGES = 5,
    SILICON_ARENA_READ_ONLY_PAGE = 2,
    SILICON_ARENA_BYTES = SILICON_ARENA_PAGES * 4096,
    // The way out of cases, a page of the silicon's own: 64-bit code takes the pointer, 32-bit code jumps to its start.
    SILICON_GATE = 0x6F000000,
    SILICON_GATE_POINTER = 64,
    // Bases of fs and gs in 32-bit code.
    SILICON_FS_BASE = SILICON_ARENA + 64,
    SILICON_GS_BASE = SILICON_ARENA + 4096,
    SILICON_CASES = 64,
    // Up to the end of AVX-512's components, at Intel's places or AMD's.
    SILICON_XSAVE_BYTES = 2688,
    SILICON_PATCH_BYTES = 1024 - 16,
    // `vector` of a case that came to its end.
    SILICON_DONE = 256,
};

enum silicon_mode {
    SILICON_LONG,
    // 32-bit code in the flat segments of Linux's 32-bit programs.
    SILICON_FLAT,
    // 16-bit and 32-bit code with segments of the LDT: code from its case's place on, data and stack the arena.
    SILICON_SEGMENTED_16,
    SILICON_SEGMENTED_32,
};
// Their selectors; those of code plus 8 for each case. The stack has the width of the code.
enum {
    SILICON_DATA_16 = 2 << 3 | 7,
    SILICON_DATA_32 = 3 << 3 | 7,
    SILICON_CODE_16 = 8 << 3 | 7,
    SILICON_CODE_32 = 128 << 3 | 7,
    SILICON_CASE_BYTES = 8192,
    // Entries of the LDT of all types and sizes that Linux lets programs have, for what looks at descriptors.
    SILICON_SPECIAL_SEGMENTS = 192,
    SILICON_SPECIAL_SEGMENT_COUNT = 12,
    SILICON_SEGMENT_COUNT = SILICON_SPECIAL_SEGMENTS + SILICON_SPECIAL_SEGMENT_COUNT,
};

// Registers in encoding order. `fs_base` and `gs_base` are user-writable state too.
struct silicon_state {
    uint64_t gpr[16];
    uint64_t rip, rflags, fs_base, gs_base;
    // Above the error code: CS of a fault in bits 32 to 47, SS in the highest 16.
    uint64_t vector, error, fault_address;
    // From bit 0 on: ES, DS, FS, GS.
    uint64_t selectors;
    // Standard format (SDM Vol. 1, 13.4).
    _Alignas(64) uint8_t xsave[SILICON_XSAVE_BYTES];
};

struct silicon_case {
    struct silicon_state in, out;
    // What the arena holds before.
    uint32_t pattern;
    // A `silicon_mode`. `in.rip` is an offset in the code segment.
    uint32_t mode;
    // Bytes that lie in the arena instead of the pattern's.
    uint32_t patch_offset, patch_count;
    uint8_t patch[SILICON_PATCH_BYTES];
    uint8_t arena[SILICON_ARENA_BYTES];
};

enum { SILICON_PATTERNS = 4 };

// Shared between the two processes.
struct silicon_shared {
    uint32_t requested, completed, count, is_closed;
    uint32_t running;
    // Selectors of fs and gs in 32-bit code; 0 where the host has none.
    uint32_t fs_selector, gs_selector;
    uint32_t has_segments;
    _Alignas(4096) uint8_t patterns[SILICON_PATTERNS][SILICON_ARENA_BYTES];
    _Alignas(4096) uint8_t code[SILICON_CODE_PAGES * 4096];
    _Alignas(4096) struct silicon_case cases[SILICON_CASES];
};

struct silicon {
    struct silicon_shared *shared;
    int pid;
};

// Swift does not see arrays of this size.
static inline void *silicon_pattern(struct silicon_shared *shared, uint32_t number) { return shared->patterns[number]; }
static inline void *silicon_code(struct silicon_shared *shared) { return shared->code; }
static inline void *silicon_input(struct silicon_shared *shared, uint32_t slot) { return &shared->cases[slot].in; }
static inline void *silicon_output(struct silicon_shared *shared, uint32_t slot) { return &shared->cases[slot].out; }
static inline void *silicon_arena(struct silicon_shared *shared, uint32_t slot) { return shared->cases[slot].arena; }
static inline uint32_t silicon_running(struct silicon_shared *shared) { return shared->running; }
static inline uint32_t silicon_selector(struct silicon_shared *shared, int is_gs) {
    return is_gs ? shared->gs_selector : shared->fs_selector;
}
static inline uint32_t silicon_has_segments(struct silicon_shared *shared) { return shared->has_segments; }
static inline void silicon_set_case(struct silicon_shared *shared, uint32_t slot, uint32_t pattern, uint32_t mode) {
    shared->cases[slot].pattern = pattern;
    shared->cases[slot].mode = mode;
}

static inline void *silicon_patch(struct silicon_shared *shared, uint32_t slot, uint32_t offset, uint32_t count) {
    shared->cases[slot].patch_offset = offset;
    shared->cases[slot].patch_count = count;
    return shared->cases[slot].patch;
}

// An entry of the process's LDT as it lies in memory; 0 for one that is not used.
uint64_t silicon_descriptor(uint32_t number);

// What the code of a case ends with: a jump out. At most this many bytes.
enum { SILICON_EXIT_BYTES = 8 };
void silicon_write_exit(uint8_t *code);
// The same for code of another mode.
void silicon_write_narrow_exit(uint8_t *code, uint32_t mode);

// Forks the process. `shared` is null on failure.
struct silicon silicon_start(void);
// Runs the first `count` cases. 0: the process died or does not come back, `shared->running` is the case's number.
int silicon_run(struct silicon *silicon, uint32_t count);
void silicon_stop(struct silicon *silicon);

#endif
