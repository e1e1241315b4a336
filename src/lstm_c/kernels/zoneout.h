/* Zoneout (Krueger et al., arXiv 1606.01305): units that keep what they had before a step. */

typedef unsigned char FL_T(flags) __attribute__((vector_size(FL_LANES), aligned(1), may_alias));

/* 0 or 1 for each of the units from `unit` on; the expectation where nothing is drawn. */
FL_INLINE vec FL_T(zone_kept)(const uint8_t *flags, real expected, int64_t unit)
{
    if (!flags)
        return v_set1(expected);
    return __builtin_convertvector(*(const FL_T(flags) *)(flags + unit), vec);
}

/* Shares of what was and of what is new in the expectation of a memory c e^m, n e^m, relative to m
 * = max(log p + m_prev, log(1 - p) + m_new): the larger share is 1, so that n never decays to 0. */
typedef struct FL_T(fl_mixture) {
    vec kept, taken, m;
    ivec keeps; /* the maximum is that of m_prev */
} FL_T(fl_mixture);

FL_INLINE FL_T(fl_mixture) FL_T(mix_memory)(const real *before, const real *now, int64_t plane,
                                            real log_kept, real log_new)
{
    FL_T(fl_mixture) mixture;
    ivec fresh = (ivec)(v_load(before + plane) == v_zero());
    vec was = v_load(before + 2 * plane) + log_kept, is = v_load(now + 2 * plane) + log_new;
    mixture.keeps = (ivec)(was > is) & ~fresh;
    mixture.m = FL_T(v_blend)(mixture.keeps, was, is);
    mixture.kept = FL_T(v_blend)(fresh, v_zero(), v_exp_negative(was - mixture.m));
    mixture.taken = v_exp_negative(is - mixture.m);
    return mixture;
}

FL_INLINE void FL_T(zone_memory)(const FL_T(fl_zone) * s, const real *before, real *now)
{
    FL_T(fl_mixture)
    mixture = FL_T(mix_memory)(before, now, s->plane, s->log_kept, s->log_new);
    for (int64_t i = 0; i < 2 * s->plane; i += s->plane)
        v_store(now + i, v_fma(mixture.kept, v_load(before + i), mixture.taken * v_load(now + i)));
    v_store(now + 2 * s->plane, mixture.m);
}

FL_INLINE void FL_T(zone_states)(const FL_T(fl_zone) * s, const uint8_t *flags, int64_t at,
                                 int64_t unit)
{
    const vec one = v_set1(1);
    real *state = s->state + at;
    const real *before = s->state_prev + at;
    for (int i = 0; s->unzoned && i < s->states; i++)
        v_store(s->unzoned + at + i * s->plane, v_load(state + i * s->plane));
    if (s->stabilised && !flags) {
        FL_T(zone_memory)(s, before, state);
        return;
    }
    vec kept = FL_T(zone_kept)(flags, s->expected_c, unit);
    for (int i = 0; i < s->states; i++, state += s->plane, before += s->plane)
        v_store(state, v_fma(kept, v_load(before), (one - kept) * v_load(state)));
}

/* h and states of a step, which its cell has left at their new values. */
static void FL_T(zone)(const FL_T(fl_zone) * s)
{
    const vec one = v_set1(1);
    for (int64_t row = 0; row < s->rows; row++) {
        const uint8_t *of_h = s->flags ? s->flags + row * s->flags_row : NULL,
                      *of_states = of_h ? of_h + s->flags_row / 2 : NULL;
        for (int64_t unit = s->unit_first; unit < s->unit_end; unit += FL_LANES) {
            if (s->h) {
                real *h = s->h + row * s->h_row;
                vec kept = FL_T(zone_kept)(of_h, s->expected_h, unit),
                    before = FL_T(load_column)(s->h_prev + row * s->h_prev_row, unit, s->units),
                    now = FL_T(load_column)(h, unit, s->units);
                FL_T(store_column)(h, v_fma(kept, before, (one - kept) * now), unit, s->units);
            }
            if (s->states)
                FL_T(zone_states)(s, of_states, row * s->state_row + unit, unit);
        }
    }
}

FL_INLINE void FL_T(zone_memory_gradient)(const FL_T(fl_zone_gradient) * s, const real *before,
                                          const real *now, real *dstate, real *past)
{
    int64_t n = s->plane, m = 2 * s->plane;
    FL_T(fl_mixture)
    mixture = FL_T(mix_memory)(before, now, s->plane, s->log_kept, s->log_new);
    vec dc = v_load(dstate), dn = v_load(dstate + n);
    vec dkept = v_fma(dc, v_load(before), dn * v_load(before + n)) * mixture.kept,
        dtaken = v_fma(dc, v_load(now), dn * v_load(now + n)) * mixture.taken,
        dm = v_load(dstate + m) - dkept - dtaken;
    v_store(past, dc * mixture.kept);
    v_store(past + n, dn * mixture.kept);
    v_store(past + m, dkept + FL_T(v_blend)(mixture.keeps, dm, v_zero()));
    v_store(dstate, dc * mixture.taken);
    v_store(dstate + n, dn * mixture.taken);
    v_store(dstate + m, dtaken + FL_T(v_blend)(mixture.keeps, v_zero(), dm));
}

FL_INLINE void FL_T(zone_states_gradient)(const FL_T(fl_zone_gradient) * s, const uint8_t *flags,
                                          int64_t row, int64_t unit)
{
    real *dstate = s->dstate + row * s->dstate_row + unit,
         *past = s->past + row * s->past_row + s->plane + unit;
    if (s->stabilised && !flags) {
        FL_T(zone_memory_gradient)(s, s->state_prev + row * s->state_prev_row + unit,
                                   s->unzoned + row * s->unzoned_row + unit, dstate, past);
        return;
    }
    vec share = FL_T(zone_kept)(flags, s->expected_c, unit);
    for (int i = 0; i < s->states; i++, dstate += s->plane, past += s->plane) {
        vec total = v_load(dstate), kept = total * share;
        v_store(past, kept);
        v_store(dstate, total - kept);
    }
}

/* Back through it: what goes past the step moves from the gradients of h and states to `past`. */
static void FL_T(zone_gradient)(const FL_T(fl_zone_gradient) * s)
{
    for (int64_t row = 0; row < s->rows; row++) {
        const uint8_t *of_h = s->flags ? s->flags + row * s->flags_row : NULL,
                      *of_states = of_h ? of_h + s->flags_row / 2 : NULL;
        for (int64_t unit = s->unit_first; unit < s->unit_end; unit += FL_LANES) {
            if (s->dh) {
                real *dh = s->dh + row * s->dh_row;
                vec total = FL_T(load_column)(dh, unit, s->units);
                if (s->dy)
                    total += FL_T(load_column)(s->dy + row * s->dy_row, unit, s->units);
                vec kept = total * FL_T(zone_kept)(of_h, s->expected_h, unit);
                v_store(s->past + row * s->past_row + unit, kept);
                FL_T(store_column)(dh, total - kept, unit, s->units);
            }
            if (s->states)
                FL_T(zone_states_gradient)(s, of_states, row, unit);
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
