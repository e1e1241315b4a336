"""How gradients flow back through time in a recurrent layer, and what its gates and matrices do about it.

Gradients are exact: the sequences are cut at every lag, the state is carried forward from piece to piece, and
the backward pass of each piece hands the gradient of the state at its beginning to the piece before. That
takes one call of the kernels per time step, in float64 whatever the type of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm import layers
from fastlstm.layers._parameters import as_size
from fastlstm.layers.initializers import gate_names
from fastlstm.losses import Loss, get_loss
from fastlstm.network import SequenceNetwork
from fastlstm.sequences import Sequences, as_sequences, as_times

Array = NDArray[Any]

__all__ = ["GradientFlow", "gradient_flow"]

_LOGISTIC = frozenset("iforz")  # gates with values between 0 and 1
_EXPONENTIAL = {"slstm": "if", "slstm_exp": "if"}  # but not in these cells
_LOW, _HIGH = 0.1, 0.9


@dataclass(frozen=True)
class GradientFlow:
    """What :func:`gradient_flow` returns.

    Attributes
    ----------
    lags : ndarray of int of shape (n_lags,)
        0, 1, 2, ...: how many steps before its last one a sequence is looked at.
    norms : ndarray of shape (n_lags,)
        Mean over the sequences of the Euclidean norm of dL/dh(T - lag), all layers of the stack together.
    cell_norms : ndarray of shape (n_lags,) or None
        The same of dL/dc, for cells that have a cell state. 0 at lag 0, since the loss sees h alone.
    layer_norms : ndarray of shape (n_lags, num_layers)
        As `norms`, of each layer by itself.
    layer_cell_norms : ndarray of shape (n_lags, num_layers) or None
    n_sequences : ndarray of int of shape (n_lags,)
        Sequences in each mean: those with more steps than the lag.
    gate_saturation : dict of str to (float, float)
        Of each gate with values in (0, 1): share of the activations below 0.1 and share above 0.9, over all
        units, layers and real steps. Empty for cells without gates.
    spectral_radius : dict of str to ndarray of shape (num_layers,)
        Largest absolute eigenvalue of each gate's recurrent matrix. A simple recurrent layer has one matrix,
        "h", whose powers go to 0 if it is below 1.
    """

    lags: Array
    norms: Array
    cell_norms: Array | None
    layer_norms: Array
    layer_cell_norms: Array | None
    n_sequences: Array
    gate_saturation: dict[str, tuple[float, float]]
    spectral_radius: dict[str, Array]


def gradient_flow(
    network_or_layer: Any,
    X: Any,
    y: Any = None,
    lengths: Any = None,
    *,
    delta_t: Any = None,
    loss: str | Loss | None = None,
    max_lag: int | None = None,
) -> GradientFlow:
    """Norms of the gradient of the last step's loss with respect to earlier states, by lag.

    Parameters
    ----------
    network_or_layer : SequenceNetwork, LSTM, GRU, RNN or Stack
        With any cell, of one direction. It is not changed; dropout is off.
    X : array-like of shape (n, T, n_features), or list of arrays of shape (T_i, n_features)
        Sequences, as every estimator takes them; at least one has two steps.
    y : array-like of shape (n,) or (n, n_targets), default=None
        Targets of the last step; needs a network. The loss of a sequence is then that of the network's head
        at its last output, whatever the pooling. None: L = sum(y_T) / sqrt(output_size), whose gradient at the
        last output y_T, the top layer's h_T where no connection adds to it, has norm 1.
    lengths : array of int of shape (n,), default=None
        Real steps of padded sequences.
    delta_t : array of shape (n, T), or list of arrays of shape (T_i,), default=None
        Time since the step before, for the cell "tlstm"; None: no time passes.
    loss : str or Loss, default=None
        Name for :func:`fastlstm.losses.get_loss`; None: softmax cross-entropy if `y` holds integers (class
        indices), squared error otherwise.
    max_lag : int, default=None
        Largest lag to compute; None: as far as the longest sequence goes. Time and memory grow with it.

    Returns
    -------
    GradientFlow

    Raises
    ------
    ValueError
        For layers of two directions, targets without a network, and sequences of one step only.

    Notes
    -----
    dL/dh(t) and dL/dc(t) are derivatives with respect to the state carried from step t to t + 1, h and c of
    all layers being independent coordinates of it. For the plain recurrent layer the first is a product of
    `lag` Jacobians, which vanishes or explodes exponentially; on the direct way along c of an LSTM each
    factor is the forget gate, and 1 if there is none (the constant error carousel). dL/dh is 0 where h does
    not recur (cell "peephole_article").

    References
    ----------
    S. Hochreiter, diploma thesis, TU Munich, 1991; Y. Bengio, P. Simard and P. Frasconi, IEEE Trans. Neural
    Networks 5(2), 1994; S. Hochreiter and J. Schmidhuber, Neural Computation 9(8), 1997.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.diagnostics import gradient_flow
    >>> from fastlstm.layers import RNN
    >>> x = np.random.default_rng(0).normal(size=(4, 30, 3))
    >>> flow = gradient_flow(RNN(3, 8, random_state=0), x)
    >>> len(flow.lags), round(float(flow.norms[0]), 6), bool(flow.norms[20] < 1e-4)
    (30, 1.0, True)
    """
    encoder, network = _parts(network_or_layer, y)
    sequences = as_sequences(X, lengths, dtype=np.float64)
    if sequences.n_features != encoder.input_size:
        raise ValueError(f"X has {sequences.n_features} features; expected {encoder.input_size}")
    times = None
    if delta_t is not None:
        encoder.check_takes_time()
        times = as_times(delta_t, sequences, lengths)
    longest = int(sequences.lengths.max()) - 1
    if longest < 1:
        raise ValueError("gradient_flow needs a sequence of at least two time steps; X has none")
    tails = np.minimum(sequences.lengths - 1, longest if max_lag is None else as_size(max_lag, "max_lag"))
    order = np.argsort(-tails, kind="stable")
    copy = encoder.without_noise("float64")
    final, tapes = _forward(copy, sequences, times, order, tails[order])
    last = copy.last_output(sequences.values, sequences.offsets[order], sequences.lengths[order], final)
    d_last = _loss_gradient(network, last, y, loss, order)
    norms = _norms_by_lag(copy, tapes, d_last)
    counts = (tails[order][:, None] >= np.arange(len(norms))).sum(axis=0)
    means = norms / counts[:, None, None]
    has_c = len(copy.state_names) > 1
    return GradientFlow(
        lags=np.arange(len(norms)),
        norms=means[:, 0, -1],
        cell_norms=means[:, 1, -1] if has_c else None,
        layer_norms=means[:, 0, :-1],
        layer_cell_norms=means[:, 1, :-1] if has_c else None,
        n_sequences=counts,
        gate_saturation=_gate_saturation(copy, sequences, times),
        spectral_radius=_spectral_radius(copy),
    )


def _parts(given: Any, y: Any) -> tuple[Any, SequenceNetwork | None]:
    """Recurrent layer, and the network around it if there is one."""
    network = given if isinstance(given, SequenceNetwork) else None
    encoder = given if network is None else network.encoder
    if not isinstance(encoder, (layers.LSTM, layers.Stack)):
        raise TypeError(
            f"network_or_layer must be a SequenceNetwork or a recurrent layer; got {type(given).__name__}"
        )
    if encoder.bidirectional:
        raise ValueError(
            "gradient_flow needs a layer of one direction: with two there is no single last step"
        )
    if y is not None and network is None:
        raise ValueError("y needs a network, whose head turns the last state into outputs; got a layer")
    return encoder, network


def _forward(
    layer: Any, sequences: Sequences, times: Sequences | None, order: Array, tails: Array
) -> tuple[tuple[Array, ...], list[Any]]:
    """Final states, and tapes of the last steps: item k holds the step after the state of lag k + 1.

    Sequences come in `order`, that of falling `tails` (n,), the steps that are cut off one by one. Those that
    reach back to a lag are then the first ones.
    """
    ends = sequences.offsets[1:][order]
    firsts = sequences.offsets[:-1][order]
    decay = None if times is None else layer.time_weights(times.values[:, 0])
    _, states = layer.run(sequences.values, firsts, ends - firsts - tails, want_y=False, decay=decay)
    tapes: list[Any] = []
    for lag in range(int(tails[0]), 0, -1):
        n = int(np.count_nonzero(tails >= lag))
        before = tuple(np.ascontiguousarray(state[:, :n]) for state in states)
        _, after, tape = layer.run_training(
            sequences.values, ends[:n] - lag, np.ones(n, np.int64), want_y=False, state=before, decay=decay
        )
        for state, value in zip(states, after, strict=True):
            state[:, :n] = value
        tapes.append(tape)
    return states, tapes[::-1]


def _loss_gradient(
    network: SequenceNetwork | None, last: Array, y: Any, loss: str | Loss | None, order: Array
) -> Array:
    """Gradient of each sequence's own loss at its last output, (n, output_size)."""
    if network is None or y is None:
        return np.full_like(last, 1.0 / np.sqrt(last.shape[1]))
    if len(y) != len(last):
        raise ValueError(f"y has {len(y)} rows for {len(last)} sequences; expected as many")
    head = layers.Dense.from_config({**network.head.get_config(), "dtype": "float64"})
    head.load_parameters(network.head.parameters)
    if loss is None:
        loss = "softmax_cross_entropy" if np.asarray(y).dtype.kind in "iu" else "squared"
    chosen = get_loss(loss)
    targets = chosen.check_targets(y, network.n_outputs, np.float64)[order]
    _, d_outputs = chosen.value_and_gradient(head.forward(last), targets)
    d_last = head.backward(last, d_outputs * len(last))  # the loss is a mean over the rows
    assert d_last is not None
    return d_last


def _norms_by_lag(layer: Any, tapes: list[Any], d_last: Array) -> Array:
    """Sums over the sequences of gradient norms: (lags, states, layers + 1), the last entry of all layers."""
    dstates = [np.zeros(state.shape) for state in layer.empty_states(len(d_last))]
    dstates[0] += layer.dstate_of_last(d_last)[0]
    sums = [_norm_sums(dstates)]
    for tape in tapes:
        rows = len(tape.lengths)
        after = tuple(np.ascontiguousarray(d[:, :rows]) for d in dstates)
        _, before = layer.run_backward(tape, None, after, want_dstate=True)
        dstates = list(before)
        sums.append(_norm_sums(dstates))
    return np.array(sums)


def _norm_sums(dstates: list[Array]) -> Array:
    """(states, layers + 1) from arrays (layers, n, hidden)."""
    squares = np.array([np.square(d).sum(axis=2) for d in dstates])
    squares = np.concatenate([squares, squares.sum(axis=1, keepdims=True)], axis=1)
    return np.asarray(np.sqrt(squares).sum(axis=2))


def _gate_saturation(
    layer: Any, sequences: Sequences, times: Sequences | None
) -> dict[str, tuple[float, float]]:
    delta_t = None if times is None else times.to_padded()[:, :, 0]
    gates = layer.return_all(sequences.to_padded(), lengths=sequences.lengths, delta_t=delta_t)["gates"]
    real = np.arange(int(sequences.lengths.max())) < sequences.lengths[:, None]
    found = {}
    for name, value in gates.items():
        if name in _LOGISTIC and name not in _EXPONENTIAL.get(layer.cell, ""):
            activations = value[:, real]
            found[name] = (float(np.mean(activations < _LOW)), float(np.mean(activations > _HIGH)))
    return found


def _spectral_radius(layer: Any) -> dict[str, Array]:
    names = gate_names(layer, recurrent=True)
    radii = [
        [np.abs(np.linalg.eigvals(block)).max() for block in np.split(matrix, len(names))]
        for matrix in _recurrent_matrices(layer)
    ]
    return dict(zip(names, np.array(radii).T, strict=True))


def _recurrent_matrices(layer: Any) -> Iterator[Array]:
    parameters = layer.parameters
    return (parameters[f"weight_hh_l{k}"] for k in range(layer.num_layers))
