/* Streams: the bits of the whole sequence one step at a time; snapshots, resets, bad arguments. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "allocator.h"
#include "support.h"

/* A layer, its sequences (n, T) as rows of a forward call, and the output of that call. */
typedef struct walk {
    test_layer made;
    int64_t n, steps, state_count;
    int states;
    int64_t *start, *length;
    void *x, *y, *state[2];
} walk;

static void walk_begin(walk *of, const fl_recurrent_config *described, int64_t n, int64_t steps)
{
    fl_recurrent_config own = *described, *config = &own;
    own.batch_invariant |= fl_tiles_current() != NULL; /* there the bits are promised so alone */
    generator from = {31};
    int64_t input = config->input_size, hidden = config->hidden_size;
    memset(of, 0, sizeof *of);
    of->made = test_layer_new(config, 8);
    of->n = n;
    of->steps = steps;
    of->states = fl_recurrent_n_states(of->made.layer);
    of->state_count = config->num_layers * n * hidden;
    of->start = malloc((size_t)n * sizeof(int64_t));
    of->length = malloc((size_t)n * sizeof(int64_t));
    for (int64_t b = 0; b < n; b++) {
        of->start[b] = b * steps;
        of->length[b] = steps;
    }
    of->x = reals_new(config->dtype, n * steps * input);
    for (int64_t i = 0; i < n * steps * input; i++)
        real_put(config->dtype, of->x, i, random_real(&from, 1));
    of->y = reals_new(config->dtype, n * steps * hidden);
    for (int i = 0; i < of->states; i++)
        of->state[i] = reals_new(config->dtype, of->state_count);
    fl_forward call = {.x_rows = {n, of->start, of->length},
                       .x = of->x,
                       .x_total = n * steps,
                       .y_start = of->start,
                       .y = of->y,
                       .y_total = n * steps,
                       .states_out = of->state,
                       .n_threads = 1};
    CHECK_EQUAL(fl_recurrent_forward(of->made.layer, &call), FL_OK);
}

static void walk_end(walk *of)
{
    free(of->start);
    free(of->length);
    guarded_free(of->x);
    guarded_free(of->y);
    for (int i = 0; i < of->states; i++)
        guarded_free(of->state[i]);
    test_layer_free(&of->made);
}

/* Step t of every stream; 1 if the output has the bits of the forward call. */
static int step_matches(const walk *of, fl_stream *stream, int64_t t)
{
    const fl_recurrent_config *config = &of->made.config;
    size_t size = real_size(config->dtype), x_row = (size_t)config->input_size * size,
           y_row = (size_t)config->hidden_size * size;
    char *x = guarded_new((size_t)of->n * x_row), *y = guarded_new((size_t)of->n * y_row);
    int same = 1;
    for (int64_t b = 0; b < of->n; b++)
        memcpy(x + (size_t)b * x_row, (const char *)of->x + (size_t)(b * of->steps + t) * x_row,
               x_row);
    long count = allocator_count();
    CHECK_EQUAL(fl_stream_step(stream, x, y), FL_OK);
    CHECK_EQUAL(allocator_count(), count);
    for (int64_t b = 0; b < of->n; b++)
        same &= memcmp(y + (size_t)b * y_row,
                       (const char *)of->y + (size_t)(b * of->steps + t) * y_row, y_row) == 0;
    guarded_free(x);
    guarded_free(y);
    return same;
}

static void snapshot_new(const walk *of, void **states)
{
    for (int i = 0; i < of->states; i++)
        states[i] = reals_new(of->made.config.dtype, of->state_count);
}

static void snapshot_free(const walk *of, void **states)
{
    for (int i = 0; i < of->states; i++)
        guarded_free(states[i]);
}

static int same_states(const walk *of, void *const *a, void *const *b)
{
    int same = 1;
    for (int i = 0; i < of->states; i++)
        same &= memcmp(a[i], b[i], (size_t)of->state_count * real_size(of->made.config.dtype)) == 0;
    return same;
}

static void check_walk(const walk *of)
{
    fl_stream *stream;
    void *half[2], *end[2];
    int64_t middle = of->steps / 2;
    snapshot_new(of, half);
    snapshot_new(of, end);
    CHECK_EQUAL(fl_stream_create(of->made.layer, of->n, &stream), FL_OK);
    for (int64_t t = 0; t < of->steps; t++) {
        if (t == middle)
            CHECK_EQUAL(fl_stream_get(stream, half), FL_OK);
        CHECK(step_matches(of, stream, t));
    }
    CHECK_EQUAL(fl_stream_get(stream, end), FL_OK);
    CHECK(same_states(of, end, of->state));
    /* back to the snapshot, in this stream and in a fresh one */
    for (int round = 0; round < 2; round++) {
        CHECK_EQUAL(fl_stream_set(stream, (const void *const *)half), FL_OK);
        for (int64_t t = middle; t < of->steps; t++)
            CHECK(step_matches(of, stream, t));
        fl_stream_destroy(stream);
        CHECK_EQUAL(fl_stream_create(of->made.layer, of->n, &stream), FL_OK);
    }
    CHECK(step_matches(of, stream, 0));
    CHECK_EQUAL(fl_stream_reset(stream, -1), FL_OK);
    for (int64_t t = 0; t < of->steps; t++)
        CHECK(step_matches(of, stream, t));
    fl_stream_destroy(stream);
    snapshot_free(of, half);
    snapshot_free(of, end);
}

/* A reset of one stream zeroes its states and leaves the others alone. */
static void check_reset_of_one(const walk *of)
{
    const fl_recurrent_config *config = &of->made.config;
    fl_stream *stream;
    void *before[2], *after[2];
    int64_t which = of->n - 1;
    snapshot_new(of, before);
    snapshot_new(of, after);
    CHECK_EQUAL(fl_stream_create(of->made.layer, of->n, &stream), FL_OK);
    CHECK(step_matches(of, stream, 0));
    CHECK_EQUAL(fl_stream_get(stream, before), FL_OK);
    CHECK_EQUAL(fl_stream_reset(stream, which), FL_OK);
    CHECK_EQUAL(fl_stream_get(stream, after), FL_OK);
    for (int i = 0; i < of->states; i++)
        for (int64_t at = 0; at < of->state_count; at++)
            CHECK(real_at(config->dtype, after[i], at) ==
                  (at / config->hidden_size % of->n == which
                       ? 0
                       : real_at(config->dtype, before[i], at)));
    CHECK_EQUAL(fl_stream_reset(stream, of->n), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_stream_reset(stream, -2), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_stream_reset(stream, INT64_MIN), FL_ERR_ARGUMENT);
    fl_stream_destroy(stream);
    snapshot_free(of, before);
    snapshot_free(of, after);
}

static void run_walk(const fl_recurrent_config *config, int64_t n, int64_t steps)
{
    walk of;
    check_context("%s dtype %d input %lld hidden %lld layers %lld, %lld streams", config->cell,
                  config->dtype, (long long)config->input_size, (long long)config->hidden_size,
                  (long long)config->num_layers, (long long)n);
    walk_begin(&of, config, n, steps);
    check_walk(&of);
    check_reset_of_one(&of);
    walk_end(&of);
    check_context("%s", "");
}

static void test_bits(void)
{
    static const char *const cells[] = {"lstm", "rnn", "rnn_relu"};
    static const int64_t sizes[][4] = {/* input, hidden, layers, streams */
                                       {1, 1, 1, 1},   {3, 5, 2, 1},   {20, 16, 1, 2},
                                       {17, 33, 3, 3}, {40, 70, 2, 7}, {5, 129, 1, 1}};
    for (int cell = 0; cell < 3; cell++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++) {
                fl_recurrent_config config = {.cell = cells[cell],
                                              .input_size = sizes[s][0],
                                              .hidden_size = sizes[s][1],
                                              .num_layers = sizes[s][2],
                                              .bias = s % 2 == 0,
                                              .dtype = dtype};
                run_walk(&config, sizes[s][3], 6);
            }
}

/* Work for several threads. */
static void test_threads(void)
{
    fl_recurrent_config config = {.cell = "lstm",
                                  .input_size = 256,
                                  .hidden_size = 250,
                                  .num_layers = 2,
                                  .bias = 1,
                                  .dtype = FL_FLOAT32};
    for (int32_t threads = 1; threads < 8; threads += 3) {
        fl_set_num_threads(threads);
        run_walk(&config, 8, 4);
    }
    fl_set_num_threads(0);
}

static void test_without_output(void)
{
    fl_recurrent_config config = {
        .cell = "lstm", .input_size = 2, .hidden_size = 3, .num_layers = 1, .dtype = FL_FLOAT64};
    walk of;
    fl_stream *stream;
    walk_begin(&of, &config, 1, 2);
    CHECK_EQUAL(fl_stream_create(of.made.layer, 1, &stream), FL_OK);
    CHECK_EQUAL(fl_stream_step(stream, of.x, NULL), FL_OK);
    CHECK(step_matches(&of, stream, 1));
    fl_stream_destroy(stream);
    walk_end(&of);
}

static int create_status(const fl_recurrent *layer, int64_t n)
{
    fl_stream *stream = NULL;
    fl_status status = fl_stream_create(layer, n, &stream);
    int made = stream != NULL;
    fl_stream_destroy(stream);
    return made == (status == FL_OK) ? (int)status : 1;
}

static int create_refused(const fl_recurrent *layer, int64_t n)
{
    int status = create_status(layer, n);
    return status == FL_ERR_OVERFLOW || status == FL_ERR_NOMEM;
}

static void test_huge(void)
{
    fl_recurrent_config config = {
        .cell = "lstm", .input_size = 2, .hidden_size = 4, .num_layers = 1, .dtype = FL_FLOAT32};
    test_layer made = test_layer_new(&config, 1);
    for (int power = 44; power <= 62; power++) {
        int64_t n = (int64_t)1 << power;
        check_context("2^%d streams", power);
        CHECK_IN_CHILD(create_refused(made.layer, n));
        CHECK_IN_CHILD(create_refused(made.layer, n - 1));
        CHECK_IN_CHILD(create_refused(made.layer, n + 1));
    }
    check_context("2^63 - 1 streams");
    CHECK_IN_CHILD(create_refused(made.layer, INT64_MAX));
    check_context("%s", "");
    test_layer_free(&made);
}

static void test_arguments(void)
{
    fl_recurrent_config config = {
        .cell = "lstm", .input_size = 2, .hidden_size = 3, .num_layers = 2, .dtype = FL_FLOAT32};
    walk of;
    fl_stream *stream;
    void *states[2], *none[2] = {NULL, NULL};
    walk_begin(&of, &config, 2, 2);
    snapshot_new(&of, states);
    config.bidirectional = 1;
    test_layer both = test_layer_new(&config, 1);
    CHECK_EQUAL(fl_stream_create(of.made.layer, 2, &stream), FL_OK);
    CHECK_EQUAL(create_status(both.layer, 1), FL_ERR_ARGUMENT);
    CHECK_EQUAL(create_status(NULL, 1), FL_ERR_ARGUMENT);
    CHECK_EQUAL(create_status(of.made.layer, 0), FL_ERR_ARGUMENT);
    CHECK_EQUAL(create_status(of.made.layer, -1), FL_ERR_ARGUMENT);
    CHECK_EQUAL(create_status(of.made.layer, INT64_MIN), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_stream_step(NULL, of.x, of.y), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_stream_step(stream, NULL, of.y), FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_stream_create(of.made.layer, 1, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD((fl_stream_destroy(NULL), 1));
    CHECK_IN_CHILD(fl_stream_get(NULL, states) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_stream_get(stream, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_stream_get(stream, none) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_stream_set(NULL, (const void *const *)states) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_stream_set(stream, NULL) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_stream_set(stream, (const void *const *)none) == FL_ERR_ARGUMENT);
    CHECK_IN_CHILD(fl_stream_reset(NULL, -1) == FL_ERR_ARGUMENT);
    CHECK(step_matches(&of, stream, 0));
    fl_stream_destroy(stream);
    snapshot_free(&of, states);
    test_layer_free(&both);
    walk_end(&of);
}

int main(void)
{
    isa_or_skip();
    long live = allocator_live();
    test_bits();
    test_threads();
    test_without_output();
    test_arguments();
    test_huge();
    CHECK_EQUAL(allocator_live(), live);
    return check_report();
}
