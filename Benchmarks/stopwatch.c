// stopwatch [-m MEGABYTES | -c] TEXT... -- COMMAND...: runs a command with no input and tells when each text first came
// out of it, how long it took, and how much memory it held. One line each, tab between name and value:
//
//   TEXT      seconds since just before the process was made
//   end       seconds until it was gone
//   memory    with -m: the peak, in kilobytes, of what was resident outside of mappings of that size or more, the
//             guest's RAM. Looking costs time, so times and memory are not measured in the same run.
//   NAME      with -c: seconds between the lines `begins NAME` and `NAME SECONDS`
//
// With -c all seconds but those at the end are CPU time of the command: on a machine that others use as well it tells
// more than the time that passed.
//
// What the command printed goes to standard error, so that it can be kept. The exit status is the command's.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static long resident_outside(pid_t process, long limit_kilobytes)
{
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/smaps", process);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    long size = 0, resident, sum = 0;
    while (fgets(line, sizeof line, file)) {
        sscanf(line, "Size: %ld", &size);
        if (sscanf(line, "Rss: %ld", &resident) == 1 && size < limit_kilobytes) sum += resident;
    }
    fclose(file);
    return sum;
}

static double cpu_time(pid_t process)
{
    clockid_t clock;
    struct timespec time;
    if (clock_getcpuclockid(process, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

// One line of the command's output, with its CPU time so far.
static void note_line(const char *line, double cpu)
{
    static char name[64];
    static double begun;
    char found[64];
    double seconds;
    if (sscanf(line, "begins %63s", found) == 1) {
        strcpy(name, found);
        begun = cpu;
    } else if (sscanf(line, "%63s %lf", found, &seconds) == 2 && strcmp(found, name) == 0) {
        printf("%s\t%.6f\n", name, cpu - begun);
    }
}

int main(int argc, char **argv)
{
    long limit = 0;
    bool cpu = false;
    int texts = 1;
    if (argc > 2 && strcmp(argv[1], "-m") == 0) {
        limit = atol(argv[2]) * 1024;
        texts = 3;
    } else if (argc > 1 && strcmp(argv[1], "-c") == 0) {
        cpu = true;
        texts = 2;
    }
    int separator = texts;
    while (separator < argc && strcmp(argv[separator], "--") != 0) separator++;
    if (separator + 1 >= argc) {
        fprintf(stderr, "usage: stopwatch [-m MEGABYTES | -c] TEXT... -- COMMAND...\n");
        return 2;
    }

    int ends[2];
    if (pipe(ends) < 0) return 1;
    double start = now();
    pid_t child = fork();
    if (child == 0) {
        dup2(open("/dev/null", O_RDONLY), 0);
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        execvp(argv[separator + 1], argv + separator + 1);
        perror(argv[separator + 1]);
        _exit(127);
    }
    close(ends[1]);

    static char output[1 << 22];
    size_t count = 0, line = 0;
    long peak = 0;
    bool seen[64] = {false};
    for (;;) {
        struct pollfd wait_for = {.fd = ends[0], .events = POLLIN};
        int ready = poll(&wait_for, 1, limit ? 20 : -1);
        if (limit) {
            long resident = resident_outside(child, limit);
            if (resident > peak) peak = resident;
        }
        if (ready <= 0) continue;
        ssize_t got = read(ends[0], output + count, sizeof output - 1 - count);
        double time = cpu ? cpu_time(child) : now() - start;
        if (got <= 0) break;
        if (write(2, output + count, (size_t)got) < 0) return 1;
        count += (size_t)got;
        output[count] = 0;
        for (char *end; cpu && (end = strchr(output + line, '\n')); line = (size_t)(end + 1 - output)) {
            *end = 0;
            note_line(output + line, cpu_time(child));
            *end = '\n';
        }
        for (int i = texts; i < separator && i < texts + 64; i++)
            if (!seen[i - texts] && strstr(output, argv[i])) {
                seen[i - texts] = true;
                printf("%s\t%.6f\n", argv[i], time);
            }
    }
    int status = 0;
    waitpid(child, &status, 0);
    printf("end\t%.6f\n", now() - start);
    if (limit) printf("memory\t%ld\n", peak);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
