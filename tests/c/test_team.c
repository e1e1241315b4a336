/* The team of threads: its size, its barrier, and what is left of it after a fork. */
#define _GNU_SOURCE
#include "base/team.h"

#ifdef __linux__
#include <sched.h>
#endif
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

enum { MOST_THREADS = 8, ROUNDS = 300 };

static int size_with(const char *value)
{
    setenv("FASTLSTM_NUM_THREADS", value, 1);
    return fl_get_num_threads();
}

/* Before this process asks for a size itself: the variable is read once. */
static void test_environment(void)
{
    int several = fl_has_openmp() ? 3 : 1;
    CHECK_IN_CHILD(size_with("3") == several);
    CHECK_IN_CHILD(size_with("1") == 1);
    CHECK_IN_CHILD(size_with("3") == several && fl_team_size(1) == 1);
    CHECK_IN_CHILD(size_with("1024") == (fl_has_openmp() ? 1024 : 1));
    unsetenv("FASTLSTM_NUM_THREADS");
    CHECK_IN_CHILD(fl_get_num_threads() >= 1 && fl_get_num_threads() <= 1024);
}

/* A value that is no number of threads is as good as none. */
static void test_bad_environment(void)
{
    static const char *const bad[] = {"",   "0",  "-3",   "x",
                                      "3x", " 3", "1025", "99999999999999999999"};
    unsetenv("FASTLSTM_NUM_THREADS");
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    pid_t child = check_fork();
    if (child == 0) {
        unsigned char automatic = (unsigned char)fl_get_num_threads();
        _exit(write(pipes[1], &automatic, 1) == 1 ? 0 : 1);
    }
    CHECK(check_joined(child));
    unsigned char automatic = 0;
    CHECK(read(pipes[0], &automatic, 1) == 1);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        check_context("FASTLSTM_NUM_THREADS='%s'", bad[i]);
        CHECK_IN_CHILD((unsigned char)size_with(bad[i]) == automatic);
    }
    check_context("%s", "");
    unsetenv("FASTLSTM_NUM_THREADS");
    close(pipes[0]);
    close(pipes[1]);
}

static void test_size(void)
{
    int several = fl_has_openmp();
    int automatic = fl_get_num_threads();
    CHECK(automatic >= 1);
    CHECK_EQUAL(fl_team_size(3), several ? 3 : 1);
    CHECK_EQUAL(fl_team_size(-3), automatic);
    CHECK_EQUAL(fl_team_size(1 << 30), several ? 1024 : 1);
    fl_set_num_threads(5);
    CHECK_EQUAL(fl_get_num_threads(), several ? 5 : 1);
    CHECK_EQUAL(fl_team_size(2), several ? 2 : 1);
    fl_set_num_threads(-7);
    CHECK_EQUAL(fl_get_num_threads(), automatic);
    fl_set_num_threads(0);
    CHECK_EQUAL(fl_get_num_threads(), automatic);
}

typedef struct meeting {
    fl_barrier barrier;
    int visits[MOST_THREADS * 16]; /* a cache line each; not atomic: the barrier orders them */
    atomic_int seen, late, bad;
    int size;
} meeting;

static void meet(void *argument, int thread, int n_threads)
{
    meeting *at = argument;
    atomic_fetch_add(&at->seen, 1);
    if (thread < 0 || thread >= n_threads || n_threads > at->size)
        atomic_fetch_add(&at->bad, 1);
    for (int round = 1; round <= ROUNDS; round++) {
        at->visits[thread * 16] = round;
        fl_barrier_wait(&at->barrier, n_threads);
        for (int other = 0; other < n_threads; other++)
            if (at->visits[other * 16] != round)
                atomic_fetch_add(&at->late, 1);
        fl_barrier_wait(&at->barrier, n_threads);
    }
}

static void test_barrier(void)
{
    for (int size = 1; size <= MOST_THREADS; size = size < 4 ? size + 1 : 2 * size) {
        meeting at = {.size = size};
        fl_barrier_init(&at.barrier);
        fl_team_run(size, 1, meet, &at);
        check_context("%d threads", size);
        CHECK(at.seen >= 1 && at.seen <= size);
        CHECK_EQUAL(at.late, 0);
        CHECK_EQUAL(at.bad, 0);
        if (!fl_has_openmp())
            CHECK_EQUAL(at.seen, 1);
    }
    check_context("%s", "");
}

/* A team inside a team has one member. */
static void nested(void *argument, int thread, int n_threads)
{
    (void)thread;
    if (n_threads > 1 && fl_team_size(4) != 1)
        atomic_fetch_add((atomic_int *)argument, 1);
}

static void test_nested(void)
{
    atomic_int wrong = 0;
    fl_team_run(3, 1, nested, &wrong);
    CHECK_EQUAL(wrong, 0);
}

static void count_member(void *argument, int thread, int n_threads)
{
    (void)thread;
    (void)n_threads;
    atomic_fetch_add((atomic_int *)argument, 1);
}

static int runs_alone(int n_threads)
{
    atomic_int members = 0;
    fl_team_run(n_threads, 1, count_member, &members);
    return members == 1;
}

/* Work decides how many threads there are, and whether they are woken; a number by name wakes them.
 */
static void test_worth(void)
{
    CHECK_EQUAL(fl_team_worth(0, 8), 1);
    CHECK_EQUAL(fl_team_worth(199999, 8), 1);
    CHECK_EQUAL(fl_team_worth(200000, 8), 2);
    CHECK_EQUAL(fl_team_worth(INT64_MAX, 8), 8);
    CHECK_EQUAL(fl_team_worth(INT64_MAX, 1), 1);
    CHECK(!fl_team_wakes(7999999, 0, 2));
    CHECK(fl_team_wakes(8000000, 0, 2));
    CHECK(fl_team_wakes(0, 2, 2));
    CHECK(fl_team_wakes(INT64_MAX, 0, 1024));
}

/* A team that sleeps is left alone, one that still waits for work is used. */
static void test_sleeping_team(void)
{
    enum { LONG_AFTER = 20000, TRIES = 10000 };
    atomic_int members = 0;
    CHECK(fl_has_openmp() ? !runs_alone(3) : runs_alone(3));
    usleep(LONG_AFTER);
    fl_team_run(3, 0, count_member, &members);
    CHECK_EQUAL(members, 1);
    for (int i = 0; i < TRIES && members < 2; i++) { /* this thread may be held up between two */
        members = 0;
        fl_team_run(3, 0, count_member, &members);
    }
    CHECK(fl_has_openmp() ? members > 1 : members == 1);
}

#ifdef __linux__
typedef struct places {
    fl_barrier barrier;
    atomic_int failed;
    int narrow, processor[2];
    cpu_set_t allowed[2];
} places;

/* Member 1 goes to the processor of member 0, and may not leave it if `narrow`. */
static void crowd(void *argument, int thread, int n_threads)
{
    places *at = argument;
    cpu_set_t allowed, one;
    if (n_threads != 2)
        return;
    at->processor[thread] = sched_getcpu();
    fl_barrier_wait(&at->barrier, 2);
    if (thread == 0)
        return;
    CPU_ZERO(&one);
    CPU_SET(at->processor[0], &one);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 ||
        sched_setaffinity(0, sizeof one, &one) != 0 ||
        (!at->narrow && sched_setaffinity(0, sizeof allowed, &allowed) != 0))
        atomic_fetch_add(&at->failed, 1);
}
static void look_around(void *argument, int thread, int n_threads)
{
    places *at = argument;
    if (n_threads != 2)
        return;
    at->processor[thread] = sched_getcpu();
    if (sched_getaffinity(0, sizeof at->allowed[thread], &at->allowed[thread]) != 0)
        atomic_fetch_add(&at->failed, 1);
}

/* A member that shares a processor with another one goes to a free one, if it may, and may run on
 * the same ones as before then. */
static void test_apart(void)
{
    enum { TRIES = 50 };
    places at = {.narrow = 0};
    cpu_set_t allowed;
    int shared = 0;
    fl_barrier_init(&at.barrier);
    atomic_init(&at.failed, 0);
    if (!fl_has_openmp() || sched_getaffinity(0, sizeof allowed, &allowed) != 0 ||
        CPU_COUNT(&allowed) < 2)
        return;
    for (int i = 0; i < TRIES; i++) {
        fl_team_run(2, 1, crowd, &at);
        fl_team_run(2, 1, look_around, &at);
        shared += at.processor[0] == at.processor[1];
        CHECK(CPU_EQUAL(&at.allowed[0], &allowed) && CPU_EQUAL(&at.allowed[1], &allowed));
    }
    CHECK(shared < TRIES / 2); /* the system may move either at any time */
    at.narrow = 1;
    fl_team_run(2, 1, crowd, &at);
    fl_team_run(2, 1, look_around, &at);
    CHECK(CPU_EQUAL(&at.allowed[0], &allowed));
    CHECK_EQUAL(CPU_COUNT(&at.allowed[1]), 1);
    CHECK(CPU_ISSET(at.processor[1], &at.allowed[1]));
    CHECK_EQUAL(at.failed, 0);
}
#endif

static test_layer wide_layer(void)
{
    fl_recurrent_config config = {.cell = "lstm",
                                  .input_size = 256,
                                  .hidden_size = 256,
                                  .num_layers = 1,
                                  .bias = 1,
                                  .dtype = FL_FLOAT32};
    return test_layer_new(&config, 1);
}

static int steps_alone(fl_stream *stream, const void *x, const void *y_wanted, void *y, size_t size)
{
    return fl_stream_step(stream, x, y) == FL_OK && memcmp(y, y_wanted, size) == 0;
}

/* Threads do not survive a fork: the child has new ones, asked for anew or by something made before
 * the fork. */
static void test_fork(void)
{
    enum { STREAMS = 8 };
    fl_set_num_threads(4);
    test_layer wide = wide_layer();
    size_t size = STREAMS * 256 * sizeof(float);
    double zero[STREAMS * 256] = {0};
    void *x = reals_of(FL_FLOAT32, zero, STREAMS * 256), *y = guarded_new(size),
         *y_child = guarded_new(size);
    fl_stream *stream;
    CHECK_EQUAL(fl_stream_create(wide.layer, STREAMS, &stream), FL_OK);
    CHECK_EQUAL(fl_stream_step(stream, x, y), FL_OK);
    CHECK_EQUAL(fl_stream_reset(stream, -1), FL_OK);
    CHECK(fl_has_openmp() ? !runs_alone(3) : runs_alone(3));
    CHECK_IN_CHILD(fl_get_num_threads() == (fl_has_openmp() ? 4 : 1) &&
                   fl_team_size(7) == (fl_has_openmp() ? 7 : 1));
    CHECK_IN_CHILD(runs_alone(3) != fl_has_openmp());
    CHECK_IN_CHILD(steps_alone(stream, x, y, y_child, size));
    CHECK_EQUAL(fl_team_size(3), fl_has_openmp() ? 3 : 1);
    CHECK(fl_has_openmp() ? !runs_alone(3) : runs_alone(3));
    fl_stream_destroy(stream);
    test_layer_free(&wide);
    guarded_free(x);
    guarded_free(y);
    guarded_free(y_child);
    fl_set_num_threads(0);
}

int main(void)
{
    test_environment();
    test_bad_environment();
    test_size();
    test_barrier();
    test_nested();
    test_worth();
    test_sleeping_team();
    test_fork();
#ifdef __linux__
    test_apart();
#endif
    return check_report();
}
