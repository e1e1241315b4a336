/* GRU whose reset gate acts before the recurrent product, gates in the order r, z, n:
 *   r, z = sigmoid(W x + U h_prev + b)   n = tanh(W_n x + U_n (r h_prev) + b_n)
 *   h = (1 - z) n + z h_prev
 * Cho et al., arXiv 1406.1078v3; ONNX's and the old Keras's default. This is the second half of a
 * step. */
#define FL_CELL gru_before
static const fl_cell_facts FL_T(gru_before_facts) = {.name = "gru_before",
                                                     .slot_names = "n",
                                                     .takes_mask = 1,
                                                     .slots = 1,
                                                     .x_gates = 3,
                                                     .h_gates = 3,
                                                     .x_gate = {2},
                                                     .h_gate = {2},
                                                     .states = 2,
                                                     .transient = 1,
                                                     .prelude = "gru_before_gates",
                                                     .made_recurs = 1};

FL_INLINE void FL_T(gru_before_forward)(FL_T(fl_unit) * u)
{
    vec n = v_tanh(u->gate[0]), drive = n * u->mask;
    u->h = v_fma(u->state[0], u->state[1] - drive, drive);
    u->gate[0] = n;
}

FL_INLINE void FL_T(gru_before_backward)(FL_T(fl_unit) * u)
{
    const vec one = v_set1(1);
    vec n = u->gate[0], z = u->state_prev[0], h_prev = u->state_prev[1];
    u->gate[0] = u->dh * (one - z) * u->mask * v_fnma(n, n, one);
    u->dstate[0] = u->dh * (h_prev - n * u->mask);
    u->dstate[1] = u->dh * z;
}

#include "kernels/recurrent_cell.h"
