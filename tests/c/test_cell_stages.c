/* Rows of cells that a product on tiles takes in stages, beside its products: the bits of rows
 * taken whole, by the cell's own function. Skipped where there are no tiles. */
#include <string.h>

#include "support.h"

enum { X = 40, MAX_UNITS = 80, MAX_ROWS = 49, LANES = 16, SLOTS = 4 };
enum { MAX_WIDTH = SLOTS * MAX_UNITS, MAX_PARTS = 3, MAX_DEPTH = 96 };

typedef struct stage_case {
    int64_t rows, units;
    int parts, trains, masks, hoists, descending;
} stage_case;

/* What a step writes. */
typedef struct written {
    float h[MAX_ROWS * MAX_UNITS], state[MAX_ROWS * MAX_UNITS], saved[MAX_ROWS * MAX_WIDTH];
} written;

static float x[MAX_ROWS * X], h_prev[MAX_ROWS * MAX_UNITS], state_prev[MAX_ROWS * MAX_UNITS],
    mask[MAX_ROWS * MAX_UNITS], init[MAX_ROWS * MAX_WIDTH], weight[MAX_DEPTH * SLOTS * LANES];
static uint16_t rows_x[(MAX_ROWS + FL_TILE_PADDING) * MAX_PARTS * MAX_DEPTH]
    __attribute__((aligned(64))),
    rows_h[(MAX_ROWS + FL_TILE_PADDING) * MAX_PARTS * MAX_DEPTH] __attribute__((aligned(64))),
    tiles_x[MAX_WIDTH * MAX_PARTS * MAX_DEPTH] __attribute__((aligned(64))),
    tiles_h[MAX_WIDTH * MAX_PARTS * MAX_DEPTH] __attribute__((aligned(64)));
static written whole, staged;

static void fill(generator *random, float *values, int64_t count, double limit)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)random_real(random, limit);
}

typedef struct cell_context {
    const fl_cell_f32 *cell;
    const fl_step_f32 *step;
} cell_context;
static void finish_whole(void *context, int64_t block, int64_t row, const float *sums)
{
    const cell_context *of = context;
    of->cell->forward_row(of->step, row, block, sums);
}

/* The factor of `depth` for the columns that the cell's slots take of it. */
static fl_tile_factor split_factor(generator *random, const stage_case *of, const float *rows,
                                   int64_t depth, const int *gate, uint16_t *to_rows,
                                   uint16_t *to_tiles)
{
    const fl_tile_kernels *tiles = fl_tiles_current();
    int64_t first = 0, end = SLOTS;
    while (gate[first] < 0)
        first++;
    while (gate[end - 1] < 0)
        end--;
    fl_tile_operand operand = {.values = rows,
                               .rows = of->rows,
                               .depth = depth,
                               .stride = depth,
                               .parts = of->parts,
                               .to = to_rows};
    tiles->split_rows(&operand);
    int64_t width = (end - first) * LANES, size = fl_tile_block_size(width, depth, of->parts);
    for (int64_t block = 0; block < of->units / LANES; block++) {
        fill(random, weight, depth * width, 0.3);
        fl_tile_operand columns = {.values = weight,
                                   .rows = width,
                                   .depth = depth,
                                   .stride = width,
                                   .parts = of->parts,
                                   .to = to_tiles + block * size};
        tiles->split_block(&columns);
    }
    return (fl_tile_factor){
        .a = to_rows, .b = to_tiles, .depth = depth, .first = first * LANES, .columns = width};
}

static void check_case(const fl_cell_f32 *cell, const stage_case *of)
{
    generator random = {(uint64_t)(of->rows * 100 + of->units + of->parts)};
    int64_t width = SLOTS * of->units;
    fill(&random, x, of->rows * X, 2);
    fill(&random, h_prev, of->rows * of->units, 1);
    fill(&random, state_prev, of->rows * of->units, 3);
    fill(&random, mask, of->rows * of->units, 1);
    fill(&random, init, of->rows * width, 1);
    fl_step_f32 step = {.rows = of->rows,
                        .units = of->units - 3, /* the last vector is not whole */
                        .block_end = of->units / LANES,
                        .descending = of->descending,
                        .h_prev = h_prev,
                        .h_prev_row = of->units,
                        .mask = of->masks ? mask : NULL,
                        .mask_row = of->units,
                        .state_prev = state_prev,
                        .state_prev_row = of->units,
                        .state_row = of->units,
                        .state_plane = of->units,
                        .h_row = of->units,
                        .saved_row = width};
    cell_context context = {cell, &step};
    fl_tile_gemm gemm = {.rows = of->rows,
                         .block_end = step.block_end,
                         .descending = of->descending,
                         .width = SLOTS * LANES,
                         .columns = width,
                         .parts = of->parts,
                         .init = init,
                         .init_row = of->hoists ? width : 0,
                         .finish = finish_whole,
                         .context = &context,
                         .step = &step};
    gemm.factor[0] = split_factor(&random, of, x, X, cell->facts->x_gate, rows_x, tiles_x);
    gemm.factor[1] =
        split_factor(&random, of, h_prev, of->units, cell->facts->h_gate, rows_h, tiles_h);
    for (int stages = 0; stages < 2; stages++) {
        written *to = stages ? &staged : &whole;
        memset(to, 0xff, sizeof *to);
        step.h = to->h;
        step.state = to->state;
        step.saved = of->trains ? to->saved : NULL;
        gemm.in_stages = stages ? cell->facts->in_stages : 0;
        fl_tiles_current()->gemm(&gemm);
    }
    CHECK(memcmp(&whole, &staged, sizeof whole) == 0);
    CHECK(whole.h[0] == whole.h[0]);
    for (int64_t i = 0; i < 3; i++) /* beyond the units nothing is written */
        CHECK(is_untouched(&whole.h[of->rows * of->units - 3 + i], sizeof(float)));
}

int main(void)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa || !fl_tiles_current())
        return CHECK_SKIPPED;
    int cells = 0;
    for (int i = 0; i < isa->f32.n_cells; i++) {
        const fl_cell_f32 *cell = &isa->f32.cells[i];
        if (!cell->facts->in_stages)
            continue;
        cells++;
        static const int64_t rows[] = {17, 32, 49}, units[] = {48, 80};
        static const stage_case kinds[] = {{.parts = 0},
                                           {.trains = 1, .masks = 1},
                                           {.masks = 1, .hoists = 1},
                                           {.trains = 1, .hoists = 1, .descending = 1}};
        for (int n = 0; n < 3 * 2 * 3 * 4; n++) {
            stage_case of = kinds[n % 4];
            of.parts = 1 + n / 4 % 3;
            of.units = units[n / 12 % 2];
            of.rows = rows[n / 24];
            check_case(cell, &of);
        }
    }
    CHECK(cells > 0);
    return check_report();
}
