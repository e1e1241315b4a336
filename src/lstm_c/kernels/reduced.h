/* Products of float32 rows with weights in other formats: what an ISA offers to the layers beside
 * the tables of kernels.h. No function here allocates, locks or knows about threads. */
#ifndef FL_KERNELS_REDUCED_H
#define FL_KERNELS_REDUCED_H

#include <stdint.h>

#include "base/compiler.h"

/* Weights in fewer bytes than a float, for products that wait for their weights. Panels as above,
 * but some depths at once: a 32-bit lane of bfloat16 holds depths k and k + 1 of its column, the
 * even one low; of int8, fl_int8_kernels says how many. Zeros follow the last depth. */
typedef enum fl_weight_format {
    FL_WEIGHTS_PLAIN = 0,
    FL_WEIGHTS_BFLOAT16 = 1, /* products and sums as with plain weights of the same values */
    FL_WEIGHTS_INT8 = 2,     /* times a scale a column; rows in int16, times a scale a row */
    FL_WEIGHTS_TILES = 3     /* for the products on tiles, see below */
} fl_weight_format;

/* C = init + A B for whole blocks of columns [block_first, block_end); `=`, c may be init. */
typedef struct fl_reduced_gemm {
    int64_t rows, depth, block_first, block_end;
    int64_t descending; /* 1: walk the blocks downwards */
    int vectors;        /* of a block: 3 or 4 */
    const float *a;     /* bfloat16 weights: (rows, depth) */
    int64_t a_row;
    const void *quantized; /* int8 weights: the rows in integers, and a scale each */
    int64_t quantized_row; /* bytes, fl_int8_row() or more */
    const float *row_scale, *column_scale;
    const void *b;
    const float *init;
    int64_t init_row;
    float *c;
    int64_t c_row;
} fl_reduced_gemm;

typedef struct fl_int8_kernels {
    int depths; /* of a column that lie together: 2 or 4 */
    int head; /* 1: a group of them lies before the first, -32768 times the column's sum (int32) */
    void (*gemm)(const fl_reduced_gemm *);
    /* row = scale * integers, none larger than `limit`, of `depth` values; `to` takes
     * fl_int8_row() bytes. Returns scale: NaN where a value is not finite. */
    float (*quantize)(const float *row, int64_t depth, float limit, void *to);
} fl_int8_kernels;
FL_INLINE int64_t fl_int8_row(int64_t depth)
{
    return 2 * (depth / 4 * 4 + 4);
}

typedef struct fl_reduced_kernels {
    void (*gemm_bfloat16)(const fl_reduced_gemm *);
    fl_int8_kernels int8;
} fl_reduced_kernels;

/* 0, or rows come in groups of so many, `stride` values from group to group. */
typedef struct fl_row_groups {
    int64_t rows, stride;
} fl_row_groups;
FL_INLINE int64_t fl_grouped_row(const fl_row_groups *groups, int64_t row, int64_t stride)
{
    return groups->rows ? row / groups->rows * groups->stride + row % groups->rows * stride
                        : row * stride;
}

/* Products on bfloat16 tiles; see kernels/tile_gemm.h. Operands are split once, into `parts` (1 to
 * 3) bfloat16 numbers a value. */
typedef struct fl_tile_operand {
    const float *values;
    int64_t rows, depth;  /* of B: columns of the block, and depth */
    int64_t stride;       /* from row to row of A, from depth to depth of B */
    fl_row_groups groups; /* of the rows of A */
    int parts;
    void *to;
    /* of split_rows: 0, or the depth comes in segments of so many values, whole vectors of 16, so
     * far apart */
    int64_t segment, segment_stride;
    /* of split_columns, in place of `values`: where each depth is, its rows from
     * `first` on */
    const float *const *lines;
    int64_t first;
    float *sums; /* of split_block, or NULL: += the sum of each column */
} fl_tile_operand;

/* A B, which goes into columns [first, first + columns) of each block of C; `first` is whole tiles.
 */
typedef struct fl_tile_factor {
    const void *a, *b;   /* split */
    int64_t depth;       /* 0: no such factor */
    int64_t split_depth; /* of which these are a part; 0: all */
    int64_t first, columns;
    int64_t b_columns; /* of a block of B that has others of C's block too; 0: it has `columns` */
} fl_tile_factor;

enum {
    FL_TILE_SUMS_ROW = 64,
    FL_TILE_SEGMENT = 1024 /* of which the rows of 128 sequences in three parts leave L2 room */
};
/* C = init + the products of the factors, for blocks of columns [block_first, block_end); `=`, c
 * may be init. */
typedef struct fl_tile_gemm {
    int64_t rows, block_first, block_end, descending;
    fl_tile_factor factor[2]; /* of the same rows */
    int64_t width;            /* columns of a block of C, at most FL_TILE_SUMS_ROW */
    int64_t c_block;          /* columns of C and init from block to block; 0: width */
    int64_t columns;          /* of C; the rest of the last block is not written */
    int parts;
    /* 0, or a deep product, of one factor, is taken in segments of so many depths, whole steps of
     * tiles, one after another: rows of A then stay in cache. C has the sums between them. */
    int64_t segment;
    const float *init; /* or NULL: zero */
    int64_t init_row;  /* 0: one row for all, of whole tiles */
    float *c;          /* or NULL: `finish` alone has it */
    int64_t c_row;
    fl_row_groups c_groups;
    /* Called for each row of a block of C, or NULL: `fetch` while it is multiplied, to ask for what
     * `finish` will want, and that when it is there, in `sums`, while others are multiplied. */
    void (*fetch)(void *context, int64_t block, int64_t row);
    void (*finish)(void *context, int64_t block, int64_t row, const float *sums);
    void *context;
    int in_stages; /* what `finish` does is a row of `step`, an fl_step_f32 of such cells; or 0 */
    const void *step;
} fl_tile_gemm;

typedef struct fl_tile_kernels {
    void (*split_rows)(const fl_tile_operand *); /* A */
    void (*split_columns)(
        const fl_tile_operand *);                 /* A from lines, filled up to tiles of 16 rows */
    void (*split_block)(const fl_tile_operand *); /* B */
    void (*gemm)(const fl_tile_gemm *);
} fl_tile_kernels;
/* Values of 16 bits that a split operand takes: of A, a row's times the rows and FL_TILE_PADDING.
 */
enum { FL_TILE_PADDING = 15 };
FL_INLINE int64_t fl_tile_row_size(int64_t depth, int parts)
{
    return parts * ((depth + 31) / 32 * 32);
}
FL_INLINE int64_t fl_tile_block_size(int64_t width, int64_t depth, int parts)
{
    return (width + 15) / 16 * 16 * fl_tile_row_size(depth, parts);
}

#endif
