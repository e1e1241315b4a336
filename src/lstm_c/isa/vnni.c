/* Products with int8 weights by AVX-512 VNNI, beside the AVX-512 table. Nothing where the compiler
 * was not given the flag. */
#include "isa/isa.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define FL_ISA_AVX512 1
#define FL_TILE_ROWS 3 /* with two digits, 24 of 32 registers */
#define FL_SUFFIX f32
#define FL_DOUBLE 0
#include "simd/vec.h"

#include "kernels/tile_walk.h"

#define FL_INT8_QUADS 1
#include "kernels/int8_gemm.h"

const fl_int8_kernels fl_int8_vnni = {INT8_DEPTHS, INT8_HEAD, gemm_int8, quantize};
#else
const fl_int8_kernels fl_int8_vnni = {0};
#endif
