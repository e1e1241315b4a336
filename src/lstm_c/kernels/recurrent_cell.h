/* Step kernels of one cell: the register tile with the cell's own pointwise body as its epilogue.
 * Included by each cell's file, which has defined FL_CELL (its name), <cell>_facts and
 * <cell>_forward / <cell>_backward on fl_unit.
 *
 * Forward, per tile: accumulators start from the hoisted input projection or the bias, take x W
 * (when not hoisted) and h U, and go through the cell in registers; what is written is h, the
 * states and, in training, the activated gates. Backward, per tile of 4 panels of units: dh = dh +
 * dy + dgates(next step) U^T, then the cell's derivative, which only needs values of the same unit.
 */

#define CELL_(name) FL_T(FL_PASTE2(FL_CELL, name))

/* A cell that people run hot says FL_CELL_FUSED: its accumulators stay in registers, at the price
 * of its own copy of every tile. The others share the tiles and read the accumulators back from L1.
 */
#ifdef FL_CELL_FUSED
#define FL_CELL_TILE FL_INLINE
#define FL_CELL_UNROLL FL_UNROLL
#define FL_CELL_PRODUCT(name) FL_T(name)
#else
#define FL_CELL_TILE static __attribute__((noinline))
#define FL_CELL_UNROLL
#define FL_CELL_PRODUCT(name) FL_T(FL_PASTE2(name, shared))
#endif

/* Pointwise part of one row and one panel. `acc`: the slots' accumulators of this panel. */
FL_INLINE void CELL_(forward_unit)(const FL_T(fl_step) * s, const vec *acc, int64_t row,
                                   int64_t panel, FL_T(fl_unit) * u)
{
    const int slots = CELL_(facts).slots, states = CELL_(facts).states;
    int64_t unit = panel * FL_LANES;
    FL_UNROLL
    for (int g = 0; g < slots; g++)
        u->gate[g] = acc[g];
    FL_UNROLL
    for (int i = 0; i < states; i++)
        u->state[i] = v_load(s->state_prev + row * s->state_prev_row + i * s->state_plane + unit);
    FL_UNROLL
    for (int i = 0; i < CELL_(facts).n_peepholes; i++)
        u->peephole[i] = v_load(s->peephole + row * s->peephole_row + i * s->state_plane + unit);
    if (CELL_(facts).reads_h)
        u->h_prev = FL_T(load_column)(s->h_prev + row * s->h_prev_row, unit, s->units);
    if (CELL_(facts).takes_mask)
        u->mask = s->mask ? v_load(s->mask + row * s->mask_row + unit) : v_set1(1);
    if (CELL_(facts).takes_decay)
        u->decay = v_set1(s->decay ? s->decay[row * s->decay_row] : 1);
    CELL_(forward)(u);
    FL_UNROLL
    for (int i = 0; i < states; i++)
        v_store(s->state + row * s->state_row + i * s->state_plane + unit, u->state[i]);
#ifndef FL_CELL_LATE
    FL_T(store_column)(s->h + row * s->h_row, u->h, unit, s->units);
#endif
    if (s->saved) {
        real *saved = s->saved + row * s->saved_row + panel * slots * FL_LANES;
        FL_UNROLL
        for (int g = 0; g < slots; g++)
            v_store(saved + g * FL_LANES, u->gate[g]);
    }
}

#ifdef FL_CELL_LATE
FL_INLINE void CELL_(output_unit)(const FL_T(fl_step) * s, FL_T(fl_unit) * u, int64_t row,
                                  int64_t panel)
{
    const int late = FL_CELL_LATE;
    CELL_(output)(u);
    FL_T(store_column)(s->h + row * s->h_row, u->h, panel * FL_LANES, s->units);
    if (late >= 0 && s->saved)
        v_store(s->saved + row * s->saved_row + (panel * CELL_(facts).slots + late) * FL_LANES,
                u->gate[late]);
}
#endif

/* The cell on all rows and panels of a tile. A cell whose h waits for a long chain defines
 * FL_CELL_LATE and a second body, <cell>_output, which makes h, and the gate of slot FL_CELL_LATE
 * if that is not -1, when all rows have been through the first: the chains of several rows fill
 * each other's waits. */
FL_INLINE void CELL_(forward_units)(const FL_T(fl_step) * s, const int nv, const int mr,
                                    const int nb, int64_t row, int64_t block,
                                    vec acc[][FL_BLOCK_VECTORS * 2])
{
    const int slots = CELL_(facts).slots, panels = nv / slots;
    FL_T(fl_unit) u[FL_TILE_ROWS * 2];
    FL_CELL_UNROLL
    for (int p = 0; p < panels * nb; p += nb) {
        int64_t panel = block * panels + p;
        FL_CELL_UNROLL
        for (int k = 0; k < mr * nb; k++)
            if (panels == 1 || (panel + k % nb) * FL_LANES < s->units)
                CELL_(forward_unit)(s, acc[k / nb] + (p + k % nb) * slots, row + k / nb,
                                    panel + k % nb, &u[k]);
#ifdef FL_CELL_LATE /* has three or four slots, so one panel a block */
        FL_CELL_UNROLL
        for (int k = 0; k < mr * nb; k++)
            CELL_(output_unit)(s, &u[k], row + k / nb, panel + k % nb);
#endif
    }
}

FL_CELL_TILE void CELL_(forward_tile)(const FL_T(fl_step) * s, const int nv, const int mr,
                                      const int nb, int64_t row, int64_t block)
{
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    for (int r = 0; s->saved && r < mr; r++)
        FL_FETCH(s->saved + (row + r) * s->saved_row + block * nv * FL_LANES, nv * nb * FL_LANES);
    FL_CELL_PRODUCT(forward_product)(s, CELL_(facts).compact, nv, mr, nb, row, block, acc);
    CELL_(forward_units)(s, nv, mr, nb, row, block, acc);
}

static void CELL_(forward_row)(const FL_T(fl_step) * s, int64_t row, int64_t block,
                               const real *sums)
{
    const int slots = CELL_(facts).slots, nv = slots * fl_panels_per_block(slots);
    vec acc[1][FL_BLOCK_VECTORS * 2];
    FL_UNROLL
    for (int v = 0; v < nv; v++)
        acc[0][v] = v_load(sums + v * FL_LANES);
    CELL_(forward_units)(s, nv, 1, 1, row, block, acc);
}

static void CELL_(forward_step)(const FL_T(fl_step) * s)
{
    const int slots = CELL_(facts).slots;
    if (FL_T(forward_goes_in_parts)(s, slots, CELL_(facts).compact))
        FL_T(forward_in_parts)(s, slots, CELL_(facts).compact, CELL_(forward_row));
    else
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
        u.peephole[i] =
            s->peephole ? v_load(s->peephole + row * s->peephole_row + i * s->state_plane + unit)
                        : v_zero();
    if (CELL_(facts).reads_h)
        u.h_prev = FL_T(load_column)(s->h_prev + row * s->h_prev_row, unit, s->units);
    if (CELL_(facts).takes_mask)
        u.mask = s->mask ? v_load(s->mask + row * s->mask_row + unit) : v_set1(1);
    if (CELL_(facts).takes_decay)
        u.decay = v_set1(s->decay ? s->decay[row * s->decay_row] : 1);
    if (CELL_(facts).is_prelude) {
        u.dh = s->dmade ? v_load(s->dmade + row * s->dmade_row + unit) : v_zero();
    } else if (CELL_(facts).state_recurs) {
        u.dstate[0] = sum;
        u.dh = v_load(s->dh + row * s->dh_row + unit);
        if (s->dy)
            u.dh += FL_T(load_column)(s->dy + row * s->dy_row, unit, s->units);
    } else {
        u.dh = sum;
    }
    u.dh_prev = CELL_(facts).is_prelude ? sum : v_zero();
    CELL_(backward)(&u);
    FL_UNROLL
    for (int g = 0; g < slots; g++)
        v_store(gate + g * FL_LANES, u.gate[g]);
    FL_UNROLL
    for (int i = 0; i < states; i++)
        v_store(dstate + i * s->state_plane, u.dstate[i]);
    v_store(s->dh + row * s->dh_row + unit, u.dh_prev);
}

FL_INLINE void CELL_(backward_units)(const FL_T(fl_backstep) * s, const int nv, const int mr,
                                     const int nb, int64_t row, int64_t block,
                                     vec acc[][FL_BLOCK_VECTORS * 2])
{
    FL_CELL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_CELL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            if ((block * FL_BLOCK_VECTORS + v) * FL_LANES < s->units)
                CELL_(backward_unit)(s, acc[r][v], row + r, block * FL_BLOCK_VECTORS + v);
    }
}

/* Ask for what the derivatives of a tile take from the tape, and for dy of the rows after it, which
 * their tile begins with. */
FL_INLINE void CELL_(backward_fetch)(const FL_T(fl_backstep) * s, const int nv, const int mr,
                                     const int nb, int64_t row, int64_t block)
{
    const int slots = CELL_(facts).slots, states = CELL_(facts).states, width = nv * nb * FL_LANES;
    int64_t unit = block * FL_BLOCK_VECTORS * FL_LANES;
    for (int r = 0; r < mr; r++) {
        FL_FETCH(s->gates + (row + r) * s->gates_row + unit * slots, width * slots);
        for (int i = 0; i < states; i++)
            FL_FETCH(s->state_prev + (row + r) * s->state_prev_row + i * s->state_plane + unit,
                     width);
        if (CELL_(facts).reads_h)
            FL_FETCH(s->h_prev + (row + r) * s->h_prev_row + unit, width);
        if (s->dy && row + mr + r < s->rows)
            FL_FETCH(s->dy + (row + mr + r) * s->dy_row + unit, width);
    }
}

FL_CELL_TILE void CELL_(backward_tile)(const FL_T(fl_backstep) * s, const int nv, const int mr,
                                       const int nb, int64_t row, int64_t block)
{
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    CELL_(backward_fetch)(s, nv, mr, nb, row, block);
    FL_CELL_PRODUCT(backward_product)
    (s, CELL_(facts).state_recurs && !CELL_(facts).is_prelude, CELL_(facts).compact,
     CELL_(facts).slots, nv, mr, nb, row, block, acc);
    CELL_(backward_units)(s, nv, mr, nb, row, block, acc);
}

/* One row of a block whose products are in `sums`; `whole`: what they are added to is there, too.
 */
FL_INLINE void CELL_(backward_panels)(const FL_T(fl_backstep) * s, int64_t row, int64_t block,
                                      const real *sums, const int whole)
{
    const int state_recurs = CELL_(facts).state_recurs && !CELL_(facts).is_prelude;
    for (int v = 0; v < FL_BLOCK_VECTORS; v++) {
        int64_t panel = block * FL_BLOCK_VECTORS + v;
        if (panel * FL_LANES >= s->units)
            continue;
        vec sum = v_load(sums + v * FL_LANES);
        if (!whole)
            sum = FL_T(backward_init)(s, state_recurs, row, panel * FL_LANES) + sum;
        CELL_(backward_unit)(s, sum, row, panel);
    }
}

static void CELL_(backward_row)(const FL_T(fl_backstep) * s, int64_t row, int64_t block,
                                const real *sums)
{
    CELL_(backward_panels)(s, row, block, sums, 0);
}

static void CELL_(backward_whole_row)(const FL_T(fl_backstep) * s, int64_t row, int64_t block,
                                      const real *sums)
{
    CELL_(backward_panels)(s, row, block, sums, 1);
}

/* Of a block that is half empty or more, as the last one of a narrow layer is. */
static __attribute__((noinline)) void CELL_(backward_narrow)(const FL_T(fl_backstep) * s,
                                                             const int nv, const int mr,
                                                             int64_t row, int64_t block)
{
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    FL_T(backward_product_shared)(s, CELL_(facts).state_recurs && !CELL_(facts).is_prelude,
                                  CELL_(facts).compact, CELL_(facts).slots, nv, mr, 1, row, block,
                                  acc);
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < nv; v++)
            CELL_(backward_unit)(s, acc[r][v], row + r, block * FL_BLOCK_VECTORS + v);
}

static void CELL_(backward_step)(const FL_T(fl_backstep) * s)
{
    if (FL_T(backward_goes_in_parts)(s)) {
        FL_T(backward_in_parts)(s, CELL_(facts).state_recurs && !CELL_(facts).is_prelude,
                                CELL_(facts).slots, CELL_(facts).compact,
                                CELL_(backward_whole_row));
        return;
    }
    int narrow = FL_T(narrow_vectors)(s->units, FL_BLOCK_VECTORS, s->block_first, s->block_end);
    int64_t end = narrow ? s->block_end - 1 : s->block_end;
    FL_TILE_WALK(CELL_(backward_tile), s, FL_BLOCK_VECTORS, s->rows, s->block_first, end,
                 s->descending);
    for (int64_t row = 0; narrow && row < s->rows;) {
        int mr = FL_T(tile_rows)(s->rows - row);
        CELL_(backward_narrow)(s, narrow, mr, row, end);
        row += mr;
    }
}

static const FL_T(fl_normed_cell) CELL_(normed) =
#ifdef FL_CELL_SQUASHES
    {CELL_(normed_output), CELL_(normed_output_gradient), CELL_(add_output_gate)};
#else
    {NULL, NULL, NULL};
#endif

#undef FL_CELL
#undef FL_CELL_SQUASHES
#undef FL_CELL_LATE
#undef FL_CELL_FUSED
#undef FL_CELL_TILE
#undef FL_CELL_UNROLL
#undef FL_CELL_PRODUCT
