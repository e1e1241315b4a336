/* Philox 4x32-10 against the known answers of its authors (Random123, kat_vectors), and the
 * uniform numbers made from it. */
#include "base/rng.h"

#include <math.h>

#include "support.h"

typedef struct answer {
    fl_philox counter;
    uint64_t key;
    fl_philox value;
} answer;

static void test_known_answers(void)
{
    static const answer known[] = {
        {{{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
         0xffffffffffffffffu,
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         0x299f31d0a4093822u,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (int i = 0; i < 3; i++) {
        fl_philox value = fl_philox4x32(known[i].counter, known[i].key);
        for (int word = 0; word < 4; word++)
            CHECK_EQUAL(value.word[word], known[i].value.word[word]);
    }
}

/* 64 bins: chi squared with 63 degrees of freedom stays below 120 (probability 2e-5 above). */
static void check_uniform(uint64_t key, uint64_t stream, uint64_t first)
{
    enum { BINS = 64, COUNT = 1 << 16 };
    int64_t bins[BINS] = {0};
    double sum = 0, chi = 0, expected = (double)COUNT / BINS;
    for (uint64_t i = 0; i < COUNT; i++) {
        float value = fl_uniform(key, stream, first + i);
        CHECK(value >= 0 && value < 1);
        bins[(int)(value * BINS)]++;
        sum += (double)value;
    }
    for (int bin = 0; bin < BINS; bin++)
        chi += ((double)bins[bin] - expected) * ((double)bins[bin] - expected) / expected;
    CHECK_AT_MOST(chi, 120);
    CHECK_AT_MOST(fabs(sum / COUNT - 0.5), 5 / sqrt(12.0 * COUNT));
}

/* Neither the next key, stream or element nor one whose low words are the same repeats a value. */
static void test_independent(void)
{
    enum { COUNT = 4096 };
    static const uint64_t far = (uint64_t)1 << 34;
    int same[4] = {0};
    for (uint64_t i = 0; i < COUNT; i++) {
        float value = fl_uniform(5, 1, i);
        same[0] += value == fl_uniform(6, 1, i);
        same[1] += value == fl_uniform(5, 2, i);
        same[2] += value == fl_uniform(5, 1, i + far);
        same[3] += value == fl_uniform(5, 1 + ((uint64_t)1 << 32), i);
        CHECK(value == fl_uniform(5, 1, i));
    }
    for (int i = 0; i < 4; i++)
        CHECK_AT_MOST(same[i], 3);
}

int main(void)
{
    test_known_answers();
    check_uniform(0, 0, 0);
    check_uniform(1, 0, 0);
    check_uniform(0x123456789abcdefu, 3, 12345);
    check_uniform(~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0 - (1 << 16));
    test_independent();
    return check_report();
}
