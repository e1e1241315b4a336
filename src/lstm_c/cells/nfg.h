/* LSTM without forget gate (f = 1), gates i, g, o. Greff et al., arXiv 1503.04069, 2015. */
#define FL_CELL nfg
static const fl_cell_facts FL_T(nfg_facts) = {.name = "nfg",
                                              .slot_names = "igo",
                                              .takes_mask = 1,
                                              .slots = 3,
                                              .x_gates = 3,
                                              .h_gates = 3,
                                              .x_gate = {0, 1, 2},
                                              .h_gate = {0, 1, 2},
                                              .states = 1};
static const fl_lstm_variant FL_T(nfg_variant) = {.i = 0, .f = -1, .g = 1, .o = 2};

#include "cells/lstm_variant.h"
