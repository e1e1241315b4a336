"""Recurrent layers on top of each other, with residual and skip connections or summed directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.layers._parameters import (
    Parameterized,
    as_fraction,
    as_generator,
    as_lengths,
    as_real_array,
    as_size,
)
from fastlstm.layers.recurrent import LSTM, Tape

__all__ = ["Stack", "StackTape"]

_SKIPS = (None, "input", "output", "both")
_MERGES = ("concat", "sum")
_KEYS = 1 << 63


class StackTape:
    """What a training forward pass of a :class:`Stack` leaves for one backward pass."""

    __slots__ = ("factors", "lengths", "owner", "starts", "tapes", "x_shape")

    def __init__(
        self, owner: Stack, starts: np.ndarray, lengths: np.ndarray, x_shape: tuple[int, ...]
    ) -> None:
        self.owner: Stack | None = owner
        self.starts, self.lengths, self.x_shape = starts, lengths, x_shape
        self.tapes: list[Tape] = []
        self.factors: list[np.ndarray | None] = []  # of the dropout of each layer's input, by row


class Stack(Parameterized):
    """Stacked recurrent layers with residual and skip connections, of one or two directions.

    Layer l computes ``y_l = layer_l(z_l) + x_l`` with `residual`, where x_l is the output of the layer below (the
    input, for the first layer) and z_l is x_l, joined by the input of the stack with ``skip="input"``. The output is
    that of the last layer, or of all layers side by side with ``skip="output"``.

    Parameters
    ----------
    input_size : int
        Features per time step.
    hidden_size : int
        Units per layer and direction.
    num_layers : int, default=2
        Recurrent layers.
    residual : bool, default=False
        Add the input of each layer to its output: of all layers but the first, and of the first if `input_size` is
        the size of its output (He et al., arXiv 1512.03385; between LSTM layers: Wu et al., arXiv 1609.08144).
    skip : {None, "input", "output", "both"}, default=None
        Connections from the input to every layer, from every layer to the output, or both (Graves, arXiv 1308.0850).
    merge : {"concat", "sum"}, default="concat"
        How the outputs of two directions become one.
    bidirectional : bool, default=False
        Whether each layer has a second direction, which reads each sequence from its end.
    dropout : float, default=0.0
        Fraction of what each layer gets from the one below that is dropped while training: one mask per sequence.
    dtype : {"float32", "float64"}, default="float32"
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises the layers, as :class:`LSTM` does, one after the other.
    **options
        Of every layer, as :class:`LSTM` takes them: `cell`, `bias`, `recurrent_dropout`, `layer_norm`, ...

    Attributes
    ----------
    layers : tuple of LSTM
        The layers, of one layer each.
    parameters : dict of str to ndarray
        Read-only views under the names that :class:`LSTM` gives them, ``weight_ih_l0``, ..., ``weight_ih_l1_reverse``.
    output_size : int
        Features per step of the output.

    Raises
    ------
    ValueError
        For arguments that are not one of the above, as :class:`LSTM` raises it for its own.

    Notes
    -----
    Without residual and skip connections, with concatenated directions, it computes what ``LSTM(num_layers=...)``
    computes, which is faster.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import Stack
    >>> deep = Stack(3, 8, num_layers=4, residual=True, skip="both", random_state=0)
    >>> y, (h, c) = deep(np.zeros((2, 7, 3)), lengths=[7, 4])
    >>> y.shape, h.shape
    ((2, 7, 32), (4, 2, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        *,
        residual: bool = False,
        skip: str | None = None,
        merge: str = "concat",
        bidirectional: bool = False,
        dropout: float = 0.0,
        dtype: Any = "float32",
        random_state: Any = None,
        **options: Any,
    ) -> None:
        if skip not in _SKIPS:
            raise ValueError(f"skip must be None, 'input', 'output' or 'both', got {skip!r}")
        if merge not in _MERGES:
            raise ValueError(f"merge must be 'concat' or 'sum', got {merge!r}")
        if merge == "sum" and not bidirectional:
            raise ValueError("merge='sum' goes with bidirectional=True: there is one direction to sum")
        self.input_size = as_size(input_size, "input_size")
        self.num_layers = as_size(num_layers, "num_layers")
        self.residual, self.skip, self.merge = bool(residual), skip, merge
        self.bidirectional = bool(bidirectional)
        self.dropout = as_fraction(dropout, "dropout")
        self._options = options
        random, layers, below = as_generator(random_state), [], self.input_size
        for level in range(self.num_layers):
            width = below + (self.input_size if level and skip in ("input", "both") else 0)
            settings = {
                "bidirectional": self.bidirectional,
                "dtype": dtype,
                "random_state": random,
                **options,
            }
            layers.append(LSTM(width, hidden_size, **settings))
            below = layers[-1].output_size // (2 if merge == "sum" else 1)
        self.layers = tuple(layers)
        self.hidden_size, self.dtype = layers[0].hidden_size, layers[0].dtype
        self._level_size = below
        self.output_size = below * (self.num_layers if skip in ("output", "both") else 1)
        self.parameter_shapes = [
            (name.replace("_l0", f"_l{level}"), shape)
            for level, layer in enumerate(layers)
            for name, shape in layer.parameter_shapes
        ]
        self._allocate(np.concatenate([layer.flat for layer in layers]))
        self._bind_layers()

    # ---- parameters ----

    def _bind_layers(self) -> None:
        """Let the layers keep their parameters in slices of the stack's."""
        begin = 0
        for layer in self.layers:
            span = slice(begin, begin + layer.n_parameters)
            values = self._flat[span].copy()
            layer.bind(self._flat[span], self._grads[span])
            self._flat[span] = values
            begin = span.stop
        self.parameters_changed()

    def bind(self, flat: np.ndarray, grads: np.ndarray) -> None:
        """Keep parameters and gradients in slices of larger arrays from now on (the values are copied in)."""
        super().bind(flat, grads)
        self._bind_layers()

    def parameters_changed(self) -> None:
        """To be called after writing into :attr:`flat`."""
        for layer in self.layers:
            layer.parameters_changed()

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            **self._options,
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "residual": self.residual,
            "skip": self.skip,
            "merge": self.merge,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "dtype": self.dtype.name,
        }

    @property
    def n_threads(self) -> int:
        """Threads a call may use; 0 = the process default."""
        return self.layers[0].n_threads

    @n_threads.setter
    def n_threads(self, count: int) -> None:
        for layer in self.layers:
            layer.n_threads = count

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states in the order of state tuples."""
        return self.layers[0].state_names

    # ---- what connects the layers ----

    def _adds(self, level: int) -> bool:
        """Whether a layer's input is added to its output."""
        return self.residual and (level > 0 or self.input_size == self._level_size)

    def _merged(self, y: np.ndarray) -> np.ndarray:
        return y[:, : self._level_size] + y[:, self._level_size :] if self.merge == "sum" else y

    def _states_of(self, state: Sequence[np.ndarray | None] | None, level: int) -> Any:
        """Those of one layer, views."""
        ways = self.layers[0].directions
        rows = slice(level * ways, (level + 1) * ways)
        if state is None:
            return None
        return tuple(None if s is None else np.ascontiguousarray(s[rows]) for s in state)

    def _factor(self, level: int, lengths: np.ndarray, rng_key: int) -> np.ndarray | None:
        """Dropout factors of the rows that a layer gets from the one below."""
        if not self.dropout or not level:
            return None
        random = np.random.Generator(np.random.Philox(key=_key(rng_key, level) + (2 << 64)))
        kept = random.random((len(lengths), self._level_size), np.float32) >= self.dropout
        factor = kept.astype(self.dtype) * self.dtype.type(1.0 / (1.0 - self.dropout))
        return np.repeat(factor, lengths, axis=0)

    # ---- rows ----

    def _run(
        self,
        rows: np.ndarray,
        lengths: np.ndarray,
        state: Any,
        decay: np.ndarray | None,
        tape: StackTape | None,
        rng_key: int,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Output (rows, output_size) and final states for sequences that follow each other in `rows`."""
        starts = np.cumsum(lengths) - lengths
        x, outputs, finals = rows, [], []
        for level, layer in enumerate(self.layers):
            z = x
            if tape is not None:
                factor = self._factor(level, lengths, rng_key)
                tape.factors.append(factor)
                z = x if factor is None else x * factor
            if level and self.skip in ("input", "both"):
                z = np.concatenate((z, rows), axis=1)
            given = self._states_of(state, level)
            if tape is None:
                y, final = layer.run(z, starts, lengths, state=given, decay=decay)
            else:
                key = _key(rng_key, level)
                y, final, kept = layer.run_training(z, starts, lengths, state=given, rng_key=key, decay=decay)
                tape.tapes.append(kept)
            assert y is not None
            y = self._merged(y)
            x = y + x if self._adds(level) else y
            outputs.append(x)
            finals.append(final)
        states = tuple(np.concatenate(values) for values in zip(*finals, strict=True))
        return np.concatenate(outputs, axis=1) if self.skip in ("output", "both") else x, states

    def _run_backward(
        self, tape: StackTape, dy: np.ndarray, dstate: Any
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """dx (rows, input_size) and the gradients of the initial states; writes :attr:`flat_grads`."""
        size, dx = self._level_size, np.zeros((len(dy), self.input_size), self.dtype)
        everywhere = self.skip in ("output", "both")
        below = np.zeros((len(dy), size), self.dtype) if everywhere else dy
        initial: list[Any] = []
        for level in reversed(range(self.num_layers)):
            here = below + dy[:, level * size : (level + 1) * size] if everywhere else below
            layer, factor = self.layers[level], tape.factors[level]
            d_layer = np.concatenate((here, here), axis=1) if self.merge == "sum" else here
            dz, d_initial = layer.run_backward(
                tape.tapes[level],
                np.ascontiguousarray(d_layer),
                self._states_of(dstate, level),
                want_dx=True,
                want_dstate=True,
            )
            assert dz is not None
            initial.append(d_initial)
            if level and self.skip in ("input", "both"):
                dx += dz[:, size:]
                dz = dz[:, :size]
            below = dz if factor is None else dz * factor
            if self._adds(level):
                below = below + here
        dx += below
        return dx, tuple(np.concatenate(values) for values in zip(*reversed(initial), strict=True))

    # ---- padded batches ----

    def _checked(
        self, x: Any, state: Any, lengths: Any, delta_t: Any
    ) -> tuple[np.ndarray, Any, np.ndarray, np.ndarray, np.ndarray | None]:
        """x, states, lengths, which steps are real, and the weights of the elapsed times of those."""
        x = as_real_array(x, self.dtype, "x")
        if x.ndim != 3 or x.shape[2] != self.input_size or 0 in x.shape:
            raise ValueError(
                f"x has shape {x.shape}; expected (batch, time, {self.input_size}), with at least one sequence "
                "and one time step"
            )
        n, steps, _ = x.shape
        lengths = as_lengths(lengths, n, steps)
        real = np.arange(steps) < lengths[:, None]
        decay = self.layers[0]._check_delta_t(delta_t, n, steps, lengths)
        return x, self._check_state(state, n, "state"), lengths, real, None if decay is None else decay[real]

    def _check_state(self, state: Any, n: int, name: str) -> Any:
        if state is None:
            return None
        state = (state,) if isinstance(state, np.ndarray) else tuple(state)
        rows = self.num_layers * self.layers[0].directions
        for label, value in zip(self.state_names, state, strict=False):
            if value is not None and np.shape(value)[:1] != (rows,):
                raise ValueError(
                    f"{name} {label} has shape {np.shape(value)}; expected ({rows}, {n}, ...), "
                    "a row for each layer and direction"
                )
        parts = []
        for level, layer in enumerate(self.layers):
            ways = slice(level * layer.directions, (level + 1) * layer.directions)
            cut = tuple(None if value is None else np.asarray(value)[ways] for value in state)
            parts.append(layer._check_state(cut, n, name))
        return tuple(
            None if values[0] is None else np.concatenate(values) for values in zip(*parts, strict=True)
        )

    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, *, delta_t: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Run without keeping anything for a backward pass.

        Parameters
        ----------
        x : array of shape (batch, time, input_size)
        state : tuple of arrays of shape (num_layers * directions, batch, hidden_size), default=None
            Initial states, as :class:`LSTM` takes them.
        lengths : array of int of shape (batch,), default=None
            Real steps of each sequence, 1 to time. None: all steps.
        delta_t : array of shape (batch, time), default=None
            Elapsed times for the cell "tlstm".

        Returns
        -------
        y : ndarray of shape (batch, time, output_size)
            Outputs; zero after a sequence's end.
        state : tuple of ndarray of shape (num_layers * directions, batch, hidden_size)
            Final states of the layers, without what residual connections add.

        Raises
        ------
        ValueError
            Shapes or lengths that do not fit, with the shape that would.
        TypeError
            Elements that are not real numbers.
        """
        x, state, lengths, real, decay = self._checked(x, state, lengths, delta_t)
        rows, final = self._run(x[real], lengths, state, decay, None, 0)
        return self._padded(rows, real), final

    def forward(
        self, x: Any, state: Any = None, lengths: Any = None, *, delta_t: Any = None, rng_key: int = 0
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], StackTape]:
        """As calling the layer, with dropout and noise (drawn from `rng_key`) and a tape for :meth:`backward`."""
        x, state, lengths, real, decay = self._checked(x, state, lengths, delta_t)
        tape = StackTape(self, np.arange(len(x)) * x.shape[1], lengths, x.shape)
        rows, final = self._run(x[real], lengths, state, decay, tape, rng_key)
        return self._padded(rows, real), final, tape

    def backward(
        self, tape: StackTape, dy: Any, dstate: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        """Back-propagate through time.

        Parameters
        ----------
        tape : StackTape
            Of :meth:`forward`; used up by this call.
        dy : array of shape (batch, time, output_size)
            Gradient of the loss with respect to y; entries after a sequence's end are ignored.
        dstate : tuple of arrays shaped as the state, default=None
            Gradient with respect to the final state; None entries are zero.

        Returns
        -------
        dx : ndarray of shape (batch, time, input_size)
        dstate : tuple of ndarray
            Gradient with respect to the initial state.
        grads : dict of str to ndarray
            Gradients under the names of :attr:`parameters`.

        Raises
        ------
        ValueError
            If the tape is not of this layer or used up, or a shape does not fit.
        """
        if not isinstance(tape, StackTape) or tape.owner is not self:
            raise ValueError("tape holds no forward call of this layer (a tape serves one backward call)")
        n, steps, _ = tape.x_shape
        dy = as_real_array(dy, self.dtype, "dy")
        if dy.shape != (n, steps, self.output_size):
            raise ValueError(f"dy has shape {dy.shape}; expected {(n, steps, self.output_size)}")
        real = np.arange(steps) < tape.lengths[:, None]
        rows, initial = self._run_backward(tape, dy[real], self._check_state(dstate, n, "dstate"))
        tape.owner = None
        return self._padded(rows, real), initial, self._views(self._grads.copy())

    def _padded(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        out = np.zeros((*real.shape, rows.shape[1]), self.dtype)
        out[real] = rows
        return out

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Stack:
        """Layer of this configuration, freshly initialised."""
        return cls(**config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["config"])  # type: ignore[misc]
        self._flat[...] = state["parameters"]
        self.parameters_changed()


def _key(rng_key: int, level: int) -> int:
    """A key for each layer, below 2 ** 63."""
    return int(np.random.SeedSequence([rng_key, level]).generate_state(1, np.uint64)[0]) % _KEYS
