"""Precisions of the products: what the weights become, how far results move, which bits stay."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.layers import LSTM, RNN
from fastlstm.layers.recurrent import CELLS
from fastlstm.streaming import LayerStream

SIZES = ((5, 33), (40, 530))  # the second: weights that no cache near the core holds
MATRICES = ("weight_ih", "weight_hh", "weight_gg")


def nearest_bfloat16(weights: np.ndarray) -> np.ndarray:
    bits = weights.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def int8_rows(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and the scale of each row, float32."""
    scale = (np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
    return np.rint(weights / scale), scale


def batch(n: int, steps: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, steps + 1, n)
    lengths[0] = steps
    return rng.standard_normal((n, steps, size)).astype(np.float32), lengths


def rounded_twin(layer: LSTM) -> LSTM:
    """Layer of precision float32 whose weight matrices are rounded."""
    twin = LSTM.from_config({**layer.get_config(), "precision": "float32"})
    twin.load_parameters(
        {k: nearest_bfloat16(v) if k.startswith(MATRICES) else v for k, v in layer.parameters.items()}
    )
    return twin


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_is_float32_with_rounded_weights(cell: str) -> None:
    layer = LSTM(*SIZES[0], 2, cell=cell, precision="bfloat16", batch_invariant=True, random_state=0)
    x, lengths = batch(6, 9, SIZES[0][0])
    twin = rounded_twin(layer)
    for n in (1, 3, 6):
        y, state = layer(x[:n], lengths=lengths[:n])
        wanted, last = twin(x[:n], lengths=lengths[:n])
        np.testing.assert_array_equal(y, wanted)
        for got, want in zip(state, last, strict=True):
            np.testing.assert_array_equal(got, want)
    y, _, tape = layer.forward(x, lengths=lengths)
    wanted, _, twin_tape = twin.forward(x, lengths=lengths)
    np.testing.assert_array_equal(y, wanted)
    _, _, grads = layer.backward(tape, y)
    _, _, wanted_grads = twin.backward(twin_tape, y)
    for name, value in grads.items():
        np.testing.assert_array_equal(value, wanted_grads[name], err_msg=name)


@pytest.mark.parametrize("cell", ["lstm", "gru", "peephole", "tlstm"])
def test_bfloat16_weights_in_memory_give_the_same_bits(cell: str) -> None:
    layer = LSTM(*SIZES[1], cell=cell, precision="bfloat16", batch_invariant=True, random_state=0)
    x, lengths = batch(6, 5, SIZES[1][0])
    wanted, _ = rounded_twin(layer)(x, lengths=lengths)
    for b in range(6):
        y, _ = layer(x[b : b + 1], lengths=lengths[b : b + 1])
        np.testing.assert_array_equal(y[0], wanted[b])


def lstm_with_int8(layer: LSTM, x: np.ndarray) -> np.ndarray:
    """Output (T, hidden) of one sequence: whole numbers multiplied exactly, everything else float64."""
    p, size = layer.parameters, layer.hidden_size
    (w, w_scale), (u, u_scale) = int8_rows(p["weight_ih_l0"]), int8_rows(p["weight_hh_l0"])
    bias = (p["bias_ih_l0"] + p["bias_hh_l0"]).astype(np.float64)

    def product(rows: np.ndarray, scale: np.ndarray, values: np.ndarray) -> np.ndarray:
        limit = min(32767, (2**31 - 1) // (127 * len(values)))
        largest = np.abs(values.astype(np.float32)).max()
        if largest == 0:
            return np.zeros(len(rows))
        whole = np.rint(values.astype(np.float32) * np.float32(limit / largest))
        return (rows @ whole) * scale[:, 0].astype(np.float64) * float(largest / np.float32(limit))

    h, c, outputs = np.zeros(size), np.zeros(size), []
    for x_t in x:
        gates = bias + product(w, w_scale, x_t) + product(u, u_scale, h)
        i, f, g, o = gates.reshape(4, size)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize("sizes", SIZES)
def test_int8_against_whole_numbers(sizes: tuple[int, int]) -> None:
    layer = LSTM(*sizes, precision="int8", random_state=0)
    x, _ = batch(1, 12, sizes[0])
    y, _ = layer(x)
    # h in int16 may round the other way where float32 and float64 differ in the last bit
    np.testing.assert_allclose(y[0], lstm_with_int8(layer, x[0]), atol=2e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_int8_stays_near_and_streams_the_same_bits(cell: str) -> None:
    layer = LSTM(13, 65, 2, cell=cell, precision="int8", random_state=0)
    exact = LSTM.from_config({**layer.get_config(), "precision": "float32"})
    exact.load_parameters(layer.parameters)
    x, lengths = batch(20, 11, 13)
    y, _ = layer(x, lengths=lengths)
    wanted, _ = exact(x, lengths=lengths)
    assert np.abs(y - wanted).max() < 0.02 * max(1.0, np.abs(wanted).max())
    assert np.abs(y - wanted).max() > 1e-6  # it is another computation
    longest = int(lengths.argmax())
    stream = LayerStream(layer)
    for t in range(int(lengths[longest])):
        y_t = stream.step(x[longest : longest + 1, t])
        np.testing.assert_array_equal(y_t[0], y[longest, t])


@pytest.mark.parametrize("precision", ["float32", "high", "bfloat16", "int8"])
def test_bits_do_not_depend_on_threads(precision: str) -> None:
    layer = LSTM(40, 300, 2, precision=precision, random_state=0)
    x, lengths = batch(17, 70, 40)  # enough steps of one sequence for x W on tiles
    found = []
    for n in (1, 17):
        for threads in (1, 2, 7):
            layer.n_threads = threads
            found.append(layer(x[:n], lengths=lengths[:n])[0])
    for got in found[1:3]:
        np.testing.assert_array_equal(got, found[0])
    for got in found[4:]:
        np.testing.assert_array_equal(got, found[3])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("precision", ["float32", "high", "bfloat16"])
@pytest.mark.parametrize(("n", "time", "sizes"), [(9, 16, (64, 104)), (33, 2, (20, 270))])
def test_bits_of_gradients_do_not_depend_on_threads(
    n: int, time: int, sizes: tuple[int, int], precision: str, bidirectional: bool
) -> None:
    """x W of a few sequences, of which a thread has some; and gate gradients of more than 1,024 columns."""
    layer = LSTM(*sizes, bidirectional=bidirectional, precision=precision, random_state=0)
    x, lengths = batch(n, time, sizes[0])
    lengths[4:] = time  # runs of steps of as many sequences
    found = []
    for threads in (1, 2, 7):
        layer.n_threads = threads
        y, _, tape = layer.forward(x, lengths=lengths)
        _, _, grads = layer.backward(tape, y)
        found.append([layer(x, lengths=lengths)[0], y, *grads.values()])
    for others in found[1:]:
        for got, want in zip(others, found[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("precision", ["float32", "high", "bfloat16"])
def test_batch_invariant_streams_give_the_bits_of_batches(precision: str) -> None:
    layer = LSTM(20, 70, 2, precision=precision, batch_invariant=True, random_state=0)
    x, _ = batch(33, 8, 20)
    y, _ = layer(x)
    one, many = LayerStream(layer), LayerStream(layer, 33)
    for t in range(8):
        np.testing.assert_array_equal(one.step(x[:1, t])[0], y[0, t])
        np.testing.assert_array_equal(many.step(x[:, t]), y[:, t])


@pytest.mark.parametrize(("n", "time"), [(1, 90), (5, 60), (12, 20), (40, 20)])
@pytest.mark.parametrize(("precision", "worst"), [("float32", 2e-6), ("high", 2e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("sizes", [(16, 32), (64, 128), (30, 257)])
def test_error_against_float64(
    n: int, time: int, precision: str, worst: float, sizes: tuple[int, int]
) -> None:
    layer = LSTM(*sizes, precision=precision, random_state=1)
    exact = LSTM(*sizes, dtype="float64", random_state=1)
    exact.load_parameters(layer.parameters)
    plain = LSTM(*sizes, batch_invariant=True, random_state=1)
    plain.load_parameters(layer.parameters)
    x, lengths = batch(n, time, sizes[0])
    wanted, _, exact_tape = exact.forward(x, lengths=lengths)
    y, _, tape = layer.forward(x, lengths=lengths)
    one_chain, _ = plain(x, lengths=lengths)
    error = np.abs(y - wanted).max()
    assert error < worst
    if precision == "float32":  # as good as one chain of float32 multiply-adds, or better
        assert np.square(y - wanted).mean() <= 1.05 * np.square(one_chain - wanted).mean() + 1e-20
    _, _, grads = layer.backward(tape, wanted)
    _, _, exact_grads = exact.backward(exact_tape, wanted)
    for name, value in exact_grads.items():
        assert np.abs(grads[name] - value).max() < 3 * worst * np.abs(value).max(), name


def test_int8_sums_stay_in_32_bits() -> None:
    layer = RNN(4096, 8, nonlinearity="relu", bias=False, precision="int8", random_state=0)
    layer.load_parameters({"weight_ih_l0": np.ones((8, 4096)), "weight_hh_l0": np.eye(8)})
    y, _ = layer(np.full((1, 1, 4096), 3.0))
    np.testing.assert_allclose(y, 3.0 * 4096, rtol=1e-6)


def test_int8_of_nothing_and_of_huge_values() -> None:
    layer = LSTM(6, 10, precision="int8", random_state=0)
    layer.load_parameters({**layer.parameters, "weight_ih_l0": np.zeros((40, 6))})
    y, _ = layer(np.full((1, 2, 6), 1e30))
    wanted, _ = layer(np.zeros((1, 2, 6)))
    np.testing.assert_array_equal(y, wanted)
    assert np.isnan(layer(np.full((1, 1, 6), np.inf))[0]).all()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of 'float32', 'high', 'bfloat16', 'int8'"):
        LSTM(3, 4, precision="float16")
    with pytest.raises(ValueError, match="precision 'high' goes with dtype 'float32'"):
        LSTM(3, 4, precision="high", dtype="float64")
    layer = LSTM(3, 4, precision="int8")
    y, _, tape = layer.forward(np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="precision 'int8' is for inference"):
        layer.backward(tape, y)


def test_config_round_trip() -> None:
    layer = LSTM(3, 4, precision="high", batch_invariant=True)
    config = LSTM.from_config(layer.get_config()).get_config()
    assert (config["precision"], config["batch_invariant"]) == ("high", True)


def test_weights_that_are_not_finite_show_with_int8() -> None:
    layer = LSTM(5, 9, precision="int8", random_state=0)
    for wrong in (np.nan, np.inf):
        weights = {**layer.parameters, "weight_ih_l0": np.full((36, 5), wrong, np.float32)}
        layer.load_parameters(weights)
        assert not np.isfinite(layer(np.ones((2, 3, 5), np.float32))[0]).any()
