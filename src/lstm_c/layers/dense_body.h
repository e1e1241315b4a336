/* Dense layer for one dtype; see dense.c. */
#include "layers/dense.h"
#include "layers/plain_blocks_body.h"

/* c (rows, columns) = init + A B; B given by strides, packed into `scratch`. */
static void FL_T(product)(const FL_T(fl_kernels) * kernels, int64_t rows, int64_t depth,
                          int64_t columns, const real *a, int64_t a_row, int64_t a_depth,
                          const real *b, int64_t b_depth, int64_t b_column, const real *bias,
                          real *c, real *scratch)
{
    int vectors = columns <= kernels->lanes ? 1 : FL_BLOCK_VECTORS;
    int64_t width = vectors * kernels->lanes;
    FL_T(pack_plain)(b, depth, b_depth, columns, b_column, width, scratch);
    FL_T(fl_gemm)
    gemm = {.rows = rows,
            .depth = depth,
            .columns = columns,
            .block_end = (columns + width - 1) / width,
            .a = a,
            .a_row = a_row,
            .a_depth = a_depth,
            .b = scratch,
            .b_block = width * depth,
            .b_depth = width,
            .vectors = vectors,
            .init = bias,
            .init_row = 0,
            .c = c,
            .c_row = columns};
    kernels->gemm(&gemm);
}

static fl_status FL_T(dense)(const fl_isa *isa, const fl_dense_call *call)
{
    const FL_T(fl_kernels) *kernels = &isa->FL_SUFFIX;
    int64_t n = call->n, in = call->in, out = call->out;
    int64_t widest = in > out ? in : out, deepest = n > widest ? n : widest, packed;
    fl_arena arena = {0};
    if (__builtin_add_overflow(widest, FL_BLOCK_VECTORS * kernels->lanes, &widest) ||
        __builtin_mul_overflow(deepest, widest, &packed))
        return FL_ERR_OVERFLOW;
    fl_arena_take(&arena, packed, sizeof(real));
    fl_status status = fl_arena_commit(&arena);
    if (status != FL_OK)
        return status;
    real *scratch = fl_arena_take(&arena, packed, sizeof(real));
    if (call->y)
        FL_T(product)(kernels, n, in, out, call->x, in, 1, call->weight, 1, in, call->bias, call->y,
                      scratch);
    if (call->dweight)
        FL_T(product)(kernels, out, n, in, call->dy, 1, out, call->x, in, 1, NULL, call->dweight,
                      scratch);
    if (call->dx)
        FL_T(product)(kernels, n, out, in, call->dy, out, 1, call->weight, in, 1, NULL, call->dx,
                      scratch);
    for (int64_t j = 0; call->dbias && j < out; j++) {
        real sum = 0;
        for (int64_t row = 0; row < n; row++)
            sum += ((const real *)call->dy)[row * out + j];
        ((real *)call->dbias)[j] = sum;
    }
    fl_arena_release(&arena);
    return FL_OK;
}
