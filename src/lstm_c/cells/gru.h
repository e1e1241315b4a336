/* GRU whose reset gate acts after the recurrent product, gates in the order r, z, n:
 *   r, z = sigmoid(W x + U h_prev + b)   n = tanh(W_n x + b_n + r (U_n h_prev + c_n))
 *   h = (1 - z) n + z h_prev
 * Cho et al., arXiv 1406.1078v1; PyTorch's and cuDNN's form. The two products of n stay apart, so
 * it has two slots, one at either end: each product leaves the other one's out. */
#define FL_CELL gru
#define FL_CELL_FUSED 1
static const fl_cell_facts FL_T(gru_facts) = {.name = "gru",
                                              .slot_names = "nrzu",
                                              .takes_mask = 1,
                                              .in_stages = FL_GRU_STAGES,
                                              .slots = 4,
                                              .x_gates = 3,
                                              .h_gates = 3,
                                              .compact = 1,
                                              .x_gate = {2, 0, 1, -1},
                                              .h_gate = {-1, 0, 1, 2},
                                              .reads_h = 1};

#define FL_CELL_LATE 0
FL_INLINE void FL_T(gru_forward)(FL_T(fl_unit) * u)
{
    v_squash(u->gate + 1, 2, 0);
    u->gate[0] = v_fma(u->gate[1], u->gate[3], u->gate[0]);
}

FL_INLINE void FL_T(gru_output)(FL_T(fl_unit) * u)
{
    vec n = v_tanh(u->gate[0]), drive = n * u->mask;
    u->h = v_fma(u->gate[2], u->h_prev - drive, drive);
    u->gate[0] = n;
}

FL_INLINE void FL_T(gru_backward)(FL_T(fl_unit) * u)
{
    const vec one = v_set1(1);
    vec n = u->gate[0], r = u->gate[1], z = u->gate[2], drive = n * u->mask;
    vec dn = u->dh * (one - z) * u->mask * v_fnma(n, n, one);
    u->dh_prev = u->dh * z;
    u->gate[0] = dn;
    u->gate[1] = dn * u->gate[3] * r * (one - r);
    u->gate[2] = u->dh * (u->h_prev - drive) * z * (one - z);
    u->gate[3] = dn * r;
}

#include "kernels/recurrent_cell.h"
