#include "base/arena.h"

#include <stdlib.h>

#include "base/compiler.h"

void *fl_arena_take(fl_arena *arena, int64_t count, size_t size)
{
    size_t bytes;
    if (count < 0 || __builtin_mul_overflow((size_t)count, size, &bytes) ||
        __builtin_add_overflow(bytes, (size_t)(FL_ALIGNMENT - 1), &bytes)) {
        arena->overflow = 1;
        return NULL;
    }
    bytes &= ~(size_t)(FL_ALIGNMENT - 1);
    size_t end;
    if (__builtin_add_overflow(arena->used, bytes, &end) || end > PTRDIFF_MAX) {
        arena->overflow = 1;
        return NULL;
    }
    void *taken = arena->memory ? arena->memory + arena->used : NULL;
    arena->used = end;
    return taken;
}

fl_status fl_arena_commit(fl_arena *arena)
{
    if (arena->overflow)
        return FL_ERR_OVERFLOW;
    if (arena->used > arena->capacity || !arena->memory) {
        size_t wanted = arena->used ? arena->used : FL_ALIGNMENT;
        void *grown = NULL;
        fl_arena_release(arena);
        if (posix_memalign(&grown, FL_ALIGNMENT, wanted) != 0)
            return FL_ERR_NOMEM;
        arena->memory = grown;
        arena->capacity = wanted;
    }
    arena->used = 0;
    return FL_OK;
}

void fl_arena_release(fl_arena *arena)
{
    free(arena->memory);
    arena->memory = NULL;
    arena->capacity = 0;
    arena->used = 0;
    arena->overflow = 0;
}
