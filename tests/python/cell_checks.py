"""What must hold for every recurrent cell: one list of checks for the tests and for docs/cells.md.

A check takes a variant (a cell and its output squashing) and returns an error: the largest difference
over the largest value wanted, of everything it compares. 0 means the same bits.
"""

from __future__ import annotations

import math
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cell_reference
import numpy as np
from cases import Case, Problem, collect, draw_lengths, relative_error

import fastlstm
from fastlstm import LSTMClassifier, _core
from fastlstm.layers import LSTM
from fastlstm.streaming import LayerStream

Array = np.ndarray
DTYPES = ("float32", "float64")
PIECES = (slice(0, 1), slice(1, 4), slice(4, 8))  # of STACKED
STEP = 1e-5  # of the central differences


@dataclass(frozen=True)
class Option:
    """Arguments of the layer, the cells that do not take them, and what they need of a case."""

    name: str
    arguments: Mapping[str, Any]
    not_for: tuple[str, ...] = ()  # beginnings of names
    random: bool = False  # training draws
    one_direction: bool = False
    doubles: bool = False  # hidden units come in pairs

    def refuses(self, cell: str) -> bool:
        return bool(self.not_for) and cell.startswith(self.not_for)

    def takes(self, cell: str) -> bool:
        """Whether the cell is not among those that refuse; of a new one, whether the layer can be made."""
        try:
            LSTM(2, 4, cell=cell, **self.arguments)
        except ValueError:
            return False
        return not self.refuses(cell)


WITHOUT_C = ("rnn", "gru")
UNPROJECTED = ("rnn", "gru", "tlstm", "peephole_article")
OPTIONS = (
    Option("proj_size", {"proj_size": 2}, UNPROJECTED),
    Option("output_proj_size", {"proj_size": 2, "output_proj_size": 3}, UNPROJECTED),
    Option("cells_per_block", {"cells_per_block": 2}, ("rnn", "gru", "peephole"), doubles=True),
    Option("layer_norm", {"layer_norm": True}),
    Option(
        "layer_norm, cells_per_block",
        {"layer_norm": True, "cells_per_block": 2},
        ("rnn", "gru", "peephole"),
        doubles=True,
    ),
    Option("learn_initial_state", {"learn_initial_state": True}),
    Option("checkpoint_every", {"checkpoint_every": 2}, one_direction=True),
    Option("zoneout", {"zoneout": (0.2, 0.3)}, WITHOUT_C, random=True),
    Option("zoneout of h", {"zoneout": (0.2, 0.0)}, random=True),
    Option("zoneout, proj_size", {"zoneout": (0.2, 0.3), "proj_size": 3}, UNPROJECTED, random=True),
    Option(
        "zoneout, output_proj_size",
        {"zoneout": (0.3, 0.2), "proj_size": 6, "output_proj_size": 3},
        UNPROJECTED,
        random=True,
    ),
    Option("recurrent_dropout", {"recurrent_dropout": 0.3}, ("rnn",), random=True),
    Option("dropout", {"dropout": 0.3}, random=True),
    Option("weight_dropout", {"weight_dropout": 0.3}, random=True),
    Option("weight_noise", {"weight_noise": 0.05}, random=True),
)


@dataclass(frozen=True)
class Variant:
    """A cell with its output squashing or an option; `name` is that of its equations in `cell_reference.CELLS`."""

    cell: str
    cell_activation: str = "tanh"
    option: Option | None = None

    @property
    def name(self) -> str:
        return self.cell if self.cell_activation == "tanh" else cell_reference.WITH_IDENTITY[self.cell]

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {} if self.option is None else self.option.arguments

    def fit(self, case: Case) -> Case:
        """The case as the option allows it."""
        if self.option is not None and self.option.one_direction:
            case = replace(case, bidirectional=False)
        if self.option is not None and self.option.doubles:
            case = replace(case, hidden_size=case.hidden_size + case.hidden_size % 2)
        return case

    def __str__(self) -> str:
        if self.option is not None:
            return f"{self.cell}, {self.option.name}"
        return self.cell if self.cell_activation == "tanh" else f"{self.cell}, {self.cell_activation}"


VARIANTS = (
    *(Variant(cell) for cell in _core.cells()),
    *(Variant(cell, "identity") for cell in cell_reference.WITH_IDENTITY),
)
WITH_OPTIONS = tuple(
    Variant(cell, option=option) for option in OPTIONS for cell in _core.cells() if option.takes(cell)
)

TAILS = Case("tails", input_size=5, hidden_size=19, batch=7, time=9, ragged=True, with_state=True)
FORWARD = (
    Case("one_of_everything", time=3),
    Case("vectors", input_size=8, hidden_size=16, batch=6, time=8),
    Case("no_bias", input_size=3, hidden_size=7, bias=False, batch=4, time=6, ragged=True),
    TAILS,
)
BOTH_WAYS = Case(
    "both_ways",
    input_size=3,
    hidden_size=11,
    num_layers=2,
    bidirectional=True,
    batch=5,
    time=7,
    ragged=True,
    with_state=True,
)
STACKED = Case("stacked", input_size=6, hidden_size=9, num_layers=2, batch=4, time=8, with_state=True)
GRADIENT = (
    replace(BOTH_WAYS, name="small_both_ways", input_size=2, hidden_size=3, batch=3, time=4),
    Case(
        "small_no_bias",
        input_size=2,
        hidden_size=5,
        bias=False,
        batch=2,
        time=3,
        ragged=True,
        with_state=True,
    ),
)
MANY_ROWS = Case("many_rows", input_size=20, hidden_size=40, num_layers=2, batch=100, time=16, ragged=True)


def build(variant: Variant, case: Case, dtype: str, parameters: dict[str, Array] | None = None) -> LSTM:
    """The layer of a variant in the shape of a case."""
    case = variant.fit(case)
    layer = LSTM(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        cell=variant.cell,
        cell_activation=variant.cell_activation,
        bidirectional=case.bidirectional,
        bias=case.bias,
        dtype=dtype,
        random_state=0,
        **variant.arguments,
    )
    if parameters is not None:
        layer.load_parameters(parameters)
    return layer


def quiet(layer: LSTM) -> LSTM:
    """The layer, or, where training draws, a copy whose training calls compute what inference does."""
    return layer.without_noise()


def make_problem(variant: Variant, case: Case, seed: int = 0) -> Problem:
    """Numbers for a variant, float64 arrays whose values are exact in float32."""
    case = variant.fit(case)
    rng = np.random.default_rng([seed, *case.name.encode(), *variant.name.encode()])

    def rounded(values: Array) -> Array:
        return values.astype(np.float32).astype(np.float64)

    def normal(*size: int) -> Array:
        return rounded(rng.standard_normal(size))

    bound, options = 2.0 / np.sqrt(case.hidden_size), variant.arguments
    layer = (case.input_size, case.hidden_size, case.num_layers, case.bidirectional, case.bias)
    shapes = cell_reference.parameter_shapes(variant.name, *layer, **options)
    states = [
        (case.num_layers * (1 + case.bidirectional), case.batch, size)
        for size in cell_reference.state_sizes(variant.name, case.hidden_size, options)
    ]
    output = options.get("proj_size", 0) + options.get("output_proj_size", 0) or case.hidden_size

    def initial(k: int) -> Array:
        """h, c, n, m; the normaliser n is at least 1 after any step."""
        value = 0.5 * normal(*states[k])
        return 1.0 + np.abs(value) if k == 2 else value

    return Problem(
        case=case,
        parameters={name: rounded(rng.uniform(-bound, bound, shape)) for name, shape in shapes.items()},
        x=normal(case.batch, case.time, case.input_size),
        lengths=draw_lengths(case, rng),
        state=tuple(initial(k) for k in range(len(states))) if case.with_state else None,
        dy=normal(case.batch, case.time, output * (1 + case.bidirectional)),
        dstate=tuple(normal(*size) for size in states),
    )


def solve(layer: LSTM, problem: Problem) -> dict[str, Array]:
    """Outputs, states and all gradients, by name."""
    y, final, tape = layer.forward(problem.x, problem.state, problem.lengths)
    dx, initial, grads = layer.backward(tape, problem.dy, problem.dstate)
    return {name: np.array(value) for name, value in collect(y, final, dx, initial, grads).items()}


def worst(pairs: Iterable[tuple[Array, Array]]) -> float:
    """Largest relative error of pairs (got, wanted); infinite if shapes differ or NaN occurs."""
    errors = [relative_error(a, b) if a.shape == b.shape else np.inf for a, b in pairs]
    return float(np.max(np.nan_to_num(errors, nan=np.inf)))


def worst_of(got: dict[str, Array], want: dict[str, Array]) -> float:
    return worst((got[name], value) for name, value in want.items())


def sequences_of(problem: Problem) -> Iterator[Problem]:
    """Each sequence of a batch as a problem of its own, without padding."""
    for b, length in enumerate(problem.real_lengths):
        row = slice(b, b + 1)
        yield replace(
            problem,
            case=replace(problem.case, batch=1, time=int(length)),
            x=problem.x[row, :length],
            dy=problem.dy[row, :length],
            lengths=None,
            state=None if problem.state is None else tuple(s[:, row] for s in problem.state),
            dstate=tuple(d[:, row] for d in problem.dstate),
        )


# ---- the checks ----


def against_reference(variant: Variant, cases: Iterable[Case], dtype: str) -> float:
    def pairs() -> Iterator[tuple[Array, Array]]:
        for case in cases:
            problem = make_problem(variant, case)
            layer = build(variant, case, dtype, problem.parameters)
            y, final = layer(problem.x, problem.state, problem.lengths)
            want_y, want_final = cell_reference.forward(
                variant.name,
                problem.parameters,
                case.num_layers,
                problem.case.bidirectional,
                problem.x,
                problem.state,
                problem.lengths,
                problem.case.hidden_size,
                variant.arguments,
            )
            yield y, want_y
            yield from zip(final, want_final, strict=True)

    return worst(pairs())


def forward(variant: Variant) -> float:
    return against_reference(variant, FORWARD, "float64")


def forward_float32(variant: Variant) -> float:
    return against_reference(variant, (*FORWARD, BOTH_WAYS), "float32")


def bidirectional(variant: Variant) -> float:
    """Two layers of two directions, ragged, with initial states."""
    return against_reference(variant, (BOTH_WAYS,), "float64")


def training(variant: Variant) -> float:
    """Inference gives the bits of the forward pass that keeps a tape."""

    def pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            problem = make_problem(variant, BOTH_WAYS)
            layer = quiet(build(variant, BOTH_WAYS, dtype, problem.parameters))
            y, final = layer(problem.x, problem.state, problem.lengths)
            y_training, final_training, _ = layer.forward(problem.x, problem.state, problem.lengths)
            yield y, y_training
            yield from zip(final, final_training, strict=True)

    return worst(pairs())


def slopes(layer: LSTM, problem: Problem) -> dict[str, Array]:
    """Central differences of sum(y dy) + sum(state dstate) in every parameter, input and initial state."""
    state = problem.state or tuple(np.zeros_like(d) for d in problem.dstate)
    at = {"d_x": problem.x.copy(), **{f"d_state_{k}": s.copy() for k, s in enumerate(state)}}
    layer.load_parameters(problem.parameters)
    views, begin = {}, 0  # writable, into `flat`
    for name, shape in layer.parameter_shapes:
        end = begin + math.prod(shape)
        views[f"d_{name}"], begin = layer.flat[begin:end].reshape(shape), end
    real = (np.arange(problem.case.time) < problem.real_lengths[:, None])[..., None]

    def loss() -> float:
        states = tuple(at[f"d_state_{k}"] for k in range(len(state)))
        y, final, _ = layer.forward(at["d_x"], states, problem.lengths)
        total = np.sum(y * problem.dy * real)
        return float(total + sum(np.sum(s * d) for s, d in zip(final, problem.dstate, strict=True)))

    found = {}
    for name, value in {**at, **views}.items():
        found[name] = np.empty(value.shape)
        for index in np.ndindex(value.shape):
            kept, ends = value[index], []
            for step in (STEP, -STEP):
                value[index] = kept + step
                layer.parameters_changed()
                ends.append(loss())
            value[index] = kept
            layer.parameters_changed()
            found[name][index] = (ends[0] - ends[1]) / (2 * STEP)
    return found


def gradient(variant: Variant) -> float:
    """Every entry, in float64, of ragged batches with initial states."""
    errors = []
    for case in GRADIENT:
        problem = make_problem(variant, case)
        layer = build(variant, case, "float64", problem.parameters)
        errors.append(worst_of(solve(layer, problem), slopes(layer, problem)))
    return max(errors)


def ragged(variant: Variant) -> float:
    """A batch with NaN as padding gives every sequence the outputs and gradients that it has alone."""

    def pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            problem = make_problem(variant, BOTH_WAYS)
            layer = quiet(build(variant, BOTH_WAYS, dtype, problem.parameters))
            padding = np.arange(BOTH_WAYS.time) >= problem.real_lengths[:, None]
            x, dy = problem.x.copy(), problem.dy.copy()
            x[padding] = dy[padding] = np.nan
            whole = solve(layer, replace(problem, x=x, dy=dy))
            for name in ("y", "d_x"):
                yield whole[name][padding], np.zeros_like(whole[name][padding])
            for b, part in enumerate(sequences_of(problem)):
                for name, value in solve(layer, part).items():
                    if name in ("y", "d_x"):
                        yield whole[name][b : b + 1, : part.case.time], value
                    elif "state_" in name:
                        yield whole[name][:, b : b + 1], value

    return worst(pairs())


def stateful(variant: Variant) -> float:
    """Pieces with carried states give the bits of one call."""

    def pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            problem = make_problem(variant, STACKED)
            layer = build(variant, STACKED, dtype, problem.parameters)
            y, final = layer(problem.x, problem.state)
            state = problem.state
            for piece in PIECES:
                y_piece, state = layer(problem.x[:, piece], state)
                yield y_piece, y[:, piece]
            yield from zip(state, final, strict=True)

    return worst(pairs())


def parts(variant: Variant) -> float:
    """Gradients of single sequences, and of pieces that carry state gradients, add up to the whole."""

    def pairs() -> Iterator[tuple[Array, Array]]:
        problem = make_problem(variant, BOTH_WAYS)
        layer = quiet(build(variant, BOTH_WAYS, "float64", problem.parameters))
        want = solve(layer, problem)
        alone = [solve(layer, part) for part in sequences_of(problem)]
        for name in problem.parameters:
            yield sum(results[f"d_{name}"] for results in alone), want[f"d_{name}"]

        problem = make_problem(variant, STACKED)
        layer = quiet(build(variant, STACKED, "float64", problem.parameters))
        want, state, tapes = solve(layer, problem), problem.state, []
        for piece in PIECES:
            _, state, tape = layer.forward(problem.x[:, piece], state)
            tapes.append(tape)
        d_state, total = problem.dstate, dict.fromkeys(problem.parameters, 0.0)
        for piece, tape in reversed([*zip(PIECES, tapes, strict=True)]):
            dx, d_state, grads = layer.backward(tape, problem.dy[:, piece], d_state)
            yield dx, want["d_x"][:, piece]
            total = {name: total[name] + grad for name, grad in grads.items()}
        yield from ((d, want[f"d_state_{k}"]) for k, d in enumerate(d_state))
        yield from ((np.asarray(total[name]), want[f"d_{name}"]) for name in total)

    return worst(pairs())


def streaming(variant: Variant) -> float:
    """Steps of a stream give the bits of the call over the whole sequence."""

    def pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            for case in (STACKED, replace(STACKED, name="one_stream", batch=1, hidden_size=17)):
                problem = make_problem(variant, case)
                layer = build(variant, case, dtype, problem.parameters)
                x = problem.x.astype(dtype)
                y, final = layer(x, problem.state)
                stream = LayerStream(layer, case.batch)
                stream.state = problem.state
                for t in range(case.time):
                    yield stream.step(np.ascontiguousarray(x[:, t])).copy(), y[:, t]
                yield from zip(stream.state, final, strict=True)

    return worst(pairs())


def save_load(variant: Variant) -> float:
    """A pickled layer, and a classifier of this cell written to a file, answer with the same bits."""
    problem = make_problem(variant, BOTH_WAYS)
    layer = build(variant, BOTH_WAYS, "float32", problem.parameters)
    twin = pickle.loads(pickle.dumps(layer))
    assert twin.get_config() == layer.get_config()
    x = [row[:length] for row, length in zip(problem.x, problem.real_lengths, strict=True)]
    arguments = {k: value for k, value in variant.arguments.items() if k != "output_proj_size"}
    model = LSTMClassifier(6, cell=variant.name, max_iter=2, random_state=0, **arguments)
    model.fit(x, [0, 1, 2, 1, 0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        loaded = fastlstm.load(path)
    return worst(
        [
            (twin(problem.x)[0], layer(problem.x)[0]),
            (loaded.predict_proba(x), model.predict_proba(x)),
            (pickle.loads(pickle.dumps(model)).predict_proba(x), model.predict_proba(x)),
        ]
    )


def threads(variant: Variant) -> float:
    """1, 2 and 3 threads give the same bits, gradients included."""

    def pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            problem, want = make_problem(variant, MANY_ROWS), None
            layer = build(variant, MANY_ROWS, dtype, problem.parameters)
            for layer.n_threads in (1, 2, 3):
                got = solve(layer, problem)
                want = want or got
                yield from ((got[name], want[name]) for name in want)

    return worst(pairs())


@dataclass(frozen=True)
class Check:
    """A check, the error it allows, and its column in the table."""

    run: Callable[[Any], float]
    bound: float
    title: str

    def allowed(self, variant: Variant) -> float:
        """The bound; normalisation divides by small deviations, which takes float32 some digits."""
        normalizes = variant.arguments.get("layer_norm", False)
        return 5 * self.bound if normalizes and self.title == "forward, float32" else self.bound


CHECKS = (
    Check(forward, 1e-12, "forward"),
    Check(forward_float32, 2e-6, "forward, float32"),
    Check(gradient, 1e-6, "gradient"),
    Check(ragged, 0.0, "ragged"),
    Check(stateful, 0.0, "stateful"),
    Check(parts, 1e-12, "gradient of parts"),
    Check(bidirectional, 1e-12, "bidirectional, stacked"),
    Check(training, 0.0, "training forward"),
    Check(streaming, 0.0, "streaming"),
    Check(save_load, 0.0, "save and load"),
    Check(threads, 0.0, "threads"),
)
