"""Pictures of training, of predictions and of gradients; matplotlib is imported when something is drawn."""

from fastlstm.plotting._gradient_flow import GradientFlowDisplay
from fastlstm.plotting._report import save_report
from fastlstm.plotting._training_curve import TrainingCurveDisplay

__all__ = ["GradientFlowDisplay", "TrainingCurveDisplay", "save_report"]
