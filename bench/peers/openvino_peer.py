"""openvino: LSTMSequence (LSTMCell for a single step), latency hint, the precision forced.

Without the precision hint openvino computes in bfloat16 where the CPU has it: another class of
accuracy, offered only beside our own reduced precisions. Input and output tensors are shared with numpy
arrays, so a call copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from fastlstm.benchmark import Case, Contender, Problem
from peers import PEER_PRECISION

NAME = "openvino"
_GATES = (1, 0, 2, 3)  # i, f, g, o -> f, i, c, o


def version() -> str:
    return ov.get_version().split("-")[0]


def contenders(problem: Problem, threads: int) -> list[Contender]:
    case = problem.case
    if not _can_do(case):
        return []
    if case.kind == "step" and case.num_layers == 1 and not case.bidirectional:
        return [_step(problem, threads)]
    if case.kind == "infer":
        return [_inference(problem, threads)]
    return []


def _can_do(case: Case) -> bool:
    if case.cell != "lstm" or case.proj_size or case.layer_norm:
        return False
    return case.precision == "float32" or (
        PEER_PRECISION[case.precision] == "bfloat16"
        and "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    )


def _gate_order(array: np.ndarray) -> np.ndarray:
    return np.concatenate([np.split(array, 4)[gate] for gate in _GATES])


def _direction_weights(problem: Problem, suffix: str) -> list[np.ndarray]:
    """W (4H, I), R (4H, H), B (4H): openvino has one bias."""
    w = problem.weights
    arrays = w["weight_ih" + suffix], w["weight_hh" + suffix], w["bias_ih" + suffix] + w["bias_hh" + suffix]
    return [_gate_order(array) for array in arrays]


def _compile(
    results: Sequence[ov.Output], parameters: Sequence[ov.Node], threads: int, precision: str = "f32"
) -> ov.CompiledModel:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    return ov.Core().compile_model(ov.Model(list(results), list(parameters), "lstm"), "CPU", settings)


def _request(
    compiled: ov.CompiledModel, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
) -> ov.InferRequest:
    """An inference request that reads and writes these arrays in place."""
    request = compiled.create_infer_request()
    for index, array in enumerate(inputs):
        request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
    for index, array in enumerate(outputs):
        request.set_output_tensor(index, ov.Tensor(array, shared_memory=True))
    return request


def _step(problem: Problem, threads: int) -> Contender:
    """Two requests in turn: what one writes as state the other reads."""
    case = problem.case
    state_shape = [case.batch, case.hidden_size]
    x = ops.parameter([case.batch, case.input_size], np.float32)
    h, c = (ops.parameter(state_shape, np.float32) for _ in range(2))
    weights = [ops.constant(array) for array in _direction_weights(problem, "_l0")]
    cell = ops.lstm_cell(x, h, c, *weights, case.hidden_size)
    compiled = _compile(cell.outputs(), [x, h, c], threads)
    first, second = ([np.zeros(state_shape, np.float32) for _ in range(2)] for _ in range(2))
    inputs = np.ascontiguousarray(problem.x[:, 0])
    requests = [_request(compiled, [inputs, *a], b) for a, b in ((first, second), (second, first))]
    turn = 0

    def run() -> None:
        nonlocal turn
        requests[turn].infer()
        turn = 1 - turn

    def outputs() -> dict[str, np.ndarray]:
        nonlocal turn
        turn = 0
        for array in first:
            array.fill(0)
        for _ in range(3):
            run()
        return {"h": second[0].copy()}

    return Contender(NAME, threads, run, outputs=outputs)


def _sequence_layer(problem: Problem, layer: int, x: ov.Output, lengths: ov.Output) -> list[ov.Output]:
    """One layer on x (batch, time, features): y (batch, time, D * H), h, c (batch, D, H)."""
    case = problem.case
    suffixes = [f"_l{layer}{side}" for side in ("", "_reverse")[: case.directions]]
    stacked = zip(*(_direction_weights(problem, suffix) for suffix in suffixes), strict=True)
    weights = [ops.constant(np.stack(arrays)) for arrays in stacked]
    zero = ops.constant(np.zeros([case.batch, case.directions, case.hidden_size], np.float32))
    direction = "bidirectional" if case.bidirectional else "forward"
    node = ops.lstm_sequence(x, zero, zero, lengths, *weights, case.hidden_size, direction)
    y, h, c = node.outputs()  # y (batch, D, time, H)
    turned = ops.transpose(y, ops.constant(np.array([0, 2, 1, 3])))
    shape = np.array([case.batch, case.time, case.directions * case.hidden_size])
    return [ops.reshape(turned, ops.constant(shape), False).output(0), h, c]


def _inference(problem: Problem, threads: int) -> Contender:
    case = problem.case
    x = ops.parameter(list(problem.x.shape), np.float32)
    parameters, arrays = [x], [np.ascontiguousarray(problem.x)]
    lengths = ops.constant(problem.lengths.astype(np.int32))
    if case.ragged:
        lengths = ops.parameter([case.batch], np.int32)
        parameters.append(lengths)
        arrays.append(problem.lengths.astype(np.int32))
    y, states = x.output(0), []
    for layer in range(case.num_layers):
        y, h, c = _sequence_layer(problem, layer, y, lengths.output(0))
        states.append((h, c))
    h, c = (ops.concat(list(each), 1).output(0) for each in zip(*states, strict=True))
    reduced = case.precision != "float32"
    compiled = _compile([y, h, c], parameters, threads, "bf16" if reduced else "f32")
    results = [np.zeros(tuple(port.shape), np.float32) for port in compiled.outputs]
    request = _request(compiled, arrays, results)

    def outputs() -> dict[str, np.ndarray]:
        request.infer()
        y, h, c = results
        return {"y": y * problem.mask[..., None], "h": h.swapaxes(0, 1), "c": c.swapaxes(0, 1)}

    name = f"{NAME} bfloat16" if reduced else NAME
    return Contender(name, threads, request.infer, outputs=outputs)
