/* The dense layer, and the flat calls: activations, sum of squares, optimiser steps: numbers
 * against plain double precision code, optional arrays, invalid arguments. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "allocator.h"
#include "support.h"

/* ---- dense ---- */

typedef struct dense {
    int32_t dtype;
    int64_t n, in, out;
    double *x, *weight, *bias, *dy; /* values */
    void *X, *W, *B, *D;            /* the same in the dtype */
    double *wanted;                 /* the largest result */
} dense;

static void dense_begin(dense *of, int32_t dtype, int64_t n, int64_t in, int64_t out)
{
    generator from = {(uint64_t)(n * 10000 + in * 100 + out)};
    *of = (dense){.dtype = dtype, .n = n, .in = in, .out = out};
    struct {
        double **values;
        void **array;
        int64_t count;
    } inputs[] = {{&of->x, &of->X, n * in},
                  {&of->weight, &of->W, out * in},
                  {&of->bias, &of->B, out},
                  {&of->dy, &of->D, n * out}};
    for (int i = 0; i < 4; i++) {
        *inputs[i].values = malloc((size_t)inputs[i].count * sizeof(double));
        random_fill(&from, dtype, 1, *inputs[i].values, inputs[i].count);
        *inputs[i].array = reals_of(dtype, *inputs[i].values, inputs[i].count);
    }
    of->wanted = malloc((size_t)((n + in) * (in + out)) * sizeof(double));
}

static void dense_end(dense *of)
{
    void *arrays[] = {of->X, of->W, of->B, of->D};
    double *values[] = {of->x, of->weight, of->bias, of->dy, of->wanted};
    for (int i = 0; i < 4; i++)
        guarded_free(arrays[i]);
    for (int i = 0; i < 5; i++)
        free(values[i]);
}

/* (rows, columns) = init (a row, or NULL) + sum over k of a[row, k] b[k, column], by strides. */
static const double *product(const dense *of, int64_t rows, int64_t columns, int64_t depth,
                             const double *a, int64_t a_row, int64_t a_depth, const double *b,
                             int64_t b_depth, int64_t b_column, const double *init)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) {
            double sum = init ? init[column] : 0;
            for (int64_t k = 0; k < depth; k++)
                sum += a[row * a_row + k * a_depth] * b[k * b_depth + column * b_column];
            of->wanted[row * columns + column] = sum;
        }
    return of->wanted;
}

static double limit_of(const dense *of, int64_t depth)
{
    return (of->dtype == FL_FLOAT64 ? 0x1p-52 : 0x1p-23) * (4 + (double)depth);
}

static void check_dense_forward(const dense *of)
{
    for (int with_bias = 0; with_bias < 2; with_bias++) {
        void *y = reals_new(of->dtype, of->n * of->out);
        CHECK_EQUAL(fl_dense_forward(of->dtype, of->n, of->in, of->out, of->X, of->W,
                                     with_bias ? of->B : NULL, y),
                    FL_OK);
        CHECK_AT_MOST(worst_error(of->dtype, y,
                                  product(of, of->n, of->out, of->in, of->x, of->in, 1, of->weight,
                                          1, of->in, with_bias ? of->bias : NULL),
                                  of->n * of->out),
                      limit_of(of, of->in));
        guarded_free(y);
    }
}

static void check_dense_backward(const dense *of, int with_bias, int with_dx)
{
    static const double one = 1;
    void *dweight = reals_new(of->dtype, of->out * of->in);
    void *dbias = with_bias ? reals_new(of->dtype, of->out) : NULL;
    void *dx = with_dx ? reals_new(of->dtype, of->n * of->in) : NULL;
    CHECK_EQUAL(fl_dense_backward(of->dtype, of->n, of->in, of->out, of->X, of->W, of->D, dweight,
                                  dbias, dx),
                FL_OK);
    CHECK_AT_MOST(
        worst_error(of->dtype, dweight,
                    product(of, of->out, of->in, of->n, of->dy, 1, of->out, of->x, of->in, 1, NULL),
                    of->out * of->in),
        limit_of(of, of->n));
    if (dbias)
        CHECK_AT_MOST(
            worst_error(of->dtype, dbias,
                        product(of, 1, of->out, of->n, &one, 0, 0, of->dy, of->out, 1, NULL),
                        of->out),
            limit_of(of, of->n));
    if (dx)
        CHECK_AT_MOST(worst_error(of->dtype, dx,
                                  product(of, of->n, of->in, of->out, of->dy, of->out, 1,
                                          of->weight, of->in, 1, NULL),
                                  of->n * of->in),
                      limit_of(of, of->out));
    guarded_free(dweight);
    guarded_free(dbias);
    guarded_free(dx);
}

static void test_dense(void)
{
    static const int64_t sizes[] = {1, 2, 5, 16, 31, 64, 65};
    enum { COUNT = sizeof sizes / sizeof sizes[0] };
    for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++)
        for (int i = 0; i < COUNT * COUNT * COUNT; i++) {
            dense of;
            dense_begin(&of, dtype, sizes[i % COUNT], sizes[i / COUNT % COUNT],
                        sizes[i / COUNT / COUNT]);
            check_context("dtype %d n %lld in %lld out %lld", dtype, (long long)of.n,
                          (long long)of.in, (long long)of.out);
            check_dense_forward(&of);
            check_dense_backward(&of, i & 1, i & 2);
            dense_end(&of);
        }
    check_context("%s", "");
}

static void test_dense_arguments(void)
{
    dense of;
    dense_begin(&of, FL_FLOAT32, 2, 3, 4);
    void *y = reals_new(FL_FLOAT32, 8), *dweight = reals_new(FL_FLOAT32, 12);
    void *x = of.X, *w = of.W, *d = of.D;
    CHECK_EQUAL(fl_dense_forward(2, 2, 3, 4, x, w, NULL, y), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_forward(0, 0, 3, 4, x, w, NULL, y), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_forward(0, 2, -3, 4, x, w, NULL, y), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_forward(0, 2, 3, INT64_MIN, x, w, NULL, y), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_forward(0, 2, 3, 4, NULL, w, NULL, y), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_forward(0, 2, 3, 4, x, NULL, NULL, y), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_forward(0, 2, 3, 4, x, w, NULL, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_backward(-1, 2, 3, 4, x, w, d, dweight, NULL, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_backward(0, 2, 0, 4, x, w, d, dweight, NULL, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_backward(0, 2, 3, 4, NULL, w, d, dweight, NULL, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_backward(0, 2, 3, 4, x, NULL, d, dweight, NULL, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_backward(0, 2, 3, 4, x, w, NULL, dweight, NULL, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_dense_backward(0, 2, 3, 4, x, w, d, NULL, NULL, NULL), FL_ERR_ARGUMENT);
    CHECK(is_untouched(y, 32) && is_untouched(dweight, 48));
    guarded_free(y);
    guarded_free(dweight);
    dense_end(&of);
}

static int dense_refused(int64_t n, int64_t in, int64_t out)
{
    double some[4] = {0};
    fl_status forward = fl_dense_forward(FL_FLOAT32, n, in, out, some, some, NULL, some);
    fl_status backward =
        fl_dense_backward(FL_FLOAT32, n, in, out, some, some, some, some, some, some);
    return (forward == FL_ERR_OVERFLOW || forward == FL_ERR_NOMEM) &&
           (backward == FL_ERR_OVERFLOW || backward == FL_ERR_NOMEM);
}

static void test_dense_huge(void)
{
    for (int power = 44; power <= 63; power++) {
        int64_t huge = power == 63 ? INT64_MAX : (int64_t)1 << power;
        check_context("2^%d", power);
        CHECK_IN_CHILD(dense_refused(huge, 1, 1));
        CHECK_IN_CHILD(dense_refused(1, huge, 1));
        CHECK_IN_CHILD(dense_refused(1, 1, huge));
        CHECK_IN_CHILD(dense_refused(huge, huge, huge));
    }
    check_context("%s", "");
}

/* ---- flat calls ---- */

static void test_activate(void)
{
    double values[] = {-2, -0.5, 0, 0.5, 3};
    for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++) {
        void *x = reals_of(dtype, values, 5), *y = reals_new(dtype, 5);
        double limit = dtype == FL_FLOAT64 ? 1e-15 : 4e-7;
        CHECK_EQUAL(fl_activate(dtype, FL_SIGMOID, x, y, 5), FL_OK);
        for (int i = 0; i < 5; i++)
            CHECK_AT_MOST(fabs(real_at(dtype, y, i) - 1 / (1 + exp(-values[i]))), limit);
        CHECK_EQUAL(fl_activate(dtype, FL_TANH, x, x, 5), FL_OK);
        for (int i = 0; i < 5; i++)
            CHECK_AT_MOST(fabs(real_at(dtype, x, i) - tanh(values[i])), limit);
        CHECK_EQUAL(fl_activate(dtype, FL_TANH, x, y, 0), FL_OK);
        CHECK_EQUAL(fl_activate(dtype, FL_TANH, x, y, -1), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_activate(dtype, 2, x, y, 5), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_activate(dtype, -1, x, y, 5), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_activate(7, FL_TANH, x, y, 5), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_activate(dtype, FL_TANH, NULL, y, 5), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_activate(dtype, FL_TANH, x, NULL, 5), FL_ERR_ARGUMENT);
        guarded_free(x);
        guarded_free(y);
    }
}

static void test_sum_squares(void)
{
    double values[] = {3, 4, 12}, sum = -1;
    for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++) {
        void *x = reals_of(dtype, values, 3);
        CHECK_EQUAL(fl_sum_squares(dtype, x, 3, &sum), FL_OK);
        CHECK(sum == 169);
        CHECK_EQUAL(fl_sum_squares(dtype, x, 0, &sum), FL_OK);
        CHECK(sum == 0);
        sum = -1;
        CHECK_EQUAL(fl_sum_squares(dtype, x, -1, &sum), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_sum_squares(9, x, 3, &sum), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_sum_squares(dtype, NULL, 3, &sum), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_sum_squares(dtype, x, 3, NULL), FL_ERR_ARGUMENT);
        CHECK(sum == -1);
        guarded_free(x);
    }
}

/* Sums over steps, one row after the other, are added to what is there. */
static void test_sum_steps(void)
{
    const double values[] = {1e8, 1, 2, 3, -1e8, 5, 0.25, 0.5}, wanted[] = {13, 9, 10.25, 10.5};
    const int64_t length[] = {3, 1};
    int64_t bad[] = {3, 2};
    for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++) {
        double sums[] = {11, 0, 10, 10};
        void *y = reals_of(dtype, values, 8);
        CHECK_EQUAL(fl_sum_steps(dtype, 2, bad, 2, y, 4, sums), FL_ERR_ARGUMENT);
        bad[1] = -1;
        CHECK_EQUAL(fl_sum_steps(dtype, 2, bad, 2, y, 4, sums), FL_ERR_ARGUMENT);
        bad[1] = 2;
        CHECK_EQUAL(fl_sum_steps(9, 2, length, 2, y, 4, sums), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_sum_steps(dtype, 2, NULL, 2, y, 4, sums), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_sum_steps(dtype, 2, length, 2, NULL, 4, sums), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_sum_steps(dtype, 2, length, 2, y, 4, NULL), FL_ERR_ARGUMENT);
        CHECK_EQUAL(fl_sum_steps(dtype, 2, length, 2, y, 4, sums), FL_OK);
        for (int i = 0; i < 4; i++)
            CHECK(sums[i] == wanted[i]);
        guarded_free(y);
    }
}

/* The first step of Adam moves every parameter by the learning rate; the bias corrections come from
 * `step`. */
static void test_adam(void)
{
    double p[] = {1, -2, 3}, g[] = {0.5, -0.25, 4}, m[3] = {0}, v[3] = {0};
    fl_optimizer_step step = {.dtype = FL_FLOAT64,
                              .rule = FL_ADAM,
                              .parameters = p,
                              .gradients = g,
                              .slot0 = m,
                              .slot1 = v,
                              .count = 3,
                              .learning_rate = 0.1,
                              .beta1 = 0.9,
                              .beta2 = 0.999,
                              .gradient_scale = 1,
                              .step = 1};
    CHECK_EQUAL(fl_optimize(&step), FL_OK);
    CHECK_AT_MOST(fabs(p[0] - 0.9) + fabs(p[1] + 1.9) + fabs(p[2] - 2.9), 1e-12);
    step.step = 2;
    CHECK_EQUAL(fl_optimize(&step), FL_OK);
    CHECK_AT_MOST(fabs(p[0] - 0.8) + fabs(p[1] + 1.8) + fabs(p[2] - 2.8), 1e-12);
}

#define CHECK_STEP(change, wanted)                                                                 \
    do {                                                                                           \
        double p = 1, g = 1, slots[2] = {0};                                                       \
        fl_optimizer_step step = {.dtype = FL_FLOAT64,                                             \
                                  .rule = FL_NADAM,                                                \
                                  .parameters = &p,                                                \
                                  .gradients = &g,                                                 \
                                  .slot0 = &slots[0],                                              \
                                  .slot1 = &slots[1],                                              \
                                  .count = 1,                                                      \
                                  .learning_rate = 1,                                              \
                                  .epsilon = 1,                                                    \
                                  .gradient_scale = 1,                                             \
                                  .step = 1};                                                      \
        change;                                                                                    \
        CHECK_EQUAL(fl_optimize(&step), wanted);                                                   \
        CHECK((wanted) == FL_OK || (p == 1 && slots[0] == 0 && slots[1] == 0));                    \
    } while (0)

static void test_optimize_arguments(void)
{
    CHECK_EQUAL(fl_optimize(NULL), FL_ERR_ARGUMENT);
    CHECK_STEP((void)step, FL_OK);
    CHECK_STEP(step.count = 0, FL_OK);
    CHECK_STEP(step.count = -1, FL_ERR_ARGUMENT);
    CHECK_STEP(step.rule = 5, FL_ERR_ARGUMENT);
    CHECK_STEP(step.rule = -1, FL_ERR_ARGUMENT);
    CHECK_STEP(step.dtype = 2, FL_ERR_ARGUMENT);
    CHECK_STEP(step.parameters = NULL, FL_ERR_ARGUMENT);
    CHECK_STEP(step.gradients = NULL, FL_ERR_ARGUMENT);
    CHECK_STEP(step.slot0 = NULL, FL_ERR_ARGUMENT);
    CHECK_STEP(step.slot1 = NULL, FL_ERR_ARGUMENT);
    CHECK_STEP(step.step = 0, FL_ERR_ARGUMENT);
    CHECK_STEP((step.rule = FL_RMSPROP, step.slot0 = NULL), FL_ERR_ARGUMENT);
    CHECK_STEP((step.rule = FL_RMSPROP, step.slot1 = NULL), FL_OK);
    CHECK_STEP((step.rule = FL_SGD, step.slot0 = step.slot1 = NULL), FL_OK);
}

int main(void)
{
    isa_or_skip();
    long live = allocator_live();
    test_dense();
    test_dense_arguments();
    test_dense_huge();
    test_activate();
    test_sum_squares();
    test_sum_steps();
    test_adam();
    test_optimize_arguments();
    CHECK_EQUAL(allocator_live(), live);
    return check_report();
}
