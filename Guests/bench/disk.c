// The disk that DISK names, past the page cache: in sequence 1 MB at a time, and 4 KB here and there, one after the other or
// 32 at once. Writing comes first, so that reading finds what is allocated.
#define _GNU_SOURCE
#include "bench.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, BLOCKS = 512, PAGE = 4096, DEPTH = 32 };

static int open_disk(int mode)
{
    const char *path = getenv("DISK");
    return path ? open(path, mode | O_DIRECT) : -1;
}

static void *aligned(size_t size)
{
    void *memory = NULL;
    return posix_memalign(&memory, PAGE, size) == 0 ? memory : NULL;
}

// Each page says where it is.
static void stamp(unsigned char *block, unsigned number)
{
    for (unsigned page = 0; page < BLOCK / PAGE; page++) {
        unsigned place = number * (BLOCK / PAGE) + page;
        memcpy(block + page * PAGE, &place, sizeof place);
    }
}

static bool has_stamp(const unsigned char *page, unsigned place)
{
    unsigned found;
    memcpy(&found, page, sizeof found);
    return found == place;
}

bool disk_write(void)
{
    int disk = open_disk(O_RDWR);
    unsigned char *block = aligned(BLOCK);
    if (disk < 0 || !block) return false;
    memset(block, 0x5A, BLOCK);
    begin();
    bool right = true;
    for (unsigned i = 0; i < BLOCKS && right; i++) {
        stamp(block, i);
        right = pwrite(disk, block, BLOCK, (off_t)i * BLOCK) == BLOCK;
    }
    right = fdatasync(disk) == 0 && right;
    close(disk);
    free(block);
    return right;
}

bool disk_read(void)
{
    int disk = open_disk(O_RDONLY);
    unsigned char *block = aligned(BLOCK);
    if (disk < 0 || !block) return false;
    begin();
    bool right = true;
    for (unsigned i = 0; i < BLOCKS && right; i++)
        right = pread(disk, block, BLOCK, (off_t)i * BLOCK) == BLOCK && has_stamp(block, i * (BLOCK / PAGE));
    close(disk);
    free(block);
    return right;
}

static unsigned random_place(void) { return random32() % (BLOCKS * (BLOCK / PAGE)); }

bool disk_random(void)
{
    int disk = open_disk(O_RDONLY);
    unsigned char *page = aligned(PAGE);
    if (disk < 0 || !page) return false;
    begin();
    bool right = true;
    for (unsigned i = 0; i < 5000 && right; i++) {
        unsigned place = random_place();
        right = pread(disk, page, PAGE, (off_t)place * PAGE) == PAGE && has_stamp(page, place);
    }
    close(disk);
    free(page);
    return right;
}

bool disk_random_deep(void)
{
    int disk = open_disk(O_RDONLY);
    unsigned char *pages = aligned(DEPTH * PAGE);
    aio_context_t context = 0;
    struct iocb requests[DEPTH];
    unsigned places[DEPTH];
    if (disk < 0 || !pages || syscall(SYS_io_setup, DEPTH, &context) != 0) return false;
    begin();
    bool right = true;
    unsigned submitted = 0, done = 0, count = 20000;
    struct io_event events[DEPTH];
    unsigned slots[DEPTH], free_slots = DEPTH;
    for (unsigned i = 0; i < DEPTH; i++) slots[i] = i;
    while (done < count && right) {
        struct iocb *batch[DEPTH];
        unsigned size = 0;
        while (free_slots > 0 && submitted < count) {
            unsigned slot = slots[--free_slots];
            places[slot] = random_place();
            requests[slot] = (struct iocb){
                .aio_data = slot, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (unsigned)disk,
                .aio_buf = (uint64_t)(pages + slot * PAGE), .aio_nbytes = PAGE, .aio_offset = (int64_t)places[slot] * PAGE};
            batch[size++] = &requests[slot];
            submitted++;
        }
        if (size > 0 && syscall(SYS_io_submit, context, (long)size, batch) != (long)size) return false;
        long got = syscall(SYS_io_getevents, context, 1L, (long)DEPTH, events, NULL);
        if (got < 1) return false;
        for (long i = 0; i < got; i++) {
            unsigned slot = (unsigned)events[i].data;
            right = events[i].res == PAGE && has_stamp(pages + slot * PAGE, places[slot]) && right;
            slots[free_slots++] = slot;
            done++;
        }
    }
    syscall(SYS_io_destroy, context);
    close(disk);
    free(pages);
    return right;
}
