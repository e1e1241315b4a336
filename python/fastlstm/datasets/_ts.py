"""Reader of the ``.ts`` format of the UEA and UCR time-series archives.

A file has comments (``#``), a header of ``@`` lines, and after ``@data`` one case a line: the channels
separated by colons, the values of a channel by commas, and last the class label or target.

Format: https://www.aeon-toolkit.org/en/stable/api_reference/file_specifications/ts.html
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastlstm.datasets._data import SequenceData

_FLAGS = {"true": True, "false": False}


@dataclass
class _Header:
    """What the ``@`` lines say; None where they say nothing."""

    dimensions: int | None = None
    series_length: int | None = None
    labels: list[str] = field(default_factory=list)
    has_label: bool = False
    has_target: bool = False


def load_ts(path: str | os.PathLike[str]) -> SequenceData:
    r"""Read a ``.ts`` file: univariate or multivariate, equal or unequal lengths, labels or targets.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    SequenceData
        `X` holds float64 arrays of shape (n_steps, n_channels), a missing value (``?``) as NaN; `y` the
        class labels (str), the targets (float64), or None.

    Raises
    ------
    ValueError
        If a line breaks the format; the message names the file and the line.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "toy.ts")
    >>> _ = path.write_text("@classLabel true a b\n@data\n1,2,3:4,5,6:a\n7,8:9,?:b\n")
    >>> data = load_ts(path)
    >>> data.X[1].tolist(), data.y.tolist()
    ([[7.0, 9.0], [8.0, nan]], ['a', 'b'])
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = _Lines(file)
        try:
            return _read(lines)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {lines.number}: {error}") from None


class _Lines:
    """The lines that are neither empty nor comments; `number` is where the reader stands."""

    def __init__(self, file: Iterable[str]) -> None:
        self._lines = enumerate(file, start=1)
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for number, text in self._lines:
            self.number = number
            line = text.strip()
            if line and not line.startswith("#"):
                yield line


def _read(lines: _Lines) -> SequenceData:
    header = _Header()
    for line in lines:
        if line.lower() == "@data":
            break
        _read_tag(header, line)
    else:
        raise ValueError("there is no @data line")
    sequences: list[NDArray[np.float64]] = []
    answers: list[str] = []
    for line in lines:
        channels = line.split(":")
        if header.has_label or header.has_target:
            answers.append(_checked_answer(header, channels.pop().strip()))
        sequences.append(_sequence(header, channels))
    if not sequences:
        raise ValueError("no case follows @data")
    names = [f"channel_{index}" for index in range(sequences[0].shape[1])]
    return SequenceData(sequences, _answers(header, answers), names)


def _read_tag(header: _Header, line: str) -> None:
    if not line.startswith("@"):
        raise ValueError(f"expected a line that starts with '@', or @data, found {line[:40]!r}")
    tag, *words = line[1:].split()
    tag = tag.lower()
    if tag == "timestamps" and _flag(tag, words):
        raise ValueError("values with time stamps are not supported: only @timeStamps false")
    if tag in ("dimension", "dimensions"):
        header.dimensions = _count(tag, words)
    elif tag == "serieslength":
        header.series_length = _count(tag, words)
    elif tag == "univariate" and _flag(tag, words):
        header.dimensions = 1
    elif tag == "classlabel":
        header.has_label, header.labels = _flag(tag, words), words[1:]
    elif tag == "targetlabel":
        header.has_target = _flag(tag, words)


def _flag(tag: str, words: list[str]) -> bool:
    if not words or words[0].lower() not in _FLAGS:
        raise ValueError(f"@{tag} needs true or false")
    return _FLAGS[words[0].lower()]


def _count(tag: str, words: list[str]) -> int:
    if len(words) != 1 or not words[0].isdecimal() or int(words[0][:9]) < 1:
        raise ValueError(f"@{tag} needs one whole number above zero")
    return int(words[0][:9])


def _sequence(header: _Header, channels: list[str]) -> NDArray[np.float64]:
    """Array (n_steps, n_channels) of one case."""
    if not channels:
        raise ValueError("the case has a label and no values")
    if header.dimensions is None:
        header.dimensions = len(channels)
    if len(channels) != header.dimensions:
        raise ValueError(f"expected {header.dimensions} channels, found {len(channels)}")
    series = [np.array(_numbers(channel), dtype=np.float64) for channel in channels]
    lengths = sorted({len(values) for values in series})
    if len(lengths) > 1:
        raise ValueError(f"the channels of one case must have one length, found {lengths}")
    if header.series_length is not None and lengths[0] != header.series_length:
        raise ValueError(f"@seriesLength is {header.series_length}, found {lengths[0]} steps")
    return np.stack(series, axis=1)


def _numbers(channel: str) -> list[float]:
    if channel.lstrip().startswith("("):
        raise ValueError("values with time stamps are not supported")
    try:
        return [np.nan if item.strip() == "?" else float(item) for item in channel.split(",")]
    except ValueError:
        raise ValueError(f"not numbers separated by commas: {channel.strip()[:40]!r}") from None


def _checked_answer(header: _Header, answer: str) -> str:
    if header.has_label and header.labels and answer not in header.labels:
        raise ValueError(f"label {answer!r} is not among those of @classLabel")
    if header.has_target:
        float(answer)
    return answer


def _answers(header: _Header, answers: list[str]) -> NDArray[np.str_] | NDArray[np.float64] | None:
    if header.has_label:
        return np.array(answers)
    return np.array([float(answer) for answer in answers]) if header.has_target else None
