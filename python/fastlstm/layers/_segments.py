"""Sequences whose state is reset on the way: cut into segments, which the core runs as sequences of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

States = Sequence[np.ndarray | None]


def as_resets(resets: Any, n: int, steps: int) -> np.ndarray:
    """Resets (n, steps), bool; a TypeError for other dtypes, a ValueError for other shapes."""
    found = np.asarray(resets)
    if found.dtype != np.bool_:
        raise TypeError(f"resets must be bool, got dtype {found.dtype}; write resets=values.astype(bool)")
    if found.shape != (n, steps):
        raise ValueError(f"resets has shape {found.shape}; expected {(n, steps)}, one per step of x")
    return found


class Segments:
    """Segments of `n` padded sequences, sequence after sequence.

    Parameters
    ----------
    resets : ndarray of bool, shape (n, steps)
        True at a step that starts a segment. What follows a sequence's end is not read.
    lengths : ndarray of int64, shape (n,)
        Real steps of each sequence.

    Attributes
    ----------
    starts, lengths : ndarray of int64, shape (n_segments,)
        First row of each segment in an array (n * steps, features), and its number of rows.
    n_sequences : int
    """

    def __init__(self, resets: np.ndarray, lengths: np.ndarray) -> None:
        self.n_sequences, steps = resets.shape
        begins = resets & (np.arange(steps) < lengths[:, None])
        self._carries_on = np.flatnonzero(~begins[:, 0])
        begins[:, 0] = True
        n_of_each = begins.sum(axis=1)
        self._last = np.cumsum(n_of_each) - 1
        self._first = self._last - n_of_each + 1
        self.starts = np.flatnonzero(begins)
        ends = np.append(self.starts[1:], 0)
        ends[self._last] = np.arange(self.n_sequences) * steps + lengths
        self.lengths = ends - self.starts

    def spread(self, states: States, directions: int, *, initial: bool) -> tuple[np.ndarray | None, ...]:
        """States (places, n, units) of the sequences as those (places, n_segments, units) of the segments.

        `initial` says whether they are the states before the first step or those after the last one. They go to
        the segments that have that step; the others get zeros.
        """
        return tuple(None if state is None else self._spread(state, directions, initial) for state in states)

    def _spread(self, state: np.ndarray, directions: int, initial: bool) -> np.ndarray:
        out = np.zeros((state.shape[0], len(self.starts), state.shape[2]), state.dtype)
        for direction in range(directions):
            rows, segments = self._ends(initial, direction)
            out[direction::directions, segments] = state[direction::directions, rows]
        return out

    def takes_initial(self, num_layers: int, directions: int) -> np.ndarray:
        """Whether a segment takes its sequence's initial state, bool (places, n_segments, 1)."""
        ones = np.ones((num_layers * directions, self.n_sequences, 1), np.int8)
        return self._spread(ones, directions, initial=True).astype(bool)

    def collect(
        self, states: Iterable[np.ndarray], directions: int, *, initial: bool
    ) -> tuple[np.ndarray, ...]:
        """States (places, n, units) of the sequences, of those of the segments: the transpose of :meth:`spread`."""
        return tuple(self._collect(state, directions, initial) for state in states)

    def _collect(self, state: np.ndarray, directions: int, initial: bool) -> np.ndarray:
        out = np.zeros((state.shape[0], self.n_sequences, state.shape[2]), state.dtype)
        for direction in range(directions):
            rows, segments = self._ends(initial, direction)
            out[direction::directions, rows] = state[direction::directions, segments]
        return out

    def _ends(self, initial: bool, direction: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences and the segments that take their initial, or leave their final, state.

        The second direction starts at the last segment. A reset before the very first step keeps the first
        direction from seeing the initial state; the second one is done by then.
        """
        if initial and direction == 0:
            return self._carries_on, self._first[self._carries_on]
        at_first = initial == (direction == 0)
        return np.arange(self.n_sequences), self._first if at_first else self._last
