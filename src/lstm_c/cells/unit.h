/* What a cell's pointwise bodies see: one vector of units of one sequence at one step. */

typedef struct FL_T(fl_unit) {
    /* forward: pre-activations in, activated gates out (kept for backward). backward: activated
     * gates in, gradient of the pre-activations out */
    vec gate[FL_MAX_GATES];
    vec state_prev[FL_MAX_STATES]; /* backward: states before the step */
    vec state[FL_MAX_STATES]; /* forward: before the step in, after it out; backward: after the step
                               */
    vec dstate[FL_MAX_STATES]; /* backward: gradient of the states after the step in, before it out
                                */
    vec h;                     /* forward: output */
    vec dh;                    /* backward: gradient of h */
} FL_T(fl_unit);
