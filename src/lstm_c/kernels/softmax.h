/* Cross-entropy of a softmax with the true class, one row at a time: loss = log(sum_j exp(z_j)) -
 * z_t relative to the largest z, gradient = softmax(z) - [j = t]. An exponential and a division a
 * vector; a NaN in a row makes its loss NaN. */

static void FL_T(softmax_row)(const FL_T(fl_softmax) * s, int64_t row)
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
    for (int64_t j = 0; j < s->classes; j += FL_LANES)
        FL_T(store_column)(gradient, FL_T(load_column)(gradient, j, s->classes) / v_set1(sum), j,
                           s->classes);
    int64_t target = s->target[row];
    s->loss[row] = (real)log((double)sum) - (x[target] - largest);
    gradient[target] -= 1;
}

static void FL_T(softmax)(const FL_T(fl_softmax) * s)
{
    for (int64_t row = 0; row < s->rows; row++)
        FL_T(softmax_row)(s, row);
}
