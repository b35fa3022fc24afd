// What several processors must get right, as one program: `smp WHAT THREADS TURNS` prints "ok", or what went wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int threads, turns;
static volatile int wrong;

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set)) {
        perror("sched_setaffinity");
        exit(1);
    }
}

static void run(int n, void *(*f)(void *)) {
    pthread_t t[64];
    for (long i = 0; i < n; i++)
        if (pthread_create(&t[i], 0, f, (void *)i))
            exit(2);
    for (int i = 0; i < n; i++)
        pthread_join(t[i], 0);
}

// Counters that all threads change, each in another way.
static struct {
    uint64_t locked;
    uint64_t guarded;
    pthread_mutex_t mutex;
    char pad[64];
    __attribute__((aligned(16))) uint64_t pair[2];
    __attribute__((aligned(64))) char line[128];
} c = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void *count(void *id) {
    pin((long)id % (int)sysconf(_SC_NPROCESSORS_ONLN));
    uint32_t *split = (uint32_t *)(c.line + 62);
    for (int i = 0; i < turns; i++) {
        __atomic_fetch_add(&c.locked, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_lock(&c.mutex);
        c.guarded++;
        pthread_mutex_unlock(&c.mutex);
        uint64_t low = c.pair[0], high = c.pair[1];
        unsigned char done;
        do
            __asm__ volatile("lock cmpxchg16b %1; sete %0"
                             : "=q"(done), "+m"(c.pair), "+a"(low), "+d"(high)
                             : "b"(low + 1), "c"(high - 1)
                             : "memory");
        while (!done);
        if (i % 16 == 0)
            __asm__ volatile("lock incl %0" : "+m"(*split)::"memory");
    }
    return 0;
}

static int counters(void) {
    run(threads, count);
    uint64_t all = (uint64_t)threads * turns;
    uint32_t split;
    memcpy(&split, c.line + 62, 4);
    return c.locked != all || c.guarded != all || c.pair[0] != all || c.pair[1] != -all ||
           split != (uint32_t)threads * ((turns + 15) / 16);
}

// Two threads on two processors wake each other by futex.
static int ball;
static void *bat(void *id) {
    int me = (long)id;
    pin(me);
    for (int i = me; i < 2 * turns; i += 2) {
        int now;
        while ((now = __atomic_load_n(&ball, __ATOMIC_SEQ_CST)) != i)
            syscall(SYS_futex, &ball, FUTEX_WAIT, now, 0, 0, 0);
        __atomic_store_n(&ball, i + 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &ball, FUTEX_WAKE, 1, 0, 0, 0);
    }
    return 0;
}
static int pingpong(void) {
    run(2, bat);
    return ball != 2 * turns;
}

// A thread goes from processor to processor and takes all its registers along.
static void *wander(void *id) {
    int cpus = sysconf(_SC_NPROCESSORS_ONLN);
    double x = 1.5;
    for (int i = 0; i < turns; i++) {
        int cpu = (i + (long)id) % cpus;
        pin(cpu);
        x = x * 3 / 2 - x / 2;
        if (sched_getcpu() != cpu || x != 1.5)
            wrong = 1;
    }
    return 0;
}
static int migrate(void) {
    run(threads, wander);
    return wrong;
}

// One thread writes code, others run it.
static unsigned char *code;
static volatile int published, taken[64];
static void *runner(void *id) {
    int me = (long)id;
    pin(me % (int)sysconf(_SC_NPROCESSORS_ONLN));
    if (me == 0) {
        for (int i = 1; i <= turns; i++) {
            // Another place every now and then, and the same one again.
            unsigned char *at = code + (i / 8 % 4) * 4096;
            memcpy(at, "\xb8\0\0\0\0\xc3", 6);
            memcpy(at + 1, &i, 4);
            published = i;
            for (int n = 1; n < threads; n++)
                while (taken[n] < i)
                    sched_yield();
        }
        return 0;
    }
    for (int i = 1; i <= turns; i++) {
        while (published < i)
            sched_yield();
        int a = 0, b, c0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c0), "=d"(d)::"memory");
        if (((int (*)(void))(code + (i / 8 % 4) * 4096))() != i)
            wrong = 1;
        taken[me] = i;
    }
    return 0;
}
static int jit(void) {
    code = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    run(threads, runner);
    return wrong;
}

// A page is replaced by a newer one: whoever knows of the newer must not see the older.
static volatile int *page;
static volatile int generation, over;
static void *looker(void *id) {
    int me = (long)id;
    pin(me % (int)sysconf(_SC_NPROCESSORS_ONLN));
    if (me == 0) {
        for (int i = 1; i <= turns; i++) {
            int *next = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            *next = i;
            if (mremap(next, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, page) == MAP_FAILED)
                exit(3);
            generation = i;
        }
        over = 1;
        return 0;
    }
    while (!over) {
        int least = generation;
        if (least && *page < least)
            wrong = 1;
    }
    return 0;
}
static int shootdown(void) {
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    run(threads, looker);
    return wrong;
}

// Every thread sends the next one signals and counts its own.
static pthread_t ids[64];
static int got[64], ready;
static __thread int self;
static void note(int n) { (void)n; __atomic_fetch_add(&got[self], 1, __ATOMIC_SEQ_CST); }
static void *sender(void *id) {
    self = (long)id;
    pin(self % (int)sysconf(_SC_NPROCESSORS_ONLN));
    ids[self] = pthread_self();
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < threads)
        sched_yield();
    int next = (self + 1) % threads;
    for (int i = 0; i < turns; i++) {
        int before = __atomic_load_n(&got[next], __ATOMIC_SEQ_CST);
        if (pthread_kill(ids[next], SIGUSR1))
            wrong = 1;
        // Signals do not queue: wait until it was taken.
        while (__atomic_load_n(&got[next], __ATOMIC_SEQ_CST) == before)
            sched_yield();
    }
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < 2 * threads)
        sched_yield();
    return 0;
}
static int signals(void) {
    struct sigaction a = {.sa_handler = note};
    sigaction(SIGUSR1, &a, 0);
    run(threads, sender);
    for (int i = 0; i < threads; i++)
        wrong |= got[i] != turns;
    return wrong;
}

// Store and load by two threads, of which only one pays for the order: never may both miss the other's store.
static volatile int x, y, seen[2], go[2];
static void *dekker(void *id) {
    int me = (long)id;
    pin(me);
    for (int i = 1; i <= turns; i++) {
        if (me == 0)
            x = y = 0;
        __atomic_store_n(&go[me], i, __ATOMIC_SEQ_CST);
        if (me == 0) {
            while (__atomic_load_n(&go[1], __ATOMIC_SEQ_CST) < i)
                sched_yield();
            __atomic_store_n(&go[0], -i, __ATOMIC_SEQ_CST);
            x = 1;
            syscall(SYS_membarrier, 1 << 3, 0, 0);
            seen[0] = y;
            while (__atomic_load_n(&go[1], __ATOMIC_SEQ_CST) != -i)
                sched_yield();
            if (!seen[0] && !seen[1])
                wrong = 1;
        } else {
            while (__atomic_load_n(&go[0], __ATOMIC_SEQ_CST) != -i)
                sched_yield();
            y = 1;
            __asm__ volatile("" ::: "memory");
            seen[1] = x;
            __atomic_store_n(&go[1], -i, __ATOMIC_SEQ_CST);
            while (i < turns && __atomic_load_n(&go[0], __ATOMIC_SEQ_CST) != i + 1)
                sched_yield();
        }
    }
    return 0;
}
static int membarrier(void) {
    if (syscall(SYS_membarrier, 1 << 4, 0, 0))
        return 1;
    run(2, dekker);
    return wrong;
}

// Processes come and go while memory is mapped and unmapped.
static void *churn(void *id) {
    for (int i = 0; i < turns; i++) {
        size_t len = 4096 * (1 + (i + (long)id) % 16);
        unsigned char *m = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(m, i ^ (long)id, len);
        pid_t child = fork();
        if (!child) {
            for (size_t n = 0; n < len; n++)
                if (m[n] != (unsigned char)(i ^ (long)id))
                    _exit(1);
            m[0]++;
            _exit(42);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 42)
            wrong = 1;
        if (m[0] != (unsigned char)(i ^ (long)id) || mprotect(m, len, PROT_READ) || m[len - 1] != m[0])
            wrong = 1;
        munmap(m, len);
    }
    return 0;
}
static int forks(void) {
    run(threads, churn);
    return wrong;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*f)(void);
    } all[] = {{"counters", counters}, {"pingpong", pingpong}, {"migrate", migrate}, {"jit", jit},
               {"shootdown", shootdown}, {"signals", signals}, {"membarrier", membarrier}, {"forks", forks}};
    if (argc < 4)
        return 64;
    threads = atoi(argv[2]);
    turns = atoi(argv[3]);
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, argv[1])) {
            int bad = all[i].f();
            puts(bad ? "wrong" : "ok");
            return bad;
        }
    return 64;
}
