"""Projected LSTMs (LSTMP) against torch, against the unprojected equations, and against central differences."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.streaming import LayerStream

CELLS = ["lstm", "peephole", "cifg", "nfg", "fgr", "lstm1997_gates", "slstm"]
SHAPES = [(3, 11, 4), (5, 19, 17), (9, 4, 3), (20, 64, 16)]  # input, hidden, projection


def errors(got: dict, want: dict) -> float:
    return max(
        float(np.max(np.abs(got[name] - value)) / max(1.0, np.max(np.abs(value))))
        for name, value in want.items()
    )


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 2e-6)])
def test_torch_has_the_same_outputs_states_and_gradients(
    shape: tuple[int, int, int], bidirectional: bool, dtype: str, bound: float
) -> None:
    torch = pytest.importorskip("torch")
    n_inputs, hidden, proj = shape
    random = np.random.default_rng(0)
    layer = LSTM(
        n_inputs, hidden, 2, proj_size=proj, bidirectional=bidirectional, dtype=dtype, random_state=0
    )
    peer = torch.nn.LSTM(
        n_inputs, hidden, 2, proj_size=proj, bidirectional=bidirectional, batch_first=True
    ).double()
    assert {name: tuple(p.shape) for name, p in peer.named_parameters()} == dict(layer.parameter_shapes)
    peer.load_state_dict({name: torch.tensor(p, dtype=torch.float64) for name, p in layer.parameters.items()})
    lengths, ways = np.array([7, 3, 5]), 1 + bidirectional
    x = random.standard_normal((3, 7, n_inputs))
    state = tuple(random.standard_normal((2 * ways, 3, size)) for size in (proj, hidden))
    dy, dstate = (
        random.standard_normal((3, 7, proj * ways)),
        tuple(random.standard_normal(s.shape) for s in state),
    )
    given = [torch.tensor(a, requires_grad=True) for a in (x, *state)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        given[0], torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    out, final = peer(packed, tuple(given[1:]))
    padded = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
    loss = (padded * torch.tensor(dy)).sum() + sum(
        (f * torch.tensor(d)).sum() for f, d in zip(final, dstate, strict=True)
    )
    loss.backward()
    y, got_final, tape = layer.forward(x, state, lengths)
    dx, dinitial, grads = layer.backward(tape, dy, dstate)
    want = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    want |= {"y": padded.detach().numpy(), "dx": given[0].grad.numpy()}
    want |= {f"final {k}": f.detach().numpy() for k, f in enumerate(final)}
    want |= {f"initial {k}": g.grad.numpy() for k, g in enumerate(given[1:])}
    got = {**grads, "y": y, "dx": dx}
    got |= {f"final {k}": f for k, f in enumerate(got_final)}
    got |= {f"initial {k}": d for k, d in enumerate(dinitial)}
    assert errors(got, want) <= bound


@pytest.mark.parametrize("cell", CELLS)
def test_a_projection_by_the_identity_changes_nothing(cell: str) -> None:
    plain = LSTM(3, 9, cell=cell, dtype="float64", random_state=0)
    layer = LSTM(3, 9, cell=cell, proj_size=9, output_proj_size=2, dtype="float64", random_state=0)
    second = np.random.default_rng(1).standard_normal((2, 9))
    layer.load_parameters({**plain.parameters, "weight_hr_l0": np.vstack([np.eye(9), second])})
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    want, got = plain(x)[0], layer(x)[0]
    np.testing.assert_allclose(got[..., :9], want, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[..., 9:], want @ second.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_central_differences(cell: str) -> None:
    random = np.random.default_rng(0)
    layer = LSTM(
        2,
        4,
        2,
        cell=cell,
        proj_size=3,
        output_proj_size=2,
        bidirectional=True,
        dtype="float64",
        random_state=0,
    )
    x, lengths = random.standard_normal((3, 5, 2)), [5, 2, 4]
    y, final = layer(x, None, lengths)
    state = tuple(0.5 * random.standard_normal(s.shape) for s in final)
    if cell == "slstm":
        state[2][...] = 1.0 + np.abs(state[2])
    dy, dstate = random.standard_normal(y.shape), tuple(random.standard_normal(s.shape) for s in final)
    real = (np.arange(5) < np.array(lengths)[:, None])[..., None]

    def loss() -> float:
        y, final = layer(x, state, lengths)
        return float(np.sum(y * dy * real) + sum(np.sum(s * d) for s, d in zip(final, dstate, strict=True)))

    _, _, tape = layer.forward(x, state, lengths)
    dx, dinitial, grads = layer.backward(tape, dy, dstate)
    flat = np.concatenate([grads[name].ravel() for name, _ in layer.parameter_shapes])
    for array, gradient in ((layer.flat, flat), (x, dx), *zip(state, dinitial, strict=True)):
        values, gradient, found = array.reshape(-1), gradient.reshape(-1), []
        places = random.choice(values.size, min(values.size, 40), replace=False)
        for place in places:
            kept, ends = values[place], []
            for step in (1e-5, -1e-5):
                values[place] = kept + step
                layer.parameters_changed()
                ends.append(loss())
            values[place] = kept
            layer.parameters_changed()
            found.append((ends[0] - ends[1]) / 2e-5)
        assert np.max(np.abs(gradient[places] - found)) <= 1e-6 * max(1.0, np.max(np.abs(found)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_streams_threads_and_pickles_have_the_same_bits(dtype: str) -> None:
    random = np.random.default_rng(0)
    for cell in ("lstm", "fgr"):
        layer = LSTM(6, 21, 2, cell=cell, proj_size=5, output_proj_size=3, dtype=dtype, random_state=0)
        x = random.standard_normal((4, 7, 6)).astype(dtype)
        y, final = layer(x)
        stream = LayerStream(layer, 4)
        for t in range(7):
            np.testing.assert_array_equal(stream.step(np.ascontiguousarray(x[:, t])), y[:, t])
        for got, want in zip(stream.state, final, strict=True):
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(x)[0], y)
        first, state = layer(x[:, :3])
        np.testing.assert_array_equal(np.concatenate([first, layer(x[:, 3:], state)[0]], axis=1), y)
    for batch in (3, 70):
        layer = LSTM(20, 200, proj_size=48, bidirectional=batch == 70, dtype=dtype, random_state=0)
        x = random.standard_normal((batch, 12, 20)).astype(dtype)
        found = []
        for layer.n_threads in (1, 2, 3):
            y, _, tape = layer.forward(x)
            dx, _, grads = layer.backward(tape, y)
            found.append({**grads, "y": y, "dx": dx})
        for got in found[1:]:
            for name, value in found[0].items():
                np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": -1}, "proj_size must be at least 0"),
        ({"output_proj_size": 2}, "goes with a proj_size"),
        ({"proj_size": 2, "cell": "tlstm"}, "takes no projection"),
        ({"proj_size": 2, "cell": "peephole_article"}, "takes no projection"),
    ],
)
def test_bad_projections_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(3, 4, **options)


@pytest.mark.parametrize("make", [GRU, RNN])
def test_other_layers_refuse(make) -> None:
    with pytest.raises(ValueError, match="takes no projection"):
        make(3, 4, proj_size=2)
