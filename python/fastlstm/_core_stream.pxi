# Streams: a recurrent layer one time step a call.


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
