"""What a training stands on: its seed, its place, its warnings, and checks of its numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = [
    "TrainingDivergedWarning",
    "TrainingInterruptedWarning",
    "TrainingState",
    "draw_seed",
    "real_number",
    "whole_number",
]


class TrainingDivergedWarning(UserWarning):
    """The loss or a gradient was not finite, and training stopped."""


class TrainingInterruptedWarning(UserWarning):
    """Training was stopped by Ctrl-C; the model is usable."""


def draw_seed(random_state: Any) -> int:
    """A seed of 63 bits from an int, a numpy Generator or RandomState, or, for None, from the system.

    Raises
    ------
    TypeError
        For anything else.
    """
    if random_state is None or isinstance(random_state, (int, np.integer)):
        random_state = np.random.default_rng(random_state)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(1 << 63))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(1 << 31)) << 31 | int(random_state.randint(1 << 31))
    raise TypeError(
        f"random_state must be None, an int, a numpy Generator or a RandomState; got {random_state!r}"
    )


@dataclasses.dataclass
class TrainingState:
    """Where a training stands; with the weights and optimizer arrays, all that a checkpoint holds."""

    seed: int
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    norm_sum: float = 0.0
    best_metric: float | None = None
    stop_metric: float | None = None
    n_no_improvement: int = 0
    finished: bool = False


def real_number(name: str, value: Any, above: float | None = None) -> float:
    """`value` as a finite float, at least 0, or greater than `above`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not math.isfinite(value) or value < 0 or (above is not None and value <= above):
        bound = "at least 0" if above is None else f"greater than {above:g}"
        raise ValueError(f"{name} must be finite and {bound}; got {value!r}")
    return float(value)


def whole_number(name: str, value: Any, low: int) -> int:
    """`value` as an int, at least `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value!r}")
    return int(value)
