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


cdef extern from *:
    """
    #include <stdatomic.h>
    typedef atomic_int fl_flag;
    #define fl_flag_take(flag) atomic_exchange_explicit(flag, 1, memory_order_acquire)
    #define fl_flag_drop(flag) atomic_store_explicit(flag, 0, memory_order_release)
    """
    ctypedef int fl_flag
    bint fl_flag_take(fl_flag *flag) nogil  # whether somebody had it
    void fl_flag_drop(fl_flag *flag) nogil


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


cdef Py_ssize_t size_of(str dtype) except -1:
    if dtype == "float32":
        return 4
    if dtype == "float64":
        return 8
    raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")


cdef Py_ssize_t size_of_reals(object array, str name) except -1:
    """Of an element of `array`, float32 or float64."""
    cdef Py_ssize_t size = memoryview(array).itemsize
    if size != 4 and size != 8:
        raise ValueError(f"{name} must be a float32 or float64 array")
    return size


cdef inline int32_t code_of(Py_ssize_t itemsize) noexcept nogil:
    return FL_FLOAT64 if itemsize == 8 else FL_FLOAT32


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
    cdef const char *name = NULL
    cdef int32_t index = 0
    found = []
    check(fl_isa_name(&name))
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


include "_core_recurrent.pxi"
include "_core_stream.pxi"
include "_core_convlstm.pxi"
include "_core_functions.pxi"
