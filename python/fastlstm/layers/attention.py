"""Attention over the steps of sequences: a weighted mean of the real steps, the weights from scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.layers._parameters import (
    Parameterized,
    as_dtype,
    as_generator,
    as_lengths,
    as_real_array,
    as_size,
)

_KINDS = ("additive", "scaled_dot")


class AttentionTape:
    """What a forward pass of :class:`Attention` leaves for the backward pass."""

    __slots__ = (
        "hidden",
        "keys",
        "lengths",
        "owner",
        "projected",
        "query",
        "rows",
        "shape",
        "single",
        "weights",
    )

    def __init__(self, owner: Attention) -> None:
        self.owner: Attention | None = owner
        self.shape: tuple[int, ...]  # of x
        self.single: bool  # whether there is one query a sequence, without an axis of its own
        self.lengths: np.ndarray
        self.rows: np.ndarray  # real steps of x, (sum of lengths, input_size)
        self.keys: np.ndarray  # (sum of lengths, attention_size)
        self.query: np.ndarray | None  # (batch * queries, query_size)
        self.projected: np.ndarray  # (batch, queries, attention_size)
        self.weights: list[np.ndarray] = []  # of each sequence, (queries, length)
        self.hidden: list[np.ndarray] = []  # additive only, (queries, length, attention_size)


class Attention(Parameterized):
    """Summarise each sequence by a mean of its steps whose weights depend on the steps and on a query.

    For a query q and steps x_1 ... x_T the result is ``sum_t a_t x_t`` with ``a = softmax(score)`` over the
    real steps, and ::

        additive     score_t = v . tanh(W_k x_t + b_k + W_q q)
        scaled_dot   score_t = (W_k x_t) . (W_q q) / sqrt(attention_size)

    Without queries from outside (`query_size` None) one learned query serves all sequences, and the layer is
    a pooling over time.

    Parameters
    ----------
    input_size : int
        Features of a step.
    query_size : int, default=None
        Features of a query; None: the query is learned.
    attention_size : int, default=None
        Features in which steps and queries are compared; None: `input_size`.
    kind : {"additive", "scaled_dot"}, default="additive"
        How steps are scored.
    dtype : {"float32", "float64"}, default="float32"
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises uniformly in +-1/sqrt(n), where n is the number of columns.

    Attributes
    ----------
    parameters : dict of str to ndarray
        ``weight_k`` (attention, input); ``bias_k`` (attention,) and ``score`` (attention,), the v above, if
        additive; ``weight_q`` (attention, query), or for a learned query of "scaled_dot" ``query``
        (attention,). A learned query of "additive" would only add to ``bias_k``, so there is none.

    Notes
    -----
    Padding is never read: whatever stands there, NaN included, results and gradients are the same to the bit.

    References
    ----------
    D. Bahdanau, K. Cho and Y. Bengio, "Neural machine translation by jointly learning to align and
    translate", ICLR 2015 (additive); A. Vaswani et al., "Attention is all you need", NeurIPS 2017 (scaled
    dot); Z. Yang et al., "Hierarchical attention networks for document classification", NAACL 2016 (learned
    query).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import Attention
    >>> pool = Attention(3, random_state=0)
    >>> context, weights = pool(np.ones((2, 4, 3)), lengths=[4, 2])
    >>> context.shape, weights.tolist()
    ((2, 3), [[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    """

    def __init__(
        self,
        input_size: int,
        query_size: int | None = None,
        attention_size: int | None = None,
        *,
        kind: str = "additive",
        dtype: Any = "float32",
        random_state: Any = None,
    ) -> None:
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}; got {kind!r}")
        self.kind = kind
        self.input_size = as_size(input_size, "input_size")
        self.query_size = None if query_size is None else as_size(query_size, "query_size")
        self.attention_size = (
            self.input_size if attention_size is None else as_size(attention_size, "attention_size")
        )
        self.dtype = as_dtype(dtype)
        self.parameter_shapes = self._shapes()
        random = as_generator(random_state)
        columns = {"weight_k": self.input_size, "bias_k": self.input_size, "weight_q": self.query_size}
        values = [
            random.uniform(-1.0, 1.0, np.prod(shape)) / np.sqrt(columns.get(name) or self.attention_size)
            for name, shape in self.parameter_shapes
        ]
        self._allocate(np.concatenate(values))

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        size, additive = self.attention_size, self.kind == "additive"
        shapes: list[tuple[str, tuple[int, ...]]] = [("weight_k", (size, self.input_size))]
        if additive:
            shapes += [("bias_k", (size,)), ("score", (size,))]
        if self.query_size is not None:
            shapes.append(("weight_q", (size, self.query_size)))
        elif not additive:
            shapes.append(("query", (size,)))
        return shapes

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "input_size": self.input_size,
            "query_size": self.query_size,
            "attention_size": self.attention_size,
            "kind": self.kind,
            "dtype": self.dtype.name,
        }

    def __call__(self, x: Any, query: Any = None, lengths: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Results and weights, without a tape; arguments as of :meth:`forward`."""
        context, weights, _ = self.forward(x, query, lengths)
        return context, weights

    def forward(
        self, x: Any, query: Any = None, lengths: Any = None
    ) -> tuple[np.ndarray, np.ndarray, AttentionTape]:
        """Attend to the steps of each sequence.

        Parameters
        ----------
        x : array of shape (batch, time, input_size)
        query : array of shape (batch, query_size) or (batch, queries, query_size), default=None
            One or several queries per sequence; None if and only if the query is learned.
        lengths : array of int of shape (batch,), default=None
            Real steps of each sequence, 1 to time; what follows them is never read. None: all steps.

        Returns
        -------
        context : ndarray of shape (batch, input_size) or (batch, queries, input_size)
        weights : ndarray of shape (batch, time) or (batch, queries, time)
            Of the steps, with sum 1; zero after a sequence's end.
        tape : AttentionTape
            For :meth:`backward`.

        Raises
        ------
        ValueError
            Shapes or lengths that do not fit, with what would.
        TypeError
            Elements that are not real numbers.
        """
        tape = AttentionTape(self)
        self._take(tape, x, query, lengths)
        batch, time, _ = tape.shape
        context = np.empty((batch, tape.projected.shape[1], self.input_size), self.dtype)
        weights = np.zeros((batch, tape.projected.shape[1], time), self.dtype)
        for b, span in enumerate(_spans(tape.lengths)):
            a = _softmax(self._scores(tape, b, span))
            np.matmul(a, tape.rows[span], out=context[b])
            weights[b, :, : tape.lengths[b]] = a
            tape.weights.append(a)
        if tape.single:
            return context[:, 0], weights[:, 0], tape
        return context, weights, tape

    def backward(self, tape: AttentionTape, dcontext: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Write the gradients of the parameters to :attr:`flat_grads`.

        Parameters
        ----------
        tape : AttentionTape
            Of :meth:`forward`; used up by this call.
        dcontext : array of the shape of context
            Gradient of the loss with respect to the result.

        Returns
        -------
        dx : ndarray of shape (batch, time, input_size)
            Zero after a sequence's end.
        dquery : ndarray of the shape of query, or None if it is learned
        """
        if not isinstance(tape, AttentionTape) or tape.owner is not self:
            raise ValueError("tape holds no forward call of this layer (a tape serves one backward call)")
        dcontext = self._check_dcontext(tape, dcontext)
        tape.owner = None
        drows, dkeys = np.empty_like(tape.rows), np.empty_like(tape.keys)
        dprojected = np.empty_like(tape.projected)
        grads = self._views(self._grads)
        if self.kind == "additive":
            grads["score"][...] = 0
        for b, span in enumerate(_spans(tape.lengths)):
            a = tape.weights[b]
            drows[span] = a.T @ dcontext[b]
            da = dcontext[b] @ tape.rows[span].T
            dscores = a * (da - (a * da).sum(axis=1, keepdims=True))
            dkeys[span], dprojected[b] = self._scores_backward(tape, b, span, dscores, grads)
        drows += self._keys_backward(tape.rows, dkeys, grads)
        dx = np.zeros(tape.shape, self.dtype)
        dx[_mask(tape.lengths, tape.shape[1])] = drows
        return dx, self._query_backward(tape, dprojected, grads)

    # ---- scores of one sequence, (queries, length), and their gradient ----

    def _scores(self, tape: AttentionTape, b: int, span: slice) -> np.ndarray:
        keys, query = tape.keys[span], tape.projected[b]
        if self.kind == "scaled_dot":
            return (query @ keys.T) * self._scale
        hidden = np.ascontiguousarray(keys[None] + query[:, None])
        _core.apply_activation("tanh", hidden, hidden)
        tape.hidden.append(hidden)
        return hidden @ self._views(self._flat)["score"]

    def _scores_backward(
        self, tape: AttentionTape, b: int, span: slice, dscores: np.ndarray, grads: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of keys (length, attention_size) and queries (queries, attention_size) of sequence b."""
        keys, query = tape.keys[span], tape.projected[b]
        if self.kind == "scaled_dot":
            dscores = dscores * self._scale
            return dscores.T @ query, dscores @ keys
        hidden = tape.hidden[b]
        grads["score"] += np.einsum("ql,qla->a", dscores, hidden)
        dhidden = dscores[:, :, None] * self._views(self._flat)["score"] * (1 - hidden * hidden)
        return dhidden.sum(axis=0), dhidden.sum(axis=1)

    @property
    def _scale(self) -> Any:
        return self.dtype.type(1.0 / np.sqrt(self.attention_size))

    # ---- the products with the weights ----

    def _product(self, x: np.ndarray, weight: str, bias: str | None = None) -> np.ndarray:
        """x (n, columns) times weight^T, and the bias if there is one of that name: (n, attention_size)."""
        views = self._views(self._flat)
        y = np.empty((len(x), self.attention_size), self.dtype)
        offset = views.get(bias) if bias else None
        _core.dense_forward(
            self.dtype.name, len(x), x.shape[1], self.attention_size, x, views[weight], offset, y
        )
        return y

    def _keys_backward(self, rows: np.ndarray, dkeys: np.ndarray, grads: dict[str, np.ndarray]) -> np.ndarray:
        return self._product_backward(rows, dkeys, "weight_k", grads, grads.get("bias_k"))

    def _query_backward(
        self, tape: AttentionTape, dprojected: np.ndarray, grads: dict[str, np.ndarray]
    ) -> np.ndarray | None:
        flat = dprojected.reshape(-1, self.attention_size)
        if self.query_size is None:
            if self.kind == "scaled_dot":
                grads["query"][...] = flat.sum(axis=0)
            return None
        assert tape.query is not None
        dquery = self._product_backward(tape.query, flat, "weight_q", grads, None)
        batch, queries, _ = dprojected.shape
        return dquery.reshape((batch, self.query_size) if tape.single else (batch, queries, self.query_size))

    def _product_backward(
        self,
        x: np.ndarray,
        dy: np.ndarray,
        weight: str,
        grads: dict[str, np.ndarray],
        dbias: np.ndarray | None,
    ) -> np.ndarray:
        dx = np.empty_like(x)
        value = self._views(self._flat)[weight]
        _core.dense_backward(
            self.dtype.name, len(x), x.shape[1], self.attention_size, x, value, dy, grads[weight], dbias, dx
        )
        return dx

    # ---- arguments ----

    def _take(self, tape: AttentionTape, x: Any, query: Any, lengths: Any) -> None:
        """Check the arguments of :meth:`forward`; put real steps, keys and projected queries on the tape."""
        x = np.asarray(x)
        if x.ndim != 3 or x.shape[2] != self.input_size or x.size == 0:
            raise ValueError(f"x has shape {x.shape}; expected (batch, time, {self.input_size}), not empty")
        tape.shape = x.shape
        tape.lengths = as_lengths(lengths, *x.shape[:2])
        tape.rows = as_real_array(x[_mask(tape.lengths, x.shape[1])], self.dtype, "x")
        tape.keys = self._product(tape.rows, "weight_k", "bias_k")
        query = self._check_query(query, len(x))
        tape.single = query is None or query.ndim == 2
        if query is not None:
            tape.query = query.reshape(-1, query.shape[-1])
            projected = self._product(tape.query, "weight_q")
        else:
            learned = self._views(self._flat).get("query", np.zeros(self.attention_size, self.dtype))
            tape.query, projected = None, np.tile(learned, (len(x), 1))
        tape.projected = projected.reshape(len(x), -1, self.attention_size)

    def _check_query(self, query: Any, batch: int) -> np.ndarray | None:
        if self.query_size is None:
            if query is not None:
                raise ValueError("query must be None: without query_size the layer learns its query")
            return None
        if query is None:
            raise ValueError(f"query is missing; expected shape ({batch}, {self.query_size})")
        query = as_real_array(query, self.dtype, "query")
        if query.ndim not in (2, 3) or (query.shape[0], query.shape[-1]) != (batch, self.query_size):
            raise ValueError(
                f"query has shape {query.shape}; expected ({batch}, {self.query_size}) or "
                f"({batch}, queries, {self.query_size})"
            )
        if query.size == 0:
            raise ValueError(f"query has shape {query.shape}; expected at least one query a sequence")
        return query

    def _check_dcontext(self, tape: AttentionTape, dcontext: Any) -> np.ndarray:
        """As (batch, queries, input_size)."""
        dcontext = as_real_array(dcontext, self.dtype, "dcontext")
        batch, queries, _ = tape.projected.shape
        wanted = (batch, self.input_size) if tape.single else (batch, queries, self.input_size)
        if dcontext.shape != wanted:
            raise ValueError(f"dcontext has shape {dcontext.shape}; expected {wanted}")
        return dcontext.reshape(batch, queries, self.input_size)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    a = np.exp(scores - scores.max(axis=1, keepdims=True))
    a /= a.sum(axis=1, keepdims=True)
    return a


def _spans(lengths: np.ndarray) -> list[slice]:
    """Rows of each sequence where the real steps of all lie one after another."""
    ends = np.cumsum(lengths)
    return [slice(begin, end) for begin, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _mask(lengths: np.ndarray, time: int) -> np.ndarray:
    """Whether a step is real, (batch, time)."""
    return np.arange(time) < lengths[:, None]
