"""What happened during training: one entry per finished epoch, and how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["History"]


@dataclasses.dataclass
class History:
    """Record of a training.

    Attributes
    ----------
    loss_curve : list of float
        Mean training loss of each epoch, with the L2 term.
    validation_scores : list of float
        Validation score after each epoch; empty without validation data.
    learning_rates : list of float
        Learning rate of the last minibatch of each epoch.
    gradient_norms : list of float
        Mean over each epoch's minibatches of the gradient's norm before clipping.
    seconds : list of float
        Duration of each epoch.
    n_sequences : int
        Sequences an epoch trains on.
    best_epoch : int or None
        Epoch, counted from 1, of the best validation score, or of the least training loss without validation
        data.
    stop_reason : str or None
        ``"max_iter"``, ``"no_improvement"``, ``"callback"``, ``"interrupted"`` or ``"diverged"``.
    best_weights_restored : bool
        Whether the network has the weights of `best_epoch`, not the last ones.
    resumed_epoch : int or None
        Epoch, counted from 1, in which training went on from a checkpoint.
    """

    loss_curve: list[float] = dataclasses.field(default_factory=list)
    validation_scores: list[float] = dataclasses.field(default_factory=list)
    learning_rates: list[float] = dataclasses.field(default_factory=list)
    gradient_norms: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    n_sequences: int = 0
    best_epoch: int | None = None
    stop_reason: str | None = None
    best_weights_restored: bool = False
    resumed_epoch: int | None = None

    @property
    def n_iter(self) -> int:
        """Number of finished epochs."""
        return len(self.loss_curve)

    @property
    def best_loss(self) -> float | None:
        """Least training loss of an epoch; None before the first has finished."""
        return min(self.loss_curve, default=None)

    @property
    def best_validation_score(self) -> float | None:
        """Best validation score; None without validation data."""
        return max(self.validation_scores, default=None)

    def __len__(self) -> int:
        return self.n_iter

    def rows(self) -> list[dict[str, float]]:
        """One dictionary per epoch, ready for ``pandas.DataFrame``.

        Examples
        --------
        >>> from fastlstm.trainer.history import History
        >>> History([0.5], [], [1e-3], [1.0], [0.1]).rows()[0]["loss"]
        0.5
        """
        columns = {
            "loss": self.loss_curve,
            "validation_score": self.validation_scores,
            "learning_rate": self.learning_rates,
            "gradient_norm": self.gradient_norms,
            "seconds": self.seconds,
        }
        return [
            {"epoch": i + 1, **{name: column[i] for name, column in columns.items() if i < len(column)}}
            for i in range(self.n_iter)
        ]

    def drop_unfinished(self) -> None:
        """Remove what an epoch that was interrupted while it was being noted left behind."""
        for column in (self.loss_curve, self.validation_scores, self.learning_rates, self.gradient_norms):
            del column[len(self.seconds) :]

    def to_dict(self) -> dict[str, Any]:
        """All attributes; JSON-able."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> History:
        """The history that :meth:`to_dict` wrote."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in entries.items() if name in names})
