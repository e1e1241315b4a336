"""Stacks with residual and skip connections against torch, the fused stack, and central differences."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from fastlstm.layers import LSTM, Stack
from fastlstm.layers.recurrent import CELLS

N, STEPS, INPUTS, HIDDEN = 4, 6, 3, 5
LENGTHS = np.array([6, 2, 4, 1])
CONNECTIONS = [
    {"residual": True},
    {"skip": "input"},
    {"skip": "output"},
    {"residual": True, "skip": "both"},
    {"bidirectional": True, "merge": "sum"},
    {"bidirectional": True, "merge": "sum", "residual": True, "skip": "both"},
    {"bidirectional": True, "residual": True, "skip": "input"},
]


def made(**options) -> Stack:
    return Stack(INPUTS, HIDDEN, **{"num_layers": 3, "dtype": "float64", "random_state": 0, **options})


def problem(layer: Stack, seed: int = 0) -> tuple:
    random = np.random.default_rng(seed)
    x = random.standard_normal((N, STEPS, layer.input_size))
    dy = random.standard_normal((N, STEPS, layer.output_size))
    dy *= (np.arange(STEPS) < LENGTHS[:, None])[..., None]
    ways = layer.num_layers * (1 + layer.bidirectional)
    state = tuple(random.standard_normal((ways, N, HIDDEN)) for _ in layer.state_names)
    return x, dy, state


def torch_stack(torch, layer: Stack, x, state: tuple) -> tuple:
    """One torch.nn.LSTM a layer, one sequence at a time, connected as the docstring says."""
    outputs, finals, modules = [], [], []
    for own in layer.layers:
        module = torch.nn.LSTM(own.input_size, HIDDEN, bidirectional=layer.bidirectional).double()
        module.load_state_dict({name: torch.tensor(p) for name, p in own.parameters.items()})
        modules.append(module)
    ways = 1 + layer.bidirectional
    for b, length in enumerate(LENGTHS):
        below = whole = x[b, :length]
        levels, final = [], []
        for level, module in enumerate(modules):
            z = torch.cat([below, whole], 1) if level and layer.skip in ("input", "both") else below
            rows = slice(level * ways, (level + 1) * ways)
            y, end = module(z, tuple(s[rows, b] for s in state))
            y = y[:, :HIDDEN] + y[:, HIDDEN:] if layer.merge == "sum" else y
            adds = layer.residual and (level or whole.shape[1] == y.shape[1])
            below = y + below if adds else y
            levels.append(below)
            final.append(end)
        outputs.append(torch.cat(levels, 1) if layer.skip in ("output", "both") else below)
        finals.append(final)
    return outputs, finals, modules


@pytest.mark.parametrize("inputs", [INPUTS, HIDDEN])
@pytest.mark.parametrize("options", CONNECTIONS, ids=str)
def test_torch_has_the_same_outputs_and_gradients(options: dict, inputs: int) -> None:
    torch = pytest.importorskip("torch")
    layer = Stack(inputs, HIDDEN, 3, dtype="float64", random_state=0, **options)
    x, dy, state = problem(layer)
    given = [torch.tensor(value, requires_grad=True) for value in (x, *state)]
    outputs, finals, modules = torch_stack(torch, layer, given[0], tuple(given[1:]))
    loss = sum((y * torch.tensor(dy[b, : len(y)])).sum() for b, y in enumerate(outputs))
    loss = loss + sum(part.sum() for final in finals for end in final for part in end)
    loss.backward()
    y, final, tape = layer.forward(x, state, LENGTHS)
    dx, dinitial, grads = layer.backward(tape, dy, tuple(np.ones_like(s) for s in final))
    np.testing.assert_array_equal(layer(x, state, LENGTHS)[0], y)
    for b, want in enumerate(outputs):
        np.testing.assert_allclose(y[b, : len(want)], want.detach().numpy(), atol=1e-12)
        assert not y[b, len(want) :].any()
        for k in range(2):
            ends = np.concatenate([end[k].detach().numpy() for end in finals[b]])
            np.testing.assert_allclose(final[k][:, b], ends, atol=1e-12)
    for got, want in zip((dx, *dinitial), given, strict=True):
        np.testing.assert_allclose(got, want.grad.numpy(), atol=1e-10)
    for level, module in enumerate(modules):
        for name, p in module.named_parameters():
            np.testing.assert_allclose(grads[name.replace("_l0", f"_l{level}")], p.grad.numpy(), atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_without_connections_it_is_the_fused_stack(cell: str) -> None:
    layer = made(cell=cell, bidirectional=True)
    fused = LSTM(INPUTS, HIDDEN, 3, cell=cell, bidirectional=True, dtype="float64")
    assert dict(fused.parameter_shapes) == dict(layer.parameter_shapes)
    fused.load_parameters(layer.parameters)
    x, dy, _ = problem(layer)
    y, final, tape = layer.forward(x, None, LENGTHS)
    want, want_final, want_tape = fused.forward(x, None, LENGTHS)
    np.testing.assert_array_equal(y, want)
    for a, b in zip(final, want_final, strict=True):
        np.testing.assert_array_equal(a, b)
    got, expected = layer.backward(tape, dy), fused.backward(want_tape, dy)
    np.testing.assert_allclose(got[0], expected[0], atol=1e-13)
    for name, value in expected[2].items():
        np.testing.assert_allclose(got[2][name], value, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"residual": True, "skip": "both", "dropout": 0.4, "recurrent_dropout": 0.3, "zoneout": 0.1},
        {"cell": "gru", "residual": True, "skip": "input", "layer_norm": True, "weight_noise": 0.1},
        {"cell": "peephole", "skip": "output", "learn_initial_state": True, "weight_dropout": 0.2},
        {"proj_size": 2, "residual": True, "bidirectional": True, "merge": "sum"},
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_drawn_network(options: dict) -> None:
    random = np.random.default_rng(1)
    layer = made(**options)
    x, dy, _ = problem(layer)
    _, _, tape = layer.forward(x, None, LENGTHS, rng_key=9)
    dx, _, grads = layer.backward(tape, dy)
    flat = np.concatenate([value.ravel() for value in grads.values()])

    def slope(values: np.ndarray, at) -> float:
        kept, sums = values[at], []
        for step in (1e-6, -1e-6):
            values[at] = kept + step
            layer.parameters_changed()
            sums.append(float(np.sum(layer.forward(x, None, LENGTHS, rng_key=9)[0] * dy)))
        values[at] = kept
        layer.parameters_changed()
        return (sums[0] - sums[1]) / 2e-6

    for at in random.choice(flat.size, 30):
        assert flat[at] == pytest.approx(slope(layer.flat, at), rel=1e-6, abs=2e-7)
    for at in [(0, 0, 1), (2, 3, 0), (3, 0, 2)]:
        assert dx[at] == pytest.approx(slope(x, at), rel=1e-6, abs=2e-7)


def test_dropout_is_for_training_alone_and_drops_its_share() -> None:
    layer, x = made(dropout=0.5, num_layers=2), np.zeros((400, 1, INPUTS))
    tape = layer.forward(x, rng_key=1)[2]
    assert tape.factors[0] is None
    assert np.mean(tape.factors[1] == 0.0) == pytest.approx(0.5, abs=0.07)
    assert set(np.unique(tape.factors[1])) == {0.0, 2.0}
    np.testing.assert_array_equal(layer(x)[0], made(num_layers=2)(x)[0])


@pytest.mark.parametrize("options", CONNECTIONS[:4], ids=str)
def test_pieces_with_carried_states_are_one_call(options: dict) -> None:
    layer = made(**options)
    x = problem(layer)[0]
    y, final = layer(x)
    first, state = layer(x[:, :2])
    rest, state = layer(x[:, 2:], state)
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=1), y)
    for a, b in zip(state, final, strict=True):
        np.testing.assert_array_equal(a, b)


def test_elapsed_times_reach_every_layer() -> None:
    layer, fused = made(cell="tlstm"), LSTM(INPUTS, HIDDEN, 3, cell="tlstm", dtype="float64")
    fused.load_parameters(layer.parameters)
    x, delta_t = problem(layer)[0], np.random.default_rng(0).uniform(0, 9, (N, STEPS))
    np.testing.assert_array_equal(
        layer(x, lengths=LENGTHS, delta_t=delta_t)[0], fused(x, lengths=LENGTHS, delta_t=delta_t)[0]
    )


def test_copies_and_configurations_are_the_same_layer() -> None:
    layer = made(residual=True, skip="both", cell="gru")
    x = problem(layer)[0]
    again = Stack.from_config(json.loads(json.dumps(layer.get_config())))
    again.load_parameters(layer.parameters)
    np.testing.assert_array_equal(again(x)[0], layer(x)[0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(x)[0], layer(x)[0])
    flat, grads = np.zeros(layer.n_parameters), np.zeros(layer.n_parameters)
    want = layer(x)[0]
    layer.bind(flat, grads)
    np.testing.assert_array_equal(layer(x)[0], want)
    flat *= 0.5
    layer.parameters_changed()
    assert (layer(x)[0] != want).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": "all"}, "skip must be None"),
        ({"merge": "mean", "bidirectional": True}, "merge must be"),
        ({"merge": "sum"}, "goes with bidirectional=True"),
        ({"dropout": 1.0}, "dropout"),
        ({"cell": "elman"}, "cell must be one of"),
    ],
    ids=str,
)
def test_what_it_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_arguments_that_do_not_fit_are_refused() -> None:
    layer = made()
    x, dy, state = problem(layer)
    with pytest.raises(ValueError, match=r"x has shape .* expected \(batch, time, 3\)"):
        layer(x[..., :2])
    with pytest.raises(ValueError, match=r"state h has shape \(2, 4, 5\)"):
        layer(x, tuple(s[:2] for s in state))
    _, _, tape = layer.forward(x)
    with pytest.raises(ValueError, match="dy has shape"):
        layer.backward(tape, dy[..., :2])
    layer.backward(tape, dy)
    with pytest.raises(ValueError, match="serves one backward call"):
        layer.backward(tape, dy)
