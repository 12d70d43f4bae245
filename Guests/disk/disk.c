// disk DEVICE MEGABYTES: what a disk can do without the guest's page cache, as a load a line: name, number, unit.
// Sequential writes and reads of 64 KB and 1 MB, random reads of 4 KB, one and 32 at a time.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, DEPTH = 32, SECONDS = 3 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static void sequential(int fd, char *buffer, size_t part, uint64_t total, int writes) {
    double start = now();
    for (uint64_t place = 0; place < total; place += part) {
        ssize_t done = writes ? pwrite(fd, buffer, part, (off_t)place) : pread(fd, buffer, part, (off_t)place);
        if (done != (ssize_t)part) fail(writes ? "write" : "read");
    }
    double end = now();
    // Outside of the time: how fast the host's own disk is counts for nobody here.
    if (writes && fdatasync(fd)) fail("flush");
    printf("disk %s-%zuk %.1f MB/s\n", writes ? "write" : "read", part >> 10, (double)total / 1e6 / (end - start));
    fflush(stdout);
}

static void random_one(int fd, char *buffer, uint64_t total) {
    double start = now(), end;
    long count = 0;
    do {
        for (int i = 0; i < 64; i++, count++)
            if (pread(fd, buffer, BLOCK, (off_t)(next() % (total / BLOCK) * BLOCK)) != BLOCK) fail("read");
        end = now();
    } while (end - start < SECONDS);
    printf("disk random-4k-1 %.0f reads/s\n", (double)count / (end - start));
    fflush(stdout);
}

static void random_many(int fd, char *buffer, uint64_t total) {
    aio_context_t context = 0;
    static struct iocb blocks[DEPTH];
    struct iocb *pointers[DEPTH];
    struct io_event events[DEPTH];
    if (syscall(SYS_io_setup, DEPTH, &context)) fail("io_setup");
    long ready = DEPTH, count = 0;
    for (int i = 0; i < DEPTH; i++) pointers[i] = &blocks[i];
    double start = now();
    while (now() - start < SECONDS) {
        for (long i = 0; i < ready; i++) {
            struct iocb *block = pointers[i];
            memset(block, 0, sizeof *block);
            block->aio_fildes = (uint32_t)fd;
            block->aio_lio_opcode = IOCB_CMD_PREAD;
            block->aio_buf = (uint64_t)(uintptr_t)(buffer + (block - blocks) * BLOCK);
            block->aio_nbytes = BLOCK;
            block->aio_offset = (int64_t)(next() % (total / BLOCK) * BLOCK);
        }
        if (syscall(SYS_io_submit, context, ready, pointers) != ready) fail("io_submit");
        ready = syscall(SYS_io_getevents, context, 1, DEPTH, events, NULL);
        if (ready < 1) fail("io_getevents");
        for (long i = 0; i < ready; i++) {
            if (events[i].res != BLOCK) fail("read");
            pointers[i] = (struct iocb *)(uintptr_t)events[i].obj;
        }
        count += ready;
    }
    printf("disk random-4k-32 %.0f reads/s\n", (double)count / (now() - start));
    fflush(stdout);
}

int main(int count, char **arguments) {
    if (count != 3) return fputs("usage: disk DEVICE MEGABYTES\n", stderr), 2;
    uint64_t total = strtoull(arguments[2], NULL, 10) << 20;
    int fd = open(arguments[1], O_RDWR | O_DIRECT);
    if (fd < 0) fail(arguments[1]);
    char *buffer;
    if (posix_memalign((void **)&buffer, BLOCK, 1 << 20)) fail("memory");
    memset(buffer, 0x5A, 1 << 20);
    sequential(fd, buffer, 1 << 20, total, 1);
    sequential(fd, buffer, 64 << 10, total, 1);
    sequential(fd, buffer, 1 << 20, total, 0);
    sequential(fd, buffer, 64 << 10, total, 0);
    random_one(fd, buffer, total);
    random_many(fd, buffer, total);
    return 0;
}
