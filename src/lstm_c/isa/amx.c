/* Products on AMX's bfloat16 tiles, beside the AVX-512 table. Compiled without the instructions,
 * nothing, or, for tests, the same bodies on tiles in plain C. */
#include "isa/isa.h"

#if (defined(__AMX_TILE__) && defined(__AMX_BF16__)) || defined(FASTLSTM_EMULATE_TILES)
#include "isa/tile_bodies.h"

const fl_tile_kernels fl_tiles_amx = {tile_split_rows, tile_split_columns, tile_split_block,
                                      tile_gemm};
#else
const fl_tile_kernels fl_tiles_amx = {0};
#endif
