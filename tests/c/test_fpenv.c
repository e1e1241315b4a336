/* The caller's floating-point control and status register survives every public call bit by bit,
 * whatever it holds; the threads of the pool keep theirs too; inside a team denormals are flushed.
 */
#include "base/fpenv.h"

#include <string.h>

#include "base/team.h"
#include "support.h"

#if defined(__SSE2__)

enum { FLUSH = 0x8040, CONTROL = 0xFFC0 };

/* Default; flags raised; flush to zero; round up; round to zero with flags; round down and
 * denormals are zero. */
static const unsigned words[] = {0x1F80, 0x1FBF, 0x9FC0, 0x5F80, 0x7FA0, 0x3FC0};
enum { N_WORDS = sizeof words / sizeof words[0] };

#define CHECK_KEPT(call)                                                                           \
    do {                                                                                           \
        _mm_setcsr(word);                                                                          \
        fl_status status_ = (call);                                                                \
        unsigned after_ = _mm_getcsr();                                                            \
        _mm_setcsr(0x1F80);                                                                        \
        CHECK_EQUAL(status_, FL_OK);                                                               \
        check_equal(after_, word, "control and status word after " #call, __FILE__, __LINE__);     \
    } while (0)

typedef struct bench {
    test_layer made;
    fl_tape *tape;
    fl_stream *stream;
    void *x, *y, *gradients, *dx;
    int64_t start[9], length[9];
    fl_forward inference, training;
    fl_backward backward;
} bench;

enum { N = 9, STEPS = 12, INPUT = 70, HIDDEN = 70 }; /* work for three threads on every ISA */

static void bench_begin(bench *of, int32_t dtype)
{
    fl_recurrent_config config = {.cell = "lstm",
                                  .input_size = INPUT,
                                  .hidden_size = HIDDEN,
                                  .num_layers = 2,
                                  .bias = 1,
                                  .dtype = dtype,
                                  .dropout = 0.3};
    generator from = {5};
    static double values[N * STEPS * INPUT];
    memset(of, 0, sizeof *of);
    of->made = test_layer_new(&config, 3);
    random_fill(&from, dtype, 1, values, N * STEPS * INPUT);
    values[0] = 1e-310; /* denormal in float64, zero in float32 */
    values[1] = 1e-40;  /* denormal in float32 */
    values[2] = 1e300;
    of->x = reals_of(dtype, values, N * STEPS * INPUT);
    values[2] = 0;
    of->y = reals_new(dtype, N * STEPS * HIDDEN);
    of->dx = reals_new(dtype, N * STEPS * INPUT);
    of->gradients = reals_new(dtype, of->made.n_parameters);
    for (int64_t b = 0; b < N; b++) {
        of->start[b] = b * STEPS;
        of->length[b] = STEPS;
    }
    of->inference = (fl_forward){.x_rows = {N, of->start, of->length},
                                 .x = of->x,
                                 .x_total = N * STEPS,
                                 .y_start = of->start,
                                 .y = of->y,
                                 .y_total = N * STEPS,
                                 .n_threads = 3};
    CHECK_EQUAL(fl_tape_create(&of->tape), FL_OK);
    of->training = of->inference;
    of->training.tape = of->tape;
    of->backward = (fl_backward){.tape = of->tape,
                                 .n = N,
                                 .parameters = of->made.parameters,
                                 .dy = of->y,
                                 .dy_start = of->start,
                                 .dy_total = N * STEPS,
                                 .gradients = of->gradients,
                                 .dx = of->dx,
                                 .dx_start = of->start,
                                 .dx_total = N * STEPS,
                                 .n_threads = 3};
}

static void bench_end(bench *of)
{
    fl_tape_destroy(of->tape);
    test_layer_free(&of->made);
    guarded_free(of->x);
    guarded_free(of->y);
    guarded_free(of->dx);
    guarded_free(of->gradients);
}

static void check_layer_calls(bench *of, unsigned word)
{
    fl_recurrent *layer;
    fl_stream *stream;
    fl_recurrent_config zoned = of->made.config;
    int64_t bytes;
    zoned.zoneout_c = 0.3;
    CHECK_KEPT(fl_recurrent_create(&zoned, &layer));
    CHECK_KEPT(fl_recurrent_tape_bytes(layer, 7, 11, 71, 0, 3, &bytes));
    fl_recurrent_destroy(layer);
    CHECK_KEPT(fl_recurrent_create(&of->made.config, &layer));
    CHECK_KEPT(fl_recurrent_load(layer, of->made.parameters));
    CHECK_KEPT(fl_recurrent_forward(of->made.layer, &of->inference));
    CHECK_KEPT(fl_recurrent_forward(of->made.layer, &of->training));
    CHECK_KEPT(fl_recurrent_backward(of->made.layer, &of->backward));
    CHECK_KEPT(fl_stream_create(layer, N, &stream));
    CHECK_KEPT(fl_stream_step(stream, of->x, of->y));
    CHECK_KEPT(fl_stream_reset(stream, -1));
    fl_stream_destroy(stream);
    fl_recurrent_destroy(layer);
}

static void check_other_calls(bench *of, unsigned word)
{
    int32_t dtype = of->made.config.dtype;
    double sum = 0;
    CHECK_KEPT(fl_activate(dtype, FL_SIGMOID, of->x, of->y, N * HIDDEN));
    CHECK_KEPT(fl_activate(dtype, FL_TANH, of->x, of->y, N * HIDDEN));
    CHECK_KEPT(fl_sum_squares(dtype, of->x, N * HIDDEN, &sum));
    CHECK_KEPT(fl_sum_steps(dtype, 1, of->length, 1, of->x, STEPS, &sum));
    CHECK_KEPT(fl_dense_forward(dtype, N, HIDDEN, STEPS, of->x, of->made.parameters, NULL, of->y));
    CHECK_KEPT(fl_dense_backward(dtype, N, HIDDEN, STEPS, of->x, of->made.parameters, of->x,
                                 of->gradients, NULL, of->dx));
    for (int32_t rule = FL_SGD; rule <= FL_NADAM; rule++) {
        fl_optimizer_step step = {.dtype = dtype,
                                  .rule = rule,
                                  .parameters = of->dx,
                                  .gradients = of->x,
                                  .slot0 = of->y,
                                  .slot1 = of->gradients,
                                  .count = N * HIDDEN,
                                  .learning_rate = 0.1,
                                  .alpha = 0.9,
                                  .beta1 = 0.9,
                                  .beta2 = 0.99,
                                  .epsilon = 1e-8,
                                  .gradient_scale = 0.3,
                                  .step = 3,
                                  .mu = 0.9,
                                  .mu_next = 0.91,
                                  .mu_product = 0.8};
        CHECK_KEPT(fl_optimize(&step));
    }
}

static void note_word(void *argument, int thread, int n_threads)
{
    (void)n_threads;
    ((unsigned *)argument)[thread] = _mm_getcsr();
}

static void test_inside_team(void)
{
    unsigned seen[3] = {FLUSH, FLUSH, FLUSH};
    _mm_setcsr(0x5F80);
    fl_team_run(3, 1, note_word, seen);
    CHECK_EQUAL(_mm_getcsr(), 0x5F80);
    _mm_setcsr(0x1F80);
    for (int thread = 0; thread < 3; thread++)
        CHECK_EQUAL(seen[thread] & FLUSH, FLUSH);
}

/* Words of the runtime's threads, which the library borrows. */
static void pool_words(unsigned *seen)
{
#ifdef _OPENMP
#pragma omp parallel for num_threads(3) schedule(static)
#endif
    for (int i = 0; i < 3; i++)
        seen[i] = _mm_getcsr() & CONTROL;
}

static void test_pool(bench *of)
{
    unsigned before[3], after[3];
    pool_words(before);
    CHECK_EQUAL(fl_recurrent_forward(of->made.layer, &of->training), FL_OK);
    CHECK_EQUAL(fl_recurrent_backward(of->made.layer, &of->backward), FL_OK);
    pool_words(after);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(before[i] & FLUSH, 0);
        CHECK_EQUAL(after[i], before[i]);
    }
}

/* The numbers do not depend on the caller's rounding. */
static void test_rounding(bench *of)
{
    size_t size = N * STEPS * HIDDEN * real_size(of->made.config.dtype);
    void *near = guarded_new(size), *up = guarded_new(size);
    fl_recurrent *layer;
    for (int i = 0; i < 2; i++) {
        _mm_setcsr(i ? 0x5F80 : 0x1F80);
        CHECK_EQUAL(fl_recurrent_create(&of->made.config, &layer), FL_OK);
        CHECK_EQUAL(fl_recurrent_load(layer, of->made.parameters), FL_OK);
        of->inference.y = i ? up : near;
        CHECK_EQUAL(fl_recurrent_forward(layer, &of->inference), FL_OK);
        _mm_setcsr(0x1F80);
        fl_recurrent_destroy(layer);
    }
    CHECK(memcmp(near, up, size) == 0);
    of->inference.y = of->y;
    guarded_free(near);
    guarded_free(up);
}

int main(void)
{
    isa_or_skip();
    test_inside_team();
    for (int32_t dtype = FL_FLOAT32; dtype <= FL_FLOAT64; dtype++) {
        bench of;
        bench_begin(&of, dtype);
        test_pool(&of);
        test_rounding(&of);
        for (int i = 0; i < N_WORDS; i++) {
            check_context("dtype %d, word 0x%04x", dtype, words[i]);
            check_layer_calls(&of, words[i]);
            check_other_calls(&of, words[i]);
        }
        check_context("%s", "");
        bench_end(&of);
    }
    return check_report();
}

#else
int main(void)
{
    return CHECK_SKIPPED;
}
#endif
