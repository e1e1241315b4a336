"""What PyTorch computes for a `cases.Problem`: the live oracle and the maker of the golden files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cases import Problem, collect
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

torch.set_num_threads(1)  # small problems; the machine may be shared


def build_module(problem: Problem, dtype: torch.dtype) -> Any:
    """`torch.nn.LSTM` or `torch.nn.RNN` with the problem's parameters."""
    case = problem.case
    kind = torch.nn.LSTM if case.cell == "lstm" else torch.nn.RNN
    extra = {"nonlinearity": "relu"} if case.cell == "rnn_relu" else {}
    module = kind(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        batch_first=True,
        bidirectional=case.bidirectional,
        dtype=dtype,
        **extra,
    )
    module.load_state_dict({name: torch.from_numpy(p).to(dtype) for name, p in problem.parameters.items()})
    return module


def gradient_of(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.grad is not None
    return tensor.grad.numpy()


def solve(problem: Problem, dtype: str = "float64") -> dict[str, np.ndarray]:
    """As `cases.solve`, by torch."""
    kind = getattr(torch, dtype)
    module = build_module(problem, kind)
    lengths = torch.from_numpy(np.asarray(problem.real_lengths, dtype=np.int64))
    x = torch.from_numpy(problem.x).to(kind).requires_grad_()
    given = problem.state or tuple(np.zeros_like(s) for s in problem.dstate)
    state = tuple(torch.from_numpy(s).to(kind).requires_grad_() for s in given)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, final = module(packed, state if len(state) == 2 else state[0])
    y, _ = pad_packed_sequence(out, batch_first=True, total_length=problem.case.time)
    final = final if isinstance(final, tuple) else (final,)
    wanted = [torch.from_numpy(d).to(kind) for d in (problem.dy, *problem.dstate)]
    torch.autograd.backward([y, *final], wanted)
    grads = {name: gradient_of(p) for name, p in module.named_parameters()}
    states = tuple(s.detach().numpy() for s in final)
    d_states = tuple(gradient_of(s) for s in state)
    return collect(y.detach().numpy(), states, gradient_of(x), d_states, grads)
