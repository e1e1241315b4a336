/* A step backward through layer normalisation, for one dtype; see normalized_step_body.h. */

/* Sums over the steps, per sequence: gradients of the gains of x, h and c, and of the bias of c. */
typedef struct FL_T(fl_norm_sums) {
    real *gain[FL_NORMS], *bias;
} FL_T(fl_norm_sums);

FL_INLINE int64_t FL_T(norm_sums_row)(const fl_recurrent *layer)
{
    return 2 * (layer->gate_row + layer->plane);
}

FL_INLINE FL_T(fl_norm_sums) FL_T(norm_sums)(const fl_recurrent *layer, real *row)
{
    FL_T(fl_norm_sums) sums;
    sums.gain[FL_NORM_OF_X] = row;
    sums.gain[FL_NORM_OF_H] = row + layer->gate_row;
    sums.gain[FL_NORM_OF_C] = row + 2 * layer->gate_row;
    sums.bias = row + 2 * layer->gate_row + layer->plane;
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
    norm = {.plan = FL_T(norm_plan)(layer, packed, FL_NORM_OF_C),
            .rows = output->rows,
            .dy = output->dsquashed,
            .dy_row = output->dsquashed_row,
            .normed = at->c,
            .normed_row = layer->plane,
            .scale = at->scale + FL_NORM_OF_C,
            .scale_row = FL_NORMS,
            .dgain = sums->gain[FL_NORM_OF_C],
            .dgain_row = FL_T(norm_sums_row)(layer)};
    kernels->normalize_gradient(&norm);
    FL_T(add_rows)(sums->bias, norm.dgain_row, output->dsquashed, output->dsquashed_row,
                   output->rows, layer->plane);
    FL_T(add_rows)(output->dstate, output->dstate_row, at->c, layer->plane, output->rows,
                   layer->plane);
}

/* A step backward. Leaves the gradients of the pre-activations in s->gates, of x W in at->x and of
 * h U in at->h. `scratch`: (rows, 2 planes). */
static void FL_T(normalized_backstep)(const fl_recurrent *layer, const fl_packed *packed,
                                      const FL_T(fl_normed_rows) * at,
                                      const FL_T(fl_norm_sums) * sums, real *scratch,
                                      FL_T(fl_backstep) * s)
{
    const FL_T(fl_kernels) *kernels = &layer->isa->FL_SUFFIX;
    const FL_T(fl_cell) *cell = &kernels->cells[fl_main_part(layer)->cell_index];
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
    for (int which = FL_NORM_OF_X; which <= FL_NORM_OF_H; which++) {
        norm.plan = FL_T(norm_plan)(layer, packed, which);
        norm.normed = which == FL_NORM_OF_X ? at->x : at->h;
        norm.scale = at->scale + which;
        norm.dgain = sums->gain[which];
        kernels->normalize_gradient(&norm);
    }
}

/* The sums of all `n` sequences, `rows`, into the flat gradients. */
static void FL_T(unpack_norm_sums)(const fl_recurrent *layer, int index, int64_t n, real *rows,
                                   void *gradients)
{
    const fl_part *part = fl_main_part(layer);
    int64_t hidden = layer->config.hidden_size, row = FL_T(norm_sums_row)(layer);
    FL_T(fl_arrays) to = FL_T(arrays_of)(layer, index, gradients);
    FL_T(fl_norm_sums) sums = FL_T(norm_sums)(layer, rows);
    for (int64_t s = 1; s < n; s++)
        FL_T(add_rows)(rows, row, rows + s * row, row, 1, row);
    for (int64_t column = 0; column < part->gate_columns; column++) {
        int64_t x_row = fl_weight_row(layer, part, column, part->cell.x_gate),
                h_row = fl_weight_row(layer, part, column, part->cell.h_gate);
        if (x_row >= 0)
            to.norm_ih[x_row] = sums.gain[FL_NORM_OF_X][column];
        if (h_row >= 0)
            to.norm_hh[h_row] = sums.gain[FL_NORM_OF_H][column];
    }
    if (!to.norm_c)
        return;
    FL_T(copy_row)(to.norm_c, sums.gain[FL_NORM_OF_C], hidden);
    FL_T(copy_row)(to.norm_bias, sums.bias, hidden);
}
