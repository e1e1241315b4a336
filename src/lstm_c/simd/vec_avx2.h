/* AVX2 + FMA: 32-byte vectors, 16 registers. */
#include <immintrin.h>

#define FL_TILE_ROWS 3

#ifndef FL_SIMD_AVX2_MASK
#define FL_SIMD_AVX2_MASK
FL_INLINE __m256i fl_mask32(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FL_INLINE __m256i fl_mask64(int n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

#if FL_DOUBLE
FL_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_pd(a, b, c);
}
FL_INLINE vec v_fnma(vec a, vec b, vec c)
{
    return _mm256_fnmadd_pd(a, b, c);
}
FL_INLINE vec v_min(vec a, vec b)
{
    return _mm256_min_pd(a, b);
}
FL_INLINE vec v_max(vec a, vec b)
{
    return _mm256_max_pd(a, b);
}
FL_INLINE vec v_sqrt(vec a)
{
    return _mm256_sqrt_pd(a);
}
FL_INLINE vec v_load_n(const real *p, int n)
{
    return _mm256_maskload_pd(p, fl_mask64(n));
}
FL_INLINE void v_store_n(real *p, vec a, int n)
{
    _mm256_maskstore_pd(p, fl_mask64(n), a);
}
FL_INLINE ivec v_imax(ivec a, ivec b)
{
    return (ivec)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)(a > b));
}
#else
FL_INLINE vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
FL_INLINE vec v_fnma(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
FL_INLINE vec v_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}
FL_INLINE vec v_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
FL_INLINE vec v_sqrt(vec a)
{
    return _mm256_sqrt_ps(a);
}
FL_INLINE vec v_load_n(const real *p, int n)
{
    return _mm256_maskload_ps(p, fl_mask32(n));
}
FL_INLINE void v_store_n(real *p, vec a, int n)
{
    _mm256_maskstore_ps(p, fl_mask32(n), a);
}
FL_INLINE ivec v_imax(ivec a, ivec b)
{
    return (ivec)_mm256_max_epi32((__m256i)a, (__m256i)b);
}
/* 2 * FL_LANES bytes as int16, two in a lane. */
FL_INLINE ivec v_widen_bytes(const int8_t *p)
{
    return (ivec)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}
/* Sum of the products of the two int16 of each lane. */
FL_INLINE ivec v_dot_pairs(ivec a, ivec b)
{
    return (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#endif
