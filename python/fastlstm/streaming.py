"""One time step at a time: recurrent states kept between calls; the step of a layer takes no memory."""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm import _core
from fastlstm.layers import LSTM, Stack

if TYPE_CHECKING:
    from fastlstm.network import SequenceNetwork

_MAGIC = b"FLSTREAM"
# magic, version, bytes of an element, layers, streams, units, states, extra bytes, checksum of the kind of layer
_HEADER = struct.Struct("<8sIIqqqqqI")
_CHECKSUM = struct.Struct("<I")  # of all that follows it


def check_step_times(delta_t: Any, n_streams: int) -> np.ndarray:
    """Elapsed times of one step as float64 (n_streams,), from a number or one number for each stream.

    Raises
    ------
    ValueError
        For another shape, and for times that are negative, NaN or infinite.
    TypeError
        If they are not numbers.
    """
    times = np.asarray(delta_t)
    if times.dtype.kind not in "fiub":
        raise TypeError(f"delta_t must hold real numbers, got dtype {times.dtype}")
    if times.shape not in ((), (n_streams,)):
        raise ValueError(f"delta_t has shape {times.shape}; expected a number or shape ({n_streams},)")
    times = np.broadcast_to(times.astype(np.float64), (n_streams,))
    wrong = np.flatnonzero(~((times >= 0.0) & (times < np.inf)))
    if wrong.size:
        value = times[wrong[0]]
        raise ValueError(f"delta_t of stream {wrong[0]} is {value}; times must be finite and at least 0")
    return times


def refuse_nonfinite(x_t: np.ndarray, *, allow_nan: bool = False) -> None:
    """Raise ValueError for a time step (n_streams, n_features) with NaN, unless allowed, or infinity."""
    wrong = np.isinf(x_t) if allow_nan else ~np.isfinite(x_t)
    if wrong.any():
        stream, feature = np.argwhere(wrong)[0]
        raise ValueError(
            f"x_t of stream {stream}, feature {feature} is {x_t[stream, feature]} in {x_t.dtype}; expected finite "
            f"numbers{', or NaN for what was not observed' if allow_nan else ''}"
        )


class _Levels:
    """The streams of a stack's layers, driven as :class:`fastlstm._core.Stream` is; connections take memory."""

    def __init__(self, stack: Stack, n_streams: int) -> None:
        self._stack = stack
        self._streams = [_core.Stream(layer.packed_core(), n_streams) for layer in stack.layers]
        self._outs = [np.empty((n_streams, layer.output_size), stack.dtype) for layer in stack.layers]
        self._sizes = {"x": (n_streams, stack.input_size), "out": (n_streams, stack.output_size)}

    def step(self, x: np.ndarray, out: np.ndarray) -> None:
        """Advance by one time step: x (n, input_size) -> out (n, output_size), both of the stack's dtype."""
        self._step("step", x, out)

    def step_decay(self, x: np.ndarray, decay: np.ndarray, out: np.ndarray) -> None:
        """As :meth:`step` with a weight of time per stream, (n,)."""
        self._step("step_decay", x, out, decay)

    def _step(self, how: str, rows: np.ndarray, out: np.ndarray, *decay: np.ndarray) -> None:
        self._check(x=rows, out=out)
        x, outputs, connections = rows, [], self._stack.connections
        for level, (stream, y) in enumerate(zip(self._streams, self._outs, strict=True)):
            getattr(stream, how)(connections.layer_input(level, x, rows), *decay, y)
            x = connections.layer_output(level, x, y)
            outputs.append(x)
        out[...] = connections.output(outputs)

    def _check(self, **arrays: Any) -> None:
        """Raise ValueError, before any layer moves on, for what is not an array of the right dtype and shape."""
        for name, shape in self._sizes.items():
            array = arrays[name]
            right = (
                isinstance(array, np.ndarray) and array.dtype == self._stack.dtype and array.shape == shape
            )
            if not right or not array.flags.c_contiguous:
                raise ValueError(f"{name} must be a C-contiguous {self._stack.dtype} array of shape {shape}")

    def get(self, states: tuple[np.ndarray, ...]) -> None:
        """Copy the states, (num_layers, n, hidden_size) each, into the given arrays."""
        for level, stream in enumerate(self._streams):
            stream.get(self._stack.states_of(states, level))

    def set(self, states: tuple[np.ndarray, ...]) -> None:
        """Set the states from arrays shaped as for :meth:`get`."""
        for level, stream in enumerate(self._streams):
            stream.set(self._stack.states_of(states, level))

    def reset(self, which: int = -1) -> None:
        """Zero the states of one stream, or of all (-1)."""
        for stream in self._streams:
            stream.reset(which)


class LayerStream:
    """States of `n_streams` independent sequences running through one unidirectional layer.

    Parameters
    ----------
    layer : fastlstm.layers.LSTM or fastlstm.layers.Stack
        A unidirectional layer; its weights at this moment are the stream's.
    n_streams : int, default=1
        Sequences that advance together.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import LSTM
    >>> from fastlstm.streaming import LayerStream
    >>> layer = LSTM(3, 5, random_state=0)
    >>> x = np.random.default_rng(0).standard_normal((1, 4, 3)).astype(np.float32)
    >>> stream = LayerStream(layer)
    >>> for t in range(4):
    ...     y_t = stream.step(x[:, t])
    >>> bool((y_t == layer(x)[0][:, -1]).all())
    True
    """

    def __init__(self, layer: LSTM | Stack, n_streams: int = 1) -> None:
        if layer.bidirectional:
            raise ValueError(
                "a bidirectional layer needs the whole sequence; streaming needs bidirectional=False"
            )
        if isinstance(n_streams, bool) or not isinstance(n_streams, (int, np.integer)) or n_streams < 1:
            raise ValueError(f"n_streams must be an integer of at least 1, got {n_streams!r}")
        self.layer = layer
        self.n_streams = int(n_streams)
        self._core: Any = (
            _Levels(layer, self.n_streams)
            if isinstance(layer, Stack)
            else _core.Stream(layer.packed_core(), self.n_streams)
        )
        self._step = self._core.step
        self.reset()
        self._out = np.zeros((self.n_streams, layer.output_size), layer.dtype)

    def step(self, x_t: Any, out: np.ndarray | None = None, *, delta_t: Any = None) -> np.ndarray:
        """Advance every stream by one time step.

        Parameters
        ----------
        x_t : array of shape (n_streams, input_size), or (input_size,) for one stream
            The layer's dtype and C order cost no conversion.
        out : ndarray of shape (n_streams, output_size), default=None
            Where to write; None: an array that the next step overwrites.
        delta_t : float or array of shape (n_streams,), default=None
            Time since the step before, at least 0, for the cell "tlstm"; None: no time passes.

        Returns
        -------
        ndarray of shape (n_streams, output_size)
            Outputs of the layer, the same numbers as a call over the whole sequence gives.
        """
        if out is None:
            out = self._out
        if delta_t is not None:
            self.layer.check_takes_time()
            times = check_step_times(delta_t, self.n_streams)
            self._core.step_decay(self._converted(x_t), self.layer.time_weights(times), out)
            return out
        try:
            self._step(x_t, out)
        except (ValueError, TypeError):
            self._step(self._converted(x_t), out)
        return out

    def _converted(self, x_t: Any) -> np.ndarray:
        found = np.asarray(x_t)
        shape = (self.n_streams, self.layer.input_size)
        if found.dtype.kind not in "fiub":
            raise TypeError(f"x_t must hold real numbers, got dtype {found.dtype}")
        if found.shape != shape and not (self.n_streams == 1 and found.shape == shape[1:]):
            raise ValueError(f"x_t has shape {found.shape}; expected {shape}")
        return np.ascontiguousarray(found, self.layer.dtype).reshape(shape)

    @property
    def state(self) -> tuple[np.ndarray, ...]:
        """Copy of the states: h (and c), each (num_layers, n_streams, hidden_size). Assign to set them."""
        arrays = self.layer.empty_states(self.n_streams)
        self._core.get(arrays)
        return arrays

    @state.setter
    def state(self, value: tuple[np.ndarray, ...]) -> None:
        arrays = self.layer.empty_states(self.n_streams)
        if len(value) != len(arrays):
            raise ValueError(f"state has {len(value)} arrays; expected {len(arrays)}")
        for array, given in zip(arrays, value, strict=True):
            if np.shape(given) != array.shape:
                raise ValueError(f"state has shape {np.shape(given)}; expected {array.shape}")
            array[...] = given
        self._core.set(arrays)

    def reset(self, which: int | None = None) -> None:
        """Start one stream (0 to n_streams - 1), or all of them, again from the state of a new sequence."""
        if which is not None and (isinstance(which, bool) or not isinstance(which, (int, np.integer))):
            raise TypeError(f"which must be None or the number of one stream, got {which!r}")
        if which is not None and not 0 <= which < self.n_streams:
            raise ValueError(f"which is {which}; expected None or 0 to {self.n_streams - 1}")
        self._core.reset(-1 if which is None else which)
        if self.layer.learn_initial_state:
            places = slice(None) if which is None else which
            states = self.state
            for state, first in zip(states, self.layer.initial_state(1), strict=True):
                state[:, places] = first if which is None else first[:, 0]
            self.state = states

    def __reduce__(self) -> Any:
        raise TypeError("a stream cannot be pickled or copied; snapshot() gives its states as bytes")

    def snapshot(self) -> bytes:
        """The states as bytes, for :meth:`restore` on a stream of the same layer shape."""
        return self._sealed(b"")

    def restore(self, blob: bytes) -> None:
        """Set the states from :meth:`snapshot`; ValueError if they are damaged, or of another layer's shape or cell."""
        self._restore(blob, 0)

    def _header(self, extra: int) -> bytes:
        layer = self.layer
        sizes = (layer.num_layers, self.n_streams, layer.hidden_size, len(layer.state_names), extra)
        kind = zlib.crc32(
            f"{layer.cell} {layer.input_size} {layer.recurrent_size} {layer.output_size}".encode()
        )
        return _HEADER.pack(_MAGIC, 2, layer.dtype.itemsize, *sizes, kind)

    def _sealed(self, extra: bytes) -> bytes:
        """The states and `extra` as bytes that :meth:`_restore` recognises."""
        body = b"".join(array.tobytes() for array in self.state) + extra
        return self._header(len(extra)) + _CHECKSUM.pack(zlib.crc32(body)) + body

    def _restore(self, blob: bytes, extra: int) -> bytes:
        """Set the states; returns the `extra` bytes that follow them."""
        if not isinstance(blob, (bytes, bytearray, memoryview)):
            raise TypeError(f"a snapshot is bytes, got {type(blob).__name__}")
        arrays = self.layer.empty_states(self.n_streams)
        header, size = self._header(extra), sum(array.nbytes for array in arrays)
        at = len(header) + _CHECKSUM.size
        if bytes(blob[: len(header)]) != header or len(blob) != at + size + extra:
            raise ValueError(
                "the snapshot is damaged, or of a stream of another shape, cell, dtype or version"
            )
        if _CHECKSUM.pack(zlib.crc32(blob[at:])) != bytes(blob[len(header) : at]):
            raise ValueError("the snapshot is damaged")
        for array in arrays:
            flat = np.frombuffer(blob, array.dtype, array.size, at)
            array[...] = flat.reshape(array.shape)
            at += array.nbytes
        self._core.set(arrays)
        return bytes(blob[at:])


class Stream:
    """A network served step by step: after each step, what `predict` would give for the sequences so far.

    Parameters
    ----------
    network : fastlstm.network.SequenceNetwork
        With a unidirectional encoder; its weights at this moment are the stream's.
    decide : callable
        Raw outputs (n_streams, n_outputs) to what `step` returns.
    n_streams : int, default=1
        Independent sequences that advance together.
    """

    def __init__(
        self, network: SequenceNetwork, decide: Callable[[np.ndarray], np.ndarray], n_streams: int = 1
    ) -> None:
        self.network = network
        self.decide = decide
        self.layer_stream = LayerStream(network.encoder, n_streams)
        self._head = copy.deepcopy(network.head)  # as the recurrent layers: with the weights of this moment
        self.n_streams = self.layer_stream.n_streams
        self._steps = np.zeros(self.n_streams, np.int64)
        self._one_step = np.ones(self.n_streams, np.int64)
        shape = (self.n_streams, network.encoder.output_size)
        self._pooled = np.zeros(shape, np.float64 if network.pooling == "mean" else network.encoder.dtype)

    def step(self, x_t: Any, delta_t: Any = None) -> np.ndarray:
        """Advance by one time step and predict for the sequences so far.

        Parameters
        ----------
        x_t : array of shape (n_streams, n_features), or (n_features,) for one stream
        delta_t : float or array of shape (n_streams,), default=None
            Time since the step before, where `predict` takes times; None: no time passes.

        Returns
        -------
        ndarray
            What `predict` gives, one row per stream.

        Raises
        ------
        ValueError
            For another shape, for numbers that are not finite, for a time that is negative or not finite, and for
            times that the model cannot use; the streams are as they were then.
        """
        return self.decide(self.raw_step(x_t, delta_t))

    def raw_step(self, x_t: Any, delta_t: Any = None) -> np.ndarray:
        """As :meth:`step`, the network's outputs (n_streams, n_outputs) without the decision."""
        with np.errstate(over="ignore"):
            x_t = self.layer_stream._converted(x_t)
        refuse_nonfinite(x_t)
        h = self.layer_stream.step(x_t, delta_t=delta_t)
        return self._head.forward(self._pool(h))

    def _pool(self, h: np.ndarray) -> np.ndarray:
        if self.network.pooling == "last":
            return h
        first = self._steps == 0
        self._steps += 1
        if self.network.pooling == "max":
            np.maximum(self._pooled, h, out=self._pooled, where=~first[:, None])
            np.copyto(self._pooled, h, where=first[:, None])
            return self._pooled
        _core.sum_steps(h, self._one_step, self._pooled)
        return (self._pooled / self._steps[:, None]).astype(h.dtype)

    @property
    def state(self) -> tuple[np.ndarray, ...]:
        """Copy of the recurrent states, each (num_layers, n_streams, hidden_size)."""
        return self.layer_stream.state

    @property
    def _memory(self) -> tuple[np.ndarray, ...]:
        """Arrays (n_streams, ...) that the next steps depend on, beside the recurrent states; zero at the start."""
        return (self._steps, self._pooled)

    def reset(self, which: int | None = None) -> None:
        """Start one stream, or all of them, anew."""
        self.layer_stream.reset(which)
        rows = slice(None) if which is None else which
        for array in self._memory:
            array[rows] = 0

    def __reduce__(self) -> Any:
        raise TypeError("a stream cannot be pickled or copied; snapshot() gives its states as bytes")

    def snapshot(self) -> bytes:
        """Everything that the next steps depend on, as bytes."""
        return self.layer_stream._sealed(b"".join(array.tobytes() for array in self._memory))

    def restore(self, blob: bytes) -> None:
        """Continue from :meth:`snapshot` of a stream of the same model and size; ValueError otherwise."""
        tail = self.layer_stream._restore(blob, sum(array.nbytes for array in self._memory))
        at = 0
        for array in self._memory:
            array[...] = np.frombuffer(tail, array.dtype, array.size, at).reshape(array.shape)
            at += array.nbytes
