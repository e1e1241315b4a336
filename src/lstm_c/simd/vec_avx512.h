/* AVX-512: 64-byte vectors, 32 registers, masked tails. */
#include <immintrin.h>

#ifndef FL_TILE_ROWS
#define FL_TILE_ROWS 6
#endif

#if FL_DOUBLE
FL_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_pd(a, b, c);
}
FL_INLINE vec v_fnma(vec a, vec b, vec c)
{
    return _mm512_fnmadd_pd(a, b, c);
}
FL_INLINE vec v_min(vec a, vec b)
{
    return _mm512_min_pd(a, b);
}
FL_INLINE vec v_max(vec a, vec b)
{
    return _mm512_max_pd(a, b);
}
FL_INLINE vec v_sqrt(vec a)
{
    return _mm512_sqrt_pd(a);
}
FL_INLINE vec v_load_n(const real *p, int n)
{
    return _mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1u), p);
}
FL_INLINE void v_store_n(real *p, vec a, int n)
{
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1u), a);
}
FL_INLINE ivec v_imax(ivec a, ivec b)
{
    return (ivec)_mm512_max_epi64((__m512i)a, (__m512i)b);
}
#else
FL_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
FL_INLINE vec v_fnma(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
FL_INLINE vec v_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}
FL_INLINE vec v_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
FL_INLINE vec v_sqrt(vec a)
{
    return _mm512_sqrt_ps(a);
}
FL_INLINE vec v_load_n(const real *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
FL_INLINE void v_store_n(real *p, vec a, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), a);
}
FL_INLINE ivec v_imax(ivec a, ivec b)
{
    return (ivec)_mm512_max_epi32((__m512i)a, (__m512i)b);
}
/* 2 * FL_LANES bytes as int16, two in a lane. */
FL_INLINE ivec v_widen_bytes(const int8_t *p)
{
    return (ivec)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
/* Sum of the products of the two int16 of each lane. */
FL_INLINE ivec v_dot_pairs(ivec a, ivec b)
{
    return (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#if defined(__AVX512VNNI__)
/* sum + the products of the four bytes of each lane, of `a` unsigned and of `b` signed. */
FL_INLINE ivec v_dot_quads(ivec sum, ivec a, ivec b)
{
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#endif
#endif
