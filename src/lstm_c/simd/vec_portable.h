/* 16-byte vectors without intrinsics: SSE2 on x86-64, NEON on ARM, whatever the compiler makes of
 * them elsewhere. */
#define FL_TILE_ROWS 3

FL_INLINE vec v_fma(vec a, vec b, vec c)
{
    return a * b + c;
}
FL_INLINE vec v_fnma(vec a, vec b, vec c)
{
    return c - a * b;
}
FL_INLINE vec v_min(vec a, vec b)
{
    return FL_T(v_blend)((ivec)(a < b), a, b);
}
FL_INLINE vec v_max(vec a, vec b)
{
    return FL_T(v_blend)((ivec)(a > b), a, b);
}
FL_INLINE vec v_sqrt(vec a)
{
    vec root;
    for (int i = 0; i < FL_LANES; i++)
#if FL_DOUBLE
        root[i] = __builtin_sqrt(a[i]);
#else
        root[i] = __builtin_sqrtf(a[i]);
#endif
    return root;
}
FL_INLINE vec v_load_n(const real *p, int n)
{
    vec a = v_zero();
    for (int i = 0; i < n; i++)
        a[i] = p[i];
    return a;
}
FL_INLINE void v_store_n(real *p, vec a, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = a[i];
}
FL_INLINE ivec v_imax(ivec a, ivec b)
{
    ivec mask = (ivec)(a > b);
    return (mask & a) | (~mask & b);
}

#if !FL_DOUBLE
/* 2 * FL_LANES bytes as int16, two in a lane. */
FL_INLINE ivec v_widen_bytes(const int8_t *p)
{
    typedef int8_t bytes __attribute__((vector_size(2 * FL_LANES)));
    typedef int16_t pairs __attribute__((vector_size(FL_VECTOR_BYTES)));
    bytes from;
    __builtin_memcpy(&from, p, sizeof from);
    return (ivec) __builtin_convertvector(from, pairs);
}
/* Sum of the products of the two int16 of each lane. */
FL_INLINE ivec v_dot_pairs(ivec a, ivec b)
{
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
#endif
