"""Memory blocks of 1997: cells with gates in common, against the equations of one block after the other."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cell_reference import sigmoid

from fastlstm.layers import GRU, LSTM, chrono, forget_bias, orthogonal

CELLS = ["lstm", "cifg", "nfg", "lstm1997", "lstm1997_gates", "fgr", "slstm", "tlstm", "noaf"]


def make(cell: str, **options) -> LSTM:
    return LSTM(2, 6, cell=cell, **{"cells_per_block": 3, "dtype": "float64", "random_state": 0, **options})


def test_a_block_has_one_row_for_each_gate() -> None:
    shapes = dict(make("lstm1997_gates").parameter_shapes)
    assert shapes == {
        "weight_ih_l0": (2 + 6 + 2, 2),
        "weight_hh_l0": (10, 6),
        "bias_ih_l0": (10,),
        "bias_hh_l0": (10,),
        "weight_gg_l0": (10, 4),
    }
    assert dict(make("fgr").parameter_shapes)["weight_gg_l0"] == (6, 6)


def test_the_equations_of_1997_with_blocks_and_gate_recurrence() -> None:
    """i, o of a block see all cells and the gates of all blocks; g of a cell too. c of every cell by itself."""
    layer, x = make("lstm1997_gates"), np.random.default_rng(0).standard_normal((3, 7, 2))
    p = layer.parameters
    h, c, gates = np.zeros((3, 6)), np.zeros((3, 6)), np.zeros((3, 4))
    y = layer(x)[0]
    for t in range(7):
        z = x[:, t] @ p["weight_ih_l0"].T + h @ p["weight_hh_l0"].T + gates @ p["weight_gg_l0"].T
        i, g, o = np.split(z + p["bias_ih_l0"] + p["bias_hh_l0"], [2, 8], axis=1)
        i, o = sigmoid(i), sigmoid(o)
        for cell in range(6):
            c[:, cell] += i[:, cell // 3] * np.tanh(g[:, cell])
            h[:, cell] = o[:, cell // 3] * np.tanh(c[:, cell])
        gates = np.concatenate([i, o], axis=1)
        np.testing.assert_allclose(y[:, t], h, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_central_differences(cell: str) -> None:
    layer = make(cell, num_layers=2, bidirectional=True, learn_initial_state=True)
    x, lengths = np.random.default_rng(0).standard_normal((3, 5, 2)), [5, 2, 4]
    y, _, tape = layer.forward(x, None, lengths)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    _, _, grads = layer.backward(tape, dy)
    flat = np.concatenate([grads[name].ravel() for name, _ in layer.parameter_shapes])
    real = (np.arange(5) < np.array(lengths)[:, None])[..., None]
    for index in range(0, flat.size, 7):
        kept, ends = layer.flat[index], []
        for step in (1e-5, -1e-5):
            layer.flat[index] = kept + step
            layer.parameters_changed()
            ends.append(float(np.sum(layer(x, None, lengths)[0] * dy * real)))
        layer.flat[index] = kept
        layer.parameters_changed()
        assert abs((ends[0] - ends[1]) / 2e-5 - flat[index]) <= 1e-6 * max(1.0, np.max(np.abs(flat)))


@pytest.mark.parametrize("cell", CELLS)
def test_blocks_of_one_cell_change_nothing(cell: str) -> None:
    one, plain = make(cell, cells_per_block=1), LSTM(2, 6, cell=cell, dtype="float64", random_state=0)
    x = np.random.default_rng(0).standard_normal((3, 5, 2))
    np.testing.assert_array_equal(one(x)[0], plain(x)[0])


def test_copies_and_noise_know_of_blocks() -> None:
    layer, x = make("fgr", weight_dropout=0.5, weight_noise=0.1), np.ones((2, 4, 2))
    for twin in (
        pickle.loads(pickle.dumps(layer)),
        layer.without_noise(),
        LSTM.from_config(layer.get_config()),
    ):
        twin.load_parameters(layer.parameters)
        np.testing.assert_array_equal(twin(x)[0], layer(x)[0])
    y, _, tape = layer.forward(x, rng_key=1)
    assert (y != layer(x)[0]).any()
    grads = layer.backward(tape, np.ones_like(y))[2]
    assert {name: value.shape for name, value in grads.items()} == dict(layer.parameter_shapes)


def test_initial_values_fill_the_rows_of_blocks() -> None:
    layer = make("lstm")
    forget_bias(layer, 2.0)
    np.testing.assert_array_equal(layer.parameters["bias_ih_l0"][2:4], 2.0)
    chrono(layer, 50, random_state=0)
    bias = layer.parameters["bias_ih_l0"]
    np.testing.assert_array_equal(bias[:2], -bias[2:4])
    orthogonal(layer, random_state=0)
    weight = layer.parameters["weight_hh_l0"]
    for rows in (slice(0, 2), slice(2, 4), slice(4, 10), slice(10, 12)):
        np.testing.assert_allclose(weight[rows] @ weight[rows].T, np.eye(len(weight[rows])), atol=1e-12)


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (lambda: LSTM(2, 6, cells_per_block=4), "must divide hidden_size 6"),
        (lambda: LSTM(2, 6, cells_per_block=0), "at least 1"),
        (lambda: LSTM(2, 6, cell="peephole", cells_per_block=2), "has no memory blocks"),
        (lambda: GRU(2, 6, cells_per_block=2), "has no memory blocks"),
    ],
)
def test_what_does_not_fit_is_named(make_layer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_layer()
