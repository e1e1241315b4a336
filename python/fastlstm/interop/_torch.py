"""Recurrent layers of PyTorch, whose parameters have the names and shapes of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.interop._refusals import refuse_options
from fastlstm.layers import GRU, LSTM, RNN

Array = NDArray[Any]

_MODULES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
_LAYERS = {4: LSTM, 3: GRU, 1: RNN}  # by the gates of a unit
_NAME = re.compile(r"(?:weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(\d+)(_reverse)?")
_TO_TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
# What PyTorch's layers do not compute, and the value with which ours do not either.
_WITHOUT = {
    "layer_norm": False,
    "zoneout": 0.0,
    "cells_per_block": 1,
    "output_proj_size": 0,
    "learn_initial_state": False,
    "cell_activation": "tanh",
}


def from_torch(module_or_state_dict: Any) -> LSTM:
    """Layer that computes what a recurrent PyTorch module does.

    PyTorch itself is not imported: its modules are recognised by their class names.

    Parameters
    ----------
    module_or_state_dict : torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell, or a mapping of str to arrays
        The module, or its ``state_dict()``, whose values may be arrays too, for example of a safetensors file. The
        sizes and the kind of layer then follow from the shapes; one gate a unit is taken for tanh's. Of a larger
        model give the recurrent modules one by one, or the entries of each without their prefix.

    Returns
    -------
    LSTM, GRU or RNN
        Layer of the same sizes, in float64 if the weights are, else in float32. x and y are (batch, time, features),
        whatever `batch_first` is. Between layers `dropout` has one mask per sequence.

    Raises
    ------
    TypeError
        It is something else, for example a whole model.
    ValueError
        Names or shapes that are not those of one recurrent module.

    Examples
    --------
    With PyTorch installed::

        module = torch.nn.GRU(3, 5, num_layers=2, batch_first=True)
        y, state = fastlstm.interop.from_torch(module)(x)

    Without it:

    >>> import numpy as np
    >>> from fastlstm.interop import from_torch
    >>> from_torch({"weight_ih_l0": np.zeros((20, 3)), "weight_hh_l0": np.zeros((20, 5))})(np.zeros((2, 7, 3)))[0].shape
    (2, 7, 5)
    """
    given = module_or_state_dict
    options: dict[str, Any] = {}
    if not isinstance(given, Mapping):
        if type(given).__name__ not in _MODULES or not hasattr(given, "state_dict"):
            raise TypeError(
                f"expected one of torch.nn's {', '.join(_MODULES)}, or its state_dict(); got {type(given).__name__}; "
                "give the recurrent modules of a model one by one"
            )
        options["dropout"] = float(getattr(given, "dropout", 0.0))
        if getattr(given, "nonlinearity", "tanh") == "relu":
            options["nonlinearity"] = "relu"
        given = given.state_dict()
    parameters = {str(name): _as_array(value, str(name)) for name, value in given.items()}
    if "weight_ih" in parameters:  # a cell's
        parameters = {f"{name}_l0": value for name, value in parameters.items()}
    made = _new_layer(parameters, options)
    made.load_parameters(parameters)
    return made


def to_torch(layer: LSTM) -> Any:
    """PyTorch module that computes what a layer does, with ``batch_first=True``.

    Parameters
    ----------
    layer : LSTM with the cell "lstm", GRU or RNN
        Without what PyTorch's modules do not compute: `layer_norm`, `zoneout`, `cells_per_block`,
        `output_proj_size`, `learn_initial_state`, another `cell_activation`. What training calls alone do, but for
        `dropout`, stays behind, and so does `precision`.

    Returns
    -------
    torch.nn.LSTM, GRU or RNN
        In evaluation mode, with copies of the parameters.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    TypeError
        `layer` is no recurrent layer.
    ValueError
        PyTorch has no such layer.

    Examples
    --------
    With PyTorch installed::

        module = fastlstm.interop.to_torch(fastlstm.layers.LSTM(3, 5))
    """
    import torch

    if not isinstance(layer, LSTM):
        raise TypeError(f"layer must be an LSTM, a GRU or an RNN, got {type(layer).__name__}")
    if layer.cell not in _TO_TORCH:
        raise ValueError(f"PyTorch has no layer with the cell {layer.cell!r}; it has {', '.join(_TO_TORCH)}")
    refuse_options(layer, _WITHOUT, "PyTorch's layers")
    kind, options = _TO_TORCH[layer.cell]
    if layer.proj_size:
        options = {**options, "proj_size": layer.proj_size}
    module = getattr(torch.nn, kind)(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        batch_first=True,
        dropout=layer.dropout if layer.num_layers > 1 else 0.0,
        bidirectional=layer.bidirectional,
        device="meta",  # no random numbers are drawn
        dtype=getattr(torch, layer.dtype.name),
        **options,
    ).to_empty(device="cpu")
    module.load_state_dict({name: torch.tensor(value) for name, value in layer.parameters.items()})
    return module.eval()


def _as_array(value: Any, name: str) -> Array:
    """A tensor or array, widened to float32 where it is narrower."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {array.dtype}; expected floating-point numbers")
    return array


def _new_layer(parameters: Mapping[str, Array], options: Mapping[str, Any]) -> LSTM:
    """Layer of the sizes of these parameters, with random weights."""
    found = {name: _NAME.fullmatch(name) for name in parameters}
    unknown = [name for name, match in found.items() if match is None]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is no parameter of a recurrent module (weight_ih_l0, weight_hh_l0, ...); give the "
            "entries of one module, without their prefix"
        )
    missing = {"weight_ih_l0", "weight_hh_l0"} - set(found)
    if missing:
        raise ValueError(f"{sorted(missing)[0]!r} is missing")
    matrices = {name: value for name, value in parameters.items() if name.startswith("weight")}
    for name, value in matrices.items():
        if value.ndim != 2:
            raise ValueError(f"{name} has shape {value.shape}; expected a matrix")
    places = [match for match in found.values() if match is not None]
    projection = matrices.get("weight_hr_l0")
    rows, hidden = len(matrices["weight_hh_l0"]), matrices["weight_hh_l0"].shape[1]
    if projection is not None:
        hidden = projection.shape[1]
    gates = rows // hidden if hidden and rows % hidden == 0 else 0
    if gates not in _LAYERS:
        raise ValueError(
            f"weight_hh_l0 has {rows} rows for {hidden} units; expected 4 (LSTM), 3 (GRU) or 1 (RNN) of each"
        )
    sizes: dict[str, Any] = {"proj_size": len(projection)} if projection is not None else {}
    return _LAYERS[gates](
        matrices["weight_ih_l0"].shape[1],
        hidden,
        1 + max(int(place[1]) for place in places),
        bidirectional=any(place[2] for place in places),
        bias=len(matrices) < len(parameters),
        dtype=np.result_type(np.float32, *parameters.values()),
        **sizes,
        **options,
    )
