"""Options of the recurrent layer as parameters of the estimators: trained, saved, loaded and streamed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone

import fastlstm
from fastlstm import LSTMClassifier, LSTMRegressor
from fastlstm.layers import LSTM, Stack

OPTIONS = [
    {"proj_size": 5},
    {"cells_per_block": 2},
    {"layer_norm": True},
    {"zoneout": 0.1},
    {"cell": "gru", "zoneout": (0.1, 0.0), "num_layers": 2},
    {"cell": "gru", "layer_norm": True, "num_layers": 2},
    {"cell": "lstm1997_gates", "cells_per_block": 4, "truncated": True},
    {"cell": "peephole", "truncated": "peepholes"},
    {"cell": "fgr", "proj_size": 3, "learn_initial_state": True},
    {"cell": "gru", "learn_initial_state": True},
    {"proj_size": 4, "bidirectional": True, "num_layers": 2, "recurrent_dropout": 0.1},
    {"num_layers": 3, "residual": True, "dropout": 0.1},
    {"num_layers": 2, "skip": "both", "pooling": "mean", "cell": "gru"},
    {"num_layers": 2, "residual": True, "skip": "output", "learn_initial_state": True, "pooling": "max"},
    {"num_layers": 2, "residual": True, "checkpoint_every": 3},
    {"num_layers": 2, "bidirectional": True, "merge": "sum", "residual": True},
]


def data() -> tuple[list[np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    x = [random.standard_normal((length, 2)) for length in random.integers(3, 9, 60)]
    return x, np.array([row[:, 0].sum() > 0 for row in x])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_classifier_learns_and_its_file_answers_the_same(options: dict, tmp_path) -> None:
    x, y = data()
    model = LSTMClassifier(8, max_iter=60, learning_rate_init=0.02, random_state=0, **options).fit(x, y)
    assert model.score(x, y) > 0.85
    model.save(tmp_path / "model.safetensors")
    loaded = fastlstm.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
    if not options.get("bidirectional"):
        stream = loaded.stream()
        for sequence in x[:9]:
            stream.reset()
            for step in sequence:
                answer = stream.step(step)
            assert answer == loaded.predict([sequence])


def test_a_regressor_takes_them_too() -> None:
    x, y = data()
    model = LSTMRegressor(8, proj_size=3, learn_initial_state=True, max_iter=5, random_state=0).fit(
        x, 1.0 * y
    )
    encoder = model.network_.encoder
    assert (encoder.proj_size, encoder.recurrent_size) == (3, 3)
    assert encoder.parameters["h0_l0"].any()


def test_layers_are_connected_only_where_that_is_asked_for() -> None:
    x, y = data()
    plain = LSTMClassifier(8, 2, max_iter=1).fit(x, y).network_.encoder
    assert type(plain) is LSTM
    for options in ({"residual": True}, {"skip": "input"}, {"merge": "sum", "bidirectional": True}):
        model = clone(LSTMClassifier(8, 2, max_iter=1, **options)).fit(x, y)
        encoder = model.network_.encoder
        assert type(encoder) is Stack
        assert {name: getattr(encoder, name) for name in options} == options
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
        with pytest.raises(ValueError, match=f"{next(iter(options))} was .* when training started"):
            model.set_params(warm_start=True, residual=False, skip=None, merge="concat").fit(x, y)


def test_a_stream_of_a_connected_stack_goes_on_from_its_snapshot(tmp_path) -> None:
    x, y = data()
    model = LSTMRegressor(6, 3, residual=True, skip="both", pooling="mean", max_iter=2, random_state=0)
    model.fit(x, 1.0 * y).save(tmp_path / "model.safetensors")
    stream = fastlstm.load(tmp_path / "model.safetensors").stream(2)
    steps = np.random.default_rng(1).standard_normal((2, 9, 2))
    for t in range(9):
        if t == 4:
            blob = stream.snapshot()
        np.testing.assert_array_equal(stream.step(steps[:, t]), model.predict(steps[:, : t + 1]))
    stream.restore(blob)
    np.testing.assert_array_equal(stream.step(steps[:, 4]), model.predict(steps[:, :5]))
    stream.reset(1)
    both = [steps[0, :6], steps[1, 5:6]]
    np.testing.assert_array_equal(stream.step(steps[:, 5]), model.predict(both))
    with pytest.raises(ValueError, match="another shape"):
        model.stream(3).restore(blob)


def test_connected_stacks_take_elapsed_times_and_missing_values() -> None:
    x, y = data()
    random = np.random.default_rng(2)
    times = [random.uniform(0.0, 3.0, len(row)) for row in x]
    holes = [np.where(random.random(row.shape) < 0.2, np.nan, row) for row in x]
    options = {"residual": True, "skip": "both", "cell": "tlstm", "max_iter": 2, "random_state": 0}
    for values, more in ((x, {}), (holes, {"missing": "observe"})):
        model = LSTMRegressor(6, 2, **options, **more).fit(values, 1.0 * y, delta_t=times)
        want = model.predict(values, delta_t=times)
        assert (want != model.predict(values)).all()
        stream = model.stream()
        for row, elapsed, value in zip(values[:9], times, want, strict=False):
            stream.reset()
            for step, time in zip(row, elapsed, strict=True):
                answer = stream.step(step[None], delta_t=time)
            assert answer == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": -1}, "proj_size"),
        ({"cells_per_block": 3}, "must divide hidden_size"),
        ({"cell": "gru", "truncated": True}, "no truncated gradient"),
        ({"cell": "rnn", "proj_size": 2}, "takes no projection"),
        ({"residual": 1}, "'residual' parameter of LSTMClassifier must be True or False"),
        ({"skip": "all"}, "must be one of 'input', 'output', 'both' or None. Got 'all'"),
        ({"merge": "mean"}, "must be one of 'concat', 'sum'"),
        ({"merge": "sum"}, "merge='sum' goes with bidirectional=True"),
    ],
)
def test_what_does_not_fit_is_named(options: dict, message: str) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=message):
        LSTMClassifier(8, max_iter=1, **options).fit(x, y)
