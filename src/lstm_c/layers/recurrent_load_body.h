/* Pack all weights of a layer, for one dtype. */

void FL_T(fl_recurrent_pack)(fl_recurrent *layer, const void *parameters)
{
    int64_t hidden = layer->config.hidden_size;
    for (int index = 0; index < layer->n_packed; index++) {
        const fl_packed *packed = &layer->packed[index];
        FL_T(fl_arrays) arrays = FL_T(arrays_of)(layer, index, parameters);
        FL_T(pack_panels)(layer, arrays.weight_ih, layer->cell.x_gate, packed->input,
                          packed->weight_x);
        FL_T(pack_panels)(layer, arrays.weight_hh, layer->cell.h_gate, hidden, packed->weight_h);
        FL_T(pack_bias)(layer, arrays.bias_ih, arrays.bias_hh, packed->bias);
        for (int p = 0; p < layer->cell.n_peepholes; p++)
            for (int64_t unit = 0; unit < layer->plane; unit++)
                ((real *)packed->peephole)[p * layer->plane + unit] =
                    unit < hidden ? arrays.peephole[p * hidden + unit] : 0;
    }
}
