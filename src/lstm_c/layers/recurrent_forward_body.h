/* Forward over time through the layers, for one dtype. See recurrent.c for the plan. */

/* x of a layer after dropout: one factor per sequence and column. */
static void FL_T(drop)(const FL_T(fl_forward_run) * run, int64_t level_index, int64_t first,
                       int64_t end)
{
    const fl_tape_layer *level = &run->tape->layers[level_index];
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t columns = run->layer->output * run->layer->directions;
    const real *y = run->tape->layers[level_index - 1].y;
    for (int64_t t = first; t < end; t++)
        for (int64_t s = 0; s < ragged->batch[t]; s++)
            for (int64_t j = 0; j < columns; j++) {
                int64_t at = (ragged->offset[t] + s) * columns + j;
                ((real *)level->dropped)[at] =
                    y[at] * ((const real *)level->factor)[s * columns + j];
            }
}

/* Final states of one level, before its output buffer serves another level. */
static void FL_T(final_states)(const FL_T(fl_forward_run) * run, int64_t level)
{
    const fl_recurrent *layer = run->layer;
    const fl_tape *tape = run->tape;
    const fl_ragged *ragged = &tape->ragged;
    int64_t hidden = layer->config.hidden_size, y_row = layer->output * layer->directions,
            state_row = layer->state_row, recurrent = layer->recurrent;
    for (int reverse = 0; run->call->states_out && reverse < layer->directions; reverse++) {
        int64_t index = level * layer->directions + reverse;
        const fl_tape_direction *direction = &tape->directions[index];
        real *h_out = run->call->states_out[0];
        for (int64_t s = 0; s < ragged->n; s++) {
            int64_t end = reverse ? 0 : ragged->length[s] - 1, last = ragged->offset[end] + s,
                    last_y = fl_row_at(ragged, tape->layers[level].y_apart, end, s),
                    to = index * ragged->n + ragged->sequence[s];
            const real *y =
                (const real *)tape->layers[level].y + last_y * y_row + reverse * layer->output;
            if (h_out)
                FL_T(copy_row)(h_out + to * recurrent, y, recurrent);
            for (int i = 0; i < layer->states; i++) {
                int64_t steps = reverse ? ragged->steps : ragged->length[s];
                const real *state =
                    tape->training ? (const real *)direction->state + last * state_row
                                   : (const real *)direction->state0[steps & 1] + s * state_row;
                if (run->call->states_out[1 + i])
                    FL_T(copy_row)((real *)run->call->states_out[1 + i] + to * hidden,
                                   state + i * layer->plane, hidden);
            }
        }
    }
}

/* Number of sorted sequence s in the draw of the masks. */
static uint64_t FL_T(drawn_as)(const FL_T(fl_forward_run) * run, int64_t s)
{
    int64_t sequence = run->tape->ragged.sequence[s];
    return (uint64_t)(run->call->number ? run->call->number[sequence] : sequence);
}

/* Zoneout flags of the steps [first, end), by the step's number in its sequence. */
static void FL_T(draw_zones)(const FL_T(fl_forward_run) * run, int64_t first, int64_t end)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t hidden = layer->config.hidden_size, half = layer->zone_row / 2;
    fl_zone_draw draw = {.units = layer->recurrent > hidden ? layer->recurrent : hidden,
                         .key = run->call->random_key,
                         .below_h = (uint32_t)(layer->config.zoneout_h * 65536 + 0.5),
                         .below_c = (uint32_t)(layer->config.zoneout_c * 65536 + 0.5)};
    for (int index = 0; index < layer->n_packed; index++)
        for (int64_t t = first; t < end; t++)
            for (int64_t s = 0; s < ragged->batch[t]; s++) {
                uint8_t *h =
                    run->tape->directions[index].zoned + (ragged->offset[t] + s) * 2 * half;
                draw.step = (uint32_t)(run->call->first_step + t);
                draw.sequence = (uint32_t)FL_T(drawn_as)(run, s);
                draw.stream = (1u << 31) + (uint32_t)index; /* not those of the other masks */
                run->kernels->draw_zones(&draw, h, h + half);
                for (int64_t unit = draw.units; unit < half; unit++)
                    h[unit] = h[half + unit] = 0;
            }
}

/* The levels as a wave: in round r, level l runs chunk r - l of the steps, so that every thread has
 * a level of its own to run; one barrier a round. */
static void FL_T(forward_wave)(FL_T(fl_forward_run) * run, int thread, int n_threads)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t levels = layer->config.num_layers, chunk = fl_wave_steps(ragged),
            chunks = (ragged->steps + chunk - 1) / chunk;
    const fl_share share = {
        .direction_end = 1, .row_end = ragged->n, .thread = thread, .group_size = 1};
    for (int64_t round = 0; round < chunks + levels - 1; round++) {
        for (int64_t level = thread; level < levels; level += n_threads) {
            int64_t first = (round - level) * chunk,
                    end = first + chunk < ragged->steps ? first + chunk : ragged->steps;
            if (first < 0 || first >= ragged->steps)
                continue;
            if (run->tape->layers[level].dropped)
                FL_T(drop)(run, level, first, end);
            FL_T(forward_direction)(run, (int)level, &share, first, end);
        }
        fl_barrier_wait(&run->all, n_threads);
    }
    for (int64_t level = thread; level < levels; level += n_threads)
        FL_T(final_states)(run, level);
}

/* A level whose sequences are cut: lanes of some of them in a direction, for whoever is free. */
static void FL_T(forward_lanes)(FL_T(fl_forward_run) * run, int64_t level, int thread)
{
    int64_t first, end;
    for (fl_task task = FL_NO_TASK; fl_lanes_next(&run->lanes, level, &task);) {
        const fl_share share = fl_lane_share(&run->plan, task.lane, thread);
        int index = (int)level * run->layer->directions + share.direction_first;
        fl_stage_steps(&run->tape->ragged, &run->plan, &share, task.stage, &first, &end);
        FL_T(forward_direction)(run, index, &share, first, end);
    }
}

/* A level whose units are split. */
static void FL_T(forward_units)(FL_T(fl_forward_run) * run, int64_t level, int thread,
                                int n_threads)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    const fl_share share = fl_unit_share(layer, ragged, thread, n_threads);
    for (int d = share.direction_first; d < share.direction_end; d++)
        FL_T(forward_direction)(run, (int)level * layer->directions + d, &share, 0, ragged->steps);
}

/* The levels one after another, each divided between the threads. */
static void FL_T(forward_levels)(FL_T(fl_forward_run) * run, int thread, int n_threads)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t first, end;
    fl_split(ragged->steps, thread, n_threads, &first, &end);
    for (int64_t level = 0; level < layer->config.num_layers; level++) {
        if (run->tape->layers[level].dropped) {
            FL_T(drop)(run, level, first, end);
            fl_barrier_wait(&run->all, n_threads);
        }
        if (run->plan.pieces)
            FL_T(forward_lanes)(run, level, thread);
        else
            FL_T(forward_units)(run, level, thread, n_threads);
        fl_barrier_wait(&run->all, n_threads);
        if (thread == 0)
            FL_T(final_states)(run, level);
    }
}

static void FL_T(forward_thread)(void *argument, int thread, int n_threads)
{
    FL_T(fl_forward_run) *run = argument;
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    const fl_forward *call = run->call;
    int64_t first, end;
    fl_split(ragged->steps, thread, n_threads, &first, &end);
    if (run->tape->x)
        FL_T(gather_rows)(ragged, call->x, call->x_rows.start, layer->config.input_size, first, end,
                          run->tape->x);
    if (run->tape->decay)
        FL_T(gather_rows)(ragged, call->decay, call->x_rows.start, 1, first, end, run->tape->decay);
    if (run->tape->directions[0].zoned)
        FL_T(draw_zones)(run, first, end);
    fl_barrier_wait(&run->all, n_threads);
    if (run->plan.waves && n_threads > 1)
        FL_T(forward_wave)(run, thread, n_threads);
    else
        FL_T(forward_levels)(run, thread, n_threads);
    const fl_tape_layer *top = &run->tape->layers[layer->config.num_layers - 1];
    if (call->y && !top->y_apart)
        FL_T(scatter_rows)(ragged, top->y, layer->output * layer->directions, first, end, call->y,
                           call->y_start);
}

/* One dropout factor, 0 or 1 / keep: a pure function of the call's key, the stream and the place.
 */
static real FL_T(drop_factor)(double keep, uint64_t key, uint64_t stream, uint64_t place)
{
    return fl_uniform(key, stream, place) < keep ? (real)(1 / keep) : 0;
}

/* Dropout factors of the call: per sequence and column of a layer's input, per sequence and unit of
 * the cell input. */
static void FL_T(draw_masks)(const FL_T(fl_forward_run) * run)
{
    const fl_recurrent *layer = run->layer;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t hidden = layer->config.hidden_size, columns = layer->output * layer->directions;
    uint64_t key = run->call->random_key;
    for (int64_t level = 1; level < layer->config.num_layers; level++) {
        real *factor = run->tape->layers[level].factor;
        for (int64_t s = 0; factor && s < ragged->n; s++)
            for (int64_t j = 0; j < columns; j++)
                factor[s * columns + j] =
                    FL_T(drop_factor)(1 - layer->config.dropout, key, (uint64_t)level,
                                      FL_T(drawn_as)(run, s) * (uint64_t)columns + (uint64_t)j);
    }
    for (int index = 0; index < layer->n_packed; index++) {
        real *mask = run->tape->directions[index].mask;
        for (int64_t s = 0; mask && s < ragged->n; s++)
            for (int64_t u = 0; u < layer->plane; u++)
                mask[s * layer->plane + u] = FL_T(drop_factor)(
                    1 - layer->config.recurrent_dropout, key, ((uint64_t)1 << 32) + (uint64_t)index,
                    FL_T(drawn_as)(run, s) * (uint64_t)hidden + (uint64_t)u);
    }
}

/* Initial states and dropout factors into the tape. */
static void FL_T(forward_begin)(const FL_T(fl_forward_run) * run)
{
    const fl_recurrent *layer = run->layer;
    const fl_forward *call = run->call;
    const fl_ragged *ragged = &run->tape->ragged;
    int64_t hidden = layer->config.hidden_size, state_row = layer->state_row;
    for (int index = 0; index < layer->n_packed; index++) {
        fl_tape_direction *direction = &run->tape->directions[index];
        for (int i = 0; i <= layer->states; i++) {
            const real *given = call->states_in ? call->states_in[i] : NULL;
            int64_t width = i ? hidden : layer->recurrent;
            given = given ? given + index * ragged->n * width : NULL;
            if (i == 0)
                FL_T(gather_state)(ragged, given, width, direction->h0, width, width);
            else
                FL_T(gather_state)(ragged, given, hidden,
                                   (real *)direction->state0[0] + (i - 1) * layer->plane, state_row,
                                   layer->plane);
        }
    }
    for (int index = 0; index < layer->n_packed; index++) {
        const fl_tape_direction *direction = &run->tape->directions[index];
        if (direction->state0[1] != direction->state0[0]) /* a reverse row may start at any step */
            FL_T(copy_row)(direction->state0[1], direction->state0[0], ragged->n * state_row);
    }
    FL_T(draw_masks)(run);
}

fl_status FL_T(fl_recurrent_forward)(const fl_recurrent *layer, const fl_forward *call,
                                     fl_tape *tape)
{
    FL_T(fl_forward_run)
    run = {.layer = layer, .call = call, .tape = tape, .kernels = &layer->isa->FL_SUFFIX};
    run.plan = fl_plan_forward(layer, &tape->ragged, fl_team_size(call->n_threads));
    fl_status status = fl_tape_prepare(tape, layer, call, &run.plan, &run.chunk_rows);
    if (status != FL_OK)
        return status;
    fl_plan_begin(layer, &tape->ragged, &run.plan, tape->plan_numbers, &run.lanes);
    fl_barrier_init(&run.all);
    fl_barrier_init(&run.group[0]);
    fl_barrier_init(&run.group[1]);
    FL_T(forward_begin)(&run);
    int wakes = fl_wakes_team(layer, &tape->ragged, call->n_threads, run.plan.n_threads);
    fl_team_run(run.plan.n_threads, wakes, FL_T(forward_thread), &run);
    return FL_OK;
}

/* One gate or state of one layer and direction from the tape into the caller's rows, (rows,
 * hidden). */
void FL_T(fl_tape_read)(const fl_recurrent *layer, const fl_tape *tape, const fl_record *record)
{
    const fl_ragged *ragged = &tape->ragged;
    const fl_tape_direction *direction = &tape->directions[record->place];
    int64_t hidden = layer->config.hidden_size, lanes = layer->lanes;
    int64_t state_row = layer->state_row, slot = record->index;
    const fl_part *part = layer->part;
    for (; record->kind == FL_RECORD_GATE && slot >= part->cell.slots; part++)
        slot -= part->cell.slots;
    for (int64_t t = 0; t < ragged->steps; t++)
        for (int64_t s = 0; s < ragged->batch[t]; s++) {
            int64_t row = ragged->offset[t] + s;
            real *to = (real *)record->out + (record->start[ragged->sequence[s]] + t) * hidden;
            const real *state =
                (const real *)direction->state + row * state_row + record->index * layer->plane;
            const real *gates =
                (const real *)direction->gates + row * layer->gate_row + part->gate_first;
            for (int64_t u = 0; u < hidden; u++)
                to[u] = record->kind == FL_RECORD_STATE
                            ? state[u]
                            : gates[(u / lanes * part->cell.slots + slot) * lanes + u % lanes];
        }
}
