/* LSTM without input activation, g = W x + U h_prev + b. Greff et al., arXiv 1503.04069, 2015. */
#define FL_CELL niaf
static const fl_cell_facts FL_T(niaf_facts) = {.name = "niaf",
                                               .slot_names = "ifgo",
                                               .takes_mask = 1,
                                               .slots = 4,
                                               .x_gates = 4,
                                               .h_gates = 4,
                                               .x_gate = {0, 1, 2, 3},
                                               .h_gate = {0, 1, 2, 3},
                                               .states = 1};
static const fl_lstm_variant FL_T(niaf_variant) = {
    .i = 0, .f = 1, .g = 2, .o = 3, .linear_input = 1};

#include "cells/lstm_variant.h"
