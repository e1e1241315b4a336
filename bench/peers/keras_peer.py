"""Keras: ``keras.layers.LSTM`` and ``GRU`` in a functional model, ``predict_on_batch``; inference only.

KERAS_BACKEND picks what computes; without it the first that is installed of jax, tensorflow and torch. With jax
and tensorflow the model is compiled; they fix the number of threads when a process starts (see jax_peer).
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np

from fastlstm.benchmark import Contender, Problem
from peers import fixed_threads

_BACKENDS = ("jax", "tensorflow", "torch")
os.environ.setdefault(
    "KERAS_BACKEND", next((name for name in _BACKENDS if importlib.util.find_spec(name)), _BACKENDS[0])
)

import keras  # noqa: E402  (reads KERAS_BACKEND)

NAME = "keras"
_GATES = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}  # r, z, n -> z, r, h


def version() -> str:
    return f"{keras.__version__} ({keras.backend.backend()})"


def contenders(problem: Problem, threads: int) -> list[Contender]:
    case = problem.case
    other = case.cell not in _GATES or case.proj_size or case.layer_norm or case.precision != "float32"
    if case.kind != "infer" or other or not _takes_threads(threads):
        return []
    return [_inference(problem, threads)]


def _takes_threads(threads: int) -> bool:
    return keras.backend.backend() == "torch" or threads == fixed_threads()


def _use_threads(threads: int) -> None:
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)


def _direction_weights(problem: Problem, suffix: str) -> list[np.ndarray]:
    """Kernel (I, gates * H), recurrent kernel (H, gates * H), and one bias, or a GRU's two (2, gates * H)."""
    gates = _GATES[problem.case.cell]

    def turned(name: str) -> np.ndarray:
        pieces = np.split(problem.weights[name + suffix], len(gates))
        return np.concatenate([pieces[gate] for gate in gates]).T

    biases = turned("bias_ih"), turned("bias_hh")
    bias = np.stack(biases) if problem.case.cell == "gru" else sum(biases)
    return [turned("weight_ih"), turned("weight_hh"), bias]


def _layer(problem: Problem) -> Any:
    case = problem.case
    kind = keras.layers.GRU if case.cell == "gru" else keras.layers.LSTM
    layer = kind(case.hidden_size, return_sequences=True, return_state=True)
    return keras.layers.Bidirectional(layer) if case.bidirectional else layer


def _model(problem: Problem) -> Any:
    """x (batch, time, features), for a ragged batch also mask (batch, time) -> y and the states of each layer."""
    case = problem.case
    x = keras.Input((case.time, case.input_size), batch_size=case.batch)
    mask = keras.Input((case.time,), batch_size=case.batch, dtype="bool") if case.ragged else None
    layers = [_layer(problem) for _ in range(case.num_layers)]
    y, states = x, []
    for layer in layers:
        y, *state = layer(y, mask=mask)
        states += state
    model = keras.Model([x, mask] if case.ragged else [x], [y, *states])
    for number, layer in enumerate(layers):
        suffixes = [f"_l{number}{side}" for side in ("", "_reverse")[: case.directions]]
        layer.set_weights([array for suffix in suffixes for array in _direction_weights(problem, suffix)])
    return model


def _inference(problem: Problem, threads: int) -> Contender:
    case, model = problem.case, _model(problem)
    inputs = [problem.x, problem.mask] if case.ragged else [problem.x]
    n_states = 1 if case.cell == "gru" else 2

    def run() -> Any:
        return model.predict_on_batch(inputs)

    def outputs() -> dict[str, np.ndarray]:
        y, *states = (np.asarray(array) for array in run())
        found = {"y": y * problem.mask[..., None]}
        return found | {name: np.stack(states[k::n_states]) for k, name in enumerate("hc"[:n_states])}

    return Contender(f"keras on {keras.backend.backend()}", threads, run, _use_threads, outputs)
