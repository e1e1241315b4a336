/* A batch of sequences of different lengths as packed rows: sequences sorted by length (longest
 * first, stable), time-major, so that the sequences active at step t are the prefix [0, batch[t])
 * and a padded step does not exist. Row of sorted sequence s at step t: offset[t] + s. */
#ifndef FL_LAYERS_RAGGED_H
#define FL_LAYERS_RAGGED_H

#include "base/arena.h"
#include "fastlstm.h"

typedef struct fl_ragged {
    int64_t n;         /* sequences */
    int64_t steps;     /* longest length */
    int64_t rows;      /* sum of lengths */
    int64_t *sequence; /* (n) caller's index of sorted sequence s */
    int64_t *length;   /* (n) sorted, descending */
    int64_t *batch;    /* (steps + 1) active sequences, 0 at the end */
    int64_t *offset;   /* (steps + 1) first packed row of a step */
} fl_ragged;

/* Check the description against `total` rows: ARGUMENT for a length below 1 or rows out of bounds,
 * OVERFLOW. Sets n, steps, rows. */
fl_status fl_ragged_check(fl_ragged *ragged, const fl_sequences *sequences, int64_t total);
/* Check `start` of another array with the same lengths against its `total` rows. */
fl_status fl_ragged_check_rows(const fl_sequences *sequences, const int64_t *start, int64_t total);
void fl_ragged_layout(fl_ragged *ragged, fl_arena *arena);
/* Fill the arrays (counting sort: O(n + steps)). */
void fl_ragged_fill(fl_ragged *ragged, const fl_sequences *sequences);
/* Rows from one sequence to the next in an array where `start` says their first ones, if all are as
 * long and as far apart; else 0. */
int64_t fl_ragged_apart(const fl_ragged *ragged, const int64_t *start);

#endif
