/* Convolutional LSTM for one dtype: packing and the forward pass; see convlstm.c. */
#include "layers/convlstm.h"

/* to (pixels, row) = the channels of an image (channels, pixels); the rest of a row is zero.
 * `image` may be NULL: zero. */
static void FL_T(channels_last)(const real *image, int64_t channels, int64_t pixels, int64_t row,
                                real *to)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < row; c++)
            to[p * row + c] = image && c < channels ? image[c * pixels + p] : 0;
}

/* image (channels, pixels) = the first channels of rows (pixels, row). */
static void FL_T(channels_first)(const real *rows, int64_t row, int64_t channels, int64_t pixels,
                                 real *image)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t p = 0; p < pixels; p++)
            image[c * pixels + p] = rows[p * row + c];
}

/* to (rows, taps, channels) = what the taps of pixels [first, first + rows) see of an image
 * (height, width, channels), the first tap `top` and `left` before the pixel; outside is zero. */
static void FL_T(see)(const fl_conv_lstm *layer, const real *image, int64_t channels, int64_t top,
                      int64_t left, int64_t first, int64_t rows, real *to)
{
    const int64_t width = layer->width, taps = layer->kernel_width;
    for (int64_t p = first; p < first + rows; p++) {
        int64_t x = p % width - left;
        int64_t begin = x < 0 ? -x : 0, end = width - x < taps ? width - x : taps;
        for (int64_t k = 0; k < layer->kernel_height; k++, to += taps * channels) {
            int64_t y = p / width - top + k;
            if (y < 0 || y >= layer->height) {
                memset(to, 0, (size_t)(taps * channels) * sizeof(real));
                continue;
            }
            memset(to, 0, (size_t)(begin * channels) * sizeof(real));
            memcpy(to + begin * channels, image + (y * width + x + begin) * channels,
                   (size_t)((end - begin) * channels) * sizeof(real));
            memset(to + end * channels, 0, (size_t)((taps - end) * channels) * sizeof(real));
        }
    }
}

/* ---- packing ---- */

/* packed (panels, taps, channels, slots, lanes) of weight (4 * hidden, channels, taps). */
static void FL_T(pack_weight)(const conv_plan *plan, const real *weight, int64_t channels,
                              real *packed)
{
    const int64_t width = FL_BLOCK_VECTORS * plan->lanes, taps = plan->taps;
    for (int64_t column = 0; column < plan->gate_row; column++) {
        int64_t row = conv_weight_row(plan, column);
        real *to = packed + column / width * width * taps * channels + column % width;
        for (int64_t k = 0; k < taps; k++)
            for (int64_t c = 0; c < channels; c++, to += width)
                *to = row >= 0 ? weight[(row * channels + c) * taps + k] : 0;
    }
}

/* packed (blocks, taps, gate_row, width) of the same weight, columns its channels and the taps in
 * reverse: where a pixel's gates go to, seen from there. */
static void FL_T(pack_transposed_weight)(const conv_plan *plan, const real *weight,
                                         int64_t channels, real *packed)
{
    const int64_t width = FL_BLOCK_VECTORS * plan->lanes, taps = plan->taps;
    for (int64_t first = 0; first < channels; first += width)
        for (int64_t k = taps; k-- > 0;)
            for (int64_t column = 0; column < plan->gate_row; column++) {
                int64_t row = conv_weight_row(plan, column);
                for (int64_t c = first; c < first + width; c++)
                    *packed++ =
                        row >= 0 && c < channels ? weight[(row * channels + c) * taps + k] : 0;
            }
}

static void FL_T(pack_parameters)(const conv_run *run, const real *parameters)
{
    const conv_plan *plan = &run->plan;
    const fl_conv_lstm *layer = &plan->layer;
    conv_offsets at = conv_parameter_offsets(layer);
    FL_T(pack_weight)(plan, parameters, layer->in_channels, run->weight_x);
    FL_T(pack_weight)(plan, parameters + at.weight_h, layer->hidden_channels, run->weight_h);
    for (int64_t column = 0; column < plan->gate_row; column++) {
        int64_t row = conv_weight_row(plan, column);
        ((real *)run->bias)[column] = layer->bias && row >= 0 ? parameters[at.bias + row] : 0;
    }
    for (int i = 0; i < plan->facts.n_peepholes; i++)
        for (int64_t p = 0; p < plan->pixels; p++)
            for (int64_t u = 0; u < plan->plane; u++)
                ((real *)run->peephole)[(p * plan->facts.n_peepholes + i) * plan->plane + u] =
                    u < layer->hidden_channels
                        ? parameters[at.peephole + (i * layer->hidden_channels + u) * plan->pixels +
                                     p]
                        : 0;
}

/* ---- frames ---- */

/* The frames of one sequence. Step t turns h and c of frame t into those of frame t + 1. */
typedef struct FL_T(conv_sequence) {
    real *x, *h, *c, *gates;
    int training;
} FL_T(conv_sequence);

static FL_T(conv_sequence) FL_T(sequence_of)(const conv_run *run, int64_t b, int thread)
{
    const conv_plan *plan = &run->plan;
    const conv_frames *all = &run->frames;
    int64_t steps = run->training ? all->first[b] : thread;
    int64_t states = run->training ? all->first[b] + b : 2 * thread;
    return (FL_T(conv_sequence)){
        .x = (real *)all->x + steps * plan->pixels * plan->layer.in_channels,
        .h = (real *)all->h + states * plan->pixels * plan->layer.hidden_channels,
        .c = (real *)all->c + states * plan->pixels * plan->plane,
        .gates = run->training ? (real *)all->gates + steps * plan->pixels * plan->gate_row : NULL,
        .training = run->training};
}

static real *FL_T(frame_x)(const conv_plan *plan, const FL_T(conv_sequence) * of, int64_t t)
{
    return of->x + (of->training ? t : 0) * plan->pixels * plan->layer.in_channels;
}
static real *FL_T(frame_h)(const conv_plan *plan, const FL_T(conv_sequence) * of, int64_t t)
{
    return of->h + (of->training ? t : t & 1) * plan->pixels * plan->layer.hidden_channels;
}
static real *FL_T(frame_c)(const conv_plan *plan, const FL_T(conv_sequence) * of, int64_t t)
{
    return of->c + (of->training ? t : t & 1) * plan->pixels * plan->plane;
}
static real *FL_T(frame_gates)(const conv_plan *plan, const FL_T(conv_sequence) * of, int64_t t)
{
    return of->gates + t * plan->pixels * plan->gate_row;
}

/* ---- forward ---- */

/* Frames t of x, h and c -> h and c of frame t + 1. */
static void FL_T(conv_step)(const conv_run *run, const FL_T(conv_sequence) * of, int64_t t,
                            int thread)
{
    const conv_plan *plan = &run->plan;
    const fl_conv_lstm *layer = &plan->layer;
    const FL_T(fl_kernels) *kernels = &run->isa->FL_SUFFIX;
    real *seen_x = (real *)run->seen_x + thread * plan->strip_forward * plan->depth_x;
    real *seen_h = (real *)run->seen_h + thread * plan->strip_forward * plan->depth_h;
    FL_T(fl_step)
    s = {.units = layer->hidden_channels,
         .block_end = plan->plane / plan->lanes,
         .init = run->bias,
         .x = seen_x,
         .weight_x = run->weight_x,
         .x_row = plan->depth_x,
         .x_depth = plan->depth_x,
         .h_prev = seen_h,
         .weight_h = run->weight_h,
         .h_prev_row = plan->depth_h,
         .h_depth = plan->depth_h,
         .peephole_row = plan->facts.n_peepholes * plan->plane,
         .state_prev_row = plan->plane,
         .state_row = plan->plane,
         .state_plane = plan->plane,
         .h_row = layer->hidden_channels,
         .saved_row = plan->gate_row};
    for (int64_t first = 0; first < plan->pixels; first += s.rows) {
        s.rows = conv_strip(plan->pixels - first, plan->strip_forward);
        FL_T(see)(layer, FL_T(frame_x)(plan, of, t), layer->in_channels, plan->top, plan->left,
                  first, s.rows, seen_x);
        FL_T(see)(layer, FL_T(frame_h)(plan, of, t), layer->hidden_channels, plan->top, plan->left,
                  first, s.rows, seen_h);
        s.peephole = (real *)run->peephole + first * s.peephole_row;
        s.state_prev = FL_T(frame_c)(plan, of, t) + first * plan->plane;
        s.state = FL_T(frame_c)(plan, of, t + 1) + first * plan->plane;
        s.h = FL_T(frame_h)(plan, of, t + 1) + first * s.h_row;
        s.saved = of->training ? FL_T(frame_gates)(plan, of, t) + first * plan->gate_row : NULL;
        kernels->cells[plan->cell].forward(&s);
    }
}

static void FL_T(conv_forward_sequence)(const conv_run *run, int64_t b, int thread)
{
    const conv_plan *plan = &run->plan;
    const fl_conv_forward *call = run->forward;
    const int64_t in = plan->layer.in_channels, hidden = plan->layer.hidden_channels,
                  pixels = plan->pixels, steps = call->length[b];
    FL_T(conv_sequence) of = FL_T(sequence_of)(run, b, thread);
    const real *h = call->h_in, *c = call->c_in, *x = call->x;
    FL_T(channels_last)(h ? h + b * hidden * pixels : NULL, hidden, pixels, hidden, of.h);
    FL_T(channels_last)(c ? c + b * hidden * pixels : NULL, hidden, pixels, plan->plane, of.c);
    for (int64_t t = 0; t < steps; t++) {
        int64_t image = b * call->steps + t;
        if (in)
            FL_T(channels_last)(x + image * in * pixels, in, pixels, in,
                                FL_T(frame_x)(plan, &of, t));
        FL_T(conv_step)(run, &of, t, thread);
        FL_T(channels_first)(FL_T(frame_h)(plan, &of, t + 1), hidden, hidden, pixels,
                             (real *)call->y + image * hidden * pixels);
    }
    if (call->h_out)
        FL_T(channels_first)(FL_T(frame_h)(plan, &of, steps), hidden, hidden, pixels,
                             (real *)call->h_out + b * hidden * pixels);
    if (call->c_out)
        FL_T(channels_first)(FL_T(frame_c)(plan, &of, steps), plan->plane, hidden, pixels,
                             (real *)call->c_out + b * hidden * pixels);
}

static void FL_T(conv_forward_thread)(void *argument, int thread, int n_threads)
{
    conv_run *run = argument;
    int64_t b;
    (void)n_threads;
    while ((b = atomic_fetch_add(&run->next, 1)) < run->forward->n)
        FL_T(conv_forward_sequence)(run, b, thread);
}
