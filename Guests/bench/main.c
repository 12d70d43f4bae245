// The benchmark program: one line `NAME SECONDS` for each of its loads, each of which leans on one thing that running
// a guest can make slow. The same static binary runs natively and in guests, so the columns compare. What a load
// computes is printed nowhere, but checked, so that no compiler leaves it out. A line `begins NAME` before it tells
// an onlooker when the clock starts. With CPU in the environment, seconds are those of the CPU, children's included.
//
// guest-bench [NAME...]    the named loads only, each as often as it is named
// guest-bench --list       one line `NAME CLASS` for each load: what binds it, the CPU or the kernel
#define _GNU_SOURCE
#include "bench.h"
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double cpu_seconds(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static double now(void)
{
    if (getenv("CPU")) return cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN);
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double begun;
static const char *running;
void begin(void)
{
    printf("begins %s\n", running);
    fflush(stdout);
    begun = now();
}

static uint32_t random_state = 1;
uint32_t random32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

// Jobs of programs that are not part of this one: scripts in the folder JOBS, /jobs by default. A job whose script
// is not there is left out.
static const char *job_path(const char *name)
{
    static char path[256];
    const char *folder = getenv("JOBS");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "/jobs", name);
    return path;
}
static bool job(const char *name)
{
    char *arguments[] = {"sh", (char *)job_path(name), NULL};
    pid_t child;
    int status;
    if (posix_spawnp(&child, "sh", NULL, NULL, arguments, environ) != 0) return false;
    return waitpid(child, &status, 0) == child && status == 0;
}
static bool xz(void) { return job("xz"); }
static bool scripts(void) { return job("scripts"); }

enum class { CPU, KERNEL };
static const struct {
    const char *name;
    bool (*run)(void);
    enum class class;
    enum { ALWAYS, WITH_AVX2, WITH_JOB } when;
} loads[] = {
    {"crc", crc, CPU, ALWAYS},
    {"sort", sort, CPU, ALWAYS},
    {"sieve", sieve, CPU, ALWAYS},
    {"matrix", matrix, CPU, ALWAYS},
    {"tree", tree, CPU, ALWAYS},
    {"fib", fib, CPU, ALWAYS},
    {"indirect", indirect, CPU, ALWAYS},
    {"interpreter", interpreter, CPU, ALWAYS},
    {"sha256", sha256, CPU, ALWAYS},
    {"lz", lz, CPU, ALWAYS},
    {"sse2", sse2, CPU, ALWAYS},
    {"avx2", avx2, CPU, WITH_AVX2},
    {"memcpy64", memcpy_64, CPU, ALWAYS},
    {"memcpy4k", memcpy_4k, CPU, ALWAYS},
    {"memcpy1m", memcpy_1m, CPU, ALWAYS},
    {"movs64", movs_64, CPU, ALWAYS},
    {"movs4k", movs_4k, CPU, ALWAYS},
    {"movs1m", movs_1m, CPU, ALWAYS},
    {"stos64", stos_64, CPU, ALWAYS},
    {"stos4k", stos_4k, CPU, ALWAYS},
    {"stos1m", stos_1m, CPU, ALWAYS},
    {"getppid", getppid_calls, KERNEL, ALWAYS},
    {"faults", faults, KERNEL, ALWAYS},
    {"fork", forks, KERNEL, ALWAYS},
    {"exec", execs, KERNEL, ALWAYS},
    {"pipe", pipes, KERNEL, ALWAYS},
    {"futex", futexes, KERNEL, ALWAYS},
    {"signal", signals, KERNEL, ALWAYS},
    {"xz", xz, CPU, WITH_JOB},
    {"scripts", scripts, CPU, WITH_JOB},
};
enum { LOADS = sizeof loads / sizeof *loads };

static bool can_run(size_t i)
{
    switch (loads[i].when) {
    case WITH_AVX2: return __builtin_cpu_supports("avx2");
    case WITH_JOB: return access(job_path(loads[i].name), R_OK) == 0;
    default: return true;
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--nothing") == 0) return 0;
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < LOADS; i++) printf("%s %s\n", loads[i].name, loads[i].class == CPU ? "cpu" : "kernel");
        return 0;
    }
    int status = 0;
    for (size_t i = 0; i < LOADS; i++) {
        int times = argc == 1;
        for (int k = 1; k < argc; k++) times += strcmp(argv[k], loads[i].name) == 0;
        if (!can_run(i)) continue;
        for (; times > 0; times--) {
            random_state = 1;
            running = loads[i].name;
            begin();
            bool right = loads[i].run();
            double took = now() - begun;
            if (right) {
                printf("%s %.6f\n", loads[i].name, took);
            } else {
                printf("%s WRONG\n", loads[i].name);
                status = 1;
            }
            fflush(stdout);
        }
    }
    return status;
}
