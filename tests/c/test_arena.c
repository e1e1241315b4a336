/* The arena: both passes agree, memory is aligned and disjoint, grows and is kept, sizes that do
 * not fit are noticed. */
#include "base/arena.h"

#include <string.h>

#include "allocator.h"
#include "support.h"

enum { TAKES = 12, ALIGNMENT = 64 };

typedef struct layout {
    int64_t count[TAKES];
    size_t size[TAKES];
    unsigned char *taken[TAKES];
} layout;

static void take_all(layout *of, fl_arena *arena)
{
    for (int i = 0; i < TAKES; i++)
        of->taken[i] = fl_arena_take(arena, of->count[i], of->size[i]);
}

static layout random_layout(generator *from)
{
    layout made;
    for (int i = 0; i < TAKES; i++) {
        made.count[i] = random_below(from, 200);
        made.size[i] = (size_t)1 << random_below(from, 5);
    }
    return made;
}

static void test_two_passes(void)
{
    generator from = {1};
    fl_arena arena = {0};
    long live = allocator_live();
    for (int round = 0; round < 100; round++) {
        layout made = random_layout(&from);
        fl_arena measure = {0};
        take_all(&made, &measure);
        for (int i = 0; i < TAKES; i++)
            CHECK(made.taken[i] == NULL);
        arena.used = measure.used;
        arena.overflow = measure.overflow;
        CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
        CHECK_EQUAL(arena.used, 0);
        CHECK(arena.capacity >= measure.used);
        take_all(&made, &arena);
        CHECK_EQUAL(arena.used, measure.used);
        for (int i = 0; i < TAKES; i++) {
            CHECK((uintptr_t)made.taken[i] % ALIGNMENT == 0);
            CHECK(made.taken[i] >= arena.memory);
            memset(made.taken[i], i, (size_t)made.count[i] * made.size[i]);
        }
        for (int i = 0; i < TAKES; i++)
            for (size_t b = 0; b < (size_t)made.count[i] * made.size[i]; b++)
                if (made.taken[i][b] != i)
                    CHECK(!"arrays share memory");
    }
    fl_arena_release(&arena);
    CHECK(arena.memory == NULL && arena.capacity == 0);
    CHECK_EQUAL(allocator_live(), live);
}

static void test_keeps_and_grows(void)
{
    fl_arena arena = {0};
    long count = allocator_count();
    fl_arena_take(&arena, 1000, 8);
    CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
    unsigned char *first = arena.memory;
    CHECK_EQUAL(allocator_count(), count + 1);
    CHECK_EQUAL(arena.capacity, 8000);
    arena.used = 10;
    CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
    CHECK(arena.memory == first);
    arena.used = 8000;
    CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
    CHECK_EQUAL(allocator_count(), count + 1);
    arena.used = 8001;
    CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
    CHECK(arena.capacity >= 8001);
    CHECK_EQUAL(allocator_count(), count + 2);
    fl_arena_release(&arena);
    fl_arena_release(&arena);
}

static void test_empty(void)
{
    fl_arena arena = {0};
    CHECK(fl_arena_take(&arena, 0, 8) == NULL);
    CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
    CHECK(arena.memory != NULL);
    CHECK(fl_arena_take(&arena, 0, 8) == arena.memory);
    fl_arena_release(&arena);
}

static void check_overflows(int64_t before, int64_t count, size_t size)
{
    fl_arena arena = {0};
    fl_arena_take(&arena, before, 1);
    CHECK_EQUAL(arena.overflow, 0);
    CHECK(fl_arena_take(&arena, count, size) == NULL);
    CHECK_EQUAL(arena.overflow, 1);
    CHECK(fl_arena_take(&arena, 1, 1) == NULL);
    long tried = allocator_count();
    CHECK_EQUAL(fl_arena_commit(&arena), FL_ERR_OVERFLOW);
    CHECK_EQUAL(allocator_count(), tried);
    fl_arena_release(&arena);
}

static void test_overflow(void)
{
    check_overflows(0, -1, 8);
    check_overflows(0, INT64_MIN, 1);
    check_overflows(0, INT64_MAX, 1);
    check_overflows(0, INT64_MAX, 8);
    check_overflows(0, (int64_t)1 << 61, 8);
    check_overflows(0, (int64_t)1 << 60, 8);
    check_overflows(0, (int64_t)1 << 62, 4);
    check_overflows((int64_t)1 << 62, (int64_t)1 << 62, 1);
    check_overflows(64, INT64_MAX - 63, 1);
}

static void test_no_memory(void)
{
    fl_arena arena = {0};
    long live = allocator_live();
    fl_arena_take(&arena, 100, 8);
    CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
    arena.used = 1000;
    allocator_fail_at(1);
    CHECK_EQUAL(fl_arena_commit(&arena), FL_ERR_NOMEM);
    CHECK(allocator_has_failed());
    CHECK(arena.memory == NULL && arena.capacity == 0);
    arena.used = 1000;
    CHECK_EQUAL(fl_arena_commit(&arena), FL_OK);
    fl_arena_release(&arena);
    arena.used = (size_t)1 << 62; /* fits a size, not a machine */
    CHECK_EQUAL(fl_arena_commit(&arena), FL_ERR_NOMEM);
    fl_arena_release(&arena);
    CHECK_EQUAL(allocator_live(), live);
}

int main(void)
{
    test_two_passes();
    test_keeps_and_grows();
    test_empty();
    test_overflow();
    test_no_memory();
    return check_report();
}
