/* Work in lanes, for threads that are not equally fast.
 *
 * A lane is work that waits for no other lane: some sequences of a batch in one direction, some
 * columns of a gradient. Its stages run one after another, each on whichever thread is free, so
 * that one that is held up (by a neighbour on its core, by another process on its processor) is
 * left with less of the work, where equal shares would let all wait for it. Whoever is free takes
 * the free lane that is furthest behind. When there are no more lanes than threads without one,
 * who comes back from a lane leaves the rest to those, who have been faster. Which thread runs a
 * stage changes no number: that is for the stages' author to see to. */
#ifndef FL_BASE_LANES_H
#define FL_BASE_LANES_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/compiler.h"

typedef struct fl_lanes {
    _Alignas(64) atomic_int locked; /* whoever reads or writes what follows */
    atomic_int finished;            /* stages; those who wait for a lane look at it */
    int waiting;                    /* threads */
    int64_t count, first;           /* lanes, and where to look for a free one first */
    int64_t *next;                  /* (count) the stage that comes next, ~stage while it runs */
} fl_lanes;

/* A stage of a lane; NONE before the first. */
typedef struct fl_task {
    int64_t lane, stage;
} fl_task;
#define FL_NO_TASK ((fl_task){-1, 0})

/* `count` lanes of which no stage has run, in memory for as many numbers. Before threads share it.
 */
void fl_lanes_begin(fl_lanes *lanes, int64_t count, int64_t *next);
/* The next task for a thread whose last one, if any, is done: 1, or 0 when it is to run no more of
 * the stages below `stages`. All of them have run once every thread has been told so; then they may
 * go on with a larger number. May wait for other threads. */
int fl_lanes_next(fl_lanes *lanes, int64_t stages, fl_task *task);

#endif
