/* CTC for one dtype; see ctc.c. */
#include "layers/ctc.h"

/* Loss and gradient of sequence b. */
static void FL_T(ctc_sequence)(const ctc_run *run, int64_t b, real *scratch)
{
    const fl_ctc *call = run->call;
    int64_t steps = call->length[b], plane = call->steps * call->classes;
    const int64_t *label = call->targets + call->target_start[b];
    real *gradient = (real *)call->gradient + b * plane;
    FL_T(fl_ctc_sequence)
    sequence = {.steps = steps,
                .classes = call->classes,
                .labels = call->target_length[b],
                .blank = call->blank,
                .logits = call->logits != 0,
                .x = (const real *)call->x + b * plane,
                .label = label,
                .gradient = gradient,
                .scratch = scratch};
    int64_t first = 0; /* row of the gradient from which on it is zero */
    if (fl_ctc_shortest(label, sequence.labels) > steps) {
        call->loss[b] = INFINITY;
    } else if (steps == 0) {
        call->loss[b] = 0;
    } else {
        call->loss[b] = run->isa->FL_SUFFIX.ctc(&sequence);
        first = steps;
    }
    for (int64_t i = first * call->classes; i < plane; i++)
        gradient[i] = 0;
}

static void FL_T(ctc_worker)(void *argument, int thread, int n_threads)
{
    ctc_run *run = argument;
    (void)n_threads;
    real *scratch = (real *)run->scratch + (int64_t)thread * run->scratch_count;
    for (;;) {
        int64_t b = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        if (b >= run->call->n)
            return;
        FL_T(ctc_sequence)(run, b, scratch);
    }
}
