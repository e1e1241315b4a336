/* Simple recurrent network with rectified units: h = max(0, W x + U h_prev + b). Elman, Cognitive
 * Science 14, 1990. */
#define FL_CELL rnn_relu
static const fl_cell_facts FL_T(rnn_relu_facts) = {
    .name = "rnn_relu", .slot_names = "h", .slots = 1, .x_gates = 1, .h_gates = 1};

FL_INLINE void FL_T(rnn_relu_forward)(FL_T(fl_unit) * u)
{
    u->h = v_positive(u->gate[0]);
    u->gate[0] = u->h;
}

FL_INLINE void FL_T(rnn_relu_backward)(FL_T(fl_unit) * u)
{
    u->gate[0] = FL_T(v_blend)((ivec)(u->gate[0] > v_zero()), u->dh, v_zero());
}

#include "kernels/recurrent_cell.h"
