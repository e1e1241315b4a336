/* Step kernels of one cell: the register tile with the cell's own pointwise body as its epilogue.
 * Included by each cell's file, which has defined FL_CELL (its name), <cell>_GATES, <cell>_STATES
 * and <cell>_forward / <cell>_backward on fl_unit.
 *
 * Forward, per tile: accumulators start from the hoisted input projection or the bias, take x W
 * (when not hoisted) and h U, and go through the cell in registers; what is written is h, the
 * states and, in training, the activated gates. Backward, per tile of 4 panels of units: dh = dh +
 * dy + dgates(next step) U^T, then the cell's derivative, which only needs values of the same unit.
 */

#define CELL_(name) FL_T(FL_PASTE2(FL_CELL, name))

/* Pointwise part of one row and one panel. `acc`: the slots' accumulators of this panel. */
FL_INLINE void CELL_(forward_unit)(const FL_T(fl_step) * s, const vec *acc, int64_t row,
                                   int64_t panel)
{
    const int slots = CELL_(facts).slots, states = CELL_(facts).states;
    int64_t unit = panel * FL_LANES;
    FL_T(fl_unit) u;
    FL_UNROLL
    for (int g = 0; g < slots; g++)
        u.gate[g] = acc[g];
    FL_UNROLL
    for (int i = 0; i < states; i++)
        u.state[i] = v_load(s->state_prev + row * s->state_prev_row + i * s->state_plane + unit);
    FL_UNROLL
    for (int i = 0; i < CELL_(facts).n_peepholes; i++)
        u.peephole[i] = v_load(s->peephole + i * s->state_plane + unit);
    if (CELL_(facts).reads_h)
        u.h_prev = FL_T(load_column)(s->h_prev + row * s->h_prev_row, unit, s->units);
    if (CELL_(facts).takes_mask)
        u.mask = s->mask ? v_load(s->mask + row * s->mask_row + unit) : v_set1(1);
    CELL_(forward)(&u);
    FL_UNROLL
    for (int i = 0; i < states; i++)
        v_store(s->state + row * s->state_row + i * s->state_plane + unit, u.state[i]);
    FL_T(store_column)(s->h + row * s->h_row, u.h, unit, s->units);
    if (s->saved) {
        real *saved = s->saved + row * s->saved_row + panel * slots * FL_LANES;
        FL_UNROLL
        for (int g = 0; g < slots; g++)
            v_store(saved + g * FL_LANES, u.gate[g]);
    }
}

FL_INLINE void CELL_(forward_tile)(const FL_T(fl_step) * s, const int nv, const int mr,
                                   const int nb, int64_t row, int64_t block)
{
    const int slots = CELL_(facts).slots, panels = nv / slots;
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            acc[r][v] = v_load(s->init + (row + r) * s->init_row + (block * nv + v) * FL_LANES);
    }
    if (s->x)
        FL_T(tile_accumulate)(mr, nv, nb, acc, s->x + row * s->x_row, s->x_row, 1,
                              s->weight_x + block * nv * FL_LANES * s->x_depth,
                              nv * FL_LANES * s->x_depth, nv * FL_LANES, s->x_depth);
    FL_T(tile_accumulate)(mr, nv, nb, acc, s->h_prev + row * s->h_prev_row, s->h_prev_row, 1,
                          s->weight_h + block * nv * FL_LANES * s->h_depth,
                          nv * FL_LANES * s->h_depth, nv * FL_LANES, s->h_depth);
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int p = 0; p < panels * nb; p++)
            if (panels == 1 || (block * panels + p) * FL_LANES < s->units)
                CELL_(forward_unit)(s, acc[r] + p * slots, row + r, block * panels + p);
    }
}

static void CELL_(forward_step)(const FL_T(fl_step) * s)
{
    const int slots = CELL_(facts).slots;
    FL_TILE_WALK(CELL_(forward_tile), s, slots * fl_panels_per_block(slots), s->rows,
                 s->block_first, s->block_end, s->descending);
}

/* Derivative of one row and one panel. `sum`: the recurrent product of the step after plus what
 * belongs to the same array: the gradient of h, or of state 0 where that recurs. */
FL_INLINE void CELL_(backward_unit)(const FL_T(fl_backstep) * s, vec sum, int64_t row,
                                    int64_t panel)
{
    const int slots = CELL_(facts).slots, states = CELL_(facts).states;
    int64_t unit = panel * FL_LANES;
    real *gate = s->gates + row * s->gates_row + panel * slots * FL_LANES;
    real *dstate = s->dstate + row * s->dstate_row + unit;
    FL_T(fl_unit) u;
    FL_UNROLL
    for (int g = 0; g < slots; g++)
        u.gate[g] = v_load(gate + g * FL_LANES);
    FL_UNROLL
    for (int i = 0; i < states; i++) {
        u.state_prev[i] =
            v_load(s->state_prev + row * s->state_prev_row + i * s->state_plane + unit);
        u.state[i] = v_load(s->state + row * s->state_row + i * s->state_plane + unit);
        u.dstate[i] = v_load(dstate + i * s->state_plane);
    }
    FL_UNROLL
    for (int i = 0; i < CELL_(facts).n_peepholes; i++)
        u.peephole[i] = v_load(s->peephole + i * s->state_plane + unit);
    if (CELL_(facts).reads_h)
        u.h_prev = FL_T(load_column)(s->h_prev + row * s->h_prev_row, unit, s->units);
    if (CELL_(facts).takes_mask)
        u.mask = s->mask ? v_load(s->mask + row * s->mask_row + unit) : v_set1(1);
    if (CELL_(facts).state_recurs) {
        u.dstate[0] = sum;
        u.dh = v_load(s->dh + row * s->dh_row + unit);
        if (s->dy)
            u.dh += FL_T(load_column)(s->dy + row * s->dy_row, unit, s->units);
    } else {
        u.dh = sum;
    }
    u.dh_prev = v_zero();
    CELL_(backward)(&u);
    FL_UNROLL
    for (int g = 0; g < slots; g++)
        v_store(gate + g * FL_LANES, u.gate[g]);
    FL_UNROLL
    for (int i = 0; i < states; i++)
        v_store(dstate + i * s->state_plane, u.dstate[i]);
    v_store(s->dh + row * s->dh_row + unit, u.dh_prev);
}

/* What a backward tile starts from, before the recurrent product. */
FL_INLINE vec CELL_(backward_init)(const FL_T(fl_backstep) * s, int64_t row, int64_t unit)
{
    if (unit >= s->units)
        return v_zero();
    if (CELL_(facts).state_recurs)
        return v_load(s->dstate + row * s->dstate_row + unit);
    vec sum = v_load(s->dh + row * s->dh_row + unit);
    return s->dy ? sum + FL_T(load_column)(s->dy + row * s->dy_row, unit, s->units) : sum;
}

FL_INLINE void CELL_(backward_tile)(const FL_T(fl_backstep) * s, const int nv, const int mr,
                                    const int nb, int64_t row, int64_t block)
{
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            acc[r][v] = CELL_(backward_init)(s, row + r, (block * nv + v) * FL_LANES);
    }
    FL_T(tile_accumulate)(mr, nv, nb, acc, s->dgates_next + row * s->dgates_next_row,
                          s->dgates_next_row, 1, s->weight_t + block * nv * FL_LANES * s->depth,
                          nv * FL_LANES * s->depth, nv * FL_LANES, s->depth);
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            if ((block * nv + v) * FL_LANES < s->units)
                CELL_(backward_unit)(s, acc[r][v], row + r, block * nv + v);
    }
}

static void CELL_(backward_step)(const FL_T(fl_backstep) * s)
{
    FL_TILE_WALK(CELL_(backward_tile), s, FL_BLOCK_VECTORS, s->rows, s->block_first, s->block_end,
                 0);
}

#undef FL_CELL
