/* AVX2 and FMA. An empty table where the compiler was not given the flags. */
#if defined(__AVX2__) && defined(__FMA__)
#define FL_ISA_AVX2 1
#include "isa/bodies.h"

const fl_isa fl_isa_avx2 = {"avx2", 1, FL_TABLES};
#else
#include "isa/isa.h"

const fl_isa fl_isa_avx2 = {.name = "avx2"};
#endif
