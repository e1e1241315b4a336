/* Time-aware LSTM: the LSTM, gates i, f, g, o, on the cell state that cells/tlstm_memory.h has
 * discounted by the elapsed time. Row block 4 of weight_hh and bias_hh, d, decomposes the cell
 * state. Baytas et al., Patient subtyping via time-aware LSTM networks, KDD 2017. */
#define FL_CELL tlstm
#define FL_CELL_FUSED 1
static const fl_cell_facts FL_T(tlstm_facts) = {.name = "tlstm",
                                                .slot_names = "ifgo",
                                                .takes_mask = 1,
                                                .slots = 4,
                                                .x_gates = 4,
                                                .h_gates = 5,
                                                .x_gate = {0, 1, 2, 3},
                                                .h_gate = {0, 1, 2, 3},
                                                .states = 1,
                                                .prelude = "tlstm_memory"};
static const fl_lstm_variant FL_T(tlstm_variant) = {.i = 0, .f = 1, .g = 2, .o = 3};

#include "cells/lstm_variant.h"
