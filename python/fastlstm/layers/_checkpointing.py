"""Training calls that keep the states of every k-th step and run the steps between them again in the backward pass.

What a call over T steps keeps is T / k states of each sequence and the tape of one chunk of k steps: the least for
k about sqrt(T). The price is one forward pass, that of all chunks but the last one, whose tape is still there. (Chen
et al., Training deep nets with sublinear memory cost, arXiv 1604.06174; Gruslys et al., Memory-efficient
backpropagation through time, NeurIPS 2016.)

A chunk is a call of the core on some rows of x from the states before them, all layers of a stack at once. So this
is for layers of one direction: a second one would start at the end of the last chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

States = Sequence[np.ndarray | None]


class Chunk(NamedTuple):
    """Some steps of the sequences that are long enough to have them."""

    first: int  # step
    rows: np.ndarray  # (m,) sequences
    lengths: np.ndarray  # (m,) steps of each of them, at least 1

    def starts(self, starts: np.ndarray | None) -> np.ndarray | None:
        """First rows of the chunk's sequences, from those (n,) of all sequences at their first step."""
        return None if starts is None else starts[self.rows] + self.first


def chunks_of(lengths: np.ndarray, every: int) -> list[Chunk]:
    """The chunks of `every` steps of sequences of these lengths, (n,) int64."""
    firsts = range(0, int(lengths.max()), every)
    rows = [np.flatnonzero(lengths > first) for first in firsts]
    return [Chunk(f, r, np.minimum(lengths[r] - f, every)) for f, r in zip(firsts, rows, strict=True)]


def fill(states: Sequence[np.ndarray], given: States | None) -> None:
    """Copy the given states, zero where there are none, into `states`."""
    for k, state in enumerate(states):
        value = None if given is None else given[k]
        state[...] = 0.0 if value is None else value


def take(states: Sequence[np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """States (places, m, units) of some sequences, C-contiguous."""
    return tuple(np.take(state, rows, axis=1) for state in states)


def put(states: Sequence[np.ndarray], rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
    """Write the states of some sequences; the inverse of :func:`take`."""
    for state, value in zip(states, values, strict=True):
        state[:, rows] = value


class Checkpoints:
    """States before each chunk of a training call, and what it takes to run the chunks again.

    Parameters
    ----------
    every : int
        Steps of a chunk.
    x, starts, lengths, decay
        As the core takes them. `x` and `decay` are kept and not copied: they must not change before the
        backward pass.
    rng_key : int
        Of the dropout masks, which are those of a call over all steps.
    """

    def __init__(
        self,
        every: int,
        x: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        decay: np.ndarray | None,
        rng_key: int,
    ) -> None:
        self.chunks = chunks_of(lengths, every)
        self.states: list[tuple[np.ndarray, ...]] = []
        self._x: np.ndarray | None = x
        self._starts, self._decay, self._rng_key = starts, decay, rng_key

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return sum(state.nbytes for states in self.states for state in states)

    def forward(
        self,
        core: Any,
        tape: Any,
        y: np.ndarray | None,
        y_starts: np.ndarray | None,
        state: States | None,
        final: tuple[np.ndarray, ...],
        n_threads: int,
    ) -> None:
        """Write y (=) and the final states (=); `tape` is left with the last chunk."""
        fill(final, state)
        for chunk in self.chunks:
            before = take(final, chunk.rows)
            after = tuple(np.empty_like(value) for value in before)
            kept = tape if chunk is self.chunks[-1] else None
            self._run(core, chunk, before, n_threads, kept, y, chunk.starts(y_starts), after)
            put(final, chunk.rows, after)
            self.states.append(before)

    def backward(
        self,
        core: Any,
        tape: Any,
        weights: np.ndarray,
        grads: np.ndarray,
        dy: np.ndarray | None,
        dy_starts: np.ndarray | None,
        dstate: States | None,
        dx: np.ndarray | None,
        dx_starts: np.ndarray | None,
        dinitial: tuple[np.ndarray, ...],
        n_threads: int,
    ) -> None:
        """Arguments and results of the core's backward call; uses the checkpoints up."""
        if len(self.states) < len(self.chunks):
            raise ValueError(
                "the tape is used up, or its forward call did not end; run the forward call again"
            )
        fill(dinitial, dstate)
        chunk_grads = np.empty_like(grads)
        for chunk in reversed(self.chunks):
            before, last = self.states.pop(), chunk is self.chunks[-1]
            if not last:
                self._run(core, chunk, before, n_threads, tape)
            arrays = (dy, chunk.starts(dy_starts), take(dinitial, chunk.rows), dx, chunk.starts(dx_starts))
            into = grads if last else chunk_grads
            core.backward(tape, len(chunk.rows), weights, into, *arrays, before, n_threads)
            put(dinitial, chunk.rows, before)  # which by now holds gradients
            if not last:
                grads += chunk_grads
        self._x = self._decay = None

    def _run(
        self,
        core: Any,
        chunk: Chunk,
        state: tuple[np.ndarray, ...],
        n_threads: int,
        tape: Any,
        y: np.ndarray | None = None,
        y_starts: np.ndarray | None = None,
        after: tuple[np.ndarray, ...] | None = None,
    ) -> None:
        core.forward(
            self._x,
            chunk.starts(self._starts),
            chunk.lengths,
            y,
            None if y is None else y_starts,
            state,
            after,
            tape,
            self._rng_key,
            n_threads,
            self._decay,
            number=chunk.rows,
            first_step=chunk.first,
            drops=True,
        )
