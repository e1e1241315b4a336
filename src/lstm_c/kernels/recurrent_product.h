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
