/* AVX-512 F, BW, DQ, VL. An empty table where the compiler was not given the flags. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FL_ISA_AVX512 1
#include "isa/bodies.h"

const fl_isa fl_isa_avx512 = {"avx512", 1, FL_TABLES};
#else
#include "isa/isa.h"

const fl_isa fl_isa_avx512 = {.name = "avx512"};
#endif
