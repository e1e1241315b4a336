/* What the processor offers and the operating system saves on a context switch. */
#ifndef FL_BASE_CPU_H
#define FL_BASE_CPU_H

/* 1 if AVX2 and FMA can be used. */
int fl_cpu_has_avx2(void);
/* 1 if AVX-512 F, BW, DQ and VL can be used. */
int fl_cpu_has_avx512(void);
/* 1 if that and AVX-512 VNNI can be used. */
int fl_cpu_has_vnni(void);
/* 1 if AMX tiles with bf16 exist. */
int fl_cpu_has_amx(void);
/* Ask the operating system for the tiles, for this process and the threads that it will have. 1 if
 * they may be used. */
int fl_cpu_allow_amx(void);

#endif
