/* The matrix part of a step's tile: what the accumulators hold before a cell's pointwise body. */

/* Where, from a row of weights of a block, the vector of the next block is that the tile from `row`
 * on fetches: each of the first tiles one of its own, of every other row; 0: nowhere. */
FL_INLINE int64_t FL_T(fetched_ahead)(int64_t row, int64_t vectors, int64_t block, int descending)
{
    int64_t vector = row / FL_TILE_ROWS;
    return vector < 2 * vectors ? (descending ? -block : block) + vector * FL_LANES : 0;
}

/* acc = init + x W (when not hoisted) + h U of `mr` rows and `nb` blocks; compact: see
 * fl_cell_facts. */
FL_INLINE void FL_T(forward_product)(const FL_T(fl_step) * s, const int compact, const int nv,
                                     const int mr, const int nb, int64_t row, int64_t block,
                                     vec acc[][FL_BLOCK_VECTORS * 2])
{
    const fl_slots of_x = fl_slots_of(nv, compact, 0), of_h = fl_slots_of(nv, compact, 1);
    const int64_t x_width = of_x.count * FL_LANES, h_width = of_h.count * FL_LANES;
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            acc[r][v] = v_load(s->init + (row + r) * s->init_row + (block * nv + v) * FL_LANES);
    }
    int64_t ahead_x = 0, ahead_h = 0;
    if (s->fetches) {
        ahead_x = FL_T(fetched_ahead)(row, of_x.count, x_width * s->x_depth, s->descending);
        ahead_h = FL_T(fetched_ahead)(row, of_h.count, h_width * s->h_depth, s->descending);
    }
    if (s->x)
        FL_T(slots_accumulate)(mr, nv, of_x, nb, acc, s->x + row * s->x_row, s->x_row, 1,
                               s->weight_x + block * x_width * s->x_depth, x_width * s->x_depth,
                               x_width, s->x_depth, ahead_x);
    FL_T(slots_accumulate)(mr, nv, of_h, nb, acc, s->h_prev + row * s->h_prev_row, s->h_prev_row, 1,
                           s->weight_h + block * h_width * s->h_depth, h_width * s->h_depth,
                           h_width, s->h_depth, ahead_h);
}

/* What a backward tile starts from: the gradient of h, or of state 0 where that recurs. */
FL_INLINE vec FL_T(backward_init)(const FL_T(fl_backstep) * s, const int state_recurs, int64_t row,
                                  int64_t unit)
{
    if (unit >= s->units)
        return v_zero();
    if (state_recurs)
        return v_load(s->dstate + row * s->dstate_row + unit);
    vec sum = v_load(s->dh + row * s->dh_row + unit);
    return s->dy ? sum + FL_T(load_column)(s->dy + row * s->dy_row, unit, s->units) : sum;
}

/* acc = that + dgates(next step) U^T of `mr` rows and the first `nv` panels of `nb` blocks of four.
 */
FL_INLINE void FL_T(backward_product)(const FL_T(fl_backstep) * s, const int state_recurs,
                                      const int compact, const int slots, const int nv,
                                      const int mr, const int nb, int64_t row, int64_t block,
                                      vec acc[][FL_BLOCK_VECTORS * 2])
{
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            acc[r][v] = FL_T(backward_init)(s, state_recurs, row + r,
                                            (block * FL_BLOCK_VECTORS + v) * FL_LANES);
    }
    const fl_slots of_h = fl_slots_of(slots, compact, 1);
    const int64_t width = FL_BLOCK_VECTORS * FL_LANES;
    const real *dgates = s->dgates_next + row * s->dgates_next_row + of_h.first * FL_LANES,
               *weight = s->weight_t + block * width * s->depth;
    const int64_t segment = compact ? of_h.count * FL_LANES : s->depth;
    for (int64_t k = 0; k < s->depth; k += segment) {
        FL_T(tile_accumulate)(mr, nv, nb, acc, dgates, s->dgates_next_row, 1, weight,
                              width * s->depth, width, segment);
        dgates += slots * FL_LANES;
        weight += segment * width;
    }
}

/* A step with far weights in parts (kernels/row_groups.h), whose cell is `finish`, and whether it
 * is better done so. */
FL_INLINE int FL_T(forward_goes_in_parts)(const FL_T(fl_step) * s, const int slots,
                                          const int compact)
{
    const int nv = slots * fl_panels_per_block(slots);
    return FL_T(goes_in_parts)(s->rows, s->block_end - s->block_first, s->h_depth,
                               fl_slots_of(nv, compact, 1).count * FL_LANES);
}
static __attribute__((noinline)) void FL_T(forward_in_parts)(
    const FL_T(fl_step) * s, const int slots, const int compact,
    void (*finish)(const FL_T(fl_step) *, int64_t row, int64_t block, const real *sums))
{
    const int nv = slots * fl_panels_per_block(slots);
    const fl_slots of_x = fl_slots_of(nv, compact, 0), of_h = fl_slots_of(nv, compact, 1);
    const int64_t all = nv * FL_LANES, width = of_h.count * FL_LANES;
    _Alignas(64) real sums[FL_GROUP_ROWS * FL_BLOCK_VECTORS * FL_LANES];
    FL_T(fl_gemm)
    x = {.depth = s->x ? s->x_depth : 0,
         .columns = width,
         .a_row = s->x_row,
         .a_depth = 1,
         .b_depth = width,
         .vectors = of_x.count,
         .init = sums + of_x.first * FL_LANES,
         .init_row = all,
         .c = sums + of_x.first * FL_LANES,
         .c_row = all},
    h = x;
    h.depth = s->h_depth;
    h.a_row = s->h_prev_row;
    h.init = h.c = sums + of_h.first * FL_LANES;
    const real *first = x.depth ? s->weight_x : s->weight_h;
    const int64_t first_block = width * (x.depth ? x.depth : h.depth);
    const int64_t blocks = s->block_end - s->block_first;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t block = FL_T(block_of_walk)(s->block_first, s->block_end, s->descending, i);
        for (int64_t row = 0; row < s->rows; row += x.rows) {
            x.rows = h.rows = FL_T(group_rows)(s->rows - row);
            if (x.depth) {
                x.a = s->x + row * s->x_row;
                x.b = s->weight_x + block * width * x.depth;
            }
            h.a = s->h_prev + row * s->h_prev_row;
            h.b = s->weight_h + block * width * h.depth;
            const int64_t then = row + x.rows < s->rows ? i : i + 1;
            const real *after =
                then < blocks
                    ? first + first_block * FL_T(block_of_walk)(s->block_first, s->block_end,
                                                                s->descending, then)
                    : NULL;
            for (int64_t r = 0; r < x.rows; r++)
                for (int v = 0; v < nv; v++)
                    v_store(
                        sums + r * all + v * FL_LANES,
                        v_load(s->init + (row + r) * s->init_row + (block * nv + v) * FL_LANES));
            if (x.depth)
                FL_T(gemm_of_parts)(&x, h.b);
            FL_T(gemm_of_parts)(&h, after);
            for (int64_t r = 0; r < x.rows; r++)
                finish(s, row + r, block, sums + r * all);
        }
    }
}

FL_INLINE int FL_T(backward_goes_in_parts)(const FL_T(fl_backstep) * s)
{
    return FL_T(goes_in_parts)(s->rows, s->block_end - s->block_first, s->depth,
                               FL_BLOCK_VECTORS * FL_LANES);
}
static __attribute__((noinline)) void FL_T(backward_in_parts)(
    const FL_T(fl_backstep) * s, const int state_recurs, const int slots, const int compact,
    void (*finish)(const FL_T(fl_backstep) *, int64_t row, int64_t block, const real *sums))
{
    const fl_slots of_h = fl_slots_of(slots, compact, 1);
    const int64_t width = FL_BLOCK_VECTORS * FL_LANES;
    _Alignas(64) real sums[FL_GROUP_ROWS * FL_BLOCK_VECTORS * FL_LANES];
    FL_T(fl_gemm)
    g = {.depth = s->depth,
         .columns = width,
         .a_row = s->dgates_next_row,
         .a_depth = 1,
         .segment = compact ? of_h.count * FL_LANES : 0,
         .a_segment = slots * FL_LANES,
         .b_depth = width,
         .vectors = FL_BLOCK_VECTORS,
         .init = sums,
         .init_row = width,
         .c = sums,
         .c_row = width};
    const int64_t blocks = s->block_end - s->block_first;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t block = FL_T(block_of_walk)(s->block_first, s->block_end, s->descending, i);
        for (int64_t row = 0; row < s->rows; row += g.rows) {
            g.rows = FL_T(group_rows)(s->rows - row);
            g.a = s->dgates_next + of_h.first * FL_LANES + row * s->dgates_next_row;
            g.b = s->weight_t + block * width * s->depth;
            const int64_t then = row + g.rows < s->rows ? i : i + 1;
            const real *after =
                then < blocks ? s->weight_t + width * s->depth *
                                                  FL_T(block_of_walk)(s->block_first, s->block_end,
                                                                      s->descending, then)
                              : NULL;
            for (int64_t r = 0; r < g.rows; r++)
                for (int v = 0; v < FL_BLOCK_VECTORS; v++)
                    v_store(sums + r * width + v * FL_LANES,
                            FL_T(backward_init)(s, state_recurs, row + r,
                                                (block * FL_BLOCK_VECTORS + v) * FL_LANES));
            FL_T(gemm_of_parts)(&g, after);
            for (int64_t r = 0; r < g.rows; r++)
                finish(s, row + r, block, sums + r * width);
        }
    }
}

/* The same for any tile, once for all cells that do not fuse; the accumulators go to memory when
 * they are done. */
#define FL_PUT_TILE(to, from, nv, mr, nb)                                                          \
    FL_UNROLL                                                                                      \
    for (int r = 0; r < mr; r++) {                                                                 \
        FL_UNROLL                                                                                  \
        for (int v = 0; v < (nv) * (nb); v++)                                                      \
            to[r][v] = from[r][v];                                                                 \
    }
#define FL_FORWARD_TILE(acc, nv, mr, nb, row, block)                                               \
    do {                                                                                           \
        vec own_[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];                                              \
        FL_T(forward_product)(s, 0, nv, mr, nb, row, block, own_);                                 \
        FL_PUT_TILE(acc, own_, nv, mr, nb)                                                         \
    } while (0)
static __attribute__((noinline)) void FL_T(forward_product_shared)(const FL_T(fl_step) * s,
                                                                   const int compact, const int nv,
                                                                   const int mr, const int nb,
                                                                   int64_t row, int64_t block,
                                                                   vec acc[][FL_BLOCK_VECTORS * 2])
{
    (void)compact; /* is for fused cells */
    if (nv == 3 && nb == 2)
        FL_FORWARD_TILE(acc, 3, 1, 2, row, block);
    else if (nb == 2)
        FL_FORWARD_TILE(acc, FL_BLOCK_VECTORS, 1, 2, row, block);
    else if (nv == 3)
        FL_TILE_SWITCH(mr, FL_FORWARD_TILE, acc, 3, row, block)
    else
        FL_TILE_SWITCH(mr, FL_FORWARD_TILE, acc, FL_BLOCK_VECTORS, row, block)
}

#define FL_BACKWARD_TILE(acc, nv, mr, nb, row, block)                                              \
    do {                                                                                           \
        vec own_[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];                                              \
        FL_T(backward_product)(s, state_recurs, compact, slots, nv, mr, nb, row, block, own_);     \
        FL_PUT_TILE(acc, own_, nv, mr, nb)                                                         \
    } while (0)
static __attribute__((noinline)) void
FL_T(backward_product_shared)(const FL_T(fl_backstep) * s, const int state_recurs,
                              const int compact, const int slots, const int nv, const int mr,
                              const int nb, int64_t row, int64_t block,
                              vec acc[][FL_BLOCK_VECTORS * 2])
{
    if (nb == 2)
        FL_BACKWARD_TILE(acc, FL_BLOCK_VECTORS, 1, 2, row, block);
    else if (nv == 1)
        FL_TILE_SWITCH(mr, FL_BACKWARD_TILE, acc, 1, row, block)
    else if (nv == 2)
        FL_TILE_SWITCH(mr, FL_BACKWARD_TILE, acc, 2, row, block)
    else
        FL_TILE_SWITCH(mr, FL_BACKWARD_TILE, acc, FL_BLOCK_VECTORS, row, block)
}
#undef FL_FORWARD_TILE
#undef FL_BACKWARD_TILE
#undef FL_PUT_TILE
