#include "base/cpu.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

int fl_cpu_allow_amx(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* arch_prctl, a state of XSAVE */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
int fl_cpu_allow_amx(void)
{
    return 0;
}
#endif

#if defined(__x86_64__)
#include <cpuid.h>

/* Extended control register 0: which register files the operating system saves. */
static unsigned long long saved_state(void)
{
    unsigned eax, edx, ebx, ecx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & (1u << 27)))
        return 0;
    __asm__ __volatile__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return ((unsigned long long)edx << 32) | eax;
}

static int has_all(unsigned value, unsigned bits)
{
    return (value & bits) == bits;
}

int fl_cpu_has_avx2(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!has_all((unsigned)saved_state(), 0x6u))
        return 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & (1u << 12)))
        return 0; /* FMA */
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & (1u << 5));
}

int fl_cpu_has_avx512(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!fl_cpu_has_avx2() || !has_all((unsigned)saved_state(), 0xE6u))
        return 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return 0;
    return has_all(ebx, (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31));
}

int fl_cpu_has_vnni(void)
{
    unsigned eax, ebx, ecx, edx;
    return fl_cpu_has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
           (ecx & (1u << 11));
}

int fl_cpu_has_amx(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!has_all((unsigned)saved_state(), 0x60000u) ||
        !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return 0;
    return has_all(edx, (1u << 22) | (1u << 24));
}
#else
int fl_cpu_has_avx2(void)
{
    return 0;
}
int fl_cpu_has_avx512(void)
{
    return 0;
}
int fl_cpu_has_vnni(void)
{
    return 0;
}
int fl_cpu_has_amx(void)
{
    return 0;
}
#endif
