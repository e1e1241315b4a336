/* One step of one part of one level of a stream, for one dtype. */
#include "layers/parts_body.h"

#include "layers/normalized_step_body.h"

static const real *FL_T(stream_input)(const fl_stream *stream, int64_t level)
{
    return level ? stream->levels[level - 1].h[1 - stream->current] : stream->x;
}

/* x W + b, or x W where that is normalised, of a step and the blocks of a part into the stream's
 * rows. */
static void FL_T(project_step)(const fl_stream *stream, int64_t level, int p, int thread,
                               int64_t first, int64_t end)
{
    const fl_recurrent *layer = stream->layer;
    const fl_part *part = &layer->part[p];
    const fl_packed *packed = &layer->packed[level];
    int64_t width = fl_columns_of(layer, part->of_x);
    fl_product product = {.format = stream->format,
                          .rows = stream->n,
                          .block_first = first,
                          .block_end = end,
                          .descending = stream->current,
                          .a = FL_T(stream_input)(stream, level),
                          .a_row = packed->input,
                          .init = packed->part[p].bias,
                          .c = (real *)stream->gates + part->gate_first,
                          .c_row = layer->gate_row,
                          .prepared = &stream->prepared[thread]};
    FL_T(fl_gemm)
    gemm = {.rows = stream->n,
            .depth = packed->input,
            .columns = part->gate_stride,
            .block_first = first,
            .block_end = end,
            .a = FL_T(stream_input)(stream, level),
            .a_row = packed->input,
            .a_depth = 1,
            .b = packed->part[p].weight_x,
            .b_block = width * packed->input,
            .b_depth = width,
            .vectors = (int)(width / layer->lanes),
            .init = layer->config.layer_norm ? NULL : packed->part[p].bias,
            .c = (real *)stream->gates + part->gate_first,
            .c_row = layer->gate_row,
            .c_block = part->block_width};
    if (product.format == FL_WEIGHTS_PLAIN)
        layer->isa->FL_SUFFIX.gemm(&gemm);
    else
        fl_multiply(layer, packed, p, &product);
    FL_T(fill_other_slots)(layer, packed, p, &gemm, (fl_row_groups){0});
}

/* Output of one level from what its cells put out, the thread's share of its columns. */
static void FL_T(project_step_output)(const fl_stream *stream, int64_t level, int thread,
                                      int n_threads)
{
    const fl_recurrent *layer = stream->layer;
    int64_t width = FL_BLOCK_VECTORS * layer->lanes;
    FL_T(fl_gemm)
    gemm = {.rows = stream->n,
            .depth = layer->config.hidden_size,
            .columns = layer->output,
            .a = stream->unprojected,
            .a_row = layer->wide,
            .a_depth = 1,
            .b = layer->packed[level].projection,
            .b_block = width * layer->config.hidden_size,
            .b_depth = width,
            .vectors = FL_BLOCK_VECTORS,
            .c = stream->levels[level].h[1 - stream->current],
            .c_row = layer->output};
    fl_split((layer->output + width - 1) / width, thread, n_threads, &gemm.block_first,
             &gemm.block_end);
    if (gemm.block_first >= gemm.block_end)
        return;
    layer->isa->FL_SUFFIX.gemm(&gemm);
    if (layer->zones) {
        FL_T(fl_zone) zone = FL_T(projected_zone_of)(layer, &gemm);
        zone.h_prev = stream->levels[level].h[stream->current];
        zone.h_prev_row = layer->output;
        layer->isa->FL_SUFFIX.zone(&zone);
    }
}

static void FL_T(step_part)(const fl_stream *stream, int64_t level, int p, int thread,
                            int64_t first, int64_t end)
{
    const fl_recurrent *layer = stream->layer;
    const fl_part *part = &layer->part[p];
    const fl_packed *packed = &layer->packed[level];
    const fl_stream_level *at = &stream->levels[level];
    int current = stream->current, next = 1 - current;
    int64_t hidden = layer->config.hidden_size;
    FL_T(fl_step)
    s = {.rows = stream->n,
         .units = hidden,
         .block_first = first,
         .block_end = end,
         .descending = current,
         .init = packed->part[p].bias,
         .x = FL_T(stream_input)(stream, level),
         .weight_x = packed->part[p].weight_x,
         .x_row = packed->input,
         .x_depth = packed->input,
         .h_prev = at->h[current],
         .weight_h = packed->part[p].weight_h,
         .h_prev_row = layer->output,
         .h_depth = layer->recurrent,
         .state_prev = at->state[current],
         .state_prev_row = layer->state_row,
         .peephole = packed->part[p].peephole,
         .state = at->state[next],
         .state_row = layer->state_row,
         .state_plane = layer->plane,
         .decay = stream->decay,
         .decay_row = 1,
         .h = fl_projects(layer) ? stream->unprojected : at->h[next],
         .h_row = fl_projects(layer) ? layer->wide : hidden};
    if (part->cell.state_recurs) {
        s.h_prev = s.state_prev;
        s.h_prev_row = layer->state_row;
    }
    if (!part->sees_x)
        s.x = NULL;
    if (stream->gates && (part->sees_x || layer->config.layer_norm)) {
        s.init = (const real *)stream->gates + part->gate_first;
        s.init_row = layer->gate_row;
        s.x = NULL;
    }
    if (part->cell.gate_states) {
        s.x = s.state_prev + layer->plane;
        s.x_row = layer->state_row;
        s.x_depth = part->cell.gate_states * layer->plane;
        s.weight_x = packed->part[p].weight_g;
    }
    if (layer->n_parts > 1)
        FL_T(fl_pass_made)(layer, &part->cell, stream->made_h, stream->made_state, &s);
    int on_tiles = fl_steps_on_tiles(&part->cell, stream->format);
    if (stream->format != FL_WEIGHTS_PLAIN && !on_tiles)
        FL_T(multiply_recurrence)(layer, packed, p, stream->format, &stream->prepared[thread],
                                  stream->gates, &s);
    if (on_tiles) {
        fl_step_on_tiles(layer, packed, p, &stream->prepared[thread], &s);
    } else if (layer->config.layer_norm) {
        FL_T(fl_normed_rows) to = FL_T(normed_rows)(layer, &stream->normed, 0);
        FL_T(normalized_step)(layer, packed, p, &to, &s);
    } else {
        layer->isa->FL_SUFFIX.cells[part->cell_index].forward(&s);
    }
    if (layer->zones && !part->cell.is_prelude) {
        FL_T(fl_zone) zone = FL_T(zone_of)(layer, &s);
        zone.h_prev = at->h[current];
        zone.h_prev_row = layer->output;
        zone.state_prev = at->state[current];
        zone.state = at->state[next];
        layer->isa->FL_SUFFIX.zone(&zone);
    }
}
