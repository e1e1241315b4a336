"""Small problems that the tests of the estimators share."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def ragged():
    """60 sequences of 2 to 9 time steps, 3 features; 3 classes that shift the mean of each feature."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(3), 20))
    X = [rng.normal(size=(rng.integers(2, 10), 3)) * 0.3 + np.eye(3)[label] for label in y]
    return X, y


@pytest.fixture
def padded():
    """Function from a list of sequences to an array (n, T, F) that ends with NaN, and the lengths."""
    return _padded


def _padded(X, fill=np.nan):
    lengths = np.array([len(sequence) for sequence in X])
    array = np.full((len(X), lengths.max(), X[0].shape[1]), fill)
    for row, sequence in zip(array, X, strict=True):
        row[: len(sequence)] = sequence
    return array, lengths
