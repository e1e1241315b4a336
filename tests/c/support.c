#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FRONT_GUARD = 128, MOST_ARRAYS = 256 };

/* ---- random numbers ---- */

uint64_t random_bits(generator *from)
{
    uint64_t z = from->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

int64_t random_below(generator *from, int64_t limit)
{
    return (int64_t)(random_bits(from) % (uint64_t)limit);
}

double random_real(generator *from, double limit)
{
    return ((double)(random_bits(from) >> 11) * 0x1p-52 - 1) * limit;
}

/* ---- guarded arrays ---- */

typedef struct guarded {
    unsigned char *map, *data;
    size_t map_bytes;
} guarded;

static guarded arrays[MOST_ARRAYS];

static void check_front(const guarded *array)
{
    int intact = 1;
    for (const unsigned char *at = array->map; at < array->data; at++)
        intact &= *at == 0xFF;
    CHECK(intact && "the bytes in front of an array");
}

void *guarded_new(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t used = (bytes + FRONT_GUARD + page - 1) / page * page;
    unsigned char *map =
        mmap(NULL, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int place = 0;
    while (place < MOST_ARRAYS && arrays[place].map)
        place++;
    if (map == MAP_FAILED || place == MOST_ARRAYS || mprotect(map + used, page, PROT_NONE) != 0) {
        fprintf(stderr, "no memory for the test's own arrays\n");
        exit(1);
    }
    memset(map, 0xFF, used);
    arrays[place] = (guarded){map, map + used - bytes, used + page};
    return arrays[place].data;
}

void guarded_free(void *memory)
{
    for (int i = 0; memory && i < MOST_ARRAYS; i++)
        if (arrays[i].map && arrays[i].data == memory) {
            check_front(&arrays[i]);
            munmap(arrays[i].map, arrays[i].map_bytes);
            arrays[i].map = NULL;
            return;
        }
}

void guarded_check(void)
{
    for (int i = 0; i < MOST_ARRAYS; i++)
        if (arrays[i].map)
            check_front(&arrays[i]);
}

/* ---- either dtype ---- */

size_t real_size(int32_t dtype)
{
    return dtype == FL_FLOAT64 ? sizeof(double) : sizeof(float);
}

double real_round(int32_t dtype, double value)
{
    return dtype == FL_FLOAT64 ? value : (double)(float)value;
}

double real_at(int32_t dtype, const void *array, int64_t index)
{
    return dtype == FL_FLOAT64 ? ((const double *)array)[index]
                               : (double)((const float *)array)[index];
}

void real_put(int32_t dtype, void *array, int64_t index, double value)
{
    if (dtype == FL_FLOAT64)
        ((double *)array)[index] = value;
    else
        ((float *)array)[index] = (float)value;
}

void *reals_new(int32_t dtype, int64_t count)
{
    return guarded_new((size_t)count * real_size(dtype));
}

void *reals_of(int32_t dtype, const double *values, int64_t count)
{
    void *array = reals_new(dtype, count);
    for (int64_t i = 0; i < count; i++)
        real_put(dtype, array, i, values[i]);
    return array;
}

void random_fill(generator *from, int32_t dtype, double limit, double *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = real_round(dtype, random_real(from, limit));
}

double worst_error(int32_t dtype, const void *got, const double *wanted, int64_t count)
{
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs(real_at(dtype, got, i) - wanted[i]);
        if (!(error <= worst))
            worst = isnan(error) ? INFINITY : error;
        if (fabs(wanted[i]) > largest)
            largest = fabs(wanted[i]);
    }
    return worst == 0 ? 0 : worst / largest;
}

int is_untouched(const void *array, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)array)[i] != 0xFF)
            return 0;
    return 1;
}

/* ---- instruction sets ---- */

const fl_isa *isa_at(int index)
{
    static const fl_isa *const tables[] = {&fl_isa_avx512, &fl_isa_avx2, &fl_isa_portable};
    const char *name;
    int32_t available;
    for (int32_t i = 0; fl_isa_available(i, &name, &available) == FL_OK; i++)
        for (size_t t = 0; available && t < sizeof tables / sizeof tables[0]; t++)
            if (strcmp(tables[t]->name, name) == 0 && index-- == 0)
                return tables[t];
    return NULL;
}

const char *isa_or_skip(void)
{
    const char *name = NULL;
    fl_status status = fl_isa_name(&name);
    if (status == FL_ERR_ISA_UNAVAILABLE) {
        printf("skipped: %s\n", fl_status_string(status));
        exit(CHECK_SKIPPED);
    }
    CHECK_EQUAL(status, FL_OK);
    return name;
}

/* ---- layers ---- */

test_layer test_layer_new(const fl_recurrent_config *config, uint64_t seed)
{
    generator from = {seed};
    test_layer made = {.config = *config};
    fl_status status = fl_recurrent_create(config, &made.layer);
    CHECK_EQUAL(status, FL_OK);
    if (status != FL_OK)
        exit(check_report());
    made.n_parameters = fl_recurrent_n_parameters(made.layer);
    made.parameters = reals_new(config->dtype, made.n_parameters);
    double limit = 1 / sqrt((double)config->hidden_size);
    for (int64_t i = 0; i < made.n_parameters; i++)
        real_put(config->dtype, made.parameters, i, random_real(&from, limit));
    CHECK_EQUAL(fl_recurrent_load(made.layer, made.parameters), FL_OK);
    return made;
}

void test_layer_free(test_layer *made)
{
    fl_recurrent_destroy(made->layer);
    guarded_free(made->parameters);
}
