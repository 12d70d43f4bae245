// What every guest test uses: registration, checks, and a fault that can be looked at.
//
// A test runs in a process of its own, so that one that crashes is one failed line and no more.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

struct test {
    const char *name;
    void (*run)(void);
};

#define TEST(id)                                                                                     \
    static void id(void);                                                                            \
    static const struct test test_##id __attribute__((section("tests"), used, aligned(2 * sizeof(void *)))) = {#id, id}; \
    static void id(void)

// Ends the test. Only the first failure is told: later ones tend to be its echo.
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
// Ends the test without a verdict: this CPU has no such feature.
__attribute__((noreturn)) void skip(const char *reason);

#define CHECK(condition, ...) \
    do {                      \
        if (!(condition)) fail(__VA_ARGS__); \
    } while (0)
#define EQUAL(actual, expected)                                                                   \
    do {                                                                                          \
        uint64_t actual_ = (uint64_t)(actual), expected_ = (uint64_t)(expected);                  \
        if (actual_ != expected_)                                                                 \
            fail("line %d: %s is %#lx, not %#lx", __LINE__, #actual, (unsigned long)actual_,      \
                 (unsigned long)expected_);                                                       \
    } while (0)

enum { PAGE = 4096 };

// Fresh zeroed pages, followed by one that cannot be touched.
uint8_t *pages(size_t count, int protection);

// The last fault that `catches` saw.
struct fault {
    int signal, code;
    uintptr_t address;
    greg_t registers[NGREG];
};
// Runs f(argument) and returns whether it ended by one of SIGSEGV, SIGBUS, SIGILL, SIGFPE and SIGTRAP.
bool catches(struct fault *fault, void (*f)(void *), void *argument);

// Installs a SA_SIGINFO handler.
void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags);

double seconds(clockid_t clock);
