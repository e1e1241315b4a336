/* Ends the file of a cell that is a variant of the LSTM: <cell>_facts and <cell>_variant are
 * defined, the bodies are those of the family. */
FL_INLINE void FL_T(FL_PASTE2(FL_CELL, forward))(FL_T(fl_unit) * u)
{
    FL_T(lstm_family_forward)(u, FL_T(FL_PASTE2(FL_CELL, variant)));
}

FL_INLINE void FL_T(FL_PASTE2(FL_CELL, backward))(FL_T(fl_unit) * u)
{
    FL_T(lstm_family_backward)(u, FL_T(FL_PASTE2(FL_CELL, variant)));
}

#include "kernels/recurrent_cell.h"
