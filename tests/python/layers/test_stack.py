"""Stacks with residual and skip connections against torch, the fused stack, and central differences."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest

from fastlstm.layers import LSTM, Stack
from fastlstm.layers.recurrent import CELLS
from fastlstm.streaming import LayerStream

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


def flat_of(grads: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([value.ravel() for value in grads.values()])


def check_slopes(layer: Stack, loss, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Gradients against central differences of `loss`, at about 30 entries of each (array, gradient)."""
    for array, gradient in pairs:
        entries, found = array.reshape(-1), gradient.reshape(-1)
        for at in range(0, entries.size, max(1, entries.size // 29)):
            kept, sums = entries[at], []
            for step in (1e-6, -1e-6):
                entries[at] = kept + step
                layer.parameters_changed()
                sums.append(loss())
            entries[at] = kept
            layer.parameters_changed()
            assert found[at] == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-6, abs=2e-7)


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
        {"checkpoint_every": 2, "residual": True, "skip": "both", "zoneout": 0.2},
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_drawn_network(options: dict) -> None:
    layer = made(**options)
    x, dy, _ = problem(layer)
    _, _, tape = layer.forward(x, None, LENGTHS, rng_key=9)
    dx, _, grads = layer.backward(tape, dy)

    def loss() -> float:
        return float(np.sum(layer.forward(x, None, LENGTHS, rng_key=9)[0] * dy))

    check_slopes(layer, loss, (layer.flat, flat_of(grads)), (x, dx))


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


def make_resets() -> np.ndarray:
    """None, before the first step and in the padding, at neighbouring steps."""
    resets = np.zeros((N, STEPS), bool)
    resets[1, [0, 3]] = resets[2, [1, 2, 5]] = True
    resets[3, 0] = True
    return resets


@pytest.mark.parametrize("options", CONNECTIONS, ids=str)
def test_an_episode_is_a_sequence_of_its_own(options: dict) -> None:
    layer, resets = made(**options), make_resets()
    x, _, state = problem(layer)
    y, final = layer(x, state, LENGTHS, resets=resets)
    for b, length in enumerate(LENGTHS):
        borders = [0, *(t for t in range(1, length) if resets[b, t]), length]
        episodes = list(pairwise(borders))
        for episode, (begin, end) in enumerate(episodes):
            start = [np.zeros_like(s[:, :1]) for s in state]
            for way in range(layer.directions):
                first = episode == (len(episodes) - 1 if way else 0)
                if first and (way or not resets[b, 0]):
                    for own, given in zip(start, state, strict=True):
                        own[way :: layer.directions, 0] = given[way :: layer.directions, b]
            want, ends = layer(x[b : b + 1, begin:end], tuple(start))
            np.testing.assert_allclose(y[b, begin:end], want[0], atol=1e-14)
            for way in range(layer.directions):
                if episode == (0 if way else len(episodes) - 1):
                    for got, value in zip(final, ends, strict=True):
                        rows = slice(way, None, layer.directions)
                        np.testing.assert_allclose(got[rows, b], value[rows, 0], atol=1e-14)
        assert not y[b, length:].any()


@pytest.mark.parametrize("options", CONNECTIONS[3:], ids=str)
def test_gradients_stop_at_resets_and_reach_learned_states(options: dict) -> None:
    layer, resets = made(learn_initial_state=True, dropout=0.3, **options), make_resets()
    x, dy, state = problem(layer)
    random = np.random.default_rng(3)
    _, final, tape = layer.forward(x, state, LENGTHS, resets=resets, rng_key=4)
    dfinal = tuple(random.standard_normal(s.shape) for s in final)

    def loss() -> float:
        y, final, _ = layer.forward(x, state, LENGTHS, resets=resets, rng_key=4)
        return float(np.sum(y * dy) + sum(np.sum(s * d) for s, d in zip(final, dfinal, strict=True)))

    dx, dstate, grads = layer.backward(tape, dy, dfinal)
    check_slopes(layer, loss, (layer.flat, flat_of(grads)), (x, dx), *zip(state, dstate, strict=True))
    assert all(not d[:: layer.directions, 1].any() for d in dstate)


def test_a_loss_of_the_final_state_alone() -> None:
    layer = made(residual=True)
    x = problem(layer)[0]
    _, final, tape = layer.forward(x, None, LENGTHS)
    dx, _, grads = layer.backward(tape, None, final)

    def loss() -> float:
        return 0.5 * float(sum(np.sum(s**2) for s in layer(x, None, LENGTHS)[1]))

    check_slopes(layer, loss, (layer.flat, flat_of(grads)), (x, dx))


@pytest.mark.parametrize("inputs", [INPUTS, HIDDEN, 2 * HIDDEN])
@pytest.mark.parametrize("options", CONNECTIONS, ids=str)
def test_last_output_and_its_gradient(options: dict, inputs: int) -> None:
    """Of rows that lie anywhere: the output where each direction ends, and the slopes of a loss of it."""
    layer = Stack(inputs, HIDDEN, 3, dtype="float64", random_state=0, **options)
    random = np.random.default_rng(5)
    values = random.standard_normal((40, inputs))
    starts, lengths = np.array([30, 2, 9]), np.array([5, 7, 1])
    y, final = layer.run(values, starts, lengths)
    before = [array.copy() for array in (values, *final)]
    last = layer.last_output(values, starts, lengths, final)
    assert last.shape == (3, layer.output_size)
    for array, copy in zip((values, *final), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    ends = np.cumsum(lengths)
    if layer.merge == "concat":
        for own, begin, end in zip(last, ends - lengths, ends, strict=True):
            by_way = y[end - 1].copy().reshape(-1, layer.directions, HIDDEN)
            by_way[:, 1:] = y[begin].reshape(by_way.shape)[:, 1:]
            np.testing.assert_array_equal(own, by_way.ravel())
    elif not layer.residual:
        np.testing.assert_array_equal(last, final[0][-2] + final[0][-1])
    d_last = random.standard_normal(last.shape)

    def loss() -> float:
        _, final = layer.run(values, starts, lengths, want_y=False)
        return float(np.sum(layer.last_output(values, starts, lengths, final) * d_last))

    _, _, tape = layer.run_training(values, starts, lengths, want_y=False)
    rows, _ = layer.run_backward(tape, d_last=d_last, want_dx=True)
    dx = np.zeros_like(values)
    for begin, start, length in zip(ends - lengths, starts, lengths, strict=True):
        dx[start : start + length] = rows[begin : begin + length]
    check_slopes(layer, loss, (layer.flat, layer.flat_grads.copy()), (values, dx))


def test_a_layer_without_connections_ends_where_the_fused_stack_does() -> None:
    layer = made(bidirectional=True)
    fused = LSTM(INPUTS, HIDDEN, 3, bidirectional=True, dtype="float64")
    fused.load_parameters(layer.parameters)
    x, lengths = problem(layer)[0].reshape(-1, INPUTS), np.array([6, 4, 6])
    starts, d_last = np.array([0, 6, 12]), np.random.default_rng(0).standard_normal((3, 2 * HIDDEN))
    ends, grads = [], []
    for each in (layer, fused):
        _, final, tape = each.run_training(x, starts, lengths, want_y=False)
        ends.append(each.last_output(x, starts, lengths, final))
        each.run_backward(tape, d_last=d_last)
        grads.append(each.flat_grads)
    np.testing.assert_array_equal(*ends)
    np.testing.assert_allclose(*grads, atol=1e-14)


def test_without_noise_training_computes_what_inference_does() -> None:
    layer = made(
        dropout=0.4, recurrent_dropout=0.2, zoneout=0.3, weight_noise=0.1, residual=True, dtype="float32"
    )
    layer.n_threads = 2
    x, dy, _ = problem(layer)
    twin = layer.without_noise("float64")
    assert (twin.dtype, twin.n_threads) == (np.float64, 2)
    y, _, tape = twin.forward(x, None, LENGTHS, rng_key=3)
    np.testing.assert_array_equal(y, twin(x, None, LENGTHS)[0])
    np.testing.assert_allclose(y, layer(x, None, LENGTHS)[0], atol=1e-6)
    assert np.isfinite(flat_of(twin.backward(tape, dy)[2])).all()
    assert (layer.forward(x, None, LENGTHS, rng_key=3)[0] != layer(x, None, LENGTHS)[0]).any()


@pytest.mark.parametrize("options", CONNECTIONS, ids=str)
def test_return_all_shows_what_the_layers_compute(options: dict) -> None:
    layer, resets = made(zoneout=0.1, **options), make_resets()
    x, _, state = problem(layer)
    found = layer.return_all(x, state, LENGTHS, resets=resets)
    y, final = layer(x, state, LENGTHS, resets=resets)
    np.testing.assert_array_equal(found["y"], y)
    assert list(found["gates"]) == ["i", "f", "g", "o"]
    c, gates = found["c"], found["gates"]
    assert c.shape == gates["o"].shape == (3 * layer.directions, N, STEPS, HIDDEN)
    for place in range(len(c)):
        for b, length in enumerate(LENGTHS):
            end = 0 if place % layer.directions else length - 1
            np.testing.assert_array_equal(c[place, b, end], final[1][place, b])
            assert not c[place, b, length:].any()
    assert "c" not in made(cell="gru", **options).return_all(x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options", [*CONNECTIONS[:4], {"cell": "gru", "residual": True, "learn_initial_state": True}], ids=str
)
@pytest.mark.parametrize("inputs", [INPUTS, HIDDEN])
def test_a_stream_gives_the_bits_of_a_call(options: dict, inputs: int, dtype: str) -> None:
    layer = Stack(inputs, HIDDEN, 3, dtype=dtype, random_state=0, **options)
    for value in layer.flat[-40:], layer.flat[:40]:  # learned states are zero at first
        value += layer.dtype.type(0.1)
    layer.parameters_changed()
    x = np.random.default_rng(0).standard_normal((2, STEPS, inputs))
    y, final = layer(x)
    stream = LayerStream(layer, 2)
    for t in range(STEPS):
        np.testing.assert_array_equal(stream.step(x[:, t]), y[:, t])
    for got, want in zip(stream.state, final, strict=True):
        np.testing.assert_array_equal(got, want)
    blob, kept = stream.snapshot(), stream.state
    stream.reset(1)
    out = np.empty((2, layer.output_size), dtype)
    assert stream.step(x[:, 0].astype(dtype), out) is out
    np.testing.assert_array_equal(out[1], y[1, 0])
    assert (out[0] != y[0, 0]).any()
    after, _ = layer(x[:, :1], final)
    for restore in (lambda: stream.restore(blob), lambda: setattr(stream, "state", kept)):
        restore()
        np.testing.assert_array_equal(stream.step(x[:, 0]), after[:, 0])


def test_a_stream_takes_elapsed_times() -> None:
    layer = made(cell="tlstm", residual=True, skip="both")
    x, delta_t = problem(layer)[0], np.random.default_rng(0).uniform(0, 9, (N, STEPS))
    y, _ = layer(x, delta_t=delta_t)
    stream = LayerStream(layer, N)
    for t in range(STEPS):
        np.testing.assert_array_equal(stream.step(x[:, t], delta_t=delta_t[:, t]), y[:, t])


def test_what_a_stream_refuses_moves_no_layer() -> None:
    layer = made(residual=True, skip="both")
    x = problem(layer)[0]
    stream = LayerStream(layer, N)
    stream.step(x[:, 0])
    before = stream.state
    with pytest.raises(ValueError, match="out must be a C-contiguous float64 array"):
        stream.step(x[:, 1], np.empty((N, HIDDEN)))
    with pytest.raises(ValueError, match=r"x_t has shape \(2, 3\); expected \(4, 3\)"):
        stream.step(x[:2, 1])
    with pytest.raises(ValueError, match="another shape"):
        stream.restore(LayerStream(made(num_layers=2), N).snapshot())
    for got, want in zip(stream.state, before, strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="streaming needs bidirectional=False"):
        LayerStream(made(bidirectional=True))


def test_copies_and_configurations_are_the_same_layer() -> None:
    layer = made(residual=True, skip="both", cell="gru", zoneout=(0.1, 0.0), cells_per_block=np.int64(1))
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
    layer.n_threads = 2
    assert pickle.loads(pickle.dumps(layer)).n_threads == 2


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
