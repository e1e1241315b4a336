/* Convolutional LSTM (Shi et al., NeurIPS 2015): checks, memory, threads.
 *
 * Images are kept channels last, and the taps of a strip of pixels are unrolled (im2col) into
 * rows. A pixel is then to the step kernels of the recurrent layers what a sequence is there: row
 * of x times packed panels plus row of h times packed panels, gates in registers, the cell as the
 * epilogue. Only the peepholes differ from row to row. Backward is the same with the gates' taps
 * in reverse, a transposed convolution without scattered additions. A strip's rows stay in the L2
 * cache; unrolling costs a copied value to 4 hidden multiply-adds.
 *
 * Cost of a step: 8 hidden (in + hidden) taps pixels flops forward, twice that backward.
 *
 * A sequence is computed by one thread, the same way whichever it is. Gradients of the parameters
 * are summed in groups of sequences that the number of threads has no part in. */
#include "layers/convlstm.h"

#include <stdlib.h>
#include <string.h>

#include "base/fpenv.h"
#include "base/team.h"

enum {
    STRIP_BYTES = 1 << 18, /* of unrolled taps: a quarter of a usual L2 cache */
    SHORTEST_STRIP = 24,   /* pixels: tiles of full height */
    MOST_GROUPS = 16
};

/* a * b of sizes; -1 if either is, or if it does not fit: the arena refuses that. */
static int64_t times(int64_t a, int64_t b)
{
    int64_t product;
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? -1 : product;
}
static int64_t plus(int64_t a, int64_t b)
{
    int64_t sum;
    return a < 0 || b < 0 || __builtin_add_overflow(a, b, &sum) ? -1 : sum;
}

/* Pixels of the next strip when `left` remain. */
static int64_t conv_strip(int64_t left, int64_t most)
{
    return left < most ? left : most;
}

/* Row of a weight or bias that a packed column holds, -1 for padding. */
static int64_t conv_weight_row(const conv_plan *plan, int64_t column)
{
    int64_t lanes = plan->lanes, slots = plan->facts.slots;
    int64_t unit = column / (slots * lanes) * lanes + column % lanes;
    int64_t gate = plan->facts.x_gate[column / lanes % slots];
    return unit < plan->layer.hidden_channels ? gate * plan->layer.hidden_channels + unit : -1;
}

typedef struct conv_offsets {
    int64_t weight_h, bias, peephole, end; /* -1 where it does not fit */
} conv_offsets;

static conv_offsets conv_parameter_offsets(const fl_conv_lstm *layer)
{
    int64_t rows = times(4, layer->hidden_channels);
    int64_t taps = times(layer->kernel_height, layer->kernel_width);
    int64_t plane = times(layer->hidden_channels, times(layer->height, layer->width));
    conv_offsets at;
    at.weight_h = times(times(rows, taps), layer->in_channels);
    at.bias = plus(at.weight_h, times(times(rows, taps), layer->hidden_channels));
    at.peephole = layer->bias ? plus(at.bias, rows) : at.bias;
    at.end = layer->peephole ? plus(at.peephole, times(3, plane)) : at.peephole;
    return at;
}

#define FL_SUFFIX f32
#include "layers/convlstm_body.h"
#include "layers/convlstm_backward_body.h"
#undef FL_SUFFIX
#define FL_SUFFIX f64
#include "layers/convlstm_body.h"
#include "layers/convlstm_backward_body.h"
#undef FL_SUFFIX

/* ---- checks and sizes ---- */

static fl_status check_layer(const fl_conv_lstm *layer)
{
    const int64_t limit = (int64_t)1 << 31;
    const int64_t size[] = {layer->hidden_channels, layer->height, layer->width,
                            layer->kernel_height, layer->kernel_width};
    if ((layer->dtype != FL_FLOAT32 && layer->dtype != FL_FLOAT64) || layer->in_channels < 0)
        return FL_ERR_ARGUMENT;
    int64_t most = layer->in_channels;
    for (int i = 0; i < 5; i++) {
        if (size[i] < 1)
            return FL_ERR_ARGUMENT;
        most = size[i] > most ? size[i] : most;
    }
    if (most > limit)
        return FL_ERR_OVERFLOW;
    int64_t image =
        times(times(layer->height, layer->width), layer->in_channels + layer->hidden_channels);
    return image < 0 || conv_parameter_offsets(layer).end < 0 ? FL_ERR_OVERFLOW : FL_OK;
}

int64_t fl_conv_lstm_n_parameters(const fl_conv_lstm *layer)
{
    return layer && check_layer(layer) == FL_OK ? conv_parameter_offsets(layer).end : -1;
}

static int64_t strip_of(const conv_plan *plan, int64_t depth)
{
    int64_t budget = STRIP_BYTES / plan->size / (depth > 0 ? depth : 1);
    int64_t most = budget > SHORTEST_STRIP ? budget : SHORTEST_STRIP;
    return conv_strip(plan->pixels, most);
}

static fl_status find_cell(conv_plan *plan, const fl_isa *isa)
{
    const char *name = plan->layer.peephole ? "peephole" : "lstm";
    for (int i = 0; i < isa->f32.n_cells; i++)
        if (strcmp(isa->f32.cells[i].facts->name, name) == 0) {
            plan->cell = i;
            plan->facts = *isa->f32.cells[i].facts;
            return FL_OK;
        }
    return FL_ERR_UNKNOWN_CELL;
}

static fl_status make_plan(const fl_conv_lstm *layer, const fl_isa *isa, conv_plan *plan)
{
    fl_status status = check_layer(layer);
    if (status != FL_OK)
        return status;
    int is_double = layer->dtype == FL_FLOAT64;
    *plan = (conv_plan){.layer = *layer,
                        .lanes = is_double ? isa->f64.lanes : isa->f32.lanes,
                        .size = is_double ? sizeof(double) : sizeof(float)};
    plan->pixels = layer->height * layer->width;
    plan->taps = layer->kernel_height * layer->kernel_width;
    plan->plane = (layer->hidden_channels + plan->lanes - 1) / plan->lanes * plan->lanes;
    plan->gate_row = 4 * plan->plane;
    plan->top = (layer->kernel_height - 1) / 2;
    plan->left = (layer->kernel_width - 1) / 2;
    plan->depth_x = times(plan->taps, layer->in_channels);
    plan->depth_h = times(plan->taps, layer->hidden_channels);
    plan->depth_g = times(plan->taps, plan->gate_row);
    if (plan->depth_x < 0 || plan->depth_g < 0 || times(plan->pixels, plan->gate_row) < 0)
        return FL_ERR_OVERFLOW;
    plan->deepest = plan->depth_x > plan->depth_g ? plan->depth_x : plan->depth_g;
    plan->strip_forward =
        strip_of(plan, plan->depth_x > plan->depth_h ? plan->depth_x : plan->depth_h);
    plan->strip_backward = strip_of(plan, plan->deepest);
    return find_cell(plan, isa);
}

/* Values of `count` images of n sequences in the caller's arrays fit. */
static int images_fit(const conv_plan *plan, int64_t n, int64_t steps)
{
    int64_t images = times(times(n, plus(steps, 1)), plan->pixels);
    return times(times(images, plan->gate_row), plan->size) >= 0 &&
           times(times(images, plan->layer.in_channels), plan->size) >= 0;
}

static fl_status check_forward(const conv_plan *plan, const fl_conv_forward *call)
{
    if (call->n < 1 || call->steps < 1 || !call->length || !call->parameters || !call->y ||
        (!call->x && plan->layer.in_channels))
        return FL_ERR_ARGUMENT;
    if (!images_fit(plan, call->n, call->steps))
        return FL_ERR_OVERFLOW;
    for (int64_t b = 0; b < call->n; b++)
        if (call->length[b] < 1 || call->length[b] > call->steps)
            return FL_ERR_ARGUMENT;
    return FL_OK;
}

static int same_layer(const fl_conv_lstm *a, const fl_conv_lstm *b)
{
    return a->dtype == b->dtype && a->bias == b->bias && a->peephole == b->peephole &&
           a->in_channels == b->in_channels && a->hidden_channels == b->hidden_channels &&
           a->height == b->height && a->width == b->width && a->kernel_height == b->kernel_height &&
           a->kernel_width == b->kernel_width;
}

/* Threads for `tasks` of which all together have `steps` steps, and whether they are to be woken.
 */
typedef struct conv_team {
    int n_threads, wakes;
} conv_team;
static conv_team team_for(const conv_plan *plan, int requested, int64_t tasks, int64_t steps)
{
    int64_t work = times(
        times(times(plan->depth_x + plan->depth_h, plan->gate_row / plan->lanes), plan->pixels),
        steps);
    work = work < 0 ? INT64_MAX : work;
    int worth = fl_team_worth(work, fl_team_size(requested)),
        n_threads = worth < tasks ? worth : (int)tasks;
    return (conv_team){n_threads, fl_team_wakes(work, requested, n_threads)};
}

/* ---- tape ---- */

fl_status fl_conv_tape_create(fl_conv_tape **tape)
{
    if (!tape)
        return FL_ERR_ARGUMENT;
    *tape = calloc(1, sizeof **tape);
    return *tape ? FL_OK : FL_ERR_NOMEM;
}

void fl_conv_tape_destroy(fl_conv_tape *tape)
{
    if (!tape)
        return;
    fl_arena_release(&tape->arena);
    free(tape);
}

int64_t fl_conv_tape_bytes(const fl_conv_tape *tape)
{
    return tape ? (int64_t)tape->arena.capacity : 0;
}

/* Room for x (and gates in training) of `steps` images, h and c of `states`. */
static void frames_layout(const conv_plan *plan, int64_t steps, int64_t states, int training,
                          fl_arena *arena, conv_frames *frames)
{
    size_t size = (size_t)plan->size;
    int64_t in = plan->layer.in_channels, hidden = plan->layer.hidden_channels;
    frames->x = fl_arena_take(arena, times(times(steps, plan->pixels), in), size);
    frames->h = fl_arena_take(arena, times(times(states, plan->pixels), hidden), size);
    frames->c = fl_arena_take(arena, times(times(states, plan->pixels), plan->plane), size);
    frames->gates =
        training ? fl_arena_take(arena, times(times(steps, plan->pixels), plan->gate_row), size)
                 : NULL;
}

static void tape_layout(const conv_plan *plan, int64_t n, int64_t steps, fl_conv_tape *tape)
{
    tape->frames.length = fl_arena_take(&tape->arena, n, sizeof(int64_t));
    tape->frames.first = fl_arena_take(&tape->arena, n, sizeof(int64_t));
    frames_layout(plan, steps, steps + n, 1, &tape->arena, &tape->frames);
}

static fl_status prepare_tape(const conv_plan *plan, const fl_conv_forward *call, int64_t steps,
                              fl_conv_tape *tape)
{
    unsigned char *memory = tape->arena.memory;
    tape->filled = 0;
    tape->arena.memory = NULL;
    tape->arena.used = 0;
    tape->arena.overflow = 0;
    tape_layout(plan, call->n, steps, tape);
    tape->arena.memory = memory;
    fl_status status = fl_arena_commit(&tape->arena);
    if (status != FL_OK)
        return status;
    tape_layout(plan, call->n, steps, tape);
    int64_t first = 0;
    for (int64_t b = 0; b < call->n; b++) {
        tape->frames.length[b] = call->length[b];
        tape->frames.first[b] = first;
        first += call->length[b];
    }
    tape->layer = plan->layer;
    tape->n = call->n;
    tape->steps = call->steps;
    return FL_OK;
}

/* ---- forward ---- */

static void packed_layout(conv_run *run, fl_arena *arena)
{
    const conv_plan *plan = &run->plan;
    size_t size = (size_t)plan->size;
    run->weight_x = fl_arena_take(arena, times(plan->depth_x, plan->gate_row), size);
    run->weight_h = fl_arena_take(arena, times(plan->depth_h, plan->gate_row), size);
    run->bias = fl_arena_take(arena, plan->gate_row, size);
    run->peephole = fl_arena_take(
        arena, times(times(plan->pixels, plan->facts.n_peepholes), plan->plane), size);
}

static void forward_layout(conv_run *run, int n_threads, fl_arena *arena)
{
    const conv_plan *plan = &run->plan;
    size_t size = (size_t)plan->size;
    int64_t strips = times(n_threads, plan->strip_forward);
    packed_layout(run, arena);
    run->seen_x = fl_arena_take(arena, times(strips, plan->depth_x), size);
    run->seen_h = fl_arena_take(arena, times(strips, plan->depth_h), size);
    if (!run->training)
        frames_layout(plan, n_threads, 2 * (int64_t)n_threads, 0, arena, &run->frames);
}

static void pack(conv_run *run, const void *parameters)
{
    if (run->plan.layer.dtype == FL_FLOAT64)
        pack_parameters_f64(run, parameters);
    else
        pack_parameters_f32(run, parameters);
}

fl_status fl_conv_lstm_forward(const fl_conv_lstm *layer, const fl_conv_forward *call)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa || !layer || !call)
        return isa ? FL_ERR_ARGUMENT : status;
    conv_run run = {.isa = isa, .forward = call, .training = call->tape != NULL};
    fl_arena arena = {0};
    int64_t steps = 0;
    if ((status = make_plan(layer, isa, &run.plan)) != FL_OK ||
        (status = check_forward(&run.plan, call)) != FL_OK)
        return status;
    for (int64_t b = 0; b < call->n; b++)
        steps += call->length[b];
    const conv_team team = team_for(&run.plan, call->n_threads, call->n, steps);
    forward_layout(&run, team.n_threads, &arena);
    if ((status = fl_arena_commit(&arena)) != FL_OK)
        return status;
    if (run.training && (status = prepare_tape(&run.plan, call, steps, call->tape)) != FL_OK) {
        fl_arena_release(&arena);
        return status;
    }
    forward_layout(&run, team.n_threads, &arena);
    if (run.training)
        run.frames = call->tape->frames;
    pack(&run, call->parameters);
    fl_team_run(team.n_threads, team.wakes,
                layer->dtype == FL_FLOAT64 ? conv_forward_thread_f64 : conv_forward_thread_f32,
                &run);
    if (run.training)
        call->tape->filled = 1;
    fl_arena_release(&arena);
    return FL_OK;
}

/* ---- backward ---- */

static void backward_layout(conv_run *run, int n_threads, fl_arena *arena)
{
    const conv_plan *plan = &run->plan;
    size_t size = (size_t)plan->size;
    int64_t width = FL_BLOCK_VECTORS * plan->lanes, in = plan->layer.in_channels,
            hidden = plan->layer.hidden_channels, images = times(n_threads, plan->pixels);
    packed_layout(run, arena);
    run->weight_xt =
        fl_arena_take(arena, times((in + width - 1) / width * width, plan->depth_g), size);
    run->weight_ht =
        fl_arena_take(arena, times((hidden + width - 1) / width * width, plan->depth_g), size);
    run->seen_h =
        fl_arena_take(arena, times(times(n_threads, plan->strip_backward), plan->deepest), size);
    run->dy = fl_arena_take(arena, times(images, hidden), size);
    run->dx = fl_arena_take(arena, times(images, in), size);
    run->dh = fl_arena_take(arena, times(images, plan->plane), size);
    run->dc = fl_arena_take(arena, times(images, plan->plane), size);
    run->dweight_x = fl_arena_take(arena, times(run->groups, run->sum_x), size);
    run->dweight_h = fl_arena_take(arena, times(run->groups, run->sum_h), size);
    run->dbias = fl_arena_take(arena, times(run->groups, run->sum_bias), size);
    run->dpeephole = fl_arena_take(arena, times(run->groups, run->sum_peephole), size);
}

static void group_sizes(conv_run *run)
{
    const conv_plan *plan = &run->plan;
    run->groups = conv_strip(run->backward->n, MOST_GROUPS);
    run->sum_x = times(plan->depth_x, plan->gate_row);
    run->sum_h = times(plan->depth_h, plan->gate_row);
    run->sum_bias = plan->gate_row;
    run->sum_peephole = times(times(plan->pixels, plan->facts.n_peepholes), plan->plane);
}

static void pack_transposed(conv_run *run, const void *parameters)
{
    const conv_plan *plan = &run->plan;
    int64_t in = plan->layer.in_channels, hidden = plan->layer.hidden_channels,
            at = conv_parameter_offsets(&plan->layer).weight_h;
    if (plan->layer.dtype == FL_FLOAT64) {
        pack_transposed_weight_f64(plan, parameters, in, run->weight_xt);
        pack_transposed_weight_f64(plan, (const double *)parameters + at, hidden, run->weight_ht);
    } else {
        pack_transposed_weight_f32(plan, parameters, in, run->weight_xt);
        pack_transposed_weight_f32(plan, (const float *)parameters + at, hidden, run->weight_ht);
    }
}

static void go_back(conv_run *run, conv_team team)
{
    int is_double = run->plan.layer.dtype == FL_FLOAT64;
    pack(run, run->backward->parameters);
    pack_transposed(run, run->backward->parameters);
    fl_team_run(team.n_threads, team.wakes,
                is_double ? conv_backward_thread_f64 : conv_backward_thread_f32, run);
    fl_fpenv saved = fl_fpenv_enter();
    if (is_double)
        store_gradients_f64(run, run->backward->gradients);
    else
        store_gradients_f32(run, run->backward->gradients);
    fl_fpenv_leave(saved);
}

fl_status fl_conv_lstm_backward(const fl_conv_lstm *layer, const fl_conv_backward *call)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa || !layer || !call)
        return isa ? FL_ERR_ARGUMENT : status;
    if (!call->tape || !call->parameters || !call->gradients)
        return FL_ERR_ARGUMENT;
    const fl_conv_tape *tape = call->tape;
    if (!tape->filled || !same_layer(&tape->layer, layer) || tape->n != call->n ||
        tape->steps != call->steps)
        return FL_ERR_TAPE;
    conv_run run = {.isa = isa, .backward = call, .training = 1, .frames = tape->frames};
    fl_arena arena = {0};
    if ((status = make_plan(layer, isa, &run.plan)) != FL_OK)
        return status;
    group_sizes(&run);
    int64_t last = tape->n - 1, steps = tape->frames.first[last] + tape->frames.length[last];
    const conv_team team = team_for(&run.plan, call->n_threads, run.groups, steps);
    backward_layout(&run, team.n_threads, &arena);
    if ((status = fl_arena_commit(&arena)) != FL_OK)
        return status;
    backward_layout(&run, team.n_threads, &arena);
    go_back(&run, team);
    call->tape->filled = 0;
    fl_arena_release(&arena);
    return FL_OK;
}
