/* First half of a step of the GRU whose reset gate acts before the recurrent product: r, z, and r
 * h_prev, which recurs into the second half (cells/gru_before.h). States made: z, h_prev. */
#define FL_CELL gru_before_gates
static const fl_cell_facts FL_T(gru_before_gates_facts) = {.name = "gru_before_gates",
                                                           .slot_names = "rz",
                                                           .slots = 2,
                                                           .x_gates = 3,
                                                           .h_gates = 3,
                                                           .x_gate = {0, 1},
                                                           .h_gate = {0, 1},
                                                           .states = 2,
                                                           .transient = 1,
                                                           .is_prelude = 1,
                                                           .reads_h = 1};

FL_INLINE void FL_T(gru_before_gates_forward)(FL_T(fl_unit) * u)
{
    v_squash(u->gate, 2, 0);
    u->h = u->gate[0] * u->h_prev;
    u->state[0] = u->gate[1];
    u->state[1] = u->h_prev;
}

FL_INLINE void FL_T(gru_before_gates_backward)(FL_T(fl_unit) * u)
{
    const vec one = v_set1(1);
    vec r = u->gate[0], z = u->gate[1];
    u->dh_prev += v_fma(u->dh, r, u->dstate[1]);
    u->gate[0] = u->dh * u->h_prev * r * (one - r);
    u->gate[1] = u->dstate[0] * z * (one - z);
    u->dstate[0] = u->dstate[1] = v_zero();
}

#include "kernels/recurrent_cell.h"
