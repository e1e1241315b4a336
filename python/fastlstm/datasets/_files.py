"""Readers of the files that ``fastlstm train`` and ``fastlstm predict`` take: CSV, parquet, npz, ts.

Tables (CSV and parquet) come in two forms. In the long form each row is one time step, and a column
says which sequence it belongs to; in the wide form each row is one univariate sequence, and its
columns are the time steps.
"""

from __future__ import annotations

import csv
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastlstm.datasets._data import SequenceData
from fastlstm.datasets._ts import load_ts
from fastlstm.sequences import Sequences, as_sequences, as_times

Table = dict[str, NDArray[Any]]
Result = TypeVar("Result")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")


def load_sequences(
    path: str | os.PathLike[str],
    *,
    target: str | Sequence[str] | None = None,
    id: str | None = None,
    time: str | None = None,
    delta_t: str | None = None,
    features: Sequence[str] | None = None,
    allow_missing: bool = False,
    require_target: bool = True,
) -> SequenceData:
    r"""Read sequences, and what is to be predicted from them, from a file.

    Parameters
    ----------
    path : str or path-like
        ``.csv``, ``.tsv``, ``.parquet`` (needs pyarrow), ``.npz`` or ``.ts``.
    target : str or list of str, optional
        Column(s) to predict (tables), or name of the array (npz, by default ``y``).
    id : str, optional
        Column that says which sequence a row belongs to. With it the table is read in the long form,
        one row a time step; without it in the wide form, one row a sequence.
    time : str, optional
        Column by which the rows of a sequence are sorted (long form), of numbers or of ISO 8601 dates and times; by
        default their order in the file.
    delta_t : str, optional
        Column of the times since the step before, at least 0 (long form), or name of the array of them (npz). That
        of a first step may be an empty cell, which counts as 0.
    features : list of str, optional
        Columns to use; by default all others.
    allow_missing : bool, default False
        Whether empty cells and NaN are values that were not observed, read as NaN; in the wide form, empty cells
        before the last value.
    require_target : bool, default True
        Whether it is an error if the target is not in the file.

    Returns
    -------
    SequenceData

    Raises
    ------
    ValueError
        If the file does not have the form that its name and the arguments say.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "toy.csv")
    >>> _ = path.write_text("who,x,y\na,1,no\na,2,no\nb,3,yes\n")
    >>> data = load_sequences(path, id="who", target="y")
    >>> [x.tolist() for x in data.X], data.y.tolist()
    ([[[1.0], [2.0]], [[3.0]]], ['no', 'yes'])
    """
    path = Path(path)
    kind = path.suffix.lower()
    targets = [target] if isinstance(target, str) else list(target or ())
    if delta_t is not None and kind != ".npz" and (id is None or kind == ".ts"):
        raise ValueError(
            f"{path}: times need a table with an id column, or an npz file; got delta_t={delta_t!r}"
        )
    if kind == ".ts":
        return load_ts(path)
    if kind == ".npz":
        return _with_source(path, _from_npz, path, targets, delta_t, allow_missing, require_target)
    if kind not in _TABLES:
        known = ", ".join([*_TABLES, ".npz", ".ts"])
        raise ValueError(f"{path}: unknown kind of file {kind!r}; expected one of {known}")
    table = _with_source(path, _TABLES[kind], path)
    targets = _with_source(path, _present, table, targets, require_target)
    if id is None:
        if time is not None:
            raise ValueError("a time column needs an id column: without one each row is a whole sequence")
        return _with_source(path, _wide, table, targets, features, allow_missing)
    return _with_source(path, _long, table, targets, id, time, delta_t, features, allow_missing)


def _with_source(path: Path, function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of the function; its ValueErrors name the file."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# ------------------------------------------------------------------------------------------- tables


def _read_csv(path: Path, delimiter: str = ",") -> Table:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(rows, [])]
            cells = [row for row in rows if row]
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from None
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(
            f"the first line must hold column names, all different and none empty, found {names}"
        )
    for number, row in enumerate(cells, start=1):
        if len(row) != len(names):
            raise ValueError(f"data row {number} has {len(row)} cells and the first line {len(names)}")
    columns = zip(*cells, strict=True) if cells else ([] for _ in names)
    return {
        name: np.array([cell.strip() for cell in column], dtype=object)
        for name, column in zip(names, columns, strict=True)
    }


def _read_tsv(path: Path) -> Table:
    return _read_csv(path, "\t")


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ValueError("reading parquet needs pyarrow: pip install 'fastlstm[parquet]'") from None
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return {name: table.column(name).to_numpy() for name in table.column_names}


_TABLES = {".csv": _read_csv, ".tsv": _read_tsv, ".parquet": _read_parquet}


def _present(table: Table, names: Sequence[str], required: bool) -> list[str]:
    if required:
        for name in names:
            _column(table, name)
    return [name for name in names if name in table]


def _column(table: Table, name: str) -> NDArray[Any]:
    if name not in table:
        raise ValueError(f"there is no column {name!r}; the columns are {', '.join(table)}")
    return table[name]


def _numbers(table: Table, name: str, empty_as: float | None = None) -> NDArray[np.float64]:
    """A column as float64; `empty_as` stands for empty cells, which are refused without it."""
    column = _column(table, name)
    if column.dtype.kind in "fiub":
        return column.astype(np.float64)
    numbers = np.empty(len(column))
    for row, cell in enumerate(column):
        try:
            numbers[row] = empty_as if empty_as is not None and cell in ("", None) else float(cell)
        except (ValueError, TypeError):
            raise ValueError(f"column {name!r} holds {cell!r} in data row {row + 1}, not a number") from None
    return numbers


def _typed(column: NDArray[Any]) -> NDArray[Any]:
    """A column of text as whole numbers if all are, else as numbers if all are, else as it is."""
    if column.dtype.kind != "O":
        return column
    if any(cell is None for cell in column):
        raise ValueError(f"data row {[cell is None for cell in column].index(True) + 1} has an empty cell")
    texts = [str(cell) for cell in column]
    if all(_WHOLE_NUMBER.fullmatch(text) for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64)
    try:
        numbers = np.array([float(text) for text in texts], dtype=np.float64)
    except ValueError:
        return np.array(texts, dtype=np.str_)
    return numbers if np.isfinite(numbers).all() else np.array(texts, dtype=np.str_)


def _moments(table: Table, name: str) -> NDArray[Any]:
    """A column to sort time steps by: of numbers, or of ISO 8601 dates and times, as microseconds."""
    column = _typed(_column(table, name))
    if column.dtype.kind != "U":
        return column
    moments = np.empty(len(column), np.int64)
    for row, text in enumerate(column.tolist()):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"column {name!r} holds {text!r} in data row {row + 1}, neither a number nor a time as ISO 8601 writes "
                "it, such as 2020-01-31 or 2020-01-31T12:00:00"
            ) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moments[row] = (moment - _EPOCH) // timedelta(microseconds=1)
    return moments


def _answers(table: Table, targets: Sequence[str]) -> NDArray[Any] | None:
    """Targets (rows,) or (rows, n_targets)."""
    if not targets:
        return None
    columns = [_typed(_column(table, name)) for name in targets]
    for name, column in zip(targets, columns, strict=True):
        if column.dtype.kind == "U" and (column == "").any():
            raise ValueError(f"column {name!r} is empty in data row {int(np.argmax(column == '')) + 1}")
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _wide(
    table: Table, targets: Sequence[str], features: Sequence[str] | None, allow_missing: bool
) -> SequenceData:
    """Each row is one univariate sequence; empty cells at its end make it shorter."""
    names = list(features) if features else [name for name in table if name not in targets]
    if not names:
        raise ValueError("no column is left for the time steps")
    values = np.stack([_numbers(table, name, empty_as=np.nan) for name in names], axis=1)
    if not len(values):
        raise ValueError("there is no data row")
    real = ~np.isnan(values)
    lengths = values.shape[1] - np.argmax(real[:, ::-1], axis=1)
    for row, length in enumerate(lengths):
        if not (real[row].any() if allow_missing else real[row, :length].all()):
            where = "has no value" if not real[row].any() else "has an empty cell before its last value"
            raise ValueError(f"data row {row + 1} {where}")
    X = [row[:length, None] for row, length in zip(values, lengths, strict=True)]
    return SequenceData(X, _answers(table, targets), ["value"])


def _long(
    table: Table,
    targets: Sequence[str],
    id: str,
    time: str | None,
    delta_t: str | None,
    features: Sequence[str] | None,
    allow_missing: bool,
) -> SequenceData:
    """Each row is one time step of the sequence that its id names; sequences in order of appearance."""
    reserved = {id, time, delta_t, *targets}
    names = list(features) if features else [name for name in table if name not in reserved]
    if not names:
        raise ValueError("no column is left for the features")
    ids = _typed(_column(table, id))
    if not len(ids):
        raise ValueError("there is no data row")
    empty_as = np.nan if allow_missing else None
    values = np.stack([_numbers(table, name, empty_as) for name in names], axis=1)
    _, first_rows, group = np.unique(ids, return_index=True, return_inverse=True)
    moment = np.arange(len(ids)) if time is None else _moments(table, time)
    order = np.lexsort((moment, first_rows[group]))
    sorted_first = first_rows[group][order]
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_first) != 0])
    X = np.split(values[order], starts[1:])
    y = _answers(table, targets)
    if y is not None:
        y = _constant(y[order], starts, ids[order])
    times = None
    if delta_t is not None:
        passed = _numbers(table, delta_t, empty_as=np.nan)[order]
        passed[starts] = np.where(np.isnan(passed[starts]), 0.0, passed[starts])
        times = np.split(passed, starts[1:])
    return SequenceData(X, y, names, ids[order][starts].tolist(), times)


def _constant(y: NDArray[Any], starts: NDArray[np.intp], ids: NDArray[Any]) -> NDArray[Any]:
    """The target of each sequence, which must be the same in all of its rows."""
    lengths = np.diff(np.r_[starts, len(y)])
    differs = y != np.repeat(y[starts], lengths, axis=0)
    if differs.any():
        row = int(np.argmax(differs.reshape(len(y), -1).any(axis=1)))
        raise ValueError(
            f"the target changes within the sequence {ids[row : row + 1].tolist()[0]!r}; give one for each"
        )
    return y[starts]


# ------------------------------------------------------------------------------------------- arrays


def _from_npz(
    path: Path, targets: Sequence[str], delta_t: str | None, allow_missing: bool, require_target: bool
) -> SequenceData:
    """Arrays X (n, T) or (n, T, F), lengths (n,) if X is padded, y (n,) or (n, n_targets), and times (n, T)."""
    if len(targets) > 1:
        raise ValueError("an npz file has one array of targets, which may have several columns")
    name = targets[0] if targets else "y"
    X, lengths, y = (_array(path, key) for key in ("X", "lengths", name))
    if X is None:
        raise ValueError("there is no array 'X'")
    if y is None and require_target and targets:
        raise ValueError(f"there is no array {name!r}")
    sequences = as_sequences(X, lengths, dtype=np.float64, allow_nan=allow_missing)
    if y is not None and len(y) != len(sequences):
        raise ValueError(f"{name!r} has {len(y)} rows and X {len(sequences)} sequences")
    names = [f"feature_{index}" for index in range(sequences.n_features)]
    return SequenceData(list(sequences), y, names, delta_t=_npz_times(path, delta_t, sequences, lengths))


def _npz_times(
    path: Path, name: str | None, sequences: Sequences, lengths: Any
) -> list[NDArray[np.float64]] | None:
    if name is None:
        return None
    times = _array(path, name)
    if times is None:
        raise ValueError(f"there is no array {name!r}")
    return [own[:, 0] for own in as_times(times, sequences, lengths, name=name)]


def _array(path: Path, key: str) -> NDArray[Any] | None:
    """One array of the file, or None; never unpickles."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("not an npz file")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored[key]) if key in stored.files else None
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"not an npz file: {error}") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"the array {key!r} holds Python objects, which are not read; "
            "store ragged sequences padded, with their lengths in the array 'lengths'"
        ) from None
