/* The compact peephole form with the identity as output squashing. */
#define FL_CELL peephole_article_identity
static const fl_cell_facts FL_T(peephole_article_identity_facts) = {
    .name = "peephole_article_identity",
    .slot_names = "ifgo",
    .takes_mask = 1,
    .slots = 4,
    .x_gates = 4,
    .h_gates = 3,
    .x_gate = {0, 1, 2, 3},
    .h_gate = {0, 1, -1, 2},
    .state_recurs = 1,
    .states = 1};
static const fl_lstm_variant FL_T(peephole_article_identity_variant) = {
    .i = 0, .f = 1, .g = 2, .o = 3, .linear_output = 1};

#include "cells/lstm_variant.h"
