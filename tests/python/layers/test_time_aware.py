"""Elapsed times of the time-aware LSTM: against the equations, gradients, order of reading, errors."""

from __future__ import annotations

import math
from typing import Any

import cell_reference
import numpy as np
import pytest

from fastlstm.layers import LSTM

BATCH, STEPS, INPUT, HIDDEN = 3, 6, 2, 5
LENGTHS = np.array([6, 3, 5])
DECAYS = {"log": lambda t: 1.0 / math.log(math.e + t), "inverse": lambda t: 1.0 / t if t else 1.0}


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    delta_t = rng.exponential(4.0, (BATCH, STEPS))
    delta_t[:, 0] = 0.0
    return rng.standard_normal((BATCH, STEPS, INPUT)), delta_t


def build(**options: Any) -> LSTM:
    return LSTM(INPUT, HIDDEN, cell="tlstm", **{"dtype": "float64", "random_state": 0, **options})


def by_the_equations(layer: LSTM, x: np.ndarray, delta_t: np.ndarray, suffix: str) -> np.ndarray:
    """Outputs (T, hidden) of one direction over one sequence."""
    weights = cell_reference.Weights(cell_reference.CELLS["tlstm"], layer.parameters, suffix)
    h = c = np.zeros(HIDDEN)
    found = []
    for x_t, elapsed in zip(x, delta_t, strict=True):
        h, c = cell_reference.tlstm(weights, x_t, h, c, decay=DECAYS[layer.time_decay](elapsed))
        found.append(h)
    return np.array(found)


@pytest.mark.parametrize("time_decay", DECAYS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_outputs_are_those_of_the_equations(time_decay: str, bidirectional: bool) -> None:
    layer = build(time_decay=time_decay, bidirectional=bidirectional)
    x, delta_t = problem()
    y, _ = layer(x, lengths=LENGTHS, delta_t=delta_t)
    for b, length in enumerate(LENGTHS):
        want = by_the_equations(layer, x[b, :length], delta_t[b, :length], "l0")
        np.testing.assert_allclose(y[b, :length, :HIDDEN], want, rtol=1e-12, atol=1e-14)
        if bidirectional:
            want = by_the_equations(layer, x[b, :length][::-1], delta_t[b, :length][::-1], "l0_reverse")
            np.testing.assert_allclose(y[b, :length, HIDDEN:], want[::-1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"time_decay": "inverse"}])
def test_gradient_by_central_differences(options: dict[str, Any]) -> None:
    layer = build(**options)
    x, delta_t = problem()
    rng = np.random.default_rng(1)
    y, state, tape = layer.forward(x, lengths=LENGTHS, delta_t=delta_t)
    dy, dstate = rng.standard_normal(y.shape), tuple(rng.standard_normal(s.shape) for s in state)

    def loss() -> float:
        out, final = layer(x, lengths=LENGTHS, delta_t=delta_t)
        return float(np.sum(out * dy) + sum(np.sum(s * d) for s, d in zip(final, dstate, strict=True)))

    dx, _, grads = layer.backward(tape, dy, dstate)
    flat = np.concatenate([grads[name].ravel() for name, _ in layer.parameter_shapes])
    for array, found in ((layer.flat, flat), (x.reshape(-1), dx.reshape(-1))):
        for k in range(0, array.size, 1 if array.size < 100 else 7):
            kept, ends = array[k], []
            for step in (1e-5, -1e-5):
                array[k] = kept + step
                layer.parameters_changed()
                ends.append(loss())
            array[k] = kept
            layer.parameters_changed()
            assert math.isclose(found[k], (ends[0] - ends[1]) / 2e-5, rel_tol=1e-6, abs_tol=1e-8)


def test_no_time_is_the_lstm_with_the_same_weights() -> None:
    """g(0) = 1, so nothing is discounted; the decomposition takes no part."""
    layer, x = build(), problem()[0]
    plain = LSTM(INPUT, HIDDEN, dtype="float64")
    plain.load_parameters({name: value[: 4 * HIDDEN] for name, value in layer.parameters.items()})
    np.testing.assert_array_equal(layer(x)[0], plain(x)[0])
    np.testing.assert_array_equal(layer(x, delta_t=np.zeros((BATCH, STEPS)))[0], plain(x)[0])


def test_threads_and_batch_do_not_change_the_bits() -> None:
    layer = LSTM(4, 48, num_layers=2, bidirectional=True, cell="tlstm", batch_invariant=True, random_state=0)
    rng = np.random.default_rng(0)
    x, delta_t = rng.standard_normal((40, 30, 4)), rng.exponential(1.0, (40, 30))
    lengths = rng.integers(1, 31, 40)
    results = []
    for layer.n_threads in (1, 2, 3):
        y, _, tape = layer.forward(x, lengths=lengths, delta_t=delta_t)
        results.append((y, *layer.backward(tape, np.ones_like(y))[2].values()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    layer.n_threads = 1
    one = slice(7, 8)
    alone, _ = layer(x[one], lengths=lengths[one], delta_t=delta_t[one])
    np.testing.assert_array_equal(alone, results[0][0][one])


def test_padding_of_the_times_is_not_read() -> None:
    layer = build()
    x, delta_t = problem()
    want = layer(x, lengths=LENGTHS, delta_t=delta_t)[0]
    delta_t[np.arange(STEPS) >= LENGTHS[:, None]] = np.nan
    np.testing.assert_array_equal(layer(x, lengths=LENGTHS, delta_t=delta_t)[0], want)


@pytest.mark.parametrize(
    ("delta_t", "error", "message"),
    [
        (np.zeros((BATCH, STEPS + 1)), ValueError, r"delta_t has shape \(3, 7\); expected \(3, 6\)"),
        (np.full((BATCH, STEPS), -1.0), ValueError, r"delta_t\[0, 0\] is -1.0; times must be finite"),
        (np.full((BATCH, STEPS), np.nan), ValueError, r"delta_t\[0, 0\] is nan"),
        (np.full((BATCH, STEPS), "a"), TypeError, "delta_t must hold real numbers"),
    ],
)
def test_bad_times(delta_t: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()(problem()[0], delta_t=delta_t)


def test_other_cells_have_no_use_for_times() -> None:
    with pytest.raises(
        ValueError, match="delta_t goes with the cell 'tlstm'; this layer has the cell 'lstm'"
    ):
        LSTM(INPUT, HIDDEN)(problem()[0], delta_t=problem()[1])
    with pytest.raises(ValueError, match="time_decay must be one of 'log', 'inverse'; got 'linear'"):
        LSTM(INPUT, HIDDEN, cell="tlstm", time_decay="linear")
