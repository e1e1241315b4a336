"""What a recurrent layer computes: inference and training, of padded batches and of ragged rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastlstm.layers._blocks import MemoryBlocks
from fastlstm.layers._checkpointing import Checkpoints
from fastlstm.layers._parameters import (
    Parameterized,
    as_lengths,
    as_real_array,
    as_states,
    first_rows,
    whole_sequences,
)
from fastlstm.layers._segments import Segments, as_resets
from fastlstm.layers._tape import Tape

DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log": lambda delta_t: 1.0 / np.log(np.e + delta_t),
    "inverse": lambda delta_t: 1.0 / np.where(delta_t == 0.0, 1.0, delta_t),
}


class Recurrence(Parameterized):
    """The calls of a recurrent layer. A subclass checks its options, makes the kernels' handle, and allocates."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    weight_dropout: float
    weight_noise: float
    learn_initial_state: bool
    time_decay: str
    checkpoint_every: int | None
    precision: str
    directions: int
    recurrent_size: int
    output_size: int
    n_threads: int
    _core: Any  # the kernels' handle
    _blocks: MemoryBlocks | None
    _lock: threading.Lock
    _spare: list[Any]  # memory of the last tape that was used up; a list, of which one thread takes it
    _packed: bool  # whether the handle has the current parameters
    _version: int  # of the parameters
    _expects: bool  # whether training calls take the expectation of zoneout
    _dstate_buffer: np.ndarray | None

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states in the order of state tuples: ("h", "c"), ("h",), or ("h", "c", "n", "m")."""
        return tuple(self._core.state_names)

    def parameters_changed(self) -> None:
        """To be called after writing into :attr:`flat`: the next call packs the weights again."""
        self._packed = False
        self._version = getattr(self, "_version", 0) + 1

    def packed_core(self) -> Any:
        """The kernel handle with current weights."""
        if not self._packed:
            with self._lock:
                if not self._packed:
                    self._core.load(self._core_flat(self._flat))
                    self._packed = True
        return self._core

    def _core_flat(self, flat: np.ndarray) -> np.ndarray:
        """What the kernels take, of the layer's parameters."""
        return flat[: self._core.n_parameters] if self._blocks is None else self._blocks.spread(flat)

    def _training_core(self, tape: Tape, rng_key: int) -> Any:
        """The kernel handle with the weights of a training call, which the tape keeps if they are noisy."""
        tape.weights, tape.kept = None, {}
        if not (self.weight_dropout or self.weight_noise):
            return self.packed_core()
        random = np.random.Generator(np.random.Philox(key=rng_key + (1 << 64)))
        weights = tape.weights = self._flat.copy()
        if self.weight_noise:
            weights += self.dtype.type(self.weight_noise) * random.standard_normal(weights.size, self.dtype)
        if self.weight_dropout:
            keep = 1.0 - self.weight_dropout
            for name, value in self._views(weights).items():
                if name.startswith("weight_hh_"):
                    kept = random.random(value.shape, np.float32) < keep
                    tape.kept[name] = kept.astype(self.dtype) * self.dtype.type(1.0 / keep)
                    value *= tape.kept[name]
        return self._core_with(weights)

    def _core_with(self, weights: np.ndarray | None) -> Any:
        """The kernel handle with the noisy weights of a call, or, for None, with the current ones."""
        if weights is None:
            return self.packed_core()
        with self._lock:
            self._core.load(self._core_flat(weights))
            self._packed = False
        return self._core

    def _core_forward(
        self,
        tape: Tape,
        core: Any,
        x: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        y: np.ndarray | None,
        y_starts: np.ndarray | None,
        state: Sequence[np.ndarray | None] | None,
        final: tuple[np.ndarray, ...],
        rng_key: int,
        decay: np.ndarray | None = None,
    ) -> None:
        """Training forward pass of the core, in chunks where checkpoints are wanted and the sequences long enough."""
        every, tape.checkpoints = self.checkpoint_every, None
        if every is None or lengths.max() <= every:
            arrays = (x, starts, lengths, y, y_starts, state, final)
            core.forward(*arrays, tape.core, rng_key, self.n_threads, decay, expects=self._expects)
            return
        tape.checkpoints = Checkpoints(every, x, starts, lengths, decay, rng_key)
        tape.checkpoints.forward(core, tape.core, y, y_starts, state, final, self.n_threads)

    def _core_backward(
        self, tape: Tape, grads: np.ndarray, *arguments: Any, dinitial: tuple[np.ndarray, ...] | None
    ) -> None:
        """Backward pass at the weights of the forward call; `grads` get the gradient of the layer's own."""
        weights = self._flat if tape.weights is None else tape.weights
        core_grads = grads[: self._core.n_parameters]
        if self._blocks is not None:
            core_grads = np.empty(self._core.n_parameters, self.dtype)
        if (tape.fresh or tape.checkpoints) and dinitial is None:
            dinitial = self.empty_states(len(tape.lengths))
        arguments = (self._core_flat(weights), core_grads, *arguments, dinitial, self.n_threads)
        if tape.checkpoints is None:
            self._core.backward(tape.core, len(tape.lengths), *arguments)
        else:
            tape.checkpoints.backward(self._core_with(tape.weights), tape.core, *arguments)
        if self._blocks is not None:
            self._blocks.add_up(core_grads, grads)
        if dinitial is not None and self.learn_initial_state:
            self._learned_gradient(tape, grads, dinitial)
        if tape.kept:
            views = self._views(grads)
            for name, factor in tape.kept.items():
                views[name] *= factor

    def activation_bytes(self, lengths: Any, *, with_delta_t: bool = False) -> int:
        """Bytes that a training call keeps for the backward pass, with `checkpoint_every` while that runs.

        The backward pass works in further memory: transposed weights, and the gradients of the inputs of the steps
        that it has on its tape.

        Parameters
        ----------
        lengths : array of int of shape (batch,)
            Steps of each sequence, at least 1; of each piece of one that is cut by resets.
        with_delta_t : bool, default=False
            Whether the call gives elapsed times.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If there is no length, or one below 1.
        TypeError
            If they are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> from fastlstm.layers import LSTM
        >>> lengths = np.full(32, 1000)
        >>> plain = LSTM(16, 64).activation_bytes(lengths)
        >>> LSTM(16, 64, checkpoint_every=32).activation_bytes(lengths) < 0.06 * plain
        True
        """
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or not lengths.size:
            raise ValueError(f"lengths has shape {lengths.shape}; expected one length per sequence, (batch,)")
        lengths = as_lengths(lengths, lengths.size, max(1, int(lengths.max())))
        every, kept = self.checkpoint_every, 0
        if every is not None and lengths.max() > every:
            a_state = sum(state.nbytes for state in self.empty_states(1))
            kept = a_state * sum(-(-length // every) for length in lengths.tolist())
            lengths = np.minimum(lengths, every)
        sizes = (len(lengths), int(lengths.max()), sum(lengths.tolist()))
        return kept + self._core.tape_bytes(*sizes, with_delta_t, self.n_threads)

    # ---- states ----

    def empty_states(self, n: int) -> tuple[np.ndarray, ...]:
        """Uninitialised arrays for the states of `n` sequences, (num_layers * directions, n, size) each."""
        rows, rest = self.num_layers * self.directions, self._core.n_states - 1
        h = np.empty((rows, n, self.recurrent_size), self.dtype)
        if rest == 1:
            return h, np.empty((rows, n, self.hidden_size), self.dtype)
        return (h, *[np.empty((rows, n, self.hidden_size), self.dtype) for _ in range(rest)])

    @property
    def _learned_states(self) -> tuple[str, ...]:
        """Names of the states whose first value is a parameter."""
        learned = ("h",) if "n" in self.state_names else ("h", "c")
        return tuple(name for name in self.state_names if self.learn_initial_state and name in learned)

    def _learned_rows(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The learned states in an array of the parameters' form: views (num_layers * directions, size) by name."""
        rows, found, end = self.num_layers * self.directions, {}, 0
        sizes = {
            name: self.recurrent_size if name == "h" else self.hidden_size for name in self._learned_states
        }
        last = flat[flat.size - rows * sum(sizes.values()) :].reshape(rows, -1) if sizes else flat
        for name, size in sizes.items():
            found[name] = last[:, end : end + size]
            end += size
        return found

    def initial_state(self, n: int, flat: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """States of `n` new sequences, (num_layers * directions, n, size) each: zero, or the learned ones."""
        states, learned = self.empty_states(n), self._learned_rows(self._flat if flat is None else flat)
        for name, state in zip(self.state_names, states, strict=True):
            state[...] = learned[name][:, None] if name in learned else 0.0
        return states

    def _start(
        self,
        state: Sequence[np.ndarray | None] | None,
        n: int,
        tape: Tape | None,
        takes: np.ndarray | None = None,
    ) -> Sequence[np.ndarray | None] | None:
        """The given states, and the learned ones for the sequences that get none.

        `takes` (places, n, 1) says which sequences take the given states; None: all.
        """
        if tape is not None:
            tape.fresh = {}
        if not self.learn_initial_state:
            return state
        states = list(self.initial_state(n, None if tape is None else tape.weights))
        for k, name in enumerate(self.state_names):
            given = None if state is None else state[k]
            fresh: Any = given is None or (False if takes is None else ~takes)
            if given is not None:
                states[k] = np.where(fresh, states[k], given)
            if tape is not None:
                tape.fresh[name] = fresh
        return states

    def _learned_gradient(self, tape: Tape, grads: np.ndarray, dinitial: tuple[np.ndarray, ...]) -> None:
        """Gradients of the learned states: sums over the sequences that started from them."""
        gradients = dict(zip(self.state_names, dinitial, strict=True))
        for name, learned in self._learned_rows(grads).items():
            fresh = tape.fresh[name]
            gradient = gradients[name] if fresh is True else gradients[name] * fresh
            gradient.sum(axis=1, out=learned)

    # ---- elapsed times, for a cell that takes them ----

    @property
    def takes_time(self) -> bool:
        """Whether the cell has a use for elapsed times."""
        return self.cell == "tlstm"

    def check_takes_time(self) -> None:
        """Raise ValueError if the cell has no use for elapsed times."""
        if not self.takes_time:
            raise ValueError(f"delta_t goes with the cell 'tlstm'; this layer has the cell {self.cell!r}")

    def time_weights(self, delta_t: np.ndarray) -> np.ndarray:
        """g of elapsed times that are at least 0, in the layer's dtype."""
        return np.ascontiguousarray(DECAYS[self.time_decay](delta_t), self.dtype)

    def _check_delta_t(self, delta_t: Any, n: int, steps: int, lengths: np.ndarray) -> np.ndarray | None:
        """Weights (n, steps) of the elapsed times; 1 in the padding, which is not read."""
        if delta_t is None:
            return None
        self.check_takes_time()
        delta_t = as_real_array(delta_t, np.dtype(np.float64), "delta_t")
        if delta_t.shape != (n, steps):
            raise ValueError(
                f"delta_t has shape {delta_t.shape}; expected {(n, steps)}, one time per step of x"
            )
        real = np.arange(steps) < lengths[:, None]
        bad = np.argwhere(real & ~((delta_t >= 0.0) & (delta_t < np.inf)))
        if bad.size:
            b, t = bad[0]
            raise ValueError(f"delta_t[{b}, {t}] is {delta_t[b, t]}; times must be finite and at least 0")
        return self.time_weights(np.where(real, delta_t, 0.0))

    # ---- padded batches: the public calls ----

    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, *, delta_t: Any = None, resets: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Run without keeping anything for a backward pass.

        Parameters
        ----------
        x : array of shape (batch, time, input_size)
        state : tuple of arrays of shape (num_layers * directions, batch, hidden_size), default=None
            Initial h (and c); None, or a None entry, means zeros, or the learned ones. h has proj_size columns if
            there is a projection.
        lengths : array of int of shape (batch,), default=None
            Real steps of each sequence, 1 to time; what follows them is never read. None: all steps.
        delta_t : array of shape (batch, time), default=None
            Time since the step before (for a second direction: the step that it comes from), at least 0, in any
            unit; for the cell "tlstm" alone. None: no time passes.
        resets : array of bool of shape (batch, time), default=None
            True at a step before which the state is set to that of a new sequence, because an episode ended; no
            gradient passes there. A second direction is cut at the same places. None: no resets.

        Returns
        -------
        y : ndarray of shape (batch, time, output_size)
            Outputs; zero after a sequence's end.
        state : tuple of ndarray of shape (num_layers * directions, batch, hidden_size)
            State after each sequence's last step (second direction: after its first).

        Raises
        ------
        ValueError
            Shapes or lengths that do not fit, with the shape that would.
        TypeError
            Elements that are not real numbers.
        """
        self._spare.clear()
        y, final, _ = self._padded(x, state, lengths, None, delta_t=delta_t, resets=resets)
        return y, final

    def forward(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        *,
        delta_t: Any = None,
        resets: Any = None,
        rng_key: int = 0,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], Tape]:
        """As calling the layer, with dropout and noise (drawn from `rng_key`) and a tape for :meth:`backward`.

        A reset starts a sequence of its own, with dropout masks of its own. With weight dropout or weight noise the
        call needs exclusive use of the layer.
        """
        try:
            tape = Tape(self._spare.pop())
        except IndexError:
            tape = Tape()
        y, final, _ = self._padded(x, state, lengths, tape, rng_key, delta_t, resets)
        return y, final, tape

    def backward(
        self, tape: Tape, dy: Any, dstate: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        """Back-propagate through time.

        Parameters
        ----------
        tape : Tape
            Of :meth:`forward`; used up by this call. The layer keeps its memory for the next :meth:`forward`, and
            frees it when it is called without a tape.
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
        """
        if not isinstance(tape, Tape) or tape.layer is not self:
            raise ValueError("tape holds no forward call of this layer (a tape serves one backward call)")
        self._check_version(tape)
        self._check_trains()
        n, steps, starts, segments = tape.n_sequences, tape.padded_steps, tape.y_starts, tape.segments
        if dy is not None:
            dy = as_real_array(dy, self.dtype, "dy")
            if dy.shape != (n, steps, self.output_size):
                raise ValueError(f"dy has shape {dy.shape}; expected {(n, steps, self.output_size)}")
        dstate = as_states(self, dstate, n, "dstate")
        if segments is not None and dstate is not None:
            dstate = segments.spread(dstate, self.directions, initial=False)
        dx = np.zeros((n, steps, self.input_size), self.dtype)
        grads = np.empty_like(self._flat)
        dinitial = self.empty_states(len(starts))
        self._core_backward(
            tape, grads, dy, None if dy is None else starts, dstate, dx, starts, dinitial=dinitial
        )
        tape.layer = None
        self._spare[:] = [tape.give_core()]
        if segments is not None:
            dinitial = segments.collect(dinitial, self.directions, initial=True)
        return dx, dinitial, self._views(grads)

    def _padded(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        tape: Tape | None,
        rng_key: int = 0,
        delta_t: Any = None,
        resets: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], Tape | None]:
        x = as_real_array(x, self.dtype, "x")
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x has shape {x.shape}; expected (batch, time, {self.input_size})")
        n, steps, _ = x.shape
        if n == 0 or steps == 0:
            raise ValueError(
                f"x has shape {x.shape}; expected at least one sequence and at least one time step"
            )
        allocate = np.empty if lengths is None else np.zeros  # what follows a sequence's end is zero
        starts, every = whole_sequences(n, steps)
        lengths = every if lengths is None else as_lengths(lengths, n, steps)
        y = allocate((n, steps, self.output_size), self.dtype)
        state = as_states(self, state, n, "state")
        decay = self._check_delta_t(delta_t, n, steps, lengths)
        segments = None if resets is None else Segments(as_resets(resets, n, steps), lengths)
        takes = None
        if segments is not None:
            starts, lengths = segments.starts, segments.lengths
            if state is not None:
                state = segments.spread(state, self.directions, initial=True)
                takes = segments.takes_initial(self.num_layers, self.directions)
        final = self.empty_states(len(starts))
        core = self.packed_core() if tape is None else self._training_core(tape, rng_key)
        state = self._start(state, len(starts), tape, takes)
        if tape is not None:
            tape.lengths, tape.starts, tape.y_starts, tape.padded_steps = lengths, starts, starts, steps
            tape.layer, tape.version, tape.segments = self, self._version, segments
        if tape is None:
            core.forward(x, starts, lengths, y, starts, state, final, None, 0, self.n_threads, decay)
        else:
            self._core_forward(tape, core, x, starts, lengths, y, starts, state, final, rng_key, decay)
        if segments is not None:
            final = segments.collect(final, self.directions, initial=False)
        return y, final, tape

    # ---- ragged rows: what networks use; arguments are not checked beyond memory safety ----

    def run(
        self,
        values: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        want_y: bool = True,
        state: Sequence[np.ndarray | None] | None = None,
        decay: np.ndarray | None = None,
        takes: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
        """Inference on rows of `values` (rows, input_size): sequence b is `lengths[b]` rows from `starts[b]`.

        `decay` (rows,) holds :meth:`time_weights` of the elapsed times, for a cell that takes them; None: no time
        passes. `takes` (places, B, 1) says which sequences start from `state`, where others start from learned
        states; None: all. Returns y (sum(lengths), output_size), sequence after sequence (or None), and the final
        state.
        """
        y, y_starts, final = self._outputs(lengths, want_y)
        state = self._start(state, len(lengths), None, takes)
        self.packed_core().forward(
            values, starts, lengths, y, y_starts, state, final, None, 0, self.n_threads, decay
        )
        return y, final

    def run_training(
        self,
        values: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        want_y: bool = True,
        state: Sequence[np.ndarray | None] | None = None,
        tape: Tape | None = None,
        rng_key: int = 0,
        decay: np.ndarray | None = None,
        takes: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...], Tape]:
        """As :meth:`run`, with dropout and a tape (the given one is reused)."""
        y, y_starts, final = self._outputs(lengths, want_y)
        tape = Tape() if tape is None else tape
        tape.lengths, tape.starts, tape.padded_steps, tape.version = lengths, starts, 0, self._version
        tape.segments = None
        tape.y_starts = y_starts
        core = self._training_core(tape, rng_key)
        state = self._start(state, len(lengths), tape, takes)
        self._core_forward(tape, core, values, starts, lengths, y, y_starts, state, final, rng_key, decay)
        return y, final, tape

    def run_backward(
        self,
        tape: Tape,
        dy: np.ndarray | None = None,
        dstate: Sequence[np.ndarray | None] | None = None,
        want_dx: bool = False,
        want_dstate: bool = False,
        *,
        d_last: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...] | None]:
        """Write the gradients of :meth:`run_training`'s call to :attr:`flat_grads`.

        dy is (sum(lengths), output_size) as y, `d_last` the gradient of :meth:`last_output` in place of `dstate`; dx
        comes back as (sum(lengths), input_size) if wanted.
        """
        self._check_version(tape)
        self._check_trains()
        n = len(tape.lengths)
        if d_last is not None:
            dstate = self.dstate_of_last(d_last)
        dx = np.empty((int(tape.lengths.sum()), self.input_size), self.dtype) if want_dx else None
        dinitial = None
        if want_dstate:
            dinitial = self.empty_states(n)
        self._core_backward(
            tape,
            self._grads,
            dy,
            tape.y_starts if dy is not None else None,
            dstate,
            dx,
            tape.y_starts if want_dx else None,
            dinitial=dinitial,
        )
        return dx, dinitial

    def last_output(
        self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, final: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Output of each direction after all the steps that it reads, (B, output_size): the final h of the top layer.

        Of a run with these arguments, whose final state is `final`; what it read is for layers that pass it on.
        """
        h = final[0]
        return np.concatenate((h[-2], h[-1]), axis=1) if self.bidirectional else h[-1]

    def dstate_of_last(self, d_last: np.ndarray) -> tuple[np.ndarray | None, ...]:
        """Gradient of the final states where that of :meth:`last_output` is `d_last`; reuses one buffer."""
        shape = (self.num_layers * self.directions, len(d_last), self.recurrent_size)
        buffer = self._dstate_buffer
        if buffer is None or buffer.shape != shape:
            buffer = self._dstate_buffer = np.zeros(shape, self.dtype)
        if self.bidirectional:
            buffer[-2] = d_last[:, : self.recurrent_size]
            buffer[-1] = d_last[:, self.recurrent_size :]
        else:
            buffer[-1] = d_last
        return (buffer, *[None] * (len(self.state_names) - 1))

    def _outputs(
        self, lengths: np.ndarray, want_y: bool
    ) -> tuple[np.ndarray | None, np.ndarray | None, tuple[np.ndarray, ...]]:
        final = self.empty_states(len(lengths))
        if not want_y:
            return None, None, final
        starts = first_rows(lengths)
        rows = int(starts[-1]) + int(lengths[-1])
        return np.empty((rows, self.output_size), self.dtype), starts, final

    def _check_trains(self) -> None:
        if self.precision == "int8":
            raise ValueError("precision 'int8' is for inference: its rounded weights have no gradient")

    def _check_version(self, tape: Tape) -> None:
        if tape.version != self._version:
            raise ValueError(
                "the parameters changed after the forward call that filled the tape; run it again"
            )
