/* CTC loss and gradient of a batch: checks, scratch, sequences dealt to threads one by one. A
 * sequence is computed by one thread, the same way whichever it is. */
#include "layers/ctc.h"

#include <math.h>

#include "base/arena.h"
#include "base/team.h"

enum { STATE_WORK = 24 }; /* a step of a label and a blank, in the unit of base/team.h */

int64_t fl_ctc_shortest(const int64_t *label, int64_t labels)
{
    int64_t steps = labels;
    for (int64_t i = 1; i < labels; i++)
        steps += label[i] == label[i - 1];
    return steps;
}

#define FL_SUFFIX f32
#include "layers/ctc_body.h"
#undef FL_SUFFIX
#define FL_SUFFIX f64
#include "layers/ctc_body.h"
#undef FL_SUFFIX

static fl_status check_sequence(const fl_ctc *call, int64_t b)
{
    int64_t start = call->target_start[b], labels = call->target_length[b];
    if (call->length[b] < 0 || call->length[b] > call->steps)
        return FL_ERR_ARGUMENT;
    if (start < 0 || labels < 0 || start > call->target_total ||
        labels > call->target_total - start)
        return FL_ERR_ARGUMENT;
    for (int64_t i = start; i < start + labels; i++)
        if (call->targets[i] < 0 || call->targets[i] >= call->classes ||
            call->targets[i] == call->blank)
            return FL_ERR_ARGUMENT;
    return FL_OK;
}

static fl_status check_call(const fl_ctc *call)
{
    int64_t count;
    if (!call || (call->dtype != FL_FLOAT32 && call->dtype != FL_FLOAT64))
        return FL_ERR_ARGUMENT;
    if (call->n < 1 || call->steps < 1 || call->classes < 1 || call->blank < 0 ||
        call->blank >= call->classes || !call->x || !call->length || !call->target_start ||
        !call->target_length || !call->loss || !call->gradient ||
        (call->target_total > 0 && !call->targets))
        return FL_ERR_ARGUMENT;
    if (__builtin_mul_overflow(call->n, call->steps, &count) ||
        __builtin_mul_overflow(count, call->classes, &count))
        return FL_ERR_OVERFLOW;
    for (int64_t b = 0; b < call->n; b++)
        if (check_sequence(call, b) != FL_OK)
            return FL_ERR_ARGUMENT;
    return FL_OK;
}

/* Values of scratch that every sequence fits in, and the work of all of them. */
static fl_status measure(const fl_ctc *call, int64_t lanes, int64_t size, int64_t *count,
                         int64_t *work)
{
    *count = *work = 0;
    for (int64_t b = 0; b < call->n; b++) {
        int64_t steps = call->length[b], labels = call->target_length[b], area;
        if (fl_ctc_shortest(call->targets + call->target_start[b], labels) > steps)
            continue;
        fl_ctc_plan plan = fl_ctc_make_plan(steps, labels, lanes, size);
        if (plan.values < 0 || __builtin_mul_overflow(steps, labels + 1, &area) ||
            __builtin_mul_overflow(area, STATE_WORK, &area) ||
            __builtin_add_overflow(*work, area, work))
            return FL_ERR_OVERFLOW;
        *count = plan.values > *count ? plan.values : *count;
    }
    *count = (*count + FL_ALIGNMENT - 1) / FL_ALIGNMENT * FL_ALIGNMENT;
    return FL_OK;
}

fl_status fl_ctc_loss(const fl_ctc *call)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa)
        return status;
    status = check_call(call);
    if (status != FL_OK)
        return status;
    int is_double = call->dtype == FL_FLOAT64;
    ctc_run run = {.call = call, .isa = isa};
    int64_t size = is_double ? sizeof(double) : sizeof(float), work, all;
    status =
        measure(call, is_double ? isa->f64.lanes : isa->f32.lanes, size, &run.scratch_count, &work);
    if (status != FL_OK)
        return status;
    int n_threads = fl_team_worth(work, fl_team_size(call->n_threads));
    n_threads = n_threads > call->n ? (int)call->n : n_threads;
    if (__builtin_mul_overflow(run.scratch_count, (int64_t)n_threads, &all))
        return FL_ERR_OVERFLOW;
    fl_arena arena = {0};
    fl_arena_take(&arena, all, (size_t)size);
    status = fl_arena_commit(&arena);
    if (status != FL_OK)
        return status;
    run.scratch = arena.memory;
    int wakes = fl_team_wakes(work, call->n_threads, n_threads);
    fl_team_run(n_threads, wakes, is_double ? ctc_worker_f64 : ctc_worker_f32, &run);
    fl_arena_release(&arena);
    return FL_OK;
}
