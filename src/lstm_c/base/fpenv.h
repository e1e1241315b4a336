/* Flush-to-zero scope: set on entry of a computation, the caller's state restored on exit.
 * Cost: two register moves. Denormals would otherwise slow a decaying cell by 20x. */
#ifndef FL_BASE_FPENV_H
#define FL_BASE_FPENV_H

#include "base/compiler.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
typedef unsigned int fl_fpenv;
FL_INLINE fl_fpenv fl_fpenv_current(void)
{
    return _mm_getcsr();
}
/* Denormals are zero (bit 6), flush to zero (bit 15), all exceptions masked, round to nearest. */
FL_INLINE fl_fpenv fl_fpenv_enter(void)
{
    fl_fpenv saved = _mm_getcsr();
    _mm_setcsr(0x1F80u | 0x8040u);
    return saved;
}
FL_INLINE void fl_fpenv_leave(fl_fpenv saved)
{
    _mm_setcsr(saved);
}
#elif defined(__aarch64__)
typedef unsigned long long fl_fpenv;
FL_INLINE fl_fpenv fl_fpenv_current(void)
{
    fl_fpenv word;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(word));
    return word;
}
FL_INLINE fl_fpenv fl_fpenv_enter(void)
{
    fl_fpenv saved;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(saved));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(1ull << 24));
    return saved;
}
FL_INLINE void fl_fpenv_leave(fl_fpenv saved)
{
    __asm__ __volatile__("msr fpcr, %0" : : "r"(saved));
}
#else
typedef int fl_fpenv;
FL_INLINE fl_fpenv fl_fpenv_current(void)
{
    return 0;
}
FL_INLINE fl_fpenv fl_fpenv_enter(void)
{
    return 0;
}
FL_INLINE void fl_fpenv_leave(fl_fpenv saved)
{
    (void)saved;
}
#endif

#endif
