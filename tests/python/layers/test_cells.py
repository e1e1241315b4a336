"""Every recurrent cell through the same checks, and what only some cells have."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cell_checks
import cell_reference
import numpy as np
import pytest
from cases import Case
from cell_checks import CHECKS, OPTIONS, VARIANTS, WITH_OPTIONS, Check, Option, Variant

from fastlstm import LSTMClassifier, _core
from fastlstm.layers import GRU, LSTM, RNN

PAGE = Path(__file__).parents[3] / "docs" / "cells.md"
OPTIONS_PAGE = PAGE.with_name("cell_options.md")


@pytest.mark.parametrize("variant", VARIANTS + WITH_OPTIONS, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.title)
def test_cell(check: Check, variant: Variant) -> None:
    assert check.run(variant) <= check.allowed(variant)


def test_every_cell_has_a_reference() -> None:
    """A new cell fails here until `cell_reference` has its equations; the checks above find it themselves."""
    assert set(cell_reference.CELLS) == set(_core.cells())
    assert {variant.name for variant in VARIANTS} == set(_core.cells())


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_other_cells_refuse_an_option(option: Option) -> None:
    for cell in _core.cells():
        if option.refuses(cell):
            with pytest.raises(ValueError, match=re.escape(repr(cell))):
                LSTM(2, 4, cell=cell, **option.arguments)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variant", VARIANTS + WITH_OPTIONS, ids=str)
def test_parameters_have_the_names_and_shapes_of_the_equations(variant: Variant, bias: bool) -> None:
    case = variant.fit(replace(cell_checks.BOTH_WAYS, bias=bias))
    layer = cell_checks.build(variant, case, "float32")
    sizes = (case.input_size, case.hidden_size, 2, case.bidirectional, bias)
    want = cell_reference.parameter_shapes(variant.name, *sizes, **variant.arguments)
    assert dict(layer.parameter_shapes) == want
    assert len(layer.state_names) == cell_reference.CELLS[variant.name].n_states


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_configuration_builds_the_same_layer(variant: Variant) -> None:
    layer = cell_checks.build(variant, cell_checks.STACKED, "float64")
    again = LSTM.from_config(layer.get_config())
    again.load_parameters(layer.parameters)
    x = cell_checks.make_problem(variant, cell_checks.STACKED).x
    np.testing.assert_array_equal(again(x)[0], layer(x)[0])


@pytest.mark.parametrize(("cell", "forget"), [("slstm", cell_reference.sigmoid), ("slstm_exp", np.exp)])
def test_the_stabilised_cell_is_the_plain_equations(
    cell: str, forget: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Where exp does not overflow: i = exp(.), c = f c + i g, n = f n + i, h = o c / n."""
    layer = LSTM(3, 5, cell=cell, dtype="float64", random_state=0)
    x = 3.0 * np.random.default_rng(0).standard_normal((1, 30, 3))
    w, u, b = (layer.parameters[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih"))
    h, c, n = np.zeros((3, 5))
    y, state = layer(x)
    for t in range(30):
        i, f, g, o = np.split(w @ x[0, t] + b + u @ h + layer.parameters["bias_hh_l0"], 4)
        c = forget(f) * c + np.exp(i) * np.tanh(g)
        n = forget(f) * n + np.exp(i)
        h = cell_reference.sigmoid(o) * c / n
        np.testing.assert_allclose(y[0, t], h, rtol=1e-11)
    scale = np.exp(state[3][0, 0])
    np.testing.assert_allclose(state[1][0, 0] * scale, c, rtol=1e-11)
    np.testing.assert_allclose(state[2][0, 0] * scale, n, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["slstm", "slstm_exp"])
def test_exponential_gates_do_not_overflow(cell: str, dtype: str) -> None:
    """Pre-activations of +-1e6, and 2,000 steps of them."""
    layer = LSTM(2, 4, cell=cell, dtype=dtype, random_state=0)
    layer.load_parameters({name: 1e3 * value for name, value in layer.parameters.items()})
    x = 1e3 * np.random.default_rng(0).standard_normal((2, 2000, 2))
    y, state, tape = layer.forward(x)
    dx, _, grads = layer.backward(tape, np.ones_like(y))
    for value in (y, *state, dx, *grads.values()):
        assert np.isfinite(value).all()
    assert np.abs(y).max() <= 1.0
    assert state[2].min() >= 1.0  # the normaliser


def test_the_classes_are_the_cells() -> None:
    """GRU and RNN, and the identity as output squashing, are names for cells of the table."""
    pairs = [
        (GRU(3, 5, random_state=0), LSTM(3, 5, cell="gru", random_state=0)),
        (GRU(3, 5, reset_after=False, random_state=0), LSTM(3, 5, cell="gru_before", random_state=0)),
        (RNN(3, 5, random_state=0), LSTM(3, 5, cell="rnn", random_state=0)),
        (RNN(3, 5, nonlinearity="relu", random_state=0), LSTM(3, 5, cell="rnn_relu", random_state=0)),
    ]
    pairs += [
        (
            LSTM(3, 5, cell=cell, cell_activation="identity", random_state=0),
            LSTM(3, 5, cell=name, random_state=0),
        )
        for cell, name in cell_reference.WITH_IDENTITY.items()
    ]
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    for one, two in pairs:
        np.testing.assert_array_equal(one(x)[0], two(x)[0])


@pytest.mark.parametrize("cell", sorted(set(_core.cells()) - set(cell_reference.WITH_IDENTITY)))
def test_identity_is_refused_by_the_other_cells(cell: str) -> None:
    with pytest.raises(ValueError, match="goes with the cells lstm, peephole, peephole_article"):
        LSTM(3, 5, cell=cell, cell_activation="identity")


def test_the_estimators_take_every_cell_and_refuse_others() -> None:
    x, y = np.zeros((4, 3, 2)), [0, 1, 0, 1]
    for cell in _core.cells():
        model = LSTMClassifier(3, cell=cell, max_iter=1, random_state=0).fit(x, y)
        assert model.network_.encoder.cell == cell
    with pytest.raises(ValueError, match=r"must be one of 'lstm'.*'gru'.*Got 'elman'"):
        LSTMClassifier(3, cell="elman").fit(x, y)


# ---- the gradient of peepholes is not cut ----


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + np.exp(-z))


@pytest.mark.parametrize("squash", ["tanh", "identity"])
def test_peephole_gradients_are_complete(squash: str) -> None:
    """One unit, one step, gates driven by biases and peepholes alone: every derivative in closed form."""
    c_prev, v_i, v_f, v_o = 0.7, 0.9, -1.1, 1.3
    b_i, b_f, b_g, b_o = 0.2, 0.4, 0.8, -0.3
    i, f, g = sigmoid(b_i + v_i * c_prev), sigmoid(b_f + v_f * c_prev), np.tanh(b_g)
    c = f * c_prev + i * g
    o = sigmoid(b_o + v_o * c)
    out, slope = (np.tanh(c), 1.0 - np.tanh(c) ** 2) if squash == "tanh" else (c, 1.0)
    dh_dc = o * slope + out * o * (1 - o) * v_o
    dc_dc_prev = f + c_prev * f * (1 - f) * v_f + g * i * (1 - i) * v_i
    want = {
        "weight_ci_l0": dh_dc * g * i * (1 - i) * c_prev,
        "weight_cf_l0": dh_dc * c_prev * f * (1 - f) * c_prev,
        "weight_co_l0": out * o * (1 - o) * c,
        "bias_hh_l0": [
            dh_dc * g * i * (1 - i),
            dh_dc * c_prev * f * (1 - f),
            dh_dc * i * (1 - g**2),
            out * o * (1 - o),
        ],
    }

    layer = LSTM(1, 1, cell="peephole", cell_activation=squash, dtype="float64")
    zeros = {name: np.zeros(shape) for name, shape in layer.parameter_shapes}
    peepholes = {"weight_ci_l0": [v_i], "weight_cf_l0": [v_f], "weight_co_l0": [v_o]}
    layer.load_parameters({**zeros, "bias_ih_l0": [b_i, b_f, b_g, b_o], **peepholes})
    y, _, tape = layer.forward(np.zeros((1, 1, 1)), (np.zeros((1, 1, 1)), np.full((1, 1, 1), c_prev)))
    _, (_, d_c_prev), grads = layer.backward(tape, np.ones((1, 1, 1)))

    np.testing.assert_allclose(y.item(), o * out, rtol=1e-14)
    np.testing.assert_allclose(d_c_prev.item(), dh_dc * dc_dc_prev, rtol=1e-13)
    for name, value in want.items():
        np.testing.assert_allclose(grads[name], np.atleast_1d(value), rtol=1e-13, err_msg=name)
    cut = o * slope * f  # what the original rule, which cuts the error at the peepholes, would give
    assert abs(d_c_prev.item() - cut) > 0.1 * abs(cut)


@pytest.mark.parametrize("peephole", ["weight_ci_l0", "weight_cf_l0", "weight_co_l0"])
def test_each_peephole_carries_its_share_of_the_error(peephole: str) -> None:
    """With one peephole and without it: the derivative by c_prev is right, and not the same."""
    layer = LSTM(2, 4, cell="peephole", dtype="float64", random_state=0)
    start = {name: np.array(value) for name, value in layer.parameters.items()}
    for name in start:
        if name == "weight_hh_l0" or (name.startswith("weight_c") and name != peephole):
            start[name][:] = 0.0
    start[peephole][:] = [0.5, -0.8, 1.5, -2.0]
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((3, 4, 2)), tuple(rng.standard_normal((2, 1, 3, 4)))

    def d_c_prev(parameters: dict[str, np.ndarray]) -> np.ndarray:
        layer.load_parameters(parameters)
        y, _, tape = layer.forward(x, state)
        return layer.backward(tape, np.ones_like(y))[1][1]

    def loss(c_prev: np.ndarray) -> float:
        return float(np.sum(layer(x, (state[0], c_prev))[0]))

    got = d_c_prev(start)
    for index in np.ndindex(got.shape):
        step = np.zeros(got.shape)
        step[index] = 1e-5
        slope = (loss(state[1] + step) - loss(state[1] - step)) / 2e-5
        assert abs(got[index] - slope) < 1e-8, index
    without = d_c_prev({**start, peephole: np.zeros(4)})
    assert np.abs(got - without).max() > 0.05


def test_no_h_recurs_in_the_compact_peephole_form() -> None:
    case = Case("compact", input_size=3, hidden_size=6, batch=4, time=5, with_state=True)
    problem = cell_checks.make_problem(Variant("peephole_article"), case)
    layer = cell_checks.build(Variant("peephole_article"), case, "float64", problem.parameters)
    y, _, tape = layer.forward(problem.x, problem.state)
    _, (d_h, d_c), _ = layer.backward(tape, problem.dy)
    assert not d_h.any()
    assert d_c.all()
    other_h = (problem.state[0] + 1.0, problem.state[1])
    np.testing.assert_array_equal(layer(problem.x, other_h)[0], y)


# ---- the page ----


@pytest.mark.parametrize(("page", "variants"), [(PAGE, VARIANTS), (OPTIONS_PAGE, WITH_OPTIONS)])
def test_the_page_has_a_line_for_each_variant_and_all_of_it_holds(
    page: Path, variants: tuple[Variant, ...]
) -> None:
    if not page.is_file():
        pytest.skip("needs the source tree")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text(encoding="ascii").split("<!-- cells:begin -->")[1].splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["cell", *(check.title for check in CHECKS)]
    found = {re.sub(r'[`"]|cell_activation=', "", row[0]): row[1:] for row in rows[2:]}
    assert list(found) == [str(variant) for variant in variants]
    for variant, entries in zip(variants, found.values(), strict=True):
        for check, entry in zip(CHECKS, entries, strict=True):
            error = 0.0 if entry == "same bits" else float(entry)
            assert error <= check.allowed(variant), (str(variant), check.title)


def test_the_page_gives_the_equations_of_each_cell() -> None:
    if not PAGE.is_file():
        pytest.skip("needs the source tree")
    text = PAGE.read_text(encoding="ascii").split("<!-- cells:begin -->")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert set(_core.cells()) <= named
