#include "layer_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "reference.h"

/* Rows of an array in the API: sequences in random order with gaps between them. */
typedef struct placement {
    int64_t *start, total;
} placement;

typedef struct case_run {
    const layer_case *one;
    generator from;
    int32_t dtype;
    reference net;
    int64_t *length, state_count;
    placement x_rows, y_rows, dy_rows, dx_rows;
    fl_recurrent *layer;
    void *parameters, *x, *dy;
    void *states_in[2], *dstates_out[2];
} case_run;

/* Results of one pass, all guarded. */
typedef struct case_results {
    void *y, *states_out[2], *gradients, *dx, *dstates_in[2];
} case_results;

static placement place_rows(case_run *run)
{
    int64_t n = run->one->n, *order = malloc((size_t)n * sizeof *order);
    placement made = {malloc((size_t)n * sizeof(int64_t)), 0};
    for (int64_t b = 0; b < n; b++) {
        int64_t other = random_below(&run->from, b + 1);
        order[b] = order[other];
        order[other] = b;
    }
    for (int64_t b = 0; b < n; b++) {
        made.total += random_below(&run->from, 3);
        made.start[order[b]] = made.total;
        made.total += run->length[order[b]];
    }
    made.total += random_below(&run->from, 2);
    free(order);
    return made;
}

/* Guarded (rows, columns) with the sequences of `dense` in their places, NaN elsewhere. */
static void *place_values(const case_run *run, const placement *place, const double *dense,
                          int64_t columns)
{
    void *made = reals_new(run->dtype, place->total * columns);
    for (int64_t b = 0, at = 0; b < run->one->n; b++)
        for (int64_t i = 0; i < run->length[b] * columns; i++)
            real_put(run->dtype, made, place->start[b] * columns + i, dense[at++]);
    return made;
}

/* Error of the placed sequences; infinite if a row of no sequence was written. */
static double placed_error(const case_run *run, const placement *place, const void *got,
                           const double *dense, int64_t columns)
{
    size_t size = real_size(run->dtype);
    char *owned = calloc((size_t)(place->total + 1), 1);
    void *gathered = malloc((size_t)(run->net.rows * columns) * size);
    for (int64_t b = 0, at = 0; b < run->one->n; at += run->length[b++]) {
        memcpy((char *)gathered + (size_t)(at * columns) * size,
               (const char *)got + (size_t)(place->start[b] * columns) * size,
               (size_t)(run->length[b] * columns) * size);
        memset(owned + place->start[b], 1, (size_t)run->length[b]);
    }
    double error = worst_error(run->dtype, gathered, dense, run->net.rows * columns);
    for (int64_t row = 0; row < place->total; row++)
        if (!owned[row] && !is_untouched((const char *)got + (size_t)(row * columns) * size,
                                         (size_t)columns * size))
            error = INFINITY;
    free(owned);
    free(gathered);
    return error;
}

static void *state_given(case_run *run, int mask, int i, double *values)
{
    if (i >= run->net.states + 1)
        return NULL;
    if (!(mask & CASE_LIST) || !(mask & 1 << i))
        return NULL; /* zeros in the reference */
    random_fill(&run->from, run->dtype, 1, values, run->state_count);
    return reals_of(run->dtype, values, run->state_count);
}

static void case_lengths(case_run *run)
{
    const layer_case *one = run->one;
    run->length = malloc((size_t)one->n * sizeof *run->length);
    for (int64_t b = 0; b < one->n; b++)
        run->length[b] = one->ragged ? 1 + random_below(&run->from, one->steps) : one->steps;
    run->length[random_below(&run->from, one->n)] = one->steps;
}

static void case_dropout(case_run *run)
{
    const layer_case *one = run->one;
    double keep = 1 - one->config.dropout;
    int64_t columns = run->net.columns;
    for (int64_t l = 1; l < one->config.num_layers && keep < 1; l++)
        for (int64_t i = 0; i < one->n * columns; i++)
            run->net.factor[l * one->n * columns + i] =
                fl_uniform(one->seed, (uint64_t)l, (uint64_t)i) < keep
                    ? real_round(run->dtype, 1 / keep)
                    : 0;
}

static void case_begin(case_run *run)
{
    const layer_case *one = run->one;
    reference *net = &run->net;
    case_lengths(run);
    *net = (reference){.cell = one->config.cell,
                       .input = one->config.input_size,
                       .hidden = one->config.hidden_size,
                       .layers = one->config.num_layers,
                       .directions = one->config.bidirectional ? 2 : 1,
                       .bias = one->config.bias,
                       .n = one->n,
                       .length = run->length};
    reference_begin(net);
    run->state_count = net->layers * net->directions * net->n * net->hidden;
    random_fill(&run->from, run->dtype, 1 / sqrt((double)net->hidden), net->parameters,
                net->n_parameters);
    random_fill(&run->from, run->dtype, 1.5, net->x, net->rows * net->input);
    if (one->dy)
        random_fill(&run->from, run->dtype, 1, net->dy, net->rows * net->columns);
    run->x_rows = place_rows(run);
    run->y_rows = place_rows(run);
    run->dy_rows = place_rows(run);
    run->dx_rows = place_rows(run);
    run->parameters = reals_of(run->dtype, net->parameters, net->n_parameters);
    run->x = place_values(run, &run->x_rows, net->x, net->input);
    run->dy = one->dy ? place_values(run, &run->dy_rows, net->dy, net->columns) : NULL;
    for (int i = 0; i < 2; i++) {
        run->states_in[i] = state_given(run, one->states_in, i, net->states_in[i]);
        run->dstates_out[i] = state_given(run, one->dstates_out, i, net->dstates_out[i]);
    }
}

static void case_end(case_run *run)
{
    void *arrays[] = {run->parameters,
                      run->x,
                      run->dy,
                      run->states_in[0],
                      run->states_in[1],
                      run->dstates_out[0],
                      run->dstates_out[1]};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        guarded_free(arrays[i]);
    free(run->x_rows.start);
    free(run->y_rows.start);
    free(run->dy_rows.start);
    free(run->dx_rows.start);
    free(run->length);
    reference_end(&run->net);
    fl_recurrent_destroy(run->layer);
}

static case_results results_new(const case_run *run)
{
    const layer_case *one = run->one;
    case_results made = {.gradients = reals_new(run->dtype, run->net.n_parameters)};
    if (one->y)
        made.y = reals_new(run->dtype, run->y_rows.total * run->net.columns);
    if (one->dx)
        made.dx = reals_new(run->dtype, run->dx_rows.total * run->net.input);
    for (int i = 0; i <= run->net.states; i++) {
        if (one->states_out & CASE_LIST && one->states_out & 1 << i)
            made.states_out[i] = reals_new(run->dtype, run->state_count);
        if (one->dstates_in & CASE_LIST && one->dstates_in & 1 << i)
            made.dstates_in[i] = reals_new(run->dtype, run->state_count);
    }
    return made;
}

static void results_free(case_results *results)
{
    guarded_free(results->y);
    guarded_free(results->gradients);
    guarded_free(results->dx);
    for (int i = 0; i < 2; i++) {
        guarded_free(results->states_out[i]);
        guarded_free(results->dstates_in[i]);
    }
}

static void case_forward(const case_run *run, case_results *results, fl_tape *tape, int threads)
{
    const layer_case *one = run->one;
    fl_forward call = {.x_rows = {one->n, run->x_rows.start, run->length},
                       .x = run->x,
                       .x_total = run->x_rows.total,
                       .y_start = run->y_rows.start,
                       .y = results->y,
                       .y_total = run->y_rows.total,
                       .tape = tape,
                       .random_key = one->seed,
                       .n_threads = threads};
    if (one->states_in & CASE_LIST)
        call.states_in = (const void *const *)run->states_in;
    if (one->states_out & CASE_LIST)
        call.states_out = results->states_out;
    CHECK_EQUAL(fl_recurrent_forward(run->layer, &call), FL_OK);
}

static void case_backward(const case_run *run, case_results *results, fl_tape *tape, int threads)
{
    const layer_case *one = run->one;
    fl_backward call = {.tape = tape,
                        .n = one->n,
                        .parameters = run->parameters,
                        .dy = run->dy,
                        .dy_start = run->dy_rows.start,
                        .dy_total = run->dy_rows.total,
                        .gradients = results->gradients,
                        .dx = results->dx,
                        .dx_start = run->dx_rows.start,
                        .dx_total = run->dx_rows.total,
                        .n_threads = threads};
    if (one->dstates_out & CASE_LIST)
        call.dstates_out = (const void *const *)run->dstates_out;
    if (one->dstates_in & CASE_LIST)
        call.dstates_in = results->dstates_in;
    CHECK_EQUAL(fl_recurrent_backward(run->layer, &call), FL_OK);
    CHECK_EQUAL(fl_recurrent_backward(run->layer, &call), FL_ERR_TAPE); /* used up */
}

static void compare_forward(const case_run *run, const case_results *results)
{
    double limit = run->dtype == FL_FLOAT64 ? 1e-12 : 3e-6;
    if (results->y)
        CHECK_AT_MOST(placed_error(run, &run->y_rows, results->y, run->net.y, run->net.columns),
                      limit);
    for (int i = 0; i <= run->net.states; i++)
        if (results->states_out[i])
            CHECK_AT_MOST(worst_error(run->dtype, results->states_out[i], run->net.states_out[i],
                                      run->state_count),
                          limit);
}

/* Each parameter array by itself, so that large gradients do not hide small ones. */
static void compare_gradients(const case_run *run, const case_results *results, double limit)
{
    for (int32_t i = 0; i < fl_recurrent_n_arrays(run->layer); i++) {
        fl_parameter array;
        CHECK_EQUAL(fl_recurrent_parameter(run->layer, i, &array), FL_OK);
        CHECK_AT_MOST(worst_error(run->dtype,
                                  (const char *)results->gradients +
                                      (size_t)array.offset * real_size(run->dtype),
                                  run->net.gradients + array.offset,
                                  array.rows * (array.columns ? array.columns : 1)),
                      limit);
    }
}

static void compare_backward(const case_run *run, const case_results *results)
{
    /* near its kink a rectified unit may fall on the other side in the lower precision */
    if (run->net.margin < (run->dtype == FL_FLOAT64 ? 1e-12 : 1e-5))
        return;
    double limit = run->dtype == FL_FLOAT64 ? 1e-11 : 2e-5;
    compare_gradients(run, results, limit);
    if (results->dx)
        CHECK_AT_MOST(placed_error(run, &run->dx_rows, results->dx, run->net.dx, run->net.input),
                      limit);
    for (int i = 0; i <= run->net.states; i++)
        if (results->dstates_in[i])
            CHECK_AT_MOST(worst_error(run->dtype, results->dstates_in[i], run->net.dstates_in[i],
                                      run->state_count),
                          limit);
}

static int same_bytes(const void *a, const void *b, int64_t count, int32_t dtype)
{
    return (!a && !b) || memcmp(a, b, (size_t)count * real_size(dtype)) == 0;
}

static void compare_bits(const case_run *run, const case_results *a, const case_results *b,
                         int with_backward)
{
    CHECK(same_bytes(a->y, b->y, run->y_rows.total * run->net.columns, run->dtype));
    for (int i = 0; i < 2; i++)
        CHECK(same_bytes(a->states_out[i], b->states_out[i], run->state_count, run->dtype));
    if (!with_backward)
        return;
    CHECK(same_bytes(a->gradients, b->gradients, run->net.n_parameters, run->dtype));
    CHECK(same_bytes(a->dx, b->dx, run->dx_rows.total * run->net.input, run->dtype));
    for (int i = 0; i < 2; i++)
        CHECK(same_bytes(a->dstates_in[i], b->dstates_in[i], run->state_count, run->dtype));
}

/* Inference, without dropout: the reference's numbers, the same bits for any number of threads. */
static case_results run_inference(case_run *run)
{
    reference_forward(&run->net);
    case_results alone = results_new(run), shared = results_new(run);
    case_forward(run, &alone, NULL, 1);
    compare_forward(run, &alone);
    case_forward(run, &shared, NULL, run->one->threads);
    compare_bits(run, &alone, &shared, 0);
    results_free(&shared);
    return alone;
}

static void run_training(case_run *run, const case_results *inference)
{
    fl_tape *tape;
    CHECK_EQUAL(fl_tape_create(&tape), FL_OK);
    case_dropout(run);
    reference_forward(&run->net);
    reference_backward(&run->net);
    case_results alone = results_new(run), shared = results_new(run);
    case_forward(run, &alone, tape, 1);
    compare_forward(run, &alone);
    if (run->one->config.dropout == 0)
        compare_bits(run, inference, &alone, 0);
    case_backward(run, &alone, tape, 1);
    compare_backward(run, &alone);
    case_forward(run, &shared, tape, run->one->threads);
    case_backward(run, &shared, tape, run->one->threads);
    compare_bits(run, &alone, &shared, 1);
    results_free(&alone);
    results_free(&shared);
    fl_tape_destroy(tape);
}

void layer_case_run(const layer_case *one)
{
    char name[224];
    layer_case_name(one, name, sizeof name);
    check_context("%s", name);
    case_run run = {.one = one, .from = {one->seed}, .dtype = one->config.dtype};
    case_begin(&run);
    fl_status status = fl_recurrent_create(&one->config, &run.layer);
    CHECK_EQUAL(status, FL_OK);
    if (status == FL_OK) {
        CHECK_EQUAL(fl_recurrent_n_parameters(run.layer), run.net.n_parameters);
        CHECK_EQUAL(fl_recurrent_n_states(run.layer), 1 + run.net.states);
        CHECK_EQUAL(fl_recurrent_load(run.layer, run.parameters), FL_OK);
        case_results inference = run_inference(&run);
        run_training(&run, &inference);
        results_free(&inference);
    }
    case_end(&run);
    check_context("%s", "");
}

layer_case layer_case_random(uint64_t seed)
{
    static const char *const cells[] = {"lstm", "rnn", "rnn_relu", "lstm"};
    static const int32_t thread_counts[] = {2, 3, 7};
    generator from = {seed};
    int wide = random_below(&from, 8) == 0;
    layer_case one = {.seed = seed};
    one.config.cell = cells[random_below(&from, 4)];
    one.config.input_size = 1 + random_below(&from, wide ? 90 : 24);
    one.config.hidden_size = 1 + random_below(&from, wide ? 140 : 40);
    one.config.num_layers = 1 + random_below(&from, wide ? 2 : 4);
    one.config.bidirectional = (int32_t)random_below(&from, 2);
    one.config.bias = random_below(&from, 4) != 0;
    one.config.dtype = (int32_t)random_below(&from, 2);
    one.config.dropout = random_below(&from, 3) ? 0 : 0.1 * (double)(1 + random_below(&from, 8));
    one.n = random_below(&from, 4) ? 1 + random_below(&from, wide ? 36 : 12) : 1;
    one.steps = 1 + random_below(&from, wide ? 6 : 14);
    one.ragged = random_below(&from, 4) != 0;
    one.threads = thread_counts[random_below(&from, 3)];
    one.states_in = (int32_t)random_below(&from, 8);
    one.states_out = (int32_t)random_below(&from, 8);
    one.dstates_out = (int32_t)random_below(&from, 8);
    one.dstates_in = (int32_t)random_below(&from, 8);
    one.dy = random_below(&from, 5) != 0;
    one.dx = (int32_t)random_below(&from, 2);
    one.y = random_below(&from, 6) != 0;
    return one;
}

void layer_case_name(const layer_case *one, char *text, size_t size)
{
    const fl_recurrent_config *config = &one->config;
    snprintf(text, size,
             "seed %llu: %s%s input %lld hidden %lld layers %lld directions %d bias %d dropout %g, "
             "%lld sequences%s of %lld steps, %d threads",
             (unsigned long long)one->seed, config->cell,
             config->dtype == FL_FLOAT64 ? " float64" : "", (long long)config->input_size,
             (long long)config->hidden_size, (long long)config->num_layers,
             config->bidirectional ? 2 : 1, config->bias, config->dropout, (long long)one->n,
             one->ragged ? " (ragged)" : "", (long long)one->steps, one->threads);
}
