"""Ragged batches of sequences, stored one after another without padding.

Every estimator and layer works on `Sequences`: one array of time steps and the offsets at which the
sequences start. `as_sequences` makes one from whatever users have (padded arrays, lists of arrays,
data frames), without a copy where the input already has the right layout. It is also the only place
where input is validated: dtype, shape, lengths and finiteness, in a few vectorised passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["Sequences", "as_sequences", "as_times"]


class Sequences:
    """A batch of sequences of different lengths, one after another in one array.

    Parameters
    ----------
    values : ndarray of shape (n_steps_in_all, n_features)
        The time steps of all sequences.
    offsets : array-like of int, shape (n_sequences + 1,)
        Sequence ``i`` is ``values[offsets[i]:offsets[i + 1]]``; starts with 0, strictly increasing.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or a sequence is empty.

    Examples
    --------
    >>> batch = as_sequences([np.zeros((3, 2)), np.ones((1, 2))])
    >>> len(batch), batch.n_features, batch.lengths.tolist()
    (2, 2, [3, 1])
    >>> batch[1].tolist()
    [[1.0, 1.0]]
    """

    __slots__ = ("_offsets", "_values")

    def __init__(self, values: NDArray[Any], offsets: ArrayLike) -> None:
        values = np.asarray(values)
        starts = np.asarray(offsets)
        if values.ndim != 2 or starts.ndim != 1 or starts.dtype.kind not in "iu" or not starts.size:
            raise ValueError("values must have 2 dimensions and offsets 1, of whole numbers")
        if starts[0] != 0 or starts[-1] != len(values) or np.any(starts[1:] <= starts[:-1]):
            raise ValueError(f"offsets must increase strictly from 0 to {len(values)}")
        self._values = np.ascontiguousarray(values)
        self._offsets = np.ascontiguousarray(starts, dtype=np.int64)

    @classmethod
    def _make(cls, values: NDArray[Any], offsets: NDArray[np.int64]) -> Sequences:
        """Wrap arrays that are known to be right."""
        made = object.__new__(cls)
        made._values = values
        made._offsets = offsets
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._values, self._offsets)

    @property
    def values(self) -> NDArray[Any]:
        """All time steps, shape (n_steps_in_all, n_features), C-contiguous."""
        return self._values

    @property
    def offsets(self) -> NDArray[np.int64]:
        """First row of each sequence, and the number of rows: shape (n_sequences + 1,), int64."""
        return self._offsets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of time steps of each sequence, shape (n_sequences,), int64."""
        return np.diff(self._offsets)

    @property
    def n_features(self) -> int:
        """Number of features of a time step."""
        return int(self._values.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the values."""
        return self._values.dtype

    def place(self, row: int) -> tuple[int, int]:
        """Sequence and time step of a row of :attr:`values`."""
        sequence = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return sequence, row - int(self._offsets[sequence])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __repr__(self) -> str:
        lengths = self.lengths
        span = f"{lengths.min()} to {lengths.max()}" if len(self) else "no"
        return f"Sequences(n={len(self)}, lengths {span}, n_features={self.n_features}, {self.dtype})"

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> NDArray[Any]: ...

    @overload
    def __getitem__(self, key: slice | Sequence[int] | NDArray[Any]) -> Sequences: ...

    def __getitem__(self, key: Any) -> Any:
        """Sequence `key` as a view of shape (T, n_features), or the `Sequences` that `key` selects."""
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            i = range(len(self))[key]
            return self._values[self._offsets[i] : self._offsets[i + 1]]
        if isinstance(key, slice):
            first, stop, step = key.indices(len(self))
            if step == 1:
                return self._slice(first, max(first, stop))
            key = np.arange(first, stop, step)
        return self._take(np.asarray(key))

    def _slice(self, first: int, stop: int) -> Sequences:
        """Sequences first to stop - 1; the values are a view."""
        offsets = self._offsets[first : stop + 1]
        return self._make(self._values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def _take(self, index: NDArray[Any]) -> Sequences:
        """The sequences of an index or mask array; the values are copied."""
        if index.ndim != 1 or (index.dtype == bool and len(index) != len(self)):
            raise IndexError(f"expected a 1-D index, or a mask of shape ({len(self)},), got {index.shape}")
        if index.size == 0:
            index = index.astype(np.int64)
        lengths = self.lengths[index]
        starts = self._offsets[:-1][index]
        return self._make(self._values[_rows(starts, lengths)], _offsets(lengths))

    def to_padded(self, fill: float = 0.0) -> NDArray[Any]:
        """Array of shape (n_sequences, longest length, n_features), ended with `fill`.

        Examples
        --------
        >>> as_sequences([[1.0, 2.0], [3.0]]).to_padded(fill=-1.0)[:, :, 0].tolist()
        [[1.0, 2.0], [3.0, -1.0]]
        """
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        padded = np.full((len(self), longest, self.n_features), fill, dtype=self.dtype)
        padded[np.arange(longest) < lengths[:, None]] = self._values
        return padded


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets (n + 1,) of sequences of these lengths (n,) stored one after another."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row numbers of all time steps of sequences at `starts` (n,), one sequence after another."""
    offsets = _offsets(lengths)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)


def as_sequences(
    X: Any,
    lengths: ArrayLike | None = None,
    *,
    dtype: DTypeLike = np.float32,
    name: str = "X",
    allow_nan: bool = False,
) -> Sequences:
    """Check a batch of sequences and store it without padding.

    Parameters
    ----------
    X : array-like or list of array-likes
        An array of shape (n, T, n_features); an array or data frame of shape (n, T), read as univariate
        sequences; a list of arrays of shape (T_i, n_features) or (T_i,); or `Sequences`.
    lengths : array-like of int, shape (n,), optional
        Real length of each sequence of a padded batch, from 1 to its number of time steps. What lies
        behind is never read.
    dtype : {numpy.float32, numpy.float64}, default=numpy.float32
        dtype of the result.
    name : str, default="X"
        Name of the argument in error messages.
    allow_nan : bool, default=False
        Whether NaN may stand for a value that was not observed.

    Returns
    -------
    Sequences
        Shares the memory of `X` if that is a C-contiguous array of the right dtype without padding.

    Raises
    ------
    TypeError
        For sparse matrices, masked arrays and objects that are not numbers.
    ValueError
        For complex numbers, wrong shapes or lengths, empty sequences, NaN and infinity.

    Examples
    --------
    >>> padded = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan]])
    >>> as_sequences(padded, lengths=[3, 1]).values.ravel().tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    if isinstance(X, Sequences):
        return _from_sequences(X, lengths, dtype, name, allow_nan)
    if isinstance(X, (list, tuple)):
        return _from_list(X, lengths, dtype, name, allow_nan)
    array = _plain_array(X, name)
    if _holds_sequences(array):
        return _from_list(array.tolist(), lengths, dtype, name, allow_nan)
    return _from_array(array, lengths, dtype, name, allow_nan)


def as_times(
    delta_t: Any, seqs: Sequences, lengths: ArrayLike | None = None, *, name: str = "delta_t", of: str = "X"
) -> Sequences:
    """Check the elapsed times of sequences: one number for each of their time steps.

    Parameters
    ----------
    delta_t : array-like or list of array-likes
        Time since the step before, at least 0, in a container as :func:`as_sequences` takes: an array (n, T),
        a list of arrays (T_i,), or `Sequences` of one feature.
    seqs : Sequences
        The sequences that the times belong to.
    lengths : array-like of int, shape (n,), optional
        Real lengths of padded times.
    name, of : str
        Names of the times and of the sequences in error messages.

    Returns
    -------
    Sequences
        Of one feature, float64, of the lengths of `seqs`.

    Raises
    ------
    TypeError
        For objects that are not numbers.
    ValueError
        If numbers or lengths do not fit `seqs`, or a time is negative, NaN or infinite.

    Examples
    --------
    >>> X = as_sequences([[1.0, 2.0], [3.0]])
    >>> as_times([[0.0, 0.5], [0.0]], X).values.ravel().tolist()
    [0.0, 0.5, 0.0]
    """
    times = as_sequences(
        delta_t, None if isinstance(delta_t, Sequences) else lengths, dtype=np.float64, name=name
    )
    if times.n_features != 1:
        raise ValueError(f"{name} has {times.n_features} numbers per time step; expected one")
    if len(times) != len(seqs):
        raise ValueError(f"{name} has {len(times)} sequences of times, but {of} has {len(seqs)} sequences")
    wrong = np.flatnonzero(times.lengths != seqs.lengths)
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"{name} has {times.lengths[i]} times at sequence {i}, but sequence {i} of {of} has "
            f"{seqs.lengths[i]} time steps: expected one time per step"
        )
    if (times.values < 0.0).any():
        row = int(np.argmax(times.values[:, 0] < 0.0))
        sequence, step = times.place(row)
        raise ValueError(
            f"{name} is {times.values[row, 0]} at sequence {sequence}, time step {step}: "
            "times must be at least 0"
        )
    return times


def _from_sequences(
    X: Sequences, lengths: ArrayLike | None, dtype: np.dtype[Any], name: str, allow_nan: bool
) -> Sequences:
    if lengths is not None:
        raise ValueError(f"{name} is a Sequences, which knows its lengths: leave lengths out")
    if len(X) == 0:
        raise ValueError(f"{name} holds no sequences (0 samples) while a minimum of 1 is required")
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got dtype {X.dtype}")
    return _checked(X.values, X.offsets, dtype, name, allow_nan)


def _from_array(
    array: NDArray[Any], lengths: ArrayLike | None, dtype: np.dtype[Any], name: str, allow_nan: bool
) -> Sequences:
    """Sequences of an array (n, T, F) or (n, T)."""
    if array.ndim not in (2, 3):
        raise ValueError(_dimension_message(array, name))
    _refuse_empty(array.shape, name)
    n, steps = array.shape[:2]
    if lengths is None:
        offsets = np.arange(n + 1, dtype=np.int64) * steps
        flat = array.reshape(n * steps, -1)
    else:
        real = _check_lengths(lengths, n, np.full(n, steps), name)
        offsets = _offsets(real)
        flat = array[np.arange(steps) < real[:, None]].reshape(offsets[-1], -1)
    return _checked(flat, offsets, dtype, name, allow_nan)


def _from_list(
    items: Sequence[Any], lengths: ArrayLike | None, dtype: np.dtype[Any], name: str, allow_nan: bool
) -> Sequences:
    """Sequences of a list of arrays (T_i, F) or (T_i,)."""
    if not items:
        raise ValueError(f"{name} holds no sequences (0 samples) while a minimum of 1 is required")
    arrays = [_plain_array(item, f"{name}[{i}]") for i, item in enumerate(items)]
    _check_items(arrays, name)
    real = np.array([len(array) for array in arrays], dtype=np.int64)
    if lengths is not None:
        real = _check_lengths(lengths, len(arrays), real, name)
        arrays = [array[:length] for array, length in zip(arrays, real.tolist(), strict=True)]
    offsets = _offsets(real)
    width = arrays[0].shape[1] if arrays[0].ndim == 2 else 1
    values = np.empty((int(offsets[-1]), width), dtype=dtype)
    target = values if arrays[0].ndim == 2 else values[:, 0]
    arrays = [_real(array, f"{name}[{i}]") for i, array in enumerate(arrays)]
    with np.errstate(over="ignore", invalid="ignore"):
        np.concatenate(arrays, out=target, casting="unsafe")
    if not _all_finite(values, allow_nan):
        given = np.concatenate(arrays).reshape(values.shape)
        raise ValueError(_nonfinite_message(given, offsets, dtype, name, allow_nan))
    return Sequences._make(values, offsets)


def _checked(
    flat: NDArray[Any], offsets: NDArray[np.int64], dtype: np.dtype[Any], name: str, allow_nan: bool
) -> Sequences:
    """Sequences of the rows `flat` (rows, F) in `dtype`, all finite or NaN if allowed; copies only if it must."""
    real = _real(flat, name)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.require(real, dtype, ["C_CONTIGUOUS", "ALIGNED"])
    if not _all_finite(values, allow_nan):
        raise ValueError(_nonfinite_message(real, offsets, dtype, name, allow_nan))
    return Sequences._make(values, offsets)


def _plain_array(X: Any, name: str) -> NDArray[Any]:
    """X as a base-class array of real numbers or objects; never a copy of an array."""
    _refuse_unsupported(X, name)
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"{name} has rows of different lengths: {error}") from None
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} has dtype {array.dtype}")
    if array.dtype.kind not in "biufO":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def _refuse_unsupported(X: Any, name: str) -> None:
    """Raise TypeError for containers that numpy would read as something else."""
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError(f"Sparse {name} is not supported: pass a dense array, for example {name}.toarray()")
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill it, or pass lengths= for padding at the end")
    if X is None or isinstance(X, (str, bytes, dict, set, frozenset, Iterator)):
        kind = type(X).__name__
        raise TypeError(f"{name} must be an array, a data frame or a list of sequences, got {kind}")


def _holds_sequences(array: NDArray[Any]) -> bool:
    """Whether a one-dimensional object array (or what was a series) holds sequences, not numbers."""
    if array.ndim != 1 or array.dtype.kind != "O" or not len(array):
        return False
    return hasattr(array[0], "__len__") and not isinstance(array[0], (str, bytes, dict))


def _real(array: NDArray[Any], name: str) -> NDArray[Any]:
    """The array itself, or the float64 numbers that an object array holds."""
    if array.dtype.kind != "O":
        return array
    for item in array.flat:
        if isinstance(item, (str, bytes)):
            raise ValueError(f"{name} must hold real numbers, but holds the text {item!r}")
        if isinstance(item, (complex, np.complexfloating)):
            raise ValueError(f"Complex data not supported: {name} holds {item}")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        if any(type(item).__name__ == "NAType" for item in array.flat):  # of pandas: a missing number
            known = [np.nan if type(item).__name__ == "NAType" else item for item in array.flat]
            return _real(np.array(known, dtype=object).reshape(array.shape), name)
        raise type(error)(f"{name} must hold real numbers: {error}") from None


def _check_items(arrays: list[NDArray[Any]], name: str) -> None:
    """All items of a list are sequences of one kind and width, none of them empty."""
    ndim, width = arrays[0].ndim, arrays[0].shape[1:]
    if all(array.ndim == 0 for array in arrays):
        raise ValueError(_dimension_message(np.empty(len(arrays)), name))
    for i, array in enumerate(arrays):
        if array.ndim not in (1, 2) or array.ndim != ndim:
            raise ValueError(
                f"{name} must be a list of sequences of shape (T, n_features), or all of shape (T,): "
                f"{name}[{i}] has shape {array.shape}"
            )
        if array.shape[1:] != width:
            raise ValueError(f"{name}[{i}] has {array.shape[1]} features, but {name}[0] has {width[0]}")
        if array.size == 0:
            raise ValueError(
                f"{name}[{i}] has shape {array.shape}: every sequence needs at least one time step "
                "and one feature"
            )


def _refuse_empty(shape: tuple[int, ...], name: str) -> None:
    if shape[0] == 0:
        raise ValueError(
            f"{name} holds no sequences: found array with 0 sample(s) (shape={shape}) "
            "while a minimum of 1 is required"
        )
    if len(shape) == 2 and shape[1] == 0:
        raise ValueError(
            f"{name} has no time steps: found array with 0 feature(s) (shape={shape}) "
            "while a minimum of 1 is required."
        )
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape}: at least one time step and one feature are required")


def _dimension_message(array: NDArray[Any], name: str) -> str:
    expected = "(n, T, n_features), (n, T) or a list of sequences"
    message = f"{name} must have shape {expected}, got {array.ndim} dimension(s), shape {array.shape}."
    if array.ndim == 1:
        message += (
            f" Reshape your data with {name}.reshape(1, -1) if it is one univariate sequence, "
            f"or {name}.reshape(-1, 1) for sequences of one time step."
        )
    return message


def _check_lengths(lengths: ArrayLike, n: int, available: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """`lengths` as int64 (n,), each from 1 to `available` (n,)."""
    real = np.asarray(lengths)
    if real.dtype.kind not in "iu":
        raise ValueError(f"lengths must be whole numbers, got dtype {real.dtype}")
    if real.shape != (n,):
        raise ValueError(f"lengths must have shape ({n},), one for each sequence of {name}, got {real.shape}")
    wrong = np.flatnonzero((real < 1) | (real > available))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"lengths[{i}] is {real[i]}, but sequence {i} of {name} has {available[i]} time steps: "
            f"expected a length from 1 to {available[i]}"
        )
    return real.astype(np.int64)


def _all_finite(values: NDArray[Any], allow_nan: bool = False) -> bool:
    """Whether all values are finite, NaN aside if allowed; one pass without a temporary array in the common case."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if np.isfinite(total):
        return True
    return not bool(np.isinf(values).any() if allow_nan else not np.isfinite(values).all())


def _nonfinite_message(
    values: NDArray[Any], offsets: NDArray[np.int64], dtype: np.dtype[Any], name: str, allow_nan: bool
) -> str:
    """Sentence about the first value of `values` (rows, F), as given, that is not finite in `dtype`."""
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.asarray(values, dtype=dtype)
    wrong = np.isinf(converted) if allow_nan else ~np.isfinite(converted)
    row, feature = (int(i) for i in np.argwhere(wrong)[0])
    sequence = int(np.searchsorted(offsets, row, side="right")) - 1
    where = f"sequence {sequence}, time step {row - offsets[sequence]}, feature {feature}"
    value = float(values[row, feature])
    if np.isnan(value):
        return f"{name} contains NaN at {where}: fill or remove it"
    if np.isinf(value):
        return f"{name} contains infinity ({value}) at {where}"
    return f"{name} contains infinity or a value too large for {dtype} ({value:g}) at {where}"
