/* What the two dtypes of the CTC loss share. */
#ifndef FL_LAYERS_CTC_H
#define FL_LAYERS_CTC_H

#include <stdatomic.h>

#include "isa/isa.h"

typedef struct ctc_run {
    const fl_ctc *call;
    const fl_isa *isa;
    void *scratch;         /* (threads, scratch_count) */
    int64_t scratch_count; /* a multiple of a cache line */
    _Atomic int64_t next;  /* the first sequence that no thread has taken */
} ctc_run;

/* The fewest steps that a target can be aligned to: equal neighbours need a blank between them. */
int64_t fl_ctc_shortest(const int64_t *label, int64_t labels);

#endif
