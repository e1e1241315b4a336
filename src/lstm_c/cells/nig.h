/* LSTM without input gate (i = 1), gates f, g, o. Greff et al., arXiv 1503.04069, 2015. */
#define FL_CELL nig
static const fl_cell_facts FL_T(nig_facts) = {.name = "nig",
                                              .slot_names = "fgo",
                                              .takes_mask = 1,
                                              .slots = 3,
                                              .x_gates = 3,
                                              .h_gates = 3,
                                              .x_gate = {0, 1, 2},
                                              .h_gate = {0, 1, 2},
                                              .states = 1};
static const fl_lstm_variant FL_T(nig_variant) = {.i = -1, .f = 0, .g = 1, .o = 2};

#include "cells/lstm_variant.h"
