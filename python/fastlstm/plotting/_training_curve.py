"""The course of training: loss and validation score against the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


class TrainingCurveDisplay:
    """Loss and validation score of each epoch.

    Use `from_estimator`, then `plot` (with matplotlib) or `text` (without).

    Parameters
    ----------
    loss_curve : sequence of float
        Training loss after each epoch.
    validation_scores : sequence of float, optional
        Validation score after each epoch.
    score_name : str, default "validation score"
        Name of the second curve.

    Attributes
    ----------
    figure_, ax_ : matplotlib figure and axes
        After `plot`.
    lines_ : list of matplotlib lines
        After `plot`: the loss, and the score if there is one.

    Examples
    --------
    >>> display = TrainingCurveDisplay([1.0, 0.5, 0.25])
    >>> print(display.text(width=24, height=4))
    loss
       1 |*
         |
         |        *
    0.25 |               *
         +----------------
          1              3
                     epoch
    """

    def __init__(
        self,
        loss_curve: Sequence[float],
        validation_scores: Sequence[float] | None = None,
        *,
        score_name: str = "validation score",
    ) -> None:
        self.loss_curve = [float(value) for value in loss_curve]
        self.validation_scores = [float(value) for value in _or_empty(validation_scores)]
        self.score_name = score_name

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **line_kw: Any) -> TrainingCurveDisplay:
        """Draw the curves of a fitted estimator.

        Parameters
        ----------
        estimator : fitted estimator
            With `loss_curve_` and, after early stopping or with `eval_set`, `validation_scores_`.
        ax : matplotlib axes, optional
            Where to draw; a new figure by default.
        **line_kw
            Passed to ``ax.plot`` for the loss.

        Raises
        ------
        ValueError
            If the estimator is not fitted.
        """
        return cls._of(estimator).plot(ax=ax, **line_kw)

    @classmethod
    def _of(cls, estimator: Any) -> TrainingCurveDisplay:
        curve = getattr(estimator, "loss_curve_", None)
        if curve is None:
            name = type(estimator).__name__
            raise ValueError(f"this {name} has no training curve: call fit before drawing it")
        return cls(curve, getattr(estimator, "validation_scores_", None))

    def plot(self, ax: Any = None, **line_kw: Any) -> TrainingCurveDisplay:
        """Draw the curves with matplotlib.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; a new figure by default.
        **line_kw
            Passed to ``ax.plot`` for the loss.

        Returns
        -------
        TrainingCurveDisplay
            Itself.
        """
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            from matplotlib import pyplot

            _, ax = pyplot.subplots()
        epochs = range(1, len(self.loss_curve) + 1)
        self.lines_ = ax.plot(epochs, self.loss_curve, **{"label": "training loss", "color": "C0", **line_kw})
        ax.set(xlabel="epoch", ylabel="training loss", title="Training")
        if min(self.loss_curve, default=0.0) > 0 and max(self.loss_curve) > 50 * min(self.loss_curve):
            ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if self.validation_scores:
            self._plot_scores(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_scores(self, ax: Any) -> None:
        """Second curve, with its own scale on the right."""
        right = ax.twinx()
        epochs = range(1, len(self.validation_scores) + 1)
        self.lines_ += right.plot(epochs, self.validation_scores, color="C1", label=self.score_name)
        right.set_ylabel(self.score_name)
        ax.legend(self.lines_, [line.get_label() for line in self.lines_], loc="center right")

    def text(self, width: int = 72, height: int = 12) -> str:
        """The loss as a plain-text picture, for terminals.

        Parameters
        ----------
        width, height : int
            Size in characters of the whole picture and in lines of the curve.

        Returns
        -------
        str
        """
        finite = [value for value in self.loss_curve if math.isfinite(value)]
        if not finite:
            return "(no finite loss to draw)"
        low, high = min(finite), max(finite)
        labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}" if low < high else ""]
        margin = max(map(len, labels))
        columns = max(8, width - margin - 4)
        grid = _grid(self.loss_curve, low, high, columns, height)
        rows = [f"{label:>{margin}} |{line}".rstrip() for label, line in zip(labels, grid, strict=True)]
        last = str(len(self.loss_curve))
        indent = " " * (margin + 2)
        axis = [" " * (margin + 1) + "+" + "-" * columns]
        numbers = indent + "1" + last.rjust(columns - 1) if last != "1" else indent + "1"
        return "\n".join(["loss", *rows, *axis, numbers, indent + "epoch".rjust(columns)])


def _or_empty(values: Sequence[float] | None) -> Sequence[float]:
    return () if values is None else values


def _grid(values: Sequence[float], low: float, high: float, columns: int, height: int) -> list[str]:
    """Lines of text with a star for each value, the first value left and the last one right."""
    canvas = np.full((height, columns), " ")
    spread, steps = (high - low) or 1.0, max(len(values) - 1, 1)
    for position, value in enumerate(values):
        if math.isfinite(value):
            row = round((high - value) / spread * (height - 1))
            canvas[row, round(position * (columns - 1) / steps)] = "*"
    return ["".join(line) for line in canvas]
