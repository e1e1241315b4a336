/* A step backward through layer normalisation, for one dtype; see normalized_step_body.h. */

/* Sums over the steps, per sequence: gradients of the gains, (gate_row) of x, h and recurring gates
 * and (plane) of c, and of the bias of c. */
typedef struct FL_T(fl_norm_sums) {
    real *x, *h, *g, *c, *bias;
} FL_T(fl_norm_sums);

FL_INLINE int64_t FL_T(norm_sums_row)(const fl_recurrent *layer)
{
    return 3 * layer->gate_row + 2 * layer->plane;
}

FL_INLINE FL_T(fl_norm_sums) FL_T(norm_sums)(const fl_recurrent *layer, real *row)
{
    FL_T(fl_norm_sums) sums;
    sums.x = row;
    sums.h = sums.x + layer->gate_row;
    sums.g = sums.h + layer->gate_row;
    sums.c = sums.g + layer->gate_row;
    sums.bias = sums.c + layer->plane;
    return sums;
}

static void FL_T(add_rows)(real *restrict to, int64_t to_row, const real *restrict from,
                           int64_t from_row, int64_t rows, int64_t count)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < count; i++)
            to[row * to_row + i] += from[row * from_row + i];
}

/* From the gradient of h to that of the output gate's pre-activation and, added, of c. */
static void FL_T(normalized_output_gradient)(const fl_recurrent *layer, const fl_packed *packed,
                                             const FL_T(fl_normed_rows) * at,
                                             const FL_T(fl_norm_sums) * sums,
                                             FL_T(fl_normed_output) * output)
{
    const FL_T(fl_kernels) *kernels = &layer->isa->FL_SUFFIX;
    kernels->cells[fl_main_part(layer)->cell_index].normed->output_gradient(output);
    FL_T(fl_norm_gradient)
    norm = {.plan = FL_T(norm_plan)(packed, FL_NORM_OF_C),
            .rows = output->rows,
            .dy = output->dsquashed,
            .dy_row = output->dsquashed_row,
            .normed = at->c,
            .normed_row = layer->plane,
            .scale = at->scale + FL_NORM_OF_C,
            .scale_row = FL_NORMS,
            .dgain = sums->c,
            .dgain_row = FL_T(norm_sums_row)(layer)};
    kernels->normalize_gradient(&norm);
    FL_T(add_rows)(sums->bias, norm.dgain_row, output->dsquashed, output->dsquashed_row,
                   output->rows, layer->plane);
    FL_T(add_rows)(output->dstate, output->dstate_row, at->c, layer->plane, output->rows,
                   layer->plane);
}

/* Through one normalisation of a product: `normed` and `dgain` are rows of gates. */
static void FL_T(gate_norm_gradient)(const FL_T(fl_kernels) * kernels, const fl_packed *packed,
                                     int which, real *normed, real *dgain, const real *scale,
                                     FL_T(fl_norm_gradient) * norm)
{
    norm->plan = FL_T(norm_plan)(packed, which);
    norm->normed = normed + packed->norm[which].first;
    norm->dgain = dgain + packed->norm[which].first;
    norm->scale = scale + which;
    kernels->normalize_gradient(norm);
}

/* A step of part `p` backward. Leaves the gradients of the pre-activations in s->gates, of h U in
 * at->h, of what recurring gates feed in at->g, and, in the last part that sees x, of x W in at->x.
 * `scratch`: (rows, 2 planes). */
static void FL_T(normalized_backstep)(const fl_recurrent *layer, const fl_packed *packed, int p,
                                      const FL_T(fl_normed_rows) * at,
                                      const FL_T(fl_norm_sums) * sums, real *scratch,
                                      FL_T(fl_backstep) * s)
{
    const FL_T(fl_kernels) *kernels = &layer->isa->FL_SUFFIX;
    const fl_part *part = &layer->part[p];
    const FL_T(fl_cell) *cell = &kernels->cells[part->cell_index];
    FL_T(fl_normed_output)
    output = {.rows = s->rows,
              .units = s->units,
              .normed = at->c,
              .normed_row = layer->plane,
              .gain = packed->norm[FL_NORM_OF_C].gain,
              .bias = packed->norm_bias,
              .gates = s->gates,
              .gates_row = s->gates_row,
              .dh = s->dh,
              .dh_row = s->dh_row,
              .dy = s->dy,
              .dy_row = s->dy_row,
              .doutput_gate = scratch,
              .doutput_gate_row = 2 * layer->plane,
              .dsquashed = scratch + layer->plane,
              .dsquashed_row = 2 * layer->plane,
              .dstate = s->dstate,
              .dstate_row = s->dstate_row,
              .state_plane = s->state_plane,
              .peephole = s->peephole};
    if (cell->normed->output) { /* what is left for the cell is the gradient of c */
        FL_T(normalized_output_gradient)(layer, packed, at, sums, &output);
        for (int64_t row = 0; row < s->rows; row++)
            for (int64_t unit = 0; unit < layer->plane; unit++)
                s->dh[row * s->dh_row + unit] = 0;
        s->dy = NULL;
    }
    cell->backward(s);
    if (cell->normed->output)
        cell->normed->add_output_gate(&output);
    FL_T(fl_norm_gradient)
    norm = {.rows = s->rows,
            .dy = s->gates,
            .dy_row = s->gates_row,
            .normed_row = layer->gate_row,
            .scale_row = FL_NORMS,
            .dgain_row = FL_T(norm_sums_row)(layer)};
    if (p == fl_input_part(layer))
        FL_T(gate_norm_gradient)(kernels, packed, FL_NORM_OF_X, at->x, sums->x, at->scale, &norm);
    FL_T(gate_norm_gradient)(kernels, packed, FL_NORM_OF_H + p, at->h, sums->h, at->scale, &norm);
    if (part->cell.gate_states)
        FL_T(gate_norm_gradient)(kernels, packed, FL_NORM_OF_G, at->g, sums->g, at->scale, &norm);
}

static void FL_T(unpack_gains)(const fl_recurrent *layer, const fl_part *part, const real *sums,
                               const int *gate_of, real *gains)
{
    for (int64_t column = 0; column < part->gate_columns; column++) {
        int64_t row = fl_weight_row(layer, part, column, gate_of);
        if (row >= 0)
            gains[row] = sums[part->gate_first + column];
    }
}

/* The sums of all `n` sequences, `rows`, into the flat gradients. */
static void FL_T(unpack_norm_sums)(const fl_recurrent *layer, int index, int64_t n, real *rows,
                                   void *gradients)
{
    int64_t hidden = layer->config.hidden_size, row = FL_T(norm_sums_row)(layer);
    FL_T(fl_arrays) to = FL_T(arrays_of)(layer, index, gradients);
    FL_T(fl_norm_sums) sums = FL_T(norm_sums)(layer, rows);
    for (int64_t s = 1; s < n; s++)
        FL_T(add_rows)(rows, row, rows + s * row, row, 1, row);
    for (int p = 0; p < layer->n_parts; p++) {
        const fl_part *part = &layer->part[p];
        FL_T(unpack_gains)(layer, part, sums.x, part->cell.x_gate, to.norm_ih);
        FL_T(unpack_gains)(layer, part, sums.h, part->cell.h_gate, to.norm_hh);
        if (part->cell.gate_states)
            FL_T(unpack_gains)(layer, part, sums.g, part->cell.g_gate, to.norm_gg);
    }
    if (!to.norm_c)
        return;
    FL_T(copy_row)(to.norm_c, sums.c, hidden);
    FL_T(copy_row)(to.norm_bias, sums.bias, hidden);
}
