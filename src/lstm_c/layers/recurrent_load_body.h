/* Pack all weights of a layer, for one dtype. */

void FL_T(fl_recurrent_pack)(fl_recurrent *layer, const void *parameters)
{
    int64_t rows = layer->cell.gates * layer->config.hidden_size,
            hidden = layer->config.hidden_size;
    for (int index = 0; index < layer->n_packed; index++) {
        const fl_packed *packed = &layer->packed[index];
        const real *weight_ih = (const real *)parameters + packed->offset,
                   *weight_hh = weight_ih + rows * packed->input;
        const real *bias = layer->config.bias ? weight_hh + rows * hidden : NULL;
        FL_T(pack_panels)(layer, weight_ih, packed->input, packed->weight_x);
        FL_T(pack_panels)(layer, weight_hh, hidden, packed->weight_h);
        FL_T(pack_bias)(layer, bias, bias ? bias + rows : NULL, packed->bias);
    }
}
