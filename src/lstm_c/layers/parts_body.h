/* How the two parts of a step share what the first one makes, for one dtype. */

/* Point a step of a part at the rows (h: (., plane), state: (., made_row)) where a prelude leaves h
 * and states and the main cell finds them. */
FL_INLINE void FL_T(fl_pass_made)(const fl_recurrent *layer, const fl_cell_facts *cell, real *h,
                                  real *state, FL_T(fl_step) * s)
{
    if (cell->is_prelude) {
        s->h = h;
        s->h_row = layer->plane;
        s->state = state;
        s->state_row = layer->made_row;
        s->mask = NULL;
    } else {
        s->state_prev = state;
        s->state_prev_row = layer->made_row;
    }
    if (cell->made_recurs) {
        s->h_prev = h;
        s->h_prev_row = layer->plane;
    }
    if (cell->transient) {
        s->state_prev = s->state = state;
        s->state_prev_row = s->state_row = layer->made_row;
    }
}

/* Zoneout of the rows and units of a step of the main part, without h where that is projected; h
 * and states before it are to be given. */
FL_INLINE FL_T(fl_zone) FL_T(zone_of)(const fl_recurrent *layer, const FL_T(fl_step) * s)
{
    int64_t width = fl_panels_per_block(layer->cell.slots) * layer->lanes,
            end = s->block_end * width;
    FL_T(fl_zone)
    zone = {.rows = s->rows,
            .units = s->units,
            .unit_first = s->block_first * width,
            .unit_end = end < layer->plane ? end : layer->plane,
            .plane = layer->plane,
            .states = layer->zoned_states,
            .stabilised = layer->cell.stabilised,
            .flags_row = layer->zone_row,
            .expected_h = (real)layer->config.zoneout_h,
            .expected_c = (real)layer->config.zoneout_c,
            .log_kept = (real)layer->log_kept,
            .log_new = (real)layer->log_new,
            .state_row = layer->state_row,
            .h = fl_projects(layer) ? NULL : s->h,
            .h_row = s->h_row};
    return zone;
}

/* The slots that an input projection has no product for get their biases: of the rows and blocks of
 * `projection`. */
static void FL_T(fill_other_slots)(const fl_recurrent *layer, const fl_packed *packed, int p,
                                   const FL_T(fl_gemm) * projection, fl_row_groups of_gates)
{
    const fl_part *part = &layer->part[p];
    const real *bias = packed->part[p].bias;
    int64_t used = fl_columns_of(layer, part->of_x);
    for (int64_t row = 0; used < part->block_width && row < projection->rows; row++)
        for (int64_t block = projection->block_first; block < projection->block_end; block++)
            for (int64_t j = block * part->block_width + used; j < (block + 1) * part->block_width;
                 j++)
                projection->c[fl_grouped_row(&of_gates, row, projection->c_row) + j] = bias[j];
}

/* The recurrent product of a step by weights in another format, into its rows of gates (rows,
 * gate_row), where x W + b is if the part sees x; what is left of the step is pointwise. */
static void FL_T(multiply_recurrence)(const fl_recurrent *layer, const fl_packed *packed, int p,
                                      fl_weight_format format, const fl_prepared *prepared,
                                      real *gates, FL_T(fl_step) * s)
{
    gates += layer->part[p].gate_first;
    fl_product product = {.format = format,
                          .recurrent = 1,
                          .rows = s->rows,
                          .block_first = s->block_first,
                          .block_end = s->block_end,
                          .descending = s->descending,
                          .a = s->h_prev,
                          .a_row = s->h_prev_row,
                          .init = s->init,
                          .init_row = s->init_row,
                          .c = gates,
                          .c_row = layer->gate_row,
                          .prepared = prepared};
    fl_multiply(layer, packed, p, &product);
    s->init = gates;
    s->init_row = layer->gate_row;
    s->h_depth = 0;
}

/* Zoneout of the projected h that a product has left; h before the step is to be given. */
FL_INLINE FL_T(fl_zone)
    FL_T(projected_zone_of)(const fl_recurrent *layer, const FL_T(fl_gemm) * product)
{
    int64_t width = FL_BLOCK_VECTORS * layer->lanes, end = product->block_end * width;
    FL_T(fl_zone)
    zone = {.rows = product->rows,
            .units = layer->recurrent,
            .unit_first = product->block_first * width,
            .unit_end = end < layer->recurrent_plane ? end : layer->recurrent_plane,
            .flags_row = layer->zone_row,
            .expected_h = (real)layer->config.zoneout_h,
            .h = product->c,
            .h_row = product->c_row};
    return zone;
}
