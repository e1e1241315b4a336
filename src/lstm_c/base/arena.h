/* One aligned block cut into arrays by a layout function that runs twice: on an arena without
 * memory it measures, on an arena with memory it hands out pointers. Sizes are overflow-checked. */
#ifndef FL_BASE_ARENA_H
#define FL_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "fastlstm.h"

typedef struct fl_arena {
    unsigned char *memory; /* NULL while measuring */
    size_t capacity;       /* bytes behind `memory` */
    size_t used;           /* bytes handed out so far */
    int overflow;          /* 1 once a size did not fit */
} fl_arena;

/* count * size bytes aligned to 64, NULL while measuring or after an overflow. */
void *fl_arena_take(fl_arena *arena, int64_t count, size_t size);

/* Start a second pass: grow the memory to what the first pass measured (keeps a block that is large
 * enough). */
fl_status fl_arena_commit(fl_arena *arena);

void fl_arena_release(fl_arena *arena);

#endif
