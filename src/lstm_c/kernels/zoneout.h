/* Zoneout (Krueger et al., arXiv 1606.01305): units that keep what they had before a step. */

typedef unsigned char FL_T(flags) __attribute__((vector_size(FL_LANES), aligned(1), may_alias));

/* 0 or 1 for each of the units from `unit` on; the expectation where nothing is drawn. */
FL_INLINE vec FL_T(zone_kept)(const uint8_t *flags, real expected, int64_t unit)
{
    if (!flags)
        return v_set1(expected);
    return __builtin_convertvector(*(const FL_T(flags) *)(flags + unit), vec);
}

/* h and states of a step, which its cell has left at their new values. */
static void FL_T(zone)(const FL_T(fl_zone) * s)
{
    const vec one = v_set1(1);
    for (int64_t row = 0; row < s->rows; row++) {
        const uint8_t *flags = s->flags ? s->flags + row * s->flags_row : NULL;
        for (int64_t unit = s->unit_first; unit < s->unit_end; unit += FL_LANES) {
            vec kept = FL_T(zone_kept)(flags, s->expected_h, unit);
            real *h = s->h + row * s->h_row;
            vec before = FL_T(load_column)(s->h_prev + row * s->h_prev_row, unit, s->units),
                now = FL_T(load_column)(h, unit, s->units);
            FL_T(store_column)(h, v_fma(kept, before, (one - kept) * now), unit, s->units);
            kept = FL_T(zone_kept)(flags ? flags + s->plane : NULL, s->expected_c, unit);
            for (int i = 0; i < s->states; i++) {
                real *state = s->state + row * s->state_row + i * s->plane + unit;
                before = v_load(s->state_prev + row * s->state_row + i * s->plane + unit);
                now = v_load(state);
                if (s->unzoned)
                    v_store(s->unzoned + row * s->state_row + i * s->plane + unit, now);
                v_store(state, v_fma(kept, before, (one - kept) * now));
            }
        }
    }
}

/* Back through it: what goes past the step moves from the gradients of h and states to `past`. */
static void FL_T(zone_gradient)(const FL_T(fl_zone_gradient) * s)
{
    for (int64_t row = 0; row < s->rows; row++) {
        const uint8_t *flags = s->flags ? s->flags + row * s->flags_row : NULL;
        for (int64_t unit = s->unit_first; unit < s->unit_end; unit += FL_LANES) {
            real *past = s->past + row * s->past_row + unit, *dh = s->dh + row * s->dh_row + unit;
            vec total = v_load(dh), kept;
            if (s->dy)
                total += FL_T(load_column)(s->dy + row * s->dy_row, unit, s->units);
            kept = total * FL_T(zone_kept)(flags, s->expected_h, unit);
            v_store(past, kept);
            v_store(dh, total - kept);
            for (int i = 0; i < s->states; i++) {
                real *dstate = s->dstate + row * s->dstate_row + i * s->plane + unit;
                total = v_load(dstate);
                kept =
                    total * FL_T(zone_kept)(flags ? flags + s->plane : NULL, s->expected_c, unit);
                v_store(past + (1 + i) * s->plane, kept);
                v_store(dstate, total - kept);
            }
        }
    }
}

/* Flags of one row: unit u of `units` has bit pattern u / quarter of the counters u % quarter, so
 * that they depend neither on vectors nor on types. */
#ifndef FL_KERNELS_DRAW_ZONES
#define FL_KERNELS_DRAW_ZONES
enum { FL_DRAWN_AT_ONCE = 16 };
static void fl_draw_zones(const fl_zone_draw *draw, uint8_t *h, uint8_t *c)
{
    int64_t quarter = (draw->units + 3) / 4;
    for (int64_t first = 0; first < quarter; first += FL_DRAWN_AT_ONCE) {
        uint32_t word[4][FL_DRAWN_AT_ONCE];
        for (int k = 0; k < FL_DRAWN_AT_ONCE; k++) {
            fl_philox counter = {{(uint32_t)(first + k), draw->step, draw->sequence, draw->stream}};
            fl_philox drawn = fl_philox4x32(counter, draw->key);
            for (int j = 0; j < 4; j++)
                word[j][k] = drawn.word[j];
        }
        for (int j = 0; j < 4; j++) {
            int64_t unit = j * quarter + first, count = quarter - first;
            count = count < FL_DRAWN_AT_ONCE ? count : FL_DRAWN_AT_ONCE;
            count = count < draw->units - unit ? count : draw->units - unit;
            for (int64_t k = 0; k < count; k++) {
                h[unit + k] = (word[j][k] & 0xffff) < draw->below_h;
                c[unit + k] = (word[j][k] >> 16) < draw->below_c;
            }
        }
    }
}
#endif
