/* Matrix products on bfloat16 tiles, of float32 accuracy where wanted.
 *
 * A float32 number is the sum of three bfloat16 numbers, hi + mid + lo, exactly. The product of two
 * such sums has nine terms, of which six exceed float32's rounding: hi hi, hi mid, mid hi, mid mid,
 * hi lo, lo hi (relative size 1, 2^-8, 2^-8, 2^-16 ...). With two parts three terms are left, and
 * with one part the plain bfloat16 product. Sums are float32 in the registers of the tiles; a
 * product of two bfloat16 numbers is exact there. (Henry, Tang and Heinecke, arXiv 1904.06376.)
 *
 * A square of two row tiles by two column tiles has four sums, and each tile that it loads serves
 * two products: 14 loads for the 24 products of six terms. A single row tile goes with four column
 * tiles. Rows are cut into tiles of equal height, at most 16.
 *
 * Products of tiles take one port and the registers' loads others; the rest of the core is free,
 * but its window holds few operations on tiles beside other work. So what becomes of the sums of
 * one piece of C is done while the next piece is multiplied, a row after every few terms.
 */
#include "kernels/reduced.h"
#include "simd/tiles.h"

/* ---- numbers in parts ---- */

FL_INLINE uint32_t tile_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
FL_INLINE float tile_value(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Bits of the nearest bfloat16, of two the larger one, the lower half zero; finite for a finite
 * value, NaN for NaN. */
FL_INLINE uint32_t nearest_bfloat16(uint32_t bits)
{
    uint32_t magnitude = bits & 0x7fffffffu, rounded = magnitude < 0x7f7f8000u
                                                           ? bits + 0x8000u
                                                           : bits; /* to infinity, or not finite */
    rounded = magnitude > 0x7f800000u ? bits | 0x400000u : rounded;
    return rounded & 0xffff0000u;
}

/* What is left of a value after its first part; of one that is not finite, nothing. */
FL_INLINE float rest_of(float value, uint32_t part)
{
    return (part & 0x7f800000u) == 0x7f800000u ? 0 : value - tile_value(part);
}

/* ---- operands ---- */

FL_INLINE int64_t padded_to(int64_t count, int64_t unit)
{
    return (count + unit - 1) / unit * unit;
}

/* Rows of each tile of A, of which there are as few as can be. */
FL_INLINE int64_t tile_height(int64_t rows)
{
    int64_t tiles = (rows + FL_TILE_SIDE - 1) / FL_TILE_SIDE;
    return (rows + tiles - 1) / tiles;
}

static __attribute__((noinline)) void take_first_of_any(tile_lanes *values, tile_words *part)
{
    for (int i = 0; i < FL_TILE_SIDE; i++) {
        (*part)[i] = nearest_bfloat16(tile_bits((*values)[i]));
        (*values)[i] = rest_of((*values)[i], (*part)[i]);
    }
}

/* Part `index` of 16 values, in the upper halves, of what the parts before it have left; values:
 * what it leaves. */
FL_INLINE tile_words take_part(tile_lanes *values, const int index)
{
    tile_words part = (tile_words)*values;
    if (!index && __builtin_expect(t_any_from(part & 0x7fffffffu, 0x7f7f8000u), 0)) {
        tile_lanes rest = *values;
        take_first_of_any(&rest, &part);
        *values = rest;
    } else {
        part = (part + 0x8000u) & 0xffff0000u;
        *values -= (tile_lanes)part;
    }
    return part;
}

/* Of 32 depths, two share a 32-bit lane: the one of the first 16 low, that of the others high. */
FL_INLINE tile_words take_pairs(tile_lanes *low, tile_lanes *high, const int index)
{
    tile_words part = take_part(low, index) >> 16;
    return part | take_part(high, index);
}

/* 32 values -> the parts, to[part * part_stride + i]. */
FL_INLINE void split_lanes(tile_lanes first, tile_lanes second, const int parts, uint16_t *to,
                           int64_t part_stride)
{
    for (int p = 0; p < parts; p++, to += part_stride) {
        tile_words pairs = take_pairs(&first, &second, p);
        memcpy(to, &pairs, sizeof pairs);
    }
}

/* The first `count` of 16 values, the others 0; none if that is not positive. */
FL_INLINE tile_lanes load_lanes(const float *values, int64_t count)
{
    tile_lanes lanes = {0};
    if (count >= FL_TILE_SIDE)
        memcpy(&lanes, values, sizeof lanes);
    else if (count > 0)
        memcpy(&lanes, values, sizeof(float) * (size_t)count);
    return lanes;
}

FL_INLINE void add_lanes(float *to, int64_t count, tile_lanes lanes)
{
    lanes += load_lanes(to, count);
    memcpy(to, &lanes, sizeof(float) * (size_t)(count < FL_TILE_SIDE ? count : FL_TILE_SIDE));
}

/* t[i][j] = lines[j][first + i]: `rows` rows of `columns` columns, of both 16 or fewer, that lie
 * the other way. */
#define FL_TILE_SWAP(low, high, first, second)                                                     \
    do {                                                                                           \
        tile_lanes a_ = (low), b_ = (high);                                                        \
        (low) = __builtin_shufflevector(a_, b_, first);                                            \
        (high) = __builtin_shufflevector(a_, b_, second);                                          \
    } while (0)
#define FL_LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define FL_HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define FL_LOW4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define FL_HIGH4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define FL_LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define FL_HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define FL_LOW1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define FL_HIGH1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
FL_INLINE void transpose_square(const float *const *lines, int64_t first, int64_t rows,
                                int64_t columns, tile_lanes t[FL_TILE_SIDE])
{
    for (int j = 0; j < FL_TILE_SIDE; j++)
        t[j] = j < columns ? load_lanes(lines[j] + first, rows) : (tile_lanes){0};
    FL_UNROLL
    for (int i = 0; i < FL_TILE_SIDE; i++)
        if (!(i & 8))
            FL_TILE_SWAP(t[i], t[i + 8], FL_LOW8, FL_HIGH8);
    FL_UNROLL
    for (int i = 0; i < FL_TILE_SIDE; i++)
        if (!(i & 4))
            FL_TILE_SWAP(t[i], t[i + 4], FL_LOW4, FL_HIGH4);
    FL_UNROLL
    for (int i = 0; i < FL_TILE_SIDE; i++)
        if (!(i & 2))
            FL_TILE_SWAP(t[i], t[i + 2], FL_LOW2, FL_HIGH2);
    FL_UNROLL
    for (int i = 0; i < FL_TILE_SIDE; i++)
        if (!(i & 1))
            FL_TILE_SWAP(t[i], t[i + 1], FL_LOW1, FL_HIGH1);
}

/* Where a value of row `row` and depth `k` of A has its first part; the others are a tile further
 * each. A lies as (row tiles, steps of the depth, parts, 16, 32). */
FL_INLINE uint16_t *split_place(const fl_tile_operand *of, int64_t height, int64_t row, int64_t k)
{
    int64_t steps = (of->depth + FL_TILE_DEPTH - 1) / FL_TILE_DEPTH;
    return (uint16_t *)of->to +
           ((row / height * steps + k / FL_TILE_DEPTH) * of->parts * FL_TILE_SIDE + row % height) *
               FL_TILE_DEPTH +
           k % FL_TILE_DEPTH;
}

/* A (rows, depth), padding zero. */
FL_INLINE void split_rows(const fl_tile_operand *from, const int parts)
{
    const int64_t tile = FL_TILE_BYTES / 2, height = tile_height(from->rows),
                  rows = padded_to(from->rows, height),
                  depth = padded_to(from->depth, FL_TILE_DEPTH),
                  segment = from->segment ? from->segment : depth,
                  skipped = from->segment ? from->segment_stride - from->segment : 0;
    for (int64_t row = 0; row < rows; row++) {
        const float *values = from->values + row * from->stride;
        uint16_t *to = split_place(from, height, row, 0);
        tile_lanes half[2];
        int64_t end = segment; /* of the segment that k is in */
        for (int64_t k = 0; k < depth; k += FL_TILE_SIDE, values += FL_TILE_SIDE) {
            int64_t left = row < from->rows ? from->depth - k : 0;
            if (k == end) {
                end += segment;
                values += skipped;
            }
            half[k / FL_TILE_SIDE % 2] = load_lanes(values, left);
            if (k / FL_TILE_SIDE % 2 == 0)
                continue;
            split_lanes(half[0], half[1], parts, to, tile);
            to += parts * tile;
        }
    }
}
static void tile_split_rows(const fl_tile_operand *from)
{
    if (from->parts == 1)
        split_rows(from, 1);
    else if (from->parts == 2)
        split_rows(from, 2);
    else
        split_rows(from, 3);
}

/* The same for rows that lie side by side, in tiles of 16. */
FL_INLINE void split_columns(const fl_tile_operand *from, const int parts)
{
    const int64_t tile = FL_TILE_BYTES / 2;
    for (int64_t k = 0; k < from->depth; k += FL_TILE_DEPTH)
        for (int64_t row = 0; row < from->rows; row += FL_TILE_SIDE) {
            const float *const *lines = from->lines + k;
            const int64_t first = from->first + row, rows = from->rows - row,
                          left = from->depth - k;
            for (int i = 0; i < FL_TILE_DEPTH && left > 2 * FL_TILE_DEPTH; i++)
                __builtin_prefetch(lines[FL_TILE_DEPTH + i] + first);
            tile_lanes low[FL_TILE_SIDE], high[FL_TILE_SIDE];
            transpose_square(lines, first, rows, left, low);
            transpose_square(lines + FL_TILE_SIDE, first, rows, left - FL_TILE_SIDE, high);
            uint16_t *to = split_place(from, FL_TILE_SIDE, row, k);
            for (int i = 0; i < FL_TILE_SIDE; i++, to += FL_TILE_DEPTH)
                split_lanes(low[i], high[i], parts, to, tile);
        }
}
static void tile_split_columns(const fl_tile_operand *from)
{
    if (from->parts == 1)
        split_columns(from, 1);
    else if (from->parts == 2)
        split_columns(from, 2);
    else
        split_columns(from, 3);
}

/* A block B (depth, columns), columns side by side -> (steps of the depth, tiles of columns, parts,
 * 16, 16, 2), depths k and k + 16 of a step in 32 bits. `rows` of the operand are its columns. */
FL_INLINE void split_block(const fl_tile_operand *from, const int parts)
{
    uint32_t *to = from->to;
    for (int64_t k = 0; k < from->depth; k += FL_TILE_DEPTH)
        for (int64_t first = 0; first < from->rows; first += FL_TILE_SIDE) {
            const float *values = from->values + k * from->stride + first,
                        *values_high = values + FL_TILE_SIDE * from->stride;
            tile_lanes sums = {0};
            for (int64_t low = k, high = k + FL_TILE_SIDE; low < k + FL_TILE_SIDE; low++, high++,
                         to += FL_TILE_SIDE, values += from->stride, values_high += from->stride) {
                int64_t left = from->rows - first;
                /* rows of a matrix are pages apart, which no prefetcher of the hardware follows */
                __builtin_prefetch(values + FL_TILE_DEPTH * from->stride);
                __builtin_prefetch(values_high + FL_TILE_DEPTH * from->stride);
                tile_lanes first_half = load_lanes(values, low < from->depth ? left : 0),
                           second_half = load_lanes(values_high, high < from->depth ? left : 0);
                sums += first_half + second_half;
                split_lanes(first_half, second_half, parts, (uint16_t *)to, FL_TILE_BYTES / 2);
            }
            if (from->sums)
                add_lanes(from->sums + first, from->rows - first, sums);
            to += (parts - 1) * FL_TILE_BYTES / 4;
        }
}
static void tile_split_block(const fl_tile_operand *from)
{
    if (from->parts == 1)
        split_block(from, 1);
    else if (from->parts == 2)
        split_block(from, 2);
    else
        split_block(from, 3);
}

/* ---- the product ---- */

enum { SUMS_ROW = FL_TILE_SUMS_ROW, NEAR_BYTES = 1280 * 1024 };

/* A piece of C, of one or two row tiles and a block of columns, that has been multiplied; rows
 * [next, rows) of it have not been handed over yet. They go one by one while the next piece, of
 * `terms` terms, is multiplied, evenly. */
typedef struct tile_piece {
    const fl_tile_gemm *g;
    float *sums; /* (rows, SUMS_ROW) */
    int64_t block, row, rows, next;
    int64_t first, columns; /* of C */
    int64_t terms, due;     /* a row is due when this reaches `terms` */
} tile_piece;

/* C = init + sums of the next row, or the sums themselves; and to who wants to know. */
static __attribute__((noinline)) void hand_over(tile_piece *piece)
{
    const fl_tile_gemm *g = piece->g;
    int64_t row = piece->row + piece->next;
    float *sums = piece->sums + piece->next++ * SUMS_ROW;
    if (g->c) {
        const float *init =
            g->init && g->init_row ? g->init + row * g->init_row + piece->first : NULL;
        float *c = g->c + row * g->c_row + piece->first;
        if (init)
            for (int64_t j = 0; j < piece->columns; j++)
                c[j] = init[j] + sums[j];
        else
            memcpy(c, sums, sizeof(float) * (size_t)piece->columns);
    } else if (g->init && g->init_row) {
        const float *init = g->init + row * g->init_row + piece->first;
        for (int64_t j = 0; j < piece->columns; j++)
            sums[j] += init[j];
    }
    if (g->finish)
        g->finish(g->context, piece->block, row, sums);
}

/* After each term. */
FL_INLINE void hand_over_due(tile_piece *piece)
{
    for (piece->due += piece->rows; piece->due >= piece->terms; piece->due -= piece->terms)
        hand_over(piece);
}
FL_INLINE void hand_over_rest(tile_piece *piece)
{
    while (piece->next < piece->rows)
        hand_over(piece);
}

/* A factor's tiles of a block: where they are, and which column tiles of C they are for. */
typedef struct tile_block {
    const char *a, *b;
    int64_t steps, a_tile, b_step; /* steps of the depth; bytes to the next row tile, and step */
    int first, end;
} tile_block;

FL_INLINE tile_block block_of(const fl_tile_gemm *g, const fl_tile_factor *factor, int64_t block,
                              int64_t row_tile)
{
    int64_t steps = (factor->depth + FL_TILE_DEPTH - 1) / FL_TILE_DEPTH,
            tiles = (factor->columns + FL_TILE_SIDE - 1) / FL_TILE_SIDE,
            b_tiles =
                factor->b_columns ? (factor->b_columns + FL_TILE_SIDE - 1) / FL_TILE_SIDE : tiles;
    tile_block found = {.steps = steps,
                        .a_tile = steps * g->parts * FL_TILE_BYTES,
                        .b_step = b_tiles * g->parts * FL_TILE_BYTES,
                        .first = (int)(factor->first / FL_TILE_SIDE)};
    found.end = found.first + (int)tiles;
    found.a = (const char *)factor->a + row_tile * found.a_tile;
    found.b = (const char *)factor->b + block * steps * found.b_step +
              (factor->b_columns ? found.first * g->parts * FL_TILE_BYTES : 0);
    return found;
}

/* Sums start from the one row of init that all rows have, in column tile `column` of a block. */
FL_INLINE const float *common_init(const fl_tile_gemm *g, int64_t block)
{
    return g->init && !g->init_row ? g->init + block * (g->c_block ? g->c_block : g->width) : NULL;
}
#define FL_TILE_START(C, column)                                                                   \
    do {                                                                                           \
        if (init && (column) * FL_TILE_SIDE < g->width)                                            \
            t_load(tiles, C, init + (column) * FL_TILE_SIDE, 0);                                   \
        else                                                                                       \
            t_zero(tiles, C);                                                                      \
    } while (0)

/* The terms of a product go in an order in which each differs from the one before in one part, and
 * all that take a part of B stand together: hi lo, hi mid, mid mid, mid hi, lo hi, hi hi; with two
 * parts hi lo, hi hi, lo hi. It is the same for every shape, as are the bits. */

/* One row tile, of which A's parts fill registers 4 to 6, by all column tiles, of which register 7
 * has a part: it is loaded once, for the terms that it is in. */
#define FL_ROW_TERMS(C, B, TERMS, FIRST, SECOND, THIRD)                                            \
    do {                                                                                           \
        if (of.first <= (C) && (C) < of.end) {                                                     \
            t_load(tiles, 7, b + ((C) * parts + (B)) * FL_TILE_BYTES, 64);                         \
            t_dot(tiles, C, FIRST, 7);                                                             \
            if ((TERMS) > 1)                                                                       \
                t_dot(tiles, C, SECOND, 7);                                                        \
            if ((TERMS) > 2)                                                                       \
                t_dot(tiles, C, THIRD, 7);                                                         \
        }                                                                                          \
    } while (0)
#define FL_ROW_PART(B, TERMS, FIRST, SECOND, THIRD)                                                \
    do {                                                                                           \
        FL_ROW_TERMS(0, B, TERMS, FIRST, SECOND, THIRD);                                           \
        FL_ROW_TERMS(1, B, TERMS, FIRST, SECOND, THIRD);                                           \
        FL_ROW_TERMS(2, B, TERMS, FIRST, SECOND, THIRD);                                           \
        FL_ROW_TERMS(3, B, TERMS, FIRST, SECOND, THIRD);                                           \
        hand_over_due(before);                                                                     \
    } while (0)
FL_INLINE void multiply_row(fl_tiles *tiles, const fl_tile_gemm *g, const int parts, int64_t block,
                            float *sums, tile_piece *before)
{
    const float *init = common_init(g, block);
    (void)tiles; /* the registers themselves, where there are any */
    FL_TILE_START(0, 0);
    FL_TILE_START(1, 1);
    FL_TILE_START(2, 2);
    FL_TILE_START(3, 3);
    for (int f = 0; f < 2 && g->factor[f].depth; f++) {
        const tile_block of = block_of(g, &g->factor[f], block, 0);
        const char *a = of.a, *b = of.b - of.first * parts * FL_TILE_BYTES;
        for (int64_t k = 0; k < of.steps; k++, a += parts * FL_TILE_BYTES, b += of.b_step) {
            t_load(tiles, 4, a, 64);
            if (parts > 1)
                t_load(tiles, 5, a + FL_TILE_BYTES, 64);
            if (parts > 2)
                t_load(tiles, 6, a + 2 * FL_TILE_BYTES, 64);
            if (parts == 1) {
                FL_ROW_PART(0, 1, 4, 4, 4);
            } else if (parts == 2) {
                FL_ROW_PART(1, 1, 4, 4, 4);
                FL_ROW_PART(0, 2, 4, 5, 5);
            } else {
                FL_ROW_PART(2, 1, 4, 4, 4);
                FL_ROW_PART(1, 2, 4, 5, 5);
                FL_ROW_PART(0, 3, 5, 6, 4);
            }
        }
    }
    t_store(tiles, 0, sums, 4 * SUMS_ROW);
    if (g->width > FL_TILE_SIDE)
        t_store(tiles, 1, sums + FL_TILE_SIDE, 4 * SUMS_ROW);
    if (g->width > 2 * FL_TILE_SIDE)
        t_store(tiles, 2, sums + 2 * FL_TILE_SIDE, 4 * SUMS_ROW);
    if (g->width > 3 * FL_TILE_SIDE)
        t_store(tiles, 3, sums + 3 * FL_TILE_SIDE, 4 * SUMS_ROW);
}

/* A square: `two_rows` row tiles, of which registers 4 and 5 have a part of A, by column tiles
 * `left` and left + 1, of which 6 and 7 have a part of B. */
#define FL_SQUARE_A(PART)                                                                          \
    do {                                                                                           \
        t_load(tiles, 4, a + (PART) * FL_TILE_BYTES, 64);                                          \
        if (two_rows)                                                                              \
            t_load(tiles, 5, a + of.a_tile + (PART) * FL_TILE_BYTES, 64);                          \
    } while (0)
#define FL_SQUARE_B(PART)                                                                          \
    do {                                                                                           \
        if (has_left)                                                                              \
            t_load(tiles, 6, b + (PART) * FL_TILE_BYTES, 64);                                      \
        if (has_right)                                                                             \
            t_load(tiles, 7, b + (parts + (PART)) * FL_TILE_BYTES, 64);                            \
    } while (0)
#define FL_SQUARE_TERM()                                                                           \
    do {                                                                                           \
        if (has_left)                                                                              \
            t_dot(tiles, 0, 4, 6);                                                                 \
        if (has_right)                                                                             \
            t_dot(tiles, 1, 4, 7);                                                                 \
        if (two_rows && has_left)                                                                  \
            t_dot(tiles, 2, 5, 6);                                                                 \
        if (two_rows && has_right)                                                                 \
            t_dot(tiles, 3, 5, 7);                                                                 \
        hand_over_due(before);                                                                     \
    } while (0)
FL_INLINE void multiply_square(fl_tiles *tiles, const fl_tile_gemm *g, const int parts,
                               int64_t block, int64_t row_tile, int two_rows, int left, float *sums,
                               int64_t height, tile_piece *before)
{
    int columns = (int)((g->width + FL_TILE_SIDE - 1) / FL_TILE_SIDE),
        two_columns = left + 1 < columns;
    const float *init = common_init(g, block);
    (void)tiles;
    FL_TILE_START(0, left);
    FL_TILE_START(1, left + 1);
    FL_TILE_START(2, left);
    FL_TILE_START(3, left + 1);
    for (int f = 0; f < 2 && g->factor[f].depth; f++) {
        const tile_block of = block_of(g, &g->factor[f], block, row_tile);
        const int has_left = of.first <= left && left < of.end,
                  has_right = of.first <= left + 1 && left + 1 < of.end;
        const char *a = of.a, *b = of.b + (left - of.first) * parts * FL_TILE_BYTES;
        for (int64_t k = 0; (has_left || has_right) && k < of.steps;
             k++, a += parts * FL_TILE_BYTES, b += of.b_step) {
            if (parts == 1) {
                FL_SQUARE_A(0);
                FL_SQUARE_B(0);
                FL_SQUARE_TERM();
            } else if (parts == 2) {
                FL_SQUARE_A(0);
                FL_SQUARE_B(1);
                FL_SQUARE_TERM();
                FL_SQUARE_B(0);
                FL_SQUARE_TERM();
                FL_SQUARE_A(1);
                FL_SQUARE_TERM();
            } else {
                FL_SQUARE_A(0);
                FL_SQUARE_B(2);
                FL_SQUARE_TERM();
                FL_SQUARE_B(1);
                FL_SQUARE_TERM();
                FL_SQUARE_A(1);
                FL_SQUARE_TERM();
                FL_SQUARE_B(0);
                FL_SQUARE_TERM();
                FL_SQUARE_A(2);
                FL_SQUARE_TERM();
                FL_SQUARE_A(0);
                FL_SQUARE_TERM();
            }
        }
    }
    sums += left * FL_TILE_SIDE;
    t_store(tiles, 0, sums, 4 * SUMS_ROW);
    if (two_columns)
        t_store(tiles, 1, sums + FL_TILE_SIDE, 4 * SUMS_ROW);
    if (two_rows)
        t_store(tiles, 2, sums + height * SUMS_ROW, 4 * SUMS_ROW);
    if (two_rows && two_columns)
        t_store(tiles, 3, sums + height * SUMS_ROW + FL_TILE_SIDE, 4 * SUMS_ROW);
}

/* Whether the second cache keeps the factors' blocks from one piece of rows to the next. */
FL_INLINE int blocks_are_near(const fl_tile_gemm *g)
{
    int64_t bytes = 0;
    for (int f = 0; f < 2 && g->factor[f].depth; f++)
        bytes += block_of(g, &g->factor[f], 0, 0).b_step * block_of(g, &g->factor[f], 0, 0).steps;
    return bytes * (g->block_end - g->block_first) <= NEAR_BYTES;
}

/* How often hand_over_due is called in a piece. */
FL_INLINE int64_t terms_of_piece(const fl_tile_gemm *g, const int parts, int alone)
{
    int64_t terms = 0;
    for (int f = 0; f < 2 && g->factor[f].depth; f++) {
        tile_block of = block_of(g, &g->factor[f], 0, 0);
        if (alone)
            terms += of.steps * parts;
        for (int left = 0; !alone && left * FL_TILE_SIDE < g->width; left += 2)
            if (of.first <= left + 1 && left < of.end)
                terms += of.steps * parts * (parts + 1) / 2;
    }
    return terms;
}

/* Pieces of C, one after another; each is handed over while the next is multiplied. Where the
 * blocks of B are near, all of some rows come first: their neighbours in C, and in what the cells
 * write, are neighbours in time. Else all rows of a block, which is then read once. */
FL_INLINE void multiply_pieces(fl_tiles *tiles, const fl_tile_gemm *g, const int parts)
{
    float sums[2][2 * FL_TILE_SIDE * SUMS_ROW] __attribute__((aligned(64)));
    int64_t height = tile_height(g->rows), row_pieces = (g->rows + 2 * height - 1) / (2 * height),
            blocks = g->block_end - g->block_first;
    int alone = g->rows <= FL_TILE_SIDE, rows_first = blocks_are_near(g);
    int64_t terms = terms_of_piece(g, parts, alone);
    tile_piece before = {.terms = terms};
    for (int64_t n = 0; n < row_pieces * blocks; n++) {
        int64_t done = rows_first ? n % blocks : n / row_pieces,
                row = (rows_first ? n / blocks : n % row_pieces) * 2 * height,
                behind = g->rows - row;
        int64_t block = g->descending ? g->block_end - 1 - done : g->block_first + done,
                first = block * (g->c_block ? g->c_block : g->width), ahead = g->columns - first;
        tile_piece piece = {.g = g,
                            .sums = sums[n & 1],
                            .block = block,
                            .row = row,
                            .rows = behind < 2 * height ? behind : 2 * height,
                            .first = first,
                            .columns = ahead < g->width ? ahead : g->width,
                            .terms = terms};
        if (alone)
            multiply_row(tiles, g, parts, piece.block, piece.sums, &before);
        for (int left = 0; !alone && left * FL_TILE_SIDE < g->width; left += 2)
            multiply_square(tiles, g, parts, piece.block, row / height, piece.rows > height, left,
                            piece.sums, height, &before);
        hand_over_rest(&before);
        before = piece;
    }
    hand_over_rest(&before);
}

static void tile_gemm(const fl_tile_gemm *g)
{
    int64_t height = tile_height(g->rows);
    fl_tiles tiles;
    fl_tiles_begin(&tiles, (int)height, g->rows <= FL_TILE_SIDE ? 7 : 6);
    if (g->parts == 1)
        multiply_pieces(&tiles, g, 1);
    else if (g->parts == 2)
        multiply_pieces(&tiles, g, 2);
    else
        multiply_pieces(&tiles, g, 3);
    fl_tiles_end(&tiles);
}
