"""Checkpoints in time: the numbers of the plain layer from a fraction of its memory; what a tape holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import collect, relative_error

from fastlstm import LSTMClassifier, LSTMRegressor, _core, as_sequences, load
from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.losses import get_loss
from fastlstm.network import POOLINGS, SequenceNetwork

CELLS = tuple(_core.cells())
BATCH, STEPS, INPUT, HIDDEN = 5, 23, 3, 7
LENGTHS = np.array([9, STEPS, 1, 5, 17])  # neither sorted nor multiples of a chunk
KEY = 11
PAGE = Path(__file__).resolve().parents[3] / "docs" / "memory.md"


def build(cell: str = "lstm", **options: Any) -> LSTM:
    size: dict[str, Any] = {"hidden_size": HIDDEN, "num_layers": 2, "dtype": "float64", "random_state": 0}
    return LSTM(INPUT, cell=cell, **{**size, **options})


def solve(layer: LSTM, given_state: bool = True, **call: Any) -> dict[str, np.ndarray]:
    """Outputs, states and all gradients of one training step, by name."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((BATCH, STEPS, INPUT))
    states = [1.0 + 0.5 * rng.uniform(size=state.shape) for state in layer.empty_states(BATCH)]
    dstate = tuple(rng.standard_normal(state.shape) for state in states)
    state = tuple(states) if given_state else None
    y, final, tape = layer.forward(x, state, LENGTHS, rng_key=KEY, **call)
    dx, initial, grads = layer.backward(tape, rng.standard_normal(y.shape), dstate)
    return {name: np.array(value) for name, value in collect(y, final, dx, initial, grads).items()}


def compare(got: dict[str, np.ndarray], want: dict[str, np.ndarray], bound: float = 1e-12) -> None:
    """Outputs and final states are the same bits; gradients agree to `bound`."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        if name == "y" or name.startswith("state_"):
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        else:
            assert relative_error(got[name], value) <= bound, name


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_ragged_with_states(cell: str) -> None:
    want = solve(build(cell))
    for every in (1, 4, 22, STEPS, STEPS + 1):
        compare(solve(build(cell, checkpoint_every=every)), want)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_the_masks_of_the_plain_call(cell: str) -> None:
    """Masks follow the sequence, though a late chunk has fewer of them."""
    options = {"dropout": 0.4} if cell.startswith("rnn") else {"dropout": 0.4, "recurrent_dropout": 0.3}
    want, undropped = solve(build(cell, **options)), solve(build(cell))
    assert not np.allclose(want["y"], undropped["y"])
    compare(solve(build(cell, checkpoint_every=4, **options)), want)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_dropout": 0.4, "weight_noise": 0.2},
        {"cell": "peephole", "weight_noise": 0.2},
        {"learn_initial_state": True, "weight_noise": 0.2},
        {"proj_size": 4, "output_proj_size": 2, "dropout": 0.3},
        {"truncated": True},
        {"hidden_size": 6, "cells_per_block": 2, "weight_noise": 0.1},
        {"cell": "fgr", "truncated": True},
        {"num_layers": 1, "bias": False},
        {"num_layers": 3, "cell": "slstm", "dropout": 0.5},
    ],
)
@pytest.mark.parametrize("given_state", [False, True])
def test_options(options: dict[str, Any], given_state: bool) -> None:
    want = solve(build(**options), given_state)
    compare(solve(build(checkpoint_every=5, **options), given_state), want)


def test_elapsed_times_and_resets() -> None:
    rng = np.random.default_rng(2)
    resets = rng.uniform(size=(BATCH, STEPS)) < 0.15
    for cell, call in (
        ("tlstm", {"delta_t": rng.exponential(3.0, (BATCH, STEPS))}),
        ("lstm", {"resets": resets}),
    ):
        options: dict[str, Any] = {"dropout": 0.5, "recurrent_dropout": 0.5, "learn_initial_state": True}
        want = solve(build(cell, **options), **call)
        compare(solve(build(cell, checkpoint_every=4, **options), **call), want)


def test_noisy_weights_survive_a_call_in_between() -> None:
    """The chunks run again with the weights of the forward call, which inference has unloaded."""
    x = np.random.default_rng(0).standard_normal((2, 12, INPUT))
    found = []
    for every in (None, 4):
        layer = build(weight_noise=0.3, weight_dropout=0.3, checkpoint_every=every)
        y, _, tape = layer.forward(x, rng_key=KEY)
        layer(x)
        found.append(layer.backward(tape, np.ones_like(y))[2])
    for name, value in found[0].items():
        assert relative_error(found[1][name], value) <= 1e-12


def test_float32_and_threads() -> None:
    """Rounding of float32, and the same bits for every number of threads."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, 12, 20)).astype(np.float32)
    dy = rng.standard_normal((70, 12, 72)).astype(np.float32)

    def gradients(every: int | None, threads: int) -> dict[str, np.ndarray]:
        layer = LSTM(20, 72, 2, recurrent_dropout=0.2, checkpoint_every=every, random_state=0)
        layer.n_threads = threads
        _, _, tape = layer.forward(x, rng_key=KEY)
        dx, _, grads = layer.backward(tape, dy)
        return {"x": dx, **grads}

    want, first = gradients(None, 1), gradients(5, 1)
    for name, value in want.items():
        assert relative_error(first[name], value) < 5e-6
    for threads in (2, 3):
        again = gradients(5, threads)
        for name, value in first.items():
            np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_network_gets_the_same_gradient(pooling: str) -> None:
    rng = np.random.default_rng(3)
    sequences = as_sequences([rng.standard_normal((length, INPUT)) for length in LENGTHS], dtype=np.float64)
    found = []
    for every in (None, 4):
        encoder = build(dropout=0.3, recurrent_dropout=0.3, checkpoint_every=every)
        network = SequenceNetwork(encoder, 2, pooling=pooling, head_dropout=0.2, random_state=0)
        loss = get_loss("squared")
        targets = loss.check_targets(np.ones((BATCH, 2)), 2, np.float64)
        for key in (5, 6):  # the second call reuses the tape
            order = np.array([4, 0, 1, 3, 2])
            value = network.loss_and_gradient(sequences, order, loss, targets, None, key)
            found.append((value, network.flat_grads.copy()))
    for got, want in zip(found[2:], found[:2], strict=True):
        assert got[0] == want[0]
        assert relative_error(got[1], want[1]) <= 1e-12


# ---- memory ----


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_before", "rnn", "slstm", "fgr"])
def test_memory_at_a_thousand_steps(cell: str) -> None:
    """At most a tenth, the checkpoints and the work of the backward pass included."""
    x = np.zeros((8, 1000, 8), np.float32)
    dy = np.zeros((8, 1000, 32), np.float32)
    plain, layer = LSTM(8, 32, cell=cell), LSTM(8, 32, cell=cell, checkpoint_every=32)
    _, _, tape = plain.forward(x)
    before = tape.nbytes
    plain.backward(tape, dy)
    _, _, small = layer.forward(x)
    kept = small.nbytes
    assert kept <= layer.activation_bytes([1000] * 8) <= 0.1 * before
    layer.backward(small, dy)
    (_, _, small), (_, _, tape) = layer.forward(x), plain.forward(x)  # take over what the backward calls took
    assert tape.nbytes > before
    share = 0.11 if cell == "fgr" else 0.1  # which transposes the weights of three more gates
    assert kept + small.nbytes <= share * tape.nbytes


def layers_and_lengths() -> Iterator[tuple[LSTM, np.ndarray]]:
    shapes: list[dict[str, Any]] = [
        {},
        {"num_layers": 3, "dropout": 0.2},
        {"bidirectional": True, "num_layers": 2},
        {"dtype": "float64"},
    ]
    for cell in ("lstm", "gru_before", "slstm", "rnn", "tlstm", "lstm1997_gates"):
        for options in shapes:
            for lengths in ([1], [40, 3, 17, 40]):
                yield LSTM(5, 19, cell=cell, **options), np.array(lengths)
    yield LSTM(5, 19, proj_size=4, recurrent_dropout=0.5), np.array([8, 2])


def test_activation_bytes_are_those_of_the_tape() -> None:
    for layer, lengths in layers_and_lengths():
        _, _, tape = layer.forward(np.zeros((len(lengths), lengths.max(), 5)), lengths=lengths)
        assert tape.nbytes == layer.activation_bytes(lengths)
    layer = LSTM(5, 19, cell="tlstm")
    _, _, tape = layer.forward(np.zeros((3, 40, 5)), delta_t=np.ones((3, 40)))
    assert tape.nbytes == layer.activation_bytes([40] * 3, with_delta_t=True)


def test_activation_bytes_with_checkpoints() -> None:
    """To the byte where the chunks are alike; else the last one, which the forward call leaves, is the smallest."""
    for cell in ("lstm", "slstm", "gru"):
        layer = LSTM(5, 19, 2, cell=cell, checkpoint_every=8)
        _, _, tape = layer.forward(np.zeros((3, 40, 5)))
        assert tape.nbytes == layer.activation_bytes([40] * 3)
        checkpoints = 5 * 3 * sum(state[:, 0].nbytes for state in layer.empty_states(1))
        assert tape.nbytes == checkpoints + LSTM(5, 19, 2, cell=cell).activation_bytes([8] * 3)
        _, _, tape = layer.forward(np.zeros((3, 40, 5)), lengths=[40, 3, 17])
        assert tape.nbytes < layer.activation_bytes([40, 3, 17]) < layer.activation_bytes([40] * 3)


@pytest.mark.skipif(not PAGE.exists(), reason="needs the source tree")
def test_the_documented_values_of_a_step() -> None:
    """The table of docs/memory.md is about every cell, and says what a step takes."""
    kept: dict[str, int] = {}
    for names, value in re.findall(r"^\| (`.+`) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE):
        kept |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(value))
    assert kept.keys() == set(CELLS)
    units, inputs = 64, 16  # whole vectors of every instruction set

    def values(more: int = 0, **options: Any) -> float:
        """Growth of the memory of two sequences with their steps, in values a step and sequence."""
        layer = LSTM(inputs, units, **options)
        grown = np.subtract(*[layer.activation_bytes([t] * 2, with_delta_t=bool(more)) for t in (512, 256)])
        return float(grown - 16 * 256) / (2 * 256 * layer.dtype.itemsize)

    for cell, of_a_unit in kept.items():
        a_layer = of_a_unit * units + units
        assert values(cell=cell) == inputs + a_layer
        assert values(cell=cell, num_layers=2, bidirectional=True, dtype="float64") == inputs + 4 * a_layer
        assert values(cell=cell, num_layers=2, dropout=0.5) == inputs + 2 * a_layer + units
    assert values(1, cell="tlstm") == inputs + 9 * units + 1
    projected = {"proj_size": 16, "output_proj_size": 32}
    assert values(cell="lstm", **projected) == inputs + (kept["lstm"] + 1) * units + 48


# ---- what is refused, what is carried along ----


def test_a_tape_serves_one_backward_call() -> None:
    layer = build(checkpoint_every=4)
    values, starts, lengths = np.zeros((12, INPUT)), np.array([0]), np.array([12])
    y, _, tape = layer.run_training(values, starts, lengths)
    layer.run_backward(tape, y)
    with pytest.raises(ValueError, match="used up"):
        layer.run_backward(tape, y)
    y, _, tape = layer.run_training(values, starts, lengths, tape=tape)
    layer.parameters_changed()
    with pytest.raises(ValueError, match="parameters changed"):
        layer.run_backward(tape, y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1, got 0"),
        ({"checkpoint_every": 2.0}, TypeError, "checkpoint_every must be an integer"),
        ({"checkpoint_every": True}, TypeError, "checkpoint_every must be an integer"),
        (
            {"checkpoint_every": 4, "bidirectional": True},
            ValueError,
            "checkpoint_every goes with one direction",
        ),
    ],
)
def test_bad_values(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LSTM(2, 3, **options)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([], ValueError, "expected one length per sequence"),
        (5, ValueError, "expected one length per sequence"),
        ([3, 0], ValueError, r"lengths\[1\] is 0"),
        ([2.0], TypeError, "lengths must be integers"),
        ([2**62], OverflowError, "more than the address space holds"),
    ],
)
def test_bad_lengths(lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LSTM(2, 3).activation_bytes(lengths)


def test_layers_carry_the_setting() -> None:
    for layer in (
        RNN(2, 3, checkpoint_every=9),
        GRU(2, 3, checkpoint_every=9),
        LSTM(2, 3, checkpoint_every=9),
    ):
        assert layer.checkpoint_every == 9
        assert LSTM.from_config(layer.get_config()).checkpoint_every == 9
    x = np.random.default_rng(0).standard_normal((2, 6, INPUT))
    found, want = build(checkpoint_every=2).return_all(x), build().return_all(x)
    np.testing.assert_array_equal(found["c"], want["c"])


@pytest.mark.parametrize("estimator", [LSTMClassifier, LSTMRegressor])
def test_estimators_learn_the_same(estimator: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((length, 2)) for length in rng.integers(2, 20, 24)]
    y = np.array([row[:, 0].sum() > 0 for row in x]).astype(int)
    options: dict[str, Any] = {"max_iter": 3, "precision": "float64", "dropout": 0.2, "random_state": 0}
    plain = estimator(6, **options).fit(x, y)
    model = estimator(6, checkpoint_every=4, **options).fit(x, y)
    assert model.network_.encoder.checkpoint_every == 4
    np.testing.assert_allclose(model.loss_curve_, plain.loss_curve_, rtol=1e-10)
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "model.safetensors").predict(x), model.predict(x))
    with pytest.raises(ValueError, match="'checkpoint_every' parameter"):
        estimator(6, checkpoint_every=0).fit(x, y)
    with pytest.raises(ValueError, match="checkpoint_every goes with one direction"):
        estimator(6, checkpoint_every=4, bidirectional=True).fit(x, y)
