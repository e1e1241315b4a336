"""From the data of users to what a network reads: missing values, standardisation, elapsed times.

Estimators and loaded models prepare their input here, whole sequences and single steps alike, so that all of them
give a network the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlstm.missing import MissingValues
from fastlstm.network import SequenceNetwork
from fastlstm.sequences import Sequences, as_sequences, as_times

__all__ = ["Normalization", "Preparation", "fit_missing", "read"]


class Normalization:
    """Standardisation ``(x - mean) / scale`` of each feature, computed in float64; NaN stays NaN.

    Parameters
    ----------
    mean, scale : array-like of shape (n_features,)
        Finite; the scale is above zero.

    Examples
    --------
    >>> sequences = as_sequences([[0.0, 2.0], [4.0]], dtype=np.float64)
    >>> Normalization.of(sequences).apply(sequences).values.ravel().round(3).tolist()
    [-1.225, 0.0, 1.225]
    """

    def __init__(self, mean: ArrayLike, scale: ArrayLike) -> None:
        self.mean = np.asarray(mean, dtype=np.float64)
        self.scale = np.asarray(scale, dtype=np.float64)
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise ValueError(
                "the normalization needs a mean and a scale of shape (n_features,), "
                f"got {self.mean.shape} and {self.scale.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("the normalization needs finite means and finite scales above zero")

    @classmethod
    def of(cls, sequences: Sequences, weights: ArrayLike | None = None) -> Normalization:
        """Mean and standard deviation over all time steps at which a feature was observed (is not NaN).

        A constant feature gets the scale 1, one that was never observed the mean 0 and the scale 1.

        Parameters
        ----------
        sequences : Sequences
        weights : array-like of shape (n_steps_in_all, 1) or (n_steps_in_all, n_features), optional
            How often a value counts.
        """
        values = sequences.values.astype(np.float64, copy=False)
        observed = ~np.isnan(values)
        counts = observed * np.asarray(1.0 if weights is None else weights)
        total = counts.sum(axis=0)
        total[total == 0.0] = 1.0
        values = np.where(observed, values, 0.0)
        mean = (counts * values).sum(axis=0) / total
        scale = np.sqrt((counts * np.square(values - mean)).sum(axis=0) / total)
        constant = scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)
        return cls(mean, np.where(constant, 1.0, scale))

    def apply(self, sequences: Sequences) -> Sequences:
        """New sequences, float64, of the same lengths."""
        return Sequences((sequences.values - self.mean) / self.scale, sequences.offsets)


def fit_missing(
    seqs: Sequences, times: Sequences | None, weights: ArrayLike | None = None
) -> tuple[MissingValues, Normalization]:
    """What the training data say about missing values: the fill, and the standardisation of the inputs.

    Parameters
    ----------
    seqs : Sequences
        The training data, NaN where a value was not observed.
    times : Sequences of one feature or None
        Their elapsed times.
    weights : array-like of shape (len(seqs),), optional
        How often each sequence counts.
    """
    each = np.repeat(np.ones(len(seqs)) if weights is None else np.asarray(weights), seqs.lengths)
    observed = _ordered_statistics(seqs, each)
    missing = MissingValues(observed.mean)
    delta = missing.apply(seqs, times).values[:, -seqs.n_features :]
    squares = _ordered_statistics(Sequences(np.square(delta), seqs.offsets), each).mean
    return missing, Normalization(*missing.scaling(observed.scale, np.sqrt(squares)))


def _ordered_statistics(seqs: Sequences, weights: NDArray[Any]) -> Normalization:
    """`Normalization.of` with sums in the order of the values, so that the order of sequences changes no bit."""
    order = np.argsort(seqs.values, axis=0, kind="stable")
    in_order = Sequences(np.take_along_axis(seqs.values, order, axis=0), seqs.offsets)
    return Normalization.of(in_order, weights[order])


def read(
    X: Any,
    lengths: ArrayLike | None,
    delta_t: Any,
    *,
    dtype: np.dtype[Any],
    cell: str,
    takes_time: bool,
    observe: bool,
    name: str = "X",
    times_name: str = "delta_t",
) -> tuple[Sequences, Sequences | None]:
    """Checked sequences and elapsed times.

    Parameters
    ----------
    X, lengths, delta_t
        As estimators take them.
    dtype : dtype
        Of the sequences.
    cell : str
        For the error message.
    takes_time, observe : bool
        Whether the cell takes elapsed times, and whether NaN stands for a value that was not observed.
    name, times_name : str
        For error messages.

    Raises
    ------
    ValueError
        For whatever `as_sequences` and `as_times` refuse, and for times that nothing would use.
    """
    if delta_t is not None and not (takes_time or observe):
        raise ValueError(
            f"delta_t goes with cell='tlstm' or missing='observe'; with cell={cell!r} nothing would use it"
        )
    seqs = as_sequences(X, lengths, dtype=dtype, name=name, allow_nan=observe)
    times = None if delta_t is None else as_times(delta_t, seqs, lengths, name=times_name, of=name)
    return seqs, times


def frame_columns(X: Any) -> list[str] | None:
    """Names of the features of a list of data frames; None for everything else.

    Raises
    ------
    ValueError
        If two frames have different columns.
    """
    if not isinstance(X, (list, tuple)) or not all(hasattr(item, "columns") for item in X):
        return None
    columns = [str(name) for name in X[0].columns]
    for i, item in enumerate(X):
        if [str(name) for name in item.columns] != columns:
            raise ValueError(f"X[{i}] has the columns {list(item.columns)}, but X[0] has {columns}")
    return columns


def check_columns(X: Any, expected: list[str] | None) -> None:
    """Raise ValueError if X is a list of data frames of different columns, or of others than `expected`, if known."""
    names = frame_columns(X)
    if names is not None and expected is not None and names != expected:
        raise ValueError(
            f"The feature names should match those that were passed during fit: expected {expected}, got {names}."
        )


def hint_of_one(X: Any, n_features: int) -> str:
    """A sentence for whoever gave one sequence (time, features) where several were expected; else nothing."""
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if len(shape) != 2 or shape[1] != n_features:
        return ""
    return " A 2-D array holds one univariate sequence a row; one sequence of shape (time, features) is given as [X]."


class Preparation:
    """What stands between the data and a network.

    Parameters
    ----------
    network : SequenceNetwork
    missing : MissingValues, optional
        None: every value is there.
    normalization : Normalization, optional
        Of what `missing` makes of the data, or of the data.

    Attributes
    ----------
    n_features : int
        Features of the data.
    dtype : dtype
        In which the data are to be read.

    Raises
    ------
    ValueError
        If the parts do not fit each other.
    """

    def __init__(
        self,
        network: SequenceNetwork,
        missing: MissingValues | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        n_inputs = int(network.encoder.input_size)
        if normalization is not None and len(normalization.mean) != n_inputs:
            raise ValueError(
                f"the normalization has {len(normalization.mean)} features and the network {n_inputs}"
            )
        if missing is not None and missing.n_inputs != n_inputs:
            raise ValueError(
                f"{missing.n_features} features with missing values make {missing.n_inputs} inputs, "
                f"but the network has {n_inputs}"
            )
        self.network, self.missing, self.normalization = network, missing, normalization
        self.n_features = n_inputs if missing is None else missing.n_features
        direct = missing is None and normalization is None
        self.dtype = network.dtype if direct else np.dtype(np.float64)

    def read(self, X: Any, lengths: ArrayLike | None, delta_t: Any) -> tuple[Sequences, Sequences | None]:
        """Checked sequences and elapsed times; the number of features is left to the caller."""
        return read(
            X,
            lengths,
            delta_t,
            dtype=self.dtype,
            cell=self.network.encoder.cell,
            takes_time=self.network.takes_time,
            observe=self.missing is not None,
        )

    def apply(self, seqs: Sequences, times: Sequences | None) -> Sequences:
        """What the network reads, in its dtype."""
        if self.missing is not None:
            seqs = self.missing.apply(seqs, times)
        if self.normalization is not None:
            seqs = self.normalization.apply(seqs)
        if self.dtype != self.network.dtype:
            seqs = as_sequences(seqs, dtype=self.network.dtype, name="standardised X")
        return self.network.with_times(seqs, times if self.network.takes_time else None)
