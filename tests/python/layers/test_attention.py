"""Attention against plain numpy, central differences, and padding that must not matter."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from cases import relative_error

from fastlstm.layers import Attention

KINDS = ("additive", "scaled_dot")
QUERIES = (None, 1, 3)  # learned; one a sequence; three a sequence
LENGTHS = np.array([4, 1, 6])
BATCH, TIME, INPUT, QUERY, SIZE = 3, 6, 5, 4, 7


def build(kind: str, queries: int | None, dtype: str = "float64") -> Any:
    query_size = None if queries is None else QUERY
    layer = Attention(INPUT, query_size, SIZE, kind=kind, dtype=dtype, random_state=0)
    rng = np.random.default_rng(1)
    layer.load_parameters({name: rng.standard_normal(shape) for name, shape in layer.parameter_shapes})
    return layer


def draw(queries: int | None, dtype: str = "float64") -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """x, query and the gradient of the result."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((BATCH, TIME, INPUT)).astype(dtype)
    if queries is None or queries == 1:
        query = None if queries is None else rng.standard_normal((BATCH, QUERY)).astype(dtype)
        return x, query, rng.standard_normal((BATCH, INPUT)).astype(dtype)
    query = rng.standard_normal((BATCH, queries, QUERY)).astype(dtype)
    return x, query, rng.standard_normal((BATCH, queries, INPUT)).astype(dtype)


def plainly(layer: Any, x: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Result (input,) of one query for the real steps x (length, input), as the equations stand."""
    p = layer.parameters
    scores = []
    for step in x:
        if layer.kind == "additive":
            scores.append(p["score"] @ np.tanh(p["weight_k"] @ step + p["bias_k"] + query))
        else:
            scores.append(p["weight_k"] @ step @ query / np.sqrt(SIZE))
    weights = np.exp(scores) / np.sum(np.exp(scores))
    return weights @ x


@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_the_equation(kind: str, queries: int | None) -> None:
    layer, (x, query, _) = build(kind, queries), draw(queries)
    context, weights = layer(x, query, LENGTHS)
    assert weights.shape == (*context.shape[:-1], TIME)
    for b, length in enumerate(LENGTHS):
        if query is None:
            projected = layer.parameters.get("query", np.zeros(SIZE))[None]
        else:
            projected = query[b].reshape(-1, QUERY) @ layer.parameters["weight_q"].T
        want = [plainly(layer, x[b, :length], q) for q in projected]
        np.testing.assert_allclose(context[b].reshape(-1, INPUT), want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-14)
    assert not np.any(np.moveaxis(weights, -1, 1)[np.arange(TIME) >= LENGTHS[:, None]])


@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_entry_is_the_central_difference(kind: str, queries: int | None) -> None:
    layer, (x, query, dcontext) = build(kind, queries), draw(queries)
    _, _, tape = layer.forward(x, query, LENGTHS)
    dx, dquery = layer.backward(tape, dcontext)
    pairs = [(x, dx), (layer.flat, layer.flat_grads.copy())]
    if query is None:
        assert dquery is None
    else:
        pairs.append((query, dquery))
    for values, got in pairs:
        want = np.empty(values.shape)
        for index in np.ndindex(values.shape):
            kept, sums = values[index], []
            for step in (1e-6, -1e-6):
                values[index] = kept + step
                sums.append(np.sum(layer(x, query, LENGTHS)[0] * dcontext))
            values[index] = kept
            want[index] = (sums[0] - sums[1]) / 2e-6
        assert relative_error(got, want) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_read(kind: str, queries: int | None, dtype: str) -> None:
    layer, (x, query, dcontext) = build(kind, queries, dtype), draw(queries, dtype)

    def everything(x: np.ndarray) -> list[np.ndarray]:
        context, weights, tape = layer.forward(x, query, LENGTHS)
        dx, dquery = layer.backward(tape, dcontext)
        found = [context, weights[..., :TIME], dx[:, :TIME], layer.flat_grads.copy()]
        return found if dquery is None else [*found, dquery]

    wanted = everything(x)
    padding = np.arange(TIME) >= LENGTHS[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (np.nan, np.inf, 1e300):
            spoilt = x.astype(np.float64)
            spoilt[padding] = value
            longer = np.concatenate([spoilt, np.full((BATCH, 5, INPUT), value)], axis=1)
            for other in (spoilt, longer):
                for got, want in zip(everything(other), wanted, strict=True):
                    np.testing.assert_array_equal(got, want)
    assert not wanted[2][padding].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_sequences(kind: str) -> None:
    layer, (x, query, _) = build(kind, 3, "float32"), draw(3, "float32")
    together, _ = layer(x, query, LENGTHS)
    for b, length in enumerate(LENGTHS):
        alone, _ = layer(x[b : b + 1, :length], query[b : b + 1])
        np.testing.assert_array_equal(alone[0], together[b])


@pytest.mark.parametrize("kind", KINDS)
def test_float32_follows_float64(kind: str) -> None:
    results = {}
    for dtype in ("float32", "float64"):
        layer, (x, query, dcontext) = build(kind, 3, dtype), draw(3, "float32")
        context, _, tape = layer.forward(x, query, LENGTHS)
        assert context.dtype == dtype
        results[dtype] = [context, *layer.backward(tape, dcontext), layer.flat_grads]
    for single, double in zip(results["float32"], results["float64"], strict=True):
        assert relative_error(single, double) < 5e-6


def test_large_scores_stay_finite() -> None:
    layer = build("scaled_dot", None)
    context, weights = layer(1e4 * draw(None)[0])
    assert np.isfinite(context).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)


def test_a_tape_serves_once() -> None:
    layer, (x, _, dcontext) = build("additive", None), draw(None)
    _, _, tape = layer.forward(x)
    layer.backward(tape, dcontext)
    with pytest.raises(ValueError, match="tape holds no forward call of this layer"):
        layer.backward(tape, dcontext)


@pytest.mark.parametrize("queries", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_configuration_and_pickle(kind: str, queries: int | None) -> None:
    layer, (x, query, _) = build(kind, queries), draw(queries)
    assert Attention.from_config(layer.get_config()).get_config() == layer.get_config()
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(again(x, query)[0], layer(x, query)[0])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Attention(3, kind="cosine"), "kind must be one of additive, scaled_dot; got 'cosine'"),
        (lambda: Attention(0), "input_size must be at least 1"),
        (lambda: Attention(3)(np.ones((2, 4, 5))), r"x has shape \(2, 4, 5\); expected \(batch, time, 3\)"),
        (lambda: Attention(3)(np.ones((2, 0, 3))), "not empty"),
        (lambda: Attention(3)(np.ones((2, 4, 3), complex)), "x must hold real numbers"),
        (lambda: Attention(3)(np.ones((2, 4, 3)), lengths=[4, 5]), r"lengths\[1\] is 5; expected 1 to 4"),
        (lambda: Attention(3)(np.ones((2, 4, 3)), lengths=[4, 0]), r"lengths\[1\] is 0; expected 1 to 4"),
        (lambda: Attention(3)(np.ones((2, 4, 3)), lengths=[4.0, 1.0]), "lengths must be integers"),
        (lambda: Attention(3)(np.ones((2, 4, 3)), lengths=[4]), r"lengths has shape \(1,\); expected \(2,\)"),
        (lambda: Attention(3)(np.ones((2, 4, 3)), np.ones((2, 3))), "query must be None"),
        (lambda: Attention(3, 2)(np.ones((2, 4, 3))), r"query is missing; expected shape \(2, 2\)"),
        (lambda: Attention(3, 2)(np.ones((2, 4, 3)), np.ones((1, 2))), r"query has shape \(1, 2\); expected"),
        (lambda: Attention(3, 2)(np.ones((2, 4, 3)), np.ones((2, 0, 2))), "at least one query"),
    ],
    ids=str,
)
def test_bad_arguments(call: Any, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        call()
