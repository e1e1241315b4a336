/* Checks of one dtype's kernels; see test_isa.c. */

/* ---- products ---- */

/* A product with its naive result. B is given as (depth, blocks * width) and packed. */
typedef struct FL_T(product) {
    FL_T(fl_gemm) call;
    int64_t width, blocks, a_count, c_count;
    real *a, *b, *init, *c;
    double *wanted, *bound; /* (rows, columns) */
    int aliased;
} FL_T(product);

static real *FL_T(random_reals)(generator *from, int64_t count)
{
    real *made = reals_new(TEST_DTYPE, count);
    for (int64_t i = 0; i < count; i++)
        made[i] = (real)random_real(from, 1);
    return made;
}

static void FL_T(product_begin)(generator *from, int lanes, FL_T(product) * p)
{
    static const int64_t depths[] = {1, 2, 3, 8, 17, 40, 0};
    FL_T(fl_gemm) *call = &p->call;
    memset(p, 0, sizeof *p);
    call->vectors = random_below(from, 2) ? FL_BLOCK_VECTORS : 1 + (int)random_below(from, 3);
    p->width = call->vectors * lanes;
    call->rows = 1 + random_below(from, random_below(from, 2) ? 4 : 20);
    call->depth = depths[random_below(from, 7)];
    call->columns = 1 + random_below(from, 3 * p->width + 2);
    p->blocks = (call->columns + p->width - 1) / p->width;
    call->block_first = random_below(from, 3) ? 0 : random_below(from, p->blocks);
    call->block_end = random_below(from, 3) ? p->blocks
                                            : call->block_first + 1 +
                                                  random_below(from, p->blocks - call->block_first);
    int transposed = (int)random_below(from, 2), gap = (int)random_below(from, 3);
    call->a_row = transposed ? 1 : call->depth + gap;
    call->a_depth = transposed ? call->rows + gap : 1;
    p->a_count =
        call->depth ? (call->rows - 1) * call->a_row + (call->depth - 1) * call->a_depth + 1 : 0;
    call->b_depth = p->width;
    call->b_block = p->width * call->depth;
    call->c_row = call->columns + random_below(from, 3);
    p->c_count = (call->rows - 1) * call->c_row + call->columns;
    p->a = FL_T(random_reals)(from, p->a_count);
    p->b = FL_T(random_reals)(from, p->blocks * call->b_block);
    p->c = reals_new(TEST_DTYPE, p->c_count);
    int kind = (int)random_below(from, 4);
    p->aliased = kind == 3;
    if (kind == 1) { /* a bias */
        p->init = FL_T(random_reals)(from, call->columns);
        call->init_row = 0;
    } else if (kind == 2) {
        call->init_row = call->columns + 1;
        p->init = FL_T(random_reals)(from, (call->rows - 1) * call->init_row + call->columns);
    } else if (kind == 3) {
        call->init_row = call->c_row;
        for (int64_t i = 0; i < p->c_count; i++)
            if (i % call->c_row < call->columns)
                p->c[i] = (real)random_real(from, 1);
    }
    call->a = p->a;
    call->b = p->b;
    call->c = p->c;
    call->init = p->aliased ? p->c : p->init;
}

static void FL_T(product_wanted)(FL_T(product) * p)
{
    const FL_T(fl_gemm) *call = &p->call;
    p->wanted = malloc((size_t)(call->rows * call->columns) * sizeof(double));
    p->bound = malloc((size_t)(call->rows * call->columns) * sizeof(double));
    for (int64_t row = 0; row < call->rows; row++)
        for (int64_t column = 0; column < call->columns; column++) {
            double sum = call->init ? (double)call->init[row * call->init_row + column] : 0,
                   size = fabs(sum);
            for (int64_t k = 0; k < call->depth; k++) {
                double term = (double)call->a[row * call->a_row + k * call->a_depth] *
                              (double)call->b[column / p->width * call->b_block +
                                              k * call->b_depth + column % p->width];
                sum += term;
                size += fabs(term);
            }
            p->wanted[row * call->columns + column] = sum;
            p->bound[row * call->columns + column] =
                2 * TEST_EPSILON * (double)(call->depth + 2) * size;
        }
}

static void FL_T(product_check)(const FL_T(product) * p, const real *before)
{
    const FL_T(fl_gemm) *call = &p->call;
    for (int64_t i = 0; i < p->c_count; i++) {
        int64_t row = i / call->c_row, column = i % call->c_row, block = column / p->width;
        if (column < call->columns && block >= call->block_first && block < call->block_end) {
            int64_t at = row * call->columns + column;
            CHECK_AT_MOST(fabs((double)p->c[i] - p->wanted[at]), p->bound[at]);
        } else {
            CHECK(memcmp(&p->c[i], &before[i], sizeof(real)) == 0);
        }
    }
}

/* Each row by itself has the bits of the row in the whole product. */
static void FL_T(product_rows)(const FL_T(fl_kernels) * kernels, const FL_T(product) * p)
{
    FL_T(fl_gemm) one = p->call;
    if (p->aliased)
        return;
    for (int64_t row = 0; row < p->call.rows; row++) {
        real *c = reals_new(TEST_DTYPE, p->call.columns);
        one.rows = 1;
        one.a = p->a + row * p->call.a_row;
        one.init = p->call.init ? p->call.init + row * p->call.init_row : NULL;
        one.c = c;
        kernels->gemm(&one);
        CHECK(memcmp(c, p->c + row * p->call.c_row, (size_t)p->call.columns * sizeof(real)) == 0);
        guarded_free(c);
    }
}

static void FL_T(test_gemm)(const fl_isa *isa)
{
    const FL_T(fl_kernels) *kernels = &isa->FL_SUFFIX;
    generator from = {11};
    for (int round = 0; round < 250; round++) {
        FL_T(product) p;
        FL_T(product_begin)(&from, kernels->lanes, &p);
        check_context("%s gemm %d (%d bytes): %lld x %lld x %lld", isa->name, round,
                      (int)sizeof(real), (long long)p.call.rows, (long long)p.call.depth,
                      (long long)p.call.columns);
        FL_T(product_wanted)(&p);
        real *before = malloc((size_t)p.c_count * sizeof(real));
        memcpy(before, p.c, (size_t)p.c_count * sizeof(real));
        kernels->gemm(&p.call);
        FL_T(product_check)(&p, before);
        FL_T(product_rows)(kernels, &p);
        free(before);
        free(p.wanted);
        free(p.bound);
        guarded_free(p.a);
        guarded_free(p.b);
        guarded_free(p.c);
        guarded_free(p.init);
    }
}

/* ---- activations and reductions ---- */

/* Error in units of the last place; results below the smallest normal number may be zero. */
static double FL_T(ulp_error)(real got, long double wanted)
{
    long double size = fabsl(wanted);
    if (size < (long double)TEST_SMALLEST)
        return fabsl((long double)got) <= (long double)TEST_SMALLEST ? 0 : INFINITY;
    int exponent;
    frexpl(size, &exponent);
    return (double)(fabsl((long double)got - wanted) / ldexpl((long double)TEST_EPSILON, exponent));
}

static void FL_T(check_activation)(const real *x, const real *s, const real *t, int64_t count)
{
    double worst_sigmoid = 0, worst_tanh = 0;
    for (int64_t i = 0; i < count; i++) {
        long double value = (long double)x[i];
        worst_sigmoid = fmax(worst_sigmoid, FL_T(ulp_error)(s[i], 1 / (1 + expl(-value))));
        worst_tanh = fmax(worst_tanh, FL_T(ulp_error)(t[i], tanhl(value)));
    }
    CHECK_AT_MOST(worst_sigmoid, 3);
    CHECK_AT_MOST(worst_tanh, 3);
}

/* Magnitudes from the smallest numbers to beyond saturation, both signs. */
static void FL_T(test_activations)(const fl_isa *isa)
{
    enum { COUNT = 20000 };
    const FL_T(fl_kernels) *kernels = &isa->FL_SUFFIX;
    generator from = {13};
    real *x = reals_new(TEST_DTYPE, COUNT), *s = reals_new(TEST_DTYPE, COUNT),
         *t = reals_new(TEST_DTYPE, COUNT);
    for (int64_t i = 0; i < COUNT; i++)
        x[i] = (real)(i % 2 ? random_real(&from, 100)
                            : ldexp(random_real(&from, 1), (int)random_below(&from, 60) - 50));
    fl_fpenv saved = fl_fpenv_enter();
    kernels->sigmoid(x, s, COUNT);
    kernels->tanh(x, t, COUNT);
    fl_fpenv_leave(saved);
    check_context("%s activations (%d bytes)", isa->name, (int)sizeof(real));
    FL_T(check_activation)(x, s, t, COUNT);
    guarded_free(x);
    guarded_free(s);
    guarded_free(t);
}

static void FL_T(test_special)(const fl_isa *isa)
{
    const FL_T(fl_kernels) *kernels = &isa->FL_SUFFIX;
    static const double special[] = {0,  -0.0, INFINITY, -INFINITY, NAN, 1e30, -1e30,
                                     90, -90,  -88,      -87,       800, -800};
    enum { COUNT = sizeof special / sizeof special[0] };
    real *x = reals_of(TEST_DTYPE, special, COUNT), *y = reals_new(TEST_DTYPE, COUNT);
    fl_fpenv saved = fl_fpenv_enter();
    kernels->sigmoid(x, y, COUNT);
    for (int i = 0; i < COUNT; i++) {
        double wanted = sigmoid(special[i]);
        CHECK(isnan(wanted) ? isnan(y[i]) : fabs((double)y[i] - wanted) <= 4 * TEST_EPSILON);
        CHECK(isnan(wanted) || (y[i] >= 0 && y[i] <= 1));
    }
    kernels->tanh(x, y, COUNT);
    for (int i = 0; i < COUNT; i++) {
        double wanted = tanh(special[i]);
        CHECK(isnan(wanted) ? isnan(y[i]) : fabs((double)y[i] - wanted) <= 4 * TEST_EPSILON);
        CHECK(isnan(wanted) || (y[i] >= -1 && y[i] <= 1));
    }
    fl_fpenv_leave(saved);
    guarded_free(x);
    guarded_free(y);
}

/* Every tail: element i has the bits that it has in a long array; in place too. */
static void FL_T(test_tails)(const fl_isa *isa)
{
    const FL_T(fl_kernels) *kernels = &isa->FL_SUFFIX;
    generator from = {17};
    int64_t most = 3 * kernels->lanes + 1;
    real *x = FL_T(random_reals)(&from, most), *factor = FL_T(random_reals)(&from, most);
    real *s = reals_new(TEST_DTYPE, most), *t = reals_new(TEST_DTYPE, most);
    kernels->sigmoid(x, s, most);
    kernels->tanh(x, t, most);
    for (int64_t count = 0; count <= most; count++) {
        size_t bytes = (size_t)count * sizeof(real);
        real *in = reals_new(TEST_DTYPE, count), *out = reals_new(TEST_DTYPE, count),
             *scale = reals_new(TEST_DTYPE, count);
        memcpy(in, x, bytes);
        memcpy(scale, factor, bytes);
        kernels->sigmoid(in, out, count);
        CHECK(memcmp(out, s, bytes) == 0);
        kernels->tanh(in, out, count);
        CHECK(memcmp(out, t, bytes) == 0);
        kernels->tanh(in, in, count);
        CHECK(memcmp(in, t, bytes) == 0);
        memcpy(in, x, bytes);
        kernels->multiply(in, scale, count);
        for (int64_t i = 0; i < count; i++)
            CHECK(in[i] == x[i] * factor[i]);
        guarded_free(in);
        guarded_free(out);
        guarded_free(scale);
    }
    guarded_free(x);
    guarded_free(factor);
    guarded_free(s);
    guarded_free(t);
}

static void FL_T(test_sum_squares)(const fl_isa *isa)
{
    static const int64_t counts[] = {0, 1, 2, 15, 16, 17, 1023, 1024, 1025, 5000};
    generator from = {19};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        real *x = FL_T(random_reals)(&from, counts[c]);
        double wanted = 0;
        for (int64_t i = 0; i < counts[c]; i++)
            wanted += (double)x[i] * (double)x[i];
        double got = isa->FL_SUFFIX.sum_squares(x, counts[c]);
        CHECK_AT_MOST(fabs(got - wanted), 64 * TEST_EPSILON * wanted);
        guarded_free(x);
    }
}

/* ---- optimiser rules ---- */

static void FL_T(naive_rule)(int rule, const fl_optimizer_rates *k, double *p, double g, double *s0,
                             double *s1, int has_momentum)
{
    g *= k->gradient_scale;
    if (rule == FL_ADAMW)
        *p *= 1 - k->learning_rate * k->weight_decay;
    else
        g += k->weight_decay * *p;
    if (rule == FL_SGD) {
        if (has_momentum) {
            *s0 = k->momentum * *s0 + g;
            g = k->nesterov ? g + k->momentum * *s0 : *s0;
        }
        *p -= k->learning_rate * g;
        return;
    }
    if (rule == FL_RMSPROP) {
        *s0 = k->alpha * *s0 + (1 - k->alpha) * g * g;
        *p -= k->learning_rate * g / (sqrt(*s0) + k->epsilon);
        return;
    }
    *s0 = k->beta1 * *s0 + (1 - k->beta1) * g;
    *s1 = k->beta2 * *s1 + (1 - k->beta2) * g * g;
    double root = sqrt(*s1 / k->bias2) + k->epsilon;
    if (rule == FL_NADAM)
        *p -= k->learning_rate * (1 - k->mu) / (1 - k->mu_product) * g / root +
              k->learning_rate * k->mu_next / (1 - k->mu_product * k->mu_next) * *s0 / root;
    else
        *p -= k->learning_rate / k->bias1 * *s0 / root;
}

static void FL_T(check_rule)(const fl_isa *isa, int rule, int variant, int64_t count)
{
    enum { STEPS = 3 };
    generator from = {(uint64_t)(rule * 1000 + count)};
    int has_momentum = variant > 0;
    real *p = FL_T(random_reals)(&from, count), *g = reals_new(TEST_DTYPE, count);
    real *s0 = reals_new(TEST_DTYPE, count), *s1 = reals_new(TEST_DTYPE, count);
    double *wanted = calloc((size_t)(3 * count), sizeof *wanted);
    for (int64_t i = 0; i < count; i++) {
        s0[i] = s1[i] = 0;
        wanted[i] = (double)p[i];
    }
    for (int step = 1; step <= STEPS; step++) {
        fl_optimizer_rates rates = {.learning_rate = 0.01,
                                    .momentum = 0.9,
                                    .alpha = 0.95,
                                    .beta1 = 0.9,
                                    .beta2 = 0.99,
                                    .epsilon = 1e-6,
                                    .weight_decay = 0.05,
                                    .gradient_scale = 0.5,
                                    .bias1 = 1 - pow(0.9, step),
                                    .bias2 = 1 - pow(0.99, step),
                                    .mu = 0.85,
                                    .mu_next = 0.87,
                                    .mu_product = pow(0.86, step),
                                    .nesterov = variant == 2};
        for (int64_t i = 0; i < count; i++) {
            g[i] = (real)random_real(&from, 2);
            FL_T(naive_rule)(rule, &rates, &wanted[i], (double)g[i], &wanted[count + i],
                             &wanted[2 * count + i], has_momentum);
        }
        FL_T(fl_optimizer)
        call = {
            p,     g,    rule == FL_SGD && !has_momentum ? NULL : s0, rule >= FL_ADAM ? s1 : NULL,
            count, rates};
        isa->FL_SUFFIX.optimizer[rule](&call);
    }
    check_context("%s rule %d variant %d (%d bytes) count %lld", isa->name, rule, variant,
                  (int)sizeof(real), (long long)count);
    CHECK_AT_MOST(worst_error(TEST_DTYPE, p, wanted, count), 64 * TEST_EPSILON);
    CHECK_AT_MOST(worst_error(TEST_DTYPE, s0, wanted + count, count), 64 * TEST_EPSILON);
    CHECK_AT_MOST(worst_error(TEST_DTYPE, s1, wanted + 2 * count, count), 64 * TEST_EPSILON);
    free(wanted);
    guarded_free(p);
    guarded_free(g);
    guarded_free(s0);
    guarded_free(s1);
}

static void FL_T(test_rules)(const fl_isa *isa)
{
    int64_t most = 2 * isa->FL_SUFFIX.lanes + 1;
    for (int rule = FL_SGD; rule <= FL_NADAM; rule++)
        for (int variant = 0; variant < (rule == FL_SGD ? 3 : 1); variant++)
            for (int64_t count = 1; count <= most; count++)
                FL_T(check_rule)(isa, rule, variant, count);
}

static void FL_T(test_table)(const fl_isa *isa)
{
    FL_T(test_gemm)(isa);
    FL_T(test_activations)(isa);
    FL_T(test_special)(isa);
    FL_T(test_tails)(isa);
    FL_T(test_sum_squares)(isa);
    FL_T(test_rules)(isa);
    check_context("%s", "");
}

/* ---- cells ---- */

enum { FL_T(MOST_UNITS) = 150, FL_T(MOST_ROWS) = 14 };

/* One step of one cell in the plain layout (gate, unit), the same for every instruction set. */
typedef struct FL_T(cell_step) {
    int cell;
    int64_t rows, units, input;
    int gates, states, hoisted;
    double *weight_x, *weight_h, *bias; /* (gates * units, input), (.., units), (rows, ..) */
    double *x, *h_prev, *state_prev;    /* (rows, ..) */
    double *gate, *state, *h;           /* after the forward step */
    double *dh, *dy, *dstate, *next;    /* next: gradient of the gates of the step after */
    double *dgate, *dstate_prev;        /* after the backward step */
} FL_T(cell_step);

static double *FL_T(random_doubles)(generator *from, double limit, int64_t count)
{
    double *made = malloc((size_t)(count + 1) * sizeof *made);
    random_fill(from, TEST_DTYPE, limit, made, count);
    return made;
}

static void FL_T(cell_step_begin)(generator *from, int cell, const fl_cell_facts *facts,
                                  FL_T(cell_step) * made)
{
    memset(made, 0, sizeof *made);
    made->cell = cell;
    made->gates = facts->slots;
    made->states = facts->states;
    made->rows = 1 + random_below(from, random_below(from, 2) ? 3 : FL_T(MOST_ROWS));
    made->units = 1 + random_below(from, random_below(from, 2) ? 20 : FL_T(MOST_UNITS));
    made->input = 1 + random_below(from, 30);
    made->hoisted = (int)random_below(from, 2);
    int64_t rows = made->rows, units = made->units, columns = made->gates * units;
    double limit = 1 / sqrt((double)units);
    made->weight_x = FL_T(random_doubles)(from, limit, columns * made->input);
    made->weight_h = FL_T(random_doubles)(from, limit, columns * units);
    made->bias = FL_T(random_doubles)(from, 1, made->hoisted ? rows * columns : columns);
    made->x = FL_T(random_doubles)(from, 1, rows * made->input);
    made->h_prev = FL_T(random_doubles)(from, 1, rows * units);
    made->state_prev = FL_T(random_doubles)(from, 1, rows * made->states * units);
    made->gate = FL_T(random_doubles)(from, 0, rows * columns);
    made->h = FL_T(random_doubles)(from, 0, rows * units);
    made->state = FL_T(random_doubles)(from, 0, rows * made->states * units);
    made->dh = FL_T(random_doubles)(from, 1, rows * units);
    made->dy = random_below(from, 3) ? FL_T(random_doubles)(from, 1, rows * units) : NULL;
    made->dstate = FL_T(random_doubles)(from, 1, rows * made->states * units);
    made->next = random_below(from, 3) ? FL_T(random_doubles)(from, 1, rows * columns) : NULL;
    made->dgate = FL_T(random_doubles)(from, 0, rows * columns);
    made->dstate_prev = FL_T(random_doubles)(from, 0, rows * made->states * units);
}

static void FL_T(cell_step_end)(FL_T(cell_step) * made)
{
    double *owned[] = {made->weight_x, made->weight_h,   made->bias,       made->x,
                       made->h_prev,   made->state_prev, made->gate,       made->state,
                       made->h,        made->dh,         made->dy,         made->dstate,
                       made->next,     made->dgate,      made->dstate_prev};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        free(owned[i]);
}

/* Pre-activations z of one unit -> activated gates, state, h. */
static void FL_T(naive_unit)(const char *name, double *gate, int64_t stride, double *state,
                             double *h)
{
    if (strcmp(name, "lstm") == 0) {
        double i = sigmoid(gate[0]), f = sigmoid(gate[stride]), g = tanh(gate[2 * stride]),
               o = sigmoid(gate[3 * stride]);
        *state = f * *state + i * g;
        *h = o * tanh(*state);
        gate[0] = i;
        gate[stride] = f;
        gate[2 * stride] = g;
        gate[3 * stride] = o;
    } else {
        *h = gate[0] = strcmp(name, "rnn") == 0 ? tanh(gate[0]) : fmax(gate[0], 0);
    }
}

static void FL_T(naive_forward)(const char *name, FL_T(cell_step) * s)
{
    int64_t units = s->units, columns = s->gates * units;
    for (int64_t row = 0; row < s->rows; row++) {
        double *gate = s->gate + row * columns;
        for (int64_t j = 0; j < columns; j++) {
            gate[j] = s->bias[(s->hoisted ? row * columns : 0) + j];
            for (int64_t k = 0; !s->hoisted && k < s->input; k++)
                gate[j] += s->weight_x[j * s->input + k] * s->x[row * s->input + k];
            for (int64_t k = 0; k < units; k++)
                gate[j] += s->weight_h[j * units + k] * s->h_prev[row * units + k];
        }
        for (int64_t i = row * s->states * units; i < (row + 1) * s->states * units; i++)
            s->state[i] = s->state_prev[i];
        for (int64_t u = 0; u < units; u++)
            FL_T(naive_unit)(name, gate + u, units, s->state + row * s->states * units + u,
                             s->h + row * units + u);
    }
}

static void FL_T(naive_backward_unit)(const char *name, const double *gate, int64_t stride,
                                      double state_prev, double state, double dh, double *dstate,
                                      double *dgate)
{
    if (strcmp(name, "lstm") == 0) {
        double i = gate[0], f = gate[stride], g = gate[2 * stride], o = gate[3 * stride];
        double tanh_c = tanh(state), dc = *dstate + dh * o * (1 - tanh_c * tanh_c);
        dgate[0] = dc * g * i * (1 - i);
        dgate[stride] = dc * state_prev * f * (1 - f);
        dgate[2 * stride] = dc * i * (1 - g * g);
        dgate[3 * stride] = dh * tanh_c * o * (1 - o);
        *dstate = dc * f;
    } else if (strcmp(name, "rnn") == 0) {
        dgate[0] = dh * (1 - gate[0] * gate[0]);
    } else {
        dgate[0] = gate[0] > 0 ? dh : 0;
    }
}

/* From the gates and states as the dtype holds them. */
static void FL_T(naive_backward)(const char *name, FL_T(cell_step) * s)
{
    int64_t units = s->units, columns = s->gates * units, plane = s->states * units;
    for (int64_t i = 0; i < s->rows * columns; i++)
        s->gate[i] = real_round(TEST_DTYPE, s->gate[i]);
    for (int64_t i = 0; i < s->rows * plane; i++)
        s->state[i] = real_round(TEST_DTYPE, s->state[i]);
    for (int64_t row = 0; row < s->rows; row++)
        for (int64_t u = 0; u < units; u++) {
            double dh = s->dh[row * units + u] + (s->dy ? s->dy[row * units + u] : 0);
            for (int64_t j = 0; s->next && j < columns; j++)
                dh += s->next[row * columns + j] * s->weight_h[j * units + u];
            double *dstate = s->dstate_prev + row * plane + u;
            if (s->states)
                *dstate = s->dstate[row * plane + u];
            FL_T(naive_backward_unit)(name, s->gate + row * columns + u, units,
                                      s->states ? s->state_prev[row * plane + u] : 0,
                                      s->states ? s->state[row * plane + u] : 0, dh, dstate,
                                      s->dgate + row * columns + u);
        }
}

/* The packed layout of one instruction set. */
typedef struct FL_T(panels) {
    int64_t lanes, gates, panels, plane, width, blocks, columns, stride;
} FL_T(panels);

static FL_T(panels)
    FL_T(panels_of)(const FL_T(cell_step) * s, int64_t lanes, const fl_cell_facts *facts)
{
    FL_T(panels) made = {.lanes = lanes, .gates = s->gates};
    made.panels = (s->units + lanes - 1) / lanes;
    made.plane = made.panels * lanes;
    made.width = fl_panels_per_block(facts->slots) * s->gates * lanes;
    made.blocks =
        (made.panels + fl_panels_per_block(facts->slots) - 1) / fl_panels_per_block(facts->slots);
    made.columns = made.panels * s->gates * lanes;
    made.stride = made.blocks * made.width;
    return made;
}

/* Place of a gate of a unit in a row of gates. */
static int64_t FL_T(column_of)(const FL_T(panels) * p, int64_t gate, int64_t unit)
{
    return (unit / p->lanes * p->gates + gate) * p->lanes + unit % p->lanes;
}

/* (gates * units, depth) -> panels; padding zero. */
static real *FL_T(pack_weight)(const FL_T(panels) * p, const double *weight, int64_t units,
                               int64_t depth)
{
    int64_t count = p->stride * depth;
    real *packed = reals_new(TEST_DTYPE, count);
    for (int64_t i = 0; i < count; i++)
        packed[i] = 0;
    for (int64_t gate = 0; gate < p->gates; gate++)
        for (int64_t unit = 0; unit < units; unit++) {
            int64_t column = FL_T(column_of)(p, gate, unit);
            for (int64_t k = 0; k < depth; k++)
                packed[(column / p->width * depth + k) * p->width + column % p->width] =
                    (real)weight[(gate * units + unit) * depth + k];
        }
    return packed;
}

/* U^T in plain blocks: depth = columns of a row of gates, columns = units; padding zero. */
static real *FL_T(pack_transpose)(const FL_T(panels) * p, const double *weight, int64_t units)
{
    int64_t width = FL_BLOCK_VECTORS * p->lanes, blocks = (units + width - 1) / width;
    int64_t count = blocks * width * p->columns;
    real *packed = reals_new(TEST_DTYPE, count);
    for (int64_t i = 0; i < count; i++)
        packed[i] = 0;
    for (int64_t gate = 0; gate < p->gates; gate++)
        for (int64_t unit = 0; unit < units; unit++) {
            int64_t k = FL_T(column_of)(p, gate, unit);
            for (int64_t to = 0; to < units; to++)
                packed[(to / width * p->columns + k) * width + to % width] =
                    (real)weight[(gate * units + unit) * units + to];
        }
    return packed;
}

/* (rows, gates, units) -> rows of gates `stride` apart, `padding` in between. */
static real *FL_T(pack_gates)(const FL_T(panels) * p, const double *gates, int64_t units,
                              int64_t rows, double padding)
{
    real *packed = reals_new(TEST_DTYPE, rows * p->stride);
    for (int64_t i = 0; i < rows * p->stride; i++)
        packed[i] = (real)padding;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t gate = 0; gate < p->gates; gate++)
            for (int64_t unit = 0; unit < units; unit++)
                packed[row * p->stride + FL_T(column_of)(p, gate, unit)] =
                    (real)gates[(row * p->gates + gate) * units + unit];
    return packed;
}

/* (rows, planes, units) -> (rows, planes, plane). */
static real *FL_T(pack_states)(const FL_T(panels) * p, const double *states, int64_t units,
                               int64_t rows, int64_t planes, double padding)
{
    real *packed = reals_new(TEST_DTYPE, rows * planes * p->plane);
    for (int64_t i = 0; i < rows * planes * p->plane; i++)
        packed[i] = i % p->plane < units ? (real)states[i / p->plane * units + i % p->plane]
                                         : (real)padding;
    return packed;
}

static double FL_T(gates_error)(const FL_T(panels) * p, const real *got, const double *wanted,
                                int64_t units, int64_t rows)
{
    double worst = 0, largest = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t gate = 0; gate < p->gates; gate++)
            for (int64_t unit = 0; unit < units; unit++) {
                double value = wanted[(row * p->gates + gate) * units + unit];
                double error =
                    fabs((double)got[row * p->stride + FL_T(column_of)(p, gate, unit)] - value);
                worst = error <= worst ? worst : isnan(error) ? INFINITY : error;
                largest = fmax(largest, fabs(value));
            }
    return worst == 0 ? 0 : worst / largest;
}

static double FL_T(states_error)(const FL_T(panels) * p, const real *got, const double *wanted,
                                 int64_t units, int64_t rows)
{
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < rows * p->plane; i++) {
        if (i % p->plane >= units)
            continue;
        double value = wanted[i / p->plane * units + i % p->plane];
        double error = fabs((double)got[i] - value);
        worst = error <= worst ? worst : isnan(error) ? INFINITY : error;
        largest = fmax(largest, fabs(value));
    }
    return worst == 0 ? 0 : worst / largest;
}

/* Forward: in one call or block by block, in place or not, in any order, with or without the gates
 * kept. h of every row is `gap` further than the units are many; the gap stays untouched. The
 * padding of the pre-activations and states is NaN: it must not reach a unit. */
static void FL_T(check_forward)(const fl_isa *isa, const FL_T(cell_step) * s, generator *from,
                                double *h_out)
{
    const FL_T(fl_cell) *cell = &isa->FL_SUFFIX.cells[s->cell];
    FL_T(panels) p = FL_T(panels_of)(s, isa->FL_SUFFIX.lanes, cell->facts);
    int64_t units = s->units, gap = random_below(from, 3), h_row = units + gap;
    int in_place = (int)random_below(from, 2), keeps = (int)random_below(from, 3);
    real *weight_x = FL_T(pack_weight)(&p, s->weight_x, units, s->input);
    real *weight_h = FL_T(pack_weight)(&p, s->weight_h, units, units);
    real *init = FL_T(pack_gates)(&p, s->bias, units, s->hoisted ? s->rows : 1, NAN);
    real *x = reals_of(TEST_DTYPE, s->x, s->rows * s->input);
    real *h_prev = reals_of(TEST_DTYPE, s->h_prev, s->rows * units);
    real *state_prev = FL_T(pack_states)(&p, s->state_prev, units, s->rows, s->states, NAN);
    real *state = in_place ? state_prev : reals_new(TEST_DTYPE, s->rows * s->states * p.plane);
    real *h = reals_new(TEST_DTYPE, (s->rows - 1) * h_row + units);
    /* kept gates may lie on the pre-activations */
    real *saved = keeps == 0                 ? NULL
                  : keeps == 1 && s->hoisted ? init
                                             : reals_new(TEST_DTYPE, s->rows * p.stride);
    FL_T(fl_step)
    call = {.rows = s->rows,
            .units = units,
            .block_end = p.blocks,
            .descending = random_below(from, 2),
            .init = init,
            .init_row = s->hoisted ? p.stride : 0,
            .x = s->hoisted ? NULL : x,
            .weight_x = weight_x,
            .x_row = s->input,
            .x_depth = s->input,
            .h_prev = h_prev,
            .weight_h = weight_h,
            .h_prev_row = units,
            .h_depth = units,
            .state_prev = state_prev,
            .state_prev_row = s->states * p.plane,
            .state = state,
            .state_row = s->states * p.plane,
            .state_plane = p.plane,
            .h = h,
            .h_row = h_row,
            .saved = saved,
            .saved_row = p.stride};
    int64_t cut = random_below(from, p.blocks + 1);
    call.block_end = cut;
    cell->forward(&call);
    for (int64_t u = cut * fl_panels_per_block(cell->facts->slots) * p.lanes; u < units; u++)
        CHECK(isnan(h[u]));
    call.block_first = cut;
    call.block_end = p.blocks;
    cell->forward(&call);
    double limit = 16 * TEST_EPSILON * sqrt((double)(units + s->input));
    for (int64_t i = 0; i < s->rows * units; i++)
        h_out[i] = (double)h[i / units * h_row + i % units];
    for (int64_t i = 0; i < (s->rows - 1) * h_row; i++)
        if (i % h_row >= units)
            CHECK(is_untouched(&h[i], sizeof(real)));
    CHECK_AT_MOST(worst_error(FL_FLOAT64, h_out, s->h, s->rows * units), limit);
    if (s->states)
        CHECK_AT_MOST(FL_T(states_error)(&p, state, s->state, units, s->rows * s->states), limit);
    if (saved)
        CHECK_AT_MOST(FL_T(gates_error)(&p, saved, s->gate, units, s->rows), limit);
    guarded_free(weight_x);
    guarded_free(weight_h);
    guarded_free(x);
    guarded_free(h_prev);
    guarded_free(h);
    if (saved != init)
        guarded_free(saved);
    guarded_free(init);
    if (!in_place)
        guarded_free(state);
    guarded_free(state_prev);
}

/* Backward; padding zero as the layer keeps it. */
static void FL_T(check_backward)(const fl_isa *isa, const FL_T(cell_step) * s, generator *from)
{
    const FL_T(fl_cell) *cell = &isa->FL_SUFFIX.cells[s->cell];
    FL_T(panels) p = FL_T(panels_of)(s, isa->FL_SUFFIX.lanes, cell->facts);
    int64_t units = s->units, width = FL_BLOCK_VECTORS * p.lanes,
            blocks = (units + width - 1) / width, cut = random_below(from, blocks + 1);
    real *weight_t = FL_T(pack_transpose)(&p, s->weight_h, units);
    real *gates = FL_T(pack_gates)(&p, s->gate, units, s->rows, 0);
    real *next = s->next ? FL_T(pack_gates)(&p, s->next, units, s->rows, 0) : NULL;
    real *dy = s->dy ? reals_of(TEST_DTYPE, s->dy, s->rows * units) : NULL;
    real *dh = FL_T(pack_states)(&p, s->dh, units, s->rows, 1, 0);
    real *dstate = FL_T(pack_states)(&p, s->dstate, units, s->rows, s->states, 0);
    real *state_prev = FL_T(pack_states)(&p, s->state_prev, units, s->rows, s->states, 0);
    real *state = FL_T(pack_states)(&p, s->state, units, s->rows, s->states, 0);
    FL_T(fl_backstep)
    call = {.rows = s->rows,
            .units = units,
            .block_end = cut,
            .dgates_next = next ? next : gates,
            .weight_t = weight_t,
            .dgates_next_row = p.stride,
            .depth = next ? p.columns : 0,
            .dy = dy,
            .dy_row = units,
            .dh = dh,
            .dh_row = p.plane,
            .dstate = dstate,
            .dstate_row = s->states * p.plane,
            .state_plane = p.plane,
            .state_prev = state_prev,
            .state = state,
            .state_prev_row = s->states * p.plane,
            .state_row = s->states * p.plane,
            .gates = gates,
            .gates_row = p.stride};
    cell->backward(&call);
    call.block_first = cut;
    call.block_end = blocks;
    cell->backward(&call);
    double limit = 32 * TEST_EPSILON * sqrt((double)(s->gates * units));
    CHECK_AT_MOST(FL_T(gates_error)(&p, gates, s->dgate, units, s->rows), limit);
    if (s->states)
        CHECK_AT_MOST(FL_T(states_error)(&p, dstate, s->dstate_prev, units, s->rows * s->states),
                      limit);
    for (int64_t i = 0; i < s->rows * p.plane; i++)
        CHECK(dh[i] == 0);
    void *owned[] = {weight_t, gates, next, dy, dh, dstate, state_prev, state};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        guarded_free(owned[i]);
}

/* Every cell whose equations stand here on random shapes; the instruction sets agree with each
 * other as they do with the truth. */
static void FL_T(test_cells)(void)
{
    const fl_isa *first = isa_at(0), *isa;
    generator from = {23};
    double *h = malloc(2 * FL_T(MOST_ROWS) * FL_T(MOST_UNITS) * sizeof *h),
           *other = h + FL_T(MOST_ROWS) * FL_T(MOST_UNITS);
    for (int cell = 0; cell < first->FL_SUFFIX.n_cells; cell++)
        for (int round = 0; round < 60; round++) {
            FL_T(cell_step) s;
            const char *name = first->FL_SUFFIX.cells[cell].facts->name;
            if (!has_naive_step(name))
                continue;
            FL_T(cell_step_begin)(&from, cell, first->FL_SUFFIX.cells[cell].facts, &s);
            FL_T(naive_forward)(name, &s);
            for (int i = 0; (isa = isa_at(i)) != NULL; i++) {
                check_context("%s %s (%d bytes) round %d: %lld rows, %lld units, hoisted %d",
                              isa->name, name, (int)sizeof(real), round, (long long)s.rows,
                              (long long)s.units, s.hoisted);
                CHECK(strcmp(isa->FL_SUFFIX.cells[cell].facts->name, name) == 0);
                FL_T(check_forward)(isa, &s, &from, i ? other : h);
                if (i)
                    CHECK_AT_MOST(worst_error(FL_FLOAT64, other, h, s.rows * s.units),
                                  16 * TEST_EPSILON * sqrt((double)(s.units + s.input)));
            }
            FL_T(naive_backward)(name, &s);
            for (int i = 0; (isa = isa_at(i)) != NULL; i++) {
                check_context("%s %s backward (%d bytes) round %d: %lld rows, %lld units",
                              isa->name, name, (int)sizeof(real), round, (long long)s.rows,
                              (long long)s.units);
                FL_T(check_backward)(isa, &s, &from);
            }
            FL_T(cell_step_end)(&s);
        }
    check_context("%s", "");
    free(h);
}
