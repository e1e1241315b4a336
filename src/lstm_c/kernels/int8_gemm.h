/* Products with weights in int8, float32 alone: 4 H^2 bytes a step.
 *
 * Weights and rows are integers and so is their sum, exactly: no order changes it. A row has as
 * many of int16's bits as keep the sum in 32. Two depths of a column lie together and are widened
 * to int16, or, with FL_INT8_QUADS and an instruction for it, four as they are. A row is two
 * unsigned digits of 8 bits then, value = 256 high + low - 32768; what the last term makes of a
 * column is the head of its weights. Sums wrap on their way, not at the end. */

#if defined(FL_INT8_QUADS)
enum { INT8_DEPTHS = 4, INT8_HEAD = 1, INT8_DIGITS = 2, INT8_OFFSET = 32768 };
#else
enum { INT8_DEPTHS = 2, INT8_HEAD = 0, INT8_DIGITS = 1 };
#endif

typedef uint32_t int8_lanes __attribute__((vector_size(FL_VECTOR_BYTES))); /* sums, which wrap */

/* sum + the products of a group of depths of a vector of columns. */
FL_INLINE ivec add_group(ivec sum, ivec weights, int32_t of_row)
{
#if defined(FL_INT8_QUADS)
    return v_dot_quads(sum, v_iset1(of_row), weights);
#else
    return sum + v_dot_pairs(weights, v_iset1(of_row));
#endif
}

FL_INLINE ivec load_group(const int8_t *p)
{
#if defined(FL_INT8_QUADS)
    ivec weights;
    __builtin_memcpy(&weights, p, sizeof weights);
    return weights;
#else
    return v_widen_bytes(p);
#endif
}

/* Bytes from the one digit of a row to the other. */
FL_INLINE int64_t int8_digit(int64_t depth)
{
    return (depth + 3) / 4 * 4;
}

FL_INLINE int64_t int8_block(const fl_reduced_gemm *g, const int nv)
{
    int64_t groups = (g->depth + INT8_DEPTHS - 1) / INT8_DEPTHS;
    return (INT8_HEAD + groups) * INT8_DEPTHS * nv * FL_LANES;
}

/* sums += A W in integers; w: (blocks, head and groups of depths, vectors, lanes, depths). */
FL_INLINE void accumulate_int8(const fl_reduced_gemm *g, const int nv, const int mr, const int nb,
                               int64_t row, int64_t block,
                               ivec sums[INT8_DIGITS][FL_TILE_ROWS][FL_BLOCK_VECTORS * 2])
{
    enum { VECTOR = INT8_DEPTHS * FL_LANES, GROUP_OF_ROW = 4 };
    int64_t width = nv * VECTOR, b_block = int8_block(g, nv), digit = int8_digit(g->depth),
            groups = b_block / width - INT8_HEAD;
    const int8_t *b = (const int8_t *)g->b + block * b_block + INT8_HEAD * width;
    const char *a = (const char *)g->quantized + row * g->quantized_row;
    for (int64_t group = 0; group < groups; group++, a += GROUP_OF_ROW, b += width) {
        FL_UNROLL
        for (int j = 0; j < nb * nv; j++) {
            ivec weights = load_group(b + j / nv * b_block + j % nv * VECTOR);
            FL_UNROLL
            for (int k = 0; k < mr * INT8_DIGITS; k++) {
                int r = k / INT8_DIGITS, d = k % INT8_DIGITS;
                int32_t of_row;
                __builtin_memcpy(&of_row, a + r * g->quantized_row + d * digit, sizeof of_row);
                sums[d][r][j] = add_group(sums[d][r][j], weights, of_row);
            }
        }
    }
}

/* The sum from those of the digits; `head`: that of the weights of its columns. */
FL_INLINE ivec whole_sum(ivec sums[INT8_DIGITS][FL_TILE_ROWS][FL_BLOCK_VECTORS * 2], int r, int j,
                         const int8_t *head)
{
#if defined(FL_INT8_QUADS)
    int8_lanes high = (int8_lanes)sums[0][r][j], low = (int8_lanes)sums[1][r][j];
    return (ivec)((high << 8) + low + (int8_lanes)load_group(head));
#else
    (void)head;
    return sums[0][r][j];
#endif
}

FL_INLINE void gemm_int8_tile(const fl_reduced_gemm *g, const int nv, const int mr, const int nb,
                              int64_t row, int64_t block)
{
    ivec sums[INT8_DIGITS][FL_TILE_ROWS][FL_BLOCK_VECTORS * 2];
    int64_t column = block * nv * FL_LANES;
    FL_UNROLL
    for (int k = 0; k < INT8_DIGITS * mr * nb * nv; k++)
        sums[k / (mr * nb * nv)][k / (nb * nv) % mr][k % (nb * nv)] = v_iset1(0);
    accumulate_int8(g, nv, mr, nb, row, block, sums);
    FL_UNROLL
    for (int k = 0; k < mr * nb * nv; k++) {
        int r = k / (nb * nv), j = k % (nb * nv);
        int64_t at = column + j * FL_LANES;
        const int8_t *head = (const int8_t *)g->b + (block + j / nv) * int8_block(g, nv) +
                             j % nv * INT8_DEPTHS * FL_LANES;
        vec scale = v_set1(g->row_scale[row + r]) * v_load(g->column_scale + at),
            sum = __builtin_convertvector(whole_sum(sums, r, j, head), vec);
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

/* `count` integers of a row of `depth` from `k` on. */
FL_INLINE void store_integers(ivec integers, int64_t count, int64_t k, int64_t depth, void *to)
{
#if defined(FL_INT8_QUADS)
    typedef uint8_t bytes __attribute__((vector_size(FL_LANES)));
    int8_lanes shifted = (int8_lanes)(integers + v_iset1(INT8_OFFSET));
    bytes high = __builtin_convertvector(shifted >> 8, bytes),
          low = __builtin_convertvector(shifted & 0xff, bytes);
    __builtin_memcpy((char *)to + k, &high, (size_t)count);
    __builtin_memcpy((char *)to + int8_digit(depth) + k, &low, (size_t)count);
#else
    (void)depth;
    typedef int16_t shorts __attribute__((vector_size(2 * FL_LANES)));
    shorts stored = __builtin_convertvector(integers, shorts);
    __builtin_memcpy((int16_t *)to + k, &stored, sizeof(int16_t) * (size_t)count);
#endif
}

/* Zeros between the last depth and the end of its group, whatever weights they meet. */
FL_INLINE void pad_integers(int64_t depth, void *to)
{
#if defined(FL_INT8_QUADS)
    int64_t digit = int8_digit(depth);
    __builtin_memset((char *)to + digit - 4, 0, 4);
    __builtin_memset((char *)to + 2 * digit - 4, 0, 4);
#else
    ((int16_t *)to)[depth] = 0;
#endif
}

static float quantize(const float *row, int64_t depth, float limit, void *to)
{
    const vec shift = v_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to integers */
    float largest = largest_magnitude(row, depth);
    float factor = largest > 1e-30f ? limit / largest : 0; /* 0: nothing counts, or NaN */
    pad_integers(depth, to);
    for (int64_t k = 0; k < depth; k += FL_LANES) {
        vec scaled = FL_T(load_column)(row, k, depth) * v_set1(factor);
        if (!(factor > 0))
            scaled = v_zero();
        ivec rounded = __builtin_convertvector((scaled + shift) - shift, ivec);
        int64_t left = depth - k;
        store_integers(rounded, left < FL_LANES ? left : FL_LANES, k, depth, to);
    }
    return factor > 0 ? largest / limit : largest - largest;
}
