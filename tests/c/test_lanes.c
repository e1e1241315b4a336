/* Lanes: every stage runs once and in its lane's order, whoever runs it; who is held up holds up
 * nothing but its own lane. */
#include "base/lanes.h"

#include <string.h>

#include "base/team.h"
#include "support.h"

enum { MOST_THREADS = 8, MOST_LANES = 40, STAGES = 5, ROUNDS = 3 };

typedef struct work {
    fl_lanes lanes;
    fl_barrier barrier;
    int64_t next[MOST_LANES];
    int done[MOST_LANES]; /* stages of all rounds; not atomic: the lanes order them */
    atomic_int wrong, left;
    atomic_int held; /* lane that its thread gives back last; -1: none */
} work;

static void work_begin(work *made, int64_t lanes, int64_t stages)
{
    memset(made, 0, sizeof *made);
    atomic_init(&made->held, -1);
    fl_lanes_begin(&made->lanes, lanes, stages, made->next);
    fl_barrier_init(&made->barrier);
}

static void note(work *at, const fl_task *task, int64_t round)
{
    if (task->lane < 0 || task->lane >= at->lanes.count || task->stage < 0 ||
        task->stage >= at->lanes.stages ||
        at->done[task->lane]++ != round * at->lanes.stages + task->stage)
        atomic_fetch_add(&at->wrong, 1);
}

/* Rounds of stages, a barrier between them. */
static void run_rounds(void *argument, int thread, int n_threads)
{
    work *at = argument;
    (void)thread;
    for (int64_t round = 0; round < ROUNDS; round++) {
        for (fl_task task = FL_NO_TASK; fl_lanes_next(&at->lanes, round, &task);)
            note(at, &task, round);
        fl_barrier_wait(&at->barrier, n_threads);
        for (int64_t lane = 0; lane < at->lanes.count; lane++)
            if (at->done[lane] != (round + 1) * at->lanes.stages)
                atomic_fetch_add(&at->left, 1);
        fl_barrier_wait(&at->barrier, n_threads);
    }
}

static void test_rounds(void)
{
    static work at;
    for (int threads = 1; threads <= MOST_THREADS; threads++)
        for (int64_t lanes = 0; lanes <= MOST_LANES; lanes = lanes < 4 ? lanes + 1 : 3 * lanes)
            for (int64_t stages = 1; stages <= STAGES; stages += 2) {
                check_context("%d threads, %d lanes, %d stages", threads, (int)lanes, (int)stages);
                work_begin(&at, lanes, stages);
                fl_team_run(threads, 1, run_rounds, &at);
                CHECK_EQUAL(at.wrong, 0);
                CHECK_EQUAL(at.left, 0);
            }
    check_context("%s", "");
}

/* One thread keeps the first stage that it gets until all other lanes are finished. */
static void run_beside_a_slow_one(void *argument, int thread, int n_threads)
{
    work *at = argument;
    (void)thread;
    for (fl_task task = FL_NO_TASK; fl_lanes_next(&at->lanes, 0, &task);) {
        int none = -1;
        if (n_threads > 1 && atomic_compare_exchange_strong(&at->held, &none, (int)task.lane))
            for (int turns = 0; atomic_load(&at->left) < at->lanes.count - 1; turns++)
                fl_pause(turns);
        note(at, &task, 0);
        if (task.stage == at->lanes.stages - 1)
            atomic_fetch_add(&at->left, 1);
    }
}

static void test_slow_thread(void)
{
    static work at;
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        work_begin(&at, 6, STAGES);
        fl_team_run(threads, 1, run_beside_a_slow_one, &at); /* ends only if the others do it all */
        check_context("%d threads", threads);
        CHECK_EQUAL(at.wrong, 0);
        CHECK_EQUAL(at.left, 6);
        for (int lane = 0; lane < 6; lane++)
            CHECK_EQUAL(at.done[lane], STAGES);
    }
    check_context("%s", "");
}

/* Alone: the lane furthest behind comes first, in every round. */
static void test_order(void)
{
    static work at;
    work_begin(&at, 3, 2);
    fl_task task = FL_NO_TASK;
    for (int64_t round = 0; round < ROUNDS; round++) {
        for (int64_t i = 0; i < 6; i++) {
            CHECK(fl_lanes_next(&at.lanes, round, &task));
            CHECK_EQUAL(task.lane, i % 3);
            CHECK_EQUAL(task.stage, i / 3);
        }
        CHECK(!fl_lanes_next(&at.lanes, round, &task));
        CHECK_EQUAL(task.lane, -1);
    }
}

/* A lane is offered to a thread that waits, but not left to one that does not come. */
static void test_offer(void)
{
    static work at;
    work_begin(&at, 1, 3);
    fl_task task = FL_NO_TASK;
    CHECK(fl_lanes_next(&at.lanes, 0, &task));
    at.lanes.waiting = 1;
    CHECK(fl_lanes_next(&at.lanes, 0, &task));
    CHECK_EQUAL(task.lane, 0);
    CHECK_EQUAL(task.stage, 1);
    CHECK(fl_lanes_next(&at.lanes, 0, &task));
    CHECK(!fl_lanes_next(&at.lanes, 0, &task));
}

int main(void)
{
    test_order();
    test_offer();
    test_rounds();
    test_slow_thread();
    return check_report();
}
