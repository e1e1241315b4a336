/* LSTM with forget gate, gates in the order i, f, g, o:
 *   i, f, o = sigmoid(W x + U h_prev + b)   g = tanh(W x + U h_prev + b)   c = f c_prev + i g   h =
 * o tanh(c) Gers, Schmidhuber, Cummins, Neural Computation 12(10), 2000. tanh(c) is recomputed in
 * the derivative: cheaper than to store and reload it. */
#define FL_CELL lstm
#define lstm_GATES 4
#define lstm_STATES 1

FL_INLINE void FL_T(lstm_forward)(FL_T(fl_unit) * u)
{
    vec i = v_sigmoid(u->gate[0]), f = v_sigmoid(u->gate[1]), g = v_tanh(u->gate[2]),
        o = v_sigmoid(u->gate[3]);
    vec c = v_fma(f, u->state[0], i * g);
    u->h = o * v_tanh(c);
    u->state[0] = c;
    u->gate[0] = i;
    u->gate[1] = f;
    u->gate[2] = g;
    u->gate[3] = o;
}

FL_INLINE void FL_T(lstm_backward)(FL_T(fl_unit) * u)
{
    const vec one = v_set1(1);
    vec i = u->gate[0], f = u->gate[1], g = u->gate[2], o = u->gate[3];
    vec tanh_c = v_tanh(u->state[0]);
    vec dc = v_fma(u->dh * o, v_fnma(tanh_c, tanh_c, one), u->dstate[0]);
    u->gate[0] = dc * g * i * (one - i);
    u->gate[1] = dc * u->state_prev[0] * f * (one - f);
    u->gate[2] = dc * i * v_fnma(g, g, one);
    u->gate[3] = u->dh * tanh_c * o * (one - o);
    u->dstate[0] = dc * f;
}

#include "kernels/recurrent_cell.h"
