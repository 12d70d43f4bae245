#define _GNU_SOURCE
#include "CLinuxRing.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Kernel numbers that are the same on all architectures; old headers may lack them.
enum { ring_setup = 425, ring_enter = 426, ring_register = 427, register_worker_limits = 19 };

int clinux_ring_setup(uint32_t entries, struct clinux_ring *ring) {
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof parameters);
    parameters.flags = IORING_SETUP_R_DISABLED;
    int descriptor = (int)syscall(ring_setup, entries, &parameters);
    if (descriptor < 0) return -1;
    if (!(parameters.features & IORING_FEAT_SINGLE_MMAP)) {
        close(descriptor);
        errno = ENOSYS;
        return -1;
    }
    size_t submissions = parameters.sq_off.array + parameters.sq_entries * sizeof(uint32_t);
    size_t completions = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
    *ring = (struct clinux_ring){
        .descriptor = descriptor,
        .submission_count = parameters.sq_entries,
        .completion_count = parameters.cq_entries,
        .submission_tail = parameters.sq_off.tail,
        .submission_array = parameters.sq_off.array,
        .completion_head = parameters.cq_off.head,
        .completion_tail = parameters.cq_off.tail,
        .completions = parameters.cq_off.cqes,
        .ring_bytes = submissions > completions ? submissions : completions,
        .entries_bytes = parameters.sq_entries * sizeof(struct io_uring_sqe),
        .entries_place = IORING_OFF_SQES,
    };
    return 0;
}

int clinux_ring_restrict_and_enable(int descriptor, const uint8_t *operations, unsigned count) {
    struct io_uring_restriction restrictions[16];
    memset(restrictions, 0, sizeof restrictions);
    if (count > 16) {
        errno = EINVAL;
        return -1;
    }
    for (unsigned i = 0; i < count; i++) {
        restrictions[i].opcode = IORING_RESTRICTION_SQE_OP;
        restrictions[i].sqe_op = operations[i];
    }
    if (syscall(ring_register, descriptor, IORING_REGISTER_RESTRICTIONS, restrictions, count) < 0) return -1;
    return (int)syscall(ring_register, descriptor, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

int clinux_ring_limit_workers(int descriptor, unsigned count) {
    uint32_t limits[2] = {count, count};
    return (int)syscall(ring_register, descriptor, register_worker_limits, limits, 2);
}

int clinux_ring_enter(int descriptor, unsigned submit, unsigned complete) {
    return (int)syscall(ring_enter, descriptor, submit, complete, complete ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

void clinux_ring_prepare(
    void *entries, uint32_t index, uint8_t operation, int descriptor, const void *vectors, uint32_t count, uint64_t offset,
    uint32_t transfer_flags, uint64_t name) {
    struct io_uring_sqe *entry = (struct io_uring_sqe *)entries + index;
    memset(entry, 0, sizeof *entry);
    entry->opcode = operation;
    entry->fd = descriptor;
    entry->off = offset;
    entry->addr = (uint64_t)(uintptr_t)vectors;
    entry->len = count;
    entry->rw_flags = (int)transfer_flags;
    entry->user_data = name;
}

void clinux_ring_completion(const void *completions, uint32_t index, uint64_t *name, int32_t *result) {
    const struct io_uring_cqe *entry = (const struct io_uring_cqe *)completions + index;
    *name = entry->user_data;
    *result = entry->res;
}
