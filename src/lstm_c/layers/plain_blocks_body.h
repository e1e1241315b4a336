/* Packing of a matrix into plain blocks (kernels.h), for one dtype. */
#include "simd/dtype.h"

/* Element (k, j) is weight[k * k_stride + j * j_stride]; packed: (blocks, depth, width), padding is
 * zero. */
static void FL_T(pack_plain)(const real *weight, int64_t depth, int64_t k_stride, int64_t columns,
                             int64_t j_stride, int64_t width, real *packed)
{
    for (int64_t first = 0; first < columns; first += width) {
        int64_t count = first + width < columns ? width : columns - first;
        for (int64_t k = 0; k < depth; k++, packed += width) {
            const real *from = weight + k * k_stride + first * j_stride;
            for (int64_t j = 0; j < count; j++)
                packed[j] = from[j * j_stride];
            for (int64_t j = count; j < width; j++)
                packed[j] = 0;
        }
    }
}
