"""A trainable network: recurrent encoder, pooling over time, dense head.

All parameters lie in one array and all gradients in another, so the optimizer, gradient clipping and
checkpoints each make one pass over contiguous memory. Minibatches are given as row ranges of a
:class:`fastlstm.Sequences`: nothing is gathered or padded here, and there is no work per time step in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastlstm import layers
from fastlstm._core import sum_steps

if TYPE_CHECKING:
    from fastlstm.losses import Loss
    from fastlstm.sequences import Sequences

Array = NDArray[Any]

__all__ = ["POOLINGS", "SequenceNetwork"]

#: How the outputs of all time steps become one vector per sequence.
POOLINGS = ("last", "mean", "max")

_ALIGNMENT = 64  # bytes, at which each layer's parameters start in the arena
_MAX_BATCH_STEPS = 1 << 18  # time steps of one inference batch
_MAX_BATCH_BYTES = 1 << 25  # of the outputs of one inference batch, where they are needed
_SMALL = 1 << 16  # elements that stay in the cache

_ENCODERS: dict[str, Any] = {"LSTM": layers.LSTM, "Stack": layers.Stack}


def _aligned_zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """Zeros of shape (size,) whose first element lies at a multiple of 64 bytes."""
    raw = np.zeros(size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


class SequenceNetwork:
    """Encoder, pooling and head over one parameter array.

    Parameters
    ----------
    encoder : fastlstm.layers.LSTM or fastlstm.layers.Stack
        Or any layer with their interface; the network takes over its parameters.
    n_outputs : int
        Raw outputs per sequence.
    pooling : {"last", "mean", "max"}
        What the head sees: the encoder's output after all steps (of both directions, where there are two), or the
        mean or maximum over time of its outputs.
    head_dropout : float in [0, 1)
        Share of the head's inputs that is zeroed during training.
    random_state : int, numpy Generator or RandomState, optional
        For the head's initial weights.

    Attributes
    ----------
    flat, flat_grads : ndarray of shape (n,)
        All parameters and their gradients. Call :meth:`parameters_changed` after writing to `flat`.
    dtype : numpy.dtype

    Raises
    ------
    ValueError
        If `pooling`, `n_outputs` or `head_dropout` is not one of the above.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm import as_sequences
    >>> from fastlstm.layers import LSTM
    >>> from fastlstm.network import SequenceNetwork
    >>> network = SequenceNetwork(LSTM(3, 8, random_state=0), n_outputs=2, random_state=0)
    >>> network.predict(as_sequences([np.ones((5, 3)), np.ones((2, 3))])).shape
    (2, 2)
    """

    def __init__(
        self,
        encoder: Any,
        n_outputs: int,
        *,
        pooling: str = "last",
        head_dropout: float = 0.0,
        random_state: Any = None,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}; got {pooling!r}")
        if not 0.0 <= head_dropout < 1.0:
            raise ValueError(f"head_dropout must lie in [0, 1); got {head_dropout!r}")
        if int(n_outputs) != n_outputs or n_outputs < 1:
            raise ValueError(f"n_outputs must be a whole number, at least 1; got {n_outputs!r}")
        self.encoder = encoder
        self.n_outputs = int(n_outputs)
        self.pooling = pooling
        self.head_dropout = float(head_dropout)
        self.dtype = np.dtype(encoder.dtype)
        self.head = layers.Dense(
            encoder.output_size, self.n_outputs, dtype=self.dtype.name, random_state=random_state
        )
        self._bind()

    def _bind(self) -> None:
        """Move the parameters of both layers into one arena, each at an aligned place."""
        unit = _ALIGNMENT // self.dtype.itemsize
        head_at = -(-self.encoder.n_parameters // unit) * unit
        size = head_at + self.head.n_parameters
        self.flat = _aligned_zeros(size, self.dtype)
        self.flat_grads = _aligned_zeros(size, self.dtype)
        self._places: list[tuple[str, int, tuple[int, ...]]] = []
        for prefix, layer, at in (("encoder", self.encoder, 0), ("head", self.head, head_at)):
            span = slice(at, at + layer.n_parameters)
            values = layer.flat.copy()
            layer.bind(self.flat[span], self.flat_grads[span])
            self.flat[span] = values
            for name, shape in layer.parameter_shapes:
                self._places.append((f"{prefix}.{name}", at, tuple(shape)))
                at += int(np.prod(shape))
        self._tape: Any = None
        self.parameters_changed()

    # ------------------------------------------------------------------ parameters

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return int(self.encoder.n_parameters + self.head.n_parameters)

    @property
    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each parameter, in the order of the arena."""
        return [(name, shape) for name, _, shape in self._places]

    def named_views(self, arena: Array) -> dict[str, Array]:
        """Views of an array laid out like `flat`, by parameter name."""
        return {name: arena[at : at + int(np.prod(shape))].reshape(shape) for name, at, shape in self._places}

    @property
    def parameters(self) -> dict[str, Array]:
        """Read-only views of the parameters by name: ``"encoder.weight_ih_l0"``, ..., ``"head.bias"``."""
        views = self.named_views(self.flat)
        for view in views.values():
            view.flags.writeable = False
        return views

    @property
    def gradients(self) -> dict[str, Array]:
        """Views of the gradients by name."""
        return self.named_views(self.flat_grads)

    def load_parameters(self, mapping: Mapping[str, Any], strict: bool = True) -> None:
        """Set parameters by name.

        Parameters
        ----------
        mapping : mapping of str to array-like
            Names and shapes as in :attr:`parameters`.
        strict : bool
            Whether `mapping` must hold every parameter and nothing else.

        Raises
        ------
        ValueError
            If a name is missing or unknown (with `strict`), or a shape is wrong; no parameter is changed
            then.
        """
        views = self.named_views(self.flat)
        missing, unknown = sorted(views.keys() - mapping.keys()), sorted(mapping.keys() - views.keys())
        if strict and (missing or unknown):
            raise ValueError(f"parameters do not fit the network: missing {missing}, unknown {unknown}")
        checked = {name: np.asarray(mapping[name]) for name in views if name in mapping}
        for name, value in checked.items():
            if value.shape != views[name].shape:
                raise ValueError(f"parameter {name!r} must have shape {views[name].shape}; got {value.shape}")
        for name, value in checked.items():
            views[name][...] = value
        self.parameters_changed()

    def weight_views(self, arena: Array) -> list[Array]:
        """Flat views of the weights, biases left out, in an array laid out like `flat`."""
        spans = [
            (at, at + int(np.prod(shape)))
            for name, at, shape in self._places
            if not name.rpartition(".")[2].startswith("bias")
        ]
        merged: list[tuple[int, int]] = []
        for begin, end in spans:
            if merged and merged[-1][1] == begin:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((begin, end))
        return [arena[begin:end] for begin, end in merged]

    def parameters_changed(self) -> None:
        """Tell the layers that `flat` was written to."""
        self.encoder.parameters_changed()
        self.head.parameters_changed()

    # ------------------------------------------------------------------ pooling

    def _pool(
        self, y: Array | None, state: tuple[Array, ...], values: Array, starts: Array, lengths: Array
    ) -> Array:
        """What the head sees, (B, output_size), of a run of the encoder with those arguments."""
        if self.pooling == "last":
            return np.asarray(self.encoder.last_output(values, starts, lengths, state))
        assert y is not None
        if self.pooling == "max":
            return _maximum_of_each(y, lengths)
        sums = np.zeros((len(lengths), y.shape[1]))
        sum_steps(y, lengths, sums)
        return (sums / lengths[:, None]).astype(y.dtype, copy=False)

    def _backward_to_encoder(self, y: Array | None, lengths: Array, d_pooled: Array) -> None:
        """Gradients of the encoder from the one of the pooled vectors, (B, output_size)."""
        if self.pooling == "last":
            self.encoder.run_backward(self._tape, d_last=d_pooled)
            return
        assert y is not None
        if self.pooling == "mean":
            dy = np.repeat(d_pooled / lengths[:, None].astype(y.dtype), lengths, axis=0)
        else:
            dy = _scatter_to_maximum(y, lengths, d_pooled)
        self.encoder.run_backward(self._tape, dy, None)

    # ------------------------------------------------------------------ training

    def loss_and_gradient(
        self,
        seqs: Sequences,
        index: Array,
        loss: Loss,
        targets: Array,
        weights: Array | None,
        rng_key: int,
    ) -> float:
        """Mean loss of the minibatch `index` of `seqs`; writes (=) its gradient to `flat_grads`.

        Parameters
        ----------
        seqs : Sequences of the network's dtype
        index : ndarray of int, shape (B,)
            Sequences of the minibatch.
        loss : Loss
        targets : ndarray
            One row per sequence of `seqs`, as :meth:`Loss.check_targets` returns them.
        weights : ndarray of shape (len(seqs),) or None
        rng_key : int
            Chooses the dropout masks.

        Returns
        -------
        float
        """
        offsets = seqs.offsets
        starts = offsets[index]
        lengths = offsets[index + 1] - starts
        batch_weights = None if weights is None else weights[index]
        return self.step_gradient(seqs.values, starts, lengths, loss, targets[index], batch_weights, rng_key)

    def step_gradient(
        self,
        values: Array,
        starts: Array,
        lengths: Array,
        loss: Loss,
        targets: Array,
        weights: Array | None,
        rng_key: int,
    ) -> float:
        """As :meth:`loss_and_gradient`, with the minibatch given by the row ranges of its sequences.

        Sequence b is rows ``starts[b]`` to ``starts[b] + lengths[b] - 1`` of `values` (rows, n_features);
        `targets` and `weights` have one row per sequence of the minibatch. Nothing is checked.
        """
        want_y = self.pooling != "last"
        values, starts, weights_of_time = self._apart(values, starts, lengths)
        y, state, self._tape = self.encoder.run_training(
            values, starts, lengths, want_y=want_y, tape=self._tape, rng_key=rng_key, **weights_of_time
        )
        features = self._pool(y, state, values, starts, lengths)
        mask = self._head_mask(features.shape, rng_key) if self.head_dropout else None
        if mask is not None:
            features = features * mask
        outputs = self.head.forward(features)
        value, d_outputs = loss.value_and_gradient(outputs, targets, weights)
        d_features = self.head.backward(features, d_outputs)
        assert d_features is not None
        if mask is not None:
            d_features = d_features * mask
        self._backward_to_encoder(y, lengths, d_features)
        return value

    def _head_mask(self, shape: tuple[int, ...], rng_key: int) -> Array:
        """Dropout mask of the head's inputs, 0 or ``1 / (1 - head_dropout)``; a function of `rng_key`."""
        keep = 1.0 - self.head_dropout
        generator = np.random.Generator(np.random.Philox(key=rng_key))
        kept = generator.random(shape, dtype=np.float32) < keep
        return kept.astype(self.dtype) * self.dtype.type(1.0 / keep)

    # ------------------------------------------------------------------ inference

    def predict(self, seqs: Sequences) -> Array:
        """Raw outputs of every sequence.

        Parameters
        ----------
        seqs : Sequences

        Returns
        -------
        ndarray of shape (len(seqs), n_outputs), in the order of `seqs`

        Raises
        ------
        ValueError
            If the number of features is not the encoder's.
        """
        self.check_sequences(seqs)
        values = np.ascontiguousarray(seqs.values, self.dtype)
        offsets = np.asarray(seqs.offsets, np.int64)
        outputs = np.empty((len(offsets) - 1, self.n_outputs), self.dtype)
        for rows in self._inference_batches(np.diff(offsets)):
            starts = offsets[rows]
            lengths = offsets[rows + 1] - starts
            rows_of_x, starts, weights_of_time = self._apart(values, starts, lengths)
            y, state = self.encoder.run(
                rows_of_x, starts, lengths, want_y=self.pooling != "last", **weights_of_time
            )
            outputs[rows] = self.head.forward(self._pool(y, state, rows_of_x, starts, lengths))
        return outputs

    def check_sequences(self, seqs: Sequences, name: str = "X") -> None:
        """Raise ValueError if `seqs` have another number of features than the encoder takes."""
        timed = self.takes_time and seqs.n_features == self.encoder.input_size + 1
        if seqs.n_features != self.encoder.input_size and not timed:
            raise ValueError(
                f"{name} has {seqs.n_features} features per time step, but the network was built for "
                f"{self.encoder.input_size}"
            )

    # ------------------------------------------------------------------ elapsed times

    @property
    def takes_time(self) -> bool:
        """Whether the encoder's cell has a use for elapsed times."""
        return bool(getattr(self.encoder, "takes_time", False))

    def with_times(self, seqs: Sequences, times: Sequences | None) -> Sequences:
        """Sequences with one column more, the weights g(delta_t) of their elapsed times, for a network that takes them.

        The column goes wherever the sequences go, so that shuffling, batching and checkpoints know nothing of
        times; minibatches are taken apart again before the encoder sees them.

        Parameters
        ----------
        seqs : Sequences of `input_size` features
        times : Sequences of one feature, or None
            Elapsed times, as :func:`fastlstm.sequences.as_times` returns them. None: no time passes.

        Returns
        -------
        Sequences
            `seqs` itself without times.

        Raises
        ------
        ValueError
            If the cell takes no times, or the weight of a time overflows.
        """
        if times is None:
            return seqs
        self.encoder.check_takes_time()
        with np.errstate(over="ignore"):
            weights = self.encoder.time_weights(times.values)
        if not np.isfinite(weights).all():
            sequence, step = times.place(int(np.argmin(np.isfinite(weights[:, 0]))))
            raise ValueError(
                f"delta_t at sequence {sequence}, time step {step} is too close to 0 for "
                f"time_decay={self.encoder.time_decay!r} in {self.dtype}: its weight 1 / delta_t overflows"
            )
        values = np.concatenate((seqs.values.astype(self.dtype, copy=False), weights), axis=1)
        return type(seqs)(values, seqs.offsets)

    def _apart(self, values: Array, starts: Array, lengths: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Rows and starts for the encoder, and its weights of time by keyword, if `values` have that column."""
        width = self.encoder.input_size
        if values.shape[1] == width:
            return values, starts, {}
        firsts = np.cumsum(lengths) - lengths
        rows = np.arange(int(lengths.sum())) + np.repeat(starts - firsts, lengths)
        taken = values[rows]
        decay = np.ascontiguousarray(taken[:, width])
        return np.ascontiguousarray(taken[:, :width]), firsts, {"decay": decay}

    def _inference_batches(self, lengths: Array) -> Iterator[Array]:
        """Index arrays that cover all sequences, the longest first, each of bounded memory."""
        budget = _MAX_BATCH_STEPS
        if self.pooling != "last":
            budget = min(budget, _MAX_BATCH_BYTES // (self.encoder.output_size * self.dtype.itemsize))
        order = np.argsort(-lengths, kind="stable")
        ends = np.cumsum(lengths[order])
        first = 0
        while first < len(order):
            done = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + budget, side="right")))
            yield order[first:last]
            first = last

    # ------------------------------------------------------------------ configuration

    def get_config(self) -> dict[str, Any]:
        """Everything but the parameters; JSON-able."""
        kind = {"encoder_type": "Stack"} if isinstance(self.encoder, layers.Stack) else {}
        return {
            **kind,
            "encoder": self.encoder.get_config(),
            "n_outputs": self.n_outputs,
            "pooling": self.pooling,
            "head_dropout": self.head_dropout,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SequenceNetwork:
        """Network of that configuration, with initial parameters of its own.

        Raises
        ------
        ValueError
            If the configuration has missing or unknown entries, or another type of encoder.
        """
        entries = dict(config)
        missing = {"encoder", "n_outputs"} - entries.keys()
        unknown = entries.keys() - {"encoder", "encoder_type", "n_outputs", "pooling", "head_dropout"}
        if missing or unknown:
            raise ValueError(
                f"network configuration: missing {sorted(missing)}, unknown entries {sorted(unknown)}"
            )
        kind = entries.pop("encoder_type", "LSTM")
        if kind not in _ENCODERS:
            raise ValueError(f"encoder_type must be one of {', '.join(_ENCODERS)}; got {kind!r}")
        encoder = _ENCODERS[kind].from_config(entries.pop("encoder"))
        return cls(encoder, entries.pop("n_outputs"), random_state=0, **entries)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.get_config(), "parameters": self.flat.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(type(self).from_config(state["config"]).__dict__)
        self.flat[:] = state["parameters"]
        self.parameters_changed()

    def __repr__(self) -> str:
        return (
            f"SequenceNetwork({self.encoder!r}, n_outputs={self.n_outputs}, pooling={self.pooling!r}, "
            f"head_dropout={self.head_dropout})"
        )


def _maximum_of_each(y: Array, lengths: Array) -> Array:
    """Maximum over the steps of each sequence: (B, D) from y (sum of lengths, D).

    Small arrays take one ``reduceat``; large ones, where its order of access misses the cache, one call per
    sequence.
    """
    firsts = np.cumsum(lengths) - lengths
    if y.size <= _SMALL:
        return np.asarray(np.maximum.reduceat(y, firsts, axis=0))
    reduced = np.empty((len(lengths), y.shape[1]), y.dtype)
    for row, (begin, length) in enumerate(zip(firsts.tolist(), lengths.tolist(), strict=True)):
        np.maximum.reduce(y[begin : begin + length], axis=0, out=reduced[row])
    return reduced


def _scatter_to_maximum(y: Array, lengths: Array, d_pooled: Array) -> Array:
    """Gradient of y (sum of lengths, D): `d_pooled[b]` goes to the first maxima of sequence b."""
    dy = np.zeros_like(y)
    columns = np.arange(y.shape[1])
    begin = 0
    for row, length in enumerate(lengths.tolist()):
        best = y[begin : begin + length].argmax(axis=0)
        dy[begin + best, columns] = d_pooled[row]
        begin += length
    return dy
