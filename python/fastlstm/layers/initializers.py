"""Initial values of recurrent layers other than the default: orthogonal matrices and biases for long memory.

Each function changes some parameters of a layer in place, in every layer of the stack and both directions,
and leaves the others as they are; call it before training. Layers start out from PyTorch's uniform
distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastlstm.layers._parameters import as_generator

__all__ = ["chrono", "forget_bias", "gate_names", "orthogonal"]

_KEEPING = {"gru": "z", "gru_before": "z"}  # the gate that multiplies the old state; "f" elsewhere
_TIED = (
    "cifg",
    "gru",
    "gru_before",
)  # the writing gate is 1 - the keeping gate, so its bias is the negative already


def gate_names(layer: Any, recurrent: bool = False) -> tuple[str, ...]:
    """Gates of a recurrent layer in the order of the row blocks of its matrices.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
    recurrent : bool, default=False
        The blocks of ``weight_hh`` and ``bias_hh`` in place of those of ``weight_ih`` and ``bias_ih``; they
        differ where a gate does not see the recurrent state.

    Returns
    -------
    tuple of str
        For example ``("i", "f", "g", "o")``; a simple recurrent layer has one block, ``("h",)``.
    """
    return tuple(layer.gates_of("weight_hh" if recurrent else "weight_ih"))


def orthogonal(layer: Any, gain: float = 1.0, *, random_state: Any = None) -> None:
    """Fill each gate's recurrent matrix with a random orthogonal matrix.

    Repeated products with an orthogonal matrix neither shrink nor stretch a vector, so at the start the
    recurrent product by itself lets gradients neither vanish nor explode.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        Its ``weight_hh`` (gates*hidden, hidden) are changed, one block (hidden, hidden) per gate; with projections
        or memory blocks a block has orthonormal rows or columns, whichever are fewer.
    gain : float, default=1.0
        All singular values of each block.
    random_state : None, int, numpy Generator or RandomState, default=None

    Raises
    ------
    ValueError
        If `gain` is not a positive number.

    References
    ----------
    A. Saxe, J. McClelland and S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks", ICLR 2014. The draw is uniform (Haar): F. Mezzadri, Notices of the AMS 54(5),
    2007.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import LSTM, orthogonal
    >>> layer = LSTM(3, 5, dtype="float64", random_state=0)
    >>> orthogonal(layer, random_state=0)
    >>> forget = layer.parameters["weight_hh_l0"][5:10]
    >>> bool(np.allclose(forget @ forget.T, np.eye(5)))
    True
    """
    if not (np.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a positive number, got {gain!r}")
    random = as_generator(random_state)
    changed = {}
    for name, value in layer.parameters.items():
        if name.startswith("weight_hh_"):
            sizes = [layer.gate_size(gate) for gate in layer.gates_of(name)]
            changed[name] = np.concatenate(
                [gain * _orthogonal_matrix(size, value.shape[1], random) for size in sizes]
            )
    layer.load_parameters(changed, strict=False)


def forget_bias(layer: Any, value: float = 1.0) -> None:
    """Set the bias of the gate that keeps the state, so that the layer remembers from the start.

    That gate is the forget gate f, and the update gate z of a GRU, where h = (1 - z) n + z h_prev.

    Parameters
    ----------
    layer : LSTM or GRU
        `value` goes into the gate's rows of ``bias_ih`` (gates*hidden,); those of ``bias_hh`` become 0.
    value : float, default=1.0
        sigmoid(value) of the old state is kept at first: 0.73 for 1, 0.95 for 3.

    Raises
    ------
    ValueError
        If the cell has no such gate, the layer has no biases or `value` is not finite.

    References
    ----------
    F. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", Neural Computation 12(10), 2000;
    R. Jozefowicz, W. Zaremba and I. Sutskever, "An empirical exploration of recurrent network architectures",
    ICML 2015.

    Examples
    --------
    >>> from fastlstm.layers import LSTM, forget_bias
    >>> layer = LSTM(3, 2, random_state=0)
    >>> forget_bias(layer, 3.0)
    >>> (layer.parameters["bias_ih_l0"] + layer.parameters["bias_hh_l0"])[2:4].tolist()
    [3.0, 3.0]
    """
    if not np.isfinite(value):
        raise ValueError(f"value must be a finite number, got {value!r}")
    keep = _keeping_gate(layer, "forget_bias")
    _set_biases(layer, "forget_bias", lambda: {keep: np.full(layer.gate_size(keep), float(value))})


def chrono(layer: Any, max_steps: float, *, random_state: Any = None) -> None:
    """Draw gate biases such that the units forget at rates spread over 1 to `max_steps` steps.

    ``b_f = log(U(1, max_steps - 1))`` and ``b_i = -b_f``, one draw per unit: a unit with forget gate
    sigmoid(b_f) remembers for about 1 + exp(b_f) steps. Where the writing gate is tied to the keeping gate
    ("cifg", and z in a GRU), ``b_i = -b_f`` holds by itself.

    Parameters
    ----------
    layer : LSTM or GRU
        The draws go into the gates' rows of ``bias_ih`` (gates*hidden,); those of ``bias_hh`` become 0.
    max_steps : float, at least 2
        Longest dependence that is expected in the data, in time steps.
    random_state : None, int, numpy Generator or RandomState, default=None

    Raises
    ------
    ValueError
        If the cell lacks the forget or the input gate, the layer has no biases or `max_steps` is below 2.

    References
    ----------
    C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", ICLR 2018, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import LSTM, chrono
    >>> layer = LSTM(3, 4, random_state=0)
    >>> chrono(layer, 100, random_state=0)
    >>> i, f = layer.parameters["bias_ih_l0"][:8].reshape(2, 4)
    >>> bool((i == -f).all() and (f >= 0).all() and (f <= np.log(99)).all())
    True
    """
    if not (np.isfinite(max_steps) and max_steps >= 2):
        raise ValueError(f"max_steps must be a number of time steps, at least 2; got {max_steps!r}")
    random = as_generator(random_state)
    keep = _keeping_gate(layer, "chrono")
    tied = layer.cell in _TIED
    if not tied and "i" not in gate_names(layer):
        raise ValueError(f"chrono needs a cell with an input gate; {layer.cell!r} has none")

    def draw() -> dict[str, np.ndarray]:
        bias = np.log(random.uniform(1.0, max_steps - 1.0, layer.gate_size(keep)))
        return {keep: bias} if tied else {keep: bias, "i": -bias}

    _set_biases(layer, "chrono", draw)


def _orthogonal_matrix(rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Matrix (rows, columns) with orthonormal columns, or rows if those are fewer."""
    tall = random.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # without it the draw would not be uniform
    return q if rows >= columns else q.T


def _keeping_gate(layer: Any, function: str) -> str:
    gates = gate_names(layer)
    keep = _KEEPING.get(layer.cell, "f")
    if keep not in gates:
        raise ValueError(f"{function} needs a cell with a forget gate; {layer.cell!r} has none")
    return keep


def _set_biases(layer: Any, function: str, draw: Callable[[], dict[str, np.ndarray]]) -> None:
    """Total bias of some gates, drawn for each layer and direction in turn: bias_ih = it, bias_hh = 0."""
    if not layer.bias:
        raise ValueError(f"{function} needs a layer with biases; this one was made with bias=False")
    parameters = layer.parameters
    changed: dict[str, np.ndarray] = {}
    for suffix in _suffixes(parameters):
        ih, hh = parameters[f"bias_ih_{suffix}"].copy(), parameters[f"bias_hh_{suffix}"].copy()
        for gate, value in draw().items():
            ih[layer.gate_rows("bias_ih", gate)] = value
            hh[layer.gate_rows("bias_hh", gate)] = 0
        changed |= {f"bias_ih_{suffix}": ih, f"bias_hh_{suffix}": hh}
    layer.load_parameters(changed, strict=False)


def _suffixes(parameters: dict[str, np.ndarray]) -> Iterator[str]:
    """ "l0", "l0_reverse", ...: the layers and directions."""
    return (name.removeprefix("bias_ih_") for name in parameters if name.startswith("bias_ih_"))
