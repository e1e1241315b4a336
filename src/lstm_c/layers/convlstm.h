/* What the two dtypes of the convolutional LSTM share. */
#ifndef FL_LAYERS_CONVLSTM_H
#define FL_LAYERS_CONVLSTM_H

#include <stdatomic.h>

#include "base/arena.h"
#include "isa/isa.h"

/* Sizes of a layer. "Row" is a pixel: images are kept channels last, so that a pixel's units are
 * what a sequence's units are to the recurrent kernels. */
typedef struct conv_plan {
    fl_conv_lstm layer;
    int cell; /* index in the table */
    fl_cell_facts facts;
    int64_t lanes, size; /* of a vector; bytes of a value */
    int64_t pixels, taps;
    int64_t plane, gate_row;               /* units and gates of a pixel, padded to vectors */
    int64_t top, left;                     /* pixels between the first tap and the centre */
    int64_t depth_x, depth_h, depth_g;     /* what all taps of a pixel see of x, h and the gates */
    int64_t deepest;                       /* of these */
    int64_t strip_forward, strip_backward; /* pixels whose taps are unrolled at once */
} conv_plan;

/* The frames of a call: of each sequence x of every step, h and c before every step and after the
 * last, and in training the gates. Inference keeps, for each thread, the latest of them. */
typedef struct conv_frames {
    int64_t *length, *first; /* (n) steps, and those of the sequences before; training alone */
    void *x, *h, *c, *gates;
} conv_frames;

struct fl_conv_tape {
    fl_arena arena;
    conv_frames frames;
    fl_conv_lstm layer; /* that filled it */
    int64_t n, steps;
    int filled;
};

typedef struct conv_run {
    conv_plan plan;
    const fl_isa *isa;
    const fl_conv_forward *forward;
    const fl_conv_backward *backward;
    conv_frames frames;
    int training;
    void *weight_x, *weight_h, *bias, *peephole; /* packed panels; (pixels, 3, plane) */
    void *weight_xt, *weight_ht;                 /* packed, of the transposed convolutions */
    /* (threads, ...) */
    void *seen_x, *seen_h; /* unrolled taps; backward uses the first for the gates as well */
    void *dy, *dx, *dh, *dc;
    /* (groups, ...) sums of gradients */
    void *dweight_x, *dweight_h, *dbias, *dpeephole;
    int64_t groups, sum_x, sum_h, sum_bias, sum_peephole; /* values of one group */
    _Atomic int64_t next; /* the first sequence or group that no thread has taken */
} conv_run;

#endif
