"""What must hold for every shape: padding, order, carried state, batch size, input layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from cases import Case, Problem, as_tuple, make_problem
from hypothesis import given
from hypothesis import strategies as st

from fastlstm.layers import LSTM
from fastlstm.layers._parameters import as_real_array

DTYPES = ("float32", "float64")


@st.composite
def problems(draw: Any, **fixed: Any) -> Problem:
    """A small random problem; `fixed` pins fields of its case."""
    fields = {
        "cell": draw(st.sampled_from(["lstm", "rnn"])),
        "input_size": draw(st.integers(1, 20) | st.sampled_from([40, 100])),  # hoisted for few sequences
        "hidden_size": draw(st.integers(1, 35)),
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "batch": draw(st.integers(1, 14)),
        "time": draw(st.integers(1, 9)),
        "ragged": draw(st.booleans()),
        "with_state": draw(st.booleans()),
    }
    return make_problem(Case("drawn", **{**fields, **fixed}), seed=draw(st.integers(0, 1000)))


def real(array: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The real steps of each sequence of a padded array."""
    return [array[b, :length] for b, length in enumerate(lengths)]


def padded(problem: Problem, array: np.ndarray, extra: int, fill: float) -> np.ndarray:
    """`array` with `extra` more steps and every padded step holding `fill`."""
    batch, time, width = array.shape
    out = np.full((batch, time + extra, width), fill)
    for b, length in enumerate(problem.real_lengths):
        out[b, :length] = array[b, :length]
    return out


def run_all(layer: Any, problem: Problem, x: Any, dy: Any, lengths: Any) -> dict[str, np.ndarray]:
    """Forward and backward; dict of copies."""
    y, final, tape = layer.forward(x, problem.state, lengths)
    dx, initial, grads = layer.backward(tape, dy, problem.dstate)
    results = cases.collect(y, as_tuple(final), dx, as_tuple(initial), grads)
    return {name: np.array(array) for name, array in results.items()}


def assert_same_bits(got: np.ndarray, want: np.ndarray, what: str = "") -> None:
    assert got.dtype == want.dtype, what
    assert got.shape == want.shape, what
    assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(want).tobytes(), what


@given(problem=problems(ragged=True), dtype=st.sampled_from(DTYPES), extra=st.integers(0, 5))
def test_padding_content_and_amount_never_matter(problem: Problem, dtype: str, extra: int) -> None:
    layer = cases.build_layer(problem.case, dtype, problem.parameters)
    lengths = problem.real_lengths
    plain = run_all(layer, problem, problem.x, problem.dy, lengths)
    x, dy = padded(problem, problem.x, extra, np.nan), padded(problem, problem.dy, extra, np.nan)
    filled = run_all(layer, problem, x, dy, lengths)
    for name, want in plain.items():
        if name in ("y", "d_x"):
            for a, b in zip(real(filled[name], lengths), real(want, lengths), strict=True):
                assert_same_bits(a, b, name)
            for row, length in enumerate(lengths):
                assert not np.any(filled[name][row, length:]), f"{name} is 0 in the padding"
        else:
            assert_same_bits(filled[name], want, name)


@given(problem=problems(), dtype=st.sampled_from(DTYPES), data=st.data())
def test_order_of_sequences_never_matters(problem: Problem, dtype: str, data: Any) -> None:
    order = np.array(data.draw(st.permutations(range(problem.case.batch))))
    layer = cases.build_layer(problem.case, dtype, problem.parameters)
    y, final, tape = layer.forward(problem.x, problem.state, problem.real_lengths)
    dx, initial, grads = layer.backward(tape, problem.dy, problem.dstate)
    grads = {name: np.array(grad) for name, grad in grads.items()}
    state = None if problem.state is None else tuple(s[:, order] for s in problem.state)
    got = layer.forward(problem.x[order], state, problem.real_lengths[order])
    d_got = layer.backward(got[2], problem.dy[order], tuple(s[:, order] for s in problem.dstate))
    assert_same_bits(got[0], y[order])
    assert_same_bits(d_got[0], dx[order])
    for a, b in zip(
        (*as_tuple(got[1]), *as_tuple(d_got[1])), (*as_tuple(final), *as_tuple(initial)), strict=True
    ):
        assert_same_bits(a, b[:, order])
    for name, grad in d_got[2].items():
        assert cases.relative_error(grad, grads[name]) < (2e-6 if dtype == "float32" else 1e-14), name


@given(
    problem=problems(bidirectional=False, ragged=False),
    dtype=st.sampled_from(DTYPES),
    cuts=st.sets(st.integers(1, 8)),
)
def test_one_call_is_the_calls_over_its_pieces(problem: Problem, dtype: str, cuts: set[int]) -> None:
    layer = cases.build_layer(problem.case, dtype, problem.parameters)
    y, final = layer(problem.x, problem.state)
    edges = [0, *sorted(cut for cut in cuts if cut < problem.case.time), problem.case.time]
    state, outputs = problem.state, []
    for begin, end in itertools.pairwise(edges):
        out, state = layer(problem.x[:, begin:end], state)
        outputs.append(out)
    assert_same_bits(np.concatenate(outputs, axis=1), y)
    for a, b in zip(as_tuple(state), as_tuple(final), strict=True):
        assert_same_bits(a, b)


@given(problem=problems(), dtype=st.sampled_from(DTYPES))
def test_a_batch_is_its_single_sequences(problem: Problem, dtype: str) -> None:
    """Batch invariance: each output has one order of accumulation, whatever runs beside it."""
    layer = cases.build_layer(problem.case, dtype, problem.parameters)
    y, final, tape = layer.forward(problem.x, problem.state, problem.lengths)
    dx, initial, _ = layer.backward(tape, problem.dy, problem.dstate)
    for b, length in enumerate(problem.real_lengths):
        row = slice(b, b + 1)
        state = None if problem.state is None else tuple(s[:, row] for s in problem.state)
        got = layer.forward(problem.x[row, :length], state)
        d_got = layer.backward(got[2], problem.dy[row, :length], tuple(s[:, row] for s in problem.dstate))
        assert_same_bits(got[0], y[row, :length])
        assert_same_bits(d_got[0], dx[row, :length])
        singles = (*as_tuple(got[1]), *as_tuple(d_got[1]))
        for a, whole in zip(singles, (*as_tuple(final), *as_tuple(initial)), strict=True):
            assert_same_bits(a, whole[:, row])


@pytest.mark.parametrize("cell, hidden", [("lstm", 520), ("peephole", 516), ("gru", 640)])
def test_weights_of_many_megabytes_change_no_bit_of_a_batch(cell: str, hidden: int) -> None:
    """More than a group of rows, a depth that is no multiple of anything, 4 MiB and more of weights."""
    layer = LSTM(50, hidden, cell=cell, batch_invariant=True, random_state=0)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((100, 2, 50)), rng.standard_normal((100, 2, hidden))
    y, _, tape = layer.forward(x)
    dx, _, _ = layer.backward(tape, dy)
    assert_same_bits(layer(x)[0], y, "without a tape")
    for rows in (slice(0, 1), slice(48, 51), slice(99, 100)):
        y_alone, _, tape = layer.forward(x[rows])
        dx_alone, _, _ = layer.backward(tape, dy[rows])
        assert_same_bits(y_alone, y[rows], "y")
        assert_same_bits(dx_alone, dx[rows], "dx")


@given(problem=problems(bidirectional=True, num_layers=1))
def test_the_reverse_direction_is_the_forward_one_on_reversed_sequences(problem: Problem) -> None:
    case, hidden = problem.case, problem.case.hidden_size
    y, final = cases.build_layer(case, "float32", problem.parameters)(
        problem.x, problem.state, problem.lengths
    )
    one_way = Case("one_way", case.cell, case.input_size, hidden, bias=case.bias)
    reverse = {n.removesuffix("_reverse"): p for n, p in problem.parameters.items() if n.endswith("_reverse")}
    layer = cases.build_layer(one_way, "float32", reverse)
    for b, length in enumerate(problem.real_lengths):
        state = None if problem.state is None else tuple(s[1:, b : b + 1] for s in problem.state)
        got, got_final = layer(problem.x[b : b + 1, :length][:, ::-1], state)
        assert_same_bits(got[0, ::-1], y[b, :length, hidden:])
        for a, whole in zip(as_tuple(got_final), as_tuple(final), strict=True):
            assert_same_bits(a[0, 0], whole[1, b])


@given(problem=problems(), dtype=st.sampled_from(DTYPES))
def test_final_state_is_the_output_of_the_last_real_step(problem: Problem, dtype: str) -> None:
    case, hidden = problem.case, problem.case.hidden_size
    y, final = cases.build_layer(case, dtype, problem.parameters)(problem.x, problem.state, problem.lengths)
    h = as_tuple(final)[0]
    for b, length in enumerate(problem.real_lengths):
        assert_same_bits(h[-case.shape.directions, b], y[b, length - 1, :hidden])
        if case.bidirectional:
            assert_same_bits(h[-1, b], y[b, 0, hidden:])


def misaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: np.ndarray) -> np.ndarray:
    view = x.copy()
    view.flags.writeable = False
    return view


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "read_only": read_only,
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=2)[::2, :, ::3],
    "time_major_view": lambda x: np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2),
    "negative_strides": lambda x: x[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "byte_swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "byte_swapped_float64": lambda x: x.astype(">f8"),
    "misaligned": misaligned,
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "longdouble": lambda x: x.astype(np.longdouble),
    "int8": lambda x: x.astype(np.int8),
    "int64": lambda x: x.astype(np.int64),
    "nested_list": lambda x: x.tolist(),
    "subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_types_give_the_numbers_of_the_contiguous_copy(layout: str, dtype: str) -> None:
    """Small integers, so that every type holds them exactly; nothing given is written."""
    problem = make_problem(Case("layouts", input_size=6, hidden_size=9, bidirectional=True, batch=5, time=7))
    rng = np.random.default_rng(0)
    whole = [rng.integers(-3, 4, a.shape).astype(dtype) for a in (problem.x, problem.dy, *problem.dstate)]
    given_arrays = [LAYOUTS[layout](array) for array in whole]
    before = [np.array(array) for array in given_arrays]

    def results(x: Any, dy: Any, h: Any, c: Any) -> dict[str, np.ndarray]:
        layer = cases.build_layer(problem.case, dtype, problem.parameters)
        y, final, tape = layer.forward(x, (h, c), [7, 1, 3, 7, 2])
        dx, initial, grads = layer.backward(tape, dy, (h, c))
        called, _ = layer(x, (h, c), [7, 1, 3, 7, 2])
        return {"called": called, **cases.collect(y, final, dx, initial, grads)}

    got, want = results(*given_arrays), results(*whole)
    for name in want:
        assert_same_bits(got[name], want[name], name)
    for array, copy in zip(given_arrays, before, strict=True):
        np.testing.assert_array_equal(np.array(array), copy)


def test_kernels_get_aligned_memory() -> None:
    """A view one byte off is copied: C may not load a float from an odd address."""
    layer = cases.build_layer(Case("aligned", input_size=4, hidden_size=3), "float64")
    x = misaligned(np.ones((2, 3, 4)))
    assert as_real_array(x, layer.dtype, "x").flags.aligned
    np.testing.assert_array_equal(layer(x)[0], layer(np.ones((2, 3, 4)))[0])


def test_zero_stride_and_memory_mapped_inputs(tmp_path: Path) -> None:
    layer = cases.build_layer(Case("layouts", input_size=4, hidden_size=9), "float32")
    row = np.arange(4, dtype=np.float32)
    broadcast = np.broadcast_to(row, (3, 5, 4))
    want, _ = layer(np.ascontiguousarray(broadcast))
    assert_same_bits(layer(broadcast)[0], want)
    np.save(tmp_path / "x.npy", broadcast)
    assert_same_bits(layer(np.load(tmp_path / "x.npy", mmap_mode="r"))[0], want)


@pytest.mark.parametrize("kind", [list, tuple, np.int8, np.uint16, np.int32, np.uint64, ">i4"])
def test_lengths_of_any_integer_type(kind: Any) -> None:
    layer = cases.build_layer(Case("lengths", input_size=2, hidden_size=3), "float32")
    x, lengths = np.ones((3, 4, 2), np.float32), np.array([4, 1, 3])
    converted = kind(lengths.tolist()) if kind in (list, tuple) else lengths.astype(kind)
    assert_same_bits(layer(x, lengths=converted)[0], layer(x, lengths=lengths)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_sequence_and_after_its_step(dtype: str) -> None:
    problem = make_problem(cases.by_name("stacked"))
    layer = cases.build_layer(problem.case, dtype, problem.parameters)
    y, _ = layer(problem.x, problem.state)
    poisoned = problem.x.copy()
    poisoned[2, 3, 0] = np.nan
    got, _ = layer(poisoned, problem.state)
    assert np.isnan(got[2, 3:]).all()
    assert_same_bits(got[2, :3], y[2, :3])
    assert_same_bits(np.delete(got, 2, axis=0), np.delete(y, 2, axis=0))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38])
def test_huge_inputs_do_not_crash(value: float) -> None:
    layer = cases.build_layer(Case("huge", input_size=2, hidden_size=20), "float32")
    x = np.full((2, 3, 2), value, np.float32)
    y, _, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    assert y.shape == (2, 3, 20)


def test_a_later_call_leaves_earlier_results_alone() -> None:
    problem = make_problem(cases.by_name("deep_both_ways"))
    layer = cases.build_layer(problem.case, "float32", problem.parameters)
    first = layer.forward(problem.x, problem.state, problem.lengths)
    d_first = layer.backward(first[2], problem.dy, problem.dstate)
    kept = [first[0], *as_tuple(first[1]), d_first[0], *as_tuple(d_first[1]), *d_first[2].values()]
    copies = [np.array(array) for array in kept]
    layer(problem.x + 1, problem.state, problem.lengths)
    again = layer.forward(problem.x * 2, problem.state, problem.lengths)
    layer.backward(again[2], problem.dy * 2, problem.dstate)
    for array, copy in zip(kept, copies, strict=True):
        assert_same_bits(np.asarray(array), copy)


def test_the_caller_keeps_its_floating_point_state() -> None:
    """Denormals are flushed inside the library only, and no error is left for numpy to see."""
    layer = cases.build_layer(Case("denormal", input_size=2, hidden_size=9), "float32")
    with np.errstate(all="raise", under="ignore"):
        y, _, tape = layer.forward(np.full((2, 50, 2), 1e-40, np.float32))
        layer.backward(tape, np.full_like(y, 1e-38))
        assert np.array([1e-40], np.float32) * np.float32(0.5) > 0


def test_loading_parameters_takes_effect_in_the_next_call() -> None:
    first, second = make_problem(cases.by_name("stacked")), make_problem(cases.by_name("stacked"), seed=1)
    layer = cases.build_layer(first.case, "float32", first.parameters)
    layer(first.x, first.state)
    _, _, tape = layer.forward(first.x, first.state)
    layer.backward(tape, first.dy)
    layer.load_parameters(second.parameters)
    want = cases.build_layer(first.case, "float32", second.parameters)
    assert_same_bits(layer(first.x, first.state)[0], want(first.x, first.state)[0])
    got_dx, _, _ = layer.backward(layer.forward(first.x, first.state)[2], first.dy)
    want_dx, _, _ = want.backward(want.forward(first.x, first.state)[2], first.dy)
    assert_same_bits(got_dx, want_dx)


def test_parameters_are_read_only_views() -> None:
    layer = cases.build_layer(cases.by_name("stacked"), "float32")
    for name, parameter in layer.parameters.items():
        assert not parameter.flags.writeable, name
        with pytest.raises(ValueError, match="read-only"):
            parameter[...] = 0
