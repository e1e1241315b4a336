/* All bodies for one dtype (FL_SUFFIX, FL_DOUBLE) of one ISA, in order of use: the files are
 * templates and include nothing. */
#include "simd/vec.h"

#include "kernels/tile_walk.h"

#include "kernels/activations.h"
#include "kernels/ctc.h"
#include "kernels/gemm.h"
#include "kernels/row_groups.h"
#include "kernels/layer_norm.h"
#include "kernels/optimizers.h"
#include "kernels/recurrent_product.h"
#include "kernels/reductions.h"
#include "kernels/softmax.h"
#include "kernels/zoneout.h"

#include "cells/unit.h"
#include "cells/exponential_gates.h"
#include "cells/lstm_family.h"
#include "fl_cells.h" /* written by CMake from the list of cells: includes each cell, defines FL_CELLS */

#define FL_CELL_ROW(cell)                                                                          \
    {&FL_T(FL_PASTE2(cell, facts)),        FL_T(FL_PASTE2(cell, forward_step)),                    \
     FL_T(FL_PASTE2(cell, backward_step)), FL_T(FL_PASTE2(cell, forward_row)),                     \
     FL_T(FL_PASTE2(cell, backward_row)),  &FL_T(FL_PASTE2(cell, normed))},
static const FL_T(fl_cell) FL_T(cell_table)[] = {FL_CELLS(FL_CELL_ROW)};
#undef FL_CELL_ROW
