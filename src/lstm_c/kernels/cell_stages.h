/* A row of a block of cells in eight stages, the same operations as in the cells' own files, for a
 * product on tiles to take one beside each of its own: few operations on tiles can be in flight
 * before the work between them is done, so each piece of that has to be a short chain. For the
 * cells whose facts say `in_stages`. */
typedef struct cell_row {
    const FL_T(fl_step) * step;
    const real *sums, *init; /* of the row and block; init: to be added, or NULL */
    int64_t row, unit;
    FL_T(fl_squash) gate[4];
    FL_T(fl_squash) last; /* what waits for the gates: the tanh of c, or n of a GRU */
} cell_row;

/* Stages 0 to 4: gates [first, first + n) from their sums. */
FL_INLINE void gate_stage(cell_row *r, const int first, const int n, const unsigned tanhs,
                          const int stage)
{
    if (stage == 0) {
        FL_UNROLL
        for (int g = 0; g < 4; g++) {
            vec sum = v_load(r->sums + g * FL_LANES);
            r->gate[g].x = r->init ? v_load(r->init + g * FL_LANES) + sum : sum;
        }
    }
    if (stage < 4) {
        FL_T(squash_stage)(r->gate + first, n, tanhs, stage);
    } else {
        FL_UNROLL
        for (int g = 0; g < n; g++)
            r->gate[first + g].x /= r->gate[first + g].q;
    }
}

/* Two stages of `last`. */
FL_INLINE void last_stages(cell_row *r, const int first)
{
    FL_T(squash_stage)(&r->last, 1, 1, first);
    FL_T(squash_stage)(&r->last, 1, 1, first + 1);
}

FL_INLINE vec cell_mask(const cell_row *r)
{
    const FL_T(fl_step) *s = r->step;
    return s->mask ? v_load(s->mask + r->row * s->mask_row + r->unit) : v_set1(1);
}

FL_INLINE void save_gates(const cell_row *r)
{
    const FL_T(fl_step) *s = r->step;
    if (!s->saved)
        return;
    FL_UNROLL
    for (int g = 0; g < 4; g++)
        v_store(s->saved + r->row * s->saved_row + 4 * r->unit + g * FL_LANES, r->gate[g].x);
}

FL_INLINE void lstm_stage(cell_row *r, const int stage)
{
    const FL_T(fl_step) *s = r->step;
    const int64_t row = r->row, unit = r->unit;
    if (stage < 5) {
        gate_stage(r, 0, 4, 1 << 2, stage);
    } else if (stage == 5) {
        vec i = r->gate[0].x, f = r->gate[1].x, g = r->gate[2].x;
        vec c = v_fma(f, v_load(s->state_prev + row * s->state_prev_row + unit),
                      i * (g * cell_mask(r)));
        v_store(s->state + row * s->state_row + unit, c);
        save_gates(r);
        r->last.x = c;
        last_stages(r, 0);
    } else if (stage == 6) {
        last_stages(r, 2);
    } else {
        FL_T(store_column)(s->h + row * s->h_row, r->gate[3].x * (r->last.x / r->last.q), unit,
                           s->units);
    }
}

FL_INLINE void gru_stage(cell_row *r, const int stage)
{
    const FL_T(fl_step) *s = r->step;
    if (stage < 5) {
        gate_stage(r, 1, 2, 0, stage);
    } else if (stage == 5) {
        r->last.x = v_fma(r->gate[1].x, r->gate[3].x, r->gate[0].x);
        last_stages(r, 0);
    } else if (stage == 6) {
        last_stages(r, 2);
    } else {
        vec n = r->last.x / r->last.q, drive = n * cell_mask(r);
        vec h_prev = FL_T(load_column)(s->h_prev + r->row * s->h_prev_row, r->unit, s->units);
        r->gate[0].x = n;
        save_gates(r);
        FL_T(store_column)(s->h + r->row * s->h_row, v_fma(r->gate[2].x, h_prev - drive, drive),
                           r->unit, s->units);
    }
}

FL_INLINE void cell_stage(cell_row *r, const int cell, const int stage)
{
    if (cell == FL_LSTM_STAGES)
        lstm_stage(r, stage);
    else
        gru_stage(r, stage);
}
