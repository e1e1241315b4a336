"""Minibatches of ragged sequences: which sequences an epoch takes together, in which order.

An epoch's plan is a pure function of the seed and the epoch's number, so a training that was stopped anywhere
can find its place again. Sequences are shuffled, sorted by length inside windows of some batches so that the
sequences of a minibatch are of similar length, and the minibatches are shuffled again.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastlstm.sequences import Sequences

Array = NDArray[Any]

__all__ = ["Batches", "EpochPlan", "check_weights"]

_MAX_WINDOW = 32  # batches that are sorted by length together; a quarter of the epoch at most
_FEWEST_SORTED = 8  # batches of an epoch; fewer are not sorted
_DIGEST_BYTES = 1 << 26  # of the values that a digest looks at


def check_weights(weights: Any, n: int, name: str = "weights") -> Array | None:
    """Sample weights as float64 of shape (n,), or None where they are all 1.

    Raises
    ------
    ValueError
        If there are not n of them, one is negative or not finite, or all are 0.
    """
    if weights is None:
        return None
    checked = np.ascontiguousarray(weights, np.float64)
    if checked.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one number per sequence; got {checked.shape}")
    if not (np.isfinite(checked).all() and (checked >= 0).all()):
        raise ValueError(f"{name} must be finite and not negative")
    if not checked.any():
        raise ValueError(f"{name} must not all be 0")
    return None if (checked == 1.0).all() else checked


class EpochPlan:
    """The minibatches of one epoch; minibatch b is rows ``spans[b]`` of the arrays.

    Attributes
    ----------
    spans : list of slice
    totals : list of float
        Sum of the weights of each minibatch.
    starts, lengths : ndarray of int64, shape (n,)
    targets : ndarray of shape (n, ...)
    weights : ndarray of shape (n,) or None
    """

    __slots__ = ("lengths", "spans", "starts", "targets", "totals", "weights")

    def __init__(self, data: Batches, order: Array | None, spans: list[slice]) -> None:
        def take(array: Array) -> Array:
            return array if order is None else array[order]

        self.starts, self.lengths, self.targets = take(data.starts), take(data.lengths), take(data.targets)
        self.weights = None if data.weights is None else take(data.weights)
        self.spans = spans
        if self.weights is None:
            self.totals = [float(span.stop - span.start) for span in spans]
        else:
            self.totals = [float(self.weights[span].sum()) for span in spans]


class Batches:
    """Training data cut into minibatches anew for each epoch.

    Sequences of weight 0 are left out at once, so a training is exactly the one of the data without them.

    Parameters
    ----------
    seqs : Sequences
    targets : ndarray of shape (len(seqs), ...)
    weights : ndarray of shape (len(seqs),) or None
        As :func:`check_weights` returns them.
    batch_size : int
    shuffle : bool
        Without, every epoch takes the sequences in the order given.
    dtype : dtype
        Of the network; the values are converted if they have another.
    """

    def __init__(
        self,
        seqs: Sequences,
        targets: Array,
        weights: Array | None,
        batch_size: int,
        shuffle: bool = True,
        dtype: Any = None,
    ) -> None:
        self.values = np.ascontiguousarray(seqs.values, dtype)
        offsets = np.asarray(seqs.offsets, np.int64)
        starts, lengths = offsets[:-1], np.diff(offsets)
        if weights is not None and not weights.all():
            kept = np.flatnonzero(weights)
            starts, lengths, targets = starts[kept], lengths[kept], targets[kept]
            weights = check_weights(weights[kept], len(kept))
        self.starts = np.ascontiguousarray(starts)
        self.lengths = np.ascontiguousarray(lengths)
        self.targets = targets
        self.weights = weights
        self.batch_size = min(batch_size, len(starts))
        self.shuffle = shuffle
        n, size = len(starts), self.batch_size
        self._spans = [slice(first, min(first + size, n)) for first in range(0, n, size)]
        self._ragged = bool((lengths != lengths[0]).any())
        self._windows = np.arange(n) // (size * max(1, min(_MAX_WINDOW, self.n_batches // 4)))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def n_batches(self) -> int:
        """Minibatches of an epoch."""
        return len(self._spans)

    def plan(self, seed: int, epoch: int) -> EpochPlan:
        """The minibatches of that epoch (counted from 0)."""
        if not self.shuffle:
            return EpochPlan(self, None, self._spans)
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self))
        if not self._ragged or len(self._spans) < _FEWEST_SORTED:
            return EpochPlan(self, order, self._spans)
        order = order[np.lexsort((-self.lengths[order], self._windows))]
        drawn = [self._spans[place] for place in rng.permutation(len(self._spans)).tolist()]
        ends = list(itertools.accumulate(span.stop - span.start for span in drawn))
        spans = [slice(first, last) for first, last in zip([0, *ends], ends, strict=False)]
        return EpochPlan(self, np.concatenate([order[span] for span in drawn]), spans)

    def digest(self) -> str:
        """Digest of the data; of very long data, every k-th time step is looked at."""
        stride = max(1, self.values.nbytes // _DIGEST_BYTES)
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.values[::stride], self.starts, self.lengths, self.targets, self.weights):
            if array is not None and array.dtype.hasobject:
                array = array.astype(str)
            if array is not None:
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
