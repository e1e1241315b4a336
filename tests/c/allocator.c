#include "allocator.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

enum { LARGEST_FILLED = 1 << 28 };

static atomic_long live, count, countdown, failed;

void *__real_malloc(size_t size);
void *__real_calloc(size_t number, size_t size);
int __real_posix_memalign(void **memory, size_t alignment, size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t number, size_t size);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t size);
void __wrap_free(void *memory);

void allocator_fail_at(long nth)
{
    atomic_store(&failed, 0);
    atomic_store(&countdown, nth);
}

int allocator_has_failed(void)
{
    return atomic_load(&failed) != 0;
}

long allocator_live(void)
{
    return atomic_load(&live);
}

long allocator_count(void)
{
    return atomic_load(&count);
}

static int fails(void)
{
    atomic_fetch_add(&count, 1);
    if (atomic_load(&countdown) == 0 || atomic_fetch_sub(&countdown, 1) != 1)
        return 0;
    atomic_store(&failed, 1);
    return 1;
}

static void *fresh(void *memory, size_t size)
{
    if (!memory)
        return NULL;
    atomic_fetch_add(&live, 1);
    return size <= LARGEST_FILLED ? memset(memory, 0xFF, size) : memory;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : fresh(__real_malloc(size), size);
}

void *__wrap_calloc(size_t number, size_t size)
{
    return fails() ? NULL : fresh(__real_calloc(number, size), 0);
}

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (fails())
        return ENOMEM;
    int error = __real_posix_memalign(memory, alignment, size);
    if (error == 0)
        fresh(*memory, size);
    return error;
}

void __wrap_free(void *memory)
{
    if (memory)
        atomic_fetch_sub(&live, 1);
    __real_free(memory);
}
