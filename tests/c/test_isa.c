/* The kernels of every instruction set of this machine, called directly: products, activations,
 * reductions, optimiser rules and the steps of every cell, against plain double precision code and
 * against each other. Every array ends at an unreadable page; what a kernel must not use is NaN. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fpenv.h"
#include "support.h"

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Cells whose step is written out in isa_body.h; the others are checked from Python. */
static int has_naive_step(const char *name)
{
    return !strcmp(name, "lstm") || !strcmp(name, "rnn") || !strcmp(name, "rnn_relu");
}

#define FL_SUFFIX f32
#define TEST_DTYPE FL_FLOAT32
#define TEST_EPSILON 0x1p-24
#define TEST_SMALLEST 0x1p-126
#include "isa_body.h"
#undef FL_SUFFIX
#undef TEST_DTYPE
#undef TEST_EPSILON
#undef TEST_SMALLEST
#define FL_SUFFIX f64
#define TEST_DTYPE FL_FLOAT64
#define TEST_EPSILON 0x1p-53
#define TEST_SMALLEST 0x1p-1022
#include "isa_body.h"

int main(void)
{
    const fl_isa *isa;
    for (int i = 0; (isa = isa_at(i)) != NULL; i++) {
        CHECK(isa->compiled);
        CHECK_EQUAL(isa->f32.lanes, 2 * isa->f64.lanes);
        CHECK_EQUAL(isa->f32.n_cells, isa->f64.n_cells);
        test_table_f32(isa);
        test_table_f64(isa);
    }
    CHECK(isa_at(0) != NULL);
    test_cells_f32();
    test_cells_f64();
    return check_report();
}
