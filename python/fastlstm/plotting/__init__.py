"""Pictures of training and of predictions; matplotlib is imported when something is drawn."""

from fastlstm.plotting._report import save_report
from fastlstm.plotting._training_curve import TrainingCurveDisplay

__all__ = ["TrainingCurveDisplay", "save_report"]
