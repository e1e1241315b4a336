"""Recurrent layers of ONNX models."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.interop._onnx_export import GATES, NO_OUTPUT_ACTIVATION
from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.serialization import PathLike

Array = NDArray[Any]

_LAYERS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
_ORDER = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}  # of our gates
# Operators between two recurrent nodes that leave the values as they are.
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
_AFFINE = ("Affine", "ScaledTanh")  # activation functions with alpha and beta
_DEFAULT = {
    "LSTM": (("Sigmoid",), ("Tanh",), ("Tanh",)),
    "GRU": (("Sigmoid",), ("Tanh",)),
    "RNN": (("Tanh",),),
}
_OPTIONS: dict[tuple[str, tuple[tuple[Any, ...], ...]], dict[str, Any]] = {
    ("LSTM", _DEFAULT["LSTM"]): {},
    ("LSTM", NO_OUTPUT_ACTIVATION): {"cell_activation": "identity"},
    ("GRU", _DEFAULT["GRU"]): {},
    ("RNN", _DEFAULT["RNN"]): {},
    ("RNN", (("Relu",),)): {"nonlinearity": "relu"},
}


def from_onnx(path_or_bytes: PathLike | bytes) -> LSTM:
    """Layer that computes what the recurrent nodes of an ONNX graph do.

    Parameters
    ----------
    path_or_bytes : str, path-like or bytes
        An ONNX model, or its file. It has one node LSTM, GRU or RNN, or a chain of them that becomes a stack of
        layers: alike, and joined by nothing but nodes that move values (transpose, reshape). Nodes in front of the
        first one and behind the last one are not read.

    Returns
    -------
    LSTM, GRU or RNN
        Layer of the same sizes, in float64 if the weights are, else in float32. x and y are (batch, time, features),
        whatever the layout of the graph. Initial states and `lengths` are arguments of its calls.

    Raises
    ------
    ImportError
        The package onnx is not installed.
    TypeError
        Something else is given.
    ValueError
        It is no ONNX model, has no recurrent node or several that are no chain, or a node computes what no layer here
        does: other activation functions, `clip`, the direction "reverse", initial states that are constants other
        than zero.
    OSError
        The file cannot be read.

    Examples
    --------
    With PyTorch and onnx installed::

        torch.onnx.export(torch.nn.GRU(3, 5), torch.zeros(7, 1, 3), "gru.onnx", dynamo=False)
        y, state = fastlstm.interop.from_onnx("gru.onnx")(x)
    """
    graph = _Graph(_loaded(path_or_bytes))
    nodes = [_as_node(graph, node) for node in graph.chain()]
    first = nodes[0]
    for node in nodes[1:]:
        if node.kind != first.kind:
            raise ValueError("the recurrent nodes of the graph differ in more than their weights")
    layer = first.new_layer(len(nodes))
    parameters: dict[str, Array] = {}
    for level, node in enumerate(nodes):
        parameters |= node.parameters(level)
    layer.load_parameters(parameters)
    return layer


def _loaded(path_or_bytes: PathLike | bytes) -> Any:
    """The graph of the model."""
    import onnx
    from google.protobuf.message import DecodeError

    if not isinstance(path_or_bytes, (bytes, str, os.PathLike)):
        raise TypeError(f"expected a path or bytes, got {type(path_or_bytes).__name__}")
    try:
        if isinstance(path_or_bytes, bytes):
            model = onnx.load_model_from_string(path_or_bytes)
        else:
            model = onnx.load(os.fspath(path_or_bytes))
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ValueError(f"this is no ONNX model: {error}") from None
    return model.graph


class _Graph:
    """Where the values of a graph come from."""

    def __init__(self, proto: Any) -> None:
        self._recurrent = [
            node for node in proto.node if node.op_type in GATES and node.domain in ("", "ai.onnx")
        ]
        self.constants = {tensor.name: tensor for tensor in proto.initializer}
        self.producers = {name: node for node in proto.node for name in node.output if name}

    def chain(self) -> list[Any]:
        """The recurrent nodes, in order; ValueError if there are none or they are no chain."""
        if not self._recurrent:
            raise ValueError(f"the graph has no node {', '.join(GATES)}")
        for below, node in itertools.pairwise(self._recurrent):
            name = node.input[0]
            while name in self.producers and self.producers[name].op_type in _MOVES:
                name = self.producers[name].input[0]
            if name != below.output[0]:
                raise ValueError(
                    f"{node.name or node.op_type!r} does not read the outputs of {below.name or below.op_type!r} "
                    "alone; the recurrent nodes must be one chain"
                )
        return self._recurrent

    def constant(self, name: str) -> Array | None:
        """Value of a constant; None for what the graph computes or is given."""
        from onnx import numpy_helper

        node = self.producers.get(name)
        while node is not None and node.op_type == "Identity":
            name = node.input[0]
            node = self.producers.get(name)
        if name in self.constants:
            return np.asarray(numpy_helper.to_array(self.constants[name]))
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t))
        return None

    def before(self, name: str) -> Iterator[str]:
        """The value and all whose values it is computed from; a shape is none."""
        waiting, seen = [name], set()
        while waiting:
            name = waiting.pop()
            if name and name not in seen:
                seen.add(name)
                yield name
                node = self.producers.get(name)
                waiting.extend(() if node is None or node.op_type == "Shape" else node.input)


@dataclass(frozen=True)
class _Node:
    """One recurrent node.

    `weights` holds W (directions, gates * units, inputs), R (directions, gates * units, units), and where the node
    has them B (directions, 2 * gates * units) and P (directions, 3 * units).
    """

    operator: str
    weights: Mapping[str, Array]
    options: Mapping[str, Any]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What the nodes of a chain have in common."""
        return self.operator, self.weights["R"].shape, sorted(self.weights), dict(self.options)

    def new_layer(self, num_layers: int) -> LSTM:
        """Layer of this node's sizes, with random weights."""
        w, r = self.weights["W"], self.weights["R"]
        return _LAYERS[self.operator](
            w.shape[2],
            r.shape[2],
            num_layers,
            bidirectional=len(r) == 2,
            bias="B" in self.weights,
            dtype=np.result_type(w, r),
            **self.options,
        )

    def parameters(self, level: int) -> dict[str, Array]:
        """Parameters of a layer under our names."""
        found: dict[str, Array] = {}
        for direction, side in enumerate(("", "_reverse")[: len(self.weights["R"])]):
            own, end = {name: value[direction] for name, value in self.weights.items()}, f"_l{level}{side}"
            found[f"weight_ih{end}"] = self._in_order(own["W"])
            found[f"weight_hh{end}"] = self._in_order(own["R"])
            if "B" in own:
                for name, half in zip(("bias_ih", "bias_hh"), np.split(own["B"], 2), strict=True):
                    found[f"{name}{end}"] = self._in_order(half)
            if "P" in own:
                parts = zip("iof", np.split(own["P"], 3), strict=True)
                found |= {f"weight_c{gate}{end}": part for gate, part in parts}
        return found

    def _in_order(self, rows: Array) -> Array:
        """Rows of the gates in our order; of coupled gates ours is f = 1 - i, and 1 - sigmoid(x) = sigmoid(-x)."""
        letters = GATES[self.operator]
        gates, wanted = dict(zip(letters, np.split(rows, len(letters)), strict=True)), _ORDER[self.operator]
        if self.options.get("cell") == "cifg":
            gates["f"], wanted = -gates["i"], "fgo"
        return np.concatenate([gates[gate] for gate in wanted])


def _as_node(graph: _Graph, node: Any) -> _Node:
    """A recurrent node, checked."""
    from onnx import helper

    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    inputs = [*node.input, *[""] * (8 - len(node.input))]
    weights: dict[str, Array] = {}
    for name, at in (("W", 1), ("R", 2), ("B", 3), ("P", 7)):
        if not inputs[at]:
            continue
        value = graph.constant(inputs[at])
        if value is None:
            raise ValueError(f"{name} of a node is no constant of the graph: export it with constants folded")
        weights[name] = value.astype(np.result_type(value, np.float32), copy=False)
    _check_shapes(node.op_type, weights, 2 if attributes.get("direction") == b"bidirectional" else 1)
    for name in inputs[5:7]:
        _check_initial(graph, name)
    return _Node(node.op_type, weights, _options(node.op_type, attributes, "P" in weights))


def _check_shapes(operator: str, weights: Mapping[str, Array], directions: int) -> None:
    """Raise ValueError unless the weights are those of one node."""
    gates, r = len(GATES[operator]), weights["R"].shape
    units = r[2] if len(r) == 3 else 0
    rows, w = gates * units, weights["W"].shape
    expected = {
        "W": (directions, rows, *w[2:3]),
        "R": (directions, rows, units),
        "B": (directions, 2 * rows),
        "P": (directions, 3 * units),
    }
    for name, value in weights.items():
        if units < 1 or len(w) != 3 or value.shape != expected[name]:
            raise ValueError(
                f"{name} of an {operator} node has shape {value.shape}, which does not fit R {r}"
            )


def _check_initial(graph: _Graph, name: str) -> None:
    """Raise ValueError if an initial state comes from a constant that would be lost."""
    for source in graph.before(name):
        value = graph.constant(source)
        if value is not None and value.dtype.kind == "f" and value.any():
            raise ValueError(
                "an initial state is a constant other than zero, which would be lost: make it an input of the graph, "
                "and give it to the calls of the layer"
            )


def _options(operator: str, attributes: Mapping[str, Any], has_peepholes: bool) -> dict[str, Any]:
    """Options of the layer that computes what a node with these attributes does."""
    if attributes.get("direction") == b"reverse":
        raise ValueError(
            "a node reads its input from the end (direction 'reverse'), which no layer here does alone"
        )
    if attributes.get("clip"):
        raise ValueError(
            f"no layer here clips what its activation functions read; a node has clip={attributes['clip']}"
        )
    functions = _activations(operator, attributes)
    found = _OPTIONS.get((operator, functions))
    if found is None:
        raise ValueError(f"no layer here has the activation functions of an {operator} node: {functions}")
    options = dict(found)
    if operator == "GRU":
        options["reset_after"] = bool(attributes.get("linear_before_reset"))
    if operator == "LSTM":
        tied = bool(attributes.get("input_forget"))
        if tied and (has_peepholes or options):
            raise ValueError("no layer here has input_forget with peepholes or without output activation")
        options["cell"] = "cifg" if tied else "peephole" if has_peepholes else "lstm"
    return options


def _activations(operator: str, attributes: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    """Functions of a direction: names, with alpha and beta of those that have them."""
    default = _DEFAULT[operator]
    names = [name.decode() for name in attributes.get("activations", [])]
    values = [iter(attributes.get(f"activation_{key}", [])) for key in ("alpha", "beta")]
    functions = [(name, *(next(each, None) for each in values if name in _AFFINE)) for name in names]
    sides = {tuple(functions[k : k + len(default)]) for k in range(0, len(functions), len(default))}
    if len(sides) > 1:
        raise ValueError(f"the directions of an {operator} node differ in their activation functions")
    return sides.pop() if sides else default
