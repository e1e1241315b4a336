"""Connectionist temporal classification: arguments checked here, loss and gradient computed in C."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlstm import _core

Array = NDArray[Any]
IntArray = NDArray[np.int64]


def check_scores(scores: ArrayLike, name: str, blank: int) -> Array:
    """`scores` as a contiguous float32 or float64 array (batch, time, classes) that has the class `blank`."""
    array = np.asarray(scores)
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            f"{name} must have the shape (batch, time, classes), none of them 0; got {array.shape}"
        )
    if not 0 <= blank < array.shape[2]:
        raise ValueError(f"blank must be one of the {array.shape[2]} classes; got {blank}")
    return np.ascontiguousarray(array)


def check_lengths(lengths: ArrayLike, n: int, longest: int, name: str) -> IntArray:
    """`lengths` as an int64 array (n,) of values in [0, longest]."""
    array = np.asarray(lengths)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be {n} whole numbers, one per sequence; got the shape {array.shape} and dtype "
            f"{array.dtype}"
        )
    wrong = (array < 0) | (array > longest)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name}[{i}] is {array[i]}; it must lie in [0, {longest}]")
    return np.ascontiguousarray(array, np.int64)


def _check_targets(
    targets: ArrayLike, target_lengths: ArrayLike, n: int, classes: int, blank: int
) -> tuple[IntArray, IntArray, IntArray]:
    """The labels as one flat array, the start and the length of each target in it."""
    try:
        labels = np.asarray(targets)
    except ValueError:
        raise ValueError(
            "targets of different lengths are given one after another in a 1-D array, or padded in a 2-D array"
        ) from None
    if labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"targets must hold whole numbers, got dtype {labels.dtype}")
    if labels.ndim == 2 and len(labels) == n:
        lengths = check_lengths(target_lengths, n, labels.shape[1], "target_lengths")
        starts = np.arange(n, dtype=np.int64) * labels.shape[1]
        real = np.arange(labels.shape[1]) < lengths[:, None]
    elif labels.ndim == 1:
        lengths = check_lengths(target_lengths, n, labels.size, "target_lengths")
        if lengths.sum() != labels.size:
            raise ValueError(
                f"targets has {labels.size} labels one after another, but target_lengths add up to "
                f"{lengths.sum()}"
            )
        starts = np.cumsum(lengths) - lengths
        real = np.ones(labels.size, bool)
    else:
        raise ValueError(
            f"targets must have the shape ({n}, longest target), or be one row of labels, one target after "
            f"another; got the shape {labels.shape}"
        )
    wrong = real & ((labels < 0) | (labels >= classes) | (labels == blank))
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"targets[{', '.join(map(str, where))}] is {labels[where]}; labels must lie in [0, {classes}) "
            f"and differ from the blank, {blank}"
        )
    return np.ascontiguousarray(labels, np.int64), starts, lengths


def ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int = 0,
    *,
    from_logits: bool = False,
) -> tuple[NDArray[np.float64], Array]:
    """Connectionist temporal classification: ``-ln p(target | log_probs)`` of each sequence.

    The probability of a target is the sum over all its alignments: one class per step, of which repetitions
    are merged and blanks then removed.

    Parameters
    ----------
    log_probs : array-like of shape (batch, time, classes)
        Logarithms of the class probabilities; -inf is allowed. float32 and float64 are computed as they are.
    targets : array-like of int, shape (batch, longest target) or (sum of target_lengths,)
        Labels, padded or one target after another; none may be the blank. Padding is not read.
    input_lengths : array-like of int, shape (batch,)
        Real steps of each sequence. Later ones are not read.
    target_lengths : array-like of int, shape (batch,)
        Labels of each target; 0 is allowed.
    blank : int
        The class that stands for no label.
    from_logits : bool
        The first argument holds unnormalised scores: log-softmax is applied inside, and the gradient is the
        one with respect to the scores, ``softmax - posterior``. What a network with a linear output wants.

    Returns
    -------
    loss : ndarray of float64, shape (batch,)
        Infinite where no alignment exists or all have probability 0; NaN where `log_probs` makes it so.
    gradient : ndarray of shape (batch, time, classes), dtype of `log_probs`
        Derivative of the sum of the losses. 0 behind a sequence's length and for an infinite loss.

    Raises
    ------
    ValueError
        If shapes, lengths or labels do not fit each other.

    Notes
    -----
    The gradient is the mathematical one, with every element of `log_probs` a variable of its own: minus the
    posterior probability of the class at the step. ``torch.nn.functional.ctc_loss`` returns
    ``exp(log_probs) - posterior`` instead, which is right only if a log-softmax follows on the way back;
    through one, both give the same.

    Probabilities are kept as significand and exponent, so that neither the length of the sequence nor an
    unlikely target costs accuracy. A log-probability below -1.4e6 counts as -inf, and a loss above 1.8e8 as
    infinite. Results do not depend on the number of threads.

    Source: A. Graves et al., "Connectionist temporal classification", ICML (2006).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.losses import ctc_loss
    >>> log_probs = np.log(np.full((1, 2, 2), 0.5))
    >>> loss, gradient = ctc_loss(log_probs, [[1]], [2], [1])  # alignments 1-, -1 and 11 of four
    >>> float(np.exp(-loss[0]).round(6)), (-gradient[0]).round(3).tolist()
    (0.75, [[0.333, 0.667], [0.333, 0.667]])
    """
    x = check_scores(log_probs, "log_probs", blank)
    n, steps, classes = x.shape
    lengths = check_lengths(input_lengths, n, steps, "input_lengths")
    labels, starts, label_lengths = _check_targets(targets, target_lengths, n, classes, blank)
    loss, gradient = np.empty(n), np.empty_like(x)
    shape, target = (n, steps, classes), (labels, starts, label_lengths)
    _core.ctc_loss(x.dtype.name, *shape, x, lengths, *target, blank, from_logits, loss, gradient)
    return loss, gradient
