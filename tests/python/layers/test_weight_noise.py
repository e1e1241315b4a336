"""Weight dropout and weight noise: drawn for a training call, the same weights forwards and backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastlstm import LSTMClassifier, LSTMRegressor
from fastlstm.layers import GRU, LSTM, RNN

STEP = 1e-6
X = np.random.default_rng(0).standard_normal((3, 5, 2))
LENGTHS = [5, 2, 4]


def build(cell: str = "lstm", **options: Any) -> LSTM:
    size: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": "float64", "random_state": 0}
    return LSTM(2, 3, cell=cell, **{**size, **options})


@pytest.mark.parametrize("cell", ["lstm", "gru", "peephole_article", "rnn"])
@pytest.mark.parametrize(
    "options", [{"weight_dropout": 0.4}, {"weight_noise": 0.3}, {"weight_dropout": 0.3, "weight_noise": 0.1}]
)
def test_gradient_is_the_slope_of_the_noisy_call(cell: str, options: dict[str, float]) -> None:
    """Every parameter, by central differences with the draw held fixed."""
    layer = build(cell, **options)
    y, _, tape = layer.forward(X, lengths=LENGTHS, rng_key=5)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    _, _, grads = layer.backward(tape, dy)
    flat = np.concatenate([grads[name].ravel() for name, _ in layer.parameter_shapes])
    for k in range(0, layer.flat.size, 3):
        kept, sums = layer.flat[k], []
        for step in (STEP, -STEP):
            layer.flat[k] = kept + step
            layer.parameters_changed()
            sums.append(np.sum(layer.forward(X, lengths=LENGTHS, rng_key=5)[0] * dy))
        layer.flat[k] = kept
        assert math.isclose(flat[k], (sums[0] - sums[1]) / (2 * STEP), rel_tol=1e-6, abs_tol=1e-8)


def test_dropped_weights_get_no_gradient_and_the_others_are_scaled() -> None:
    layer = LSTM(3, 40, weight_dropout=0.25, dtype="float64", random_state=0)
    x = np.random.default_rng(0).standard_normal((4, 6, 3))
    y, _, tape = layer.forward(x, rng_key=1)
    _, _, grads = layer.backward(tape, np.ones_like(y))
    assert abs(np.mean(grads["weight_hh_l0"] == 0.0) - 0.25) < 0.02
    assert np.all(grads["weight_ih_l0"] != 0.0)
    dropped = LSTM(3, 40, dtype="float64", random_state=0)
    factor = np.where(grads["weight_hh_l0"] == 0.0, 0.0, 1 / 0.75)
    dropped.load_parameters({"weight_hh_l0": layer.parameters["weight_hh_l0"] * factor}, strict=False)
    np.testing.assert_allclose(y, dropped(x)[0], rtol=1e-12, atol=1e-15)


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    """With zero weights a simple recurrent step of zeros is tanh of the noise on the biases."""
    layer = RNN(1, 2000, weight_noise=0.05, bias=True, dtype="float64", random_state=0)
    layer.load_parameters({name: np.zeros_like(value) for name, value in layer.parameters.items()})
    y = layer.forward(np.zeros((1, 1, 1)), rng_key=2)[0]
    assert math.isclose(np.arctanh(y).std(), 0.05 * math.sqrt(2.0), rel_tol=0.05)


@pytest.mark.parametrize("options", [{"weight_dropout": 0.5}, {"weight_noise": 0.2}])
def test_a_draw_follows_from_the_key_and_leaves_inference_alone(options: dict[str, float]) -> None:
    layer, plain = build(**options), build()
    first, again, other = (layer.forward(X, rng_key=key)[0] for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(layer(X)[0], plain(X)[0])
    np.testing.assert_array_equal(layer.flat, plain.flat)


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"weight_dropout": 0.5}, {"weight_noise": 0.2}],
)
def test_return_all_shows_the_steps_of_inference(options: dict[str, float]) -> None:
    layer, plain = build(**options), build()
    found, want = layer.return_all(X, lengths=LENGTHS), plain.return_all(X, lengths=LENGTHS)
    np.testing.assert_array_equal(found["y"], layer(X, lengths=LENGTHS)[0])
    np.testing.assert_array_equal(found["c"], want["c"])
    for name, gate in want["gates"].items():
        np.testing.assert_array_equal(found["gates"][name], gate)


@pytest.mark.parametrize("build_layer", [LSTM, GRU, RNN])
def test_every_recurrent_layer_takes_them(build_layer: Any) -> None:
    layer = build_layer(2, 3, weight_dropout=0.1, weight_noise=0.2, random_state=0)
    assert (layer.weight_dropout, layer.weight_noise) == (0.1, 0.2)
    twin = LSTM.from_config(layer.get_config())
    assert (twin.weight_dropout, twin.weight_noise) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight_dropout": 1.0}, ValueError, r"weight_dropout must be in \[0, 1\)"),
        ({"weight_dropout": "much"}, TypeError, "weight_dropout must be a number"),
        ({"weight_noise": -0.1}, ValueError, "weight_noise must be a finite number, at least 0"),
        ({"weight_noise": math.inf}, ValueError, "weight_noise must be a finite number, at least 0"),
        ({"weight_noise": True}, TypeError, "weight_noise must be a number"),
    ],
)
def test_bad_values(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LSTM(2, 3, **options)


@pytest.mark.parametrize("options", [{"weight_dropout": 0.5}, {"weight_noise": 0.2}])
def test_estimators_train_with_them_and_predict_without(options: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((length, 2)) for length in rng.integers(3, 9, 40)]
    target = np.array([row[:, 0].sum() for row in x])
    for estimator, y in ((LSTMClassifier, target > 0), (LSTMRegressor, target)):
        noisy = estimator(8, max_iter=5, random_state=0, **options).fit(x, y)
        plain = estimator(8, max_iter=5, random_state=0).fit(x, y)
        np.testing.assert_array_equal(noisy.predict(x), noisy.predict(x))
        assert noisy.loss_curve_ != plain.loss_curve_


@pytest.mark.parametrize("options", [{}, {"cell": "peephole"}, {"layer_norm": True}], ids=str)
def test_a_noisy_call_keeps_its_weights_until_its_backward_call(options: dict) -> None:
    """Peepholes and gains, which derivatives take, are those of the call, whatever ran since."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((4, 6, 3)), rng.standard_normal((4, 6, 9))
    layer = LSTM(3, 9, weight_noise=0.3, dtype="float64", random_state=0, **options)

    def gradients(between: Callable[[], object]) -> dict[str, np.ndarray]:
        _, _, tape = layer.forward(x, rng_key=7)
        between()
        dx, _, grads = layer.backward(tape, dy)
        return {"x": dx, **{name: grad.copy() for name, grad in grads.items()}}

    want = gradients(lambda: None)
    for between in (lambda: layer(x), lambda: layer.forward(x, rng_key=8)):
        for name, gradient in gradients(between).items():
            np.testing.assert_array_equal(gradient, want[name], err_msg=name)
