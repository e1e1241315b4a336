"""Small helpers of the estimators: rows, weights, random numbers, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from fastlstm.sequences import Sequences


def is_table(X: Any) -> bool:
    """Whether X is two-dimensional data as scikit-learn knows it, with one column per time step.

    Arrays and data frames are, and so are lists of equally long lists of numbers; a list of arrays is a
    list of sequences even where all are equally long by chance.
    """
    if isinstance(X, Sequences):
        return False
    if not isinstance(X, (list, tuple)):
        shape = getattr(X, "shape", None)
        return (len(shape) if shape is not None else np.asarray(X).ndim) == 2
    if not all(isinstance(row, (list, tuple)) for row in X):
        return False
    return len({len(row) for row in X}) == 1 and np.ndim(X[0][:1]) == 1


def check_weights(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    """Sample weights as float64 (n,), or None for equal weights.

    Raises
    ------
    ValueError
        If the shape is wrong, a weight is negative or not finite, or all are zero.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(
            f"sample_weight must have shape ({n},), one weight per sequence, got {weights.shape}"
        )
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if wrong.size:
        value = weights[wrong[0]]
        raise ValueError(f"sample_weight[{wrong[0]}] is {value}: weights must be finite and not negative")
    if not weights.any():
        raise ValueError("sample_weight is zero everywhere: at least one weight must be greater")
    return weights


def check_finite(y: NDArray[Any], name: str) -> None:
    """Raise ValueError naming the first row of `y` that is NaN or infinite."""
    if y.dtype.kind != "f":
        return
    wrong = np.flatnonzero(~np.isfinite(y.reshape(len(y), -1)).all(axis=1))
    if wrong.size:
        kind = "NaN" if np.isnan(y[wrong[0]]).any() else "infinity"
        raise ValueError(f"{name} contains {kind} at row {wrong[0]}")


def check_same_length(n: int, y: Any, name: str) -> None:
    """Raise ValueError unless `y` has one row per sequence."""
    if len(y) != n:
        raise ValueError(
            f"X and {name} have inconsistent numbers of samples: {n} sequences but {len(y)} targets"
        )


def merge_equal_rows(
    seqs: Sequences, targets: NDArray[Any], weights: NDArray[np.float64] | None
) -> tuple[Sequences, NDArray[Any], NDArray[np.float64] | None]:
    """One row for each distinct pair of sequence and target, in an order that the pairs alone decide.

    The weighted loss over all rows is the same as before, and so is its gradient: repeated rows and
    integer weights then train alike to the last bit.
    """
    masses: dict[tuple[int, bytes, bytes], float] = {}
    first: dict[tuple[int, bytes, bytes], int] = {}
    for i, sequence in enumerate(seqs):
        key = (len(sequence), sequence.tobytes(), targets[i].tobytes())
        masses[key] = masses.get(key, 0.0) + (1.0 if weights is None else float(weights[i]))
        first.setdefault(key, i)
    keys = sorted(first)
    index = np.array([first[key] for key in keys])
    merged = np.array([masses[key] for key in keys])
    return seqs[index], targets[index], None if np.all(merged == 1.0) else merged


def random_generator(random_state: Any) -> np.random.Generator:
    """Generator of a scikit-learn `random_state`; a Generator is used as it is."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    if random_state is not None and not isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state)
    return np.random.default_rng(check_random_state(random_state).randint(2**31, size=4))


def n_threads(n_jobs: int | None) -> int:
    """Threads that `n_jobs` asks for: 0 (automatic) for None, all CPUs + 1 + n_jobs if it is negative."""
    if n_jobs is None:
        return 0
    return n_jobs if n_jobs > 0 else max(1, cpu_count() + 1 + n_jobs)
