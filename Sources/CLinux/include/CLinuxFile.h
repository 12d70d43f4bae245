// Calls on files that images need: room in them, locks, and paths that may not lead away.
#ifndef CLINUX_FILE_H
#define CLINUX_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

// What fcntl.h and unistd.h have under _GNU_SOURCE only, as the kernel numbers it.
enum { CLINUX_SEEK_DATA = 3, CLINUX_SEEK_HOLE = 4, CLINUX_RENAME_NOREPLACE = 1 };

// The file's size stays; the range reads as zeros and takes no room.
static inline int clinux_punch_hole(int fd, int64_t offset, int64_t count) {
    return (int)syscall(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, count);
}
// The file's size stays; the range reads as zeros, and its room stays reserved.
static inline int clinux_zero_range(int fd, int64_t offset, int64_t count) {
    return (int)syscall(SYS_fallocate, fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, count);
}
static inline int64_t clinux_copy_file_range(int from, int64_t *from_offset, int to, int64_t *to_offset, uint64_t count) {
    return syscall(SYS_copy_file_range, from, from_offset, to, to_offset, count, 0);
}

// Locks of open file descriptions (fcntl(2)): they go with the descriptor to another process, and end with the last.
enum { CLINUX_OFD_GETLK = 36, CLINUX_OFD_SETLK = 37 };

// Does not wait. `kind`: F_RDLCK, F_WRLCK or F_UNLCK; `count` 0 is all to the end. -1 and EAGAIN when somebody else holds it.
static inline int clinux_ofd_lock(int fd, int kind, int64_t start, int64_t count) {
    struct flock lock = {.l_type = (short)kind, .l_whence = SEEK_SET, .l_start = start, .l_len = count};
    return fcntl(fd, CLINUX_OFD_SETLK, &lock);
}
// 1 when such a lock would meet another's, 0 when not.
static inline int clinux_ofd_test(int fd, int kind, int64_t start, int64_t count) {
    struct flock lock = {.l_type = (short)kind, .l_whence = SEEK_SET, .l_start = start, .l_len = count};
    if (fcntl(fd, CLINUX_OFD_GETLK, &lock) != 0) return -1;
    return lock.l_type != F_UNLCK;
}

// Opens a path below a folder; a path that leaves it, by .., by a link or as an absolute one, is EXDEV. No device waits.
static inline int clinux_open_beneath(int folder, const char *path, int flags) {
    struct open_how how = {.flags = (uint64_t)flags, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, folder, path, &how, sizeof how);
}
static inline int clinux_openat(int folder, const char *path, int flags, unsigned mode) {
    return openat(folder, path, flags, mode);
}
// O_PATH, which fcntl.h has under _GNU_SOURCE only.
enum { CLINUX_O_PATH = 010000000 };

// A file that has no name yet (O_TMPFILE, which fcntl.h has under _GNU_SOURCE only).
static inline int clinux_open_nameless(const char *folder, unsigned mode) {
    return open(folder, 020000000 | O_DIRECTORY | O_RDWR | O_CLOEXEC, mode);
}
// Gives it one; EEXIST when there is such a file.
static inline int clinux_name_file(const char *link, const char *path) {
    return linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}
// EEXIST when there is such a file already.
static inline int clinux_rename_new(const char *from, const char *to) {
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, CLINUX_RENAME_NOREPLACE);
}

#endif
