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
 * one piece of C is done while the next piece is multiplied, a row after every few terms, and what
 * comes next from further than the second cache is fetched meanwhile.
 */
#include "kernels/tile_split.h"

#ifndef FL_TILE_NEAR_BYTES /* what the second cache keeps */
#define FL_TILE_NEAR_BYTES (1280 * 1024)
#endif
enum {
    SUMS_ROW = FL_TILE_SUMS_ROW,
    NEAR_BYTES = FL_TILE_NEAR_BYTES,
    NEAR_TILES = 2,  /* row tiles of a piece of C, at most, where B is near */
    FAR_TILES = 8,   /* and where it is far */
    FETCHED = 4 * 64 /* bytes for each line asked for: the prefetchers bring the others */
};

/* A piece of C, of some row tiles and a block of columns, that has been multiplied; rows
 * [next, rows) of it have not been handed over yet. They go one by one while the next piece, of
 * `terms` terms, is multiplied, evenly. */
typedef struct tile_piece {
    const fl_tile_gemm *g;
    float *sums; /* (rows, SUMS_ROW) */
    int64_t block, row, rows, next;
    int64_t first, columns; /* of C */
    int64_t terms, due;     /* a row is due when this reaches `terms` */
} tile_piece;

/* C = init + sums of the next row, and to who wants to know. */
static __attribute__((noinline)) void hand_over(tile_piece *piece)
{
    const fl_tile_gemm *g = piece->g;
    int64_t row = piece->row + piece->next;
    float *sums = piece->sums + piece->next++ * SUMS_ROW,
          *c = g->c ? g->c + fl_grouped_row(&g->c_groups, row, g->c_row) + piece->first : sums;
    if (g->init && g->init_row) {
        const float *init = g->init + row * g->init_row + piece->first;
        for (int64_t j = 0; j < piece->columns; j++)
            c[j] = init[j] + sums[j];
    } else if (g->c) {
        memcpy(c, sums, sizeof(float) * (size_t)piece->columns);
    }
    if (g->finish)
        g->finish(g->context, piece->block, row, c);
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
    int64_t steps;       /* of the depth */
    int64_t used, bytes; /* of a tile of rows or columns in these steps; to the next tile */
    int first, end;
} tile_block;

FL_INLINE tile_block block_of(const fl_tile_gemm *g, const fl_tile_factor *factor, int64_t block,
                              int64_t row_tile)
{
    int64_t depth = factor->split_depth ? factor->split_depth : factor->depth,
            tiles = (factor->columns + FL_TILE_SIDE - 1) / FL_TILE_SIDE,
            b_tiles =
                factor->b_columns ? (factor->b_columns + FL_TILE_SIDE - 1) / FL_TILE_SIDE : tiles;
    tile_block found = {
        .steps = (factor->depth + FL_TILE_DEPTH - 1) / FL_TILE_DEPTH,
        .used = FL_TILE_SIDE * sizeof(uint16_t) * fl_tile_row_size(factor->depth, g->parts),
        .bytes = FL_TILE_SIDE * sizeof(uint16_t) * fl_tile_row_size(depth, g->parts),
        .first = (int)(factor->first / FL_TILE_SIDE)};
    found.end = found.first + (int)tiles;
    found.a = (const char *)factor->a + row_tile * found.bytes;
    found.b = (const char *)factor->b +
              (block * b_tiles + (factor->b_columns ? found.first : 0)) * found.bytes;
    return found;
}

/* Squares of `rows` rows by two column tiles, and the terms of each. */
FL_INLINE int64_t squares_of(const fl_tile_gemm *g, int64_t rows)
{
    int64_t both = 2 * tile_height(g->rows);
    return (rows + both - 1) / both;
}
FL_INLINE int64_t square_terms(const tile_block *of, const int parts)
{
    return of->steps * parts * (parts + 1) / 2;
}

/* What comes after some squares, of each factor one or two tiles of rows or columns: a share of it
 * is fetched beside each of them. */
typedef struct tile_ahead {
    struct {
        const char *at;
        int64_t other, bytes; /* to the other one; of a share of either */
    } of[2];
    int64_t share;
} tile_ahead;
FL_INLINE void look_ahead(tile_ahead *ahead, int f, const char *at, int64_t tiles,
                          const tile_block *of, int64_t shares)
{
    ahead->of[f].at = at;
    ahead->of[f].other = tiles > 1 ? of->bytes : 0;
    ahead->of[f].bytes = tiles > 0 ? of->used / shares : 0;
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
            t_load(tiles, 7, b + (C) * of.bytes + (B) * FL_TILE_BYTES, 64);                        \
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
        const char *a = of.a, *b = of.b - of.first * of.bytes;
        for (int64_t k = 0; k < of.steps;
             k++, a += parts * FL_TILE_BYTES, b += parts * FL_TILE_BYTES) {
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
            t_load(tiles, 5, a + of.bytes + (PART) * FL_TILE_BYTES, 64);                           \
    } while (0)
#define FL_SQUARE_B(PART)                                                                          \
    do {                                                                                           \
        if (has_left)                                                                              \
            t_load(tiles, 6, b + (PART) * FL_TILE_BYTES, 64);                                      \
        if (has_right)                                                                             \
            t_load(tiles, 7, b + of.bytes + (PART) * FL_TILE_BYTES, 64);                           \
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
        for (int64_t done_ = 0; done_ < fetch; done_ += FETCHED, fetched += FETCHED) {             \
            __builtin_prefetch(fetched, 0, 2);                                                     \
            __builtin_prefetch(fetched + other, 0, 2);                                             \
        }                                                                                          \
        hand_over_due(before);                                                                     \
    } while (0)
FL_INLINE void multiply_square(fl_tiles *tiles, const fl_tile_gemm *g, const int parts,
                               const tile_piece *piece, int64_t row, int left, tile_piece *before,
                               const tile_ahead *ahead)
{
    const int64_t block = piece->block, height = tile_height(g->rows);
    const int columns = (int)((g->width + FL_TILE_SIDE - 1) / FL_TILE_SIDE),
              two_columns = left + 1 < columns, two_rows = row + height < piece->rows;
    const float *init = common_init(g, block);
    (void)tiles;
    FL_TILE_START(0, left);
    FL_TILE_START(1, left + 1);
    FL_TILE_START(2, left);
    FL_TILE_START(3, left + 1);
    for (int f = 0; f < 2 && g->factor[f].depth; f++) {
        const tile_block of = block_of(g, &g->factor[f], block, (piece->row + row) / height);
        const int has_left = of.first <= left && left < of.end,
                  has_right = of.first <= left + 1 && left + 1 < of.end;
        const char *a = of.a, *b = of.b + (left - of.first) * of.bytes;
        const int64_t terms = square_terms(&of, parts), other = ahead->of[f].other,
                      fetch = padded_to((ahead->of[f].bytes + terms - 1) / terms, FETCHED);
        const char *fetched = ahead->of[f].at + ahead->share * ahead->of[f].bytes;
        for (int64_t k = 0; (has_left || has_right) && k < of.steps;
             k++, a += parts * FL_TILE_BYTES, b += parts * FL_TILE_BYTES) {
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
    float *sums = piece->sums + row * SUMS_ROW + left * FL_TILE_SIDE;
    t_store(tiles, 0, sums, 4 * SUMS_ROW);
    if (two_columns)
        t_store(tiles, 1, sums + FL_TILE_SIDE, 4 * SUMS_ROW);
    if (two_rows)
        t_store(tiles, 2, sums + height * SUMS_ROW, 4 * SUMS_ROW);
    if (two_rows && two_columns)
        t_store(tiles, 3, sums + height * SUMS_ROW + FL_TILE_SIDE, 4 * SUMS_ROW);
}

/* What is read of the factors' blocks, and of their rows. */
FL_INLINE int64_t bytes_of_blocks(const fl_tile_gemm *g)
{
    int64_t bytes = 0;
    for (int f = 0; f < 2 && g->factor[f].depth; f++)
        bytes += fl_tile_block_size(g->factor[f].columns, g->factor[f].depth, g->parts);
    return bytes * (int64_t)sizeof(uint16_t) * (g->block_end - g->block_first);
}
FL_INLINE int64_t bytes_of_rows(const fl_tile_gemm *g)
{
    int64_t bytes = 0;
    for (int f = 0; f < 2 && g->factor[f].depth; f++)
        bytes += g->rows * fl_tile_row_size(g->factor[f].depth, g->parts);
    return bytes * (int64_t)sizeof(uint16_t);
}

/* How often hand_over_due is called in a piece of so many squares; in one of a single row tile. */
FL_INLINE int64_t terms_of_piece(const fl_tile_gemm *g, const int parts, int alone, int64_t squares)
{
    int64_t terms = 0;
    for (int f = 0; f < 2 && g->factor[f].depth; f++) {
        tile_block of = block_of(g, &g->factor[f], 0, 0);
        if (alone)
            terms += of.steps * parts;
        for (int left = 0; !alone && left * FL_TILE_SIDE < g->width; left += 2)
            if (of.first <= left + 1 && left < of.end)
                terms += squares * square_terms(&of, parts);
    }
    return terms;
}

/* After a piece's squares of columns `left` on: of far blocks the next columns, where they are read
 * for the first time. */
FL_INLINE tile_ahead columns_ahead(const fl_tile_gemm *g, const tile_piece *piece, int left)
{
    tile_ahead ahead = {0};
    int64_t block = piece->block;
    int for_last_rows = 0;
    left += 2;
    if (left * FL_TILE_SIDE >= g->width) {
        left = 0;
        block += g->descending ? -1 : 1;
        for_last_rows = 1;
    }
    if (block < g->block_first || block >= g->block_end ||
        (for_last_rows ? piece->row + piece->rows < g->rows : piece->row > 0))
        return ahead;
    for (int f = 0; f < 2 && g->factor[f].depth; f++) {
        const tile_block of = block_of(g, &g->factor[f], block, 0);
        int first = of.first > left ? of.first : left, end = of.end < left + 2 ? of.end : left + 2;
        look_ahead(&ahead, f, of.b + (first - of.first) * of.bytes, end - first, &of,
                   squares_of(g, piece->rows));
    }
    return ahead;
}

/* Of far rows by near blocks, the next rows. */
FL_INLINE tile_ahead rows_ahead(const fl_tile_gemm *g, const tile_piece *piece, int left)
{
    tile_ahead ahead = {.share = left / 2};
    int64_t row = piece->row + piece->rows, height = tile_height(g->rows),
            pairs = (g->width + 2 * FL_TILE_SIDE - 1) / (2 * FL_TILE_SIDE);
    for (int f = 0; f < 2 && g->factor[f].depth && row < g->rows; f++) {
        const tile_block of = block_of(g, &g->factor[f], 0, row / height);
        look_ahead(&ahead, f, of.a, row + height < g->rows ? 2 : 1, &of, pairs);
    }
    return ahead;
}

/* Pieces of C, one after another; each is handed over while the next is multiplied. Where the
 * blocks of B are near, all of some rows come first: their neighbours in C, and in what the cells
 * write, are neighbours in time. Else all rows of a block, which is then read once: two of its
 * column tiles and then the other two, so that there is room beside A for what comes next. */
FL_INLINE void multiply_pieces(fl_tiles *tiles, const fl_tile_gemm *g, const int parts)
{
    float sums[2][FAR_TILES * FL_TILE_SIDE * SUMS_ROW] __attribute__((aligned(64)));
    const int alone = g->rows <= FL_TILE_SIDE, near = bytes_of_blocks(g) <= NEAR_BYTES,
              all_near = bytes_of_blocks(g) + bytes_of_rows(g) <= NEAR_BYTES;
    const int64_t height = tile_height(g->rows), row_tiles = (g->rows + height - 1) / height,
                  most = near ? NEAR_TILES : FAR_TILES, row_pieces = (row_tiles + most - 1) / most,
                  longest = padded_to((row_tiles + row_pieces - 1) / row_pieces, 2) * height,
                  blocks = g->block_end - g->block_first,
                  terms = terms_of_piece(g, parts, alone,
                                         squares_of(g, longest < g->rows ? longest : g->rows));
    tile_piece before = {.terms = terms};
    for (int64_t n = 0; n < row_pieces * blocks; n++) {
        int64_t done = near ? n % blocks : n / row_pieces,
                row = (near ? n / blocks : n % row_pieces) * longest, behind = g->rows - row;
        int64_t block = g->descending ? g->block_end - 1 - done : g->block_first + done,
                first = block * (g->c_block ? g->c_block : g->width), ahead = g->columns - first;
        tile_piece piece = {.g = g,
                            .sums = sums[n & 1],
                            .block = block,
                            .row = row,
                            .rows = behind < longest ? behind : longest,
                            .first = first,
                            .columns = ahead < g->width ? ahead : g->width,
                            .terms = terms};
        if (alone)
            multiply_row(tiles, g, parts, piece.block, piece.sums, &before);
        for (int left = 0; !alone && left * FL_TILE_SIDE < g->width; left += 2) {
            tile_ahead next = all_near ? (tile_ahead){0}
                              : near   ? rows_ahead(g, &piece, left)
                                       : columns_ahead(g, &piece, left);
            for (int64_t tile = 0; tile < piece.rows; tile += 2 * height, next.share++)
                multiply_square(tiles, g, parts, &piece, tile, left, &before, &next);
        }
        hand_over_rest(&before);
        before = piece;
    }
    hand_over_rest(&before);
}

static void tile_gemm(const fl_tile_gemm *g)
{
    fl_tiles tiles;
    fl_tiles_begin(&tiles, (int)tile_height(g->rows), g->rows <= FL_TILE_SIDE ? 7 : 6);
    fl_tile_gemm segment = *g;
    fl_tile_factor *factor = segment.factor;
    int64_t depth = factor->depth, longest = g->segment ? g->segment : depth;
    factor->split_depth = depth;
    for (int64_t first = 0; first < depth; first += longest) {
        factor->depth = depth - first < longest ? depth - first : longest;
        segment.finish = first + longest < depth ? NULL : g->finish;
        FL_OF_PARTS(multiply_pieces, g->parts, &tiles, &segment);
        segment.init = g->c;
        segment.init_row = g->c_row;
        int64_t done = FL_TILE_SIDE * fl_tile_row_size(factor->depth, g->parts);
        factor->a = (const uint16_t *)factor->a + done;
        factor->b = (const uint16_t *)factor->b + done;
    }
    fl_tiles_end(&tiles);
}
