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

#endif
