#include "base/lanes.h"

#include <limits.h>

#include "base/team.h"

enum { OFFER_TURNS = 200 }; /* some microseconds: time enough for who is awake */

static void lock(fl_lanes *lanes)
{
    for (unsigned turns = 0; atomic_exchange_explicit(&lanes->locked, 1, memory_order_acquire);
         turns++)
        fl_pause(turns);
}

static void unlock(fl_lanes *lanes)
{
    atomic_store_explicit(&lanes->locked, 0, memory_order_release);
}

void fl_lanes_begin(fl_lanes *lanes, int64_t count, int64_t stages, int64_t *next)
{
    atomic_init(&lanes->locked, 0);
    atomic_init(&lanes->finished, 0);
    atomic_init(&lanes->begun, 0);
    lanes->waiting = 0;
    lanes->count = count;
    lanes->first = 0;
    lanes->stages = stages;
    lanes->next = next;
    for (int64_t lane = 0; lane < count; lane++)
        next[lane] = 0;
}

/* What there is to do in a round. */
typedef struct overview {
    int64_t behind;    /* the free lane that is furthest behind, -1: none */
    int64_t n_free;    /* lanes; at least one if there is one, all of them if somebody waits */
    int64_t n_running; /* if no lane is free */
} overview;

static overview look(const fl_lanes *lanes, int64_t round)
{
    const int64_t begin = round * lanes->stages, end = begin + lanes->stages;
    overview found = {.behind = -1};
    for (int64_t i = 0; i < lanes->count; i++) {
        int64_t lane = lanes->first + i < lanes->count ? lanes->first + i
                                                       : lanes->first + i - lanes->count,
                next = lanes->next[lane];
        if (next < 0) {
            found.n_running++;
            continue;
        }
        if (next >= end)
            continue;
        found.n_free++;
        if (found.behind < 0 || next < lanes->next[found.behind])
            found.behind = lane;
        if (next == begin && !lanes->waiting) /* none is further behind */
            break;
    }
    return found;
}

/* Unlocked for up to `turns` turns, or until `count` changes. */
static void look_away(fl_lanes *lanes, const atomic_int *count, unsigned turns)
{
    int before = atomic_load_explicit(count, memory_order_relaxed);
    unlock(lanes);
    for (unsigned turn = 0;
         turn < turns && atomic_load_explicit(count, memory_order_relaxed) == before; turn++)
        fl_pause(turn);
    lock(lanes);
}

static overview wait_for_a_lane(fl_lanes *lanes, int64_t round)
{
    overview found = look(lanes, round);
    while (found.behind < 0 && found.n_running) {
        lanes->waiting++;
        look_away(lanes, &lanes->finished, INT_MAX);
        lanes->waiting--;
        found = look(lanes, round);
    }
    return found;
}

/* What is left after one of those who wait took a lane, or none did for some turns. */
static overview offer(fl_lanes *lanes, int64_t round)
{
    overview found = look(lanes, round);
    if (found.behind < 0)
        return wait_for_a_lane(lanes, round);
    if (found.n_free > lanes->waiting)
        return found;
    look_away(lanes, &lanes->begun, OFFER_TURNS);
    return look(lanes, round);
}

int fl_lanes_next(fl_lanes *lanes, int64_t round, fl_task *task)
{
    int comes_back = task->lane >= 0;
    int64_t begin = round * lanes->stages;
    lock(lanes);
    if (comes_back) {
        lanes->next[task->lane] = begin + task->stage + 1;
        atomic_fetch_add_explicit(&lanes->finished, 1, memory_order_relaxed);
    }
    *task = FL_NO_TASK;
    overview found = comes_back ? offer(lanes, round) : wait_for_a_lane(lanes, round);
    if (found.behind >= 0) {
        int64_t stage = lanes->next[found.behind];
        *task = (fl_task){found.behind, stage - begin};
        lanes->next[found.behind] = ~stage;
        lanes->first = found.behind + 1 < lanes->count ? found.behind + 1 : 0;
        atomic_fetch_add_explicit(&lanes->begun, 1, memory_order_relaxed);
    }
    unlock(lanes);
    return task->lane >= 0;
}
