/* Packing of weights into blocks (kernels.h) and of ragged rows into time-major order, for one
 * dtype. */
#include "layers/recurrent.h"

enum { FL_T(PACK_TILE) = 16 };

/* Gate-interleaved panels of weight (gates*hidden, depth) -> packed (blocks, depth, block vectors,
 * lanes); padding is zero. */
static void FL_T(pack_panels)(const fl_recurrent *layer, const real *weight, int64_t depth,
                              real *packed)
{
    int64_t lanes = layer->lanes, hidden = layer->config.hidden_size, gates = layer->cell.gates;
    int64_t width = layer->gate_stride / layer->blocks; /* columns of a block */
    for (int64_t column = 0; column < layer->gate_stride; column++) {
        int64_t vector = column / lanes, unit = vector / gates * lanes + column % lanes,
                gate = vector % gates;
        real *to = packed + column / width * width * depth + column % width;
        const real *from = unit < hidden ? weight + (gate * hidden + unit) * depth : NULL;
        for (int64_t k = 0; k < depth; k++)
            to[k * width] = from ? from[k] : 0;
    }
}

/* Plain blocks of the transposed view: depth = gate columns (gate-interleaved), columns = columns
 * of weight (gates*hidden, columns). */
static void FL_T(pack_transposed)(const fl_recurrent *layer, const real *weight, int64_t columns,
                                  int64_t block_first, int64_t block_end, real *packed)
{
    int64_t lanes = layer->lanes, hidden = layer->config.hidden_size, gates = layer->cell.gates,
            width = FL_BLOCK_VECTORS * lanes;
    for (int64_t block = block_first; block < block_end; block++) {
        int64_t first = block * width, count = columns - first < width ? columns - first : width;
        real *to = packed + block * width * layer->gate_columns;
        for (int64_t k = 0; k < layer->gate_columns; k++, to += width) {
            int64_t vector = k / lanes, unit = vector / gates * lanes + k % lanes,
                    gate = vector % gates;
            const real *from = weight + (gate * hidden + unit) * columns + first;
            for (int64_t j = 0; j < width; j++)
                to[j] = unit < hidden && j < count ? from[j] : 0;
        }
    }
}

/* Bias row (gate_stride): sum of the two biases in panel order, or zero. */
static void FL_T(pack_bias)(const fl_recurrent *layer, const real *bias_ih, const real *bias_hh,
                            real *packed)
{
    int64_t lanes = layer->lanes, hidden = layer->config.hidden_size, gates = layer->cell.gates;
    for (int64_t column = 0; column < layer->gate_stride; column++) {
        int64_t vector = column / lanes, unit = vector / gates * lanes + column % lanes,
                row = vector % gates * hidden + unit;
        packed[column] = bias_ih && unit < hidden ? bias_ih[row] + bias_hh[row] : 0;
    }
}

static void FL_T(copy_row)(real *to, const real *from, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = from[i];
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
