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
#define CELL_FACT(name) FL_PASTE2(FL_CELL, name)
#define CELL_PANELS (CELL_FACT(GATES) == 1 ? 4 : CELL_FACT(GATES) == 2 ? 2 : 1)
#define CELL_VECTORS (CELL_PANELS * CELL_FACT(GATES))

/* Pointwise part of one row and one panel. `gate`: accumulators of this panel. */
FL_INLINE void CELL_(forward_unit)(const FL_T(fl_step) * s, const vec *gate, int64_t row,
                                   int64_t panel)
{
    const int gates = CELL_FACT(GATES), states = CELL_FACT(STATES);
    int64_t unit = panel * FL_LANES;
    FL_T(fl_unit) u;
    FL_UNROLL
    for (int g = 0; g < gates; g++)
        u.gate[g] = gate[g];
    FL_UNROLL
    for (int i = 0; i < states; i++)
        u.state[i] = v_load(s->state_prev + row * s->state_prev_row + i * s->state_plane + unit);
    CELL_(forward)(&u);
    FL_UNROLL
    for (int i = 0; i < states; i++)
        v_store(s->state + row * s->state_row + i * s->state_plane + unit, u.state[i]);
    FL_T(store_column)(s->h + row * s->h_row, u.h, unit, s->units);
    if (s->saved) {
        real *saved = s->saved + row * s->saved_row + panel * gates * FL_LANES;
        FL_UNROLL
        for (int g = 0; g < gates; g++)
            v_store(saved + g * FL_LANES, u.gate[g]);
    }
}

FL_INLINE void CELL_(forward_tile)(const FL_T(fl_step) * s, const int mr, const int nb, int64_t row,
                                   int64_t block)
{
    const int gates = CELL_FACT(GATES), nv = CELL_VECTORS, panels = CELL_PANELS;
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
                CELL_(forward_unit)(s, acc[r] + p * gates, row + r, block * panels + p);
    }
}

static void CELL_(forward_step)(const FL_T(fl_step) * s)
{
    int64_t count = s->block_end - s->block_first, done = 0;
    if (s->rows == 1)
        for (; done + 2 <= count; done += 2)
            CELL_(forward_tile)(s, 1, 2, 0,
                                s->descending ? s->block_end - done - 2 : s->block_first + done);
    for (; done < count; done++) {
        int64_t block = s->descending ? s->block_end - done - 1 : s->block_first + done;
        for (int64_t row = 0; row < s->rows;) {
            int mr = FL_T(tile_rows)(s->rows - row);
            FL_TILE_SWITCH(CELL_(forward_tile), s, mr, row, block)
            row += mr;
        }
    }
}

/* Derivative of one row and one panel. `dh`: gradient of this step's h from everywhere. */
FL_INLINE void CELL_(backward_unit)(const FL_T(fl_backstep) * s, vec dh, int64_t row, int64_t panel)
{
    const int gates = CELL_FACT(GATES), states = CELL_FACT(STATES);
    int64_t unit = panel * FL_LANES;
    real *gate = s->gates + row * s->gates_row + panel * gates * FL_LANES;
    real *dstate = s->dstate + row * s->dstate_row + unit;
    FL_T(fl_unit) u;
    u.dh = dh;
    FL_UNROLL
    for (int g = 0; g < gates; g++)
        u.gate[g] = v_load(gate + g * FL_LANES);
    FL_UNROLL
    for (int i = 0; i < states; i++) {
        u.state_prev[i] =
            v_load(s->state_prev + row * s->state_prev_row + i * s->state_plane + unit);
        u.state[i] = v_load(s->state + row * s->state_row + i * s->state_plane + unit);
        u.dstate[i] = v_load(dstate + i * s->state_plane);
    }
    CELL_(backward)(&u);
    FL_UNROLL
    for (int g = 0; g < gates; g++)
        v_store(gate + g * FL_LANES, u.gate[g]);
    FL_UNROLL
    for (int i = 0; i < states; i++)
        v_store(dstate + i * s->state_plane, u.dstate[i]);
    v_store(s->dh + row * s->dh_row + unit, v_zero());
}

FL_INLINE void CELL_(backward_tile)(const FL_T(fl_backstep) * s, const int mr, const int nb,
                                    int64_t row, int64_t block)
{
    const int nv = FL_BLOCK_VECTORS;
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++) {
            int64_t unit = (block * nv + v) * FL_LANES;
            acc[r][v] = unit < s->units ? v_load(s->dh + (row + r) * s->dh_row + unit) : v_zero();
            if (s->dy)
                acc[r][v] += FL_T(load_column)(s->dy + (row + r) * s->dy_row, unit, s->units);
        }
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
    int64_t block = s->block_first;
    if (s->rows == 1)
        for (; block + 2 <= s->block_end; block += 2)
            CELL_(backward_tile)(s, 1, 2, 0, block);
    for (; block < s->block_end; block++)
        for (int64_t row = 0; row < s->rows;) {
            int mr = FL_T(tile_rows)(s->rows - row);
            FL_TILE_SWITCH(CELL_(backward_tile), s, mr, row, block)
            row += mr;
        }
}

#undef FL_CELL
