/* Connectionist temporal classification: loss and gradient of one sequence (Graves et al., ICML
 * 2006, equations 5 to 16).
 *
 * States. A target of L labels is the path blank, label 0, blank, label 1, ..., blank. Its 2 L + 1
 * states are kept as L + 1 pairs, blank i before label i, so that a vector holds V blanks or V
 * labels: blanks need no gather and no third predecessor, and both halves share their loads.
 *     blank'[i] = (blank[i] + label[i-1]) y(blank)
 *     label'[i] = (label[i] + blank[i] + label[i-1] unless it is the same label) y(label i)
 * Label L does not exist: its emission is zero. Padding behaves like it.
 *
 * Range. A probability is m 2^e, m a real of moderate size, e an integer of the same width per
 * state, "wide" below. Sums shift both terms to the larger exponent, products add exponents, and
 * every FL_CTC_NORMAL steps m goes back to [1, 2). The recursion therefore needs neither exp nor
 * log, loses nothing to underflow however far a state lies behind the best one, and has a relative
 * error of a few ulp a step at any T, where log-space would round sums of size log p(l|x)
 * absolutely and one scale factor a step would flush the states that only the end of the target can
 * reach. exp of an emission splits into m and e directly. Zero is e = -FL_CTC_ZERO; whatever ends
 * below half of it counts as impossible: likelihoods under e^-1.8e8, emissions under e^-1.4e6.
 *
 * Memory. alpha is kept for one block of steps, about half a megabyte, and at the start of each
 * block. Blocks but the last are computed again on the way back, which is faster than fetching all
 * of alpha from memory, and the scratch stays a small part of it.
 *
 * Posteriors are divided by their sum at each step, which equals p(l|x) up to rounding, so that
 * they add up to one at any T. Cost: about 60 vector operations forward and 80 backward per step
 * and V pairs, one gather and one scatter of L values per step. */

#define wide FL_T(wide)

#define FL_CTC_ZERO (1 << 29)
#define FL_CTC_NORMAL 8
/* Under 2^21 ln 2, to which rounding by FL_ROUND_MAGIC is exact. */
#define FL_CTC_EMISSION_LIMIT ((real)1.4e6)

typedef struct FL_T(wide) {
    vec m;
    ivec e;
} wide;
/* An exponent in an array of real. */
typedef FL_T(lane) FL_T(ctc_exponent) __attribute__((may_alias));

/* 2^n for n <= FL_EXPONENT_BIAS; 0 for n <= -FL_EXPONENT_BIAS. */
FL_INLINE vec FL_T(ctc_power)(ivec n)
{
    ivec field = v_imax(n, v_iset1(-FL_EXPONENT_BIAS)) + v_iset1(FL_EXPONENT_BIAS);
    return (vec)(field << FL_MANTISSA_BITS);
}

/* exp(z), m in [0.7, 1.5]. */
FL_INLINE wide FL_T(ctc_exp)(vec z)
{
    const vec magic = v_set1((real)FL_ROUND_MAGIC);
    vec inside = FL_T(v_clamp)(z, FL_CTC_EMISSION_LIMIT);
    vec shifted = v_fma(inside, v_set1((real)1.4426950408889634), magic);
    vec n = shifted - magic;
    vec r = v_fnma(n, v_set1((real)FL_LN2_LOW), v_fnma(n, v_set1((real)FL_LN2_HIGH), inside));
    ivec possible =
        (ivec)(z >= v_set1(-FL_CTC_EMISSION_LIMIT)); /* false for NaN, which stays in m */
    ivec e = (ivec)shifted - (ivec)magic;
    wide result = {v_fma(r * r, FL_T(v_expm1_tail)(r), r) + v_set1(1),
                   (possible & e) | (~possible & v_iset1(-FL_CTC_ZERO))};
    return result;
}

FL_INLINE wide FL_T(ctc_load)(const real *p, int64_t plane)
{
    wide a = {v_load(p), (ivec)v_load(p + plane)};
    return a;
}
FL_INLINE void FL_T(ctc_store)(real *p, int64_t plane, wide a)
{
    v_store(p, a.m);
    v_store(p + plane, (vec)a.e);
}
FL_INLINE wide FL_T(ctc_constant)(real m, int64_t e)
{
    wide a = {v_set1(m), v_iset1((FL_T(lane))e)};
    return a;
}

FL_INLINE wide FL_T(ctc_add)(wide a, wide b)
{
    ivec e = v_imax(a.e, b.e);
    wide sum = {v_fma(a.m, FL_T(ctc_power)(a.e - e), b.m * FL_T(ctc_power)(b.e - e)), e};
    return sum;
}
FL_INLINE wide FL_T(ctc_add3)(wide a, wide b, wide c)
{
    ivec e = v_imax(v_imax(a.e, b.e), c.e);
    vec rest = v_fma(b.m, FL_T(ctc_power)(b.e - e), c.m * FL_T(ctc_power)(c.e - e));
    wide sum = {v_fma(a.m, FL_T(ctc_power)(a.e - e), rest), e};
    return sum;
}
FL_INLINE wide FL_T(ctc_multiply)(wide a, wide b)
{
    wide product = {a.m * b.m, v_imax(a.e + b.e, v_iset1(-FL_CTC_ZERO))};
    return product;
}
/* The same value with m in [1, 2); m - m keeps a NaN. */
FL_INLINE wide FL_T(ctc_normal)(wide a)
{
    ivec n = ((ivec)a.m >> FL_MANTISSA_BITS) - v_iset1(FL_EXPONENT_BIAS);
    ivec e = a.e + n;
    ivec high = (ivec)(e > v_iset1(FL_CTC_ZERO));
    wide result = {(vec)((ivec)a.m - (n << FL_MANTISSA_BITS)) + (a.m - a.m),
                   (high & v_iset1(FL_CTC_ZERO)) | (~high & e)};
    return result;
}

/* The arrays of a call in its scratch. A wide array is its m and, `plane` values on, its e. */
typedef struct FL_T(ctc_arrays) {
    fl_ctc_plan plan;
    int64_t plane;
    real *start;     /* (blocks, row) alpha before the first step of each block */
    real *alpha;     /* (block + 1, row) wide labels, then wide blanks, the vector of zeros before
                        the labels: entry k is before step k of the block */
    real *beta;      /* (row) likewise, the zeros behind labels and blanks */
    real *emission;  /* (block, width) log-probabilities of the labels, -inf in the padding */
    real *blank;     /* wide (padded) probabilities of the blank, `plan.padded` apart */
    real *shift;     /* (padded) what logits exceed log-probabilities by */
    real *skip;      /* (plane) exponents: 0 where label i may follow label i - 1, else -ZERO */
    real *posterior; /* (width) */
} FL_T(ctc_arrays);

static FL_T(ctc_arrays) FL_T(ctc_layout)(const FL_T(fl_ctc_sequence) * c)
{
    FL_T(ctc_arrays) s;
    s.plan = fl_ctc_make_plan(c->steps, c->labels, FL_LANES, sizeof(real));
    s.plane = s.plan.plane;
    s.start = c->scratch;
    s.alpha = s.start + s.plan.blocks * s.plan.row;
    s.beta = s.alpha + (s.plan.block + 1) * s.plan.row;
    s.emission = s.beta + s.plan.row;
    s.posterior = s.emission + s.plan.block * s.plan.width;
    s.skip = s.posterior + s.plan.width;
    s.blank = s.skip + s.plane;
    s.shift = s.blank + 2 * s.plan.padded;
    return s;
}

/* exp(z) as a real: 0 for -inf. */
FL_INLINE vec FL_T(ctc_exp_real)(vec z)
{
    wide y = FL_T(ctc_exp)(z);
    return y.m * FL_T(ctc_power)(y.e);
}

/* Logarithm of the sum of the exponentials of `count` values. */
static real FL_T(ctc_log_sum)(const real *x, int64_t count)
{
    real rest[FL_LANES], highest;
    int64_t whole = count / FL_LANES * FL_LANES;
    v_store(rest, v_set1(-(real)__builtin_inff()));
    for (int64_t i = whole; i < count; i++)
        rest[i - whole] = x[i];
    vec top = v_load(rest), sum;
    for (int64_t i = 0; i < whole; i += FL_LANES)
        top = v_max(top, v_load(x + i));
    highest = top[0];
    for (int i = 1; i < FL_LANES; i++)
        highest = top[i] > highest ? top[i] : highest;
    top = v_set1(highest);
    sum = FL_T(ctc_exp_real)(v_load(rest) - top);
    for (int64_t i = 0; i < whole; i += FL_LANES)
        sum = sum + FL_T(ctc_exp_real)(v_load(x + i) - top);
#if FL_DOUBLE
    return highest + __builtin_log(v_hsum(sum));
#else
    return highest + __builtin_logf(v_hsum(sum));
#endif
}

/* blank, shift, skip =. */
static void FL_T(ctc_prepare)(const FL_T(fl_ctc_sequence) * c, const FL_T(ctc_arrays) * s)
{
    for (int64_t t = 0; t < s->plan.padded; t++)
        s->blank[t] = s->shift[t] = 0;
    for (int64_t t = 0; t < c->steps; t++) {
        const real *x = c->x + t * c->classes;
        s->shift[t] = c->logits ? FL_T(ctc_log_sum)(x, c->classes) : 0;
        s->blank[t] = x[c->blank] - s->shift[t];
    }
    for (int64_t t = 0; t < s->plan.padded; t += FL_LANES)
        FL_T(ctc_store)(s->blank + t, s->plan.padded, FL_T(ctc_exp)(v_load(s->blank + t)));
    for (int64_t i = 0; i < s->plane; i++) {
        int allowed = i > 0 && i < c->labels && c->label[i] != c->label[i - 1];
        *(FL_T(ctc_exponent) *)(s->skip + i) = allowed ? 0 : -FL_CTC_ZERO;
    }
}

/* Row of the emissions = of step t. */
FL_INLINE void FL_T(ctc_gather)(const FL_T(fl_ctc_sequence) * c, real *row, int64_t width,
                                int64_t t, real shift)
{
    const real *x = c->x + t * c->classes;
    v_store(row + width - FL_LANES, v_set1(-(real)__builtin_inff()));
    for (int64_t i = 0; i < c->labels; i++)
        row[i] = x[c->label[i]] - shift;
}

FL_INLINE wide FL_T(ctc_blank)(const FL_T(ctc_arrays) * s, int64_t t)
{
    wide y = {v_set1(s->blank[t]), v_iset1(*(FL_T(ctc_exponent) *)(s->blank + s->plan.padded + t))};
    return y;
}

/* A row of zeros but for the first value of the array at `one`. */
static void FL_T(ctc_clear)(real *row, const FL_T(ctc_arrays) * s, real *one)
{
    for (int64_t i = 0; i < s->plane; i += FL_LANES)
        for (int half = 0; half < 2; half++)
            FL_T(ctc_store)(row + 2 * half * s->plane + i, s->plane,
                            FL_T(ctc_constant)(1, -FL_CTC_ZERO));
    *(FL_T(ctc_exponent) *)(one + s->plane) = 0;
}

/* One step forward, step k of its block and t of the sequence: alpha row k + 1 = from row k. */
FL_INLINE void FL_T(ctc_forward_step)(const FL_T(ctc_arrays) * s, int64_t k, int64_t t,
                                      const int normal)
{
    const int64_t plane = s->plane, blanks = 2 * plane;
    const wide y_blank = FL_T(ctc_blank)(s, t);
    const real *from = s->alpha + k * s->plan.row + FL_LANES;
    const real *emission = s->emission + k * s->plan.width;
    real *to = s->alpha + (k + 1) * s->plan.row + FL_LANES;
    FL_T(ctc_store)(to - FL_LANES, plane, FL_T(ctc_constant)(1, -FL_CTC_ZERO));
    for (int64_t i = 0; i < s->plan.width; i += FL_LANES) {
        wide label = FL_T(ctc_load)(from + i, plane), left = FL_T(ctc_load)(from + i - 1, plane);
        wide blank = FL_T(ctc_load)(from + blanks + i, plane);
        wide skipped = {left.m, left.e + (ivec)v_load(s->skip + i)};
        wide y = FL_T(ctc_exp)(v_load(emission + i));
        label = FL_T(ctc_multiply)(FL_T(ctc_add3)(label, blank, skipped), y);
        blank = FL_T(ctc_multiply)(FL_T(ctc_add)(blank, left), y_blank);
        if (normal) {
            label = FL_T(ctc_normal)(label);
            blank = FL_T(ctc_normal)(blank);
        }
        FL_T(ctc_store)(to + i, plane, label);
        FL_T(ctc_store)(to + blanks + i, plane, blank);
    }
}

/* One step backward. beta: in, with the emission of step t + 1; out, with that of t. posterior =
 * of the labels at t, not normalised; its sum = sum[0], that of the blanks = sum[1]. */
FL_INLINE void FL_T(ctc_backward_step)(const FL_T(ctc_arrays) * s, int64_t k, int64_t t,
                                       int64_t exponent, const int normal, real sum[2])
{
    const int64_t plane = s->plane, blanks = 2 * plane;
    const wide y_blank = FL_T(ctc_blank)(s, t);
    const ivec total_e = v_iset1((FL_T(lane))exponent);
    const real *alpha = s->alpha + (k + 1) * s->plan.row + FL_LANES;
    const real *emission = s->emission + k * s->plan.width;
    vec labels_sum = v_zero(), blanks_sum = v_zero();
    real *beta = s->beta;
    for (int64_t i = 0; i < s->plan.width; i += FL_LANES) {
        wide label = FL_T(ctc_load)(beta + i, plane), right = FL_T(ctc_load)(beta + i + 1, plane);
        wide blank = FL_T(ctc_load)(beta + blanks + i, plane);
        wide blank_right = FL_T(ctc_load)(beta + blanks + i + 1, plane);
        wide y = FL_T(ctc_exp)(v_load(emission + i));
        right.e = right.e + (ivec)v_load(s->skip + i + 1);
        blank = FL_T(ctc_add)(blank, label);
        label = FL_T(ctc_add3)(label, blank_right, right);
        wide before = FL_T(ctc_load)(alpha + i, plane);
        vec weight = before.m * label.m * FL_T(ctc_power)(before.e + label.e - total_e);
        v_store(s->posterior + i, weight);
        labels_sum = labels_sum + weight;
        before = FL_T(ctc_load)(alpha + blanks + i, plane);
        weight = before.m * blank.m * FL_T(ctc_power)(before.e + blank.e - total_e);
        blanks_sum = blanks_sum + weight;
        label = FL_T(ctc_multiply)(label, y);
        blank = FL_T(ctc_multiply)(blank, y_blank);
        if (normal) {
            label = FL_T(ctc_normal)(label);
            blank = FL_T(ctc_normal)(blank);
        }
        FL_T(ctc_store)(beta + i, plane, label);
        FL_T(ctc_store)(beta + blanks + i, plane, blank);
    }
    sum[0] = v_hsum(labels_sum);
    sum[1] = v_hsum(blanks_sum);
}

/* Row of the gradient = 0, or softmax for logits. */
FL_INLINE void FL_T(ctc_gradient_start)(const FL_T(fl_ctc_sequence) * c, int64_t t, real shift)
{
    const real *x = c->x + t * c->classes;
    real *row = c->gradient + t * c->classes;
    for (int64_t i = 0; i < c->classes; i += FL_LANES) {
        int n = c->classes - i < FL_LANES ? (int)(c->classes - i) : FL_LANES;
        vec z = n < FL_LANES ? v_load_n(x + i, n) : v_load(x + i);
        vec y = c->logits ? FL_T(ctc_exp_real)(z - v_set1(shift)) : v_zero();
        if (n < FL_LANES)
            v_store_n(row + i, y, n);
        else
            v_store(row + i, y);
    }
}

static void FL_T(ctc_fill)(real *x, int64_t count, real value)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = value;
}

FL_INLINE void FL_T(ctc_copy)(real *to, const real *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += FL_LANES)
        v_store(to + i, v_load(from + i));
}

/* Emissions and alpha = of a block, whose steps are returned. */
static int64_t FL_T(ctc_forward_block)(const FL_T(fl_ctc_sequence) * c, const FL_T(ctc_arrays) * s,
                                       int64_t block)
{
    int64_t first = block * s->plan.block, left = c->steps - first;
    int64_t steps = left < s->plan.block ? left : s->plan.block;
    for (int64_t k = 0; k < steps; k++)
        FL_T(ctc_gather)(c, s->emission + k * s->plan.width, s->plan.width, first + k,
                         s->shift[first + k]);
    FL_T(ctc_copy)(s->alpha, s->start + block * s->plan.row, s->plan.row);
    for (int64_t k = 0; k < steps; k++) {
        if ((first + k) % FL_CTC_NORMAL == 0)
            FL_T(ctc_forward_step)(s, k, first + k, 1);
        else
            FL_T(ctc_forward_step)(s, k, first + k, 0);
    }
    return steps;
}

/* Likelihood of the target: m, and the exponent in *e, from the row of alpha behind the last step.
 */
static double FL_T(ctc_likelihood)(const FL_T(fl_ctc_sequence) * c, const FL_T(ctc_arrays) * s,
                                   const real *row, int64_t *e)
{
    const real *label = row + FL_LANES + c->labels - 1;
    const real *blank = row + FL_LANES + c->labels + 2 * s->plane;
    int64_t label_e = *(const FL_T(ctc_exponent) *)(label + s->plane);
    int64_t blank_e = *(const FL_T(ctc_exponent) *)(blank + s->plane);
    *e = label_e > blank_e ? label_e : blank_e;
    int64_t label_n = label_e - *e > -2000 ? label_e - *e : -2000;
    int64_t blank_n = blank_e - *e > -2000 ? blank_e - *e : -2000;
    return __builtin_ldexp((double)*label, (int)label_n) +
           __builtin_ldexp((double)*blank, (int)blank_n);
}

/* Gradient = of the steps of a block whose alpha is there; beta as in ctc_backward_step. */
static void FL_T(ctc_backward_block)(const FL_T(fl_ctc_sequence) * c, const FL_T(ctc_arrays) * s,
                                     int64_t block, int64_t steps, int64_t exponent)
{
    for (int64_t k = steps; k-- > 0;) {
        int64_t t = block * s->plan.block + k;
        real *row = c->gradient + t * c->classes, sum[2];
        if (t % FL_CTC_NORMAL == 0)
            FL_T(ctc_backward_step)(s, k, t, exponent, 1, sum);
        else
            FL_T(ctc_backward_step)(s, k, t, exponent, 0, sum);
        FL_T(ctc_gradient_start)(c, t, s->shift[t]);
        real scale = 1 / (sum[0] + sum[1]);
        for (int64_t i = 0; i < c->labels; i++)
            row[c->label[i]] -= s->posterior[i] * scale;
        row[c->blank] -= sum[1] * scale;
    }
}

/* gradient (steps, classes) =; returns the loss. steps >= 1. */
static double FL_T(ctc)(const FL_T(fl_ctc_sequence) * c)
{
    const FL_T(ctc_arrays) s = FL_T(ctc_layout)(c);
    int64_t last = s.plan.blocks - 1, steps = 0, exponent;
    FL_T(ctc_prepare)(c, &s);
    FL_T(ctc_clear)(s.start, &s, s.start + 2 * s.plane + FL_LANES);
    for (int64_t block = 0; block <= last; block++) {
        steps = FL_T(ctc_forward_block)(c, &s, block);
        if (block < last)
            FL_T(ctc_copy)(s.start + (block + 1) * s.plan.row, s.alpha + steps * s.plan.row,
                           s.plan.row);
    }
    double likelihood = FL_T(ctc_likelihood)(c, &s, s.alpha + steps * s.plan.row, &exponent);
    if (likelihood != likelihood || exponent < -FL_CTC_ZERO / 2) {
        FL_T(ctc_fill)(c->gradient, c->steps * c->classes, (real)(likelihood - likelihood));
        return likelihood != likelihood ? likelihood : __builtin_inf();
    }
    FL_T(ctc_clear)(s.beta, &s, s.beta + 2 * s.plane + c->labels);
    for (int64_t block = last; block >= 0; block--) {
        if (block < last)
            steps = FL_T(ctc_forward_block)(c, &s, block);
        FL_T(ctc_backward_block)(c, &s, block, steps, exponent);
    }
    return -(__builtin_log(likelihood) + (double)exponent * 0.69314718055994531);
}
