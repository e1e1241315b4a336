"""Training losses: the mean loss of a minibatch and its gradient with respect to the network's raw outputs.

Every loss is a function ``f(outputs, targets, weights=None) -> (loss, gradient)`` and a small object of the
same arithmetic that also knows its targets (:class:`Loss`); :func:`get_loss` finds the object by name.

The loss of a minibatch is the weighted mean over its rows of the mean over the outputs of a row, so a row of
weight 0 counts exactly as if it were absent and multiplying all weights by a constant changes nothing. Arrays
keep the dtype of `outputs`; the scalar is accumulated in float64. :func:`ctc_loss` stands apart: its losses
are those of whole sequences, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlstm import _core
from fastlstm._ctc import ctc_loss

Array = NDArray[Any]

__all__ = [
    "AbsoluteError",
    "GaussianNLL",
    "Huber",
    "Loss",
    "Quantile",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "absolute_loss",
    "ctc_loss",
    "gaussian_nll",
    "get_loss",
    "huber_loss",
    "quantile_loss",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "squared_loss",
]

_NOTHING = "the loss of an empty minibatch is undefined: give at least one row and one output"
_WEIGHTLESS = "the weights of a minibatch must sum to a positive number"
_LOG_2PI = math.log(2.0 * math.pi)
_MIN_LOG_VARIANCE = math.log(1e-6)


def _reduce(losses: Array, gradient: Array, weights: Array | None) -> float:
    """Mean of `losses` (n,) or (n, d), weighted by row; scales `gradient` (n, k) in place to match."""
    n_rows = losses.shape[0]
    n_terms = losses.size // n_rows if n_rows else 0
    if n_terms == 0:
        raise ValueError(_NOTHING)
    if weights is None:
        gradient *= gradient.dtype.type(1.0 / losses.size)
        return float(losses.sum(dtype=np.float64)) / losses.size
    total = float(weights.sum(dtype=np.float64)) * n_terms
    if not total > 0.0:
        raise ValueError(_WEIGHTLESS)
    gradient *= (weights / total).astype(gradient.dtype, copy=False)[:, None]
    rows = losses if losses.ndim == 1 else losses.sum(axis=1, dtype=np.float64)
    return float((rows * weights).sum(dtype=np.float64)) / total


def squared_loss(outputs: Array, targets: Array, weights: Array | None = None) -> tuple[float, Array]:
    """Mean squared error, ``mean((outputs - targets)**2)``.

    Parameters
    ----------
    outputs, targets : ndarray of shape (n, k)
        Raw outputs of the network and what they should be.
    weights : ndarray of shape (n,), optional
        Non-negative weight of each row.

    Returns
    -------
    loss : float
    gradient : ndarray of shape (n, k)
        Derivative of the loss with respect to `outputs`.

    Raises
    ------
    ValueError
        If there is no row or the weights sum to zero.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.losses import squared_loss
    >>> squared_loss(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]))[0]
    2.0
    """
    difference = outputs - targets
    losses = np.square(difference)
    difference += difference
    return _reduce(losses, difference, weights), difference


def absolute_loss(outputs: Array, targets: Array, weights: Array | None = None) -> tuple[float, Array]:
    """Mean absolute error, ``mean(|outputs - targets|)``; parameters and result as in :func:`squared_loss`.

    The gradient at ``outputs == targets`` is 0.
    """
    difference = outputs - targets
    losses = np.abs(difference)
    gradient = np.sign(difference, out=difference)
    return _reduce(losses, gradient, weights), gradient


def huber_loss(
    outputs: Array, targets: Array, weights: Array | None = None, *, delta: float = 1.0
) -> tuple[float, Array]:
    """Huber's loss: ``d**2 / 2`` while ``|d| <= delta``, ``delta * (|d| - delta / 2)`` beyond.

    Parameters and result as in :func:`squared_loss`; `delta` is in the units of the targets.

    Source: P. J. Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35 (1964).
    """
    difference = outputs - targets
    gradient = np.clip(difference, -delta, delta)
    difference -= gradient * difference.dtype.type(0.5)
    difference *= gradient
    return _reduce(difference, gradient, weights), gradient


def quantile_loss(
    outputs: Array, targets: Array, weights: Array | None = None, *, q: float | Sequence[float] = 0.5
) -> tuple[float, Array]:
    """Pinball loss, whose minimiser is the conditional `q`-quantile of the targets.

    Parameters
    ----------
    outputs : ndarray of shape (n, d * n_quantiles)
        The quantiles of the first target, then those of the second, and so on.
    targets : ndarray of shape (n, d)
    weights : ndarray of shape (n,), optional
    q : float or sequence of float in (0, 1)
        The quantiles.

    Returns
    -------
    loss, gradient : float, ndarray of the shape of `outputs`

    Notes
    -----
    Source: R. Koenker, G. Bassett, "Regression quantiles", Econometrica 46 (1978).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.losses import quantile_loss
    >>> quantile_loss(np.array([[0.0, 0.0]]), np.array([[1.0]]), q=(0.25, 0.75))[0]
    0.5
    """
    levels = np.atleast_1d(np.asarray(q, outputs.dtype))
    n_rows, n_targets = targets.shape
    error = targets[:, :, None] - outputs.reshape(n_rows, n_targets, levels.size)
    gradient = (error < 0).astype(outputs.dtype)
    gradient -= levels
    error *= -gradient
    gradient = gradient.reshape(n_rows, -1)
    return _reduce(error.reshape(n_rows, -1), gradient, weights), gradient


def softmax_cross_entropy(
    outputs: Array, targets: Array, weights: Array | None = None
) -> tuple[float, Array]:
    """Cross-entropy, in nats, of the softmax of `outputs` with integer class labels.

    Parameters
    ----------
    outputs : ndarray of shape (n, n_classes)
        Unnormalised log-probabilities (logits).
    targets : ndarray of int, shape (n,)
        Index of the true class of each row, in ``[0, n_classes)``.
    weights : ndarray of shape (n,), optional

    Returns
    -------
    loss, gradient : float, ndarray of shape (n, n_classes)

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.losses import softmax_cross_entropy
    >>> loss, gradient = softmax_cross_entropy(np.zeros((1, 2)), np.array([1]))
    >>> round(loss, 6), gradient.tolist()
    (0.693147, [[0.5, -0.5]])
    """
    if outputs.size == 0:
        raise ValueError(_NOTHING)
    if weights is not None:
        weights = np.ascontiguousarray(weights, np.float64)
        if not weights.sum() > 0.0:
            raise ValueError(_WEIGHTLESS)
    gradient = np.empty(outputs.shape, outputs.dtype)
    value = _core.softmax_cross_entropy(
        np.ascontiguousarray(outputs), np.ascontiguousarray(targets, np.int64), weights, gradient
    )
    return value, gradient


def sigmoid_cross_entropy(
    outputs: Array, targets: Array, weights: Array | None = None
) -> tuple[float, Array]:
    """Binary cross-entropy, in nats, of the logistic of `outputs`, averaged over rows and outputs.

    Parameters
    ----------
    outputs : ndarray of shape (n, k)
        Logits of k independent labels.
    targets : ndarray of shape (n, k)
        0 or 1, or a probability between.
    weights : ndarray of shape (n,), optional

    Returns
    -------
    loss, gradient : float, ndarray of shape (n, k)
    """
    decay = np.exp(-np.abs(outputs))
    losses = np.maximum(outputs, 0)
    losses -= outputs * targets
    losses += np.log1p(decay)
    gradient = np.where(outputs >= 0, outputs.dtype.type(1), decay)
    decay += decay.dtype.type(1)
    gradient /= decay
    gradient -= targets
    return _reduce(losses, gradient, weights), gradient


def gaussian_nll(outputs: Array, targets: Array, weights: Array | None = None) -> tuple[float, Array]:
    """Negative log-likelihood, in nats, of the normal distribution that the network gives.

    Parameters
    ----------
    outputs : ndarray of shape (n, 2 * d)
        The d means, then the d logarithms of the variance.
    targets : ndarray of shape (n, d)
    weights : ndarray of shape (n,), optional

    Returns
    -------
    loss, gradient : float, ndarray of shape (n, 2 * d)

    Notes
    -----
    Variances below 1e-6 count as 1e-6; the gradient ignores that bound, so that such a variance can grow
    again.

    Source: D. A. Nix, A. S. Weigend, "Estimating the mean and variance of the target probability
    distribution", ICNN (1994).
    """
    d = targets.shape[1]
    log_variance = np.maximum(outputs[:, d:], outputs.dtype.type(_MIN_LOG_VARIANCE))
    precision = np.exp(-log_variance)
    gradient = np.empty_like(outputs)
    error = np.subtract(outputs[:, :d], targets)
    np.multiply(error, precision, out=gradient[:, :d])
    error *= gradient[:, :d]
    half = outputs.dtype.type(0.5)
    np.multiply(np.subtract(1, error, dtype=outputs.dtype), half, out=gradient[:, d:])
    error += log_variance
    error += outputs.dtype.type(_LOG_2PI)
    error *= half
    return _reduce(error, gradient, weights), gradient


class Loss:
    """A loss as the trainer uses it: its arithmetic, its name and what its targets are.

    Subclasses state `name` and, through :meth:`value_and_gradient`, the arithmetic.
    """

    name: ClassVar[str]

    def value_and_gradient(
        self, outputs: Array, targets: Array, weights: Array | None = None
    ) -> tuple[float, Array]:
        """Mean loss of the rows and its derivative with respect to `outputs` (same shape)."""
        raise TypeError(f"{type(self).__name__} must define value_and_gradient")

    def value(self, outputs: Array, targets: Array, weights: Array | None = None) -> float:
        """Mean loss of the rows."""
        return self.value_and_gradient(outputs, targets, weights)[0]

    def n_outputs(self, n_targets: int) -> int:
        """Number of raw outputs a network needs for `n_targets` targets (or classes)."""
        return n_targets

    def check_targets(self, targets: Any, n_outputs: int, dtype: Any = np.float32) -> Array:
        """Targets as :meth:`value_and_gradient` takes them; done once per fit, not per minibatch.

        Parameters
        ----------
        targets : array-like of shape (n,) or (n, d)
        n_outputs : int
            Raw outputs of the network.
        dtype : dtype
            Of the network.

        Returns
        -------
        ndarray of shape (n, d), C-contiguous

        Raises
        ------
        ValueError
            If the shape does not fit the network or a value is not finite.
        """
        checked = np.ascontiguousarray(targets, dtype=dtype)
        if checked.ndim == 1:
            checked = checked[:, None]
        if checked.ndim != 2 or self.n_outputs(checked.shape[1]) != n_outputs:
            raise ValueError(
                f"targets of shape {np.shape(targets)} do not fit the {self.name} loss of a network with "
                f"{n_outputs} outputs: (n, d) is wanted, with {self._outputs_sentence()}"
            )
        if not np.isfinite(checked).all():
            row = int(np.flatnonzero(~np.isfinite(checked).all(axis=1))[0])
            raise ValueError(f"targets must be finite numbers; row {row} is not")
        return checked

    def _outputs_sentence(self) -> str:
        return "one output per target"

    def get_config(self) -> dict[str, Any]:
        """Name and parameters, from which :func:`get_loss` makes an equal loss; JSON-able."""
        return {"name": self.name, **vars(self)}

    def __repr__(self) -> str:
        parameters = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({parameters})"


class SquaredError(Loss):
    """Mean squared error; see :func:`squared_loss`."""

    name = "squared"
    value_and_gradient = staticmethod(squared_loss)


class AbsoluteError(Loss):
    """Mean absolute error; see :func:`absolute_loss`."""

    name = "absolute"
    value_and_gradient = staticmethod(absolute_loss)


class Huber(Loss):
    """Huber's loss; see :func:`huber_loss`.

    Parameters
    ----------
    delta : float
        Where the loss turns from quadratic to linear, in the units of the targets.
    """

    name = "huber"

    def __init__(self, delta: float = 1.0) -> None:
        if not (math.isfinite(delta) and delta > 0):
            raise ValueError(f"delta must be a positive number; got {delta!r}")
        self.delta = float(delta)

    def value_and_gradient(
        self, outputs: Array, targets: Array, weights: Array | None = None
    ) -> tuple[float, Array]:
        """Mean loss of the rows and its derivative with respect to `outputs`."""
        return huber_loss(outputs, targets, weights, delta=self.delta)


class Quantile(Loss):
    """Pinball loss of one or several quantiles; see :func:`quantile_loss`.

    Parameters
    ----------
    q : float or sequence of float in (0, 1)
    """

    name = "quantile"

    def __init__(self, q: float | Sequence[float] = 0.5) -> None:
        levels = np.atleast_1d(np.asarray(q, np.float64))
        if levels.ndim != 1 or levels.size == 0 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"q must be one number or a sequence of numbers between 0 and 1; got {q!r}")
        self.q: float | list[float] = float(levels[0]) if np.ndim(q) == 0 else levels.tolist()

    def n_outputs(self, n_targets: int) -> int:
        """One output per target and quantile."""
        return n_targets * int(np.size(self.q))

    def _outputs_sentence(self) -> str:
        return f"{np.size(self.q)} outputs (one per quantile) per target"

    def value_and_gradient(
        self, outputs: Array, targets: Array, weights: Array | None = None
    ) -> tuple[float, Array]:
        """Mean loss of the rows and its derivative with respect to `outputs`."""
        return quantile_loss(outputs, targets, weights, q=self.q)


class SoftmaxCrossEntropy(Loss):
    """Cross-entropy with integer class labels; see :func:`softmax_cross_entropy`."""

    name = "softmax_cross_entropy"
    value_and_gradient = staticmethod(softmax_cross_entropy)

    def check_targets(self, targets: Any, n_outputs: int, dtype: Any = np.float32) -> Array:
        """Class indices as a contiguous int64 array of shape (n,), each in ``[0, n_outputs)``."""
        labels = np.asarray(targets)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"targets of the {self.name} loss must be a 1-D array of integer class indices; got an "
                f"array of dtype {labels.dtype} and shape {labels.shape}"
            )
        if labels.size and not (labels.min() >= 0 and labels.max() < n_outputs):
            raise ValueError(
                f"class indices must lie in [0, {n_outputs}); got {labels.min()} to {labels.max()}"
            )
        return np.ascontiguousarray(labels, np.int64)


class SigmoidCrossEntropy(Loss):
    """Binary cross-entropy of independent labels; see :func:`sigmoid_cross_entropy`."""

    name = "sigmoid_cross_entropy"
    value_and_gradient = staticmethod(sigmoid_cross_entropy)

    def check_targets(self, targets: Any, n_outputs: int, dtype: Any = np.float32) -> Array:
        """Targets as a contiguous (n, n_outputs) array of values in [0, 1]."""
        checked = super().check_targets(targets, n_outputs, dtype)
        if checked.size and not (checked.min() >= 0 and checked.max() <= 1):
            raise ValueError(
                f"targets of the {self.name} loss must lie in [0, 1]; got values from {checked.min()} to "
                f"{checked.max()}"
            )
        return checked


class GaussianNLL(Loss):
    """Negative log-likelihood of a normal distribution; see :func:`gaussian_nll`."""

    name = "gaussian_nll"
    value_and_gradient = staticmethod(gaussian_nll)

    def n_outputs(self, n_targets: int) -> int:
        """A mean and a log-variance per target."""
        return 2 * n_targets

    def _outputs_sentence(self) -> str:
        return "two outputs (mean and log-variance) per target"


_LOSSES: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (
        SquaredError,
        AbsoluteError,
        Huber,
        Quantile,
        SoftmaxCrossEntropy,
        SigmoidCrossEntropy,
        GaussianNLL,
    )
}


def get_loss(loss: str | Loss, **parameters: Any) -> Loss:
    """The loss of that name, or `loss` itself if it is one already.

    Parameters
    ----------
    loss : str or Loss
        ``"squared"``, ``"absolute"``, ``"huber"``, ``"quantile"``, ``"softmax_cross_entropy"``,
        ``"sigmoid_cross_entropy"`` or ``"gaussian_nll"``.
    **parameters
        Of the named loss: ``delta`` of huber, ``q`` of quantile.

    Returns
    -------
    Loss

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> from fastlstm.losses import get_loss
    >>> get_loss("huber", delta=2.0)
    Huber(delta=2.0)
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {sorted(_LOSSES)} or a Loss object; got {loss!r}")
    return _LOSSES[loss](**parameters)
