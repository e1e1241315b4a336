/* Simple recurrent network: h = tanh(W x + U h_prev + b). Elman, Cognitive Science 14, 1990. */
#define FL_CELL rnn
#define FL_CELL_FUSED 1
static const fl_cell_facts FL_T(rnn_facts) = {
    .name = "rnn", .slot_names = "h", .slots = 1, .x_gates = 1, .h_gates = 1};

FL_INLINE void FL_T(rnn_forward)(FL_T(fl_unit) * u)
{
    u->h = v_tanh(u->gate[0]);
    u->gate[0] = u->h;
}

FL_INLINE void FL_T(rnn_backward)(FL_T(fl_unit) * u)
{
    u->gate[0] = u->dh * v_fnma(u->gate[0], u->gate[0], v_set1(1));
}

#include "kernels/recurrent_cell.h"
