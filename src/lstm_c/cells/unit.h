/* What a cell's pointwise bodies see: one vector of units of one sequence at one step. */

typedef struct FL_T(fl_unit) {
    /* forward: pre-activations in, what backward needs of them (activated gates) out;
     * backward: that in, gradient of the pre-activations out */
    vec gate[FL_MAX_SLOTS];
    vec peephole[FL_MAX_PEEPHOLES]; /* weights of these units */
    vec mask;                       /* factors of the cell input, for a cell that takes them */
    vec decay;                      /* weight of the row, for a cell that takes it */
    vec h_prev;                     /* for a cell that reads it */
    vec state_prev[FL_MAX_STATES];  /* backward: states before the step */
    vec state[FL_MAX_STATES]; /* forward: before the step in, after it out; backward: after the step
                               */
    vec dstate[FL_MAX_STATES]; /* backward: gradient of the states after the step in, before it out
                                */
    vec h;                     /* forward: output */
    vec dh;                    /* backward: gradient of h */
    vec dh_prev; /* backward: gradient of h_prev beside the recurrent product; zero if not set, a
                    prelude adds to what the main cell left */
} FL_T(fl_unit);
