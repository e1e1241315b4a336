/* The sentence of each status code. */
#include "fastlstm.h"

const char *fl_status_string(fl_status status)
{
    switch (status) {
    case FL_OK:
        return "ok";
    case FL_ERR_ARGUMENT:
        return "an argument is out of its range";
    case FL_ERR_NOMEM:
        return "out of memory";
    case FL_ERR_OVERFLOW:
        return "the sizes multiply to more than the address space holds";
    case FL_ERR_UNKNOWN_CELL:
        return "no cell of this name";
    case FL_ERR_UNKNOWN_ISA:
        return "FASTLSTM_ISA names no instruction set of this build "
               "(portable, avx2, avx512 or amx)";
    case FL_ERR_ISA_UNAVAILABLE:
        return "FASTLSTM_ISA names an instruction set that this machine does not have";
    case FL_ERR_TAPE:
        return "the tape holds no forward call of this layer (a tape serves one backward call)";
    }
    return "unknown status";
}
