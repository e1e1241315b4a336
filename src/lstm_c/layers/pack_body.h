/* Packing of weights into blocks (kernels.h) and of ragged rows into time-major order, for one
 * dtype. */
#include "layers/plain_blocks_body.h"
#include "layers/recurrent.h"

/* The parameter arrays of one layer and direction inside a flat array (parameters or gradients);
 * NULL where the layer has none. */
typedef struct FL_T(fl_arrays) {
    real *weight_ih, *weight_hh, *bias_ih, *bias_hh, *peephole, *weight_gg, *weight_hr;
    real *norm_ih, *norm_hh, *norm_gg, *norm_c, *norm_bias;
} FL_T(fl_arrays);

static FL_T(fl_arrays) FL_T(arrays_of)(const fl_recurrent *layer, int index, const void *flat)
{
    int64_t hidden = layer->config.hidden_size, x_rows = layer->cell.x_gates * hidden,
            h_rows = layer->cell.h_gates * hidden;
    FL_T(fl_arrays) a = {0};
    a.weight_ih = (real *)(uintptr_t)flat + layer->packed[index].offset;
    a.weight_hh = a.weight_ih + x_rows * layer->packed[index].input;
    a.peephole = a.weight_hh + h_rows * layer->recurrent;
    if (layer->config.bias) {
        a.bias_ih = a.peephole;
        a.bias_hh = a.bias_ih + x_rows;
        a.peephole = a.bias_hh + h_rows;
    }
    a.weight_gg = a.peephole + layer->cell.n_peepholes * hidden;
    a.weight_hr = a.weight_gg + layer->cell.g_gates * hidden * fl_recurring_gates(layer);
    if (layer->config.layer_norm) {
        a.norm_ih = a.weight_hr + (fl_projects(layer) ? layer->output * hidden : 0);
        a.norm_hh = a.norm_ih + x_rows;
        a.norm_gg = a.norm_hh + h_rows;
    }
    if (layer->normalizes_c) {
        a.norm_c = a.norm_gg + (layer->cell.gate_states ? layer->cell.g_gates * hidden : 0);
        a.norm_bias = a.norm_c + hidden;
    }
    return a;
}

/* Scale of a row of a weight matrix in the precision of the layer; see fl_round_weight. */
FL_INLINE float FL_T(row_scale)(const fl_recurrent *layer, const real *row, int64_t count)
{
    return layer->config.precision == FL_PRECISION_INT8
               ? fl_int8_scale((const float *)(const void *)row, count)
               : 0;
}

/* `count` weights in the precision of the layer to values `stride` apart. */
FL_INLINE void FL_T(put_weights)(const fl_recurrent *layer, const real *from, int64_t count,
                                 float scale, real *to, int64_t stride)
{
    if (layer->config.precision < FL_PRECISION_BFLOAT16)
        for (int64_t i = 0; i < count; i++)
            to[i * stride] = from[i];
    else
        for (int64_t i = 0; i < count; i++)
            to[i * stride] = (real)fl_round_weight(layer, (float)from[i], scale);
}
FL_INLINE void FL_T(put_zeros)(int64_t count, real *to, int64_t stride)
{
    for (int64_t i = 0; i < count; i++)
        to[i * stride] = 0;
}

/* Gate-interleaved panels of weight (gates*hidden, sources*count), slot s taking gate gate_of[s],
 * -> packed (blocks, sources*plane, slots of a block, lanes), where each source has `plane` >=
 * count values; padding is zero. */
static void FL_T(pack_panels)(const fl_recurrent *layer, const fl_part *part, const real *weight,
                              const int *gate_of, fl_slots slots, int64_t sources, int64_t count,
                              int64_t plane, real *packed)
{
    int64_t width = fl_columns_of(layer, slots), depth = sources * plane;
    for (int64_t k = 0; k < part->blocks * width; k++) {
        int64_t column = k / width * part->block_width + fl_first_column(layer, slots) + k % width;
        int64_t row = fl_weight_row(layer, part, column, gate_of);
        real *to = packed + k / width * width * depth + k % width;
        if (row < 0) {
            FL_T(put_zeros)(depth, to, width);
            continue;
        }
        const real *from = weight + row * sources * count;
        float scale = FL_T(row_scale)(layer, from, sources * count);
        for (int64_t source = 0; source < sources; source++, from += count, to += plane * width) {
            FL_T(put_weights)(layer, from, count, scale, to, width);
            FL_T(put_zeros)(plane - count, to + count * width, width);
        }
    }
}

/* Plain blocks of the transposed view: depth = gate columns (gate-interleaved), columns = columns
 * of weight (gates*hidden, columns), whose rows are `stride` apart. Of the depth, the slots alone.
 */
static void FL_T(pack_transposed)(const fl_recurrent *layer, const fl_part *part,
                                  const real *weight, int64_t stride, const int *gate_of,
                                  fl_slots slots, int64_t columns, int64_t block_first,
                                  int64_t block_end, real *packed)
{
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, depth = fl_slot_depth(layer, part, slots),
            skipped = fl_first_column(layer, slots), used = fl_columns_of(layer, slots);
    for (int64_t block = block_first; block < block_end; block++) {
        int64_t first = block * width, count = columns - first < width ? columns - first : width;
        real *to = packed + block * width * depth;
        for (int64_t k = 0; k < depth; k++, to += width) {
            int64_t column = k / used * part->block_width + skipped + k % used,
                    row = fl_weight_row(layer, part, column, gate_of);
            int64_t taken = row >= 0 ? count : 0;
            if (taken)
                FL_T(put_weights)(layer, weight + row * stride + first, taken, 0, to, 1);
            FL_T(put_zeros)(width - taken, to + taken, 1);
        }
    }
}

/* Bias row (gate_stride): what each slot's two products have as biases, or zero. */
static void FL_T(pack_bias)(const fl_recurrent *layer, const fl_part *part, const real *bias_ih,
                            const real *bias_hh, real *packed)
{
    for (int64_t column = 0; column < part->gate_stride; column++) {
        int64_t x_row = fl_weight_row(layer, part, column, part->cell.x_gate),
                h_row = fl_weight_row(layer, part, column, part->cell.h_gate);
        real sum = bias_ih && x_row >= 0 ? bias_ih[x_row] : 0;
        packed[column] = bias_hh && h_row >= 0 ? sum + bias_hh[h_row] : sum;
    }
}

/* Gains in the columns of a part's gates, slot s taking gate gate_of[s]. Returns how many count. */
static int64_t FL_T(pack_gains)(const fl_recurrent *layer, const fl_part *part, const real *gains,
                                const int *gate_of, const fl_packed_norm *norm)
{
    real *counts = (real *)norm->counts + part->gate_first - norm->first,
         *gain = (real *)norm->gain + part->gate_first - norm->first;
    int64_t count = 0;
    for (int64_t column = 0; column < part->gate_stride; column++) {
        int64_t row = fl_weight_row(layer, part, column, gate_of);
        counts[column] = row >= 0;
        gain[column] = row >= 0 ? gains[row] : 0;
        count += row >= 0;
    }
    return count;
}

static void FL_T(pack_norms)(const fl_recurrent *layer, const FL_T(fl_arrays) * arrays,
                             fl_packed *packed)
{
    fl_packed_norm *of_x = &packed->norm[FL_NORM_OF_X];
    int64_t inputs = 0;
    for (int p = 0; p < layer->n_parts; p++) {
        const fl_part *part = &layer->part[p];
        fl_packed_norm *of_h = &packed->norm[FL_NORM_OF_H + p];
        if (part->sees_x)
            inputs += FL_T(pack_gains)(layer, part, arrays->norm_ih, part->cell.x_gate, of_x);
        of_h->share =
            1.0 / (double)FL_T(pack_gains)(layer, part, arrays->norm_hh, part->cell.h_gate, of_h);
    }
    of_x->share = 1.0 / (double)inputs;
    if (layer->cell.gate_states) {
        fl_packed_norm *of_g = &packed->norm[FL_NORM_OF_G];
        of_g->share = 1.0 / (double)FL_T(pack_gains)(layer, fl_main_part(layer), arrays->norm_gg,
                                                     layer->cell.g_gate, of_g);
    }
    fl_packed_norm *of_c = &packed->norm[FL_NORM_OF_C];
    for (int64_t unit = 0; unit < layer->plane; unit++) {
        int counts = arrays->norm_c && unit < layer->config.hidden_size;
        ((real *)of_c->counts)[unit] = (real)counts;
        ((real *)of_c->gain)[unit] = counts ? arrays->norm_c[unit] : 0;
        ((real *)packed->norm_bias)[unit] = counts ? arrays->norm_bias[unit] : 0;
    }
    of_c->share = 1.0 / (double)layer->config.hidden_size;
}

/* Peepholes and gains. */
static void FL_T(pack_pointwise)(const fl_recurrent *layer, const FL_T(fl_arrays) * arrays,
                                 fl_packed *packed)
{
    int64_t hidden = layer->config.hidden_size;
    for (int p = 0; p < layer->n_parts; p++)
        for (int i = 0; i < layer->part[p].cell.n_peepholes; i++)
            for (int64_t unit = 0; unit < layer->plane; unit++)
                ((real *)packed->part[p].peephole)[i * layer->plane + unit] =
                    unit < hidden ? arrays->peephole[i * hidden + unit] : 0;
    if (layer->config.layer_norm)
        FL_T(pack_norms)(layer, arrays, packed);
}

static void FL_T(copy_row)(real *to, const real *from, int64_t count)
{
    memcpy(to, from, sizeof(real) * (size_t)count);
}

/* packed rows of sorted sequences <-> the caller's rows, `columns` each, for steps [first, end). */
static void FL_T(gather_rows)(const fl_ragged *ragged, const real *rows, const int64_t *start,
                              int64_t columns, int64_t first, int64_t end, real *packed)
{
    for (int64_t t = first; t < end; t++)
        for (int64_t s = 0; s < ragged->batch[t]; s++)
            FL_T(copy_row)(packed + (ragged->offset[t] + s) * columns,
                           rows + (start[ragged->sequence[s]] + t) * columns, columns);
}
static void FL_T(scatter_rows)(const fl_ragged *ragged, const real *packed, int64_t columns,
                               int64_t first, int64_t end, real *rows, const int64_t *start)
{
    for (int64_t t = first; t < end; t++)
        for (int64_t s = 0; s < ragged->batch[t]; s++)
            FL_T(copy_row)(rows + (start[ragged->sequence[s]] + t) * columns,
                           packed + (ragged->offset[t] + s) * columns, columns);
}

/* State of one layer and direction: the caller's (n, hidden) in the caller's order <-> sorted rows
 * `row` apart, padded with zeros to `plane`. */
static void FL_T(gather_state)(const fl_ragged *ragged, const real *from, int64_t hidden, real *to,
                               int64_t row, int64_t plane)
{
    for (int64_t s = 0; s < ragged->n; s++)
        for (int64_t u = 0; u < plane; u++)
            to[s * row + u] = from && u < hidden ? from[ragged->sequence[s] * hidden + u] : 0;
}
static void FL_T(scatter_state)(const fl_ragged *ragged, const real *from, int64_t row,
                                int64_t hidden, real *to)
{
    for (int64_t s = 0; s < ragged->n; s++)
        FL_T(copy_row)(to + ragged->sequence[s] * hidden, from + s * row, hidden);
}
