"""scikit-learn estimators on ragged sequences."""

from __future__ import annotations

from fastlstm.estimators.classifier import LSTMClassifier
from fastlstm.estimators.regressor import LSTMRegressor

__all__ = ["LSTMClassifier", "LSTMRegressor"]
