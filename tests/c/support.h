/* Random numbers, guarded arrays of either dtype and comparisons for the test programs. */
#ifndef FL_TESTS_SUPPORT_H
#define FL_TESTS_SUPPORT_H

#include <stddef.h>
#include <stdint.h>

#include "check.h"
#include "fastlstm.h"
#include "isa/isa.h"

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
typedef struct generator {
    uint64_t state;
} generator;
uint64_t random_bits(generator *from);
int64_t random_below(generator *from, int64_t limit);
/* Uniform in [-limit, limit). */
double random_real(generator *from, double limit);

/* `bytes` bytes, all ones (NaN), that end where an unreadable page begins; the bytes in front are
 * checked by guarded_free. Reading or writing past the end faults. */
void *guarded_new(size_t bytes);
void guarded_free(void *memory);
/* Check the bytes in front of every array. */
void guarded_check(void);

size_t real_size(int32_t dtype);
/* Nearest value of the dtype. */
double real_round(int32_t dtype, double value);
double real_at(int32_t dtype, const void *array, int64_t index);
void real_put(int32_t dtype, void *array, int64_t index, double value);
/* Guarded array with the values, or with NaN. */
void *reals_of(int32_t dtype, const double *values, int64_t count);
void *reals_new(int32_t dtype, int64_t count);
/* `count` random values of the dtype in [-limit, limit). */
void random_fill(generator *from, int32_t dtype, double limit, double *values, int64_t count);
/* Largest difference divided by the largest wanted value; infinite where a NaN is. */
double worst_error(int32_t dtype, const void *got, const double *wanted, int64_t count);
/* 1 if all bytes are as guarded_new left them. */
int is_untouched(const void *array, size_t bytes);

/* The instruction sets that this machine can run, best first; NULL after the last. */
const fl_isa *isa_at(int index);
/* Name of the instruction set in use. Where FASTLSTM_ISA names one that the machine does not have,
 * the program ends as skipped. */
const char *isa_or_skip(void);

/* Ready-made layer with random weights: `parameters` (guarded) are loaded. */
typedef struct test_layer {
    fl_recurrent_config config;
    fl_recurrent *layer;
    void *parameters;
    int64_t n_parameters;
} test_layer;
test_layer test_layer_new(const fl_recurrent_config *config, uint64_t seed);
void test_layer_free(test_layer *made);

#endif
