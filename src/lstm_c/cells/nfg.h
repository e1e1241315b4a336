/* LSTM without forget gate (f = 1), gates i, g, o. Greff et al., arXiv 1503.04069, 2015. */
#define FL_CELL nfg
static const fl_cell_facts FL_T(nfg_facts) = {.name = "nfg",
                                              .slot_names = "igo",
                                              .takes_mask = 1,
                                              .slots = 3,
                                              .x_gates = 3,
                                              .h_gates = 3,
                                              .x_gate = {0, 1, 2},
                                              .h_gate = {0, 1, 2},
                                              .states = 1};
static const fl_lstm_variant FL_T(nfg_variant) = {.i = 0, .f = -1, .g = 1, .o = 2};

FL_INLINE void FL_T(nfg_forward)(FL_T(fl_unit) * u)
{
    FL_T(lstm_family_forward)(u, FL_T(nfg_variant));
}
FL_INLINE void FL_T(nfg_backward)(FL_T(fl_unit) * u)
{
    FL_T(lstm_family_backward)(u, FL_T(nfg_variant));
}

#include "kernels/recurrent_cell.h"
