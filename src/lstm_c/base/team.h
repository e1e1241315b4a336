/* A team of threads that runs one function per call, and the barrier its members meet at.
 *
 * One parallel region per call, never one per time step: a fork/join costs about a microsecond, a
 * step of a small network less. That holds while the members wait for work; once they sleep, some
 * milliseconds after the last call, the first call wakes them, and on a virtual machine may find
 * them queued behind itself on one processor for milliseconds. So a team sleeps on unless calls
 * come one after another or the work is worth it. A member that begins on a processor where another
 * one is goes to a free one, where the system might leave it for tens of milliseconds if somebody
 * uses the others, and a caller that waits for a member to begin sleeps for moments, since that one
 * may be queued behind it. Inside, members meet at a sense-reversing barrier that spins for a
 * bounded time and then yields, so that a preempted member (containers with a CPU quota) costs a
 * time slice and not forever; once all have begun they never sleep there, since the system moves
 * two that share a processor apart only while both want to run. A fork lets the team of the forking
 * thread go, so that parent and child each start a new one. Without OpenMP, and in a child forked
 * from inside a parallel region, every team has one member. */
#ifndef FL_BASE_TEAM_H
#define FL_BASE_TEAM_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/compiler.h"

typedef void (*fl_team_function)(void *argument, int thread, int n_threads);

/* Run `function` on up to `n_threads` threads: fewer if the system grants fewer, the caller's
 * alone if the team sleeps and `wakes` is 0. Returns when all have returned. Each thread runs with
 * denormals flushed; the caller's floating-point state is restored. */
void fl_team_run(int n_threads, int wakes, fl_team_function function, void *argument);

/* Threads a call uses: `requested` if positive, else the process default
 * (fl_set_num_threads, FASTLSTM_NUM_THREADS, then OpenMP's maximum bounded by affinity mask and CPU
 * quota). */
int fl_team_size(int requested);

/* Work is counted in multiply-adds of whole vectors, which take about as long on every machine. How
 * many threads have enough of it to be worth their fork/join, at least 1 and at most `wanted`; and
 * whether it is worth waking a team of `n_threads` that sleeps: the call was asked for so many
 * threads by name (`asked`, else 0), or the work is that large. */
int fl_team_worth(int64_t work, int wanted);
int fl_team_wakes(int64_t work, int asked, int n_threads);

/* A turn of a loop that waits for another thread: `turns` so far, which may wrap. Spins, then
 * yields, or sleeps for a moment while a member that this thread has called has not begun. */
void fl_pause(unsigned turns);

typedef struct fl_barrier {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint phase;
} fl_barrier;

void fl_barrier_init(fl_barrier *barrier);
void fl_barrier_wait(fl_barrier *barrier, int n_threads);

#endif
