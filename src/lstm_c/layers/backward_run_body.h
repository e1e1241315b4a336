/* What a call of back-propagation works with, and the products of its gate gradients, for one
 * dtype. See recurrent.c for the plan. */

#ifndef FL_INPUT_PANELS
#define FL_INPUT_PANELS
enum {
    FL_INPUT_PANEL = 48,    /* columns; whole tiles of every instruction set */
    FL_GRADIENT_ROWS = 512, /* of a chunk: the gradient is read and written once in so many */
    FL_SPLIT_ROWS = 128,    /* that are split at once for a product on tiles, and stay in cache */
    FL_GRADIENT_BLOCKS = 3 /* of the gradient that take turns with the inputs of a chunk on tiles */
};
#endif

typedef struct FL_T(fl_gradient_scratch) {
    int of_index, of_part;                /* whose inputs these are, */
    int64_t of_row;                       /* from which row on; -1: nobody's */
    const real **x, **recurred, **before; /* (chunk): rows of inputs where they lie */
    real *inputs; /* rows of [x, h_prev, recurring gates, 1] in panels of columns, each (chunk,
                     FL_INPUT_PANEL): a tile reads a short stride, and the memory in one stream */
    real *dgates; /* (chunk, block width): one block of gate gradients */
    /* or, with products on tiles */
    fl_prepared prepared;   /* rows of gate gradients */
    uint16_t *split_inputs; /* one operand */
    uint16_t *split_dgates; /* some blocks */
} FL_T(fl_gradient_scratch);

typedef struct FL_T(fl_backward_run) {
    const fl_recurrent *layer;
    const fl_backward *call;
    fl_tape *tape;
    const FL_T(fl_kernels) * kernels;
    const real *parameters;
    const real *dy;        /* of the top layer: the caller's, or packed rows, or NULL */
    real *dy_packed;       /* memory for those, or NULL */
    int64_t dy_apart;      /* as x_apart of a tape's layer */
    real *dx[2];           /* packed dx of a layer = dy of the layer below, alternating */
    real *dh, *dstate;     /* (directions, n, plane), (directions, n, made_row) */
    real *dmade;           /* (directions, n, plane) gradient of the h that a prelude made */
    real *dh_projected;    /* with a projection: (directions, n, recurrent_plane), gradient that
                              reaches h beside dy and U: at the final states, past a step that is
                              zoned, at the initial ones */
    real *doutput;         /* with a projection: (directions, rows, output) */
    fl_packed *packed;     /* (layers * directions): peepholes and gains of the call's parameters */
    real **projection_t;   /* (layers * directions) packed weight_hr^T */
    real **weight_t;       /* (layers * directions * parts) packed U^T */
    real **weight_xt;      /* packed W^T, NULL where dx is not wanted */
    int on_tiles;          /* products are taken there, of what follows: */
    uint16_t **tiles_t;    /* weight_t */
    uint16_t **tiles_xt;   /* weight_xt */
    real **weight_gt;      /* (layers * directions) packed weight_gg^T, a gate at a time */
    real *past;            /* with zoneout: (directions, n, 1 + zoned states, plane) */
    real *norm_sums;       /* with layer normalisation: (directions, n, norm_sums_row) */
    real *normed_scratch;  /* and (directions, n, 2 planes) */
    real *weight_gradient; /* (directions, blocks of all parts, depth, block width), the largest
                              layer's: a tile of it is one piece of memory */
    FL_T(fl_gradient_scratch) * scratch;
    int64_t chunk; /* rows of a weight-gradient chunk */
    fl_plan plan;
    fl_lanes lanes;
    int64_t *numbers; /* of fl_plan_begin */
    fl_lanes product_lanes;
    int64_t *next_product; /* of those */
    fl_barrier all, group[2];
} FL_T(fl_backward_run);

/* Gradient of the output of a level at a step, from sequence `row` on, or NULL; the next one's is
 * `*to_next` values further. */
static const real *FL_T(dy_of)(const FL_T(fl_backward_run) * run, int64_t level,
                               const fl_moment *moment, int64_t row, int64_t *to_next)
{
    const fl_recurrent *layer = run->layer;
    int top = level == layer->config.num_layers - 1;
    int64_t columns = layer->output * layer->directions, apart = top ? run->dy_apart : 0;
    const real *dy = top ? run->dy : run->dx[(level + 1) & 1];
    *to_next = columns * fl_rows_apart(apart);
    return dy ? dy + fl_row_at(&run->tape->ragged, apart, moment->t, row) * columns : NULL;
}

static int64_t FL_T(unit_blocks)(int64_t columns, int64_t lanes)
{
    return (columns + FL_BLOCK_VECTORS * lanes - 1) / (FL_BLOCK_VECTORS * lanes);
}

/* Where a row [x, h_prev, recurring gates, 1] that the weights multiply has h_prev, the gates, each
 * `gate` further than the one before, and the one; `depth` values in all. On tiles each part is
 * filled up to whole tiles. */
typedef struct FL_T(fl_input_places) {
    int64_t h, gates, gate, one, depth;
} FL_T(fl_input_places);
static FL_T(fl_input_places) FL_T(input_places)(const FL_T(fl_backward_run) * run, int64_t input)
{
    const fl_recurrent *layer = run->layer;
    const int64_t padding = run->on_tiles ? FL_TILE_PADDING : 0;
    FL_T(fl_input_places) at;
    at.h = (input + padding) & ~padding;
    at.gates = at.h + ((layer->recurrent + padding) & ~padding);
    at.gate = (layer->config.hidden_size + padding) & ~padding;
    at.one = at.gates + layer->cell.gate_states * at.gate;
    at.depth = at.one + 1;
    return at;
}

/* Panels that such rows of a layer are gathered in. */
static int64_t FL_T(input_panels)(const FL_T(fl_backward_run) * run, int64_t input)
{
    return (FL_T(input_places)(run, input).depth + FL_INPUT_PANEL - 1) / FL_INPUT_PANEL;
}

/* Columns of the gradients of the first `parts` parts, whole blocks of each. */
static int64_t FL_T(gradient_columns)(const fl_recurrent *layer, int parts)
{
    int64_t blocks = 0;
    for (int p = 0; p < parts; p++)
        blocks += FL_T(unit_blocks)(layer->part[p].gate_columns, layer->lanes);
    return blocks * FL_BLOCK_VECTORS * layer->lanes;
}

/* Gradient of the product of what recurs, of packed row `row`: that of the gates, unless the
 * product is normalised. */
static const real *FL_T(dproduct)(const FL_T(fl_backward_run) * run, int index, int64_t row)
{
    const fl_tape_direction *tape = &run->tape->directions[index];
    const real *rows = run->layer->config.layer_norm ? tape->normed.h : tape->gates;
    return rows + row * run->layer->gate_row;
}

/* A = rows of gate gradients of a part, from `dgates` on, of the slots that B has; B = U^T or W^T.
 */
static void FL_T(take_dgates)(const FL_T(fl_backward_run) * run, const fl_part *part, int recurrent,
                              const real *dgates, FL_T(fl_gemm) * gemm)
{
    const fl_recurrent *layer = run->layer;
    fl_slots slots = recurrent ? part->of_h : part->of_x;
    gemm->a = dgates + part->gate_first + fl_first_column(layer, slots);
    gemm->a_row = layer->gate_row;
    gemm->a_depth = 1;
    gemm->depth = fl_slot_depth(layer, part, slots);
    if (gemm->depth < part->gate_columns) {
        gemm->segment = fl_columns_of(layer, slots);
        gemm->a_segment = part->block_width;
    }
    gemm->b_depth = FL_BLOCK_VECTORS * layer->lanes;
    gemm->b_block = gemm->b_depth * gemm->depth;
    gemm->vectors = FL_BLOCK_VECTORS;
}

/* A product with gate gradients, the plain weights of which are split in `tiles`. */
static void FL_T(multiply)(const FL_T(fl_backward_run) * run, int thread,
                           const FL_T(fl_gemm) * gemm, const uint16_t *tiles)
{
    if (!run->on_tiles) {
        run->kernels->gemm(gemm);
        return;
    }
    int64_t width = gemm->vectors * run->layer->lanes;
    for (int64_t row = 0; row < gemm->rows; row += FL_SPLIT_ROWS) {
        int64_t left = gemm->rows - row;
        fl_tile_gemm product = {
            .rows = left < FL_SPLIT_ROWS ? left : FL_SPLIT_ROWS,
            .factor = {{.b = tiles, .depth = gemm->depth, .columns = width}},
            .block_first = gemm->block_first,
            .block_end = gemm->block_end,
            .width = width,
            .columns = gemm->columns,
            .init = gemm->init ? (const void *)(gemm->init + row * gemm->init_row) : NULL,
            .init_row = gemm->init_row,
            .segment = FL_TILE_SEGMENT,
            .c = (void *)(gemm->c + row * gemm->c_row),
            .c_row = gemm->c_row};
        fl_tile_operand rows = {.values = (const void *)(gemm->a + row * gemm->a_row),
                                .stride = gemm->a_row,
                                .segment = gemm->segment,
                                .segment_stride = gemm->a_segment};
        fl_multiply_tiles(run->layer, &rows, &run->scratch[thread].prepared, &product);
    }
}
