/* Entry points that need no more than argument checks in front of a kernel or a layer. */
#include <math.h>

#include "base/cpu.h"
#include "base/fpenv.h"
#include "isa/isa.h"
#include "layers/dense.h"

int32_t fl_cpu_amx(void)
{
    return fl_cpu_has_amx();
}

static int bad_dtype(int32_t dtype)
{
    return dtype != FL_FLOAT32 && dtype != FL_FLOAT64;
}

fl_status fl_dense_forward(int32_t dtype, int64_t n, int64_t in, int64_t out, const void *x,
                           const void *weight, const void *bias, void *y)
{
    if (bad_dtype(dtype) || n < 1 || in < 1 || out < 1 || !x || !weight || !y)
        return FL_ERR_ARGUMENT;
    fl_dense_call call = {
        .n = n, .in = in, .out = out, .x = x, .weight = weight, .bias = bias, .y = y};
    return fl_dense_run(dtype, &call);
}

fl_status fl_dense_backward(int32_t dtype, int64_t n, int64_t in, int64_t out, const void *x,
                            const void *weight, const void *dy, void *dweight, void *dbias,
                            void *dx)
{
    if (bad_dtype(dtype) || n < 1 || in < 1 || out < 1 || !x || !weight || !dy || !dweight)
        return FL_ERR_ARGUMENT;
    fl_dense_call call = {.n = n,
                          .in = in,
                          .out = out,
                          .x = x,
                          .weight = weight,
                          .dy = dy,
                          .dweight = dweight,
                          .dbias = dbias,
                          .dx = dx};
    return fl_dense_run(dtype, &call);
}

fl_status fl_activate(int32_t dtype, int32_t activation, const void *x, void *y, int64_t count)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa)
        return status;
    if (bad_dtype(dtype) || (activation != FL_SIGMOID && activation != FL_TANH) || count < 0 ||
        !x || !y)
        return FL_ERR_ARGUMENT;
    fl_fpenv saved = fl_fpenv_enter();
    if (dtype == FL_FLOAT64)
        (activation == FL_SIGMOID ? isa->f64.sigmoid : isa->f64.tanh)(x, y, count);
    else
        (activation == FL_SIGMOID ? isa->f32.sigmoid : isa->f32.tanh)(x, y, count);
    fl_fpenv_leave(saved);
    return FL_OK;
}

static int in_range(const int64_t *values, int64_t count, int64_t end)
{
    for (int64_t i = 0; i < count; i++)
        if (values[i] < 0 || values[i] >= end)
            return 0;
    return 1;
}

static int sums_above_zero(const double *weight, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += weight[i];
    return sum > 0;
}

fl_status fl_softmax_cross_entropy(int32_t dtype, int64_t n, int64_t classes, const void *x,
                                   const int64_t *target, const double *weight, double *loss,
                                   void *gradient)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa)
        return status;
    if (bad_dtype(dtype) || n < 1 || classes < 1 || !x || !target || !loss || !gradient ||
        !in_range(target, n, classes))
        return FL_ERR_ARGUMENT;
    fl_fpenv saved = fl_fpenv_enter(); /* sums raise flags too */
    if (weight && !sums_above_zero(weight, n)) {
        status = FL_ERR_ARGUMENT;
    } else if (dtype == FL_FLOAT64) {
        fl_softmax_f64 call = {n, classes, x, target, weight, gradient};
        *loss = isa->f64.softmax(&call);
    } else {
        fl_softmax_f32 call = {n, classes, x, target, weight, gradient};
        *loss = isa->f32.softmax(&call);
    }
    fl_fpenv_leave(saved);
    return status;
}

fl_status fl_sum_squares(int32_t dtype, const void *x, int64_t count, double *sum)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa)
        return status;
    if (bad_dtype(dtype) || count < 0 || !x || !sum)
        return FL_ERR_ARGUMENT;
    fl_fpenv saved = fl_fpenv_enter();
    *sum = dtype == FL_FLOAT64 ? isa->f64.sum_squares(x, count) : isa->f32.sum_squares(x, count);
    fl_fpenv_leave(saved);
    return FL_OK;
}

fl_status fl_sum_steps(int32_t dtype, int64_t n, const int64_t *length, int64_t columns,
                       const void *y, int64_t total, double *sums)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa)
        return status;
    if (bad_dtype(dtype) || n < 1 || columns < 1 || total < 1 || !length || !y || !sums)
        return FL_ERR_ARGUMENT;
    int64_t left = total;
    for (int64_t b = 0; b < n; left -= length[b++])
        if (length[b] < 0 || length[b] > left)
            return FL_ERR_ARGUMENT;
    fl_fpenv saved = fl_fpenv_enter();
    for (int64_t b = 0, row = 0; b < n; row += length[b++], sums += columns)
        if (dtype == FL_FLOAT64)
            isa->f64.sum_rows((const double *)y + row * columns, length[b], columns, sums);
        else
            isa->f32.sum_rows((const float *)y + row * columns, length[b], columns, sums);
    fl_fpenv_leave(saved);
    return FL_OK;
}

static fl_status check_optimizer(const fl_optimizer_step *step)
{
    if (!step || bad_dtype(step->dtype) || step->rule < FL_SGD || step->rule > FL_NADAM ||
        step->count < 0)
        return FL_ERR_ARGUMENT;
    if (!step->parameters || !step->gradients || (step->rule >= FL_RMSPROP && !step->slot0))
        return FL_ERR_ARGUMENT;
    if (step->rule >= FL_ADAM && (!step->slot1 || step->step < 1))
        return FL_ERR_ARGUMENT;
    return FL_OK;
}

static fl_optimizer_rates optimizer_rates(const fl_optimizer_step *step)
{
    fl_optimizer_rates rates = {step->learning_rate,
                                step->momentum,
                                step->alpha,
                                step->beta1,
                                step->beta2,
                                step->epsilon,
                                step->weight_decay,
                                step->gradient_scale,
                                1,
                                1,
                                step->mu,
                                step->mu_next,
                                step->mu_product,
                                step->nesterov};
    if (step->rule >= FL_ADAM) {
        rates.bias1 = 1 - pow(step->beta1, (double)step->step);
        rates.bias2 = 1 - pow(step->beta2, (double)step->step);
    }
    return rates;
}

fl_status fl_optimize(const fl_optimizer_step *step)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa)
        return status;
    status = check_optimizer(step);
    if (status != FL_OK)
        return status;
    fl_fpenv saved = fl_fpenv_enter();
    if (step->dtype == FL_FLOAT64) {
        fl_optimizer_f64 call = {step->parameters, step->gradients, step->slot0,
                                 step->slot1,      step->count,     optimizer_rates(step)};
        isa->f64.optimizer[step->rule](&call);
    } else {
        fl_optimizer_f32 call = {step->parameters, step->gradients, step->slot0,
                                 step->slot1,      step->count,     optimizer_rates(step)};
        isa->f32.optimizer[step->rule](&call);
    }
    fl_fpenv_leave(saved);
    return FL_OK;
}
