/* LSTM with forget gate, gates in the order i, f, g, o. Gers, Schmidhuber and Cummins, Neural
 * Computation 12(10), 2000. */
#define FL_CELL lstm
#define FL_CELL_FUSED 1
static const fl_cell_facts FL_T(lstm_facts) = {.name = "lstm",
                                               .slot_names = "ifgo",
                                               .takes_mask = 1,
                                               .in_stages = FL_LSTM_STAGES,
                                               .slots = 4,
                                               .x_gates = 4,
                                               .h_gates = 4,
                                               .x_gate = {0, 1, 2, 3},
                                               .h_gate = {0, 1, 2, 3},
                                               .states = 1};
static const fl_lstm_variant FL_T(lstm_variant) = {.i = 0, .f = 1, .g = 2, .o = 3};

#include "cells/lstm_variant.h"
