#define _GNU_SOURCE
#include "base/team.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "base/fpenv.h"
#include "base/quota.h"
#include "fastlstm.h"

enum { TURNS_BEFORE_YIELD = 4000, MAX_THREADS = 1024 };
/* A member that is awake begins in less than 500 turns (10 to 20 us). */
enum { TURNS_BEFORE_DOZE = 500, DOZE_NS = 20000 };
/* So long after a call, OpenMP's threads still wait for the next one. */
enum { AWAKE_NS = 1000000 };
enum {
    THREAD_SHARE = 100000, /* of work: below, a fork/join costs more than it gains */
    WAKING_SHARE = 4000000 /* worth waking a team that sleeps */
};

static atomic_int default_threads; /* fl_set_num_threads; 0 = automatic */
static pthread_once_t limits_once = PTHREAD_ONCE_INIT;
static int environment_threads; /* FASTLSTM_NUM_THREADS, 0 if unset or unusable */
static int machine_threads;     /* affinity mask and CPU quota */

/* Unsigned decimal at *text, which is moved past it; 0 if there is none. */
static long long read_number(const char **text)
{
    long long value = 0;
    while (**text >= '0' && **text <= '9' && value < (1LL << 50)) {
        value = value * 10 + (**text - '0');
        (*text)++;
    }
    return value;
}

static int affinity_threads(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

static void find_limits(void)
{
    const char *text = getenv("FASTLSTM_NUM_THREADS");
    if (text) {
        long long value = read_number(&text);
        environment_threads = *text == '\0' && value <= MAX_THREADS ? (int)value : 0;
    }
    int quota = fl_quota_cpus(""), affinity = affinity_threads();
    machine_threads = quota < affinity ? quota : affinity;
    machine_threads = machine_threads < MAX_THREADS ? machine_threads : MAX_THREADS;
}

#ifdef _OPENMP
static atomic_int forked_amid; /* 1: a child with the forking thread's team, without its threads */
/* Of the largest team that this thread has had: as many are granted again without asking. */
static _Thread_local int members = 1;
static _Thread_local int team_remains; /* at a fork: the runtime did not let go of this thread's */

/* Whoever ran OpenMP on this thread, we or another library, left it a team that waits; its threads
 * would be missing in a child, which would wait for them for ever. So the team is let go, where the
 * runtime does not do it by itself, as LLVM's does. */
static void before_fork(void)
{
    int remains = omp_in_parallel();
#ifndef __clang__
    int (*pause)(int) = NULL;
    void *found = dlsym(RTLD_DEFAULT, "omp_pause_resource_all"); /* OpenMP 5.0 */
    memcpy(&pause, &found, sizeof pause);
    remains = remains || !pause || pause(1 /* omp_pause_soft */) != 0;
#endif
    team_remains = remains;
    members = 1;
}

static void after_fork_in_child(void)
{
    if (team_remains)
        atomic_store(&forked_amid, 1);
}

static __attribute__((constructor)) void watch_forks(void)
{
    pthread_atfork(before_fork, NULL, after_fork_in_child);
}

static void *probe_member(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* Of a team of `n_threads`, the members that the system lets us have now: OpenMP ends the process
 * where it gets fewer than it asks for. */
static int members_granted(int n_threads)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_t made[MAX_THREADS];
    int count = 0;
    pthread_mutex_lock(&gate);
    while (count < n_threads - 1 && pthread_create(&made[count], NULL, probe_member, &gate) == 0)
        count++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < count; i++)
        pthread_join(made[i], NULL);
    return count + 1;
}
#endif

static int runtime_threads(void)
{
#ifdef _OPENMP
    if (atomic_load(&forked_amid) || omp_in_parallel())
        return 1;
    return omp_get_max_threads();
#else
    return 1;
#endif
}

int fl_team_size(int requested)
{
    pthread_once(&limits_once, find_limits);
    int runtime = runtime_threads();
#ifdef _OPENMP
    if (runtime == 1 && (atomic_load(&forked_amid) || omp_in_parallel()))
        return 1;
#else
    return 1;
#endif
    if (requested <= 0)
        requested = atomic_load(&default_threads);
    if (requested <= 0)
        requested = environment_threads;
    if (requested > 0)
        return requested < MAX_THREADS ? requested : MAX_THREADS;
    return runtime < machine_threads ? runtime : machine_threads;
}

int fl_team_worth(int64_t work, int wanted)
{
    int64_t worth = work / THREAD_SHARE;
    return worth >= wanted ? wanted : worth < 2 ? 1 : (int)worth;
}

int fl_team_wakes(int64_t work, int asked, int n_threads)
{
    return asked > 0 || work / WAKING_SHARE >= n_threads;
}

void fl_set_num_threads(int32_t n_threads)
{
    atomic_store(&default_threads, n_threads > 0 ? n_threads : 0);
}

int32_t fl_get_num_threads(void)
{
    return fl_team_size(0);
}

int32_t fl_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

static void run_alone(fl_team_function function, void *argument, int thread, int n_threads)
{
    fl_fpenv saved = fl_fpenv_enter();
    function(argument, thread, n_threads);
    fl_fpenv_leave(saved);
}

#ifdef _OPENMP
static atomic_llong last_wish; /* when a call that had use for a team ended, in ns */

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

enum { PROCESSORS = 1024, WORD = 64 };
/* A call of a team: processors that members run on (of later numbers nothing is known), and how
 * many of its threads have begun. */
typedef struct team_call {
    atomic_ullong taken[PROCESSORS / WORD];
    atomic_int n_threads, begun;
} team_call;
/* Of the thread that called. */
static _Thread_local team_call *awaited;

/* Notes the processor of this thread; whether another member has it already. */
static int is_shared(team_call *call)
{
#ifdef __linux__
    int processor = sched_getcpu();
#else
    int processor = -1;
#endif
    if (processor < 0 || processor >= PROCESSORS)
        return 0;
    unsigned long long bit = 1ULL << processor % WORD;
    return (atomic_fetch_or(&call->taken[processor / WORD], bit) & bit) != 0;
}

/* A member that was queued on another one's processor, which waits for it there, goes to one that
 * no member has, if it may. */
static void stand_apart(team_call *call)
{
    if (!is_shared(call))
        return;
#ifdef __linux__
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    others = allowed;
    for (int i = 0; i < PROCESSORS && i < CPU_SETSIZE; i++)
        if (atomic_load(&call->taken[i / WORD]) >> i % WORD & 1)
            CPU_CLR(i, &others);
    if (CPU_COUNT(&others) && sched_setaffinity(0, sizeof others, &others) == 0) {
        (void)sched_setaffinity(0, sizeof allowed, &allowed);
        (void)is_shared(call);
    }
#endif
}

/* Whether this thread has called a team of which a member has not begun. */
static int is_awaiting(void)
{
    return awaited && atomic_load(&awaited->begun) < atomic_load(&awaited->n_threads);
}

/* A function of its own: compilers call the runtime at the very start of one that has a region. */
static __attribute__((noinline)) void run_together(int n_threads, fl_team_function function,
                                                   void *argument)
{
    team_call call = {.n_threads = n_threads};
    (void)is_shared(&call);
    awaited = &call;
#pragma omp parallel num_threads(n_threads)
    {
        int thread = omp_get_thread_num();
        if (thread)
            stand_apart(&call);
        else
            atomic_store(&call.n_threads, omp_get_num_threads());
        atomic_fetch_add(&call.begun, 1);
        run_alone(function, argument, thread, omp_get_num_threads());
        for (unsigned turns = 0; thread == 0 && is_awaiting(); turns++)
            fl_pause(turns);
    }
    awaited = NULL;
}
#endif

void fl_team_run(int n_threads, int wakes, fl_team_function function, void *argument)
{
#ifdef _OPENMP
    if (n_threads > 1 && !atomic_load(&forked_amid)) {
        if (wakes || now_ns() - atomic_load(&last_wish) < AWAKE_NS) {
            if (n_threads > members)
                members = n_threads = members_granted(n_threads);
            fl_fpenv saved = fl_fpenv_current(); /* the runtime's own arithmetic raises flags */
            run_together(n_threads, function, argument);
            fl_fpenv_leave(saved);
        } else {
            run_alone(function, argument, 0, 1);
        }
        atomic_store(&last_wish, now_ns());
        return;
    }
#else
    (void)n_threads, (void)wakes;
#endif
    run_alone(function, argument, 0, 1);
}

void fl_barrier_init(fl_barrier *barrier)
{
    atomic_init(&barrier->arrived, 0);
    atomic_init(&barrier->phase, 0);
}

void fl_pause(unsigned turns)
{
#ifdef _OPENMP
    if (turns >= TURNS_BEFORE_DOZE && is_awaiting()) {
        nanosleep(&(struct timespec){.tv_nsec = DOZE_NS}, NULL);
        return;
    }
#endif
    if (turns >= TURNS_BEFORE_YIELD) {
        sched_yield();
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void fl_barrier_wait(fl_barrier *barrier, int n_threads)
{
    if (n_threads <= 1)
        return;
    unsigned phase = atomic_load_explicit(&barrier->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == n_threads - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->phase, phase + 1, memory_order_release);
        return;
    }
    for (unsigned turns = 0; atomic_load_explicit(&barrier->phase, memory_order_acquire) == phase;
         turns++)
        fl_pause(turns);
}
