"""Highway and residual stacks: equations, gradients, and that deep ones train where a plain net does not."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from cases import relative_error

from fastlstm.layers import Dense, Highway, Residual
from fastlstm.losses import softmax_cross_entropy
from fastlstm.optimizers import Adam

KINDS = [(Highway, "tanh"), (Highway, "relu"), (Residual, "tanh"), (Residual, "relu")]
SQUASH = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0)}


def build(kind: Any, activation: str, size: int = 4, num_layers: int = 3, dtype: str = "float64") -> Any:
    layer = kind(size, num_layers, activation, dtype=dtype, random_state=0)
    rng = np.random.default_rng(1)
    layer.load_parameters({name: rng.standard_normal(shape) for name, shape in layer.parameter_shapes})
    return layer


def plainly(layer: Any, x: np.ndarray) -> np.ndarray:
    """The equations in float64 numpy."""
    p = {name: value.astype(np.float64) for name, value in layer.parameters.items()}
    for k in range(layer.num_layers):

        def affine(name: str, x: np.ndarray = x, k: int = k) -> np.ndarray:
            return x @ p[f"weight_{name}_l{k}"].T + p[f"bias_{name}_l{k}"]

        if isinstance(layer, Highway):
            gate = 1 / (1 + np.exp(-affine("t")))
            x = SQUASH[layer.activation](affine("h")) * gate + x * (1 - gate)
        else:
            x = SQUASH[layer.activation](affine("f")) + x
    return x


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize(("kind", "activation"), KINDS)
def test_forward_is_the_equation(kind: Any, activation: str, dtype: str, tolerance: float) -> None:
    layer = build(kind, activation, size=17, dtype=dtype)
    x = np.random.default_rng(2).standard_normal((3, 5, 17)).astype(dtype)
    y, _ = layer.forward(x)
    assert y.dtype == dtype
    assert relative_error(y, plainly(layer, x.astype(np.float64))) < tolerance
    np.testing.assert_array_equal(layer(x), y)


@pytest.mark.parametrize(("kind", "activation"), KINDS)
def test_every_gradient_entry_is_the_central_difference(kind: Any, activation: str) -> None:
    layer, rng = build(kind, activation), np.random.default_rng(3)
    x, dy = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    _, tape = layer.forward(x)
    dx = layer.backward(tape, dy)
    grads = layer.flat_grads.copy()

    def slopes(values: np.ndarray, changed: Any) -> np.ndarray:
        found = np.empty(values.shape)
        for index in np.ndindex(values.shape):
            kept, sums = values[index], []
            for step in (1e-6, -1e-6):
                values[index] = kept + step
                changed()
                sums.append(np.sum(layer(x) * dy))
            values[index] = kept
            found[index] = (sums[0] - sums[1]) / 2e-6
        changed()
        return found

    assert relative_error(dx, slopes(x, lambda: None)) < 1e-6
    assert relative_error(grads, slopes(layer.flat, layer.parameters_changed)) < 1e-6


@pytest.mark.parametrize("kind", [Highway, Residual])
def test_gradients_are_written_into_a_bound_arena(kind: Any) -> None:
    layer, x = build(kind, "tanh"), np.ones((2, 4))
    _, tape = layer.forward(x)
    layer.backward(tape, x)
    once = layer.flat_grads.copy()
    flat, grads = np.empty(layer.n_parameters), np.full(layer.n_parameters, np.nan)
    layer.bind(flat, grads)
    _, tape = layer.forward(x)
    layer.backward(tape, x)
    np.testing.assert_array_equal(grads, once)


def test_a_closed_gate_carries_and_an_open_one_transforms() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3))
    closed = Highway(3, 10, transform_bias=-800.0, dtype="float64", random_state=0)
    np.testing.assert_array_equal(closed(x), x)
    opened = Highway(3, 1, transform_bias=800.0, dtype="float64", random_state=0)
    weight, bias = opened.parameters["weight_h_l0"], opened.parameters["bias_h_l0"]
    np.testing.assert_allclose(opened(x), np.tanh(x @ weight.T + bias), rtol=1e-12, atol=1e-14)


def test_a_tape_serves_once_and_x_is_kept() -> None:
    layer, x = build(Highway, "relu"), np.ones((2, 4))
    y, tape = layer.forward(x)
    layer.backward(tape, y)
    np.testing.assert_array_equal(x, 1.0)
    with pytest.raises(ValueError, match="tape holds no forward call of this layer"):
        layer.backward(tape, y)


@pytest.mark.parametrize("kind", [Highway, Residual])
def test_configuration_and_pickle(kind: Any) -> None:
    layer = build(kind, "tanh")
    again = kind.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    x = np.random.default_rng(0).standard_normal((2, 4))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"num_layers": 1.5}, "num_layers must be an integer"),
        ({"activation": "sine"}, "activation must be one of tanh, relu"),
        ({"transform_bias": np.inf}, "transform_bias must be a finite number"),
    ],
    ids=str,
)
def test_bad_construction(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        Highway(**{"size": 3, **arguments})


def test_bad_calls() -> None:
    layer = build(Residual, "relu")
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\); expected \(..., 4\)"):
        layer(np.ones((2, 3)))
    with pytest.raises(TypeError, match="x must hold real numbers"):
        layer(np.ones((2, 4), complex))
    _, tape = layer.forward(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"dy has shape \(3, 4\); expected \(2, 4\)"):
        layer.backward(tape, np.ones((3, 4)))


# ---- depth ----

SIZE, N_TRAIN, BATCH = 16, 600, 50


class Plain:
    """Dense layers with relu, from He's initialisation: what highways are compared with."""

    def __init__(self, num_layers: int) -> None:
        rng = np.random.default_rng(0)
        self.layers = [Dense(SIZE, SIZE) for _ in range(num_layers)]
        each = self.layers[0].n_parameters
        self.flat, self.flat_grads = np.zeros((2, num_layers * each), np.float32)
        for k, layer in enumerate(self.layers):
            weight = rng.standard_normal((SIZE, SIZE)) * np.sqrt(2 / SIZE)
            layer.load_parameters({"weight": weight, "bias": np.zeros(SIZE)})
            layer.bind(self.flat[k * each :][:each], self.flat_grads[k * each :][:each])

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        saved = [x]
        for layer in self.layers:
            saved.append(np.maximum(layer(saved[-1]), 0))
        return saved[-1], saved

    def backward(self, saved: list[np.ndarray], d: Any) -> Any:
        for layer, x, y in zip(self.layers[::-1], saved[-2::-1], saved[:0:-1], strict=True):
            d = layer.backward(x, d * (y > 0))
        return d

    def parameters_changed(self) -> None:
        pass


def digits() -> tuple[np.ndarray, np.ndarray]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return (x / 16 - 0.3).astype(np.float32), y.astype(np.int64)


def last_loss_and_accuracy(body: Any, learning_rate: float, epochs: int) -> tuple[float, float]:
    """Mean training loss of the last epoch, and accuracy on digits that were not trained on."""
    (x, y), rng = digits(), np.random.default_rng(0)
    first, head = Dense(64, SIZE, random_state=1), Dense(SIZE, 10, random_state=2)
    parts = [(part, Adam()) for part in (first, body, head)]
    for _ in range(epochs):
        losses = []
        for rows in rng.permutation(N_TRAIN).reshape(-1, BATCH):
            inner = first(x[rows])
            features, tape = body.forward(inner)
            loss, d = softmax_cross_entropy(head(features), y[rows])
            losses.append(loss)
            first.backward(x[rows], body.backward(tape, head.backward(features, d)), want_dx=False)
            for part, optimizer in parts:
                optimizer.step(part.flat, part.flat_grads, learning_rate)
                part.parameters_changed()
    predicted = head(body.forward(first(x[N_TRAIN:]))[0]).argmax(axis=1)
    return float(np.mean(losses)), float(np.mean(predicted == y[N_TRAIN:]))


@pytest.mark.parametrize("num_layers", [50, 100])
def test_deep_highways_train(num_layers: int) -> None:
    body = Highway(SIZE, num_layers, "relu", transform_bias=-4.0, random_state=0)
    loss, accuracy = last_loss_and_accuracy(body, 6e-3, epochs=6)
    assert loss < 0.6
    assert accuracy > 0.7


def test_deep_residual_layers_train() -> None:
    loss, accuracy = last_loss_and_accuracy(Residual(SIZE, 100, random_state=0), 3e-3, epochs=5)
    assert loss < 0.6
    assert accuracy > 0.7


@pytest.mark.parametrize("learning_rate", [6e-3, 1e-3])
def test_a_plain_net_of_fifty_layers_does_not_train(learning_rate: float) -> None:
    loss, accuracy = last_loss_and_accuracy(Plain(50), learning_rate, epochs=6)
    assert loss > 1.7
    assert accuracy < 0.4


def test_a_plain_net_of_five_layers_does() -> None:
    """So depth is what stops the plain net, not this set-up."""
    _, accuracy = last_loss_and_accuracy(Plain(5), 6e-3, epochs=15)
    assert accuracy > 0.7
