/* A step with layer normalisation, for one dtype (Ba, Kiros and Hinton, arXiv 1607.06450):
 *   pre-activations = LN(x W) + LN(h U) [+ LN(gates_prev G)] + b      h = o * squash(LN(c))
 * Each LN takes a whole row, so that the products of a step are passes of their own and the cell's
 * kernel starts from their sum, with nothing left to multiply. A thread has all units of its rows.
 * In a step of two parts x W is normalised over the gates of both, each recurrent product over
 * those of its part. */

/* Where the normalised values and the scales of a step's rows are kept. */
typedef struct FL_T(fl_normed_rows) {
    real *x;     /* (rows, gate_row), or NULL: in place */
    real *h, *g; /* (rows, gate_row) */
    real *c;     /* (rows, plane) */
    real *scale; /* (rows, FL_NORMS) */
} FL_T(fl_normed_rows);

FL_INLINE FL_T(fl_normed_rows)
    FL_T(normed_rows)(const fl_recurrent *layer, const fl_normed *normed, int64_t row)
{
    FL_T(fl_normed_rows)
    at = {.h = (real *)normed->h + row * layer->gate_row,
          .g = (real *)normed->g + row * layer->gate_row,
          .c = (real *)normed->c + row * layer->plane,
          .scale = (real *)normed->scale + row * FL_NORMS};
    if (normed->x)
        at.x = (real *)normed->x + row * layer->gate_row;
    return at;
}

FL_INLINE FL_T(fl_norm_plan) FL_T(norm_plan)(const fl_packed *packed, int which)
{
    const fl_packed_norm *norm = &packed->norm[which];
    FL_T(fl_norm_plan)
    plan = {.width = norm->width,
            .counts = norm->counts,
            .gain = norm->gain,
            .share = (real)norm->share};
    return plan;
}

/* (rows, gate_row) `to` = the step's rows of `a` times packed weights of a part. */
static void FL_T(product_of_rows)(const fl_recurrent *layer, const fl_part *part, int64_t rows,
                                  const real *a, int64_t a_row, int64_t depth, const real *weight,
                                  real *to)
{
    FL_T(fl_gemm)
    gemm = {.rows = rows,
            .depth = depth,
            .columns = part->gate_stride,
            .block_end = part->blocks,
            .a = a,
            .a_row = a_row,
            .a_depth = 1,
            .b = weight,
            .b_block = part->block_width * depth,
            .b_depth = part->block_width,
            .vectors = (int)(part->block_width / layer->lanes),
            .c = to,
            .c_row = layer->gate_row};
    layer->isa->FL_SUFFIX.gemm(&gemm);
}

/* h of the step = o * squash(LN(c)). */
static void FL_T(normalized_output)(const fl_recurrent *layer, const fl_packed *packed,
                                    const FL_T(fl_normed_rows) * to, const FL_T(fl_step) * s)
{
    const FL_T(fl_kernels) *kernels = &layer->isa->FL_SUFFIX;
    FL_T(fl_norm)
    norm = {.plan = FL_T(norm_plan)(packed, FL_NORM_OF_C),
            .rows = s->rows,
            .x = s->state,
            .x_row = s->state_row,
            .normed = to->c,
            .normed_row = layer->plane,
            .scale = to->scale + FL_NORM_OF_C,
            .scale_row = FL_NORMS};
    kernels->normalize(&norm);
    FL_T(fl_normed_output)
    output = {.rows = s->rows,
              .units = s->units,
              .normed = to->c,
              .normed_row = layer->plane,
              .gain = norm.plan.gain,
              .bias = packed->norm_bias,
              .gates = s->saved,
              .gates_row = s->saved_row,
              .h = s->h,
              .h_row = s->h_row};
    kernels->cells[fl_main_part(layer)->cell_index].normed->output(&output);
}

/* A step of part `p`, whose x W is at s->init, which gets the activated gates. */
static void FL_T(normalized_step)(const fl_recurrent *layer, const fl_packed *packed, int p,
                                  const FL_T(fl_normed_rows) * to, FL_T(fl_step) * s)
{
    const FL_T(fl_kernels) *kernels = &layer->isa->FL_SUFFIX;
    const fl_part *part = &layer->part[p];
    const FL_T(fl_cell) *cell = &kernels->cells[part->cell_index];
    real *gates = (real *)(uintptr_t)s->init, *h = to->h + part->gate_first;
    FL_T(fl_norm)
    norm = {.plan = FL_T(norm_plan)(packed, FL_NORM_OF_X),
            .rows = s->rows,
            .x = gates,
            .x_row = layer->gate_row,
            .normed = to->x ? to->x + part->gate_first : gates,
            .normed_row = layer->gate_row,
            .scale = to->scale + FL_NORM_OF_X,
            .scale_row = FL_NORMS,
            .base = packed->part[p].bias,
            .y = gates,
            .y_row = layer->gate_row};
    if (p == fl_input_part(layer))
        kernels->normalize(&norm);
    if (part->sees_x) {
        norm.base = gates;
        norm.base_row = layer->gate_row;
    }
    FL_T(product_of_rows)(layer, part, s->rows, s->h_prev, s->h_prev_row, layer->recurrent,
                          s->weight_h, h);
    norm.plan = FL_T(norm_plan)(packed, FL_NORM_OF_H + p);
    norm.x = norm.normed = h;
    norm.scale = to->scale + FL_NORM_OF_H + p;
    kernels->normalize(&norm);
    if (part->cell.gate_states) {
        FL_T(product_of_rows)(layer, part, s->rows, s->x, s->x_row, s->x_depth, s->weight_x, to->g);
        norm.plan = FL_T(norm_plan)(packed, FL_NORM_OF_G);
        norm.x = norm.normed = to->g;
        norm.scale = to->scale + FL_NORM_OF_G;
        kernels->normalize(&norm);
    }
    s->saved = gates;
    s->saved_row = layer->gate_row;
    s->x = NULL;
    s->h_depth = 0;
    cell->forward(s);
    if (cell->normed->output)
        FL_T(normalized_output)(layer, packed, to, s);
}
