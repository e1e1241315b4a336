"""What the readers return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SequenceData:
    """Sequences read from a file.

    Attributes
    ----------
    X : list of ndarray of shape (n_steps, n_features), float64
    y : ndarray of shape (n,) or (n, n_targets), or None
        Labels (str, int or bool) or values (float64); None where the file has none.
    feature_names : list of str
    ids : list
        What names each sequence in the file; its position where nothing does.
    delta_t : list of ndarray of shape (n_steps,), float64, or None
        Time since the step before, where the reader was told where it stands.
    """

    X: list[NDArray[np.float64]]
    y: NDArray[Any] | None
    feature_names: list[str]
    ids: list[Any] = field(default_factory=list)
    delta_t: list[NDArray[np.float64]] | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", list(range(len(self.X))))

    def __repr__(self) -> str:
        return f"SequenceData({len(self.X)} sequences, {len(self.feature_names)} features)"
