/* Descriptions of ragged batches: sorting, prefix sums, order of steps, and what is refused. */
#include "layers/ragged.h"

#include <string.h>

#include "layers/recurrent.h"
#include "support.h"

enum { MOST = 64 };

typedef struct batch {
    int64_t n, start[MOST], length[MOST], total;
    fl_ragged ragged;
    fl_arena arena;
} batch;

static fl_sequences sequences_of(const batch *of)
{
    return (fl_sequences){of->n, of->start, of->length};
}

static void batch_fill(batch *of)
{
    fl_sequences sequences = sequences_of(of);
    CHECK_EQUAL(fl_ragged_check(&of->ragged, &sequences, of->total), FL_OK);
    of->arena = (fl_arena){0};
    fl_ragged_layout(&of->ragged, &of->arena);
    CHECK_EQUAL(fl_arena_commit(&of->arena), FL_OK);
    fl_ragged_layout(&of->ragged, &of->arena);
    fl_ragged_fill(&of->ragged, &sequences);
}

static void random_batch(generator *from, batch *of, int64_t n, int64_t longest)
{
    of->n = n;
    of->total = 0;
    for (int64_t b = 0; b < n; b++) {
        of->length[b] = 1 + random_below(from, longest);
        of->start[b] = of->total;
        of->total += of->length[b];
    }
    batch_fill(of);
}

static void check_sorted(const batch *of)
{
    const fl_ragged *ragged = &of->ragged;
    int seen[MOST] = {0};
    int64_t rows = 0, longest = 0;
    CHECK_EQUAL(ragged->n, of->n);
    for (int64_t s = 0; s < of->n; s++) {
        int64_t b = ragged->sequence[s];
        CHECK(b >= 0 && b < of->n && !seen[b]++);
        CHECK_EQUAL(ragged->length[s], of->length[b]);
        if (s > 0) {
            CHECK(ragged->length[s - 1] >= ragged->length[s]);
            CHECK(ragged->length[s - 1] > ragged->length[s] || ragged->sequence[s - 1] < b);
        }
        rows += of->length[b];
        longest = of->length[b] > longest ? of->length[b] : longest;
    }
    CHECK_EQUAL(ragged->rows, rows);
    CHECK_EQUAL(ragged->steps, longest);
}

static void check_prefix_sums(const batch *of)
{
    const fl_ragged *ragged = &of->ragged;
    int64_t rows = 0;
    for (int64_t t = 0; t <= ragged->steps; t++) {
        int64_t longer = 0;
        for (int64_t b = 0; b < of->n; b++)
            longer += of->length[b] > t;
        CHECK_EQUAL(ragged->batch[t], longer);
        CHECK_EQUAL(ragged->offset[t], rows);
        rows += longer;
    }
    CHECK_EQUAL(ragged->batch[ragged->steps], 0);
    CHECK_EQUAL(ragged->offset[ragged->steps], ragged->rows);
}

/* The moments of a direction tell the story of each sequence: it runs its steps in order, each row
 * once, and knows the row it comes from and whether it goes on. */
static void check_moments(const batch *of, int reverse)
{
    const fl_ragged *ragged = &of->ragged;
    int64_t run[MOST] = {0}, last_row[MOST];
    for (int64_t step = 0; step < ragged->steps; step++) {
        fl_moment moment = fl_ragged_moment(ragged, step, reverse);
        int64_t t = reverse ? ragged->steps - 1 - step : step;
        CHECK_EQUAL(moment.rows, ragged->batch[t]);
        CHECK_EQUAL(moment.row0, ragged->offset[t]);
        CHECK(moment.with_previous >= 0 && moment.with_previous <= moment.rows);
        CHECK(moment.with_next >= 0 && moment.with_next <= moment.rows);
        for (int64_t s = 0; s < moment.rows; s++) {
            CHECK_EQUAL(s < moment.with_previous, run[s] > 0);
            if (s < moment.with_previous)
                CHECK_EQUAL(moment.previous0 + s, last_row[s]);
            last_row[s] = moment.row0 + s;
            run[s]++;
            CHECK_EQUAL(s < moment.with_next, run[s] < ragged->length[s]);
            if (s < moment.with_next)
                CHECK_EQUAL(moment.next0 + s, ragged->offset[reverse ? t - 1 : t + 1] + s);
        }
    }
    for (int64_t s = 0; s < of->n; s++)
        CHECK_EQUAL(run[s], ragged->length[s]);
}

static void test_random_batches(void)
{
    static const int64_t longest[] = {1, 2, 3, 7, 40};
    generator from = {7};
    for (int round = 0; round < 200; round++) {
        batch made;
        random_batch(&from, &made, 1 + random_below(&from, MOST), longest[round % 5]);
        check_context("round %d", round);
        check_sorted(&made);
        check_prefix_sums(&made);
        check_moments(&made, 0);
        check_moments(&made, 1);
        fl_arena_release(&made.arena);
    }
    check_context("%s", "");
}

/* A change of one number of a good description, and what it must give. */
static void check_refused(int64_t index, int64_t start, int64_t length, int64_t total,
                          fl_status wanted)
{
    batch made = {.n = 3, .start = {0, 4, 9}, .length = {4, 5, 1}, .total = 10};
    made.start[index] = start;
    made.length[index] = length;
    fl_sequences sequences = sequences_of(&made);
    CHECK_EQUAL(fl_ragged_check(&made.ragged, &sequences, total), wanted);
}

static void test_bad_descriptions(void)
{
    check_refused(0, 0, 4, 10, FL_OK);
    check_refused(2, 9, 1, 9, FL_ERR_ARGUMENT);
    check_refused(2, 10, 1, 10, FL_ERR_ARGUMENT);
    check_refused(2, 9, 2, 10, FL_ERR_ARGUMENT);
    check_refused(1, 4, 0, 10, FL_ERR_ARGUMENT);
    check_refused(1, 4, -1, 10, FL_ERR_ARGUMENT);
    check_refused(1, 4, INT64_MIN, 10, FL_ERR_ARGUMENT);
    check_refused(1, -1, 5, 10, FL_ERR_ARGUMENT);
    check_refused(1, INT64_MIN, 5, 10, FL_ERR_ARGUMENT);
    check_refused(1, INT64_MAX, 5, 10, FL_ERR_ARGUMENT);
    check_refused(1, INT64_MAX - 4, 5, INT64_MAX, FL_ERR_ARGUMENT);
    check_refused(1, 4, INT64_MAX - 5, 10, FL_ERR_ARGUMENT);
    check_refused(1, 4, INT64_MAX, INT64_MAX, FL_ERR_OVERFLOW);
    check_refused(0, 0, 4, 0, FL_ERR_ARGUMENT);
    check_refused(0, 0, 4, -1, FL_ERR_ARGUMENT);
    check_refused(0, 0, 4, INT64_MIN, FL_ERR_ARGUMENT);
}

static void test_bad_counts(void)
{
    batch made = {.n = 2, .start = {0, 4}, .length = {4, 5}, .total = 10};
    static const int64_t counts[] = {0, -1, INT64_MIN};
    for (int i = 0; i < 3; i++) {
        made.n = counts[i];
        fl_sequences sequences = sequences_of(&made);
        CHECK_EQUAL(fl_ragged_check(&made.ragged, &sequences, made.total), FL_ERR_ARGUMENT);
    }
}

static void test_rows_of_another_array(void)
{
    batch made = {.n = 2, .start = {0, 4}, .length = {4, 5}, .total = 10};
    fl_sequences sequences = sequences_of(&made);
    int64_t good[] = {5, 0}, high[] = {6, 0}, low[] = {5, -1}, far[] = {5, INT64_MAX};
    CHECK_EQUAL(fl_ragged_check_rows(&sequences, good, 9), FL_OK);
    CHECK_EQUAL(fl_ragged_check_rows(&sequences, good, 8), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_ragged_check_rows(&sequences, high, 9), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_ragged_check_rows(&sequences, low, 9), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_ragged_check_rows(&sequences, far, 9), FL_ERR_ARGUMENT);
    CHECK_EQUAL(fl_ragged_check_rows(&sequences, good, INT64_MIN), FL_ERR_ARGUMENT);
}

int main(void)
{
    test_random_batches();
    test_bad_descriptions();
    test_bad_counts();
    test_rows_of_another_array();
    return check_report();
}
