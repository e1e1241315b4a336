"""The ragged container: every accepted layout, every refusal with its sentence."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastlstm import Sequences, as_sequences


def ragged(seed=0, n=5, n_features=3, longest=7):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, n_features)) for length in rng.integers(1, longest + 1, n)]


def check_equal(seqs, arrays):
    assert len(seqs) == len(arrays)
    for found, expected in zip(seqs, arrays, strict=True):
        np.testing.assert_array_equal(found, np.asarray(expected, dtype=seqs.dtype).reshape(found.shape))


# ---------------------------------------------------------------- what is accepted


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5), (1, 1, 1), (3, 1)])
def test_right_arrays_are_not_copied(shape):
    X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    X.setflags(write=False)
    seqs = as_sequences(X)
    assert np.shares_memory(seqs.values, X)
    assert seqs.lengths.tolist() == [shape[1]] * shape[0]
    assert seqs.n_features == (shape[2] if len(shape) == 3 else 1)
    check_equal(seqs, X)


def variants():
    X = np.random.default_rng(1).integers(-5, 6, size=(4, 6, 2)).astype(np.float32)
    wide = np.zeros((8, 6, 4), np.float32)
    wide[::2, :, ::2] = X
    raw = np.zeros(X.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(X.shape)
    misaligned[...] = X
    readonly = X.copy()
    readonly.setflags(write=False)
    yield "float64", X.astype(np.float64), X
    yield "float16", X.astype(np.float16), X
    yield "longdouble", X.astype(np.longdouble), X
    yield "int8", X.astype(np.int8), X
    yield "int64", X.astype(np.int64), X
    yield "big-endian", X.astype(">f4"), X
    yield "big-endian double", X.astype(">f8"), X
    yield "fortran", np.asfortranarray(X), X
    yield "strided", wide[::2, :, ::2], X
    yield "reversed", X[::-1, ::-1][::-1, ::-1], X
    yield "misaligned", misaligned, X
    yield "read-only", readonly, X
    yield "objects", X.astype(object), X
    yield "nested lists", X.tolist(), X
    yield "list of lists of rows", [[list(row) for row in seq] for seq in X], X
    yield "tuple", tuple(X), X
    yield "bool", X > 0, (X > 0).astype(np.float32)
    yield "broadcast", np.broadcast_to(X[:1], X.shape), np.broadcast_to(X[:1], X.shape)
    yield "object vector", _object_vector(list(X)), X


def _object_vector(items):
    vector = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        vector[i] = item
    return vector


@pytest.mark.parametrize(("given_X", "expected"), [pytest.param(x, e, id=i) for i, x, e in variants()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_and_dtypes_give_the_same_numbers(given_X, expected, dtype):
    seqs = as_sequences(given_X, dtype=dtype)
    assert seqs.values.dtype == dtype
    assert seqs.values.flags.c_contiguous and seqs.values.flags.aligned
    check_equal(seqs, expected)


def test_ragged_lists():
    arrays = ragged()
    check_equal(as_sequences(arrays), arrays)
    univariate = [array[:, 0] for array in arrays]
    seqs = as_sequences(univariate)
    assert seqs.n_features == 1
    check_equal(seqs, univariate)
    check_equal(as_sequences([[1.0, 2.0], [3.0]]), [[1.0, 2.0], [3.0]])


def test_items_of_different_dtypes():
    seqs = as_sequences([np.array([1, 2]), np.array([0.5]), np.array([True])])
    assert seqs.values.ravel().tolist() == [1.0, 2.0, 0.5, 1.0]


def test_data_frames():
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    X = np.arange(12.0).reshape(3, 4)
    for frame in (pd.DataFrame(X), pl.DataFrame(X), pd.DataFrame(X).astype("Float32")):
        check_equal(as_sequences(frame), X)
    check_equal(as_sequences([pd.DataFrame(X), pl.DataFrame(X[:1])]), [X, X[:1]])
    check_equal(as_sequences(pd.Series([X[0], X[1, :2]])), [X[0], X[1, :2]])
    check_equal(as_sequences(pl.Series([[1.0, 2.0], [3.0]])), [[1.0, 2.0], [3.0]])


def test_padding_is_never_read():
    arrays = ragged(3)
    lengths = [len(array) for array in arrays]
    for fill in (0.0, np.nan, np.inf, 1e300):
        padded = as_sequences(arrays, dtype=np.float64).to_padded(fill=fill)
        check_equal(as_sequences(padded, lengths), arrays)
        check_equal(as_sequences(list(padded), lengths=np.array(lengths, np.uint8)), arrays)
        check_equal(as_sequences(padded[:, :, 0], lengths), [array[:, 0] for array in arrays])


def test_sequences_pass_through():
    seqs = as_sequences(ragged())
    assert as_sequences(seqs).values is seqs.values
    assert as_sequences(seqs, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="leave lengths out"):
        as_sequences(seqs, lengths=[1] * len(seqs))


# ---------------------------------------------------------------- the container


@settings(max_examples=50, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), width=st.integers(1, 3))
def test_indexing_is_like_a_list(data, lengths, width):
    arrays = [
        data.draw(hnp.arrays(np.float32, (length, width), elements=st.integers(-9, 9))) for length in lengths
    ]
    seqs = as_sequences(arrays)
    assert seqs.offsets.tolist() == np.cumsum([0, *lengths]).tolist()
    index = data.draw(st.lists(st.integers(-len(lengths), len(lengths) - 1), max_size=10))
    check_equal(seqs[index], [arrays[i] for i in index])
    part = data.draw(st.slices(len(lengths)))
    check_equal(seqs[part], arrays[part])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    check_equal(seqs[mask], [array for array, wanted in zip(arrays, mask, strict=True) if wanted])


def test_slices_and_items_are_views():
    seqs = as_sequences(ragged())
    assert np.shares_memory(seqs[1:3].values, seqs.values)
    assert np.shares_memory(seqs[-1], seqs.values)
    assert not np.shares_memory(seqs[[0, 1]].values, seqs.values)


def test_container_refuses_what_does_not_fit():
    values = np.zeros((4, 2))
    for offsets in ([0, 2], [1, 4], [0, 2, 2, 4], [0, 5, 4], [], [0.0, 4.0]):
        with pytest.raises(ValueError, match="offsets"):
            Sequences(values, offsets)
    seqs = Sequences(values, [0, 1, 4])
    with pytest.raises(IndexError):
        seqs[2]
    with pytest.raises(IndexError, match="mask"):
        seqs[np.array([True])]
    with pytest.raises(AttributeError):
        seqs.values = values


def test_pickle_and_repr():
    seqs = as_sequences(ragged())
    check_equal(pickle.loads(pickle.dumps(seqs)), list(seqs))
    assert "n=5" in repr(seqs) and "n_features=3" in repr(seqs) and "float32" in repr(seqs)


# ---------------------------------------------------------------- refusals


def nonfinite(value, dtype=float):
    X = np.zeros((3, 4, 2), dtype=dtype)
    X[1, 2, 1] = value
    return X


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (nonfinite(np.nan), "series contains NaN at sequence 1, time step 2, feature 1"),
        (nonfinite(-np.inf), r"series contains infinity \(-inf\) at sequence 1, time step 2, feature 1"),
        (nonfinite(1e300), "too large for float32.*at sequence 1, time step 2, feature 1"),
        (nonfinite(np.nan, object), "NaN at sequence 1, time step 2, feature 1"),
        (list(nonfinite(np.nan)), "NaN at sequence 1, time step 2, feature 1"),
        ([[0.0, 1.0], [np.nan]], "NaN at sequence 1, time step 0, feature 0"),
        (np.array([[0.0, 1.0, np.inf]]), "infinity.*sequence 0, time step 2, feature 0"),
        (np.zeros((0, 3)), "0 sample"),
        (np.zeros((0, 3, 2)), "0 sample"),
        ([], "0 samples"),
        (np.zeros((12, 0)), r"0 feature\(s\) \(shape=\(12, 0\)\) while a minimum of 1 is required\."),
        (np.zeros((12, 0, 2)), "at least one time step"),
        (np.zeros((12, 2, 0)), "one feature"),
        ([[1.0], []], r"series\[1\] has shape \(0,\): every sequence needs at least one time step"),
        ([np.zeros((2, 3)), np.zeros((0, 3))], r"series\[1\]"),
        (np.zeros(3), "Reshape your data"),
        ([1.0, 2.0], "Reshape your data"),
        (np.zeros((1, 1, 1, 1)), "4 dimension"),
        (np.float64(1.0), "0 dimension"),
        ([np.zeros((2, 3)), np.zeros((2, 2))], r"series\[1\] has 2 features, but series\[0\] has 3"),
        ([np.zeros((2, 1)), np.zeros(2)], r"series\[1\] has shape \(2,\)"),
        ([[[1.0, 2.0], [3.0]]], r"series\[0\] has rows of different lengths"),
        (np.zeros((2, 2), complex), "Complex data not supported: series"),
        ([np.zeros(2), np.zeros(2, complex)], r"Complex data not supported: series\[1\]"),
        (np.array([[1j, 0]], dtype=object), "Complex data not supported"),
        (np.array([["a", "b"]]), "series must hold real numbers, got dtype"),
        (np.array([["1", 2.0]], dtype=object), "holds the text '1'"),
        (np.zeros((2, 2), "M8[s]"), "datetime64"),
    ],
)
def test_value_errors_name_argument_and_place(X, message):
    with pytest.raises(ValueError, match=message):
        as_sequences(X, name="series")


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ma.masked_array(np.zeros((2, 2)), mask=[[0, 1], [0, 0]]), "series is a masked array"),
        ([np.ma.masked_array(np.zeros(2))], r"series\[0\] is a masked array"),
        (np.array([[1.0, {"a": 1}]], dtype=object), "argument must be .* string.* number"),
        ("text", "got str"),
        (None, "got NoneType"),
        ({"a": [1.0]}, "got dict"),
        ((x for x in [1.0]), "got generator"),
    ],
)
def test_type_errors(X, message):
    with pytest.raises(TypeError, match=message):
        as_sequences(X, name="series")


def test_sparse_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    for container in (sparse.csr_array, sparse.csr_matrix, sparse.coo_array):
        with pytest.raises(TypeError, match="Sparse X is not supported: pass a dense array"):
            as_sequences(container(np.eye(3)))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 0, 2], r"lengths\[1\] is 0, but sequence 1 of X has 4 time steps: expected .* from 1 to 4"),
        ([1, 2, -1], r"lengths\[2\] is -1"),
        ([5, 1, 1], r"lengths\[0\] is 5"),
        ([1, 2], r"lengths must have shape \(3,\)"),
        ([[1, 2, 3]], r"lengths must have shape \(3,\)"),
        (3, r"lengths must have shape \(3,\)"),
        ([1.0, 2.0, 3.0], "whole numbers"),
        ([True, True, True], "whole numbers"),
        (["1", "2", "3"], "whole numbers"),
    ],
)
def test_wrong_lengths(lengths, message):
    for X in (np.zeros((3, 4, 2)), np.zeros((3, 4)), list(np.zeros((3, 4, 2)))):
        with pytest.raises(ValueError, match=message):
            as_sequences(X, lengths=lengths)


def test_dtype_must_be_a_network_dtype():
    with pytest.raises(ValueError, match="float32 or float64"):
        as_sequences(np.zeros((1, 1)), dtype=np.int32)


def test_large_finite_values_are_accepted():
    X = np.full((2, 100), 3e38, dtype=np.float32)
    assert as_sequences(X).values.max() == np.float32(3e38)


def test_input_is_never_written():
    X = nonfinite(1.0)
    before = X.copy()
    as_sequences(X, lengths=[1, 3, 2]).values[...] = 7.0
    np.testing.assert_array_equal(X, before)
