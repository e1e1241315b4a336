/* The LSTM of 1997 whose gates of the step before feed all gates and cell inputs, tanh squashing.
 * Hochreiter and Schmidhuber, Neural Computation 9(8), 1997, appendix A.1. */
#define FL_CELL lstm1997_gates
static const fl_cell_facts FL_T(lstm1997_gates_facts) = {.name = "lstm1997_gates",
                                                         .slot_names = "igo",
                                                         .takes_mask = 1,
                                                         .slots = 3,
                                                         .x_gates = 3,
                                                         .h_gates = 3,
                                                         .x_gate = {0, 1, 2},
                                                         .h_gate = {0, 1, 2},
                                                         .state_names = "cio",
                                                         .gate_states = 2,
                                                         .g_gates = 3,
                                                         .g_gate = {0, 1, 2},
                                                         .states = 3};
static const fl_lstm_variant FL_T(lstm1997_gates_variant) = {
    .i = 0, .f = -1, .g = 1, .o = 2, .recurs = 1};

#include "cells/lstm_variant.h"
