/* Back-propagation through time, for one dtype. See recurrent.c for the plan. */

#ifndef FL_INPUT_PANELS
#define FL_INPUT_PANELS
enum {
    FL_INPUT_PANEL = 48,   /* columns; whole tiles of every instruction set */
    FL_GRADIENT_ROWS = 512 /* of a chunk: the gradient is read and written once in so many */
};
#endif

typedef struct FL_T(fl_gradient_scratch) {
    real *inputs; /* rows of [x, h_prev, recurring gates, 1] in panels of columns, each (chunk,
                     FL_INPUT_PANEL): a tile reads a short stride, and the memory in one stream */
    real *dgates; /* (chunk, block width): one block of gate gradients */
    /* with products on tiles */
    fl_prepared prepared;   /* rows of gate gradients */
    uint16_t *split_inputs; /* panels of inputs, each (parts, FL_INPUT_PANEL, chunk) */
    uint16_t *split_dgates; /* the block */
} FL_T(fl_gradient_scratch);

typedef struct FL_T(fl_backward_run) {
    const fl_recurrent *layer;
    const fl_backward *call;
    fl_tape *tape;
    const FL_T(fl_kernels) * kernels;
    const real *parameters;
    real *dy_top;          /* packed dy of the top layer, or NULL */
    real *dx[2];           /* packed dx of a layer = dy of the layer below, alternating */
    real *dh, *dstate;     /* (directions, n, plane), (directions, n, made_row) */
    real *dmade;           /* (directions, n, plane) gradient of the h that a prelude made */
    real *dh_projected;    /* with a projection: (directions, n, recurrent_plane), gradient that
                              reaches h beside dy and U: at the final states, past a step that is
                              zoned, at the initial ones */
    real *doutput;         /* with a projection: (directions, rows, output) */
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
    real *weight_gradient; /* (directions, depth, gate_row), the largest layer's */
    FL_T(fl_gradient_scratch) * scratch;
    int64_t chunk; /* rows of a weight-gradient chunk */
    int n_threads;
    fl_barrier all, group[2];
} FL_T(fl_backward_run);

static const real *FL_T(dy_of)(const FL_T(fl_backward_run) * run, int64_t level)
{
    return level == run->layer->config.num_layers - 1 ? run->dy_top : run->dx[(level + 1) & 1];
}

static int64_t FL_T(unit_blocks)(int64_t columns, int64_t lanes)
{
    return (columns + FL_BLOCK_VECTORS * lanes - 1) / (FL_BLOCK_VECTORS * lanes);
}

/* Values of a row [x, h_prev, recurring gates, 1] that the weights multiply. */
static int64_t FL_T(input_depth)(const fl_recurrent *layer, int64_t input)
{
    return input + layer->recurrent + fl_recurring_gates(layer) + 1;
}

/* Gradient of the product of what recurs, of packed row `row`: that of the gates, unless the
 * product is normalised. */
static const real *FL_T(dproduct)(const FL_T(fl_backward_run) * run, int index, int64_t row)
{
    const fl_tape_direction *tape = &run->tape->directions[index];
    const real *rows = run->layer->config.layer_norm ? tape->normed.h : tape->gates;
    return rows + row * run->layer->gate_row;
}

/* The slots of a part that products with U^T, or W^T, take; on tiles all, which are zero elsewhere.
 */
static fl_slots FL_T(taken_slots)(const FL_T(fl_backward_run) * run, const fl_part *part,
                                  int recurrent)
{
    fl_slots all = {0, (int)(part->block_width / run->layer->lanes)};
    return run->on_tiles ? all : recurrent ? part->of_h : part->of_x;
}

/* A = rows of gate gradients of a part, from `dgates` on, of those slots; B = U^T or W^T. */
static void FL_T(take_dgates)(const FL_T(fl_backward_run) * run, const fl_part *part, int recurrent,
                              const real *dgates, FL_T(fl_gemm) * gemm)
{
    const fl_recurrent *layer = run->layer;
    fl_slots slots = FL_T(taken_slots)(run, part, recurrent);
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
    for (int64_t row = 0; row < gemm->rows; row += FL_GRADIENT_ROWS) {
        int64_t left = gemm->rows - row;
        fl_tile_gemm product = {
            .rows = left < FL_GRADIENT_ROWS ? left : FL_GRADIENT_ROWS,
            .depth = gemm->depth,
            .block_first = gemm->block_first,
            .block_end = gemm->block_end,
            .width = gemm->vectors * run->layer->lanes,
            .columns = gemm->columns,
            .b = tiles,
            .init = gemm->init ? (const void *)(gemm->init + row * gemm->init_row) : NULL,
            .init_row = gemm->init_row,
            .c = (void *)(gemm->c + row * gemm->c_row),
            .c_row = gemm->c_row};
        fl_multiply_tiles(run->layer, (const void *)(gemm->a + row * gemm->a_row), gemm->a_row,
                          &run->scratch[thread].prepared, &product);
    }
}

/* 1: the recurrent product of a part's gradient is left to the kernel of the step before. */
static int FL_T(defers)(const FL_T(fl_backward_run) * run, int p)
{
    const fl_recurrent *layer = run->layer;
    const fl_cell_facts *cell = &layer->part[p].cell;
    return !run->on_tiles && !cell->is_prelude && !cell->made_recurs && !layer->config.layer_norm &&
           !layer->zones && !fl_projects(layer) && layer->config.truncated != FL_TRUNCATED;
}

/* Gradient of what recurred into part `p`, of the share's rows from `row` on: of the h that a
 * prelude made (=), else of h or state 0 before the step (+=). */
static void FL_T(recurrent_gradient)(const FL_T(fl_backward_run) * run, int index, int p,
                                     int64_t row, const fl_moment *moment, const fl_share *share,
                                     int64_t block_first, int64_t block_end)
{
    const fl_recurrent *layer = run->layer;
    const fl_part *part = &layer->part[p];
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t end = share->row_end < moment->rows ? share->row_end : moment->rows;
    row = row > share->row_first ? row : share->row_first;
    if (row >= end)
        return;
    int64_t place = (index % layer->directions) * ragged->n + row, to_row = layer->plane;
    real *to = (part->cell.made_recurs ? run->dmade : run->dh) + place * to_row;
    if (part->cell.state_recurs) {
        to_row = layer->made_row;
        to = run->dstate + place * to_row;
    }
    if (fl_projects(layer)) {
        to_row = layer->recurrent_plane;
        to = run->dh_projected + place * to_row;
        block_first = 0;
        block_end = FL_T(unit_blocks)(layer->recurrent, layer->lanes);
        if (share->splits_units)
            fl_split(block_end, share->rank, share->group_size, &block_first, &block_end);
    }
    FL_T(fl_gemm)
    gemm = {.rows = end - row,
            .columns = layer->recurrent,
            .block_first = block_first,
            .block_end = block_end,
            .b = run->weight_t[index * layer->n_parts + p],
            .init = part->cell.made_recurs ? NULL : to,
            .init_row = to_row,
            .c = to,
            .c_row = to_row};
    FL_T(take_dgates)(run, part, 1, FL_T(dproduct)(run, index, moment->row0 + row), &gemm);
    FL_T(multiply)(run, share->thread, &gemm, run->tiles_t[index * layer->n_parts + p]);
}

/* Gradient of the gates of the step before, of the share's rows, added to that of their states. */
static void FL_T(gate_gradient)(const FL_T(fl_backward_run) * run, int index,
                                const fl_moment *moment, const fl_share *share, int64_t block_first,
                                int64_t block_end)
{
    const fl_recurrent *layer = run->layer;
    const fl_part *part = fl_main_part(layer);
    int64_t hidden = layer->config.hidden_size, width = FL_BLOCK_VECTORS * layer->lanes;
    int64_t end = share->row_end < moment->rows ? share->row_end : moment->rows,
            row = share->row_first;
    const fl_tape_direction *tape = &run->tape->directions[index];
    const real *dgates = layer->config.layer_norm ? tape->normed.g : tape->gates;
    real *dstate =
        run->dstate + ((index % layer->directions) * run->tape->ragged.n + row) * layer->made_row;
    for (int gate = 0; gate < part->cell.gate_states && row < end; gate++) {
        real *to = dstate + (1 + gate) * layer->plane;
        FL_T(fl_gemm)
        gemm = {.rows = end - row,
                .depth = part->gate_columns,
                .columns = hidden,
                .block_first = block_first,
                .block_end = block_end,
                .a = dgates + (moment->row0 + row) * layer->gate_row,
                .a_row = layer->gate_row,
                .a_depth = 1,
                .b = run->weight_gt[index] +
                     gate * FL_T(unit_blocks)(hidden, layer->lanes) * width * part->gate_columns,
                .b_block = width * part->gate_columns,
                .b_depth = width,
                .vectors = FL_BLOCK_VECTORS,
                .init = to,
                .init_row = layer->made_row,
                .c = to,
                .c_row = layer->made_row};
        run->kernels->gemm(&gemm);
    }
}

/* Zoneout of a step: `s` gives the rest. Rows from packed row `row`. */
static FL_T(fl_zone_gradient)
    FL_T(zone_gradient_of)(const FL_T(fl_backward_run) * run, int index, int64_t row)
{
    const fl_recurrent *layer = run->layer;
    const uint8_t *flags = run->tape->directions[index].zoned;
    FL_T(fl_zone_gradient)
    zone = {.plane = layer->plane,
            .flags = flags ? flags + row * layer->zone_row : NULL,
            .flags_row = layer->zone_row,
            .expected_h = (real)layer->config.zoneout_h,
            .expected_c = (real)layer->config.zoneout_c,
            .log_kept = (real)layer->log_kept,
            .log_new = (real)layer->log_new};
    return zone;
}

/* Back through the zoneout of a projected h: units [unit_first, unit_end) of the share's rows of
 * the step, whose gradients are at `to`. */
static void FL_T(zone_output_gradient)(const FL_T(fl_backward_run) * run, int index,
                                       const fl_moment *moment, const fl_share *share, real *to,
                                       int64_t unit_first, int64_t unit_end)
{
    const fl_recurrent *layer = run->layer;
    int64_t first = share->row_first, place = (index % layer->directions) * run->tape->ragged.n;
    FL_T(fl_zone_gradient) zone = FL_T(zone_gradient_of)(run, index, moment->row0 + first);
    zone.rows = (share->row_end < moment->rows ? share->row_end : moment->rows) - first;
    zone.units = layer->recurrent;
    zone.unit_first = unit_first;
    zone.unit_end = unit_end < layer->recurrent_plane ? unit_end : layer->recurrent_plane;
    zone.dh = to + first * layer->output;
    zone.dh_row = layer->output;
    zone.past = run->dh_projected + (place + first) * layer->recurrent_plane;
    zone.past_row = layer->recurrent_plane;
    run->kernels->zone_gradient(&zone);
}

/* Gradient of the output of a step of the share: dy, what recurs, and what dh_projected holds,
 * which it takes. */
static void FL_T(output_gradient)(const FL_T(fl_backward_run) * run, int index,
                                  const fl_moment *moment, const fl_share *share)
{
    const fl_recurrent *layer = run->layer;
    const fl_part *part = fl_main_part(layer);
    int reverse = index % layer->directions;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, output = layer->output,
            recurrent = layer->recurrent, kept_row = layer->recurrent_plane,
            y_row = output * layer->directions, block_first = 0,
            block_end = FL_T(unit_blocks)(output, layer->lanes),
            recurring = FL_T(unit_blocks)(recurrent, layer->lanes);
    if (share->splits_units)
        fl_split(block_end, share->rank, share->group_size, &block_first, &block_end);
    int64_t first = share->row_first,
            end = share->row_end < moment->rows ? share->row_end : moment->rows,
            continuing = moment->with_next < end ? moment->with_next : end,
            column_end = block_end * width < output ? block_end * width : output;
    const real *dy = FL_T(dy_of)(run, index / layer->directions);
    real *kept = run->dh_projected + reverse * run->tape->ragged.n * kept_row;
    real *to = run->doutput + (reverse * run->tape->ragged.rows + moment->row0) * output;
    for (int64_t row = first; row < end; row++)
        for (int64_t j = block_first * width; j < column_end; j++) {
            real sum = dy ? dy[(moment->row0 + row) * y_row + reverse * output + j] : 0;
            if (j < recurrent) {
                sum += kept[row * kept_row + j];
                kept[row * kept_row + j] = 0;
            }
            to[row * output + j] = sum;
        }
    FL_T(fl_gemm)
    gemm = {.rows = continuing - first,
            .columns = recurrent,
            .block_first = block_first,
            .block_end = block_end < recurring ? block_end : recurring,
            .b = run->weight_t[index],
            .init = to + first * output,
            .init_row = output,
            .c = to + first * output,
            .c_row = output};
    FL_T(take_dgates)(run, part, 1, FL_T(dproduct)(run, index, moment->next0 + first), &gemm);
    if (continuing > first && gemm.block_first < gemm.block_end &&
        layer->config.truncated != FL_TRUNCATED)
        FL_T(multiply)(run, share->thread, &gemm, run->tiles_t[index]);
    if (layer->zones)
        FL_T(zone_output_gradient)(run, index, moment, share, to, block_first * width,
                                   block_end * width);
}

/* Through the projection: gradient of what the cells of the share put out, into dh. */
static void FL_T(unproject)(const FL_T(fl_backward_run) * run, int index, const fl_moment *moment,
                            const fl_share *share, int64_t block_first, int64_t block_end)
{
    const fl_recurrent *layer = run->layer;
    int reverse = index % layer->directions;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, output = layer->output,
            first = share->row_first,
            end = share->row_end < moment->rows ? share->row_end : moment->rows;
    FL_T(fl_gemm)
    gemm = {.rows = end - first,
            .depth = output,
            .columns = layer->config.hidden_size,
            .block_first = block_first,
            .block_end = block_end,
            .a = run->doutput + (reverse * run->tape->ragged.rows + moment->row0 + first) * output,
            .a_row = output,
            .a_depth = 1,
            .b = run->projection_t[index],
            .b_block = width * output,
            .b_depth = width,
            .vectors = FL_BLOCK_VECTORS,
            .c = run->dh + (reverse * run->tape->ragged.n + first) * layer->plane,
            .c_row = layer->plane};
    if (end > first)
        run->kernels->gemm(&gemm);
}

/* Point a step backward at what its prelude made, row `row` of the tape, and at its gradient, row
 * `place`. */
static void FL_T(receive_made)(const FL_T(fl_backward_run) * run, const fl_tape_direction *tape,
                               const fl_cell_facts *cell, int64_t row, int64_t place,
                               FL_T(fl_backstep) * s)
{
    const fl_recurrent *layer = run->layer;
    const real *state = (const real *)tape->made_state + row * layer->made_row;
    if (cell->is_prelude || cell->transient) {
        s->state = state;
        s->state_row = layer->made_row;
    }
    if (!cell->is_prelude || cell->transient) {
        s->state_prev = state;
        s->state_prev_row = layer->made_row;
    }
    if (cell->is_prelude && fl_main_part(layer)->cell.made_recurs)
        s->dmade = run->dmade + place * layer->plane;
}

/* A step of part `p` backward of the rows from packed row `row`, from `place` in what is kept per
 * sequence. */
static void FL_T(backward_normalized)(const FL_T(fl_backward_run) * run, int index, int p,
                                      int64_t row, int64_t place, FL_T(fl_backstep) * s)
{
    const fl_recurrent *layer = run->layer;
    FL_T(fl_normed_rows)
    at = FL_T(normed_rows)(layer, &run->tape->directions[index].normed, row);
    FL_T(fl_norm_sums)
    sums = FL_T(norm_sums)(layer, run->norm_sums + place * FL_T(norm_sums_row)(layer));
    FL_T(normalized_backstep)(layer, &layer->packed[index], p, &at, &sums,
                              run->normed_scratch + place * 2 * layer->plane, s);
}

/* What goes past the step's cell is set aside: rows from packed row `row`, and from `place` in what
 * is kept per sequence. */
static void FL_T(zone_step_gradient)(const FL_T(fl_backward_run) * run, int index, int64_t row,
                                     int64_t place, const FL_T(fl_backstep) * s)
{
    const fl_recurrent *layer = run->layer;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, end = s->block_end * width;
    FL_T(fl_zone_gradient) zone = FL_T(zone_gradient_of)(run, index, row);
    zone.rows = s->rows;
    zone.units = s->units;
    zone.unit_first = s->block_first * width;
    zone.unit_end = end < layer->plane ? end : layer->plane;
    zone.states = layer->zoned_states;
    zone.stabilised = layer->cell.stabilised;
    zone.state_prev = s->state_prev;
    zone.state_prev_row = s->state_prev_row;
    zone.unzoned = s->state;
    zone.unzoned_row = s->state_row;
    zone.dy = s->dy;
    zone.dy_row = s->dy_row;
    zone.dh = fl_projects(layer) ? NULL : s->dh;
    zone.dh_row = s->dh_row;
    zone.dstate = s->dstate;
    zone.dstate_row = s->dstate_row;
    zone.past_row = (1 + layer->zoned_states) * layer->plane;
    zone.past = run->past + place * zone.past_row;
    run->kernels->zone_gradient(&zone);
}

/* And is added to the gradients before the step, for the share's rows and blocks. */
static void FL_T(add_past)(const FL_T(fl_backward_run) * run, int index, const fl_moment *moment,
                           const fl_share *share, int64_t block_first, int64_t block_end)
{
    const fl_recurrent *layer = run->layer;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, unit_first = block_first * width,
            unit_end = block_end * width < layer->plane ? block_end * width : layer->plane,
            end = share->row_end < moment->rows ? share->row_end : moment->rows,
            first_place = (index % layer->directions) * run->tape->ragged.n;
    int64_t rows = end - share->row_first, place = first_place + share->row_first,
            past_row = (1 + layer->zoned_states) * layer->plane, count = unit_end - unit_first;
    const real *past = run->past + place * past_row + unit_first;
    if (!fl_projects(layer))
        FL_T(add_rows)(run->dh + place * layer->plane + unit_first, layer->plane, past, past_row,
                       rows, count);
    for (int i = 0; i < layer->zoned_states; i++)
        FL_T(add_rows)(run->dstate + place * layer->made_row + i * layer->plane + unit_first,
                       layer->made_row, past + (1 + i) * layer->plane, past_row, rows, count);
}

/* One step backward of part `p`: rows that ran a step after, then rows that ended here. */
static void FL_T(backward_step)(const FL_T(fl_backward_run) * run, int index, int p,
                                const fl_moment *moment, const fl_share *share, int64_t block_first,
                                int64_t block_end)
{
    const fl_recurrent *layer = run->layer;
    const fl_part *part = &layer->part[p];
    const fl_cell_facts *cell = &part->cell;
    const fl_tape_direction *tape = &run->tape->directions[index];
    int64_t n = run->tape->ragged.n, hidden = layer->config.hidden_size,
            y_row = layer->output * layer->directions;
    int64_t state_row = layer->state_row, level = index / layer->directions,
            reverse = index % layer->directions;
    int64_t end = share->row_end < moment->rows ? share->row_end : moment->rows;
    int deferred = FL_T(defers)(run, p);
    const real *dy = cell->is_prelude || fl_projects(layer) ? NULL : FL_T(dy_of)(run, level);
    const real *y = (const real *)run->tape->layers[level].y + reverse * layer->output;
    FL_T(fl_backstep)
    s = {.units = hidden,
         .block_first = block_first,
         .block_end = block_end,
         .weight_t = run->weight_t[index * layer->n_parts + p],
         .peephole = layer->config.truncated ? NULL : layer->packed[index].part[p].peephole,
         .dgates_next_row = layer->gate_row,
         .dy_row = y_row,
         .dh_row = layer->plane,
         .dmade_row = layer->plane,
         .dstate_row = layer->made_row,
         .state_plane = layer->plane,
         .state_prev_row = state_row,
         .state_row = state_row,
         .decay_row = 1,
         .gates_row = layer->gate_row};
    for (int64_t row = share->row_first; row < end; row += s.rows) {
        int continues = row < moment->with_next, started = row >= moment->with_previous;
        int64_t stop = end; /* a run of rows alike: up to where with_next or with_previous cuts */
        if (continues && moment->with_next < stop)
            stop = moment->with_next;
        if (!started && moment->with_previous < stop)
            stop = moment->with_previous;
        s.rows = stop - row;
        s.depth = continues && deferred ? fl_slot_depth(layer, part, part->of_h) : 0;
        s.dgates_next = (const real *)tape->gates +
                        (continues ? moment->next0 + row : 0) * layer->gate_row + part->gate_first;
        s.dy = dy ? dy + (moment->row0 + row) * y_row + reverse * layer->output : NULL;
        s.dh = run->dh + (reverse * n + row) * layer->plane;
        s.dstate = run->dstate + (reverse * n + row) * layer->made_row;
        s.state_prev = started ? (const real *)tape->state0[0] + row * state_row
                               : (const real *)tape->state + (moment->previous0 + row) * state_row;
        s.state = (const real *)tape->state + (moment->row0 + row) * state_row;
        s.h_prev = started ? (const real *)tape->h0 + row * layer->recurrent
                           : y + (moment->previous0 + row) * y_row;
        s.h_prev_row = started ? layer->recurrent : y_row;
        s.decay = run->tape->decay ? (const real *)run->tape->decay + moment->row0 + row : NULL;
        s.mask = tape->mask ? (const real *)tape->mask + row * layer->plane : NULL;
        s.mask_row = layer->plane;
        s.gates = (real *)tape->gates + (moment->row0 + row) * layer->gate_row + part->gate_first;
        if (tape->unzoned)
            s.state = (const real *)tape->unzoned + (moment->row0 + row) * state_row;
        if (layer->zones && !cell->is_prelude) {
            FL_T(zone_step_gradient)(run, index, moment->row0 + row, reverse * n + row, &s);
            s.dy = NULL;
        }
        if (run->dmade)
            FL_T(receive_made)(run, tape, cell, moment->row0 + row, reverse * n + row, &s);
        if (layer->config.layer_norm)
            FL_T(backward_normalized)(run, index, p, moment->row0 + row, reverse * n + row, &s);
        else
            run->kernels->cells[part->cell_index].backward(&s);
    }
}

static void FL_T(backward_direction)(FL_T(fl_backward_run) * run, int index, const fl_share *share)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t blocks = FL_T(unit_blocks)(layer->config.hidden_size, layer->lanes), block_first = 0,
            block_end = blocks;
    if (share->splits_units)
        fl_split(blocks, share->rank, share->group_size, &block_first, &block_end);
    for (int64_t step = ragged->steps; step-- > 0;) {
        fl_moment moment = fl_ragged_moment(ragged, step, index % layer->directions);
        for (int p = layer->n_parts; p-- > 0;) {
            /* the output's gradient takes the product of a projected h */
            int later = FL_T(defers)(run, p) || fl_projects(layer);
            if (fl_projects(layer)) {
                FL_T(output_gradient)(run, index, &moment, share);
                if (share->splits_units)
                    fl_barrier_wait(&run->group[share->group], share->group_size);
                FL_T(unproject)(run, index, &moment, share, block_first, block_end);
            }
            FL_T(backward_step)(run, index, p, &moment, share, block_first, block_end);
            if (share->splits_units)
                fl_barrier_wait(&run->group[share->group], share->group_size);
            if (layer->zones && p == 0)
                FL_T(add_past)(run, index, &moment, share, block_first, block_end);
            if (layer->config.truncated == FL_TRUNCATED)
                continue;
            FL_T(gate_gradient)(run, index, &moment, share, block_first, block_end);
            /* what does not wait for the step before, or what leaves here to the initial states */
            if (!later || run->call->dstates_in)
                FL_T(recurrent_gradient)(run, index, p, later ? moment.with_previous : 0, &moment,
                                         share, block_first, block_end);
        }
    }
}

/* States before the step of packed row (t, s). */
static const real *FL_T(states_before)(const FL_T(fl_backward_run) * run, int index,
                                       const fl_moment *moment, int64_t s)
{
    const fl_tape_direction *tape = &run->tape->directions[index];
    int64_t state_row = run->layer->state_row;
    return s >= moment->with_previous
               ? (const real *)tape->state0[0] + s * state_row
               : (const real *)tape->state + (moment->previous0 + s) * state_row;
}

/* What recurred into part `p` of packed row (t, s): h of the step before, its state 0, or the h
 * that a prelude made. */
static const real *FL_T(recurred)(const FL_T(fl_backward_run) * run, int index, int p,
                                  const fl_moment *moment, int64_t s)
{
    const fl_recurrent *layer = run->layer;
    const fl_cell_facts *cell = &layer->part[p].cell;
    const fl_tape_direction *tape = &run->tape->directions[index];
    int64_t recurrent = layer->recurrent, y_row = layer->output * layer->directions;
    int64_t before = moment->previous0 + s;
    int started = s >= moment->with_previous;
    if (cell->made_recurs)
        return (const real *)tape->made_h + (moment->row0 + s) * layer->plane;
    if (cell->state_recurs)
        return FL_T(states_before)(run, index, moment, s);
    const real *y = run->tape->layers[index / layer->directions].y;
    return started ? (const real *)tape->h0 + s * recurrent
                   : y + before * y_row + index % layer->directions * layer->output;
}

/* `count` values to columns [column, column + count) of row `row` of the panels. */
static void FL_T(put_in_panels)(const FL_T(fl_backward_run) * run, real *inputs, int64_t row,
                                int64_t column, const real *from, int64_t count)
{
    while (count > 0) {
        int64_t within = column % FL_INPUT_PANEL, space = FL_INPUT_PANEL - within,
                part = count < space ? count : space;
        real *panel = inputs + column / FL_INPUT_PANEL * FL_INPUT_PANEL * run->chunk;
        FL_T(copy_row)(panel + row * FL_INPUT_PANEL + within, from, part);
        column += part;
        from += part;
        count -= part;
    }
}

/* Rows [first, first + count) of [x, h_prev, recurring gates, 1] in packed order, as panels of
 * columns, (panels, chunk, FL_INPUT_PANEL). */
static void FL_T(gather_inputs)(const FL_T(fl_backward_run) * run, int index, int p, int64_t first,
                                int64_t count, real *inputs)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    const fl_tape_layer *level = &run->tape->layers[index / layer->directions];
    const real one = 1;
    int reverse = index % layer->directions;
    int64_t input = layer->packed[index].input, hidden = layer->config.hidden_size, t = 0;
    while (ragged->offset[t + 1] <= first)
        t++;
    int64_t depth = FL_T(input_depth)(layer, input);
    for (int64_t k = 0; k < count; k++) {
        int64_t row = first + k;
        if (row >= ragged->offset[t + 1])
            t++;
        fl_moment moment = fl_ragged_moment(ragged, reverse ? ragged->steps - 1 - t : t, reverse);
        int64_t s = row - ragged->offset[t], column = input + layer->recurrent;
        FL_T(put_in_panels)(run, inputs, k, 0, (const real *)level->x + row * input, input);
        FL_T(put_in_panels)(run, inputs, k, input, FL_T(recurred)(run, index, p, &moment, s),
                            layer->recurrent);
        for (int gate = 1; gate <= layer->cell.gate_states; gate++, column += hidden)
            FL_T(put_in_panels)(run, inputs, k, column,
                                FL_T(states_before)(run, index, &moment, s) + gate * layer->plane,
                                hidden);
        FL_T(put_in_panels)(run, inputs, k, depth - 1, &one, 1);
    }
}

/* Columns [column_first, column_end) of `count` rows of a packed gradient, `stride` apart, -> rows
 * of a weight matrix (gates*hidden, count); in squares that stay in cache. */
static void FL_T(unpack_rows)(const fl_recurrent *layer, const fl_part *part, const int *gate_of,
                              const real *gradient, int64_t stride, int64_t count,
                              int64_t column_first, int64_t column_end, real *weight)
{
    enum { SIDE = 64 };
    for (int64_t left = column_first; left < column_end; left += SIDE)
        for (int64_t top = 0; top < count; top += SIDE) {
            int64_t right = left + SIDE < column_end ? left + SIDE : column_end,
                    end = top + SIDE < count ? top + SIDE : count;
            for (int64_t column = left; column < right; column++) {
                int64_t row = fl_weight_row(layer, part, column, gate_of);
                for (int64_t k = top; row >= 0 && k < end; k++)
                    weight[row * count + k] = gradient[k * stride + column];
            }
        }
}

/* Columns [column_first, column_end) of the (input_depth, gate_stride) gradient -> flat
 * gradients. */
static void FL_T(unpack_gradient)(const FL_T(fl_backward_run) * run, int index, const fl_part *part,
                                  const real *gradient, int64_t column_first, int64_t column_end)
{
    const fl_recurrent *layer = run->layer;
    int64_t stride = part->gate_stride, input = layer->packed[index].input,
            gates = fl_recurring_gates(layer), width = layer->recurrent;
    FL_T(fl_arrays) to = FL_T(arrays_of)(layer, index, run->call->gradients);
    const real *recurrent = gradient + input * stride, *of_gates = recurrent + width * stride,
               *bias = of_gates + gates * stride;
    FL_T(unpack_rows)(layer, part, part->cell.x_gate, gradient, stride, input, column_first,
                      column_end, to.weight_ih);
    FL_T(unpack_rows)(layer, part, part->cell.h_gate, recurrent, stride, width, column_first,
                      column_end, to.weight_hh);
    if (gates)
        FL_T(unpack_rows)(layer, part, part->cell.g_gate, of_gates, stride, gates, column_first,
                          column_end, to.weight_gg);
    if (!to.bias_ih)
        return;
    FL_T(unpack_rows)(layer, part, part->cell.x_gate, bias, stride, 1, column_first, column_end,
                      to.bias_ih);
    FL_T(unpack_rows)(layer, part, part->cell.h_gate, bias, stride, 1, column_first, column_end,
                      to.bias_hh);
}

static void FL_T(add_products)(real *restrict sums, const real *restrict a, const real *restrict b,
                               int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sums[i] += a[i] * b[i];
}

/* Gradients of the peepholes of panels [first, end): sums over all real steps of the slot's
 * gradient times the state it saw, one unit one sum. */
static void FL_T(peephole_gradients)(const FL_T(fl_backward_run) * run, int index, int64_t first,
                                     int64_t end)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    const fl_tape_direction *tape = &run->tape->directions[index];
    int64_t hidden = layer->config.hidden_size, lanes = layer->lanes, state_row = layer->state_row,
            slots = layer->cell.slots;
    int64_t gate_first = fl_main_part(layer)->gate_first;
    int reverse = index % layer->directions;
    FL_T(fl_arrays) to = FL_T(arrays_of)(layer, index, run->call->gradients);
    for (int p = 0; p < layer->cell.n_peepholes; p++) {
        const fl_peephole *peephole = &layer->cell.peephole[p];
        real *sums = to.peephole + p * hidden;
        for (int64_t unit = first * lanes; unit < end * lanes && unit < hidden; unit++)
            sums[unit] = 0;
        for (int64_t step = 0; step < ragged->steps; step++) {
            fl_moment moment = fl_ragged_moment(ragged, step, reverse);
            for (int64_t s = 0; s < moment.rows; s++) {
                const real *state = FL_T(states_before)(run, index, &moment, s);
                if (peephole->current)
                    state = (const real *)(tape->unzoned ? tape->unzoned : tape->state) +
                            (moment.row0 + s) * state_row;
                state += peephole->state * layer->plane;
                const real *gates = (const real *)tape->gates +
                                    (moment.row0 + s) * layer->gate_row + gate_first +
                                    peephole->slot * lanes;
                for (int64_t panel = first; panel < end; panel++) {
                    int64_t left = hidden - panel * lanes, count = left < lanes ? left : lanes;
                    FL_T(add_products)(sums + panel * lanes, state + panel * lanes,
                                       gates + panel * slots * lanes, count);
                }
            }
        }
    }
}

/* What of [x, h_prev, gates, 1] shares the gradients that multiply it: all of it, or, where each
 * product is normalised or has slots of its own, what is in the same. Returns how many there are.
 */
typedef struct FL_T(fl_section) {
    int64_t first, end;
    const real *dgates;
    fl_slots vectors; /* of a block of gate columns that there are products for */
} FL_T(fl_section);
static int FL_T(sections_of)(const FL_T(fl_backward_run) * run, int index, const fl_part *part,
                             FL_T(fl_section) sections[4])
{
    const fl_recurrent *layer = run->layer;
    const fl_tape_direction *tape = &run->tape->directions[index];
    int64_t input = layer->packed[index].input, depth = FL_T(input_depth)(layer, input),
            gates = input + layer->recurrent;
    const fl_slots all = {0, FL_BLOCK_VECTORS};
    int count = 0;
    sections[0] = (FL_T(fl_section)){0, depth, tape->gates, all};
    if (!layer->config.layer_norm && fl_slot_depth(layer, part, part->of_x) < part->gate_columns &&
        !run->on_tiles) {
        sections[count++] = (FL_T(fl_section)){0, input, tape->gates, part->of_x};
        sections[count++] = (FL_T(fl_section)){input, gates, tape->gates, part->of_h};
        sections[count++] = (FL_T(fl_section)){gates, depth, tape->gates, all};
        return count;
    }
    if (!layer->config.layer_norm)
        return 1;
    if (part->sees_x)
        sections[count++] = (FL_T(fl_section)){0, input, tape->normed.x, all};
    sections[count++] = (FL_T(fl_section)){input, gates, tape->normed.h, all};
    if (part->cell.gate_states)
        sections[count++] = (FL_T(fl_section)){gates, depth - 1, tape->normed.g, all};
    sections[count++] = (FL_T(fl_section)){depth - 1, depth, tape->gates, all};
    return count;
}

/* A chunk of `count` rows of a block of the gradient, (., columns) of rows `stride` apart: += or,
 * for the first chunk, =. The rows of the section, of the inputs that the thread has gathered. */
static void FL_T(add_section)(const FL_T(fl_backward_run) * run, int thread,
                              const FL_T(fl_section) * section, int64_t count, int adds,
                              real *gradient, int64_t stride, int64_t columns)
{
    int64_t skipped = fl_first_column(run->layer, section->vectors);
    FL_T(fl_gemm)
    gemm = {.depth = count,
            .columns = columns - skipped,
            .block_end = 1,
            .a_row = 1,
            .a_depth = FL_INPUT_PANEL,
            .b = run->scratch[thread].dgates + skipped,
            .b_depth = FL_BLOCK_VECTORS * run->layer->lanes,
            .vectors = section->vectors.count,
            .init_row = stride,
            .c_row = stride};
    for (int64_t column = section->first; column < section->end; column += gemm.rows) {
        int64_t within = column % FL_INPUT_PANEL, space = FL_INPUT_PANEL - within,
                here = section->end - column;
        gemm.rows = here < space ? here : space;
        gemm.a = run->scratch[thread].inputs + (column - within) * run->chunk + within;
        gemm.c = gradient + column * stride + skipped;
        gemm.init = adds ? gemm.c : NULL;
        run->kernels->gemm(&gemm);
    }
}

static int64_t FL_T(input_panels)(const fl_recurrent *layer, int64_t input)
{
    return (FL_T(input_depth)(layer, input) + FL_INPUT_PANEL - 1) / FL_INPUT_PANEL;
}

/* Values of 16 bits of a panel of inputs, split. */
static int64_t FL_T(split_panel_size)(const FL_T(fl_backward_run) * run)
{
    return FL_INPUT_PANEL * fl_tile_row_size(run->chunk, run->layer->tile_parts);
}

/* The inputs that the thread has gathered, for tiles. */
static void FL_T(split_inputs)(const FL_T(fl_backward_run) * run, int index, int thread,
                               int64_t count)
{
    const fl_recurrent *layer = run->layer;
    FL_T(fl_gradient_scratch) *scratch = &run->scratch[thread];
    for (int64_t k = 0; k < FL_T(input_panels)(layer, layer->packed[index].input); k++) {
        fl_tile_operand panel = {
            .values = (const void *)(scratch->inputs + k * FL_INPUT_PANEL * run->chunk),
            .rows = FL_INPUT_PANEL,
            .depth = count,
            .row_stride = 1,
            .depth_stride = FL_INPUT_PANEL,
            .parts = layer->tile_parts,
            .to = scratch->split_inputs + k * FL_T(split_panel_size)(run)};
        layer->tiles->split_columns(&panel);
    }
}

/* As add_section, which on tiles is all of the inputs. */
static void FL_T(add_section_on_tiles)(const FL_T(fl_backward_run) * run, int thread,
                                       const FL_T(fl_section) * section, int64_t count, int adds,
                                       real *gradient, int64_t stride, int64_t columns)
{
    const fl_recurrent *layer = run->layer;
    FL_T(fl_gradient_scratch) *scratch = &run->scratch[thread];
    int64_t width = FL_BLOCK_VECTORS * layer->lanes;
    fl_tile_operand block = {.values = (const void *)scratch->dgates,
                             .rows = width,
                             .depth = count,
                             .row_stride = 1,
                             .depth_stride = width,
                             .parts = layer->tile_parts,
                             .to = scratch->split_dgates};
    layer->tiles->split_block(&block);
    for (int64_t column = 0; column < section->end; column += FL_INPUT_PANEL) {
        int64_t left = section->end - column;
        void *c = gradient + column * stride;
        fl_tile_gemm gemm = {.rows = FL_INPUT_PANEL,
                             .rows_written = left < FL_INPUT_PANEL ? left : FL_INPUT_PANEL,
                             .depth = count,
                             .block_end = 1,
                             .width = width,
                             .columns = columns,
                             .parts = layer->tile_parts,
                             .a = scratch->split_inputs +
                                  column / FL_INPUT_PANEL * FL_T(split_panel_size)(run),
                             .b = scratch->split_dgates,
                             .init = adds ? c : NULL,
                             .init_row = stride,
                             .c = c,
                             .c_row = stride};
        layer->tiles->gemm(&gemm);
    }
}

/* Gradients of one layer's weights: dgates^T [x, h_prev, gates, 1] over all real steps, in chunks
 * of rows; the thread's share is a range of gate blocks, so every sum has one order. */
static void FL_T(weight_gradients)(FL_T(fl_backward_run) * run, int index, int p, int thread,
                                   int n_threads)
{
    const fl_recurrent *layer = run->layer;
    const fl_part *part = &layer->part[p];
    int64_t width = FL_BLOCK_VECTORS * layer->lanes,
            blocks = (part->gate_columns + width - 1) / width, first, end;
    int64_t columns = FL_T(input_depth)(layer, layer->packed[index].input),
            total = run->tape->ragged.rows;
    real *gradient = run->weight_gradient +
                     (index % layer->directions) * columns * layer->gate_row +
                     columns * part->gate_first;
    real *inputs = run->scratch[thread].inputs, *dgates = run->scratch[thread].dgates;
    FL_T(fl_section) sections[4];
    int n_sections = FL_T(sections_of)(run, index, part, sections);
    fl_split(blocks, thread, n_threads, &first, &end);
    for (int64_t row = 0; row < total && first < end; row += run->chunk) {
        int64_t count = total - row < run->chunk ? total - row : run->chunk;
        FL_T(gather_inputs)(run, index, p, row, count, inputs);
        if (run->on_tiles)
            FL_T(split_inputs)(run, index, thread, count);
        for (int64_t k = first * n_sections; k < end * n_sections; k++) {
            const FL_T(fl_section) *section = &sections[k % n_sections];
            int64_t block = k / n_sections;
            int64_t left = part->gate_stride - block * width, used = left < width ? left : width;
            const real *from =
                section->dgates + row * layer->gate_row + part->gate_first + block * width;
            int copied = k % n_sections && section->dgates == section[-1].dgates;
            for (int64_t i = 0; !copied && i < count; i++)
                FL_T(copy_row)(dgates + i * width, from + i * layer->gate_row, used);
            real *to = gradient + block * width;
            if (run->on_tiles)
                FL_T(add_section_on_tiles)(run, thread, section, count, row > 0, to,
                                           part->gate_stride, part->gate_columns - block * width);
            else
                FL_T(add_section)(run, thread, section, count, row > 0, to, part->gate_stride,
                                  part->gate_columns - block * width);
        }
    }
    int64_t column_end = end * width < part->gate_columns ? end * width : part->gate_columns;
    FL_T(unpack_gradient)(run, index, part, gradient, first * width, column_end);
    fl_split(layer->panels, thread, n_threads, &first, &end);
    if (p == layer->n_parts - 1)
        FL_T(peephole_gradients)(run, index, first, end);
}

/* Gradient of the projection of a layer and direction: doutput^T (what it multiplied), over all
 * real steps; the thread's share is a range of units. */
static void FL_T(projection_gradient)(const FL_T(fl_backward_run) * run, int index, int thread,
                                      int n_threads)
{
    const fl_recurrent *layer = run->layer;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, rows = run->tape->ragged.rows,
            hidden = layer->config.hidden_size;
    FL_T(fl_gemm)
    gemm = {.rows = layer->output,
            .depth = rows,
            .columns = hidden,
            .a = run->doutput + index % layer->directions * rows * layer->output,
            .a_row = 1,
            .a_depth = layer->output,
            .b = run->tape->directions[index].unprojected,
            .b_block = width,
            .b_depth = layer->wide,
            .vectors = FL_BLOCK_VECTORS,
            .c = FL_T(arrays_of)(layer, index, run->call->gradients).weight_hr,
            .c_row = hidden};
    fl_split(layer->wide / width, thread, n_threads, &gemm.block_first, &gemm.block_end);
    if (gemm.block_first < gemm.block_end)
        run->kernels->gemm(&gemm);
}

/* dx of a layer = sum over directions and parts of dgates W, for packed rows [first, end). */
static void FL_T(input_gradient)(const FL_T(fl_backward_run) * run, int64_t level, int thread,
                                 int64_t first, int64_t end)
{
    const fl_recurrent *layer = run->layer;
    int written = 0;
    for (int k = 0; k < layer->directions * layer->n_parts && end > first; k++) {
        int index = (int)level * layer->directions + k / layer->n_parts;
        const fl_part *part = &layer->part[k % layer->n_parts];
        int64_t input = layer->packed[index].input;
        real *dx = run->dx[level & 1] + first * input;
        if (!part->sees_x)
            continue;
        const fl_tape_direction *tape = &run->tape->directions[index];
        const real *dgates = layer->config.layer_norm ? tape->normed.x : tape->gates;
        FL_T(fl_gemm)
        gemm = {.rows = end - first,
                .columns = input,
                .block_end = FL_T(unit_blocks)(input, layer->lanes),
                .b = run->weight_xt[index * layer->n_parts + k % layer->n_parts],
                .init = written ? dx : NULL,
                .init_row = input,
                .c = dx,
                .c_row = input};
        FL_T(take_dgates)(run, part, 0, dgates + first * layer->gate_row, &gemm);
        FL_T(multiply)(run, thread, &gemm,
                       run->tiles_xt[index * layer->n_parts + k % layer->n_parts]);
        written = 1;
    }
}

/* Through the dropout of a layer's input: dx *= factor, for steps [first, end). */
static void FL_T(drop_gradient)(const FL_T(fl_backward_run) * run, int64_t level, int64_t first,
                                int64_t end)
{
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t columns = run->layer->output * run->layer->directions;
    for (int64_t t = first; t < end; t++)
        run->kernels->multiply(run->dx[level & 1] + ragged->offset[t] * columns,
                               run->tape->layers[level].factor, ragged->batch[t] * columns);
}

/* Part of a level that starts from all its gate gradients: weights, then the layer below. */
static void FL_T(backward_level_products)(FL_T(fl_backward_run) * run, int64_t level, int thread,
                                          int n_threads)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t first, end;
    for (int d = 0; d < layer->directions; d++) {
        int index = (int)level * layer->directions + d;
        for (int p = 0; p < layer->n_parts; p++)
            FL_T(weight_gradients)(run, index, p, thread, n_threads);
        if (fl_projects(layer))
            FL_T(projection_gradient)(run, index, thread, n_threads);
    }
    if (level || run->call->dx) {
        fl_split(ragged->rows, thread, n_threads, &first, &end);
        FL_T(input_gradient)(run, level, thread, first, end);
        fl_barrier_wait(&run->all, n_threads);
        if (run->tape->layers[level].factor) {
            fl_split(ragged->steps, thread, n_threads, &first, &end);
            FL_T(drop_gradient)(run, level, first, end);
        }
    }
    fl_barrier_wait(&run->all, n_threads);
}

/* Gradients at the final states into dh and dstate, one level and the directions of the share. */
static void FL_T(begin_level)(const FL_T(fl_backward_run) * run, int64_t level)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t hidden = layer->config.hidden_size, state_row = layer->made_row;
    for (int64_t i = 0;
         run->norm_sums && i < layer->directions * ragged->n * FL_T(norm_sums_row)(layer); i++)
        run->norm_sums[i] = 0;
    for (int d = 0; run->dmade && d < layer->directions; d++) /* its padding stays zero */
        FL_T(gather_state)(ragged, NULL, hidden, run->dmade + d * ragged->n * layer->plane,
                           layer->plane, layer->plane);
    for (int d = 0; d < layer->directions; d++)
        for (int i = 0; i <= layer->cell.states; i++) { /* those that are not carried: zero */
            int carried = run->call->dstates_out && i <= layer->states;
            const real *given = carried ? run->call->dstates_out[i] : NULL;
            int64_t width = i ? hidden : layer->recurrent;
            given = given ? given + (level * layer->directions + d) * ragged->n * width : NULL;
            if (i == 0 && fl_projects(layer)) {
                FL_T(gather_state)(ragged, given, width,
                                   run->dh_projected + d * ragged->n * layer->recurrent_plane,
                                   layer->recurrent_plane, layer->recurrent_plane);
                given = NULL;
            }
            if (i == 0)
                FL_T(gather_state)(ragged, given, hidden, run->dh + d * ragged->n * layer->plane,
                                   layer->plane, layer->plane);
            else
                FL_T(gather_state)(ragged, given, hidden,
                                   run->dstate + d * ragged->n * state_row + (i - 1) * layer->plane,
                                   state_row, layer->plane);
        }
}

static void FL_T(end_level)(const FL_T(fl_backward_run) * run, int64_t level)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t hidden = layer->config.hidden_size, state_row = layer->made_row;
    for (int d = 0; run->norm_sums && d < layer->directions; d++)
        FL_T(unpack_norm_sums)(layer, (int)level * layer->directions + d, ragged->n,
                               run->norm_sums + d * ragged->n * FL_T(norm_sums_row)(layer),
                               run->call->gradients);
    for (int d = 0; run->call->dstates_in && d < layer->directions; d++) {
        int64_t at = (level * layer->directions + d) * ragged->n, width = layer->recurrent;
        for (int i = 0; i <= layer->states; i++) {
            real *to = run->call->dstates_in[i];
            if (to && i == 0 && fl_projects(layer))
                FL_T(scatter_state)(ragged,
                                    run->dh_projected + d * ragged->n * layer->recurrent_plane,
                                    layer->recurrent_plane, width, to + at * width);
            else if (to && i == 0)
                FL_T(scatter_state)(ragged, run->dh + d * ragged->n * layer->plane, layer->plane,
                                    hidden, to + at * hidden);
            else if (to)
                FL_T(scatter_state)(
                    ragged, run->dstate + d * ragged->n * state_row + (i - 1) * layer->plane,
                    state_row, hidden, to + at * hidden);
        }
    }
}

/* The transposed weights, blocks shared out among the threads. */
static void FL_T(pack_backward_weights)(const FL_T(fl_backward_run) * run, int thread,
                                        int n_threads)
{
    const fl_recurrent *layer = run->layer;
    int64_t hidden = layer->config.hidden_size, width = FL_BLOCK_VECTORS * layer->lanes, first, end;
    for (int k = 0; k < layer->n_packed * layer->n_parts; k++) {
        int index = k / layer->n_parts;
        const fl_part *part = &layer->part[k % layer->n_parts];
        int64_t input = layer->packed[index].input;
        FL_T(fl_arrays) arrays = FL_T(arrays_of)(layer, index, run->parameters);
        fl_split(FL_T(unit_blocks)(layer->recurrent, layer->lanes), thread, n_threads, &first,
                 &end);
        FL_T(pack_transposed)(layer, part, arrays.weight_hh, layer->recurrent, part->cell.h_gate,
                              FL_T(taken_slots)(run, part, 1), layer->recurrent, first, end,
                              run->weight_t[k]);
        if (run->on_tiles)
            fl_pack_tiles(layer, run->weight_t[k], first, end, part->gate_columns, width,
                          run->tiles_t[k]);
        if (fl_projects(layer) && thread == index % n_threads)
            FL_T(pack_plain)(arrays.weight_hr, layer->output, hidden, hidden, 1,
                             FL_BLOCK_VECTORS * layer->lanes, run->projection_t[index]);
        fl_split(FL_T(unit_blocks)(hidden, layer->lanes), thread, n_threads, &first, &end);
        for (int gate = 0; gate < part->cell.gate_states; gate++)
            FL_T(pack_transposed)(
                layer, part, arrays.weight_gg + gate * hidden, fl_recurring_gates(layer),
                part->cell.g_gate, FL_T(taken_slots)(run, part, 1), hidden, first, end,
                run->weight_gt[index] + gate * FL_T(unit_blocks)(hidden, layer->lanes) *
                                            FL_BLOCK_VECTORS * layer->lanes * part->gate_columns);
        if (run->weight_xt[k]) {
            fl_split(FL_T(unit_blocks)(input, layer->lanes), thread, n_threads, &first, &end);
            FL_T(pack_transposed)(layer, part, arrays.weight_ih, input, part->cell.x_gate,
                                  FL_T(taken_slots)(run, part, 0), input, first, end,
                                  run->weight_xt[k]);
            if (run->on_tiles)
                fl_pack_tiles(layer, run->weight_xt[k], first, end, part->gate_columns, width,
                              run->tiles_xt[k]);
        }
    }
}

static void FL_T(backward_thread)(void *argument, int thread, int n_threads)
{
    FL_T(fl_backward_run) *run = argument;
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t first, end, columns = layer->output * layer->directions;
    fl_split(ragged->steps, thread, n_threads, &first, &end);
    FL_T(pack_backward_weights)(run, thread, n_threads);
    if (run->dy_top)
        FL_T(gather_rows)(ragged, run->call->dy, run->call->dy_start, columns, first, end,
                          run->dy_top);
    fl_share share = fl_recurrent_share(layer, ragged, thread, n_threads);
    for (int64_t level = layer->config.num_layers; level-- > 0;) {
        if (thread == 0)
            FL_T(begin_level)(run, level);
        fl_barrier_wait(&run->all, n_threads);
        for (int d = share.direction_first; d < share.direction_end; d++)
            FL_T(backward_direction)(run, (int)level * layer->directions + d, &share);
        fl_barrier_wait(&run->all, n_threads);
        if (thread == 0)
            FL_T(end_level)(run, level);
        FL_T(backward_level_products)(run, level, thread, n_threads);
    }
    if (run->call->dx)
        FL_T(scatter_rows)(ragged, run->dx[0], layer->config.input_size, first, end, run->call->dx,
                           run->call->dx_start);
}

static void FL_T(backward_layout)(FL_T(fl_backward_run) * run, fl_arena *arena)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t hidden = layer->config.hidden_size, D = layer->directions, L = layer->config.num_layers,
            width = FL_BLOCK_VECTORS * layer->lanes;
    int64_t upper = layer->output * D,
            widest = layer->config.input_size > upper || L == 1 ? layer->config.input_size : upper;
    int64_t columns = FL_T(input_depth)(layer, widest);
    int64_t panels = FL_T(input_panels)(layer, widest);
    run->on_tiles = fl_call_format(layer, ragged->n) == FL_WEIGHTS_TILES;
    run->chunk = FL_GRADIENT_ROWS < ragged->rows ? FL_GRADIENT_ROWS : ragged->rows;
    run->dy_top = run->call->dy ? fl_arena_take(arena, ragged->rows * upper, sizeof(real)) : NULL;
    run->dx[0] =
        run->call->dx || L > 2
            ? fl_arena_take(arena, ragged->rows * (L > 2 ? widest : layer->config.input_size),
                            sizeof(real))
            : NULL;
    run->dx[1] = L > 1 ? fl_arena_take(arena, ragged->rows * upper, sizeof(real)) : NULL;
    run->dh = fl_arena_take(arena, D * ragged->n * layer->plane, sizeof(real));
    run->dstate = fl_arena_take(arena, D * ragged->n * layer->made_row, sizeof(real));
    run->dmade = layer->n_parts > 1
                     ? fl_arena_take(arena, D * ragged->n * layer->plane, sizeof(real))
                     : NULL;
    run->past = layer->zones
                    ? fl_arena_take(arena, D * ragged->n * (1 + layer->zoned_states) * layer->plane,
                                    sizeof(real))
                    : NULL;
    if (layer->config.layer_norm) {
        run->norm_sums =
            fl_arena_take(arena, D * ragged->n * FL_T(norm_sums_row)(layer), sizeof(real));
        run->normed_scratch = fl_arena_take(arena, D * ragged->n * 2 * layer->plane, sizeof(real));
    }
    if (fl_projects(layer)) {
        run->dh_projected =
            fl_arena_take(arena, D * ragged->n * layer->recurrent_plane, sizeof(real));
        run->doutput = fl_arena_take(arena, D * ragged->rows * layer->output, sizeof(real));
        run->projection_t = fl_arena_take(arena, layer->n_packed, sizeof(real *));
        for (int index = 0; index < layer->n_packed; index++) {
            void *packed = fl_arena_take(arena, layer->output * layer->wide, sizeof(real));
            if (arena->memory)
                run->projection_t[index] = packed;
        }
    }
    run->weight_t = fl_arena_take(arena, layer->n_packed * layer->n_parts, sizeof(real *));
    run->weight_xt = fl_arena_take(arena, layer->n_packed * layer->n_parts, sizeof(real *));
    run->tiles_t = fl_arena_take(arena, layer->n_packed * layer->n_parts, sizeof(uint16_t *));
    run->tiles_xt = fl_arena_take(arena, layer->n_packed * layer->n_parts, sizeof(uint16_t *));
    for (int k = 0; k < layer->n_packed * layer->n_parts; k++) {
        int index = k / layer->n_parts;
        const fl_part *part = &layer->part[k % layer->n_parts];
        int64_t input = layer->packed[index].input;
        int wants_dx = part->sees_x && (index >= layer->directions || run->call->dx);
        void *recurrent = fl_arena_take(
            arena, FL_T(unit_blocks)(layer->recurrent, layer->lanes) * width * part->gate_columns,
            sizeof(real));
        void *below =
            wants_dx
                ? fl_arena_take(arena,
                                FL_T(unit_blocks)(input, layer->lanes) * width * part->gate_columns,
                                sizeof(real))
                : NULL;
        int64_t blocks = run->on_tiles ? FL_T(unit_blocks)(layer->recurrent, layer->lanes) : 0,
                blocks_below =
                    run->on_tiles && wants_dx ? FL_T(unit_blocks)(input, layer->lanes) : 0;
        void *tiles = fl_arena_take(arena, fl_tiles_size(layer, blocks, part->gate_columns, width),
                                    sizeof(uint16_t));
        void *tiles_below = fl_arena_take(
            arena, fl_tiles_size(layer, blocks_below, part->gate_columns, width), sizeof(uint16_t));
        if (arena->memory) {
            run->weight_t[k] = recurrent;
            run->weight_xt[k] = below;
            run->tiles_t[k] = tiles;
            run->tiles_xt[k] = tiles_below;
        }
    }
    run->weight_gt = fl_arena_take(arena, layer->n_packed, sizeof(real *));
    for (int index = 0; index < layer->n_packed; index++) {
        void *gates =
            fl_arena_take(arena,
                          layer->cell.gate_states * FL_T(unit_blocks)(hidden, layer->lanes) *
                              width * fl_main_part(layer)->gate_columns,
                          sizeof(real));
        if (arena->memory)
            run->weight_gt[index] = gates;
    }
    run->weight_gradient = fl_arena_take(arena, D * columns * layer->gate_row, sizeof(real));
    run->scratch = fl_arena_take(arena, run->n_threads, sizeof *run->scratch);
    for (int thread = 0; thread < run->n_threads; thread++) {
        FL_T(fl_gradient_scratch)
        scratch = {.inputs =
                       fl_arena_take(arena, run->chunk * panels * FL_INPUT_PANEL, sizeof(real)),
                   .dgates = fl_arena_take(arena, run->chunk * width, sizeof(real))};
        if (run->on_tiles) {
            int64_t rows = FL_GRADIENT_ROWS > ragged->n ? FL_GRADIENT_ROWS : ragged->n;
            scratch.prepared.rows = fl_arena_take(
                arena, rows + FL_TILE_PADDING,
                sizeof(uint16_t) * (size_t)fl_tile_row_size(layer->gate_row, layer->tile_parts));
            scratch.split_inputs = fl_arena_take(
                arena, panels, sizeof(uint16_t) * (size_t)FL_T(split_panel_size)(run));
            scratch.split_dgates =
                fl_arena_take(arena, fl_tiles_size(layer, 1, run->chunk, width), sizeof(uint16_t));
        }
        if (arena->memory)
            run->scratch[thread] = scratch;
    }
}

fl_status FL_T(fl_recurrent_backward)(const fl_recurrent *layer, const fl_backward *call)
{
    FL_T(fl_backward_run)
    run = {.layer = layer,
           .call = call,
           .tape = call->tape,
           .kernels = &layer->isa->FL_SUFFIX,
           .parameters = call->parameters};
    fl_arena *arena = &call->tape->backward_arena;
    run.n_threads = fl_recurrent_threads(layer, &call->tape->ragged, fl_team_size(call->n_threads));
    arena->used = 0;
    arena->overflow = 0;
    fl_arena measure = {0};
    FL_T(backward_layout)(&run, &measure);
    arena->used = measure.used;
    arena->overflow = measure.overflow;
    fl_status status = fl_arena_commit(arena);
    if (status != FL_OK)
        return status;
    FL_T(backward_layout)(&run, arena);
    fl_barrier_init(&run.all);
    fl_barrier_init(&run.group[0]);
    fl_barrier_init(&run.group[1]);
    fl_team_run(run.n_threads, FL_T(backward_thread), &run);
    return FL_OK;
}
