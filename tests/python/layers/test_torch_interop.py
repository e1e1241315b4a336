"""Recurrent modules of PyTorch as layers, and layers as modules: the same outputs and states."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from fastlstm.interop import from_torch, to_torch
from fastlstm.layers import GRU, LSTM, RNN, Dense

torch = pytest.importorskip("torch")

BATCH, TIME, INPUT, UNITS = 4, 7, 3, 5
BOUNDS = {"float64": 1e-12, "float32": 2e-6}
KINDS: dict[str, tuple[type[LSTM], dict[str, Any]]] = {
    "lstm": (LSTM, {}),
    "gru": (GRU, {}),
    "rnn": (RNN, {}),
    "rnn_relu": (RNN, {"nonlinearity": "relu"}),
}
OPTIONS = {
    "plain": {},
    "two_layers": {"num_layers": 2, "dropout": 0.25},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False},
}


def module_of(kind: str, dtype: str = "float64", **options: Any) -> Any:
    cls, own = KINDS[kind]
    torch.manual_seed(0)
    made = getattr(torch.nn, cls.__name__)(
        INPUT, UNITS, dtype=getattr(torch, dtype), batch_first=True, **own, **options
    )
    return made.eval()


def outputs_of_module(module: Any, x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        y, state = module(torch.from_numpy(x))
    return [part.numpy() for part in (y, *(state if isinstance(state, tuple) else (state,)))]


def assert_same(layer: LSTM, module: Any) -> None:
    x = np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)).astype(layer.dtype)
    y, state = layer(x)
    for ours, theirs in zip((y, *state), outputs_of_module(module, x), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=BOUNDS[layer.dtype.name])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_and_layers_compute_the_same(kind: str, options: dict[str, Any], dtype: str) -> None:
    module = module_of(kind, dtype, **options)
    layer = from_torch(module)
    assert type(layer) is KINDS[kind][0]
    assert layer.dropout == options.get("dropout", 0.0)
    assert_same(layer, module)
    back = to_torch(layer)
    assert type(back) is type(module)
    assert back.dropout == module.dropout
    assert_same(layer, back)
    if kind != "rnn_relu":
        state_dict = module.state_dict()
        assert_same(from_torch(state_dict), module)
        assert_same(from_torch({name: value.numpy() for name, value in state_dict.items()}), module)


def test_projection_goes_both_ways() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own speed
        module = module_of("lstm", proj_size=2, num_layers=2)
        assert_same(from_torch(module), module)
        assert_same(from_torch(module.state_dict()), to_torch(from_torch(module)))


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_cell_becomes_a_layer(kind: str) -> None:
    cell = getattr(torch.nn, kind)(INPUT, UNITS, dtype=torch.float64)
    x = np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT))
    state = None
    with torch.no_grad():
        for t in range(TIME):
            state = cell(torch.from_numpy(x[:, t]), state)
    last = state[0] if isinstance(state, tuple) else state
    np.testing.assert_allclose(from_torch(cell)(x)[0][:, -1], last.numpy(), rtol=0, atol=BOUNDS["float64"])


def test_half_precision_is_widened() -> None:
    module = torch.nn.LSTM(INPUT, UNITS).to(torch.bfloat16)
    layer = from_torch(module)
    assert layer.dtype == np.float32
    np.testing.assert_array_equal(
        layer.parameters["weight_hh_l0"], module.weight_hh_l0.detach().float().numpy()
    )


def test_parameters_are_copies_and_the_generator_of_torch_is_left_alone() -> None:
    layer = LSTM(INPUT, UNITS, random_state=0)
    state = torch.get_rng_state()
    module = to_torch(layer)
    assert torch.equal(state, torch.get_rng_state())
    assert not module.training
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    assert layer.parameters["weight_ih_l0"].any()


def test_what_only_training_does_stays_behind() -> None:
    layer = LSTM(INPUT, UNITS, recurrent_dropout=0.5, weight_noise=0.1, precision="high", random_state=0)
    assert_same(layer, to_torch(layer))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "peephole"}, "cell 'peephole'"),
        ({"layer_norm": True}, "layer_norm"),
        ({"zoneout": (0.1, 0.0)}, "zoneout"),
        ({"learn_initial_state": True}, "learn_initial_state"),
        ({"cell_activation": "identity"}, "cell_activation"),
        ({"proj_size": 2, "output_proj_size": 2}, "output_proj_size"),
        ({"cells_per_block": 5}, "cells_per_block"),
    ],
)
def test_what_torch_does_not_compute_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_torch(LSTM(INPUT, UNITS, **options))


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="one by one"):
        from_torch(torch.nn.Sequential(torch.nn.LSTM(INPUT, UNITS)))
    with pytest.raises(TypeError, match="Linear"):
        from_torch(torch.nn.Linear(INPUT, UNITS))
    with pytest.raises(TypeError, match="Dense"):
        to_torch(Dense(INPUT, UNITS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {f"encoder.{name}": value for name, value in p.items()}, "without their prefix"),
        (lambda p: {**p, "head.weight": p["weight_ih_l0"]}, "head.weight"),
        (lambda p: {name: value for name, value in p.items() if name != "weight_hh_l0"}, "weight_hh_l0"),
        (lambda p: {name: value for name, value in p.items() if name != "bias_hh_l0"}, "bias_hh_l0"),
        (lambda p: {**p, "weight_hh_l0": p["weight_hh_l0"][:-1]}, "19 rows for 5 units"),
        (lambda p: {**p, "weight_ih_l0": p["weight_ih_l0"][:-1]}, "weight_ih_l0"),
        (lambda p: {**p, "weight_ih_l0": p["weight_ih_l0"][0]}, "expected a matrix"),
        (lambda p: {**p, "bias_ih_l0": p["bias_ih_l0"].astype(int)}, "dtype int64"),
        (lambda p: {**p, "weight_ih_l2": p["weight_ih_l0"]}, "l1"),
        (lambda p: {}, "is missing"),
    ],
)
def test_other_state_dicts_are_refused(change: Any, message: str) -> None:
    parameters = {name: value.numpy() for name, value in module_of("lstm").state_dict().items()}
    with pytest.raises(ValueError, match=message):
        from_torch(change(parameters))
