/* The body of every cell that is an LSTM with a gate dropped, tied or looking at the cell state:
 *   i = sigmoid(. [+ V_i c_prev])   f = sigmoid(. [+ V_f c_prev])   g = tanh(.)
 *   c = f c_prev + i g              o = sigmoid(. [+ V_o c])        h = o tanh(c)
 * A variant says which accumulator each gate has; -1 is a gate that is not there (1), or the input
 * gate tied to the forget gate (1 - f). Constants of each cell, so nothing of this is decided at
 * run time. `mask` (recurrent dropout, Semeniuta et al., COLING 2016) multiplies g where it enters
 * c, so that memory is not lost. Gates that recur are states beside c as well. tanh(c) is
 * recomputed in the derivative: cheaper than to store and reload it. */

#ifndef FL_CELLS_LSTM_VARIANT
#define FL_CELLS_LSTM_VARIANT
typedef struct fl_lstm_variant {
    int i, f, g, o;    /* slots, -1: no such gate */
    int tied;          /* i = 1 - f */
    int linear_input;  /* g without tanh */
    int linear_output; /* h = o c */
    int peepholes;     /* weights V_i, V_f, V_o in this order */
    int squash_1997;   /* g = 4 sigmoid(.) - 2 and h = o (2 sigmoid(c) - 1) */
    int recurs;        /* the gates are states 1 .. too, in the order i, f, o */
} fl_lstm_variant;

/* The slot of a gate that is made with the output, when every row of a tile has its c; -1: none. An
 * output gate with a peephole sees the new c. Gates that recur have no peepholes. */
FL_INLINE int fl_lstm_late_slot(const fl_lstm_variant v)
{
    return v.peepholes ? v.o : -1;
}
#endif

/* The squashing of c, and the derivatives of both squashings from their values. The functions of
 * 1997 are 2 tanh(z / 2), in [-2, 2], and tanh(c / 2). */
FL_INLINE vec FL_T(input_slope)(vec g, const fl_lstm_variant v)
{
    if (v.squash_1997)
        g *= v_set1((real)0.5);
    return v_fnma(g, g, v_set1(1));
}
FL_INLINE vec FL_T(squash_output)(vec c, const fl_lstm_variant v)
{
    if (v.linear_output)
        return c;
    return v_tanh(v.squash_1997 ? v_set1((real)0.5) * c : c);
}
FL_INLINE vec FL_T(output_slope)(vec squashed, const fl_lstm_variant v)
{
    vec slope = v_fnma(squashed, squashed, v_set1(1));
    return v.squash_1997 ? v_set1((real)0.5) * slope : slope;
}

/* Accumulator of a gate, with its peephole. */
FL_INLINE vec FL_T(lstm_gate)(const FL_T(fl_unit) * u, int slot, int peephole,
                              const fl_lstm_variant v)
{
    return v.peepholes ? v_fma(u->peephole[peephole], u->state[0], u->gate[slot]) : u->gate[slot];
}

FL_INLINE void FL_T(lstm_family_forward)(FL_T(fl_unit) * u, const fl_lstm_variant v)
{
    const vec one = v_set1(1), half = v_set1((real)0.5);
    const int has_o = v.o >= 0 && fl_lstm_late_slot(v) < 0;
    const int at_f = v.i >= 0, at_g = at_f + (v.f >= 0), at_o = at_g + !v.linear_input;
    vec z[FL_MAX_SLOTS], i = one, f = one, g = u->gate[v.g];
    if (v.i >= 0)
        z[0] = FL_T(lstm_gate)(u, v.i, 0, v);
    if (v.f >= 0)
        z[at_f] = FL_T(lstm_gate)(u, v.f, 1, v);
    if (!v.linear_input)
        z[at_g] = v.squash_1997 ? half * g : g;
    if (has_o)
        z[at_o] = u->gate[v.o];
    v_squash(z, at_o + has_o, v.linear_input ? 0 : 1u << at_g);
    if (v.i >= 0)
        u->gate[v.i] = i = z[0];
    if (v.f >= 0)
        u->gate[v.f] = f = z[at_f];
    if (!v.linear_input)
        g = v.squash_1997 ? z[at_g] + z[at_g] : z[at_g];
    u->gate[v.g] = g;
    if (has_o)
        u->gate[v.o] = z[at_o];
    if (v.tied)
        i = one - f;
    u->state[0] = v_fma(f, u->state[0], i * (g * u->mask));
    int next = 1;
    if (v.recurs && v.i >= 0)
        u->state[next++] = i;
    if (v.recurs && v.f >= 0)
        u->state[next++] = f;
    if (v.recurs && v.o >= 0)
        u->state[next++] = u->gate[v.o];
}

FL_INLINE void FL_T(lstm_family_output)(FL_T(fl_unit) * u, const fl_lstm_variant v)
{
    const int late = fl_lstm_late_slot(v);
    if (late >= 0)
        u->gate[late] = v_sigmoid(FL_T(lstm_gate)(u, late, 2, v));
    vec squashed = FL_T(squash_output)(u->state[0], v);
    u->h = v.o >= 0 ? u->gate[v.o] * squashed : squashed;
}

FL_INLINE void FL_T(lstm_family_backward)(FL_T(fl_unit) * u, const fl_lstm_variant v)
{
    const vec one = v_set1(1);
    vec c_prev = u->state_prev[0], dc = u->dstate[0], g = u->gate[v.g], drive = g * u->mask;
    vec squashed = FL_T(squash_output)(u->state[0], v);
    vec di = v_zero(), df = v_zero(), d_o = v_zero(); /* from the next step's gates */
    int next = 1;
    if (v.recurs && v.i >= 0)
        di = u->dstate[next++];
    if (v.recurs && v.f >= 0)
        df = u->dstate[next++];
    if (v.recurs && v.o >= 0)
        d_o = u->dstate[next++];
    while (next-- > 1)
        u->dstate[next] = v_zero();
    vec f = v.f >= 0 ? u->gate[v.f] : one;
    vec i = v.i >= 0 ? u->gate[v.i] : v.tied ? one - f : one;
    vec o = v.o >= 0 ? u->gate[v.o] : one;
    dc = v.linear_output ? v_fma(u->dh, o, dc)
                         : v_fma(u->dh * o, FL_T(output_slope)(squashed, v), dc);
    if (v.o >= 0) {
        vec dpre = v.recurs ? v_fma(u->dh, squashed, d_o) : u->dh * squashed;
        dpre = dpre * o * (one - o);
        u->gate[v.o] = dpre;
        if (v.peepholes)
            dc = v_fma(dpre, u->peephole[2], dc);
    }
    vec dc_prev = dc * f;
    u->gate[v.g] = v.linear_input ? dc * i * u->mask : dc * i * u->mask * FL_T(input_slope)(g, v);
    if (v.i >= 0) {
        vec dpre = v.recurs ? v_fma(dc, drive, di) : dc * drive;
        dpre = dpre * i * (one - i);
        u->gate[v.i] = dpre;
        if (v.peepholes)
            dc_prev = v_fma(dpre, u->peephole[0], dc_prev);
    }
    if (v.f >= 0) {
        vec kept = v.tied ? c_prev - drive : c_prev,
            dpre = v.recurs ? v_fma(dc, kept, df) : dc * kept;
        dpre = dpre * f * (one - f);
        u->gate[v.f] = dpre;
        if (v.peepholes)
            dc_prev = v_fma(dpre, u->peephole[1], dc_prev);
    }
    u->dstate[0] = dc_prev;
}

/* Layer normalisation of c: h = o * squash(bias + gain * normed). */
FL_INLINE vec FL_T(normed_squash)(const FL_T(fl_normed_output) * s, int64_t row, int64_t unit,
                                  const fl_lstm_variant v)
{
    vec normed = v_load(s->normed + row * s->normed_row + unit);
    return FL_T(squash_output)(v_fma(v_load(s->gain + unit), normed, v_load(s->bias + unit)), v);
}

FL_INLINE real *FL_T(output_gate)(const FL_T(fl_normed_output) * s, int64_t row, int64_t unit,
                                  const int slots, const fl_lstm_variant v)
{
    return s->gates + row * s->gates_row + unit * slots + v.o * FL_LANES;
}

FL_INLINE void FL_T(lstm_family_normed_output)(const FL_T(fl_normed_output) * s, const int slots,
                                               const fl_lstm_variant v)
{
    for (int64_t row = 0; row < s->rows; row++)
        for (int64_t unit = 0; unit < s->units; unit += FL_LANES) {
            vec h = FL_T(normed_squash)(s, row, unit, v);
            if (v.o >= 0)
                h *= v_load(FL_T(output_gate)(s, row, unit, slots, v));
            FL_T(store_column)(s->h + row * s->h_row, h, unit, s->units);
        }
}

FL_INLINE void FL_T(lstm_family_normed_output_gradient)(const FL_T(fl_normed_output) * s,
                                                        const int slots, const fl_lstm_variant v)
{
    const vec one = v_set1(1);
    for (int64_t row = 0; row < s->rows; row++)
        for (int64_t unit = 0; unit < s->units; unit += FL_LANES) {
            vec squashed = FL_T(normed_squash)(s, row, unit, v), o = one, dpre = v_zero(),
                dh = v_load(s->dh + row * s->dh_row + unit);
            if (s->dy)
                dh += FL_T(load_column)(s->dy + row * s->dy_row, unit, s->units);
            if (v.o >= 0) {
                o = v_load(FL_T(output_gate)(s, row, unit, slots, v));
                dpre = dh * squashed * o * (one - o);
            }
            if (v.peepholes && v.o >= 0 && s->peephole) {
                real *dstate = s->dstate + row * s->dstate_row + unit;
                vec weight = v_load(s->peephole + 2 * s->state_plane + unit);
                v_store(dstate, v_fma(dpre, weight, v_load(dstate)));
            }
            vec dsquashed = dh * o;
            if (!v.linear_output)
                dsquashed *= FL_T(output_slope)(squashed, v);
            v_store(s->doutput_gate + row * s->doutput_gate_row + unit, dpre);
            v_store(s->dsquashed + row * s->dsquashed_row + unit, dsquashed);
        }
}

FL_INLINE void FL_T(lstm_family_add_output_gate)(const FL_T(fl_normed_output) * s, const int slots,
                                                 const fl_lstm_variant v)
{
    if (v.o < 0)
        return;
    for (int64_t row = 0; row < s->rows; row++)
        for (int64_t unit = 0; unit < s->units; unit += FL_LANES) {
            real *gate = FL_T(output_gate)(s, row, unit, slots, v);
            v_store(gate,
                    v_load(gate) + v_load(s->doutput_gate + row * s->doutput_gate_row + unit));
        }
}
