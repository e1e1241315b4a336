# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True, freethreading_compatible=True
"""Binding of the C library: handles, buffers, status codes to exceptions. No arithmetic.

Arrays are anything with the buffer protocol, C-contiguous; every length is checked against what C will
touch, so a wrong argument is a ValueError and never a stray access. Element types are the caller's business
(:mod:`fastlstm.layers` checks them).
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport int32_t, int64_t, uint64_t

DEF MAX_STATES = 5
_PRECISIONS = ("float32", "high", "bfloat16", "int8")
_RULES = {"sgd": 0, "rmsprop": 1, "adam": 2, "adamw": 3, "nadam": 4}
_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ci", "weight_cf", "weight_co",
          "weight_gg", "weight_hr", "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c", "weight_ln_gg")


cdef int check(fl_status status) except -1:
    if status == FL_OK:
        return 0
    message = fl_status_string(status).decode("ascii")
    if status == FL_ERR_NOMEM:
        raise MemoryError(message)
    if status == FL_ERR_OVERFLOW:
        raise OverflowError(message)
    raise ValueError(message)


cdef class Buffer:
    """A held view of an object's memory, or of nothing (None)."""

    cdef Py_buffer view
    cdef bint held
    cdef void *data

    def __cinit__(self):
        self.held = False
        self.data = NULL

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef Buffer NOTHING = Buffer.__new__(Buffer)


cdef Buffer hold(object array, Py_ssize_t count, Py_ssize_t itemsize, bint writable, str name):
    """View of `array` (or None), which must have `count` elements of `itemsize` bytes (-1: any count)."""
    if array is None:
        return NOTHING
    cdef Buffer buffer = Buffer.__new__(Buffer)
    PyObject_GetBuffer(array, &buffer.view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
    buffer.held = True
    if buffer.view.itemsize != itemsize:
        raise ValueError(f"{name} has elements of {buffer.view.itemsize} bytes; expected {itemsize}")
    if <size_t> buffer.view.buf % itemsize:
        raise ValueError(f"{name} is not aligned; give a copy")
    if count >= 0 and buffer.view.len != count * itemsize:
        raise ValueError(f"{name} has {buffer.view.len // itemsize} elements; expected {count}")
    buffer.data = buffer.view.buf
    return buffer


cdef Py_ssize_t rows_of(Buffer buffer, Py_ssize_t columns, Py_ssize_t itemsize):
    return buffer.view.len // (columns * itemsize) if buffer.held else 0


def isa():
    """Name of the instruction set in use."""
    cdef const char *name = NULL
    check(fl_isa_name(&name))
    return name.decode("ascii")


def isa_available():
    """Instruction sets of this build, best first, and whether this machine can run each: dict name -> bool."""
    cdef const char *name = NULL
    cdef int32_t available = 0
    cdef int32_t index = 0
    found = {}
    while fl_isa_available(index, &name, &available) == FL_OK:
        found[name.decode("ascii")] = bool(available)
        index += 1
    return found


def cells():
    """Names of the cells."""
    cdef const char *name
    cdef int32_t index = 0
    found = []
    while True:
        name = fl_cell_name(index)
        if name == NULL:
            return found
        found.append(name.decode("ascii"))
        index += 1


def cpu_info():
    """What the binding knows of the processor and the build."""
    return {"isa": isa(), "isa_available": isa_available(), "amx": bool(fl_cpu_amx()), "openmp": bool(fl_has_openmp())}


def set_num_threads(int n):
    """Threads a call may use from now on; 0 = automatic."""
    fl_set_num_threads(n)


def get_num_threads():
    """Threads a call may use now."""
    return fl_get_num_threads()


cdef class Tape:
    """Memory of a training forward call, for the backward call; reused and grown between calls."""

    cdef fl_tape *handle
    cdef bint busy
    cdef Py_ssize_t n

    def __cinit__(self):
        check(fl_tape_create(&self.handle))

    def __dealloc__(self):
        fl_tape_destroy(self.handle)

    @property
    def nbytes(self):
        """Bytes held."""
        return fl_tape_bytes(self.handle)

    cdef int acquire(self) except -1:
        if self.busy:
            raise RuntimeError("this tape is in use by another thread; give each thread a tape of its own")
        self.busy = True
        return 0


cdef class Recurrent:
    """Stacked, optionally bidirectional recurrent layer with packed weights.

    Sequences are given as rows of a 2-D array: sequence b is rows ``start[b] : start[b] + length[b]``.
    """

    cdef fl_recurrent *handle
    cdef readonly Py_ssize_t input_size, hidden_size, num_layers, directions, n_states, n_parameters, itemsize
    cdef readonly Py_ssize_t output_size, recurrent_size
    cdef readonly str dtype
    cdef readonly list parameter_shapes

    def __cinit__(self, str cell, int64_t input_size, int64_t hidden_size, int64_t num_layers=1,
                  bint bidirectional=False, bint bias=True, str dtype="float32", double dropout=0.0,
                  double recurrent_dropout=0.0, int32_t truncated=0, int64_t proj_size=0, int64_t output_proj_size=0,
                  bint layer_norm=False, double zoneout_h=0.0, double zoneout_c=0.0, str precision="float32",
                  bint batch_invariant=False):
        cdef fl_recurrent_config config
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
        name = cell.encode("utf-8")
        if b"\0" in name:
            raise ValueError("cell holds a null character; expected the name of a cell")
        config.cell = name
        config.input_size = input_size
        config.hidden_size = hidden_size
        config.num_layers = num_layers
        config.bidirectional = bidirectional
        config.bias = bias
        config.dtype = FL_FLOAT64 if dtype == "float64" else FL_FLOAT32
        config.dropout = dropout
        config.recurrent_dropout = recurrent_dropout
        config.truncated = truncated
        config.proj_size = proj_size
        config.output_proj_size = output_proj_size
        config.layer_norm = layer_norm
        config.zoneout_h = zoneout_h
        config.zoneout_c = zoneout_c
        config.precision = _PRECISIONS.index(precision)
        config.batch_invariant = batch_invariant
        check(fl_recurrent_create(&config, &self.handle))
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.directions = 2 if bidirectional else 1
        self.dtype = dtype
        self.itemsize = 8 if dtype == "float64" else 4
        self.output_size = fl_recurrent_output(self.handle)
        self.recurrent_size = proj_size or hidden_size
        self.n_states = fl_recurrent_n_states(self.handle)
        self.n_parameters = fl_recurrent_n_parameters(self.handle)
        self.parameter_shapes = [self._shape(i) for i in range(fl_recurrent_n_arrays(self.handle))]

    def __dealloc__(self):
        fl_recurrent_destroy(self.handle)

    def _shape(self, int32_t index):
        cdef fl_parameter parameter
        check(fl_recurrent_parameter(self.handle, index, &parameter))
        name = f"{_KINDS[parameter.kind]}_l{parameter.layer}" + ("_reverse" if parameter.direction else "")
        if parameter.columns:
            return name, (parameter.rows, parameter.columns)
        return name, (parameter.rows,)

    @property
    def slot_names(self):
        """A letter per accumulator of a unit: the gates that a tape keeps."""
        return fl_recurrent_slot_names(self.handle).decode("ascii")

    @property
    def state_names(self):
        """A letter per state in the order of state tuples."""
        return "h" + fl_recurrent_state_names(self.handle).decode("ascii")[:self.n_states - 1]

    def read(self, Tape tape not None, str kind, int32_t index, int32_t place, out, start):
        """Copy one "gate" (by slot) or "state" of the call on the tape into rows of out, (rows, hidden_size)."""
        cdef Buffer rows = hold(out, -1, self.itemsize, True, "out"), starts = hold(start, -1, 8, False, "start")
        cdef fl_record record
        if starts.view.len != 8 * tape.n:
            raise ValueError(f"start has {starts.view.len // 8} elements; expected {tape.n}")
        record.kind = FL_RECORD_STATE if kind == "state" else FL_RECORD_GATE
        record.index = index
        record.place = place
        record.out = rows.data
        record.start = <const int64_t *> starts.data
        record.total = rows_of(rows, self.hidden_size, self.itemsize)
        check(fl_tape_read(self.handle, tape.handle, &record))

    def tape_bytes(self, int64_t n, int64_t steps, int64_t rows, bint decays=False, int32_t n_threads=0):
        """Bytes of a new tape after a call on `n` sequences of `rows` steps in all, the longest of `steps`."""
        cdef int64_t found = 0
        check(fl_recurrent_tape_bytes(self.handle, n, steps, rows, decays, n_threads, &found))
        return found

    def load(self, parameters):
        """Pack the flat parameters for the kernels; to be called again after they change."""
        cdef Buffer flat = hold(parameters, self.n_parameters, self.itemsize, False, "parameters")
        cdef fl_status status
        with nogil:
            status = fl_recurrent_load(self.handle, flat.data)
        check(status)

    cdef tuple _states(self, object states, Py_ssize_t n, bint writable, str name):
        """Held buffers of the states (None, or a tuple of arrays or Nones)."""
        if states is None:
            return None
        if len(states) != self.n_states:
            raise ValueError(f"{name} has {len(states)} arrays; expected {self.n_states}")
        cdef Py_ssize_t rows = self.num_layers * self.directions * n, i
        cdef list held = []
        for i in range(self.n_states):
            width = self.hidden_size if i else self.recurrent_size
            held.append(hold(states[i], rows * width, self.itemsize, writable, name))
        return tuple(held)

    def forward(self, x, start, length, y=None, y_start=None, states_in=None, states_out=None, Tape tape=None,
                uint64_t random_key=0, int32_t n_threads=0, decay=None, number=None, int64_t first_step=0,
                bint drops=False, bint expects=False):
        """Run all sequences; fills `y` and `states_out` where given, and `tape` for :meth:`backward`.

        A part of a larger call gives the `number` of each sequence there and its `first_step`; the masks follow both.
        With `drops` they are applied without a tape too; with `expects` a tape is filled as inference computes, without
        zoneout drawn.
        """
        cdef fl_forward call
        cdef const void *given[MAX_STATES]
        cdef void *wanted[MAX_STATES]
        cdef Py_ssize_t output = self.output_size * self.directions
        cdef Buffer lengths = hold(length, -1, 8, False, "length")
        cdef Py_ssize_t n = lengths.view.len // 8
        cdef Buffer starts = hold(start, n, 8, False, "start"), y_starts = hold(y_start, n, 8, False, "y_start")
        cdef Buffer weights, numbers = hold(number, n, 8, False, "number")
        cdef Buffer values = hold(x, -1, self.itemsize, False, "x"), outputs = hold(y, -1, self.itemsize, True, "y")
        cdef tuple first = self._states(states_in, n, False, "states_in")
        cdef tuple last = self._states(states_out, n, True, "states_out")
        cdef fl_status status
        cdef int i
        call.x_rows.n = n
        call.x_rows.start = <const int64_t *> starts.data
        call.x_rows.length = <const int64_t *> lengths.data
        call.x = values.data
        call.x_total = rows_of(values, self.input_size, self.itemsize)
        weights = hold(decay, call.x_total, self.itemsize, False, "decay")
        call.decay = weights.data
        call.y = outputs.data
        call.y_start = <const int64_t *> y_starts.data
        call.y_total = rows_of(outputs, output, self.itemsize)
        for i in range(self.n_states):
            given[i] = (<Buffer> first[i]).data if first is not None else NULL
            wanted[i] = (<Buffer> last[i]).data if last is not None else NULL
        call.states_in = given
        call.states_out = wanted
        call.tape = NULL
        if tape is not None:
            tape.acquire()
            tape.n = n
            call.tape = tape.handle
        call.random_key = random_key
        call.number = <const int64_t *> numbers.data
        call.first_step = first_step
        call.drops = drops
        call.expects = expects
        call.n_threads = n_threads
        with nogil:
            status = fl_recurrent_forward(self.handle, &call)
        if tape is not None:
            tape.busy = False
        check(status)

    def backward(self, Tape tape not None, Py_ssize_t n, parameters, gradients, dy=None, dy_start=None, dstates_out=None,
                 dx=None, dx_start=None, dstates_in=None, int32_t n_threads=0):
        """Gradients of the call that filled `tape` with `n` sequences; uses the tape up."""
        cdef fl_backward call
        cdef const void *given[MAX_STATES]
        cdef void *wanted[MAX_STATES]
        cdef Buffer flat = hold(parameters, self.n_parameters, self.itemsize, False, "parameters")
        cdef Buffer grads = hold(gradients, self.n_parameters, self.itemsize, True, "gradients")
        cdef Buffer dys = hold(dy, -1, self.itemsize, False, "dy"), dxs = hold(dx, -1, self.itemsize, True, "dx")
        cdef Buffer dy_starts = hold(dy_start, n, 8, False, "dy_start"), dx_starts = hold(dx_start, n, 8, False, "dx_start")
        cdef tuple last = self._states(dstates_out, n, False, "dstates_out")
        cdef tuple first = self._states(dstates_in, n, True, "dstates_in")
        cdef fl_status status
        cdef int i
        call.parameters = flat.data
        call.gradients = grads.data
        call.dy = dys.data
        call.dy_start = <const int64_t *> dy_starts.data
        call.dy_total = rows_of(dys, self.output_size * self.directions, self.itemsize)
        call.dx = dxs.data
        call.dx_start = <const int64_t *> dx_starts.data
        call.dx_total = rows_of(dxs, self.input_size, self.itemsize)
        for i in range(self.n_states):
            given[i] = (<Buffer> last[i]).data if last is not None else NULL
            wanted[i] = (<Buffer> first[i]).data if first is not None else NULL
        call.dstates_out = given if last is not None else NULL
        call.dstates_in = wanted if first is not None else NULL
        call.n_threads = n_threads
        call.n = n
        tape.acquire()
        call.tape = tape.handle
        with nogil:
            status = fl_recurrent_backward(self.handle, &call)
        tape.busy = False
        check(status)


cdef class Stream:
    """States of `n` independent streams of a unidirectional layer; one time step a call, nothing allocated."""

    cdef fl_stream *handle
    cdef readonly Recurrent layer
    cdef readonly Py_ssize_t n
    cdef Py_ssize_t x_bytes, y_bytes
    cdef char format
    cdef bint busy

    def __cinit__(self, Recurrent layer not None, int64_t n=1):
        check(fl_stream_create(layer.handle, n, &self.handle))
        self.layer = layer
        self.n = n
        self.x_bytes = n * layer.input_size * layer.itemsize
        self.y_bytes = n * layer.output_size * layer.itemsize
        self.format = c"d" if layer.dtype == "float64" else c"f"

    def __dealloc__(self):
        fl_stream_destroy(self.handle)

    def step_decay(self, x, decay, y):
        """As :meth:`step` with a weight per stream, (n,), for a cell that takes one."""
        cdef Py_ssize_t size = self.layer.itemsize
        cdef Buffer xs = hold(x, self.x_bytes // size, size, False, "x"), ys = hold(y, self.y_bytes // size, size, True, "y")
        cdef Buffer weights = hold(decay, self.n, size, False, "decay")
        cdef fl_status status
        if self.busy:
            raise RuntimeError("this stream is in use by another thread")
        self.busy = True
        with nogil:
            status = fl_stream_step_decay(self.handle, xs.data, weights.data, ys.data)
        self.busy = False
        check(status)

    def step(self, x, y):
        """Advance by one time step: x (n, input_size) -> y (n, output_size), both of the layer's dtype."""
        cdef Py_buffer given, wanted
        cdef fl_status status
        PyObject_GetBuffer(x, &given, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        if given.len != self.x_bytes or given.format[0] != self.format:
            PyBuffer_Release(&given)
            raise ValueError(f"x must be a C-contiguous {self.layer.dtype} array of shape ({self.n}, {self.layer.input_size})")
        try:
            PyObject_GetBuffer(y, &wanted, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
        except BaseException:
            PyBuffer_Release(&given)
            raise
        if wanted.len != self.y_bytes or wanted.format[0] != self.format or self.busy:
            status = FL_ERR_ARGUMENT
        else:
            self.busy = True
            with nogil:
                status = fl_stream_step(self.handle, given.buf, wanted.buf)
            self.busy = False
        PyBuffer_Release(&given)
        PyBuffer_Release(&wanted)
        if status != FL_OK:
            if self.busy:
                raise RuntimeError("this stream is in use by another thread")
            raise ValueError(f"out must be a C-contiguous {self.layer.dtype} array of shape ({self.n}, {self.layer.output_size})")

    def get(self, states):
        """Copy the states, (num_layers, n, hidden_size) each, into the given arrays."""
        cdef void *wanted[MAX_STATES]
        cdef tuple buffers = self.layer._states(states, self.n, True, "states")
        for i in range(self.layer.n_states):
            wanted[i] = (<Buffer> buffers[i]).data
        check(fl_stream_get(self.handle, wanted))

    def set(self, states):
        """Set the states from arrays shaped as for :meth:`get`."""
        cdef const void *given[MAX_STATES]
        cdef tuple buffers = self.layer._states(states, self.n, False, "states")
        for i in range(self.layer.n_states):
            given[i] = (<Buffer> buffers[i]).data
        check(fl_stream_set(self.handle, given))

    def reset(self, int64_t which=-1):
        """Zero the states of one stream, or of all (-1)."""
        check(fl_stream_reset(self.handle, which))


cdef Py_ssize_t size_of(str dtype) except -1:
    if dtype == "float32":
        return 4
    if dtype == "float64":
        return 8
    raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")


cdef inline int32_t code_of(Py_ssize_t itemsize) noexcept nogil:
    return FL_FLOAT64 if itemsize == 8 else FL_FLOAT32


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
    cdef Py_ssize_t size = memoryview(x).itemsize
    if size != 4 and size != 8:
        raise ValueError("x must be a float32 or float64 array")
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
    cdef Py_ssize_t size = memoryview(x).itemsize
    if size != 4 and size != 8:
        raise ValueError("x must be a float32 or float64 array")
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
    cdef Py_ssize_t size = memoryview(x).itemsize
    if size != 4 and size != 8:
        raise ValueError("x must be a float32 or float64 array")
    cdef Buffer xs = hold(x, -1, size, False, "x")
    cdef double total = 0.0
    check(fl_sum_squares(code_of(size), xs.data, xs.view.len // size, &total))
    return total


cdef class ConvTape:
    """Memory of a training forward call of :class:`ConvLSTM`; reused and grown between calls."""

    cdef fl_conv_tape *handle
    cdef bint busy

    def __cinit__(self):
        check(fl_conv_tape_create(&self.handle))

    def __dealloc__(self):
        fl_conv_tape_destroy(self.handle)

    @property
    def nbytes(self):
        """Bytes held."""
        return fl_conv_tape_bytes(self.handle)

    cdef int acquire(self) except -1:
        if self.busy:
            raise RuntimeError("this tape is in use by another thread; give each thread a tape of its own")
        self.busy = True
        return 0


cdef class ConvLSTM:
    """Convolutional LSTM over images (height, width); parameters are given with each call, flat.

    x is (n, steps, in_channels, height, width), a state (n, hidden_channels, height, width).
    """

    cdef fl_conv_lstm layer
    cdef readonly Py_ssize_t n_parameters, itemsize
    cdef Py_ssize_t x_values, state_values

    def __cinit__(self, int64_t in_channels, int64_t hidden_channels, image, kernel, bint peephole=True,
                  bint bias=True, str dtype="float32"):
        self.itemsize = size_of(dtype)
        self.layer.dtype = code_of(self.itemsize)
        self.layer.bias = bias
        self.layer.peephole = peephole
        self.layer.in_channels = in_channels
        self.layer.hidden_channels = hidden_channels
        self.layer.height, self.layer.width = image
        self.layer.kernel_height, self.layer.kernel_width = kernel
        self.n_parameters = fl_conv_lstm_n_parameters(&self.layer)
        if self.n_parameters < 0:
            raise ValueError("no layer has these sizes; channels, image and kernel must be positive and fit into memory")
        self.x_values = in_channels * self.layer.height * self.layer.width
        self.state_values = hidden_channels * self.layer.height * self.layer.width

    cdef Buffer _state(self, object state, Py_ssize_t n, bint writable, str name):
        return hold(state, n * self.state_values, self.itemsize, writable, name)

    def forward(self, parameters, x, Py_ssize_t steps, length, y, h_in=None, c_in=None, h_out=None, c_out=None,
                ConvTape tape=None, int32_t n_threads=0):
        """Run all sequences; fills `y`, `h_out` and `c_out` where given, and `tape` for :meth:`backward`."""
        cdef fl_conv_forward call
        cdef Buffer lengths = hold(length, -1, 8, False, "length")
        cdef Py_ssize_t n = lengths.view.len // 8
        cdef Buffer flat = hold(parameters, self.n_parameters, self.itemsize, False, "parameters")
        cdef Buffer xs = hold(x, n * steps * self.x_values, self.itemsize, False, "x")
        cdef Buffer ys = self._state(y, n * steps, True, "y")
        cdef Buffer h_first = self._state(h_in, n, False, "h_in"), c_first = self._state(c_in, n, False, "c_in")
        cdef Buffer h_last = self._state(h_out, n, True, "h_out"), c_last = self._state(c_out, n, True, "c_out")
        cdef fl_status status
        call.parameters = flat.data
        call.n = n
        call.steps = steps
        call.length = <const int64_t *> lengths.data
        call.x = xs.data
        call.h_in = h_first.data
        call.c_in = c_first.data
        call.y = ys.data
        call.h_out = h_last.data
        call.c_out = c_last.data
        call.tape = NULL
        call.n_threads = n_threads
        if tape is not None:
            tape.acquire()
            call.tape = tape.handle
        with nogil:
            status = fl_conv_lstm_forward(&self.layer, &call)
        if tape is not None:
            tape.busy = False
        check(status)

    def backward(self, ConvTape tape not None, parameters, Py_ssize_t n, Py_ssize_t steps, gradients, dy=None,
                 dh_out=None, dc_out=None, dx=None, dh_in=None, dc_in=None, int32_t n_threads=0):
        """Gradients of the call that filled `tape` with `n` sequences of up to `steps`; uses the tape up."""
        cdef fl_conv_backward call
        cdef Buffer flat = hold(parameters, self.n_parameters, self.itemsize, False, "parameters")
        cdef Buffer grads = hold(gradients, self.n_parameters, self.itemsize, True, "gradients")
        cdef Buffer dys = self._state(dy, n * steps, False, "dy")
        cdef Buffer dxs = hold(dx, n * steps * self.x_values, self.itemsize, True, "dx")
        cdef Buffer h_last = self._state(dh_out, n, False, "dh_out"), c_last = self._state(dc_out, n, False, "dc_out")
        cdef Buffer h_first = self._state(dh_in, n, True, "dh_in"), c_first = self._state(dc_in, n, True, "dc_in")
        cdef fl_status status
        call.parameters = flat.data
        call.n = n
        call.steps = steps
        call.gradients = grads.data
        call.dy = dys.data
        call.dh_out = h_last.data
        call.dc_out = c_last.data
        call.dx = dxs.data
        call.dh_in = h_first.data
        call.dc_in = c_first.data
        call.n_threads = n_threads
        tape.acquire()
        call.tape = tape.handle
        with nogil:
            status = fl_conv_lstm_backward(&self.layer, &call)
        tape.busy = False
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
    cdef Py_ssize_t size = memoryview(params).itemsize
    if size != 4 and size != 8:
        raise ValueError("params must be a float32 or float64 array")
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
