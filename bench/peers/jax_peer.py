"""JAX: the equations in ``lax.scan``, compiled by ``jit``; gradients by ``vjp`` in one compiled function.

JAX fixes its number of threads when a process first computes, so it is a contender for that number alone: all
usable CPUs, or PJRT_NPROC. ``PJRT_NPROC=1 python bench/vs_peers.py --threads 1`` compares on one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastlstm.benchmark import Case, Contender, Problem
from peers import fixed_threads
from peers.equations import NORM_EPSILON, Operations, from_input, step

NAME = "jax"
_OPERATIONS = Operations(
    jax.nn.sigmoid,
    jnp.tanh,
    lambda array, n: jnp.split(array, n, -1),
    lambda z: jax.nn.standardize(z, epsilon=NORM_EPSILON),
)
Weights = dict[str, jax.Array]


def version() -> str:
    return jax.__version__


def contenders(problem: Problem, threads: int) -> list[Contender]:
    case = problem.case
    if case.precision != "float32" or case.dropout or threads != fixed_threads():
        return []
    build = {"step": _step, "infer": _inference, "train": _training}.get(case.kind)
    return [build(problem, threads)] if build else []


# ---------------------------------------------------------------------------------------- the layer


def _direction_weights(weights: Weights, suffix: str) -> Weights:
    return {name.removesuffix(suffix): array for name, array in weights.items() if name.endswith(suffix)}


def _run_direction(
    case: Case, weights: Weights, x: jax.Array, mask: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x (time, batch, features), mask (time, batch, 1) -> y (time, batch, P), last h and c.

    Before the first and after the last step of a sequence its state stays as it is, in either direction.
    """

    def body(state: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]) -> Any:
        wx, real = now
        h, c = step(_OPERATIONS, case.cell, weights, wx, *state)
        if case.ragged:
            h, c = jnp.where(real, h, state[0]), jnp.where(real, c, state[1])
        return (h, c), h

    zero = tuple(jnp.zeros((x.shape[1], n), x.dtype) for n in (case.recurrent_size, case.hidden_size))
    (h, c), y = lax.scan(body, zero, (from_input(_OPERATIONS, weights, x), mask), reverse=reverse)
    return y, h, c


def _run_stack(case: Case, weights: Weights, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
    """y (time, batch, D * P), and h and c (layers * D, batch, ...)."""
    states = []
    for layer in range(case.num_layers):
        outputs = []
        for side in ("", "_reverse")[: case.directions]:
            own = _direction_weights(weights, f"_l{layer}{side}")
            y, h, c = _run_direction(case, own, x, mask, reverse=bool(side))
            outputs.append(y)
            states.append((h, c))
        x = jnp.concatenate(outputs, -1)
    h, c = (jnp.stack(each) for each in zip(*states, strict=True))
    return x, h, c


# ----------------------------------------------------------------------------------- the contenders


def _arrays(problem: Problem) -> tuple[Weights, jax.Array, jax.Array]:
    weights = {name: jnp.asarray(array) for name, array in problem.weights.items()}
    mask = jnp.asarray(problem.mask.T[..., None])
    return weights, jnp.asarray(problem.x.swapaxes(0, 1)), mask


def _waiting(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A call that returns when the result is there."""
    return lambda: jax.block_until_ready(function(*arguments))


def _inference(problem: Problem, threads: int) -> Contender:
    case = problem.case
    run = _waiting(jax.jit(lambda *arrays: _run_stack(case, *arrays)), *_arrays(problem))

    def outputs() -> dict[str, np.ndarray]:
        y, h, c = (np.asarray(array) for array in run())
        found = {"y": y.swapaxes(0, 1) * problem.mask[..., None], "h": h}
        return found | ({"c": c} if case.cell != "gru" else {})

    return Contender(NAME, threads, run, outputs=outputs)


def _step(problem: Problem, threads: int) -> Contender:
    case = problem.case
    weights, x, _ = _arrays(problem)
    own = _direction_weights(weights, "_l0")
    x_t = x[0]

    @jax.jit
    def advance(h: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        return step(_OPERATIONS, case.cell, own, from_input(_OPERATIONS, own, x_t), h, c)

    zero = tuple(jnp.zeros((case.batch, n)) for n in (case.recurrent_size, case.hidden_size))
    state = zero

    def run() -> jax.Array:
        nonlocal state
        state = advance(*state)
        return state[0].block_until_ready()

    def outputs() -> dict[str, np.ndarray]:
        nonlocal state
        state = zero
        return {"h": np.asarray([run() for _ in range(3)][-1])}

    return Contender(NAME, threads, run, outputs=outputs)


def _training(problem: Problem, threads: int) -> Contender:
    case = problem.case
    weights, x, mask = _arrays(problem)
    dy = jnp.asarray(problem.dy.swapaxes(0, 1))

    @jax.jit
    def gradients(weights: Weights, x: jax.Array, mask: jax.Array, dy: jax.Array) -> Weights:
        _, backward = jax.vjp(lambda weights: _run_stack(case, weights, x, mask)[0], weights)
        return backward(dy)[0]

    run = _waiting(gradients, weights, x, mask, dy)

    def outputs() -> dict[str, np.ndarray]:
        return {name: np.asarray(array) for name, array in run().items()}

    return Contender(NAME, threads, run, outputs=outputs)
