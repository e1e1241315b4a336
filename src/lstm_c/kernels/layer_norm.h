/* Layer normalisation of rows (Ba, Kiros and Hinton, arXiv 1607.06450): what counts in a row is
 * shifted to mean 0 and scaled to variance 1; see fl_norm. Rows are whole vectors, and every sum
 * runs over the vectors of its row in order. */

FL_INLINE vec FL_T(norm_sum)(const FL_T(fl_norm_plan) * plan, const real *x, vec mean)
{
    vec sum = v_zero();
    for (int64_t i = 0; i < plan->width; i += FL_LANES) {
        vec centred = (v_load(x + i) - mean) * v_load(plan->counts + i);
        sum = v_fma(centred, centred, sum);
    }
    return sum;
}

static void FL_T(normalize)(const FL_T(fl_norm) * s)
{
    const FL_T(fl_norm_plan) *plan = &s->plan;
    for (int64_t row = 0; row < s->rows; row++) {
        const real *x = s->x + row * s->x_row;
        const real *base = s->base ? s->base + row * s->base_row : NULL;
        real *normed = s->normed + row * s->normed_row, *y = s->y ? s->y + row * s->y_row : NULL;
        vec sum = v_zero();
        for (int64_t i = 0; i < plan->width; i += FL_LANES)
            sum = v_fma(v_load(x + i), v_load(plan->counts + i), sum);
        vec mean = v_set1(v_hsum(sum) * plan->share);
        real variance = v_hsum(FL_T(norm_sum)(plan, x, mean)) * plan->share;
        vec scale = v_set1(1) / v_sqrt(v_set1(variance + (real)FL_NORM_EPSILON));
        s->scale[row * s->scale_row] = scale[0];
        for (int64_t i = 0; i < plan->width; i += FL_LANES) {
            vec value = (v_load(x + i) - mean) * scale * v_load(plan->counts + i);
            v_store(normed + i, value);
            if (y)
                v_store(y + i, v_fma(value, v_load(plan->gain + i), v_load(base + i)));
        }
    }
}

static void FL_T(normalize_gradient)(const FL_T(fl_norm_gradient) * s)
{
    const FL_T(fl_norm_plan) *plan = &s->plan;
    for (int64_t row = 0; row < s->rows; row++) {
        const real *dy = s->dy + row * s->dy_row;
        real *normed = s->normed + row * s->normed_row, *dgain = s->dgain + row * s->dgain_row;
        vec sum = v_zero(), along = v_zero();
        for (int64_t i = 0; i < plan->width; i += FL_LANES) {
            vec change = v_load(dy + i) * v_load(normed + i), gain = v_load(plan->gain + i);
            v_store(dgain + i, v_load(dgain + i) + change);
            sum = v_fma(v_load(dy + i), gain, sum);
            along = v_fma(change, gain, along);
        }
        vec mean = v_set1(v_hsum(sum) * plan->share), slope = v_set1(v_hsum(along) * plan->share),
            scale = v_set1(s->scale[row * s->scale_row]);
        for (int64_t i = 0; i < plan->width; i += FL_LANES) {
            vec straight = v_fma(v_load(dy + i), v_load(plan->gain + i), -mean);
            straight = v_fnma(slope, v_load(normed + i), straight);
            v_store(normed + i, straight * scale * v_load(plan->counts + i));
        }
    }
}
