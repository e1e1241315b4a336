/* Options of the recurrent layer (projections, layer normalisation, zoneout, recurrent dropout): in
 * float64 the gradient is the slope of the loss along a random direction of all parameters and
 * inputs; threads, and in inference streams, change no bit; every array of a call ends where memory
 * cannot be touched. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { N = 9, STEPS = 6, FURTHER_CELLS = 4 };
static const int64_t lengths[N] = {6, 2, 4, 1, 6, 5, 3, 6, 2};

typedef struct option {
    const char *name;
    int64_t proj_size, output_proj_size;
    double recurrent_dropout, zoneout_h, zoneout_c;
    int32_t layer_norm;
    const char *cells[FURTHER_CELLS]; /* beside lstm and peephole */
} option;
static const option options[] = {
    {.name = "projection", .proj_size = 5},
    {.name = "two projections", .proj_size = 3, .output_proj_size = 18},
    {.name = "layer_norm", .layer_norm = 1, .cells = {"gru", "gru_before", "fgr", "tlstm"}},
    {.name = "layer_norm, projection", .layer_norm = 1, .proj_size = 4},
    {.name = "zoneout", .zoneout_h = 0.2, .zoneout_c = 0.4, .cells = {"slstm", "fgr"}},
    {.name = "zoneout, projections",
     .zoneout_h = 0.2,
     .zoneout_c = 0.4,
     .proj_size = 18,
     .output_proj_size = 3,
     .cells = {"slstm"}},
    {.name = "zoneout of c", .zoneout_c = 0.4},
    {.name = "zoneout, layer_norm",
     .zoneout_h = 0.2,
     .zoneout_c = 0.4,
     .layer_norm = 1,
     .cells = {"fgr", "tlstm"}},
    {.name = "zoneout of h, layer_norm",
     .zoneout_h = 0.2,
     .layer_norm = 1,
     .cells = {"gru_before"}},
    {.name = "recurrent_dropout", .recurrent_dropout = 0.3},
    {.name = "everything",
     .proj_size = 5,
     .output_proj_size = 4,
     .recurrent_dropout = 0.3,
     .zoneout_h = 0.1,
     .zoneout_c = 0.3,
     .layer_norm = 1},
};

/* A layer, a ragged batch, and what its calls give. */
typedef struct problem {
    test_layer made;
    int32_t dtype, threads;
    int64_t rows, output; /* rows of the batch, values of one */
    int64_t start[N];
    void *x, *y, *dy, *dx, *gradients;
} problem;

static void begin(problem *of, const option *chosen, const char *cell, int32_t dtype,
                  int64_t hidden, int bidirectional)
{
    generator from = {77};
    fl_recurrent_config config = {.cell = cell,
                                  .input_size = 7,
                                  .hidden_size = hidden,
                                  .num_layers = 2,
                                  .bidirectional = bidirectional,
                                  .bias = 1,
                                  .dtype = dtype,
                                  .recurrent_dropout = chosen->recurrent_dropout,
                                  .proj_size = chosen->proj_size,
                                  .output_proj_size = chosen->output_proj_size,
                                  .zoneout_h = chosen->zoneout_h,
                                  .zoneout_c = chosen->zoneout_c,
                                  .layer_norm = chosen->layer_norm};
    memset(of, 0, sizeof *of);
    of->made = test_layer_new(&config, 5);
    of->dtype = dtype;
    of->threads = 1;
    for (int b = 0; b < N; of->rows += lengths[b++])
        of->start[b] = of->rows;
    of->output = fl_recurrent_output(of->made.layer) * (bidirectional ? 2 : 1);
    of->x = reals_new(dtype, of->rows * 7);
    of->dx = reals_new(dtype, of->rows * 7);
    of->y = reals_new(dtype, of->rows * of->output);
    of->dy = reals_new(dtype, of->rows * of->output);
    of->gradients = reals_new(dtype, of->made.n_parameters);
    for (int64_t i = 0; i < of->rows * 7; i++)
        real_put(dtype, of->x, i, random_real(&from, 1));
    for (int64_t i = 0; i < of->rows * of->output; i++)
        real_put(dtype, of->dy, i, random_real(&from, 1));
}

static void end(problem *of)
{
    guarded_free(of->x);
    guarded_free(of->dx);
    guarded_free(of->y);
    guarded_free(of->dy);
    guarded_free(of->gradients);
    test_layer_free(&of->made);
}

/* y, and with `tape` what the backward call needs. */
static void forward(problem *of, fl_tape *tape)
{
    fl_forward call = {.x_rows = {N, of->start, lengths},
                       .x = of->x,
                       .x_total = of->rows,
                       .y_start = of->start,
                       .y = of->y,
                       .y_total = of->rows,
                       .tape = tape,
                       .random_key = 11,
                       .n_threads = of->threads};
    CHECK_EQUAL(fl_recurrent_forward(of->made.layer, &call), FL_OK);
}

static void backward(problem *of, fl_tape *tape)
{
    fl_backward call = {.tape = tape,
                        .n = N,
                        .parameters = of->made.parameters,
                        .dy = of->dy,
                        .dy_start = of->start,
                        .dy_total = of->rows,
                        .gradients = of->gradients,
                        .dx = of->dx,
                        .dx_start = of->start,
                        .dx_total = of->rows,
                        .n_threads = of->threads};
    CHECK_EQUAL(fl_recurrent_backward(of->made.layer, &call), FL_OK);
}

/* sum(y dy) of a training call. */
static double loss(problem *of)
{
    fl_tape *tape;
    double sum = 0;
    CHECK_EQUAL(fl_tape_create(&tape), FL_OK);
    forward(of, tape);
    fl_tape_destroy(tape);
    for (int64_t i = 0; i < of->rows * of->output; i++)
        sum += real_at(of->dtype, of->y, i) * real_at(of->dtype, of->dy, i);
    return sum;
}

/* Move an array by `step` along the direction of generator `from`; returns the slope that
 * `gradient` gives along it. */
static double move(const problem *of, void *array, const void *gradient, int64_t count,
                   generator from, double step)
{
    double slope = 0;
    for (int64_t i = 0; i < count; i++) {
        double along = random_real(&from, 1);
        real_put(of->dtype, array, i, real_at(of->dtype, array, i) + step * along);
        slope += along * real_at(of->dtype, gradient, i);
    }
    return slope;
}

static double move_all(problem *of, double step)
{
    generator one = {3}, other = {4};
    double slope = move(of, of->made.parameters, of->gradients, of->made.n_parameters, one, step) +
                   move(of, of->x, of->dx, of->rows * 7, other, step);
    CHECK_EQUAL(fl_recurrent_load(of->made.layer, of->made.parameters), FL_OK);
    return slope;
}

static void check_slope(problem *of)
{
    const double step = 1e-6;
    double slope = move_all(of, step), above = loss(of);
    move_all(of, -2 * step);
    double below = loss(of), measured = (above - below) / (2 * step);
    move_all(of, step);
    CHECK_AT_MOST(fabs(slope - measured), 1e-6 * fmax(1, fabs(measured)));
}

/* y, dx and gradients, one after the other, in `threads` threads. */
static void *results(problem *of, int32_t threads, size_t *bytes)
{
    fl_tape *tape;
    size_t size = real_size(of->dtype), y = (size_t)(of->rows * of->output) * size,
           dx = (size_t)(of->rows * 7) * size, gradients = (size_t)of->made.n_parameters * size;
    of->threads = threads;
    CHECK_EQUAL(fl_tape_create(&tape), FL_OK);
    forward(of, tape);
    if (threads > 1) /* what is loaded since is nothing to a tape */
        CHECK_EQUAL(fl_recurrent_load(of->made.layer, of->gradients), FL_OK);
    backward(of, tape);
    CHECK_EQUAL(fl_recurrent_load(of->made.layer, of->made.parameters), FL_OK);
    fl_tape_destroy(tape);
    *bytes = y + dx + gradients;
    char *all = malloc(*bytes);
    memcpy(all, of->y, y);
    memcpy(all + y, of->dx, dx);
    memcpy(all + y + dx, of->gradients, gradients);
    return all;
}

static void check_threads(problem *of)
{
    size_t bytes;
    void *one = results(of, 1, &bytes), *three = results(of, 3, &bytes);
    CHECK(memcmp(one, three, bytes) == 0);
    free(one);
    free(three);
    of->threads = 1;
}

/* The first sequence step by step, in the bits of an inference call over all of them; a batch on
 * tiles has other ones. */
static void check_stream(problem *of)
{
    const char *isa = "";
    CHECK_EQUAL(fl_isa_name(&isa), FL_OK);
    if (strcmp(isa, "amx") == 0 && of->dtype == FL_FLOAT32)
        return;
    fl_stream *stream;
    size_t size = real_size(of->dtype);
    void *y = reals_new(of->dtype, of->output);
    forward(of, NULL);
    CHECK_EQUAL(fl_stream_create(of->made.layer, 1, &stream), FL_OK);
    for (int64_t t = 0; t < lengths[0]; t++) {
        CHECK_EQUAL(fl_stream_step(stream, (char *)of->x + (size_t)(t * 7) * size, y), FL_OK);
        CHECK(memcmp(y, (char *)of->y + (size_t)(t * of->output) * size,
                     (size_t)of->output * size) == 0);
    }
    fl_stream_destroy(stream);
    guarded_free(y);
}

static void run(const option *chosen, const char *cell, int32_t dtype, int64_t hidden,
                int bidirectional)
{
    problem of;
    check_context("%s, %s, %lld units, dtype %d, %d directions", chosen->name, cell,
                  (long long)hidden, dtype, 1 + bidirectional);
    begin(&of, chosen, cell, dtype, hidden, bidirectional);
    check_threads(&of);
    if (dtype == FL_FLOAT64)
        check_slope(&of);
    if (!bidirectional)
        check_stream(&of);
    guarded_check();
    end(&of);
}

static void test_options(void)
{
    static const int64_t sizes[] = {1, 5, 16, 33};
    for (size_t k = 0; k < sizeof options / sizeof options[0]; k++)
        for (int cell = -2; cell < FURTHER_CELLS; cell++) {
            const char *name = cell == -2   ? "lstm"
                               : cell == -1 ? "peephole"
                                            : options[k].cells[cell];
            for (int s = 0; name && s < 4; s++)
                for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++)
                    run(&options[k], name, dtype, sizes[s], (s + cell) & 1);
        }
}

static void test_what_does_not_go_together(void)
{
    fl_recurrent_config good = {.cell = "lstm", .input_size = 2, .hidden_size = 3, .num_layers = 1};
    fl_recurrent *layer = NULL;
    fl_recurrent_config config = good;
    config.zoneout_h = 1;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config.zoneout_h = NAN;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config = good;
    config.truncated = FL_TRUNCATED_AT_PEEPHOLES;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config.cell = "peephole";
    config.truncated = FL_TRUNCATED_AT_PEEPHOLES + 1;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config.truncated = -1;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config = good;
    config.cell = "rnn";
    config.truncated = FL_TRUNCATED;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config.truncated = FL_NOT_TRUNCATED;
    config.zoneout_c = 0.1;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config.zoneout_c = 0;
    config.recurrent_dropout = 0.1;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    CHECK(layer == NULL);
}

int main(void)
{
    isa_or_skip();
    test_options();
    test_what_does_not_go_together();
    return check_report();
}
