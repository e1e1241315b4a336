"""Options of the recurrent layer as parameters of the estimators: trained, saved, loaded and streamed."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm
from fastlstm import LSTMClassifier, LSTMRegressor

OPTIONS = [
    {"proj_size": 5},
    {"cells_per_block": 2},
    {"layer_norm": True},
    {"zoneout": 0.1},
    {"cell": "gru", "zoneout": (0.1, 0.0), "num_layers": 2},
    {"cell": "gru", "layer_norm": True, "num_layers": 2},
    {"cell": "lstm1997_gates", "cells_per_block": 4, "truncated": True},
    {"cell": "fgr", "proj_size": 3, "learn_initial_state": True},
    {"cell": "gru", "learn_initial_state": True},
    {"proj_size": 4, "bidirectional": True, "num_layers": 2, "recurrent_dropout": 0.1},
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": -1}, "proj_size"),
        ({"cells_per_block": 3}, "must divide hidden_size"),
        ({"cell": "gru", "truncated": True}, "no truncated gradient"),
        ({"cell": "rnn", "proj_size": 2}, "takes no projection"),
    ],
)
def test_what_does_not_fit_is_named(options: dict, message: str) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=message):
        LSTMClassifier(8, max_iter=1, **options).fit(x, y)
