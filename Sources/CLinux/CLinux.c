#include "CLinux.h"

#include <stdlib.h>
#include <string.h>

static struct termios saved_attributes;
static volatile sig_atomic_t guarded_terminal = -1;

int clinux_terminal_guard(int fd) {
    if (tcgetattr(fd, &saved_attributes) != 0) return -1;
    guarded_terminal = fd;
    return 0;
}

int clinux_terminal_raw(void) {
    if (guarded_terminal < 0) {
        errno = ENOTTY;
        return -1;
    }
    struct termios raw = saved_attributes;
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    return tcsetattr(guarded_terminal, TCSANOW, &raw);
}

void clinux_terminal_restore(void) {
    int fd = guarded_terminal;
    if (fd < 0) return;
    int code = errno;
    // Once a shell has taken the terminal back, its modes are the shell's.
    pid_t foreground = tcgetpgrp(fd);
    if (foreground < 0 || foreground == getpgrp()) {
        // A job that has just lost the terminal must not be stopped for setting it.
        sigset_t background, before;
        sigemptyset(&background);
        sigaddset(&background, SIGTTOU);
        pthread_sigmask(SIG_BLOCK, &background, &before);
        // Not TCSADRAIN: a terminal that takes no output would hold us here.
        tcsetattr(fd, TCSANOW, &saved_attributes);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    errno = code;
}

void clinux_terminal_release(void) {
    clinux_terminal_restore();
    guarded_terminal = -1;
}

static struct sigaction final_actions[65];

static void restore_and_die(int number, siginfo_t *info, void *context) {
    (void)context;
    clinux_terminal_restore();
    if (number == SIGBUS && info->si_code == BUS_ADRERR) {
        // Guest RAM is the one mapping that is promised before the host has the pages. A device's thread, or the
        // vCPU's in a helper, cannot go on without one.
        static const char text[] = "vmctl: the host has no memory left for guest RAM\n";
        ssize_t ignored = write(2, text, sizeof text - 1);
        (void)ignored;
    }
    sigaction(number, &final_actions[number], NULL);
    // A fault happens again on return, with all its details for whoever handles it next; a sent signal does not.
    if (info->si_code <= 0) raise(number);
}

void clinux_terminal_guard_exits(void) {
    static const int fatal[] = {SIGSEGV, SIGBUS,  SIGILL,  SIGFPE,  SIGABRT,   SIGTRAP, SIGSYS,
                                SIGXCPU, SIGXFSZ, SIGALRM, SIGPROF, SIGVTALRM, SIGUSR1, SIGUSR2};
    atexit(clinux_terminal_restore);
    // On a terminal, the Swift runtime answers a crash with a debugger's prompt that waits for keys. That is for those
    // who asked for it; everyone else gets the shell back.
    int wants_backtrace = getenv("SWIFT_BACKTRACE") != NULL;
    struct sigaction action, standard;
    memset(&standard, 0, sizeof standard);
    standard.sa_handler = SIG_DFL;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = restore_and_die;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) {
        struct sigaction before;
        if (sigaction(fatal[i], NULL, &before) != 0) continue;
        // A signal that the caller had ignored stays ignored.
        if (!(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_IGN) continue;
        final_actions[fatal[i]] = wants_backtrace ? before : standard;
        sigaction(fatal[i], &action, NULL);
    }
}
