/* Optimiser steps: one pass over the flat parameter array, the state arrays and the gradient,
 * formulas as torch.optim's. Memory-bound: 4 bytes read and written per array and parameter. */

/* One rule on one vector: parameters p, gradient g (scaled), states s0, s1, constants k. */
typedef struct FL_T(fl_rule) {
    vec p, g, s0, s1;
} FL_T(fl_rule);

/* for i in vectors: load, apply `body`, store; the tail through masked loads. */
#define FL_OPTIMIZER_LOOP(name, has0, has1, constants, body)                                       \
    static void FL_T(name)(const FL_T(fl_optimizer) * o)                                           \
    {                                                                                              \
        const fl_optimizer_rates *k = &o->rates;                                                   \
        const vec scale = v_set1((real)k->gradient_scale), decay = v_set1((real)k->weight_decay);  \
        constants;                                                                                 \
        for (int64_t i = 0; i < o->count; i += FL_LANES) {                                         \
            int64_t left = o->count - i;                                                           \
            int n = left < FL_LANES ? (int)left : FL_LANES;                                        \
            vec p = n == FL_LANES ? v_load(o->parameters + i) : v_load_n(o->parameters + i, n);    \
            vec g = (n == FL_LANES ? v_load(o->gradients + i) : v_load_n(o->gradients + i, n)) *   \
                    scale;                                                                         \
            vec s0 = v_zero(), s1 = v_zero();                                                      \
            if (has0)                                                                              \
                s0 = n == FL_LANES ? v_load(o->slot0 + i) : v_load_n(o->slot0 + i, n);             \
            if (has1)                                                                              \
                s1 = n == FL_LANES ? v_load(o->slot1 + i) : v_load_n(o->slot1 + i, n);             \
            body;                                                                                  \
            v_store_n_or_all(o->parameters + i, p, n);                                             \
            if (has0)                                                                              \
                v_store_n_or_all(o->slot0 + i, s0, n);                                             \
            if (has1)                                                                              \
                v_store_n_or_all(o->slot1 + i, s1, n);                                             \
        }                                                                                          \
    }
#define v_store_n_or_all FL_T(v_store_n_or_all)
FL_INLINE void v_store_n_or_all(real *p, vec a, int n)
{
    if (n == FL_LANES)
        v_store(p, a);
    else
        v_store_n(p, a, n);
}

/* Momentum starts from zero, so the first buffer is the first gradient, as in torch.optim.SGD with
 * dampening 0. */
FL_OPTIMIZER_LOOP(optimizer_sgd, o->slot0 != NULL, 0, const vec lr = v_set1((real)k->learning_rate);
                  const vec momentum = v_set1((real)k->momentum);
                  const int nesterov = k->nesterov, {
                      g = v_fma(decay, p, g);
                      if (o->slot0) {
                          s0 = v_fma(momentum, s0, g);
                          g = nesterov ? v_fma(momentum, s0, g) : s0;
                      }
                      p = v_fnma(lr, g, p);
                  })

FL_OPTIMIZER_LOOP(optimizer_rmsprop, 1, 0, const vec lr = v_set1((real)k->learning_rate);
                  const vec alpha = v_set1((real)k->alpha);
                  const vec rest = v_set1((real)(1 - k->alpha));
                  const vec epsilon = v_set1((real)k->epsilon), {
                      g = v_fma(decay, p, g);
                      s0 = v_fma(alpha, s0, rest * g * g);
                      p = p - lr * g / (v_sqrt(s0) + epsilon);
                  })

#define FL_ADAM_CONSTANTS                                                                          \
    const vec beta1 = v_set1((real)k->beta1), beta2 = v_set1((real)k->beta2);                      \
    const vec rest1 = v_set1((real)(1 - k->beta1)), rest2 = v_set1((real)(1 - k->beta2));          \
    const vec epsilon = v_set1((real)k->epsilon);                                                  \
    const vec root2 = v_set1((real)__builtin_sqrt(k->bias2))

#define FL_ADAM_MOMENTS                                                                            \
    s0 = v_fma(beta1, s0, rest1 * g);                                                              \
    s1 = v_fma(beta2, s1, rest2 * g * g);                                                          \
    vec denominator = v_sqrt(s1) / root2 + epsilon

FL_OPTIMIZER_LOOP(optimizer_adam, 1, 1, FL_ADAM_CONSTANTS;
                  const vec rate = v_set1((real)(k->learning_rate / k->bias1)), {
                      g = v_fma(decay, p, g);
                      FL_ADAM_MOMENTS;
                      p = p - rate * s0 / denominator;
                  })

FL_OPTIMIZER_LOOP(optimizer_adamw, 1, 1, FL_ADAM_CONSTANTS;
                  const vec rate = v_set1((real)(k->learning_rate / k->bias1));
                  const vec keep = v_set1((real)(1 - k->learning_rate * k->weight_decay)), {
                      (void)decay;
                      p = p * keep;
                      FL_ADAM_MOMENTS;
                      p = p - rate * s0 / denominator;
                  })

FL_OPTIMIZER_LOOP(optimizer_nadam, 1, 1, FL_ADAM_CONSTANTS;
                  const vec rate_g = v_set1((real)(k->learning_rate * (1 - k->mu) /
                                                   (1 - k->mu_product)));
                  const vec rate_m = v_set1((real)(k->learning_rate * k->mu_next /
                                                   (1 - k->mu_product * k->mu_next))),
                  {
                      g = v_fma(decay, p, g);
                      FL_ADAM_MOMENTS;
                      p = p - (rate_g * g + rate_m * s0) / denominator;
                  })
