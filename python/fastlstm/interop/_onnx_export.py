"""Layers and fitted models as ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm._version import __version__
from fastlstm.interop._refusals import refuse_options
from fastlstm.layers import LSTM, Stack
from fastlstm.layers._connections import Connections
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
}


def to_onnx(estimator_or_layer: Any, path: PathLike, *, lengths: bool = False, states: bool = False) -> None:
    """Write a fitted estimator, a loaded model or a recurrent layer as an ONNX model.

    Parameters
    ----------
    estimator_or_layer : LSTMClassifier, LSTMRegressor, Model, LSTM, GRU, RNN or Stack
        With a cell that ONNX's operators can compute: all but "peephole_article", "fgr", "tlstm", "slstm" and the
        "lstm1997" whose gates recur. Without `layer_norm`, `zoneout`, `cells_per_block`, projections and
        ``missing="observe"``.
    path : str or path-like
        File to create or replace; it is complete or untouched at any time.
    lengths : bool, default=False
        Add the input `lengths`, int32 (batch,), the real steps of each sequence, of which what follows is padding.
        Without it all steps count.
    states : bool, default=False
        Of a layer: add the inputs `h_in` and, for cells with a cell state, `c_in`, shaped as the outputs `h` and `c`,
        to go on from there; so does a step of a stream. Without them sequences start from zero, or from the states
        that were learned.

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
    if isinstance(estimator_or_layer, (LSTM, Stack)):
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

    def along(self, operator: str, value: str, axis: int, **attributes: Any) -> str:
        """A node that takes an axis as its second input."""
        return self.node(operator, value, self.constant([axis], np.int64), **attributes)

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


def _layer_graph(layer: LSTM | Stack, lengths: bool, states: bool) -> _Graph:
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


def _operator(layer: LSTM | Stack) -> _Operator:
    """The operator for a layer; ValueError if there is none."""
    one = layer.layers[0] if isinstance(layer, Stack) else layer
    if one.cell not in _OPERATORS:
        raise ValueError(f"ONNX has no operator for the cell {one.cell!r}; it has {', '.join(_OPERATORS)}")
    refuse_options(one, _WITHOUT, "ONNX's operators")
    operator = _OPERATORS[one.cell]
    if one.cell_activation == "identity":
        operator = _Operator(operator.name, operator.attributes, NO_OUTPUT_ACTIVATION)
    return operator


def _time_major(graph: _Graph, rows: str) -> str:
    """(batch, time, features) from (time, batch, features), or the other way round."""
    return graph.node("Transpose", rows, perm=[1, 0, 2])


def _recurrence(
    graph: _Graph, layer: LSTM | Stack, x: str, lengths: str, initial: list[str]
) -> tuple[str, list[list[str]]]:
    """Outputs (time, batch, output_size), and of each state the final ones of all layers, (directions, batch, hidden).

    `x` is (time, batch, input_size), each of the initial states (layers * directions, batch, hidden); none: zero, or
    the learned ones.
    """
    operator, both, connections = _operator(layer), layer.directions, _connections(layer)
    names = _STATES[operator.name]
    finals: list[list[str]] = [[] for _ in names]
    attributes: dict[str, Any] = dict(operator.attributes)
    if operator.activations:
        attributes |= _activation_attributes(operator, both)
    attributes |= {"hidden_size": layer.hidden_size, "direction": "bidirectional" if both == 2 else "forward"}
    below, outputs = x, []
    for level in range(layer.num_layers):
        arrays = _weights(layer, operator.name, level)
        weights = {name: graph.constant(array, np.float32) for name, array in arrays.items()}
        given = [graph.rows(state, level * both, (level + 1) * both) for state in initial]
        if layer.learn_initial_state and not initial:
            given = [_learned_state(graph, layer, name, level, x) for name in names]
        rows = graph.node("Concat", below, x, axis=2) if level and connections.joins_input else below
        inputs = [rows, *(weights.get(name, "") for name in "WRB"), lengths, *given]
        if "P" in weights:
            inputs += [*[""] * (2 - len(given)), weights["P"]]
        y, *final = graph.nodes(operator.name, inputs, 1 + len(names), **attributes)
        for found, state in zip(finals, final, strict=True):
            found.append(state)
        passed_on = _one_direction(graph, y, connections)
        below = graph.node("Add", passed_on, below) if connections.adds(level) else passed_on
        outputs.append(below)
    rows = _side_by_side(graph, outputs[-connections.n_shown :], axis=2)
    if lengths and connections.adds(0):  # what stands in the padding of x
        rows = graph.node("Where", _is_real(graph, rows, lengths), rows, graph.constant(0.0, np.float32))
    return rows, finals


def _connections(layer: LSTM | Stack) -> Connections:
    if isinstance(layer, Stack):
        return layer.connections
    sizes = (layer.num_layers, layer.directions, layer.input_size, layer.hidden_size)
    return Connections(False, None, "concat", *sizes)


def _one_direction(graph: _Graph, y: str, connections: Connections) -> str:
    """(time, batch, features) from y (time, directions, batch, hidden)."""
    if connections.merge == "sum":
        return graph.along("ReduceSum", y, 1, keepdims=0)
    turned = graph.node("Transpose", y, perm=[0, 2, 1, 3])
    return graph.node("Reshape", turned, graph.constant([0, 0, connections.size], np.int64))


def _side_by_side(graph: _Graph, values: list[str], axis: int) -> str:
    return graph.node("Concat", *values, axis=axis) if len(values) > 1 else values[0]


def _is_real(graph: _Graph, rows: str, lengths: str) -> str:
    """Which steps of rows (time, batch, features) are no padding: bool (time, batch, 1)."""
    steps = graph.along("Squeeze", graph.rows(graph.node("Shape", rows), 0, 1), 0)
    places = graph.node("Range", graph.constant(0, np.int64), steps, graph.constant(1, np.int64))
    column = graph.along("Unsqueeze", places, 1)
    real = graph.node("Less", column, graph.cast(lengths, np.int64))
    return graph.along("Unsqueeze", real, 2)


def _learned_state(graph: _Graph, layer: LSTM | Stack, name: str, level: int, x: str) -> str:
    """Initial state of a layer, (directions, batch, hidden), the same for every sequence of x (time, batch, ...)."""
    rows = [layer.parameters[f"{name}0_l{level}{side}"] for side in ("", "_reverse")[: layer.directions]]
    batch = graph.rows(graph.node("Shape", x), 1, 2)
    around = [graph.constant([size], np.int64) for size in (layer.directions, layer.hidden_size)]
    shape = graph.node("Concat", around[0], batch, around[1], axis=0)
    return graph.node("Expand", graph.constant(np.stack(rows)[:, None], np.float32), shape)


def _activation_attributes(operator: _Operator, directions: int) -> dict[str, Any]:
    functions = operator.activations * directions
    found: dict[str, Any] = {"activations": [name for name, *_ in functions]}
    for place, key in ((1, "activation_alpha"), (2, "activation_beta")):
        values = [function[place] for function in functions if len(function) > 1]
        if values:
            found[key] = values
    return found


def _weights(layer: LSTM | Stack, operator: str, level: int) -> dict[str, Array]:
    """W, R, and where there are biases and peepholes B and P of a layer; a row of each for each direction."""
    if isinstance(layer, Stack):
        return _weights(layer.layers[level], operator, 0)
    ends = [f"_l{level}{suffix}" for suffix in ("", "_reverse")[: layer.directions]]

    def rows(kind: str) -> Array:
        return np.stack([_in_order(layer, f"{kind}{end}", operator) for end in ends])

    found = {"W": rows("weight_ih"), "R": rows("weight_hh")}
    biases = np.concatenate([rows("bias_ih"), rows("bias_hh")], axis=1)
    if layer.bias or biases.any():
        found["B"] = biases
    if f"weight_ci{ends[0]}" in layer.parameters:
        parts = [[layer.parameters[f"weight_c{gate}{end}"] for gate in "iof"] for end in ends]
        found["P"] = np.stack([np.concatenate(part) for part in parts])
    return found


def _in_order(layer: LSTM, name: str, operator: str) -> Array:
    """Rows of a parameter in the operator's order of gates; those of gates that the cell lacks keep them open.

    With coupled gates ours is i = 1 - f, the operator's f = 1 - i; 1 - sigmoid(x) = sigmoid(-x).
    """
    of_weights = name.replace("bias_", "weight_")
    values, gates, blocks = layer.parameters.get(name), layer.gates_of(of_weights), []
    columns = () if name.startswith("bias") else layer.parameters[name].shape[1:]
    shape = (layer.hidden_size, *columns)
    for gate in GATES[operator]:
        sign = 1.0
        if layer.cell == "cifg" and gate == "i":
            gate, sign = "f", -1.0
        if gate not in gates:
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
    network, decision, layer = model.network, model.decision, model.network.encoder
    graph = _Graph()
    x = graph.input("x", np.float32, ["batch", "time", model.n_features_in_])
    counts = graph.input("lengths", np.int32, ["batch"]) if lengths else ""
    if model.normalization is not None:
        exact = graph.cast(x, np.float64)
        centred = graph.node("Sub", exact, graph.constant(model.normalization.mean, np.float64))
        scaled = graph.node("Div", centred, graph.constant(model.normalization.scale, np.float64))
        x = graph.cast(scaled, np.float32)
    rows, finals = _recurrence(graph, layer, _time_major(graph, x), counts, [])
    if network.pooling == "last":
        pooled = _last_output(graph, layer, x, finals[0], counts)
    else:
        pooled = _over_time(graph, network.pooling, rows, counts)
    head = [graph.constant(network.head.parameters[name], np.float32) for name in ("weight", "bias")]
    raw = graph.node("Gemm", pooled, *head, transB=1)
    if decision.is_classifier:
        _add_classes(graph, decision, raw)
    else:
        _add_values(graph, decision, raw)
    return graph


def _last_output(graph: _Graph, layer: LSTM | Stack, x: str, h: list[str], lengths: str) -> str:
    """Output of each direction after all steps that it reads, (batch, output_size), as ``layer.last_output``.

    `x` is (batch, time, input_size), `h` the final ones of all layers, (directions, batch, hidden).
    """
    connections = _connections(layer)
    if connections.merge == "sum":
        last = [graph.along("ReduceSum", each, 0, keepdims=0) for each in h]
    else:
        last = [graph.node("Flatten", graph.node("Transpose", each, perm=[1, 0, 2])) for each in h]
    if connections.residual:
        if connections.adds(0):
            last[0] = graph.node("Add", last[0], _ends(graph, connections, x, lengths))
        for level in range(1, len(last)):
            last[level] = graph.node("Add", last[level], last[level - 1])
    return _side_by_side(graph, last[-connections.n_shown :], axis=1)


def _ends(graph: _Graph, connections: Connections, x: str, lengths: str) -> str:
    """Features of x (batch, time, input_size) for a second direction at the first step, the others at the last one."""
    if lengths:
        before = graph.node("Sub", graph.cast(lengths, np.int64), graph.constant(1, np.int64))
        place = graph.along("Unsqueeze", before, 1)
        last = graph.node("GatherND", x, place, batch_dims=1)
    else:
        last = graph.node("Gather", x, graph.constant(-1, np.int64), axis=1)
    unit, size = connections.unit_size, connections.input_size
    if size == unit:
        return last
    first = graph.node("Gather", x, graph.constant(0, np.int64), axis=1)
    parts = [graph.rows(last, 0, unit, axis=1), graph.rows(first, unit, size, axis=1)]
    return _side_by_side(graph, parts, axis=1)


def _over_time(graph: _Graph, pooling: str, rows: str, lengths: str) -> str:
    """Mean or maximum over the real steps, (batch, output_size), of outputs (time, batch, output_size)."""
    if not lengths:
        return graph.node("ReduceMean" if pooling == "mean" else "ReduceMax", rows, axes=[0], keepdims=0)
    if pooling == "mean":
        total = graph.along("ReduceSum", rows, 0, keepdims=0)  # the padding is zero
        steps = graph.along("Unsqueeze", graph.cast(lengths, np.float32), 1)
        return graph.node("Div", total, steps)
    least = graph.constant(-np.inf, np.float32)
    masked = graph.node("Where", _is_real(graph, rows, lengths), rows, least)
    return graph.node("ReduceMax", masked, axes=[0], keepdims=0)


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
            best = graph.along("Squeeze", above, 1)
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
        return graph.along("Squeeze", values, 1) if decision.flat else values

    graph.output("prediction", shaped(graph.rows(raw, 0, n, axis=1)), np.float32, shape)
    if decision.variance:
        half = graph.node("Mul", graph.rows(raw, n, 2 * n, axis=1), graph.constant(0.5, np.float32))
        graph.output("std", shaped(graph.node("Exp", half)), np.float32, shape)
