"""Recurrent layers of Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.layers import GRU, LSTM, RNN

Array = NDArray[Any]

# Order of our gates among Keras's: i, f, g, o of i, f, c, o; and r, z, n of z, r, h.
_GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}
_DIRECTIONS = {"forward_layer": "l0", "backward_layer": "l0_reverse"}


def from_keras(layer: Any) -> LSTM:
    """Layer that computes what a recurrent Keras layer does.

    Keras itself is not imported: its layers are recognised by their class names and configurations.

    Parameters
    ----------
    layer : keras.layers.LSTM, GRU or SimpleRNN, or a Bidirectional of one of them
        Built, with `activation` "tanh" ("relu" too for SimpleRNN) and `recurrent_activation` "sigmoid".
        `return_sequences`, `return_state`, `stateful`, `unroll` and dropout change nothing here.

    Returns
    -------
    LSTM, GRU or RNN
        One layer of the same sizes and dtype. It returns the outputs of every step and the final state. A mask of
        padding at the end is `lengths`. Keras's single bias becomes ``bias_ih``, and ``bias_hh`` is zero.

    Raises
    ------
    TypeError
        `layer` is something else, for example a whole model.
    ValueError
        The layer is not built, or computes something that the layers here do not.

    Examples
    --------
    With Keras installed::

        layer = keras.layers.GRU(5)
        layer.build((None, None, 3))
        y, state = fastlstm.interop.from_keras(layer)(x)
    """
    directions = _directions(layer)
    first = next(iter(directions.values()))
    config, kind = first.get_config(), type(first).__name__
    weights = {suffix: one.get_weights() for suffix, one in directions.items()}
    if not weights["l0"]:
        raise ValueError("the Keras layer has no weights yet; build it or call it once on data")
    made = _new_layer(kind, config, weights["l0"][0], bidirectional=len(directions) == 2)
    parameters: dict[str, Array] = {}
    for suffix, arrays in weights.items():
        parameters |= from_keras_weights(kind, arrays, suffix)
    made.load_parameters(parameters)
    return made


def from_keras_weights(kind: str, weights: Sequence[Any], suffix: str = "l0") -> dict[str, Array]:
    """Arrays of one Keras layer under the names and in the layout of a layer here.

    Parameters
    ----------
    kind : {"LSTM", "GRU", "SimpleRNN"}
        Class of the Keras layer.
    weights : sequence of 2 or 3 arrays
        ``get_weights()``: kernel (input, gates * units), recurrent kernel (units, gates * units) and, with bias, a
        bias (gates * units,), or the two (2, gates * units) of a GRU with ``reset_after=True``. The map is linear,
        so that gradients can be given as well.
    suffix : str, default="l0"
        End of the names: ``"l0_reverse"`` for the second direction, ``"l1"`` for a second layer.

    Returns
    -------
    dict of str to ndarray
        ``weight_ih_l0`` (gates * units, input), ``weight_hh_l0``, and with bias ``bias_ih_l0`` and ``bias_hh_l0``,
        which is zero if Keras has one bias.

    Raises
    ------
    ValueError
        Unknown `kind`, or shapes that do not belong together.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.interop import from_keras_weights
    >>> arrays = from_keras_weights("LSTM", [np.zeros((3, 20)), np.zeros((5, 20)), np.zeros(20)])
    >>> {name: array.shape for name, array in arrays.items()}["weight_ih_l0"]
    (20, 3)
    """
    if kind not in _GATES:
        raise ValueError(f"kind must be one of {', '.join(_GATES)}; got {kind!r}")
    arrays = [np.asarray(value) for value in weights]
    _check_shapes(kind, arrays)
    found = {"weight_ih": _reordered(kind, arrays[0]).T, "weight_hh": _reordered(kind, arrays[1]).T}
    if len(arrays) == 3:
        biases = np.atleast_2d(_reordered(kind, arrays[2]))
        found["bias_ih"] = biases[0]
        found["bias_hh"] = biases[1] if len(biases) == 2 else np.zeros_like(biases[0])
    return {f"{name}_{suffix}": np.ascontiguousarray(value) for name, value in found.items()}


def _directions(layer: Any) -> dict[str, Any]:
    """The one or two recurrent layers of a Keras layer, by suffix of our names."""
    if type(layer).__name__ == "Bidirectional":
        if layer.get_config().get("merge_mode") != "concat":
            raise ValueError("a Bidirectional layer must have merge_mode='concat'")
        parts = {suffix: getattr(layer, name) for name, suffix in _DIRECTIONS.items()}
        if type(parts["l0"]) is not type(parts["l0_reverse"]):
            raise ValueError("the two directions of a Bidirectional layer must be of one class")
    else:
        parts = {"l0": layer}
    for suffix, part in parts.items():
        if type(part).__name__ not in _GATES or not hasattr(part, "get_weights"):
            raise TypeError(
                f"layer must be one Keras layer ({', '.join(_GATES)} or a Bidirectional of one of them), got "
                f"{type(part).__name__}; give the recurrent layers of a model one by one"
            )
        if bool(part.get_config()["go_backwards"]) != suffix.endswith("_reverse"):
            raise ValueError("a layer with go_backwards must be the second one of a Bidirectional layer")
    return parts


def _new_layer(kind: str, config: Mapping[str, Any], kernel: Array, *, bidirectional: bool) -> LSTM:
    """Layer of a Keras configuration, with random weights."""
    activation = config["activation"]
    allowed = ("tanh", "relu") if kind == "SimpleRNN" else ("tanh",)
    if activation not in allowed:
        raise ValueError(f"activation must be {' or '.join(map(repr, allowed))}, got {activation!r}")
    if kind != "SimpleRNN" and config["recurrent_activation"] != "sigmoid":
        raise ValueError(f"recurrent_activation must be 'sigmoid', got {config['recurrent_activation']!r}")
    options = {"bias": config["use_bias"], "bidirectional": bidirectional, "dtype": kernel.dtype}
    sizes = (kernel.shape[0], config["units"])
    if kind == "LSTM":
        return LSTM(*sizes, **options)
    if kind == "GRU":
        return GRU(*sizes, reset_after=config["reset_after"], **options)
    return RNN(*sizes, nonlinearity=activation, **options)


def _check_shapes(kind: str, arrays: Sequence[Array]) -> None:
    """Raise ValueError unless the arrays are those of one layer."""
    n_gates, shapes = len(_GATES[kind]), [array.shape for array in arrays]
    units = shapes[1][0] if len(shapes) in (2, 3) and len(shapes[1]) == 2 else 0
    columns = n_gates * units
    biases = [(columns,), (2, columns)] if kind == "GRU" else [(columns,)]
    fits = (
        units > 0
        and len(shapes[0]) == 2
        and shapes[0][1] == shapes[1][1] == columns
        and (len(shapes) == 2 or shapes[2] in biases)
    )
    if not fits:
        wide = f"{n_gates} * units"
        bias = f"({wide},) or (2, {wide})" if kind == "GRU" else f"({wide},)"
        raise ValueError(
            f"weights of a {kind} have the shapes (input, {wide}), (units, {wide}) and, with bias, {bias}; got {shapes}"
        )


def _reordered(kind: str, array: Array) -> Array:
    """The last axis (gates * units) in the order of our gates."""
    gates = np.split(array, len(_GATES[kind]), axis=-1)
    return np.concatenate([gates[k] for k in _GATES[kind]], axis=-1)
