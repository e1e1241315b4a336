#include "layers/ragged.h"

fl_status fl_ragged_check_rows(const fl_sequences *sequences, const int64_t *start, int64_t total)
{
    for (int64_t b = 0; b < sequences->n; b++)
        if (start[b] < 0 || start[b] > total || sequences->length[b] > total - start[b])
            return FL_ERR_ARGUMENT;
    return FL_OK;
}

fl_status fl_ragged_check(fl_ragged *ragged, const fl_sequences *sequences, int64_t total)
{
    ragged->n = sequences->n;
    ragged->steps = ragged->rows = 0;
    if (sequences->n < 1 || total < 1)
        return FL_ERR_ARGUMENT;
    for (int64_t b = 0; b < sequences->n; b++) {
        int64_t length = sequences->length[b];
        if (length < 1)
            return FL_ERR_ARGUMENT;
        if (length > ragged->steps)
            ragged->steps = length;
        if (__builtin_add_overflow(ragged->rows, length, &ragged->rows))
            return FL_ERR_OVERFLOW;
    }
    return fl_ragged_check_rows(sequences, sequences->start, total);
}

void fl_ragged_layout(fl_ragged *ragged, fl_arena *arena)
{
    ragged->sequence = fl_arena_take(arena, ragged->n, sizeof(int64_t));
    ragged->length = fl_arena_take(arena, ragged->n, sizeof(int64_t));
    ragged->batch = fl_arena_take(arena, ragged->steps + 1, sizeof(int64_t));
    ragged->offset = fl_arena_take(arena, ragged->steps + 1, sizeof(int64_t));
}

void fl_ragged_fill(fl_ragged *ragged, const fl_sequences *sequences)
{
    int64_t n = ragged->n, steps = ragged->steps;
    int64_t *longer = ragged->offset; /* longer[l]: sequences with length > l, then the next free
                                         place of length l */
    for (int64_t t = 0; t <= steps; t++)
        ragged->batch[t] = 0;
    for (int64_t b = 0; b < n; b++)
        ragged->batch[sequences->length[b] - 1]++;
    for (int64_t t = steps; t-- > 0;)
        ragged->batch[t] += ragged->batch[t + 1]; /* sequences longer than t */
    for (int64_t length = 0; length <= steps; length++)
        longer[length] = ragged->batch[length];
    for (int64_t b = 0; b < n; b++) {
        int64_t place = longer[sequences->length[b]]++;
        ragged->sequence[place] = b;
        ragged->length[place] = sequences->length[b];
    }
    ragged->offset[0] = 0;
    for (int64_t t = 0; t < steps; t++)
        ragged->offset[t + 1] = ragged->offset[t] + ragged->batch[t];
}

int64_t fl_ragged_apart(const fl_ragged *ragged, const int64_t *start)
{
    int64_t n = ragged->n, apart = n > 1 ? start[1] - start[0] : 1;
    if (ragged->rows % n || ragged->rows / n != ragged->steps)
        return 0;
    for (int64_t b = 0; b < n; b++)
        if (start[b] != start[0] + b * apart)
            return 0;
    return apart > 0 ? apart : 0;
}
