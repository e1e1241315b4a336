#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *doubles(int64_t count)
{
    double *made = malloc((size_t)(count + 1) * sizeof *made);
    for (int64_t i = 0; i < count; i++)
        made[i] = 0;
    return made;
}

static int64_t input_of(const reference *net, int64_t layer)
{
    return layer == 0 ? net->input : net->columns;
}

/* Parameters of one layer and direction. */
typedef struct arrays {
    double *weight_ih, *weight_hh, *bias_ih, *bias_hh;
} arrays;

/* Parameters before those of layer and direction `index`. */
static int64_t offset_of(const reference *net, int64_t index)
{
    int64_t offset = 0;
    for (int64_t i = 0; i < index; i++)
        offset += net->gates * net->hidden *
                  (input_of(net, i / net->directions) + net->hidden + (net->bias ? 2 : 0));
    return offset;
}

static arrays arrays_of(const reference *net, double *flat, int64_t index)
{
    int64_t rows = net->gates * net->hidden;
    arrays found = {.weight_ih = flat + offset_of(net, index)};
    found.weight_hh = found.weight_ih + rows * input_of(net, index / net->directions);
    found.bias_ih = found.weight_hh + rows * net->hidden;
    found.bias_hh = found.bias_ih + rows;
    return found;
}

void reference_begin(reference *net)
{
    int lstm = strcmp(net->cell, "lstm") == 0;
    net->gates = lstm ? 4 : 1;
    net->states = lstm;
    net->columns = net->hidden * net->directions;
    net->rows = 0;
    for (int64_t b = 0; b < net->n; b++)
        net->rows += net->length[b];
    int64_t packed = net->layers * net->directions, state = packed * net->n * net->hidden;
    net->n_parameters = offset_of(net, packed);
    net->parameters = doubles(net->n_parameters);
    net->gradients = doubles(net->n_parameters);
    net->x = doubles(net->rows * net->input);
    net->dx = doubles(net->rows * net->input);
    net->y = doubles(net->rows * net->columns);
    net->dy = doubles(net->rows * net->columns);
    for (int i = 0; i < 2; i++) {
        net->states_in[i] = doubles(state);
        net->states_out[i] = doubles(state);
        net->dstates_in[i] = doubles(state);
        net->dstates_out[i] = doubles(state);
    }
    net->factor = doubles(net->layers * net->n * net->columns);
    for (int64_t i = 0; i < net->layers * net->n * net->columns; i++)
        net->factor[i] = 1;
    net->inputs = malloc((size_t)net->layers * sizeof *net->inputs);
    net->output = malloc((size_t)net->layers * sizeof *net->output);
    net->saved = malloc((size_t)packed * sizeof *net->saved);
    net->cell_state = malloc((size_t)packed * sizeof *net->cell_state);
    for (int64_t l = 0; l < net->layers; l++) {
        net->inputs[l] = doubles(net->rows * input_of(net, l));
        net->output[l] = doubles(net->rows * net->columns);
    }
    for (int64_t i = 0; i < packed; i++) {
        net->saved[i] = doubles(net->rows * net->gates * net->hidden);
        net->cell_state[i] = doubles(net->rows * net->hidden);
    }
}

void reference_end(reference *net)
{
    double *owned[] = {net->parameters, net->gradients, net->x,     net->dx,
                       net->y,          net->dy,        net->factor};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        free(owned[i]);
    for (int i = 0; i < 2; i++) {
        free(net->states_in[i]);
        free(net->states_out[i]);
        free(net->dstates_in[i]);
        free(net->dstates_out[i]);
    }
    for (int64_t l = 0; l < net->layers; l++) {
        free(net->inputs[l]);
        free(net->output[l]);
    }
    for (int64_t i = 0; i < net->layers * net->directions; i++) {
        free(net->saved[i]);
        free(net->cell_state[i]);
    }
    free(net->inputs);
    free(net->output);
    free(net->saved);
    free(net->cell_state);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Pre-activations -> activated gates; c and h. */
static void activate(reference *net, double *gate, double *c, double *h)
{
    int64_t H = net->hidden;
    for (int64_t u = 0; u < H; u++) {
        if (net->gates == 4) {
            double i = gate[u] = sigmoid(gate[u]), f = gate[H + u] = sigmoid(gate[H + u]);
            double g = gate[2 * H + u] = tanh(gate[2 * H + u]);
            double o = gate[3 * H + u] = sigmoid(gate[3 * H + u]);
            c[u] = f * c[u] + i * g;
            h[u] = o * tanh(c[u]);
        } else if (strcmp(net->cell, "rnn") == 0) {
            h[u] = gate[u] = tanh(gate[u]);
        } else {
            net->margin = fmin(net->margin, fabs(gate[u]));
            h[u] = gate[u] = gate[u] > 0 ? gate[u] : 0;
        }
    }
}

static void forward_sequence(reference *net, int64_t index, int64_t b, int64_t first)
{
    int64_t H = net->hidden, layer = index / net->directions, d = index % net->directions;
    int64_t input = input_of(net, layer), at = (index * net->n + b) * H;
    arrays weights = arrays_of(net, net->parameters, index);
    double *h = net->states_out[0] + at, *c = net->states_out[1] + at;
    memcpy(h, net->states_in[0] + at, (size_t)H * sizeof *h);
    memcpy(c, net->states_in[1] + at, (size_t)H * sizeof *c);
    for (int64_t step = 0; step < net->length[b]; step++) {
        int64_t row = first + (d ? net->length[b] - 1 - step : step);
        const double *x = net->inputs[layer] + row * input;
        double *gate = net->saved[index] + row * net->gates * H;
        for (int64_t j = 0; j < net->gates * H; j++) {
            double sum = net->bias ? weights.bias_ih[j] + weights.bias_hh[j] : 0;
            for (int64_t k = 0; k < input; k++)
                sum += weights.weight_ih[j * input + k] * x[k];
            for (int64_t k = 0; k < H; k++)
                sum += weights.weight_hh[j * H + k] * h[k];
            gate[j] = sum;
        }
        activate(net, gate, c, h);
        memcpy(net->cell_state[index] + row * H, c, (size_t)H * sizeof *c);
        memcpy(net->output[layer] + row * net->columns + d * H, h, (size_t)H * sizeof *h);
    }
}

void reference_forward(reference *net)
{
    net->margin = INFINITY;
    for (int64_t l = 0; l < net->layers; l++) {
        int64_t first = 0, input = input_of(net, l);
        for (int64_t b = 0; b < net->n; first += net->length[b++]) {
            for (int64_t i = first * input; i < (first + net->length[b]) * input; i++)
                net->inputs[l][i] =
                    l == 0 ? net->x[i]
                           : net->output[l - 1][i] *
                                 net->factor[(l * net->n + b) * net->columns + i % net->columns];
            for (int64_t d = 0; d < net->directions; d++)
                forward_sequence(net, l * net->directions + d, b, first);
        }
    }
    memcpy(net->y, net->output[net->layers - 1],
           (size_t)(net->rows * net->columns) * sizeof(double));
}

/* dh, dc (after the step) -> gradient of the pre-activations; dc before the step. */
static void differentiate(const reference *net, const double *gate, const double *c,
                          const double *c_prev, const double *dh, double *dc, double *dgate)
{
    int64_t H = net->hidden;
    for (int64_t u = 0; u < H; u++) {
        if (net->gates == 4) {
            double i = gate[u], f = gate[H + u], g = gate[2 * H + u], o = gate[3 * H + u];
            double tanh_c = tanh(c[u]), total = dc[u] + dh[u] * o * (1 - tanh_c * tanh_c);
            dgate[u] = total * g * i * (1 - i);
            dgate[H + u] = total * c_prev[u] * f * (1 - f);
            dgate[2 * H + u] = total * i * (1 - g * g);
            dgate[3 * H + u] = dh[u] * tanh_c * o * (1 - o);
            dc[u] = total * f;
        } else if (strcmp(net->cell, "rnn") == 0) {
            dgate[u] = dh[u] * (1 - gate[u] * gate[u]);
        } else {
            dgate[u] = gate[u] > 0 ? dh[u] : 0;
        }
    }
}

static void backward_sequence(reference *net, int64_t index, int64_t b, int64_t first,
                              const double *doutput, double *dinput)
{
    int64_t H = net->hidden, layer = index / net->directions, d = index % net->directions;
    int64_t input = input_of(net, layer), at = (index * net->n + b) * H;
    arrays weights = arrays_of(net, net->parameters, index),
           into = arrays_of(net, net->gradients, index);
    double *dh = net->dstates_in[0] + at, *dc = net->dstates_in[1] + at;
    double *dgate = doubles(net->gates * H);
    memcpy(dh, net->dstates_out[0] + at, (size_t)H * sizeof *dh);
    memcpy(dc, net->dstates_out[1] + at, (size_t)H * sizeof *dc);
    for (int64_t step = net->length[b]; step-- > 0;) {
        int64_t row = first + (d ? net->length[b] - 1 - step : step), before = row + (d ? 1 : -1);
        const double *x = net->inputs[layer] + row * input;
        const double *h_prev =
            step ? net->output[layer] + before * net->columns + d * H : net->states_in[0] + at;
        const double *c_prev = step ? net->cell_state[index] + before * H : net->states_in[1] + at;
        for (int64_t u = 0; u < H; u++)
            dh[u] += doutput[row * net->columns + d * H + u];
        differentiate(net, net->saved[index] + row * net->gates * H,
                      net->cell_state[index] + row * H, c_prev, dh, dc, dgate);
        memset(dh, 0, (size_t)H * sizeof *dh);
        for (int64_t j = 0; j < net->gates * H; j++) {
            for (int64_t k = 0; k < input; k++) {
                into.weight_ih[j * input + k] += dgate[j] * x[k];
                dinput[row * input + k] += dgate[j] * weights.weight_ih[j * input + k];
            }
            for (int64_t k = 0; k < H; k++) {
                into.weight_hh[j * H + k] += dgate[j] * h_prev[k];
                dh[k] += dgate[j] * weights.weight_hh[j * H + k];
            }
            for (int i = 0; net->bias && i < 2; i++)
                (i ? into.bias_hh : into.bias_ih)[j] += dgate[j];
        }
    }
    free(dgate);
}

void reference_backward(reference *net)
{
    double *doutput = doubles(net->rows * net->columns);
    memcpy(doutput, net->dy, (size_t)(net->rows * net->columns) * sizeof *doutput);
    memset(net->gradients, 0, (size_t)net->n_parameters * sizeof *net->gradients);
    for (int64_t l = net->layers; l-- > 0;) {
        double *dinput = doubles(net->rows * input_of(net, l));
        int64_t first = 0;
        for (int64_t b = 0; b < net->n; first += net->length[b++])
            for (int64_t d = 0; d < net->directions; d++)
                backward_sequence(net, l * net->directions + d, b, first, doutput, dinput);
        first = 0;
        for (int64_t b = 0; l > 0 && b < net->n; first += net->length[b++])
            for (int64_t i = first * net->columns; i < (first + net->length[b]) * net->columns; i++)
                dinput[i] *= net->factor[(l * net->n + b) * net->columns + i % net->columns];
        free(doutput);
        doutput = dinput;
    }
    memcpy(net->dx, doutput, (size_t)(net->rows * net->input) * sizeof *doutput);
    free(doutput);
}
