/* Dense layer: products by the register tile, weights packed in the call (cost in * out against n *
 * in * out). */
#include "layers/dense.h"

#include "base/fpenv.h"

#define FL_SUFFIX f32
#include "layers/dense_body.h"
#undef FL_SUFFIX
#define FL_SUFFIX f64
#include "layers/dense_body.h"
#undef FL_SUFFIX

fl_status fl_dense_run(int32_t dtype, const fl_dense_call *call)
{
    fl_status status;
    const fl_isa *isa = fl_isa_current(&status);
    if (!isa)
        return status;
    fl_fpenv saved = fl_fpenv_enter();
    status = dtype == FL_FLOAT64 ? dense_f64(isa, call) : dense_f32(isa, call);
    fl_fpenv_leave(saved);
    return status;
}
