/* The compact peephole form: i, f and o see the whole cell state before the step through a full
 * matrix, i, f, o = sigmoid(W x + U c_prev + b), g = tanh(W x + b), and h does not recur. */
#define FL_CELL peephole_article
static const fl_cell_facts FL_T(peephole_article_facts) = {.name = "peephole_article",
                                                           .slot_names = "ifgo",
                                                           .takes_mask = 1,
                                                           .slots = 4,
                                                           .x_gates = 4,
                                                           .h_gates = 3,
                                                           .x_gate = {0, 1, 2, 3},
                                                           .h_gate = {0, 1, -1, 2},
                                                           .state_recurs = 1,
                                                           .states = 1};
static const fl_lstm_variant FL_T(peephole_article_variant) = {.i = 0, .f = 1, .g = 2, .o = 3};

#include "cells/lstm_variant.h"
