/* Sigmoid and tanh from one exponential, as a ratio of two short polynomials.
 *
 *   e^-z = 2^n (q - u) / (q + u),   u = z + n ln2, |u| <= ln2 / 2,   q(u^2) = u coth(u / 2)
 *   sigmoid(z) = (q + u) / ((q + u) + 2^n (q - u))
 *   tanh(x)    = ((1 - 2^n) q + (1 + 2^n) u) / ((1 + 2^n) q + (1 - 2^n) u),   z = 2 x, and q, u
 * halved
 *
 * q is even, so two terms (float32) are within 7e-9 and five (float64) within 3e-18 of it; the rest
 * of the exponential costs nothing, since both functions divide anyway. Nothing cancels near zero,
 * and small sigmoids keep their relative accuracy. Error <= 3 ulp over the whole range (results
 * below the smallest normal number flush to zero); NaN gives NaN. n ln2 in two parts, the first
 * with a short mantissa so that n times it is exact without FMA too. Cost: 13 or 15 operations and
 * the division.
 *
 * One activation is a chain of some 60 cycles, of which an out-of-order window holds three or four.
 * v_squash takes several vectors through one stage of it before the next one, so that the window
 * holds a piece of every chain and not the whole of a few. */

#define v_expm1 FL_T(v_expm1)
#define v_squash FL_T(v_squash)
#define v_sigmoid FL_T(v_sigmoid)
#define v_tanh FL_T(v_tanh)
#define v_exp_negative FL_T(v_exp_negative)
#define v_log_sigmoid FL_T(v_log_sigmoid)

#undef FL_ROUND_MAGIC
#undef FL_MANTISSA_BITS
#undef FL_EXPONENT_BIAS
#undef FL_LN2_HIGH
#undef FL_LN2_LOW
#undef FL_SIGMOID_LIMIT
#undef FL_TANH_LIMIT
#if FL_DOUBLE
#define FL_ROUND_MAGIC 6755399441056767.0 /* 1.5 * 2^52 and the bias */
#define FL_MANTISSA_BITS 52
#define FL_EXPONENT_BIAS 1023
#define FL_LN2_HIGH 0x1.62e42fee00000p-1
#define FL_LN2_LOW 0x1.a39ef35793c76p-33
#define FL_SIGMOID_LIMIT 709.0
#define FL_TANH_LIMIT 20.0
#else
#define FL_ROUND_MAGIC 12583039.0f /* 1.5 * 2^23 and the bias */
#define FL_MANTISSA_BITS 23
#define FL_EXPONENT_BIAS 127
#define FL_LN2_HIGH 0.693359375f
#define FL_LN2_LOW -2.12194440e-4f
#define FL_SIGMOID_LIMIT 87.8f
#define FL_TANH_LIMIT 10.0f
#endif

/* (expm1(r) - r) / r^2 for |r| <= ln2/2. */
FL_INLINE vec FL_T(v_expm1_tail)(vec r)
{
#if FL_DOUBLE
    static const real coefficient[] = {
        1.6059043836821613e-10, 2.0876756987868099e-9, 2.5052108385441720e-8, 2.7557319223985888e-7,
        2.7557319223985893e-6,  2.4801587301587302e-5, 1.9841269841269841e-4, 1.3888888888888889e-3,
        8.3333333333333332e-3,  4.1666666666666664e-2, 1.6666666666666666e-1, 0.5};
#else
    static const real coefficient[] = {1.38995121e-3f, 8.36613681e-3f, 4.16668393e-2f,
                                       1.66665480e-1f, 0.5f};
#endif
    enum { TERMS = sizeof coefficient / sizeof coefficient[0] };
    vec p = v_set1(coefficient[0]);
    FL_UNROLL
    for (int i = 1; i < TERMS; i++)
        p = v_fma(p, r, v_set1(coefficient[i]));
    return p;
}

/* 2^n from n + the rounding constant: adding that one rounds to an integer, and the bias in it
 * makes the lowest bits of the sum those of an exponent. */
FL_INLINE vec FL_T(v_power_of_two)(vec shifted)
{
    return (vec)((ivec)shifted << FL_MANTISSA_BITS);
}

/* exp(z) = scale (1 + tail) for z in the range where scale = 2^round(z / ln2) is a normal number.
 */
FL_INLINE vec FL_T(v_exp_parts)(vec z, vec *scale)
{
    const vec magic = v_set1((real)FL_ROUND_MAGIC);
    vec shifted = v_fma(z, v_set1((real)1.4426950408889634), magic);
    vec n = shifted - magic;
    vec r = v_fnma(n, v_set1((real)FL_LN2_LOW), v_fnma(n, v_set1((real)FL_LN2_HIGH), z));
    *scale = FL_T(v_power_of_two)(shifted);
    return v_fma(r * r, FL_T(v_expm1_tail)(r), r);
}

/* exp(z) - 1, same range. */
FL_INLINE vec v_expm1(vec z)
{
    vec scale, tail = FL_T(v_exp_parts)(z, &scale);
    return v_fma(tail, scale, scale - v_set1(1));
}

/* exp(z) for z <= 0; below the limit of sigmoid what it is there. */
FL_INLINE vec v_exp_negative(vec z)
{
    vec scale, tail = FL_T(v_exp_parts)(v_max(v_set1(-(real)FL_SIGMOID_LIMIT + 1), z), &scale);
    return v_fma(tail, scale, scale);
}

FL_INLINE vec FL_T(v_clamp)(vec x, real limit)
{
    return v_min(v_set1(limit), v_max(v_set1(-limit), x));
}

/* One activation on its way. */
typedef struct FL_T(fl_squash) {
    vec x; /* the argument, then u, then the result; tanh: u / 2 */
    vec scale, square, q;
} FL_T(fl_squash);

/* scale = n + the rounding constant. */
FL_INLINE void FL_T(squash_round)(FL_T(fl_squash) * s, const int is_tanh)
{
    s->x = FL_T(v_clamp)(s->x, is_tanh ? (real)FL_TANH_LIMIT : (real)FL_SIGMOID_LIMIT);
    s->scale = v_fma(s->x, v_set1((real)((1 + is_tanh) * -1.4426950408889634)),
                     v_set1((real)FL_ROUND_MAGIC));
}

/* x = u, scale = 2^n. Where n is small and v_fma rounds once, n ln2 needs no parts. */
FL_INLINE void FL_T(squash_reduce)(FL_T(fl_squash) * s, const int is_tanh)
{
    vec n = s->scale - v_set1((real)FL_ROUND_MAGIC);
    s->scale = FL_T(v_power_of_two)(s->scale);
#ifndef FL_ISA_PORTABLE
    if (is_tanh) {
        s->x = v_fma(n, v_set1((real)(0.69314718055994531 / 2)), s->x);
        return;
    }
#endif
    s->x = v_fma(n, v_set1((real)FL_LN2_HIGH / (1 + is_tanh)), s->x);
    s->x = v_fma(n, v_set1((real)FL_LN2_LOW / (1 + is_tanh)), s->x);
}

/* q = P(u^2) of q = 2 + u^2 P, where q is as said above; tanh: of 2u, and halved. */
FL_INLINE void FL_T(squash_even_part)(FL_T(fl_squash) * s, const int is_tanh)
{
#if FL_DOUBLE
    static const real coefficient[] = {4.1437662800614485e-8, -1.6534060033826214e-6,
                                       6.6137564716228169e-5, -2.7777777777564401e-3,
                                       1.6666666666666616e-1};
#else
    static const real coefficient[] = {-2.76985302e-3f, 1.66666548e-1f};
#endif
    enum { TERMS = sizeof coefficient / sizeof coefficient[0] };
    s->square = s->x * s->x;
    FL_UNROLL
    for (int i = 0; i < TERMS; i++) {
        real power = coefficient[i];
        for (int k = i; is_tanh && k < TERMS; k++)
            power *= 4;
        vec term = v_set1(is_tanh ? power / 2 : power);
        s->q = i ? v_fma(s->q, s->square, term) : term;
    }
}

/* The result is x / q. */
FL_INLINE void FL_T(squash_fraction)(FL_T(fl_squash) * s, const int is_tanh)
{
    vec u = s->x;
    if (!is_tanh) {
        vec q = v_fma(s->q, s->square, v_set1(2));
        s->x = q + u;
        s->q = v_fma(s->scale, q - u, s->x);
        return;
    }
    vec less = v_set1(1) - s->scale, more = v_set1(1) + s->scale;
#ifdef FL_ISA_PORTABLE /* two roundings a v_fma: what is small is summed first */
    vec rest = s->q * s->square;
    s->x = less + v_fma(less, rest, more * u);
    s->q = more + v_fma(more, rest, less * u);
#else
    vec q = v_fma(s->q, s->square, v_set1(1));
    s->x = v_fma(less, q, more * u);
    s->q = v_fma(more, q, less * u);
#endif
}

/* Stage 0, 1, 2 or 3 of `n` activations, tanh where bit i of `tanhs` is set, else sigmoid; all but
 * s are constants. After the last one the results are x / q. */
FL_INLINE void FL_T(squash_stage)(FL_T(fl_squash) * s, const int n, const unsigned tanhs,
                                  const int stage)
{
    FL_UNROLL
    for (int i = 0; i < n; i++) {
        const int is_tanh = tanhs >> i & 1;
        if (stage == 0)
            FL_T(squash_round)(&s[i], is_tanh);
        else if (stage == 1)
            FL_T(squash_reduce)(&s[i], is_tanh);
        else if (stage == 2)
            FL_T(squash_even_part)(&s[i], is_tanh);
        else
            FL_T(squash_fraction)(&s[i], is_tanh);
    }
}

/* x[i] = tanh(x[i]) where bit i of `tanhs` is set, else sigmoid(x[i]), for i < n, as many as a unit
 * has slots at most; both are constants. */
FL_INLINE void v_squash(vec *x, const int n, const unsigned tanhs)
{
    FL_T(fl_squash) s[FL_MAX_SLOTS];
    FL_UNROLL
    for (int i = 0; i < n; i++)
        s[i].x = x[i];
    FL_UNROLL
    for (int stage = 0; stage < 4; stage++)
        FL_T(squash_stage)(s, n, tanhs, stage);
    FL_UNROLL
    for (int i = 0; i < n; i++)
        x[i] = s[i].x / s[i].q;
}

FL_INLINE vec v_sigmoid(vec x)
{
    v_squash(&x, 1, 0);
    return x;
}

FL_INLINE vec v_tanh(vec x)
{
    v_squash(&x, 1, 1);
    return x;
}

/* log(1 + t) for t in [0, 1]: 2 atanh(s) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...) at s = t / (2 + t) <=
 * 1 / 3. */
FL_INLINE vec FL_T(v_log1p_unit)(vec t)
{
    enum { TERMS = FL_DOUBLE ? 17 : 8 };
    vec s = t / (v_set1(2) + t), square = s * s, sum = v_set1((real)1 / (2 * TERMS - 1));
    FL_UNROLL
    for (int k = TERMS - 1; k > 0; k--)
        sum = v_fma(sum, square, v_set1((real)1 / (2 * k - 1)));
    return (s + s) * sum;
}

/* log(sigmoid(x)), never above 0. */
FL_INLINE vec v_log_sigmoid(vec x)
{
    vec t = v_exp_negative(v_min(x, v_zero() - x));
    return v_min(v_zero(), x) - FL_T(v_log1p_unit)(t);
}

#define FL_ACTIVATION_LOOP(name)                                                                   \
    static inline void FL_T(name##_array)(const real *x, real *y, int64_t count)                   \
    {                                                                                              \
        int64_t i = 0;                                                                             \
        for (; i + FL_LANES <= count; i += FL_LANES)                                               \
            v_store(y + i, name(v_load(x + i)));                                                   \
        if (i < count)                                                                             \
            v_store_n(y + i, name(v_load_n(x + i, (int)(count - i))), (int)(count - i));           \
    }
/* y = activation(x), `count` elements, in place allowed. */
FL_ACTIVATION_LOOP(v_sigmoid)
FL_ACTIVATION_LOOP(v_tanh)
