"""LSTMRegressor: targets, losses and scores; what it shares with the classifier is tested there."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV

import fastlstm
from fastlstm import LSTMRegressor, losses


def regressor(**params):
    return LSTMRegressor(
        **{"hidden_size": 6, "learning_rate_init": 0.02, "max_iter": 10, "random_state": 0, **params}
    )


@pytest.fixture
def problem(ragged):
    """The ragged sequences, and for each the mean of every feature."""
    X, _ = ragged
    return X, np.array([sequence.mean(axis=0) for sequence in X])


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_learns_one_and_several_targets(problem, pooling):
    X, Y = problem
    one = regressor(max_iter=60, pooling=pooling).fit(X, Y[:, 0])
    assert one.predict(X).shape == (60,) and one.predict(X).dtype == np.float64
    several = regressor(max_iter=60, pooling=pooling).fit(X, Y)
    assert several.predict(X).shape == (60, 3)
    for model, y in ((one, Y[:, 0]), (several, Y)):
        assert model.score(X, y) == r2_score(y, model.predict(X)) > 0.7


@pytest.mark.parametrize(
    "loss", ["squared_error", "absolute_error", "huber", "quantile", "gaussian_nll", losses.Huber(0.5)]
)
def test_losses(problem, loss):
    X, Y = problem
    model = regressor(loss=loss, max_iter=60, early_stopping=True).fit(X, Y, eval_set=(X, Y))
    assert model.score(X, Y) > 0.5
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    if loss == "squared_error":
        np.testing.assert_allclose(model.best_validation_score_, model.score(X, Y), rtol=1e-6)
    assert model.best_validation_score_ == max(model.validation_scores_)


@pytest.mark.parametrize("quantile", [0.1, 0.9])
def test_quantiles(quantile):
    y = np.random.default_rng(0).uniform(size=60)
    constant = [np.zeros((2, 1))] * 60
    model = regressor(loss="quantile", quantile=quantile, max_iter=200, learning_rate_init=0.05)
    prediction = model.fit(constant, y).predict(constant)
    assert abs(np.mean(y < prediction) - quantile) < 0.07


def test_gaussian_likelihood_gives_deviations():
    rng = np.random.default_rng(0)
    X = np.repeat([[[0.0]], [[1.0]]], 200, axis=0)
    y = rng.normal(size=400) * np.repeat([0.2, 2.0], 200)
    model = regressor(loss="gaussian_nll", max_iter=60, learning_rate_init=0.05).fit(X, y)
    mean, std = model.predict(X[[0, -1]], return_std=True)
    np.testing.assert_array_equal(mean, model.predict(X[[0, -1]]))
    np.testing.assert_allclose(std, [0.2, 2.0], rtol=0.3)
    with pytest.raises(ValueError, match="loss='gaussian_nll'"):
        regressor().fit(X, y).predict(X, return_std=True)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.r_[np.ones(59), np.nan], "y contains NaN at row 59"),
        (np.r_[np.ones(59), np.inf], "y contains infinity at row 59"),
        (np.ones(59), "60 sequences but 59 targets"),
        (np.ones((60, 1, 1)), "dim 3|must have shape"),
        (np.array(["a"] * 60), "could not convert"),
        (np.ones(60, complex), "Complex data not supported"),
        (None, "requires y to be passed"),
    ],
)
def test_wrong_targets(problem, y, message):
    with pytest.raises(ValueError, match=message):
        regressor().fit(problem[0], y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss": "poisson"}, "must be one of 'squared_error'.*or a loss of fastlstm.losses"),
        ({"quantile": 1.0}, r"must be a number in \(0, 1\)"),
        ({"loss": losses.Quantile([0.1, 0.9])}, "does not give one prediction per target"),
    ],
)
def test_wrong_parameters(problem, params, message):
    X, Y = problem
    with pytest.raises(ValueError, match=message):
        regressor(**params).fit(X, Y)


def test_column_vector_is_taken_with_a_warning(problem):
    X, Y = problem
    with pytest.warns(DataConversionWarning):
        model = regressor().fit(X, Y[:, :1])
    np.testing.assert_array_equal(model.predict(X), regressor().fit(X, Y[:, 0]).predict(X))


def test_number_of_targets_is_kept(problem):
    X, Y = problem
    model = regressor().partial_fit(X, Y)
    with pytest.raises(ValueError, match="y has 2 targets, but LSTMRegressor was fitted with 3"):
        model.partial_fit(X, Y[:, :2])
    with pytest.raises(ValueError, match=r"eval_set\[1\] has 2 targets"):
        regressor().fit(X, Y, eval_set=(X, Y[:, :2]))


def test_padding_and_weights(problem, padded):
    X, Y = problem
    array, lengths = padded(X)
    weights = (np.arange(60) % 3 > 0).astype(int)
    kept = np.flatnonzero(weights)
    one = regressor().fit(array, Y, lengths=lengths, sample_weight=weights)
    two = regressor().fit([X[i] for i in kept], Y[kept])
    np.testing.assert_array_equal(one.predict(array, lengths=lengths), two.predict(X))
    assert one.score(array, Y, weights, lengths=lengths) == two.score(X, Y, sample_weight=weights)


def test_score_of_the_held_out_part(problem):
    X, Y = problem
    model = regressor(early_stopping=True, validation_fraction=0.25, max_iter=4).fit(X, Y)
    assert model.history_.n_sequences == 45
    assert len(model.validation_scores_) == model.n_iter_


def test_pickle_save_and_stream(problem, tmp_path):
    X, Y = problem
    model = regressor(loss="gaussian_nll").fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    model.save(tmp_path / "model.safetensors")
    loaded = fastlstm.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.kind == "regressor"
    stream = model.stream()
    for t in range(len(X[0])):
        expected = model.predict([X[0][: t + 1]])
        np.testing.assert_allclose(stream.step(X[0][t : t + 1]), expected, rtol=1e-5, atol=1e-6)


def test_grid_search(problem):
    X, Y = problem
    search = GridSearchCV(regressor(max_iter=2), {"loss": ["squared_error", "huber"]}, cv=2, n_jobs=2)
    assert search.fit(X, Y).predict(X).shape == (60, 3)
