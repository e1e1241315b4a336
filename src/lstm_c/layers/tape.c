/* Tapes: what a call lays out in memory, in training kept for the backward pass. */
#include <stdlib.h>

#include "base/fpenv.h"
#include "layers/recurrent.h"

fl_status fl_rows_fit(const fl_recurrent *layer, int64_t rows)
{
    int64_t wide = 3 * layer->gate_row + layer->state_row + layer->made_row + layer->plane +
                   layer->wide + layer->output * layer->directions + layer->config.input_size,
            total;
    return __builtin_mul_overflow(rows, 16 * wide, &total) ? FL_ERR_OVERFLOW : FL_OK;
}

/* Hoisted projections of a thread: well inside L2, of which processors with tiles have 2 MiB; and a
 * quarter of recurrent weights that do not fit there anyway. */
enum { CHUNK_BYTES = 256 * 1024, CHUNK_BYTES_WITH_TILES = 512 * 1024 };

fl_normed fl_take_normed(const fl_recurrent *layer, int64_t rows, int keeps_x, fl_arena *arena)
{
    fl_normed made = {0};
    if (!layer->config.layer_norm)
        return made;
    made.x = keeps_x ? fl_arena_take(arena, rows * layer->gate_row, layer->real_size) : NULL;
    made.h = fl_arena_take(arena, rows * layer->gate_row, layer->real_size);
    made.g = layer->cell.gate_states
                 ? fl_arena_take(arena, rows * layer->gate_row, layer->real_size)
                 : made.h;
    made.c =
        layer->normalizes_c ? fl_arena_take(arena, rows * layer->plane, layer->real_size) : made.h;
    made.scale = fl_arena_take(arena, rows * FL_NORMS, layer->real_size);
    return made;
}

/* Whether x and y share memory; their rows may be more than an address space holds. */
static int rows_overlap(const fl_recurrent *layer, const fl_forward *call)
{
    const char *x = call->x, *y = call->y;
    int64_t x_row = layer->config.input_size * (int64_t)layer->real_size,
            y_row = layer->output * layer->directions * (int64_t)layer->real_size;
    if (!y)
        return 0;
    return x < y ? (y - x) / x_row < call->x_total : (x - y) / y_row < call->y_total;
}

/* In inference, a layer reads the caller's x and writes the caller's y where a step finds its rows
 * there at one distance: sequences of x may overlap then, those of y not. Between one and a tile of
 * sequences, the rows of several steps together make better products than those of one. */
enum { FEWEST_ROWS_IN_PLACE = 16 };
static int64_t x_rows_apart(const fl_recurrent *layer, const fl_forward *call,
                            const fl_ragged *ragged)
{
    int few = ragged->n > 1 && ragged->n < FEWEST_ROWS_IN_PLACE;
    return few || rows_overlap(layer, call) ? 0 : fl_ragged_apart(ragged, call->x_rows.start);
}
static int64_t y_rows_apart(const fl_forward *call, const fl_ragged *ragged)
{
    int64_t apart = call->y ? fl_ragged_apart(ragged, call->y_start) : 0;
    return ragged->n == 1 || apart >= ragged->steps ? apart : 0;
}

static void tape_layout(fl_tape *tape, const fl_recurrent *layer, const fl_forward *call,
                        const fl_plan *plan, int64_t chunk_rows, fl_arena *arena)
{
    const fl_ragged *ragged = &tape->ragged;
    size_t size = layer->real_size;
    int64_t columns = layer->output * layer->directions, state_row = layer->state_row;
    int64_t L = layer->config.num_layers;
    int measuring = !arena->memory;
    int64_t x_apart = tape->training ? 0 : x_rows_apart(layer, call, ragged),
            y_apart = tape->training ? 0 : y_rows_apart(call, ragged);
    fl_ragged_layout(&tape->ragged, arena);
    tape->layers = fl_arena_take(arena, L, sizeof *tape->layers);
    tape->directions = fl_arena_take(arena, layer->n_packed, sizeof *tape->directions);
    tape->x = x_apart ? NULL : fl_arena_take(arena, ragged->rows * layer->config.input_size, size);
    tape->decay = call->decay ? fl_arena_take(arena, ragged->rows, size) : NULL;
    void *alternate[2] = {NULL, NULL};
    for (int64_t level = 0; level < L; level++) {
        fl_tape_layer made = {0};
        int drops = tape->drops && level > 0 && layer->config.dropout > 0, top = level == L - 1;
        made.factor = drops ? fl_arena_take(arena, ragged->n * columns, size) : NULL;
        made.dropped = drops ? fl_arena_take(arena, ragged->rows * columns, size) : NULL;
        made.y_apart = top ? y_apart : 0;
        if (made.y_apart)
            made.y = (char *)call->y + (size_t)(call->y_start[0] * columns) * size;
        else if (tape->training || plan->waves || level < 2) /* all are kept, or in use at once */
            made.y = alternate[level & 1] = fl_arena_take(arena, ragged->rows * columns, size);
        else
            made.y = alternate[level & 1];
        if (measuring)
            continue;
        made.x = level == 0 ? tape->x : made.dropped ? made.dropped : tape->layers[level - 1].y;
        if (level == 0 && x_apart) {
            made.x_apart = x_apart;
            made.x = (const char *)call->x +
                     (size_t)(call->x_rows.start[0] * layer->config.input_size) * size;
        }
        tape->layers[level] = made;
    }
    for (int index = 0; index < layer->n_packed; index++) {
        fl_tape_direction made = {0};
        made.h0 = fl_arena_take(arena, ragged->n * layer->recurrent, size);
        made.state0[0] = fl_arena_take(arena, ragged->n * state_row, size);
        made.state0[1] = made.state0[0];
        if (layer->alternates && !tape->training) /* all units read it while each is written */
            made.state0[1] = fl_arena_take(arena, ragged->n * state_row, size);
        made.gates =
            tape->training ? fl_arena_take(arena, ragged->rows * layer->gate_row, size) : NULL;
        made.state = tape->training ? fl_arena_take(arena, ragged->rows * state_row, size) : NULL;
        made.mask = tape->drops && layer->config.recurrent_dropout > 0
                        ? fl_arena_take(arena, ragged->n * layer->plane, size)
                        : NULL;
        if (layer->n_parts > 1) {
            int64_t rows = tape->training ? ragged->rows : ragged->n;
            made.made_h = fl_arena_take(arena, rows * layer->plane, size);
            made.made_state = fl_arena_take(arena, rows * layer->made_row, size);
        }
        if (fl_projects(layer))
            made.unprojected = fl_arena_take(
                arena, (tape->training ? ragged->rows : ragged->n) * layer->wide, size);
        int draws = layer->zones && tape->drops && !call->expects;
        made.zoned = draws ? fl_arena_take(arena, ragged->rows * layer->zone_row, 1) : NULL;
        made.unzoned = tape->training && layer->zoned_states
                           ? fl_arena_take(arena, ragged->rows * state_row, size)
                           : NULL;
        made.normed =
            fl_take_normed(layer, tape->training ? ragged->rows : ragged->n, tape->training, arena);
        if (!measuring)
            tape->directions[index] = made;
    }
    tape->plan_numbers =
        fl_arena_take(arena, fl_plan_numbers(layer, plan), sizeof *tape->plan_numbers);
    tape->scratch = fl_arena_take(arena, plan->n_threads, sizeof *tape->scratch);
    tape->prepared = fl_arena_take(arena, plan->n_threads, sizeof *tape->prepared);
    fl_weight_format format = fl_call_format(layer, ragged->n);
    for (int index = 0; index < layer->n_packed; index++)
        if (fl_projects_on_tiles(layer, ragged, layer->packed[index].input))
            format = FL_WEIGHTS_TILES;
    for (int thread = 0; thread < plan->n_threads; thread++) {
        fl_prepared prepared = fl_take_prepared(layer, format, chunk_rows, arena);
        if (!measuring)
            tape->prepared[thread] = prepared;
    }
    for (int thread = 0; thread < plan->n_threads && !tape->training; thread++) {
        void *scratch = fl_arena_take(arena, chunk_rows * layer->gate_row, size);
        if (!measuring)
            tape->scratch[thread] = scratch;
    }
}

/* Rows of the input that are projected at a time: at least one step of all sequences. */
static int64_t rows_of_chunk(const fl_recurrent *layer, const fl_ragged *ragged)
{
    int64_t near = layer->tiles ? CHUNK_BYTES_WITH_TILES : CHUNK_BYTES,
            row = layer->gate_row * (int64_t)layer->real_size, far = fl_recurrent_bytes(layer) / 4,
            budget = (far > near ? far : near) / row,
            rows = ragged->n > budget ? ragged->n : budget;
    return rows < ragged->rows ? rows : ragged->rows;
}

fl_status fl_tape_prepare(fl_tape *tape, const fl_recurrent *layer, const fl_forward *call,
                          const fl_plan *plan, int64_t *chunk_rows)
{
    fl_arena measure = {0};
    *chunk_rows = rows_of_chunk(layer, &tape->ragged);
    tape_layout(tape, layer, call, plan, *chunk_rows, &measure);
    tape->arena.used = measure.used;
    tape->arena.overflow = measure.overflow;
    fl_status status = fl_arena_commit(&tape->arena);
    if (status != FL_OK)
        return status;
    tape_layout(tape, layer, call, plan, *chunk_rows, &tape->arena);
    fl_ragged_fill(&tape->ragged, &call->x_rows);
    return FL_OK;
}

fl_status fl_tape_create(fl_tape **tape)
{
    if (!tape)
        return FL_ERR_ARGUMENT;
    *tape = calloc(1, sizeof **tape);
    return *tape ? FL_OK : FL_ERR_NOMEM;
}

void fl_tape_destroy(fl_tape *tape)
{
    if (!tape)
        return;
    fl_arena_release(&tape->arena);
    fl_arena_release(&tape->backward_arena);
    free(tape);
}

fl_status fl_recurrent_tape_bytes(const fl_recurrent *layer, int64_t n, int64_t steps, int64_t rows,
                                  int32_t decays, int32_t n_threads, int64_t *bytes)
{
    if (!layer || !bytes || n < 1 || steps < 1 || steps > rows || n > rows)
        return FL_ERR_ARGUMENT;
    if (fl_rows_fit(layer, rows) != FL_OK)
        return FL_ERR_OVERFLOW;
    fl_tape tape = {.ragged = {.n = n, .steps = steps, .rows = rows}, .training = 1, .drops = 1};
    fl_forward call = {.decay = decays ? &decays : NULL};
    fl_arena measure = {0};
    fl_fpenv saved = fl_fpenv_enter();
    fl_plan plan = fl_plan_forward(layer, &tape.ragged, fl_team_size(n_threads));
    fl_fpenv_leave(saved);
    tape_layout(&tape, layer, &call, &plan, rows_of_chunk(layer, &tape.ragged), &measure);
    *bytes = (int64_t)measure.used;
    return measure.overflow ? FL_ERR_OVERFLOW : FL_OK;
}

int64_t fl_tape_bytes(const fl_tape *tape)
{
    return tape ? (int64_t)(tape->arena.capacity + tape->backward_arena.capacity) : 0;
}
