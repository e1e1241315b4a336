/* Full gate recurrence: the gates of the step before feed the gates (not the cell input). Greff et
 * al., arXiv 1503.04069, 2015, on the LSTM without peepholes. */
#define FL_CELL fgr
static const fl_cell_facts FL_T(fgr_facts) = {.name = "fgr",
                                              .slot_names = "ifgo",
                                              .takes_mask = 1,
                                              .slots = 4,
                                              .x_gates = 4,
                                              .h_gates = 4,
                                              .x_gate = {0, 1, 2, 3},
                                              .h_gate = {0, 1, 2, 3},
                                              .state_names = "cifo",
                                              .gate_states = 3,
                                              .g_gates = 3,
                                              .g_gate = {0, 1, -1, 2},
                                              .states = 4};
static const fl_lstm_variant FL_T(fgr_variant) = {.i = 0, .f = 1, .g = 2, .o = 3, .recurs = 1};

#include "cells/lstm_variant.h"
