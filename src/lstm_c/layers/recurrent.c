/* The recurrent layer: create, pack, and the time loops.
 *
 * Plan of a call. Sequences are sorted by length and packed time-major (ragged.h). For each layer
 * and direction: the input projection is hoisted out of the time loop as one product per chunk of
 * steps (chunk sized to stay in L2) where that pays, else x W joins h U in the step's tile; then
 * the steps, each a pass of the cell's fused kernel over blocks of packed weights. Threads take
 * lanes of some sequences in a direction as they come free (lanes.h) or, when there are few
 * sequences, blocks of units with one barrier a step (schedule.c). Training keeps the activated
 * gates in the memory of the projection, plus states and outputs. Backward: one fused kernel a step
 * (dgates U^T and the cell's derivative), then the gradients of all weights of a layer as one deep
 * product over all real steps, and dx as another. Cost: forward 2 * gate_columns * (input + hidden)
 * flops a row, training three times that. */
#include "layers/recurrent.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/fpenv.h"
#include "base/rng.h"

#define FL_SUFFIX f32
#include "layers/parts_body.h"
#include "layers/pack_body.h"
#include "layers/normalized_step_body.h"
#include "layers/normalized_gradient_body.h"
#include "layers/backward_run_body.h"
#include "layers/backward_step_body.h"
#include "layers/weight_gradient_body.h"
#include "layers/recurrent_backward_body.h"
#include "layers/forward_step_body.h"
#include "layers/recurrent_forward_body.h"
#include "layers/recurrent_load_body.h"
#undef FL_SUFFIX
#define FL_SUFFIX f64
#include "layers/parts_body.h"
#include "layers/pack_body.h"
#include "layers/normalized_step_body.h"
#include "layers/normalized_gradient_body.h"
#include "layers/backward_run_body.h"
#include "layers/backward_step_body.h"
#include "layers/weight_gradient_body.h"
#include "layers/recurrent_backward_body.h"
#include "layers/forward_step_body.h"
#include "layers/recurrent_forward_body.h"
#include "layers/recurrent_load_body.h"
#undef FL_SUFFIX

static atomic_uint_fast64_t next_id; /* handles of this process so far */

static int find_cell(const fl_isa *isa, const char *name)
{
    for (int i = 0; i < isa->f32.n_cells; i++)
        if (strcmp(isa->f32.cells[i].facts->name, name) == 0)
            return i;
    return -1;
}

const char *fl_cell_name(int32_t index)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    for (int i = 0; isa && i < isa->f32.n_cells; i++)
        if (!isa->f32.cells[i].facts->is_prelude && index-- == 0)
            return isa->f32.cells[i].facts->name;
    return NULL;
}

static fl_status check_config(const fl_recurrent_config *config)
{
    const int64_t limit = (int64_t)1 << 31;
    if (!config->cell || config->input_size < 1 || config->hidden_size < 1 ||
        config->num_layers < 1)
        return FL_ERR_ARGUMENT;
    if (config->proj_size < 0 || config->output_proj_size < 0 ||
        (config->output_proj_size && !config->proj_size))
        return FL_ERR_ARGUMENT;
    if (config->input_size > limit || config->hidden_size > limit || config->proj_size > limit ||
        config->output_proj_size > limit || config->num_layers > 1 << 16)
        return FL_ERR_OVERFLOW;
    if (config->dtype != FL_FLOAT32 && config->dtype != FL_FLOAT64)
        return FL_ERR_ARGUMENT;
    if (config->truncated < 0 || config->truncated > FL_TRUNCATED_AT_PEEPHOLES)
        return FL_ERR_ARGUMENT;
    if (config->precision < FL_PRECISION_FLOAT32 || config->precision > FL_PRECISION_INT8 ||
        (config->dtype == FL_FLOAT64 && config->precision))
        return FL_ERR_ARGUMENT;
    if (!(config->zoneout_h >= 0 && config->zoneout_h < 1 && config->zoneout_c >= 0 &&
          config->zoneout_c < 1))
        return FL_ERR_ARGUMENT;
    int fractions = config->dropout >= 0 && config->dropout < 1 && config->recurrent_dropout >= 0 &&
                    config->recurrent_dropout < 1;
    return fractions ? FL_OK : FL_ERR_ARGUMENT;
}

/* Shapes of the parameter arrays of one layer and direction, in their order in the flat array.
 * Returns how many; rows[k] x columns[k], columns 0 for a vector. */
static int parameter_shapes(const fl_recurrent *layer, int64_t input, fl_parameter *shapes)
{
    int64_t hidden = layer->config.hidden_size, x_rows = layer->cell.x_gates * hidden,
            h_rows = layer->cell.h_gates * hidden;
    int count = 0;
    shapes[count++] = (fl_parameter){.kind = FL_WEIGHT_IH, .rows = x_rows, .columns = input};
    shapes[count++] =
        (fl_parameter){.kind = FL_WEIGHT_HH, .rows = h_rows, .columns = layer->recurrent};
    if (layer->config.bias) {
        shapes[count++] = (fl_parameter){.kind = FL_BIAS_IH, .rows = x_rows};
        shapes[count++] = (fl_parameter){.kind = FL_BIAS_HH, .rows = h_rows};
    }
    for (int p = 0; p < layer->cell.n_peepholes; p++)
        shapes[count++] = (fl_parameter){.kind = FL_PEEPHOLE + p, .rows = hidden};
    if (layer->cell.gate_states)
        shapes[count++] = (fl_parameter){.kind = FL_WEIGHT_GG,
                                         .rows = layer->cell.g_gates * hidden,
                                         .columns = fl_recurring_gates(layer)};
    if (fl_projects(layer))
        shapes[count++] =
            (fl_parameter){.kind = FL_WEIGHT_HR, .rows = layer->output, .columns = hidden};
    if (layer->config.layer_norm) {
        shapes[count++] = (fl_parameter){.kind = FL_NORM_IH, .rows = x_rows};
        shapes[count++] = (fl_parameter){.kind = FL_NORM_HH, .rows = h_rows};
    }
    if (layer->config.layer_norm && layer->cell.gate_states)
        shapes[count++] = (fl_parameter){.kind = FL_NORM_GG, .rows = layer->cell.g_gates * hidden};
    if (layer->normalizes_c) {
        shapes[count++] = (fl_parameter){.kind = FL_NORM_C, .rows = hidden};
        shapes[count++] = (fl_parameter){.kind = FL_NORM_BIAS, .rows = hidden};
    }
    return count;
}

static int64_t array_size(const fl_parameter *shape)
{
    return shape->rows * (shape->columns ? shape->columns : 1);
}

/* Parameters of one layer and direction. */
static int64_t parameters_of(const fl_recurrent *layer, int64_t input)
{
    fl_parameter shapes[FL_MAX_ARRAYS];
    int64_t total = 0;
    for (int k = 0, count = parameter_shapes(layer, input, shapes); k < count; k++)
        total += array_size(&shapes[k]);
    return total;
}

/* Sizes of a part, which is the next one in a row of gates. */
static void derive_part(fl_recurrent *layer, fl_part *part)
{
    int64_t slots = part->cell.slots, panels_per_block = fl_panels_per_block((int)slots);
    part->sees_x = 0;
    for (int s = 0; s < slots; s++)
        part->sees_x |= part->cell.x_gate[s] >= 0;
    part->blocks = (layer->panels + panels_per_block - 1) / panels_per_block;
    part->block_width = panels_per_block * slots * layer->lanes;
    int vectors = (int)(panels_per_block * slots),
        compact =
            part->cell.compact && !layer->config.layer_norm; /* whose products are whole rows */
    part->of_x = fl_slots_of(vectors, compact, 0);
    part->of_h = fl_slots_of(vectors, compact, 1);
    part->gate_columns = layer->panels * slots * layer->lanes;
    part->gate_stride = part->blocks * part->block_width;
    part->gate_first = layer->gate_row;
    layer->gate_row += part->gate_stride;
    layer->made_row = part->cell.states * layer->plane;
}

/* Sizes that follow from the configuration and the vector length. */
static fl_status derive_sizes(fl_recurrent *layer)
{
    const fl_recurrent_config *config = &layer->config;
    int64_t hidden = config->hidden_size, parameters = 0, rows;
    layer->directions = config->bidirectional ? 2 : 1;
    layer->n_packed = (int)config->num_layers * layer->directions;
    layer->real_size = config->dtype == FL_FLOAT64 ? 8 : 4;
    layer->lanes = config->dtype == FL_FLOAT64 ? layer->isa->f64.lanes : layer->isa->f32.lanes;
    layer->panels = (hidden + layer->lanes - 1) / layer->lanes;
    layer->plane = layer->panels * layer->lanes;
    int64_t block = FL_BLOCK_VECTORS * layer->lanes;
    layer->wide = (hidden + block - 1) / block * block;
    layer->recurrent = config->proj_size ? config->proj_size : hidden;
    layer->recurrent_plane = (layer->recurrent + layer->lanes - 1) / layer->lanes * layer->lanes;
    layer->output = layer->recurrent + config->output_proj_size;
    layer->zone_row =
        2 * (layer->recurrent_plane > layer->plane ? layer->recurrent_plane : layer->plane);
    layer->gate_row = layer->made_row = 0;
    for (int p = 0; p < layer->n_parts; p++)
        derive_part(layer, &layer->part[p]);
    layer->states = layer->cell.transient ? 0 : layer->cell.states;
    layer->state_row = layer->states * layer->plane;
    rows = layer->cell.x_gates + layer->cell.h_gates + layer->cell.slots +
           layer->cell.g_gates * layer->cell.gate_states;
    int64_t inner = layer->output * layer->directions,
            wider = config->input_size > inner ? config->input_size : inner, a_direction, total;
    rows += (layer->output + hidden - 1) / hidden;
    if (__builtin_mul_overflow(rows * hidden, wider + hidden + layer->output + 8, &a_direction) ||
        __builtin_mul_overflow(a_direction, (int64_t)layer->n_packed * 64, &total))
        return FL_ERR_OVERFLOW;
    for (int index = 0; index < layer->n_packed; index++) {
        int64_t input = index < layer->directions ? config->input_size : inner;
        if (layer->packed) {
            layer->packed[index].input = input;
            layer->packed[index].offset = parameters;
        }
        parameters += parameters_of(layer, input);
    }
    layer->n_parameters = parameters;
    return FL_OK;
}

/* Columns of a normalisation. */
static void place_norm(const fl_recurrent *layer, int which, fl_packed_norm *norm)
{
    const fl_part *part = which >= FL_NORM_OF_H ? &layer->part[which - FL_NORM_OF_H]
                                                : &layer->part[fl_input_part(layer)];
    norm->first = which == FL_NORM_OF_C ? 0 : part->gate_first;
    norm->width = which == FL_NORM_OF_C   ? layer->plane
                  : which == FL_NORM_OF_X ? layer->gate_row - part->gate_first
                                          : part->gate_stride;
}

void fl_pointwise_layout(const fl_recurrent *layer, fl_packed *packed, fl_arena *arena)
{
    for (int p = 0; p < layer->n_parts; p++)
        packed->part[p].peephole =
            fl_arena_take(arena, layer->part[p].cell.n_peepholes * layer->plane, layer->real_size);
    for (int which = 0; layer->config.layer_norm && which < FL_NORMS; which++) {
        fl_packed_norm *norm = &packed->norm[which];
        place_norm(layer, which, norm);
        norm->counts = fl_arena_take(arena, norm->width, layer->real_size);
        norm->gain = fl_arena_take(arena, norm->width, layer->real_size);
    }
    if (layer->config.layer_norm)
        packed->norm_bias = fl_arena_take(arena, layer->plane, layer->real_size);
}

static void packed_layout(fl_recurrent *layer, fl_arena *arena)
{
    for (int index = 0; index < layer->n_packed; index++) {
        fl_packed *packed = &layer->packed[index];
        char *bias = fl_arena_take(arena, layer->gate_row, layer->real_size);
        for (int p = 0; p < layer->n_parts; p++) {
            const fl_part *part = &layer->part[p];
            fl_packed_part *to = &packed->part[p];
            int64_t blocks = layer->format == FL_WEIGHTS_INT8 ? 0 : part->blocks;
            to->weight_x = fl_arena_take(
                arena, packed->input * blocks * fl_columns_of(layer, part->of_x), layer->real_size);
            to->weight_h =
                fl_arena_take(arena, layer->recurrent * blocks * fl_columns_of(layer, part->of_h),
                              layer->real_size);
            to->weight_g = fl_arena_take(
                arena, part->cell.gate_states * layer->plane * part->gate_stride, layer->real_size);
            to->bias = bias ? bias + (size_t)part->gate_first * layer->real_size : NULL;
        }
        fl_formats_layout(layer, packed, arena);
        fl_pointwise_layout(layer, packed, arena);
        if (fl_projects(layer)) {
            int64_t width = FL_BLOCK_VECTORS * layer->lanes,
                    columns = (layer->output + width - 1) / width * width;
            packed->projection =
                fl_arena_take(arena, layer->config.hidden_size * columns, layer->real_size);
        }
    }
}

static fl_status find_parts(fl_recurrent *layer)
{
    const char *name = layer->config.cell;
    int main = find_cell(layer->isa, name);
    if (main < 0 || layer->isa->f32.cells[main].facts->is_prelude)
        return FL_ERR_UNKNOWN_CELL;
    layer->cell = layer->isa->f32.cells[main].facts[0];
    layer->config.cell = layer->cell.name;
    if (layer->cell.prelude) {
        int index = find_cell(layer->isa, layer->cell.prelude);
        if (index < 0)
            return FL_ERR_UNKNOWN_CELL;
        layer->part[layer->n_parts++] =
            (fl_part){.cell = layer->isa->f32.cells[index].facts[0], .cell_index = index};
    }
    layer->part[layer->n_parts++] = (fl_part){.cell = layer->cell, .cell_index = main};
    for (int p = 0, at = 0; p < layer->n_parts; p++)
        for (const char *letter = layer->part[p].cell.slot_names; *letter; letter++)
            layer->slot_names[at++] = *letter;
    return FL_OK;
}

static fl_status fill_layer(fl_recurrent *layer)
{
    fl_status status;
    layer->isa = fl_isa_current(&status);
    if (!layer->isa)
        return status;
    status = find_parts(layer);
    if (status != FL_OK)
        return status;
    if (layer->config.recurrent_dropout > 0 && !layer->cell.takes_mask)
        return FL_ERR_ARGUMENT;
    if (layer->config.truncated == FL_TRUNCATED && (layer->n_parts > 1 || !layer->cell.states))
        return FL_ERR_ARGUMENT;
    if (layer->config.truncated == FL_TRUNCATED_AT_PEEPHOLES && !layer->cell.n_peepholes)
        return FL_ERR_ARGUMENT;
    if (layer->config.proj_size && (layer->n_parts > 1 || !layer->cell.states ||
                                    layer->cell.state_recurs || layer->cell.reads_h))
        return FL_ERR_ARGUMENT;
    layer->zones = layer->config.zoneout_h > 0 || layer->config.zoneout_c > 0;
    int memory = layer->cell.transient ? 0 : layer->cell.states - layer->cell.gate_states;
    layer->zoned_states = layer->config.zoneout_c > 0 ? memory : 0;
    if (layer->config.zoneout_c > 0 && !memory)
        return FL_ERR_ARGUMENT;
    if (layer->zoned_states) {
        layer->log_kept = log(layer->config.zoneout_c);
        layer->log_new = log1p(-layer->config.zoneout_c);
    }
    layer->alternates =
        layer->part[0].cell.state_recurs || layer->cell.gate_states || layer->zoned_states;
    layer->normalizes_c =
        layer->config.layer_norm &&
        layer->isa->f32.cells[fl_main_part(layer)->cell_index].normed->output != NULL;
    status = derive_sizes(layer);
    if (status != FL_OK)
        return status;
    layer->packed = calloc((size_t)layer->n_packed, sizeof *layer->packed);
    if (!layer->packed)
        return FL_ERR_NOMEM;
    derive_sizes(layer);
    fl_choose_formats(layer);
    packed_layout(layer, &layer->arena);
    status = fl_arena_commit(&layer->arena);
    if (status == FL_OK)
        packed_layout(layer, &layer->arena);
    return status;
}

fl_status fl_recurrent_create(const fl_recurrent_config *config, fl_recurrent **out)
{
    fl_status status = config && out ? check_config(config) : FL_ERR_ARGUMENT;
    if (status != FL_OK)
        return status;
    fl_recurrent *layer = calloc(1, sizeof *layer);
    if (!layer)
        return FL_ERR_NOMEM;
    layer->config = *config;
    layer->id = atomic_fetch_add(&next_id, 1) + 1;
    fl_fpenv saved = fl_fpenv_enter(); /* logarithms raise flags */
    status = fill_layer(layer);
    fl_fpenv_leave(saved);
    if (status == FL_OK)
        *out = layer;
    else
        fl_recurrent_destroy(layer);
    return status;
}

void fl_recurrent_destroy(fl_recurrent *layer)
{
    if (!layer)
        return;
    fl_arena_release(&layer->arena);
    free(layer->packed);
    free(layer);
}

int32_t fl_recurrent_n_states(const fl_recurrent *layer)
{
    return layer ? 1 + (int32_t)layer->states : 0;
}
int64_t fl_recurrent_output(const fl_recurrent *layer)
{
    return layer ? layer->output : 0;
}
int64_t fl_recurrent_n_parameters(const fl_recurrent *layer)
{
    return layer ? layer->n_parameters : 0;
}
static int arrays_a_direction(const fl_recurrent *layer)
{
    fl_parameter shapes[FL_MAX_ARRAYS];
    return parameter_shapes(layer, 1, shapes);
}

int32_t fl_recurrent_n_arrays(const fl_recurrent *layer)
{
    return layer ? layer->n_packed * arrays_a_direction(layer) : 0;
}

fl_status fl_recurrent_parameter(const fl_recurrent *layer, int32_t index, fl_parameter *parameter)
{
    if (!layer || !parameter || index < 0 || index >= fl_recurrent_n_arrays(layer))
        return FL_ERR_ARGUMENT;
    int kinds = arrays_a_direction(layer), place = index / kinds;
    fl_parameter shapes[FL_MAX_ARRAYS];
    parameter_shapes(layer, layer->packed[place].input, shapes);
    int64_t offset = layer->packed[place].offset;
    for (int k = 0; k < index % kinds; k++)
        offset += array_size(&shapes[k]);
    *parameter = shapes[index % kinds];
    parameter->layer = place / layer->directions;
    parameter->direction = place % layer->directions;
    parameter->offset = offset;
    return FL_OK;
}

fl_status fl_recurrent_load(fl_recurrent *layer, const void *parameters)
{
    if (!layer || !parameters)
        return FL_ERR_ARGUMENT;
    fl_fpenv saved = fl_fpenv_enter();
    if (layer->config.dtype == FL_FLOAT64)
        fl_recurrent_pack_f64(layer, parameters);
    else
        fl_recurrent_pack_f32(layer, parameters);
    fl_fpenv_leave(saved);
    layer->loaded = 1;
    return FL_OK;
}

static fl_status check_forward(const fl_recurrent *layer, const fl_forward *call, fl_ragged *ragged)
{
    if (!layer->loaded || !call->x || !call->x_rows.start || !call->x_rows.length ||
        (call->y && !call->y_start))
        return FL_ERR_ARGUMENT;
    fl_status status = fl_ragged_check(ragged, &call->x_rows, call->x_total);
    if (status == FL_OK && call->y)
        status = fl_ragged_check_rows(&call->x_rows, call->y_start, call->y_total);
    return status == FL_OK ? fl_rows_fit(layer, ragged->rows) : status;
}

fl_status fl_recurrent_forward(const fl_recurrent *layer, const fl_forward *call)
{
    if (!layer || !call)
        return FL_ERR_ARGUMENT;
    fl_tape local = {0}, *tape = call->tape ? call->tape : &local;
    tape->layer_id = 0;
    fl_status status = check_forward(layer, call, &tape->ragged);
    if (status != FL_OK)
        return status;
    tape->training = call->tape != NULL;
    tape->drops = tape->training || call->drops;
    fl_fpenv saved = fl_fpenv_enter();
    status = layer->config.dtype == FL_FLOAT64 ? fl_recurrent_forward_f64(layer, call, tape)
                                               : fl_recurrent_forward_f32(layer, call, tape);
    fl_fpenv_leave(saved);
    if (tape == &local)
        fl_arena_release(&local.arena);
    else if (status == FL_OK)
        tape->layer_id = layer->id;
    return status;
}

/* Rows of an array of the backward call, against the lengths on the tape. */
static fl_status check_rows(const fl_ragged *ragged, const void *array, const int64_t *start,
                            int64_t total)
{
    if (!array)
        return FL_OK;
    if (!start)
        return FL_ERR_ARGUMENT;
    for (int64_t s = 0; s < ragged->n; s++) {
        int64_t first = start[ragged->sequence[s]];
        if (first < 0 || first > total || ragged->length[s] > total - first)
            return FL_ERR_ARGUMENT;
    }
    return FL_OK;
}

fl_status fl_recurrent_backward(const fl_recurrent *layer, const fl_backward *call)
{
    if (!layer || !call || !call->tape || !call->gradients || !call->parameters)
        return FL_ERR_ARGUMENT;
    if (layer->config.precision == FL_PRECISION_INT8)
        return FL_ERR_ARGUMENT;
    if (call->tape->layer_id != layer->id || call->n != call->tape->ragged.n)
        return FL_ERR_TAPE;
    fl_status status = check_rows(&call->tape->ragged, call->dy, call->dy_start, call->dy_total);
    if (status == FL_OK)
        status = check_rows(&call->tape->ragged, call->dx, call->dx_start, call->dx_total);
    if (status != FL_OK)
        return status;
    fl_fpenv saved = fl_fpenv_enter();
    status = layer->config.dtype == FL_FLOAT64 ? fl_recurrent_backward_f64(layer, call)
                                               : fl_recurrent_backward_f32(layer, call);
    fl_fpenv_leave(saved);
    if (status == FL_OK)
        call->tape->layer_id = 0;
    return status;
}

const char *fl_recurrent_slot_names(const fl_recurrent *layer)
{
    return layer ? layer->slot_names : "";
}

const char *fl_recurrent_state_names(const fl_recurrent *layer)
{
    return layer && layer->cell.state_names ? layer->cell.state_names : "cnm";
}

fl_status fl_tape_read(const fl_recurrent *layer, const fl_tape *tape, const fl_record *record)
{
    if (!layer || !tape || !record || !record->out)
        return FL_ERR_ARGUMENT;
    if (tape->layer_id != layer->id)
        return FL_ERR_TAPE;
    if (record->kind != FL_RECORD_GATE && record->kind != FL_RECORD_STATE)
        return FL_ERR_ARGUMENT;
    int count =
        record->kind == FL_RECORD_STATE ? (int)layer->states : (int)strlen(layer->slot_names);
    if (record->place < 0 || record->place >= layer->n_packed || record->index < 0 ||
        record->index >= count)
        return FL_ERR_ARGUMENT;
    fl_status status = check_rows(&tape->ragged, record->out, record->start, record->total);
    if (status != FL_OK)
        return status;
    if (layer->config.dtype == FL_FLOAT64)
        fl_tape_read_f64(layer, tape, record);
    else
        fl_tape_read_f32(layer, tape, record);
    return FL_OK;
}
