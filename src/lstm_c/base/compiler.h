/* Words that the compilers spell differently. */
#ifndef FL_BASE_COMPILER_H
#define FL_BASE_COMPILER_H

#define FL_INLINE static inline __attribute__((always_inline, unused))
#define FL_RESTRICT __restrict__
#define FL_ALIGNMENT 64

#define FL_PASTE2_(a, b) a##_##b
#define FL_PASTE2(a, b) FL_PASTE2_(a, b)

/* The vector stays in a register from here on, and is no memory operand of each of its uses. */
#if defined(__x86_64__)
#define FL_IN_REGISTER(vector) __asm__("" : "+v"(vector))
#else
#define FL_IN_REGISTER(vector) ((void)0)
#endif

#if defined(__clang__)
#define FL_UNROLL _Pragma("unroll")
#else
#define FL_UNROLL _Pragma("GCC unroll 16")
#endif

/* Ask for `count` values from `values` on, which are wanted soon: of rows that lie pages apart,
 * which no prefetcher of the hardware follows. */
#define FL_FETCH(values, count)                                                                    \
    do {                                                                                           \
        for (int64_t i_ = 0; i_ < (int64_t)(count); i_ += (int64_t)(64 / sizeof *(values)))        \
            __builtin_prefetch((values) + i_);                                                     \
    } while (0)

#endif
