/* What the kernels of one ISA and dtype offer to the layers: argument structs and one table of
 * functions. Included twice, for FL_SUFFIX f32 and f64. No function here allocates, locks or knows
 * about threads.
 *
 * Layouts. V = lanes of a vector. Columns of a packed matrix come in vectors of V, vectors in
 * blocks of NV; a block stores its NV vectors for depth 0, then for depth 1, ... so that one stream
 * of memory feeds one register tile. gate-interleaved ("panels")  vector index = panel * slots +
 * slot; panel p holds units [p*V, (p+1)*V). The epilogue of a tile therefore has all gates of its
 * units in registers. plain                        vector index = column / V. Every output is one
 * chain of multiply-adds over the depth, in order, whatever the tile: results depend neither on the
 * number of rows nor on who computes them. */
#include "base/rng.h"
#include "simd/dtype.h" /* guarded; everything else here is per dtype */

#ifndef FL_KERNELS_LIMITS
#define FL_KERNELS_LIMITS
enum {
    FL_MAX_SLOTS = 4,     /* accumulators of a unit */
    FL_MAX_PEEPHOLES = 3, /* i, f, o */
    FL_MAX_STATES = 4,    /* states beside h that a cell carries: c; n, m; gates that recur */
    FL_BLOCK_VECTORS = 4  /* NV of plain matrices */
};
/* A peephole: a weight per unit that multiplies a state of the unit into one of its accumulators.
 */
typedef struct fl_peephole {
    int slot, state;
    int current; /* 1: the state after the step, 0: before it */
} fl_peephole;

enum { FL_LSTM_STAGES = 1, FL_GRU_STAGES }; /* kernels/cell_stages.h */

/* Facts of a cell that the layers and the step kernels need; the same for each ISA and dtype.
 * A unit has `slots` accumulators. Slot s takes the x W product of gate x_gate[s] and the recurrent
 * product of gate h_gate[s] (-1: none), so a gate may keep the two apart (GRU) or lack one. */
typedef struct fl_cell_facts {
    const char *name;
    int slots;
    int x_gates, h_gates; /* gates in weight_ih and bias_ih, in weight_hh and bias_hh */
    int x_gate[FL_MAX_SLOTS], h_gate[FL_MAX_SLOTS];
    int compact; /* 1: the last slot lacks the x W product and the first one the recurrent one, and
                    the packed weights leave those columns out; three or four slots, fused */
    int states;
    int state_recurs;        /* 1: state 0 goes into the recurrent product, 0: h */
    int reads_h;             /* 1: the pointwise body reads h of the step before */
    int takes_mask;          /* 1: the pointwise body multiplies its cell input by `mask` */
    const char *slot_names;  /* a letter per slot, for what the tape keeps of it */
    const char *state_names; /* a letter per state; NULL: as many as there are of "cnm" */
    int stabilised; /* 1: states c, n, m stand for the memory c e^m, n e^m; n = 0: no history */
    /* States 1 .. gate_states are gates of the step, which go into the next one through weight_gg:
     * slot s takes the product of gate g_gate[s] of it (-1: none). */
    int gate_states;
    int g_gates; /* gates in weight_gg */
    int g_gate[FL_MAX_SLOTS];
    /* A cell with a second product in its step is two rows of the table: the prelude runs first, on
     * the same h and states, and makes an "h" and states that the main cell starts from. */
    const char *prelude; /* of a main cell: the name of its prelude, or NULL */
    int made_recurs;     /* main cell: 1: the made h recurs into it, 0: h of the step before */
    int is_prelude;      /* 1: not a cell by itself */
    int transient;       /* 1: the states pass from prelude to main cell and are not carried on */
    int takes_decay;     /* 1: the pointwise body reads a weight per row, `decay` */
    int in_stages;       /* FL_*_STAGES: products on tiles take a row in stages; 0: at once */
    int n_peepholes;
    fl_peephole peephole[FL_MAX_PEEPHOLES];
} fl_cell_facts;

/* Slots [first, first + count) of a cell that a product writes. */
typedef struct fl_slots {
    int first, count;
} fl_slots;
FL_INLINE fl_slots fl_slots_of(int slots, int compact, int recurrent)
{
    fl_slots found = {compact && recurrent, slots - compact};
    return found;
}

/* Panels whose slots share a block: a block has three or four vectors. */
FL_INLINE int fl_panels_per_block(int slots)
{
    return slots == 1 ? 4 : slots == 2 ? 2 : 1;
}
#endif

enum { FL_T(LINE) = 64 / sizeof(real) }; /* values of a cache line */

/* C = init + A B for columns of blocks [block_first, block_end); `=`, c may alias init. */
typedef struct FL_T(fl_gemm) {
    int64_t rows, depth;
    int64_t columns; /* valid ones of C; the rest of the last block is not written */
    int64_t block_first, block_end;
    const real *a;
    int64_t a_row, a_depth; /* element strides of A[row, depth] */
    /* 0, or: A's depth comes in segments of so many values, a_segment apart */
    int64_t segment, a_segment;
    const real *b;
    int64_t b_block, b_depth; /* element strides between blocks and between depths */
    int vectors;              /* of a block: 1 to 4 */
    const real *init;         /* NULL: zero */
    int64_t init_row;         /* 0: one row for all (a bias) */
    real *c;
    int64_t c_row;
    int64_t c_block; /* columns of C and init from block to block; 0: those of a block of B */
    /* 0, or: each tile fetches so many rows a segment, `fetch_row` apart, the first of
     * `fetch_lines` cache lines, of its share of what begins there */
    int64_t fetch_rows, fetch_row, fetch_lines, fetch_share;
    const real *fetch;
} FL_T(fl_gemm);

/* One step forward of one cell for `rows` sequences and the units of blocks [block_first,
 * block_end). */
typedef struct FL_T(fl_step) {
    int64_t rows, units, block_first, block_end;
    int64_t descending; /* 1: walk the blocks downwards, to start with what the cache still holds */
    int64_t fetches;    /* 1: weights are far, those of the next block are fetched meanwhile */
    const real *init;   /* pre-activations before x and h are added: hoisted x W + b, or the bias */
    int64_t init_row;   /* 0 for a bias */
    const real *x, *weight_x; /* x (rows, x_depth) or NULL when hoisted; packed panels */
    int64_t x_row, x_depth;
    const real *h_prev, *weight_h; /* what recurs: h, or state 0 of a cell that says so */
    int64_t h_prev_row, h_depth;
    const real *peephole; /* (peepholes, plane) of all rows, or of each row where they differ */
    int64_t peephole_row; /* 0: one for all */
    const real *mask;     /* (rows, plane) factors of the cell input (recurrent dropout), or NULL */
    int64_t mask_row;
    const real *state_prev; /* (rows, states, plane) */
    int64_t state_prev_row;
    real *state; /* as state_prev, may be the same memory */
    int64_t state_row, state_plane;
    real *h; /* (rows, units) */
    int64_t h_row;
    const real *decay; /* (rows), one weight a row, or NULL: 1 */
    int64_t decay_row; /* stride */
    real *saved; /* activated gates (rows, panels, slots, V), NULL in inference, may alias init */
    int64_t saved_row;
} FL_T(fl_step);

/* One step backward: dh += dgates_next U^T + dy, then the cell's derivative. */
typedef struct FL_T(fl_backstep) {
    int64_t rows, units, block_first, block_end; /* blocks of 4 panels of units */
    int64_t descending;                          /* as in a step */
    const real *dgates_next, *weight_t;          /* depth 0: the step has no successor */
    int64_t dgates_next_row, depth; /* in the slots that recur, where the cell is compact */
    const real *dy;                 /* (rows, units) or NULL */
    int64_t dy_row;
    real *dh; /* in: gradient that reaches h beside dy and U (final state, direct path); out: the
                 same for the previous step */
    int64_t dh_row;
    real *dstate; /* in: gradient of the states after the step; out: before it */
    int64_t dstate_row, state_plane;
    const real *dmade; /* prelude: gradient of the h that it made (rows, plane), or NULL; its dh is
                          what the main cell left and is added to */
    int64_t dmade_row;
    const real *peephole; /* NULL: no gradient goes through them to the states */
    const real *mask;
    int64_t peephole_row, mask_row;
    const real *decay;
    int64_t decay_row;
    const real *state_prev, *state, *h_prev;
    int64_t state_prev_row, state_row, h_prev_row;
    real *gates; /* in: activated gates; out: gradient of the pre-activations */
    int64_t gates_row;
} FL_T(fl_backstep);

/* Zoneout of `rows` of a step, units [unit_first, unit_end), whole vectors: values keep what they
 * were before the step where a flag is 1; without flags they mix, by the expected share. */
typedef struct FL_T(fl_zone) {
    int64_t rows, units, unit_first, unit_end, plane;
    int states;           /* the first ones are zoned */
    int stabilised;       /* see fl_cell_facts */
    const uint8_t *flags; /* rows of two halves, of h and of the states; or NULL */
    int64_t flags_row;
    real expected_h, expected_c;
    real log_kept, log_new;          /* stabilised: of expected_c, of 1 - expected_c */
    const real *h_prev, *state_prev; /* before the step */
    int64_t h_prev_row, state_row;
    real *h, *state; /* h: (rows, units), or NULL: it is not zoned here */
    int64_t h_row;
    real *unzoned; /* as state: what the cell left there; or NULL */
} FL_T(fl_zone);
typedef struct FL_T(fl_zone_gradient) {
    int64_t rows, units, unit_first, unit_end, plane;
    int states, stabilised;
    const uint8_t *flags;
    int64_t flags_row;
    real expected_h, expected_c, log_kept, log_new;
    const real *state_prev; /* stabilised: states before the step, */
    const real *unzoned;    /* and as its cell left them */
    int64_t state_prev_row, unzoned_row;
    const real *dy; /* is added to dh first; or NULL */
    int64_t dy_row;
    real *dh, *dstate; /* dh: (rows, units), or NULL: h is not zoned here */
    int64_t dh_row, dstate_row;
    real *past; /* (rows, 1 + states, plane) = what goes to h and states before the step */
    int64_t past_row;
} FL_T(fl_zone_gradient);
#ifndef FL_ZONE_DRAW
#define FL_ZONE_DRAW
typedef struct fl_zone_draw {
    int64_t units;
    uint64_t key;
    uint32_t step, sequence, stream;
    uint32_t below_h, below_c; /* of 65536 */
} fl_zone_draw;
#endif

/* Layer normalisation of rows of `width` values, whole vectors: normed = (x - mean) * scale, where
 * mean and 1 / scale^2 (the variance, and a small number) are over what counts; y = base + gain *
 * normed. */
#ifndef FL_NORM_EPSILON
#define FL_NORM_EPSILON 1e-5 /* of a variance */
#endif
typedef struct FL_T(fl_norm_plan) {
    int64_t width;
    const real *counts; /* (width) 1 for a value that counts, else 0: then normed is 0 */
    const real *gain;   /* (width) 0 where nothing counts */
    real share;         /* 1 / how many count */
} FL_T(fl_norm_plan);
typedef struct FL_T(fl_norm) {
    FL_T(fl_norm_plan) plan;
    int64_t rows;
    const real *x;
    int64_t x_row;
    real *normed; /* may be x */
    int64_t normed_row;
    real *scale; /* one a row */
    int64_t scale_row;
    const real *base; /* of y */
    int64_t base_row;
    real *y; /* may be x or base, or NULL */
    int64_t y_row;
} FL_T(fl_norm);

/* Back through it: normed becomes the gradient of x. */
typedef struct FL_T(fl_norm_gradient) {
    FL_T(fl_norm_plan) plan;
    int64_t rows;
    const real *dy;
    int64_t dy_row;
    real *normed;
    int64_t normed_row;
    const real *scale;
    int64_t scale_row;
    real *dgain; /* (rows, .) += */
    int64_t dgain_row;
} FL_T(fl_norm_gradient);

/* sums[unit] += sum over rows, in order, of a[row, unit] * b[row, panel of the unit]: whole vectors
 * of a and b, `units` of sums. */
typedef struct FL_T(fl_unit_products) {
    int64_t rows, units;
    const real *a;
    int64_t a_row;
    const real *b;
    int64_t b_row, b_panel;
    real *sums;
} FL_T(fl_unit_products);

/* The output of a cell with h = o * squash(c), from the normalised c: squash(bias + gain * normed)
 * in place of squash(c), for rows whose gates and state are known. */
typedef struct FL_T(fl_normed_output) {
    int64_t rows, units;
    const real *normed, *gain, *bias; /* (rows, plane), (plane) */
    int64_t normed_row;
    real *gates; /* activated, as a step saves them; backward: gradients but for the output gate,
                    to which the one of `doutput_gate` is added */
    int64_t gates_row;
    real *h; /* forward: = */
    int64_t h_row;
    /* backward */
    const real *dh, *dy; /* gradient of h, in two parts, the second one (rows, units) or NULL */
    int64_t dh_row, dy_row;
    real *doutput_gate; /* (rows, plane) gradient of the output gate's pre-activation = */
    int64_t doutput_gate_row;
    real *dsquashed; /* (rows, plane) gradient of bias + gain * normed = */
    int64_t dsquashed_row;
    real *dstate; /* state 0: += what comes through the output gate's peephole */
    int64_t dstate_row, state_plane;
    const real *peephole; /* as in a step, or NULL */
} FL_T(fl_normed_output);

/* NULL where h is not o * squash(c). */
typedef struct FL_T(fl_normed_cell) {
    void (*output)(const FL_T(fl_normed_output) *);
    void (*output_gradient)(const FL_T(fl_normed_output) *);
    void (*add_output_gate)(const FL_T(fl_normed_output) *);
} FL_T(fl_normed_cell);

typedef struct FL_T(fl_cell) {
    const fl_cell_facts *facts;
    void (*forward)(const FL_T(fl_step) *);
    void (*backward)(const FL_T(fl_backstep) *);
    /* The same for one row and block whose products are there, without what they are added to in
     * the case of backward: `sums`, (columns or units of a block). */
    void (*forward_row)(const FL_T(fl_step) *, int64_t row, int64_t block, const real *sums);
    void (*backward_row)(const FL_T(fl_backstep) *, int64_t row, int64_t block, const real *sums);
    const FL_T(fl_normed_cell) * normed;
} FL_T(fl_cell);

/* Hyper-parameters of one optimiser step; a field that a rule does not use is ignored. */
#ifndef FL_OPTIMIZER_HYPER
#define FL_OPTIMIZER_HYPER
typedef struct fl_optimizer_rates {
    double learning_rate, momentum, alpha, beta1, beta2, epsilon, weight_decay;
    double gradient_scale; /* from clipping */
    double bias1, bias2;   /* 1 - beta^step */
    double mu, mu_next, mu_product;
    int nesterov;
} fl_optimizer_rates;
#endif

typedef struct FL_T(fl_optimizer) {
    real *parameters;
    const real *gradients;
    real *slot0, *slot1;
    int64_t count;
    fl_optimizer_rates rates;
} FL_T(fl_optimizer);

/* Cross-entropy of softmax(x) with the class `target` of each row; see kernels/softmax.h. */
typedef struct FL_T(fl_softmax) {
    int64_t rows, classes;
    const real *x;         /* (rows, classes) */
    const int64_t *target; /* (rows) of [0, classes) */
    const double *weight;  /* (rows), or NULL: 1 */
    real *gradient;        /* (rows, classes) = of the mean */
} FL_T(fl_softmax);

/* Connectionist temporal classification of one sequence; see kernels/ctc.h. */
#ifndef FL_CTC_PLAN
#define FL_CTC_PLAN
/* Sizes of the arrays of one sequence, in values of the dtype. */
typedef struct fl_ctc_plan {
    int64_t width;  /* pairs of states, padded to vectors */
    int64_t plane;  /* width and one vector */
    int64_t row;    /* all states of a step */
    int64_t block;  /* steps whose states are kept at once */
    int64_t blocks; /* of the sequence */
    int64_t padded; /* steps, padded to vectors */
    int64_t values; /* of scratch; -1 if there are too many */
} fl_ctc_plan;
FL_INLINE fl_ctc_plan fl_ctc_make_plan(int64_t steps, int64_t labels, int64_t lanes, int64_t size)
{
    enum { BLOCK_BYTES = 1 << 19, SHORTEST_BLOCK = 16 }; /* half of a usual L2 cache */
    fl_ctc_plan plan;
    int64_t once;
    plan.width = (labels + lanes) / lanes * lanes;
    plan.plane = plan.width + lanes;
    plan.row = 4 * plan.plane;
    plan.block = BLOCK_BYTES / ((plan.row + plan.width) * size);
    plan.block = plan.block > SHORTEST_BLOCK ? plan.block : SHORTEST_BLOCK;
    plan.block = plan.block < steps ? plan.block : steps;
    plan.blocks = plan.block ? (steps + plan.block - 1) / plan.block : 0;
    plan.padded = (steps + lanes - 1) / lanes * lanes;
    once = (plan.block + 2) * plan.row + (plan.block + 1) * plan.width + plan.plane;
    if (__builtin_mul_overflow(plan.blocks, plan.row, &plan.values) ||
        __builtin_add_overflow(plan.values, once + 3 * plan.padded, &plan.values))
        plan.values = -1;
    return plan;
}
#endif
typedef struct FL_T(fl_ctc_sequence) {
    int64_t steps, classes, labels, blank;
    int logits;           /* 1: x are logits and so is what the gradient is taken for */
    const real *x;        /* (steps, classes) log-probabilities */
    const int64_t *label; /* (labels) of [0, classes), none of them the blank */
    real *gradient;       /* (steps, classes) */
    real *scratch;        /* see fl_ctc_plan */
} FL_T(fl_ctc_sequence);

typedef struct FL_T(fl_kernels) {
    int lanes, tile_rows; /* of a vector; of a register tile */
    void (*gemm)(const FL_T(fl_gemm) *);
    const FL_T(fl_cell) * cells;
    int n_cells;
    void (*sigmoid)(const real *x, real *y, int64_t count);
    void (*tanh)(const real *x, real *y, int64_t count);
    /* y[i] *= factor[i] */
    void (*multiply)(real *y, const real *factor, int64_t count);
    double (*sum_squares)(const real *x, int64_t count);
    void (*sum_rows)(const real *x, int64_t rows, int64_t columns, double *sums);
    void (*add_unit_products)(const FL_T(fl_unit_products) *);
    void (*zone)(const FL_T(fl_zone) *);
    void (*zone_gradient)(const FL_T(fl_zone_gradient) *);
    void (*draw_zones)(const fl_zone_draw *, uint8_t *h, uint8_t *c);
    void (*normalize)(const FL_T(fl_norm) *);
    void (*normalize_gradient)(const FL_T(fl_norm_gradient) *);
    double (*ctc)(const FL_T(fl_ctc_sequence) *); /* the loss; gradient = */
    double (*softmax)(const FL_T(fl_softmax) *);  /* the loss; gradient = */
    /* by kind: sgd (slot0 the momentum buffer or NULL), rmsprop, adam, adamw, nadam */
    void (*optimizer[5])(const FL_T(fl_optimizer) *);
} FL_T(fl_kernels);
