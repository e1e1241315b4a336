#include "base/lanes.h"

#include "base/team.h"

static void lock(fl_lanes *lanes)
{
    for (int turns = 0; atomic_exchange_explicit(&lanes->locked, 1, memory_order_acquire); turns++)
        fl_pause(turns);
}

static void unlock(fl_lanes *lanes)
{
    atomic_store_explicit(&lanes->locked, 0, memory_order_release);
}

void fl_lanes_begin(fl_lanes *lanes, int64_t count, int64_t *next)
{
    atomic_init(&lanes->locked, 0);
    atomic_init(&lanes->finished, 0);
    lanes->waiting = 0;
    lanes->count = count;
    lanes->first = 0;
    lanes->next = next;
    for (int64_t lane = 0; lane < count; lane++)
        next[lane] = 0;
}

/* What there is to do below `stages`. */
typedef struct overview {
    int64_t behind;    /* the free lane that is furthest behind, -1: none */
    int64_t n_free;    /* lanes; at least one if there is one, all of them if somebody waits */
    int64_t n_running; /* if no lane is free */
} overview;

static overview look(const fl_lanes *lanes, int64_t stages)
{
    overview found = {.behind = -1};
    for (int64_t i = 0; i < lanes->count; i++) {
        int64_t lane = lanes->first + i < lanes->count ? lanes->first + i
                                                       : lanes->first + i - lanes->count,
                next = lanes->next[lane];
        if (next < 0) {
            found.n_running++;
            continue;
        }
        if (next >= stages)
            continue;
        found.n_free++;
        if (found.behind < 0 || next < lanes->next[found.behind])
            found.behind = lane;
        if (next == 0 && !lanes->waiting) /* none is further behind */
            break;
    }
    return found;
}

/* Until some stage has ended; unlocked meanwhile. */
static void wait_for_a_lane(fl_lanes *lanes)
{
    int before = atomic_load_explicit(&lanes->finished, memory_order_relaxed);
    lanes->waiting++;
    unlock(lanes);
    for (int turns = 0; atomic_load_explicit(&lanes->finished, memory_order_relaxed) == before;
         turns++)
        fl_pause(turns);
    lock(lanes);
    lanes->waiting--;
}

int fl_lanes_next(fl_lanes *lanes, int64_t stages, fl_task *task)
{
    int comes_back = task->lane >= 0;
    lock(lanes);
    if (comes_back) {
        lanes->next[task->lane] = task->stage + 1;
        atomic_fetch_add_explicit(&lanes->finished, 1, memory_order_relaxed);
    }
    *task = FL_NO_TASK;
    overview found = look(lanes, stages);
    while (found.behind < 0 && found.n_running) {
        wait_for_a_lane(lanes);
        comes_back = 0;
        found = look(lanes, stages);
    }
    if (found.behind >= 0 && !(comes_back && found.n_free <= lanes->waiting)) {
        *task = (fl_task){found.behind, lanes->next[found.behind]};
        lanes->next[task->lane] = ~task->stage;
        lanes->first = task->lane + 1 < lanes->count ? task->lane + 1 : 0;
    }
    unlock(lanes);
    return task->lane >= 0;
}
