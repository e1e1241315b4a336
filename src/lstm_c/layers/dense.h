/* Arguments of the dense layer's forward (y) and backward (dweight, dbias, dx) products. */
#ifndef FL_LAYERS_DENSE_H
#define FL_LAYERS_DENSE_H

#include "base/arena.h"
#include "isa/isa.h"

typedef struct fl_dense_call {
    int64_t n, in, out;
    const void *x, *weight, *bias, *dy;
    void *y, *dweight, *dbias, *dx;
} fl_dense_call;

fl_status fl_dense_run(int32_t dtype, const fl_dense_call *call);

#endif
