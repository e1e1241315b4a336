"""One picture of a finished training: its course, and how the predictions compare with the truth."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastlstm.plotting._training_curve import TrainingCurveDisplay


def save_report(
    path: str | os.PathLike[str], estimator: Any, y_true: ArrayLike, y_pred: ArrayLike, *, title: str = ""
) -> None:
    """Write a picture with the training curve beside the confusion matrix, or predicted against true values.

    Parameters
    ----------
    path : str or path-like
        File to write; its ending says the kind (``.png``, ``.pdf``, ``.svg`` ...).
    estimator : fitted estimator
        Whose training curve to draw.
    y_true, y_pred : array-like of shape (n,) or (n, n_targets)
        True and predicted labels or values of held-out sequences; a confusion matrix is drawn for
        one-dimensional labels.
    title : str, optional
        Title of the picture.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    TrainingCurveDisplay._of(estimator).plot(ax=left)
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    if hasattr(estimator, "classes_") and truth.ndim == 1:
        _confusion(right, truth, predicted)
    else:
        _scatter(right, truth, predicted)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _confusion(ax: Any, truth: Any, predicted: Any) -> None:
    from sklearn.metrics import ConfusionMatrixDisplay

    ConfusionMatrixDisplay.from_predictions(truth, predicted, ax=ax, colorbar=False, cmap="Blues")
    ax.set_title("Held-out predictions")


def _scatter(ax: Any, truth: Any, predicted: Any) -> None:
    ax.plot(truth.reshape(len(truth), -1), predicted.reshape(len(predicted), -1), ".", alpha=0.6)
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    ax.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
    ax.set(xlabel="true", ylabel="predicted", title="Held-out predictions")
