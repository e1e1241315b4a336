/* Products with weights in bfloat16, float32 alone. For a row or a few, which wait for their
 * weights: 16 H^2 bytes a step in float32 are 8 H^2 here.
 *
 * A weight is the upper half of a float, so one shift or one mask widens a vector of them, and
 * products and sums are those of plain weights of the same values, in the same order. */

FL_INLINE ivec load_lanes(const uint32_t *p)
{
    ivec lanes;
    __builtin_memcpy(&lanes, p, sizeof lanes);
    return lanes;
}

/* acc += A W of `mr` rows and `nb` blocks; w: (blocks, pairs of depths, vectors, lanes). */
FL_INLINE void accumulate_bfloat16(const fl_reduced_gemm *g, const int nv, const int mr,
                                   const int nb, int64_t row, int64_t block,
                                   vec acc[][FL_BLOCK_VECTORS * 2])
{
    int64_t width = nv * FL_LANES, pairs = g->depth / 2;
    int64_t b_block = (g->depth + 1) / 2 * width;
    const uint32_t *b = (const uint32_t *)g->b + block * b_block;
    const float *a = g->a + row * g->a_row;
    for (int64_t k = 0; k <= pairs; k++, a += 2, b += width) {
        const int last = k == pairs;
        if (last && g->depth % 2 == 0)
            break;
        FL_UNROLL
        for (int j = 0; j < nb * nv; j++) {
            ivec both = load_lanes(b + j / nv * b_block + j % nv * FL_LANES);
            FL_UNROLL
            for (int r = 0; r < mr; r++)
                acc[r][j] = v_fma(v_set1(a[r * g->a_row]), (vec)(both << 16), acc[r][j]);
            FL_UNROLL
            for (int r = 0; !last && r < mr; r++)
                acc[r][j] = v_fma(v_set1(a[r * g->a_row + 1]),
                                  (vec)(both & v_iset1((int32_t)0xffff0000)), acc[r][j]);
        }
    }
}

FL_INLINE void gemm_bfloat16_tile(const fl_reduced_gemm *g, const int nv, const int mr,
                                  const int nb, int64_t row, int64_t block)
{
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    int64_t column = block * nv * FL_LANES;
    FL_UNROLL
    for (int k = 0; k < mr * nb * nv; k++) {
        int r = k / (nb * nv), j = k % (nb * nv);
        acc[r][j] = v_load(g->init + (row + r) * g->init_row + column + j * FL_LANES);
    }
    accumulate_bfloat16(g, nv, mr, nb, row, block, acc);
    FL_UNROLL
    for (int k = 0; k < mr * nb * nv; k++) {
        int r = k / (nb * nv), j = k % (nb * nv);
        v_store(g->c + (row + r) * g->c_row + column + j * FL_LANES, acc[r][j]);
    }
}

static void gemm_bfloat16(const fl_reduced_gemm *g)
{
    if (g->vectors == 3)
        FL_TILE_WALK(gemm_bfloat16_tile, g, 3, g->rows, g->block_first, g->block_end,
                     g->descending);
    else
        FL_TILE_WALK(gemm_bfloat16_tile, g, FL_BLOCK_VECTORS, g->rows, g->block_first, g->block_end,
                     g->descending);
}
