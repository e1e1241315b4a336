/* The stabilised LSTM with exponential input gate and logistic forget gate. Beck et al., arXiv
 * 2405.04517, 2024. */
#define FL_CELL slstm
static const fl_cell_facts FL_T(slstm_facts) = {.name = "slstm",
                                                .slot_names = "ifgo",
                                                .takes_mask = 1,
                                                .slots = 4,
                                                .x_gates = 4,
                                                .h_gates = 4,
                                                .x_gate = {0, 1, 2, 3},
                                                .h_gate = {0, 1, 2, 3},
                                                .states = 3,
                                                .stabilised = 1};

FL_INLINE void FL_T(slstm_forward)(FL_T(fl_unit) * u)
{
    FL_T(exponential_forward)(u, 1);
}

FL_INLINE void FL_T(slstm_backward)(FL_T(fl_unit) * u)
{
    FL_T(exponential_backward)(u, 1);
}

#include "kernels/recurrent_cell.h"
