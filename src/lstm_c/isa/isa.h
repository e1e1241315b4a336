/* The table that each ISA file exports. */
#ifndef FL_ISA_ISA_H
#define FL_ISA_ISA_H

#include "fastlstm.h"
#include "kernels/reduced.h"

#define FL_SUFFIX f32
#include "kernels/kernels.h"
#undef FL_SUFFIX
#define FL_SUFFIX f64
#include "kernels/kernels.h"
#undef FL_SUFFIX

typedef struct fl_isa {
    const char *name;
    int compiled; /* 1 if the file was really compiled with the instructions of its name */
    fl_kernels_f32 f32;
    fl_kernels_f64 f64;
    fl_reduced_kernels reduced; /* float32 */
} fl_isa;

extern const fl_isa fl_isa_portable;
extern const fl_isa fl_isa_avx2;
extern const fl_isa fl_isa_avx512;
extern const fl_tile_kernels fl_tiles_amx; /* all NULL where it was not compiled */
extern const fl_int8_kernels fl_int8_vnni; /* likewise */

/* The table in use: FASTLSTM_ISA if set, else the best that the processor, the operating system and
 * the build have. Chosen once a process. NULL with *status set if FASTLSTM_ISA cannot be met. */
const fl_isa *fl_isa_current(fl_status *status);
/* The products on tiles that go with it, or NULL. */
const fl_tile_kernels *fl_tiles_current(void);
/* The products with int8 weights: its own, or with AVX-512 those by VNNI where the processor has
 * it. */
const fl_int8_kernels *fl_int8_current(void);

#endif
