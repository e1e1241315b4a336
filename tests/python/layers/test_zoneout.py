"""Zoneout (Krueger et al. 2016): what is kept, its expectation, gradients, and the independence of the draw."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM
from fastlstm.layers.recurrent import CELLS
from fastlstm.streaming import LayerStream

N, STEPS, INPUTS, HIDDEN = 5, 6, 3, 19
LENGTHS = np.array([6, 2, 4, 1, 6])
WITHOUT_C = [cell for cell in CELLS if cell.startswith(("rnn", "gru"))]
PROJECTIONS = {"proj_size": 21, "output_proj_size": 2}  # more than the units that the cell has
WITH_PROJECTIONS = [(cell, {}) for cell in CELLS] + [
    (cell, PROJECTIONS)
    for cell in CELLS
    if not cell.startswith(("rnn", "gru", "tlstm", "peephole_article", "noaf"))
]


def share_of(cell: str) -> float | tuple[float, float]:
    return (0.3, 0.0) if cell in WITHOUT_C else (0.2, 0.4)


def made(cell: str, **options) -> LSTM:
    settings = {"zoneout": share_of(cell), "dtype": "float64", "random_state": 0}
    return LSTM(INPUTS, HIDDEN, cell=cell, **{**settings, **options})


def inputs(n: int = N, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, steps, INPUTS))


def one_step(layer: LSTM, x: np.ndarray, state: tuple) -> tuple:
    """A step of the same layer without zoneout."""
    plain = LSTM.from_config({**layer.get_config(), "zoneout": 0.0})
    plain.load_parameters(layer.parameters)
    return plain(x[:, None], state)[1]


def mixed(cell: str, before: tuple, new: tuple) -> tuple:
    """The expectation; of c e^m and n e^m relative to the larger m, one of many ways to write it."""
    shares = [*share_of(cell)] + [0.0] * (len(new) - 2)
    if cell.startswith("slstm"):
        m = np.maximum(before[3], new[3])
        before, new = ((h, c * np.exp(own - m), n * np.exp(own - m), m) for h, c, n, own in (before, new))
        shares[2] = shares[1]
    return tuple(p * old + (1 - p) * value for p, old, value in zip(shares, before, new, strict=False))


@pytest.mark.parametrize(("cell", "options"), WITH_PROJECTIONS, ids=str)
def test_inference_mixes_what_was_with_what_is_new(cell: str, options: dict) -> None:
    layer, x = made(cell, **options), inputs()
    state, y = layer.initial_state(N), layer(x)[0]
    for t in range(STEPS):
        state = mixed(cell, state, one_step(layer, x[:, t], state))
        np.testing.assert_allclose(y[:, t, : layer.recurrent_size], state[0][0], atol=1e-13)


@pytest.mark.parametrize(("cell", "options"), WITH_PROJECTIONS, ids=str)
def test_in_training_units_keep_their_values_or_take_the_new_ones(cell: str, options: dict) -> None:
    layer = made(cell, zoneout=0.5 if cell not in WITHOUT_C else (0.5, 0.0), **options)
    x = inputs(30, 8)
    y, final, _ = layer.forward(x, rng_key=3)
    state, kept, drawn = layer.initial_state(30), [0, 0], [0, 0]
    for t in range(8):
        new = one_step(layer, x[:, t], state)
        _, after, _ = layer.forward(x[:, : t + 1], rng_key=3)
        np.testing.assert_array_equal(after[0][0], y[:, t, : layer.recurrent_size])
        for k in range(min(2, len(after))):
            was = after[k] == state[k]
            np.testing.assert_allclose(after[k], np.where(was, state[k], new[k]), atol=1e-13)
            told_apart = new[k] != state[k]
            kept[k] += (was & told_apart).sum()
            drawn[k] += told_apart.sum()
        for k in range(2, 4 if cell.startswith("slstm") else 0):  # with c, by its flags
            np.testing.assert_allclose(after[k], np.where(was, state[k], new[k]), atol=1e-13)
        state = after
    assert kept[0] / drawn[0] == pytest.approx(0.5, abs=0.06)  # more than six standard deviations
    if cell not in WITHOUT_C:
        assert kept[1] / drawn[1] == pytest.approx(0.5, abs=0.06)
    assert not any((a != b).any() for a, b in zip(final, state, strict=True))


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("more", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize(("cell", "options"), WITH_PROJECTIONS, ids=str)
def test_the_gradient_is_that_of_the_zoned_network(
    cell: str, options: dict, more: dict, expected: bool
) -> None:
    random = np.random.default_rng(1)
    layer, x = made(cell, **options, **more), inputs()
    if expected:
        layer = layer.without_noise()
    dy = random.standard_normal((N, STEPS, layer.output_size))
    dy *= (np.arange(STEPS) < LENGTHS[:, None])[..., None]
    _, final, tape = layer.forward(x, None, LENGTHS, rng_key=7)
    dfinal = tuple(random.standard_normal(state.shape) for state in final)
    dx, _, grads = layer.backward(tape, dy, dfinal)
    flat = np.concatenate([value.ravel() for value in grads.values()])

    def loss() -> float:
        y, final = layer.forward(x, None, LENGTHS, rng_key=7)[:2]
        return float(np.sum(y * dy) + sum(np.sum(s * d) for s, d in zip(final, dfinal, strict=True)))

    def slope(values: np.ndarray, at, changed) -> float:
        kept, losses = values[at], []
        for step in (1e-6, -1e-6):
            values[at] = kept + step
            changed()
            losses.append(loss())
        values[at] = kept
        changed()
        return (losses[0] - losses[1]) / 2e-6

    for at in random.choice(flat.size, 12):
        want = slope(layer.flat, at, layer.parameters_changed)
        assert flat[at] == pytest.approx(want, rel=1e-6, abs=2e-7)
    for at in [(0, 0, 1), (1, 1, 0), (4, 5, 2)]:
        assert dx[at] == pytest.approx(slope(x, at, lambda: None), rel=1e-6, abs=2e-7)


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize(
    ("cell", "options"), [("lstm", {}), ("lstm", {"proj_size": 7}), ("slstm", {}), ("slstm_exp", {})], ids=str
)
def test_the_gradient_of_the_initial_states_goes_past_the_steps(
    cell: str, options: dict, expected: bool
) -> None:
    layer, x, random = made(cell, zoneout=(0.4, 0.6), **options), inputs(), np.random.default_rng(2)
    if expected:
        layer = layer.without_noise()
    state = tuple(0.5 * random.standard_normal(value.shape) for value in layer.initial_state(N))
    if cell != "lstm":
        state[2][...] = 1.0 + np.abs(state[2])
    y, _, tape = layer.forward(x, state, rng_key=1)
    _, dstate, _ = layer.backward(tape, np.ones_like(y))
    for k in range(len(state)):
        moved = [value.copy() for value in state]
        moved[k][0, 2, 5] += 1e-6
        more = layer.forward(x, tuple(moved), rng_key=1)[0].sum()
        moved[k][0, 2, 5] -= 2e-6
        less = layer.forward(x, tuple(moved), rng_key=1)[0].sum()
        assert dstate[k][0, 2, 5] == pytest.approx((more - less) / 2e-6, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("cell", CELLS)
def test_the_draw_depends_neither_on_threads_nor_on_types_nor_on_the_other_sequences(cell: str) -> None:
    layer, x = made(cell, num_layers=2, dtype="float32"), inputs(24).astype(np.float32)
    y, _, tape = layer.forward(x, rng_key=5)
    grads = layer.backward(tape, y)[2]
    layer.n_threads = 3
    again, _, tape = layer.forward(x, rng_key=5)
    np.testing.assert_array_equal(again, y)
    for name, value in layer.backward(tape, y)[2].items():
        np.testing.assert_array_equal(value, grads[name])
    np.testing.assert_array_equal(layer.forward(x[:4], rng_key=5)[0], y[:4])
    np.testing.assert_array_equal(layer.forward(x[:, :3], rng_key=5)[0], y[:, :3])
    wide = made(cell, num_layers=2)
    wide.load_parameters(layer.parameters)
    np.testing.assert_allclose(wide.forward(x, rng_key=5)[0], y, atol=1e-4)
    assert (layer.forward(x, rng_key=6)[0] != y).any()


@pytest.mark.parametrize("cell", ["slstm", "slstm_exp"])
def test_a_memory_that_fades_while_nothing_enters_keeps_its_normaliser(cell: str) -> None:
    """Input and forget gates far below 0: c e^m leaves the range of the type, c and n do not."""
    layer = LSTM(1, 2, cell=cell, zoneout=(0.0, 0.5), dtype="float32")
    bias = np.repeat([-200.0, -20.0, 1.0, 1.0], 2)
    layer.load_parameters({name: np.zeros(shape) for name, shape in layer.parameter_shapes})
    layer.load_parameters({**layer.parameters, "bias_ih_l0": bias})
    state = (np.zeros((1, 1, 2)), np.full((1, 1, 2), 0.5), np.ones((1, 1, 2)), np.zeros((1, 1, 2)))
    y, final = layer(np.zeros((1, 200, 1)), state)
    assert np.isfinite(y).all()
    assert (final[2] >= 1.0).all()
    np.testing.assert_allclose(final[3], 200 * np.log(0.5 + 0.5 * np.exp(-20.0)), rtol=1e-5)
    np.testing.assert_allclose(y, np.full_like(y, 0.5 / (1.0 + np.exp(-1.0))), rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_streams_give_the_bits_of_the_call(cell: str) -> None:
    layer, x = made(cell, num_layers=2, dtype="float32"), inputs().astype(np.float32)
    y, _ = layer(x)
    stream = LayerStream(layer, N)
    for t in range(STEPS):
        np.testing.assert_array_equal(stream.step(x[:, t]), y[:, t])
    first, state = layer(x[:, :2])
    np.testing.assert_array_equal(np.concatenate([first, layer(x[:, 2:], state)[0]], axis=1), y)


@pytest.mark.parametrize(
    ("cell", "options"),
    [*((cell, {}) for cell in ("lstm", "gru", "tlstm", "fgr", "slstm")), ("lstm", PROJECTIONS)],
    ids=str,
)
def test_checkpoints_draw_what_the_whole_call_draws(cell: str, options: dict) -> None:
    plain, chunked, x = made(cell, **options), made(cell, checkpoint_every=2, **options), inputs()
    chunked.load_parameters(plain.parameters)
    results = []
    for layer in (plain, chunked):
        y, _, tape = layer.forward(x, None, LENGTHS, rng_key=4)
        results.append((y, layer.backward(tape, y)[2]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for name, value in results[0][1].items():
        np.testing.assert_allclose(results[1][1][name], value, atol=1e-12)


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize(("cell", "options"), WITH_PROJECTIONS, ids=str)
def test_it_goes_with_layer_normalisation(cell: str, options: dict, expected: bool) -> None:
    layer, x = made(cell, layer_norm=True, **options), inputs()
    if expected:
        layer = layer.without_noise()
    y, _, tape = layer.forward(x, rng_key=2)
    flat = np.concatenate([g.ravel() for g in layer.backward(tape, np.ones_like(y))[2].values()])
    for at in np.random.default_rng(0).choice(flat.size, 20):
        kept, sums = layer.flat[at], []
        for step in (1e-6, -1e-6):
            layer.flat[at] = kept + step
            layer.parameters_changed()
            sums.append(layer.forward(x, rng_key=2)[0].sum())
        layer.flat[at] = kept
        assert flat[at] == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-6, abs=2e-7)


def test_no_zoneout_is_the_plain_layer() -> None:
    x = inputs()
    np.testing.assert_array_equal(
        made("lstm", zoneout=(0.0, 0.0)).forward(x)[0], made("lstm", zoneout=0.0).forward(x)[0]
    )


def test_a_configuration_survives_json() -> None:
    layer = made("lstm")
    copy = LSTM.from_config(json.loads(json.dumps(layer.get_config())))
    assert copy.get_config() == layer.get_config()
    assert GRU(3, 4, zoneout=0.25).zoneout == 0.25


def test_activation_memory_is_told_before_the_call() -> None:
    layer = made("lstm")
    _, _, tape = layer.forward(inputs(), None, LENGTHS)
    assert tape.nbytes == layer.activation_bytes(LENGTHS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zoneout": 1.0}, "zoneout must be"),
        ({"zoneout": -0.1}, "zoneout must be"),
        ({"zoneout": (0.1, 0.2, 0.3)}, "a number or a pair for h and c"),
        ({"zoneout": (0.1, 0.2), "cell": "gru"}, "no c to zone"),
        ({"zoneout": (0.0, 0.2), "cell": "rnn"}, r"zoneout must be a number or \(0.0, 0.0\)"),
    ],
    ids=str,
)
def test_what_it_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(3, 4, **options)
