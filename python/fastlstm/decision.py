"""From the raw outputs of a network to labels, probabilities and predicted values.

Estimators and loaded models use the functions of this file, so both give the same numbers. Everything
is computed in float64 from the raw outputs, whatever the dtype of the network: the probabilities of a
row then sum to one to the last digits, and none is rounded to exactly 0 or 1 where it need not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["binary", "multiclass", "multilabel", "regression"]
KINDS: tuple[str, ...] = get_args(Kind)


def sigmoid(raw: ArrayLike) -> NDArray[np.float64]:
    """Logistic function 1 / (1 + exp(-raw)) in float64, without overflow at either end.

    Examples
    --------
    >>> sigmoid([0.0]).tolist()
    [0.5]
    """
    raw = np.asarray(raw, dtype=np.float64)
    decay = np.exp(-np.abs(raw))
    return np.asarray(np.where(raw >= 0, 1.0, decay) / (1.0 + decay))


def log_sigmoid(raw: ArrayLike) -> NDArray[np.float64]:
    """Logarithm of the logistic function in float64, exact far into the tails."""
    raw = np.asarray(raw, dtype=np.float64)
    return np.asarray(np.minimum(raw, 0.0) - np.log1p(np.exp(-np.abs(raw))))


def log_softmax(raw: ArrayLike) -> NDArray[np.float64]:
    """Logarithm of the softmax over the last axis, in float64; same shape as `raw`."""
    raw = np.asarray(raw, dtype=np.float64)
    shifted = raw - raw.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(raw: ArrayLike) -> NDArray[np.float64]:
    """Softmax over the last axis, in float64; same shape as `raw`.

    Examples
    --------
    >>> softmax([[1.0, 1.0]]).tolist()
    [[0.5, 0.5]]
    """
    raw = np.asarray(raw, dtype=np.float64)
    weights = np.exp(raw - raw.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def probabilities(raw: ArrayLike, kind: str) -> NDArray[np.float64]:
    """Class probabilities from raw outputs.

    Parameters
    ----------
    raw : array-like of shape (n, n_outputs)
        Outputs of the head: one logit for ``"binary"``, one per class or label otherwise.
    kind : {"binary", "multiclass", "multilabel"}
        What the outputs mean.

    Returns
    -------
    ndarray of shape (n, n_classes), float64
        Rows sum to 1, except for ``"multilabel"``: there each column is the probability of its label.

    Raises
    ------
    ValueError
        If `kind` is no kind of classification.
    """
    raw = _checked_raw(raw)
    if kind == "binary":
        return np.concatenate([sigmoid(-raw[:, :1]), sigmoid(raw[:, :1])], axis=1)
    if kind == "multiclass":
        return softmax(raw)
    if kind == "multilabel":
        return sigmoid(raw)
    raise ValueError(f"kind {kind!r} has no probabilities: expected 'binary', 'multiclass' or 'multilabel'")


def log_probabilities(raw: ArrayLike, kind: str) -> NDArray[np.float64]:
    """Logarithm of `probabilities`, computed without the rounding of the probabilities."""
    raw = _checked_raw(raw)
    if kind == "binary":
        return np.concatenate([log_sigmoid(-raw[:, :1]), log_sigmoid(raw[:, :1])], axis=1)
    if kind == "multiclass":
        return log_softmax(raw)
    if kind == "multilabel":
        return log_sigmoid(raw)
    raise ValueError(f"kind {kind!r} has no probabilities: expected 'binary', 'multiclass' or 'multilabel'")


def labels(raw: ArrayLike, kind: str, classes: NDArray[Any]) -> NDArray[Any]:
    """Most probable labels from raw outputs.

    Parameters
    ----------
    raw : array-like of shape (n, n_outputs)
        Outputs of the head.
    kind : {"binary", "multiclass", "multilabel"}
        What the outputs mean.
    classes : ndarray of shape (n_classes,)
        The labels, in the order of the outputs; not used by ``"multilabel"``.

    Returns
    -------
    ndarray of shape (n,), or (n, n_labels) of 0 and 1 (int64) for ``"multilabel"``

    Examples
    --------
    >>> labels([[-1.0], [2.0]], "binary", np.array(["no", "yes"])).tolist()
    ['no', 'yes']
    """
    raw = _checked_raw(raw)
    if kind == "multilabel":
        return (raw > 0).astype(np.int64)
    if kind == "binary":
        return np.asarray(classes)[(raw[:, 0] > 0).astype(np.intp)]
    if kind == "multiclass":
        return np.asarray(classes)[raw.argmax(axis=1)]
    raise ValueError(f"kind {kind!r} has no labels: expected 'binary', 'multiclass' or 'multilabel'")


def _checked_raw(raw: ArrayLike) -> NDArray[Any]:
    raw = np.asarray(raw)
    if raw.ndim != 2 or raw.shape[1] == 0:
        raise ValueError(f"raw outputs must have shape (n, n_outputs), got {raw.shape}")
    return raw


@dataclass(frozen=True, eq=False)
class Decision:
    """What the outputs of a network mean, and how to turn them into predictions.

    Parameters
    ----------
    kind : {"binary", "multiclass", "multilabel", "regression"}
        What is predicted.
    classes : ndarray of shape (n_classes,) or None
        The labels in the order of the outputs; None for regression.
    n_targets : int
        Number of predicted values per sequence (regression); 1 otherwise.
    flat : bool
        Regression: whether `predict` gives shape (n,) rather than (n, n_targets).
    variance : bool
        Regression: whether the outputs are the means followed by the log-variances.

    Examples
    --------
    >>> decision = Decision("multiclass", np.array(["a", "b", "c"]))
    >>> decision.predict(np.array([[0.1, 3.0, 0.2]])).tolist()
    ['b']
    """

    kind: str
    classes: NDArray[Any] | None = None
    n_targets: int = 1
    flat: bool = True
    variance: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")
        if (self.classes is None) != (self.kind == "regression"):
            raise ValueError("classes must be given for classification and left out for regression")
        if self.n_targets < 1 or (self.flat and self.n_targets > 1 and self.kind == "regression"):
            raise ValueError(f"{self.n_targets} targets do not fit flat={self.flat}")
        if self.kind == "binary" and len(self._labels) != 2:
            raise ValueError(f"a binary decision needs 2 classes, got {len(self._labels)}")

    @property
    def _labels(self) -> NDArray[Any]:
        if self.classes is None:
            raise ValueError("a regression has no classes and no probabilities")
        return self.classes

    @property
    def is_classifier(self) -> bool:
        """Whether labels are predicted, rather than values."""
        return self.kind != "regression"

    @property
    def n_outputs(self) -> int:
        """Number of outputs that the network must have."""
        if self.kind == "binary":
            return 1
        if self.kind == "regression":
            return self.n_targets * (2 if self.variance else 1)
        return len(self._labels)

    def predict(self, raw: ArrayLike) -> NDArray[Any]:
        """Labels, or float64 values, of shape (n,) or (n, n_targets) from `raw` (n, n_outputs)."""
        raw = self._fitting(raw)
        if self.is_classifier:
            return labels(raw, self.kind, self._labels)
        return self._shaped(raw[:, : self.n_targets].astype(np.float64))

    def predict_std(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Predicted standard deviations, shaped as `predict`; only where the outputs hold variances."""
        if not self.variance:
            raise ValueError("this model predicts no standard deviation: train it with loss='gaussian_nll'")
        log_variance = self._fitting(raw)[:, self.n_targets :].astype(np.float64)
        return self._shaped(np.exp(0.5 * np.clip(log_variance, -700.0, 700.0)))

    def predict_proba(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Probabilities (n, n_classes) from `raw` (n, n_outputs)."""
        return probabilities(self._fitting(raw), self.kind)

    def predict_log_proba(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Log-probabilities (n, n_classes) from `raw` (n, n_outputs)."""
        return log_probabilities(self._fitting(raw), self.kind)

    def _fitting(self, raw: ArrayLike) -> NDArray[Any]:
        raw = _checked_raw(raw)
        if raw.shape[1] != self.n_outputs:
            raise ValueError(f"raw outputs must have {self.n_outputs} columns, got {raw.shape[1]}")
        return raw

    def _shaped(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values[:, 0] if self.flat else values

    def to_dict(self) -> dict[str, Any]:
        """Plain description of the decision, for a model file (`classes` stays an array)."""
        return {
            "kind": self.kind,
            "classes": self.classes,
            "n_targets": self.n_targets,
            "flat": self.flat,
            "variance": self.variance,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Decision:
        """Inverse of `to_dict`; unknown keys are ignored, a wrong value is a ValueError."""
        classes = description.get("classes")
        n_targets = description.get("n_targets", 1)
        if not isinstance(n_targets, int) or isinstance(n_targets, bool):
            raise ValueError(f"n_targets must be a whole number, got {n_targets!r}")
        if classes is not None and np.ndim(classes) != 1:
            raise ValueError("classes must be a one-dimensional array")
        return cls(
            str(description.get("kind")),
            None if classes is None else np.asarray(classes),
            n_targets,
            bool(description.get("flat", True)),
            bool(description.get("variance", False)),
        )
