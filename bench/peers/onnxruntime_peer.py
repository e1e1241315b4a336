"""onnxruntime: an ONNX LSTM built from the weights, all graph optimisations, sequential execution.

Inputs and outputs are bound once (IO binding), so a call copies nothing. A single step is offered
through plain ``session.run`` as well, in case the binding costs more than it saves. int8 is dynamic quantisation.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quant_utils, quantize_dynamic

from fastlstm.benchmark import Case, Contender, Problem
from peers import PEER_PRECISION

NAME = "onnxruntime"
_OPERATORS = {"lstm": "LSTM", "peephole": "LSTM", "gru": "GRU"}
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # i, f, g, o -> i, o, f, c and r, z, n -> z, r, h
_STATES = {"LSTM": "hc", "GRU": "h"}


def version() -> str:
    return ort.__version__


def contenders(problem: Problem, threads: int) -> list[Contender]:
    kind = problem.case.kind
    if not _can_do(problem.case):
        return []
    if kind == "step" and problem.case.num_layers == 1 and not problem.case.bidirectional:
        session = _session(problem, threads)
        return [_bound_step(session, problem, threads), _plain_step(session, problem, threads)]
    if kind == "infer":
        return [_inference(_session(problem, threads), problem, threads)]
    return []


def _can_do(case: Case) -> bool:
    there = case.cell in _OPERATORS and not case.proj_size and not case.layer_norm
    return there and PEER_PRECISION[case.precision] != "bfloat16"


# -------------------------------------------------------------------------------------- the model


def _gate_order(array: np.ndarray, cell: str) -> np.ndarray:
    gates = _GATES[_OPERATORS[cell]]
    return np.concatenate([np.split(array, len(gates))[gate] for gate in gates])


def _suffixes(case: Case, layer: int) -> list[str]:
    return [f"_l{layer}{side}" for side in ("", "_reverse")[: case.directions]]


def _peepholes(problem: Problem, layer: int) -> np.ndarray:
    """P (directions, 3 * H): input, output, forget gate."""
    return np.stack(
        [
            np.concatenate([problem.weights[f"weight_c{gate}{suffix}"] for gate in "iof"])
            for suffix in _suffixes(problem.case, layer)
        ]
    )


def _layer_weights(problem: Problem, layer: int) -> list[np.ndarray]:
    """W (directions, gates * H, I), R (directions, gates * H, H), B (directions, 2 * gates * H)."""
    suffixes = _suffixes(problem.case, layer)

    def stack(part: str) -> np.ndarray:
        return np.stack(
            [_gate_order(problem.weights[part + suffix], problem.case.cell) for suffix in suffixes]
        )

    return [
        stack("weight_ih"),
        stack("weight_hh"),
        np.concatenate([stack("bias_ih"), stack("bias_hh")], 1),
    ]


class _Graph:
    """Nodes and initializers of the graph while it is put together."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]


def _add_layer(graph: _Graph, problem: Problem, layer: int, x: str, initial: list[str]) -> str:
    """Adds one layer, from x (time, batch, features) to the name of its (time, batch, D * H) output."""
    case = problem.case
    lengths = "lengths" if case.ragged else ""
    arrays = zip("WRB", _layer_weights(problem, layer), strict=True)
    weights = [graph.constant(f"{key}{layer}", array) for key, array in arrays]
    operator = _OPERATORS[case.cell]
    outputs = [f"{name}{layer}" for name in ("y", *_STATES[operator])]
    direction = "bidirectional" if case.bidirectional else "forward"
    inputs = [x, *weights, lengths, *initial]
    if case.cell == "peephole":
        inputs += [""] * (7 - len(inputs)) + [graph.constant(f"P{layer}", _peepholes(problem, layer))]
    options = {"linear_before_reset": 1} if operator == "GRU" else {}
    options |= {"hidden_size": case.hidden_size, "direction": direction}
    graph.node(operator, inputs, outputs, **options)
    turned = graph.node("Transpose", [outputs[0]], [f"turned{layer}"], perm=[0, 2, 1, 3])
    shape = np.array([case.time, case.batch, case.directions * case.hidden_size])
    flat = [turned, graph.constant(f"shape{layer}", shape)]
    return graph.node("Reshape", flat, [f"flat{layer}"])


def _model(problem: Problem) -> onnx.ModelProto:
    """x, with a step also h_in and c_in -> y (time, batch, D * H), h, c (layers * D, batch, H)."""
    case, graph = problem.case, _Graph()
    state_shape = [case.num_layers * case.directions, case.batch, case.hidden_size]
    inputs = [_value("x", [case.time, case.batch, case.input_size])]
    inputs += [_value("lengths", [case.batch], TensorProto.INT32)] if case.ragged else []
    initial = ["h_in", "c_in"] if case.kind == "step" else []
    inputs += [_value(name, state_shape) for name in initial]
    last = "x"
    for layer in range(case.num_layers):
        last = _add_layer(graph, problem, layer, last, initial)
    graph.node("Identity", [last], ["y"])
    states = _STATES[_OPERATORS[case.cell]]
    for state in states:
        graph.node("Concat", [f"{state}{layer}" for layer in range(case.num_layers)], [state], axis=0)
    outputs = [_value("y", [case.time, case.batch, case.directions * case.hidden_size])]
    outputs += [_value(state, state_shape) for state in states]
    proto = helper.make_graph(graph.nodes, "lstm", inputs, outputs, graph.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of 8 bits; of 7 where the CPU adds pairs of products in 16 bits, which 8 would overflow."""
    quant_utils.add_pre_process_metadata(model)  # the shapes are there
    narrow = "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        quantize_dynamic(model, path, reduce_range=narrow)
        return onnx.load(path)


def _value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _session(problem: Problem, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    model = _quantised(_model(problem)) if problem.case.precision == "int8" else _model(problem)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# --------------------------------------------------------------------------------- the contenders


def _feeds(problem: Problem) -> dict[str, np.ndarray]:
    feeds = {"x": np.ascontiguousarray(problem.x.swapaxes(0, 1))}
    return feeds | ({"lengths": problem.lengths.astype(np.int32)} if problem.case.ragged else {})


def _bind(session: ort.InferenceSession, **values: Any) -> Any:
    binding = session.io_binding()
    for value in session.get_inputs():
        binding.bind_ortvalue_input(value.name, values[value.name])
    for value in session.get_outputs():
        binding.bind_ortvalue_output(value.name, values[value.name])
    return binding


def _empty(shape: list[int]) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))


def _inference(session: ort.InferenceSession, problem: Problem, threads: int) -> Contender:
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in _feeds(problem).items()}
    values |= {value.name: _empty(value.shape) for value in session.get_outputs()}
    binding = _bind(session, **values)

    def run() -> None:
        session.run_with_iobinding(binding)

    def outputs() -> dict[str, np.ndarray]:
        run()
        y = values["y"].numpy().swapaxes(0, 1) * problem.mask[..., None]
        return {"y": y} | {name: values[name].numpy() for name in _STATES[_OPERATORS[problem.case.cell]]}

    name = NAME if problem.case.precision == "float32" else f"{NAME} {problem.case.precision}"
    return Contender(name, threads, run, outputs=outputs)


def _bound_step(session: ort.InferenceSession, problem: Problem, threads: int) -> Contender:
    """Two bindings in turn: what one writes as state the other reads."""
    shape = {value.name: value.shape for value in session.get_outputs()}
    x, y = ort.OrtValue.ortvalue_from_numpy(_feeds(problem)["x"]), _empty(shape["y"])
    (h0, c0), (h1, c1) = ((_empty(shape["h"]), _empty(shape["c"])) for _ in range(2))
    bindings = [
        _bind(session, x=x, y=y, h_in=h0, c_in=c0, h=h1, c=c1),
        _bind(session, x=x, y=y, h_in=h1, c_in=c1, h=h0, c=c0),
    ]
    turn = 0

    def run() -> None:
        nonlocal turn
        session.run_with_iobinding(bindings[turn])
        turn = 1 - turn

    def outputs() -> dict[str, np.ndarray]:
        nonlocal turn
        turn = 0
        zero = np.zeros(shape["h"], np.float32)
        h0.update_inplace(zero)
        c0.update_inplace(zero)
        for _ in range(3):
            run()
        return {"h": y.numpy()[0].copy()}

    return Contender("onnxruntime binding", threads, run, outputs=outputs)


def _plain_step(session: ort.InferenceSession, problem: Problem, threads: int) -> Contender:
    zero = np.zeros([1, problem.case.batch, problem.case.hidden_size], np.float32)
    feeds = _feeds(problem) | {"h_in": zero, "c_in": zero}

    def run() -> np.ndarray:
        y, feeds["h_in"], feeds["c_in"] = session.run(None, feeds)
        return y

    def outputs() -> dict[str, np.ndarray]:
        feeds["h_in"] = feeds["c_in"] = zero
        return {"h": [run() for _ in range(3)][-1][0]}

    return Contender("onnxruntime", threads, run, outputs=outputs)
