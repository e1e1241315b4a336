"""The convolutional LSTM against numpy, PyTorch and central differences; the encoder-forecaster on moving bars."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from reference import sigmoid

import fastlstm
from fastlstm.layers import ConvForecaster, ConvLSTM
from fastlstm.optimizers import Adam, clip_by_global_norm

LENGTHS = np.array([4, 1, 3])
BATCH, TIME = 3, 4

# in_channels, hidden_channels, kernel_size, spatial_shape, options: around the vector widths, kernels that are even,
# wider than the image or one pixel, a layer without input, images of more than one strip
SHAPES: dict[str, tuple[int, int, Any, Any, dict[str, Any]]] = {
    "signal": (2, 5, 3, 7, {}),
    "image": (3, 17, (3, 5), (6, 5), {}),
    "plain": (1, 3, (2, 4), (5, 4), {"peephole": False, "bias": False}),
    "wide_kernel": (2, 9, (7, 5), (3, 2), {}),
    "no_input": (0, 4, 3, (4, 3), {}),
    "pixelwise": (2, 8, 1, (2, 3), {"peephole": False}),
    "strips": (4, 16, 5, (13, 11), {}),
}


def build(name: str, dtype: str = "float64") -> ConvLSTM:
    *sizes, options = SHAPES[name]
    layer = ConvLSTM(*sizes, dtype=dtype, random_state=3, **options)
    layer.n_threads = 1
    return layer


def draw(layer: ConvLSTM, batch: int = BATCH, time: int = TIME) -> dict[str, Any]:
    """x, initial state, and the gradients of outputs and final state."""
    rng = np.random.default_rng(5)
    image = layer.spatial_shape

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32).astype(layer.dtype)

    hidden = (layer.hidden_channels, *image)
    return {
        "x": normal(batch, time, layer.in_channels, *image),
        "state": (normal(batch, *hidden), normal(batch, *hidden)),
        "dy": normal(batch, time, *hidden),
        "dstate": (normal(batch, *hidden), normal(batch, *hidden)),
    }


def everything(layer: ConvLSTM, given: dict[str, Any], lengths: Any = None) -> dict[str, np.ndarray]:
    """Outputs and all gradients."""
    y, (h, c), tape = layer.forward(given["x"], given["state"], lengths)
    dx, (dh, dc), grads = layer.backward(tape, given["dy"], given["dstate"])
    return {"y": y, "h": h, "c": c, "dx": dx, "dh": dh, "dc": dc, "flat": layer.flat_grads.copy(), **grads}


# ---- oracles ----


def convolve(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation of (channels, height, width) with (out, channels, kh, kw), zero outside the image."""
    (_, height, width), (out, _, kh, kw) = image.shape, weight.shape
    padded = np.pad(image, ((0, 0), ((kh - 1) // 2, kh // 2), ((kw - 1) // 2, kw // 2)))
    result = np.zeros((out, height, width))
    for y in range(height):
        for x in range(width):
            result[:, y, x] = np.einsum("ockl,ckl->o", weight, padded[:, y : y + kh, x : x + kw])
    return result


def plainly(layer: ConvLSTM, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    """The equations for one sequence x (time, in_channels, *spatial): all h, and the last c."""
    planar = (-1, *(1,) * (2 - len(layer.spatial_shape)), *layer.spatial_shape)
    kernel = (*(1,) * (2 - len(layer.spatial_shape)), *layer.kernel_size)
    p = {name: value.astype(np.float64) for name, value in layer.parameters.items()}
    v_i, v_f, v_o = (p[f"weight_c{gate}"].reshape(planar) if layer.peephole else 0.0 for gate in "ifo")
    w, u = (p[name].reshape(*p[name].shape[:2], *kernel) for name in ("weight_ih", "weight_hh"))
    b = p["bias"][:, None, None] if layer.bias else 0.0
    h, c, outputs = h.reshape(planar), c.reshape(planar), []
    for step in x:
        i, f, g, o = np.split(convolve(step.reshape(len(step), *planar[1:]), w) + convolve(h, u) + b, 4)
        i, f, g = sigmoid(i + v_i * c), sigmoid(f + v_f * c), np.tanh(g)
        c = f * c + i * g
        h = sigmoid(o + v_o * c) * np.tanh(c)
        outputs.append(h.reshape(layer.hidden_channels, *layer.spatial_shape))
    return np.array(outputs), c.reshape(outputs[0].shape)


def with_torch(layer: ConvLSTM, given: dict[str, Any], lengths: Any) -> dict[str, np.ndarray]:
    """Outputs and gradients by PyTorch's convolutions and autograd, in float64."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # small problems; the machine may be shared
    convolution = [torch.nn.functional.conv1d, torch.nn.functional.conv2d][len(layer.spatial_shape) - 1]
    before = [(k - 1) // 2 for k in reversed(layer.kernel_size)]
    after = [k // 2 for k in reversed(layer.kernel_size)]
    edges = [side for pair in zip(before, after, strict=True) for side in pair]

    def leaf(array: np.ndarray) -> Any:
        return torch.tensor(np.array(array, np.float64), requires_grad=True)

    p = {name: leaf(value) for name, value in layer.parameters.items()}
    x, h0, c0 = leaf(given["x"]), leaf(given["state"][0]), leaf(given["state"][1])
    peepholes = [p.get(f"weight_c{gate}", 0.0) for gate in "ifo"]
    y = torch.zeros(given["dy"].shape, dtype=torch.float64)
    last: list[Any] = []
    for b, length in enumerate(lengths):
        h, c = h0[b : b + 1], c0[b : b + 1]
        for t in range(length):
            z = convolution(torch.nn.functional.pad(h, edges), p["weight_hh"], p.get("bias"))
            if layer.in_channels:
                padded = torch.nn.functional.pad(x[b : b + 1, t], edges)
                z = z + convolution(padded, p["weight_ih"])
            i, f, g, o = z.chunk(4, dim=1)
            i, f = torch.sigmoid(i + peepholes[0] * c), torch.sigmoid(f + peepholes[1] * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + peepholes[2] * c) * torch.tanh(c)
            y[b, t] = h[0]
        last.append((h[0], c[0]))
    h, c = (torch.stack(values) for values in zip(*last, strict=True))
    outputs, gradients = [y, h, c], [given["dy"], *given["dstate"]]
    torch.autograd.backward(outputs, [torch.tensor(np.array(g, np.float64)) for g in gradients])
    found = dict(zip(("y", "h", "c"), [out.detach().numpy() for out in outputs], strict=True))
    leaves = {"dx": x, "dh": h0, "dc": c0, **p}
    for name, value in leaves.items():
        found[name] = np.zeros(value.shape) if value.grad is None else value.grad.numpy()
    return found


# ---- the layer ----


@pytest.mark.parametrize("name", SHAPES)
def test_forward_is_the_equations(name: str) -> None:
    layer = build(name)
    given = draw(layer)
    y, (h, c) = layer(given["x"], given["state"], LENGTHS)
    for b, length in enumerate(LENGTHS):
        want, want_c = plainly(layer, given["x"][b, :length], given["state"][0][b], given["state"][1][b])
        np.testing.assert_allclose(y[b, :length], want, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(c[b], want_c, rtol=1e-11, atol=1e-13)
        np.testing.assert_array_equal(h[b], y[b, length - 1])
        assert not y[b, length:].any()


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_and_gradients_are_torchs(name: str, dtype: str, limit: float) -> None:
    layer = build(name, dtype)
    given = draw(layer)
    got = everything(layer, given, LENGTHS)
    assert got["y"].dtype == dtype
    for label, want in with_torch(layer, given, LENGTHS).items():
        assert got[label].shape == want.shape
        assert relative_error(got[label], want) < limit, label


def differences(values: np.ndarray, loss: Any) -> np.ndarray:
    """Central differences of loss() in each entry of `values`, which it reads."""
    found = np.empty(values.shape)
    for index in np.ndindex(values.shape):
        kept, sums = values[index], []
        for step in (1e-5, -1e-5):
            values[index] = kept + step
            sums.append(loss())
        values[index] = kept
        found[index] = (sums[0] - sums[1]) / 2e-5
    return found


@pytest.mark.parametrize("name", ["signal", "plain"])
def test_every_gradient_entry_is_the_central_difference(name: str) -> None:
    layer = build(name)
    given = draw(layer)

    def loss() -> float:
        y, state = layer(given["x"], given["state"], LENGTHS)
        pairs = zip((y, *state), (given["dy"], *given["dstate"]), strict=True)
        return float(sum(np.sum(value * weight) for value, weight in pairs))

    got = everything(layer, given, LENGTHS)
    arrays = {"dx": given["x"], "dh": given["state"][0], "dc": given["state"][1], "flat": layer.flat}
    for label, values in arrays.items():
        assert relative_error(got[label], differences(values, loss)) < 1e-6, label


def test_pixels_of_a_pixelwise_layer_are_sequences_of_an_lstm() -> None:
    layer = build("pixelwise", "float32")
    twin = fastlstm.layers.LSTM(2, 8)
    weights = {f"{name}_l0": layer.parameters[name][:, :, 0, 0] for name in ("weight_ih", "weight_hh")}
    twin.load_parameters({**weights, "bias_ih_l0": layer.parameters["bias"], "bias_hh_l0": np.zeros(32)})
    x = draw(layer)["x"]
    y, _ = layer(x)
    want, _ = twin(np.moveaxis(x.reshape(BATCH, TIME, 2, 6), 3, 1).reshape(BATCH * 6, TIME, 2))
    got = np.moveaxis(y.reshape(BATCH, TIME, 8, 6), 3, 1).reshape(BATCH * 6, TIME, 8)
    assert relative_error(got, want) < 1e-6


@pytest.mark.parametrize("name", SHAPES)
def test_inference_is_training(name: str) -> None:
    layer = build(name, "float32")
    given = draw(layer)
    y, (h, c) = layer(given["x"], given["state"], LENGTHS)
    other, (other_h, other_c), _ = layer.forward(given["x"], given["state"], LENGTHS)
    for got, want in ((y, other), (h, other_h), (c, other_c)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["signal", "image", "strips"])
def test_a_ragged_batch_is_its_sequences(name: str, dtype: str) -> None:
    layer = build(name, dtype)
    given = draw(layer)
    together, total = everything(layer, given, LENGTHS), 0.0
    for b, length in enumerate(LENGTHS):
        alone = everything(
            layer,
            {
                "x": given["x"][b : b + 1, :length],
                "dy": given["dy"][b : b + 1, :length],
                "state": tuple(s[b : b + 1] for s in given["state"]),
                "dstate": tuple(s[b : b + 1] for s in given["dstate"]),
            },
        )
        for label in ("y", "dx"):
            np.testing.assert_array_equal(together[label][b, :length], alone[label][0])
            assert not together[label][b, length:].any()
        for label in ("h", "c", "dh", "dc"):
            np.testing.assert_array_equal(together[label][b], alone[label][0])
        total = total + alone["flat"].astype(np.float64)
    assert relative_error(together["flat"], np.asarray(total)) < (1e-6 if dtype == "float32" else 1e-14)


def test_padding_is_never_read() -> None:
    layer = build("image", "float32")
    given = draw(layer)
    want = everything(layer, given, LENGTHS)
    padding = np.arange(TIME) >= LENGTHS[:, None]
    given["x"][padding] = np.nan
    given["dy"][padding] = np.inf
    for label, value in everything(layer, given, LENGTHS).items():
        np.testing.assert_array_equal(value, want[label], err_msg=label)


@pytest.mark.parametrize("name", ["signal", "image", "no_input"])
def test_state_carries_a_sequence_on(name: str) -> None:
    layer = build(name, "float32")
    given = draw(layer)
    whole, last = layer(given["x"], given["state"])
    first, state = layer(given["x"][:, :1], given["state"])
    rest, state = layer(given["x"][:, 1:], state)
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=1), whole)
    for got, want in zip(state, last, strict=True):
        np.testing.assert_array_equal(got, want)


def test_missing_states_are_zero() -> None:
    layer = build("signal")
    given = draw(layer)
    zero = np.zeros((BATCH, 5, 7))
    np.testing.assert_array_equal(layer(given["x"])[0], layer(given["x"], (zero, zero))[0])
    c = given["state"][1]
    np.testing.assert_array_equal(layer(given["x"], (None, c))[0], layer(given["x"], (zero, c))[0])
    y, _, tape = layer.forward(given["x"])
    some = layer.backward(tape, None, (None, None))
    assert not any(value.any() for value in (some[0], *some[1], *some[2].values()))
    assert y.shape == (BATCH, TIME, 5, 7)


@pytest.mark.parametrize("batch", [3, 20])  # 20: more sequences than groups of gradients
def test_threads_do_not_change_a_bit(batch: int) -> None:
    layer = build("strips", "float32")
    given = draw(layer, batch)
    lengths = 1 + np.arange(batch) % TIME
    want = everything(layer, given, lengths)
    for layer.n_threads in (2, 3, 7):
        for label, value in everything(layer, given, lengths).items():
            np.testing.assert_array_equal(value, want[label], err_msg=label)


def test_tapes() -> None:
    layer, other = build("signal"), build("signal")
    given = draw(layer)
    _, _, tape = layer.forward(given["x"])
    assert tape.nbytes > 0
    with pytest.raises(ValueError, match="tape holds no forward call of this layer"):
        other.backward(tape, given["dy"])
    layer.backward(tape, given["dy"])
    with pytest.raises(ValueError, match="a tape serves one backward call"):
        layer.backward(tape, given["dy"])
    _, _, tape = layer.forward(given["x"])
    layer.parameters_changed()
    with pytest.raises(ValueError, match="the parameters changed after the forward call"):
        layer.backward(tape, given["dy"])


@pytest.mark.parametrize("name", SHAPES)
def test_configuration_and_pickle(name: str) -> None:
    layer = build(name)
    config = layer.get_config()
    assert ConvLSTM.from_config(json.loads(json.dumps(config))).get_config() == config
    again = pickle.loads(pickle.dumps(layer))
    x = draw(layer)["x"]
    assert again.n_threads == layer.n_threads
    np.testing.assert_array_equal(again(x)[0], layer(x)[0])


def small() -> ConvLSTM:
    return ConvLSTM(2, 3, 3, (4, 5))


X = np.ones((2, 6, 2, 4, 5))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ConvLSTM(-1, 3, 3, 8), "in_channels must be at least 1, got -1"),
        (lambda: ConvLSTM(2, 0, 3, 8), "hidden_channels must be at least 1"),
        (lambda: ConvLSTM(2, 3, 0, 8), "kernel_size must be at least 1"),
        (lambda: ConvLSTM(2, 3, 1.5, 8), "kernel_size must be an integer, got 1.5"),
        (lambda: ConvLSTM(2, 3, (3, 3), 8), "one for each of the 1 spatial axes"),
        (lambda: ConvLSTM(2, 3, 3, (4, 4, 4)), r"\(length,\) or \(height, width\), got \(4, 4, 4\)"),
        (lambda: ConvLSTM(2, 3, 3, (4, 0)), "spatial_shape must be at least 1"),
        (lambda: ConvLSTM(2, 3, 3, 8, dtype="int8"), "dtype must be 'float32' or 'float64'"),
        (lambda: ConvLSTM(2, 1 << 30, 1 << 30, 1 << 30), "no layer has these sizes"),
        (lambda: small()(X[0]), r"x has shape \(6, 2, 4, 5\); expected \(batch, time, 2, 4, 5\)"),
        (lambda: small()(X[..., :4]), r"x has shape \(2, 6, 2, 4, 4\); expected \(batch, time, 2, 4, 5\)"),
        (lambda: small()(X[:0]), "at least one sequence"),
        (lambda: small()(X[:, :0]), "at least one time step"),
        (lambda: small()(X.astype(complex)), "x must hold real numbers"),
        (lambda: small()(X, lengths=[7, 1]), r"lengths\[0\] is 7; expected 1 to 6"),
        (lambda: small()(X, lengths=[1]), r"lengths has shape \(1,\); expected \(2,\)"),
        (lambda: small()(X, X), r"state must be a tuple of arrays \(h, c\), got ndarray"),
        (lambda: small()(X, (None,)), "state has 1 arrays; expected 2: h, c"),
        (
            lambda: small()(X, (None, X)),
            r"state c has shape \(2, 6, 2, 4, 5\); expected \(2, 3, 4, 5\)",
        ),
        (lambda: small().backward(None, X), "tape holds no forward call"),  # type: ignore[arg-type]
        (lambda: ConvForecaster(0, 3, 3, 8), "in_channels must be at least 1"),
        (lambda: ConvForecaster(1, (), 3, 8), "at least one layer, got none"),
        (lambda: ConvForecaster(2, 3, 3, (4, 5))(X, 0), "horizon must be at least 1, got 0"),
        (lambda: ConvForecaster(2, 3, 3, (4, 5))(X, 2.0), "horizon must be an integer"),
        (lambda: ConvForecaster(2, 3, 3, (4, 5))(X[0], 2), r"expected \(batch, time, 2, 4, 5\)"),
    ],
    ids=str,
)
def test_bad_arguments(call: Any, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        call()


def test_bad_gradients() -> None:
    layer = small()
    _, _, tape = layer.forward(X)
    with pytest.raises(ValueError, match=r"dy has shape \(2, 6, 2, 4, 5\); expected \(2, 6, 3, 4, 5\)"):
        layer.backward(tape, X)
    net = ConvForecaster(2, 3, 3, (4, 5))
    frames, tape = net.forward(X, 2)
    with pytest.raises(ValueError, match=r"dframes has shape \(2, 1, 2, 4, 5\); expected \(2, 2, 2, 4, 5\)"):
        net.backward(tape, frames[:, :1])
    net.backward(tape, frames)
    with pytest.raises(ValueError, match="a tape serves one backward call"):
        net.backward(tape, frames)


# ---- the encoder-forecaster ----


def forecaster(**options: Any) -> ConvForecaster:
    return ConvForecaster(2, (3, 4), 3, (3, 4), dtype="float64", random_state=1, **options)


def test_forecaster_is_its_layers() -> None:
    net = forecaster(out_channels=1)
    x = np.random.default_rng(0).standard_normal((BATCH, TIME, 2, 3, 4))
    got = net(x, 2, LENGTHS)
    parameters = net.parameters
    layers = [
        ConvLSTM(channels, hidden, 3, (3, 4), dtype="float64")
        for channels, hidden in ((2, 3), (3, 4), (0, 3), (3, 4))
    ]
    for layer, prefix in zip(layers, ("encoder.0", "encoder.1", "forecaster.0", "forecaster.1"), strict=True):
        layer.load_parameters({name: parameters[f"{prefix}.{name}"] for name in layer.parameters})
    below, first = layers[0](x, None, LENGTHS)
    _, second = layers[1](below, None, LENGTHS)
    low, _ = layers[2](np.empty((BATCH, 2, 0, 3, 4)), first)
    high, _ = layers[3](low, second)
    want = np.einsum("oc,btcyx->btoyx", parameters["head.weight"], np.concatenate([low, high], axis=2))
    np.testing.assert_allclose(got, want + parameters["head.bias"][0], rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(net.forward(x, 2, LENGTHS)[0], got)


def test_forecaster_gradients_are_central_differences() -> None:
    net = ConvForecaster(1, (2, 3), 3, 4, out_channels=2, dtype="float64", random_state=1)
    rng = np.random.default_rng(2)
    x, dframes = rng.standard_normal((BATCH, TIME, 1, 4)), rng.standard_normal((BATCH, 3, 2, 4))
    _, tape = net.forward(x, 3, LENGTHS)
    dx = net.backward(tape, dframes)

    def loss() -> float:
        return float(np.sum(net(x, 3, LENGTHS) * dframes))

    for values, got in ((x, dx), (net.flat, net.flat_grads.copy())):
        assert relative_error(got, differences(values, loss)) < 1e-6


def test_forecaster_keeps_its_parameters_where_it_is_told() -> None:
    net = forecaster()
    x = np.random.default_rng(0).standard_normal((BATCH, TIME, 2, 3, 4))
    want = net(x, 2)
    flat, grads = np.zeros(net.n_parameters), np.zeros(net.n_parameters)
    net.bind(flat, grads)
    frames, tape = net.forward(x, 2)
    np.testing.assert_array_equal(frames, want)
    net.backward(tape, frames)
    assert all(value.any() for name, value in net._views(grads).items() if value.size), (
        "a gradient is missing"
    )
    flat[...] = 0.0
    assert not net(x, 2).any()


def test_forecaster_configuration_and_pickle() -> None:
    net = forecaster(out_channels=3, peephole=False)
    config = net.get_config()
    assert ConvForecaster.from_config(json.loads(json.dumps(config))).get_config() == config
    x = np.random.default_rng(0).standard_normal((BATCH, TIME, 2, 3, 4))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net))(x, 2), net(x, 2))


def moving_bars(rng: np.random.Generator, n: int, time: int, width: int) -> np.ndarray:
    """(n, time, 1, 4, width): a bar of full height that moves left or right by one pixel a step, or stays."""
    speed = rng.integers(-1, 2, n)
    low, high = np.where(speed < 0, time - 1, 0), np.where(speed > 0, width - time, width - 1)
    place = rng.integers(low, high + 1)[:, None] + speed[:, None] * np.arange(time)
    rows = (np.arange(width) == place[:, :, None]).astype(np.float32)
    return np.broadcast_to(rows[:, :, None, None, :], (n, time, 1, 4, width)).copy()


def test_forecaster_learns_where_bars_move() -> None:
    rng, known = np.random.default_rng(0), 4
    net, optimizer = ConvForecaster(1, (8,), 3, (4, 8), random_state=0), Adam()
    for _ in range(150):
        bars = moving_bars(rng, 8, 7, 8)
        frames, tape = net.forward(bars[:, :known], horizon=3)
        net.backward(tape, 2 * (frames - bars[:, known:]) / frames.size)
        clip_by_global_norm(net.flat_grads, 1.0)
        optimizer.step(net.flat, net.flat_grads, learning_rate=0.02)
        net.parameters_changed()
    held_out = moving_bars(np.random.default_rng(1), 64, 7, 8)
    wanted = held_out[:, known:]
    error = np.mean((net(held_out[:, :known], 3) - wanted) ** 2)
    repeated = np.mean((held_out[:, known - 1 : known] - wanted) ** 2)
    assert error < 0.02 * repeated
