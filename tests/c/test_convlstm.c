/* The convolutional LSTM: outputs against plain double precision code, gradients against
 * differences along random directions, the padding, threads, invalid arguments, no memory. Arrays
 * end at unreadable pages. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "allocator.h"
#include "support.h"

enum { N = 3, STEPS = 4 };
static const int64_t length[N] = {4, 1, 3};

/* A layer, its parameters, what it is given and the gradient of its outputs: values, and the same
 * in the dtype. */
typedef struct world {
    fl_conv_lstm layer;
    int64_t pixels, n_parameters, n_x, n_y, n_state;
    double *value[7];
    void *array[7];
} world;
enum { PARAMETERS, X, H, C, DY, DH, DC, ARRAYS };

static int64_t count_of(const world *of, int which)
{
    return which == PARAMETERS ? of->n_parameters
           : which == X        ? of->n_x
           : which == DY       ? of->n_y
                               : of->n_state;
}

static void world_begin(world *of, const fl_conv_lstm *layer)
{
    generator from = {(uint64_t)(layer->hidden_channels * 100 + layer->width)};
    *of = (world){.layer = *layer, .pixels = layer->height * layer->width};
    of->n_parameters = fl_conv_lstm_n_parameters(layer);
    of->n_x = N * STEPS * layer->in_channels * of->pixels;
    of->n_y = N * STEPS * layer->hidden_channels * of->pixels;
    of->n_state = N * layer->hidden_channels * of->pixels;
    for (int i = 0; i < ARRAYS; i++) {
        of->value[i] = malloc((size_t)(count_of(of, i) + 1) * sizeof(double));
        random_fill(&from, layer->dtype, 0.5, of->value[i], count_of(of, i));
        of->array[i] = reals_of(layer->dtype, of->value[i], count_of(of, i));
    }
}

static void world_end(world *of)
{
    for (int i = 0; i < ARRAYS; i++) {
        free(of->value[i]);
        guarded_free(of->array[i]);
    }
}

/* ---- plain code ---- */

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Sum over the taps that lie in the image of weight (channels, kh, kw) times image (channels,
 * height, width) around pixel (y, x). */
static double convolve(const fl_conv_lstm *layer, const double *weight, const double *image,
                       int64_t channels, int64_t y, int64_t x)
{
    const int64_t kh = layer->kernel_height, kw = layer->kernel_width;
    double sum = 0;
    for (int64_t c = 0; c < channels; c++)
        for (int64_t k = 0; k < kh; k++)
            for (int64_t l = 0; l < kw; l++) {
                int64_t row = y + k - (kh - 1) / 2, column = x + l - (kw - 1) / 2;
                if (row >= 0 && row < layer->height && column >= 0 && column < layer->width)
                    sum += weight[(c * kh + k) * kw + l] *
                           image[(c * layer->height + row) * layer->width + column];
            }
    return sum;
}

/* One step of one sequence: h and c (hidden, pixels) before -> after; `p` are the parameters. */
static void plain_step(const world *of, const double *p, const double *x, const double *h,
                       const double *c, double *h_after, double *c_after)
{
    const fl_conv_lstm *layer = &of->layer;
    const int64_t hidden = layer->hidden_channels,
                  taps = layer->kernel_height * layer->kernel_width;
    const double *u = p + 4 * hidden * layer->in_channels * taps;
    const double *bias = u + 4 * hidden * hidden * taps;
    const double *peephole = bias + (layer->bias ? 4 * hidden : 0);
    for (int64_t at = 0; at < hidden * of->pixels; at++) {
        int64_t unit = at / of->pixels, y = at % of->pixels / layer->width, k = at % layer->width;
        double z[4], v[3] = {0};
        for (int64_t gate = 0; gate < 4; gate++) {
            int64_t row = gate * hidden + unit;
            z[gate] =
                convolve(layer, p + row * layer->in_channels * taps, x, layer->in_channels, y, k) +
                convolve(layer, u + row * hidden * taps, h, hidden, y, k) +
                (layer->bias ? bias[row] : 0);
        }
        for (int i = 0; i < 3 && layer->peephole; i++)
            v[i] = peephole[i * hidden * of->pixels + at];
        c_after[at] =
            sigmoid(z[1] + v[1] * c[at]) * c[at] + sigmoid(z[0] + v[0] * c[at]) * tanh(z[2]);
        h_after[at] = sigmoid(z[3] + v[2] * c_after[at]) * tanh(c_after[at]);
    }
}

/* y of all steps and the final h and c. Rows behind a length keep what they hold. */
static void plain_run(const world *of, double *const *value, double *y, double *h_out,
                      double *c_out)
{
    const int64_t image = of->layer.hidden_channels * of->pixels;
    const int64_t x_image = of->layer.in_channels * of->pixels;
    double *state = malloc((size_t)image * 4 * sizeof(double));
    for (int64_t b = 0; b < N; b++) {
        memcpy(state, value[H] + b * image, (size_t)image * sizeof(double));
        memcpy(state + image, value[C] + b * image, (size_t)image * sizeof(double));
        for (int64_t t = 0; t < length[b]; t++) {
            plain_step(of, value[PARAMETERS], value[X] + (b * STEPS + t) * x_image, state,
                       state + image, state + 2 * image, state + 3 * image);
            memcpy(state, state + 2 * image, (size_t)image * 2 * sizeof(double));
            memcpy(y + (b * STEPS + t) * image, state, (size_t)image * sizeof(double));
        }
        memcpy(h_out + b * image, state, (size_t)image * sizeof(double));
        memcpy(c_out + b * image, state + image, (size_t)image * sizeof(double));
    }
    free(state);
}

/* Sum of outputs times their gradients, by plain code, with array `which` moved by `step` along
 * `direction`. */
static double plain_loss(const world *of, int which, const double *direction, double step)
{
    const int64_t image = of->layer.hidden_channels * of->pixels;
    double *y = calloc((size_t)(of->n_y + 2 * of->n_state), sizeof(double));
    double *h = y + of->n_y, *c = h + of->n_state, loss = 0;
    for (int64_t i = 0; i < count_of(of, which); i++)
        of->value[which][i] += step * direction[i];
    plain_run(of, of->value, y, h, c);
    for (int64_t i = 0; i < count_of(of, which); i++)
        of->value[which][i] -= step * direction[i];
    for (int64_t i = 0; i < of->n_y; i++)
        loss += i / image % STEPS < length[i / image / STEPS] ? y[i] * of->value[DY][i] : 0;
    for (int64_t i = 0; i < of->n_state; i++)
        loss += h[i] * of->value[DH][i] + c[i] * of->value[DC][i];
    free(y);
    return loss;
}

/* ---- calls ---- */

typedef struct results {
    void *y, *h, *c, *gradients, *dx, *dh, *dc;
} results;

static results results_new(const world *of)
{
    int32_t dtype = of->layer.dtype;
    return (results){reals_new(dtype, of->n_y),     reals_new(dtype, of->n_state),
                     reals_new(dtype, of->n_state), reals_new(dtype, of->n_parameters),
                     reals_new(dtype, of->n_x),     reals_new(dtype, of->n_state),
                     reals_new(dtype, of->n_state)};
}

static void results_free(results *of)
{
    void *arrays[] = {of->y, of->h, of->c, of->gradients, of->dx, of->dh, of->dc};
    for (int i = 0; i < 7; i++)
        guarded_free(arrays[i]);
}

static fl_conv_forward forward_of(const world *of, const results *to, fl_conv_tape *tape)
{
    return (fl_conv_forward){.parameters = of->array[PARAMETERS],
                             .n = N,
                             .steps = STEPS,
                             .length = length,
                             .x = of->array[X],
                             .h_in = of->array[H],
                             .c_in = of->array[C],
                             .y = to->y,
                             .h_out = to->h,
                             .c_out = to->c,
                             .tape = tape,
                             .n_threads = 2};
}

static fl_conv_backward backward_of(const world *of, const results *to, fl_conv_tape *tape)
{
    return (fl_conv_backward){.tape = tape,
                              .parameters = of->array[PARAMETERS],
                              .n = N,
                              .steps = STEPS,
                              .dy = of->array[DY],
                              .dh_out = of->array[DH],
                              .dc_out = of->array[DC],
                              .gradients = to->gradients,
                              .dx = to->dx,
                              .dh_in = to->dh,
                              .dc_in = to->dc,
                              .n_threads = 2};
}

/* ---- tests ---- */

/* The steps that are written, and that the others are not. */
static void check_outputs(const world *of, const results *got)
{
    const int64_t image = of->layer.hidden_channels * of->pixels;
    const double limit = of->layer.dtype == FL_FLOAT64 ? 1e-14 : 2e-6;
    const size_t size = real_size(of->layer.dtype);
    double *y = malloc((size_t)(of->n_y + 2 * of->n_state) * sizeof(double));
    plain_run(of, of->value, y, y + of->n_y, y + of->n_y + of->n_state);
    for (int64_t b = 0; b < N; b++) {
        const char *at = (const char *)got->y + (size_t)(b * STEPS * image) * size;
        const char *behind = at + (size_t)(length[b] * image) * size;
        CHECK_AT_MOST(worst_error(of->layer.dtype, at, y + b * STEPS * image, length[b] * image),
                      limit);
        CHECK(is_untouched(behind, (size_t)((STEPS - length[b]) * image) * size));
    }
    CHECK_AT_MOST(worst_error(of->layer.dtype, got->h, y + of->n_y, of->n_state), limit);
    CHECK_AT_MOST(worst_error(of->layer.dtype, got->c, y + of->n_y + of->n_state, of->n_state),
                  limit);
    free(y);
}

/* Inner product of a gradient and a random direction against the difference of the loss. */
static void check_gradient(world *of, int which, const void *gradient)
{
    const int64_t count = count_of(of, which), x_image = of->layer.in_channels * of->pixels;
    const double limit = of->layer.dtype == FL_FLOAT64 ? 1e-8 : 1e-4;
    double *direction = malloc((size_t)(count + 1) * sizeof(double)), sum = 0;
    generator from = {(uint64_t)which + 7};
    for (int64_t i = 0; i < count; i++) {
        int written = which != X || i / x_image % STEPS < length[i / x_image / STEPS];
        direction[i] = written ? random_real(&from, 1) : 0;
        sum += written ? direction[i] * real_at(of->layer.dtype, gradient, i) : 0;
    }
    double wanted =
        (plain_loss(of, which, direction, 1e-5) - plain_loss(of, which, direction, -1e-5)) / 2e-5;
    CHECK_AT_MOST(fabs(sum - wanted) / (1 + fabs(wanted)), limit);
    free(direction);
}

static void test_layer_of(const fl_conv_lstm *layer)
{
    world of;
    fl_conv_tape *tape = NULL;
    world_begin(&of, layer);
    results inferred = results_new(&of), trained = results_new(&of);
    fl_conv_forward infer = forward_of(&of, &inferred, NULL);
    CHECK_EQUAL(fl_conv_tape_create(&tape), FL_OK);
    fl_conv_forward train = forward_of(&of, &trained, tape);
    fl_conv_backward back = backward_of(&of, &trained, tape);
    CHECK_EQUAL(fl_conv_lstm_forward(layer, &infer), FL_OK);
    CHECK_EQUAL(fl_conv_lstm_forward(layer, &train), FL_OK);
    check_outputs(&of, &inferred);
    check_outputs(&of, &trained);
    CHECK_EQUAL(fl_conv_lstm_backward(layer, &back), FL_OK);
    check_gradient(&of, PARAMETERS, trained.gradients);
    check_gradient(&of, X, trained.dx);
    check_gradient(&of, H, trained.dh);
    check_gradient(&of, C, trained.dc);
    CHECK_EQUAL(fl_conv_lstm_backward(layer, &back), FL_ERR_TAPE);
    fl_conv_tape_destroy(tape);
    results_free(&inferred);
    results_free(&trained);
    world_end(&of);
}

static void test_numbers(void)
{
    static const fl_conv_lstm layers[] = {{.in_channels = 2,
                                           .hidden_channels = 5,
                                           .height = 1,
                                           .width = 7,
                                           .kernel_height = 1,
                                           .kernel_width = 3,
                                           .bias = 1,
                                           .peephole = 1},
                                          {.in_channels = 3,
                                           .hidden_channels = 17,
                                           .height = 6,
                                           .width = 5,
                                           .kernel_height = 3,
                                           .kernel_width = 5,
                                           .bias = 1,
                                           .peephole = 1},
                                          {.in_channels = 1,
                                           .hidden_channels = 3,
                                           .height = 5,
                                           .width = 4,
                                           .kernel_height = 2,
                                           .kernel_width = 4},
                                          {.in_channels = 0,
                                           .hidden_channels = 4,
                                           .height = 3,
                                           .width = 2,
                                           .kernel_height = 7,
                                           .kernel_width = 5,
                                           .peephole = 1},
                                          {.in_channels = 1,
                                           .hidden_channels = 16,
                                           .height = 9,
                                           .width = 8,
                                           .kernel_height = 5,
                                           .kernel_width = 5,
                                           .bias = 1}};
    for (int i = 0; i < (int)(sizeof layers / sizeof layers[0]); i++)
        for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++) {
            fl_conv_lstm layer = layers[i];
            layer.dtype = dtype;
            check_context("layer %d dtype %d", i, dtype);
            test_layer_of(&layer);
        }
    check_context("%s", "");
}

static const fl_conv_lstm small = {.in_channels = 1,
                                   .hidden_channels = 2,
                                   .height = 3,
                                   .width = 4,
                                   .kernel_height = 3,
                                   .kernel_width = 3,
                                   .bias = 1,
                                   .peephole = 1};

#define CHECK_FORWARD(change, wanted)                                                              \
    do {                                                                                           \
        fl_conv_lstm layer = small;                                                                \
        fl_conv_forward call = forward_of(&of, &to, NULL);                                         \
        int64_t lengths[N] = {4, 1, 3};                                                            \
        call.length = lengths;                                                                     \
        change;                                                                                    \
        CHECK_EQUAL(fl_conv_lstm_forward(&layer, &call), wanted);                                  \
        CHECK(is_untouched(to.y, (size_t)of.n_y * sizeof(float)));                                 \
    } while (0)

static void test_arguments(void)
{
    const int64_t huge = (int64_t)1 << 31;
    world of;
    world_begin(&of, &small);
    results to = results_new(&of);
    CHECK_FORWARD(layer.dtype = 2, FL_ERR_ARGUMENT);
    CHECK_FORWARD(layer.in_channels = -1, FL_ERR_ARGUMENT);
    CHECK_FORWARD(layer.in_channels = INT64_MAX, FL_ERR_OVERFLOW);
    CHECK_FORWARD(layer.hidden_channels = 0, FL_ERR_ARGUMENT);
    CHECK_FORWARD(layer.height = 0, FL_ERR_ARGUMENT);
    CHECK_FORWARD(layer.width = INT64_MIN, FL_ERR_ARGUMENT);
    CHECK_FORWARD(layer.kernel_width = INT64_MAX, FL_ERR_OVERFLOW);
    CHECK_FORWARD((layer.height = huge, layer.width = huge), FL_ERR_OVERFLOW);
    CHECK_FORWARD((layer.kernel_height = huge, layer.kernel_width = huge), FL_ERR_OVERFLOW);
    CHECK_FORWARD(call.n = 0, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call.steps = -1, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call.steps = INT64_MAX, FL_ERR_OVERFLOW);
    CHECK_FORWARD(call.length = NULL, FL_ERR_ARGUMENT);
    CHECK_FORWARD(lengths[1] = 0, FL_ERR_ARGUMENT);
    CHECK_FORWARD(lengths[2] = STEPS + 1, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call.x = NULL, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call.y = NULL, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call.parameters = NULL, FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_conv_lstm_forward(&small, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_conv_lstm_backward(NULL, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_conv_lstm_n_parameters(NULL), -1);
    CHECK_EQUAL(fl_conv_tape_create(NULL), FL_ERR_ARGUMENT);
    results_free(&to);
    world_end(&of);
}

/* Every allocation of a training step fails in turn: a status, nothing leaks, nothing is written,
 * and the next call works. */
static void test_no_memory(void)
{
    world of;
    fl_conv_tape *tape = NULL;
    world_begin(&of, &small);
    results to = results_new(&of);
    allocator_fail_at(1);
    CHECK_EQUAL(fl_conv_tape_create(&tape), FL_ERR_NOMEM);
    allocator_fail_at(0);
    CHECK_EQUAL(fl_conv_tape_create(&tape), FL_OK);
    fl_conv_forward train = forward_of(&of, &to, tape);
    fl_conv_backward back = backward_of(&of, &to, tape);
    for (int nth = 1; nth <= 2; nth++) {
        long live = allocator_live();
        allocator_fail_at(nth);
        CHECK_EQUAL(fl_conv_lstm_forward(&small, &train), FL_ERR_NOMEM);
        allocator_fail_at(0);
        CHECK_EQUAL(allocator_live(), live);
        CHECK(is_untouched(to.y, (size_t)of.n_y * sizeof(float)));
        CHECK_EQUAL(fl_conv_lstm_backward(&small, &back), FL_ERR_TAPE);
    }
    CHECK_EQUAL(fl_conv_lstm_forward(&small, &train), FL_OK);
    CHECK(fl_conv_tape_bytes(tape) > 0);
    fl_conv_lstm other = small;
    other.peephole = 0;
    CHECK_EQUAL(fl_conv_lstm_backward(&other, &back), FL_ERR_TAPE);
    allocator_fail_at(1);
    CHECK_EQUAL(fl_conv_lstm_backward(&small, &back), FL_ERR_NOMEM);
    allocator_fail_at(0);
    CHECK(is_untouched(to.gradients, (size_t)of.n_parameters * sizeof(float)));
    CHECK_EQUAL(fl_conv_lstm_backward(&small, &back), FL_OK);
    fl_conv_tape_destroy(tape);
    results_free(&to);
    world_end(&of);
}

int main(void)
{
    isa_or_skip();
    test_numbers();
    test_arguments();
    test_no_memory();
    return check_report();
}
