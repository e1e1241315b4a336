/* Every allocation of every call fails once: FL_ERR_NOMEM, outputs untouched, nothing leaked, and
 * the same call succeeds afterwards. */
#include <string.h>

#include "allocator.h"
#include "support.h"

enum { N = 3, STEPS = 5, INPUT = 4, HIDDEN = 6, LAYERS = 3, MOST_ALLOCATIONS = 50 };

typedef struct world {
    fl_recurrent_config config;
    test_layer made;
    fl_recurrent *layer;
    fl_tape *tape;
    fl_stream *stream;
    int64_t start[N], length[N];
    void *x, *y, *states[2], *gradients, *dx;
    size_t y_bytes;
    fl_forward call;
    fl_backward backward;
} world;

typedef fl_status (*operation)(world *of);

static fl_status create_layer(world *of)
{
    return fl_recurrent_create(&of->config, &of->layer);
}
static fl_status load_layer(world *of)
{
    return fl_recurrent_load(of->layer, of->made.parameters);
}
static fl_status create_tape(world *of)
{
    return fl_tape_create(&of->tape);
}
static fl_status infer(world *of)
{
    of->call.tape = NULL;
    return fl_recurrent_forward(of->layer, &of->call);
}
static fl_status train(world *of)
{
    of->call.tape = of->tape;
    return fl_recurrent_forward(of->layer, &of->call);
}
static fl_status go_back(world *of)
{
    of->backward.tape = of->tape;
    return fl_recurrent_backward(of->layer, &of->backward);
}
static fl_status create_stream(world *of)
{
    return fl_stream_create(of->made.layer, N, &of->stream);
}
static fl_status step_stream(world *of)
{
    return fl_stream_step(of->stream, of->x, of->y);
}
static fl_status dense_forward(world *of)
{
    return fl_dense_forward(FL_FLOAT32, N, INPUT, HIDDEN, of->x, of->made.parameters, NULL, of->y);
}
static fl_status dense_backward(world *of)
{
    return fl_dense_backward(FL_FLOAT32, N, INPUT, 2, of->x, of->made.parameters, of->x,
                             of->gradients, NULL, of->dx);
}

/* Fails at the first, second, ... allocation until it succeeds; the number of failures. `output` is
 * untouched by those, `kept` blocks remain after success. */
static int exhaust(world *of, operation run, const char *name, void *output, size_t bytes,
                   long kept)
{
    long live = allocator_live();
    memset(output, 0xFF, bytes);
    for (int nth = 1; nth < MOST_ALLOCATIONS; nth++) {
        check_context("%s, allocation %d", name, nth);
        allocator_fail_at(nth);
        fl_status status = run(of);
        int failed = allocator_has_failed();
        allocator_fail_at(0);
        CHECK_EQUAL(status, failed ? FL_ERR_NOMEM : FL_OK);
        if (!failed) {
            CHECK_EQUAL(allocator_live(), live + kept);
            check_context("%s", "");
            return nth - 1;
        }
        CHECK(is_untouched(output, bytes));
        CHECK(allocator_live() <= live);
    }
    CHECK(!"the call succeeds once memory is there");
    return -1;
}

static void world_begin(world *of)
{
    generator from = {1};
    double values[N * STEPS * INPUT];
    memset(of, 0, sizeof *of);
    of->config = (fl_recurrent_config){.cell = "lstm",
                                       .input_size = INPUT,
                                       .hidden_size = HIDDEN,
                                       .num_layers = LAYERS,
                                       .bias = 1,
                                       .dtype = FL_FLOAT32,
                                       .dropout = 0.2};
    of->made = test_layer_new(&of->config, 1);
    random_fill(&from, FL_FLOAT32, 1, values, N * STEPS * INPUT);
    of->x = reals_of(FL_FLOAT32, values, N * STEPS * INPUT);
    of->dx = reals_new(FL_FLOAT32, N * STEPS * INPUT);
    of->y_bytes = N * STEPS * HIDDEN * sizeof(float);
    of->y = guarded_new(of->y_bytes);
    of->gradients = reals_new(FL_FLOAT32, of->made.n_parameters);
    for (int64_t b = 0; b < N; b++) {
        of->start[b] = b * STEPS;
        of->length[b] = b + 2;
    }
    for (int i = 0; i < 2; i++)
        of->states[i] = reals_new(FL_FLOAT32, LAYERS * N * HIDDEN);
    of->call = (fl_forward){.x_rows = {N, of->start, of->length},
                            .x = of->x,
                            .x_total = N * STEPS,
                            .y_start = of->start,
                            .y = of->y,
                            .y_total = N * STEPS,
                            .states_out = of->states,
                            .n_threads = 1};
    of->backward = (fl_backward){.n = N,
                                 .parameters = of->made.parameters,
                                 .dy = of->y,
                                 .dy_start = of->start,
                                 .dy_total = N * STEPS,
                                 .gradients = of->gradients,
                                 .dx = of->dx,
                                 .dx_start = of->start,
                                 .dx_total = N * STEPS,
                                 .n_threads = 1};
}

static void world_end(world *of)
{
    fl_recurrent_destroy(of->layer);
    fl_tape_destroy(of->tape);
    fl_stream_destroy(of->stream);
    void *arrays[] = {of->x, of->y, of->dx, of->gradients, of->states[0], of->states[1]};
    for (int i = 0; i < 6; i++)
        guarded_free(arrays[i]);
    test_layer_free(&of->made);
}

static void test_calls(world *of)
{
    size_t gradients = (size_t)of->made.n_parameters * sizeof(float);
    CHECK(exhaust(of, create_layer, "create", &of->layer, sizeof of->layer, 3) == 3);
    CHECK(exhaust(of, load_layer, "load", of->y, of->y_bytes, 0) == 0);
    CHECK(exhaust(of, infer, "inference", of->y, of->y_bytes, 0) >= 1);
    long live = allocator_live();
    allocator_fail_at(1);
    CHECK_EQUAL(fl_tape_create(&of->tape), FL_ERR_NOMEM);
    allocator_fail_at(0);
    CHECK_EQUAL(allocator_live(), live);
    CHECK_EQUAL(create_tape(of), FL_OK);
    CHECK(exhaust(of, train, "training forward", of->y, of->y_bytes, 1) == 1);
    CHECK(exhaust(of, go_back, "backward", of->gradients, gradients, 1) == 1);
    CHECK(exhaust(of, create_stream, "stream", &of->stream, sizeof of->stream, 3) == 3);
    CHECK(exhaust(of, step_stream, "step", of->y, of->y_bytes, 0) == 0);
    CHECK(exhaust(of, dense_forward, "dense forward", of->y, of->y_bytes, 0) == 1);
    CHECK(exhaust(of, dense_backward, "dense backward", of->dx, N * INPUT * sizeof(float), 0) == 1);
}

/* A tape that cannot grow to a larger call holds none, and works again with memory. */
static void test_growing_tape(world *of)
{
    CHECK_EQUAL(train(of), FL_OK);
    for (int64_t b = 0; b < N; b++)
        of->length[b] = STEPS;
    memset(of->y, 0xFF, of->y_bytes);
    memset(of->gradients, 0xFF, (size_t)of->made.n_parameters * sizeof(float));
    allocator_fail_at(1);
    CHECK_EQUAL(train(of), FL_ERR_NOMEM);
    allocator_fail_at(0);
    CHECK(is_untouched(of->y, of->y_bytes));
    CHECK_EQUAL(go_back(of), FL_ERR_TAPE);
    CHECK(is_untouched(of->gradients, (size_t)of->made.n_parameters * sizeof(float)));
    CHECK_EQUAL(train(of), FL_OK);
    allocator_fail_at(1);
    CHECK_EQUAL(go_back(of), FL_ERR_NOMEM);
    allocator_fail_at(0);
    CHECK(is_untouched(of->gradients, (size_t)of->made.n_parameters * sizeof(float)));
    CHECK_EQUAL(go_back(of), FL_OK);
}

int main(void)
{
    long live = allocator_live();
    world of;
    world_begin(&of);
    test_calls(&of);
    test_growing_tape(&of);
    world_end(&of);
    CHECK_EQUAL(allocator_live(), live);
    return check_report();
}
