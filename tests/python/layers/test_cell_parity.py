"""Recurrent cells against PyTorch and onnxruntime, live."""

from __future__ import annotations

from typing import Any

import cell_checks
import cell_reference
import numpy as np
import pytest
from cases import Case, Problem, collect, relative_error
from cell_checks import Variant, make_problem, solve

CASES = (
    Case("one_layer", input_size=5, hidden_size=13, batch=6, time=8, with_state=True),
    Case("two_layers", input_size=17, hidden_size=16, num_layers=2, batch=5, time=7, ragged=True),
    Case("no_bias", input_size=4, hidden_size=9, num_layers=2, bias=False, batch=3, time=6),
    Case("both_ways", input_size=6, hidden_size=12, bidirectional=True, batch=7, time=9, ragged=True),
    Case(
        "everything",
        input_size=3,
        hidden_size=21,
        num_layers=2,
        bidirectional=True,
        batch=9,
        time=10,
        ragged=True,
        with_state=True,
    ),
)
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def ours(variant: Variant, problem: Problem, dtype: str = "float64") -> dict[str, np.ndarray]:
    return solve(cell_checks.build(variant, problem.case, dtype, problem.parameters), problem)


def errors(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative errors of results; all parameter gradients count as one vector, as an entry may cancel out."""

    def joined(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [name for name in want if name.startswith(("d_weight", "d_bias"))]
        rest = {name: array for name, array in results.items() if name not in names}
        return {**rest, "d_parameters": np.concatenate([results[name].ravel() for name in names])}

    assert got.keys() == want.keys()
    got, want = joined(got), joined(want)
    assert {name: array.shape for name, array in got.items()} == {
        name: array.shape for name, array in want.items()
    }
    return {name: relative_error(got[name], want[name]) for name in want}


# ---- PyTorch ----


def torch_solution(kind: str, problem: Problem, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs, states and gradients of a PyTorch layer in float64."""
    torch = pytest.importorskip("torch")
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(1)  # small problems; the machine may be shared
    case = problem.case
    options = {"nonlinearity": kind.removeprefix("RNN_")} if kind.startswith("RNN") else {}
    module = getattr(torch.nn, kind.split("_")[0])(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        batch_first=True,
        bidirectional=case.bidirectional,
        dtype=torch.float64,
        **options,
    )
    module.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
    x = torch.from_numpy(problem.x).requires_grad_()
    given = problem.state or tuple(np.zeros_like(d) for d in problem.dstate)
    state = tuple(torch.from_numpy(s).requires_grad_() for s in given)
    lengths = torch.from_numpy(np.asarray(problem.real_lengths, np.int64))
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, final = module(packed, state if len(state) > 1 else state[0])
    y, _ = pad_packed_sequence(out, batch_first=True, total_length=case.time)
    final = final if isinstance(final, tuple) else (final,)
    torch.autograd.backward([y, *final], [torch.from_numpy(d) for d in (problem.dy, *problem.dstate)])
    return collect(
        y.detach().numpy(),
        tuple(s.detach().numpy() for s in final),
        x.grad.numpy(),
        tuple(s.grad.numpy() for s in state),
        {name: p.grad.numpy() for name, p in module.named_parameters()},
    )


PEERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN_tanh", "rnn_relu": "RNN_relu"}


@all_cases
@pytest.mark.parametrize("cell", PEERS)
def test_torch_has_the_same_outputs_states_and_gradients(cell: str, case: Case) -> None:
    problem = make_problem(Variant(cell), case)
    want = torch_solution(PEERS[cell], problem, problem.parameters)
    gaps = errors(ours(Variant(cell), problem), want)
    assert max(gaps.values()) <= 1e-10, gaps
    gaps = errors(ours(Variant(cell), problem, "float32"), want)
    assert max(gaps.values()) <= 2e-6, gaps


#: For gates i, f, g, o of an LSTM: the gate of the cell whose weights it takes and their sign, or open.
AS_LSTM: dict[str, tuple[tuple[str, float] | None, ...]] = {
    "cifg": (("f", -1.0), ("f", 1.0), ("g", 1.0), ("o", 1.0)),  # 1 - sigmoid(z) = sigmoid(-z)
    "nig": (None, ("f", 1.0), ("g", 1.0), ("o", 1.0)),
    "nfg": (("i", 1.0), None, ("g", 1.0), ("o", 1.0)),
    "lstm1997": (("i", 1.0), None, ("g", 1.0), ("o", 1.0)),
    "nog": (("i", 1.0), ("f", 1.0), ("g", 1.0), None),
}
OPEN = 100.0  # sigmoid is 1 in float64


def lstm_parameters(cell: str, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of the LSTM that computes the same; an open gate has a large bias alone."""
    found, gates = {}, cell_reference.CELLS[cell].x_gates
    for name, value in parameters.items():
        rows = dict(zip(gates, np.split(value, len(gates)), strict=True))
        held = np.full_like(rows["g"], OPEN if name.startswith("bias_ih") else 0.0)
        found[name] = np.concatenate([gate[1] * rows[gate[0]] if gate else held for gate in AS_LSTM[cell]])
    return found


@pytest.mark.parametrize("case", [case for case in CASES if case.bias], ids=lambda case: case.name)
@pytest.mark.parametrize("cell", AS_LSTM)
def test_cells_without_a_gate_are_the_torch_lstm_that_holds_it_open(cell: str, case: Case) -> None:
    problem = make_problem(Variant(cell), case)
    want = torch_solution("LSTM", problem, lstm_parameters(cell, problem.parameters))
    got = ours(Variant(cell), problem)
    names = [name for name in want if not name.startswith(("d_weight", "d_bias"))]
    gaps = {name: relative_error(got[name], want[name]) for name in names}
    assert max(gaps.values()) <= 1e-10, gaps


# ---- ONNX operators ----

#: Gate order of the operators: i, o, f, c from our i, f, g, o; z, r, h from our r, z, n.
ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def onnx_weights(operator: str, problem: Problem) -> dict[str, np.ndarray]:
    """W, R, B and P as the operator wants them: directions first, gates in its order."""
    order, parameters = ONNX_GATES[operator], problem.parameters
    ends = ("_l0", "_l0_reverse")[: 1 + problem.case.bidirectional]

    def ordered(name: str) -> np.ndarray:
        gates = np.split(parameters[name], len(order))
        return np.concatenate([gates[k] for k in order])

    found = {
        "W": np.stack([ordered(f"weight_ih{end}") for end in ends]),
        "R": np.stack([ordered(f"weight_hh{end}") for end in ends]),
    }
    if problem.case.bias:
        found["B"] = np.stack([np.concatenate([ordered(f"bias_{k}h{end}") for k in "ih"]) for end in ends])
    if "weight_ci_l0" in parameters:
        peepholes = [[parameters[f"weight_c{gate}{end}"] for gate in "iof"] for end in ends]
        found["P"] = np.stack([np.concatenate(one_way) for one_way in peepholes])
    return found


def onnx_solution(operator: str, problem: Problem, **attributes: Any) -> dict[str, np.ndarray]:
    """Outputs and final states of one operator by onnxruntime, float32."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    case, helper = problem.case, onnx.helper
    states = ("h", "c") if operator == "LSTM" else ("h",)
    given = problem.state or tuple(np.zeros_like(d) for d in problem.dstate)
    feeds = {"X": problem.x.transpose(1, 0, 2), **onnx_weights(operator, problem)}
    feeds |= {f"initial_{name}": value for name, value in zip(states, given, strict=True)}
    feeds = {name: np.ascontiguousarray(value, np.float32) for name, value in feeds.items()}
    feeds["sequence_lens"] = np.asarray(problem.real_lengths, np.int32)
    slots = ("X", "W", "R", "B", "sequence_lens", *(f"initial_{name}" for name in states))
    slots = (*slots, "P") if "P" in feeds else slots
    outputs = ["Y", *(f"Y_{name}" for name in states)]
    node = helper.make_node(
        operator,
        [name if name in feeds else "" for name in slots],
        outputs,
        hidden_size=case.hidden_size,
        direction="bidirectional" if case.bidirectional else "forward",
        **attributes,
    )
    kinds = {np.dtype("float32"): onnx.TensorProto.FLOAT, np.dtype("int32"): onnx.TensorProto.INT32}
    graph = helper.make_graph(
        [node],
        "cell",
        [helper.make_tensor_value_info(name, kinds[v.dtype], v.shape) for name, v in feeds.items()],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank)
            for name, rank in zip(outputs, (4, 3, 3), strict=False)
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *final = session.run(outputs, feeds)  # y: time, direction, batch, hidden
    y = y.transpose(2, 0, 1, 3).reshape(case.batch, case.time, -1)
    return {"y": y, **{f"state_{k}": s for k, s in enumerate(final)}}


def onnx_gap(variant: Variant, operator: str, case: Case, **attributes: Any) -> float:
    problem = make_problem(variant, case)
    want, got = onnx_solution(operator, problem, **attributes), ours(variant, problem, "float32")
    return max(relative_error(got[name], value) for name, value in want.items())


one_layer = pytest.mark.parametrize(
    "case", [case for case in CASES if case.num_layers == 1], ids=lambda case: case.name
)
TANH = ("Sigmoid", "Tanh", "Tanh")
#: Activations of f (gates), g (input) and h (output) that make the operator a cell.
ONNX_LSTMS: dict[Variant, tuple[str, ...]] = {
    Variant("lstm"): TANH,
    Variant("peephole"): TANH,
    Variant("niaf"): ("Sigmoid", "Affine", "Tanh"),
    Variant("lstm", "identity"): ("Sigmoid", "Tanh", "Affine"),
    Variant("peephole", "identity"): ("Sigmoid", "Tanh", "Affine"),
}


@one_layer
@pytest.mark.parametrize("variant", ONNX_LSTMS, ids=str)
def test_onnx_lstm_with_and_without_peepholes(variant: Variant, case: Case) -> None:
    """P[iof] is the peephole LSTM of 2002: i and f see the cell state before the step, o the one after it."""
    activations = ONNX_LSTMS[variant] * (1 + case.bidirectional)
    scales = {"activation_alpha": [1.0] * (1 + case.bidirectional)} if "Affine" in activations else {}
    assert onnx_gap(variant, "LSTM", case, activations=activations, **scales) <= 2e-6


@one_layer
def test_onnx_gru_with_the_reset_gate_after_the_product(case: Case) -> None:
    assert onnx_gap(Variant("gru"), "GRU", case, linear_before_reset=1) <= 2e-6


@one_layer
def test_onnx_gru_with_the_reset_gate_before_the_product(case: Case) -> None:
    assert onnx_gap(Variant("gru_before"), "GRU", case, linear_before_reset=0) <= 2e-6
    assert onnx_gap(Variant("gru"), "GRU", case, linear_before_reset=0) > 1e-3  # another cell
