"""Truncated gradients (1997, 2002) against automatic differentiation with the cut written as a detach."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.layers.recurrent import CELLS

torch = pytest.importorskip("torch")
STEPS, BATCH, INPUT, HIDDEN = 9, 3, 2, 5


def by_torch(layer: LSTM, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """dx and gradients of sum(y dy); what enters net inputs, or peepholes alone, is constant where they are cut."""

    def entering(state: torch.Tensor) -> torch.Tensor:
        return state.detach() if layer.truncated is True else state

    def seen(c: torch.Tensor) -> torch.Tensor:
        return c.detach() if layer.truncated else c

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        if not layer.layer_norm:
            return z
        return torch.nn.functional.layer_norm(
            z, z.shape[-1:], w[f"weight_ln_{name}_l0"], w["bias_ln_c_l0"] if name == "c" else None
        )

    w = {name: torch.tensor(value, requires_grad=True) for name, value in layer.parameters.items()}
    x = torch.tensor(x, requires_grad=True)
    forget, peepholes = not layer.cell.startswith("lstm1997"), layer.cell.startswith("peephole")
    h, c = torch.zeros(2, BATCH, HIDDEN, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    gates: list[torch.Tensor] = [torch.zeros(BATCH, HIDDEN, dtype=torch.float64)] * 2
    for t in range(STEPS):
        z = norm(x[:, t] @ w["weight_ih_l0"].T, "ih") + norm(entering(h) @ w["weight_hh_l0"].T, "hh")
        z = z + w["bias_ih_l0"] + w["bias_hh_l0"]
        if "weight_gg_l0" in w:
            z = z + norm(entering(torch.cat(gates, 1)) @ w["weight_gg_l0"].T, "gg")
        i, *f, g, o = z.split(HIDDEN, 1)
        before = seen(c)
        if peepholes:
            i, f = i + w["weight_ci_l0"] * before, [f[0] + w["weight_cf_l0"] * before]
        i = torch.sigmoid(i)
        c = (torch.sigmoid(f[0]) * c if forget else c) + i * torch.tanh(g)
        if peepholes:
            o = o + w["weight_co_l0"] * seen(c)
        o = torch.sigmoid(o)
        squashed = norm(c, "c")
        h = o * (squashed if layer.cell.endswith("identity") else torch.tanh(squashed))
        gates = [i, o]
        total = total + (h * torch.tensor(dy[:, t])).sum()
    total.backward()
    return x.grad.numpy(), {name: value.grad.numpy() for name, value in w.items()}


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "peephole", "lstm1997", "lstm1997_gates"])
def test_errors_stop_at_net_inputs(cell: str, options: dict) -> None:
    random = np.random.default_rng(0)
    settings = {"cell": cell, "dtype": "float64", "random_state": 0, **options}
    x, dy = random.standard_normal((BATCH, STEPS, INPUT)), random.standard_normal((BATCH, STEPS, HIDDEN))
    layer, full = LSTM(INPUT, HIDDEN, truncated=True, **settings), LSTM(INPUT, HIDDEN, **settings)
    _, _, tape = layer.forward(x)
    dx, (dh, *_), grads = layer.backward(tape, dy)
    want_dx, want = by_torch(layer, x, dy)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(dh, 0.0)
    for name, value in want.items():
        np.testing.assert_allclose(grads[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
    _, _, tape = full.forward(x)
    whole = full.backward(tape, dy)[2]
    assert not np.allclose(whole["weight_hh_l0"], grads["weight_hh_l0"])
    for name, value in by_torch(full, x, dy)[1].items():
        np.testing.assert_allclose(whole[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=str)
@pytest.mark.parametrize("cell", ["peephole", "peephole_identity"])
def test_errors_stop_at_peepholes_alone(cell: str, options: dict) -> None:
    random = np.random.default_rng(0)
    x, dy = random.standard_normal((BATCH, STEPS, INPUT)), random.standard_normal((BATCH, STEPS, HIDDEN))
    settings = {"cell": cell, "dtype": "float64", "random_state": 0, **options}
    layer = LSTM(INPUT, HIDDEN, truncated="peepholes", **settings)
    layer.load_parameters(
        {name: p + 0.3 * random.standard_normal(p.shape) for name, p in layer.parameters.items()}
    )
    y, _, tape = layer.forward(x)
    dx, _, grads = layer.backward(tape, dy)
    want_dx, want = by_torch(layer, x, dy)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-9, atol=1e-11)
    for name, value in want.items():
        np.testing.assert_allclose(grads[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
    for truncated in (False, True):
        other = LSTM(INPUT, HIDDEN, truncated=truncated, **settings)
        other.load_parameters(layer.parameters)
        same, _, tape = other.forward(x)
        np.testing.assert_array_equal(same, y)
        assert not np.allclose(other.backward(tape, dy)[2]["weight_ih_l0"], grads["weight_ih_l0"])


def test_without_weights_at_the_peepholes_the_cut_there_changes_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((BATCH, STEPS, INPUT))
    found = []
    for truncated in (False, "peepholes"):
        layer = LSTM(INPUT, HIDDEN, cell="peephole", truncated=truncated, dtype="float64", random_state=0)
        zero = {f"weight_c{gate}_l0": np.zeros(HIDDEN) for gate in "ifo"}
        layer.load_parameters({**layer.parameters, **zero})
        y, _, tape = layer.forward(x)
        found.append(layer.backward(tape, np.ones_like(y))[2])
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)
        assert value.any()


@pytest.mark.parametrize("peephole", ["weight_ci_l0", "weight_cf_l0", "weight_co_l0"])
def test_one_step_by_hand(peephole: str) -> None:
    """One unit, one peephole of weight v: the error of c_prev is what the gates let through, without v."""
    layer = LSTM(1, 1, cell="peephole", truncated="peepholes", dtype="float64")
    zeros = {name: np.zeros(shape) for name, shape in layer.parameter_shapes}
    bias, c_prev, v = np.array([0.2, 0.4, 0.8, -0.3]), 0.7, 1.3
    layer.load_parameters({**zeros, "bias_ih_l0": bias, peephole: [v]})
    _, _, tape = layer.forward(np.zeros((1, 1, 1)), (np.zeros((1, 1, 1)), np.full((1, 1, 1), c_prev)))
    _, (_, dc), grads = layer.backward(tape, np.ones((1, 1, 1)))
    at = {name: v if name == peephole else 0.0 for name in ("weight_ci_l0", "weight_cf_l0", "weight_co_l0")}
    i, f = 1.0 / (1.0 + np.exp(-bias[:2] - c_prev * np.array([at["weight_ci_l0"], at["weight_cf_l0"]])))
    c = f * c_prev + i * np.tanh(bias[2])
    o = 1.0 / (1.0 + np.exp(-bias[3] - at["weight_co_l0"] * c))
    slope = o * (1.0 - np.tanh(c) ** 2)
    assert dc.item() == pytest.approx(slope * f, rel=1e-13)
    want = {
        "weight_ci_l0": slope * np.tanh(bias[2]) * i * (1.0 - i) * c_prev,
        "weight_cf_l0": slope * c_prev * f * (1.0 - f) * c_prev,
        "weight_co_l0": np.tanh(c) * o * (1.0 - o) * c,
    }
    for name, value in want.items():
        assert grads[name].item() == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}, {"proj_size": 3, "output_proj_size": 2}], ids=str)
def test_no_error_of_h_leaves_a_truncated_step(options: dict) -> None:
    random = np.random.default_rng(0)
    layer = LSTM(INPUT, HIDDEN, truncated=True, dtype="float64", random_state=0, **options)
    y, final, tape = layer.forward(random.standard_normal((BATCH, STEPS, INPUT)))
    dstate = tuple(random.standard_normal(value.shape) for value in final)
    _, (dh, dc), _ = layer.backward(tape, np.ones_like(y), dstate)
    np.testing.assert_array_equal(dh, 0.0)
    assert dc.all()


def test_the_configuration_says_where() -> None:
    for truncated in (False, True, "peepholes"):
        layer = LSTM(2, 3, cell="peephole", truncated=truncated)
        assert LSTM.from_config(layer.get_config()).truncated is truncated


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell not in ("peephole", "peephole_identity")])
def test_cells_without_peepholes_refuse_a_cut_there(cell: str) -> None:
    with pytest.raises(ValueError, match=f"{cell!r} has no peepholes"):
        LSTM(2, 3, cell=cell, truncated="peepholes")


def test_no_other_place_to_cut() -> None:
    with pytest.raises(ValueError, match="truncated must be False, True or 'peepholes', got 'gates'"):
        LSTM(2, 3, truncated="gates")


@pytest.mark.parametrize("make", [RNN, GRU, lambda *a, **k: LSTM(*a, cell="tlstm", **k)])
def test_cells_without_a_carousel_refuse(make) -> None:
    with pytest.raises(ValueError, match="no truncated gradient"):
        make(2, 3, truncated=True)
