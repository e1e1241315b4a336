/* Sums and elementwise passes over flat arrays. */

/* Sum of squares in double, in blocks of fixed length: the order never depends on threads. */
static double FL_T(sum_squares)(const real *x, int64_t count)
{
    double total = 0;
    for (int64_t start = 0; start < count; start += 1024) {
        int64_t end = start + 1024 < count ? start + 1024 : count, i = start;
        vec sum = v_zero();
        for (; i + FL_LANES <= end; i += FL_LANES)
            sum = v_fma(v_load(x + i), v_load(x + i), sum);
        if (i < end) {
            vec tail = v_load_n(x + i, (int)(end - i));
            sum = v_fma(tail, tail, sum);
        }
        total += (double)v_hsum(sum);
    }
    return total;
}

/* sums (columns) += each of the rows, one after the other, in double. */
static void FL_T(sum_rows)(const real *x, int64_t rows, int64_t columns, double *sums)
{
    for (int64_t row = 0; row < rows; row++, x += columns)
        for (int64_t column = 0; column < columns; column++)
            sums[column] += (double)x[column];
}

static void FL_T(add_unit_products)(const FL_T(fl_unit_products) * s)
{
    const real *b = s->b;
    for (int64_t unit = 0; unit < s->units; unit += FL_LANES, b += s->b_panel) {
        vec sum = FL_T(load_column)(s->sums, unit, s->units);
        for (int64_t row = 0; row < s->rows; row++)
            sum = v_fma(v_load(s->a + row * s->a_row + unit), v_load(b + row * s->b_row), sum);
        FL_T(store_column)(s->sums, sum, unit, s->units);
    }
}

static void FL_T(multiply)(real *y, const real *factor, int64_t count)
{
    int64_t i = 0;
    for (; i + FL_LANES <= count; i += FL_LANES)
        v_store(y + i, v_load(y + i) * v_load(factor + i));
    for (; i < count; i++)
        y[i] *= factor[i];
}
