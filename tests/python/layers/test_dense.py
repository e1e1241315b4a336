"""The dense layer against numpy: forward, gradients, layouts and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import relative_error

from fastlstm.layers import Dense

SHAPES = [(1, 1, 1), (5, 3, 2), (1, 64, 10), (7, 17, 33), (33, 16, 16), (100, 70, 5), (6, 130, 65)]
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}


def build(n_in: int, n_out: int, dtype: str, bias: bool = True, seed: int = 0) -> Any:
    layer = Dense(n_in, n_out, bias=bias, dtype=dtype, random_state=seed)
    rng = np.random.default_rng(seed)
    layer.load_parameters({name: rng.standard_normal(shape) for name, shape in layer.parameter_shapes})
    return layer


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_gradients(shape: tuple[int, int, int], bias: bool, dtype: str) -> None:
    rows, n_in, n_out = shape
    layer, rng = build(n_in, n_out, dtype, bias), np.random.default_rng(1)
    x, dy = (rng.standard_normal((rows, n)).astype(dtype) for n in (n_in, n_out))
    weight = layer.parameters["weight"].astype(np.float64)
    offset = layer.parameters["bias"].astype(np.float64) if bias else 0.0
    wide_x, wide_dy = x.astype(np.float64), dy.astype(np.float64)

    y = layer.forward(x)
    assert y.dtype == dtype
    assert relative_error(y, wide_x @ weight.T + offset) < TOLERANCE[dtype]
    assert relative_error(layer.backward(x, dy), wide_dy @ weight) < TOLERANCE[dtype]
    want = (wide_dy.T @ wide_x).ravel()
    want = np.concatenate([want, wide_dy.sum(axis=0)]) if bias else want
    assert relative_error(layer.flat_grads, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_are_central_differences(dtype: str) -> None:
    layer, rng = build(4, 3, "float64"), np.random.default_rng(2)
    x, dy = rng.standard_normal((5, 4)), rng.standard_normal((5, 3))
    dx = layer.backward(x, dy)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += 1e-6
        behind[index] -= 1e-6
        slope = np.sum((layer.forward(ahead) - layer.forward(behind)) * dy) / 2e-6
        assert abs(slope - dx[index]) < 1e-6 * np.abs(dx).max()


def test_gradients_are_written_not_added() -> None:
    layer, rng = build(4, 3, "float64"), np.random.default_rng(2)
    x, dy = rng.standard_normal((5, 4)), rng.standard_normal((5, 3))
    layer.backward(x, dy)
    once = layer.flat_grads.copy()
    assert layer.backward(x, dy, want_dx=False) is None
    np.testing.assert_array_equal(layer.flat_grads, once)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_batch_is_its_rows(dtype: str) -> None:
    layer, rng = build(37, 19, dtype), np.random.default_rng(3)
    x = rng.standard_normal((23, 37)).astype(dtype)
    y = layer.forward(x)
    for k in range(len(x)):
        np.testing.assert_array_equal(layer.forward(x[k : k + 1])[0], y[k])


def test_bound_arena_is_read_and_written() -> None:
    layer = Dense(3, 2, dtype="float64", random_state=0)
    flat, grads = np.empty(8), np.full(8, np.nan)
    layer.bind(flat, grads)
    flat[...] = np.arange(8.0)
    layer.parameters_changed()
    x = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(layer.forward(x), [[0 + 2 + 6 + 6, 3 + 8 + 15 + 7]])
    layer.backward(x, np.array([[1.0, -1.0]]))
    np.testing.assert_allclose(grads, [1, 2, 3, -1, -2, -3, 1, -1])
    flat[6] = 100.0
    layer.parameters_changed()
    assert layer.forward(x)[0, 0] == 108


@pytest.mark.parametrize(
    "arguments",
    [{"in_features": 0}, {"out_features": 0}, {"in_features": -1}, {"out_features": 1.5}, {"dtype": "int32"}],
    ids=str,
)
def test_bad_construction(arguments: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
        Dense(**{"in_features": 2, "out_features": 3, **arguments})


@pytest.mark.parametrize(
    "x", [np.ones(3), np.ones((2, 4)), np.ones((2, 3), complex), None], ids=lambda x: str(x)[:9]
)
def test_bad_input(x: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        build(3, 2, "float32").forward(x)
    assert len(str(caught.value).split()) >= 4
