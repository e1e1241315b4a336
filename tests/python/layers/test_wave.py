"""Stacked layers on a few sequences: with threads, the layers run as a wave, each some steps behind the one below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM, RNN

LENGTHS = {1: [240], 2: [140, 101], 3: [90, 90, 90], 5: [64, 38, 1, 63, 83]}


def batch(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array(LENGTHS[n])
    return np.random.default_rng(n).standard_normal((n, lengths.max(), width)), lengths


def results(layer: Any, n: int, threads: int, key: int) -> Iterator[np.ndarray]:
    """Inference, then training and its gradients."""
    layer.n_threads = threads
    x, lengths = batch(n, layer.input_size)
    start = tuple(np.full_like(state, 0.1) for state in layer.initial_state(n))
    y, final = layer(x, start, lengths)
    yield from (y, *final)
    y, final, tape = layer.forward(x, start, lengths, rng_key=key)
    dx, dstart, grads = layer.backward(tape, np.ones_like(y))
    yield from (y, *final, dx, *dstart, *grads.values())


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "layer",
    [
        LSTM(24, 40, 2, random_state=0),
        LSTM(24, 40, 3, dropout=0.3, recurrent_dropout=0.2, random_state=0),
        LSTM(90, 33, 4, zoneout=0.1, layer_norm=True, dtype="float64", random_state=0),
        LSTM(24, 40, 3, proj_size=20, random_state=0),
        GRU(40, 44, 3, random_state=0),
        LSTM(24, 48, 2, cell="gru_before", random_state=0),
        RNN(24, 70, 5, random_state=0),
    ],
    ids=["lstm", "dropout", "float64-zoneout-norm", "projection", "gru", "two-parts", "rnn"],
)
def test_the_bits_are_those_of_one_layer_after_another(layer: Any, n: int) -> None:
    want = list(results(layer, n, 1, key=5))
    for threads in (2, 3, 4):
        for got, expected in zip(results(layer, n, threads, key=5), want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_the_tape_takes_the_memory_that_was_foretold() -> None:
    layer = LSTM(24, 64, 3, random_state=0)
    layer.n_threads = 3
    x, lengths = batch(2, 24)
    _, _, tape = layer.forward(x, lengths=lengths)
    assert tape.nbytes == layer.activation_bytes(lengths)


def test_a_step_that_a_wave_has_not_reached_does_not_matter() -> None:
    layer = LSTM(24, 72, 3, random_state=0)
    layer.n_threads = 3
    x, _ = batch(3, 24)
    y, _ = layer(x)
    changed = x.copy()
    changed[:, 40:] = 7.0
    np.testing.assert_array_equal(layer(changed)[0][:, :40], y[:, :40])
