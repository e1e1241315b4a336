"""Recurrent layers on top of each other, with residual and skip connections or summed directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastlstm.layers._connections import MERGES, SKIPS, Connections
from fastlstm.layers._parameters import (
    Parameterized,
    as_fraction,
    as_generator,
    as_lengths,
    as_real_array,
    as_size,
    as_states,
    first_rows,
)
from fastlstm.layers._segments import Segments, as_resets
from fastlstm.layers._tape import Tape
from fastlstm.layers.recurrent import LSTM

__all__ = ["Stack", "StackTape"]

_KEYS = 1 << 63


class StackTape:
    """What a training forward pass of a :class:`Stack` leaves for the backward pass. Reusable."""

    __slots__ = ("factors", "lengths", "owner", "real", "segments", "tapes")

    def __init__(self, n_layers: int) -> None:
        self.tapes = [Tape() for _ in range(n_layers)]
        self.factors: list[np.ndarray | None] = []  # of the dropout of each layer's input, by row
        self.lengths: np.ndarray  # rows of each sequence, or of each segment of one
        self.owner: Stack | None = None  # of a call on padded batches, until its backward call
        self.real: np.ndarray | None = None  # of that call: which steps of (batch, time) are rows
        self.segments: Segments | None = None


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
        if skip not in SKIPS:
            raise ValueError(f"skip must be None, 'input', 'output' or 'both', got {skip!r}")
        if merge not in MERGES:
            raise ValueError(f"merge must be 'concat' or 'sum', got {merge!r}")
        if merge == "sum" and not bidirectional:
            raise ValueError("merge='sum' goes with bidirectional=True: there is one direction to sum")
        self.input_size = as_size(input_size, "input_size")
        self.num_layers = as_size(num_layers, "num_layers")
        self.residual, self.skip, self.merge = bool(residual), skip, merge
        self.bidirectional = bool(bidirectional)
        self.dropout = as_fraction(dropout, "dropout")
        options |= {
            "bidirectional": self.bidirectional,
            "dtype": dtype,
            "random_state": as_generator(random_state),
        }
        layers, below = [], self.input_size
        for level in range(self.num_layers):
            width = below + (self.input_size if level and skip in ("input", "both") else 0)
            layers.append(LSTM(width, hidden_size, **options))
            below = layers[-1].output_size // (2 if merge == "sum" else 1)
        self.layers, first = tuple(layers), layers[0]
        self.hidden_size, self.recurrent_size = first.hidden_size, first.recurrent_size
        self.cell, self.time_decay, self.dtype = first.cell, first.time_decay, first.dtype
        self.directions, self.learn_initial_state = first.directions, first.learn_initial_state
        self.connections = Connections(
            self.residual,
            skip,
            merge,
            self.num_layers,
            self.directions,
            self.input_size,
            first.output_size // self.directions,
        )
        self.output_size = below * self.connections.n_shown
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
            **self.layers[0].get_config(),
            "input_size": self.input_size,
            "num_layers": self.num_layers,
            "residual": self.residual,
            "skip": self.skip,
            "merge": self.merge,
            "dropout": self.dropout,
        }

    def without_noise(self, dtype: Any = None) -> Stack:
        """As :meth:`LSTM.without_noise`: copy whose training calls compute what inference does."""
        config = {**self.get_config(), "dropout": 0.0, "dtype": self.dtype.name if dtype is None else dtype}
        twin = Stack.from_config(config)
        twin.load_parameters(self.parameters)
        twin.layers = tuple(layer.without_noise(dtype) for layer in self.layers)
        twin._bind_layers()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "n_threads": self.n_threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.n_threads = state["n_threads"]

    # ---- what the layers have in common ----

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

    def gates_of(self, name: str) -> str:
        """Gates, by letter, of the row blocks of a parameter, as :meth:`LSTM.gates_of`."""
        return self.layers[0].gates_of(name)

    @property
    def takes_time(self) -> bool:
        """Whether the cell has a use for elapsed times."""
        return self.layers[0].takes_time

    def check_takes_time(self) -> None:
        """Raise ValueError if the cell has no use for elapsed times."""
        self.layers[0].check_takes_time()

    def time_weights(self, delta_t: np.ndarray) -> np.ndarray:
        """g of elapsed times that are at least 0, in the layer's dtype."""
        return self.layers[0].time_weights(delta_t)

    def initial_state(self, n: int) -> tuple[np.ndarray, ...]:
        """States of `n` new sequences, (num_layers * directions, n, size) each: zero, or the learned ones."""
        return _joined(layer.initial_state(n) for layer in self.layers)

    def empty_states(self, n: int) -> tuple[np.ndarray, ...]:
        """Uninitialised arrays for the states of `n` sequences, (num_layers * directions, n, size) each."""
        return _joined(layer.empty_states(n) for layer in self.layers)

    def states_of(self, state: Sequence[np.ndarray | None] | None, level: int) -> Any:
        """Views of the states of one layer."""
        rows = slice(level * self.directions, (level + 1) * self.directions)
        return None if state is None else tuple(None if s is None else s[rows] for s in state)

    def _dropped(self, level: int, x: np.ndarray, tape: StackTape, rng_key: int) -> np.ndarray:
        """What dropout leaves of the output of the layer below; its factors go to the tape."""
        if not self.dropout or not level:
            tape.factors.append(None)
            return x
        random = np.random.Generator(np.random.Philox(key=_key(rng_key, level) + (2 << 64)))
        kept = random.random((len(tape.lengths), self.connections.size), np.float32) >= self.dropout
        factor = kept.astype(self.dtype) * self.dtype.type(1.0 / (1.0 - self.dropout))
        tape.factors.append(np.repeat(factor, tape.lengths, axis=0))
        return x * tape.factors[-1]

    # ---- ragged rows: what networks use; arguments are not checked beyond memory safety ----

    def _run(
        self,
        rows: np.ndarray,
        lengths: np.ndarray,
        want_y: bool,
        state: Any,
        decay: np.ndarray | None,
        tape: StackTape | None = None,
        rng_key: int = 0,
        takes: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
        """Output (rows, output_size) and final states for sequences that follow each other in `rows`."""
        starts = first_rows(lengths)
        outputs: list[np.ndarray] = []
        finals: list[tuple[np.ndarray, ...]] = []
        if tape is not None:
            tape.lengths, tape.factors = lengths, []
        x = rows
        for level, layer in enumerate(self.layers):
            z = x if tape is None else self._dropped(level, x, tape, rng_key)
            want = want_y or level + 1 < self.num_layers
            z = self.connections.layer_input(level, z, rows)
            arguments = (z, starts, lengths, want, self.states_of(state, level))
            if tape is None:
                y, final = layer.run(*arguments, decay, takes)
            else:
                key = _key(rng_key, level)
                y, final, _ = layer.run_training(*arguments, tape.tapes[level], key, decay, takes)
            finals.append(final)
            if y is not None:
                x = self.connections.layer_output(level, x, y)
                outputs.append(x)
        return (self.connections.output(outputs) if want_y else None), _joined(finals)

    def run(
        self,
        values: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        want_y: bool = True,
        state: Any = None,
        decay: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
        """As :meth:`LSTM.run`."""
        taken = _rows(starts, lengths)
        return self._run(values[taken], lengths, want_y, state, None if decay is None else decay[taken])

    def run_training(
        self,
        values: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        want_y: bool = True,
        state: Any = None,
        tape: StackTape | None = None,
        rng_key: int = 0,
        decay: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...], StackTape]:
        """As :meth:`LSTM.run_training`."""
        taken, tape = _rows(starts, lengths), StackTape(self.num_layers) if tape is None else tape
        decay = None if decay is None else decay[taken]
        y, final = self._run(values[taken], lengths, want_y, state, decay, tape, rng_key)
        return y, final, tape

    def run_backward(
        self,
        tape: StackTape,
        dy: np.ndarray | None = None,
        dstate: Any = None,
        want_dx: bool = False,
        want_dstate: bool = False,
        *,
        d_last: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...] | None]:
        """As :meth:`LSTM.run_backward`: dx (rows, input_size), the gradients of the initial states."""
        connections, size = self.connections, self.connections.size
        dx = np.zeros((int(tape.lengths.sum()), self.input_size), self.dtype) if want_dx else None
        if d_last is not None:
            dstate = self.dstate_of_last(d_last)
            if dx is not None:
                connections.add_d_input(d_last, tape.lengths, dx)
        above: np.ndarray | None = None
        initial: list[Any] = []
        for level in reversed(range(self.num_layers)):
            layer, factor = self.layers[level], tape.factors[level]
            above = connections.d_passed_on(level, above, dy)
            dz, d_initial = layer.run_backward(
                tape.tapes[level],
                connections.d_layer(above),
                self.states_of(dstate, level),
                want_dx=want_dx or level > 0,
                want_dstate=want_dstate,
            )
            initial.insert(0, d_initial)
            if dz is None:
                break
            if dx is not None and level and connections.joins_input:
                dx += dz[:, size:]
            below = dz[:, :size] if level else dz
            below = below if factor is None else below * factor
            above = above + below if above is not None and connections.adds(level) else below
        if dx is not None and above is not None:
            dx += above
        return dx, _joined(initial) if want_dstate else None

    def last_output(
        self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, final: Sequence[np.ndarray]
    ) -> np.ndarray:
        """As :meth:`LSTM.last_output`: each direction's output after all steps it reads, merged as the outputs are.

        With a residual connection around the first layer, summed directions get the input of the last step.
        """
        return self.connections.last_output(values, starts, lengths, final[0])

    def dstate_of_last(self, d_last: np.ndarray) -> tuple[np.ndarray | None, ...]:
        """Gradient of the final states where that of :meth:`last_output` is `d_last`."""
        return (self.connections.d_final_h(d_last), *[None] * (len(self.state_names) - 1))

    # ---- padded batches ----

    def _run_padded(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        delta_t: Any,
        resets: Any,
        tape: StackTape | None,
        rng_key: int = 0,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
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
        state = as_states(self, state, n, "state")
        segments, takes, ways = None, None, self.directions
        if resets is not None:
            segments = Segments(as_resets(resets, n, steps), lengths)
            lengths = segments.lengths
            if state is not None:
                state, takes = segments.spread(state, ways, initial=True), segments.takes_initial(1, ways)
        if tape is not None:
            tape.owner, tape.real, tape.segments = self, real, segments
        decay = None if decay is None else decay[real]
        rows, final = self._run(x[real], lengths, True, state, decay, tape, rng_key, takes)
        assert rows is not None
        if segments is not None:
            final = segments.collect(final, ways, initial=False)
        return self._padded(rows, real), final

    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, *, delta_t: Any = None, resets: Any = None
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
        resets : array of bool of shape (batch, time), default=None
            Steps before which the states are those of a new sequence, as :class:`LSTM` takes them.

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
        return self._run_padded(x, state, lengths, delta_t, resets, None)

    def return_all(
        self, x: Any, state: Any = None, lengths: Any = None, *, delta_t: Any = None, resets: Any = None
    ) -> dict[str, Any]:
        """As :meth:`LSTM.return_all`: everything that the recurrent layers compute, and the stack's output."""
        y, final = self(x, state, lengths, delta_t=delta_t, resets=resets)
        state = as_states(self, state, len(y), "state")
        below = rows = as_real_array(x, self.dtype, "x")
        of_layers = []
        for level, layer in enumerate(self.layers):
            z = self.connections.layer_input(level, below, rows)
            of_layers.append(
                layer.return_all(z, self.states_of(state, level), lengths, delta_t=delta_t, resets=resets)
            )
            below = self.connections.layer_output(level, below, of_layers[-1]["y"])
        found: dict[str, Any] = {"y": y, "state": final}
        if "c" in of_layers[0]:
            found["c"] = np.concatenate([own["c"] for own in of_layers])
        found["gates"] = {
            name: np.concatenate([own["gates"][name] for own in of_layers]) for name in of_layers[0]["gates"]
        }
        return found

    def forward(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        *,
        delta_t: Any = None,
        resets: Any = None,
        rng_key: int = 0,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], StackTape]:
        """As calling the layer, with dropout and noise (drawn from `rng_key`) and a tape for :meth:`backward`."""
        tape = StackTape(self.num_layers)
        y, final = self._run_padded(x, state, lengths, delta_t, resets, tape, rng_key)
        return y, final, tape

    def backward(
        self, tape: StackTape, dy: Any, dstate: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        """Back-propagate through time.

        Parameters
        ----------
        tape : StackTape
            Of :meth:`forward`; used up by this call.
        dy : array of shape (batch, time, output_size) or None
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
        real, segments, ways = tape.real, tape.segments, self.directions
        assert real is not None
        if dy is not None:
            dy = as_real_array(dy, self.dtype, "dy")
            if dy.shape != (*real.shape, self.output_size):
                raise ValueError(f"dy has shape {dy.shape}; expected {(*real.shape, self.output_size)}")
            dy = dy[real]
        dstate = as_states(self, dstate, len(real), "dstate")
        if segments is not None and dstate is not None:
            dstate = segments.spread(dstate, ways, initial=False)
        rows, initial = self.run_backward(tape, dy, dstate, want_dx=True, want_dstate=True)
        assert rows is not None and initial is not None
        if segments is not None:
            initial = segments.collect(initial, ways, initial=True)
        tape.owner = None
        return self._padded(rows, real), initial, self._views(self._grads.copy())

    def _padded(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        out = np.zeros((*real.shape, rows.shape[1]), self.dtype)
        out[real] = rows
        return out


def _key(rng_key: int, level: int) -> int:
    """A key for each layer, below 2 ** 63."""
    return int(np.random.SeedSequence([rng_key, level]).generate_state(1, np.uint64)[0]) % _KEYS


def _rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray | slice:
    """Index of the rows of all sequences, one after the other."""
    firsts = first_rows(lengths)
    shift = starts - firsts
    if (shift == shift[0]).all():
        return slice(int(starts[0]), int(starts[-1] + lengths[-1]))
    return np.arange(int(lengths.sum())) + np.repeat(shift, lengths)


def _joined(states: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """States (num_layers * directions, ...) of the stack, of those of its layers."""
    return tuple(np.concatenate(parts) for parts in zip(*states, strict=True))
