/* One step back in time of one layer and direction, and the loop over its steps, for one dtype. */

/* 1: the recurrent product of a part's gradient is left to the step before. */
static int FL_T(defers)(const FL_T(fl_backward_run) * run, int p)
{
    const fl_recurrent *layer = run->layer;
    const fl_cell_facts *cell = &layer->part[p].cell;
    return !cell->is_prelude && !cell->made_recurs && !layer->config.layer_norm && !layer->zones &&
           !fl_projects(layer) && layer->config.truncated != FL_TRUNCATED;
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
            recurrent = layer->recurrent, kept_row = layer->recurrent_plane, dy_row,
            block_first = 0, block_end = FL_T(unit_blocks)(output, layer->lanes),
            recurring = FL_T(unit_blocks)(recurrent, layer->lanes);
    if (share->splits_units)
        fl_split(block_end, share->rank, share->group_size, &block_first, &block_end);
    int64_t first = share->row_first,
            end = share->row_end < moment->rows ? share->row_end : moment->rows,
            continuing = moment->with_next < end ? moment->with_next : end,
            column_end = block_end * width < output ? block_end * width : output;
    const real *dy = FL_T(dy_of)(run, index / layer->directions, moment, 0, &dy_row);
    real *kept = run->dh_projected + reverse * run->tape->ragged.n * kept_row;
    real *to = run->doutput + (reverse * run->tape->ragged.rows + moment->row0) * output;
    for (int64_t row = first; row < end; row++)
        for (int64_t j = block_first * width; j < column_end; j++) {
            real sum = dy ? dy[row * dy_row + reverse * output + j] : 0;
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
    FL_T(normalized_backstep)(layer, &run->packed[index], p, &at, &sums,
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
static void FL_T(backward_step)(const FL_T(fl_backward_run) * run, int index, int p, int64_t step,
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
    const real *y = (const real *)run->tape->layers[level].y + reverse * layer->output;
    FL_T(fl_backstep)
    s = {.units = hidden,
         .block_first = block_first,
         .block_end = block_end,
         .descending = step & 1,
         .weight_t = run->weight_t[index * layer->n_parts + p],
         .peephole = layer->config.truncated ? NULL : run->packed[index].part[p].peephole,
         .dgates_next_row = layer->gate_row,
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
        s.dy = cell->is_prelude || fl_projects(layer)
                   ? NULL
                   : FL_T(dy_of)(run, level, moment, row, &s.dy_row);
        if (s.dy)
            s.dy += reverse * layer->output;
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
        else if (run->on_tiles && s.depth)
            fl_backstep_on_tiles(layer, p, run->tiles_t[index * layer->n_parts + p],
                                 &run->scratch[share->thread].prepared, &s);
        else
            run->kernels->cells[part->cell_index].backward(&s);
    }
}

/* Steps [begin, stop) of a layer and direction, in running order, from the last to the first. */
static void FL_T(backward_direction)(FL_T(fl_backward_run) * run, int index, const fl_share *share,
                                     int64_t begin, int64_t stop)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t blocks = FL_T(unit_blocks)(layer->config.hidden_size, layer->lanes), block_first = 0,
            block_end = blocks;
    if (share->splits_units)
        fl_split(blocks, share->rank, share->group_size, &block_first, &block_end);
    for (int64_t step = stop; step-- > begin;) {
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
            FL_T(backward_step)(run, index, p, step, &moment, share, block_first, block_end);
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
