/* LSTM with peepholes: i and f see the cell state before the step, o the one after it. Gers,
 * Schraudolph and Schmidhuber, JMLR 3, 2002. The whole gradient, the peepholes' included. */
#define FL_CELL peephole
#define FL_CELL_FUSED 1
static const fl_cell_facts FL_T(peephole_facts) = {.name = "peephole",
                                                   .slot_names = "ifgo",
                                                   .takes_mask = 1,
                                                   .slots = 4,
                                                   .x_gates = 4,
                                                   .h_gates = 4,
                                                   .x_gate = {0, 1, 2, 3},
                                                   .h_gate = {0, 1, 2, 3},
                                                   .n_peepholes = 3,
                                                   .peephole = {{0, 0, 0}, {1, 0, 0}, {3, 0, 1}},
                                                   .states = 1};
static const fl_lstm_variant FL_T(peephole_variant) = {
    .i = 0, .f = 1, .g = 2, .o = 3, .peepholes = 1};

#include "cells/lstm_variant.h"
