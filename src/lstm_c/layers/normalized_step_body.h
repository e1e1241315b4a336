/* A step with layer normalisation, for one dtype (Ba, Kiros and Hinton, arXiv 1607.06450):
 *   pre-activations = LN(x W) + LN(h U) + b      h = o * squash(LN(c))
 * Each LN takes a whole row, so that the products of a step are passes of their own and the cell's
 * kernel starts from their sum, with nothing left to multiply. A thread has all units of its rows.
 */

/* Where the normalised values and the scales of a step's rows are kept. */
typedef struct FL_T(fl_normed_rows) {
    real *x;     /* (rows, gate_row), or NULL: in place */
    real *h;     /* (rows, gate_row) */
    real *c;     /* (rows, plane) */
    real *scale; /* (rows, 3): of x, h and c */
} FL_T(fl_normed_rows);

FL_INLINE FL_T(fl_normed_rows)
    FL_T(normed_rows)(const fl_recurrent *layer, const fl_normed *normed, int64_t row)
{
    FL_T(fl_normed_rows)
    at = {.h = (real *)normed->h + row * layer->gate_row,
          .c = (real *)normed->c + row * layer->plane,
          .scale = (real *)normed->scale + row * FL_NORMS};
    if (normed->x)
        at.x = (real *)normed->x + row * layer->gate_row;
    return at;
}

FL_INLINE FL_T(fl_norm_plan)
    FL_T(norm_plan)(const fl_recurrent *layer, const fl_packed *packed, int which)
{
    FL_T(fl_norm_plan)
    plan = {.width = which == FL_NORM_OF_C ? layer->plane : layer->gate_row,
            .counts = packed->norm[which].counts,
            .gain = packed->norm[which].gain,
            .share = (real)packed->norm[which].share};
    return plan;
}

/* h U of the step's rows. */
static void FL_T(recurrent_product)(const fl_recurrent *layer, const fl_packed *packed,
                                    const FL_T(fl_step) * s, real *rows)
{
    const fl_part *part = fl_main_part(layer);
    FL_T(fl_gemm)
    gemm = {.rows = s->rows,
            .depth = layer->recurrent,
            .columns = part->gate_stride,
            .block_end = part->blocks,
            .a = s->h_prev,
            .a_row = s->h_prev_row,
            .a_depth = 1,
            .b = packed->part[0].weight_h,
            .b_block = part->block_width * layer->recurrent,
            .b_depth = part->block_width,
            .vectors = (int)(part->block_width / layer->lanes),
            .c = rows,
            .c_row = layer->gate_row};
    layer->isa->FL_SUFFIX.gemm(&gemm);
}

/* A step whose x W is at s->init, which gets the activated gates. */
static void FL_T(normalized_step)(const fl_recurrent *layer, const fl_packed *packed,
                                  const FL_T(fl_normed_rows) * to, FL_T(fl_step) * s)
{
    const FL_T(fl_kernels) *kernels = &layer->isa->FL_SUFFIX;
    const FL_T(fl_cell) *cell = &kernels->cells[fl_main_part(layer)->cell_index];
    real *gates = (real *)(uintptr_t)s->init;
    FL_T(fl_norm)
    norm = {.plan = FL_T(norm_plan)(layer, packed, FL_NORM_OF_X),
            .rows = s->rows,
            .x = gates,
            .x_row = layer->gate_row,
            .normed = to->x ? to->x : gates,
            .normed_row = layer->gate_row,
            .scale = to->scale,
            .scale_row = FL_NORMS,
            .base = packed->part[0].bias,
            .y = gates,
            .y_row = layer->gate_row};
    kernels->normalize(&norm);
    FL_T(recurrent_product)(layer, packed, s, to->h);
    norm.plan = FL_T(norm_plan)(layer, packed, FL_NORM_OF_H);
    norm.x = norm.normed = to->h;
    norm.scale = to->scale + FL_NORM_OF_H;
    norm.base = gates;
    norm.base_row = layer->gate_row;
    kernels->normalize(&norm);
    s->saved = gates;
    s->saved_row = layer->gate_row;
    s->x = NULL;
    s->h_depth = 0;
    cell->forward(s);
    if (!cell->normed->output)
        return;
    norm.plan = FL_T(norm_plan)(layer, packed, FL_NORM_OF_C);
    norm.x = s->state;
    norm.x_row = s->state_row;
    norm.normed = to->c;
    norm.normed_row = layer->plane;
    norm.scale = to->scale + FL_NORM_OF_C;
    norm.y = NULL;
    kernels->normalize(&norm);
    FL_T(fl_normed_output)
    output = {.rows = s->rows,
              .units = s->units,
              .normed = to->c,
              .normed_row = layer->plane,
              .gain = norm.plan.gain,
              .bias = packed->norm_bias,
              .gates = gates,
              .gates_row = layer->gate_row,
              .h = s->h,
              .h_row = s->h_row};
    cell->normed->output(&output);
}
