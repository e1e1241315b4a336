"""Bad input to a recurrent layer is a Python exception with a sentence, never a crash."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import Case, build_layer

from fastlstm import layers
from fastlstm.streaming import LayerStream

BATCH, TIME, WIDTH, HIDDEN = 3, 4, 2, 5
CASE = Case("errors", input_size=WIDTH, hidden_size=HIDDEN, num_layers=2)
X = np.ones((BATCH, TIME, WIDTH), np.float32)
STATE = np.zeros((2, BATCH, HIDDEN), np.float32)


def assert_sentence(action: Callable[[], Any], *words: str) -> None:
    """`action` raises ValueError or TypeError whose message is a sentence with all of `words`."""
    with pytest.raises((ValueError, TypeError)) as caught:
        action()
    message = str(caught.value)
    assert len(message.split()) >= 4, message
    for word in words:
        assert word.lower() in message.lower(), message


BAD_X = {
    "scalar": (np.float32(1.0), "expected (batch, time, 2)"),
    "one_dimension": (np.ones(4), "expected (batch, time, 2)"),
    "two_dimensions": (np.ones((BATCH, WIDTH)), "expected (batch, time, 2)"),
    "four_dimensions": (np.ones((1, BATCH, TIME, WIDTH)), "expected (batch, time, 2)"),
    "too_narrow": (np.ones((BATCH, TIME, WIDTH - 1)), "2"),
    "too_wide": (np.ones((BATCH, TIME, WIDTH + 1)), "2"),
    "no_features": (np.ones((BATCH, TIME, 0)), "2"),
    "no_sequences": (np.ones((0, TIME, WIDTH)), "sequence"),
    "no_steps": (np.ones((BATCH, 0, WIDTH)), "step"),
    "complex": (X + 1j, "complex"),
    "strings": (np.full((BATCH, TIME, WIDTH), "a"), "x"),
    "objects": (np.full((BATCH, TIME, WIDTH), object()), "x"),
    "ragged_list": ([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], "shape"),
    "none": (None, "x"),
}


@pytest.mark.parametrize("call", ["__call__", "forward"])
@pytest.mark.parametrize("bad", BAD_X)
def test_bad_x(bad: str, call: str) -> None:
    x, word = BAD_X[bad]
    assert_sentence(lambda: getattr(build_layer(CASE, "float32"), call)(x), word)


BAD_LENGTHS = {
    "zero": [4, 0, 1],
    "negative": [4, -1, 1],
    "all_zero": [0, 0, 0],
    "beyond_time": [4, 5, 1],
    "too_few": [4, 1],
    "too_many": [4, 1, 2, 3],
    "none_at_all": [],
    "float": [4.0, 1.0, 2.0],
    "fraction": [4.0, 1.5, 2.0],
    "not_a_number": [4.0, np.nan, 2.0],
    "two_dimensions": [[4, 1, 2]],
    "scalar": 4,
    "strings": ["4", "1", "2"],
    "bool": [True, True, True],
    "wraps_around": np.array([4, 2**63 + 1, 1], np.uint64),
    "huge": [4, 2**62, 1],
}


@pytest.mark.parametrize("call", ["__call__", "forward"])
@pytest.mark.parametrize("bad", BAD_LENGTHS)
def test_bad_lengths(bad: str, call: str) -> None:
    layer = build_layer(CASE, "float32")
    assert_sentence(lambda: getattr(layer, call)(X, lengths=BAD_LENGTHS[bad]), "lengths")


BAD_STATES = {
    "wrong_batch": (STATE[:, :2], STATE),
    "wrong_hidden": (STATE, STATE[..., :4]),
    "wrong_layers": (STATE[:1], STATE[:1]),
    "two_dimensions": (STATE[0], STATE[0]),
    "one_of_two": (STATE,),
    "three": (STATE, STATE, STATE),
    "h_alone": STATE,
    "complex": (STATE + 1j, STATE),
    "number": 3.0,
    "strings": ("h", "c"),
}


@pytest.mark.parametrize("bad", BAD_STATES)
def test_bad_state(bad: str) -> None:
    layer = build_layer(CASE, "float32")
    assert_sentence(lambda: layer(X, BAD_STATES[bad]), "state")
    assert_sentence(lambda: layer.forward(X, BAD_STATES[bad]), "state")
    _, _, tape = layer.forward(X)
    assert_sentence(lambda: layer.backward(tape, np.ones((BATCH, TIME, HIDDEN)), BAD_STATES[bad]), "state")


BAD_DY = {
    "two_dimensions": np.ones((BATCH, HIDDEN)),
    "wrong_batch": np.ones((BATCH + 1, TIME, HIDDEN)),
    "wrong_time": np.ones((BATCH, TIME + 1, HIDDEN)),
    "wrong_width": np.ones((BATCH, TIME, HIDDEN + 1)),
    "complex": np.ones((BATCH, TIME, HIDDEN), complex),
}


@pytest.mark.parametrize("bad", BAD_DY)
def test_bad_dy(bad: str) -> None:
    layer = build_layer(CASE, "float32")
    _, _, tape = layer.forward(X)
    assert_sentence(lambda: layer.backward(tape, BAD_DY[bad]), "dy")


def test_a_tape_of_another_layer_or_no_tape() -> None:
    layer, other = (
        build_layer(CASE, "float32"),
        build_layer(Case("other", input_size=3, hidden_size=7), "float32"),
    )
    _, _, tape = other.forward(np.ones((1, 2, 3)))
    assert_sentence(lambda: layer.backward(tape, np.ones((BATCH, TIME, HIDDEN))), "tape")
    assert_sentence(lambda: layer.backward(None, np.ones((BATCH, TIME, HIDDEN))), "tape")


def test_a_tape_serves_one_backward_call() -> None:
    layer = build_layer(CASE, "float32")
    _, _, tape = layer.forward(X)
    layer.backward(tape, np.ones((BATCH, TIME, HIDDEN)))
    assert_sentence(lambda: layer.backward(tape, np.ones((BATCH, TIME, HIDDEN))), "tape")


BAD_CONSTRUCTION: dict[str, tuple[dict[str, Any], str]] = {
    "no_inputs": ({"input_size": 0}, "input_size"),
    "negative_inputs": ({"input_size": -3}, "input_size"),
    "no_units": ({"hidden_size": 0}, "hidden_size"),
    "negative_units": ({"hidden_size": -1}, "hidden_size"),
    "float_units": ({"hidden_size": 2.5}, "hidden_size"),
    "text_units": ({"hidden_size": "8"}, "hidden_size"),
    "none_units": ({"hidden_size": None}, "hidden_size"),
    "no_layers": ({"num_layers": 0}, "num_layers"),
    "negative_layers": ({"num_layers": -1}, "num_layers"),
    "float_layers": ({"num_layers": 1.0}, "num_layers"),
    "unknown_cell": ({"cell": "transformer"}, "cell"),
    "unknown_dtype": ({"dtype": "float16"}, "dtype"),
    "negative_dropout": ({"dropout": -0.1}, "dropout"),
    "all_dropout": ({"dropout": 1.5}, "dropout"),
    "nan_dropout": ({"dropout": float("nan")}, "dropout"),
}


@pytest.mark.parametrize("bad", BAD_CONSTRUCTION)
def test_bad_construction(bad: str) -> None:
    arguments, word = BAD_CONSTRUCTION[bad]
    assert_sentence(lambda: layers.LSTM(**{"input_size": 2, "hidden_size": 3, **arguments}), word)


@pytest.mark.parametrize(
    "sizes", [(2**31, 2**31), (1, 2**31), (2**62, 1), (2**40, 2**40), (1, 2**63), (2**70, 2**70)], ids=str
)
def test_sizes_whose_product_overflows(sizes: tuple[int, int]) -> None:
    """Checked products, so an exception comes before any allocation."""
    with pytest.raises((ValueError, MemoryError, OverflowError)) as caught:
        layers.LSTM(*sizes)
    assert len(str(caught.value).split()) >= 4, repr(caught.value)


def good_parameters() -> dict[str, np.ndarray]:
    return {name: np.array(p) for name, p in build_layer(CASE, "float32").parameters.items()}


def test_bad_parameters() -> None:
    layer = build_layer(CASE, "float32")
    before = good_parameters()
    wrong_shape = {**good_parameters(), "weight_hh_l1": np.ones((3, 3))}
    missing = {name: p for name, p in good_parameters().items() if name != "bias_ih_l0"}
    unknown = {**good_parameters(), "weight_ih_l7": np.ones(3)}
    assert_sentence(lambda: layer.load_parameters(wrong_shape), "weight_hh_l1")
    assert_sentence(lambda: layer.load_parameters(missing), "bias_ih_l0")
    assert_sentence(lambda: layer.load_parameters(unknown), "weight_ih_l7")
    assert_sentence(
        lambda: layer.load_parameters({**good_parameters(), "bias_ih_l0": np.full(20, 1j)}), "bias_ih_l0"
    )
    for name, parameter in layer.parameters.items():
        np.testing.assert_array_equal(parameter, before[name], "a refused load changes nothing")


def test_a_partial_load_is_allowed_when_not_strict() -> None:
    layer = build_layer(CASE, "float32")
    layer.load_parameters({"bias_ih_l0": np.full(20, 2.0), "unknown": np.ones(3)}, strict=False)
    assert (layer.parameters["bias_ih_l0"] == 2.0).all()


def test_a_failed_call_leaves_the_layer_usable() -> None:
    layer = build_layer(CASE, "float32")
    want, _ = layer(X)
    for bad in (np.ones((1, 1, 9)), np.ones((0, TIME, WIDTH))):
        with pytest.raises(ValueError):
            layer(bad)
    np.testing.assert_array_equal(layer(X)[0], want)


def test_a_layer_shows_what_it_was_made_with() -> None:
    assert (
        repr(layers.LSTM(3, 5, bidirectional=True)) == "LSTM(input_size=3, hidden_size=5, bidirectional=True)"
    )
    assert repr(layers.GRU(3, 5)) == "GRU(input_size=3, hidden_size=5, cell='gru')"
    assert repr(layers.Dense(4, 2)) == "Dense(in_features=4, out_features=2)"


def test_layers_with_a_cell_of_their_own_take_no_other() -> None:
    for kind in (layers.GRU, layers.RNN):
        with pytest.raises(TypeError, match="has a cell of its own"):
            kind(3, 5, cell="lstm")


def test_what_a_stream_cannot_write_to_and_cannot_become() -> None:
    stream = LayerStream(layers.LSTM(WIDTH, HIDDEN), 2)
    x, fixed = np.ones((2, WIDTH), np.float32), np.zeros((2, HIDDEN), np.float32)
    fixed.flags.writeable = False
    for out in (fixed, np.zeros((HIDDEN, 2), np.float32).T, np.zeros((HIDDEN, 2), np.float32), 5):
        with pytest.raises(ValueError, match="out must be a writable, C-contiguous, aligned float32 array"):
            stream.step(x, out)
    unaligned = np.zeros(4 * HIDDEN * 2 + 1, np.uint8)[1:].view(np.float32).reshape(2, HIDDEN)
    with pytest.raises(ValueError, match="aligned"):
        stream.step(x, unaligned)
    with pytest.raises(ValueError, match="x_t has shape"):
        stream.step(np.ones((WIDTH, 2, 1), np.float32))
    with pytest.raises(TypeError, match="snapshot"):
        copy.deepcopy(stream)
