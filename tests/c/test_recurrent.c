/* The recurrent layer through the public functions: layout of the parameters, numbers against the
 * plain reference, invalid arguments, sizes beyond any machine. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "allocator.h"
#include "layer_case.h"

static const fl_recurrent_config plain = {.cell = "lstm",
                                          .input_size = 3,
                                          .hidden_size = 5,
                                          .num_layers = 2,
                                          .bidirectional = 1,
                                          .bias = 1,
                                          .dtype = FL_FLOAT32};

/* ---- parameters ---- */

static void check_layout(const fl_recurrent_config *config, int64_t gates)
{
    fl_recurrent *layer;
    CHECK_EQUAL(fl_recurrent_create(config, &layer), FL_OK);
    int directions = config->bidirectional ? 2 : 1, kinds = config->bias ? 4 : 2;
    int64_t offset = 0, hidden = config->hidden_size;
    CHECK_EQUAL(fl_recurrent_n_arrays(layer), config->num_layers * directions * kinds);
    for (int32_t i = 0; i < fl_recurrent_n_arrays(layer); i++) {
        fl_parameter array;
        CHECK_EQUAL(fl_recurrent_parameter(layer, i, &array), FL_OK);
        int64_t input = array.layer == 0 ? config->input_size : hidden * directions;
        int64_t columns[] = {input, hidden, 0, 0};
        CHECK_EQUAL(array.kind, i % kinds);
        CHECK_EQUAL(array.direction, i / kinds % directions);
        CHECK_EQUAL(array.layer, i / kinds / directions);
        CHECK_EQUAL(array.rows, gates * hidden);
        CHECK_EQUAL(array.columns, columns[array.kind]);
        CHECK_EQUAL(array.offset, offset);
        offset += array.rows * (array.columns ? array.columns : 1);
    }
    CHECK_EQUAL(fl_recurrent_n_parameters(layer), offset);
    fl_parameter untouched = {.offset = -5};
    CHECK_EQUAL(fl_recurrent_parameter(layer, -1, &untouched), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_recurrent_parameter(layer, fl_recurrent_n_arrays(layer), &untouched),
                FL_ERR_ARGUMENT);
    CHECK_EQUAL(untouched.offset, -5);
    fl_recurrent_destroy(layer);
}

static void test_layouts(void)
{
    static const char *const cells[] = {"lstm", "rnn", "rnn_relu"};
    for (int cell = 0; cell < 3; cell++)
        for (int options = 0; options < 8; options++) {
            fl_recurrent_config config = plain;
            config.cell = cells[cell];
            config.bidirectional = options & 1;
            config.bias = options >> 1 & 1;
            config.num_layers = options & 4 ? 3 : 1;
            check_layout(&config, cell == 0 ? 4 : 1);
        }
}

/* ---- numbers ---- */

static void run_case(const char *cell, int32_t dtype, int64_t input, int64_t hidden, int64_t layers,
                     int bidirectional, int64_t n, int64_t steps)
{
    layer_case one = {.config = plain,
                      .n = n,
                      .steps = steps,
                      .ragged = 1,
                      .threads = 3,
                      .states_in = CASE_ALL,
                      .states_out = CASE_ALL,
                      .dstates_out = CASE_ALL,
                      .dstates_in = CASE_ALL,
                      .dy = 1,
                      .dx = 1,
                      .y = 1,
                      .seed = 42};
    one.config.cell = cell;
    one.config.dtype = dtype;
    one.config.input_size = input;
    one.config.hidden_size = hidden;
    one.config.num_layers = layers;
    one.config.bidirectional = bidirectional;
    layer_case_run(&one);
}

/* Sizes around the vectors and blocks of every instruction set. */
static void test_numbers(void)
{
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65};
    static const char *const cells[] = {"lstm", "rnn", "rnn_relu"};
    for (int cell = 0; cell < 3; cell++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++)
                run_case(cells[cell], dtype, sizes[s] % 6 + 1, sizes[s], 1 + (s & 1), s % 3 == 0,
                         1 + (int64_t)s % 8, 4);
    for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++) {
        run_case("lstm", dtype, 100, 96, 1, 1, 24, 5); /* rows shared out among threads */
        run_case("lstm", dtype, 20, 130, 2, 0, 3, 9);  /* units shared out among threads */
        run_case("rnn", dtype, 300, 33, 1, 0, 2, 70);  /* several chunks of the projection */
        run_case("lstm", dtype, 5, 4, 4, 1, 1, 300);
    }
}

/* ---- where rows lie ---- */

enum { PLACED = 20, PLACED_STEPS = 7, PLACED_APART = PLACED_STEPS + 2, PLACED_WIDTH = 24 };

/* Outputs of PLACED sequences that start at those rows of x and y. */
static void run_placed(const test_layer *made, const void *x, int64_t x_total,
                       const int64_t *x_start, void *y, const int64_t *y_start, void *c)
{
    int64_t length[PLACED];
    for (int b = 0; b < PLACED; b++)
        length[b] = PLACED_STEPS;
    void *states[] = {NULL, c};
    fl_forward call = {.x_rows = {.n = PLACED, .start = x_start, .length = length},
                       .x = x,
                       .x_total = x_total,
                       .y_start = y_start,
                       .y = y,
                       .y_total = PLACED * PLACED_APART,
                       .states_out = states,
                       .n_threads = 2};
    CHECK_EQUAL(fl_recurrent_forward(made->layer, &call), FL_OK);
}

/* Sequences at one distance are read and written in place, others packed: with the same bits, and
 * without touching rows that belong to none; also where sequences of x overlap, or x is y. */
static void check_placed(const fl_recurrent_config *config)
{
    const size_t row = PLACED_WIDTH * (config->dtype == FL_FLOAT64 ? 8 : 4),
                 bytes = PLACED * PLACED_APART * row;
    const int64_t total = PLACED * PLACED_APART, values = total * PLACED_WIDTH;
    test_layer made = test_layer_new(config, 7);
    generator from = {8};
    int64_t even[PLACED], odd[PLACED], window[PLACED];
    char *x = reals_new(config->dtype, values), *moved = reals_new(config->dtype, values),
         *y = reals_new(config->dtype, values), *wanted = reals_new(config->dtype, values),
         *c = reals_new(config->dtype, 4 * PLACED * PLACED_WIDTH),
         *wanted_c = reals_new(config->dtype, 4 * PLACED * PLACED_WIDTH);
    const size_t c_bytes = 4 * PLACED * row;
    for (int overlaps = 0; overlaps < 2; overlaps++) {
        for (int64_t i = 0; i < values; i++) {
            real_put(config->dtype, x, i, random_real(&from, 1));
            real_put(config->dtype, moved, i, 0);
        }
        for (int b = 0; b < PLACED; b++) {
            even[b] = 1 + b * PLACED_APART;
            odd[b] = 1 + (PLACED - 1 - b) * PLACED_APART;
            window[b] = overlaps ? 1 + b : even[b];
            memcpy(moved + (size_t)odd[b] * row, x + (size_t)window[b] * row, PLACED_STEPS * row);
        }
        memset(y, 1, bytes);
        memset(wanted, 1, bytes);
        memset(c, 0, c_bytes);
        memset(wanted_c, 0, c_bytes);
        run_placed(&made, moved, total, odd, wanted, even, wanted_c);
        run_placed(&made, x, total, window, y, even, c);
        CHECK(memcmp(y, wanted, bytes) == 0);
        CHECK(memcmp(c, wanted_c, c_bytes) == 0);
        if (!overlaps) {
            run_placed(&made, x, total, even, x, even, c);
            for (int b = 0; b < PLACED; b++)
                CHECK(memcmp(x + (size_t)even[b] * row, wanted + (size_t)even[b] * row,
                             PLACED_STEPS * row) == 0);
        }
    }
    guarded_check();
    void *arrays[] = {x, moved, y, wanted, c, wanted_c};
    for (int i = 0; i < 6; i++)
        guarded_free(arrays[i]);
    test_layer_free(&made);
}

/* A step back of the same call, dy at `dy_start`, dx where x is. */
static void run_placed_back(const test_layer *made, const void *x, const int64_t *start,
                            const void *dy, const int64_t *dy_start, void *dx, void *gradients)
{
    const int64_t total = PLACED * PLACED_APART;
    int64_t length[PLACED];
    fl_tape *tape;
    for (int b = 0; b < PLACED; b++)
        length[b] = PLACED_STEPS;
    fl_backward call = {.n = PLACED,
                        .parameters = made->parameters,
                        .dy_start = dy_start,
                        .dy = dy,
                        .dy_total = total,
                        .gradients = gradients,
                        .dx_start = start,
                        .dx = dx,
                        .dx_total = total,
                        .n_threads = 2};
    CHECK_EQUAL(fl_tape_create(&tape), FL_OK);
    call.tape = tape;
    fl_forward forward = {.x_rows = {.n = PLACED, .start = start, .length = length},
                          .x = x,
                          .x_total = total,
                          .tape = tape,
                          .n_threads = 2};
    CHECK_EQUAL(fl_recurrent_forward(made->layer, &forward), FL_OK);
    CHECK_EQUAL(fl_recurrent_backward(made->layer, &call), FL_OK);
    fl_tape_destroy(tape);
}

/* dy at one distance is read in place, other dy packed: with the same bits, also where dx takes the
 * place of dy. */
static void check_placed_back(const fl_recurrent_config *config)
{
    const size_t row = PLACED_WIDTH * (config->dtype == FL_FLOAT64 ? 8 : 4);
    const int64_t values = PLACED * PLACED_APART * PLACED_WIDTH;
    test_layer made = test_layer_new(config, 7);
    const size_t bytes = (size_t)values * row / PLACED_WIDTH,
                 gradient_bytes = (size_t)made.n_parameters * row / PLACED_WIDTH;
    generator from = {8};
    int64_t even[PLACED], odd[PLACED];
    char *x = reals_new(config->dtype, values), *dy = reals_new(config->dtype, values),
         *moved = reals_new(config->dtype, values), *dx = reals_new(config->dtype, values),
         *wanted = reals_new(config->dtype, values),
         *gradients = reals_new(config->dtype, made.n_parameters),
         *wanted_gradients = reals_new(config->dtype, made.n_parameters);
    for (int64_t i = 0; i < values; i++) {
        real_put(config->dtype, x, i, random_real(&from, 1));
        real_put(config->dtype, dy, i, random_real(&from, 1));
        real_put(config->dtype, moved, i, 0);
    }
    memset(dx, 1, bytes);
    memset(wanted, 1, bytes);
    for (int b = 0; b < PLACED; b++) {
        even[b] = 1 + b * PLACED_APART;
        odd[b] = 1 + (PLACED - 1 - b) * PLACED_APART;
        memcpy(moved + (size_t)odd[b] * row, dy + (size_t)even[b] * row, PLACED_STEPS * row);
    }
    run_placed_back(&made, x, even, moved, odd, wanted, wanted_gradients);
    run_placed_back(&made, x, even, dy, even, dx, gradients);
    CHECK(memcmp(dx, wanted, bytes) == 0);
    CHECK(memcmp(gradients, wanted_gradients, gradient_bytes) == 0);
    run_placed_back(&made, x, even, dy, even, dy, gradients);
    for (int b = 0; b < PLACED; b++)
        CHECK(memcmp(dy + (size_t)even[b] * row, wanted + (size_t)even[b] * row,
                     PLACED_STEPS * row) == 0);
    CHECK(memcmp(gradients, wanted_gradients, gradient_bytes) == 0);
    guarded_check();
    void *arrays[] = {x, dy, moved, dx, wanted, gradients, wanted_gradients};
    for (int i = 0; i < 7; i++)
        guarded_free(arrays[i]);
    test_layer_free(&made);
}

static void test_placed(void)
{
    for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++)
        for (int options = 0; options < 4; options++) {
            fl_recurrent_config config = plain;
            config.dtype = dtype;
            config.input_size = PLACED_WIDTH;
            config.num_layers = 1 + (options & 1);
            config.bidirectional = options >> 1;
            config.hidden_size = PLACED_WIDTH / (1 + config.bidirectional);
            check_context("rows in place, dtype %d, options %d", dtype, options);
            check_placed(&config);
            check_placed_back(&config);
            if (!config.bidirectional) {
                config.hidden_size = 2 * PLACED_WIDTH;
                config.proj_size = PLACED_WIDTH;
                check_context("rows in place, projected, dtype %d, options %d", dtype, options);
                check_placed(&config);
                check_placed_back(&config);
            }
        }
}

/* ---- arguments ---- */

/* A small call in which every array is there; its outputs are to stay as they are. */
typedef struct small_call {
    test_layer made;
    fl_tape *tape;
    int64_t start[2], length[2];
    void *x, *y, *state[4], *gradients, *dx;
    const void *states_in[2];
    void *states_out[2];
    fl_forward forward;
    fl_backward backward;
} small_call;

enum { ROWS = 7, STATE = 4 * 2 * 5, COLUMNS = 10 };

static void small_begin(small_call *of)
{
    generator from = {9};
    double values[ROWS * COLUMNS];
    memset(of, 0, sizeof *of);
    of->made = test_layer_new(&plain, 4);
    CHECK_EQUAL(fl_tape_create(&of->tape), FL_OK);
    random_fill(&from, plain.dtype, 1, values, ROWS * COLUMNS);
    of->start[0] = 4;
    of->length[0] = 3;
    of->length[1] = 4;
    of->x = reals_of(plain.dtype, values, ROWS * plain.input_size);
    of->y = reals_new(plain.dtype, ROWS * COLUMNS);
    of->dx = reals_new(plain.dtype, ROWS * plain.input_size);
    of->gradients = reals_new(plain.dtype, of->made.n_parameters);
    for (int i = 0; i < 4; i++)
        of->state[i] = i < 2 ? reals_of(plain.dtype, values, STATE) : reals_new(plain.dtype, STATE);
    for (int i = 0; i < 2; i++) {
        of->states_in[i] = of->state[i];
        of->states_out[i] = of->state[2 + i];
    }
    of->forward = (fl_forward){.x_rows = {2, of->start, of->length},
                               .x = of->x,
                               .x_total = ROWS,
                               .y_start = of->start,
                               .y = of->y,
                               .y_total = ROWS,
                               .states_in = of->states_in,
                               .states_out = of->states_out};
    of->backward = (fl_backward){.tape = of->tape,
                                 .n = 2,
                                 .parameters = of->made.parameters,
                                 .dy = of->y,
                                 .dy_start = of->start,
                                 .dy_total = ROWS,
                                 .dstates_out = of->states_in,
                                 .gradients = of->gradients,
                                 .dx = of->dx,
                                 .dx_start = of->start,
                                 .dx_total = ROWS,
                                 .dstates_in = of->states_out};
}

static void small_end(small_call *of)
{
    guarded_free(of->x);
    guarded_free(of->y);
    guarded_free(of->dx);
    guarded_free(of->gradients);
    for (int i = 0; i < 4; i++)
        guarded_free(of->state[i]);
    fl_tape_destroy(of->tape);
    test_layer_free(&of->made);
}

static int forward_untouched(const small_call *of)
{
    return is_untouched(of->y, ROWS * COLUMNS * sizeof(float)) &&
           is_untouched(of->state[2], STATE * sizeof(float)) &&
           is_untouched(of->state[3], STATE * sizeof(float));
}

static int backward_untouched(const small_call *of)
{
    return is_untouched(of->gradients, (size_t)of->made.n_parameters * sizeof(float)) &&
           is_untouched(of->dx, ROWS * (size_t)plain.input_size * sizeof(float)) &&
           is_untouched(of->state[2], STATE * sizeof(float)) &&
           is_untouched(of->state[3], STATE * sizeof(float));
}

/* `change` made to a good forward call gives `wanted`; with a tape too. */
#define CHECK_FORWARD(change, wanted)                                                              \
    do {                                                                                           \
        for (int with_tape_ = 0; with_tape_ < 2; with_tape_++) {                                   \
            small_call of;                                                                         \
            small_begin(&of);                                                                      \
            fl_forward *call = &of.forward;                                                        \
            call->tape = with_tape_ ? of.tape : NULL;                                              \
            change;                                                                                \
            CHECK_IN_CHILD(fl_recurrent_forward(of.made.layer, call) == (wanted) &&                \
                           forward_untouched(&of));                                                \
            small_end(&of);                                                                        \
        }                                                                                          \
    } while (0)

static void test_forward_arguments(void)
{
    static const int64_t no_lengths[] = {3, 0}, negative[] = {-1, 4}, long_ones[] = {3, 5},
                         endless[] = {INT64_MAX, INT64_MAX}, below[] = {-1, 0}, above[] = {5, 0};
    CHECK_FORWARD(call->x = NULL, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->y_start = NULL, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.start = NULL, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.length = NULL, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.n = 0, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.n = -1, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.length = no_lengths, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.length = negative, FL_ERR_ARGUMENT);
    CHECK_FORWARD((call->x_rows.length = long_ones, call->x_total = 4), FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.length = endless, FL_ERR_OVERFLOW);
    CHECK_FORWARD(call->x_rows.start = below, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_rows.start = above, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->y_start = below, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->y_start = above, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_total = 6, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_total = 0, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->x_total = -7, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->y_total = 6, FL_ERR_ARGUMENT);
    CHECK_FORWARD(call->y_total = INT64_MIN, FL_ERR_ARGUMENT);
}

/* `change` made to a good backward call gives `wanted`, and the tape can still be used. */
#define CHECK_BACKWARD(change, wanted)                                                             \
    do {                                                                                           \
        small_call of;                                                                             \
        small_begin(&of);                                                                          \
        fl_backward *call = &of.backward;                                                          \
        of.forward.tape = of.tape;                                                                 \
        of.forward.states_out = NULL;                                                              \
        CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_OK);                      \
        fl_backward good_ = *call;                                                                 \
        change;                                                                                    \
        CHECK_IN_CHILD(fl_recurrent_backward(of.made.layer, call) == (wanted) &&                   \
                       backward_untouched(&of) &&                                                  \
                       fl_recurrent_backward(of.made.layer, &good_) == FL_OK);                     \
        small_end(&of);                                                                            \
    } while (0)

static void test_backward_arguments(void)
{
    static const int64_t below[] = {-1, 0}, above[] = {5, 0};
    CHECK_BACKWARD(call->tape = NULL, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->gradients = NULL, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->parameters = NULL, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->n = 1, FL_ERR_TAPE);
    CHECK_BACKWARD(call->n = 3, FL_ERR_TAPE);
    CHECK_BACKWARD(call->n = -2, FL_ERR_TAPE);
    CHECK_BACKWARD(call->dy_start = NULL, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->dx_start = NULL, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->dy_start = below, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->dx_start = above, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->dy_total = 6, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->dx_total = 0, FL_ERR_ARGUMENT);
    CHECK_BACKWARD(call->dx_total = INT64_MIN, FL_ERR_ARGUMENT);
}

/* A tape belongs to the last forward call that it was given to, and only if that succeeded. */
static void test_tape(void)
{
    small_call of, other;
    fl_tape *fresh;
    small_begin(&of);
    small_begin(&other);
    CHECK_EQUAL(fl_tape_create(&fresh), FL_OK);
    CHECK_EQUAL(fl_tape_bytes(fresh), 0);
    fl_backward call = of.backward;
    call.tape = fresh;
    call.n = 0;
    CHECK_EQUAL(fl_recurrent_backward(of.made.layer, &call), FL_ERR_TAPE);
    call.n = 2;
    CHECK_EQUAL(fl_recurrent_backward(of.made.layer, &call), FL_ERR_TAPE);
    of.forward.tape = of.tape;
    CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_OK);
    CHECK(fl_tape_bytes(of.tape) > 0);
    CHECK_EQUAL(fl_recurrent_backward(other.made.layer, &of.backward), FL_ERR_TAPE);
    of.forward.x_total = 0;
    CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_recurrent_backward(of.made.layer, &of.backward), FL_ERR_TAPE);
    of.forward.x_total = ROWS;
    CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_OK);
    CHECK_EQUAL(fl_recurrent_backward(of.made.layer, &of.backward), FL_OK);
    fl_tape_destroy(fresh);
    small_end(&of);
    small_end(&other);
}

static void test_tape_bytes(void)
{
    small_call of;
    small_begin(&of);
    int64_t bytes = 0, huge = INT64_MAX / 2;
    of.forward.tape = of.tape;
    CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_OK);
    CHECK_EQUAL(fl_recurrent_tape_bytes(of.made.layer, 2, 4, ROWS, 0, 0, &bytes), FL_OK);
    CHECK_EQUAL(fl_tape_bytes(of.tape), bytes);
    CHECK_EQUAL(fl_recurrent_tape_bytes(NULL, 2, 4, ROWS, 0, 0, &bytes), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_recurrent_tape_bytes(of.made.layer, 2, 4, ROWS, 0, 0, NULL), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_recurrent_tape_bytes(of.made.layer, 0, 4, ROWS, 0, 0, &bytes), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_recurrent_tape_bytes(of.made.layer, 2, 0, ROWS, 0, 0, &bytes), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_recurrent_tape_bytes(of.made.layer, 2, 8, ROWS, 0, 0, &bytes), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_recurrent_tape_bytes(of.made.layer, 1, huge, huge, 0, 0, &bytes),
                FL_ERR_OVERFLOW);
    small_end(&of);
}

static void test_not_loaded(void)
{
    small_call of;
    small_begin(&of);
    fl_recurrent *layer;
    fl_stream *stream = NULL;
    CHECK_EQUAL(fl_recurrent_create(&plain, &layer), FL_OK);
    CHECK_EQUAL(fl_recurrent_forward(layer, &of.forward), FL_ERR_ARGUMENT);
    CHECK(forward_untouched(&of));
    CHECK_EQUAL(fl_stream_create(layer, 1, &stream), FL_ERR_ARGUMENT);
    CHECK(stream == NULL);
    fl_recurrent_destroy(layer);
    small_end(&of);
}

static void check_config(fl_recurrent_config config, fl_status wanted)
{
    fl_recurrent *layer = (fl_recurrent *)&config, *before = layer;
    long live = allocator_live();
    fl_status status = fl_recurrent_create(&config, &layer);
    CHECK_EQUAL(status, wanted);
    CHECK((status == FL_OK) == (layer != before));
    if (status == FL_OK)
        fl_recurrent_destroy(layer);
    CHECK_EQUAL(allocator_live(), live);
}

#define CHECK_CONFIG(change, wanted)                                                               \
    do {                                                                                           \
        fl_recurrent_config config = plain;                                                        \
        change;                                                                                    \
        check_config(config, wanted);                                                              \
    } while (0)

static void test_configs(void)
{
    CHECK_CONFIG((void)config, FL_OK);
    CHECK_CONFIG(config.cell = NULL, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.cell = "", FL_ERR_UNKNOWN_CELL);
    CHECK_CONFIG(config.cell = "LSTM", FL_ERR_UNKNOWN_CELL);
    CHECK_CONFIG(config.cell = "lstm2", FL_ERR_UNKNOWN_CELL);
    CHECK_CONFIG(config.input_size = 0, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.hidden_size = 0, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.num_layers = 0, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.input_size = -1, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.hidden_size = INT64_MIN, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.num_layers = -1, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.dtype = 2, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.dtype = -1, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.dropout = 1, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.dropout = -0.1, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.dropout = NAN, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.dropout = INFINITY, FL_ERR_ARGUMENT);
    CHECK_CONFIG(config.dropout = 0.99, FL_OK);
}

/* Sizes beyond what a machine has: refused, whatever they multiply to. */
static void test_huge_configs(void)
{
    static const int64_t huge[] = {(int64_t)1 << 24, (int64_t)1 << 31, ((int64_t)1 << 31) + 1,
                                   (int64_t)1 << 32, (int64_t)1 << 61, (int64_t)1 << 62,
                                   INT64_MAX};
    long live = allocator_live();
    for (size_t h = 0; h < sizeof huge / sizeof huge[0]; h++)
        for (int which = 1; which < 8; which++) {
            fl_recurrent_config config = plain;
            fl_recurrent *layer = NULL;
            if (which == 4 && huge[h] <= 1 << 24)
                continue;
            config.input_size = which & 1 ? huge[h] : 1;
            config.hidden_size = which & 2 ? huge[h] : 1 << 13;
            config.num_layers = which & 4 ? huge[h] : 1;
            if (which == 1 && huge[h] <= 1 << 24)
                config.hidden_size = 1 << 20;
            check_context("input %lld hidden %lld layers %lld", (long long)config.input_size,
                          (long long)config.hidden_size, (long long)config.num_layers);
            fl_status status = fl_recurrent_create(&config, &layer);
            CHECK(status == FL_ERR_OVERFLOW || status == FL_ERR_NOMEM);
            CHECK(layer == NULL);
            fl_recurrent_destroy(layer);
        }
    check_context("%s", "");
    CHECK_EQUAL(allocator_live(), live);
}

static int is_refused(const fl_recurrent *layer, const fl_forward *call)
{
    fl_status status = fl_recurrent_forward(layer, call);
    return status == FL_ERR_OVERFLOW || status == FL_ERR_NOMEM;
}

/* Lengths that the description allows and no memory holds. */
static void test_huge_forward(void)
{
    for (int power = 40; power <= 62; power++)
        for (int with_tape = 0; with_tape < 2; with_tape++) {
            small_call of;
            small_begin(&of);
            of.start[0] = of.start[1] = 0;
            of.length[0] = of.length[1] = ((int64_t)1 << power) - 1;
            of.forward.x_total = of.forward.y_total = INT64_MAX;
            of.forward.tape = with_tape ? of.tape : NULL;
            check_context("two sequences of 2^%d - 1 steps, tape %d", power, with_tape);
            CHECK_IN_CHILD(is_refused(of.made.layer, &of.forward) && forward_untouched(&of));
            of.forward.x_rows.n = 1;
            of.length[0] = power == 62 ? INT64_MAX : (int64_t)1 << power;
            check_context("one sequence of 2^%d steps, tape %d", power, with_tape);
            CHECK_IN_CHILD(is_refused(of.made.layer, &of.forward) && forward_untouched(&of));
            check_context("%s", "");
            small_end(&of);
        }
}

/* NULL wherever a pointer is asked for. */
static void test_null(void)
{
    small_call of;
    const char *name;
    int32_t available;
    fl_parameter array;
    small_begin(&of);
    CHECK_IN_CHILD(fl_isa_name(NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_isa_available(0, NULL, &available) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_isa_available(0, &name, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_isa_available(-1, &name, &available) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_isa_available(100, &name, &available) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_create(NULL, &of.made.layer) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_create(&plain, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD((fl_recurrent_destroy(NULL), 1));
    CHECK_IN_CHILD(fl_recurrent_n_states(NULL) <= 0);
    CHECK_IN_CHILD(fl_recurrent_n_parameters(NULL) <= 0);
    CHECK_IN_CHILD(fl_recurrent_n_arrays(NULL) <= 0);
    CHECK_IN_CHILD(fl_recurrent_parameter(NULL, 0, &array) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_parameter(of.made.layer, 0, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_load(NULL, of.made.parameters) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_load(of.made.layer, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_forward(NULL, &of.forward) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_forward(of.made.layer, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_backward(NULL, &of.backward) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_recurrent_backward(of.made.layer, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_tape_create(NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD((fl_tape_destroy(NULL), 1));
    CHECK_IN_CHILD(fl_tape_bytes(NULL) == 0);
    small_end(&of);
}

/* Loading again changes the numbers; the layer does not keep the caller's array. */
static void test_reload(void)
{
    small_call of;
    small_begin(&of);
    size_t size = ROWS * COLUMNS * sizeof(float);
    CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_OK);
    void *before = guarded_new(size);
    memcpy(before, of.y, size);
    memset(of.made.parameters, 0, (size_t)of.made.n_parameters * sizeof(float));
    CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_OK);
    CHECK(memcmp(before, of.y, size) == 0);
    CHECK_EQUAL(fl_recurrent_load(of.made.layer, of.made.parameters), FL_OK);
    CHECK_EQUAL(fl_recurrent_forward(of.made.layer, &of.forward), FL_OK);
    CHECK(memcmp(before, of.y, size) != 0);
    guarded_free(before);
    small_end(&of);
}

/* One call over T steps is two calls with the states carried, in place. */
static void test_carried_states(void)
{
    enum { T = 9, INPUT = 3, HIDDEN = 5 };
    fl_recurrent_config config = plain;
    config.bidirectional = 0;
    test_layer made = test_layer_new(&config, 6);
    generator from = {2};
    double values[T * INPUT];
    int64_t start = 0, length = T;
    random_fill(&from, config.dtype, 1, values, T * INPUT);
    void *x = reals_of(config.dtype, values, T * INPUT),
         *whole = reals_new(config.dtype, T * HIDDEN),
         *pieces = reals_new(config.dtype, T * HIDDEN), *h = reals_new(config.dtype, 2 * HIDDEN),
         *c = reals_new(config.dtype, 2 * HIDDEN);
    void *out[] = {h, c};
    const void *in[] = {h, c};
    fl_forward call = {.x_rows = {1, &start, &length},
                       .x = x,
                       .x_total = T,
                       .y_start = &start,
                       .y = whole,
                       .y_total = T};
    CHECK_EQUAL(fl_recurrent_forward(made.layer, &call), FL_OK);
    call.y = pieces;
    call.states_out = out;
    length = 4;
    CHECK_EQUAL(fl_recurrent_forward(made.layer, &call), FL_OK);
    start = 4;
    length = 5;
    call.states_in = in;
    CHECK_EQUAL(fl_recurrent_forward(made.layer, &call), FL_OK);
    CHECK(memcmp(whole, pieces, T * HIDDEN * sizeof(float)) == 0);
    void *arrays[] = {x, whole, pieces, h, c};
    for (int i = 0; i < 5; i++)
        guarded_free(arrays[i]);
    test_layer_free(&made);
}

int main(void)
{
    isa_or_skip();
    long live = allocator_live();
    test_layouts();
    test_numbers();
    test_placed();
    test_configs();
    test_huge_configs();
    test_not_loaded();
    test_tape();
    test_tape_bytes();
    test_reload();
    test_carried_states();
    test_null();
    test_forward_arguments();
    test_backward_arguments();
    test_huge_forward();
    CHECK_EQUAL(allocator_live(), live);
    return check_report();
}
