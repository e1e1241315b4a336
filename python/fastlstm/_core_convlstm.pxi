# Convolutional LSTM and the tapes of its training calls.


cdef class ConvTape:
    """Memory of a training forward call of :class:`ConvLSTM`; reused and grown between calls."""

    cdef fl_conv_tape *handle
    cdef fl_flag busy

    def __cinit__(self):
        check(fl_conv_tape_create(&self.handle))

    def __dealloc__(self):
        fl_conv_tape_destroy(self.handle)

    @property
    def nbytes(self):
        """Bytes held."""
        return fl_conv_tape_bytes(self.handle)

    cdef int acquire(self) except -1:
        if fl_flag_take(&self.busy):
            raise RuntimeError("this tape is in use by another thread; give each thread a tape of its own")
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
            fl_flag_drop(&tape.busy)
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
        fl_flag_drop(&tape.busy)
        check(status)
