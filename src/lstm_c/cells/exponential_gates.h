/* LSTM with exponential gates and a normaliser state. Beck et al., xLSTM, arXiv 2405.04517, 2024,
 * eqs. 8-17: i = exp(W x + U h_prev + b)     f = sigmoid(.) or exp(.)      g = tanh(.)    o =
 * sigmoid(.) m = max(log f + m_prev, log i)  i' = exp(log i - m)           f' = exp(log f + m_prev
 * - m) c = f' c_prev + i' g            n = f' n_prev + i'            h = o c / n States c, n, m. m
 * keeps the exponentials from overflowing and cancels in h. n_prev = 0 means that there is no
 * history: then m = log i, so that n is 1 and not an underflow, and later n >= 1. The tape keeps
 * log i and log f, which never overflow. The derivative is the whole one, through the maximum too:
 * states that are carried between calls carry its gradient. A variant says whether f is the
 * logistic function. */

typedef struct FL_T(fl_exponential_gates) {
    vec i, f;    /* stabilised: i', f' */
    ivec f_wins; /* the maximum is log f + m_prev */
    vec m;
} FL_T(fl_exponential_gates);

FL_INLINE FL_T(fl_exponential_gates) FL_T(stabilise)(vec log_i, vec log_f, vec n_prev, vec m_prev)
{
    FL_T(fl_exponential_gates) e;
    ivec fresh = (ivec)(n_prev == v_zero());
    vec kept = log_f + m_prev;
    e.f_wins = (ivec)(kept > log_i) & ~fresh;
    e.m = FL_T(v_blend)(fresh, log_i, v_max(kept, log_i));
    e.i = v_exp_negative(log_i - e.m);
    e.f = FL_T(v_blend)(fresh, v_zero(), v_exp_negative(kept - e.m));
    return e;
}

FL_INLINE void FL_T(exponential_forward)(FL_T(fl_unit) * u, const int logistic_forget)
{
    vec log_i = u->gate[0], log_f = logistic_forget ? v_log_sigmoid(u->gate[1]) : u->gate[1];
    v_squash(u->gate + 2, 2, 1);
    vec g = u->gate[2];
    FL_T(fl_exponential_gates) e = FL_T(stabilise)(log_i, log_f, u->state[1], u->state[2]);
    vec c = v_fma(e.f, u->state[0], e.i * (g * u->mask));
    vec n = v_fma(e.f, u->state[1], e.i);
    u->h = u->gate[3] * (c / n);
    u->state[0] = c;
    u->state[1] = n;
    u->state[2] = e.m;
    u->gate[1] = log_f;
}

FL_INLINE void FL_T(exponential_backward)(FL_T(fl_unit) * u, const int logistic_forget)
{
    const vec one = v_set1(1);
    vec log_f = u->gate[1], g = u->gate[2], o = u->gate[3], drive = g * u->mask;
    FL_T(fl_exponential_gates)
    e = FL_T(stabilise)(u->gate[0], log_f, u->state_prev[1], u->state_prev[2]);
    vec ratio = u->state[0] / u->state[1], dratio = u->dh * o / u->state[1];
    vec dc = u->dstate[0] + dratio, dn = v_fnma(dratio, ratio, u->dstate[1]);
    vec dlog_f = v_fma(dc, u->state_prev[0], dn * u->state_prev[1]) * e.f;
    vec dlog_i = v_fma(dc, drive, dn) * e.i;
    vec dm = u->dstate[2] - dlog_f - dlog_i;
    dlog_f += FL_T(v_blend)(e.f_wins, dm, v_zero());
    dlog_i += FL_T(v_blend)(e.f_wins, v_zero(), dm);
    u->dstate[0] = dc * e.f;
    u->dstate[1] = dn * e.f;
    u->dstate[2] = dlog_f;
    u->gate[0] = dlog_i;
    u->gate[1] =
        logistic_forget
            ? dlog_f * (v_zero() - v_expm1(v_max(v_set1(-(real)FL_SIGMOID_LIMIT + 1), log_f)))
            : dlog_f;
    u->gate[2] = dc * e.i * u->mask * v_fnma(g, g, one);
    u->gate[3] = u->dh * ratio * o * (one - o);
}
