/* The LSTM of 1997: no forget gate, c = c_prev + i g, tanh squashing. Hochreiter and Schmidhuber,
 * Neural Computation 9(8), 1997. The equations are those of nfg. */
#define FL_CELL lstm1997
static const fl_cell_facts FL_T(lstm1997_facts) = {.name = "lstm1997",
                                                   .slot_names = "igo",
                                                   .takes_mask = 1,
                                                   .slots = 3,
                                                   .x_gates = 3,
                                                   .h_gates = 3,
                                                   .x_gate = {0, 1, 2},
                                                   .h_gate = {0, 1, 2},
                                                   .states = 1};
static const fl_lstm_variant FL_T(lstm1997_variant) = {.i = 0, .f = -1, .g = 1, .o = 2};

#include "cells/lstm_variant.h"
