/* Streams: `n` independent states of a unidirectional layer advanced one time step a call, in
 * memory taken once.
 *
 * A step is the same fused kernel as in a sequence call, with x W in the tile, so the numbers are
 * those of the whole sequence. Cost at n = 1: reading the weights once, 4 * gate_columns * (input +
 * hidden) bytes in float32. */
#include <stdlib.h>
#include <string.h>

#include "base/fpenv.h"
#include "layers/recurrent.h"

typedef struct fl_stream_level {
    void *h[2];     /* (n, output): the current output and the next one */
    void *state[2]; /* (n, states, plane), alternating where a cell's state recurs, else the same */
} fl_stream_level;

struct fl_stream {
    const fl_recurrent *layer;
    int64_t n;
    int current; /* index into h */
    int n_threads;
    fl_stream_level *levels;
    void *made_h,
        *made_state; /* what a prelude leaves: (n, plane), (n, made_row); of one level at a time */
    void *unprojected;       /* (n, wide), with a projection */
    void *gates;             /* (n, gate_row) x W + b, where that is no part of the step's kernel */
    fl_weight_format format; /* that the steps multiply by */
    fl_prepared *prepared;   /* (n_threads) */
    fl_normed normed;        /* with layer normalisation; of one level at a time */
    const void *x, *decay;   /* of the step in progress */
    fl_barrier barrier;
    fl_arena arena;
};

/* A fork/join (about 2 us) against a step's work, in multiply-adds of vectors. */
enum { STREAM_SHARE = 16000 };

static void stream_layout(fl_stream *stream, fl_arena *arena)
{
    const fl_recurrent *layer = stream->layer;
    for (int64_t level = 0; level < layer->config.num_layers; level++) {
        fl_stream_level *made = &stream->levels[level];
        for (int i = 0; i < 2; i++)
            made->h[i] = fl_arena_take(arena, stream->n * layer->output, layer->real_size);
        for (int i = 0; i < 1 + layer->alternates; i++)
            made->state[i] = fl_arena_take(arena, stream->n * layer->state_row, layer->real_size);
        if (!layer->alternates)
            made->state[1] = made->state[0];
    }
    if (fl_projects(layer))
        stream->unprojected = fl_arena_take(arena, stream->n * layer->wide, layer->real_size);
    stream->normed = fl_take_normed(layer, stream->n, 0, arena);
    if (layer->cell.gate_states || layer->config.layer_norm || fl_format_hoists(layer, stream->n))
        stream->gates = fl_arena_take(arena, stream->n * layer->gate_row, layer->real_size);
    stream->prepared = fl_arena_take(arena, stream->n_threads, sizeof *stream->prepared);
    for (int thread = 0; thread < stream->n_threads; thread++) {
        fl_prepared prepared = fl_take_prepared(layer, stream->format, stream->n, arena);
        if (arena->memory)
            stream->prepared[thread] = prepared;
    }
    if (layer->n_parts > 1) {
        stream->made_h = fl_arena_take(arena, stream->n * layer->plane, layer->real_size);
        stream->made_state = fl_arena_take(arena, stream->n * layer->made_row, layer->real_size);
    }
}

/* Threads worth using for a step of `n` streams; in whole numbers, which raise no flag of the
 * caller's. */
static int stream_threads(const fl_recurrent *layer, int64_t n)
{
    fl_fpenv saved = fl_fpenv_enter();
    int wanted = fl_team_size(0);
    fl_fpenv_leave(saved);
    int64_t a_stream = layer->gate_row / layer->lanes *
                       (layer->packed[0].input + layer->config.hidden_size),
            enough = (int64_t)STREAM_SHARE * wanted,
            work = n > enough / a_stream ? enough : n * a_stream;
    int most = (int)(work / STREAM_SHARE);
    return most < 2 || layer->config.layer_norm ? 1 : most;
}

fl_status fl_stream_create(const fl_recurrent *layer, int64_t n, fl_stream **out)
{
    if (!layer || !out || !layer->loaded || n < 1 || layer->directions != 1)
        return FL_ERR_ARGUMENT;
    int64_t total;
    if (__builtin_mul_overflow(n, 64 * (layer->wide + layer->output) * layer->config.num_layers,
                               &total))
        return FL_ERR_OVERFLOW;
    void *memory = NULL; /* aligned as the barrier in it is */
    if (posix_memalign(&memory, _Alignof(fl_stream), sizeof(fl_stream)) != 0)
        return FL_ERR_NOMEM;
    fl_stream *stream = memset(memory, 0, sizeof *stream);
    stream->layer = layer;
    stream->n = n;
    fl_barrier_init(&stream->barrier);
    stream->n_threads = stream_threads(layer, n);
    stream->format = fl_call_format(layer, n);
    stream->levels = calloc((size_t)layer->config.num_layers, sizeof *stream->levels);
    fl_status status = stream->levels ? FL_OK : FL_ERR_NOMEM;
    if (status == FL_OK) {
        stream_layout(stream, &stream->arena);
        status = fl_arena_commit(&stream->arena);
    }
    if (status != FL_OK) {
        fl_stream_destroy(stream);
        return status;
    }
    stream_layout(stream, &stream->arena);
    fl_stream_reset(stream, -1);
    *out = stream;
    return FL_OK;
}

void fl_stream_destroy(fl_stream *stream)
{
    if (!stream)
        return;
    fl_arena_release(&stream->arena);
    free(stream->levels);
    free(stream);
}

#define FL_SUFFIX f32
#include "layers/stream_body.h"
#undef FL_SUFFIX
#define FL_SUFFIX f64
#include "layers/stream_body.h"
#undef FL_SUFFIX

static void step_thread(void *argument, int thread, int n_threads)
{
    fl_stream *stream = argument;
    const fl_recurrent *layer = stream->layer;
    int64_t first, end;
    for (int64_t level = 0; level < layer->config.num_layers; level++) {
        if (level > 0)
            fl_barrier_wait(&stream->barrier, n_threads);
        for (int p = 0; stream->gates && p < layer->n_parts; p++) {
            fl_split(layer->part[p].blocks, thread, n_threads, &first, &end);
            if (layer->part[p].sees_x && layer->config.dtype == FL_FLOAT64)
                project_step_f64(stream, level, p, thread, first, end);
            else if (layer->part[p].sees_x)
                project_step_f32(stream, level, p, thread, first, end);
        }
        for (int p = 0; p < layer->n_parts; p++) {
            if (p > 0)
                fl_barrier_wait(&stream->barrier, n_threads);
            fl_split(layer->part[p].blocks, thread, n_threads, &first, &end);
            if (layer->config.dtype == FL_FLOAT64)
                step_part_f64(stream, level, p, thread, first, end);
            else
                step_part_f32(stream, level, p, thread, first, end);
        }
        if (!fl_projects(layer))
            continue;
        fl_barrier_wait(&stream->barrier, n_threads);
        if (layer->config.dtype == FL_FLOAT64)
            project_step_output_f64(stream, level, thread, n_threads);
        else
            project_step_output_f32(stream, level, thread, n_threads);
    }
}

static void copy_bytes(void *to, const void *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((unsigned char *)to)[i] = from ? ((const unsigned char *)from)[i] : 0;
}

fl_status fl_stream_step_decay(fl_stream *stream, const void *x, const void *decay, void *y)
{
    if (!stream || !x)
        return FL_ERR_ARGUMENT;
    const fl_recurrent *layer = stream->layer;
    stream->x = x;
    stream->decay = decay;
    fl_team_run(stream->n_threads, 0, step_thread, stream);
    stream->current = 1 - stream->current;
    if (y)
        copy_bytes(y, stream->levels[layer->config.num_layers - 1].h[stream->current],
                   (size_t)(stream->n * layer->output) * layer->real_size);
    return FL_OK;
}

fl_status fl_stream_step(fl_stream *stream, const void *x, void *y)
{
    return fl_stream_step_decay(stream, x, NULL, y);
}

/* Copy state `index` (0: h) of every level and stream between `values` (num_layers, n, hidden) and
 * the stream. */
static void copy_state(const fl_stream *stream, int index, char *values, int into_stream)
{
    const fl_recurrent *layer = stream->layer;
    size_t size = layer->real_size, h_row = (size_t)layer->output * size,
           row = (size_t)(index ? layer->config.hidden_size : layer->recurrent) * size,
           plane = (size_t)layer->plane * size;
    for (int64_t level = 0; level < layer->config.num_layers; level++)
        for (int64_t b = 0; b < stream->n; b++, values += row) {
            const fl_stream_level *at = &stream->levels[level];
            char *inside = index == 0
                               ? (char *)at->h[stream->current] + (size_t)b * h_row
                               : (char *)at->state[stream->current] +
                                     ((size_t)(b * layer->states) + (size_t)(index - 1)) * plane;
            copy_bytes(into_stream ? inside : values, into_stream ? values : inside, row);
        }
}

/* 1 if every state has an array. */
static int complete(const fl_stream *stream, const void *const *states)
{
    for (int i = 0; stream && states && i < fl_recurrent_n_states(stream->layer); i++)
        if (!states[i])
            return 0;
    return stream && states;
}

fl_status fl_stream_get(const fl_stream *stream, void *const *states)
{
    if (!complete(stream, (const void *const *)states))
        return FL_ERR_ARGUMENT;
    for (int i = 0; i < fl_recurrent_n_states(stream->layer); i++)
        copy_state(stream, i, states[i], 0);
    return FL_OK;
}

fl_status fl_stream_set(fl_stream *stream, const void *const *states)
{
    if (!complete(stream, states))
        return FL_ERR_ARGUMENT;
    for (int i = 0; i < fl_recurrent_n_states(stream->layer); i++)
        copy_state(stream, i, (char *)(uintptr_t)states[i], 1);
    return FL_OK;
}

fl_status fl_stream_reset(fl_stream *stream, int64_t which)
{
    if (!stream || which < -1 || which >= stream->n)
        return FL_ERR_ARGUMENT;
    const fl_recurrent *layer = stream->layer;
    int64_t first = which < 0 ? 0 : which, count = which < 0 ? stream->n : 1;
    size_t h_row = (size_t)layer->output * layer->real_size,
           state_row = (size_t)layer->state_row * layer->real_size;
    for (int64_t level = 0; level < layer->config.num_layers; level++) {
        for (int i = 0; i < 2; i++)
            copy_bytes((char *)stream->levels[level].h[i] + (size_t)first * h_row, NULL,
                       (size_t)count * h_row);
        for (int i = 0; i < 2; i++)
            copy_bytes((char *)stream->levels[level].state[i] + (size_t)first * state_row, NULL,
                       (size_t)count * state_row);
    }
    return FL_OK;
}
