// Starting programs, namespaces, sockets with descriptors: what needs macros, raw system calls, or code that runs
// between fork and exec.
#ifndef CLINUX_PROCESS_H
#define CLINUX_PROCESS_H

#include <fcntl.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

// Any system call, with its result or -1 and errno: syscall() is variadic.
static inline long clinux_syscall(
    long number, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f) {
    return syscall(number, a, b, c, d, e, f);
}

// A pipe that other programs do not inherit.
static inline int clinux_pipe(int ends[2]) { return (int)syscall(SYS_pipe2, ends, O_CLOEXEC); }
static inline int clinux_fcntl(int fd, int command, long argument) { return fcntl(fd, command, argument); }

// What a child has to do before it runs another program. All arrays end where the counts say, argv and environment
// with NULL.
struct clinux_start_request {
    int program;               // descriptor of the program
    char *const *argv;
    char *const *environment;
    int standard[3];           // become 0, 1 and 2
    const int *descriptors;    // become 3, 4, 5 and so on; all others are closed
    int descriptor_count;      // at most CLINUX_START_DESCRIPTORS
    int new_session;           // setsid
    int dies_with_parent;      // SIGKILL when the thread that started it ends
};
enum { CLINUX_START_DESCRIPTORS = 64 };

// Which call failed, for clinux_start_step_name.
struct clinux_start_failure { int32_t step, code; };
const char *clinux_start_step_name(int step);

// Forks; the child runs the program. Returns the pid and stores the pidfd, or -1 and errno. What fails in the child is
// written to `report` (a close-on-exec pipe) as a struct clinux_start_failure, and the child exits with 127.
pid_t clinux_start(const struct clinux_start_request *start, int report, int *pidfd);

// How a child ended: 0 when it has not yet (and `block` is 0), 1 when `code` is an exit code, 2 when it is a signal
// that killed it; -1 and errno. Reaps it.
int clinux_reap(int pidfd, int block, int *code);

// One packet. At most CLINUX_PACKET_DESCRIPTORS descriptors each way. Both return what the system call returns.
enum { CLINUX_PACKET_DESCRIPTORS = 96 };
ssize_t clinux_send_packet(int socket, const void *bytes, size_t count, const int *descriptors, int descriptor_count);
// `descriptors` has room for CLINUX_PACKET_DESCRIPTORS; all that arrived are the caller's, also when the flags
// (MSG_TRUNC, MSG_CTRUNC) say that something is missing.
ssize_t clinux_receive_packet(
    int socket, void *bytes, size_t capacity, int *descriptors, int *descriptor_count, int *flags);
int clinux_peer_credentials(int socket, int32_t *pid, uint32_t *uid, uint32_t *gid);

// main's argv; NULL behind the last.
const char *clinux_argument(int index);

// The path of the index-th object that the dynamic linker has loaded (the program itself is ""), cut at `capacity`
// with its NUL. Returns its whole length, or -1 behind the last.
long clinux_loaded_object(size_t index, char *path, size_t capacity);
// The program's interpreter (ELF PT_INTERP), or NULL when it is linked statically.
const char *clinux_interpreter(void);

static inline int clinux_unshare(int flags) { return (int)syscall(SYS_unshare, flags); }
static inline int clinux_umount(const char *path, int flags) { return (int)syscall(SYS_umount2, path, flags); }
static inline int clinux_mount(
    const char *source, const char *target, const char *type, unsigned long flags, const char *options) {
    return (int)syscall(SYS_mount, source, target, type, flags, options);
}
// Unused arguments are zero: some operations insist on it.
static inline int clinux_prctl(int operation, uintptr_t a, uintptr_t b) {
    return (int)syscall(SYS_prctl, operation, a, b, 0, 0);
}

// All zero sets but for `kept`, of this thread (capset, version 3).
int clinux_keep_capabilities(uint64_t kept);
// The effective set of this thread.
uint64_t clinux_capabilities(void);
// Adds mount attributes (MOUNT_ATTR_*) to the mount at `path`.
int clinux_add_mount_attributes(const char *path, uint64_t attributes);

// A process that does nothing and is reaped at once. -1 and errno when it cannot be started.
int clinux_probe_fork(void);
int clinux_probe_vfork(void);
int clinux_probe_clone(unsigned long flags);
// getpid by the 32-bit entry, and by the x32 numbers of the 64-bit one.
long clinux_probe_int80(void);
long clinux_probe_x32(void);

#endif
