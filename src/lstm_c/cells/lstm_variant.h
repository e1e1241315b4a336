/* Ends the file of a cell that is a variant of the LSTM: <cell>_facts and <cell>_variant are
 * defined, the bodies are those of the family. */
FL_INLINE void FL_T(FL_PASTE2(FL_CELL, forward))(FL_T(fl_unit) * u)
{
    FL_T(lstm_family_forward)(u, FL_T(FL_PASTE2(FL_CELL, variant)));
}

#define FL_CELL_SQUASHES 1
#define FL_CELL_LATE fl_lstm_late_slot(FL_T(FL_PASTE2(FL_CELL, variant)))
FL_INLINE void FL_T(FL_PASTE2(FL_CELL, output))(FL_T(fl_unit) * u)
{
    FL_T(lstm_family_output)(u, FL_T(FL_PASTE2(FL_CELL, variant)));
}

FL_INLINE void FL_T(FL_PASTE2(FL_CELL, backward))(FL_T(fl_unit) * u)
{
    FL_T(lstm_family_backward)(u, FL_T(FL_PASTE2(FL_CELL, variant)));
}

static void FL_T(FL_PASTE2(FL_CELL, normed_output))(const FL_T(fl_normed_output) * s)
{
    FL_T(lstm_family_normed_output)(s, FL_T(FL_PASTE2(FL_CELL, facts)).slots,
                                    FL_T(FL_PASTE2(FL_CELL, variant)));
}

static void FL_T(FL_PASTE2(FL_CELL, normed_output_gradient))(const FL_T(fl_normed_output) * s)
{
    FL_T(lstm_family_normed_output_gradient)(s, FL_T(FL_PASTE2(FL_CELL, facts)).slots,
                                             FL_T(FL_PASTE2(FL_CELL, variant)));
}

static void FL_T(FL_PASTE2(FL_CELL, add_output_gate))(const FL_T(fl_normed_output) * s)
{
    FL_T(lstm_family_add_output_gate)(s, FL_T(FL_PASTE2(FL_CELL, facts)).slots,
                                      FL_T(FL_PASTE2(FL_CELL, variant)));
}

#include "kernels/recurrent_cell.h"
