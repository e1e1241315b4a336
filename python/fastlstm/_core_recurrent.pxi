# Recurrent layers and the tapes of their training calls.

DEF MAX_STATES = 5
_PRECISIONS = ("float32", "high", "bfloat16", "int8")
_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ci", "weight_cf", "weight_co",
          "weight_gg", "weight_hr", "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c", "weight_ln_gg")


cdef class Tape:
    """Memory of a training forward call, for the backward call; reused and grown between calls."""

    cdef fl_tape *handle
    cdef fl_flag busy
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
        if fl_flag_take(&self.busy):
            raise RuntimeError("this tape is in use by another thread; give each thread a tape of its own")
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
        self.itemsize = size_of(dtype)
        name = cell.encode("utf-8")
        if b"\0" in name:
            raise ValueError("cell holds a null character; expected the name of a cell")
        config.cell = name
        config.input_size = input_size
        config.hidden_size = hidden_size
        config.num_layers = num_layers
        config.bidirectional = bidirectional
        config.bias = bias
        config.dtype = code_of(self.itemsize)
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
        cdef fl_status status
        if starts.view.len != 8 * tape.n:
            raise ValueError(f"start has {starts.view.len // 8} elements; expected {tape.n}")
        record.kind = FL_RECORD_STATE if kind == "state" else FL_RECORD_GATE
        record.index = index
        record.place = place
        record.out = rows.data
        record.start = <const int64_t *> starts.data
        record.total = rows_of(rows, self.hidden_size, self.itemsize)
        tape.acquire()
        status = fl_tape_read(self.handle, tape.handle, &record)
        fl_flag_drop(&tape.busy)
        check(status)

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
            fl_flag_drop(&tape.busy)
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
        fl_flag_drop(&tape.busy)
        check(status)
