/* The only file that chooses an ISA. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "isa/isa.h"

static int always(void)
{
    return 1;
}

static int amx_works(void);

/* Best first. */
static const struct candidate {
    const char *name;
    const fl_isa *table;
    const fl_tile_kernels *tiles;
    int (*available)(void);
} candidates[] = {
#if defined(FASTLSTM_EMULATE_TILES)
    {"amx", &fl_isa_portable, &fl_tiles_amx, amx_works},
#else
    {"amx", &fl_isa_avx512, &fl_tiles_amx, amx_works},
#endif
    {"avx512", &fl_isa_avx512, NULL, fl_cpu_has_avx512},
    {"avx2", &fl_isa_avx2, NULL, fl_cpu_has_avx2},
    {"portable", &fl_isa_portable, NULL, always}};

enum { N_CANDIDATES = sizeof candidates / sizeof candidates[0] };

static pthread_once_t chosen_once = PTHREAD_ONCE_INIT;
static const struct candidate *chosen;
static fl_status chosen_status;

/* 1 if a product on the tiles gives what it should: integers, so exactly. */
static int multiplies(const fl_tile_kernels *tiles)
{
    enum { ROWS = 3, DEPTH = 5, COLUMNS = 18 };
    float a[ROWS * DEPTH], b[DEPTH * COLUMNS], c[ROWS * COLUMNS];
    uint16_t split_a[16 * 32], split_b[32 * 32];
    for (int i = 0; i < ROWS * DEPTH; i++)
        a[i] = (float)(i - 7);
    for (int i = 0; i < DEPTH * COLUMNS; i++)
        b[i] = (float)(i % 11 - 4);
    fl_tile_operand rows = {.values = a,
                            .rows = ROWS,
                            .depth = DEPTH,
                            .stride = DEPTH,
                            .parts = 1,
                            .to = split_a},
                    block = {.values = b,
                             .rows = COLUMNS,
                             .depth = DEPTH,
                             .stride = COLUMNS,
                             .parts = 1,
                             .to = split_b};
    tiles->split_rows(&rows);
    tiles->split_block(&block);
    fl_tile_gemm gemm = {
        .rows = ROWS,
        .block_end = 1,
        .factor = {{.a = split_a, .b = split_b, .depth = DEPTH, .columns = COLUMNS}},
        .width = COLUMNS,
        .columns = COLUMNS,
        .parts = 1,
        .c = c,
        .c_row = COLUMNS};
    tiles->gemm(&gemm);
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        float sum = 0;
        for (int k = 0; k < DEPTH; k++)
            sum += a[i / COLUMNS * DEPTH + k] * b[k * COLUMNS + i % COLUMNS];
        if (sum != c[i])
            return 0;
    }
    return 1;
}

static int amx_works(void)
{
#if defined(FASTLSTM_EMULATE_TILES)
    return multiplies(&fl_tiles_amx);
#else
    return fl_tiles_amx.gemm && fl_cpu_has_avx512() && fl_cpu_has_amx() && fl_cpu_allow_amx() &&
           multiplies(&fl_tiles_amx);
#endif
}

static void choose(void)
{
    const char *wanted = getenv("FASTLSTM_ISA");
    int named = wanted && *wanted;
    chosen_status = named ? FL_ERR_UNKNOWN_ISA : FL_OK;
    for (int i = 0; i < N_CANDIDATES; i++) {
        if (named && strcmp(wanted, candidates[i].name) != 0)
            continue;
        if (candidates[i].table->compiled && candidates[i].available()) {
            chosen = &candidates[i];
            chosen_status = FL_OK;
            return;
        }
        if (named)
            chosen_status = FL_ERR_ISA_UNAVAILABLE;
    }
}

const fl_isa *fl_isa_current(fl_status *status)
{
    pthread_once(&chosen_once, choose);
    *status = chosen_status;
    return chosen ? chosen->table : NULL;
}

const fl_tile_kernels *fl_tiles_current(void)
{
    pthread_once(&chosen_once, choose);
    return chosen ? chosen->tiles : NULL;
}

const fl_int8_kernels *fl_int8_current(void)
{
    pthread_once(&chosen_once, choose);
    if (!chosen)
        return NULL;
    return chosen->table == &fl_isa_avx512 && fl_int8_vnni.gemm && fl_cpu_has_vnni()
               ? &fl_int8_vnni
               : &chosen->table->reduced.int8;
}

fl_status fl_isa_name(const char **name)
{
    if (!name)
        return FL_ERR_ARGUMENT;
    fl_status status;
    *name = fl_isa_current(&status) ? chosen->name : NULL;
    return status;
}

fl_status fl_isa_available(int32_t index, const char **name, int32_t *available)
{
    if (index < 0 || index >= N_CANDIDATES || !name || !available)
        return FL_ERR_ARGUMENT;
    *name = candidates[index].name;
    *available = candidates[index].table->compiled && candidates[index].available();
    return FL_OK;
}
