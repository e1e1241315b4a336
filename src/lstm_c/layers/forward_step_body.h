/* One step of one layer and direction, the projections of its input and output, and the loop over
 * its steps, for one dtype. */

typedef struct FL_T(fl_forward_run) {
    const fl_recurrent *layer;
    const fl_forward *call;
    fl_tape *tape;
    const FL_T(fl_kernels) * kernels;
    int64_t chunk_rows; /* rows of gate columns that a thread's scratch holds */
    fl_plan plan;
    fl_lanes lanes;
    fl_barrier all, group[2];
} FL_T(fl_forward_run);

/* Whether x W of steps of `rows` sequences is a product of its own. For a column of gates, that
 * saves reading `input` weights a step and costs writing and reading `rows` sums. Where gates
 * recur, they take the place of x in the step. */
static int FL_T(hoists)(const fl_recurrent *layer, const fl_tape *tape, const fl_packed *packed,
                        int64_t rows)
{
    enum { WEIGHTS_PER_SUM = 32 };
    int plain = fl_call_format(layer, tape->ragged.n) == FL_WEIGHTS_PLAIN;
    return layer->cell.gate_states || layer->config.layer_norm ||
           fl_format_hoists(layer, tape->ragged.n) ||
           fl_projects_on_tiles(layer, &tape->ragged, packed->input) ||
           (plain && tape->ragged.steps > 1 && packed->input > WEIGHTS_PER_SUM * rows);
}

/* Gate rows of a step: in training their place on the tape, in inference in the thread's scratch.
 */
static real *FL_T(gate_rows)(const FL_T(fl_forward_run) * run, const fl_tape_direction *direction,
                             const fl_moment *moment, int64_t chunk_first, const fl_share *share)
{
    if (run->tape->training)
        return (real *)direction->gates + (moment->row0 + share->row_first) * run->layer->gate_row;
    return (real *)run->tape->scratch[share->thread] + chunk_first * run->layer->gate_row;
}

/* Blocks of a part that the share computes. */
static void FL_T(share_blocks)(const fl_part *part, const fl_share *share, int64_t *first,
                               int64_t *end)
{
    *first = 0;
    *end = part->blocks;
    if (share->splits_units)
        fl_split(part->blocks, share->rank, share->group_size, first, end);
}

/* Format of the weights that the input projection multiplies by. */
static fl_weight_format FL_T(projecting_format)(const FL_T(fl_forward_run) * run, int64_t input)
{
    const fl_ragged *ragged = &run->tape->ragged;
    return fl_projects_on_tiles(run->layer, ragged, input) ? FL_WEIGHTS_TILES
                                                           : fl_call_format(run->layer, ragged->n);
}

/* Rows of the input projection of part `p`, in groups where those of x and of the gates are not
 * 0. */
static void FL_T(project_rows)(const FL_T(fl_forward_run) * run, int index, int p,
                               const fl_share *share, const FL_T(fl_gemm) * gemm,
                               fl_row_groups of_x, fl_row_groups of_gates)
{
    const fl_recurrent *layer = run->layer;
    if (!gemm->rows)
        return;
    fl_product product = {.format = FL_T(projecting_format)(run, gemm->depth),
                          .rows = gemm->rows,
                          .block_first = gemm->block_first,
                          .block_end = gemm->block_end,
                          .a = gemm->a,
                          .a_row = gemm->a_row,
                          .init = gemm->init,
                          .c = gemm->c,
                          .c_row = gemm->c_row,
                          .a_groups = of_x,
                          .c_groups = of_gates,
                          .prepared = &run->tape->prepared[share->thread]};
    if (product.format == FL_WEIGHTS_BFLOAT16) /* many rows of a few sequences: the same numbers */
        product.format = fl_call_format(layer, gemm->rows) == FL_WEIGHTS_BFLOAT16
                             ? FL_WEIGHTS_BFLOAT16
                             : FL_WEIGHTS_PLAIN;
    if (product.format == FL_WEIGHTS_PLAIN)
        run->kernels->gemm(gemm);
    else
        fl_multiply(layer, &layer->packed[index], p, &product);
    FL_T(fill_other_slots)(layer, &layer->packed[index], p, gemm, of_gates);
}

/* Whether a step's rows of x and of gates, at `a` and `c`, belong to the product of those before
 * them: their neighbours do, as whole batches forwards in time are; on tiles, any steps of as many
 * rows at one distance. */
static int FL_T(joins)(const FL_T(fl_gemm) * gemm, const real *a, const real *c, int64_t rows,
                       int on_tiles, fl_row_groups *of_x, fl_row_groups *of_gates)
{
    if (!gemm->rows)
        return 0;
    if (a == gemm->a + fl_grouped_row(of_x, gemm->rows, gemm->a_row) &&
        c == gemm->c + fl_grouped_row(of_gates, gemm->rows, gemm->c_row))
        return !of_x->rows || of_x->rows == rows;
    if (!on_tiles || of_x->rows || gemm->rows != rows)
        return 0;
    *of_x = (fl_row_groups){rows, a - gemm->a};
    *of_gates = (fl_row_groups){rows, c - gemm->c};
    return 1;
}

/* Input projection of the steps [first, end) for part `p`: gates = x W + b for the share's rows and
 * blocks. */
static void FL_T(project_chunk)(const FL_T(fl_forward_run) * run, int index, int p, int reverse,
                                const fl_share *share, int64_t first, int64_t end)
{
    const fl_recurrent *layer = run->layer;
    const fl_part *part = &layer->part[p];
    const fl_packed *packed = &layer->packed[index];
    const fl_tape_layer *level = &run->tape->layers[index / layer->directions];
    int64_t width = fl_columns_of(layer, part->of_x), used = 0, block_first, block_end;
    FL_T(share_blocks)(part, share, &block_first, &block_end);
    FL_T(fl_gemm)
    gemm = {.depth = packed->input,
            .columns = part->gate_stride,
            .block_first = block_first,
            .block_end = block_end,
            .a_row = packed->input * fl_rows_apart(level->x_apart),
            .a_depth = 1,
            .b = packed->part[p].weight_x,
            .b_block = width * packed->input,
            .b_depth = width,
            .vectors = (int)(width / layer->lanes),
            .init = layer->config.layer_norm ? NULL : packed->part[p].bias,
            .init_row = 0,
            .c_row = layer->gate_row,
            .c_block = part->block_width};
    const int on_tiles = FL_T(projecting_format)(run, packed->input) == FL_WEIGHTS_TILES;
    const fl_row_groups none = {0};
    fl_row_groups of_x = none, of_gates = none;
    for (int64_t step = first; step < end; step++) {
        fl_moment moment = fl_ragged_moment(&run->tape->ragged, step, reverse);
        int64_t row_end = share->row_end < moment.rows ? share->row_end : moment.rows;
        if (row_end <= share->row_first)
            continue;
        int64_t rows = row_end - share->row_first;
        const real *a = (const real *)level->x +
                        fl_row_at(&run->tape->ragged, level->x_apart, moment.t, share->row_first) *
                            packed->input;
        real *c = FL_T(gate_rows)(run, &run->tape->directions[index], &moment, used, share) +
                  part->gate_first;
        if (FL_T(joins)(&gemm, a, c, rows, on_tiles, &of_x, &of_gates)) {
            gemm.rows += rows;
        } else {
            FL_T(project_rows)(run, index, p, share, &gemm, of_x, of_gates);
            of_x = of_gates = none;
            gemm.a = a;
            gemm.c = c;
            gemm.rows = rows;
        }
        used += rows;
    }
    FL_T(project_rows)(run, index, p, share, &gemm, of_x, of_gates);
}

/* A part of a layer and direction on a share of its rows and units: what no step changes. */
typedef struct FL_T(fl_part_steps) {
    const FL_T(fl_forward_run) * run;
    int p;
    const fl_part *part;
    const fl_packed *packed;
    const fl_tape_direction *direction;
    const fl_share *share;
    fl_weight_format format;
    const fl_tape_layer *level;
    const real *x;
    real *y;                  /* first column of the direction */
    int64_t y_columns, y_row; /* of a row, and to that of the next sequence */
    FL_T(fl_step) kernel;     /* each step sets its rows */
} FL_T(fl_part_steps);

static FL_T(fl_part_steps)
    FL_T(part_steps)(const FL_T(fl_forward_run) * run, int index, int p, const fl_share *share)
{
    const fl_recurrent *layer = run->layer;
    const fl_packed *packed = &layer->packed[index];
    const fl_tape_layer *level = &run->tape->layers[index / layer->directions];
    const fl_tape_direction *direction = &run->tape->directions[index];
    FL_T(fl_part_steps)
    steps = {.run = run,
             .p = p,
             .part = &layer->part[p],
             .packed = packed,
             .direction = direction,
             .share = share,
             .format = fl_call_format(layer, run->tape->ragged.n),
             .level = level,
             .x = layer->part[p].sees_x ? level->x : NULL,
             .y = (real *)level->y + index % layer->directions * layer->output,
             .y_columns = layer->output * layer->directions,
             .y_row = layer->output * layer->directions * fl_rows_apart(level->y_apart)};
    steps.kernel = (FL_T(fl_step)){.units = layer->config.hidden_size,
                                   .x_row = packed->input * fl_rows_apart(level->x_apart),
                                   .x_depth = packed->input,
                                   .weight_x = packed->part[p].weight_x,
                                   .weight_h = packed->part[p].weight_h,
                                   .peephole = packed->part[p].peephole,
                                   .h_depth = layer->recurrent,
                                   .fetches = fl_weights_are_far(layer),
                                   .mask_row = layer->plane,
                                   .state_prev_row = layer->state_row,
                                   .state_row = layer->state_row,
                                   .state_plane = layer->plane,
                                   .h_row = fl_projects(layer) ? layer->wide : steps.y_row,
                                   .decay_row = 1,
                                   .saved_row = layer->gate_row};
    FL_T(share_blocks)(steps.part, share, &steps.kernel.block_first, &steps.kernel.block_end);
    return steps;
}

/* Where the kernel finds its rows of a step, from `row` on, and what they come from, for a layer
 * that is one part. */
static void FL_T(place_rows)(FL_T(fl_part_steps) * steps, int64_t step, const fl_moment *moment,
                             int64_t row, const real *projected)
{
    FL_T(fl_step) *s = &steps->kernel;
    const fl_recurrent *layer = steps->run->layer;
    const fl_tape *tape = steps->run->tape;
    const fl_tape_direction *direction = steps->direction;
    const fl_ragged *ragged = &tape->ragged;
    int64_t continues = row < moment->with_previous, now = moment->row0 + row,
            before = moment->previous0 + row, kept = tape->training ? now : row,
            y_apart = steps->level->y_apart;
    s->descending = step & 1;
    s->init = steps->packed->part[steps->p].bias;
    s->init_row = 0;
    s->x = NULL;
    if (projected) {
        s->init =
            projected + (row - steps->share->row_first) * layer->gate_row + steps->part->gate_first;
        s->init_row = layer->gate_row;
    } else if (steps->x) {
        s->x = steps->x +
               fl_row_at(ragged, steps->level->x_apart, moment->t, row) * steps->packed->input;
    }
    s->h_prev = continues ? steps->y + fl_row_at(ragged, y_apart, moment->previous_t, row) *
                                           steps->y_columns
                          : (const real *)direction->h0 + row * layer->recurrent;
    s->h_prev_row = continues ? steps->y_row : layer->recurrent;
    s->h = fl_projects(layer)
               ? (real *)direction->unprojected + kept * layer->wide
               : steps->y + fl_row_at(ragged, y_apart, moment->t, row) * steps->y_columns;
    s->decay = tape->decay ? (const real *)tape->decay + now : NULL;
    s->mask = direction->mask ? (const real *)direction->mask + row * layer->plane : NULL;
    if (tape->training) {
        s->state = (real *)direction->state + now * layer->state_row;
        s->saved = (real *)direction->gates + now * layer->gate_row + steps->part->gate_first;
    } else {
        s->state = (real *)direction->state0[(step + 1) & 1] + row * layer->state_row;
        s->saved = NULL;
    }
    s->state_prev = tape->training && continues
                        ? (const real *)direction->state + before * layer->state_row
                        : (const real *)direction->state0[step & 1] + row * layer->state_row;
}

/* What the cell makes of the rows of the kernel's argument, `kept` being the first of them where a
 * call keeps rows. */
static void FL_T(run_cell)(FL_T(fl_part_steps) * steps, int64_t kept)
{
    FL_T(fl_step) *s = &steps->kernel;
    const fl_recurrent *layer = steps->run->layer;
    if (layer->config.layer_norm) {
        FL_T(fl_normed_rows) to = FL_T(normed_rows)(layer, &steps->direction->normed, kept);
        FL_T(normalized_step)(layer, steps->packed, steps->p, &to, s);
    } else {
        steps->run->kernels->cells[steps->part->cell_index].forward(s);
    }
}

/* One step of a part of the share: rows with a predecessor, then rows that start here. */
static void FL_T(forward_step)(FL_T(fl_part_steps) * steps, int64_t step, const fl_moment *moment,
                               const real *projected)
{
    const fl_recurrent *layer = steps->run->layer;
    const fl_share *share = steps->share;
    const fl_tape *tape = steps->run->tape;
    const fl_tape_direction *direction = steps->direction;
    const fl_cell_facts *cell = &steps->part->cell;
    int p = steps->p;
    FL_T(fl_step) *s = &steps->kernel;
    real *gates = (real *)(uintptr_t)projected; /* rows of all parts */
    projected = steps->part->sees_x || layer->config.layer_norm ? projected : NULL;
    int64_t row_end = share->row_end < moment->rows ? share->row_end : moment->rows;
    for (int64_t row = share->row_first; row < row_end; row += s->rows) {
        int64_t stop = row < moment->with_previous && moment->with_previous < row_end
                           ? moment->with_previous
                           : row_end;
        s->rows = stop - row;
        FL_T(place_rows)(steps, step, moment, row, projected);
        const real *h_before = s->h_prev, *state_before = s->state_prev;
        int64_t h_before_row = s->h_prev_row, kept = tape->training ? moment->row0 + row : row;
        real *state = s->state;
        if (cell->state_recurs) {
            s->h_prev = s->state_prev;
            s->h_prev_row = layer->state_row;
        }
        if (cell->gate_states) {
            s->x = s->state_prev + layer->plane;
            s->x_row = layer->state_row;
            s->x_depth = cell->gate_states * layer->plane;
            s->weight_x = steps->packed->part[p].weight_g;
        }
        if (layer->n_parts > 1)
            FL_T(fl_pass_made)(layer, cell, (real *)direction->made_h + kept * layer->plane,
                               (real *)direction->made_state + kept * layer->made_row, s);
        const fl_prepared *prepared = &tape->prepared[share->thread];
        int on_tiles = fl_steps_on_tiles(cell, steps->format);
        if (steps->format != FL_WEIGHTS_PLAIN && !on_tiles)
            FL_T(multiply_recurrence)(layer, steps->packed, p, steps->format, prepared,
                                      gates + (row - share->row_first) * layer->gate_row, s);
        if (on_tiles)
            fl_step_on_tiles(layer, steps->packed, p, prepared, s);
        else
            FL_T(run_cell)(steps, kept);
        if (layer->zones && !cell->is_prelude) {
            FL_T(fl_zone) zone = FL_T(zone_of)(layer, s);
            int64_t at = moment->row0 + row;
            zone.h_prev = h_before;
            zone.h_prev_row = h_before_row;
            zone.state_prev = state_before;
            zone.state = state;
            zone.flags = direction->zoned ? direction->zoned + at * zone.flags_row : NULL;
            zone.unzoned =
                direction->unzoned ? (real *)direction->unzoned + at * layer->state_row : NULL;
            steps->run->kernels->zone(&zone);
        }
    }
}

/* Zoneout of the h that a product has left in y, for its rows, from row `first` of the step on. */
static void FL_T(zone_projected)(const FL_T(fl_forward_run) * run, int index,
                                 const fl_moment *moment, int64_t first,
                                 const FL_T(fl_gemm) * product)
{
    const fl_recurrent *layer = run->layer;
    const fl_tape_direction *direction = &run->tape->directions[index];
    const fl_tape_layer *level = &run->tape->layers[index / layer->directions];
    const fl_ragged *ragged = &run->tape->ragged;
    const int64_t columns = layer->output * layer->directions;
    FL_T(fl_zone) zone = FL_T(projected_zone_of)(layer, product);
    real *y = (real *)level->y + index % layer->directions * layer->output;
    for (int64_t row = first, end = first + product->rows; row < end; row += zone.rows) {
        int continues = row < moment->with_previous;
        zone.rows = (continues && moment->with_previous < end ? moment->with_previous : end) - row;
        zone.h_prev = continues
                          ? y + fl_row_at(ragged, level->y_apart, moment->previous_t, row) * columns
                          : (const real *)direction->h0 + row * layer->recurrent;
        zone.h_prev_row = continues ? zone.h_row : layer->recurrent;
        zone.h = y + fl_row_at(ragged, level->y_apart, moment->t, row) * columns;
        zone.flags =
            direction->zoned ? direction->zoned + (moment->row0 + row) * zone.flags_row : NULL;
        run->kernels->zone(&zone);
    }
}

/* Output of a step of the share from what its cells put out. */
static void FL_T(project_output)(const FL_T(fl_forward_run) * run, int index,
                                 const fl_moment *moment, const fl_share *share)
{
    const fl_recurrent *layer = run->layer;
    const fl_tape *tape = run->tape;
    int reverse = index % layer->directions;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, blocks = (layer->output + width - 1) / width,
            columns = layer->output * layer->directions, block_first = 0, block_end = blocks;
    const fl_tape_layer *level = &tape->layers[index / layer->directions];
    if (share->splits_units)
        fl_split(blocks, share->rank, share->group_size, &block_first, &block_end);
    int64_t first = share->row_first,
            end = share->row_end < moment->rows ? share->row_end : moment->rows;
    if (first >= end)
        return;
    FL_T(fl_gemm)
    gemm = {.rows = end - first,
            .depth = layer->config.hidden_size,
            .columns = layer->output,
            .block_first = block_first,
            .block_end = block_end,
            .a = (const real *)tape->directions[index].unprojected +
                 (tape->training ? moment->row0 + first : first) * layer->wide,
            .a_row = layer->wide,
            .a_depth = 1,
            .b = layer->packed[index].projection,
            .b_block = width * layer->config.hidden_size,
            .b_depth = width,
            .vectors = FL_BLOCK_VECTORS,
            .c = (real *)level->y + reverse * layer->output +
                 fl_row_at(&tape->ragged, level->y_apart, moment->t, first) * columns,
            .c_row = columns * fl_rows_apart(level->y_apart)};
    run->kernels->gemm(&gemm);
    if (layer->zones)
        FL_T(zone_projected)(run, index, moment, first, &gemm);
}

/* Steps [begin, stop) of a layer and direction, in running order. */
static void FL_T(forward_direction)(FL_T(fl_forward_run) * run, int index, const fl_share *share,
                                    int64_t begin, int64_t stop)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t rows = share->row_end - share->row_first;
    int reverse = index % layer->directions,
        hoist = FL_T(hoists)(layer, run->tape, &layer->packed[index], rows);
    int64_t chunk = hoist && rows > 0 ? run->chunk_rows / rows : ragged->steps;
    chunk = chunk < 1 ? 1 : chunk;
    FL_T(fl_part_steps) part[FL_MAX_PARTS];
    for (int p = 0; p < layer->n_parts; p++)
        part[p] = FL_T(part_steps)(run, index, p, share);
    for (int64_t first = begin; first < stop; first += chunk) {
        int64_t end = first + chunk < stop ? first + chunk : stop, used = 0;
        for (int p = 0; hoist && p < layer->n_parts; p++)
            if (layer->part[p].sees_x)
                FL_T(project_chunk)(run, index, p, reverse, share, first, end);
        for (int64_t step = first; step < end; step++) {
            fl_moment moment = fl_ragged_moment(ragged, step, reverse);
            const real *projected = NULL;
            if (hoist) {
                projected =
                    FL_T(gate_rows)(run, &run->tape->directions[index], &moment, used, share);
                int64_t row_end = share->row_end < moment.rows ? share->row_end : moment.rows;
                used += row_end > share->row_first ? row_end - share->row_first : 0;
            }
            for (int p = 0; p < layer->n_parts; p++) {
                FL_T(forward_step)(&part[p], step, &moment, projected);
                if (share->splits_units)
                    fl_barrier_wait(&run->group[share->group], share->group_size);
            }
            if (fl_projects(layer)) {
                FL_T(project_output)(run, index, &moment, share);
                if (share->splits_units)
                    fl_barrier_wait(&run->group[share->group], share->group_size);
            }
        }
    }
}
