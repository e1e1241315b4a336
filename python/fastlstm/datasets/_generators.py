"""The generated tasks of the LSTM papers: adding, embedded Reber, temporal order, timing, counting.

Every generator draws all its sequences at once, without a Python loop over sequences, and returns
:class:`fastlstm.Sequences` of float32 with the targets as arrays: one row per sequence, or one row per time step
of `X.values` where the network answers at every step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.sequences import Sequences

__all__ = [
    "COUNTING_SYMBOLS",
    "REBER_SYMBOLS",
    "TEMPORAL_ORDER_SYMBOLS",
    "make_adding_problem",
    "make_anbn",
    "make_anbncn",
    "make_embedded_reber",
    "make_temporal_order",
    "make_timing",
]

Steps = tuple[Sequences, NDArray[Any], NDArray[np.bool_]]

#: What the features of :func:`make_embedded_reber` stand for.
REBER_SYMBOLS = "BTPSXVE"
#: What the features of :func:`make_temporal_order` stand for.
TEMPORAL_ORDER_SYMBOLS = "abcdXYEB"
#: What the features of :func:`make_anbn` (without c) and :func:`make_anbncn` stand for; T starts and ends.
COUNTING_SYMBOLS = "abcT"

# Reber's automaton: from each state the symbol and the next state of the one and the other branch.
_REBER = {
    0: (("B", 1), ("B", 1)),
    1: (("T", 2), ("P", 3)),
    2: (("S", 2), ("X", 4)),
    3: (("T", 3), ("V", 5)),
    4: (("X", 3), ("S", 6)),
    5: (("P", 4), ("V", 6)),
    6: (("E", 7), ("E", 7)),
}
_REBER_END = 7
# Where the significant symbols of the temporal order task may lie in sequences of 100 to 110 steps.
_ORDER_PLACES = {"6a": ((10, 20), (50, 60)), "6b": ((10, 20), (33, 43), (66, 76))}


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.Generator):
        return random_state
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31 - 1))
    return np.random.default_rng(random_state)


def _whole(value: Any, name: str, low: int = 1) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}")
    return int(value)


def _range(value: Any, name: str, low: int = 1) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (lowest, highest) of whole numbers; got {value!r}")
    first, last = (_whole(end, name, low) for end in value)
    if last < first:
        raise ValueError(f"{name} must be a pair (lowest, highest) of whole numbers; got {value!r}")
    return first, last


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))


def _one_hot(symbols: NDArray[Any], n_symbols: int) -> NDArray[np.float32]:
    return np.eye(n_symbols, dtype=np.float32)[symbols]


def make_adding_problem(
    n: int, length: int = 100, *, spread: float = 0.1, random_state: Any = None
) -> tuple[Sequences, NDArray[np.float32]]:
    """Adding problem: the sum of two marked values among many.

    Parameters
    ----------
    n : int
        Number of sequences.
    length : int, default=100
        Shortest length T, at least 22.
    spread : float in [0, 1], default=0.1
        Lengths are drawn uniformly from T to (1 + spread) T.
    random_state : None, int, numpy Generator or RandomState, default=None

    Returns
    -------
    X : Sequences of `n` sequences with 2 features
        Values from U[-1, 1], and marks: -1 at the first and last step, 1 at the two marked steps, else 0. One
        marked step lies in the first ten, the other in the first T/2 - 1.
    y : ndarray of shape (n,), float32
        0.5 + (x1 + x2) / 4 of the marked values. A mark that falls on the first step stays hidden behind the -1
        there, and its value counts as 0.

    Notes
    -----
    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9(8) (1997), experiment 4.

    Examples
    --------
    >>> from fastlstm.datasets import make_adding_problem
    >>> X, y = make_adding_problem(3, 100, random_state=0)
    >>> len(X), X.n_features, y.shape
    (3, 2, (3,))
    """
    n, length = _whole(n, "n"), _whole(length, "length", 22)
    if isinstance(spread, (bool, str)) or not 0.0 <= spread <= 1.0:
        raise ValueError(f"spread must be a number in [0, 1]; got {spread!r}")
    rng = _generator(random_state)
    lengths = rng.integers(length, int(length * (1.0 + spread)), size=n, endpoint=True)
    offsets = _offsets(lengths)
    starts, ends = offsets[:-1], offsets[1:] - 1
    values = np.zeros((offsets[-1], 2), np.float32)
    values[:, 0] = rng.uniform(-1.0, 1.0, offsets[-1])
    first = rng.integers(0, 10, size=n)
    second = rng.integers(0, length // 2 - 2, size=n)
    second += second >= first  # any of the others, evenly
    total = np.zeros(n)
    for marked in (first, second):
        values[starts + marked, 1] = 1.0
        total += np.where(marked > 0, values[starts + marked, 0], 0.0)
    values[starts, 1] = -1.0
    values[ends, 1] = -1.0
    return Sequences(values, offsets), (0.5 + total / 4.0).astype(np.float32)


def _reber_tables() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Symbol and next state of each state's branches, and each state's possible symbols.

    The embedded grammar B (T|P) B...E (T|P) E has the states: 0 start, 1 outer choice, 2 to 8 the inner
    automaton after T, 9 to 15 after P, 16 and 17 the repeated outer symbol, 18 the closing E, 19 the end.
    """
    rows: dict[int, list[tuple[str, int]]] = {0: [("B", 1)] * 2, 1: [("T", 2), ("P", 9)]}
    for first, repeat in ((2, 16), (9, 17)):
        for state, branches in _REBER.items():
            rows[first + state] = [
                (symbol, repeat if target == _REBER_END else first + target) for symbol, target in branches
            ]
    rows |= {16: [("T", 18)] * 2, 17: [("P", 18)] * 2, 18: [("E", 19)] * 2}
    symbols = np.array([[REBER_SYMBOLS.index(symbol) for symbol, _ in rows[state]] for state in range(19)])
    targets = np.array([[target for _, target in rows[state]] for state in range(19)])
    possible = np.zeros((20, len(REBER_SYMBOLS)), bool)
    np.put_along_axis(possible[:19], symbols, True, axis=1)
    return symbols, targets, possible


def make_embedded_reber(n: int, *, random_state: Any = None) -> Steps:
    """Strings of the embedded Reber grammar, with the next symbol and all possible next symbols at every step.

    A string is B, T or P, a Reber string, the same T or P again, E; its branches are taken with probability 1/2.

    Parameters
    ----------
    n : int
        Number of strings.
    random_state : None, int, numpy Generator or RandomState, default=None

    Returns
    -------
    X : Sequences of `n` sequences with 7 features
        Each string but its last symbol, one-hot in the order of ``REBER_SYMBOLS`` ("BTPSXVE").
    y : ndarray of shape (steps,), int64
        Index of the symbol that follows, for each row of `X.values`.
    possible : ndarray of shape (steps, 7), bool
        Which symbols may follow.

    Notes
    -----
    Sources: A. Cleeremans, D. Servan-Schreiber, J. L. McClelland, "Finite-state automata and simple recurrent
    networks", Neural Computation 1(3) (1989); S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural
    Computation 9(8) (1997), experiment 1.

    Examples
    --------
    >>> from fastlstm.datasets import REBER_SYMBOLS, make_embedded_reber
    >>> X, y, possible = make_embedded_reber(2, random_state=0)
    >>> "".join(REBER_SYMBOLS[symbol] for symbol in X[0].argmax(axis=1))[0]
    'B'
    """
    n, rng = _whole(n, "n"), _generator(random_state)
    symbols, targets, possible = _reber_tables()
    state = np.zeros(n, np.int64)
    alive = np.arange(n)
    places, drawn, states = [], [], []
    while alive.size:
        branch = rng.integers(0, 2, size=alive.size)
        places.append(alive)
        drawn.append(symbols[state[alive], branch])
        state[alive] = targets[state[alive], branch]
        states.append(state[alive])
        alive = alive[state[alive] != 19]
    # step after step becomes string after string
    order = np.argsort(np.concatenate(places), kind="stable")
    text, after = np.concatenate(drawn)[order], np.concatenate(states)[order]
    inside = after != 19
    lengths = np.bincount(np.concatenate(places), minlength=n) - 1
    following = np.flatnonzero(inside) + 1
    X = Sequences(_one_hot(text[inside], len(REBER_SYMBOLS)), _offsets(lengths))
    return X, text[following].astype(np.int64), possible[after[inside]]


def make_temporal_order(
    n: int, kind: str = "6a", length: tuple[int, int] = (100, 110), *, random_state: Any = None
) -> tuple[Sequences, NDArray[np.int64]]:
    """Temporal order: which of X and Y came first, and which later, among distractors.

    Parameters
    ----------
    n : int
        Number of sequences.
    kind : {"6a", "6b"}, default="6a"
        Two significant symbols and 4 classes, or three and 8 classes.
    length : pair of int, default=(100, 110)
        Shortest and longest length. The significant symbols lie at steps 10 to 20 and 50 to 60 (6a), or 10 to 20,
        33 to 43 and 66 to 76 (6b), scaled by the shortest length over 100; at least 30.
    random_state : None, int, numpy Generator or RandomState, default=None

    Returns
    -------
    X : Sequences of `n` sequences with 8 features
        One-hot in the order of ``TEMPORAL_ORDER_SYMBOLS``: the first symbol is E, the last B, the others are drawn
        from a, b, c, d.
    y : ndarray of shape (n,), int64
        The class: the significant symbols as binary digits with X = 0, Y = 1 (6a: XX, XY, YX, YY).

    Notes
    -----
    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9(8) (1997),
    experiments 6a and 6b.

    Examples
    --------
    >>> from fastlstm.datasets import make_temporal_order
    >>> X, y = make_temporal_order(2, random_state=0)
    >>> X.n_features, y.shape
    (8, (2,))
    """
    n = _whole(n, "n")
    if kind not in _ORDER_PLACES:
        raise ValueError(f"kind must be '6a' or '6b'; got {kind!r}")
    shortest, longest = _range(length, "length", 30)
    rng = _generator(random_state)
    lengths = rng.integers(shortest, longest, size=n, endpoint=True)
    offsets = _offsets(lengths)
    text = rng.integers(0, 4, size=offsets[-1])
    y = np.zeros(n, np.int64)
    for low, high in _ORDER_PLACES[kind]:
        place = rng.integers(low * shortest // 100, high * shortest // 100, size=n, endpoint=True)
        digit = rng.integers(0, 2, size=n)
        text[offsets[:-1] + place] = TEMPORAL_ORDER_SYMBOLS.index("X") + digit
        y = 2 * y + digit
    text[offsets[:-1]] = TEMPORAL_ORDER_SYMBOLS.index("E")
    text[offsets[1:] - 1] = TEMPORAL_ORDER_SYMBOLS.index("B")
    return Sequences(_one_hot(text, len(TEMPORAL_ORDER_SYMBOLS)), offsets), y


def make_timing(
    n: int,
    kind: str = "measure",
    *,
    delays: tuple[int, int] = (50, 51),
    n_spikes: int = 10,
    length: int = 150,
    random_state: Any = None,
) -> Steps:
    """Timing: intervals between spikes, to be measured or to be repeated.

    Parameters
    ----------
    n : int
        Number of streams.
    kind : {"measure", "repeat"}, default="measure"
        - "measure": streams of spikes; at each spike the target is the interval since the one before, less the
          shortest possible one. With two adjacent `delays` F and F + 1 this is the task MSD of the source.
        - "repeat": two spikes in `length` steps; the target is 1 at one step, as long after the second spike as
          that is after the first, and 0 at every other step.
    delays : pair of int, default=(50, 51)
        Shortest and longest interval, drawn evenly and in whole steps.
    n_spikes : int, default=10
        Measured spikes per stream, after the one that starts it ("measure").
    length : int, default=150
        Steps per sequence ("repeat"), more than twice the longest interval.
    random_state : None, int, numpy Generator or RandomState, default=None

    Returns
    -------
    X : Sequences of `n` sequences with 1 feature
        1 at a spike, else 0.
    y : ndarray of shape (steps,), float32
        Target at each row of `X.values`; 0 where there is none.
    mask : ndarray of shape (steps,), bool
        Where there is a target: at every spike but the first ("measure"), at every step ("repeat").

    Notes
    -----
    Source: F. A. Gers, N. N. Schraudolph, J. Schmidhuber, "Learning precise timing with LSTM recurrent networks",
    Journal of Machine Learning Research 3 (2002). The kind "repeat" is not in the paper.

    Examples
    --------
    >>> from fastlstm.datasets import make_timing
    >>> X, y, mask = make_timing(2, delays=(10, 11), n_spikes=3, random_state=0)
    >>> int(X.values.sum()), int(mask.sum())
    (8, 6)
    """
    n, n_spikes = _whole(n, "n"), _whole(n_spikes, "n_spikes")
    low, high = _range(delays, "delays")
    if kind not in ("measure", "repeat"):
        raise ValueError(f"kind must be 'measure' or 'repeat'; got {kind!r}")
    rng = _generator(random_state)
    if kind == "repeat":
        return _repeated_interval(n, low, high, _whole(length, "length"), rng)
    intervals = rng.integers(low, high, size=(n, n_spikes), endpoint=True)
    lengths = intervals.sum(axis=1) + 1
    offsets = _offsets(lengths)
    spikes = offsets[:-1, None] + np.cumsum(intervals, axis=1)
    values, y = np.zeros((offsets[-1], 1), np.float32), np.zeros(offsets[-1], np.float32)
    mask = np.zeros(offsets[-1], bool)
    values[offsets[:-1]] = 1.0
    values[spikes] = 1.0
    y[spikes] = intervals - low
    mask[spikes] = True
    return Sequences(values, offsets), y, mask


def _repeated_interval(n: int, low: int, high: int, length: int, rng: np.random.Generator) -> Steps:
    if length <= 2 * high:
        raise ValueError(
            f"length must be more than twice the longest interval, at least {2 * high + 1}; got {length}"
        )
    interval = rng.integers(low, high, size=n, endpoint=True)
    offsets = np.arange(n + 1, dtype=np.int64) * length
    first = offsets[:-1] + rng.integers(0, length - 2 * interval)
    values, y = np.zeros((n * length, 1), np.float32), np.zeros(n * length, np.float32)
    values[first] = 1.0
    values[first + interval] = 1.0
    y[first + 2 * interval] = 1.0
    return Sequences(values, offsets), y, np.ones(n * length, bool)


def make_anbn(n: int, counts: tuple[int, int] = (1, 10), *, random_state: Any = None) -> Steps:
    """Strings a^k b^k, with the next symbol and all possible next symbols at every step.

    Parameters
    ----------
    n : int
        Number of strings.
    counts : pair of int, default=(1, 10)
        Smallest and largest k, drawn evenly.
    random_state : None, int, numpy Generator or RandomState, default=None

    Returns
    -------
    X : Sequences of `n` sequences with 3 features
        T, then k times a, then k times b, one-hot in the order a, b, T.
    y : ndarray of shape (steps,), int64
        Index of the symbol that follows, for each row of `X.values`; T after the last b.
    possible : ndarray of shape (steps, 3), bool
        Which symbols may follow: a or b as long as only a's were seen (a alone at the start), then what the
        counts leave.

    Notes
    -----
    Source: F. A. Gers, J. Schmidhuber, "LSTM recurrent networks learn simple context-free and context-sensitive
    languages", IEEE Transactions on Neural Networks 12(6) (2001).

    Examples
    --------
    >>> from fastlstm.datasets import make_anbn
    >>> X, y, possible = make_anbn(1, (2, 2), random_state=0)
    >>> y.tolist()
    [0, 0, 1, 1, 2]
    """
    return _counting(n, counts, 2, random_state)


def make_anbncn(n: int, counts: tuple[int, int] = (1, 10), *, random_state: Any = None) -> Steps:
    """Strings a^k b^k c^k; as :func:`make_anbn`, with 4 features in the order of ``COUNTING_SYMBOLS``.

    Parameters
    ----------
    n : int
        Number of strings.
    counts : pair of int, default=(1, 10)
        Smallest and largest k, drawn evenly.
    random_state : None, int, numpy Generator or RandomState, default=None

    Returns
    -------
    X : Sequences of `n` sequences with 4 features
    y : ndarray of shape (steps,), int64
    possible : ndarray of shape (steps, 4), bool

    Notes
    -----
    Source: as :func:`make_anbn`.

    Examples
    --------
    >>> from fastlstm.datasets import make_anbncn
    >>> X, y, possible = make_anbncn(1, (1, 1), random_state=0)
    >>> y.tolist()
    [0, 1, 2, 3]
    """
    return _counting(n, counts, 3, random_state)


def _counting(n: int, counts: Any, n_letters: int, random_state: Any) -> Steps:
    n = _whole(n, "n")
    low, high = _range(counts, "counts")
    k = _generator(random_state).integers(low, high, size=n, endpoint=True)
    lengths = n_letters * k + 1
    offsets = _offsets(lengths)
    each = np.repeat(k, lengths)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)  # 0 at the starting T
    text = np.where(place == 0, n_letters, (place - 1) // each)
    y = place // each  # n_letters, which is T, after the last letter
    possible = _one_hot(y, n_letters + 1).astype(bool)
    in_first = (text == 0) & (place > 0)
    possible[in_first, :2] = True
    return Sequences(_one_hot(text, n_letters + 1), offsets), y.astype(np.int64), possible
