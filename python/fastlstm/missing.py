"""Missing values: what was last seen, whether it was seen now, and how long ago that was.

A network cannot read NaN, and a filled gap looks like a measurement. Here every feature becomes three: its last
observed value, a mask, and the time since it was last observed, the inputs x, m and delta of the model "GRU-simple"
of Che, Purushotham, Cho, Sontag and Liu, Recurrent neural networks for multivariate time series with missing
values, Scientific Reports 8:6085, 2018. All three look back only, so they can be had one step at a time:
:meth:`MissingValues.apply` takes whole sequences, :class:`MissingValueStream` steps, with the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlstm.sequences import Sequences

__all__ = ["MissingValueStream", "MissingValues"]

Array = NDArray[Any]


class MissingValues:
    """Turns sequences with NaN for what was not observed into inputs of three times as many features.

    With elapsed times delta_t, mask m and delta of a feature at step t are::

        m_t     = 1 if x_t was observed, else 0
        delta_t = 0 at the first step; delta_t(elapsed) + (1 - m_{t-1}) * delta_{t-1} after it

    Parameters
    ----------
    fill : array-like of shape (n_features,)
        What stands for a feature before it was first observed, in the units of the data: the mean of the training
        data.

    Attributes
    ----------
    fill : ndarray of shape (n_features,)
    n_features : int
        Features of the data.
    n_inputs : int
        Features of the result: 3 * n_features.

    Raises
    ------
    ValueError
        If `fill` has another shape or is not finite.

    References
    ----------
    Z. Che et al., Scientific Reports 8:6085, 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm import as_sequences
    >>> X = as_sequences([[np.nan, 3.0, np.nan, np.nan, 5.0]], dtype=np.float64, allow_nan=True)
    >>> MissingValues([4.0]).apply(X).values.tolist()
    [[4.0, 0.0, 0.0], [3.0, 1.0, 1.0], [3.0, 0.0, 1.0], [3.0, 0.0, 2.0], [5.0, 1.0, 3.0]]
    """

    def __init__(self, fill: ArrayLike) -> None:
        self.fill = np.asarray(fill, dtype=np.float64)
        if self.fill.ndim != 1 or not self.fill.size or not np.isfinite(self.fill).all():
            raise ValueError(
                f"fill must hold one finite number per feature, shape (n_features,), got {self.fill!r}"
            )
        self.n_features = len(self.fill)
        self.n_inputs = 3 * self.n_features

    def apply(self, seqs: Sequences, times: Sequences | None = None) -> Sequences:
        """Inputs of whole sequences.

        Parameters
        ----------
        seqs : Sequences of `n_features` features
            NaN where a value was not observed.
        times : Sequences of one feature, optional
            Time since the step before, as :func:`fastlstm.sequences.as_times` returns it; that of a first step
            does not count. None: 1, so that delta counts steps.

        Returns
        -------
        Sequences of `n_inputs` features, float64
            Last observed values, masks, times since last observed; `n_features` columns each.
        """
        values = seqs.values
        first = np.repeat(seqs.offsets[:-1], seqs.lengths)[:, None]
        rows = np.arange(len(values))[:, None]
        observed = ~np.isnan(values)
        last = np.maximum.accumulate(np.where(observed, rows, -1), axis=0)
        before = np.vstack((np.full_like(last[:1], -1), last[:-1]))
        clock = self._clock(seqs, times)

        found = np.empty((len(values), self.n_inputs))
        shown, mask, delta = np.split(found, 3, axis=1)
        shown[...] = np.where(
            last >= first, np.take_along_axis(values, np.maximum(last, 0), axis=0), self.fill
        )
        mask[...] = observed
        delta[...] = clock[:, None] - np.where(before >= first, clock[np.maximum(before, 0)], 0.0)
        return Sequences(found, seqs.offsets)

    @staticmethod
    def _clock(seqs: Sequences, times: Sequences | None) -> Array:
        """Time since the first step of its sequence, (rows,); summed as a stream sums it."""
        offsets = seqs.offsets
        if times is None:
            return np.arange(len(seqs.values), dtype=np.float64) - np.repeat(offsets[:-1], seqs.lengths)
        passed = times.values[:, 0].copy()
        passed[offsets[:-1]] = 0.0
        for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            np.cumsum(passed[begin:end], out=passed[begin:end])
        return passed

    def scaling(self, scale: ArrayLike, typical_delta: ArrayLike) -> tuple[Array, Array]:
        """Mean and scale (n_inputs,) that standardise the inputs.

        Values get the mean `fill` and their own scale; masks stay 0 and 1; the times since last observed are
        divided by a typical one, so that 0 stays 0.

        Parameters
        ----------
        scale : array-like of shape (n_features,)
            Of the observed values, above 0.
        typical_delta : array-like of shape (n_features,)
            Root mean square of the times since last observed; 0 counts as 1.
        """
        n = self.n_features
        typical = np.asarray(typical_delta, np.float64)
        mean = np.concatenate((self.fill, np.zeros(2 * n)))
        return mean, np.concatenate((scale, np.ones(n), np.where(typical == 0.0, 1.0, typical)))

    def stream(self, n_streams: int = 1) -> MissingValueStream:
        """The step form, for `n_streams` sequences that advance together."""
        return MissingValueStream(self, n_streams)


class MissingValueStream:
    """Step form of :class:`MissingValues`: gives the rows of :meth:`MissingValues.apply` one at a time.

    Parameters
    ----------
    missing : MissingValues
    n_streams : int, default=1

    Attributes
    ----------
    memory : tuple of ndarray of shape (n_streams, ...)
        All that the next steps depend on; zeros mean the start of a sequence.

    Examples
    --------
    >>> import numpy as np
    >>> stream = MissingValues([4.0]).stream()
    >>> [stream.step(np.array([[x]])).tolist() for x in (np.nan, 3.0, np.nan)]
    [[[4.0, 0.0, 0.0]], [[3.0, 1.0, 1.0]], [[3.0, 0.0, 1.0]]]
    """

    def __init__(self, missing: MissingValues, n_streams: int = 1) -> None:
        shape = (n_streams, missing.n_features)
        self._fill = missing.fill
        self._started = np.zeros(n_streams)
        self._clock = np.zeros(n_streams)
        self._seen = np.zeros(shape, bool)
        self._seen_at = np.zeros(shape)
        self._value = np.zeros(shape)
        self._found = np.empty((n_streams, missing.n_inputs))
        self.memory = (self._started, self._clock, self._seen, self._seen_at, self._value)

    def step(self, x_t: Array, delta_t: Array | None = None) -> Array:
        """Inputs (n_streams, n_inputs) of the next step; the array is overwritten by the step after it.

        Parameters
        ----------
        x_t : ndarray of shape (n_streams, n_features)
            NaN where a value was not observed.
        delta_t : ndarray of shape (n_streams,), optional
            Time since the step before, at least 0; None: 1.
        """
        shown, mask, delta = np.split(self._found, 3, axis=1)
        self._clock += self._started * (1.0 if delta_t is None else delta_t)
        self._started[...] = 1.0
        np.subtract(self._clock[:, None], self._seen_at, out=delta)
        observed = ~np.isnan(x_t)
        mask[...] = observed
        np.copyto(self._value, x_t, where=observed)
        np.copyto(self._seen_at, self._clock[:, None], where=observed)
        self._seen |= observed
        np.copyto(shown, self._fill)
        np.copyto(shown, self._value, where=self._seen)
        return self._found
