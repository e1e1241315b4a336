"""Recurrent layers of Keras, live: the converted layer has their outputs, states and gradients."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("these tests take gradients with Keras's torch backend", allow_module_level=True)

from keras.src.backend.common import dtypes  # noqa: E402

from fastlstm.interop import from_keras, from_keras_weights  # noqa: E402

Array = np.ndarray
BATCH, TIME, INPUT, UNITS = 4, 7, 3, 5
LENGTHS = np.array([7, 4, 1, 6])
BOUNDS = {"float64": 1e-10, "float32": 2e-6}
KINDS = {
    "lstm": ("LSTM", {}),
    "lstm_no_bias": ("LSTM", {"use_bias": False}),
    "gru": ("GRU", {"reset_after": True}),
    "gru_before": ("GRU", {"reset_after": False}),
    "rnn": ("SimpleRNN", {}),
    "rnn_relu": ("SimpleRNN", {"activation": "relu"}),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # what Keras itself does is not tested here


@pytest.fixture(autouse=True)
def exact_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch, Keras computes float64 operations in float32; this is the entry that it has with TensorFlow."""
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")


def make(name: str, dtype: str = "float64", bidirectional: bool = False, **options: Any) -> Any:
    """Built Keras layer whose weights and biases are all random."""
    kind, own = KINDS[name]
    layer = getattr(keras.layers, kind)(
        UNITS, return_sequences=True, return_state=True, dtype=dtype, **{**own, **options}
    )
    if bidirectional:
        layer = keras.layers.Bidirectional(layer, dtype=dtype)
    layer.build((None, TIME, INPUT))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.uniform(-0.6, 0.6, w.shape) for w in layer.get_weights()])
    return layer


def tensor(value: Array) -> Any:
    return torch.tensor(value, device=keras.src.backend.torch.core.get_device(), requires_grad=True)


def directions(layer: Any) -> list[Any]:
    return [layer.forward_layer, layer.backward_layer] if hasattr(layer, "forward_layer") else [layer]


def run_keras(layer: Any, problem: dict[str, Any], n_states: int) -> dict[str, Array]:
    """Outputs, final states and the gradients of sum(y dy) + sum(state dstate), under our names."""
    x = tensor(problem["x"])
    initial = [tensor(value) for value in problem["state"]]
    mask = None if problem["lengths"] is None else torch.arange(TIME) < torch.tensor(LENGTHS)[:, None]
    y, *final = layer(x, initial_state=initial, mask=mask)
    real = np.ones((BATCH, TIME, 1)) if mask is None else mask.numpy()[..., None]
    loss = (y * torch.tensor(problem["dy"] * real, dtype=y.dtype)).sum()
    for value, d in zip(final, problem["dstate"], strict=True):
        loss = loss + (value * torch.tensor(d)).sum()
    loss.backward()
    found = {"y": y.detach().numpy() * real, "d_x": x.grad.numpy()}
    for k in range(n_states):  # Keras gives h and c of one direction, then those of the other
        found[f"state_{k}"] = np.stack([value.detach().numpy() for value in final[k::n_states]])
        found[f"d_state_{k}"] = np.stack([value.grad.numpy() for value in initial[k::n_states]])
    for one, suffix in zip(directions(layer), ("l0", "l0_reverse"), strict=False):
        grads = [weight.value.grad.numpy() for weight in one.trainable_weights]
        found |= {f"d_{name}": g for name, g in from_keras_weights(type(one).__name__, grads, suffix).items()}
        if len(grads) == 3 and grads[2].ndim == 1:  # a single bias is the sum of both of ours
            found[f"d_bias_hh_{suffix}"] = found[f"d_bias_ih_{suffix}"]
    return found


def run_ours(layer: Any, problem: dict[str, Any]) -> dict[str, Array]:
    n = len(layer.state_names)
    state, dstate = ([np.stack(problem[key][k::n]) for k in range(n)] for key in ("state", "dstate"))
    y, final, tape = layer.forward(problem["x"], state, problem["lengths"])
    dx, dinitial, grads = layer.backward(tape, problem["dy"], dstate)
    found = {"y": y, "d_x": dx, **{f"d_{name}": g for name, g in grads.items()}}
    for k in range(n):
        found |= {f"state_{k}": final[k], f"d_state_{k}": dinitial[k]}
    return found


def make_problem(n_states: int, n_directions: int, dtype: str, masked: bool) -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(dtype)

    return {
        "x": normal(BATCH, TIME, INPUT),
        "state": [normal(BATCH, UNITS) for _ in range(n_states * n_directions)],
        "lengths": LENGTHS if masked else None,
        "dy": normal(BATCH, TIME, n_directions * UNITS),
        "dstate": [normal(BATCH, UNITS) for _ in range(n_states * n_directions)],
    }


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "both_ways"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", KINDS)
def test_outputs_states_and_gradients(name: str, dtype: str, bidirectional: bool, masked: bool) -> None:
    theirs = make(name, dtype, bidirectional)
    ours = from_keras(theirs)
    assert (ours.dtype, ours.bidirectional, ours.input_size) == (dtype, bidirectional, INPUT)
    n_states = len(ours.state_names)
    problem = make_problem(n_states, 1 + bidirectional, dtype, masked)
    got, want = run_ours(ours, problem), run_keras(theirs, problem, n_states)
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].shape == value.shape, key
        bound = BOUNDS[dtype] * max(1.0, np.abs(value).max())
        assert np.abs(got[key] - value).max() <= bound, key


def test_a_keras_layer_without_weights() -> None:
    with pytest.raises(ValueError, match="no weights yet"):
        from_keras(keras.layers.LSTM(3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lstm", {"activation": "relu"}, "activation must be 'tanh', got 'relu'"),
        ("gru", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation must be 'sigmoid'"),
        ("lstm", {"go_backwards": True}, "go_backwards"),
    ],
)
def test_what_the_layers_here_do_not_compute(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_keras(make(name, **options))


def test_directions_that_are_not_concatenated() -> None:
    layer = keras.layers.Bidirectional(keras.layers.LSTM(3), merge_mode="sum")
    with pytest.raises(ValueError, match="merge_mode='concat'"):
        from_keras(layer)


def test_what_is_not_a_recurrent_layer() -> None:
    with pytest.raises(TypeError, match="got Dense; give the recurrent layers of a model one by one"):
        from_keras(keras.layers.Dense(3))
    with pytest.raises(TypeError, match="got Sequential"):
        from_keras(keras.Sequential([keras.layers.LSTM(3)]))


@pytest.mark.parametrize(
    ("kind", "shapes", "message"),
    [
        ("ConvLSTM1D", [(3, 20), (5, 20)], "kind must be one of LSTM, GRU, SimpleRNN"),
        ("LSTM", [(3, 15), (5, 15)], r"4 \* units"),
        ("LSTM", [(3, 20), (5, 20), (2, 20)], r"got \[\(3, 20\), \(5, 20\), \(2, 20\)\]"),
        ("GRU", [(3, 15)], r"\(2, 3 \* units\)"),
    ],
)
def test_weights_that_do_not_fit(kind: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_keras_weights(kind, [np.zeros(shape) for shape in shapes])
