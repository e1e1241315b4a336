/* Cross-entropy of a softmax with the true class, one row at a time: loss = log(sum_j exp(z_j)) -
 * z_t relative to the largest z, gradient = softmax(z) - [j = t], times the row's share. An
 * exponential a vector; a NaN in a row makes its loss NaN. */

static double FL_T(softmax_row)(const FL_T(fl_softmax) * s, int64_t row, real share)
{
    const real *x = s->x + row * s->classes;
    real *gradient = s->gradient + row * s->classes, largest = x[0];
    for (int64_t j = 1; j < s->classes; j++)
        largest = x[j] > largest ? x[j] : largest;
    vec total = v_zero();
    for (int64_t j = 0; j < s->classes; j += FL_LANES) {
        int64_t left = s->classes - j;
        vec z = FL_T(load_column)(x, j, s->classes) - v_set1(largest), e = v_exp_negative(z);
        FL_T(store_column)(gradient, e, j, s->classes);
        if (left < FL_LANES) /* the rest of a vector is no class */
            e = v_load_n(gradient + j, (int)left);
        total += e;
    }
    real sum = v_hsum(total);
    vec factor = v_set1(share / sum);
    for (int64_t j = 0; j < s->classes; j += FL_LANES)
        FL_T(store_column)(gradient, FL_T(load_column)(gradient, j, s->classes) * factor, j,
                           s->classes);
    int64_t target = s->target[row];
    gradient[target] -= share;
    return log((double)sum) - (double)(x[target] - largest);
}

/* The mean of the losses, of weights that sum to more than 0. */
static double FL_T(softmax)(const FL_T(fl_softmax) * s)
{
    double total = s->weight ? 0 : (double)s->rows, loss = 0;
    for (int64_t row = 0; s->weight && row < s->rows; row++)
        total += s->weight[row];
    for (int64_t row = 0; row < s->rows; row++) {
        double share = (s->weight ? s->weight[row] : 1) / total;
        loss += share * FL_T(softmax_row)(s, row, (real)share);
    }
    return loss;
}
