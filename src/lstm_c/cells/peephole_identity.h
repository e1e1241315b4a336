/* Peephole LSTM with the identity as output squashing. Gers and Schmidhuber, IJCNN 2000. */
#define FL_CELL peephole_identity
#define FL_CELL_FUSED 1
static const fl_cell_facts FL_T(peephole_identity_facts) = {
    .name = "peephole_identity",
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
static const fl_lstm_variant FL_T(peephole_identity_variant) = {
    .i = 0, .f = 1, .g = 2, .o = 3, .peepholes = 1, .linear_output = 1};

#include "cells/lstm_variant.h"
