/* Matrix products on bfloat16 tiles, of float32 accuracy where wanted.
 *
 * A float32 number is the sum of three bfloat16 numbers, hi + mid + lo, exactly. The product of two
 * such sums has nine terms, of which six exceed float32's rounding: hi hi, hi mid, mid hi, mid mid,
 * hi lo, lo hi (relative size 1, 2^-8, 2^-8, 2^-16 ...). With two parts three terms are left, and
 * with one part the plain bfloat16 product. Sums are float32 in the registers of the tiles; a
 * product of two bfloat16 numbers is exact there. (Henry, Tang and Heinecke, arXiv 1904.06376.)
 *
 * Per step of the depth (32) and with three parts: 24 products of 16 cycles, 27 loads of 8 of which
 * half are repeated and hit L1. A product has a latency of about 52 cycles, so four sums go in
 * turns. Rows are cut into tiles of equal height, at most 16; fewer than 13 rows cost what 13 do.
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

/* Bits of the nearest bfloat16, the lower half zero; finite for a finite value, NaN for NaN. */
FL_INLINE uint32_t nearest_bfloat16(uint32_t bits)
{
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    uint32_t magnitude = bits & 0x7fffffffu;
    rounded =
        magnitude >= 0x7f7f8000u ? bits : rounded; /* would round to infinity, or is not finite */
    rounded = magnitude > 0x7f800000u ? bits | 0x400000u : rounded;
    return rounded & 0xffff0000u;
}

/* What is left of a value after its first part; of one that is not finite, nothing. */
FL_INLINE float rest_of(float value, uint32_t part)
{
    return (part & 0x7f800000u) == 0x7f800000u ? 0 : value - tile_value(part);
}

/* The parts of one value, as bfloat16 in the upper halves. */
FL_INLINE void split_value(float value, const int parts, uint32_t part[3])
{
    part[0] = nearest_bfloat16(tile_bits(value));
    for (int p = 1; p < parts; p++) {
        value = rest_of(value, part[p - 1]);
        part[p] = nearest_bfloat16(tile_bits(value));
    }
}

/* ---- operands ---- */

FL_INLINE int64_t padded_to(int64_t count, int64_t unit)
{
    return (count + unit - 1) / unit * unit;
}

/* Rows of each tile of A, of which there are as few as can be; and of all of them. */
FL_INLINE int64_t tile_height(int64_t rows)
{
    int64_t tiles = (rows + FL_TILE_SIDE - 1) / FL_TILE_SIDE;
    return (rows + tiles - 1) / tiles;
}
FL_INLINE int64_t rows_of_tiles(int64_t rows)
{
    return padded_to(rows, tile_height(rows));
}

/* Contiguous values -> to[part * part_stride + i]. */
FL_INLINE void split_row(const float *FL_RESTRICT values, int64_t count, const int parts,
                         uint16_t *FL_RESTRICT to, int64_t part_stride)
{
    uint16_t *FL_RESTRICT second = to + part_stride, *FL_RESTRICT third = to + 2 * part_stride;
    for (int64_t i = 0; i < count; i++) {
        uint32_t part[3];
        split_value(values[i], parts, part);
        to[i] = (uint16_t)(part[0] >> 16);
        if (parts > 1)
            second[i] = (uint16_t)(part[1] >> 16);
        if (parts > 2)
            third[i] = (uint16_t)(part[2] >> 16);
    }
}

FL_INLINE void split_row_of(const float *values, int64_t count, int parts, uint16_t *to,
                            int64_t part_stride)
{
    if (parts == 1)
        split_row(values, count, 1, to, part_stride);
    else if (parts == 2)
        split_row(values, count, 2, to, part_stride);
    else
        split_row(values, count, 3, to, part_stride);
}

/* t[i][j] = values[j * stride + i]: 16 rows of 16 or fewer columns that lie the other way. */
typedef float tile_lanes __attribute__((vector_size(64)));
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
FL_INLINE void transpose_square(const float *values, int64_t stride, int64_t rows, int64_t columns,
                                tile_lanes t[FL_TILE_SIDE])
{
    for (int j = 0; j < FL_TILE_SIDE; j++) {
        t[j] = (tile_lanes){0};
        if (j < columns && rows == FL_TILE_SIDE)
            memcpy(&t[j], values + j * stride, sizeof t[j]);
        else if (j < columns)
            memcpy(&t[j], values + j * stride, sizeof(float) * (size_t)rows);
    }
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

/* A (rows, depth) -> (parts, rows of whole tiles, depth padded to 32), padding zero. */
static void tile_split_rows(const fl_tile_operand *from)
{
    int64_t depth = padded_to(from->depth, FL_TILE_DEPTH), rows = rows_of_tiles(from->rows),
            part_stride = rows * depth;
    uint16_t *to = from->to;
    for (int64_t row = 0; row < rows; row++, to += depth) {
        int64_t count = row < from->rows ? from->depth : 0;
        if (count)
            split_row_of(from->values + row * from->row_stride, count, from->parts, to,
                         part_stride);
        for (int part = 0; part < from->parts; part++)
            memset(to + part * part_stride + count, 0, 2 * (size_t)(depth - count));
    }
}

/* The same for rows that lie side by side (row_stride 1). */
static void tile_split_columns(const fl_tile_operand *from)
{
    int64_t depth = padded_to(from->depth, FL_TILE_DEPTH), rows = rows_of_tiles(from->rows),
            part_stride = rows * depth;
    for (int64_t row = 0; row < rows; row += FL_TILE_SIDE)
        for (int64_t k = 0; k < depth; k += FL_TILE_SIDE) {
            int64_t here = from->rows - row, left = from->depth - k;
            tile_lanes square[FL_TILE_SIDE];
            transpose_square(from->values + row + k * from->depth_stride, from->depth_stride,
                             here < FL_TILE_SIDE ? here : FL_TILE_SIDE, left, square);
            for (int i = 0; i < FL_TILE_SIDE && row + i < rows; i++)
                split_row_of((const float *)&square[i], FL_TILE_SIDE, from->parts,
                             (uint16_t *)from->to + (row + i) * depth + k, part_stride);
        }
}

/* Two depths of a tile of a block: pairs of values `columns` apart -> to[part][i], a pair in 32
 * bits. */
FL_INLINE void split_pairs(const float *FL_RESTRICT even, const float *FL_RESTRICT odd,
                           int64_t count, const int parts, uint32_t *FL_RESTRICT to)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t low[3], high[3];
        split_value(even[i], parts, low);
        split_value(odd[i], parts, high);
        for (int p = 0; p < parts; p++)
            to[p * FL_TILE_BYTES / 4 + i] = low[p] >> 16 | high[p];
    }
}

/* A block B (depth, columns), columns side by side -> (steps of the depth, tiles of columns, parts,
 * 16, 16, 2). `rows` of the operand are its columns. */
static void tile_split_block(const fl_tile_operand *from)
{
    static const float nothing[FL_TILE_SIDE];
    uint32_t *to = from->to;
    for (int64_t k = 0; k < from->depth; k += FL_TILE_DEPTH)
        for (int64_t first = 0; first < from->rows;
             first += FL_TILE_SIDE, to += from->parts * FL_TILE_BYTES / 4) {
            int64_t left = from->rows - first, count = left < FL_TILE_SIDE ? left : FL_TILE_SIDE;
            memset(to, 0, (size_t)(from->parts * FL_TILE_BYTES));
            for (int pair = 0; pair < FL_TILE_SIDE && k + 2 * pair < from->depth; pair++) {
                const float *even = from->values + first + (k + 2 * pair) * from->depth_stride,
                            *odd = k + 2 * pair + 1 < from->depth ? even + from->depth_stride
                                                                  : nothing;
                if (from->parts == 1)
                    split_pairs(even, odd, count, 1, to + pair * FL_TILE_SIDE);
                else if (from->parts == 2)
                    split_pairs(even, odd, count, 2, to + pair * FL_TILE_SIDE);
                else
                    split_pairs(even, odd, count, 3, to + pair * FL_TILE_SIDE);
            }
        }
}

/* ---- the product ---- */

/* One term: the part of the rows in register A (4 to 6) times part B of every column tile.
 * Neighbouring products have sums of their own, so that none waits for another. */
#define FL_TILE_TERM(A, B)                                                                         \
    do {                                                                                           \
        FL_TILE_TERM_OF(0, A, B);                                                                  \
        if (n_tiles > 1)                                                                           \
            FL_TILE_TERM_OF(1, A, B);                                                              \
        if (n_tiles > 2)                                                                           \
            FL_TILE_TERM_OF(2, A, B);                                                              \
        if (n_tiles > 3)                                                                           \
            FL_TILE_TERM_OF(3, A, B);                                                              \
    } while (0)
#define FL_TILE_TERM_OF(C, A, B)                                                                   \
    do {                                                                                           \
        t_load(tiles, 7, b + ((C) * parts + (B)) * FL_TILE_BYTES, 64);                             \
        t_dot(tiles, C, A, 7);                                                                     \
    } while (0)

/* sums (height, columns) = a tile's rows of A times one block of B; columns: 16 a tile. */
FL_INLINE void tile_product(fl_tiles *tiles, const fl_tile_gemm *g, const int parts,
                            const int n_tiles, const uint16_t *a, const char *b, float *sums)
{
    int64_t depth = padded_to(g->depth, FL_TILE_DEPTH), a_bytes = 2 * depth,
            part_stride = rows_of_tiles(g->rows) * depth;
    (void)tiles; /* the registers themselves, where there are any */
    t_zero(tiles, 0);
    if (n_tiles > 1)
        t_zero(tiles, 1);
    if (n_tiles > 2)
        t_zero(tiles, 2);
    if (n_tiles > 3)
        t_zero(tiles, 3);
    for (int64_t k = 0; k < depth; k += FL_TILE_DEPTH, b += n_tiles * parts * FL_TILE_BYTES) {
        t_load(tiles, 4, a + k, a_bytes);
        if (parts > 2) {
            t_load(tiles, 6, a + 2 * part_stride + k, a_bytes);
            FL_TILE_TERM(4, 2);
            FL_TILE_TERM(6, 0);
        }
        if (parts > 1) {
            t_load(tiles, 5, a + part_stride + k, a_bytes);
            if (parts > 2)
                FL_TILE_TERM(5, 1);
            FL_TILE_TERM(4, 1);
            FL_TILE_TERM(5, 0);
        }
        FL_TILE_TERM(4, 0);
    }
    t_store(tiles, 0, sums, 64 * n_tiles);
    if (n_tiles > 1)
        t_store(tiles, 1, sums + 16, 64 * n_tiles);
    if (n_tiles > 2)
        t_store(tiles, 2, sums + 32, 64 * n_tiles);
    if (n_tiles > 3)
        t_store(tiles, 3, sums + 48, 64 * n_tiles);
}
#undef FL_TILE_TERM
#undef FL_TILE_TERM_OF

FL_INLINE void tile_product_of(fl_tiles *tiles, const fl_tile_gemm *g, const int parts,
                               const uint16_t *a, const char *b, float *sums)
{
    switch ((int)(padded_to(g->width, FL_TILE_SIDE) / FL_TILE_SIDE)) {
    case 1:
        tile_product(tiles, g, parts, 1, a, b, sums);
        break;
    case 2:
        tile_product(tiles, g, parts, 2, a, b, sums);
        break;
    case 3:
        tile_product(tiles, g, parts, 3, a, b, sums);
        break;
    default:
        tile_product(tiles, g, parts, 4, a, b, sums);
    }
}

FL_INLINE int64_t rows_of_c(const fl_tile_gemm *g)
{
    return g->rows_written ? g->rows_written : g->rows;
}

/* c = init + sums for the rows, of `height`, and columns that there are. */
static void tile_write(const fl_tile_gemm *g, int64_t height, int64_t row, int64_t block,
                       const float *sums)
{
    int64_t left = rows_of_c(g) - row, rows = left < height ? left : height,
            first = block * (g->c_block ? g->c_block : g->width), behind = g->columns - first,
            columns = behind < g->width ? behind : g->width,
            sums_row = padded_to(g->width, FL_TILE_SIDE);
    for (int64_t r = 0; r < rows; r++) {
        const float *init = g->init ? g->init + (row + r) * g->init_row + first : NULL;
        const float *sum = sums + r * sums_row;
        float *c = g->c + (row + r) * g->c_row + first;
        if (init)
            for (int64_t j = 0; j < columns; j++)
                c[j] = init[j] + sum[j];
        else
            memcpy(c, sum, sizeof(float) * (size_t)columns);
    }
}

static void tile_gemm(const fl_tile_gemm *g)
{
    float sums[FL_TILE_SIDE * 4 * FL_TILE_SIDE] __attribute__((aligned(64)));
    int64_t height = tile_height(g->rows), depth = padded_to(g->depth, FL_TILE_DEPTH),
            block_bytes = depth / FL_TILE_DEPTH * padded_to(g->width, FL_TILE_SIDE) / FL_TILE_SIDE *
                          g->parts * FL_TILE_BYTES;
    fl_tiles tiles;
    fl_tiles_begin(&tiles, (int)height);
    for (int64_t done = 0; done < g->block_end - g->block_first; done++) {
        int64_t block = g->descending ? g->block_end - 1 - done : g->block_first + done;
        const char *b = (const char *)g->b + block * block_bytes;
        for (int64_t row = 0; row < rows_of_c(g); row += height) {
            const uint16_t *a = (const uint16_t *)g->a + row * depth;
            if (g->parts == 1)
                tile_product_of(&tiles, g, 1, a, b, sums);
            else if (g->parts == 2)
                tile_product_of(&tiles, g, 2, a, b, sums);
            else
                tile_product_of(&tiles, g, 3, a, b, sums);
            tile_write(g, height, row, block, sums);
        }
    }
    fl_tiles_end(&tiles);
}
