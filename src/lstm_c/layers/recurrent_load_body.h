/* Pack all weights of a layer, for one dtype. */

static void FL_T(pack_part)(const fl_recurrent *layer, int index, int p, FL_T(fl_arrays) arrays)
{
    const fl_packed *packed = &layer->packed[index];
    const fl_packed_part *to = &packed->part[p];
    const fl_part *part = &layer->part[p];
    int64_t hidden = layer->config.hidden_size;
    if (layer->format != FL_WEIGHTS_INT8) {
        FL_T(pack_panels)(layer, part, arrays.weight_ih, part->cell.x_gate, part->of_x, 1,
                          packed->input, packed->input, to->weight_x);
        FL_T(pack_panels)(layer, part, arrays.weight_hh, part->cell.h_gate, part->of_h, 1,
                          layer->recurrent, layer->recurrent, to->weight_h);
    }
    if (layer->config.dtype == FL_FLOAT32)
        fl_formats_pack(layer, index, p, (const float *)(const void *)arrays.weight_ih,
                        (const float *)(const void *)arrays.weight_hh);
    FL_T(pack_panels)(layer, part, arrays.weight_gg, part->cell.g_gate, part->of_h,
                      part->cell.gate_states, hidden, layer->plane, to->weight_g);
    FL_T(pack_bias)(layer, part, arrays.bias_ih, arrays.bias_hh, to->bias);
}

void FL_T(fl_recurrent_pack)(fl_recurrent *layer, const void *parameters)
{
    for (int index = 0; index < layer->n_packed; index++) {
        FL_T(fl_arrays) arrays = FL_T(arrays_of)(layer, index, parameters);
        int64_t hidden = layer->config.hidden_size;
        for (int p = 0; p < layer->n_parts; p++)
            FL_T(pack_part)(layer, index, p, arrays);
        FL_T(pack_pointwise)(layer, &arrays, &layer->packed[index]);
        if (fl_projects(layer))
            FL_T(pack_plain)(arrays.weight_hr, hidden, 1, layer->output, hidden,
                             FL_BLOCK_VECTORS * layer->lanes, layer->packed[index].projection);
    }
}
