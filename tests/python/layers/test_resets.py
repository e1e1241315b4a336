"""States reset between the steps of a sequence: against sequences run one by one, gradients, streams, errors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cell_reference
import numpy as np
import pytest
from cell_checks import STEP, VARIANTS, Variant, worst

from fastlstm import _core
from fastlstm.layers import LSTM
from fastlstm.streaming import LayerStream

Array = np.ndarray
BATCH, TIME, INPUT, HIDDEN = 4, 9, 2, 3
LENGTHS = np.array([9, 6, 8, 1])
SHAPES = ({}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True})


def make_resets() -> Array:
    """None, at the first step, at the last step and in the padding, at neighbouring steps."""
    resets = np.zeros((BATCH, TIME), bool)
    resets[1, [0, 3, 5, 7]] = True
    resets[2, [2, 3, 4, 8]] = True
    resets[3, 0] = True
    return resets


def build(cell: str, **options: Any) -> LSTM:
    return LSTM(INPUT, HIDDEN, cell=cell, **{"dtype": "float64", "random_state": 1, **options})


def problem(layer: LSTM) -> tuple[Array, tuple[Array, ...]]:
    """Input and initial states; the normaliser of the exponential cells is above zero."""
    rng = np.random.default_rng(2)
    size = (layer.num_layers * layer.directions, BATCH, HIDDEN)
    states = [0.5 * rng.standard_normal(size) for _ in layer.state_names]
    state = tuple(1.0 + np.abs(s) if k == 2 else s for k, s in enumerate(states))
    return rng.standard_normal((BATCH, TIME, INPUT)), state


def episodes(row: Array, length: int) -> list[slice]:
    """The stretches between resets."""
    borders = [0, *(t for t in range(1, length) if row[t]), length]
    return [slice(a, b) for a, b in pairwise(borders)]


def one_by_one(variant: Variant, layer: LSTM, x: Array, state: Any, resets: Array) -> Any:
    """Outputs and final states by the equations, each episode a sequence of its own."""
    y = np.zeros((BATCH, TIME, HIDDEN * layer.directions))
    final = tuple(np.zeros_like(s) for s in state)
    for b, length in enumerate(LENGTHS):
        parts = episodes(resets[b], length)
        for part in parts:
            start = tuple(np.zeros_like(s[:, :1]) for s in state)
            for d in range(layer.directions):
                if part is parts[-d] and not (d == 0 and resets[b, 0]):  # the first, or the last for d = 1
                    for own, given in zip(start, state, strict=True):
                        own[d :: layer.directions, 0] = given[d :: layer.directions, b]
            y_part, end = cell_reference.forward(
                variant.name,
                layer.parameters,
                layer.num_layers,
                layer.bidirectional,
                x[b : b + 1, part],
                start,
            )
            y[b, part] = y_part[0]
            for d in range(layer.directions):
                if part is parts[-1 + d]:
                    for whole, value in zip(final, end, strict=True):
                        whole[d :: layer.directions, b] = value[d :: layer.directions, 0]
    return y, final


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_an_episode_is_a_sequence_of_its_own(variant: Variant, shape: dict[str, Any]) -> None:
    layer = build(variant.cell, cell_activation=variant.cell_activation, **shape)
    (x, state), resets = problem(layer), make_resets()
    y, final = layer(x, state, LENGTHS, resets=resets)
    want_y, want_final = one_by_one(variant, layer, x, state, resets)
    assert worst([(y, want_y), *zip(final, want_final, strict=True)]) <= 1e-12
    y_training, final_training, _ = layer.forward(x, state, LENGTHS, resets=resets)
    assert worst([(y_training, y), *zip(final_training, final, strict=True)]) == 0.0


@pytest.mark.parametrize("cell", _core.cells())
def test_gradient_by_central_differences(cell: str) -> None:
    layer = build(cell, num_layers=2, bidirectional=True)
    (x, state), resets, rng = problem(layer), make_resets(), np.random.default_rng(3)
    y, final, tape = layer.forward(x, state, LENGTHS, resets=resets)
    dy, dfinal = rng.standard_normal(y.shape), [rng.standard_normal(s.shape) for s in final]

    def loss() -> float:
        layer.parameters_changed()
        y, final = layer(x, state, LENGTHS, resets=resets)
        return float(np.sum(y * dy) + sum(np.sum(s * d) for s, d in zip(final, dfinal, strict=True)))

    dx, dstate, grads = layer.backward(tape, dy, dfinal)
    flat = np.concatenate([value.ravel() for value in grads.values()])
    for array, found in ((layer.flat, flat), (x, dx), *zip(state, dstate, strict=True)):
        cells = array.reshape(-1)
        for k in range(0, cells.size, max(1, cells.size // 23)):
            kept, ends = cells[k], []
            for step in (STEP, -STEP):
                cells[k] = kept + step
                ends.append(loss())
            cells[k] = kept
            slope = (ends[0] - ends[1]) / (2 * STEP)
            assert abs(found.ravel()[k] - slope) <= 1e-6 * max(1.0, abs(slope))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_gradient_passes_a_reset(bidirectional: bool) -> None:
    layer = build("lstm", num_layers=2, bidirectional=bidirectional)
    (x, state), resets = problem(layer), np.zeros((BATCH, TIME), bool)
    resets[:, 4] = True
    y, _, tape = layer.forward(x, state, resets=resets)
    dy = np.zeros_like(y)
    dy[:, 4:] = 1.0
    dx, dstate, _ = layer.backward(tape, dy)
    assert not dx[:, :4].any()
    assert dx[:, 4:].all()
    for d in dstate:
        assert not d[:: layer.directions].any()
        assert not bidirectional or d[1::2].all()


def test_a_reset_before_the_first_step_drops_the_given_state() -> None:
    layer = build("lstm")
    x, state = problem(layer)
    resets = np.zeros((BATCH, TIME), bool)
    resets[1, 0] = True
    y, _, tape = layer.forward(x, state, resets=resets)
    np.testing.assert_array_equal(y[1], layer(x)[0][1])
    np.testing.assert_array_equal(y[0], layer(x, state)[0][0])
    _, dstate, _ = layer.backward(tape, np.ones_like(y))
    assert all(not d[:, 1].any() and d[:, 0].all() for d in dstate)


def test_without_any_reset_the_bits_are_those_of_the_plain_call() -> None:
    layer = build("gru", num_layers=2, bidirectional=True)
    x, state = problem(layer)
    y, final = layer(x, state, LENGTHS, resets=np.zeros((BATCH, TIME), bool))
    want_y, want = layer(x, state, LENGTHS)
    assert worst([(y, want_y), *zip(final, want, strict=True)]) == 0.0


@pytest.mark.parametrize("cell", _core.cells())
def test_a_stream_that_is_reset_gives_the_same_bits(cell: str) -> None:
    layer = build(cell, num_layers=2, dtype="float32")
    x, resets = problem(layer)[0].astype(np.float32), make_resets()
    y, final = layer(x, resets=resets)
    stream = LayerStream(layer, BATCH)
    for t in range(TIME):
        for b in np.flatnonzero(resets[:, t]):
            stream.reset(int(b))
        np.testing.assert_array_equal(stream.step(np.ascontiguousarray(x[:, t])), y[:, t])
    assert worst(zip(stream.state, final, strict=True)) == 0.0


def test_elapsed_times_belong_to_their_steps() -> None:
    layer = build("tlstm")
    x, resets = problem(layer)[0], make_resets()
    delta_t = np.random.default_rng(4).exponential(3.0, (BATCH, TIME))
    y, _ = layer(x, resets=resets, delta_t=delta_t)
    for b in range(BATCH):
        for part in episodes(resets[b], TIME):
            alone, _ = layer(x[b : b + 1, part], delta_t=delta_t[b : b + 1, part])
            np.testing.assert_array_equal(y[b, part], alone[0])


def test_return_all_shows_the_reset_steps() -> None:
    layer = build("lstm", num_layers=2)
    (x, state), resets = problem(layer), make_resets()
    found = layer.return_all(x, state, LENGTHS, resets=resets)
    np.testing.assert_array_equal(found["y"], layer(x, state, LENGTHS, resets=resets)[0])
    gates, c = found["gates"], found["c"][:, 2]
    assert c.shape == (2, TIME, HIDDEN)
    for t in (2, 3, 4):
        np.testing.assert_allclose(c[:, t], (gates["i"] * gates["g"])[:, 2, t], rtol=1e-14)
    np.testing.assert_allclose(c[:, 5], (gates["f"][:, 2, 5] * c[:, 4] + (gates["i"] * gates["g"])[:, 2, 5]))


def test_an_episode_has_dropout_masks_of_its_own() -> None:
    layer = build("lstm", num_layers=2, dropout=0.5, recurrent_dropout=0.5)
    x = np.ones((1, TIME, INPUT))
    resets = np.zeros((1, TIME), bool)
    resets[0, 3::3] = True
    y = layer.forward(x, resets=resets, rng_key=5)[0].reshape(3, 3, HIDDEN)
    np.testing.assert_array_equal(y, layer.forward(x.reshape(3, 3, INPUT), rng_key=5)[0])
    assert len(np.unique(y[:, -1], axis=0)) == 3


@pytest.mark.parametrize(
    ("resets", "error", "message"),
    [
        (np.zeros((BATCH, TIME)), TypeError, "must be bool, got dtype float64"),
        (np.zeros((BATCH, TIME - 1), bool), ValueError, r"shape \(4, 8\); expected \(4, 9\)"),
    ],
)
def test_wrong_resets(resets: Array, error: type[Exception], message: str) -> None:
    layer = build("lstm")
    x, _ = problem(layer)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x, resets=resets)
