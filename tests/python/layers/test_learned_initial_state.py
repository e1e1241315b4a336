"""Learned initial states: parameters that every sequence without given states starts from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM
from fastlstm.streaming import LayerStream


def make(cell: str = "lstm", **options) -> LSTM:
    layer = LSTM(
        2, 4, 2, cell=cell, learn_initial_state=True, random_state=0, **{"dtype": "float64", **options}
    )
    random = np.random.default_rng(3)
    layer.load_parameters(
        {name: 0.5 * random.standard_normal(value.shape) for name, value in layer.parameters.items()}
    )
    return layer


def data(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, 5, 2))


def test_they_are_zero_at_first_and_named_by_state_and_layer() -> None:
    layer = LSTM(2, 4, 2, bidirectional=True, learn_initial_state=True, random_state=0)
    plain = LSTM(2, 4, 2, bidirectional=True, random_state=0)
    names = [name for name in layer.parameters if name not in plain.parameters]
    assert names == [f"{s}0_l{k}{end}" for k in (0, 1) for end in ("", "_reverse") for s in ("h", "c")]
    assert not any(layer.parameters[name].any() for name in names)
    np.testing.assert_array_equal(layer(data())[0], plain(data())[0])


@pytest.mark.parametrize(
    ("cell", "names"), [("lstm", "hc"), ("gru", "h"), ("slstm", "h"), ("fgr", "hc"), ("tlstm", "hc")]
)
def test_calls_start_from_them(cell: str, names: str) -> None:
    layer = make(cell)
    assert [name for name in layer.parameters if name.endswith("0_l0")] == [f"{name}0_l0" for name in names]
    plain = LSTM(2, 4, 2, cell=cell, dtype="float64", random_state=0)
    plain.load_parameters({name: layer.parameters[name] for name in plain.parameters})
    state = [
        np.stack([np.tile(layer.parameters[f"{name}0_l{k}"], (3, 1)) for k in (0, 1)])
        if name in names
        else None
        for name in layer.state_names
    ]
    want, got = plain(data(), state), layer(data())
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(layer.forward(data())[0], want[0])
    given = [0.1 * np.ones((2, 3, 4)) for _ in layer.state_names]
    np.testing.assert_array_equal(layer(data(), given)[0], plain(data(), given)[0])


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"proj_size": 3}, {"cell": "slstm"}], ids=str
)
def test_gradients_are_central_differences(options: dict, given: bool, resets: bool) -> None:
    layer, x, random = make(**options), data(), np.random.default_rng(1)
    cuts = np.zeros((3, 5), bool)
    cuts[0, 2] = cuts[1, 1] = cuts[1, 4] = cuts[2, 0] = resets
    state = tuple(0.3 * random.standard_normal(s.shape) for s in layer.initial_state(3)) if given else None
    if given and options.get("cell") == "slstm":
        state[2][...] = 1.0 + np.abs(state[2])
    y, final, tape = layer.forward(x, state, [5, 5, 3], resets=cuts)
    dy, dstate = random.standard_normal(y.shape), [random.standard_normal(s.shape) for s in final]
    _, _, grads = layer.backward(tape, dy, dstate)
    real = (np.arange(5) < np.array([5, 5, 3])[:, None])[..., None]

    def loss() -> float:
        y, final = layer(x, state, [5, 5, 3], resets=cuts)
        return float(np.sum(y * dy * real) + sum(np.sum(s * d) for s, d in zip(final, dstate, strict=True)))

    flat = np.concatenate([grads[name].ravel() for name, _ in layer.parameter_shapes])
    learned = sum(value.size for name, value in layer.parameters.items() if name[1] == "0")
    for index in [*range(0, flat.size - learned, 29), *range(flat.size - learned, flat.size)]:
        kept, ends = layer.flat[index], []
        for step in (1e-5, -1e-5):
            layer.flat[index] = kept + step
            layer.parameters_changed()
            ends.append(loss())
        layer.flat[index] = kept
        layer.parameters_changed()
        assert abs((ends[0] - ends[1]) / 2e-5 - flat[index]) <= 1e-6 * max(1.0, np.max(np.abs(flat)))
    if given and not resets:
        assert not any(value.any() for name, value in grads.items() if name[1] == "0")


def test_streams_start_and_restart_from_them() -> None:
    layer, x = make(dtype="float32"), data().astype(np.float32)
    want, stream = layer(x)[0], LayerStream(make(dtype="float32"), 3)
    for which in (None, None, 1):
        stream.reset(which)
        if which is not None:
            np.testing.assert_array_equal(stream.state[0][:, 1], layer.initial_state(1)[0][:, 0])
            break
        for t in range(5):
            np.testing.assert_array_equal(stream.step(np.ascontiguousarray(x[:, t])), want[:, t])


def test_rows_of_networks_train_them() -> None:
    layer, x = make(), data()
    starts, lengths = np.array([0, 5, 10]), np.array([5, 4, 5])
    rows = x.reshape(15, 2)
    _, final, tape = layer.run_training(rows, starts, lengths)
    layer.run_backward(tape, None, tuple(np.ones_like(s) for s in final))
    _, padded_final, padded = layer.forward(x, None, lengths)
    _, _, grads = layer.backward(padded, None, tuple(np.ones_like(s) for s in final))
    np.testing.assert_array_equal(final[0], padded_final[0])
    np.testing.assert_array_equal(layer.run(rows, starts, lengths)[1][0], final[0])
    np.testing.assert_array_equal(layer.flat_grads, np.concatenate([g.ravel() for g in grads.values()]))
    assert grads["h0_l0"].any() and grads["c0_l1"].any()


def test_copies_keep_them() -> None:
    for layer in (make(), make(weight_noise=0.1)):
        for twin in (pickle.loads(pickle.dumps(layer)), layer.without_noise()):
            np.testing.assert_array_equal(twin(data())[0], layer(data())[0])
    assert "h0_l0" in GRU(2, 3, learn_initial_state=True).parameters
