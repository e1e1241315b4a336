"""Memory stays flat over many calls of changing shape, and tapes are freed."""

from __future__ import annotations

import gc
from pathlib import Path

import cases
import numpy as np
import pytest
from cases import Case

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
MIB = 2**20


def resident_bytes() -> int:
    gc.collect()
    return int(STATM.read_text().split()[1]) * 4096


def call_often(count: int, seed: int) -> None:
    """`count` forward and backward calls whose batch, time, lengths and units all change."""
    rng = np.random.default_rng(seed)
    built = [
        cases.build_layer(
            Case("memory", input_size=5, hidden_size=h, num_layers=2, bidirectional=True), "float32"
        )
        for h in (3, 16, 40)
    ]
    for _ in range(count):
        layer = built[rng.integers(3)]
        batch, time = rng.integers(1, 12), rng.integers(1, 25)
        x = rng.standard_normal((batch, time, 5), np.float32)
        lengths = rng.integers(1, time + 1, batch)
        y, _, tape = layer.forward(x, lengths=lengths)
        layer.backward(tape, np.ones_like(y))
        layer(x, lengths=lengths)


def growth_of(count: int) -> int:
    call_often(300, seed=0)
    before = resident_bytes()
    call_often(count, seed=1)
    return resident_bytes() - before


def test_memory_stays_flat() -> None:
    assert growth_of(1000) < 4 * MIB


@pytest.mark.long
def test_memory_stays_flat_over_ten_thousand_calls() -> None:
    assert growth_of(10_000) < 4 * MIB


def test_a_tape_that_is_never_used_is_freed() -> None:
    layer = cases.build_layer(Case("tape", input_size=8, hidden_size=64), "float32")
    x = np.zeros((16, 100, 8), np.float32)  # a tape of about 2.5 MB
    for _ in range(5):
        layer.forward(x)
    before = resident_bytes()
    for _ in range(100):
        layer.forward(x)
    assert resident_bytes() - before < 16 * MIB


def test_a_layer_keeps_the_memory_of_one_tape_until_it_is_called_without_one() -> None:
    layer = cases.build_layer(Case("tape", input_size=8, hidden_size=64), "float32")
    x = np.zeros((16, 2000, 8), np.float32)
    layer(x)
    before = resident_bytes()
    for _ in range(3):
        y, _, tape = layer.forward(x)
        size = tape.nbytes
        layer.backward(tape, y)
    del y, tape
    assert size > 40 * MIB
    assert resident_bytes() - before < 2 * size
    layer(x)
    assert resident_bytes() - before < 16 * MIB


def test_layers_are_freed() -> None:
    case = Case("layer", input_size=64, hidden_size=256)  # 1.3 MB of parameters, as much packed
    x = np.zeros((1, 1, 64), np.float32)
    for _ in range(3):
        cases.build_layer(case, "float32")(x)
    before = resident_bytes()
    for _ in range(40):
        cases.build_layer(case, "float32")(x)
    assert resident_bytes() - before < 16 * MIB


def test_refused_calls_leak_nothing() -> None:
    layer = cases.build_layer(Case("refused", input_size=8, hidden_size=64), "float32")
    x = np.zeros((16, 100, 8), np.float32)

    def refuse(count: int) -> None:
        for _ in range(count):
            for bad in (x[..., :3], x[:0]):
                with pytest.raises(ValueError):
                    layer.forward(bad)
            with pytest.raises(ValueError):
                layer.forward(x, lengths=[1] * 15 + [101])

    refuse(20)
    before = resident_bytes()
    refuse(200)
    assert resident_bytes() - before < 4 * MIB
