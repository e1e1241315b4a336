"""The generated tasks: their sequences are legal, their targets right, their draws reproducible."""

import re

import numpy as np
import pytest

from fastlstm import Sequences
from fastlstm.datasets import (
    REBER_SYMBOLS,
    TEMPORAL_ORDER_SYMBOLS,
    make_adding_problem,
    make_anbn,
    make_anbncn,
    make_embedded_reber,
    make_temporal_order,
    make_timing,
)

GENERATORS = {
    "adding": lambda n, seed: make_adding_problem(n, 40, random_state=seed),
    "reber": lambda n, seed: make_embedded_reber(n, random_state=seed),
    "order-6a": lambda n, seed: make_temporal_order(n, random_state=seed),
    "order-6b": lambda n, seed: make_temporal_order(n, "6b", (50, 60), random_state=seed),
    "measure": lambda n, seed: make_timing(n, delays=(5, 9), n_spikes=4, random_state=seed),
    "repeat": lambda n, seed: make_timing(n, "repeat", delays=(5, 9), length=30, random_state=seed),
    "anbn": lambda n, seed: make_anbn(n, random_state=seed),
    "anbncn": lambda n, seed: make_anbncn(n, (2, 5), random_state=seed),
}


def strings(X, symbols):
    return ["".join(symbols[i] for i in x.argmax(axis=1)) for x in X]


def split(rows, X):
    """Rows of all steps, as one array per sequence."""
    return np.split(rows, X.offsets[1:-1])


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("n", [1, 17])
def test_shapes_and_types(name, n):
    X, y, *rest = GENERATORS[name](n, 0)
    assert isinstance(X, Sequences)
    assert len(X) == n
    assert X.dtype == np.float32
    assert X.values.flags.c_contiguous
    assert len(y) in (n, len(X.values))
    assert y.dtype in (np.float32, np.int64)
    for mask in rest:
        assert mask.dtype == bool
        assert len(mask) == len(X.values) == len(y)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_fixes_the_data(name):
    first, again, other = GENERATORS[name](9, 5), GENERATORS[name](9, 5), GENERATORS[name](9, 6)
    np.testing.assert_array_equal(first[0].values, again[0].values)
    np.testing.assert_array_equal(first[0].offsets, again[0].offsets)
    for one, two in zip(first[1:], again[1:], strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0].values, other[0].values)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_goes_on(name):
    rng = np.random.default_rng(0)
    first, second = GENERATORS[name](9, rng), GENERATORS[name](9, rng)
    assert not np.array_equal(first[0].values, second[0].values)
    GENERATORS[name](3, np.random.RandomState(0))
    GENERATORS[name](3, None)


# --------------------------------------------------------------------------------------------- adding


def test_adding_problem_has_two_marks_and_their_sum():
    X, y = make_adding_problem(2000, 100, random_state=0)
    assert X.lengths.min() == 100
    assert X.lengths.max() == 110
    firsts, seconds, hidden = [], [], 0
    for x, target in zip(X, y, strict=True):
        assert x[0, 1] == -1
        assert x[-1, 1] == -1
        assert set(x[1:-1, 1].tolist()) <= {0.0, 1.0}
        marked = np.flatnonzero(x[:, 1] == 1)
        assert len(marked) in (1, 2)
        hidden += len(marked) == 1
        assert target == pytest.approx(0.5 + x[marked, 0].sum() / 4, abs=1e-6)
        if len(marked) == 2:
            firsts.append(marked.min())
            seconds.append(marked.max())
    assert max(firsts) == 9
    assert max(seconds) == 48
    assert 100 < hidden < 400  # a mark on the first step stays hidden: one in ten, and a little
    assert np.abs(X.values[:, 0]).max() <= 1
    assert X.values[:, 0].mean() == pytest.approx(0, abs=0.01)
    assert X.values[:, 0].std() == pytest.approx(3**-0.5, abs=0.01)


def test_adding_problem_of_one_length():
    X, _ = make_adding_problem(50, 30, spread=0.0, random_state=0)
    assert set(X.lengths.tolist()) == {30}


# ---------------------------------------------------------------------------------------------- Reber

# The automaton again, written independently: state -> symbol -> state.
AUTOMATON = {
    "start": {"B": "one"},
    "one": {"T": "two", "P": "three"},
    "two": {"S": "two", "X": "four"},
    "three": {"T": "three", "V": "five"},
    "four": {"X": "three", "S": "six"},
    "five": {"P": "four", "V": "six"},
    "six": {"E": "end"},
}


def allowed_after(prefix):
    """Symbols that may follow a prefix of an embedded Reber string; None after an illegal prefix."""
    if not prefix:
        return {"B"}
    if prefix == "B":
        return {"T", "P"}
    if prefix[0] != "B" or prefix[1] not in "TP":
        return None
    state = "start"
    for at, symbol in enumerate(prefix[2:]):
        if state == "end":
            tail = prefix[2 + at :]
            return {"E"} if tail == prefix[1] else set() if tail == prefix[1] + "E" else None
        if symbol not in AUTOMATON[state]:
            return None
        state = AUTOMATON[state][symbol]
    return {prefix[1]} if state == "end" else set(AUTOMATON[state])


def test_reber_strings_are_legal_and_their_next_symbols_complete():
    X, y, possible = make_embedded_reber(400, random_state=0)
    legal, following = split(possible, X), split(y, X)
    for text, sets, after in zip(strings(X, REBER_SYMBOLS), legal, following, strict=True):
        whole = text + REBER_SYMBOLS[after[-1]]
        assert whole[-1] == "E"
        assert whole[1] == whole[-2]
        assert allowed_after(whole) == set()
        assert whole[1:] == "".join(REBER_SYMBOLS[i] for i in after)
        for t, allowed in enumerate(sets):
            assert {REBER_SYMBOLS[i] for i in np.flatnonzero(allowed)} == allowed_after(whole[: t + 1])


def test_reber_strings_take_each_branch_half_of_the_time():
    X, y, possible = make_embedded_reber(4000, random_state=1)
    assert possible[np.arange(len(y)), y].all()
    assert set(possible.sum(axis=1).tolist()) == {1, 2}
    texts = strings(X, REBER_SYMBOLS)
    assert np.mean([text[1] == "T" for text in texts]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([text[3] == "T" for text in texts]) == pytest.approx(0.5, abs=0.05)
    assert X.lengths.min() == 8  # B T B T X S E T, and then E
    assert {"BTBTXSET", "BPBPVVEP"} <= set(texts)


# -------------------------------------------------------------------------------------- temporal order


@pytest.mark.parametrize(
    ("kind", "places"), [("6a", [(10, 20), (50, 60)]), ("6b", [(10, 20), (33, 43), (66, 76)])]
)
def test_temporal_order_symbols_places_and_classes(kind, places):
    X, y = make_temporal_order(1500, kind, random_state=0)
    assert (X.lengths.min(), X.lengths.max()) == (100, 110)
    np.testing.assert_array_equal(X.values.sum(axis=1), 1)
    found = []
    for text, label in zip(strings(X, TEMPORAL_ORDER_SYMBOLS), y, strict=True):
        assert re.fullmatch("E[abcdXY]+B", text)
        at = [t for t, symbol in enumerate(text) if symbol in "XY"]
        found.append(at)
        digits = "".join("01"["XY".index(text[t])] for t in at)
        assert int(digits, 2) == label
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == places
    assert np.bincount(y).min() > 0.7 * len(y) / 2 ** len(places)


def test_temporal_order_scales_with_the_length():
    X, _ = make_temporal_order(300, "6a", (50, 50), random_state=0)
    assert set(X.lengths.tolist()) == {50}
    significant = X.values.reshape(300, 50, 8)[:, :, 4:6].any(axis=2)
    np.testing.assert_array_equal(np.flatnonzero(significant.any(axis=0)), [*range(5, 11), *range(25, 31)])


# ------------------------------------------------------------------------------------- timing, counting


def test_measured_intervals():
    X, y, mask = make_timing(200, delays=(10, 12), n_spikes=6, random_state=0)
    for x, target, asked in zip(X, split(y, X), split(mask, X), strict=True):
        spikes = np.flatnonzero(x[:, 0])
        assert spikes[0] == 0
        assert spikes[-1] == len(x) - 1
        assert len(spikes) == 7
        np.testing.assert_array_equal(np.flatnonzero(asked), spikes[1:])
        np.testing.assert_array_equal(target[asked], np.diff(spikes) - 10)
        assert not target[~asked].any()
    assert np.bincount(y[mask].astype(int)).min() > 300


def test_repeated_intervals():
    X, y, mask = make_timing(500, "repeat", delays=(30, 60), random_state=0)
    assert mask.all()
    assert set(X.lengths.tolist()) == {150}
    intervals = []
    for x, target in zip(X, split(y, X), strict=True):
        first, second = np.flatnonzero(x[:, 0])
        (answer,) = np.flatnonzero(target)
        assert answer - second == second - first
        assert target[answer] == 1
        intervals.append(second - first)
    assert (min(intervals), max(intervals)) == (30, 60)


@pytest.mark.parametrize(("make", "letters"), [(make_anbn, "ab"), (make_anbncn, "abc")])
def test_counting_strings(make, letters):
    symbols = letters + "T"
    X, y, possible = make(200, (1, 10), random_state=0)
    counts = set()
    for text, after, sets in zip(strings(X, symbols), split(y, X), split(possible, X), strict=True):
        k = text.count("a")
        counts.add(k)
        assert text == "T" + "".join(letter * k for letter in letters)
        assert text[1:] + "T" == "".join(symbols[i] for i in after)
        for t, symbol in enumerate(text):
            expected = {"a", "b"} if symbol == "a" else {symbols[after[t]]}
            assert {symbols[i] for i in np.flatnonzero(sets[t])} == expected
    assert counts == set(range(1, 11))


# ------------------------------------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_adding_problem(0), ValueError, "n must be at least 1; got 0"),
        (lambda: make_adding_problem(2.0), TypeError, "n must be a whole number; got 2.0"),
        (lambda: make_adding_problem(True), TypeError, "n must be a whole number"),
        (lambda: make_adding_problem(3, 21), ValueError, "length must be at least 22"),
        (
            lambda: make_adding_problem(3, spread=2.0),
            ValueError,
            r"spread must be a number in \[0, 1\]; got 2.0",
        ),
        (lambda: make_adding_problem(3, spread="a"), ValueError, "spread must be a number"),
        (lambda: make_embedded_reber(-1), ValueError, "n must be at least 1"),
        (lambda: make_temporal_order(3, "6c"), ValueError, "kind must be '6a' or '6b'; got '6c'"),
        (lambda: make_temporal_order(3, length=100), TypeError, "length must be a pair"),
        (lambda: make_temporal_order(3, length=(110, 100)), ValueError, "length must be a pair"),
        (lambda: make_temporal_order(3, length=(20, 100)), ValueError, "length must be at least 30; got 20"),
        (lambda: make_timing(3, "count"), ValueError, "kind must be 'measure' or 'repeat'; got 'count'"),
        (lambda: make_timing(3, delays=(0, 3)), ValueError, "delays must be at least 1; got 0"),
        (lambda: make_timing(3, n_spikes=0), ValueError, "n_spikes must be at least 1; got 0"),
        (lambda: make_timing(3, "repeat", delays=(30, 75)), ValueError, "at least 151; got 150"),
        (lambda: make_anbn(3, (3, 2)), ValueError, "counts must be a pair"),
        (lambda: make_anbncn(3, 5), TypeError, "counts must be a pair"),
    ],
)
def test_wrong_usage_is_explained(call, error, words):
    with pytest.raises(error, match=words):
        call()
