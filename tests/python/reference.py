"""Recurrent layers written as plainly as possible in float64 numpy: an oracle for the layer tests.

One sequence at a time, one step at a time, one matrix product per step, so that each line can be
checked against the equations it comes from:

* ``rnn``: h' = tanh(W x + U h + b)  (Elman 1990); ``rnn_relu`` has max(0, .) for tanh
* ``lstm``: i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c' = f c + i g,
  h' = o tanh(c')  (Gers, Schmidhuber, Cummins 2000); gates are stacked i, f, g, o as in PyTorch

``x`` is (batch, time, features); states are (layers * directions, batch, hidden). The gradient is
full back-propagation through time. Steps beyond a sequence's length are neither read nor computed,
and hold 0 in ``y`` and ``dx``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
GATES = {"lstm": 4, "rnn": 1, "rnn_relu": 1}
N_STATES = {"lstm": 2, "rnn": 1, "rnn_relu": 1}


@dataclass(frozen=True)
class Shape:
    """What a recurrent layer is; `suffixes` names its (layer, direction) pairs in state order."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def suffixes(self) -> list[str]:
        ends = ["", "_reverse"][: self.directions]
        return [f"l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        rows = GATES[self.cell] * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for k, suffix in enumerate(self.suffixes):
            first = k < self.directions
            width = self.input_size if first else self.hidden_size * self.directions
            shapes[f"weight_ih_{suffix}"] = (rows, width)
            shapes[f"weight_hh_{suffix}"] = (rows, self.hidden_size)
            if self.bias:
                shapes[f"bias_ih_{suffix}"] = (rows,)
                shapes[f"bias_hh_{suffix}"] = (rows,)
        return shapes


def sigmoid(z: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def lstm_units(z: Array, states: list[Array]) -> tuple[list[Array], Any]:
    """One step: pre-activations z (4 * hidden,) and [h, c] to the new [h, c] and what backward needs."""
    i, f, g, o = np.split(z, 4)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_before = states[1]
    c = f * c_before + i * g
    return [o * np.tanh(c), c], (i, f, g, o, c_before, c)


def lstm_units_backward(dstates: list[Array], saved: Any) -> tuple[Array, list[Array]]:
    """Gradient of one step: [dh, dc] to dz and the direct part of the previous [dh, dc]."""
    i, f, g, o, c_before, c = saved
    dh, dc = dstates
    squashed = np.tanh(c)
    dc = dc + dh * o * (1.0 - squashed**2)
    di, df, dg, do = dc * g, dc * c_before, dc * i, dh * squashed
    dz = np.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)])
    return dz, [np.zeros_like(dh), dc * f]


def rnn_units(z: Array, states: list[Array]) -> tuple[list[Array], Any]:
    h = np.tanh(z)
    return [h], h


def rnn_units_backward(dstates: list[Array], h: Any) -> tuple[Array, list[Array]]:
    return dstates[0] * (1.0 - h**2), [np.zeros_like(h)]


def rnn_relu_units(z: Array, states: list[Array]) -> tuple[list[Array], Any]:
    h = np.maximum(z, 0.0)
    return [h], h


def rnn_relu_units_backward(dstates: list[Array], h: Any) -> tuple[Array, list[Array]]:
    return dstates[0] * (h > 0), [np.zeros_like(h)]


FORWARD = {"lstm": lstm_units, "rnn": rnn_units, "rnn_relu": rnn_relu_units}
BACKWARD = {"lstm": lstm_units_backward, "rnn": rnn_units_backward, "rnn_relu": rnn_relu_units_backward}


def _sweep(shape: Shape, parameters: Mapping[str, Array], suffix: str, x: Array, states: list[Array]) -> Any:
    """One direction of one layer over one sequence x (time, width), in the order of its rows."""
    weight_ih, weight_hh = parameters[f"weight_ih_{suffix}"], parameters[f"weight_hh_{suffix}"]
    bias = parameters[f"bias_ih_{suffix}"] + parameters[f"bias_hh_{suffix}"] if shape.bias else 0.0
    outputs, steps = [], []
    for row in x:
        z = weight_ih @ row + weight_hh @ states[0] + bias
        h_before = states[0]
        states, saved = FORWARD[shape.cell](z, states)
        outputs.append(states[0])
        steps.append((row, h_before, saved))
    return np.array(outputs), states, steps


def _sweep_backward(
    shape: Shape,
    parameters: Mapping[str, Array],
    suffix: str,
    steps: Any,
    dy: Array,
    dstates: list[Array],
    grads: dict[str, Array],
) -> tuple[Array, list[Array]]:
    """Gradient of `_sweep`: returns dx (time, width) and d(initial states); adds to `grads`."""
    weight_ih, weight_hh = parameters[f"weight_ih_{suffix}"], parameters[f"weight_hh_{suffix}"]
    dx = np.zeros((len(steps), weight_ih.shape[1]))
    for t in reversed(range(len(steps))):
        row, h_before, saved = steps[t]
        dstates = [dstates[0] + dy[t], *dstates[1:]]
        dz, dstates = BACKWARD[shape.cell](dstates, saved)
        dstates[0] = dstates[0] + weight_hh.T @ dz
        dx[t] = weight_ih.T @ dz
        grads[f"weight_ih_{suffix}"] += np.outer(dz, row)
        grads[f"weight_hh_{suffix}"] += np.outer(dz, h_before)
        if shape.bias:
            grads[f"bias_ih_{suffix}"] += dz
            grads[f"bias_hh_{suffix}"] += dz
    return dx, dstates


def forward(
    shape: Shape,
    parameters: Mapping[str, Array],
    x: Array,
    state: tuple[Array, ...] | None = None,
    lengths: Any = None,
) -> tuple[Array, tuple[Array, ...], Any]:
    """Outputs y (batch, time, directions * hidden), final states, and the tape for `backward`."""
    batch, time, _ = x.shape
    lengths = np.full(batch, time) if lengths is None else np.asarray(lengths)
    n_rows, hidden, dirs = shape.num_layers * shape.directions, shape.hidden_size, shape.directions
    initial = state or tuple(np.zeros((n_rows, batch, hidden)) for _ in range(N_STATES[shape.cell]))
    final = tuple(np.zeros((n_rows, batch, hidden)) for _ in initial)
    y = np.zeros((batch, time, dirs * hidden))
    tape = []
    for b, length in enumerate(lengths):
        layer_input, swept = x[b, :length].astype(np.float64), []
        for layer in range(shape.num_layers):
            outputs = []
            for k in range(layer * dirs, (layer + 1) * dirs):
                order = slice(None, None, -1) if k % dirs else slice(None)
                start = [s[k, b].astype(np.float64) for s in initial]
                out, end, steps = _sweep(shape, parameters, shape.suffixes[k], layer_input[order], start)
                outputs.append(out[order])
                swept.append(steps)
                for whole, part in zip(final, end, strict=True):
                    whole[k, b] = part
            layer_input = np.concatenate(outputs, axis=1)
        y[b, :length] = layer_input
        tape.append(swept)
    return y, final, (tape, lengths, x.shape)


def backward(
    shape: Shape,
    parameters: Mapping[str, Array],
    tape: Any,
    dy: Array,
    dstate: tuple[Array, ...] | None = None,
) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """Gradients with respect to x, the initial states and the parameters."""
    swept, lengths, x_shape = tape
    batch, hidden, dirs = x_shape[0], shape.hidden_size, shape.directions
    n_rows = shape.num_layers * dirs
    final = dstate or tuple(np.zeros((n_rows, batch, hidden)) for _ in range(N_STATES[shape.cell]))
    initial = tuple(np.zeros((n_rows, batch, hidden)) for _ in final)
    grads = {name: np.zeros(size) for name, size in shape.parameter_shapes().items()}
    dx = np.zeros(x_shape)
    for b, length in enumerate(lengths):
        d_output = np.asarray(dy[b, :length], dtype=np.float64)
        for layer in reversed(range(shape.num_layers)):
            d_input: Any = 0.0
            for k in range(layer * dirs, (layer + 1) * dirs):
                order = slice(None, None, -1) if k % dirs else slice(None)
                part = d_output[:, (k % dirs) * hidden : (k % dirs + 1) * hidden]
                end = [np.asarray(s[k, b], dtype=np.float64) for s in final]
                d_swept, start = _sweep_backward(
                    shape, parameters, shape.suffixes[k], swept[b][k], part[order], end, grads
                )
                d_input = d_input + d_swept[order]
                for whole, piece in zip(initial, start, strict=True):
                    whole[k, b] = piece
            d_output = d_input
        dx[b, :length] = d_output
    return dx, initial, grads
