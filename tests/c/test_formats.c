/* Products with weights in bfloat16, int8 and on tiles: against exact references, on arrays that
 * end where memory cannot be touched; and layers that use them, through the public functions. The
 * tiles here are those in plain C, whatever the machine has. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#define FL_TILE_NEAR_BYTES (48 * 1024) /* so that small products are far ones too */
#include "isa/tile_bodies.h"
#include "support.h"

static float random_float(generator *from, double limit)
{
    return (float)random_real(from, limit);
}

static float *floats_new(int64_t count)
{
    return guarded_new((size_t)count * sizeof(float));
}

/* ---- reduced weights ---- */

typedef struct shape {
    int64_t rows, depth, blocks;
    int vectors;
} shape;
static const shape shapes[] = {{1, 1, 1, 4},  {1, 2, 2, 3},  {1, 33, 5, 4}, {1, 64, 3, 3},
                               {2, 17, 3, 4}, {3, 40, 2, 3}, {7, 31, 3, 4}, {1, 600, 2, 4}};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

/* bfloat16 weights multiply as plain ones of the same values do, bit for bit. */
static void test_bfloat16(const fl_isa *isa, const shape *of)
{
    generator from = {11};
    int64_t width = of->vectors * isa->f32.lanes, columns = of->blocks * width,
            pairs = (of->depth + 1) / 2;
    float *a = floats_new(of->rows * of->depth), *b = floats_new(of->depth * columns),
          *init = floats_new(columns), *c = floats_new(of->rows * columns),
          *wanted = floats_new(of->rows * columns);
    uint16_t *reduced = guarded_new((size_t)(2 * pairs * columns) * sizeof(uint16_t));
    memset(reduced, 0, (size_t)(2 * pairs * columns) * sizeof(uint16_t));
    for (int64_t i = 0; i < of->rows * of->depth; i++)
        a[i] = random_float(&from, 1);
    for (int64_t i = 0; i < columns; i++)
        init[i] = random_float(&from, 1);
    for (int64_t block = 0; block < of->blocks; block++)
        for (int64_t k = 0; k < of->depth; k++)
            for (int64_t j = 0; j < width; j++) {
                uint32_t bits = nearest_bfloat16(tile_bits(random_float(&from, 0.3)));
                b[(block * of->depth + k) * width + j] = tile_value(bits);
                reduced[((block * pairs + k / 2) * width + j) * 2 + k % 2] = (uint16_t)(bits >> 16);
            }
    fl_gemm_f32 plain = {.rows = of->rows,
                         .depth = of->depth,
                         .columns = columns,
                         .block_end = of->blocks,
                         .a = a,
                         .a_row = of->depth,
                         .a_depth = 1,
                         .b = b,
                         .b_block = width * of->depth,
                         .b_depth = width,
                         .vectors = of->vectors,
                         .init = init,
                         .c = wanted,
                         .c_row = columns};
    isa->f32.gemm(&plain);
    for (int descending = 0; descending < 2; descending++) {
        fl_reduced_gemm gemm = {.rows = of->rows,
                                .depth = of->depth,
                                .block_end = of->blocks,
                                .descending = descending,
                                .vectors = of->vectors,
                                .a = a,
                                .a_row = of->depth,
                                .b = reduced,
                                .init = init,
                                .c = c,
                                .c_row = columns};
        isa->reduced.gemm_bfloat16(&gemm);
        CHECK(memcmp(c, wanted, (size_t)(of->rows * columns) * sizeof *c) == 0);
    }
    guarded_check();
    void *arrays[] = {a, b, init, c, wanted, reduced};
    for (int i = 0; i < 6; i++)
        guarded_free(arrays[i]);
}

/* Value k of a row in the integers of `kernels`. */
static int integer_at(const fl_int8_kernels *kernels, const uint8_t *row, int64_t depth, int64_t k)
{
    if (kernels->depths == 4) /* two digits */
        return 256 * row[k] + row[(depth + 3) / 4 * 4 + k] - 32768;
    int16_t value;
    memcpy(&value, row + k * (int64_t)sizeof value, sizeof value);
    return value;
}

/* Integers: the sum is exact, at the largest magnitudes too, and only its scaling rounds. */
static void test_int8(const fl_int8_kernels *kernels, int64_t lanes, const shape *of, int extreme)
{
    generator from = {12};
    int64_t width = of->vectors * lanes, columns = of->blocks * width, depths = kernels->depths,
            groups = kernels->head + (of->depth + depths - 1) / depths,
            row_size = fl_int8_row(of->depth);
    int limit = INT32_MAX / (127 * of->depth) < INT16_MAX ? (int)(INT32_MAX / (127 * of->depth))
                                                          : INT16_MAX;
    uint8_t *a = guarded_new((size_t)(of->rows * row_size));
    int8_t *b = guarded_new((size_t)(groups * depths * columns)),
           *weight = guarded_new((size_t)(of->depth * columns));
    float *value = floats_new(of->rows * of->depth), *row_scale = floats_new(of->rows),
          *column_scale = floats_new(columns), *c = floats_new(of->rows * columns);
    memset(b, 0, (size_t)(groups * depths * columns));
    for (int64_t row = 0; row < of->rows; row++) {
        for (int64_t k = 0; k < of->depth; k++) /* the largest is `limit`: none is rounded */
            value[row * of->depth + k] =
                k == 0 || extreme ? (float)limit
                                  : (float)((int)random_below(&from, 2 * limit + 1) - limit);
        float scale =
            kernels->quantize(value + row * of->depth, of->depth, (float)limit, a + row * row_size);
        CHECK_EQUAL(scale, 1);
        row_scale[row] = random_float(&from, 1);
    }
    for (int64_t column = 0; column < columns; column++) {
        int32_t sum = 0;
        int8_t *to = b + (column / width * groups * width + column % width) * depths;
        column_scale[column] = random_float(&from, 1);
        for (int64_t k = 0; k < of->depth; k++) {
            int8_t drawn = extreme ? -127 : (int8_t)(random_below(&from, 255) - 127);
            to[(kernels->head + k / depths) * width * depths + k % depths] = drawn;
            weight[column * of->depth + k] = drawn;
            sum += drawn;
        }
        uint32_t head = (uint32_t)sum * (uint32_t)-32768;
        if (kernels->head)
            memcpy(to, &head, sizeof head);
    }
    for (int64_t i = 0; i < of->rows * columns; i++)
        c[i] = 0.5f;
    fl_reduced_gemm gemm = {.rows = of->rows,
                            .depth = of->depth,
                            .block_end = of->blocks,
                            .vectors = of->vectors,
                            .quantized = a,
                            .quantized_row = row_size,
                            .row_scale = row_scale,
                            .column_scale = column_scale,
                            .b = b,
                            .init = c,
                            .init_row = columns,
                            .c = c,
                            .c_row = columns};
    kernels->gemm(&gemm);
    for (int64_t i = 0; i < of->rows * columns; i++) {
        int64_t row = i / columns, column = i % columns, sum = 0;
        for (int64_t k = 0; k < of->depth; k++)
            sum += (int64_t)value[row * of->depth + k] * weight[column * of->depth + k];
        double product = (double)row_scale[row] * (double)column_scale[column] * (double)sum;
        CHECK_AT_MOST(fabs((double)c[i] - 0.5 - product), 3e-7 * (0.5 + fabs(product)));
    }
    guarded_check();
    void *arrays[] = {a, b, weight, value, row_scale, column_scale, c};
    for (int i = 0; i < 7; i++)
        guarded_free(arrays[i]);
}

static void test_quantize(const fl_int8_kernels *kernels)
{
    generator from = {13};
    for (int64_t depth = 1; depth < 40; depth++) {
        float *row = floats_new(depth);
        uint8_t *to = guarded_new((size_t)fl_int8_row(depth));
        for (int64_t k = 0; k < depth; k++)
            row[k] = random_float(&from, 3);
        float scale = kernels->quantize(row, depth, 1000, to);
        int largest = 0;
        for (int64_t k = 0; k < depth; k++) {
            int value = integer_at(kernels, to, depth, k);
            CHECK_AT_MOST(fabs((double)row[k] - (double)scale * value), 0.501 * (double)scale);
            largest = abs(value) > largest ? abs(value) : largest;
        }
        CHECK_EQUAL(largest, 1000);
        row[depth / 2] = (float)NAN;
        CHECK(isnan(kernels->quantize(row, depth, 1000, to)));
        row[depth / 2] = -(float)INFINITY;
        CHECK(isnan(kernels->quantize(row, depth, 1000, to)));
        memset(row, 0, (size_t)depth * sizeof *row);
        CHECK(kernels->quantize(row, depth, 1000, to) == 0);
        CHECK_EQUAL(integer_at(kernels, to, depth, 0), 0);
        guarded_check();
        guarded_free(row);
        guarded_free(to);
    }
}

static void test_int8_kernels(const fl_int8_kernels *kernels, int64_t lanes)
{
    for (int i = 0; i < N_SHAPES; i++) {
        check_context("int8, %d depths together, shape %d", kernels->depths, i);
        test_int8(kernels, lanes, &shapes[i], 0);
        test_int8(kernels, lanes, &shapes[i], 1);
    }
    test_quantize(kernels);
}

/* ---- tiles ---- */

/* Three parts are the value, to the last bit, as long as the last one is no denormal number; none
 * of a finite value is infinite. */
static void test_parts(void)
{
    generator from = {14};
    for (int i = 0; i < 200000; i++) {
        float value = tile_value((uint32_t)random_bits(&from));
        uint32_t part[3];
        tile_lanes half[2] = {{0}, {0}};
        tile_words split[3], largest = {0};
        const int second = i / FL_TILE_SIDE % 2, lane = i % FL_TILE_SIDE;
        half[second][lane] = value;
        largest = larger(larger(largest, half[0]), half[1]);
        split_lanes(half[0], half[1], 3, any_rounds_to_infinity(largest), (uint16_t *)split,
                    FL_TILE_DEPTH);
        for (int p = 0; p < 3; p++)
            part[p] = second ? split[p][lane] & 0xffff0000u : split[p][lane] << 16;
        if (isnan(value)) {
            CHECK(isnan(tile_value(part[0])));
            continue;
        }
        double sum = 0;
        for (int p = 0; p < 3; p++)
            sum += (double)tile_value(part[p]);
        if (fabsf(value) > 1e-30f)
            CHECK(sum == (double)value);
        else
            CHECK_AT_MOST(fabs(sum - (double)value), (double)FLT_MIN);
    }
}

typedef struct tile_case {
    int64_t rows, width, depth;
    double small, large; /* magnitudes of the values are between, evenly in the exponent */
    int64_t segment;     /* of fl_tile_gemm */
} tile_case;

static float of_magnitude(generator *from, const tile_case *of)
{
    double exponent =
        log2(of->small) + (log2(of->large / of->small)) * (random_real(from, 0.5) + 0.5);
    return (float)(random_bits(from) & 1 ? exp2(exponent) : -exp2(exponent));
}

typedef struct errors {
    double worst, square; /* by the sum of magnitudes of the products; the mean of squares */
} errors;

static void add_error(errors *to, double got, double wanted, double magnitude, int64_t count)
{
    double error = fabs(got - wanted) / magnitude;
    to->worst = error > to->worst || isnan(error) ? error : to->worst;
    to->square += error * error / (double)count;
}

/* Errors of c, and of one chain of float32 multiply-adds. */
static void find_errors(const float *a, const float *b, const float *c, const tile_case *of,
                        int64_t columns, errors *tiles, errors *chain)
{
    for (int64_t m = 0; m < of->rows; m++)
        for (int64_t j = 0; j < columns; j++) {
            double sum = 0, magnitude = 0;
            float fused = 0;
            for (int64_t k = 0; k < of->depth; k++) {
                float left = a[m * of->depth + k],
                      right = b[(j / of->width * of->depth + k) * of->width + j % of->width];
                sum += (double)left * (double)right;
                magnitude += fabs((double)left * (double)right);
                fused = fmaf(left, right, fused);
            }
            add_error(tiles, (double)c[m * columns + j], sum, magnitude, of->rows * columns);
            add_error(chain, (double)fused, sum, magnitude, of->rows * columns);
        }
}

/* Sums that started from 1. */
static void check_column_sums(const fl_tile_operand *of)
{
    for (int64_t j = 0; j < of->rows; j++) {
        double sum = 1, magnitude = 1;
        for (int64_t k = 0; k < of->depth; k++) {
            double value = of->values[k * of->stride + j];
            sum += value;
            magnitude += fabs(value);
        }
        CHECK_AT_MOST(fabs((double)of->sums[j] - sum), 1e-6 * magnitude);
    }
}

/* Each row of a block is handed over once, where C has it, and fetched once or not at all before.
 */
typedef struct handed_over {
    const fl_tile_gemm *by;
    int64_t rows, fetched;
    uint8_t *state; /* (blocks, rows): 0; 1, fetched; 2, handed over */
} handed_over;
static void check_fetched(void *context, int64_t block, int64_t row)
{
    handed_over *seen = context;
    CHECK(block >= 0 && block < seen->by->block_end && row >= 0 && row < seen->by->rows);
    uint8_t *state = seen->state + block * seen->by->rows + row;
    CHECK(*state == 0);
    *state = 1;
    seen->fetched++;
}
static void check_handed_over(void *context, int64_t block, int64_t row, const float *c)
{
    handed_over *seen = context;
    CHECK(c == seen->by->c + row * seen->by->c_row + block * seen->by->width);
    uint8_t *state = seen->state + block * seen->by->rows + row;
    CHECK(*state < 2);
    *state = 2;
    seen->rows++;
}

static void test_tile_gemm(const tile_case *of, int parts, int columns_side_by_side)
{
    enum { BLOCKS = 3, AHEAD = 2 };
    generator from = {15};
    int64_t columns = BLOCKS * of->width - 3, row = of->rows + AHEAD,
            written = columns_side_by_side ? (of->rows + 15) / 16 * 16 : of->rows,
            block_size = fl_tile_block_size(of->width, of->depth, parts);
    float *a = floats_new(of->rows * of->depth), *b = floats_new(BLOCKS * of->width * of->depth),
          *turned = floats_new(row * of->depth), *c = floats_new(written * columns),
          *sums = floats_new(BLOCKS * of->width);
    const float **lines = guarded_new(sizeof *lines * (size_t)of->depth);
    uint16_t *split_a =
                 guarded_new(sizeof(uint16_t) * (size_t)((of->rows + FL_TILE_PADDING) *
                                                         fl_tile_row_size(of->depth, parts))),
             *split_b = guarded_new(sizeof(uint16_t) * (size_t)(BLOCKS * block_size));
    for (int64_t i = 0; i < of->rows * of->depth; i++)
        turned[i % of->depth * row + AHEAD + i / of->depth] = a[i] = of_magnitude(&from, of);
    for (int64_t k = 0; k < of->depth; k++)
        lines[k] = turned + k * row;
    for (int64_t i = 0; i < BLOCKS * of->width * of->depth; i++)
        b[i] = random_float(&from, 0.3);
    fl_tile_operand rows = {.values = a,
                            .rows = of->rows,
                            .depth = of->depth,
                            .stride = of->depth,
                            .parts = parts,
                            .to = split_a},
                    sides = {.lines = lines,
                             .first = AHEAD,
                             .rows = of->rows,
                             .depth = of->depth,
                             .parts = parts,
                             .to = split_a};
    if (columns_side_by_side)
        tile_split_columns(&sides);
    else
        tile_split_rows(&rows);
    for (int64_t block = 0; block < BLOCKS; block++) {
        fl_tile_operand operand = {.values = b + block * of->width * of->depth,
                                   .rows = of->width,
                                   .depth = of->depth,
                                   .stride = of->width,
                                   .parts = parts,
                                   .to = split_b + block * block_size,
                                   .sums = sums + block * of->width};
        for (int64_t j = 0; j < of->width; j++)
            operand.sums[j] = 1;
        tile_split_block(&operand);
        check_column_sums(&operand);
    }
    handed_over seen = {.state = guarded_new((size_t)(BLOCKS * written))};
    memset(seen.state, 0, (size_t)(BLOCKS * written));
    fl_tile_gemm gemm = {
        .rows = written,
        .block_end = BLOCKS,
        .factor = {{.a = split_a, .b = split_b, .depth = of->depth, .columns = of->width}},
        .segment = of->segment,
        .fetch = check_fetched,
        .finish = check_handed_over,
        .context = &seen,
        .descending = columns_side_by_side,
        .width = of->width,
        .columns = columns,
        .parts = parts,
        .c = c,
        .c_row = columns};
    seen.by = &gemm;
    tile_gemm(&gemm);
    CHECK(seen.rows == BLOCKS * written);
    CHECK(seen.fetched > BLOCKS * written / 2); /* those of a shorter piece may have no time */
    static const double worst[] = {0, 8e-3, 1.6e-5, 2.1e-7}, /* the last one is 3.5 roundings */
        mean[] = {0, 4e-3, 1e-5, 1e-7};
    errors tiles = {0}, chain = {0};
    find_errors(a, b, c, of, columns, &tiles, &chain);
    CHECK_AT_MOST(tiles.worst, worst[parts]);
    CHECK_AT_MOST(sqrt(tiles.square), mean[parts]);
    /* short chains, and those of one large product and many small ones, hardly round */
    if (parts == 3 && of->depth > 16 && of->large / of->small < 1e24) {
        CHECK_AT_MOST(tiles.square, chain.square);
        CHECK_AT_MOST(tiles.worst, 1.25 * chain.worst);
    }
    for (int64_t i = of->rows * columns; i < written * columns; i++)
        CHECK(c[i] == 0);
    gemm.init = c;
    gemm.init_row = columns;
    memset(seen.state, 0, (size_t)(BLOCKS * written));
    float last = c[of->rows * columns - 1], first = c[0];
    tile_gemm(&gemm);
    /* with segments, in another order */
    double rounding = of->segment ? 1e-7 * (double)of->depth : 0;
    CHECK_AT_MOST(fabs((double)c[0] - 2 * (double)first), rounding);
    CHECK_AT_MOST(fabs((double)c[of->rows * columns - 1] - 2 * (double)last), rounding);
    guarded_check();
    void *arrays[] = {a, b, turned, c, sums, lines, split_a, split_b, seen.state};
    for (int i = 0; i < 9; i++)
        guarded_free(arrays[i]);
}

static void test_tiles(void)
{
    static const tile_case cases[] = {{1, 16, 1, 0.1, 1, 0},
                                      {5, 12, 33, 0.1, 1, 0},
                                      {32, 64, 128, 0.1, 1, 0},
                                      {17, 48, 300, 1e-3, 1, 0},
                                      {16, 64, 1024, 0.1, 1, 0},
                                      {20, 32, 64, 1e-20, 1, 0},
                                      {9, 16, 40, 1e30, 1e38, 0},
                                      {9, 16, 40, 1e-30, 1e30, 0},
                                      {9, 16, 64, 1e-28, 1e-24, 0},
                                      /* far rows; far weights; in segments */
                                      {150, 16, 40, 0.1, 1, 0},
                                      {150, 64, 64, 0.1, 1, 0},
                                      {5, 12, 100, 0.1, 1, 32},
                                      {33, 48, 300, 0.1, 1, 128},
                                      {18, 64, 600, 0.1, 1, 512}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int parts = 1; parts <= 3; parts++)
            for (int side = 0; side < 2; side++) {
                check_context("tiles, case %zu, %d parts, side %d", i, parts, side);
                test_tile_gemm(&cases[i], parts, side);
            }
}

/* What is not finite stays so, in its row alone; denormal values count as zero. */
static void test_tile_limits(void)
{
    enum { ROWS = 4, DEPTH = 3 };
    float a[ROWS * DEPTH] = {1, 2, 3, (float)NAN, 2, 3, 1, (float)INFINITY, 3, 1e-40f, 0, 0};
    float b[DEPTH] = {1, 0.5f, 0.25f}, c[ROWS];
    uint16_t split_a[16 * 96], split_b[16 * 96];
    fl_tile_operand
        rows =
            {.values = a, .rows = ROWS, .depth = DEPTH, .stride = DEPTH, .parts = 3, .to = split_a},
        block = {.values = b, .rows = 1, .depth = DEPTH, .stride = 1, .parts = 3, .to = split_b};
    tile_split_rows(&rows);
    tile_split_block(&block);
    fl_tile_gemm gemm = {.rows = ROWS,
                         .block_end = 1,
                         .factor = {{.a = split_a, .b = split_b, .depth = DEPTH, .columns = 1}},
                         .width = 1,
                         .columns = 1,
                         .parts = 3,
                         .c = c,
                         .c_row = 1};
    tile_gemm(&gemm);
    CHECK(c[0] == 2.75f);
    CHECK(isnan(c[1]));
    CHECK(!isfinite(c[2]));
    CHECK(c[3] == 0);
}

/* ---- layers ---- */

enum { STEPS = 5, INPUT = 19, HIDDEN = 150 };

/* Outputs of `n` sequences of STEPS steps, and of as many streams. */
static void run_both(const test_layer *made, int64_t n, const float *x, float *y, float *streamed)
{
    int64_t start[8], length[8];
    for (int64_t b = 0; b < n; b++) {
        start[b] = b * STEPS;
        length[b] = STEPS;
    }
    fl_forward call = {.x_rows = {n, start, length},
                       .x = x,
                       .x_total = n * STEPS,
                       .y_start = start,
                       .y = y,
                       .y_total = n * STEPS,
                       .n_threads = 2};
    CHECK_EQUAL(fl_recurrent_forward(made->layer, &call), FL_OK);
    fl_stream *stream = NULL;
    CHECK_EQUAL(fl_stream_create(made->layer, n, &stream), FL_OK);
    float *x_t = floats_new(n * INPUT), *y_t = floats_new(n * HIDDEN);
    for (int64_t t = 0; t < STEPS; t++) {
        for (int64_t b = 0; b < n; b++)
            memcpy(x_t + b * INPUT, x + (b * STEPS + t) * INPUT, INPUT * sizeof *x);
        CHECK_EQUAL(fl_stream_step(stream, x_t, y_t), FL_OK);
        for (int64_t b = 0; b < n; b++)
            memcpy(streamed + (b * STEPS + t) * HIDDEN, y_t + b * HIDDEN, HIDDEN * sizeof *y_t);
    }
    fl_stream_destroy(stream);
    guarded_free(x_t);
    guarded_free(y_t);
}

static void test_layer_of(const char *cell, int32_t precision, int64_t n)
{
    fl_recurrent_config config = {.cell = cell,
                                  .input_size = INPUT,
                                  .hidden_size = HIDDEN,
                                  .num_layers = 2,
                                  .bias = 1,
                                  .dtype = FL_FLOAT32,
                                  .precision = precision,
                                  .batch_invariant = 1};
    test_layer made = test_layer_new(&config, 3);
    config.precision = FL_PRECISION_FLOAT32;
    test_layer exact = test_layer_new(&config, 3);
    generator from = {16};
    float *x = floats_new(n * STEPS * INPUT), *y = floats_new(n * STEPS * HIDDEN),
          *streamed = floats_new(n * STEPS * HIDDEN), *wanted = floats_new(n * STEPS * HIDDEN);
    for (int64_t i = 0; i < n * STEPS * INPUT; i++)
        x[i] = random_float(&from, 1);
    run_both(&exact, n, x, wanted, streamed);
    run_both(&made, n, x, y, streamed);
    for (int64_t i = 0; i < n * STEPS * HIDDEN; i++) {
        CHECK(y[i] == streamed[i]);
        CHECK_AT_MOST(fabs((double)y[i] - (double)wanted[i]), 0.05);
    }
    guarded_check();
    void *arrays[] = {x, y, streamed, wanted};
    for (int i = 0; i < 4; i++)
        guarded_free(arrays[i]);
    test_layer_free(&made);
    test_layer_free(&exact);
}

static void test_refusals(void)
{
    fl_recurrent *layer = NULL;
    fl_recurrent_config config = {.cell = "lstm",
                                  .input_size = 2,
                                  .hidden_size = 3,
                                  .num_layers = 1,
                                  .dtype = FL_FLOAT64,
                                  .precision = FL_PRECISION_INT8};
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
    config.dtype = FL_FLOAT32;
    config.precision = FL_PRECISION_INT8 + 1;
    CHECK_EQUAL(fl_recurrent_create(&config, &layer), FL_ERR_ARGUMENT);
}

int main(void)
{
    for (int k = 0; isa_at(k); k++) {
        const fl_isa *isa = isa_at(k);
        for (int i = 0; i < N_SHAPES; i++) {
            check_context("%s, shape %d", isa->name, i);
            test_bfloat16(isa, &shapes[i]);
        }
        test_int8_kernels(&isa->reduced.int8, isa->f32.lanes);
    }
    if (fl_int8_vnni.gemm && fl_cpu_has_vnni())
        test_int8_kernels(&fl_int8_vnni, 16);
    test_parts();
    test_tiles();
    test_tile_limits();
    for (int32_t precision = FL_PRECISION_HIGH; precision <= FL_PRECISION_INT8; precision++)
        for (int64_t n = 1; n <= 7; n += 3) {
            check_context("precision %d, %d sequences", (int)precision, (int)n);
            test_layer_of("lstm", precision, n);
            test_layer_of("peephole", precision, n);
        }
    test_refusals();
    return check_report();
}
