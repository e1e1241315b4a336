/* Float32 numbers as sums of bfloat16 numbers, laid out as the register tiles of tile_gemm.h load
 * them. */
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

/* Call `function(..., parts)` with a constant, so that each number of parts is its own code. */
#define FL_OF_PARTS(function, parts, ...)                                                          \
    do {                                                                                           \
        if ((parts) == 1)                                                                          \
            function(__VA_ARGS__, 1);                                                              \
        else if ((parts) == 2)                                                                     \
            function(__VA_ARGS__, 2);                                                              \
        else                                                                                       \
            function(__VA_ARGS__, 3);                                                              \
    } while (0)

FL_INLINE int64_t padded_to(int64_t count, int64_t unit)
{
    return (count + unit - 1) / unit * unit;
}

/* Tiles of so many rows or columns, steps of so many depths. */
FL_INLINE int64_t tiles_of(int64_t count)
{
    return (count + FL_TILE_SIDE - 1) / FL_TILE_SIDE;
}
FL_INLINE int64_t steps_of(int64_t depth)
{
    return (depth + FL_TILE_DEPTH - 1) / FL_TILE_DEPTH;
}
/* Rows of each tile of A, of which there are as few as can be. */
FL_INLINE int64_t tile_height(int64_t rows)
{
    int64_t tiles = tiles_of(rows);
    return (rows + tiles - 1) / tiles;
}

/* Part `index` of 16 values that round to finite ones, in the upper halves, of what the parts
 * before it have left; values: what it leaves. Two parts leave 8 bits, which are the third. */
FL_INLINE tile_words take_part(tile_lanes *values, const int index)
{
    tile_words part = (tile_words)*values + (index < 2 ? 0x8000u : 0);
    part &= 0xffff0000u;
    *values -= (tile_lanes)part;
    return part;
}
/* The first part of any 16 values. */
FL_INLINE tile_words take_first_of_any(tile_lanes *values)
{
    tile_words part;
    for (int i = 0; i < FL_TILE_SIDE; i++) {
        part[i] = nearest_bfloat16(tile_bits((*values)[i]));
        (*values)[i] = rest_of((*values)[i], part[i]);
    }
    return part;
}

/* 32 values -> parts [first, parts), to[part * part_stride + i]. Of 32 depths, two share a 32-bit
 * lane: the one of the first 16 low, that of the others high. */
FL_INLINE void take_parts(tile_lanes low, tile_lanes high, const int first, const int parts,
                          uint16_t *to, int64_t part_stride)
{
    for (int p = first; p < parts; p++) {
        tile_words pairs = take_part(&low, p) >> 16;
        pairs |= take_part(&high, p);
        memcpy(to + p * part_stride, &pairs, sizeof pairs);
    }
}
static __attribute__((noinline)) void split_any_lanes(tile_lanes low, tile_lanes high, int parts,
                                                      uint16_t *to, int64_t part_stride)
{
    tile_words pairs = take_first_of_any(&low) >> 16;
    pairs |= take_first_of_any(&high);
    memcpy(to, &pairs, sizeof pairs);
    take_parts(low, high, 1, parts, to, part_stride);
}

/* Numbers that round to infinity, or are not finite, are so rare that lanes are first split as if
 * there were none, and once more, as any, where the largest was one. `largest`: the magnitudes,
 * twice over. */
FL_INLINE tile_words larger(tile_words largest, tile_lanes values)
{
    return t_max(largest, (tile_words)values << 1);
}
FL_INLINE int any_rounds_to_infinity(tile_words largest)
{
    return __builtin_expect(t_any_from(largest, 0x7f7f8000u << 1), 0);
}
FL_INLINE void split_lanes(tile_lanes low, tile_lanes high, const int parts, int of_any,
                           uint16_t *to, int64_t part_stride)
{
    if (__builtin_expect(of_any, 0))
        split_any_lanes(low, high, parts, to, part_stride);
    else
        take_parts(low, high, 0, parts, to, part_stride);
}

/* The first `count` of 16 values, the others 0; none if that is not positive. */
FL_INLINE tile_lanes load_lanes(const float *values, int64_t count)
{
    return t_lanes(values, count < 0 ? 0 : count < FL_TILE_SIDE ? (int)count : FL_TILE_SIDE);
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
    int64_t steps = steps_of(of->depth);
    return (uint16_t *)of->to +
           ((row / height * steps + k / FL_TILE_DEPTH) * of->parts * FL_TILE_SIDE + row % height) *
               FL_TILE_DEPTH +
           k % FL_TILE_DEPTH;
}

/* A (rows, depth), padding zero. */
FL_INLINE void split_rows(const fl_tile_operand *from, const int parts)
{
    const int64_t tile = FL_TILE_BYTES / 2, height = tile_height(from->rows),
                  steps = steps_of(from->depth),
                  segment = from->segment ? from->segment : from->depth,
                  skipped = from->segment ? from->segment_stride - from->segment : 0;
    uint16_t *row_tile = from->to;
    int of_any = 0;
    for (int64_t row = 0, below = 0; row < from->rows || below;) {
        const float *values = from->values + fl_grouped_row(&from->groups, row, from->stride);
        uint16_t *to = row_tile + below * FL_TILE_DEPTH;
        int64_t left = row < from->rows ? from->depth : 0, in_segment = segment;
        tile_words largest = {0};
        for (int64_t k = 0; k < steps; k++, to += parts * tile) {
            tile_lanes half[2];
            FL_UNROLL
            for (int i = 0; i < 2; i++) {
                half[i] = load_lanes(values, left);
                largest = larger(largest, half[i]);
                values += FL_TILE_SIDE;
                left -= FL_TILE_SIDE;
                in_segment -= FL_TILE_SIDE;
                if (in_segment == 0) {
                    in_segment = segment;
                    values += skipped;
                }
            }
            split_lanes(half[0], half[1], parts, of_any, to, tile);
        }
        of_any = !of_any && any_rounds_to_infinity(largest);
        if (of_any)
            continue;
        row++;
        if (++below == height) {
            below = 0;
            row_tile += steps * parts * tile;
        }
    }
}
static void tile_split_rows(const fl_tile_operand *from)
{
    FL_OF_PARTS(split_rows, from->parts, from);
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
            tile_words largest = {0};
            transpose_square(lines, first, rows, left, low);
            transpose_square(lines + FL_TILE_SIDE, first, rows, left - FL_TILE_SIDE, high);
            for (int i = 0; i < FL_TILE_SIDE; i++)
                largest = larger(larger(largest, low[i]), high[i]);
            const int of_any = any_rounds_to_infinity(largest);
            uint16_t *to = split_place(from, FL_TILE_SIDE, row, k);
            for (int i = 0; i < FL_TILE_SIDE; i++, to += FL_TILE_DEPTH)
                split_lanes(low[i], high[i], parts, of_any, to, tile);
        }
}
static void tile_split_columns(const fl_tile_operand *from)
{
    FL_OF_PARTS(split_columns, from->parts, from);
}

/* A block B (depth, columns), columns side by side -> (tiles of columns, steps of the depth, parts,
 * 16, 16, 2), depths k and k + 16 of a step in 32 bits. `rows` of the operand are its columns. */
FL_INLINE void split_block(const fl_tile_operand *from, const int parts)
{
    int of_any = 0;
    for (int64_t k = 0; k < from->depth; k += FL_TILE_DEPTH)
        for (int64_t first = 0; first < from->rows;) {
            uint32_t *to = (uint32_t *)split_place(from, FL_TILE_SIDE, first, k);
            const float *values = from->values + k * from->stride + first,
                        *values_high = values + FL_TILE_SIDE * from->stride;
            tile_lanes sums = {0};
            tile_words largest = {0};
            for (int64_t low = k, high = k + FL_TILE_SIDE; low < k + FL_TILE_SIDE; low++, high++,
                         to += FL_TILE_SIDE, values += from->stride, values_high += from->stride) {
                int64_t left = from->rows - first;
                /* rows of a matrix are pages apart, which no prefetcher of the hardware follows */
                __builtin_prefetch(values + FL_TILE_DEPTH * from->stride);
                __builtin_prefetch(values_high + FL_TILE_DEPTH * from->stride);
                tile_lanes first_half = load_lanes(values, low < from->depth ? left : 0),
                           second_half = load_lanes(values_high, high < from->depth ? left : 0);
                sums += first_half + second_half;
                largest = larger(larger(largest, first_half), second_half);
                split_lanes(first_half, second_half, parts, of_any, (uint16_t *)to,
                            FL_TILE_BYTES / 2);
            }
            of_any = !of_any && any_rounds_to_infinity(largest);
            if (of_any)
                continue;
            if (from->sums)
                add_lanes(from->sums + first, from->rows - first, sums);
            first += FL_TILE_SIDE;
        }
}
static void tile_split_block(const fl_tile_operand *from)
{
    FL_OF_PARTS(split_block, from->parts, from);
}
