# What has no state between calls: dense layers, activations, losses, optimiser steps.

_RULES = {"sgd": 0, "rmsprop": 1, "adam": 2, "adamw": 3, "nadam": 4}


def dense_forward(str dtype, Py_ssize_t n, Py_ssize_t n_in, Py_ssize_t n_out, x, weight, bias, y):
    """y (n, n_out) = x (n, n_in) weight^T + bias; weight (n_out, n_in), bias (n_out) or None."""
    cdef Py_ssize_t size = size_of(dtype)
    cdef Buffer xs = hold(x, n * n_in, size, False, "x"), w = hold(weight, n_in * n_out, size, False, "weight")
    cdef Buffer b = hold(bias, n_out, size, False, "bias"), ys = hold(y, n * n_out, size, True, "y")
    cdef fl_status status
    with nogil:
        status = fl_dense_forward(code_of(size), n, n_in, n_out, xs.data, w.data, b.data, ys.data)
    check(status)


def dense_backward(str dtype, Py_ssize_t n, Py_ssize_t n_in, Py_ssize_t n_out, x, weight, dy, dweight, dbias, dx):
    """dweight =, dbias = (or None), dx = (or None) of :func:`dense_forward`."""
    cdef Py_ssize_t size = size_of(dtype)
    cdef Buffer xs = hold(x, n * n_in, size, False, "x"), w = hold(weight, n_in * n_out, size, False, "weight")
    cdef Buffer dys = hold(dy, n * n_out, size, False, "dy"), dw = hold(dweight, n_in * n_out, size, True, "dweight")
    cdef Buffer db = hold(dbias, n_out, size, True, "dbias"), dxs = hold(dx, n * n_in, size, True, "dx")
    cdef fl_status status
    with nogil:
        status = fl_dense_backward(code_of(size), n, n_in, n_out, xs.data, w.data, dys.data, dw.data, db.data, dxs.data)
    check(status)


def apply_activation(str name, x, out):
    """out = sigmoid(x) or tanh(x) by the kernels' vector code; float32 or float64 arrays of equal length."""
    if name not in ("sigmoid", "tanh"):
        raise ValueError(f"activation must be 'sigmoid' or 'tanh', got {name!r}")
    cdef Py_ssize_t size = size_of_reals(x, "x")
    cdef Buffer xs = hold(x, -1, size, False, "x")
    cdef Py_ssize_t count = xs.view.len // size
    cdef Buffer ys = hold(out, count, size, True, "out")
    cdef int32_t which = FL_SIGMOID if name == "sigmoid" else FL_TANH
    cdef fl_status status
    with nogil:
        status = fl_activate(code_of(size), which, xs.data, ys.data, count)
    check(status)


def softmax_cross_entropy(x, target, weight, gradient):
    """Mean cross-entropy of softmax(x), (n, classes), with int64 classes `target`, each row counted `weight` times
    (float64, or None: once); fills its gradient.
    """
    cdef Py_ssize_t size = size_of_reals(x, "x")
    cdef Buffer targets = hold(target, -1, 8, False, "target")
    cdef Py_ssize_t n = targets.view.len // 8
    cdef Buffer xs = hold(x, -1, size, False, "x"), weights = hold(weight, n, 8, False, "weight")
    cdef Buffer gradients = hold(gradient, xs.view.len // size, size, True, "gradient")
    cdef Py_ssize_t classes = xs.view.len // (n * size) if n else 1
    cdef double loss = 0.0
    if classes * n * size != xs.view.len:
        raise ValueError(f"x has {xs.view.len // size} elements; expected as many for each of {n} rows")
    check(fl_softmax_cross_entropy(code_of(size), n, classes, xs.data, <const int64_t *> targets.data,
                                   <const double *> weights.data, &loss, gradients.data))
    return loss


def sum_squares(x):
    """Sum of squares of a float32 or float64 array, in double precision and one fixed order."""
    cdef Py_ssize_t size = size_of_reals(x, "x")
    cdef Buffer xs = hold(x, -1, size, False, "x")
    cdef double total = 0.0
    check(fl_sum_squares(code_of(size), xs.data, xs.view.len // size, &total))
    return total


def sum_steps(y, length, sums):
    """sums (n, columns) float64 += over the steps of n sequences, whose rows follow each other in y (rows, columns)."""
    cdef Py_ssize_t size = size_of_reals(y, "y")
    cdef Buffer lengths = hold(length, -1, 8, False, "length"), totals = hold(sums, -1, 8, True, "sums")
    cdef Py_ssize_t n = lengths.view.len // 8
    cdef Py_ssize_t columns = totals.view.len // (8 * n) if n else 0
    cdef Buffer rows = hold(y, -1, size, False, "y")
    cdef Py_ssize_t total
    cdef fl_status status
    if n == 0 or columns * n * 8 != totals.view.len:
        raise ValueError(f"sums has {totals.view.len // 8} elements; expected as many for each of {n} sequences")
    total = rows_of(rows, columns, size)
    with nogil:
        status = fl_sum_steps(code_of(size), n, <const int64_t *> lengths.data, columns, rows.data, total,
                              <double *> totals.data)
    check(status)


def ctc_loss(str dtype, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t classes, x, length, targets, target_start,
             target_length, int64_t blank, bint logits, loss, gradient, int32_t n_threads=0):
    """loss (n) float64 = and gradient = of x, both (n, steps, classes); see fl_ctc in fastlstm.h."""
    cdef Py_ssize_t size = size_of(dtype)
    cdef Buffer xs = hold(x, n * steps * classes, size, False, "x")
    cdef Buffer lengths = hold(length, n, 8, False, "length"), labels = hold(targets, -1, 8, False, "targets")
    cdef Buffer starts = hold(target_start, n, 8, False, "target_start")
    cdef Buffer counts = hold(target_length, n, 8, False, "target_length")
    cdef Buffer losses = hold(loss, n, 8, True, "loss")
    cdef Buffer gradients = hold(gradient, n * steps * classes, size, True, "gradient")
    cdef fl_ctc call
    cdef fl_status status
    call.dtype = code_of(size)
    call.logits = logits
    call.n = n
    call.steps = steps
    call.classes = classes
    call.blank = blank
    call.x = xs.data
    call.length = <const int64_t *> lengths.data
    call.targets = <const int64_t *> labels.data
    call.target_total = rows_of(labels, 1, 8)
    call.target_start = <const int64_t *> starts.data
    call.target_length = <const int64_t *> counts.data
    call.loss = <double *> losses.data
    call.gradient = gradients.data
    call.n_threads = n_threads
    with nogil:
        status = fl_ctc_loss(&call)
    check(status)


def optimizer_step(str kind, params, grads, slots, dict hyper):
    """One in-place optimiser step over flat arrays of equal length and dtype.

    kind: 'sgd' (slots [momentum buffer] or []), 'rmsprop' ([square average]), 'adam', 'adamw', 'nadam' ([m, v]).
    hyper: lr, momentum, nesterov, alpha, beta1, beta2, eps, weight_decay, step, scale, mu, mu_next, mu_product;
    what the rule does not use may be left out.
    """
    if kind not in _RULES:
        raise ValueError(f"kind must be one of {sorted(_RULES)}, got {kind!r}")
    cdef Py_ssize_t size = size_of_reals(params, "params")
    cdef Buffer p = hold(params, -1, size, True, "params")
    cdef Py_ssize_t count = p.view.len // size
    cdef Buffer g = hold(grads, count, size, False, "grads")
    cdef Buffer first = hold(slots[0] if len(slots) > 0 else None, count, size, True, "slots[0]")
    cdef Buffer second = hold(slots[1] if len(slots) > 1 else None, count, size, True, "slots[1]")
    cdef fl_optimizer_step step
    cdef fl_status status
    get = hyper.get
    step.dtype = code_of(size)
    step.rule = _RULES[kind]
    step.nesterov = get("nesterov", False)
    step.parameters = p.data
    step.gradients = g.data
    step.slot0 = first.data
    step.slot1 = second.data
    step.count = count
    step.learning_rate = hyper["lr"]
    step.momentum = get("momentum", 0.0)
    step.alpha = get("alpha", 0.99)
    step.beta1 = get("beta1", 0.9)
    step.beta2 = get("beta2", 0.999)
    step.epsilon = get("eps", 1e-8)
    step.weight_decay = get("weight_decay", 0.0)
    step.gradient_scale = get("scale", 1.0)
    step.step = get("step", 1)
    step.mu = get("mu", 0.0)
    step.mu_next = get("mu_next", 0.0)
    step.mu_product = get("mu_product", 0.0)
    with nogil:
        status = fl_optimize(&step)
    check(status)
