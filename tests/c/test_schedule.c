/* The division of a call between threads: every sequence, block of units and direction has exactly
 * one owner, a thread or a lane, whatever the shape and the number of threads. */
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

/* owners[direction][sequence][block] counts the threads or lanes that compute it. */
static void count_owners(const shape *of, const fl_share *share, int *owners)
{
    int64_t first = 0, end = of->layer.part[0].blocks;
    CHECK(share->row_first >= 0 && share->row_first <= share->row_end);
    CHECK(share->row_end <= of->ragged.n);
    CHECK(share->direction_first >= 0 && share->direction_end <= of->layer.directions);
    if (share->splits_units)
        fl_split(of->layer.part[0].blocks, share->rank, share->group_size, &first, &end);
    for (int d = share->direction_first; d < share->direction_end; d++)
        for (int64_t s = share->row_first; s < share->row_end; s++)
            for (int64_t block = first; block < end; block++)
                owners[(d * MOST_SEQUENCES + s) * MOST_BLOCKS + block]++;
}

/* The stages of a lane are all steps that its sequences have, in order. */
static void check_stages(const shape *of, const fl_plan *plan, const fl_share *share)
{
    int64_t first, end, longest = 0, steps = of->ragged.steps, next;
    for (int64_t s = share->row_first; s < share->row_end; s++)
        longest = of->ragged.length[s] > longest ? of->ragged.length[s] : longest;
    next = share->direction_first ? steps - longest : 0;
    for (int64_t stage = 0; stage < plan->stages; stage++) {
        fl_stage_steps(&of->ragged, plan, share, stage, &first, &end);
        CHECK_EQUAL(first, next);
        CHECK(end >= first);
        next = end;
    }
    CHECK_EQUAL(next, share->direction_first ? steps : longest);
}

/* As a call does it: lanes, or the shares of `n_threads` threads. */
static void check_cover(const shape *of, fl_plan *plan, int n_threads)
{
    int *owners = calloc(2 * MOST_SEQUENCES * MOST_BLOCKS, sizeof *owners);
    int64_t *numbers = calloc((size_t)fl_plan_numbers(&of->layer, plan), sizeof *numbers);
    fl_lanes lanes;
    fl_plan_begin(&of->layer, &of->ragged, plan, numbers, &lanes);
    CHECK_EQUAL(lanes.count, plan->pieces * of->layer.directions);
    for (int64_t lane = 0; lane < lanes.count; lane++) {
        fl_share share = fl_lane_share(plan, lane, 0);
        CHECK(!share.splits_units);
        check_stages(of, plan, &share);
        count_owners(of, &share, owners);
    }
    for (int thread = 0; thread < n_threads && !plan->pieces; thread++) {
        fl_share share = fl_unit_share(&of->layer, &of->ragged, thread, n_threads);
        count_owners(of, &share, owners);
    }
    for (int d = 0; d < 2; d++)
        for (int64_t s = 0; s < MOST_SEQUENCES; s++)
            for (int64_t block = 0; block < MOST_BLOCKS; block++)
                CHECK_EQUAL(owners[(d * MOST_SEQUENCES + s) * MOST_BLOCKS + block],
                            d < of->layer.directions && s < of->ragged.n &&
                                block < of->layer.part[0].blocks);
    free(owners);
    free(numbers);
}

/* The members of a group agree on what they are: otherwise a barrier waits for ever. */
static void check_groups(const shape *of, int n_threads)
{
    int ranks[2][MOST_THREADS] = {{0}}, members[2] = {0}, size[2] = {0}, splits[2] = {0};
    for (int thread = 0; thread < n_threads; thread++) {
        fl_share share = fl_unit_share(&of->layer, &of->ragged, thread, n_threads);
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

/* No thread is without a lane, and the threads that a call gets may be fewer than it wanted. */
static void check_levels(const shape *of)
{
    for (int backward = 0; backward < 2; backward++)
        for (int wanted = 1; wanted <= MOST_THREADS; wanted++) {
            fl_plan plan = fl_plan_levels(&of->layer, &of->ragged, backward, wanted);
            check_context("%s, %d threads", backward ? "backward" : "forward", wanted);
            CHECK(plan.n_threads >= 1 && plan.n_threads <= wanted);
            CHECK(!plan.waves);
            if (plan.n_threads == 1)
                CHECK(plan.pieces >= 1);
            if (plan.pieces) {
                CHECK(plan.pieces * of->layer.directions >= plan.n_threads);
                CHECK(plan.pieces <= of->ragged.n);
                CHECK(plan.stages >= 1 && plan.stages <= 16);
            }
            for (int n_threads = plan.pieces ? plan.n_threads : 1; n_threads <= plan.n_threads;
                 n_threads++) /* lanes are the same for any */
                check_cover(of, &plan, n_threads);
        }
    for (int n_threads = 1; n_threads <= MOST_THREADS; n_threads++) {
        check_context("%d threads", n_threads);
        check_groups(of, n_threads);
    }
    check_context("%s", "");
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
            fl_plan plan = fl_plan_forward(&of->layer, &of->ragged, wanted);
            CHECK(plan.n_threads >= 1 && plan.n_threads <= wanted);
            if (plan.waves) {
                CHECK(plan.n_threads > 1 && plan.n_threads <= levels);
                CHECK(of->layer.directions == 1 && of->ragged.n < 8);
            } else {
                CHECK_EQUAL(plan.n_threads, fl_recurrent_threads(&of->layer, &of->ragged, wanted));
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
    fl_plan plan = fl_plan_forward(&of.layer, &of.ragged, 4);
    CHECK(plan.waves);
    CHECK_EQUAL(plan.n_threads, 2);
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

/* One layer of 64 inputs and 128 units on `n` sequences of 100 steps. */
static void shape_of_128_units(shape *made, int64_t n)
{
    *made = (shape){.layer = {.directions = 1,
                              .n_parts = 1,
                              .lanes = 16,
                              .real_size = sizeof(float),
                              .gate_row = 512,
                              .recurrent = 128,
                              .part[0].blocks = 8,
                              .config = {.num_layers = 1, .hidden_size = 128},
                              .n_packed = 1},
                    .packed = {{.input = 64}},
                    .ragged = {.n = n, .steps = 100, .rows = 100 * n}};
    made->layer.packed = made->packed;
}

/* Sequences are cut so that their states stay near, and so that threads can even out; stages only
 * where they do. */
static void test_many_rows(void)
{
    shape of;
    shape_of_128_units(&of, 1024);
    fl_plan alone = fl_plan_levels(&of.layer, &of.ragged, 0, 1),
            two = fl_plan_levels(&of.layer, &of.ragged, 0, 2);
    CHECK_EQUAL(alone.pieces, 16);
    CHECK_EQUAL(alone.stages, 1);
    CHECK_EQUAL(two.pieces, 32);
    CHECK_EQUAL(two.stages, 1);
    of.ragged.n = 128;
    of.ragged.rows = 12800;
    two = fl_plan_levels(&of.layer, &of.ragged, 1, 2);
    CHECK_EQUAL(two.pieces, 4);
    CHECK_EQUAL(two.stages, 16);
    of.ragged.n = 100; /* three lanes of whole tiles, but for the last */
    of.ragged.rows = 10000;
    two = fl_plan_levels(&of.layer, &of.ragged, 1, 2);
    int64_t length[100], numbers[16];
    for (int s = 0; s < 100; s++)
        length[s] = 100;
    of.ragged.length = length;
    fl_lanes lanes;
    CHECK_EQUAL(fl_plan_numbers(&of.layer, &two), 7);
    fl_plan_begin(&of.layer, &of.ragged, &two, numbers, &lanes);
    CHECK_EQUAL(numbers[1], 32);
    CHECK_EQUAL(numbers[2], 64);
    CHECK_EQUAL(numbers[3], 100);
    of.ragged.n = 128;
    of.ragged.rows = 12800;
    of.layer.recurrent = 512; /* 1 MiB of weights */
    two = fl_plan_levels(&of.layer, &of.ragged, 1, 2);
    CHECK_EQUAL(two.pieces, 2);
    of.ragged.n = 1024;
    of.layer.recurrent = 2048; /* 4 MiB */
    CHECK_EQUAL(fl_plan_levels(&of.layer, &of.ragged, 0, 1).pieces, 8);
    CHECK_EQUAL(fl_plan_levels(&of.layer, &of.ragged, 0, 4).pieces, 8);
}

/* The units of a step are split where its work pays for a barrier; a sleeping team is woken for
 * much more than that. */
static void test_few_rows(void)
{
    shape of;
    shape_of_128_units(&of, 1);
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
    test_many_rows();
    for (int round = 0; round < 150; round++) {
        shape made;
        shape_begin(&from, &made);
        check_levels(&made);
        check_threads(&made);
        check_plans(&made);
        fl_arena_release(&made.arena);
    }
    return check_report();
}
