"""The shape cases of the tests, and with `benchmark_cases` those of the benchmark.

A `Case` says what a recurrent layer is and what it is given; `make_problem` draws the numbers.
Sizes sit on and around the vector widths (4, 8, 16 units) and row tiles (1, 3, 6 rows) of the
kernels, because that is where tails are handled.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from reference import N_STATES, Shape

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """One recurrent layer and the batch it gets; `ragged` draws lengths from 1 to `time`."""

    name: str
    cell: str = "lstm"
    input_size: int = 1
    hidden_size: int = 1
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch: int = 1
    time: int = 1
    ragged: bool = False
    with_state: bool = False

    @property
    def shape(self) -> Shape:
        return Shape(
            self.cell, self.input_size, self.hidden_size, self.num_layers, self.bidirectional, self.bias
        )

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return (self.num_layers * self.shape.directions, self.batch, self.hidden_size)


@dataclass(frozen=True)
class Problem:
    """The numbers of a case, float64 arrays whose values are exact in float32."""

    case: Case
    parameters: dict[str, Array]
    x: Array
    lengths: Array | None
    state: tuple[Array, ...] | None
    dy: Array
    dstate: tuple[Array, ...]

    @property
    def real_lengths(self) -> Array:
        return np.full(self.case.batch, self.case.time) if self.lengths is None else self.lengths


TESTED = (
    Case("one_of_everything"),
    Case("one_step", input_size=3, hidden_size=5, batch=4),
    Case("one_row", input_size=4, hidden_size=16, time=9),
    Case("below_vector", input_size=2, hidden_size=3, batch=3, time=5, ragged=True),
    Case("vector_4", input_size=4, hidden_size=4, batch=6, time=4),
    Case("vector_8", input_size=8, hidden_size=8, batch=7, time=6, ragged=True),
    Case("vector_16", input_size=16, hidden_size=16, batch=12, time=5, ragged=True, with_state=True),
    Case("above_vector", input_size=17, hidden_size=17, batch=13, time=6, ragged=True),
    Case("wide_input", input_size=70, hidden_size=9, batch=5, time=4, with_state=True),
    Case("no_bias", input_size=5, hidden_size=20, bias=False, batch=4, time=6, ragged=True),
    Case("bidirectional", input_size=6, hidden_size=12, bidirectional=True, batch=5, time=7, ragged=True),
    Case("stacked", input_size=3, hidden_size=10, num_layers=3, batch=4, time=6, with_state=True),
    Case(
        "deep_both_ways",
        input_size=7,
        hidden_size=19,
        num_layers=3,
        bidirectional=True,
        batch=9,
        time=8,
        ragged=True,
        with_state=True,
    ),
    Case("long", input_size=2, hidden_size=6, batch=3, time=150, ragged=True),
    Case("many_rows", input_size=5, hidden_size=24, batch=67, time=5, ragged=True),
    Case("large_hidden", input_size=20, hidden_size=130, batch=2, time=5),
    Case("rnn", cell="rnn", input_size=5, hidden_size=18, batch=7, time=6, ragged=True, with_state=True),
    Case(
        "rnn_deep_both_ways",
        cell="rnn",
        input_size=3,
        hidden_size=21,
        num_layers=2,
        bidirectional=True,
        batch=5,
        time=9,
        ragged=True,
    ),
)


def benchmark_cases(max_time: int = 3) -> list[Case]:
    """The shapes of the benchmark's table, cut to `max_time` steps so that an oracle can follow."""
    from fastlstm._benchmark_cases import CASES

    shapes = {
        (c.input_size, c.hidden_size, c.num_layers, c.bidirectional, c.batch, min(c.time, max_time), c.ragged)
        for c in CASES
    }
    return [
        Case(
            "bench_" + "_".join(map(str, (inputs, hidden, num_layers, both, batch, time, ragged))),
            input_size=inputs,
            hidden_size=hidden,
            num_layers=num_layers,
            bidirectional=both,
            batch=batch,
            time=time,
            ragged=ragged,
        )
        for inputs, hidden, num_layers, both, batch, time, ragged in sorted(shapes)
    ]


def random_cases(count: int, seed: int = 0, cells: tuple[str, ...] = ("lstm", "lstm", "rnn")) -> list[Case]:
    """`count` small random configurations, the same for the same seed."""
    rng = np.random.default_rng(seed)
    inputs = (1, 2, 3, 5, 8, 13, 16, 17, 20, 33, 64)
    hidden = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 65)
    batches = (1, 1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 19, 33)
    return [
        Case(
            f"random_{k}",
            cell=str(rng.choice(cells)),
            input_size=int(rng.choice(inputs)),
            hidden_size=int(rng.choice(hidden)),
            num_layers=int(rng.integers(1, 4)),
            bidirectional=bool(rng.integers(2)),
            bias=bool(rng.integers(4)),
            batch=int(rng.choice(batches)),
            time=int(rng.integers(1, 16)),
            ragged=bool(rng.integers(2)),
            with_state=bool(rng.integers(2)),
        )
        for k in range(count)
    ]


def by_name(name: str) -> Case:
    """The case of `TESTED` called `name`."""
    return next(case for case in TESTED if case.name == name)


def draw_lengths(case: Case, rng: np.random.Generator) -> Array | None:
    """Lengths in [1, time], at least one of them `time`; None for a full batch."""
    if not case.ragged:
        return None
    lengths = rng.integers(1, case.time + 1, size=case.batch)
    lengths[rng.integers(case.batch)] = case.time
    return lengths


def make_problem(case: Case, seed: int = 0) -> Problem:
    """Draw weights (PyTorch's uniform, doubled so that gates saturate a little), inputs and gradients."""
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(np.float32).astype(np.float64)

    bound = 2.0 / np.sqrt(case.hidden_size)
    parameters = {
        name: rng.uniform(-bound, bound, size).astype(np.float32).astype(np.float64)
        for name, size in case.shape.parameter_shapes().items()
    }
    n_states = N_STATES[case.cell]
    state = tuple(0.5 * normal(*case.state_shape) for _ in range(n_states)) if case.with_state else None
    return Problem(
        case=case,
        parameters=parameters,
        x=normal(case.batch, case.time, case.input_size),
        lengths=draw_lengths(case, rng),
        state=state,
        dy=normal(case.batch, case.time, case.shape.directions * case.hidden_size),
        dstate=tuple(normal(*case.state_shape) for _ in range(n_states)),
    )


def build_layer(case: Case, dtype: str = "float64", parameters: dict[str, Array] | None = None) -> Any:
    """The `fastlstm.layers` object of a case, with `parameters` loaded if given."""
    from fastlstm import layers

    kind = layers.LSTM if case.cell == "lstm" else layers.RNN
    extra: dict[str, Any] = {"nonlinearity": "relu"} if case.cell == "rnn_relu" else {}
    layer = kind(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bidirectional=case.bidirectional,
        bias=case.bias,
        dtype=dtype,
        random_state=0,
        **extra,
    )
    if parameters is not None:
        layer.load_parameters(parameters)
    return layer


def as_tuple(state: Any) -> tuple[Array, ...]:
    """States as a tuple, whether the layer gave one array (``h``) or several (``(h, c)``)."""
    return state if isinstance(state, tuple) else (state,)


def solve(problem: Problem, dtype: str = "float64", n_threads: int = 0) -> dict[str, Array]:
    """Everything fastlstm computes for a problem: outputs, states and all gradients, by name."""
    layer = build_layer(problem.case, dtype, problem.parameters)
    layer.n_threads = n_threads
    cast = np.dtype(dtype).type
    state = None if problem.state is None else tuple(cast(s) for s in problem.state)
    y, final, tape = layer.forward(cast(problem.x), state, problem.lengths)
    dstate = tuple(cast(s) for s in problem.dstate)
    dx, initial, grads = layer.backward(tape, cast(problem.dy), dstate)
    return collect(y, as_tuple(final), dx, as_tuple(initial), grads)


def collect(
    y: Array, final: tuple[Array, ...], dx: Array, initial: tuple[Array, ...], grads: dict[str, Array]
) -> dict[str, Array]:
    """One flat dictionary of the results of forward and backward."""
    named = {f"state_{k}": s for k, s in enumerate(final)}
    named |= {f"d_state_{k}": s for k, s in enumerate(initial)}
    named |= {f"d_{name}": grad for name, grad in grads.items()}
    return {"y": y, "d_x": dx, **named}


def relative_error(got: Array, want: Array) -> float:
    """Largest absolute difference over the largest absolute value wanted (or 1e-30)."""
    if got.size == 0:
        return 0.0
    gap = np.max(np.abs(got.astype(np.float64) - want.astype(np.float64)))
    return float(gap / max(float(np.max(np.abs(want))), 1e-30))


def with_cell(case: Case, cell: str) -> Case:
    """The same case with another cell."""
    return replace(case, name=f"{case.name}_{cell}", cell=cell)
