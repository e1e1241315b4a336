/* The body of every cell that is an LSTM with a gate dropped, tied or looking at the cell state:
 *   i = sigmoid(. [+ V_i c_prev])   f = sigmoid(. [+ V_f c_prev])   g = tanh(.)
 *   c = f c_prev + i g              o = sigmoid(. [+ V_o c])        h = o tanh(c)
 * A variant says which accumulator each gate has; -1 is a gate that is not there (1), or the input
 * gate tied to the forget gate (1 - f). Constants of each cell, so nothing of this is decided at
 * run time. `mask` (recurrent dropout, Semeniuta et al., COLING 2016) multiplies g where it enters
 * c, so that memory is not lost. tanh(c) is recomputed in the derivative: cheaper than to store and
 * reload it. */

#ifndef FL_CELLS_LSTM_VARIANT
#define FL_CELLS_LSTM_VARIANT
typedef struct fl_lstm_variant {
    int i, f, g, o;    /* slots, -1: no such gate */
    int tied;          /* i = 1 - f */
    int linear_input;  /* g without tanh */
    int linear_output; /* h = o c */
    int peepholes;     /* weights V_i, V_f, V_o in this order */
} fl_lstm_variant;
#endif

FL_INLINE void FL_T(lstm_family_forward)(FL_T(fl_unit) * u, const fl_lstm_variant v)
{
    const vec one = v_set1(1);
    vec c = u->state[0], i = one, f = one, o = one;
    if (v.i >= 0)
        i = v_sigmoid(v.peepholes ? v_fma(u->peephole[0], c, u->gate[v.i]) : u->gate[v.i]);
    if (v.f >= 0)
        f = v_sigmoid(v.peepholes ? v_fma(u->peephole[1], c, u->gate[v.f]) : u->gate[v.f]);
    if (v.tied)
        i = one - f;
    vec g = v.linear_input ? u->gate[v.g] : v_tanh(u->gate[v.g]);
    c = v_fma(f, c, i * (g * u->mask));
    if (v.o >= 0)
        o = v_sigmoid(v.peepholes ? v_fma(u->peephole[2], c, u->gate[v.o]) : u->gate[v.o]);
    u->h = o * (v.linear_output ? c : v_tanh(c));
    u->state[0] = c;
    if (v.i >= 0)
        u->gate[v.i] = i;
    if (v.f >= 0)
        u->gate[v.f] = f;
    u->gate[v.g] = g;
    if (v.o >= 0)
        u->gate[v.o] = o;
}

FL_INLINE void FL_T(lstm_family_backward)(FL_T(fl_unit) * u, const fl_lstm_variant v)
{
    const vec one = v_set1(1);
    vec c_prev = u->state_prev[0], dc = u->dstate[0], g = u->gate[v.g], drive = g * u->mask;
    vec squashed = v.linear_output ? u->state[0] : v_tanh(u->state[0]);
    vec f = v.f >= 0 ? u->gate[v.f] : one;
    vec i = v.i >= 0 ? u->gate[v.i] : v.tied ? one - f : one;
    vec o = v.o >= 0 ? u->gate[v.o] : one;
    dc = v.linear_output ? v_fma(u->dh, o, dc)
                         : v_fma(u->dh * o, v_fnma(squashed, squashed, one), dc);
    if (v.o >= 0) {
        vec dpre = u->dh * squashed * o * (one - o);
        u->gate[v.o] = dpre;
        if (v.peepholes)
            dc = v_fma(dpre, u->peephole[2], dc);
    }
    vec dc_prev = dc * f;
    u->gate[v.g] = v.linear_input ? dc * i * u->mask : dc * i * u->mask * v_fnma(g, g, one);
    if (v.i >= 0) {
        vec dpre = dc * drive * i * (one - i);
        u->gate[v.i] = dpre;
        if (v.peepholes)
            dc_prev = v_fma(dpre, u->peephole[0], dc_prev);
    }
    if (v.f >= 0) {
        vec dpre = dc * (v.tied ? c_prev - drive : c_prev) * f * (one - f);
        u->gate[v.f] = dpre;
        if (v.peepholes)
            dc_prev = v_fma(dpre, u->peephole[1], dc_prev);
    }
    u->dstate[0] = dc_prev;
}
