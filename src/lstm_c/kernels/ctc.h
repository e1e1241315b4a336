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
 * error of a few ulp a step at any T, where log-space would round sums of size log p(l|x) absolutely
 * and one scale factor a step would flush the states that only the end of the target can reach.
 * exp of an emission splits into m and e directly. Zero is e = -FL_CTC_ZERO; whatever ends below
 * half of it counts as impossible: likelihoods under e^-1.8e8, emissions under e^-1.4e6 (float32).
 *
 * Posteriors are divided by their sum at each step, which equals p(l|x) up to rounding, so that
 * they add up to one at any T. Cost: about 60 vector operations forward and 80 backward per step
 * and V pairs, one gather and one scatter of L values per step. */

#define v_imax FL_T(v_imax)
#define v_iset1 FL_T(v_iset1)
#define lane FL_T(lane)
#define wide FL_T(wide)

#undef FL_CTC_EMISSION_LIMIT
#define FL_CTC_ZERO (1 << 29)
#define FL_CTC_NORMAL 8
#define FL_CTC_EMISSION_LIMIT ((real)1.4e6) /* 2^21 ln 2: magic rounding keeps its exponent exact */

typedef struct FL_T(wide) {
    vec m;
    ivec e;
} wide;

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
    ivec possible = (ivec)(z >= v_set1(-FL_CTC_EMISSION_LIMIT)); /* false for NaN, which stays in m */
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
    wide a = {v_set1(m), v_iset1((lane)e)};
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
    int64_t width;    /* pairs, padded to vectors */
    int64_t plane;    /* width + V: a vector of zeros beside the array */
    int64_t row;      /* of alpha: labels, then blanks */
    real *alpha;      /* (steps + 1, row), labels from V on: entry t is before step t */
    real *beta;       /* (row), labels from 0 on */
    real *emission;   /* (steps, width): log-probabilities of the labels, -inf in the padding */
    real *blank;      /* wide (steps) */
    real *shift;      /* (steps): what logits exceed log-probabilities by */
    real *skip;       /* (plane) exponents: 0 where label i may follow label i - 1, else -ZERO */
    real *posterior;  /* (width) */
    int64_t n_blank;  /* plane of `blank` */
} FL_T(ctc_arrays);

static FL_T(ctc_arrays) FL_T(ctc_layout)(const FL_T(fl_ctc) * c)
{
    FL_T(ctc_arrays) s;
    s.width = fl_ctc_round(c->labels + 1, FL_LANES);
    s.plane = s.width + FL_LANES;
    s.row = 4 * s.plane;
    s.n_blank = fl_ctc_round(c->steps, FL_LANES);
    s.alpha = c->scratch;
    s.emission = s.alpha + (c->steps + 1) * s.row;
    s.beta = s.emission + c->steps * s.width;
    s.skip = s.beta + s.row;
    s.posterior = s.skip + s.plane;
    s.blank = s.posterior + s.width;
    s.shift = s.blank + 2 * s.n_blank;
    return s;
}

/* Logarithm of the sum of exponentials of `count` values. */
static real FL_T(ctc_log_sum)(const real *x, int64_t count)
{
    real highest = x[0], sum = 0;
    for (int64_t i = 1; i < count; i++)
        highest = x[i] > highest ? x[i] : highest;
    const vec zero = v_zero(), top = v_set1(highest), lowest = v_set1(-(real)FL_SIGMOID_LIMIT);
    vec total = zero;
    int64_t i = 0;
    for (; i + FL_LANES <= count; i += FL_LANES)
        total = total + v_set1(1) + v_expm1(v_max(lowest, v_load(x + i) - top));
    sum = v_hsum(total);
    for (; i < count; i++) {
        vec one = v_expm1(v_max(lowest, v_set1(x[i] - highest)));
        sum += 1 + one[0];
    }
#if FL_DOUBLE
    return highest + __builtin_log(sum);
#else
    return highest + __builtin_logf(sum);
#endif
}

/* shift, emission, blank, skip =. */
static void FL_T(ctc_gather)(const FL_T(fl_ctc) * c, const FL_T(ctc_arrays) * s)
{
    const vec never = v_set1(-(real)__builtin_inff());
    for (int64_t t = 0; t < c->steps; t++) {
        const real *x = c->x + t * c->classes;
        real shift = c->logits ? FL_T(ctc_log_sum)(x, c->classes) : 0;
        real *row = s->emission + t * s->width;
        v_store(row + s->width - FL_LANES, never);
        for (int64_t i = 0; i < c->labels; i++)
            row[i] = x[c->label[i]] - shift;
        s->blank[t] = x[c->blank] - shift;
        s->shift[t] = shift;
    }
    for (int64_t t = c->steps; t < s->n_blank; t++)
        s->blank[t] = 0;
    for (int64_t t = 0; t < s->n_blank; t += FL_LANES)
        FL_T(ctc_store)(s->blank + t, s->n_blank, FL_T(ctc_exp)(v_load(s->blank + t)));
    for (int64_t i = 0; i < s->plane; i++) {
        int allowed = i > 0 && i < c->labels && c->label[i] != c->label[i - 1];
        *(FL_T(lane_alias) *)(s->skip + i) = allowed ? 0 : -FL_CTC_ZERO;
    }
}
