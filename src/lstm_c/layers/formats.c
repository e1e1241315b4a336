/* Weights in other formats than float32 panels: which layers have them, how they are packed, and
 * the products that read them.
 *
 * A product of a row or a few waits for its weights, so its time is their bytes: bfloat16 and int8
 * have fewer. A product of many rows is as fast as the multipliers: tiles have more of them. Either
 * is a pass of its own, from the projected input to the pre-activations in place; the cell's kernel
 * then starts from those and has nothing left to multiply. */
#include <math.h>
#include <string.h>

#include "layers/recurrent.h"

/* From which on products are faster on tiles, see docs/performance.md: sequences, by the number of
 * parts, and of layers below 64 units; depth, with one or two parts and with three; rows of all
 * steps, inputs and hidden units where x W alone is. Above FAR_PART_BYTES of recurrent weights in
 * parts, rows that do not fill a tile have x W hoisted: more rows for each weight that is read. */
#if defined(FASTLSTM_TILES_FOR_FEW) /* for tests */
static const int64_t fewest_rows[] = {0, 4, 4, 4}, fewest_narrow_rows = 4;
enum { SMALLEST_DEPTH = 1, SMALLEST_OF_THREE = 1 };
enum { FEWEST_PROJECTED_ROWS = 4, SMALLEST_PROJECTED = 1, SMALLEST_PROJECTING = 1 };
enum { FAR_PART_BYTES = 0 };
#else
static const int64_t fewest_rows[] = {0, 4, 6, 12}, fewest_narrow_rows = 8;
enum { SMALLEST_DEPTH = 48, SMALLEST_OF_THREE = 64 };
enum { FEWEST_PROJECTED_ROWS = 64, SMALLEST_PROJECTED = 64, SMALLEST_PROJECTING = 96 };
enum { FAR_PART_BYTES = 768 * 1024 };
#endif
enum { FEW_ROWS = 3 /* a register tile of every instruction set */, FULL_TILE_ROWS = 16 };

/* Plain recurrent weights below this size are no wait: a narrow vector widens bfloat16 no faster
 * than L2 delivers float32, a wide one than L1. */
static int64_t cached_bytes(const fl_recurrent *layer)
{
    return layer->lanes >= 16 ? 32 * 1024 : 1024 * 1024;
}

/* ---- numbers ---- */

float fl_int8_scale(const float *row, int64_t count)
{
    float largest = 0;
    for (int64_t i = 0; i < count; i++)
        largest = fabsf(row[i]) > largest || row[i] != row[i] ? fabsf(row[i]) : largest;
    return largest / 127;
}

/* Upper half of the nearest bfloat16, ties to even. */
static uint16_t bfloat16_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value)
        return (uint16_t)(bits >> 16 | 0x40u); /* quiet, whatever its lower half was */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static int8_t int8_of(float value, float scale)
{
    return scale > 0 && scale < INFINITY ? (int8_t)lrintf(value / scale) : 0;
}

float fl_round_weight(const fl_recurrent *layer, float weight, float int8_scale)
{
    if (layer->config.precision == FL_PRECISION_INT8)
        return int8_scale * (float)int8_of(weight, int8_scale);
    uint32_t bits = (uint32_t)bfloat16_of(weight) << 16;
    float rounded;
    memcpy(&rounded, &bits, sizeof rounded);
    return rounded;
}

/* ---- which ---- */

static fl_weight_format format_of_few(const fl_recurrent *layer)
{
    if (layer->config.precision == FL_PRECISION_INT8)
        return FL_WEIGHTS_INT8;
    int one_order = !layer->cell.gate_states; /* what recurs is added last, as in a plain step */
    return layer->config.precision == FL_PRECISION_BFLOAT16 && one_order &&
                   fl_recurrent_bytes(layer) > cached_bytes(layer)
               ? FL_WEIGHTS_BFLOAT16
               : FL_WEIGHTS_PLAIN;
}

void fl_choose_formats(fl_recurrent *layer)
{
    const fl_recurrent_config *config = &layer->config;
    if (config->dtype != FL_FLOAT32 ||
        config->layer_norm) /* its products are passes of their own */
        return;
    layer->format = format_of_few(layer);
    layer->int8 = fl_int8_current();
    int parts = config->precision == FL_PRECISION_BFLOAT16 ? 1
                : config->precision == FL_PRECISION_HIGH   ? 2
                                                           : 3;
    if (config->precision == FL_PRECISION_INT8 || config->batch_invariant ||
        layer->recurrent < (parts > 2 ? SMALLEST_OF_THREE : SMALLEST_DEPTH))
        return;
    layer->tiles = fl_tiles_current();
    layer->tile_parts = parts;
}

static int64_t fewest_tile_rows(const fl_recurrent *layer)
{
    int64_t fewest = fewest_rows[layer->tile_parts];
    return layer->recurrent < 64 && fewest < fewest_narrow_rows ? fewest_narrow_rows : fewest;
}

fl_weight_format fl_call_format(const fl_recurrent *layer, int64_t n)
{
    if (layer->format == FL_WEIGHTS_INT8)
        return FL_WEIGHTS_INT8;
    if (layer->tiles && n >= fewest_tile_rows(layer))
        return FL_WEIGHTS_TILES;
    return n <= FEW_ROWS ? layer->format : FL_WEIGHTS_PLAIN;
}

int fl_format_hoists(const fl_recurrent *layer, int64_t n)
{
    fl_weight_format format = fl_call_format(layer, n);
    if (format != FL_WEIGHTS_TILES)
        return format != FL_WEIGHTS_PLAIN;
    return n < FULL_TILE_ROWS && fl_recurrent_bytes(layer) / 2 * layer->tile_parts > FAR_PART_BYTES;
}

int fl_projects_on_tiles(const fl_recurrent *layer, const fl_ragged *ragged, int64_t input)
{
    return layer->tiles && layer->tile_parts > 1 &&
           fl_call_format(layer, ragged->n) != FL_WEIGHTS_TILES &&
           ragged->rows >= FEWEST_PROJECTED_ROWS && input >= SMALLEST_PROJECTED &&
           layer->recurrent >= SMALLEST_PROJECTING;
}

/* ---- packing ---- */

/* How `depth` weights of a column lie in the layer's format: in groups that follow a head. */
typedef struct reduced_column {
    int64_t head, groups, depths; /* groups of the head, all groups, depths of a group */
    size_t bytes;                 /* of all groups */
} reduced_column;

static reduced_column column_of(const fl_recurrent *layer, int64_t depth)
{
    int of_int8 = layer->format == FL_WEIGHTS_INT8;
    reduced_column column = {.head = of_int8 ? layer->int8->head : 0,
                             .depths = of_int8 ? layer->int8->depths : 2};
    column.groups = column.head + (depth + column.depths - 1) / column.depths;
    column.bytes = (size_t)(column.groups * column.depths) * (of_int8 ? 1 : sizeof(uint16_t));
    return column;
}

int64_t fl_tiles_size(const fl_recurrent *layer, int64_t blocks, int64_t depth, int64_t width)
{
    return layer->tiles ? blocks * fl_tile_block_size(width, depth, layer->tile_parts) : 0;
}

void fl_formats_layout(const fl_recurrent *layer, fl_packed *packed, fl_arena *arena)
{
    for (int p = 0; p < layer->n_parts; p++) {
        fl_packed_part *to = &packed->part[p];
        const fl_part *part = &layer->part[p];
        int64_t columns = layer->format ? part->gate_stride : 0,
                scales = layer->format == FL_WEIGHTS_INT8 ? columns : 0;
        to->reduced_x = fl_arena_take(arena, columns, column_of(layer, packed->input).bytes);
        to->reduced_h = fl_arena_take(arena, columns, column_of(layer, layer->recurrent).bytes);
        to->scale_x = fl_arena_take(arena, scales, sizeof(float));
        to->scale_h = fl_arena_take(arena, scales, sizeof(float));
        to->tiles_x = fl_arena_take(
            arena,
            fl_tiles_size(layer, part->blocks, packed->input, fl_columns_of(layer, part->of_x)),
            sizeof *to->tiles_x);
        to->tiles_h = fl_arena_take(
            arena,
            fl_tiles_size(layer, part->blocks, layer->recurrent, fl_columns_of(layer, part->of_h)),
            sizeof *to->tiles_h);
    }
}

/* Weight (gates*hidden, depth), slot s taking gate gate_of[s] -> (blocks, groups, block columns,
 * depths of a group) in the layer's format. */
static void pack_reduced(const fl_recurrent *layer, const fl_part *part, const float *weight,
                         const int *gate_of, int64_t depth, void *packed, float *scales)
{
    const reduced_column of = column_of(layer, depth);
    int64_t width = part->block_width;
    for (int64_t column = 0; column < part->gate_stride; column++) {
        int64_t row = fl_weight_row(layer, part, column, gate_of);
        int64_t first = (column / width * of.groups * width + column % width) * of.depths;
        const float *from = row >= 0 ? weight + row * depth : NULL;
        float scale = from && scales ? fl_int8_scale(from, depth) : 0;
        int32_t sum = 0;
        for (int64_t k = 0; k < (of.groups - of.head) * of.depths; k++) {
            int64_t group = of.head + k / of.depths,
                    at = first + group * of.depths * width + k % of.depths;
            float value = from && k < depth ? from[k] : 0;
            if (scales)
                sum += ((int8_t *)packed)[at] = int8_of(value, scale);
            else
                ((uint16_t *)packed)[at] = bfloat16_of(value);
        }
        if (scales)
            scales[column] = scale;
        if (of.head) {
            uint32_t head = (uint32_t)sum * (uint32_t)-32768; /* wraps, as the kernel's sums do */
            memcpy((int8_t *)packed + first, &head, sizeof head);
        }
    }
}

void fl_pack_tiles(const fl_recurrent *layer, const void *plain, int64_t first, int64_t end,
                   int64_t depth, int64_t width, uint16_t *to)
{
    int64_t size = fl_tiles_size(layer, 1, depth, width);
    for (int64_t block = first; layer->tiles && block < end; block++) {
        fl_tile_operand operand = {.values = (const float *)plain + block * depth * width,
                                   .rows = width,
                                   .depth = depth,
                                   .stride = width,
                                   .parts = layer->tile_parts,
                                   .to = to + block * size};
        layer->tiles->split_block(&operand);
    }
}

void fl_formats_pack(const fl_recurrent *layer, int index, int p, const float *weight_ih,
                     const float *weight_hh)
{
    const fl_packed *packed = &layer->packed[index];
    const fl_packed_part *to = &packed->part[p];
    const fl_part *part = &layer->part[p];
    int scaled = layer->format == FL_WEIGHTS_INT8;
    if (layer->format) {
        pack_reduced(layer, part, weight_ih, part->cell.x_gate, packed->input, to->reduced_x,
                     scaled ? to->scale_x : NULL);
        pack_reduced(layer, part, weight_hh, part->cell.h_gate, layer->recurrent, to->reduced_h,
                     scaled ? to->scale_h : NULL);
    }
    fl_pack_tiles(layer, to->weight_x, 0, part->blocks, packed->input,
                  fl_columns_of(layer, part->of_x), to->tiles_x);
    fl_pack_tiles(layer, to->weight_h, 0, part->blocks, layer->recurrent,
                  fl_columns_of(layer, part->of_h), to->tiles_h);
}

/* ---- products ---- */

/* Longest row that the weights of the layer multiply. */
static int64_t longest_row(const fl_recurrent *layer)
{
    int64_t longest = layer->recurrent;
    for (int index = 0; index < layer->n_packed; index++)
        longest = layer->packed[index].input > longest ? layer->packed[index].input : longest;
    return longest;
}

fl_prepared fl_take_prepared(const fl_recurrent *layer, fl_weight_format format, int64_t rows,
                             fl_arena *arena)
{
    fl_prepared taken = {0};
    switch (format) {
    case FL_WEIGHTS_INT8:
        taken.rows = fl_arena_take(arena, rows, (size_t)fl_int8_row(longest_row(layer)));
        taken.scale = fl_arena_take(arena, rows, sizeof *taken.scale);
        break;
    case FL_WEIGHTS_TILES:
        taken.rows =
            fl_arena_take(/* an input's, and of what recurs */
                          arena, rows + FL_TILE_PADDING,
                          sizeof(uint16_t) *
                              (size_t)(fl_tile_row_size(longest_row(layer), layer->tile_parts) +
                                       fl_tile_row_size(layer->recurrent, layer->tile_parts)));
        break;
    default:
        break;
    }
    return taken;
}

/* Largest magnitude of a row in int16 for which no sum of `depth` products leaves 32 bits. */
static float int16_limit(int64_t depth)
{
    int64_t limit = INT32_MAX / (127 * depth);
    return (float)(limit < INT16_MAX ? limit : INT16_MAX);
}

static void multiply_int8(const fl_recurrent *layer, const fl_prepared *prepared,
                          const float *column_scale, fl_reduced_gemm *gemm)
{
    char *quantized = prepared->rows;
    gemm->quantized = quantized;
    gemm->quantized_row = fl_int8_row(longest_row(layer));
    gemm->row_scale = prepared->scale;
    gemm->column_scale = column_scale;
    for (int64_t row = 0; row < gemm->rows; row++)
        prepared->scale[row] =
            layer->int8->quantize(gemm->a + row * gemm->a_row, gemm->depth,
                                  int16_limit(gemm->depth), quantized + row * gemm->quantized_row);
    layer->int8->gemm(gemm);
}

static void multiply_reduced(const fl_recurrent *layer, const fl_packed *packed, int p,
                             const fl_product *product)
{
    const fl_part *part = &layer->part[p];
    const fl_packed_part *of = &packed->part[p];
    int recurrent = product->recurrent;
    fl_reduced_gemm gemm = {.rows = product->rows,
                            .depth = recurrent ? layer->recurrent : packed->input,
                            .block_first = product->block_first,
                            .block_end = product->block_end,
                            .descending = product->descending,
                            .vectors = (int)(part->block_width / layer->lanes),
                            .a = product->a,
                            .a_row = product->a_row,
                            .b = recurrent ? of->reduced_h : of->reduced_x,
                            .init = product->init,
                            .init_row = product->init_row,
                            .c = product->c,
                            .c_row = product->c_row};
    if (product->format == FL_WEIGHTS_BFLOAT16)
        layer->isa->reduced.gemm_bfloat16(&gemm);
    else
        multiply_int8(layer, product->prepared, recurrent ? of->scale_h : of->scale_x, &gemm);
}

void fl_multiply(const fl_recurrent *layer, const fl_packed *packed, int p,
                 const fl_product *product)
{
    if (product->format != FL_WEIGHTS_TILES) {
        multiply_reduced(layer, packed, p, product);
        return;
    }
    const fl_part *part = &layer->part[p];
    int recurrent = product->recurrent;
    fl_slots slots = recurrent ? part->of_h : part->of_x;
    int64_t first = fl_first_column(layer, slots);
    fl_tile_gemm gemm = {
        .rows = product->rows,
        .factor = {{.b = recurrent ? packed->part[p].tiles_h : packed->part[p].tiles_x,
                    .depth = recurrent ? layer->recurrent : packed->input,
                    .columns = fl_columns_of(layer, slots)}},
        .block_first = product->block_first,
        .block_end = product->block_end,
        .descending = product->descending,
        .width = fl_columns_of(layer, slots),
        .c_block = part->block_width,
        .columns = part->gate_stride - first,
        .init = (const float *)product->init + first,
        .init_row = product->init_row,
        .c = (float *)product->c + first,
        .c_row = product->c_row,
        .c_groups = product->c_groups};
    fl_tile_operand rows = {
        .values = product->a, .stride = product->a_row, .groups = product->a_groups};
    fl_multiply_tiles(layer, &rows, product->prepared, &gemm);
}

/* Splits a factor's rows (rows, depth), which lie as `given` says, to `to`; returns what follows
 * them there. */
static uint16_t *split_factor(const fl_recurrent *layer, const fl_tile_operand *given, uint16_t *to,
                              fl_tile_gemm *gemm, int factor)
{
    fl_tile_operand rows = *given;
    rows.rows = gemm->rows;
    rows.depth = gemm->factor[factor].depth;
    rows.parts = layer->tile_parts;
    rows.to = to;
    layer->tiles->split_rows(&rows);
    gemm->parts = layer->tile_parts;
    gemm->factor[factor].a = to;
    return to + (gemm->rows + FL_TILE_PADDING) * fl_tile_row_size(rows.depth, rows.parts);
}

void fl_multiply_tiles(const fl_recurrent *layer, const fl_tile_operand *rows,
                       const fl_prepared *prepared, fl_tile_gemm *gemm)
{
    split_factor(layer, rows, prepared->rows, gemm, 0);
    layer->tiles->gemm(gemm);
}

/* ---- a step on tiles ---- */

typedef struct tile_step {
    const fl_step_f32 *step;
    void (*forward_row)(const fl_step_f32 *, int64_t row, int64_t block, const float *sums);
    int64_t block_width, units; /* columns and units of a block */
} tile_step;

static void fetch_row(void *context, int64_t block, int64_t row)
{
    const tile_step *of = context;
    const fl_step_f32 *s = of->step;
    FL_FETCH(s->h + row * s->h_row + block * of->units, of->units);
    if (s->saved)
        FL_FETCH(s->saved + row * s->saved_row + block * of->block_width, of->block_width);
}
static void finish_row(void *context, int64_t block, int64_t row, const float *sums)
{
    const tile_step *of = context;
    of->forward_row(of->step, row, block, sums);
}

void fl_step_on_tiles(const fl_recurrent *layer, const fl_packed *packed, int p,
                      const fl_prepared *prepared, const void *step)
{
    const fl_step_f32 *s = step;
    const fl_part *part = &layer->part[p];
    const fl_packed_part *of = &packed->part[p];
    tile_step context = {.step = s,
                         .forward_row = layer->isa->f32.cells[part->cell_index].forward_row,
                         .block_width = part->block_width,
                         .units = part->block_width / part->cell.slots};
    fl_tile_gemm gemm = {.rows = s->rows,
                         .block_first = s->block_first,
                         .block_end = s->block_end,
                         .descending = s->descending,
                         .width = part->block_width,
                         .columns = part->gate_stride,
                         .init = s->init,
                         .init_row = s->init_row,
                         .fetch = fetch_row,
                         .finish = finish_row,
                         .context = &context,
                         .in_stages = part->cell.in_stages,
                         .step = s};
    uint16_t *to = prepared->rows;
    int factors = 0;
    if (s->x) {
        gemm.factor[0] = (fl_tile_factor){.b = of->tiles_x,
                                          .depth = s->x_depth,
                                          .first = fl_first_column(layer, part->of_x),
                                          .columns = fl_columns_of(layer, part->of_x)};
        fl_tile_operand x = {.values = s->x, .stride = s->x_row};
        to = split_factor(layer, &x, to, &gemm, factors++);
    }
    gemm.factor[factors] = (fl_tile_factor){.b = of->tiles_h,
                                            .depth = s->h_depth,
                                            .first = fl_first_column(layer, part->of_h),
                                            .columns = fl_columns_of(layer, part->of_h)};
    fl_tile_operand h = {.values = s->h_prev, .stride = s->h_prev_row};
    split_factor(layer, &h, to, &gemm, factors);
    layer->tiles->gemm(&gemm);
}

typedef struct tile_backstep {
    const fl_backstep_f32 *step;
    void (*backward_row)(const fl_backstep_f32 *, int64_t row, int64_t block, const float *sums);
    int64_t units, slots; /* of a block, and of a unit */
} tile_backstep;

static void fetch_backward_row(void *context, int64_t block, int64_t row)
{
    const tile_backstep *of = context;
    const fl_backstep_f32 *s = of->step;
    int64_t width = of->units, unit = block * width;
    FL_FETCH(s->gates + row * s->gates_row + unit * of->slots, width * of->slots);
    FL_FETCH(s->state + row * s->state_row + unit, width);
    FL_FETCH(s->state_prev + row * s->state_prev_row + unit, width);
    if (s->dy)
        FL_FETCH(s->dy + row * s->dy_row + unit, width);
}
static void finish_backward_row(void *context, int64_t block, int64_t row, const float *sums)
{
    const tile_backstep *of = context;
    of->backward_row(of->step, row, block, sums);
}

void fl_backstep_on_tiles(const fl_recurrent *layer, int p, const uint16_t *weight_t,
                          const fl_prepared *prepared, const void *backstep)
{
    const fl_backstep_f32 *s = backstep;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes;
    const fl_part *part = &layer->part[p];
    tile_backstep context = {.step = s,
                             .backward_row = layer->isa->f32.cells[part->cell_index].backward_row,
                             .units = width,
                             .slots = part->cell.slots};
    fl_tile_gemm gemm = {.rows = s->rows,
                         .block_first = s->block_first,
                         .block_end = s->block_end,
                         .descending = s->descending,
                         .factor = {{.b = weight_t, .depth = s->depth, .columns = width}},
                         .width = width,
                         .columns = s->units,
                         .fetch = fetch_backward_row,
                         .finish = finish_backward_row,
                         .context = &context};
    if (s->depth > FL_TILE_SEGMENT) {
        gemm.segment = FL_TILE_SEGMENT;
        gemm.c = prepared->sums; /* of whole blocks, as the cells take them */
        gemm.c_row = gemm.columns = layer->wide;
    }
    fl_tile_operand rows = {.values = s->dgates_next + fl_first_column(layer, part->of_h),
                            .stride = s->dgates_next_row,
                            .segment = fl_columns_of(layer, part->of_h),
                            .segment_stride = part->block_width};
    fl_multiply_tiles(layer, &rows, prepared, &gemm);
}
