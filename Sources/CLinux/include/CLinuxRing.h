// io_uring(7) as plain functions. The kernel's header is included by the C file alone: it brings <linux/fs.h>, which
// disagrees with glibc's <sys/mount.h>.
#ifndef CLINUX_RING_H
#define CLINUX_RING_H

#include <stddef.h>
#include <stdint.h>

// Where things lie in the memory that the kernel shares: offsets from the mapping at offset 0 of the ring's descriptor;
// the entries to submit are a mapping of their own, at `entries_place`.
struct clinux_ring {
    int descriptor;
    uint32_t submission_count, completion_count;
    uint32_t submission_tail, submission_array;
    uint32_t completion_head, completion_tail, completions;
    size_t ring_bytes, entries_bytes, entries_place;
};

// Makes a ring that takes nothing yet. -1 and errno; ENOSYS also when the kernel maps it in two parts (before 5.4).
int clinux_ring_setup(uint32_t entries, struct clinux_ring *ring);
// For good: these operations without flags, and no registration of any kind (Linux 5.10). Then it takes entries.
int clinux_ring_restrict_and_enable(int descriptor, const uint8_t *operations, unsigned count);
// The most threads of the kernel's own that work for it (Linux 5.15).
int clinux_ring_limit_workers(int descriptor, unsigned count);
// io_uring_enter(2); waits when `complete` is not 0.
int clinux_ring_enter(int descriptor, unsigned submit, unsigned complete);
// Writes entry `index` of those to submit.
void clinux_ring_prepare(
    void *entries, uint32_t index, uint8_t operation, int descriptor, const void *vectors, uint32_t count, uint64_t offset,
    uint32_t transfer_flags, uint64_t name);
// Reads entry `index` of those completed.
void clinux_ring_completion(const void *completions, uint32_t index, uint64_t *name, int32_t *result);

#endif
