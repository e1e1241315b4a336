#include "base/arena.h"

#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

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

/* Uninitialised memory. Rows of a tape lie pages apart, so much of it is asked for in huge pages.
 */
static void *allocate(size_t bytes)
{
    enum { HUGE_PAGE = 2 * 1024 * 1024 };
    void *memory = NULL;
    int is_large = bytes >= 2 * HUGE_PAGE;
    if (posix_memalign(&memory, is_large ? HUGE_PAGE : FL_ALIGNMENT, bytes) != 0)
        return NULL;
#ifdef MADV_HUGEPAGE
    if (is_large)
        (void)madvise(memory, bytes & ~(size_t)(HUGE_PAGE - 1), MADV_HUGEPAGE);
#endif
    return memory;
}

fl_status fl_arena_commit(fl_arena *arena)
{
    if (arena->overflow)
        return FL_ERR_OVERFLOW;
    if (arena->used > arena->capacity || !arena->memory) {
        size_t wanted = arena->used ? arena->used : FL_ALIGNMENT;
        fl_arena_release(arena);
        arena->memory = allocate(wanted);
        if (!arena->memory)
            return FL_ERR_NOMEM;
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
