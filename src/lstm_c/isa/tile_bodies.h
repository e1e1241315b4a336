/* Products on tiles, and the vectors of what is done beside them: those of the table that they
 * stand beside. */
#include "isa/isa.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FL_ISA_AVX512 1
#else
#define FL_ISA_PORTABLE 1
#endif
#define FL_SUFFIX f32
#define FL_DOUBLE 0
#include "simd/vec.h"

#include "kernels/tile_walk.h"

#include "kernels/activations.h"
#include "kernels/tile_gemm.h"
