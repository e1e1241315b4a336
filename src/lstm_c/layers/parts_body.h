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
