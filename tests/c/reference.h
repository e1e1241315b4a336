/* A recurrent network in double precision, one unit, one step and one sequence at a time: slow and
 * plain, the truth that the layers are compared with. Sequences follow each other: sequence b is
 * rows first(b) .. first(b) + length[b] - 1 of x and y, first(b) the sum of the lengths before. */
#ifndef FL_TESTS_REFERENCE_H
#define FL_TESTS_REFERENCE_H

#include <stdint.h>

typedef struct reference {
    /* the network: set before reference_begin */
    const char *cell;
    int64_t input, hidden, layers, directions;
    int bias;
    int64_t n;
    const int64_t *length;

    /* inputs: allocated by reference_begin, to be filled; states: h, c (layers * directions, n,
     * hidden); factor of the dropout (layers, n, hidden * directions), all 1 at first */
    double *parameters, *x, *states_in[2], *factor;
    double *dy, *dstates_out[2];

    /* results */
    double *y, *states_out[2];
    double *gradients, *dx, *dstates_in[2];
    double margin; /* least distance of a rectified unit from its kink */

    int gates, states;
    int64_t rows, n_parameters, columns; /* columns: hidden * directions */
    double **inputs;                     /* (layers) (rows, input of the layer), after dropout */
    double **saved, **cell_state; /* (layers * directions) (rows, gates * hidden), (rows, hidden) */
    double **output;              /* (layers) (rows, columns) */
} reference;

void reference_begin(reference *net);
void reference_forward(reference *net);
/* After reference_forward; all results are written (=). */
void reference_backward(reference *net);
void reference_end(reference *net);

#endif
