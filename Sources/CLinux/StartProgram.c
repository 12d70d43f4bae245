// Starts a program. What the child does here must be async-signal-safe: it is a copy of one thread of a process whose
// other threads may have held any lock.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "CLinuxProcess.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum step { STEP_NONE, STEP_PARENT, STEP_SESSION, STEP_DUPLICATE, STEP_CLOSE, STEP_SIGNALS, STEP_EXECUTE };

const char *clinux_start_step_name(int step) {
    switch (step) {
    case STEP_PARENT: return "prctl";
    case STEP_SESSION: return "setsid";
    case STEP_DUPLICATE: return "dup3";
    case STEP_CLOSE: return "close_range";
    case STEP_SIGNALS: return "sigaction";
    case STEP_EXECUTE: return "execveat";
    default: return "start";
    }
}

static _Noreturn void fail(int report, enum step step) {
    struct clinux_start_failure failure = {step, errno};
    ssize_t written = write(report, &failure, sizeof failure);
    (void)written;
    _exit(127);
}

// Sources may have the numbers of other places: all move above every place first, and then down.
static void place_descriptors(const struct clinux_start_request *start, int *report, int *program) {
    const int count = start->descriptor_count, above = 3 + count + 2;
    int moved[3 + CLINUX_START_DESCRIPTORS];
    int new_report = fcntl(*report, F_DUPFD_CLOEXEC, above);
    if (new_report < 0) fail(*report, STEP_DUPLICATE);
    *report = new_report;
    *program = fcntl(start->program, F_DUPFD_CLOEXEC, above);
    if (*program < 0) fail(*report, STEP_DUPLICATE);
    for (int i = 0; i < 3 + count; i++) {
        moved[i] = fcntl(i < 3 ? start->standard[i] : start->descriptors[i - 3], F_DUPFD_CLOEXEC, above);
        if (moved[i] < 0) fail(*report, STEP_DUPLICATE);
    }
    for (int i = 0; i < 3 + count; i++)
        if (dup3(moved[i], i, 0) < 0) fail(*report, STEP_DUPLICATE);
    if (dup3(*report, above - 1, O_CLOEXEC) < 0 || dup3(*program, above - 2, O_CLOEXEC) < 0)
        fail(*report, STEP_DUPLICATE);
    *report = above - 1;
    *program = above - 2;
    // Not through glibc: its older versions have no wrapper.
    if (syscall(SYS_close_range, above, ~0U, 0) != 0) fail(*report, STEP_CLOSE);
}

static _Noreturn void run_child(const struct clinux_start_request *start, int report, pid_t parent) {
    if (start->dies_with_parent) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail(report, STEP_PARENT);
        // A parent that died before that sends nothing any more.
        if (getppid() != parent) _exit(127);
    }
    if (start->new_session && setsid() < 0) fail(report, STEP_SESSION);
    int program;
    place_descriptors(start, &report, &program);

    // exec resets handlers, but leaves ignored signals ignored and blocked ones blocked.
    struct sigaction standard;
    memset(&standard, 0, sizeof standard);
    standard.sa_handler = SIG_DFL;
    for (int number = 1; number <= SIGRTMAX; number++) {
        if (number == SIGKILL || number == SIGSTOP) continue;
        sigaction(number, &standard, NULL);
    }
    sigset_t none;
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL) != 0) fail(report, STEP_SIGNALS);
    syscall(SYS_execveat, program, "", start->argv, start->environment, AT_EMPTY_PATH);
    fail(report, STEP_EXECUTE);
}

pid_t clinux_start(const struct clinux_start_request *start, int report, int *pidfd) {
    if (start->descriptor_count < 0 || start->descriptor_count > CLINUX_START_DESCRIPTORS) {
        errno = E2BIG;
        return -1;
    }
    // No handler of the parent's may run in the child.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const pid_t parent = getpid();
    // Not clone3: its flags are in memory, where no system-call filter can see them. Not fork: it gives no pidfd.
    pid_t pid = (pid_t)syscall(SYS_clone, (unsigned long)CLONE_PIDFD | SIGCHLD, NULL, pidfd, NULL, 0);
    if (pid == 0) run_child(start, report, parent);
    int code = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = code;
    return pid;
}

int clinux_reap(int pidfd, int block, int *code) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int result;
    do result = waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, WEXITED | (block ? 0 : WNOHANG));
    while (result != 0 && errno == EINTR);
    if (result != 0) return -1;
    if (info.si_pid == 0) return 0;
    *code = info.si_status;
    return info.si_code == CLD_EXITED ? 1 : 2;
}
