"""The truncated gradient of 1997 against automatic differentiation with the cut written as a detach."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM, RNN

torch = pytest.importorskip("torch")
STEPS, BATCH, INPUT, HIDDEN = 9, 3, 2, 5


def by_torch(layer: LSTM, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """dx and gradients of sum(y dy), the states that enter net inputs being constants."""
    w = {name: torch.tensor(value, requires_grad=True) for name, value in layer.parameters.items()}
    x = torch.tensor(x, requires_grad=True)
    forget = layer.cell in ("lstm", "peephole")
    h, c = torch.zeros(2, BATCH, HIDDEN, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    gates: list[torch.Tensor] = [torch.zeros(BATCH, HIDDEN, dtype=torch.float64)] * 2
    for t in range(STEPS):
        z = x[:, t] @ w["weight_ih_l0"].T + h.detach() @ w["weight_hh_l0"].T
        z = z + w["bias_ih_l0"] + w["bias_hh_l0"]
        if "weight_gg_l0" in w:
            z = z + torch.cat(gates, 1).detach() @ w["weight_gg_l0"].T
        i, *f, g, o = z.split(HIDDEN, 1)
        before = c.detach()
        if layer.cell == "peephole":
            i, f = i + w["weight_ci_l0"] * before, [f[0] + w["weight_cf_l0"] * before]
        i = torch.sigmoid(i)
        c = (torch.sigmoid(f[0]) * c if forget else c) + i * torch.tanh(g)
        if layer.cell == "peephole":
            o = o + w["weight_co_l0"] * c.detach()
        o = torch.sigmoid(o)
        h, gates = o * torch.tanh(c), [i, o]
        total = total + (h * torch.tensor(dy[:, t])).sum()
    total.backward()
    return x.grad.numpy(), {name: value.grad.numpy() for name, value in w.items()}


@pytest.mark.parametrize("cell", ["lstm", "peephole", "lstm1997", "lstm1997_gates"])
def test_errors_stop_at_net_inputs(cell: str) -> None:
    random = np.random.default_rng(0)
    x, dy = random.standard_normal((BATCH, STEPS, INPUT)), random.standard_normal((BATCH, STEPS, HIDDEN))
    layer = LSTM(INPUT, HIDDEN, cell=cell, truncated=True, dtype="float64", random_state=0)
    full = LSTM(INPUT, HIDDEN, cell=cell, dtype="float64", random_state=0)
    _, _, tape = layer.forward(x)
    dx, (dh, *_), grads = layer.backward(tape, dy)
    want_dx, want = by_torch(layer, x, dy)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(dh, 0.0)
    for name, value in want.items():
        np.testing.assert_allclose(grads[name], value, rtol=1e-10, atol=1e-12, err_msg=name)
    _, _, tape = full.forward(x)
    assert not np.allclose(full.backward(tape, dy)[2]["weight_hh_l0"], grads["weight_hh_l0"])


@pytest.mark.parametrize("make", [RNN, GRU, lambda *a, **k: LSTM(*a, cell="tlstm", **k)])
def test_cells_without_a_carousel_refuse(make) -> None:
    with pytest.raises(ValueError, match="no truncated gradient"):
        make(2, 3, truncated=True)
