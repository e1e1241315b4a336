"""The Japanese Vowels data set, which comes with the package."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

_OFFSET = 1 << 22  # makes the whole millionths positive

SequenceList = list[NDArray[np.float32]]
Labels = NDArray[np.str_]


@dataclass(frozen=True)
class JapaneseVowels:
    """What `load_japanese_vowels` returns.

    Attributes
    ----------
    X_train, X_test : list of ndarray of shape (n_steps, 12), float32
    y_train, y_test : ndarray of str
    feature_names, target_names : list of str
    DESCR : str
        Origin, licence (CC BY 4.0) and content of the data.
    """

    X_train: SequenceList
    X_test: SequenceList
    y_train: Labels
    y_test: Labels
    feature_names: list[str]
    target_names: list[str]
    DESCR: str

    def __repr__(self) -> str:
        return (
            f"JapaneseVowels({len(self.X_train)} training and {len(self.X_test)} test sequences, 12 channels)"
        )


@overload
def load_japanese_vowels(*, return_X_y: Literal[False] = False) -> JapaneseVowels: ...
@overload
def load_japanese_vowels(
    *, return_X_y: Literal[True]
) -> tuple[SequenceList, SequenceList, Labels, Labels]: ...
def load_japanese_vowels(*, return_X_y: bool = False) -> Any:
    """Load 640 utterances of /ae/ by nine speakers: ragged sequences of 12 cepstrum coefficients.

    270 sequences are for training and 370 for testing; they have 7 to 29 time steps. The task is to
    tell the speaker, ``'1'`` to ``'9'``. Nothing is downloaded: the data come with the package.

    Parameters
    ----------
    return_X_y : bool, default False
        Return ``X_train, X_test, y_train, y_test`` (the order of `train_test_split`) alone.

    Returns
    -------
    data : JapaneseVowels, or a tuple of four if `return_X_y`

    References
    ----------
    M. Kudo, J. Toyama and M. Shimbo, "Multidimensional curve classification using passing-through
    regions", Pattern Recognition Letters 20, 1999. UCI, https://doi.org/10.24432/C5NS47, CC BY 4.0.

    Examples
    --------
    >>> from fastlstm.datasets import load_japanese_vowels
    >>> data = load_japanese_vowels()
    >>> data
    JapaneseVowels(270 training and 370 test sequences, 12 channels)
    >>> data.X_train[0].shape, data.y_train[:3].tolist()
    ((20, 12), ['1', '1', '1'])
    """
    folder = resources.files("fastlstm.datasets") / "data"
    with np.load(io.BytesIO((folder / "japanese_vowels.npz").read_bytes()), allow_pickle=False) as stored:
        planes, lengths = stored["planes"].astype(np.int64), stored["lengths"].astype(np.int64)
        labels, n_train = stored["labels"].astype(np.str_), int(stored["n_train"])
    millionths = planes[0] + (planes[1] << 8) + (planes[2] << 16) - _OFFSET
    values = np.ascontiguousarray((millionths / 1e6).astype(np.float32).T)
    sequences = np.split(values, np.cumsum(lengths)[:-1])
    parts = sequences[:n_train], sequences[n_train:], labels[:n_train], labels[n_train:]
    if return_X_y:
        return parts
    return JapaneseVowels(
        *parts,
        feature_names=[f"cepstrum_{index}" for index in range(1, values.shape[1] + 1)],
        target_names=sorted(set(labels.tolist())),
        DESCR=(folder / "japanese_vowels.txt").read_text(encoding="utf-8"),
    )
