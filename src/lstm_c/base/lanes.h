/* Work in lanes, for threads that are not equally fast.
 *
 * A lane is work that waits for no other lane: some sequences of a batch in one direction, some
 * columns of a gradient. Its stages run one after another, each on whichever thread is free, so
 * that one that is held up (by a neighbour on its core, by another process on its processor) is
 * left with less of the work, where equal shares would let all wait for it. Whoever is free takes
 * the free lane that is furthest behind. When there are no more lanes than threads without one,
 * who comes back from a lane offers it to those, who have been faster; if they take it, it leaves,
 * and if none is there to do so at once (the system may have put it to sleep), it goes on. Which
 * thread runs a stage must change no number: that is for the stages' author to see to. */
#ifndef FL_BASE_LANES_H
#define FL_BASE_LANES_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/compiler.h"

typedef struct fl_lanes {
    _Alignas(64) atomic_int locked;   /* whoever reads or writes what is not atomic */
    _Alignas(64) atomic_int finished; /* stages; those who wait for a lane look at it, */
    atomic_int begun;                 /* and who offers one at this */
    _Alignas(64) int waiting;         /* threads */
    int64_t count, first;             /* lanes, and where to look for a free one first */
    int64_t stages;                   /* of a round */
    int64_t *next; /* (count) the stage that comes next, of all rounds, ~stage while it runs */
} fl_lanes;

/* A stage of a lane; NO_TASK before the first. */
typedef struct fl_task {
    int64_t lane, stage;
} fl_task;
#define FL_NO_TASK ((fl_task){-1, 0})

/* `count` lanes of `stages` stages a round, in memory for as many numbers as lanes. Before threads
 * share it. */
void fl_lanes_begin(fl_lanes *lanes, int64_t count, int64_t stages, int64_t *next);
/* The next task of a round (0, 1, ...) for a thread whose last one, if any, is done: 1, or 0 when
 * it is to run no more of them. All have run once every thread has been told so; then they may go
 * on with the next round. May wait for other threads. */
int fl_lanes_next(fl_lanes *lanes, int64_t round, fl_task *task);

#endif
