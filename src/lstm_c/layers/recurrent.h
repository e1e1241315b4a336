/* The recurrent layer: packed weights, and the tape that a call works in. */
#ifndef FL_LAYERS_RECURRENT_H
#define FL_LAYERS_RECURRENT_H

#include "base/arena.h"
#include "base/lanes.h"
#include "base/team.h"
#include "isa/isa.h"
#include "layers/ragged.h"

enum { FL_MAX_ARRAYS = 11 + FL_MAX_PEEPHOLES }; /* of one layer and direction */

enum { FL_MAX_PARTS = 2 };

/* One product and pointwise body of a step, a row of the cell table: a cell is one of them, or a
 * prelude and the main cell in this order. */
typedef struct fl_part {
    fl_cell_facts cell;
    int cell_index;
    int sees_x;           /* some slot takes an input product */
    int64_t blocks;       /* blocks of packed gate columns */
    int64_t block_width;  /* columns of a block */
    int64_t gate_columns; /* panels * slots * lanes: what holds values in its gates of a row */
    int64_t gate_stride;  /* its gates of a row, whole blocks */
    int64_t gate_first;   /* where they begin in a row of gates */
    fl_slots of_x, of_h;  /* of a block's vectors, those that the packed weights have columns for */
} fl_part;

/* Packed weights of one layer and direction (void: float or double), by part. */
typedef struct fl_packed_part {
    void *weight_x, *weight_h, *weight_g, *bias, *peephole;
    void *reduced_x, *reduced_h; /* in the format of the layer; see fl_weight_format */
    float *scale_x, *scale_h;    /* (gate_stride), of int8 */
    uint16_t *tiles_x, *tiles_h; /* with products on tiles */
} fl_packed_part;
/* What layer normalisation is taken of: x W over the gates of all parts, c, what comes from gates
 * that recur, and the recurrent product of each part. */
enum { FL_NORM_OF_X, FL_NORM_OF_C, FL_NORM_OF_G, FL_NORM_OF_H, FL_NORMS = 3 + FL_MAX_PARTS };
typedef struct fl_packed_norm {
    int64_t first, width; /* columns in a row of gates, or of c */
    void *counts, *gain;  /* (width); see fl_norm_plan */
    double share;
} fl_packed_norm;
typedef struct fl_packed {
    int64_t input;  /* columns of weight_ih */
    int64_t offset; /* of weight_ih in the flat parameters; weight_hh, bias_ih, bias_hh follow */
    fl_packed_part part[FL_MAX_PARTS];
    void *projection; /* weight_hr, plain blocks */
    fl_packed_norm norm[FL_NORMS];
    void *norm_bias; /* (plane), of c */
} fl_packed;

struct fl_recurrent {
    fl_recurrent_config config;
    fl_cell_facts cell;
    const fl_isa *isa;
    int directions, n_packed, loaded, n_parts;
    fl_part part[FL_MAX_PARTS]; /* the last one is `cell` */
    size_t real_size;
    int64_t lanes;
    char slot_names[FL_MAX_PARTS * FL_MAX_SLOTS + 1]; /* of the parts, in their order */
    int64_t panels;                                   /* vectors of units */
    int64_t plane;                                    /* units padded to whole vectors */
    int64_t output;                                   /* values of a step's output, a direction */
    int64_t recurrent;                                /* the first ones, which recur: h */
    int64_t recurrent_plane;                          /* those padded to whole vectors */
    int64_t wide;                                     /* units padded to whole plain blocks */
    int64_t gate_row;                                 /* a row of gates, all parts */
    int64_t states;    /* that are carried from step to step, beside h */
    int64_t state_row; /* plane * states */
    int normalizes_c;
    int alternates;               /* states before and after a step need memory of their own */
    int zones;                    /* some values keep theirs at a step */
    int zoned_states;             /* the first ones of the states */
    int64_t zone_row;             /* flags of a step: two halves, of h and of the states */
    double log_kept, log_new;     /* of zoneout_c, and of what it leaves */
    fl_weight_format format;      /* of the weights that few rows are multiplied by */
    const fl_int8_kernels *int8;  /* of weights in int8 */
    const fl_tile_kernels *tiles; /* products of many rows, or NULL */
    int tile_parts;               /* bfloat16 numbers a value */
    int64_t made_row;             /* plane * states of the parts, the made ones included */
    int64_t n_parameters;
    fl_packed *packed; /* (layers * directions) */
    uint64_t id;       /* never reused in a process, never 0 */
    fl_arena arena;
};

/* With layer normalisation: what it made of the rows of the tape in training, else of (n). */
typedef struct fl_normed {
    void *x, *h, *g; /* (., gate_row); x in training alone */
    void *c;         /* (., plane) */
    void *scale;     /* (., FL_NORMS) */
} fl_normed;

/* Memory of a thread for the rows of a product in another format than float32: int16 and a scale a
 * row, or parts in bfloat16; and for sums of the rows of a deep one between its segments. */
typedef struct fl_prepared {
    void *rows;
    float *scale;
    float *sums;
} fl_prepared;

/* One layer and direction of a call. */
typedef struct fl_tape_direction {
    void *h0; /* (n, recurrent) */
    void *
        state0[2]; /* (n, states, plane); inference: the running states, [1] where they alternate */
    void *gates;   /* training: (rows, gate_stride): input projection, activated gates, then their
                      gradient */
    void *mask;    /* with recurrent dropout: (n, plane), else NULL */
    void *state;   /* training: (rows, states, plane) */
    /* what a prelude makes: h (., plane) and states (., made_row); rows of the tape in training,
     * else (n) */
    void *made_h, *made_state;
    void *unprojected; /* with a projection: what it multiplies, (rows of the tape or n, wide) */
    fl_normed normed;
    uint8_t *zoned; /* with zoneout, where it is drawn: (rows, zone_row) */
    void *unzoned;  /* and in training: the states as the cell left them, (rows, states, plane) */
} fl_tape_direction;

typedef struct fl_tape_layer {
    const void *x;   /* (rows, input) what the layer sees, after dropout */
    int64_t x_apart; /* 0: packed rows; else the caller's: those of a sequence lie together, and the
                        sequences so many rows apart */
    void *dropped;   /* memory of x where dropout makes a copy, else NULL */
    void *factor;    /* (n, input) dropout factors, or NULL */
    void *y;         /* (rows, output * directions) */
    int64_t y_apart; /* as x_apart */
} fl_tape_layer;

/* Memory of one call, kept between calls. */
struct fl_tape {
    uint64_t layer_id; /* of the forward call that filled it, 0 when used up */
    fl_ragged ragged;
    int training;                  /* keeps what the backward pass needs */
    int drops;                     /* draws and applies dropout masks */
    void *x;                       /* packed input */
    void *decay;                   /* packed weights of the rows, or NULL */
    fl_tape_layer *layers;         /* (num_layers) */
    fl_tape_direction *directions; /* (num_layers * directions) */
    void **scratch;        /* (n_threads) inference: hoisted projections of a chunk of steps */
    fl_prepared *prepared; /* (n_threads) */
    int64_t *plan_numbers; /* of fl_plan_begin */
    fl_arena arena;
    fl_arena backward_arena;
};

/* Columns of a block of weights that have products with some of the slots, and where they begin. */
FL_INLINE int64_t fl_columns_of(const fl_recurrent *layer, fl_slots slots)
{
    return slots.count * layer->lanes;
}
FL_INLINE int64_t fl_first_column(const fl_recurrent *layer, fl_slots slots)
{
    return slots.first * layer->lanes;
}

/* Of the packed recurrent weights of all parts. */
FL_INLINE int64_t fl_recurrent_bytes(const fl_recurrent *layer)
{
    return layer->gate_row * layer->recurrent * (int64_t)layer->real_size;
}

/* Gate columns of those slots. */
FL_INLINE int64_t fl_slot_depth(const fl_recurrent *layer, const fl_part *part, fl_slots slots)
{
    return part->gate_columns * fl_columns_of(layer, slots) / part->block_width;
}

/* The part that gives the step its h and its states. */
FL_INLINE const fl_part *fl_main_part(const fl_recurrent *layer)
{
    return &layer->part[layer->n_parts - 1];
}

/* The first part that sees x, where the x W of all parts is normalised. */
FL_INLINE int fl_input_part(const fl_recurrent *layer)
{
    return layer->part[0].sees_x ? 0 : 1;
}

FL_INLINE int fl_projects(const fl_recurrent *layer)
{
    return layer->config.proj_size > 0;
}

/* Memory of the weights that derivatives take as well, peepholes and gains: a backward call has
 * them from its own parameters, whatever was loaded since. */
void fl_pointwise_layout(const fl_recurrent *layer, fl_packed *packed, fl_arena *arena);

/* ---- products with weights in other formats (formats.c) ---- */

/* Scale of a row of weights in int8: its largest magnitude is 127. */
float fl_int8_scale(const float *row, int64_t count);
/* The value that a weight has in the precision of the layer. */
float fl_round_weight(const fl_recurrent *layer, float weight, float int8_scale);
/* Which formats a layer has, once its sizes are known. */
void fl_choose_formats(fl_recurrent *layer);
/* The one that a call on `n` sequences multiplies by. */
fl_weight_format fl_call_format(const fl_recurrent *layer, int64_t n);
/* Whether x W is a product of its own in that format: always, but on tiles that are full or have
 * their weights near.
 * Sums depend on it, so it depends on the call alone. */
int fl_format_hoists(const fl_recurrent *layer, int64_t n);
/* Whether it is, and is taken on tiles, where the steps are not: those of a few sequences have many
 * rows. Not with one part, which rounds rows as well as weights. */
int fl_projects_on_tiles(const fl_recurrent *layer, const fl_ragged *ragged, int64_t input);
void fl_formats_layout(const fl_recurrent *layer, fl_packed *packed, fl_arena *arena);
/* From the flat parameters of float32, and the plain panels. */
void fl_formats_pack(const fl_recurrent *layer, int index, int p, const float *weight_ih,
                     const float *weight_hh);
/* Memory of a thread for `rows` rows of any operand in that format. */
fl_prepared fl_take_prepared(const fl_recurrent *layer, fl_weight_format format, int64_t rows,
                             fl_arena *arena);
/* c = init + a W or a U for `rows` rows of part `p`, blocks [block_first, block_end). */
typedef struct fl_product {
    fl_weight_format format; /* not plain */
    int recurrent;           /* 1: U, 0: W */
    int64_t rows, block_first, block_end, descending;
    const void *a, *init; /* float32 */
    int64_t a_row, init_row;
    void *c;
    int64_t c_row;
    fl_row_groups a_groups, c_groups; /* on tiles alone */
    const fl_prepared *prepared;
} fl_product;
void fl_multiply(const fl_recurrent *layer, const fl_packed *packed, int p,
                 const fl_product *product);

/* The same with tiles for any blocks: gemm without its A and parts; `rows` says where A's values
 * lie. */
void fl_multiply_tiles(const fl_recurrent *layer, const fl_tile_operand *rows,
                       const fl_prepared *prepared, fl_tile_gemm *gemm);
/* Whether a step's products in that format are taken together with its cells: on tiles, unless
 * gates recur, which are multiplied by plain weights. */
FL_INLINE int fl_steps_on_tiles(const fl_cell_facts *cell, fl_weight_format format)
{
    return format == FL_WEIGHTS_TILES && !cell->gate_states;
}
/* Such a step of part `p` (fl_step_f32), each row's cells as soon as its sums are there. */
void fl_step_on_tiles(const fl_recurrent *layer, const fl_packed *packed, int p,
                      const fl_prepared *prepared, const void *step);
/* The same of a step backward (fl_backstep_f32), all of whose rows have a successor; weight_t: U^T,
 * split. */
void fl_backstep_on_tiles(const fl_recurrent *layer, int p, const uint16_t *weight_t,
                          const fl_prepared *prepared, const void *backstep);
/* For tiles: plain blocks [first, end), each (depth, width) -> split, in blocks. */
void fl_pack_tiles(const fl_recurrent *layer, const void *plain, int64_t first, int64_t end,
                   int64_t depth, int64_t width, uint16_t *to);
/* Values of 16 bits of `blocks` of them; 0 without tiles. */
int64_t fl_tiles_size(const fl_recurrent *layer, int64_t blocks, int64_t depth, int64_t width);

/* Memory of the normalised values of `rows` rows. */
fl_normed fl_take_normed(const fl_recurrent *layer, int64_t rows, int keeps_x, fl_arena *arena);

/* Columns of weight_gg: units of the gates that recur. */
FL_INLINE int64_t fl_recurring_gates(const fl_recurrent *layer)
{
    return layer->cell.gate_states * layer->config.hidden_size;
}

/* Row of a weight matrix (gates*hidden, .) that packed gate column `column` of a part belongs to
 * when slot s takes gate gate_of[s]; -1: none, or padding. */
FL_INLINE int64_t fl_weight_row(const fl_recurrent *layer, const fl_part *part, int64_t column,
                                const int *gate_of)
{
    int64_t vector = column / layer->lanes, slot = vector % part->cell.slots,
            unit = vector / part->cell.slots * layer->lanes + column % layer->lanes;
    return unit < layer->config.hidden_size && gate_of[slot] >= 0
               ? gate_of[slot] * layer->config.hidden_size + unit
               : -1;
}

/* What one thread computes of a layer: a direction, rows (sequences) and blocks of gate columns. */
typedef struct fl_share {
    int direction_first, direction_end;
    int64_t row_first, row_end;
    int thread;
    int group, rank, group_size; /* threads on the same direction; they meet after every step if
                                    `splits_units` */
    int splits_units;
} fl_share;

/* Threads worth using for a call on this batch, at most `wanted`. */
int fl_recurrent_threads(const fl_recurrent *layer, const fl_ragged *ragged, int wanted);
/* Whether a call on this batch wakes a team of `n_threads` that sleeps, see fl_team_run: it was
 * asked for so many threads by name (`asked`, else 0), or the work is worth it. */
int fl_wakes_team(const fl_recurrent *layer, const fl_ragged *ragged, int asked, int n_threads);
/* Who runs a pass: the layers one after another, each divided into lanes or its units split; or,
 * with `waves`, all at the same time, each some steps behind the one below it. */
typedef struct fl_plan {
    int n_threads, waves;
    int64_t pieces; /* of about as many steps, into which the sequences are cut: each a lane in
                       each direction. 0: a wave, or units are split by the threads of a
                       direction */
    int64_t stages; /* of a lane in a layer: its steps are cut into so many parts */
    int64_t *cut;   /* (pieces + 1) first sequences of the pieces, and the end */
} fl_plan;
fl_plan fl_plan_forward(const fl_recurrent *layer, const fl_ragged *ragged, int wanted);
/* Without waves. Units are split when there are fewer than four sequences a thread, or few for
 * weights that are far. */
fl_plan fl_plan_levels(const fl_recurrent *layer, const fl_ragged *ragged, int backward,
                       int wanted);
/* Numbers that a plan and its lanes keep, and what gives them to both. */
int64_t fl_plan_numbers(const fl_recurrent *layer, const fl_plan *plan);
void fl_plan_begin(const fl_recurrent *layer, const fl_ragged *ragged, fl_plan *plan,
                   int64_t *numbers, fl_lanes *lanes);
/* Steps that a layer runs before the next layer takes them. */
int64_t fl_wave_steps(const fl_ragged *ragged);
/* Whether a second cache holds the recurrent weights of a step in part at most. */
int fl_weights_are_far(const fl_recurrent *layer);
/* What a lane is, for the thread that runs it; and the share of a thread where units are split. */
fl_share fl_lane_share(const fl_plan *plan, int64_t lane, int thread);
/* Steps, in running order, of a stage of the lane `share`. */
void fl_stage_steps(const fl_ragged *ragged, const fl_plan *plan, const fl_share *share,
                    int64_t stage, int64_t *first, int64_t *end);
fl_share fl_unit_share(const fl_recurrent *layer, const fl_ragged *ragged, int thread,
                       int n_threads);
/* Part `index` of `parts` of [0, count). */
void fl_split(int64_t count, int index, int parts, int64_t *first, int64_t *end);

/* Parts of a step in running order: rows that have a predecessor, and where it is. `step` counts in
 * running order. */
typedef struct fl_moment {
    int64_t rows, row0; /* active sequences, packed row of the first */
    int64_t with_previous,
        previous0; /* sequences (a prefix) that ran a step before, packed row of the first there */
    int64_t with_next, next0; /* sequences that run a step after */
    int64_t t, previous_t;    /* steps in time, of this one and the one before */
} fl_moment;
fl_moment fl_ragged_moment(const fl_ragged *ragged, int64_t step, int reverse);

/* Row of sequence s at time t, and rows from there to that of the next sequence. */
FL_INLINE int64_t fl_row_at(const fl_ragged *ragged, int64_t apart, int64_t t, int64_t s)
{
    return apart ? s * apart + t : ragged->offset[t] + s;
}
FL_INLINE int64_t fl_rows_apart(int64_t apart)
{
    return apart ? apart : 1;
}

/* OVERFLOW where some array of a call on `rows` steps does not fit the address space. */
fl_status fl_rows_fit(const fl_recurrent *layer, int64_t rows);
/* Memory and plan of a call, whose sequences tape->ragged has counted; *chunk_rows: rows of a
 * thread's scratch. */
fl_status fl_tape_prepare(fl_tape *tape, const fl_recurrent *layer, const fl_forward *call,
                          const fl_plan *plan, int64_t *chunk_rows);

void fl_recurrent_pack_f32(fl_recurrent *layer, const void *parameters);
void fl_recurrent_pack_f64(fl_recurrent *layer, const void *parameters);
fl_status fl_recurrent_forward_f32(const fl_recurrent *layer, const fl_forward *call,
                                   fl_tape *tape);
fl_status fl_recurrent_forward_f64(const fl_recurrent *layer, const fl_forward *call,
                                   fl_tape *tape);
void fl_tape_read_f32(const fl_recurrent *layer, const fl_tape *tape, const fl_record *record);
void fl_tape_read_f64(const fl_recurrent *layer, const fl_tape *tape, const fl_record *record);
fl_status fl_recurrent_backward_f32(const fl_recurrent *layer, const fl_backward *call);
fl_status fl_recurrent_backward_f64(const fl_recurrent *layer, const fl_backward *call);

#endif
