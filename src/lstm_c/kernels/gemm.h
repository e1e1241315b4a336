/* The one register tile: MR rows times NV vectors, accumulated over the depth in order.
 *
 * AVX-512: 6 x 4 = 24 accumulators, per depth 4 loads, 6 broadcasts, 24 FMAs. AVX2 and SSE: 3 x 4 =
 * 12 of 16 registers. A is read through two element strides, so the same tile serves A (depth
 * contiguous) and A^T (rows contiguous, weight gradients); B is a packed block or any matrix whose
 * rows are contiguous. */

/* acc[nb*nv + slots.first + v] of each row += sum over k of a[row, k] * b[nb, k, v], v <
 * slots.count. mr, nv, slots and nb are compile-time constants of the caller. With vectors of a
 * cache line, high tiles fetch a line `ahead` values behind every other row of b meanwhile (0:
 * none). Where the registers do not hold all vectors of a depth beside the sums, they hold the
 * values of the rows, and one vector after the other. */
FL_INLINE void FL_T(slots_accumulate)(const int mr, const int nv, const fl_slots slots,
                                      const int nb, vec acc[][FL_BLOCK_VECTORS * 2], const real *a,
                                      int64_t a_row, int64_t a_depth, const real *b,
                                      int64_t b_block, int64_t b_depth, int64_t depth,
                                      int64_t ahead)
{
    const real *a_high = a + 3 * a_row;
    const int vectors = nb * slots.count, spare = FL_REGISTERS - mr * vectors - 1,
              keeps_vectors = mr > 1 && spare >= vectors, keeps_rows = mr > 1 && spare == mr;
    for (int64_t k = 0; k < depth; k++) {
        vec w[FL_BLOCK_VECTORS * 2], x[FL_TILE_ROWS];
        if (sizeof(vec) == 64 && mr > 4 && !(k & 1))
            __builtin_prefetch(b + ahead, 0, 2);
        FL_UNROLL
        for (int r = 0; keeps_rows && r < mr; r++) {
            x[r] = v_set1(a[r * a_row]);
            FL_IN_REGISTER(x[r]);
        }
        FL_UNROLL
        for (int j = 0; j < nb; j++) {
            FL_UNROLL
            for (int v = 0; v < slots.count; v++) {
                w[j * slots.count + v] = v_load(b + j * b_block + v * FL_LANES);
                if (keeps_rows)
                    FL_IN_REGISTER(w[v]);
                FL_UNROLL
                for (int r = 0; keeps_rows && r < mr; r++)
                    acc[r][slots.first + v] = v_fma(x[r], w[v], acc[r][slots.first + v]);
            }
        }
        FL_UNROLL
        for (int v = 0; keeps_vectors && v < vectors; v++)
            FL_IN_REGISTER(w[v]);
        FL_UNROLL
        for (int r = 0; !keeps_rows && r < mr; r++) {
            vec broadcast = v_set1(r < 3 ? a[r * a_row] : a_high[(r - 3) * a_row]);
            FL_UNROLL
            for (int k = 0; k < nb * slots.count; k++) {
                int v = k / slots.count * nv + slots.first + k % slots.count;
                acc[r][v] = v_fma(broadcast, w[k], acc[r][v]);
            }
        }
        a += a_depth;
        a_high += a_depth;
        b += b_depth;
    }
}

/* The same with all vectors of a block. */
FL_INLINE void FL_T(tile_accumulate)(const int mr, const int nv, const int nb,
                                     vec acc[][FL_BLOCK_VECTORS * 2], const real *a, int64_t a_row,
                                     int64_t a_depth, const real *b, int64_t b_block,
                                     int64_t b_depth, int64_t depth)
{
    const fl_slots all = {0, nv};
    FL_T(slots_accumulate)(mr, nv, all, nb, acc, a, a_row, a_depth, b, b_block, b_depth, depth, 0);
}

/* 1 or 2: so many of the `nv` vectors of the last block of [first, end) have columns; 0: more, or
 * there is no block. */
FL_INLINE int FL_T(narrow_vectors)(int64_t columns, int nv, int64_t first, int64_t end)
{
    int64_t used = (columns + FL_LANES - 1) / FL_LANES - (end - 1) * nv;
    return first < end && used > 0 && used <= 2 && used < nv ? (int)used : 0;
}

/* The first `nv` vectors of `nb` blocks. */
FL_INLINE void FL_T(gemm_tile)(const FL_T(fl_gemm) * g, const int nv, const int mr, const int nb,
                               int64_t row, int64_t block)
{
    vec acc[FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    int64_t c_block = g->c_block ? g->c_block : g->vectors * FL_LANES;
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            acc[r][v] = g->init ? FL_T(load_column)(g->init + (row + r) * g->init_row,
                                                    (block + v / nv) * c_block + v % nv * FL_LANES,
                                                    g->columns)
                                : v_zero();
    }
    const real *a = g->a + row * g->a_row, *b = g->b + block * g->b_block;
    int64_t segment = g->segment ? g->segment : g->depth;
    const real *fetched = g->fetch_rows ? g->fetch + row / FL_TILE_ROWS * g->fetch_share : NULL;
    for (int64_t k = 0; k < g->depth; k += segment, a += g->a_segment, b += segment * g->b_depth) {
        for (int64_t i = 0; i < g->fetch_rows; i++, fetched += g->fetch_row)
            FL_FETCH(fetched, g->fetch_lines * FL_T(LINE));
        FL_T(tile_accumulate)(mr, nv, nb, acc, a, g->a_row, g->a_depth, b, g->b_block, g->b_depth,
                              segment);
    }
    FL_UNROLL
    for (int r = 0; r < mr; r++) {
        FL_UNROLL
        for (int v = 0; v < nv * nb; v++)
            FL_T(store_column)(g->c + (row + r) * g->c_row, acc[r][v],
                               (block + v / nv) * c_block + v % nv * FL_LANES, g->columns);
    }
}

/* The first `vectors` vectors of blocks [first, end). */
static void FL_T(gemm_blocks)(const FL_T(fl_gemm) * g, int vectors, int64_t first, int64_t end)
{
    switch (vectors) {
    case 1:
        FL_TILE_WALK(FL_T(gemm_tile), g, 1, g->rows, first, end, 0);
        break;
    case 2:
        FL_TILE_WALK(FL_T(gemm_tile), g, 2, g->rows, first, end, 0);
        break;
    case 3:
        FL_TILE_WALK(FL_T(gemm_tile), g, 3, g->rows, first, end, 0);
        break;
    default:
        FL_TILE_WALK(FL_T(gemm_tile), g, FL_BLOCK_VECTORS, g->rows, first, end, 0);
    }
}

static void FL_T(gemm_at_once)(const FL_T(fl_gemm) * g)
{
    int64_t first = g->block_first, end = g->block_end;
    int narrow = g->c_block ? 0 : FL_T(narrow_vectors)(g->columns, g->vectors, first, end);
    FL_T(gemm_blocks)(g, g->vectors, first, narrow ? end - 1 : end);
    if (narrow)
        FL_T(gemm_blocks)(g, narrow, end - 1, end);
}
