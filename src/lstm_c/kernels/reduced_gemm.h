/* Products with weights in two bytes or one, float32 alone. For a row or a few, which wait for
 * their weights: 16 H^2 bytes a step in float32 are 8 or 4 H^2 here.
 *
 * bfloat16: a weight is the upper half of a float, so one shift or one mask widens a vector of
 * them, and products and sums are those of plain weights of the same values, in the same order.
 * int8: weights and rows are integers and so is their sum, exactly: no order changes it. A row has
 * as many of int16's bits as keep the sum in 32. */

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

/* sums += A W in integers; w: (blocks, pairs of depths, vectors, lanes, 2). */
FL_INLINE void accumulate_int8(const fl_reduced_gemm *g, const int nv, const int mr, const int nb,
                               int64_t row, int64_t block, ivec sums[][FL_BLOCK_VECTORS * 2])
{
    int64_t width = 2 * nv * FL_LANES, pairs = (g->depth + 1) / 2, b_block = pairs * width;
    const int8_t *b = (const int8_t *)g->b + block * b_block;
    const int16_t *a = g->quantized + row * g->quantized_row;
    for (int64_t k = 0; k < pairs; k++, a += 2, b += width) {
        FL_UNROLL
        for (int j = 0; j < nb * nv; j++) {
            ivec weights = v_widen_bytes(b + j / nv * b_block + j % nv * 2 * FL_LANES);
            FL_UNROLL
            for (int r = 0; r < mr; r++) {
                int32_t pair;
                __builtin_memcpy(&pair, a + r * g->quantized_row, sizeof pair);
                sums[r][j] += v_dot_pairs(weights, v_iset1(pair));
            }
        }
    }
}

FL_INLINE void gemm_int8_tile(const fl_reduced_gemm *g, const int nv, const int mr, const int nb,
                              int64_t row, int64_t block)
{
    ivec sums[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    int64_t column = block * nv * FL_LANES;
    FL_UNROLL
    for (int k = 0; k < mr * nb * nv; k++)
        sums[k / (nb * nv)][k % (nb * nv)] = v_iset1(0);
    accumulate_int8(g, nv, mr, nb, row, block, sums);
    FL_UNROLL
    for (int k = 0; k < mr * nb * nv; k++) {
        int r = k / (nb * nv), j = k % (nb * nv);
        int64_t at = column + j * FL_LANES;
        vec scale = v_set1(g->row_scale[row + r]) * v_load(g->column_scale + at),
            sum = __builtin_convertvector(sums[r][j], vec);
        v_store(g->c + (row + r) * g->c_row + at,
                v_fma(scale, sum, v_load(g->init + (row + r) * g->init_row + at)));
    }
}

static void gemm_int8(const fl_reduced_gemm *g)
{
    if (g->vectors == 3)
        FL_TILE_WALK(gemm_int8_tile, g, 3, g->rows, g->block_first, g->block_end, g->descending);
    else
        FL_TILE_WALK(gemm_int8_tile, g, FL_BLOCK_VECTORS, g->rows, g->block_first, g->block_end,
                     g->descending);
}

/* Largest magnitude of a row; NaN where a value is not finite. */
static float largest_magnitude(const float *row, int64_t depth)
{
    vec largest = v_zero(), unbounded = v_zero();
    for (int64_t k = 0; k < depth; k += FL_LANES) {
        vec x = FL_T(load_column)(row, k, depth);
        largest = v_max(largest, v_max(x, -x));
        unbounded += x - x;
    }
    float lane[FL_LANES], found = 0;
    v_store(lane, largest);
    for (int i = 0; i < FL_LANES; i++)
        found = lane[i] > found ? lane[i] : found;
    return found + v_hsum(unbounded);
}

static float quantize(const float *row, int64_t depth, float limit, int16_t *to)
{
    typedef int16_t shorts __attribute__((vector_size(2 * FL_LANES)));
    const vec shift = v_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to integers */
    float largest = largest_magnitude(row, depth);
    float factor = largest > 1e-30f ? limit / largest : 0; /* 0: nothing counts, or NaN */
    to[depth] = 0;
    for (int64_t k = 0; k < depth; k += FL_LANES) {
        vec scaled = FL_T(load_column)(row, k, depth) * v_set1(factor);
        if (!(factor > 0))
            scaled = v_zero();
        shorts rounded = __builtin_convertvector(
            __builtin_convertvector((scaled + shift) - shift, ivec), shorts);
        int64_t left = depth - k;
        __builtin_memcpy(to + k, &rounded, 2 * (size_t)(left < FL_LANES ? left : FL_LANES));
    }
    return factor > 0 ? largest / limit : largest - largest;
}
