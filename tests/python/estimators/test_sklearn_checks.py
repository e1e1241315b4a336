"""scikit-learn's own checks of estimators, all of them, with no expected failures."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastlstm import LSTMClassifier, LSTMRegressor

ESTIMATORS = [
    LSTMClassifier(8, learning_rate_init=0.02, max_iter=30),
    LSTMRegressor(8, learning_rate_init=0.02, max_iter=30),
    LSTMClassifier(
        4, 2, bidirectional=True, pooling="mean", learning_rate_init=0.05, max_iter=20, precision="float64"
    ),
    LSTMRegressor(8, cell="tlstm", learning_rate_init=0.02, max_iter=30),
    LSTMRegressor(8, missing="observe", learning_rate_init=0.02, max_iter=60),
    LSTMRegressor(8, cell="rnn", solver="nadam", learning_rate_init=0.02, max_iter=30, clip_norm=None),
    LSTMClassifier(4, 2, residual=True, skip="both", learning_rate_init=0.05, max_iter=20),
]


# A generator before scikit-learn 1.7, which pytest takes no more.
CHECKS = parametrize_with_checks(ESTIMATORS)


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
