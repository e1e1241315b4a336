/* What a call is divided into, and the order of steps. Functions of shapes and of the number of
 * threads alone; which thread runs which lane is a matter of the moment (lanes.h). */
#include "layers/recurrent.h"

/* Work as in base/team.h. */
enum {
    ROWS_A_THREAD = 4, /* fewer: split units, all threads on all rows, a barrier a step */
    STEP_SHARE = 2000, /* a barrier (0.1 to 0.2 us) is worth it above so much a thread and step */
    FAR_BYTES = 1024 * 1024, /* recurrent weights that a second cache holds in part, or not */
    FARTHER_BYTES = 4 * 1024 * 1024,
    LANE_ROWS = 64,        /* sequences whose states stay in a second cache from step to step */
    SHARED_LANE_ROWS = 32, /* where there are threads to even out */
    FAR_LANE_ROWS = 128,   /* where weights from far away are read once for all of them */
    TILE_ROWS = 16,        /* that a lane has whole ones of */
    LANE_STAGES = 16,
    STAGE_ROWS = 128, /* of a product worth the name */
    MANY_LANES = 16,  /* a thread: they even out by themselves */
    MOST_CHUNKS = 32,
    FEWEST_STEPS = 8 /* of a wave: most rounds have work for every thread, and a
                        chunk is a product worth the name */
};

void fl_split(int64_t count, int index, int parts, int64_t *first, int64_t *end)
{
    *first = count * index / parts;
    *end = count * (index + 1) / parts;
}

static int64_t work_of(const fl_recurrent *layer, const fl_ragged *ragged)
{
    double total = 0;
    for (int i = 0; i < layer->n_packed; i++)
        total += (double)(layer->packed[i].input + layer->config.hidden_size);
    total *= (double)layer->gate_row / (double)layer->lanes * (double)ragged->rows;
    return total < 0x1p62 ? (int64_t)total : INT64_MAX;
}

int fl_wakes_team(const fl_recurrent *layer, const fl_ragged *ragged, int asked, int n_threads)
{
    return fl_team_wakes(work_of(layer, ragged), asked, n_threads);
}

/* Threads that the units of a direction are worth splitting over. */
static int threads_by_units(const fl_recurrent *layer, const fl_ragged *ragged)
{
    double a_step = (double)layer->gate_row / (double)layer->lanes *
                    (double)layer->config.hidden_size * (double)ragged->n;
    double useful = a_step / STEP_SHARE, blocks = (double)fl_main_part(layer)->blocks;
    return useful < 1 ? 1 : (int)(useful > blocks ? blocks : useful);
}

int fl_recurrent_threads(const fl_recurrent *layer, const fl_ragged *ragged, int wanted)
{
    wanted = fl_team_worth(work_of(layer, ragged), wanted);
    if (layer->config.layer_norm) { /* its sums are over all units */
        int64_t most = layer->directions * (ragged->n / ROWS_A_THREAD);
        most = most > layer->directions ? most : layer->directions;
        wanted = wanted < most ? wanted : (int)most;
    }
    int a_direction = wanted / layer->directions;
    if (a_direction > 1 && ragged->n < (int64_t)ROWS_A_THREAD * a_direction) {
        int most = threads_by_units(layer, ragged);
        if (a_direction > most && ragged->n < 2 * (int64_t)ROWS_A_THREAD)
            wanted = most * layer->directions;
    }
    return wanted < 1 ? 1 : wanted;
}

/* Threads worth using as a wave, 0 where it gains nothing. */
static int wave_threads(const fl_recurrent *layer, const fl_ragged *ragged, int wanted)
{
    int64_t levels = layer->config.num_layers;
    int threads = fl_team_worth(work_of(layer, ragged), wanted < levels ? wanted : (int)levels);
    if (threads < 2 || layer->directions > 1 || ragged->steps < 2 * (int64_t)FEWEST_STEPS ||
        ragged->n >= 2 * (int64_t)ROWS_A_THREAD)
        return 0;
    int by_units = threads_by_units(layer, ragged);
    return threads > (by_units < wanted ? by_units : wanted) ? threads : 0;
}

int64_t fl_wave_steps(const fl_ragged *ragged)
{
    int64_t steps = (ragged->steps + MOST_CHUNKS - 1) / MOST_CHUNKS;
    return steps > FEWEST_STEPS ? steps : FEWEST_STEPS;
}

/* First sorted sequences of `parts` parts, and the end: prefix sums of the lengths cut into equal
 * parts; those of many sequences of one length at whole tiles. */
static void cut_rows(const fl_ragged *ragged, int64_t parts, int64_t *cut)
{
    double sum = 0;
    int64_t sequence = 0;
    int whole = ragged->rows == ragged->n * ragged->steps && ragged->n >= 2 * TILE_ROWS * parts;
    for (int64_t index = 0; index < parts; index++) {
        double target = (double)ragged->rows * (double)index / (double)parts;
        while (sequence < ragged->n && sum + 0.5 * (double)ragged->length[sequence] < target)
            sum += (double)ragged->length[sequence++];
        cut[index] = whole ? (sequence + TILE_ROWS / 2) / TILE_ROWS * TILE_ROWS : sequence;
    }
    cut[parts] = ragged->n;
}

int fl_weights_are_far(const fl_recurrent *layer)
{
    return fl_recurrent_bytes(layer) >= FAR_BYTES;
}

/* Whether each weight is better read once a step, by the thread whose unit it makes, than by every
 * thread for a few rows of its own. */
static int splits_far_units(const fl_recurrent *layer, int64_t rows_a_thread, int backward)
{
    if (layer->config.layer_norm)
        return 0;
    return (fl_recurrent_bytes(layer) >= FARTHER_BYTES && rows_a_thread < (backward ? 32 : 64)) ||
           (fl_weights_are_far(layer) && rows_a_thread < 16 && !backward);
}

/* Whether the threads of a direction, at most `group`, take units in place of sequences. */
static int splits_units(const fl_recurrent *layer, const fl_ragged *ragged, int backward, int group)
{
    int64_t rows_a_thread = ragged->n / group;
    return group > 1 &&
           (rows_a_thread < ROWS_A_THREAD || splits_far_units(layer, rows_a_thread, backward));
}

/* Sequences that a lane has at least, if there are so many. */
static int64_t lane_rows(const fl_recurrent *layer, int n_threads)
{
    int64_t bytes = fl_recurrent_bytes(layer);
    if (bytes >= (layer->tiles ? FAR_BYTES : FARTHER_BYTES)) /* in parts they take more room */
        return FAR_LANE_ROWS;
    return n_threads > 1 && bytes < FAR_BYTES ? SHARED_LANE_ROWS : LANE_ROWS;
}

/* Where the sequences are cut for `group` threads of a direction. */
static void plan_lanes(const fl_recurrent *layer, const fl_ragged *ragged, int group, fl_plan *plan)
{
    int64_t pieces = ragged->n / lane_rows(layer, plan->n_threads), stages;
    plan->pieces = pieces > group ? pieces : group;
    stages = ragged->rows / plan->pieces / STAGE_ROWS;
    if (plan->n_threads == 1 ||
        plan->pieces * layer->directions >= (int64_t)MANY_LANES * plan->n_threads)
        stages = 1;
    stages = stages > LANE_STAGES ? LANE_STAGES : stages;
    plan->stages = stages < 1 ? 1 : stages;
}

fl_plan fl_plan_levels(const fl_recurrent *layer, const fl_ragged *ragged, int backward, int wanted)
{
    fl_plan plan = {.n_threads = fl_recurrent_threads(layer, ragged, wanted)};
    int group = (plan.n_threads + layer->directions - 1) / layer->directions;
    if (!splits_units(layer, ragged, backward, group))
        plan_lanes(layer, ragged, group, &plan);
    return plan;
}

fl_plan fl_plan_forward(const fl_recurrent *layer, const fl_ragged *ragged, int wanted)
{
    int as_wave = wave_threads(layer, ragged, wanted);
    return as_wave ? (fl_plan){.n_threads = as_wave, .waves = 1}
                   : fl_plan_levels(layer, ragged, 0, wanted);
}

int64_t fl_plan_numbers(const fl_recurrent *layer, const fl_plan *plan)
{
    return plan->pieces * (layer->directions + 1) + 1;
}

void fl_plan_begin(const fl_recurrent *layer, const fl_ragged *ragged, fl_plan *plan,
                   int64_t *numbers, fl_lanes *lanes)
{
    plan->cut = numbers;
    cut_rows(ragged, plan->pieces, numbers);
    fl_lanes_begin(lanes, plan->pieces * layer->directions, plan->stages,
                   numbers + plan->pieces + 1);
}

void fl_stage_steps(const fl_ragged *ragged, const fl_plan *plan, const fl_share *share,
                    int64_t stage, int64_t *first, int64_t *end)
{
    int64_t longest = share->row_first < share->row_end ? ragged->length[share->row_first] : 0;
    fl_split(longest, (int)stage, (int)plan->stages, first, end);
    if (share->direction_first) { /* the longest of them joins when others have run already */
        *first += ragged->steps - longest;
        *end += ragged->steps - longest;
    }
}

fl_share fl_lane_share(const fl_plan *plan, int64_t lane, int thread)
{
    int direction = (int)(lane / plan->pieces);
    const int64_t *cut = plan->cut + lane % plan->pieces;
    return (fl_share){.direction_first = direction,
                      .direction_end = direction + 1,
                      .row_first = cut[0],
                      .row_end = cut[1],
                      .thread = thread,
                      .group_size = 1};
}

fl_share fl_unit_share(const fl_recurrent *layer, const fl_ragged *ragged, int thread,
                       int n_threads)
{
    fl_share share = {.direction_end = layer->directions,
                      .row_end = ragged->n,
                      .thread = thread,
                      .rank = thread,
                      .group_size = n_threads};
    if (layer->directions == 2 && n_threads > 1) {
        int first_group = n_threads / 2;
        share.group = thread >= first_group;
        share.direction_first = share.group;
        share.direction_end = share.group + 1;
        share.rank = share.group ? thread - first_group : thread;
        share.group_size = share.group ? n_threads - first_group : first_group;
    }
    share.splits_units = share.group_size > 1;
    return share;
}

fl_moment fl_ragged_moment(const fl_ragged *ragged, int64_t step, int reverse)
{
    const int64_t *batch = ragged->batch, *offset = ragged->offset;
    int64_t last = ragged->steps - 1, t = reverse ? last - step : step;
    fl_moment moment = {.rows = batch[t], .row0 = offset[t], .t = t};
    int64_t before = reverse ? t + 1 : t - 1, after = reverse ? t - 1 : t + 1;
    if (before >= 0 && before <= last) {
        moment.with_previous = reverse ? batch[before] : batch[t];
        moment.previous0 = offset[before];
        moment.previous_t = before;
    }
    if (after >= 0 && after <= last) {
        moment.with_next = reverse ? batch[t] : batch[after];
        moment.next0 = offset[after];
    }
    return moment;
}
