/* Backward pass of the convolutional LSTM for one dtype; see convlstm.c. */
#include "layers/convlstm.h"

/* What one thread works on: a sequence, the sums of its group, its own scratch. */
typedef struct FL_T(conv_worker) {
    const conv_run *run;
    FL_T(conv_sequence) of;
    int64_t b, steps;
    real *seen; /* unrolled taps of the gates, of x or of h */
    real *dy, *dx, *dh, *dc;
    real *dweight_x, *dweight_h, *dbias, *dpeephole;
} FL_T(conv_worker);

/* c (rows, columns) = init + the gates that reach the pixels in `seen`, times packed weights. */
static void FL_T(gather_gates)(const FL_T(conv_worker) * w, int64_t rows, int64_t columns,
                               const real *weight_t, const real *init, real *c, int64_t c_row)
{
    const conv_plan *plan = &w->run->plan;
    int64_t width = FL_BLOCK_VECTORS * plan->lanes;
    FL_T(fl_gemm)
    gemm = {.rows = rows,
            .depth = plan->depth_g,
            .columns = columns,
            .block_end = (columns + width - 1) / width,
            .a = w->seen,
            .a_row = plan->depth_g,
            .a_depth = 1,
            .b = weight_t,
            .b_block = width * plan->depth_g,
            .b_depth = width,
            .vectors = FL_BLOCK_VECTORS,
            .init = init,
            .init_row = c_row,
            .c = c,
            .c_row = c_row};
    w->run->isa->FL_SUFFIX.gemm(&gemm);
}

/* sums (depth, gate_row) += a^T (depth, rows) times the gates of `rows` pixels. */
static void FL_T(add_outer)(const conv_run *run, int64_t rows, int64_t depth, const real *a,
                            int64_t a_row, int64_t a_depth, const real *gates, real *sums)
{
    const conv_plan *plan = &run->plan;
    FL_T(fl_gemm)
    gemm = {.rows = depth,
            .depth = rows,
            .columns = plan->gate_row,
            .block_end = plan->plane / plan->lanes,
            .a = a,
            .a_row = a_row,
            .a_depth = a_depth,
            .b = gates,
            .b_block = FL_BLOCK_VECTORS * plan->lanes,
            .b_depth = plan->gate_row,
            .vectors = FL_BLOCK_VECTORS,
            .init = sums,
            .init_row = plan->gate_row,
            .c = sums,
            .c_row = plan->gate_row};
    run->isa->FL_SUFFIX.gemm(&gemm);
}

/* dpeephole += derivative of step t, whose gates have been turned into gradients. */
static void FL_T(add_peepholes)(const FL_T(conv_worker) * w, int64_t t)
{
    const conv_plan *plan = &w->run->plan;
    const int64_t lanes = plan->lanes, plane = plan->plane, count = plan->facts.n_peepholes;
    const real *gates = FL_T(frame_gates)(plan, &w->of, t);
    for (int64_t i = 0; i < count; i++) {
        const fl_peephole *peephole = &plan->facts.peephole[i];
        const real *c = FL_T(frame_c)(plan, &w->of, t + peephole->current);
        for (int64_t p = 0; p < plan->pixels; p++) {
            real *sum = w->dpeephole + (p * count + i) * plane;
            const real *gate = gates + p * plan->gate_row + peephole->slot * lanes;
            for (int64_t u = 0; u < plane; u++)
                sum[u] +=
                    gate[u / lanes * plan->facts.slots * lanes + u % lanes] * c[p * plane + u];
        }
    }
}

/* Gradients of the parameters += those of step t. */
static void FL_T(add_gradients)(const FL_T(conv_worker) * w, int64_t t)
{
    static const real one = 1;
    const conv_plan *plan = &w->run->plan;
    const fl_conv_lstm *layer = &plan->layer;
    const real *gates = FL_T(frame_gates)(plan, &w->of, t);
    int64_t rows;
    for (int64_t first = 0; first < plan->pixels; first += rows) {
        const real *of_strip = gates + first * plan->gate_row;
        rows = conv_strip(plan->pixels - first, plan->strip_backward);
        FL_T(see)(layer, FL_T(frame_x)(plan, &w->of, t), layer->in_channels, plan->top, plan->left,
                  first, rows, w->seen);
        FL_T(add_outer)(w->run, rows, plan->depth_x, w->seen, 1, plan->depth_x, of_strip,
                        w->dweight_x);
        FL_T(see)(layer, FL_T(frame_h)(plan, &w->of, t), layer->hidden_channels, plan->top,
                  plan->left, first, rows, w->seen);
        FL_T(add_outer)(w->run, rows, plan->depth_h, w->seen, 1, plan->depth_h, of_strip,
                        w->dweight_h);
        FL_T(add_outer)(w->run, rows, 1, &one, 0, 0, of_strip, w->dbias);
    }
    FL_T(add_peepholes)(w, t);
}

/* dx of step t for pixels [first, first + rows), whose gates `seen` holds. */
static void FL_T(strip_dx)(const FL_T(conv_worker) * w, int64_t first, int64_t rows)
{
    const int64_t in = w->run->plan.layer.in_channels;
    if (w->run->backward->dx)
        FL_T(gather_gates)(w, rows, in, w->run->weight_xt, NULL, w->dx + first * in, in);
}

static void FL_T(store_dx)(const FL_T(conv_worker) * w, int64_t t)
{
    const fl_conv_backward *call = w->run->backward;
    const int64_t in = w->run->plan.layer.in_channels, pixels = w->run->plan.pixels;
    if (call->dx)
        FL_T(channels_first)(w->dx, in, in, pixels,
                             (real *)call->dx + (w->b * call->steps + t) * in * pixels);
}

static void FL_T(see_gates)(const FL_T(conv_worker) * w, int64_t t, int64_t first, int64_t rows)
{
    const conv_plan *plan = &w->run->plan;
    const fl_conv_lstm *layer = &plan->layer;
    FL_T(see)(layer, FL_T(frame_gates)(plan, &w->of, t), plan->gate_row,
              layer->kernel_height - 1 - plan->top, layer->kernel_width - 1 - plan->left, first,
              rows, w->seen);
}

/* Gates of step t turned into gradients, dc into that before the step, and dx of step t + 1. */
static void FL_T(step_back)(const FL_T(conv_worker) * w, int64_t t)
{
    const conv_run *run = w->run;
    const conv_plan *plan = &run->plan;
    const int64_t plane = plan->plane, hidden = plan->layer.hidden_channels;
    const int64_t panels = plane / plan->lanes;
    const int has_next = t + 1 < w->steps;
    FL_T(fl_backstep)
    s = {.units = hidden,
         .block_end = (panels + FL_BLOCK_VECTORS - 1) / FL_BLOCK_VECTORS,
         .dgates_next = w->seen,
         .weight_t = run->weight_ht,
         .dgates_next_row = plan->depth_g,
         .depth = has_next ? plan->depth_g : 0,
         .dy_row = hidden,
         .dh_row = plane,
         .dstate_row = plane,
         .state_plane = plane,
         .peephole_row = plan->facts.n_peepholes * plane,
         .state_prev_row = plane,
         .state_row = plane,
         .gates_row = plan->gate_row};
    for (int64_t first = 0; first < plan->pixels; first += s.rows) {
        s.rows = conv_strip(plan->pixels - first, plan->strip_backward);
        if (has_next) {
            FL_T(see_gates)(w, t + 1, first, s.rows);
            FL_T(strip_dx)(w, first, s.rows);
        }
        s.dy = run->backward->dy ? w->dy + first * hidden : NULL;
        s.dh = w->dh + first * plane;
        s.dstate = w->dc + first * plane;
        s.peephole = (real *)run->peephole + first * s.peephole_row;
        s.state_prev = FL_T(frame_c)(plan, &w->of, t) + first * plane;
        s.state = FL_T(frame_c)(plan, &w->of, t + 1) + first * plane;
        s.gates = FL_T(frame_gates)(plan, &w->of, t) + first * plan->gate_row;
        run->isa->FL_SUFFIX.cells[plan->cell].backward(&s);
    }
    if (has_next)
        FL_T(store_dx)(w, t + 1);
}

/* dx of the first step, and the gradient of the initial h. */
static void FL_T(leave_sequence)(const FL_T(conv_worker) * w)
{
    const conv_run *run = w->run;
    const conv_plan *plan = &run->plan;
    const int64_t hidden = plan->layer.hidden_channels, plane = plan->plane;
    const int64_t image = w->b * hidden * plan->pixels;
    int64_t rows;
    for (int64_t first = 0; first < plan->pixels; first += rows) {
        rows = conv_strip(plan->pixels - first, plan->strip_backward);
        real *dh = w->dh + first * plane;
        FL_T(see_gates)(w, 0, first, rows);
        FL_T(strip_dx)(w, first, rows);
        FL_T(gather_gates)(w, rows, hidden, run->weight_ht, dh, dh, plane);
    }
    FL_T(store_dx)(w, 0);
    if (run->backward->dh_in)
        FL_T(channels_first)(w->dh, plane, hidden, plan->pixels,
                             (real *)run->backward->dh_in + image);
    if (run->backward->dc_in)
        FL_T(channels_first)(w->dc, plane, hidden, plan->pixels,
                             (real *)run->backward->dc_in + image);
}

static void FL_T(conv_backward_sequence)(const FL_T(conv_worker) * w)
{
    const conv_plan *plan = &w->run->plan;
    const fl_conv_backward *call = w->run->backward;
    const int64_t hidden = plan->layer.hidden_channels, pixels = plan->pixels;
    const int64_t image = hidden * pixels;
    const real *dh = call->dh_out, *dc = call->dc_out, *dy = call->dy;
    FL_T(channels_last)(dh ? dh + w->b * image : NULL, hidden, pixels, plan->plane, w->dh);
    FL_T(channels_last)(dc ? dc + w->b * image : NULL, hidden, pixels, plan->plane, w->dc);
    for (int64_t t = w->steps; t-- > 0;) {
        if (dy)
            FL_T(channels_last)(dy + (w->b * call->steps + t) * image, hidden, pixels, hidden,
                                w->dy);
        FL_T(step_back)(w, t);
        FL_T(add_gradients)(w, t);
    }
    FL_T(leave_sequence)(w);
}

/* One group: sequences g, g + groups, ..., their gradients summed in this order. */
static void FL_T(conv_backward_group)(const conv_run *run, int64_t g, int thread)
{
    const conv_plan *plan = &run->plan;
    const int64_t pixels = plan->pixels, rows = pixels * plan->plane;
    FL_T(conv_worker)
    w = {.run = run,
         .seen = (real *)run->seen_h + thread * plan->strip_backward * plan->deepest,
         .dy = (real *)run->dy + thread * pixels * plan->layer.hidden_channels,
         .dx = (real *)run->dx + thread * pixels * plan->layer.in_channels,
         .dh = (real *)run->dh + thread * rows,
         .dc = (real *)run->dc + thread * rows,
         .dweight_x = (real *)run->dweight_x + g * run->sum_x,
         .dweight_h = (real *)run->dweight_h + g * run->sum_h,
         .dbias = (real *)run->dbias + g * run->sum_bias,
         .dpeephole = (real *)run->dpeephole + g * run->sum_peephole};
    memset(w.dweight_x, 0, (size_t)run->sum_x * sizeof(real));
    memset(w.dweight_h, 0, (size_t)run->sum_h * sizeof(real));
    memset(w.dbias, 0, (size_t)run->sum_bias * sizeof(real));
    memset(w.dpeephole, 0, (size_t)run->sum_peephole * sizeof(real));
    for (w.b = g; w.b < run->backward->n; w.b += run->groups) {
        w.of = FL_T(sequence_of)(run, w.b, thread);
        w.steps = run->frames.length[w.b];
        FL_T(conv_backward_sequence)(&w);
    }
}

static void FL_T(conv_backward_thread)(void *argument, int thread, int n_threads)
{
    conv_run *run = argument;
    int64_t g;
    (void)n_threads;
    while ((g = atomic_fetch_add(&run->next, 1)) < run->groups)
        FL_T(conv_backward_group)(run, g, thread);
}

/* ---- sums of all groups, in the layout of the parameters ---- */

static void FL_T(add_groups)(real *sums, int64_t count, int64_t groups)
{
    for (int64_t g = 1; g < groups; g++)
        for (int64_t i = 0; i < count; i++)
            sums[i] += sums[g * count + i];
}

/* weight (4 * hidden, channels, taps) = sums (taps, channels, gate_row). */
static void FL_T(unpack_weight)(const conv_plan *plan, const real *sums, int64_t channels,
                                real *weight)
{
    for (int64_t k = 0; k < plan->taps; k++)
        for (int64_t c = 0; c < channels; c++, sums += plan->gate_row)
            for (int64_t column = 0; column < plan->gate_row; column++) {
                int64_t row = conv_weight_row(plan, column);
                if (row >= 0)
                    weight[(row * channels + c) * plan->taps + k] = sums[column];
            }
}

static void FL_T(store_gradients)(const conv_run *run, real *gradients)
{
    const conv_plan *plan = &run->plan;
    const fl_conv_lstm *layer = &plan->layer;
    const int64_t hidden = layer->hidden_channels, count = plan->facts.n_peepholes;
    conv_offsets at = conv_parameter_offsets(layer);
    FL_T(add_groups)(run->dweight_x, run->sum_x, run->groups);
    FL_T(add_groups)(run->dweight_h, run->sum_h, run->groups);
    FL_T(add_groups)(run->dbias, run->sum_bias, run->groups);
    FL_T(add_groups)(run->dpeephole, run->sum_peephole, run->groups);
    FL_T(unpack_weight)(plan, run->dweight_x, layer->in_channels, gradients);
    FL_T(unpack_weight)(plan, run->dweight_h, hidden, gradients + at.weight_h);
    for (int64_t column = 0; layer->bias && column < plan->gate_row; column++)
        if (conv_weight_row(plan, column) >= 0)
            gradients[at.bias + conv_weight_row(plan, column)] = ((real *)run->dbias)[column];
    for (int64_t i = 0; i < count; i++)
        FL_T(channels_first)((real *)run->dpeephole + i * plan->plane, count * plan->plane, hidden,
                             plan->pixels, gradients + at.peephole + i * hidden * plan->pixels);
}
