// Clocks and timers: nothing early, nothing backwards, and lateness within reason on a busy machine.
#include "check.h"
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

TEST(monotonic_clock)
{
    struct timespec before, now;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (int i = 0; i < 200000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        CHECK(now.tv_sec > before.tv_sec || (now.tv_sec == before.tv_sec && now.tv_nsec >= before.tv_nsec),
              "the clock went back by %ld ns", before.tv_nsec - now.tv_nsec);
        CHECK((unsigned long)now.tv_nsec < 1000000000, "%ld nanoseconds", now.tv_nsec);
        before = now;
    }
}

// The vDSO's clock and the kernel's are one clock.
TEST(vdso_agrees_with_the_kernel)
{
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    for (int i = 0; i < 300; i++) {
        struct timespec kernel;
        clockid_t clock = clocks[i % 3];
        double first = seconds(clock);
        syscall(SYS_clock_gettime, clock, &kernel);
        double last = seconds(clock), middle = (double)kernel.tv_sec + (double)kernel.tv_nsec * 1e-9;
        CHECK(first - 1e-5 <= middle && middle <= last + 1e-5, "clock %d: %.9f, kernel %.9f, %.9f", clock, first, middle, last);
    }
    time_t a = time(NULL);
    struct timeval b;
    gettimeofday(&b, NULL);
    CHECK(b.tv_sec - a <= 1, "time %ld, gettimeofday %ld", a, b.tv_sec);
}

TEST(nanosleep_is_not_early)
{
    for (int milliseconds = 1; milliseconds <= 64; milliseconds *= 4) {
        struct timespec time = {0, milliseconds * 1000000L};
        double before = seconds(CLOCK_MONOTONIC);
        nanosleep(&time, NULL);
        double took = seconds(CLOCK_MONOTONIC) - before;
        CHECK(took >= milliseconds * 1e-3, "%d ms took %.6f s", milliseconds, took);
        CHECK(took < milliseconds * 1e-3 + 0.5, "%d ms took %.6f s", milliseconds, took);
    }
}

static volatile int ticks;
static void tick(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    ticks++;
}
TEST(interval_timer)
{
    handle(SIGALRM, tick, SA_RESTART);
    struct itimerval every = {{0, 10000}, {0, 10000}};
    double before = seconds(CLOCK_MONOTONIC);
    setitimer(ITIMER_REAL, &every, NULL);
    while (ticks < 20) pause();
    double took = seconds(CLOCK_MONOTONIC) - before;
    CHECK(took > 0.19 && took < 2, "20 ticks of 10 ms took %.3f s", took);
}

TEST(timer_descriptor)
{
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{0, 5000000}, {0, 5000000}};
    timerfd_settime(timer, 0, &every, NULL);
    double before = seconds(CLOCK_MONOTONIC);
    uint64_t total = 0, expired;
    while (total < 20) {
        EQUAL(read(timer, &expired, 8), 8);
        total += expired;
    }
    double took = seconds(CLOCK_MONOTONIC) - before;
    CHECK(took > 0.094 && took < 2, "20 ticks of 5 ms took %.3f s", took);
}

// A processor-time timer interrupts a loop that never enters the kernel.
TEST(profiling_timer)
{
    handle(SIGVTALRM, tick, 0);
    struct itimerval every = {{0, 10000}, {0, 10000}};
    setitimer(ITIMER_VIRTUAL, &every, NULL);
    while (ticks < 5) __builtin_ia32_pause();
}

TEST(time_stamp_counter)
{
    uint64_t before = __builtin_ia32_rdtsc(), first = before;
    double start = seconds(CLOCK_MONOTONIC);
    for (int i = 0; i < 100000; i++) {
        uint64_t now = __builtin_ia32_rdtsc();
        CHECK(now >= before, "rdtsc went back by %lu", (unsigned long)(before - now));
        before = now;
    }
    while (seconds(CLOCK_MONOTONIC) - start < 0.1) {
    }
    CHECK(__builtin_ia32_rdtsc() - first > 10000000, "the counter hardly moves");
}
