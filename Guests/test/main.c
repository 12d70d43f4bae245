// The guest test program: what an operating system's user space asks of a CPU. Prints `ok NAME`,
// `FAIL NAME detail` or `skip NAME reason` for each test and a last line with the counts.
//
// guest-test [NAME...]   the named tests only
// guest-test -1 NAME     that test in this process, for a debugger
// guest-test --clock     the time of day in seconds, which busybox's date has no finer than whole
#include "check.h"
#include <setjmp.h>
#include <stdarg.h>

extern const struct test __start_tests[], __stop_tests[];

enum { PASSED = 0, FAILED = 1, SKIPPED = 2, LIMIT_SECONDS = 60 };

// Shared with the test's process: what it says about itself.
static char *detail;
enum { DETAIL_SIZE = PAGE };

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, DETAIL_SIZE, format, arguments);
    va_end(arguments);
    _exit(FAILED);
}

void skip(const char *reason)
{
    snprintf(detail, DETAIL_SIZE, "%s", reason);
    _exit(SKIPPED);
}

uint8_t *pages(size_t count, int protection)
{
    uint8_t *base = mmap(NULL, (count + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED, "mmap: %s", strerror(errno));
    CHECK(mprotect(base, count * PAGE, protection) == 0, "mprotect: %s", strerror(errno));
    return base;
}

void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&action.sa_mask);
    CHECK(sigaction(signal, &action, NULL) == 0, "sigaction: %s", strerror(errno));
}

double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static sigjmp_buf landing;
static struct fault *seen;

static void record(int signal, siginfo_t *info, void *context)
{
    ucontext_t *user = context;
    seen->signal = signal;
    seen->code = info->si_code;
    seen->address = (uintptr_t)info->si_addr;
    memcpy(seen->registers, user->uc_mcontext.gregs, sizeof seen->registers);
    siglongjmp(landing, 1);
}

bool catches(struct fault *fault, void (*f)(void *), void *argument)
{
    static const int caught[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    enum { COUNT = sizeof caught / sizeof *caught };
    struct sigaction before[COUNT];
    memset(fault, 0, sizeof *fault);
    seen = fault;
    for (int i = 0; i < COUNT; i++) {
        sigaction(caught[i], NULL, &before[i]);
        handle(caught[i], record, SA_ONSTACK);
    }
    volatile bool result = false;
    if (sigsetjmp(landing, 1) == 0)
        f(argument);
    else
        result = true;
    for (int i = 0; i < COUNT; i++) sigaction(caught[i], &before[i], NULL);
    return result;
}

static void run(const struct test *test, int counts[3])
{
    detail[0] = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        alarm(LIMIT_SECONDS);
        test->run();
        _exit(PASSED);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) {
        snprintf(detail, DETAIL_SIZE, "no process: %s", strerror(errno));
        status = FAILED << 8;
    }
    if (child > 0) kill(-child, SIGKILL); // what a test that failed has left behind
    int verdict = FAILED;
    if (WIFSIGNALED(status))
        snprintf(detail, DETAIL_SIZE, "ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) <= SKIPPED)
        verdict = WEXITSTATUS(status);
    else
        snprintf(detail, DETAIL_SIZE, "ended with status %d", WEXITSTATUS(status));
    counts[verdict]++;
    static const char *const words[] = {"ok", "FAIL", "skip"};
    printf("%s %s%s%s\n", words[verdict], test->name, *detail ? " " : "", detail);
}

static bool wanted(const char *name, int count, char **names)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return count == 0;
}

int main(int argc, char **argv)
{
    detail = mmap(NULL, DETAIL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    // The test of execve runs this program again: see process.c.
    extern int executed(int, char **);
    if (argc > 1 && strcmp(argv[1], "--executed") == 0) return executed(argc, argv);

    if (argc == 2 && strcmp(argv[1], "--clock") == 0) {
        printf("%.6f\n", seconds(CLOCK_REALTIME));
        return 0;
    }
    if (argc == 3 && strcmp(argv[1], "-1") == 0) {
        for (const struct test *test = __start_tests; test < __stop_tests; test++)
            if (strcmp(test->name, argv[2]) == 0) test->run();
        return 0;
    }
    int counts[3] = {0};
    for (const struct test *test = __start_tests; test < __stop_tests; test++)
        if (wanted(test->name, argc - 1, argv + 1)) run(test, counts);
    printf("guest-test: %d passed, %d failed\n", counts[PASSED], counts[FAILED]);
    return counts[FAILED] != 0;
}
