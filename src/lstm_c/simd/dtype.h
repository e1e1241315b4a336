/* The element type of the translation unit part being compiled. A body is written once in terms of
 * `real` and included twice, after `#define FL_SUFFIX f32` and after `#define FL_SUFFIX f64` (with
 * FL_DOUBLE 0 / 1); FL_T(name) is the name with the suffix. */
#ifndef FL_SIMD_DTYPE_H
#define FL_SIMD_DTYPE_H

#include <stdint.h>

#include "base/compiler.h"

#define FL_T(name) FL_PASTE2(name, FL_SUFFIX)
#define real FL_T(real)

typedef float real_f32;
typedef double real_f64;

#endif
