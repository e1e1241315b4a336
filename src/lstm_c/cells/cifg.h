/* LSTM with coupled input and forget gate, i = 1 - f, gates f, g, o. Greff et al., arXiv
 * 1503.04069, 2015. */
#define FL_CELL cifg
#define FL_CELL_FUSED 1
static const fl_cell_facts FL_T(cifg_facts) = {.name = "cifg",
                                               .slot_names = "fgo",
                                               .takes_mask = 1,
                                               .slots = 3,
                                               .x_gates = 3,
                                               .h_gates = 3,
                                               .x_gate = {0, 1, 2},
                                               .h_gate = {0, 1, 2},
                                               .states = 1};
static const fl_lstm_variant FL_T(cifg_variant) = {.i = -1, .f = 0, .g = 1, .o = 2, .tied = 1};

#include "cells/lstm_variant.h"
