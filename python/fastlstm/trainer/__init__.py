"""Training of a network: the loop, its minibatches, its record and its checkpoints."""

from __future__ import annotations

from fastlstm.trainer.checkpoint import Checkpoint
from fastlstm.trainer.history import History
from fastlstm.trainer.loop import Trainer
from fastlstm.trainer.state import TrainingDivergedWarning, TrainingInterruptedWarning

__all__ = ["Checkpoint", "History", "Trainer", "TrainingDivergedWarning", "TrainingInterruptedWarning"]
