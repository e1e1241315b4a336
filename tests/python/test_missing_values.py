"""Missing values: inputs by the paper's equations, steps against whole sequences, estimators, model files, streams."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

import fastlstm
from fastlstm import LSTMClassifier, LSTMRegressor, Sequences, as_sequences
from fastlstm.inputs import Normalization, fit_missing
from fastlstm.missing import MissingValues
from fastlstm.model import Model
from fastlstm.sequences import as_times
from fastlstm.serialization import ModelFormatError, read_safetensors, write_safetensors

N, FEATURES = 24, 3


def problem(seed: int = 0, gaps: float = 0.5) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sequences with gaps, among them one never observed and one with a feature never observed, and times."""
    rng = np.random.default_rng(seed)
    X = [rng.normal(5.0, 2.0, (length, FEATURES)) for length in rng.integers(1, 12, N)]
    for x in X:
        x[rng.random(x.shape) < gaps] = np.nan
    X[3][:] = np.nan
    X[4][:, 1] = np.nan
    return X, [rng.exponential(3.0, len(x)) for x in X]


def by_the_equations(x: np.ndarray, elapsed: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """x, m and delta of Che et al., equations 1 and 2, for one sequence; (T, 3 * features)."""
    steps, features = x.shape
    m = np.zeros((steps, features))
    delta = np.zeros((steps, features))
    shown = np.zeros((steps, features))
    for d in range(features):
        for t in range(steps):
            m[t, d] = 0.0 if np.isnan(x[t, d]) else 1.0
            if t > 0:
                delta[t, d] = elapsed[t] + (delta[t - 1, d] if m[t - 1, d] == 0.0 else 0.0)
            shown[t, d] = x[t, d] if m[t, d] else (shown[t - 1, d] if t else fill[d])
    return np.hstack((shown, m, delta))


def nan_sequences(X: Any) -> Sequences:
    return as_sequences(X, dtype=np.float64, allow_nan=True)


# ---------------------------------------------------------------- the transformation


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("gaps", [0.0, 0.5, 0.95])
def test_inputs_are_those_of_the_equations(timed: bool, gaps: float) -> None:
    X, delta_t = problem(gaps=gaps)
    fill = np.array([1.0, -2.0, 3.0])
    seqs = nan_sequences(X)
    found = MissingValues(fill).apply(seqs, as_times(delta_t, seqs) if timed else None)
    for x, elapsed, inputs in zip(X, delta_t, found, strict=True):
        want = by_the_equations(x, elapsed if timed else np.ones(len(x)), fill)
        np.testing.assert_allclose(inputs, want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("timed", [False, True])
def test_steps_give_the_bits_of_whole_sequences(timed: bool) -> None:
    X, delta_t = problem()
    missing = MissingValues([1.0, -2.0, 3.0])
    seqs = nan_sequences(X)
    whole = missing.apply(seqs, as_times(delta_t, seqs) if timed else None)
    for i, x in enumerate(X):
        stream = missing.stream()
        for t in range(len(x)):
            step = stream.step(x[t : t + 1], delta_t[i][t : t + 1] if timed else None)
            np.testing.assert_array_equal(step[0], whole[i][t])


def test_sequences_do_not_see_each_other() -> None:
    X, delta_t = problem()
    missing, seqs = MissingValues(np.zeros(FEATURES)), nan_sequences(X)
    whole = missing.apply(seqs, as_times(delta_t, seqs))
    for i in range(N):
        one = nan_sequences([X[i]])
        np.testing.assert_array_equal(missing.apply(one, as_times([delta_t[i]], one)).values, whole[i])


def test_statistics_are_over_observed_values_of_the_training_data() -> None:
    X, delta_t = problem()
    seqs = nan_sequences(X)
    missing, normalization = fit_missing(seqs, as_times(delta_t, seqs))
    rows = np.concatenate(X)
    np.testing.assert_allclose(missing.fill, np.nanmean(rows, axis=0), rtol=1e-13)
    delta = np.concatenate(
        [by_the_equations(x, d, missing.fill)[:, 2 * FEATURES :] for x, d in zip(X, delta_t, strict=True)]
    )
    want = [np.nanstd(rows, axis=0), np.ones(FEATURES), np.sqrt(np.mean(delta**2, axis=0))]
    np.testing.assert_allclose(normalization.scale, np.concatenate(want), rtol=1e-13)
    np.testing.assert_array_equal(normalization.mean, [*missing.fill, *np.zeros(2 * FEATURES)])


def test_statistics_depend_on_weights_as_on_repetition_and_not_on_the_order() -> None:
    X, _ = problem()
    weights = np.arange(1, N + 1) % 3 + 1
    _, repeated = fit_missing(nan_sequences([X[i] for i in np.repeat(np.arange(N), weights)]), None)
    _, weighted = fit_missing(nan_sequences(X), None, weights)
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-13)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-13)
    _, forward = fit_missing(nan_sequences(X), None)
    _, backward = fit_missing(nan_sequences(X[::-1]), None)
    np.testing.assert_array_equal(forward.mean, backward.mean)
    np.testing.assert_array_equal(forward.scale, backward.scale)


def test_a_feature_that_was_never_observed_is_zero() -> None:
    X = [np.array([[1.0, np.nan], [3.0, np.nan]])]
    missing, normalization = fit_missing(nan_sequences(X), None)
    inputs = normalization.apply(missing.apply(nan_sequences(X)))
    np.testing.assert_array_equal(inputs.values[:, [1, 3]], np.zeros((2, 2)))
    assert np.isfinite(inputs.values).all()
    assert Normalization.of(nan_sequences(X)).scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("fill", [[], [np.nan], [[1.0]], [np.inf, 0.0]])
def test_wrong_fill(fill: Any) -> None:
    with pytest.raises(ValueError, match="fill must hold one finite number per feature"):
        MissingValues(fill)


# ---------------------------------------------------------------- estimators


def labels(X: list[np.ndarray]) -> np.ndarray:
    """Whether the first feature was observed more often than not: what only the mask tells."""
    return np.array([np.isnan(x[:, 0]).mean() < 0.5 for x in X]).astype(int)


def classifier(**options: Any) -> LSTMClassifier:
    return LSTMClassifier(
        6, **{"missing": "observe", "learning_rate_init": 0.03, "max_iter": 3, "random_state": 0, **options}
    )


def many(n: int = 80) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    X = [rng.normal(size=(length, 2)) for length in rng.integers(4, 9, n)]
    for i, x in enumerate(X):
        x[rng.random(len(x)) < (0.2, 0.8)[i % 2], 0] = np.nan
    return X


def test_learns_what_only_the_pattern_of_gaps_tells() -> None:
    X = many()
    model = classifier(max_iter=40).fit(X, labels(X))
    assert model.score(X, labels(X)) > 0.9


def test_nan_is_an_error_by_default() -> None:
    X = many()
    with pytest.raises(ValueError, match="X contains NaN at sequence"):
        classifier(missing="error").fit(X, labels(X))
    model = classifier().fit(X, labels(X))
    assert (classifier(missing="error").fit([np.nan_to_num(x) for x in X], labels(X)).n_features_in_) == 2
    assert model.n_features_in_ == 2
    assert model.network_.encoder.input_size == 6


def test_parameter_is_checked_and_cannot_change_in_a_warm_start() -> None:
    X = many()
    with pytest.raises(ValueError, match=r"missing.*'error', 'observe'"):
        classifier(missing="impute").fit(X, labels(X))
    model = classifier(warm_start=True).fit(X, labels(X))
    fill = model._model().missing.fill
    model.fit([x + 100.0 for x in X], labels(X))
    np.testing.assert_array_equal(model._model().missing.fill, fill)
    with pytest.raises(ValueError, match="missing was 'observe' when training started"):
        model.set_params(missing="error").fit([np.nan_to_num(x) for x in X], labels(X))


def test_infinity_and_wrong_widths_are_refused() -> None:
    X = many()
    model = classifier().fit(X, labels(X))
    with pytest.raises(ValueError, match=r"X contains infinity .* at sequence 0, time step 1, feature 1"):
        model.predict([np.array([[np.nan, 1.0], [np.nan, np.inf]])])
    with pytest.raises(ValueError, match="X has 3 features, but LSTMClassifier is expecting 2"):
        model.predict([np.full((2, 3), np.nan)])
    with pytest.raises(ValueError, match="X has 6 features, but the model was trained with 2"):
        model._model().predict([np.full((2, 6), 1.0)])


def test_padded_equals_ragged() -> None:
    X = many()
    lengths = np.array([len(x) for x in X])
    padded = np.full((len(X), lengths.max(), 2), np.inf)
    for row, x in zip(padded, X, strict=True):
        row[: len(x)] = x
    ragged = classifier().fit(X, labels(X))
    other = classifier().fit(padded, labels(X), lengths=lengths)
    np.testing.assert_array_equal(
        ragged.decision_function(X), other.decision_function(padded, lengths=lengths)
    )


def test_held_out_and_weightless_sequences_do_not_enter_the_statistics() -> None:
    X = many()
    strange = [*X, np.full((3, 2), 1e6)]
    y, weights = np.append(labels(X), 0), np.append(np.ones(len(X)), 0.0)
    weighted = classifier().fit(strange, y, sample_weight=weights)
    np.testing.assert_allclose(
        weighted._model().missing.fill, np.nanmean(np.concatenate(X), axis=0), rtol=1e-12
    )
    watched = classifier().fit(X, labels(X), eval_set=(strange, y))
    np.testing.assert_array_equal(watched._model().missing.fill, weighted._model().missing.fill)
    stopped = classifier(early_stopping=True, validation_fraction=0.3).fit(X, labels(X))
    assert (stopped._model().missing.fill != watched._model().missing.fill).all()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["lstm", "tlstm"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("timed", [False, True])
def test_stream_and_saved_model_give_the_bits_of_predict(
    tmp_path: Any, precision: str, cell: str, pooling: str, timed: bool
) -> None:
    X, delta_t = problem()
    options = {"missing": "observe", "cell": cell, "pooling": pooling, "precision": precision}
    model = LSTMRegressor(5, max_iter=2, random_state=0, **options)
    y = np.arange(N) / N
    model.fit(X, y, delta_t=delta_t if timed else None)
    want = model.predict(X, delta_t=delta_t if timed else None)
    model.save(tmp_path / "model.safetensors")
    loaded = fastlstm.load(tmp_path / "model.safetensors")
    assert loaded.info["missing"] == "observe"
    assert loaded.n_features_in_ == FEATURES
    np.testing.assert_array_equal(loaded.predict(X, delta_t=delta_t if timed else None), want)
    stream = loaded.stream()
    for i, x in enumerate(X):
        stream.reset()
        for t in range(len(x)):
            found = stream.step(x[t : t + 1], delta_t[i][t : t + 1] if timed else None)
        np.testing.assert_array_equal(found[0], want[i])


def test_snapshots_and_single_resets_of_streams() -> None:
    X = many()
    stream = classifier().fit(X, labels(X))._model().stream(2)
    rng = np.random.default_rng(2)
    steps = rng.normal(size=(6, 2, 2))
    steps[rng.random(steps.shape) < 0.5] = np.nan
    for x_t in steps[:3]:
        stream.raw_step(x_t)
    kept = stream.snapshot()
    want = [stream.raw_step(x_t).copy() for x_t in steps[3:]]
    stream.restore(kept)
    np.testing.assert_array_equal([stream.raw_step(x_t).copy() for x_t in steps[3:]], want)
    stream.restore(kept)
    stream.reset(1)
    mixed = stream.raw_step(steps[3]).copy()
    np.testing.assert_array_equal(mixed[0], want[0][0])
    stream.reset()
    np.testing.assert_array_equal(stream.raw_step(steps[3])[1], mixed[1])
    with pytest.raises(ValueError, match="snapshot is damaged"):
        stream.restore(kept[:-1])


def test_a_step_that_is_refused_was_not_observed() -> None:
    X = many()
    stream = classifier().fit(X, labels(X))._model().stream()
    stream.raw_step([[1.0, np.nan]])
    kept = stream.snapshot()
    for wrong in (np.inf, 1e300):
        with pytest.raises(ValueError, match="x_t of stream 0"):
            stream.raw_step([[wrong, 0.0]])
        assert stream.snapshot() == kept


def test_times_can_be_given_for_any_cell() -> None:
    """They count for the times since last observed, and change the prediction."""
    X, delta_t = problem()
    model = LSTMRegressor(4, missing="observe", max_iter=2, random_state=0).fit(
        X, np.ones(N), delta_t=delta_t
    )
    slow = model.predict(X, delta_t=[10 * d for d in delta_t])
    assert np.abs(slow - model.predict(X, delta_t=delta_t)).max() > 1e-3
    np.testing.assert_array_equal(model.predict(X), model.predict(X, delta_t=[np.ones(len(x)) for x in X]))
    with pytest.raises(ValueError, match=r"delta_t is -1\.0 at sequence 1, time step 0"):
        model.predict([[[1.0] * 3], [[1.0] * 3]], delta_t=[[0.0], [-1.0]])


def test_clone_and_pickle() -> None:
    X = many()
    model = classifier().fit(X, labels(X))
    assert clone(model).missing == "observe"
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.decision_function(X), model.decision_function(X))


def test_parts_of_a_model_must_fit(tmp_path: Any) -> None:
    X = many()
    model = classifier().fit(X, labels(X))._model()
    with pytest.raises(
        ValueError, match="3 features with missing values make 9 inputs, but the network has 6"
    ):
        Model(model.network, model.decision, missing=MissingValues(np.zeros(3)))
    model.save(tmp_path / "model.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "model.safetensors")
    write_safetensors(tmp_path / "wrong.safetensors", {**tensors, "missing.fill": np.zeros(3)}, metadata)
    with pytest.raises(ModelFormatError, match="configuration does not fit: 3 features with missing values"):
        fastlstm.load(tmp_path / "wrong.safetensors")
