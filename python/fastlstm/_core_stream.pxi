# Streams: a recurrent layer one time step a call.


cdef class Stream:
    """States of `n` independent streams of a unidirectional layer; one time step a call, nothing allocated."""

    cdef fl_stream *handle
    cdef readonly Recurrent layer
    cdef readonly Py_ssize_t n
    cdef Py_ssize_t x_bytes, y_bytes
    cdef char format
    cdef fl_flag busy

    def __cinit__(self, Recurrent layer not None, int64_t n=1):
        check(fl_stream_create(layer.handle, n, &self.handle))
        self.layer = layer
        self.n = n
        self.x_bytes = n * layer.input_size * layer.itemsize
        self.y_bytes = n * layer.output_size * layer.itemsize
        self.format = c"d" if layer.dtype == "float64" else c"f"

    def __dealloc__(self):
        fl_stream_destroy(self.handle)

    cdef int acquire(self) except -1:
        if fl_flag_take(&self.busy):
            raise RuntimeError("this stream is in use by another thread")
        return 0

    def step_decay(self, x, decay, y):
        """As :meth:`step` with a weight per stream, (n,), for a cell that takes one."""
        cdef Py_ssize_t size = self.layer.itemsize
        cdef Buffer xs = hold(x, self.x_bytes // size, size, False, "x"), ys = hold(y, self.y_bytes // size, size, True, "y")
        cdef Buffer weights = hold(decay, self.n, size, False, "decay")
        cdef fl_status status
        self.acquire()
        with nogil:
            status = fl_stream_step_decay(self.handle, xs.data, weights.data, ys.data)
        fl_flag_drop(&self.busy)
        check(status)

    def step(self, x, y):
        """Advance by one time step: x (n, input_size) -> y (n, output_size), both of the layer's dtype."""
        cdef Py_buffer given, wanted
        cdef fl_status status
        PyObject_GetBuffer(x, &given, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        if not self._fits(&given, self.x_bytes, self.layer.input_size):
            PyBuffer_Release(&given)
            raise self._refusal("x", self.layer.input_size)
        try:
            PyObject_GetBuffer(y, &wanted, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
        except (BufferError, TypeError, ValueError):
            PyBuffer_Release(&given)
            raise self._refusal("out", self.layer.output_size) from None
        if not self._fits(&wanted, self.y_bytes, self.layer.output_size):
            status = FL_ERR_ARGUMENT
        elif fl_flag_take(&self.busy):
            status = FL_ERR_TAPE
        else:
            with nogil:
                status = fl_stream_step(self.handle, given.buf, wanted.buf)
            fl_flag_drop(&self.busy)
        PyBuffer_Release(&given)
        PyBuffer_Release(&wanted)
        if status == FL_ERR_TAPE:
            raise RuntimeError("this stream is in use by another thread")
        if status != FL_OK:
            raise self._refusal("out", self.layer.output_size)

    cdef bint _fits(self, Py_buffer *rows, Py_ssize_t n_bytes, Py_ssize_t columns):
        """Whether rows are of the layer's dtype, as many as streams, each of so many columns (one stream: or a row)."""
        return (rows.len == n_bytes and rows.format[0] == self.format and rows.ndim > 0 and
                rows.shape[rows.ndim - 1] == columns and <size_t> rows.buf & <size_t> (self.layer.itemsize - 1) == 0)

    cdef object _refusal(self, str name, Py_ssize_t columns):
        kind = "writable, C-contiguous" if name == "out" else "C-contiguous"
        return ValueError(f"{name} must be a {kind}, aligned {self.layer.dtype} array of shape ({self.n}, {columns})")

    def get(self, states):
        """Copy the states, (num_layers, n, hidden_size) each, into the given arrays."""
        cdef void *wanted[MAX_STATES]
        cdef fl_status status
        cdef tuple buffers = self.layer._states(states, self.n, True, "states")
        for i in range(self.layer.n_states):
            wanted[i] = (<Buffer> buffers[i]).data
        self.acquire()
        status = fl_stream_get(self.handle, wanted)
        fl_flag_drop(&self.busy)
        check(status)

    def set(self, states):
        """Set the states from arrays shaped as for :meth:`get`."""
        cdef const void *given[MAX_STATES]
        cdef fl_status status
        cdef tuple buffers = self.layer._states(states, self.n, False, "states")
        for i in range(self.layer.n_states):
            given[i] = (<Buffer> buffers[i]).data
        self.acquire()
        status = fl_stream_set(self.handle, given)
        fl_flag_drop(&self.busy)
        check(status)

    def reset(self, int64_t which=-1):
        """Zero the states of one stream, or of all (-1)."""
        self.acquire()
        cdef fl_status status = fl_stream_reset(self.handle, which)
        fl_flag_drop(&self.busy)
        check(status)
