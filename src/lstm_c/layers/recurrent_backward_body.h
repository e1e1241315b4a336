/* Back-propagation through the layers, for one dtype. See recurrent.c for the plan. */

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

/* Lanes of a level's products with all its gate gradients: the gradients of each direction and part
 * in `pieces` of blocks, and `below` shares of each chunk of dx. A chunk of rows is a stage; where
 * there is one thread, all of them are, and the sums stay near. */
typedef struct FL_T(fl_product_lanes) {
    int64_t pieces, below, count, chunks, stages;
} FL_T(fl_product_lanes);
static FL_T(fl_product_lanes) FL_T(product_lanes)(const FL_T(fl_backward_run) * run)
{
    const fl_recurrent *layer = run->layer;
    int64_t threads = run->plan.n_threads,
            blocks = FL_T(unit_blocks)(layer->gate_row, layer->lanes) / layer->n_parts;
    FL_T(fl_product_lanes) found = {.pieces = 1, .below = 1};
    if (threads > 1) { /* two a thread, of two blocks or more, but one for each in any case */
        found.below = 2 * threads;
        found.pieces = blocks / 2 < 2 * threads ? blocks / 2 : 2 * threads;
        found.pieces = found.pieces < threads ? threads : found.pieces;
    }
    found.count = layer->directions * layer->n_parts * found.pieces + found.below;
    found.chunks = (run->tape->ragged.rows + run->chunk - 1) / run->chunk;
    found.stages = threads > 1 ? found.chunks : 1;
    return found;
}

/* Stage `stage` of a lane of a level's products. */
static void FL_T(run_product)(const FL_T(fl_backward_run) * run, int64_t level, int64_t lane,
                              int64_t stage, int thread)
{
    const fl_recurrent *layer = run->layer;
    const FL_T(fl_product_lanes) lanes = FL_T(product_lanes)(run);
    int64_t row, row_end, first, end, total = run->tape->ragged.rows;
    fl_split(lanes.chunks, (int)stage, (int)lanes.stages, &row, &row_end);
    row *= run->chunk;
    row_end = row_end * run->chunk < total ? row_end * run->chunk : total;
    if (lane < lanes.count - lanes.below) {
        int64_t product = lane / lanes.pieces;
        int p = (int)(product % layer->n_parts),
            index = (int)(level * layer->directions + product / layer->n_parts);
        fl_split(FL_T(unit_blocks)(layer->part[p].gate_columns, layer->lanes),
                 (int)(lane % lanes.pieces), (int)lanes.pieces, &first, &end);
        if (first < end)
            FL_T(weight_gradients)(run, index, p, thread, first, end, row, row_end);
    } else if (level || run->call->dx) {
        fl_split(row_end - row, (int)(lanes.count - 1 - lane), (int)lanes.below, &first, &end);
        FL_T(input_gradient)(run, level, thread, row + first, row + end);
    }
}

/* Part of a level that starts from all its gate gradients: weights, and the layer below. */
static void FL_T(backward_level_products)(FL_T(fl_backward_run) * run, int64_t level, int thread,
                                          int n_threads)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t round = layer->config.num_layers - 1 - level, first, end;
    run->scratch[thread].of_row = -1;
    for (fl_task task = FL_NO_TASK; fl_lanes_next(&run->product_lanes, round, &task);)
        FL_T(run_product)(run, level, task.lane, task.stage, thread);
    for (int d = 0; d < layer->directions; d++) {
        int index = (int)level * layer->directions + d;
        fl_split(layer->panels, thread, n_threads, &first, &end);
        FL_T(peephole_gradients)(run, index, first, end);
        if (fl_projects(layer))
            FL_T(projection_gradient)(run, index, thread, n_threads);
    }
    if (run->tape->layers[level].factor) {
        fl_barrier_wait(&run->all, n_threads);
        fl_split(ragged->steps, thread, n_threads, &first, &end);
        FL_T(drop_gradient)(run, level, first, end);
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
                              part->of_h, layer->recurrent, first, end, run->weight_t[k]);
        if (run->on_tiles)
            fl_pack_tiles(layer, run->weight_t[k], first, end,
                          fl_slot_depth(layer, part, part->of_h), width, run->tiles_t[k]);
        if (k % layer->n_parts == 0 && thread == index % n_threads)
            FL_T(pack_pointwise)(layer, &arrays, &run->packed[index]);
        if (fl_projects(layer) && thread == index % n_threads)
            FL_T(pack_plain)(arrays.weight_hr, layer->output, hidden, hidden, 1,
                             FL_BLOCK_VECTORS * layer->lanes, run->projection_t[index]);
        fl_split(FL_T(unit_blocks)(hidden, layer->lanes), thread, n_threads, &first, &end);
        for (int gate = 0; gate < part->cell.gate_states; gate++)
            FL_T(pack_transposed)(
                layer, part, arrays.weight_gg + gate * hidden, fl_recurring_gates(layer),
                part->cell.g_gate, part->of_h, hidden, first, end,
                run->weight_gt[index] + gate * FL_T(unit_blocks)(hidden, layer->lanes) *
                                            FL_BLOCK_VECTORS * layer->lanes * part->gate_columns);
        if (run->weight_xt[k]) {
            fl_split(FL_T(unit_blocks)(input, layer->lanes), thread, n_threads, &first, &end);
            FL_T(pack_transposed)(layer, part, arrays.weight_ih, input, part->cell.x_gate,
                                  part->of_x, input, first, end, run->weight_xt[k]);
            if (run->on_tiles)
                fl_pack_tiles(layer, run->weight_xt[k], first, end,
                              fl_slot_depth(layer, part, part->of_x), width, run->tiles_xt[k]);
        }
    }
}

/* A level whose sequences are cut, and one whose units are split; as forwards. */
static void FL_T(backward_lanes)(FL_T(fl_backward_run) * run, int64_t level, int thread)
{
    int64_t round = run->layer->config.num_layers - 1 - level, first, end;
    for (fl_task task = FL_NO_TASK; fl_lanes_next(&run->lanes, round, &task);) {
        const fl_share share = fl_lane_share(&run->plan, task.lane, thread);
        int index = (int)level * run->layer->directions + share.direction_first;
        fl_stage_steps(&run->tape->ragged, &run->plan, &share, run->plan.stages - 1 - task.stage,
                       &first, &end);
        FL_T(backward_direction)(run, index, &share, first, end);
    }
}

static void FL_T(backward_units)(FL_T(fl_backward_run) * run, int64_t level, int thread,
                                 int n_threads)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    const fl_share share = fl_unit_share(layer, ragged, thread, n_threads);
    for (int d = share.direction_first; d < share.direction_end; d++)
        FL_T(backward_direction)(run, (int)level * layer->directions + d, &share, 0, ragged->steps);
}

static void FL_T(backward_thread)(void *argument, int thread, int n_threads)
{
    FL_T(fl_backward_run) *run = argument;
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t first, end, columns = layer->output * layer->directions;
    fl_split(ragged->steps, thread, n_threads, &first, &end);
    FL_T(pack_backward_weights)(run, thread, n_threads);
    if (run->dy_packed)
        FL_T(gather_rows)(ragged, run->call->dy, run->call->dy_start, columns, first, end,
                          run->dy_packed);
    for (int64_t level = layer->config.num_layers; level-- > 0;) {
        if (thread == 0)
            FL_T(begin_level)(run, level);
        fl_barrier_wait(&run->all, n_threads);
        if (run->plan.pieces)
            FL_T(backward_lanes)(run, level, thread);
        else
            FL_T(backward_units)(run, level, thread, n_threads);
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
    run->on_tiles = fl_call_format(layer, ragged->n) == FL_WEIGHTS_TILES;
    int64_t columns = FL_T(input_places)(run, widest).depth;
    run->chunk = FL_GRADIENT_ROWS < ragged->rows ? FL_GRADIENT_ROWS : ragged->rows;
    run->dy_apart = run->call->dy ? fl_ragged_apart(ragged, run->call->dy_start) : 0;
    run->dy_packed = run->call->dy && !run->dy_apart
                         ? fl_arena_take(arena, ragged->rows * upper, sizeof(real))
                         : NULL;
    run->dy = run->dy_apart ? (const real *)run->call->dy + run->call->dy_start[0] * upper
                            : run->dy_packed;
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
    run->packed = fl_arena_take(arena, layer->n_packed, sizeof *run->packed);
    for (int index = 0; index < layer->n_packed; index++) {
        fl_packed packed = layer->packed[index];
        fl_pointwise_layout(layer, &packed, arena);
        if (arena->memory)
            run->packed[index] = packed;
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
    run->weight_gradient = fl_arena_take(
        arena, D * columns * FL_T(gradient_columns)(layer, layer->n_parts), sizeof(real));
    run->numbers = fl_arena_take(arena, fl_plan_numbers(layer, &run->plan), sizeof *run->numbers);
    run->next_product =
        fl_arena_take(arena, FL_T(product_lanes)(run).count, sizeof *run->next_product);
    run->scratch = fl_arena_take(arena, run->plan.n_threads, sizeof *run->scratch);
    for (int thread = 0; thread < run->plan.n_threads; thread++) {
        FL_T(fl_gradient_scratch)
        scratch = {.x = fl_arena_take(arena, run->chunk, sizeof(real *)),
                   .recurred = fl_arena_take(arena, run->chunk, sizeof(real *)),
                   .before = fl_arena_take(arena, run->chunk, sizeof(real *))};
        if (!run->on_tiles) {
            int64_t panels = FL_T(input_panels)(run, widest);
            scratch.inputs =
                fl_arena_take(arena, run->chunk * panels * FL_INPUT_PANEL, sizeof(real));
            scratch.dgates = fl_arena_take(arena, run->chunk * width, sizeof(real));
        } else {
            int64_t rows = FL_SPLIT_ROWS > ragged->n ? FL_SPLIT_ROWS : ragged->n;
            scratch.prepared.rows = fl_arena_take(
                arena, rows + FL_TILE_PADDING,
                sizeof(uint16_t) * (size_t)fl_tile_row_size(layer->gate_row, layer->tile_parts));
            if (layer->gate_row > FL_TILE_SEGMENT)
                scratch.prepared.sums =
                    fl_arena_take(arena, ragged->n * layer->wide, sizeof *scratch.prepared.sums);
            scratch.split_inputs = fl_arena_take(
                arena, columns * fl_tile_row_size(run->chunk, layer->tile_parts), sizeof(uint16_t));
            scratch.split_dgates =
                fl_arena_take(arena, fl_tiles_size(layer, FL_GRADIENT_BLOCKS, run->chunk, width),
                              sizeof(uint16_t));
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
    run.plan = fl_plan_levels(layer, &call->tape->ragged, 1, fl_team_size(call->n_threads));
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
    fl_plan_begin(layer, &call->tape->ragged, &run.plan, run.numbers, &run.lanes);
    FL_T(fl_product_lanes) products = FL_T(product_lanes)(&run);
    fl_lanes_begin(&run.product_lanes, products.count, products.stages, run.next_product);
    fl_barrier_init(&run.all);
    fl_barrier_init(&run.group[0]);
    fl_barrier_init(&run.group[1]);
    int wakes = fl_wakes_team(layer, &call->tape->ragged, call->n_threads, run.plan.n_threads);
    fl_team_run(run.plan.n_threads, wakes, FL_T(backward_thread), &run);
    return FL_OK;
}
