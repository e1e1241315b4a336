/* The division of a call between threads: every sequence, block of units and direction has exactly
 * one owner, whatever the shape and the number of threads. */
#include <stdlib.h>
#include <string.h>

#include "layers/recurrent.h"
#include "support.h"

enum { MOST_SEQUENCES = 70, MOST_BLOCKS = 20, MOST_THREADS = 17 };

static void test_split(void)
{
    for (int64_t count = 0; count < 40; count++)
        for (int parts = 1; parts < 12; parts++) {
            int64_t next = 0, least = count, most = 0;
            for (int index = 0; index < parts; index++) {
                int64_t first, end;
                fl_split(count, index, parts, &first, &end);
                CHECK_EQUAL(first, next);
                CHECK(end >= first);
                least = end - first < least ? end - first : least;
                most = end - first > most ? end - first : most;
                next = end;
            }
            CHECK_EQUAL(next, count);
            CHECK(most - least <= 1);
        }
}

/* A layer and a batch with what the schedule looks at. */
typedef struct shape {
    struct fl_recurrent layer;
    fl_packed packed[4];
    int64_t start[MOST_SEQUENCES], length[MOST_SEQUENCES];
    fl_ragged ragged;
    fl_arena arena;
} shape;

static void shape_begin(generator *from, shape *made)
{
    memset(made, 0, sizeof *made);
    int64_t n = 1 + random_below(from, MOST_SEQUENCES), longest = 1 + random_below(from, 30),
            total = 0;
    for (int64_t b = 0; b < n; b++) {
        made->start[b] = total;
        made->length[b] = 1 + random_below(from, longest);
        total += made->length[b];
    }
    fl_sequences sequences = {n, made->start, made->length};
    CHECK_EQUAL(fl_ragged_check(&made->ragged, &sequences, total), FL_OK);
    fl_ragged_layout(&made->ragged, &made->arena);
    CHECK_EQUAL(fl_arena_commit(&made->arena), FL_OK);
    fl_ragged_layout(&made->ragged, &made->arena);
    fl_ragged_fill(&made->ragged, &sequences);
    made->layer.directions = 1 + (int)random_below(from, 2);
    made->layer.n_parts = 1;
    made->layer.lanes = 16;
    made->layer.real_size = sizeof(float);
    made->layer.part[0].blocks = 1 + random_below(from, MOST_BLOCKS);
    made->layer.gate_row = 64 * made->layer.part[0].blocks;
    made->layer.config.hidden_size = 16 * made->layer.part[0].blocks;
    made->layer.recurrent = 1 + random_below(from, 2000); /* near and far weights */
    made->layer.n_packed = 2 * made->layer.directions;
    made->layer.packed = made->packed;
    for (int i = 0; i < made->layer.n_packed; i++)
        made->packed[i].input = 1 + random_below(from, 200);
}

/* owners[direction][sequence][block] counts the threads that compute it. */
static void count_owners(const shape *of, const fl_share *share, int *owners)
{
    int64_t first = 0, end = of->layer.part[0].blocks;
    if (share->splits_units)
        fl_split(of->layer.part[0].blocks, share->rank, share->group_size, &first, &end);
    for (int d = share->direction_first; d < share->direction_end; d++)
        for (int64_t s = share->row_first; s < share->row_end; s++)
            for (int64_t block = first; block < end; block++)
                owners[(d * MOST_SEQUENCES + s) * MOST_BLOCKS + block]++;
}

static void check_cover(const shape *of, int backward, int n_threads)
{
    int *owners = calloc(2 * MOST_SEQUENCES * MOST_BLOCKS, sizeof *owners);
    for (int thread = 0; thread < n_threads; thread++) {
        fl_share share = fl_recurrent_share(&of->layer, &of->ragged, backward, thread, n_threads);
        CHECK(share.row_first >= 0 && share.row_first <= share.row_end);
        CHECK(share.row_end <= of->ragged.n);
        CHECK(share.direction_first >= 0 && share.direction_end <= of->layer.directions);
        count_owners(of, &share, owners);
    }
    for (int d = 0; d < 2; d++)
        for (int64_t s = 0; s < MOST_SEQUENCES; s++)
            for (int64_t block = 0; block < MOST_BLOCKS; block++)
                CHECK_EQUAL(owners[(d * MOST_SEQUENCES + s) * MOST_BLOCKS + block],
                            d < of->layer.directions && s < of->ragged.n &&
                                block < of->layer.part[0].blocks);
    free(owners);
}

/* The members of a group agree on what they are: otherwise a barrier waits for ever. */
static void check_groups(const shape *of, int backward, int n_threads)
{
    int ranks[2][MOST_THREADS] = {{0}}, members[2] = {0}, size[2] = {0}, splits[2] = {0};
    for (int thread = 0; thread < n_threads; thread++) {
        fl_share share = fl_recurrent_share(&of->layer, &of->ragged, backward, thread, n_threads);
        CHECK(share.group == 0 || share.group == 1);
        CHECK(share.rank >= 0 && share.rank < share.group_size);
        CHECK(!ranks[share.group][share.rank]++);
        if (members[share.group]++) {
            CHECK_EQUAL(share.group_size, size[share.group]);
            CHECK_EQUAL(share.splits_units, splits[share.group]);
        }
        size[share.group] = share.group_size;
        splits[share.group] = share.splits_units;
    }
    for (int group = 0; group < 2; group++)
        CHECK_EQUAL(members[group], size[group]);
}

static void check_threads(const shape *of)
{
    int before = 1;
    CHECK_EQUAL(fl_recurrent_threads(&of->layer, &of->ragged, 1), 1);
    for (int wanted = 1; wanted < 70; wanted++) {
        int got = fl_recurrent_threads(&of->layer, &of->ragged, wanted);
        CHECK(got >= 1 && got <= wanted);
        before = got > before ? got : before;
    }
    CHECK(before >= 1);
}

/* The teams of a forward pass: a wave has no more threads than layers, and only where rows are few.
 */
static void check_plans(shape *of)
{
    for (int64_t levels = 1; levels < 6; levels++)
        for (int wanted = 1; wanted < 20; wanted++) {
            of->layer.config.num_layers = levels;
            fl_forward_team team = fl_plan_forward(&of->layer, &of->ragged, wanted);
            CHECK(team.n_threads >= 1 && team.n_threads <= wanted);
            if (team.waves) {
                CHECK(team.n_threads > 1 && team.n_threads <= levels);
                CHECK(of->layer.directions == 1 && of->ragged.n < 8);
            } else {
                CHECK_EQUAL(team.n_threads, fl_recurrent_threads(&of->layer, &of->ragged, wanted));
            }
        }
}

/* One sequence through two layers of 64 units: no step is worth splitting, the layers are. */
static void test_wave(void)
{
    shape of = {.layer = {.directions = 1,
                          .n_parts = 1,
                          .lanes = 16,
                          .gate_row = 256,
                          .part[0].blocks = 4,
                          .config = {.num_layers = 2, .hidden_size = 64},
                          .n_packed = 2},
                .packed = {{.input = 64}, {.input = 64}},
                .ragged = {.n = 1, .steps = 100, .rows = 100}};
    of.layer.packed = of.packed;
    fl_forward_team team = fl_plan_forward(&of.layer, &of.ragged, 4);
    CHECK(team.waves);
    CHECK_EQUAL(team.n_threads, 2);
    CHECK_EQUAL(fl_wave_steps(&of.ragged), 8);
    of.ragged.steps = 3200;
    CHECK_EQUAL(fl_wave_steps(&of.ragged), 100);
    of.ragged.n = 16;
    of.ragged.rows = 3200 * 16;
    CHECK(!fl_plan_forward(&of.layer, &of.ragged, 4).waves);
    of.layer.config.num_layers = 1;
    of.ragged.n = 1;
    CHECK(!fl_plan_forward(&of.layer, &of.ragged, 4).waves);
}

/* The units of a step are split where its work pays for a barrier; a sleeping team is woken for
 * much more than that. */
static void test_few_rows(void)
{
    shape of = {.layer = {.directions = 1,
                          .n_parts = 1,
                          .lanes = 16,
                          .gate_row = 512,
                          .part[0].blocks = 8,
                          .config = {.num_layers = 1, .hidden_size = 128},
                          .n_packed = 1},
                .packed = {{.input = 64}},
                .ragged = {.n = 1, .steps = 100, .rows = 100}};
    of.layer.packed = of.packed;
    CHECK_EQUAL(fl_recurrent_threads(&of.layer, &of.ragged, 8), 2);
    CHECK(!fl_wakes_team(&of.layer, &of.ragged, 0, 2));
    CHECK(fl_wakes_team(&of.layer, &of.ragged, 2, 2));
    of.layer.gate_row = 256;
    of.layer.config.hidden_size = 64;
    CHECK_EQUAL(fl_recurrent_threads(&of.layer, &of.ragged, 8), 1);
    of.ragged.n = of.ragged.steps = 1000;
    of.ragged.rows = 1000000;
    CHECK(fl_wakes_team(&of.layer, &of.ragged, 0, 8));
}

int main(void)
{
    generator from = {3};
    test_split();
    test_wave();
    test_few_rows();
    for (int round = 0; round < 150; round++) {
        shape made;
        shape_begin(&from, &made);
        for (int n_threads = 1; n_threads <= MOST_THREADS; n_threads++) {
            check_context("round %d, %d threads", round, n_threads);
            for (int backward = 0; backward < 2; backward++) {
                check_cover(&made, backward, n_threads);
                check_groups(&made, backward, n_threads);
            }
        }
        check_threads(&made);
        check_plans(&made);
        fl_arena_release(&made.arena);
    }
    return check_report();
}
