/* The vector vocabulary: FL_LANES reals a vector, GCC/clang vector extensions for arithmetic (+ - *
 * /), a few functions where an instruction is needed. Included once per dtype by an ISA file that
 * has defined exactly one of FL_ISA_PORTABLE, FL_ISA_AVX2, FL_ISA_AVX512.
 *
 * Minimum and maximum return their second operand when one is NaN (x86's rule), so `v_max(limit,
 * x)` lets a NaN in x through. */
#include "simd/dtype.h" /* guarded; everything else here is per dtype */

#define vec FL_T(vec)
#define ivec FL_T(ivec)
#define v_load FL_T(v_load)
#define v_store FL_T(v_store)
#define v_load_n FL_T(v_load_n)
#define v_store_n FL_T(v_store_n)
#define v_set1 FL_T(v_set1)
#define v_zero FL_T(v_zero)
#define v_fma FL_T(v_fma)
#define v_fnma FL_T(v_fnma)
#define v_min FL_T(v_min)
#define v_max FL_T(v_max)
#define v_sqrt FL_T(v_sqrt)
#define v_positive FL_T(v_positive)
#define v_hsum FL_T(v_hsum)
#define v_iset1 FL_T(v_iset1)
#define v_imax FL_T(v_imax)
#define v_widen_bytes FL_T(v_widen_bytes) /* float alone, as the next one */
#define v_dot_pairs FL_T(v_dot_pairs)
#define v_dot_quads FL_T(v_dot_quads) /* where the ISA has it */

#if defined(FL_ISA_AVX512)
#define FL_VECTOR_BYTES 64
#define FL_REGISTERS 32
#elif defined(FL_ISA_AVX2)
#define FL_VECTOR_BYTES 32
#define FL_REGISTERS 16
#elif defined(FASTLSTM_EMULATE_TILES) /* the layout of the table that has tiles beside it */
#define FL_VECTOR_BYTES 64
#define FL_REGISTERS 0
#else
#define FL_VECTOR_BYTES 16
#define FL_REGISTERS 0 /* products and sums apart need some: left to the compiler */
#endif

#undef FL_LANES
#if FL_DOUBLE
#define FL_LANES (FL_VECTOR_BYTES / 8)
typedef int64_t FL_T(lane);
typedef FL_T(lane) ivec __attribute__((vector_size(FL_VECTOR_BYTES)));
#else
#define FL_LANES (FL_VECTOR_BYTES / 4)
typedef int32_t FL_T(lane);
typedef FL_T(lane) ivec __attribute__((vector_size(FL_VECTOR_BYTES)));
#endif
typedef real vec __attribute__((vector_size(FL_VECTOR_BYTES)));
typedef real FL_T(vec_unaligned)
    __attribute__((vector_size(FL_VECTOR_BYTES), aligned(4), may_alias));

FL_INLINE vec v_load(const real *p)
{
    return *(const FL_T(vec_unaligned) *)p;
}
FL_INLINE void v_store(real *p, vec a)
{
    *(FL_T(vec_unaligned) *)p = a;
}
FL_INLINE vec v_set1(real a)
{
    return a - (vec){0};
}
FL_INLINE vec v_zero(void)
{
    return (vec){0};
}
FL_INLINE ivec v_iset1(FL_T(lane) a)
{
    return a - (ivec){0};
}

/* a where mask (all ones or all zeros per lane), else b. */
FL_INLINE vec FL_T(v_blend)(ivec mask, vec a, vec b)
{
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}
/* x where x > 0, else 0; NaN stays NaN. */
FL_INLINE vec v_positive(vec x)
{
    return (vec)((ivec)x & ~(ivec)(x < v_zero()));
}

#if defined(FL_ISA_AVX512)
#include "simd/vec_avx512.h"
#elif defined(FL_ISA_AVX2)
#include "simd/vec_avx2.h"
#else
#include "simd/vec_portable.h"
#endif

/* Sum of the lanes, halves first: one fixed order. */
FL_INLINE real v_hsum(vec a)
{
    real lane[FL_LANES];
    v_store(lane, a);
    for (int width = FL_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}
