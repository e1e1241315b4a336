"""Orthogonal matrices, forget-gate biases and chrono biases, for every cell that has the gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM, RNN, chrono, forget_bias, orthogonal

ORDER = {
    "lstm": "ifgo",
    "peephole": "ifgo",
    "peephole_article": "ifgo",
    "niaf": "ifgo",
    "noaf": "ifgo",
    "cifg": "fgo",
    "nig": "fgo",
    "nfg": "igo",
    "nog": "ifg",
    "fgr": "ifgo",
    "lstm1997": "igo",
    "lstm1997_gates": "igo",
    "gru": "rzn",
    "gru_before": "rzn",
    "tlstm": "ifgo",
    "slstm": "ifgo",
    "slstm_exp": "ifgo",
    "rnn": "h",
    "rnn_relu": "h",
}
HIDDEN = 5


def build(cell: str, **options: Any) -> Any:
    return LSTM(3, HIDDEN, cell=cell, dtype="float64", random_state=0, **options)


def total_bias(layer: Any, suffix: str, gate: str) -> np.ndarray:
    """bias_ih + bias_hh of a gate; bias_hh has no rows for a gate that does not see the recurrent state."""
    gates = ORDER[layer.cell]
    at = gates.index(gate) * HIDDEN
    total = layer.parameters[f"bias_ih_{suffix}"][at : at + HIDDEN].copy()
    hh = layer.parameters[f"bias_hh_{suffix}"]
    if layer.cell == "peephole_article":
        at = "ifo".index(gate) * HIDDEN
    return total + hh[at : at + HIDDEN]


def unchanged(before: dict[str, np.ndarray], layer: Any, prefix: str) -> None:
    """Only parameters that start with `prefix` differ from `before`."""
    for name, value in layer.parameters.items():
        if not name.startswith(prefix):
            np.testing.assert_array_equal(value, before[name])


def copies(layer: Any) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in layer.parameters.items()}


@pytest.mark.parametrize("cell", ORDER)
def test_orthogonal_blocks(cell: str) -> None:
    layer = build(cell, num_layers=2, bidirectional=True)
    before = copies(layer)
    orthogonal(layer, gain=1.5, random_state=1)
    unchanged(before, layer, "weight_hh_")
    matrices = [value for name, value in layer.parameters.items() if name.startswith("weight_hh_")]
    assert len(matrices) == 4
    blocks = [block for value in matrices for block in value.reshape(-1, HIDDEN, HIDDEN)]
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, 1.5**2 * np.eye(HIDDEN), atol=1e-13)
    assert len({block.tobytes() for block in blocks}) == len(blocks)


def test_orthogonal_draws_are_uniform_over_both_orientations() -> None:
    signs = []
    for seed in range(40):
        layer = RNN(1, 3, dtype="float64", random_state=0)
        orthogonal(layer, random_state=seed)
        signs.append(np.sign(np.linalg.det(layer.parameters["weight_hh_l0"])))
    assert -20 < sum(signs) < 20


@pytest.mark.parametrize("cell", [cell for cell, gates in ORDER.items() if "f" in gates or cell == "gru"])
def test_forget_bias(cell: str) -> None:
    layer = build(cell, num_layers=2, bidirectional=True)
    before = copies(layer)
    forget_bias(layer, 2.5)
    unchanged(before, layer, "bias_")
    gate = "z" if cell == "gru" else "f"
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        np.testing.assert_array_equal(total_bias(layer, suffix, gate), 2.5)
        changed = layer.parameters[f"bias_ih_{suffix}"] != before[f"bias_ih_{suffix}"]
        assert changed.sum() == HIDDEN


def test_forget_bias_lets_the_cell_keep_its_state() -> None:
    """With the other parameters at 0, c after n steps is sigmoid(bias)^n times c at first."""
    layer = build("lstm")
    layer.load_parameters({name: np.zeros(shape) for name, shape in layer.parameter_shapes})
    forget_bias(layer, 3.0)
    first = (np.zeros((1, 1, HIDDEN)), np.ones((1, 1, HIDDEN)))
    _, (_, c) = layer(np.zeros((1, 10, 3)), first)
    np.testing.assert_allclose(c, (1 / (1 + np.exp(-3.0))) ** 10, rtol=1e-12)


@pytest.mark.parametrize("cell", [c for c, gates in ORDER.items() if {"i", "f"} <= set(gates)])
def test_chrono_spreads_memory_and_closes_the_input_gate(cell: str) -> None:
    layer = build(cell, num_layers=2)
    before = copies(layer)
    chrono(layer, 500, random_state=3)
    unchanged(before, layer, "bias_")
    draws = [total_bias(layer, suffix, "f") for suffix in ("l0", "l1")]
    for suffix, f in zip(("l0", "l1"), draws, strict=True):
        np.testing.assert_array_equal(total_bias(layer, suffix, "i"), -f)
        assert (f >= 0).all()
        assert (f <= np.log(499)).all()
    assert not np.array_equal(draws[0], draws[1])


@pytest.mark.parametrize(("cell", "gate"), [("cifg", "f"), ("gru", "z")])
def test_chrono_of_a_tied_gate_sets_that_gate_alone(cell: str, gate: str) -> None:
    layer = build(cell)
    before = copies(layer)
    chrono(layer, 100, random_state=0)
    assert (total_bias(layer, "l0", gate) >= 0).all()
    assert (layer.parameters["bias_ih_l0"] != before["bias_ih_l0"]).sum() == HIDDEN


def test_chrono_draws_from_log_uniform() -> None:
    layer = GRU(1, 100, num_layers=20, random_state=0)
    chrono(layer, 101, random_state=0)
    steps = np.exp([layer.parameters[f"bias_ih_l{k}"][100:200] for k in range(20)])
    np.testing.assert_allclose(np.quantile(steps, [0.25, 0.5, 0.75]), [25.75, 50.5, 75.25], rtol=0.06)


def test_the_same_random_state_gives_the_same_parameters() -> None:
    for function in (orthogonal, lambda layer, random_state: chrono(layer, 9, random_state=random_state)):
        one, two = build("lstm"), build("lstm")
        function(one, random_state=5)
        function(two, random_state=5)
        np.testing.assert_array_equal(one.flat, two.flat)


@pytest.mark.parametrize("cell", ["nfg", "rnn", "rnn_relu"])
def test_cells_without_a_forget_gate(cell: str) -> None:
    for call in (lambda: forget_bias(build(cell), 1.0), lambda: chrono(build(cell), 10)):
        with pytest.raises(ValueError, match=f"needs a cell with a forget gate; '{cell}' has none"):
            call()


def test_chrono_needs_an_input_gate() -> None:
    with pytest.raises(ValueError, match="chrono needs a cell with an input gate; 'nig' has none"):
        chrono(build("nig"), 10)


def test_biases_are_needed() -> None:
    layer = build("lstm", bias=False)
    orthogonal(layer, random_state=0)
    for call in (lambda: forget_bias(layer), lambda: chrono(layer, 10)):
        with pytest.raises(ValueError, match="needs a layer with biases"):
            call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: orthogonal(build("lstm"), 0.0), "gain must be a positive number"),
        (lambda: orthogonal(build("lstm"), np.inf), "gain must be a positive number"),
        (lambda: forget_bias(build("lstm"), np.nan), "value must be a finite number"),
        (lambda: chrono(build("lstm"), 1), "max_steps must be a number of time steps, at least 2"),
    ],
    ids=str,
)
def test_bad_values(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
