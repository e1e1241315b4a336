/* First half of a step of the time-aware LSTM (cells/tlstm.h): the short-term part of the cell
 * state is discounted by the weight of the elapsed time, c* = (c_prev - s) + s g(delta t), s =
 * tanh(W_d c_prev + b_d). */
#define FL_CELL tlstm_memory
static const fl_cell_facts FL_T(tlstm_memory_facts) = {.name = "tlstm_memory",
                                                       .slot_names = "d",
                                                       .slots = 1,
                                                       .x_gates = 4,
                                                       .h_gates = 5,
                                                       .x_gate = {-1},
                                                       .h_gate = {4},
                                                       .states = 1,
                                                       .state_recurs = 1,
                                                       .is_prelude = 1,
                                                       .takes_decay = 1};

FL_INLINE void FL_T(tlstm_memory_forward)(FL_T(fl_unit) * u)
{
    vec s = v_tanh(u->gate[0]);
    u->h = v_zero();
    u->state[0] = v_fma(s, u->decay - v_set1(1), u->state[0]);
    u->gate[0] = s;
}

FL_INLINE void FL_T(tlstm_memory_backward)(FL_T(fl_unit) * u)
{
    vec s = u->gate[0];
    u->gate[0] = u->dstate[0] * (u->decay - v_set1(1)) * v_fnma(s, s, v_set1(1));
}

#include "kernels/recurrent_cell.h"
