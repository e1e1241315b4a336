"""The ragged path that networks use, tapes, dropout between layers, streams, and copies of a layer."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import cases
import numpy as np
import pytest
from cases import Case, as_tuple, make_problem
from subprocesses import output_of

from fastlstm import layers
from fastlstm.streaming import LayerStream

BOTH_WAYS = cases.by_name("deep_both_ways")


def rows_of(case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a value array, and starts and lengths of overlapping sequences in it."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((40, case.input_size)).astype(np.float32)
    lengths = rng.integers(1, 12, 9)
    return values, rng.integers(0, 28, 9), lengths


def padded_of(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    x = np.zeros((len(starts), lengths.max(), values.shape[1]), values.dtype)
    for b, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        x[b, :length] = values[start : start + length]
    return x


def joined(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([padded[b, :length] for b, length in enumerate(lengths)])


@pytest.mark.parametrize("name", ["deep_both_ways", "rnn_deep_both_ways", "stacked", "wide_input"])
def test_overlapping_windows_are_the_padded_call(name: str) -> None:
    case = cases.by_name(name)
    layer = cases.build_layer(case, "float32")
    values, starts, lengths = rows_of(case)
    want_y, want_state = layer(padded_of(values, starts, lengths), lengths=lengths)
    y, state = layer.run(values, starts, lengths)
    np.testing.assert_array_equal(y, joined(want_y, lengths))
    nothing, state_alone = layer.run(values, starts, lengths, False)
    assert nothing is None
    for a, b, c in zip(as_tuple(state), as_tuple(state_alone), as_tuple(want_state), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, c)


@pytest.mark.parametrize("name", ["deep_both_ways", "rnn_deep_both_ways", "stacked", "wide_input"])
def test_training_on_rows_is_the_padded_training(name: str) -> None:
    case = cases.by_name(name)
    layer = cases.build_layer(case, "float32")
    values, starts, lengths = rows_of(case)
    x = padded_of(values, starts, lengths)
    dy = np.random.default_rng(1).standard_normal((*x.shape[:2], layer.output_size)).astype(np.float32)
    want_y, final, tape = layer.forward(x, lengths=lengths)
    dfinal = tuple(np.ones_like(s) for s in as_tuple(final))
    want_dx, want_dstate, want = layer.backward(tape, dy, dfinal)
    y, _, tape = layer.run_training(values, starts, lengths)
    dx, dstate = layer.run_backward(tape, joined(dy, lengths), dfinal, True, True)
    np.testing.assert_array_equal(y, joined(want_y, lengths))
    np.testing.assert_array_equal(dx, joined(want_dx, lengths))
    np.testing.assert_array_equal(layer.flat_grads, np.concatenate([g.ravel() for g in want.values()]))
    for a, b in zip(dstate, as_tuple(want_dstate), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_without_dx_and_from_the_state_alone() -> None:
    layer = cases.build_layer(BOTH_WAYS, "float64")
    values, starts, lengths = rows_of(BOTH_WAYS)
    values = values.astype(np.float64)
    _, final, tape = layer.run_training(values, starts, lengths, False)
    dfinal = tuple(np.ones_like(s) for s in final)
    assert layer.run_backward(tape, None, dfinal) == (None, None)
    alone = layer.flat_grads.copy()
    y, _, tape = layer.run_training(values, starts, lengths)
    dx, _ = layer.run_backward(tape, np.zeros_like(y), dfinal, True)
    np.testing.assert_array_equal(layer.flat_grads, alone)
    assert dx.shape == (lengths.sum(), BOTH_WAYS.input_size)


def test_a_tape_serves_calls_of_any_size_one_after_another() -> None:
    layer = cases.build_layer(BOTH_WAYS, "float32")
    tape = None
    for seed in (3, 1, 4, 1, 5):
        values, starts, lengths = rows_of(BOTH_WAYS, seed)
        starts, lengths = starts[: seed + 2], lengths[: seed + 2]
        y, _, tape = layer.run_training(values, starts, lengths, tape=tape)
        layer.run_backward(tape, np.ones_like(y))
        reused = layer.flat_grads.copy()
        _, _, fresh = layer.run_training(values, starts, lengths)
        layer.run_backward(fresh, np.ones_like(y))
        np.testing.assert_array_equal(layer.flat_grads, reused)


BAD_ROWS: dict[str, tuple[list[int], list[int]]] = {
    "beyond_the_end": ([0, 38], [1, 3]),
    "starts_beyond_the_end": ([0, 41], [1, 1]),
    "negative_start": ([0, -1], [1, 1]),
    "far_away": ([0, 2**62], [1, 2]),
    "wraps_around": ([0, 2**63 - 1], [1, 2]),
    "zero_length": ([0, 1], [1, 0]),
    "negative_length": ([0, 1], [3, -1]),
    "more_starts": ([0, 1, 2], [1, 1]),
    "fewer_starts": ([0], [1, 1]),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
@pytest.mark.parametrize("method", ["run", "run_training"])
def test_rows_outside_the_array_are_refused(bad: str, method: str) -> None:
    layer = cases.build_layer(BOTH_WAYS, "float32")
    values, _, _ = rows_of(BOTH_WAYS)
    starts, lengths = (np.array(a, np.int64) for a in BAD_ROWS[bad])
    with pytest.raises(ValueError, match=" "):
        getattr(layer, method)(values, starts, lengths)


MISUSED_TAPES = """
import gc, sys
import numpy as np
from fastlstm.layers import LSTM
def rows(n, units=2):
    return np.ones((n, units), np.float32), np.zeros(1, np.int64), np.array([n])
def refused(action):
    try:
        action()
    except (ValueError, TypeError, RuntimeError) as error:
        assert len(str(error).split()) >= 4, error
    else:
        raise SystemExit("accepted")
layer = LSTM(2, 3)

# a call that was refused leaves no half-written tape
values, starts, lengths = rows(4)
_, _, tape = layer.run_training(values, starts, lengths)
try:
    layer.run_training(values, starts, np.array([10**6]), tape=tape)
except ValueError:
    refused(lambda: layer.run_backward(tape))

# used up, never filled, of another layer, of a layer that is gone
_, _, tape = layer.run_training(values, starts, lengths)
layer.run_backward(tape)
refused(lambda: layer.run_backward(tape))
_, _, tape = LSTM(2, 300).run_training(values, starts, lengths)
refused(lambda: layer.run_backward(tape))
small = [LSTM(2, 3) for _ in range(20)]
tapes = [each.run_training(values, starts, lengths)[2] for each in small]
del small
gc.collect()
for large in [LSTM(2, 300) for _ in range(20)]:
    for tape in tapes:
        refused(lambda: large.run_backward(tape))

# gradient arrays of the wrong size
y, final, tape = layer.run_training(values, starts, lengths)
for dy in (y[:-1].copy(), y[:, :-1].copy(), np.ones(1, np.float32)):
    refused(lambda: layer.run_backward(tape, dy))
refused(lambda: layer.run_backward(tape, y, (final[0][..., :2].copy(), final[1])))
print("done")
"""


def test_a_misused_tape_is_refused_and_never_crashes() -> None:
    assert output_of(MISUSED_TAPES) == "done"


def dropped(dropout: float, dtype: str = "float64") -> Any:
    return layers.LSTM(4, 9, 3, bidirectional=True, dropout=dropout, dtype=dtype, random_state=0)


def test_dropout_is_for_training_alone_and_follows_its_key() -> None:
    problem = make_problem(Case("dropout", input_size=4, hidden_size=9, batch=5, time=6, ragged=True))
    x, lengths = problem.x, problem.lengths
    plain, layer = dropped(0.0), dropped(0.5)
    np.testing.assert_array_equal(layer(x, lengths=lengths)[0], plain(x, lengths=lengths)[0])
    first = layer.forward(x, lengths=lengths, rng_key=1)[0]
    np.testing.assert_array_equal(layer.forward(x, lengths=lengths, rng_key=1)[0], first)
    assert np.abs(layer.forward(x, lengths=lengths, rng_key=2)[0] - first).max() > 1e-3
    assert np.abs(plain(x, lengths=lengths)[0] - first).max() > 1e-3


def test_dropout_gradient_is_the_central_difference() -> None:
    layer, rng = dropped(0.4), np.random.default_rng(0)
    x, lengths = rng.standard_normal((5, 6, 4)), np.array([6, 1, 3, 5, 6])
    dy = rng.standard_normal((5, 6, 18)) * (np.arange(6) < lengths[:, None])[..., None]
    dx, _, grads = layer.backward(layer.forward(x, lengths=lengths, rng_key=7)[2], dy)
    parameters = {name: p.copy() for name, p in layer.parameters.items()}

    def loss(x: np.ndarray, moved: dict[str, np.ndarray]) -> float:
        layer.load_parameters({**parameters, **moved})
        return float(np.sum(layer.forward(x, lengths=lengths, rng_key=7)[0] * dy))

    for name, grad in {"x": dx, **grads}.items():
        direction = rng.standard_normal(grad.shape) / np.sqrt(grad.size)
        ends = []
        for step in (1e-5, -1e-5):
            moved = {} if name == "x" else {name: parameters[name] + step * direction}
            ends.append(loss(x + step * direction if name == "x" else x, moved))
        slope = (ends[0] - ends[1]) / 2e-5
        assert abs(slope - np.sum(grad * direction)) < 1e-6 * np.linalg.norm(grad), name


def test_dropout_keeps_the_expectation_with_one_mask_per_sequence() -> None:
    """A second layer that is nearly linear shows the mask of its input: 0 or 1 / (1 - p)."""
    layer = layers.RNN(1, 50, 2, nonlinearity="relu", dropout=0.25, dtype="float64", random_state=0)
    shapes = {name: np.zeros(p.shape) for name, p in layer.parameters.items()}
    shapes["bias_ih_l0"] += 1.0
    shapes["weight_ih_l1"] += np.eye(50)
    layer.load_parameters(shapes)
    y, _, _ = layer.forward(np.zeros((40, 3, 1)), rng_key=11)
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    np.testing.assert_array_equal(y, np.repeat(y[:, :1], 3, axis=1))
    assert abs((y == 0).mean() - 0.25) < 0.03
    assert len({row.tobytes() for row in y[:, 0]}) == 40


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["stacked", "vector_16", "wide_input", "large_hidden", "rnn"])
def test_stream_steps_are_the_bits_of_the_whole_call(name: str, dtype: str) -> None:
    problem = make_problem(cases.by_name(name))
    layer = cases.build_layer(problem.case, dtype, problem.parameters)
    x = problem.x.astype(dtype)
    y, final = layer(x)
    stream = LayerStream(layer, problem.case.batch)
    for t in range(problem.case.time):
        np.testing.assert_array_equal(stream.step(np.ascontiguousarray(x[:, t])), y[:, t])
    for a, b in zip(stream.state, as_tuple(final), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same_and_are_independent(copied: Any) -> None:
    for layer in (
        cases.build_layer(BOTH_WAYS, "float32"),
        dropped(0.5),
        layers.RNN(2, 3, nonlinearity="relu", random_state=0),
    ):
        x = np.ones((2, 4, layer.input_size))
        want, twin = layer(x)[0], copied(layer)
        np.testing.assert_array_equal(twin(x)[0], want)
        assert type(twin) is type(layer)
        assert twin.get_config() == layer.get_config()
        twin.flat[...] = 0
        twin.parameters_changed()
        np.testing.assert_array_equal(layer(x)[0], want)


def test_configuration_is_plain_json_and_builds_the_layer_again() -> None:
    for layer in (
        cases.build_layer(BOTH_WAYS, "float64"),
        layers.RNN(2, 3, nonlinearity="relu", dropout=0.25),
    ):
        config = json.loads(json.dumps(layer.get_config()))
        again = type(layer).from_config(config)
        again.load_parameters(layer.parameters)
        x = np.ones((2, 4, layer.input_size))
        np.testing.assert_array_equal(again(x)[0], layer(x)[0])
        assert again.get_config() == config


def test_bound_arena_holds_parameters_and_gradients() -> None:
    layer = cases.build_layer(BOTH_WAYS, "float32")
    n, x = layer.n_parameters, np.ones((2, 3, BOTH_WAYS.input_size), np.float32)
    want = layer(x)[0]
    arena, grads = np.full(n + 10, np.nan, np.float32), np.full(n + 10, np.nan, np.float32)
    layer.bind(arena[5:-5], grads[5:-5])
    np.testing.assert_array_equal(layer(x)[0], want)
    rows = x.reshape(6, -1)
    y, _, tape = layer.run_training(rows, np.array([0, 3]), np.array([3, 3]))
    layer.run_backward(tape, np.ones_like(y))
    for array in (arena, grads):
        assert np.isnan(array[:5]).all()
        assert np.isnan(array[-5:]).all()
        assert np.isfinite(array[5:-5]).all()
    arena[5:-5] = 0
    layer.parameters_changed()
    assert not layer(x)[0].any()


@pytest.mark.parametrize(
    "spoil", [lambda a: a[:-1], lambda a: a.astype("f8"), lambda a: np.repeat(a, 2)[::2]]
)
def test_an_arena_that_does_not_fit_is_refused(spoil: Any) -> None:
    layer = cases.build_layer(BOTH_WAYS, "float32")
    good = np.zeros(layer.n_parameters, np.float32)
    for flat, grads in ((spoil(good), good), (good, spoil(good))):
        with pytest.raises(ValueError, match="contiguous float32 array"):
            layer.bind(flat, grads)
