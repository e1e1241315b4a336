/* Included by an ISA file after it has said which ISA it is: every body for both dtypes, and the
 * table. */
#include <math.h>

#include "isa/isa.h"

#define FL_SUFFIX f32
#define FL_DOUBLE 0
#include "isa/bodies_dtype.h"
#include "kernels/bfloat16_gemm.h"
#include "kernels/int8_gemm.h"
enum { FL_LANES_f32 = FL_LANES };
#undef FL_SUFFIX
#undef FL_DOUBLE
#define FL_SUFFIX f64
#define FL_DOUBLE 1
#include "isa/bodies_dtype.h"
enum { FL_LANES_f64 = FL_LANES };
#undef FL_SUFFIX
#undef FL_DOUBLE

#define FL_TABLES                                                                                  \
    FL_TABLE(f32), FL_TABLE(f64),                                                                  \
    {                                                                                              \
        gemm_bfloat16,                                                                             \
        {                                                                                          \
            INT8_DEPTHS, INT8_HEAD, gemm_int8, quantize                                            \
        }                                                                                          \
    }
#define FL_TABLE(dtype)                                                                            \
    {                                                                                              \
        FL_LANES_##dtype, FL_TILE_ROWS, gemm_##dtype, cell_table_##dtype,                          \
            (int)(sizeof cell_table_##dtype / sizeof cell_table_##dtype[0]),                       \
            v_sigmoid_array_##dtype, v_tanh_array_##dtype, multiply_##dtype, sum_squares_##dtype,  \
            sum_rows_##dtype, add_unit_products_##dtype, zone_##dtype, zone_gradient_##dtype,      \
            fl_draw_zones, normalize_##dtype, normalize_gradient_##dtype, ctc_##dtype,             \
            softmax_##dtype,                                                                       \
        {                                                                                          \
            optimizer_sgd_##dtype, optimizer_rmsprop_##dtype, optimizer_adam_##dtype,              \
                optimizer_adamw_##dtype, optimizer_nadam_##dtype                                   \
        }                                                                                          \
    }
