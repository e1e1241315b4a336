"""Layers and fitted models as ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm._version import __version__
from fastlstm.layers import LSTM
from fastlstm.model import Model
from fastlstm.serialization import PathLike, replace_file

Array = NDArray[Any]

#: Our letters of the gates, in the order in which the operators have them (o of LSTM, c: our g; h of GRU: our n).
GATES = {"LSTM": "iofg", "GRU": "zrn", "RNN": "h"}
_STATES = {"LSTM": "hc", "GRU": "h", "RNN": "h"}
_OPSET, _IR_VERSION = 17, 8
_OPEN = 100.0  # a gate with this bias is 1 in float32


@dataclass(frozen=True)
class _Operator:
    """Of a cell: the operator, its attributes, and where they are not the default its activation functions.

    Each function is a name, followed by alpha and beta if it has them.
    """

    name: str
    attributes: tuple[tuple[str, int], ...] = ()
    activations: tuple[tuple[Any, ...], ...] = ()


_IDENTITY = ("Affine", 1.0, 0.0)
_NO_INPUT_ACTIVATION = (("Sigmoid",), _IDENTITY, ("Tanh",))
NO_OUTPUT_ACTIVATION = (("Sigmoid",), ("Tanh",), _IDENTITY)
# 4 sigmoid(x) - 2 = 2 tanh(x / 2), and 2 sigmoid(c) - 1 = tanh(c / 2)
_SQUASHED = (("Sigmoid",), ("ScaledTanh", 2.0, 0.5), ("ScaledTanh", 1.0, 0.5))
_OPERATORS = {
    "lstm": _Operator("LSTM"),
    "peephole": _Operator("LSTM"),
    "cifg": _Operator("LSTM", (("input_forget", 1),)),
    "nig": _Operator("LSTM"),
    "nfg": _Operator("LSTM"),
    "nog": _Operator("LSTM"),
    "niaf": _Operator("LSTM", (), _NO_INPUT_ACTIVATION),
    "noaf": _Operator("LSTM", (), NO_OUTPUT_ACTIVATION),
    "lstm1997": _Operator("LSTM"),
    "lstm1997_squashed": _Operator("LSTM", (), _SQUASHED),
    "gru": _Operator("GRU", (("linear_before_reset", 1),)),
    "gru_before": _Operator("GRU"),
    "rnn": _Operator("RNN"),
    "rnn_relu": _Operator("RNN", (), (("Relu",),)),
}
# What the operators do not compute, and the value with which our layers do not either.
_WITHOUT = {
    "layer_norm": False,
    "zoneout": 0.0,
    "cells_per_block": 1,
    "proj_size": 0,
    "learn_initial_state": False,
}


def to_onnx(estimator_or_layer: Any, path: PathLike, *, lengths: bool = False, states: bool = False) -> None:
    """Write a fitted estimator, a loaded model or a recurrent layer as an ONNX model.

    Parameters
    ----------
    estimator_or_layer : LSTMClassifier, LSTMRegressor, Model, LSTM, GRU or RNN
        With a cell that ONNX's operators can compute: all but "peephole_article", "fgr", "tlstm", "slstm" and the
        "lstm1997" whose gates recur. Without `layer_norm`, `zoneout`, `cells_per_block`, projections, a learned
        initial state, connections of a stack, and ``missing="observe"``.
    path : str or path-like
        File to create or replace; it is complete or untouched at any time.
    lengths : bool, default=False
        Add the input `lengths`, int32 (batch,), the real steps of each sequence, of which what follows is padding.
        Without it all steps count.
    states : bool, default=False
        Of a layer: add the inputs `h_in` and, for cells with a cell state, `c_in`, shaped as the outputs `h` and `c`,
        to go on from there; so does a step of a stream. Without them sequences start from zero.

    Raises
    ------
    ImportError
        The package onnx is not installed.
    TypeError
        Something else is given.
    ValueError
        ONNX has no operator for it, or `states` is wanted of a model.
    OSError
        The file cannot be written.

    Notes
    -----
    Operator set 17, in float32 whatever the dtype is, since ONNX Runtime computes recurrent layers in float32 alone;
    what training calls alone do stays behind, and so does `precision`.

    The input is `x`, float32 (batch, time, features), with batch and time left open. A layer gives `y`
    (batch, time, output_size), zero in the padding, and `h` and `c` (num_layers * directions, batch, hidden_size). A
    classifier gives `label` and `probabilities` (batch, classes), with several labels 0 or 1 (batch, labels) and the
    probability of each; a regressor gives `prediction`, (batch,) or (batch, targets), and with
    ``loss="gaussian_nll"`` `std`.

    Examples
    --------
    With onnx and onnxruntime installed::

        fastlstm.interop.to_onnx(model, "model.onnx", lengths=True)
        session = onnxruntime.InferenceSession("model.onnx")
        label, probabilities = session.run(None, {"x": x, "lengths": lengths})
    """
    if isinstance(estimator_or_layer, LSTM):
        graph = _layer_graph(estimator_or_layer, lengths, states)
    else:
        if states:
            raise ValueError("states=True goes with a layer; a model takes whole sequences")
        graph = _model_graph(_as_model(estimator_or_layer), lengths)
    replace_file(path, [graph.serialized()])


def _as_model(fitted: Any) -> Model:
    if isinstance(fitted, Model):
        return fitted
    from fastlstm.estimators._base import BaseLSTM  # needs scikit-learn

    if not isinstance(fitted, BaseLSTM):
        raise TypeError(
            f"expected a fitted estimator, a loaded model or a recurrent layer, got {type(fitted).__name__}"
        )
    return fitted._model()


class _Graph:
    """Inputs, nodes, constants and outputs while the graph is put together."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def _type(self, dtype: Any) -> int:
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def input(self, name: str, dtype: Any, shape: list[Any]) -> str:
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: list[Any]) -> None:
        """Give `value` out under a name."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), shape))

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Name of a constant; texts are of dtype object."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def nodes(self, operator: str, inputs: list[str], n_outputs: int, **attributes: Any) -> list[str]:
        names = [f"{operator}_{len(self._nodes)}_{k}" for k in range(n_outputs)]
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, names, **attributes))
        return names

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.nodes(operator, list(inputs), 1, **attributes)[0]

    def cast(self, value: str, dtype: Any) -> str:
        return self.node("Cast", value, to=self._type(dtype))

    def rows(self, value: str, begin: int, end: int, axis: int = 0) -> str:
        """value[begin:end] along an axis."""
        bounds = [self.constant([number], np.int64) for number in (begin, end, axis)]
        return self.node("Slice", value, *bounds)

    def serialized(self) -> bytes:
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, "fastlstm", self._inputs, self._outputs, self._constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="fastlstm",
            producer_version=__version__,
        )
        self._onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


# ------------------------------------------------------------------------------------------------ recurrent layers


def _layer_graph(layer: LSTM, lengths: bool, states: bool) -> _Graph:
    operator, graph = _operator(layer), _Graph()
    x = graph.input("x", np.float32, ["batch", "time", layer.input_size])
    counts = graph.input("lengths", np.int32, ["batch"]) if lengths else ""
    shape = [layer.num_layers * layer.directions, "batch", layer.hidden_size]
    names = _STATES[operator.name]
    initial = [graph.input(f"{name}_in", np.float32, shape) for name in names] if states else []
    rows, finals = _recurrence(graph, layer, _time_major(graph, x), counts, initial)
    graph.output("y", _time_major(graph, rows), np.float32, ["batch", "time", layer.output_size])
    for name, final in zip(names, finals, strict=True):
        graph.output(name, graph.node("Concat", *final, axis=0), np.float32, shape)
    return graph


def _operator(layer: Any) -> _Operator:
    """The operator for a layer; ValueError if there is none."""
    if not isinstance(layer, LSTM):
        raise ValueError(f"ONNX has no operator for an encoder that is a {type(layer).__name__}")
    if layer.cell not in _OPERATORS:
        raise ValueError(f"ONNX has no operator for the cell {layer.cell!r}; it has {', '.join(_OPERATORS)}")
    for name, without in _WITHOUT.items():
        value = getattr(layer, name)
        if value not in (without, (without, without)):
            raise ValueError(f"ONNX's operators compute no {name}; it must be {without!r}, got {value!r}")
    operator = _OPERATORS[layer.cell]
    if layer.cell_activation == "identity":
        operator = _Operator(operator.name, operator.attributes, NO_OUTPUT_ACTIVATION)
    return operator


def _time_major(graph: _Graph, rows: str) -> str:
    """(batch, time, features) from (time, batch, features), or the other way round."""
    return graph.node("Transpose", rows, perm=[1, 0, 2])


def _recurrence(
    graph: _Graph, layer: LSTM, rows: str, lengths: str, initial: list[str]
) -> tuple[str, list[list[str]]]:
    """Outputs (time, batch, output_size), and of each state the final ones of all layers, (directions, batch, hidden).

    `rows` is (time, batch, input_size), each of the initial states (layers * directions, batch, hidden).
    """
    operator, both = _operator(layer), layer.directions
    n_states = len(_STATES[operator.name])
    finals: list[list[str]] = [[] for _ in range(n_states)]
    attributes: dict[str, Any] = dict(operator.attributes)
    if operator.activations:
        attributes |= _activation_attributes(operator, both)
    attributes |= {"hidden_size": layer.hidden_size, "direction": "bidirectional" if both == 2 else "forward"}
    for level in range(layer.num_layers):
        weights = [graph.constant(array, np.float32) for array in _weights(layer, operator.name, level)]
        given = [graph.rows(state, level * both, (level + 1) * both) for state in initial]
        inputs = [rows, *weights[:3], lengths, *given, *[""] * (2 - len(given)), *weights[3:]]
        while not inputs[-1]:
            inputs.pop()
        y, *final = graph.nodes(operator.name, inputs, 1 + n_states, **attributes)
        for found, state in zip(finals, final, strict=True):
            found.append(state)
        turned = graph.node("Transpose", y, perm=[0, 2, 1, 3])  # (time, directions, batch, hidden)
        rows = graph.node("Reshape", turned, graph.constant([0, 0, layer.output_size], np.int64))
    return rows, finals


def _activation_attributes(operator: _Operator, directions: int) -> dict[str, Any]:
    functions = operator.activations * directions
    found: dict[str, Any] = {"activations": [name for name, *_ in functions]}
    for place, key in ((1, "activation_alpha"), (2, "activation_beta")):
        values = [function[place] for function in functions if len(function) > 1]
        if values:
            found[key] = values
    return found


def _weights(layer: LSTM, operator: str, level: int) -> list[Array]:
    """W, R and B of a layer, and P if it has peepholes; a row of each array for each direction."""
    sides = []
    for suffix in ("", "_reverse")[: layer.directions]:
        end = f"_l{level}{suffix}"
        parts = [
            _in_order(layer, f"{kind}{end}", operator)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        side = [*parts[:2], np.concatenate(parts[2:])]
        if f"weight_ci{end}" in layer.parameters:
            side.append(np.concatenate([layer.parameters[f"weight_c{gate}{end}"] for gate in "iof"]))
        sides.append(side)
    return [np.stack(arrays) for arrays in zip(*sides, strict=True)]


def _in_order(layer: LSTM, name: str, operator: str) -> Array:
    """Rows of a parameter in the operator's order of gates; those of gates that the cell lacks keep them open.

    With coupled gates ours is i = 1 - f, the operator's f = 1 - i; 1 - sigmoid(x) = sigmoid(-x).
    """
    parameters, units = layer.parameters, layer.hidden_size
    weights = parameters[name.replace("bias_", "weight_")]
    shape = (units,) if name.startswith("bias") else (units, weights.shape[1])
    values = parameters.get(name)
    blocks = []
    for gate in GATES[operator]:
        sign = 1.0
        if layer.cell == "cifg" and gate == "i":
            gate, sign = "f", -1.0
        if gate not in layer.gates_of(name.replace("bias_", "weight_")):
            blocks.append(np.full(shape, _OPEN if name.startswith("bias_ih") else 0.0))
        elif values is None:
            blocks.append(np.zeros(shape))
        else:
            blocks.append(sign * values[layer.gate_rows(name, gate)])
    return np.concatenate(blocks)


# -------------------------------------------------------------------------------------------------- fitted models


def _model_graph(model: Model, lengths: bool) -> _Graph:
    if model.missing is not None:
        raise ValueError(
            "ONNX has no operator that fills in values which were not observed (missing='observe')"
        )
    network, decision = model.network, model.decision
    layer = network.encoder
    _operator(layer)
    graph = _Graph()
    x = graph.input("x", np.float32, ["batch", "time", model.n_features_in_])
    counts = graph.input("lengths", np.int32, ["batch"]) if lengths else ""
    if model.normalization is not None:
        exact = graph.cast(x, np.float64)
        centred = graph.node("Sub", exact, graph.constant(model.normalization.mean, np.float64))
        scaled = graph.node("Div", centred, graph.constant(model.normalization.scale, np.float64))
        x = graph.cast(scaled, np.float32)
    rows, finals = _recurrence(graph, layer, _time_major(graph, x), counts, [])
    pooled = _pooled(graph, network.pooling, rows, finals[0][-1], counts)
    head = [graph.constant(network.head.parameters[name], np.float32) for name in ("weight", "bias")]
    raw = graph.node("Gemm", pooled, *head, transB=1)
    if decision.is_classifier:
        _add_classes(graph, decision, raw)
    else:
        _add_values(graph, decision, raw)
    return graph


def _pooled(graph: _Graph, pooling: str, rows: str, h: str, lengths: str) -> str:
    """What the head sees, (batch, output_size), of outputs (time, batch, output_size) and the top layer's final h."""
    if pooling == "last":
        turned = graph.node("Transpose", h, perm=[1, 0, 2])
        return graph.node("Flatten", turned)
    if not lengths:
        return graph.node("ReduceMean" if pooling == "mean" else "ReduceMax", rows, axes=[0], keepdims=0)
    if pooling == "mean":
        total = graph.node(
            "ReduceSum", rows, graph.constant([0], np.int64), keepdims=0
        )  # the padding is zero
        steps = graph.node("Unsqueeze", graph.cast(lengths, np.float32), graph.constant([1], np.int64))
        return graph.node("Div", total, steps)
    steps = graph.node("Squeeze", graph.rows(graph.node("Shape", rows), 0, 1), graph.constant([0], np.int64))
    places = graph.node("Range", graph.constant(0, np.int64), steps, graph.constant(1, np.int64))
    column = graph.node("Unsqueeze", places, graph.constant([1], np.int64))
    real = graph.node("Less", column, graph.cast(lengths, np.int64))  # (time, batch)
    mask = graph.node("Unsqueeze", real, graph.constant([2], np.int64))
    return graph.node(
        "ReduceMax",
        graph.node("Where", mask, rows, graph.constant(-np.inf, np.float32)),
        axes=[0],
        keepdims=0,
    )


def _add_classes(graph: _Graph, decision: Any, raw: str) -> None:
    """Outputs `label` and `probabilities` from raw (batch, n_outputs)."""
    zero, n_classes = graph.constant(0.0, np.float32), len(decision.classes)
    if decision.kind == "multilabel":
        probabilities = graph.node("Sigmoid", raw)
        label, label_type = graph.cast(graph.node("Greater", raw, zero), np.int64), np.dtype(np.int64)
        graph.output("label", label, label_type, ["batch", n_classes])
    else:
        if decision.kind == "binary":
            sides = [graph.node("Sigmoid", graph.node("Neg", raw)), graph.node("Sigmoid", raw)]
            probabilities = graph.node("Concat", *sides, axis=1)
            above = graph.cast(graph.node("Greater", raw, zero), np.int64)
            best = graph.node("Squeeze", above, graph.constant([1], np.int64))
        else:
            probabilities = graph.node("Softmax", raw, axis=1)
            best = graph.node("ArgMax", raw, axis=1, keepdims=0)
        classes = (
            np.array(decision.classes.tolist()) if decision.classes.dtype == object else decision.classes
        )
        if classes.dtype.kind == "U":
            classes = classes.astype(object)
        graph.output("label", graph.node("Gather", graph.constant(classes), best), classes.dtype, ["batch"])
    graph.output("probabilities", probabilities, np.float32, ["batch", n_classes])


def _add_values(graph: _Graph, decision: Any, raw: str) -> None:
    """Outputs `prediction` and, if there are variances, `std` from raw (batch, n_outputs)."""
    n, shape = decision.n_targets, ["batch"] if decision.flat else ["batch", decision.n_targets]

    def shaped(values: str) -> str:
        return graph.node("Squeeze", values, graph.constant([1], np.int64)) if decision.flat else values

    graph.output("prediction", shaped(graph.rows(raw, 0, n, axis=1)), np.float32, shape)
    if decision.variance:
        half = graph.node("Mul", graph.rows(raw, n, 2 * n, axis=1), graph.constant(0.5, np.float32))
        graph.output("std", shaped(graph.node("Exp", half)), np.float32, shape)
