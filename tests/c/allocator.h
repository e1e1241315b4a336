/* The allocator of the test programs: malloc, calloc, posix_memalign and free of the library and of
 * the tests go through it (the linker's --wrap). New memory is all ones, which is NaN in both
 * dtypes, so that a value read before it is written shows; an allocation can be made to fail. */
#ifndef FL_TESTS_ALLOCATOR_H
#define FL_TESTS_ALLOCATOR_H

/* The `nth` allocation from now on fails (1: the next one), and only that; 0: none. */
void allocator_fail_at(long nth);
/* 1 if the failure asked for has happened. */
int allocator_has_failed(void);
/* Blocks that are allocated and not freed. */
long allocator_live(void);
/* Allocations since the program started. */
long allocator_count(void);

#endif
