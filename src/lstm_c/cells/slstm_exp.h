/* The stabilised LSTM with exponential input and forget gates. Beck et al., arXiv 2405.04517, 2024.
 */
#define FL_CELL slstm_exp
static const fl_cell_facts FL_T(slstm_exp_facts) = {.name = "slstm_exp",
                                                    .slot_names = "ifgo",
                                                    .takes_mask = 1,
                                                    .slots = 4,
                                                    .x_gates = 4,
                                                    .h_gates = 4,
                                                    .x_gate = {0, 1, 2, 3},
                                                    .h_gate = {0, 1, 2, 3},
                                                    .states = 3,
                                                    .stabilised = 1};

FL_INLINE void FL_T(slstm_exp_forward)(FL_T(fl_unit) * u)
{
    FL_T(exponential_forward)(u, 0);
}

FL_INLINE void FL_T(slstm_exp_backward)(FL_T(fl_unit) * u)
{
    FL_T(exponential_backward)(u, 0);
}

#include "kernels/recurrent_cell.h"
