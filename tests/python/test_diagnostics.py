"""Gradient flow: against central differences and closed forms, and the picture of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastlstm.diagnostics import gradient_flow
from fastlstm.layers import GRU, LSTM, RNN, Stack, forget_bias
from fastlstm.losses import get_loss
from fastlstm.network import SequenceNetwork
from fastlstm.plotting import GradientFlowDisplay
from fastlstm.sequences import as_sequences

CELLS = (
    "lstm",
    "peephole",
    "peephole_article",
    "cifg",
    "nig",
    "nfg",
    "nog",
    "niaf",
    "noaf",
    "fgr",
    "lstm1997_gates",
    "gru",
    "gru_before",
    "tlstm",
    "slstm",
    "rnn",
)
LENGTHS = (9, 4, 6)


def build(cell: str, **options: Any) -> Any:
    return LSTM(3, 5, cell=cell, **{"dtype": "float64", "random_state": 0, **options})


def ragged(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, 3)) for length in LENGTHS]


def slopes_of_one(layer: Any, x: np.ndarray, lag: int, loss: Any) -> list[np.ndarray]:
    """dL/d(each state of all layers) after the step `lag` before the last one, by central differences."""
    at = len(x) - lag
    _, state = layer(x[None, :at])
    found = [np.zeros(s.shape) for s in state]
    for which, values in enumerate(state):
        for index in np.ndindex(values.shape):
            kept, sums = values[index], []
            for step in (1e-6, -1e-6):
                values[index] = kept + step
                final = layer(x[None, at:], state)[1] if lag else state
                end = layer.last_output(x, np.array([0]), np.array([len(x)]), final)
                sums.append(loss(end[0]))
            values[index] = kept
            found[which][index] = (sums[0] - sums[1]) / 2e-6
    return found


def check_against_slopes(flow: Any, layer: Any, xs: list[np.ndarray], losses: list[Any]) -> None:
    assert flow.lags.tolist() == list(range(max(LENGTHS)))
    for lag in flow.lags:
        used = [(x, loss) for x, loss in zip(xs, losses, strict=True) if len(x) > lag]
        assert flow.n_sequences[lag] == len(used)
        slopes = [slopes_of_one(layer, x, int(lag), loss) for x, loss in used]
        each = [[np.sqrt(np.square(d).sum(axis=(1, 2))) for d in one] for one in slopes]
        layer_norms = np.mean(each, axis=0)
        total = np.mean([[np.linalg.norm(norms) for norms in one] for one in each], axis=0)
        np.testing.assert_allclose(flow.layer_norms[lag], layer_norms[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(flow.norms[lag], total[0], rtol=1e-6, atol=1e-9)
        if flow.cell_norms is not None:
            np.testing.assert_allclose(flow.layer_cell_norms[lag], layer_norms[1], rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(flow.cell_norms[lag], total[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_norms_are_central_differences(cell: str) -> None:
    layer, xs = build(cell, num_layers=2), ragged()
    flow = gradient_flow(layer, xs)
    assert (flow.cell_norms is None) == (cell in ("gru", "gru_before", "rnn"))
    check_against_slopes(flow, layer, xs, [lambda h: h.sum() / np.sqrt(5)] * 3)


@pytest.mark.parametrize(
    ("loss", "y"),
    [(None, [1, 0, 1]), (None, [0.5, -1.0, 2.0]), ("absolute", [[0.5], [-1.0], [2.0]])],
    ids=["classes", "values", "named"],
)
def test_loss_of_a_network_is_that_of_its_head(loss: str | None, y: Any) -> None:
    layer, xs = build("lstm"), ragged()
    classes = isinstance(y[0], int)
    network = SequenceNetwork(layer, n_outputs=2 if classes else 1, pooling="mean", random_state=0)
    chosen = get_loss(loss or ("softmax_cross_entropy" if classes else "squared"))
    targets = chosen.check_targets(y, network.n_outputs, np.float64)

    def loss_of(row: int) -> Any:
        return lambda h: chosen.value(network.head(h[None]), targets[row : row + 1])

    flow = gradient_flow(network, xs, y, loss=loss)
    check_against_slopes(flow, layer, xs, [loss_of(row) for row in range(3)])


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"residual": True, "skip": "both"}], ids=str)
def test_stacks_with_connections(options: dict[str, Any]) -> None:
    layer, xs = Stack(3, 3, 3, dtype="float64", random_state=0, dropout=0.5, **options), ragged()
    flow = gradient_flow(layer, xs)
    assert flow.layer_norms.shape == (9, 3)
    size = layer.output_size
    check_against_slopes(flow, layer, xs, [lambda y: y.sum() / np.sqrt(size)] * 3)
    plain = gradient_flow(Stack(3, 3, 3, random_state=0), xs)
    assert set(plain.gate_saturation) == set(flow.gate_saturation) == set("ifo")
    network = SequenceNetwork(layer, 1, pooling="max", random_state=0)
    flow = gradient_flow(network, xs, [0.5, -1.0, 2.0])
    losses = [lambda y, t=t: np.sum((network.head(y[None]) - t) ** 2) for t in (0.5, -1.0, 2.0)]
    check_against_slopes(flow, layer, xs, losses)


def test_lag_zero_is_the_gradient_of_the_loss() -> None:
    flow = gradient_flow(build("lstm"), ragged())
    assert flow.norms[0] == pytest.approx(1.0)
    assert flow.cell_norms is not None
    assert flow.cell_norms[0] == 0.0


def test_max_lag_cuts_the_result() -> None:
    layer, xs = build("lstm", num_layers=2), ragged()
    whole, cut = gradient_flow(layer, xs), gradient_flow(layer, xs, max_lag=5)
    np.testing.assert_allclose(cut.norms, whole.norms[:6], rtol=1e-12)
    assert cut.gate_saturation == whole.gate_saturation


def test_padding_types_and_threads_do_not_matter() -> None:
    xs, layer = ragged(), build("lstm", dtype="float32", dropout=0.5, num_layers=2)
    padded = np.full((3, 12, 3), np.nan)
    for row, x in enumerate(xs):
        padded[row, : len(x)] = x
    before = layer.flat.copy()
    np.testing.assert_array_equal(
        gradient_flow(layer, padded, lengths=LENGTHS).norms,
        gradient_flow(layer, as_sequences(xs, dtype="f8")).norms,
    )
    np.testing.assert_array_equal(layer.flat, before)


def test_linear_network_multiplies_by_its_matrix() -> None:
    """relu that stays positive: dL/dh(T - k) = (U^T)^k w, with U 0.9 times a permutation."""
    layer = RNN(1, 4, nonlinearity="relu", dtype="float64", random_state=0)
    permutation = np.roll(np.eye(4), 1, axis=0)
    zeros = {name: np.zeros(shape) for name, shape in layer.parameter_shapes}
    layer.load_parameters({**zeros, "weight_hh_l0": 0.9 * permutation, "bias_ih_l0": np.full(4, 100.0)})
    flow = gradient_flow(layer, np.zeros((2, 30, 1)))
    np.testing.assert_allclose(flow.norms, 0.9**flow.lags, rtol=1e-12)
    assert list(flow.spectral_radius) == ["h"]
    np.testing.assert_allclose(flow.spectral_radius["h"], [0.9], rtol=1e-12)
    assert flow.gate_saturation == {}


@pytest.mark.parametrize(("cell", "factor"), [("nfg", 1.0), ("lstm", 1 / (1 + np.exp(-2.0)))])
def test_carousel_is_constant_without_a_forget_gate(cell: str, factor: float) -> None:
    """Without recurrent weights nothing but the carousel is left: each step back multiplies dL/dc by f."""
    layer = build(cell)
    cut = {name: np.zeros(shape) for name, shape in layer.parameter_shapes if name.startswith("weight")}
    layer.load_parameters(cut, strict=False)
    if cell == "lstm":
        forget_bias(layer, 2.0)
    flow = gradient_flow(layer, np.ones((1, 40, 3)))
    assert flow.cell_norms is not None
    np.testing.assert_allclose(
        flow.cell_norms[1:] / flow.cell_norms[1], factor ** (flow.lags[1:] - 1), rtol=1e-9
    )


def test_plain_recurrent_network_vanishes_and_carousel_does_not() -> None:
    x = np.random.default_rng(0).standard_normal((4, 101, 3))
    plain = gradient_flow(RNN(3, 16, random_state=0), x)
    carousel = gradient_flow(LSTM(3, 16, cell="nfg", random_state=0), x)
    assert plain.norms[100] < 1e-12
    assert carousel.cell_norms is not None
    assert 0.3 < carousel.cell_norms[100] / carousel.cell_norms[1] < 30


def test_gate_saturation_counts_real_steps() -> None:
    layer = build("lstm")
    layer.load_parameters({name: np.zeros(shape) for name, shape in layer.parameter_shapes})
    assert gradient_flow(layer, ragged()).gate_saturation == {gate: (0.0, 0.0) for gate in "ifo"}
    bias = np.zeros((4, 5))
    bias[0], bias[1, :2], bias[3, 0] = -10.0, 10.0, 10.0
    layer.load_parameters({"bias_ih_l0": bias.ravel()}, strict=False)
    saturation = gradient_flow(layer, ragged()).gate_saturation
    assert saturation["i"] == (1.0, 0.0)
    assert saturation["f"] == (0.0, pytest.approx(0.4))
    assert saturation["o"] == (0.0, pytest.approx(0.2))


def test_gates_of_a_gru() -> None:
    flow = gradient_flow(GRU(3, 5, num_layers=2, random_state=0), ragged())
    assert set(flow.gate_saturation) == {"r", "z"}
    assert list(flow.spectral_radius) == ["r", "z", "n"]
    assert flow.spectral_radius["n"].shape == (2,)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: gradient_flow(build("lstm", bidirectional=True), ragged()), ValueError, "one direction"),
        (lambda: gradient_flow(build("lstm"), ragged(), [0, 1, 0]), ValueError, "y needs a network"),
        (lambda: gradient_flow(build("lstm"), np.ones((2, 1, 3))), ValueError, "at least two time steps"),
        (lambda: gradient_flow(build("lstm"), ragged(), max_lag=0), ValueError, "max_lag must be at least 1"),
        (
            lambda: gradient_flow(build("lstm"), np.ones((2, 4, 2))),
            ValueError,
            "X has 2 features; expected 3",
        ),
        (lambda: gradient_flow("lstm", ragged()), TypeError, "SequenceNetwork or a recurrent layer; got str"),
        (
            lambda: gradient_flow(SequenceNetwork(build("lstm"), 2), ragged(), [0, 1]),
            ValueError,
            "y has 2 rows for 3 sequences",
        ),
    ],
    ids=str,
)
def test_bad_arguments(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


# ---- pictures ----


def test_display_draws_a_line_for_each_layer() -> None:
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    layers = {"RNN": RNN(3, 5, random_state=0), "LSTM": build("lstm")}
    display = GradientFlowDisplay.from_layers(layers, ragged(), ax=axes, linewidth=3)
    assert display.ax_ is axes
    assert display.figure_ is axes.figure
    assert list(display.lines_) == ["RNN", "LSTM"]
    np.testing.assert_array_equal(display.lines_["LSTM"].get_ydata(), display.flows["LSTM"].norms)
    assert display.lines_["RNN"].get_linewidth() == 3
    assert axes.get_yscale() == "log"


def test_display_of_cell_states_leaves_out_cells_without() -> None:
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    layers = {"GRU": GRU(3, 5, random_state=0), "LSTM": build("lstm")}
    display = GradientFlowDisplay.from_layers(layers, ragged(), state="c", max_lag=4, ax=axes)
    assert list(display.lines_) == ["LSTM"]
    assert np.isnan(display.lines_["LSTM"].get_ydata()[0])
    assert len(display.lines_["LSTM"].get_xdata()) == 5


def test_display_makes_a_figure_by_default() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    display = GradientFlowDisplay({"LSTM": gradient_flow(build("lstm"), ragged())}).plot()
    assert display.figure_.axes == [display.ax_]
    pyplot.close(display.figure_)


def test_display_of_an_unknown_state() -> None:
    with pytest.raises(ValueError, match="state must be 'h' or 'c', got 'x'"):
        GradientFlowDisplay({}, state="x")
