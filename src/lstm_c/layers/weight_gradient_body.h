/* Gradients of the weights of a layer from all its gate gradients, for one dtype: one deep product
 * over all real steps, a chunk of rows at a time, of which a lane has some of the columns. */

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

/* Where rows [first, first + count) of x, of what recurred and of the states before lie, in packed
 * order. */
static void FL_T(find_inputs)(const FL_T(fl_backward_run) * run, int index, int p, int64_t first,
                              int64_t count, const FL_T(fl_gradient_scratch) * scratch)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    const real *x = run->tape->layers[index / layer->directions].x;
    int reverse = index % layer->directions;
    int64_t input = layer->packed[index].input, t = 0, after = ragged->steps;
    while (after - t > 1) { /* the step that has row `first` */
        int64_t middle = t + (after - t) / 2;
        if (ragged->offset[middle] <= first)
            t = middle;
        else
            after = middle;
    }
    for (int64_t k = 0; k < count; k++) {
        int64_t row = first + k;
        if (row >= ragged->offset[t + 1])
            t++;
        fl_moment moment = fl_ragged_moment(ragged, reverse ? ragged->steps - 1 - t : t, reverse);
        int64_t s = row - ragged->offset[t];
        scratch->x[k] = x + row * input;
        scratch->recurred[k] = FL_T(recurred)(run, index, p, &moment, s);
        scratch->before[k] = FL_T(states_before)(run, index, &moment, s);
    }
}

/* `count` rows of [x, h_prev, recurring gates, 1] that have been found, as panels of columns,
 * (panels, chunk, FL_INPUT_PANEL). */
static void FL_T(gather_inputs)(const FL_T(fl_backward_run) * run, int64_t input, int64_t count,
                                const FL_T(fl_gradient_scratch) * scratch)
{
    const fl_recurrent *layer = run->layer;
    const real one = 1;
    real *to = scratch->inputs;
    FL_T(fl_input_places) places = FL_T(input_places)(run, input);
    for (int64_t k = 0; k < count; k++) {
        FL_T(put_in_panels)(run, to, k, 0, scratch->x[k], input);
        FL_T(put_in_panels)(run, to, k, places.h, scratch->recurred[k], layer->recurrent);
        for (int gate = 0; gate < layer->cell.gate_states; gate++)
            FL_T(put_in_panels)(run, to, k, places.gates + gate * places.gate,
                                scratch->before[k] + (1 + gate) * layer->plane,
                                layer->config.hidden_size);
        FL_T(put_in_panels)(run, to, k, places.one, &one, 1);
    }
}

/* Columns [column_first, column_end) of `count` rows of a packed gradient, blocks of `depth` rows,
 * -> rows of a weight matrix, `weight_row` values apart; in squares that stay in cache. */
static void FL_T(unpack_rows)(const fl_recurrent *layer, const fl_part *part, const int *gate_of,
                              const real *gradient, int64_t depth, int64_t count,
                              int64_t column_first, int64_t column_end, real *weight,
                              int64_t weight_row)
{
    enum { SIDE = 64 };
    const int64_t width = FL_BLOCK_VECTORS * layer->lanes;
    for (int64_t left = column_first; left < column_end; left += SIDE)
        for (int64_t top = 0; top < count; top += SIDE) {
            int64_t right = left + SIDE < column_end ? left + SIDE : column_end,
                    end = top + SIDE < count ? top + SIDE : count;
            for (int64_t column = left; column < right; column++) {
                int64_t row = fl_weight_row(layer, part, column, gate_of);
                const real *from = gradient + column / width * width * depth + column % width;
                for (int64_t k = top; row >= 0 && k < end; k++)
                    weight[row * weight_row + k] = from[k * width];
            }
        }
}

/* Columns [column_first, column_end) of the gradient of a part -> flat gradients. */
static void FL_T(unpack_gradient)(const FL_T(fl_backward_run) * run, int index, const fl_part *part,
                                  const real *gradient, int64_t column_first, int64_t column_end)
{
    const fl_recurrent *layer = run->layer;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, input = layer->packed[index].input,
            recurrent = layer->recurrent, hidden = layer->config.hidden_size,
            gates = fl_recurring_gates(layer);
    FL_T(fl_input_places) at = FL_T(input_places)(run, input);
    FL_T(fl_arrays) to = FL_T(arrays_of)(layer, index, run->call->gradients);
    const real *bias = gradient + at.one * width;
    FL_T(unpack_rows)(layer, part, part->cell.x_gate, gradient, at.depth, input, column_first,
                      column_end, to.weight_ih, input);
    FL_T(unpack_rows)(layer, part, part->cell.h_gate, gradient + at.h * width, at.depth, recurrent,
                      column_first, column_end, to.weight_hh, recurrent);
    for (int gate = 0; gate < layer->cell.gate_states; gate++)
        FL_T(unpack_rows)(layer, part, part->cell.g_gate,
                          gradient + (at.gates + gate * at.gate) * width, at.depth, hidden,
                          column_first, column_end, to.weight_gg + gate * hidden, gates);
    if (!to.bias_ih)
        return;
    FL_T(unpack_rows)(layer, part, part->cell.x_gate, bias, at.depth, 1, column_first, column_end,
                      to.bias_ih, 1);
    FL_T(unpack_rows)(layer, part, part->cell.h_gate, bias, at.depth, 1, column_first, column_end,
                      to.bias_hh, 1);
}

/* Gradients of the peepholes of panels [first, end): sums over all real steps of the slot's
 * gradient times the state it saw, one unit one sum. */
static void FL_T(peephole_gradients)(const FL_T(fl_backward_run) * run, int index, int64_t first,
                                     int64_t end)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    const fl_tape_direction *tape = &run->tape->directions[index];
    int64_t hidden = layer->config.hidden_size, lanes = layer->lanes, slots = layer->cell.slots,
            unit = first * lanes, unit_end = end * lanes < hidden ? end * lanes : hidden;
    const real *gates = (const real *)tape->gates + fl_main_part(layer)->gate_first,
               *after = tape->unzoned ? tape->unzoned : tape->state;
    FL_T(fl_arrays) to = FL_T(arrays_of)(layer, index, run->call->gradients);
    for (int p = 0; p < layer->cell.n_peepholes; p++) {
        const fl_peephole *peephole = &layer->cell.peephole[p];
        FL_T(fl_unit_products)
        products = {.units = unit_end - unit,
                    .a_row = layer->state_row,
                    .b_row = layer->gate_row,
                    .b_panel = slots * lanes,
                    .sums = to.peephole + p * hidden + unit};
        for (int64_t j = 0; j < products.units; j++)
            products.sums[j] = 0;
        for (int64_t step = 0; step < ragged->steps; step++) {
            fl_moment moment = fl_ragged_moment(ragged, step, index % layer->directions);
            for (int64_t s = 0; s < moment.rows; s += products.rows) {
                int follows = !peephole->current && s < moment.with_previous;
                products.rows = (follows ? moment.with_previous : moment.rows) - s;
                products.a = (peephole->current ? after + (moment.row0 + s) * layer->state_row
                                                : FL_T(states_before)(run, index, &moment, s)) +
                             peephole->state * layer->plane + unit;
                products.b = gates + (moment.row0 + s) * layer->gate_row + unit * slots +
                             peephole->slot * lanes;
                run->kernels->add_unit_products(&products);
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
    int64_t input = layer->packed[index].input;
    const FL_T(fl_input_places) at = FL_T(input_places)(run, input);
    const fl_slots all = {0, FL_BLOCK_VECTORS};
    int count = 0;
    sections[0] = (FL_T(fl_section)){0, at.depth, tape->gates, all};
    if (!layer->config.layer_norm && fl_slot_depth(layer, part, part->of_x) < part->gate_columns) {
        sections[count++] = (FL_T(fl_section)){0, at.h, tape->gates, part->of_x};
        sections[count++] = (FL_T(fl_section)){at.h, at.gates, tape->gates, part->of_h};
        sections[count++] = (FL_T(fl_section)){at.gates, at.depth, tape->gates, all};
        return count;
    }
    if (!layer->config.layer_norm)
        return 1;
    if (part->sees_x)
        sections[count++] = (FL_T(fl_section)){0, at.h, tape->normed.x, all};
    sections[count++] = (FL_T(fl_section)){at.h, at.gates, tape->normed.h, all};
    if (part->cell.gate_states)
        sections[count++] = (FL_T(fl_section)){at.gates, at.one, tape->normed.g, all};
    sections[count++] = (FL_T(fl_section)){at.one, at.depth, tape->gates, all};
    return count;
}

/* A chunk of `count` rows of a block of the gradient, of which it has `columns`: += or, for the
 * first chunk, =. The rows of the section, of the inputs that the thread has gathered. `soon`: the
 * rows of gate gradients that come next, which are fetched meanwhile, or NULL. */
static void FL_T(add_section)(const FL_T(fl_backward_run) * run, int thread,
                              const FL_T(fl_section) * section, int64_t count, int adds,
                              real *gradient, int64_t columns, const real *soon)
{
    int64_t width = FL_BLOCK_VECTORS * run->layer->lanes, depth = section->end - section->first,
            tile = run->kernels->tile_rows, skipped = fl_first_column(run->layer, section->vectors);
    FL_T(fl_gemm)
    gemm = {.depth = count,
            .columns = columns - skipped,
            .block_end = 1,
            .a_row = 1,
            .a_depth = FL_INPUT_PANEL,
            .b = run->scratch[thread].dgates + skipped,
            .b_depth = width,
            .vectors = section->vectors.count,
            .init_row = width,
            .c_row = width,
            .fetch_rows = soon ? (count * tile + depth - 1) / depth : 0,
            .fetch_row = run->layer->gate_row,
            .fetch_lines = width / FL_T(LINE)};
    gemm.fetch_share = gemm.fetch_rows * gemm.fetch_row; /* of a tile of inputs */
    for (int64_t column = section->first; column < section->end; column += gemm.rows) {
        int64_t within = column % FL_INPUT_PANEL, space = FL_INPUT_PANEL - within,
                here = section->end - column;
        gemm.rows = here < space ? here : space;
        gemm.a = run->scratch[thread].inputs + (column - within) * run->chunk + within;
        gemm.c = gradient + column * width + skipped;
        gemm.init = adds ? gemm.c : NULL;
        gemm.fetch = soon ? soon + (column - section->first) / tile * gemm.fetch_share : NULL;
        run->kernels->gemm(&gemm);
    }
}

/* `columns` columns of the rows that the thread has found, from `first` on, for tiles: from place
 * `place` of the inputs on. */
static void FL_T(split_input)(const FL_T(fl_backward_run) * run, int thread,
                              const real *const *rows, int64_t first, int64_t columns,
                              int64_t count, int64_t place)
{
    const fl_recurrent *layer = run->layer;
    fl_tile_operand input = {.lines = (const void *)rows,
                             .first = first,
                             .rows = columns,
                             .depth = count,
                             .parts = layer->tile_parts,
                             .to = run->scratch[thread].split_inputs +
                                   place * fl_tile_row_size(count, layer->tile_parts)};
    layer->tiles->split_columns(&input);
}

/* As gather_inputs, for tiles, without the ones. */
static void FL_T(split_inputs)(const FL_T(fl_backward_run) * run, int64_t input, int thread,
                               int64_t count)
{
    const fl_recurrent *layer = run->layer;
    const FL_T(fl_gradient_scratch) *found = &run->scratch[thread];
    FL_T(fl_input_places) at = FL_T(input_places)(run, input);
    FL_T(split_input)(run, thread, found->x, 0, input, count, 0);
    FL_T(split_input)(run, thread, found->recurred, 0, layer->recurrent, count, at.h);
    for (int gate = 0; gate < layer->cell.gate_states; gate++)
        FL_T(split_input)(run, thread, found->before, (1 + gate) * layer->plane,
                          layer->config.hidden_size, count, at.gates + gate * at.gate);
}

/* `count` rows, gate_row apart, of the gate gradients of `blocks` blocks of `columns`, for tiles;
 * and what they add to the gradient of the ones, `of_ones` and so on, each `apart` from the one
 * before.
 */
static void FL_T(split_dgates)(const FL_T(fl_backward_run) * run, int thread, const real *dgates,
                               int64_t count, int64_t blocks, int64_t columns, int adds,
                               real *of_ones, int64_t apart)
{
    const fl_recurrent *layer = run->layer;
    fl_tile_operand block = {.values = (const void *)dgates,
                             .rows = columns,
                             .depth = count,
                             .stride = layer->gate_row,
                             .parts = layer->tile_parts,
                             .to = run->scratch[thread].split_dgates};
    for (int64_t k = 0; k < blocks; k++, of_ones += apart) {
        for (int64_t j = 0; !adds && j < columns; j++)
            of_ones[j] = 0;
        block.sums = (void *)of_ones;
        layer->tiles->split_block(&block);
        block.values += columns;
        block.to = (uint16_t *)block.to + fl_tile_block_size(columns, count, layer->tile_parts);
    }
}

/* As add_section, of the inputs and the `blocks` blocks of `columns` gate gradients that the thread
 * has split. The ones have had theirs. */
static void FL_T(add_on_tiles)(const FL_T(fl_backward_run) * run, int index, int thread,
                               const FL_T(fl_section) * section, int64_t count, int64_t blocks,
                               int64_t columns, int adds, real *gradient)
{
    const fl_recurrent *layer = run->layer;
    const FL_T(fl_gradient_scratch) *scratch = &run->scratch[thread];
    FL_T(fl_input_places) at = FL_T(input_places)(run, layer->packed[index].input);
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, apart = width * at.depth,
            skipped = fl_first_column(layer, section->vectors), left = columns - skipped,
            wanted = fl_columns_of(layer, section->vectors),
            end = section->end < at.one ? section->end : at.one;
    real *c = gradient + section->first * width;
    fl_tile_gemm gemm = {
        .rows = end - section->first,
        .block_end = blocks,
        .factor = {{.a = scratch->split_inputs +
                         section->first * fl_tile_row_size(count, layer->tile_parts),
                    .b = scratch->split_dgates,
                    .depth = count,
                    .first = skipped,
                    .columns = wanted < left ? wanted : left,
                    .b_columns = columns}},
        .width = columns,
        .c_block = apart,
        .columns = (blocks - 1) * apart + columns,
        .parts = layer->tile_parts,
        .init = adds ? (const void *)c : NULL,
        .init_row = width,
        .c = (void *)c,
        .c_row = width};
    if (gemm.rows > 0)
        layer->tiles->gemm(&gemm);
}

/* The thread's inputs of part `p` for `count` rows from `row` on, unless it has them already. */
static void FL_T(take_inputs)(const FL_T(fl_backward_run) * run, int index, int p, int64_t row,
                              int64_t count, int thread)
{
    FL_T(fl_gradient_scratch) *scratch = &run->scratch[thread];
    int64_t input = run->layer->packed[index].input;
    if (scratch->of_index == index && scratch->of_part == p && scratch->of_row == row)
        return;
    scratch->of_index = index;
    scratch->of_part = p;
    scratch->of_row = row;
    FL_T(find_inputs)(run, index, p, row, count, scratch);
    if (run->on_tiles)
        FL_T(split_inputs)(run, input, thread, count);
    else
        FL_T(gather_inputs)(run, input, count, scratch);
}

/* Gradients of a layer's weights: dgates^T [x, h_prev, gates, 1] over all real steps, in chunks of
 * rows. Of part `p` and blocks [first, end) what rows [row_first, row_end) add: whole chunks, to be
 * taken in order, so every sum has one. */
static void FL_T(weight_gradients)(const FL_T(fl_backward_run) * run, int index, int p, int thread,
                                   int64_t first, int64_t end, int64_t row_first, int64_t row_end)
{
    const fl_recurrent *layer = run->layer;
    const fl_part *part = &layer->part[p];
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, total = run->tape->ragged.rows;
    const FL_T(fl_input_places) at = FL_T(input_places)(run, layer->packed[index].input);
    real *gradient =
        run->weight_gradient +
        at.depth * (index % layer->directions * FL_T(gradient_columns)(layer, layer->n_parts) +
                    FL_T(gradient_columns)(layer, p));
    const FL_T(fl_gradient_scratch) *scratch = &run->scratch[thread];
    FL_T(fl_section) sections[4];
    int n_sections = FL_T(sections_of)(run, index, part, sections);
    for (int64_t row = row_first; row < row_end; row += run->chunk) {
        int64_t count = total - row < run->chunk ? total - row : run->chunk;
        FL_T(take_inputs)(run, index, p, row, count, thread);
        for (int64_t block = first, blocks = 1; block < end; block += blocks) {
            int64_t left = part->gate_stride - block * width, used = left < width ? left : width,
                    columns = part->gate_columns - block * width, whole = columns / width;
            if (run->on_tiles) {
                blocks = end - block < FL_GRADIENT_BLOCKS ? end - block : FL_GRADIENT_BLOCKS;
                blocks = whole < 1 ? 1 : whole < blocks ? whole : blocks;
                columns = columns < width ? columns : width;
            }
            real *to = gradient + block * width * at.depth;
            for (int k = 0; k < n_sections; k++) {
                const FL_T(fl_section) *section = &sections[k];
                const real *from =
                    section->dgates + row * layer->gate_row + part->gate_first + block * width;
                int same = k && section->dgates == section[-1].dgates, adds = row > 0;
                if (run->on_tiles) {
                    if (!same)
                        FL_T(split_dgates)(run, thread, from, count, blocks, columns, adds,
                                           to + at.one * width, width * at.depth);
                    FL_T(add_on_tiles)(run, index, thread, section, count, blocks, columns, adds,
                                       to);
                    continue;
                }
                for (int64_t i = 0; !same && i < count; i++)
                    FL_T(copy_row)(scratch->dgates + i * width, from + i * layer->gate_row, used);
                FL_T(add_section)(run, thread, section, count, adds, to, columns,
                                  !same && block + 1 < end ? from + width : NULL);
            }
        }
    }
    int64_t column_end = end * width < part->gate_columns ? end * width : part->gate_columns;
    if (row_end == total)
        FL_T(unpack_gradient)(run, index, part, gradient, first * width, column_end);
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
