/* One configuration of the recurrent layer, run through the public functions and compared with the
 * plain reference: inference, training forward, backward, on one thread and on `threads`. */
#ifndef FL_TESTS_LAYER_CASE_H
#define FL_TESTS_LAYER_CASE_H

#include "support.h"

typedef struct layer_case {
    fl_recurrent_config config;
    int64_t n, steps; /* sequences, longest length */
    int32_t ragged;   /* 0: all as long as the longest */
    int32_t threads;
    /* bit i: array of state i (h, c) is given; bit 2 in the masks of arrays: the list is given */
    int32_t states_in, states_out, dstates_out, dstates_in;
    int32_t dy, dx, y; /* 1: given */
    uint64_t seed;
} layer_case;

enum { CASE_LIST = 4, CASE_ALL = 7 };

void layer_case_run(const layer_case *one);
/* Any configuration: small ones mostly, now and then one that is worth several threads. */
layer_case layer_case_random(uint64_t seed);
void layer_case_name(const layer_case *one, char *text, size_t size);

#endif
