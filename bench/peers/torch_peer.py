"""torch: ``nn.LSTM`` time-major (its native layout), ``inference_mode``, ``autograd.grad``.

Ragged batches are offered both ways that torch has: PackedSequence (packed outside the clock) and
padded with the padding masked out of the gradient, which computes every padded step. Cells that torch does
not have are its operations in a loop over time. Reduced precisions are autocast to bfloat16, where the CPU has it,
and dynamic quantisation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm.benchmark import FIT_EPOCHS, Case, Contender, Problem
from peers import PEER_PRECISION
from peers.equations import NORM_EPSILON, Operations, from_input, step

NAME = "torch"
_OPERATIONS = Operations(
    torch.sigmoid,
    torch.tanh,
    lambda array, n: array.chunk(n, -1),
    lambda z: nn.functional.layer_norm(z, z.shape[-1:], eps=NORM_EPSILON),
)


def version() -> str:
    return torch.__version__


def contenders(problem: Problem, threads: int) -> list[Contender]:
    case = problem.case
    if case.kind == "step":
        return [_step(problem, threads)] + ([_cell_step(problem, threads)] if case.num_layers == 1 else [])
    if case.kind == "fit":
        return [_fit(problem, threads)]
    build = _inference if case.kind == "infer" else _training
    if case.precision != "float32":
        return _reduced_inference(problem, threads)
    if _needs_loop(case):
        plain = case.num_layers == 1 and not case.bidirectional and not case.ragged
        return [build(problem, threads, "torch loop", _time_major(problem.x))] if plain else []
    if not case.ragged:
        return [build(problem, threads, "torch", _time_major(problem.x))]
    packed = pack_padded_sequence(
        _time_major(problem.x), torch.from_numpy(problem.lengths), enforce_sorted=False
    )
    ragged = [build(problem, threads, "torch packed", packed)]
    if not case.bidirectional:
        ragged.append(build(problem, threads, "torch padded", _time_major(problem.x)))
    return ragged


def _needs_loop(case: Case) -> bool:
    return case.cell not in ("lstm", "gru") or case.layer_norm


class LoopedLSTM(nn.Module):
    """One layer out of the equations, called as ``nn.LSTM`` is."""

    def __init__(self, cell: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.cell = cell
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        weights = {name.removesuffix("_l0"): weight for name, weight in self.named_parameters()}
        h = c = x.new_zeros(x.shape[1], weights["weight_hh"].shape[1])
        y = []
        for wx in from_input(_OPERATIONS, weights, x).unbind():
            h, c = step(_OPERATIONS, self.cell, weights, wx, h, c)
            y.append(h)
        return torch.stack(y), (h[None], c[None])


def _module(problem: Problem) -> nn.Module:
    case = problem.case
    if _needs_loop(case):
        module: nn.Module = LoopedLSTM(case.cell, dict(case.parameter_shapes()))
    else:
        kind = nn.GRU if case.cell == "gru" else nn.LSTM
        options = {"proj_size": case.proj_size} if case.proj_size else {}
        options |= {"bidirectional": case.bidirectional, "dropout": case.dropout}
        module = kind(case.input_size, case.hidden_size, case.num_layers, **options)
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in problem.weights.items()})
    return module


def _time_major(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.swapaxes(0, 1)))


def _without_gradient(function: Callable[[], Any]) -> Callable[[], Any]:
    """Entering inference_mode belongs to the call: a caller who serves has to do it too."""

    def run() -> Any:
        with torch.inference_mode():
            return function()

    return run


def _inference(
    problem: Problem,
    threads: int,
    name: str,
    x: torch.Tensor | PackedSequence,
    module: nn.Module | None = None,
    context: Callable[[], Any] = nullcontext,
) -> Contender:
    """`module` in place of the case's own one, called inside of `context`."""
    module = (module or _module(problem)).eval()

    @_without_gradient
    def run() -> Any:
        with context():
            return module(x)

    def outputs() -> dict[str, np.ndarray]:
        y, state = run()
        state = state if isinstance(state, tuple) else (state,)
        if isinstance(y, PackedSequence):
            y, _ = pad_packed_sequence(y, total_length=problem.case.time)
        result = {"y": y.float().numpy().swapaxes(0, 1) * problem.mask[..., None]}
        if name != "torch padded":  # whose final state is that of the padding
            result |= {name: array.float().numpy() for name, array in zip("hc", state, strict=False)}
        return result

    return Contender(name, threads, run, torch.set_num_threads, outputs)


def _reduced_inference(problem: Problem, threads: int) -> list[Contender]:
    precision, x = PEER_PRECISION[problem.case.precision], _time_major(problem.x)
    name = f"torch {precision}"
    if precision == "int8":
        return [_inference(problem, threads, name, x, _quantised(problem))]
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    return [_inference(problem, threads, name, x, context=partial(torch.autocast, "cpu", torch.bfloat16))]


def _quantised(problem: Problem) -> nn.Module:
    """The module with int8 weights, quantised as it runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this function, release after release
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(_module(problem)), {nn.LSTM}, dtype=torch.qint8
        )


def _step(problem: Problem, threads: int) -> Contender:
    module, x = _module(problem).eval(), _time_major(problem.x)
    state: Any = None

    @_without_gradient
    def run() -> torch.Tensor:
        nonlocal state
        y, state = module(x, state)
        return y

    def outputs() -> dict[str, np.ndarray]:
        nonlocal state
        state = None
        return {"h": [run() for _ in range(3)][-1][0].numpy()}

    return Contender("torch", threads, run, torch.set_num_threads, outputs)


def _cell_step(problem: Problem, threads: int) -> Contender:
    case = problem.case
    cell, x = nn.LSTMCell(case.input_size, case.hidden_size), torch.from_numpy(problem.x[:, 0].copy())
    cell.load_state_dict(
        {name.removesuffix("_l0"): torch.from_numpy(array) for name, array in problem.weights.items()}
    )
    state: Any = None

    @_without_gradient
    def run() -> torch.Tensor:
        nonlocal state
        state = cell(x, state)
        return state[0]

    def outputs() -> dict[str, np.ndarray]:
        nonlocal state
        state = None
        return {"h": [run() for _ in range(3)][-1].numpy()}

    return Contender("torch cell", threads, run, torch.set_num_threads, outputs)


def _training(problem: Problem, threads: int, name: str, x: torch.Tensor | PackedSequence) -> Contender:
    module = _module(problem).train()
    names, weights = zip(*module.named_parameters(), strict=True)
    dy = _time_major(problem.dy)
    if isinstance(x, PackedSequence):
        dy = pack_padded_sequence(dy, torch.from_numpy(problem.lengths), enforce_sorted=False).data

    def run() -> tuple[torch.Tensor, ...]:
        y, _ = module(x)
        y = y.data if isinstance(y, PackedSequence) else y
        return torch.autograd.grad(y, weights, dy)

    def outputs() -> dict[str, np.ndarray]:
        module.eval()
        gradients = run()
        module.train()
        return {key: gradient.numpy() for key, gradient in zip(names, gradients, strict=True)}

    return Contender(name, threads, run, torch.set_num_threads, outputs)


class LastStateClassifier(nn.Module):
    """LSTM and a linear layer on the top layer's final hidden state."""

    def __init__(self, input_size: int, hidden_size: int, n_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, n_classes)

    def forward(self, x: torch.Tensor | PackedSequence) -> torch.Tensor:
        return self.head(self.lstm(x)[1][0][-1])


def _fit(problem: Problem, threads: int) -> Contender:
    """The plain training loop: shuffle, forward, cross-entropy, backward, clip to norm 1, Adam."""
    case = problem.case
    x, labels = torch.from_numpy(problem.x), torch.from_numpy(problem.labels)
    n_classes = int(labels.max()) + 1

    def run() -> None:
        model = LastStateClassifier(case.input_size, case.hidden_size, n_classes)
        adam = torch.optim.Adam(model.parameters())
        for _ in range(FIT_EPOCHS):
            for rows in torch.randperm(len(x)).split(case.batch):
                adam.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                adam.step()

    return Contender("torch", threads, run, torch.set_num_threads, units=FIT_EPOCHS)
