/* Plain vector extensions, no flags: runs everywhere. */
#define FL_ISA_PORTABLE 1
#include "isa/bodies.h"

const fl_isa fl_isa_portable = {"portable", 1, FL_TABLES};
