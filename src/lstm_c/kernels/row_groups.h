/* Products of many rows with several blocks of weights: in groups of rows, which stay near from
 * block to block; and with far weights, where vectors are shorter than a cache line, in parts of
 * the depth.
 *
 * A tile of 3 rows by 32 columns takes 128 bytes of weights every 6 cycles, which is more than L3
 * and about what L2 has to give, and a block of 32 columns is as large as L2 where the depth is
 * 4,096. So all rows of a group go over one part of a block, 32 KiB of weights, before the next
 * part comes, which is fetched meanwhile, evenly: all at once would keep the tiles' own loads
 * waiting. Sums are in memory between two parts; each is the same chain of multiply-adds as in one
 * piece. */

#ifndef FL_PART_LIMITS
#define FL_PART_LIMITS
enum {
    FL_PART_BYTES = 32 * 1024,
    FL_FEWEST_PARTS = 3,
    FL_FAR_BYTES = 4 * 1024 * 1024, /* of a product's weights; fewer gain nothing */
    FL_GROUP_ROWS = 96,             /* at most, */
    FL_GROUP_BYTES = 128 * 1024,    /* where all rows are more than that */
    FL_FEWEST_PART_ROWS = 12,       /* with fewer, a part is used up before the next one can come */
    FL_PART_SEGMENT = 16            /* depths from one fetch to the next */
};
#endif

/* 1: a product with `blocks` blocks of weights, `width` at each depth, is better done in parts. */
FL_INLINE int FL_T(goes_in_parts)(int64_t rows, int64_t blocks, int64_t depth, int64_t width)
{
    const int64_t bytes = depth * width * (int64_t)sizeof(real);
    return FL_VECTOR_BYTES < 64 && rows >= FL_FEWEST_PART_ROWS &&
           bytes >= FL_FEWEST_PARTS * FL_PART_BYTES && blocks * bytes >= FL_FAR_BYTES;
}

/* The rows of the next group when `left` remain: groups of nearly equal size. */
FL_INLINE int64_t FL_T(group_rows)(int64_t left)
{
    int64_t groups = (left + FL_GROUP_ROWS - 1) / FL_GROUP_ROWS;
    return (left + groups - 1) / groups;
}

/* Block i of a walk over [first, end). */
FL_INLINE int64_t FL_T(block_of_walk)(int64_t first, int64_t end, int64_t descending, int64_t i)
{
    return descending ? end - 1 - i : first + i;
}

/* C = init + A B of the one block and the rows of a group that `g` is about; `after`: the weights
 * that are wanted next, or NULL. */
static __attribute__((noinline)) void FL_T(gemm_of_parts)(const FL_T(fl_gemm) * g,
                                                          const real *after)
{
    const int64_t width = g->b_depth,
                  parts = (g->depth * width * (int64_t)sizeof(real) + FL_PART_BYTES - 1) /
                          FL_PART_BYTES,
                  segment = g->segment ? g->segment : FL_PART_SEGMENT,
                  tiles = (g->rows + FL_TILE_ROWS - 1) / FL_TILE_ROWS;
    FL_T(fl_gemm) part = *g;
    for (int64_t k = 0, p = parts; k < g->depth; k += part.depth, p--) {
        const int64_t left = g->depth - k,
                      depth = ((left + p - 1) / p + segment - 1) / segment * segment;
        part.depth = depth < left ? depth : left;
        part.fetch = k + part.depth < g->depth ? part.b + part.depth * width : after;
        part.segment = part.depth % segment ? 0 : segment;
        part.a_segment = g->segment ? g->a_segment : segment;
        part.fetch_rows = part.fetch && part.segment;
        part.fetch_lines = (segment * width / FL_T(LINE) + tiles - 1) / tiles;
        part.fetch_row = part.fetch_lines * FL_T(LINE);
        part.fetch_share = part.depth / segment * part.fetch_row;
        FL_T(gemm_blocks)(&part, g->vectors, 0, 1);
        part.init = part.c;
        part.init_row = part.c_row;
        part.a += g->segment ? part.depth / segment * g->a_segment : part.depth;
        part.b += part.depth * width;
    }
}

/* The product of a group of rows with packed far weights; `follows`: another group comes next. */
static void FL_T(gemm_in_parts)(const FL_T(fl_gemm) * g, int follows)
{
    const int64_t c_block = g->c_block ? g->c_block : g->vectors * FL_LANES;
    FL_T(fl_gemm) own = *g;
    for (int64_t block = g->block_first; block < g->block_end; block++) {
        const int ends = block + 1 == g->block_end;
        own.b = g->b + block * g->b_block;
        own.init = g->init ? g->init + block * c_block : NULL;
        own.c = g->c + block * c_block;
        own.columns = g->columns - block * c_block;
        FL_T(gemm_of_parts)(&own, !ends     ? own.b + g->b_block
                                  : follows ? g->b + g->block_first * g->b_block
                                            : NULL);
    }
}

static void FL_T(gemm)(const FL_T(fl_gemm) * g)
{
    const int64_t blocks = g->block_end - g->block_first,
                  bytes = g->rows * g->depth * (int64_t)sizeof(real);
    int packed = g->a_depth == 1 && g->b_block == g->depth * g->b_depth;
    if (!packed || blocks < 2) {
        FL_T(gemm_at_once)(g);
        return;
    }
    FL_T(fl_gemm) own = *g;
    for (int64_t row = 0; row < g->rows; row += own.rows) {
        own.rows = bytes > FL_GROUP_BYTES ? FL_T(group_rows)(g->rows - row) : g->rows;
        own.a = g->a + row * g->a_row;
        own.init = g->init ? g->init + row * g->init_row : NULL;
        own.c = g->c + row * g->c_row;
        if (FL_T(goes_in_parts)(own.rows, blocks, g->depth, g->b_depth))
            FL_T(gemm_in_parts)(&own, row + own.rows < g->rows);
        else
            FL_T(gemm_at_once)(&own);
    }
}
