/* LSTM without output gate (o = 1), gates i, f, g. Greff et al., arXiv 1503.04069, 2015. */
#define FL_CELL nog
static const fl_cell_facts FL_T(nog_facts) = {.name = "nog",
                                              .slot_names = "ifg",
                                              .takes_mask = 1,
                                              .slots = 3,
                                              .x_gates = 3,
                                              .h_gates = 3,
                                              .x_gate = {0, 1, 2},
                                              .h_gate = {0, 1, 2},
                                              .states = 1};
static const fl_lstm_variant FL_T(nog_variant) = {.i = 0, .f = 1, .g = 2, .o = -1};

#include "cells/lstm_variant.h"
