"""Recurrent dropout: one mask per sequence on what enters the memory, in training alone."""

from __future__ import annotations

import numpy as np
import pytest
from cell_reference import sigmoid

from fastlstm import _core
from fastlstm.layers import LSTM

CELLS = [cell for cell in _core.cells() if not cell.startswith("rnn")]
KEY = 7


def make(cell: str, **options) -> LSTM:
    return LSTM(2, 5, cell=cell, recurrent_dropout=0.5, dtype="float64", random_state=0, **options)


@pytest.mark.parametrize("cell", CELLS)
def test_training_drops_and_inference_does_not(cell: str) -> None:
    layer, x = make(cell), np.random.default_rng(0).standard_normal((3, 6, 2))
    plain = LSTM(2, 5, cell=cell, dtype="float64", random_state=0)
    np.testing.assert_array_equal(layer(x)[0], plain(x)[0])
    assert not np.allclose(layer.forward(x, rng_key=KEY)[0], layer(x)[0])
    np.testing.assert_array_equal(layer.forward(x, rng_key=KEY)[0], layer.forward(x, rng_key=KEY)[0])
    assert (layer.forward(x, rng_key=KEY)[0] != layer.forward(x, rng_key=KEY + 1)[0]).any()


def test_a_dropped_unit_of_an_lstm_forgets_and_adds_nothing() -> None:
    """c = f * c_prev + i * g * mask, where the mask of a sequence is 0 or 2 and the same at every step."""
    layer, x = make("lstm"), np.random.default_rng(0).standard_normal((4, 6, 2))
    y, (_, c), _ = layer.forward(x, rng_key=KEY)
    dropped = c[0] == 0.0
    assert 0 < dropped.sum() < dropped.size
    p = layer.parameters
    h, memory = np.zeros((2, 4, 5))
    for t in range(6):
        z = x[:, t] @ p["weight_ih_l0"].T + h @ p["weight_hh_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"]
        i, f, g, o = np.split(z, 4, axis=1)
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g) * np.where(dropped, 0.0, 2.0)
        h = sigmoid(o) * np.tanh(memory)
        np.testing.assert_allclose(y[:, t], h, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_the_masked_network(cell: str) -> None:
    layer, x = make(cell, bidirectional=True), np.random.default_rng(0).standard_normal((3, 4, 2))
    y, _, tape = layer.forward(x, rng_key=KEY)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    dx, _, grads = layer.backward(tape, dy)

    def loss() -> float:
        return float(np.sum(layer.forward(x, rng_key=KEY)[0] * dy))

    def slope(array: np.ndarray, index: int) -> float:
        kept, ends = array[index], []
        for step in (1e-5, -1e-5):
            array[index] = kept + step
            layer.parameters_changed()
            ends.append(loss())
        array[index] = kept
        layer.parameters_changed()
        return (ends[0] - ends[1]) / 2e-5

    flat = np.concatenate([grads[name].ravel() for name, _ in layer.parameter_shapes])
    scale = np.abs(flat).max()
    for index in np.random.default_rng(2).choice(flat.size, 40, replace=False):
        assert abs(slope(layer.flat, index) - flat[index]) <= 1e-6 * scale
    for index in range(x.size):
        assert abs(slope(x.reshape(-1), index) - dx.reshape(-1)[index]) <= 1e-6 * np.abs(dx).max()


def test_threads_do_not_change_the_masks() -> None:
    layer = LSTM(20, 72, recurrent_dropout=0.5, random_state=0)
    x = np.random.default_rng(0).standard_normal((70, 5, 20)).astype(np.float32)
    want = layer.forward(x, rng_key=KEY)[0]
    for layer.n_threads in (2, 3):
        np.testing.assert_array_equal(layer.forward(x, rng_key=KEY)[0], want)
