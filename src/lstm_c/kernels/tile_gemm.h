/* Matrix products on bfloat16 tiles, of float32 accuracy where wanted.
 *
 * A float32 number is the sum of three bfloat16 numbers, hi + mid + lo, exactly. The product of two
 * such sums has nine terms, of which six exceed float32's rounding: hi hi, hi mid, mid hi, mid mid,
 * hi lo, lo hi (relative size 1, 2^-8, 2^-8, 2^-16 ...). With two parts three terms are left, and
 * with one part the plain bfloat16 product. Sums are float32 in the registers of the tiles; a
 * product of two bfloat16 numbers is exact there. (Henry, Tang and Heinecke, arXiv 1904.06376.)
 *
 * A square of two row tiles by two column tiles has four sums, and each part of A that it loads
 * serves two products: 17 loads for the 24 products of six terms. A single row tile goes with two
 * column tiles. Rows are cut into tiles of equal height, at most 16.
 *
 * Products of tiles take one port and the registers' loads others; the rest of the core is free,
 * but few operations on tiles can be in flight before the work between them is done. So what
 * becomes of the sums of one piece of C is done while the next piece is multiplied, a row after
 * every few terms, or a stage of it after each product (cell_stages.h), and what comes next from
 * further than the second cache is fetched meanwhile.
 */
#include "kernels/tile_split.h"
#include "kernels/cell_stages.h"

#ifndef FL_TILE_NEAR_BYTES /* what the second cache keeps */
#define FL_TILE_NEAR_BYTES (1280 * 1024)
#endif
enum {
    SUMS_ROW = FL_TILE_SUMS_ROW,
    NEAR_BYTES = FL_TILE_NEAR_BYTES,
    NEAR_TILES = 2,             /* row tiles of a piece of C, at most, where B is near */
    FAR_TILES = 8,              /* and where it is far */
    LINE = 64,                  /* bytes */
    KEPT_BYTES = NEAR_BYTES / 2 /* of far blocks, what is left of the walk before, the other way */
};

/* A piece of C, of some row tiles and a block of columns. While it is multiplied, in `terms` terms,
 * what its rows will need is fetched, and those of the piece before, which has been multiplied, are
 * handed over: a row of either now and then, evenly. */
typedef struct tile_piece {
    const fl_tile_gemm *g;
    float *sums;                             /* (rows, SUMS_ROW) */
    int64_t block, row, rows, fetched, next; /* next: to be handed over */
    int64_t row_tile;                        /* the first one */
    int64_t first, columns;                  /* of C */
    int64_t terms, pace, due;                /* due grows by `pace` a term: `terms` are a row */
} tile_piece;

/* What the next row of the piece will need. */
FL_INLINE void fetch_row(tile_piece *now)
{
    const fl_tile_gemm *g = now->g;
    if (g->fetch && now->fetched < now->rows)
        g->fetch(g->context, now->block, now->row + now->fetched++);
}

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

FL_INLINE void pass_row(tile_piece *now, tile_piece *before)
{
    fetch_row(now);
    if (before->next < before->rows)
        hand_over(before);
}
/* After each term. */
FL_INLINE void pass_rows_due(tile_piece *now, tile_piece *before)
{
    for (now->due += now->pace; now->due >= now->terms; now->due -= now->terms)
        pass_row(now, before);
}
FL_INLINE void hand_over_rest(tile_piece *piece)
{
    while (piece->next < piece->rows)
        hand_over(piece);
}

/* A factor's tiles: where they are, and which column tiles of a block of C they are for. */
typedef struct tile_factor {
    const char *a, *b;   /* of the first rows; of the first columns of block 0 */
    int64_t steps;       /* of the depth */
    int64_t used, bytes; /* of a tile of rows or columns in these steps; to the next tile */
    int64_t block_bytes; /* to the next block of B */
    int first, end;
} tile_factor;
FL_INLINE const char *tile_rows_of(const tile_factor *factor, int64_t row_tile)
{
    return factor->a + row_tile * factor->bytes;
}
FL_INLINE const char *tile_columns_of(const tile_factor *factor, int64_t block, int column)
{
    return factor->b + block * factor->block_bytes + (column - factor->first) * factor->bytes;
}

/* What is the same for all pieces of C. */
typedef struct tile_plan {
    const fl_tile_gemm *g;
    tile_factor factor[2];
    int factors, columns; /* column tiles of a block */
    int64_t height;       /* rows of a row tile */
    int64_t block_bytes;  /* that a block of C reads of B */
} tile_plan;

FL_INLINE tile_plan plan_of(const fl_tile_gemm *g)
{
    tile_plan plan = {.g = g, .columns = (int)tiles_of(g->width), .height = tile_height(g->rows)};
    for (int f = 0; f < 2 && g->factor[f].depth; f++, plan.factors++) {
        const fl_tile_factor *given = &g->factor[f];
        const int64_t depth = given->split_depth ? given->split_depth : given->depth,
                      tiles = tiles_of(given->columns), tile = FL_TILE_SIDE * sizeof(uint16_t);
        tile_factor *made = &plan.factor[f];
        made->steps = steps_of(given->depth);
        made->used = tile * fl_tile_row_size(given->depth, g->parts);
        made->bytes = tile * fl_tile_row_size(depth, g->parts);
        made->first = (int)(given->first / FL_TILE_SIDE);
        made->end = made->first + (int)tiles;
        made->a = (const char *)given->a;
        made->b = (const char *)given->b + (given->b_columns ? made->first * made->bytes : 0);
        plan.block_bytes += tiles * made->used;
        made->block_bytes = (given->b_columns ? tiles_of(given->b_columns) : tiles) * made->bytes;
    }
    return plan;
}

/* Squares of `rows` rows by two column tiles, and the terms of each. */
FL_INLINE int64_t squares_of(const tile_plan *plan, int64_t rows)
{
    return (rows + 2 * plan->height - 1) / (2 * plan->height);
}
FL_INLINE int64_t square_terms(const tile_factor *of, const int parts)
{
    return of->steps * parts * (parts + 1) / 2;
}

/* What comes after some squares, of each factor one or two tiles of rows or columns: a share of it
 * is fetched beside each of them. */
typedef struct tile_wanted {
    const char *at;
    int64_t other, bytes; /* to the other one; of a share of either */
} tile_wanted;
typedef struct tile_ahead {
    tile_wanted of[2];
    int64_t share;
} tile_ahead;
FL_INLINE void look_ahead(tile_ahead *ahead, int f, const char *at, int64_t tiles,
                          const tile_factor *of, int64_t shares)
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
        if (init)                                                                                  \
            t_load(tiles, C, init + (column) * FL_TILE_SIDE, 0);                                   \
        else                                                                                       \
            t_zero(tiles, C);                                                                      \
    } while (0)

/* The terms of a product go in an order in which each differs from the one before in one part, and
 * all that take a part of B stand together: hi lo, hi mid, mid mid, mid hi, lo hi, hi hi; with two
 * parts hi lo, hi hi, lo hi. It is the same for every shape, as are the bits. */

/* What is multiplied between two stores of sums, but for the registers. */
typedef struct tile_square {
    fl_tiles *tiles;
    const char *a, *b;
    int64_t steps, bytes; /* of the depth; to the next tile of rows or columns */
    tile_piece *now, *before;
    const char *fetched; /* from four places on, lines so far apart, or 0: nothing */
    int64_t place[4], apart;
} tile_square;

/* The third cache takes long to answer, and loads of tiles wait behind many questions at once: so
 * one is asked after each product, of four places by turns. Where there are more lines than
 * products, the others come with their neighbours or when they are wanted. */
FL_INLINE void fetch_beside(tile_square *s, const tile_wanted *wanted, int64_t share, int64_t terms)
{
    const int64_t bytes = wanted->other ? wanted->bytes / 2 : wanted->bytes / 4,
                  other = wanted->other ? wanted->other : 2 * bytes,
                  places[4] = {0, other, bytes, other + bytes};
    memcpy(s->place, places, sizeof places);
    s->fetched = wanted->at + share * wanted->bytes;
    s->apart = padded_to((bytes + terms - 1) / terms, LINE);
}
FL_INLINE void fetch_ahead(tile_square *s, const int product)
{
    __builtin_prefetch(s->fetched + s->place[product], 0, 2);
    if (product == 3)
        s->fetched += s->apart;
}

/* Stages of a row go beside the eight products of two terms, or, where there are few terms, the
 * four of one: whether a row is due. */
FL_INLINE int begin_row(tile_square *s, const int terms, cell_row *r)
{
    tile_piece *now = s->now, *before = s->before;
    const fl_tile_gemm *g = now->g;
    now->due += terms * now->pace;
    for (; now->due >= 2 * now->terms; now->due -= now->terms)
        pass_row(now, before);
    if (now->due < now->terms)
        return 0;
    now->due -= now->terms;
    fetch_row(now);
    if (before->next >= before->rows)
        return 0;
    const int64_t row = before->row + before->next;
    *r = (cell_row){.step = g->step,
                    .sums = before->sums + before->next++ * SUMS_ROW,
                    .init = g->init_row ? g->init + row * g->init_row + before->first : NULL,
                    .row = row,
                    .unit = before->block * FL_LANES};
    return 1;
}
#define FL_BESIDE(PRODUCT)                                                                         \
    do {                                                                                           \
        if (busy && slot_terms == 2) {                                                             \
            cell_stage(&r, cell, term % 2 * 4 + (PRODUCT));                                        \
        } else if (busy) {                                                                         \
            cell_stage(&r, cell, 2 * (PRODUCT));                                                   \
            cell_stage(&r, cell, 2 * (PRODUCT) + 1);                                               \
        }                                                                                          \
    } while (0)

/* The steps of a square: one or two row tiles, of which registers 4 and 5 have a part of A, by the
 * column tiles that the factor has there, of which 6 has a part of B, of one after the other. Each
 * term begins with the column that 6 still holds. Register 7 stays zero. `cell`: rows of it are
 * taken in stages meanwhile, or 0. */
#define FL_SQUARE_A(PART)                                                                          \
    do {                                                                                           \
        t_load(tiles, 4, a + (PART) * FL_TILE_BYTES, 64);                                          \
        if (two_rows)                                                                              \
            t_load(tiles, 5, a + bytes + (PART) * FL_TILE_BYTES, 64);                              \
    } while (0)
#define FL_SQUARE_COLUMN(HAS, C, C_BELOW, FROM, LOADS, PRODUCT)                                    \
    do {                                                                                           \
        if ((HAS) && (LOADS))                                                                      \
            t_load(tiles, 6, FROM, 64);                                                            \
        if (HAS)                                                                                   \
            t_dot(tiles, C, 4, 6);                                                                 \
        if (far)                                                                                   \
            fetch_ahead(s, PRODUCT);                                                               \
        FL_BESIDE(PRODUCT);                                                                        \
        if ((HAS) && two_rows)                                                                     \
            t_dot(tiles, C_BELOW, 5, 6);                                                           \
        if (far)                                                                                   \
            fetch_ahead(s, (PRODUCT) + 1);                                                         \
        FL_BESIDE((PRODUCT) + 1);                                                                  \
    } while (0)
#define FL_SQUARE_LEFT(PART, LOADS, PRODUCT)                                                       \
    FL_SQUARE_COLUMN(has_left, 0, 2, b + (PART) * FL_TILE_BYTES, LOADS, PRODUCT)
#define FL_SQUARE_RIGHT(PART, LOADS, PRODUCT)                                                      \
    FL_SQUARE_COLUMN(has_right, 1, 3, b + bytes + (PART) * FL_TILE_BYTES, LOADS, PRODUCT)
/* Columns FIRST and SECOND by part B of theirs, which is loaded or still there. */
#define FL_SQUARE_TERM(TERM, B, FIRST, FIRST_LOADS, SECOND, SECOND_LOADS)                          \
    do {                                                                                           \
        const int term = (TERM);                                                                   \
        if (cell && term % slot_terms == 0) {                                                      \
            r = (cell_row){0}; /* in no register from one row to the next */                       \
            busy = begin_row(s, slot_terms, &r);                                                   \
        }                                                                                          \
        FL_SQUARE_##FIRST(B, FIRST_LOADS, 0);                                                      \
        FL_SQUARE_##SECOND(B, SECOND_LOADS, 2);                                                    \
        if (!cell)                                                                                 \
            pass_rows_due(s->now, s->before);                                                      \
    } while (0)
FL_TILE_CODE void square_steps(tile_square *s, const int parts, const int cell, const int two_rows,
                               const int far, const int has_left, const int has_right)
{
    fl_tiles *tiles = s->tiles;
    const int64_t bytes = s->bytes;
    const char *a = s->a, *b = s->b;
    const int slot_terms = parts > 2 ? 2 : 1;
    cell_row r = {0};
    int busy = 0;
    (void)tiles; /* the registers themselves, where there are any */
    for (int64_t k = s->steps; k > 0; k--, a += parts * FL_TILE_BYTES, b += parts * FL_TILE_BYTES) {
        FL_SQUARE_A(0);
        FL_SQUARE_TERM(0, parts - 1, LEFT, 1, RIGHT, 1);
        if (parts == 1)
            continue;
        FL_SQUARE_TERM(1, parts - 2, RIGHT, 1, LEFT, 1);
        FL_SQUARE_A(1);
        FL_SQUARE_TERM(2, parts - 2, LEFT, 0, RIGHT, has_left);
        if (parts == 2)
            continue;
        FL_SQUARE_TERM(3, 0, RIGHT, 1, LEFT, 1);
        FL_SQUARE_A(2);
        FL_SQUARE_TERM(4, 0, LEFT, 0, RIGHT, has_left);
        FL_SQUARE_A(0);
        FL_SQUARE_TERM(5, 0, RIGHT, 0, LEFT, has_right);
    }
}

/* The same of a row tile alone, of which registers 4 to 6 have all parts of A, and 7 a part of B:
 * it is loaded once, for the terms that it is in. Registers 2 and 3 stay zero. */
#define FL_ROW_COLUMN(C, FROM, PART, TERMS, FIRST, SECOND, THIRD)                                  \
    do {                                                                                           \
        t_load(tiles, 7, (FROM) + (PART) * FL_TILE_BYTES, 64);                                     \
        t_dot(tiles, C, FIRST, 7);                                                                 \
        if ((TERMS) > 1)                                                                           \
            t_dot(tiles, C, SECOND, 7);                                                            \
        if ((TERMS) > 2)                                                                           \
            t_dot(tiles, C, THIRD, 7);                                                             \
    } while (0)
#define FL_ROW_PART(PART, TERMS, FIRST, SECOND, THIRD)                                             \
    do {                                                                                           \
        if (has_left)                                                                              \
            FL_ROW_COLUMN(0, b, PART, TERMS, FIRST, SECOND, THIRD);                                \
        if (has_right)                                                                             \
            FL_ROW_COLUMN(1, b + s->bytes, PART, TERMS, FIRST, SECOND, THIRD);                     \
        pass_rows_due(s->now, s->before);                                                          \
    } while (0)
FL_TILE_CODE void row_steps(tile_square *s, const int parts, const int has_left,
                            const int has_right)
{
    fl_tiles *tiles = s->tiles;
    const char *a = s->a, *b = s->b;
    (void)tiles;
    for (int64_t k = s->steps; k > 0; k--, a += parts * FL_TILE_BYTES, b += parts * FL_TILE_BYTES) {
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

/* The steps that the factor has in this square, for each pair of its columns code of its own. */
#define FL_OF_COLUMNS(steps, ...)                                                                  \
    do {                                                                                           \
        if (has_left && has_right)                                                                 \
            steps(__VA_ARGS__, 1, 1);                                                              \
        else if (has_left)                                                                         \
            steps(__VA_ARGS__, 1, 0);                                                              \
        else if (has_right)                                                                        \
            steps(__VA_ARGS__, 0, 1);                                                              \
    } while (0)
/* Of two row tiles, with the cells that the product ends in; `far`: what comes next is fetched. */
#define FL_SQUARES(far)                                                                            \
    do {                                                                                           \
        if (g->in_stages == FL_LSTM_STAGES)                                                        \
            square_steps(&s, parts, FL_LSTM_STAGES, 1, far, 1, 1);                                 \
        else if (g->in_stages == FL_GRU_STAGES)                                                    \
            FL_OF_COLUMNS(square_steps, &s, parts, FL_GRU_STAGES, 1, far);                         \
        else                                                                                       \
            FL_OF_COLUMNS(square_steps, &s, parts, 0, 1, far);                                     \
    } while (0)
FL_INLINE void multiply_square(fl_tiles *tiles, const tile_plan *plan, const int parts,
                               const int alone, tile_piece *piece, int64_t square, int left,
                               tile_piece *before, const tile_ahead *ahead)
{
    const fl_tile_gemm *g = plan->g;
    const int64_t row = 2 * square * plan->height;
    const int two_columns = left + 1 < plan->columns,
              two_rows = !alone && row + plan->height < piece->rows;
    const float *init = common_init(g, piece->block);
    (void)tiles; /* the registers themselves, where there are any */
    FL_TILE_START(0, left);
    if (two_columns)
        FL_TILE_START(1, left + 1);
    if (two_rows)
        FL_TILE_START(2, left);
    if (two_rows && two_columns)
        FL_TILE_START(3, left + 1);
    for (int f = 0; f < plan->factors; f++) {
        const tile_factor *of = &plan->factor[f];
        tile_square s = {.tiles = tiles,
                         .a = tile_rows_of(of, piece->row_tile + 2 * square),
                         .b = tile_columns_of(of, piece->block, left),
                         .steps = of->steps,
                         .bytes = of->bytes,
                         .now = piece,
                         .before = before};
        const int has_left = of->first <= left && left < of->end,
                  has_right = of->first <= left + 1 && left + 1 < of->end;
        if (ahead && ahead->of[f].bytes)
            fetch_beside(&s, &ahead->of[f], ahead->share, square_terms(of, parts));
        if (alone)
            FL_OF_COLUMNS(row_steps, &s, parts);
        else if (!two_rows)
            FL_OF_COLUMNS(square_steps, &s, parts, 0, 0, 0);
        else if (s.apart)
            FL_SQUARES(1);
        else
            FL_SQUARES(0);
    }
    float *sums = piece->sums + row * SUMS_ROW + left * FL_TILE_SIDE;
    t_store(tiles, 0, sums, 4 * SUMS_ROW);
    if (two_columns)
        t_store(tiles, 1, sums + FL_TILE_SIDE, 4 * SUMS_ROW);
    if (two_rows)
        t_store(tiles, 2, sums + plan->height * SUMS_ROW, 4 * SUMS_ROW);
    if (two_rows && two_columns)
        t_store(tiles, 3, sums + plan->height * SUMS_ROW + FL_TILE_SIDE, 4 * SUMS_ROW);
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

/* Terms of a piece of so many squares; of a row tile alone. */
FL_INLINE int64_t terms_of_piece(const tile_plan *plan, const int parts, int alone, int64_t squares)
{
    int64_t terms = 0;
    for (int f = 0; f < plan->factors; f++) {
        const tile_factor *of = &plan->factor[f];
        for (int left = 0; left < plan->columns; left += 2)
            if (of->first <= left + 1 && left < of->end)
                terms += alone ? of->steps * parts : squares * square_terms(of, parts);
    }
    return terms;
}

FL_INLINE int64_t blocks_before(const fl_tile_gemm *g, int64_t block)
{
    return g->descending ? g->block_end - 1 - block : block - g->block_first;
}
/* After a piece's squares of columns `left` on: of far blocks the next columns, where they are read
 * for the first time. */
FL_INLINE tile_ahead columns_ahead(const tile_plan *plan, const tile_piece *piece, int left)
{
    const fl_tile_gemm *g = plan->g;
    tile_ahead ahead = {0};
    int64_t block = piece->block;
    int for_last_rows = 0;
    left += 2;
    if (left >= plan->columns) {
        left = 0;
        block += g->descending ? -1 : 1;
        for_last_rows = 1;
    }
    if (block < g->block_first || block >= g->block_end ||
        blocks_before(g, block) * plan->block_bytes < KEPT_BYTES ||
        (for_last_rows ? piece->row + piece->rows < g->rows : piece->row > 0))
        return ahead;
    for (int f = 0; f < plan->factors; f++) {
        const tile_factor *of = &plan->factor[f];
        int first = of->first > left ? of->first : left,
            end = of->end < left + 2 ? of->end : left + 2;
        look_ahead(&ahead, f, tile_columns_of(of, block, first), end - first, of,
                   squares_of(plan, piece->rows));
    }
    return ahead;
}

/* Of far rows by near blocks, the next rows. */
FL_INLINE tile_ahead rows_ahead(const tile_plan *plan, const tile_piece *piece, int left)
{
    const fl_tile_gemm *g = plan->g;
    const int64_t row = piece->row + piece->rows, pairs = (plan->columns + 1) / 2,
                  shares = pairs * (g->block_end - g->block_first);
    tile_ahead ahead = {.share = blocks_before(g, piece->block) * pairs + left / 2};
    for (int f = 0; f < plan->factors && row < g->rows; f++)
        look_ahead(&ahead, f, tile_rows_of(&plan->factor[f], row / plan->height),
                   row + plan->height < g->rows ? 2 : 1, &plan->factor[f], shares);
    return ahead;
}

/* Pieces of C, one after another; each is handed over while the next is multiplied. Where the
 * blocks of B are near, all of some rows come first: their neighbours in C, and in what the cells
 * write, are neighbours in time. Else all rows of a block, which is then read once: two of its
 * column tiles and then the other two, so that there is room beside A for what comes next. */
FL_INLINE void multiply_pieces(fl_tiles *tiles, const fl_tile_gemm *g, const int parts)
{
    float sums[2][FAR_TILES * FL_TILE_SIDE * SUMS_ROW] __attribute__((aligned(64)));
    const tile_plan plan = plan_of(g);
    const int alone = g->rows <= FL_TILE_SIDE, near = bytes_of_blocks(g) <= NEAR_BYTES,
              all_near = bytes_of_blocks(g) + bytes_of_rows(g) <= NEAR_BYTES;
    const int64_t row_tiles = tiles_of(g->rows), most = near ? NEAR_TILES : FAR_TILES,
                  row_pieces = (row_tiles + most - 1) / most,
                  piece_tiles = padded_to((row_tiles + row_pieces - 1) / row_pieces, 2),
                  longest = piece_tiles * plan.height, blocks = g->block_end - g->block_first,
                  terms = terms_of_piece(&plan, parts, alone,
                                         squares_of(&plan, longest < g->rows ? longest : g->rows));
    tile_piece before = {.g = g};
    for (int64_t n = 0; n < row_pieces * blocks; n++) {
        int64_t done = near ? n % blocks : n / row_pieces,
                row_piece = near ? n / blocks : n % row_pieces, row = row_piece * longest,
                behind = g->rows - row;
        int64_t block = g->descending ? g->block_end - 1 - done : g->block_first + done,
                first = block * (g->c_block ? g->c_block : g->width), ahead = g->columns - first;
        tile_piece piece = {.g = g,
                            .sums = sums[n & 1],
                            .block = block,
                            .row = row,
                            .rows = behind < longest ? behind : longest,
                            .row_tile = row_piece * piece_tiles,
                            .first = first,
                            .columns = ahead < g->width ? ahead : g->width,
                            .terms = terms};
        piece.pace = piece.rows > before.rows ? piece.rows : before.rows;
        const int64_t squares = squares_of(&plan, piece.rows);
        for (int left = 0; left < plan.columns; left += 2) {
            if (alone) {
                multiply_square(tiles, &plan, parts, 1, &piece, 0, left, &before, NULL);
                continue;
            }
            tile_ahead next = all_near ? (tile_ahead){0}
                              : near   ? rows_ahead(&plan, &piece, left)
                                       : columns_ahead(&plan, &piece, left);
            for (int64_t square = 0; square < squares; square++, next.share++)
                multiply_square(tiles, &plan, parts, 0, &piece, square, left, &before, &next);
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
        if (first + longest < depth)
            segment.fetch = NULL, segment.finish = NULL;
        else
            segment.fetch = g->fetch, segment.finish = g->finish;
        FL_OF_PARTS(multiply_pieces, g->parts, &tiles, &segment);
        segment.init = g->c;
        segment.init_row = g->c_row;
        int64_t done = FL_TILE_SIDE * fl_tile_row_size(factor->depth, g->parts);
        factor->a = (const uint16_t *)factor->a + done;
        factor->b = (const uint16_t *)factor->b + done;
    }
    fl_tiles_end(&tiles);
}
