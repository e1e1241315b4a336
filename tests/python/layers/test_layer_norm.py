"""Layer normalisation (Ba, Kiros and Hinton 2016) against torch's layer_norm and autograd, and its promises."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastlstm.layers import GRU, LSTM
from fastlstm.layers.recurrent import CELLS
from fastlstm.streaming import LayerStream

N, STEPS, INPUTS = 5, 6, 3
LENGTHS = np.array([6, 2, 4, 1, 6])


def perturbed(layer: LSTM) -> LSTM:
    """The layer with gains away from 1 and biases away from 0."""
    random = np.random.default_rng(1)
    layer.load_parameters(
        {name: p + 0.3 * random.standard_normal(p.shape) for name, p in layer.parameters.items()}
    )
    return layer


def torch_lstm(torch, p: dict, suffix: str, x, h, c, peephole: bool = False):
    """Ba et al., supplementary (20)-(22), one sequence; peepholes of Gers et al. 2002 see c as it is."""
    hidden = p[f"weight_ln_c_{suffix}"].shape[0]

    def norm(z, gain, bias=None):
        return torch.nn.functional.layer_norm(z, z.shape[-1:], gain, bias)

    ys = []
    for row in x:
        z = norm(p[f"weight_ih_{suffix}"] @ row, p[f"weight_ln_ih_{suffix}"])
        z = z + norm(p[f"weight_hh_{suffix}"] @ h, p[f"weight_ln_hh_{suffix}"])
        i, f, g, o = (z + p[f"bias_ih_{suffix}"] + p[f"bias_hh_{suffix}"]).split(hidden)
        if peephole:
            i, f = i + p[f"weight_ci_{suffix}"] * c, f + p[f"weight_cf_{suffix}"] * c
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        if peephole:
            o = o + p[f"weight_co_{suffix}"] * c
        h = o.sigmoid() * norm(c, p[f"weight_ln_c_{suffix}"], p[f"bias_ln_c_{suffix}"]).tanh()
        ys.append(h)
    return torch.stack(ys), h, c


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("hidden", [1, 5, 19, 40])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 2e-5)])
def test_torch_has_the_same_outputs_states_and_gradients(
    hidden: int, peephole: bool, dtype: str, bound: float
) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    cell = "peephole" if peephole else "lstm"
    layer = perturbed(LSTM(INPUTS, hidden, cell=cell, layer_norm=True, dtype=dtype, random_state=0))
    p = {
        name: torch.tensor(np.asarray(value, np.float64), requires_grad=True)
        for name, value in layer.parameters.items()
    }
    x, dy = random.standard_normal((N, STEPS, INPUTS)), random.standard_normal((N, STEPS, hidden))
    state, dstate = (
        tuple(random.standard_normal((1, N, hidden)) for _ in "hc") for _ in ("value", "gradient")
    )
    given = [torch.tensor(a, requires_grad=True) for a in (x, *state)]
    loss, ys = 0.0, []
    for b, length in enumerate(LENGTHS):
        y, h, c = torch_lstm(torch, p, "l0", given[0][b, :length], given[1][0, b], given[2][0, b], peephole)
        ys.append(y.detach().numpy())
        loss = loss + (y * torch.tensor(dy[b, :length])).sum()
        loss = loss + (h * torch.tensor(dstate[0][0, b])).sum() + (c * torch.tensor(dstate[1][0, b])).sum()
    loss.backward()
    y, _, tape = layer.forward(x, state, LENGTHS)
    dx, dinitial, grads = layer.backward(tape, dy, dstate)
    for b, length in enumerate(LENGTHS):
        np.testing.assert_allclose(y[b, :length], ys[b], atol=bound)
    for got, want in zip((dx, *dinitial), given, strict=True):
        want = want.grad.numpy()
        assert np.max(np.abs(got - want)) <= bound * max(1.0, np.max(np.abs(want)))
    for name, got in grads.items():
        want = p[name].grad.numpy()
        assert np.max(np.abs(got - want)) <= bound * max(1.0, np.max(np.abs(want))), name


@pytest.mark.parametrize(
    "options",
    [*({"cell": cell} for cell in CELLS), {"proj_size": 4, "output_proj_size": 2}, {"truncated": True}],
    ids=str,
)
def test_the_gradient_is_that_of_the_loss(options: dict) -> None:
    random = np.random.default_rng(0)
    settings = {"num_layers": 2, "bidirectional": True, "layer_norm": True, "dtype": "float64"}
    layer = perturbed(LSTM(INPUTS, 6, **settings, **options, random_state=0))
    x = random.standard_normal((N, STEPS, INPUTS))
    dy = random.standard_normal((N, STEPS, layer.output_size))
    _, final, tape = layer.forward(x, None, LENGTHS)
    dfinal = tuple(random.standard_normal(state.shape) for state in final)
    dx, _, grads = layer.backward(tape, dy, dfinal)
    if options.get("truncated"):  # not a derivative: what it cuts is missing
        assert not np.allclose(grads["weight_hh_l0"], backward_in_full(layer, x, dy, dfinal)["weight_hh_l0"])
        return
    flat = np.concatenate([value.ravel() for value in grads.values()])

    def loss() -> float:
        y, final = layer(x, None, LENGTHS)
        real = np.arange(STEPS) < LENGTHS[:, None]
        return float(
            np.sum(y * dy * real[..., None]) + sum(np.sum(s * d) for s, d in zip(final, dfinal, strict=True))
        )

    def slope(values: np.ndarray, at, changed) -> float:
        kept, losses = values[at], []
        for step in (1e-6, -1e-6):
            values[at] = kept + step
            changed()
            losses.append(loss())
        values[at] = kept
        changed()
        return (losses[0] - losses[1]) / 2e-6

    names = np.repeat(list(grads), [value.size for value in grads.values()])
    for name in grads:
        for at in random.choice(np.flatnonzero(names == name), 2):
            want = slope(layer.flat, at, layer.parameters_changed)
            assert flat[at] == pytest.approx(want, rel=1e-6, abs=1e-7), name
    for b, length in enumerate(LENGTHS):
        at = (b, random.integers(length), random.integers(INPUTS))
        assert dx[at] == pytest.approx(slope(x, at, lambda: None), rel=1e-6, abs=1e-7)


def backward_in_full(layer: LSTM, x: np.ndarray, dy: np.ndarray, dfinal: tuple) -> dict[str, np.ndarray]:
    full = LSTM.from_config({**layer.get_config(), "truncated": False})
    full.load_parameters(layer.parameters)
    _, _, tape = full.forward(x, None, LENGTHS)
    return full.backward(tape, dy, dfinal)[2]


@pytest.mark.parametrize("cell", CELLS)
def test_scaling_the_matrices_changes_nothing(cell: str) -> None:
    """What normalisation is for: the pre-activations do not know the scale of W and U."""
    layer = perturbed(LSTM(INPUTS, 20, cell=cell, layer_norm=True, dtype="float64", random_state=0))
    x = np.random.default_rng(0).standard_normal((N, STEPS, INPUTS))
    y, _ = layer(x)
    scaled = {
        name: p * 1000.0 if name.startswith(("weight_ih", "weight_hh", "weight_gg")) else p
        for name, p in layer.parameters.items()
    }
    layer.load_parameters(scaled)
    np.testing.assert_allclose(layer(x)[0], y, atol=0.02)  # but for the small number in the variance


@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_depend_neither_on_the_batch_nor_on_threads_nor_on_training(cell: str) -> None:
    random = np.random.default_rng(0)
    layer = perturbed(LSTM(INPUTS, 19, 2, cell=cell, layer_norm=True, random_state=0))
    x = random.standard_normal((24, STEPS, INPUTS)).astype(np.float32)
    y, _ = layer(x)
    gradients = []
    for threads in (1, 2, 3):
        layer.n_threads = threads
        trained, _, tape = layer.forward(x)
        np.testing.assert_array_equal(trained, y)
        gradients.append(layer.backward(tape, y)[2])
    for name, value in gradients[0].items():
        np.testing.assert_array_equal(gradients[1][name], value)
        np.testing.assert_array_equal(gradients[2][name], value)
    np.testing.assert_array_equal(layer(x[7:8])[0], y[7:8])
    first, state = layer(x[:, :2])
    rest, _ = layer(x[:, 2:], state)
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=1), y)
    stream = LayerStream(layer, 24)
    for t in range(STEPS):
        np.testing.assert_array_equal(stream.step(x[:, t]), y[:, t])


def test_checkpoints_learned_states_and_files_go_with_it() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 12, INPUTS)).astype(np.float32)
    settings = {"layer_norm": True, "learn_initial_state": True, "random_state": 0}
    plain = perturbed(LSTM(INPUTS, 7, **settings))
    kept = LSTM(INPUTS, 7, checkpoint_every=3, **settings)
    kept.load_parameters(plain.parameters)
    results = []
    for layer in (plain, kept):
        y, _, tape = layer.forward(x)
        results.append(layer.backward(tape, y)[2])
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, atol=1e-4, err_msg=name)
    copy = pickle.loads(pickle.dumps(plain))
    np.testing.assert_array_equal(copy(x)[0], plain(x)[0])


def test_a_new_layer_has_gains_of_one() -> None:
    layer = LSTM(INPUTS, 4, layer_norm=True, random_state=0)
    assert (layer.parameters["weight_ln_hh_l0"] == 1.0).all()
    assert not layer.parameters["bias_ln_c_l0"].any()
    gru = GRU(INPUTS, 4, layer_norm=True)
    assert gru.parameters["weight_ln_ih_l0"].shape == (12,)
    assert not any(name.endswith("ln_c_l0") for name in gru.parameters)


@pytest.mark.parametrize("cell", ["lstm", "fgr", "lstm1997_gates", "slstm", "tlstm"])
def test_a_gate_of_a_memory_block_counts_once_for_each_of_its_cells(cell: str) -> None:
    """The layer is one without blocks whose gates' rows, biases and gains are copies."""
    settings = {"cell": cell, "layer_norm": True, "dtype": "float64", "random_state": 0}
    blocks = perturbed(LSTM(INPUTS, 6, cells_per_block=3, **settings))
    plain = LSTM(INPUTS, 6, **settings)
    copied = {}
    for name, value in blocks.parameters.items():
        value = np.array(value)
        if name.startswith("weight_gg"):  # a gate of a block is heard once
            value = np.kron(value, [1.0, 0.0, 0.0])
        if any(kind in name for kind in ("_ih_", "_hh_", "_gg_")):
            rows = [blocks.gate_rows(name, gate) for gate in blocks.gates_of(name)]
            gates = zip(blocks.gates_of(name), rows, strict=True)
            value = np.concatenate([np.repeat(value[at], 3 if g in "ifo" else 1, axis=0) for g, at in gates])
        copied[name] = value
    plain.load_parameters(copied)
    x = np.random.default_rng(0).standard_normal((N, STEPS, INPUTS))
    np.testing.assert_array_equal(blocks(x, None, LENGTHS)[0], plain(x, None, LENGTHS)[0])


@pytest.mark.parametrize(("cell", "gates"), [("fgr", 3), ("lstm1997_gates", 3)])
def test_gates_that_recur_have_gains_of_their_own(cell: str, gates: int) -> None:
    layer = LSTM(INPUTS, 5, cell=cell, layer_norm=True, dtype="float64", random_state=0)
    assert layer.parameters["weight_ln_gg_l0"].shape == (gates * 5,)
    assert (layer.parameters["weight_ln_gg_l0"] == 1.0).all()
    x = np.random.default_rng(0).standard_normal((N, STEPS, INPUTS))
    y, _ = layer(x)
    layer.load_parameters({**layer.parameters, "weight_ln_gg_l0": np.zeros(gates * 5)})
    assert not np.allclose(layer(x)[0][:, 1:], y[:, 1:])
    np.testing.assert_array_equal(layer(x)[0][:, 0], y[:, 0])  # no gates before the first step


def test_activation_memory_is_told_before_the_call() -> None:
    layer = LSTM(INPUTS, 19, layer_norm=True, random_state=0)
    lengths = np.array([6, 2, 4])
    _, _, tape = layer.forward(np.zeros((3, 6, INPUTS)), None, lengths)
    assert tape.nbytes == layer.activation_bytes(lengths)
