// Threads: what must be atomic is, what is a thread's own stays so, and no wake-up is lost.
#include "check.h"
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

enum { THREADS = 4, ROUNDS = 20000 };

static void together(void *(*body)(void *), void *shared)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, body, shared) == 0, "pthread_create");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

struct counters {
    uint64_t add, xadd, cmpxchg, locked;
    uint32_t spin, bits;
    __int128 wide __attribute__((aligned(16)));
    uint64_t in_spin;
    pthread_mutex_t mutex;
};
static void *count_up(void *argument)
{
    struct counters *c = argument;
    for (int i = 0; i < ROUNDS; i++) {
        __asm__ volatile("lock; addq $1, %0" : "+m"(c->add)::"cc");
        uint64_t one = 1;
        __asm__ volatile("lock; xaddq %1, %0" : "+m"(c->xadd), "+r"(one)::"cc");
        uint64_t old = c->cmpxchg;
        while (!__atomic_compare_exchange_n(&c->cmpxchg, &old, old + 3, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        }
        uint64_t low = 0, high = 0;
        bool done;
        do {
            uint64_t next_low = low + 1, next_high = high + 2;
            __asm__ volatile("lock; cmpxchg16b %0" : "+m"(c->wide), "+a"(low), "+d"(high), "=@ccz"(done)
                             : "b"(next_low), "c"(next_high) : "memory");
        } while (!done);
        uint32_t locked = 1;
        for (;;) {
            __asm__ volatile("xchgl %0, %1" : "+r"(locked), "+m"(c->spin)::"memory");
            if (!locked) break;
            sched_yield();
        }
        c->in_spin++;
        __atomic_store_n(&c->spin, 0, __ATOMIC_RELEASE);
        pthread_mutex_lock(&c->mutex);
        c->locked++;
        pthread_mutex_unlock(&c->mutex);
    }
    return NULL;
}
TEST(atomic_counters)
{
    static struct counters c = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    together(count_up, &c);
    const uint64_t total = THREADS * ROUNDS;
    EQUAL(c.add, total);
    EQUAL(c.xadd, total);
    EQUAL(c.cmpxchg, 3 * total);
    EQUAL((uint64_t)c.wide, total);
    EQUAL((uint64_t)(c.wide >> 64), 2 * total);
    EQUAL(c.in_spin, total);
    EQUAL(c.locked, total);
}

struct relay {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int turn, next_id, rounds;
};
static void *take_turns(void *argument)
{
    struct relay *r = argument;
    pthread_mutex_lock(&r->mutex);
    int id = r->next_id++;
    while (r->rounds < 2000) {
        while (r->turn != id && r->rounds < 2000) pthread_cond_wait(&r->changed, &r->mutex);
        r->turn = (id + 1) % THREADS;
        r->rounds++;
        pthread_cond_broadcast(&r->changed);
    }
    pthread_mutex_unlock(&r->mutex);
    return NULL;
}
TEST(condition_relay)
{
    static struct relay r = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0};
    together(take_turns, &r);
    CHECK(r.rounds >= 2000, "%d rounds", r.rounds);
}

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}
static uint32_t gate, awake;
static void *wait_at_gate(void *unused)
{
    while (__atomic_load_n(&gate, __ATOMIC_ACQUIRE) == 0) futex(&gate, FUTEX_WAIT, 0, NULL);
    __atomic_fetch_add(&awake, 1, __ATOMIC_SEQ_CST);
    return unused;
}
TEST(futex_wait_wake)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, wait_at_gate, NULL);
    usleep(20000);
    EQUAL(__atomic_load_n(&awake, __ATOMIC_SEQ_CST), 0);
    __atomic_store_n(&gate, 1, __ATOMIC_RELEASE);
    futex(&gate, FUTEX_WAKE, INT_MAX, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    EQUAL(awake, THREADS);

    struct timespec timeout = {0, 30000000};
    double before = seconds(CLOCK_MONOTONIC);
    EQUAL(futex(&gate, FUTEX_WAIT, 1, &timeout), -1);
    EQUAL(errno, ETIMEDOUT);
    CHECK(seconds(CLOCK_MONOTONIC) - before >= 0.0299, "a futex timed out early");
    EQUAL(futex(&gate, FUTEX_WAIT, 9, NULL), -1);
    EQUAL(errno, EAGAIN);
}

static __thread uint64_t own[100];
static void *keep_own(void *unused)
{
    uint64_t me = (uint64_t)pthread_self();
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 100; i++) own[i] = me + (uint64_t)(i * round);
        sched_yield();
        for (int i = 0; i < 100; i++) EQUAL(own[i], me + (uint64_t)(i * round));
    }
    return unused;
}
TEST(thread_local_storage) { together(keep_own, NULL); }

static pthread_t received_by;
static volatile int received;
static void receive(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    received_by = pthread_self();
    received++;
}
static void *spin_until_signalled(void *unused)
{
    while (!received) __builtin_ia32_pause();
    return unused;
}
TEST(signal_to_a_thread)
{
    handle(SIGUSR1, receive, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, spin_until_signalled, NULL);
    usleep(5000);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    EQUAL(received, 1);
    CHECK(pthread_equal(received_by, thread), "the signal went to another thread");
}

// sched_getcpu reads the CPU's number without a system call, by rdpid, rdtscp or lsl.
TEST(cpu_number)
{
    unsigned cpu = 99, node = 99;
    syscall(SYS_getcpu, &cpu, &node, NULL);
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    CHECK(sched_getcpu() >= 0 && sched_getcpu() < count, "on CPU %d of %ld", sched_getcpu(), count);
    if (count == 1) EQUAL(sched_getcpu(), cpu);
}
