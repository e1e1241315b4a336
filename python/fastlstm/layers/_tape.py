"""What a training call leaves for its backward call."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.layers._checkpointing import Checkpoints
from fastlstm.layers._parameters import first_rows
from fastlstm.layers._segments import Segments


class Tape:
    """What a training forward pass leaves for the backward pass. Reusable: its memory grows to the largest call."""

    __slots__ = (
        "_y_starts",
        "checkpoints",
        "core",
        "fresh",
        "kept",
        "layer",
        "lengths",
        "padded_steps",
        "segments",
        "starts",
        "version",
        "weights",
    )

    def __init__(self, core: Any = None) -> None:
        self.core = _core.Tape() if core is None else core
        self.checkpoints: Checkpoints | None = None  # of a call whose last chunk alone is in `core`
        self.layer: object = None  # whose call it was
        self.version = 0
        self.weights: np.ndarray | None = None  # of the call, where they are not the layer's own
        self.kept: dict[str, np.ndarray] = {}  # factors of the weights that are dropped
        self.lengths: np.ndarray
        self.starts: np.ndarray
        self._y_starts: np.ndarray | None = None
        self.padded_steps = 0
        # places and sequences that started from learned states: a mask, or all or none
        self.fresh: dict[str, Any] = {}
        self.segments: Segments | None = None  # that the core took for the sequences

    def give_core(self) -> Any:
        """The memory, for another tape; this one starts with none."""
        core, self.core = self.core, _core.Tape()
        return core

    @property
    def y_starts(self) -> np.ndarray:
        """First row of each sequence's outputs; where none were wanted, as if they followed each other."""
        if self._y_starts is None:
            self._y_starts = first_rows(self.lengths)
        return self._y_starts

    @y_starts.setter
    def y_starts(self, starts: np.ndarray | None) -> None:
        self._y_starts = starts

    @property
    def n_sequences(self) -> int:
        """Sequences of the call."""
        return len(self.lengths) if self.segments is None else self.segments.n_sequences

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds; see :meth:`LSTM.activation_bytes`."""
        return self.core.nbytes + (0 if self.checkpoints is None else self.checkpoints.nbytes)
