/* fastlstm: recurrent layers on CPUs. The only public header of the C library.
 *
 * Conventions. Every fallible function returns a status and leaves its outputs untouched on
 * failure. Arrays are C-contiguous in the dtype of the layer (float or double), at addresses that
 * are multiples of an element's size. States are (num_layers * directions, sequences, size),
 * layer-major, forward direction first; the size is hidden_size, that of h proj_size where the
 * layer projects. A step's output has fl_recurrent_output values a direction. Parameters are one
 * flat array in PyTorch's order and layout: per layer, per direction weight_ih (gates*hidden,
 * input), weight_hh (gates*hidden, size of h), bias_ih, bias_hh (gates*hidden each), then what
 * further arrays the layer has; fl_recurrent_parameter says which and where. Gates in the order i,
 * f, g, o.
 *
 * Threads. A layer may be used by many threads at once for inference; loading parameters needs
 * exclusive use. Results do not depend on the number of threads. Nothing here prints, exits or
 * aborts, unless OpenMP does because the system refuses it a thread that it had just granted; the
 * floating-point state of the caller is restored. */
#ifndef FASTLSTM_H
#define FASTLSTM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum fl_status {
    FL_OK = 0,
    FL_ERR_ARGUMENT = -1,
    FL_ERR_NOMEM = -2,
    FL_ERR_OVERFLOW = -3,
    FL_ERR_UNKNOWN_CELL = -4,
    FL_ERR_UNKNOWN_ISA = -5,
    FL_ERR_ISA_UNAVAILABLE = -6,
    FL_ERR_TAPE = -7
} fl_status;

/* One English sentence, never NULL. */
const char *fl_status_string(fl_status status);

typedef enum fl_dtype { FL_FLOAT32 = 0, FL_FLOAT64 = 1 } fl_dtype;

/* What the products of a float32 layer may do. Sums are in float32 or exact. */
typedef enum fl_precision {
    FL_PRECISION_FLOAT32 = 0,
    FL_PRECISION_HIGH = 1,     /* relative error of a product at most 1e-5 */
    FL_PRECISION_BFLOAT16 = 2, /* weight matrices are rounded to bfloat16 */
    FL_PRECISION_INT8 =
        3 /* inference: weight matrices to 8 bits and a scale a row, what they
             multiply to as much of 16 bits as the sum allows, by its largest value */
} fl_precision;

/* ---- process ---- */

/* Name of the instruction set in use ("portable", "avx2", "avx512", "amx"): FASTLSTM_ISA, else the
 * best one available. */
fl_status fl_isa_name(const char **name);
/* The instruction sets of the library by index (best first), and whether this machine can run each.
 */
fl_status fl_isa_available(int32_t index, const char **name, int32_t *available);
int32_t fl_cpu_amx(void);
/* 0 = automatic: FASTLSTM_NUM_THREADS, else OpenMP's maximum bounded by affinity mask and CPU
 * quotas. A call uses fewer threads where its work is small, and one thread where it is small and
 * the threads have slept since the last call: waking them may take milliseconds. */
void fl_set_num_threads(int32_t n_threads);
int32_t fl_get_num_threads(void);
int32_t fl_has_openmp(void);

/* ---- recurrent layers ---- */

/* Names of the cells by index; NULL past the last one. */
const char *fl_cell_name(int32_t index);

typedef struct fl_recurrent fl_recurrent;
typedef struct fl_tape fl_tape;

/* Where errors stop on their way back in time: nowhere; where they arrive at the net input of a
 * gate or cell from the step before, for cells with a state and one product a step; at the
 * peepholes alone, for cells that have them. */
typedef enum fl_truncation {
    FL_NOT_TRUNCATED = 0,
    FL_TRUNCATED = 1,
    FL_TRUNCATED_AT_PEEPHOLES = 2
} fl_truncation;

typedef struct fl_recurrent_config {
    const char *cell; /* one of fl_cell_name */
    int64_t input_size, hidden_size, num_layers;
    int32_t bidirectional, bias;
    int32_t dtype;
    double recurrent_dropout; /* of the cell input, in training only: one mask per sequence; not for
                                 rnn */
    double dropout;           /* between layers, in training only: one mask per sequence */
    /* With a projection h is W_r m (proj_size), where m is what the cell would put out, and the
     * output of a step is [h, W_p m], W_p (output_proj_size, hidden). 0: none. For cells with
     * states and one product of h a step. */
    int64_t proj_size, output_proj_size;
    int32_t truncated;           /* fl_truncation, of the backward pass */
    double zoneout_h, zoneout_c; /* probability that h, or the cell state, keeps its value at a
                                    step; zoneout_c for cells that have a cell state */
    int32_t layer_norm; /* normalise x W, each recurrent product and, where h = o * squash(c), c */
    int32_t precision;  /* fl_precision; FL_PRECISION_FLOAT32 alone with FL_FLOAT64 */
    int32_t
        batch_invariant; /* one order of the sums for any number of sequences, and for streams */
} fl_recurrent_config;

fl_status fl_recurrent_create(const fl_recurrent_config *config, fl_recurrent **layer);
void fl_recurrent_destroy(fl_recurrent *layer);

/* 1 + the number of cell states (c); the order of `states` arrays below: h, then those. */
int32_t fl_recurrent_n_states(const fl_recurrent *layer);
/* Values of a step's output of one direction: hidden_size, or what the projection makes. */
int64_t fl_recurrent_output(const fl_recurrent *layer);
int64_t fl_recurrent_n_parameters(const fl_recurrent *layer);
/* Number of parameter arrays, and kind, shape and position of one. columns 0: a vector. */
int32_t fl_recurrent_n_arrays(const fl_recurrent *layer);
typedef enum fl_parameter_kind {
    FL_WEIGHT_IH = 0,
    FL_WEIGHT_HH = 1,
    FL_BIAS_IH = 2,
    FL_BIAS_HH = 3,
    FL_PEEPHOLE = 4,  /* of the input gate; 5 the forget gate's, 6 the output gate's */
    FL_WEIGHT_GG = 7, /* from gates of the step before to gates */
    FL_WEIGHT_HR = 8, /* (proj_size + output_proj_size, hidden) */
    FL_NORM_IH = 9,   /* gains of layer normalisation, of x W, 10 of h U, 11 of c */
    FL_NORM_HH = 10,
    FL_NORM_C = 11,
    FL_NORM_BIAS = 12, /* what it adds to c */
    FL_NORM_GG = 13    /* gain of what gates of the step before feed to gates */
} fl_parameter_kind;
typedef struct fl_parameter {
    int32_t kind, layer, direction;
    int64_t offset, rows, columns;
} fl_parameter;
fl_status fl_recurrent_parameter(const fl_recurrent *layer, int32_t index, fl_parameter *parameter);

/* Pack the parameters (n_parameters values) for the kernels. To be called again after they change.
 */
fl_status fl_recurrent_load(fl_recurrent *layer, const void *parameters);

/* `n` sequences in any order: sequence b is rows start[b] .. start[b] + length[b] - 1 of `rows`
 * (total_rows, columns). Lengths are at least 1. */
typedef struct fl_sequences {
    int64_t n;
    const int64_t *start, *length;
} fl_sequences;

typedef struct fl_forward {
    fl_sequences x_rows;
    const void *x;     /* (rows, input_size) */
    int64_t x_total;   /* rows in x, bounds of x_rows are checked against it */
    const void *decay; /* (rows) weight of each row's step for a cell that takes one (tlstm: g of
                          the elapsed time), or NULL: 1 */
    const int64_t *y_start; /* first row of each sequence in y */
    void *y; /* (rows, output * directions) or NULL; rows that belong to no sequence are not
                written */
    int64_t y_total;
    const void *const *states_in; /* n_states pointers, each may be NULL (zeros); or NULL */
    void *const *states_out;      /* likewise */
    fl_tape *tape;                /* training: filled for fl_recurrent_backward; NULL: inference */
    uint64_t random_key;          /* of the dropout masks */
    const int64_t *number; /* (n) of each sequence in the draw of the masks, where the call is a
                              part of a larger one; NULL: 0 .. n - 1 */
    int64_t first_step;    /* likewise: the step of the larger call that is the first of this one */
    int32_t expects;       /* with a tape: take the expectation of zoneout, as inference does */
    int32_t drops;         /* without a tape: drop as in training all the same */
    int32_t n_threads;     /* 0 = process default; else threads that sleep are woken */
} fl_forward;
fl_status fl_recurrent_forward(const fl_recurrent *layer, const fl_forward *call);

typedef struct fl_backward {
    fl_tape *tape;          /* of the forward call; used up by this one */
    int64_t n;              /* sequences of the forward call */
    const void *parameters; /* the flat parameters that were loaded for the forward call; others may
                               have been loaded since */
    const void *dy;         /* rows as y of the forward call, or NULL */
    const int64_t *dy_start;
    int64_t dy_total;
    const void *const *dstates_out; /* gradient of the final states; n_states pointers, each may be
                                       NULL; or NULL */
    void *gradients;                /* n_parameters values, written (=) */
    void *dx; /* rows as x, or NULL; rows that belong to no sequence are not written */
    const int64_t *dx_start;
    int64_t dx_total;
    void *const *dstates_in; /* gradient of the initial states, or NULL */
    int32_t n_threads;
} fl_backward;
fl_status fl_recurrent_backward(const fl_recurrent *layer, const fl_backward *call);

/* A tape keeps its memory between calls and grows to the largest one. */
fl_status fl_tape_create(fl_tape **tape);
void fl_tape_destroy(fl_tape *tape);
int64_t fl_tape_bytes(const fl_tape *tape);
/* Bytes that a new tape takes for a training forward call on `n` sequences, the longest of `steps`
 * steps, of `rows` steps in all; `decays`: the call gives the weights of the rows. */
fl_status fl_recurrent_tape_bytes(const fl_recurrent *layer, int64_t n, int64_t steps, int64_t rows,
                                  int32_t decays, int32_t n_threads, int64_t *bytes);

/* A letter per accumulator of a unit ("ifgo", "nrzu", ...): what gates a tape keeps. */
const char *fl_recurrent_slot_names(const fl_recurrent *layer);
/* A letter per state beside h. At least as many as there are states. */
const char *fl_recurrent_state_names(const fl_recurrent *layer);

typedef enum fl_record_kind { FL_RECORD_GATE = 0, FL_RECORD_STATE = 1 } fl_record_kind;
/* Values of one gate (by slot) or cell state (by its index) at every step, after a training forward
 * call. */
typedef struct fl_record {
    int32_t kind, index;
    int32_t place; /* layer * directions + direction */
    void *out;     /* (total, hidden_size): row start[b] + t is step t of sequence b */
    const int64_t *start;
    int64_t total;
} fl_record;
fl_status fl_tape_read(const fl_recurrent *layer, const fl_tape *tape, const fl_record *record);

/* ---- streams ---- */

/* State of `n` independent streams of a unidirectional layer, one time step a call. The layer must
 * outlive it. */
typedef struct fl_stream fl_stream;
fl_status fl_stream_create(const fl_recurrent *layer, int64_t n, fl_stream **stream);
void fl_stream_destroy(fl_stream *stream);
/* x (n, input_size) -> y (n, output) of the top layer, which may be NULL. Allocates nothing, takes
 * no lock; where it is worth several threads, the first one starts them. */
fl_status fl_stream_step(fl_stream *stream, const void *x, void *y);
/* The same with a weight per stream, (n), for a cell that takes one; see fl_forward. */
fl_status fl_stream_step_decay(fl_stream *stream, const void *x, const void *decay, void *y);
/* The states, h first; `which` -1 resets or 0 .. n-1 one stream. */
fl_status fl_stream_get(const fl_stream *stream, void *const *states);
fl_status fl_stream_set(fl_stream *stream, const void *const *states);
fl_status fl_stream_reset(fl_stream *stream, int64_t which);

/* ---- dense layer, activations ---- */

/* y (n, out) = x (n, in) weight^T + bias, weight (out, in), bias (out) or NULL. */
fl_status fl_dense_forward(int32_t dtype, int64_t n, int64_t in, int64_t out, const void *x,
                           const void *weight, const void *bias, void *y);
/* dweight (out, in) =, dbias (out) = (or NULL), dx (n, in) = (or NULL). */
fl_status fl_dense_backward(int32_t dtype, int64_t n, int64_t in, int64_t out, const void *x,
                            const void *weight, const void *dy, void *dweight, void *dbias,
                            void *dx);

typedef enum fl_activation { FL_SIGMOID = 0, FL_TANH = 1 } fl_activation;
/* y = activation(x) by the kernels' own vector code. */
fl_status fl_activate(int32_t dtype, int32_t activation, const void *x, void *y, int64_t count);

/* Cross-entropy of softmax(x), x (n, classes), with the class target[row] of [0, classes): *loss =
 * its mean over the rows, each counted weight[row] times (NULL: once), gradient (n, classes) = of
 * that. Of no rows, or of weights that do not sum to more than 0, there is none: FL_ERR_ARGUMENT.
 */
fl_status fl_softmax_cross_entropy(int32_t dtype, int64_t n, int64_t classes, const void *x,
                                   const int64_t *target, const double *weight, double *loss,
                                   void *gradient);

/* ---- convolutional LSTM ---- */

/* An LSTM whose products are convolutions over images of `height` by `width` pixels ("same"
 * padding, the smaller half of an even one in front); signals are images of height 1. The flat
 * parameters are weight_ih (4 * hidden, in, kernel_height, kernel_width), weight_hh (4 * hidden,
 * hidden, ...), with `bias` (4 * hidden), with `peephole` (3, hidden, height, width); gates i, f,
 * g, o, peepholes i, f, o. in_channels 0: no input, the state alone drives the layer. */
typedef struct fl_conv_lstm {
    int32_t dtype, bias, peephole;
    int64_t in_channels, hidden_channels, height, width, kernel_height, kernel_width;
} fl_conv_lstm;
/* -1 for what is no layer. */
int64_t fl_conv_lstm_n_parameters(const fl_conv_lstm *layer);

typedef struct fl_conv_tape fl_conv_tape;
fl_status fl_conv_tape_create(fl_conv_tape **tape);
void fl_conv_tape_destroy(fl_conv_tape *tape);
int64_t fl_conv_tape_bytes(const fl_conv_tape *tape);

/* `n` sequences of images, sequence b has length[b] of `steps`; what follows is neither read nor
 * written. Images are (channels, height, width), states (n, hidden_channels, height, width). */
typedef struct fl_conv_forward {
    const void *parameters;
    int64_t n, steps;
    const int64_t *length;   /* (n) 1 .. steps */
    const void *x;           /* (n, steps, image of in_channels); NULL if there are none */
    const void *h_in, *c_in; /* or NULL: zero */
    void *y;                 /* (n, steps, image of hidden_channels) */
    void *h_out, *c_out;     /* after the last step, or NULL */
    fl_conv_tape *tape;      /* training: filled for fl_conv_lstm_backward; NULL: inference */
    int32_t n_threads;       /* 0 = process default */
} fl_conv_forward;
fl_status fl_conv_lstm_forward(const fl_conv_lstm *layer, const fl_conv_forward *call);

typedef struct fl_conv_backward {
    fl_conv_tape *tape;          /* of the forward call; used up by this one */
    const void *parameters;      /* of the forward call */
    int64_t n, steps;            /* likewise */
    const void *dy;              /* as y, or NULL */
    const void *dh_out, *dc_out; /* or NULL */
    void *gradients;             /* of the parameters = */
    void *dx;                    /* as x =, or NULL */
    void *dh_in, *dc_in;         /* = or NULL */
    int32_t n_threads;
} fl_conv_backward;
fl_status fl_conv_lstm_backward(const fl_conv_lstm *layer, const fl_conv_backward *call);

/* ---- connectionist temporal classification ---- */

/* Losses -ln p(target | x) of n sequences and the gradient of their sum. A target that no alignment
 * gives has loss infinity and gradient zero; NaN where a value of x that counts is NaN. */
typedef struct fl_ctc {
    int32_t dtype;
    int32_t logits; /* 0: x are log-probabilities, taken as they are, each a variable of its own;
                       1: x are logits, log-softmax is applied inside */
    int64_t n, steps, classes, blank;
    const void *x;          /* (n, steps, classes) */
    const int64_t *length;  /* (n) real steps, 0 .. steps; what follows is not read */
    const int64_t *targets; /* (target_total) classes other than the blank; target b is
                               target_start[b] .. target_start[b] + target_length[b] - 1 */
    int64_t target_total;
    const int64_t *target_start, *target_length; /* (n); a length may be 0 */
    double *loss;                                /* (n) = */
    void *gradient; /* (n, steps, classes) =, with respect to x; zero behind length */
    int32_t n_threads;
} fl_ctc;
fl_status fl_ctc_loss(const fl_ctc *call);

/* ---- optimisers ---- */

typedef enum fl_rule {
    FL_SGD = 0,
    FL_RMSPROP = 1,
    FL_ADAM = 2,
    FL_ADAMW = 3,
    FL_NADAM = 4
} fl_rule;
typedef struct fl_optimizer_step {
    int32_t dtype, rule, nesterov;
    void *parameters;
    const void *gradients;
    void *slot0, *slot1;
    int64_t count;
    double learning_rate, momentum, alpha, beta1, beta2, epsilon, weight_decay;
    double gradient_scale;
    int64_t step; /* 1 for the first */
    double mu, mu_next, mu_product;
} fl_optimizer_step;
/* One step over `count` parameters: sgd uses slot0 if not NULL (momentum), rmsprop slot0, adam,
 * adamw and nadam both. */
fl_status fl_optimize(const fl_optimizer_step *step);
/* Sum of squares in double precision, in one fixed order. */
fl_status fl_sum_squares(int32_t dtype, const void *x, int64_t count, double *sum);
/* Sums over the steps of n sequences, whose rows follow each other in y (total, columns): sums (n,
 * columns) += the rows of each, step after step. */
fl_status fl_sum_steps(int32_t dtype, int64_t n, const int64_t *length, int64_t columns,
                       const void *y, int64_t total, double *sums);

#ifdef __cplusplus
}
#endif

#endif
