/* The LSTM of 1997 with its squashing functions, g = 4 sigmoid(.) - 2 and h = o (2 sigmoid(c) - 1).
 * Hochreiter and Schmidhuber, Neural Computation 9(8), 1997. */
#define FL_CELL lstm1997_squashed
static const fl_cell_facts FL_T(lstm1997_squashed_facts) = {.name = "lstm1997_squashed",
                                                            .slot_names = "igo",
                                                            .takes_mask = 1,
                                                            .slots = 3,
                                                            .x_gates = 3,
                                                            .h_gates = 3,
                                                            .x_gate = {0, 1, 2},
                                                            .h_gate = {0, 1, 2},
                                                            .states = 1};
static const fl_lstm_variant FL_T(lstm1997_squashed_variant) = {
    .i = 0, .f = -1, .g = 1, .o = 2, .squash_1997 = 1};

#include "cells/lstm_variant.h"
