/* The tile vocabulary: eight registers of 16 rows of 64 bytes, and the product of two of them in
 * bfloat16 (AMX-TILE, AMX-BF16). Register numbers are literals. Where the file is compiled without
 * the instructions, the same names compute what they compute, in plain C: that is for tests.
 *
 * A product, c (rows, 16) += a (rows, 32) b (32, 16), takes a cycle a row: a row of b holds two
 * depths, a pair in each 32-bit lane. Sums are float32, even and odd depths apart; denormal numbers
 * count as zero. Registers below `first_b` of fl_tiles_begin have as many rows as it is told, 1 to
 * 16: they are for a and c; those from there on, for b, have 16.
 *
 * A register that holds anything but the zeros of fl_tiles_begin and t_zero takes one of a few
 * physical ones, which both threads of a core share, and every operation needs a free one: leave
 * registers alone that a kernel can do without. */
#ifndef FL_SIMD_TILES_H
#define FL_SIMD_TILES_H

#include <stdint.h>
#include <string.h>

#include "base/compiler.h"

enum {
    FL_TILE_SIDE = 16,   /* rows, and 32-bit lanes of a row */
    FL_TILE_DEPTH = 32,  /* of a product */
    FL_TILE_BYTES = 1024 /* of a register */
};

/* A row of a register, as numbers or as the words of its lanes. */
typedef float tile_lanes __attribute__((vector_size(64)));
typedef uint32_t tile_words __attribute__((vector_size(64)));

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <immintrin.h>

#define FL_TILE_CODE FL_INLINE /* of a function on tiles: each set of constants is its own code */

typedef struct fl_tiles {
    char none;
} fl_tiles;

typedef struct fl_tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} fl_tile_shapes;

FL_INLINE void fl_tiles_begin(fl_tiles *tiles, int rows, int first_b)
{
    fl_tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = (uint8_t)(i < first_b ? rows : FL_TILE_SIDE);
    }
    (void)tiles;
    __asm__ volatile("" ::"r"(&shapes) : "memory"); /* GCC 12 thinks that only 8 bytes are read */
    _tile_loadconfig(&shapes);
}
FL_INLINE void fl_tiles_end(fl_tiles *tiles)
{
    (void)tiles;
    _tile_release();
}
/* Whether any lane is `limit` or more. */
FL_INLINE int t_any_from(tile_words lanes, uint32_t limit)
{
    return _mm512_cmpge_epu32_mask((__m512i)lanes, _mm512_set1_epi32((int)limit)) != 0;
}
/* The first 0 to 16 of 16 values, the others 0. */
FL_INLINE tile_lanes t_lanes(const float *values, int count)
{
    return (tile_lanes)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), values);
}
FL_INLINE tile_words t_max(tile_words a, tile_words b)
{
    return (tile_words)_mm512_max_epu32((__m512i)a, (__m512i)b);
}
/* Operations on tiles that follow one another closely wait longer than they need while the core's
 * other thread runs; alone, the room between them costs nothing. */
#define FL_TILES_APART(n) __asm__ volatile(".rept " #n "; nop; .endr")
#define t_zero(tiles, n) _tile_zero(n)
#define t_load(tiles, n, from, row_bytes)                                                          \
    do {                                                                                           \
        _tile_loadd(n, from, row_bytes);                                                           \
        FL_TILES_APART(4);                                                                         \
    } while (0)
#define t_store(tiles, n, to, row_bytes) _tile_stored(n, to, row_bytes)
#define t_dot(tiles, c, a, b)                                                                      \
    do {                                                                                           \
        _tile_dpbf16ps(c, a, b);                                                                   \
        FL_TILES_APART(8);                                                                         \
    } while (0)

#else

#define FL_TILE_CODE static __attribute__((noinline))

typedef struct fl_tiles {
    uint32_t lane[8][FL_TILE_SIDE][FL_TILE_SIDE];
    int rows[8];
} fl_tiles;

FL_INLINE void fl_tiles_begin(fl_tiles *tiles, int rows, int first_b)
{
    memset(tiles->lane, 0xff, sizeof tiles->lane); /* NaN: written before they are read */
    for (int i = 0; i < 8; i++)
        tiles->rows[i] = i < first_b ? rows : FL_TILE_SIDE;
}
FL_INLINE void fl_tiles_end(fl_tiles *tiles)
{
    (void)tiles;
}
FL_INLINE void fl_tile_load(fl_tiles *tiles, int n, const void *from, int64_t row_bytes)
{
    for (int row = 0; row < tiles->rows[n]; row++)
        memcpy(tiles->lane[n][row], (const char *)from + row * row_bytes, 64);
}
FL_INLINE void fl_tile_store(const fl_tiles *tiles, int n, void *to, int64_t row_bytes)
{
    for (int row = 0; row < tiles->rows[n]; row++)
        memcpy((char *)to + row * row_bytes, tiles->lane[n][row], 64);
}
/* A number of 32 bits, zero if denormal. */
FL_INLINE float fl_tile_number(uint32_t bits)
{
    float value;
    bits = bits & 0x7f800000u ? bits : bits & 0x80000000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}
FL_INLINE void fl_tile_dot(fl_tiles *tiles, int to, int rows, int columns)
{
    uint32_t (*a)[FL_TILE_SIDE] = tiles->lane[rows], (*b)[FL_TILE_SIDE] = tiles->lane[columns],
             (*c)[FL_TILE_SIDE] = tiles->lane[to];
    for (int m = 0; m < tiles->rows[to]; m++)
        for (int n = 0; n < FL_TILE_SIDE; n++) {
            float even = 0, odd = 0;
            for (int k = 0; k < FL_TILE_SIDE; k++) {
                even += fl_tile_number(a[m][k] << 16) * fl_tile_number(b[k][n] << 16);
                odd +=
                    fl_tile_number(a[m][k] & 0xffff0000u) * fl_tile_number(b[k][n] & 0xffff0000u);
            }
            float sum = fl_tile_number(c[m][n]) + (even + odd);
            memcpy(&c[m][n], &sum, sizeof sum);
        }
}
FL_INLINE int t_any_from(tile_words lanes, uint32_t limit)
{
    int any = 0;
    for (int i = 0; i < FL_TILE_SIDE; i++)
        any |= lanes[i] >= limit;
    return any;
}
FL_INLINE tile_lanes t_lanes(const float *values, int count)
{
    tile_lanes lanes = {0};
    if (count)
        memcpy(&lanes, values, sizeof(float) * (size_t)count);
    return lanes;
}
FL_INLINE tile_words t_max(tile_words a, tile_words b)
{
    for (int i = 0; i < FL_TILE_SIDE; i++)
        a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
#define t_zero(tiles, n) memset((tiles)->lane[n], 0, FL_TILE_BYTES)
#define t_load(tiles, n, from, row_bytes) fl_tile_load(tiles, n, from, row_bytes)
#define t_store(tiles, n, to, row_bytes) fl_tile_store(tiles, n, to, row_bytes)
#define t_dot(tiles, c, a, b) fl_tile_dot(tiles, c, a, b)
#endif

#endif
