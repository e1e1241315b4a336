"""Back-propagation through time against central finite differences, and how its pieces add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import pytest
from cases import Case, Problem, as_tuple, make_problem

STEP = 1e-5
SMALL = (
    Case("one_of_everything", batch=1, time=2),
    Case("ragged", input_size=3, hidden_size=5, batch=3, time=4, ragged=True),
    Case("stateful", input_size=2, hidden_size=4, batch=2, time=3, with_state=True),
    Case("both_ways", input_size=2, hidden_size=3, bidirectional=True, batch=3, time=4, ragged=True),
    Case("no_bias", input_size=2, hidden_size=3, bias=False, batch=2, time=3, ragged=True),
    Case(
        "everything",
        input_size=3,
        hidden_size=3,
        num_layers=2,
        bidirectional=True,
        batch=3,
        time=4,
        ragged=True,
        with_state=True,
    ),
)
ALL_CELLS = tuple(cases.with_cell(case, cell) for case in SMALL for cell in ("lstm", "rnn", "rnn_relu"))
LARGER = (
    Case("tails", input_size=17, hidden_size=33, batch=7, time=6, ragged=True, with_state=True),
    Case(
        "deep", input_size=5, hidden_size=20, num_layers=3, bidirectional=True, batch=5, time=9, ragged=True
    ),
    Case("rnn", cell="rnn", input_size=9, hidden_size=31, num_layers=2, batch=6, time=7, with_state=True),
)


def variables(problem: Problem) -> dict[str, np.ndarray]:
    """Everything the loss depends on, by name; a missing initial state is zeros."""
    state = problem.state or tuple(np.zeros_like(s) for s in problem.dstate)
    named = {f"d_state_{k}": s for k, s in enumerate(state)}
    named |= {f"d_{name}": p for name, p in problem.parameters.items()}
    return {"d_x": problem.x, **named}


def make_loss(problem: Problem) -> Callable[[dict[str, np.ndarray]], float]:
    """sum(y * dy) + sum(state * dstate) as a function of `variables`."""
    layer = cases.build_layer(problem.case, "float64")
    mask = np.arange(problem.case.time) < problem.real_lengths[:, None]

    def loss(at: dict[str, np.ndarray]) -> float:
        layer.load_parameters({name: at[f"d_{name}"] for name in problem.parameters})
        state = tuple(at[f"d_state_{k}"] for k in range(len(problem.dstate)))
        y, final = layer(at["d_x"], state, problem.lengths)
        total = np.sum((y * problem.dy)[mask])
        return float(total + sum(np.sum(a * b) for a, b in zip(as_tuple(final), problem.dstate, strict=True)))

    return loss


def slope(loss: Callable[..., float], at: dict[str, np.ndarray], name: str, direction: np.ndarray) -> float:
    ahead, behind = (loss({**at, name: at[name] + sign * STEP * direction}) for sign in (1.0, -1.0))
    return (ahead - behind) / (2 * STEP)


@pytest.mark.parametrize("case", ALL_CELLS, ids=lambda case: case.name)
def test_every_gradient_entry_is_the_central_difference(case: Case) -> None:
    problem = make_problem(case)
    solution, loss, at = cases.solve(problem), make_loss(problem), variables(problem)
    for name, value in at.items():
        want = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            unit = np.zeros(value.shape)
            unit[index] = 1.0
            want[index] = slope(loss, at, name, unit)
        assert cases.relative_error(solution[name], want) < 1e-6, name


@pytest.mark.parametrize("case", LARGER, ids=lambda case: case.name)
def test_random_slopes_of_larger_layers_are_the_central_difference(case: Case) -> None:
    problem = make_problem(case)
    solution, loss, at = cases.solve(problem), make_loss(problem), variables(problem)
    rng = np.random.default_rng(0)
    for name, value in at.items():
        for _ in range(3):
            direction = rng.standard_normal(value.shape)
            direction /= np.linalg.norm(direction)
            got = float(np.sum(solution[name] * direction))
            scale = float(np.linalg.norm(solution[name]))
            assert abs(got - slope(loss, at, name, direction)) < 1e-6 * scale, name


def backward(problem: Problem, dy: Any, dstate: Any) -> dict[str, np.ndarray]:
    layer = cases.build_layer(problem.case, "float64", problem.parameters)
    _, _, tape = layer.forward(problem.x, problem.state, problem.lengths)
    dx, initial, grads = layer.backward(tape, dy, dstate)
    return {"dx": dx, **{f"state_{k}": s for k, s in enumerate(as_tuple(initial))}, **grads}


@pytest.mark.parametrize("name", ["deep_both_ways", "rnn_deep_both_ways", "vector_16"])
def test_gradient_of_outputs_and_of_final_states_add_up(name: str) -> None:
    """Back-propagation is linear in (dy, dstate)."""
    problem = make_problem(cases.by_name(name))
    both = backward(problem, problem.dy, problem.dstate)
    of_y = backward(problem, problem.dy, None)
    of_state = backward(problem, np.zeros_like(problem.dy), problem.dstate)
    for key, want in both.items():
        assert cases.relative_error(of_y[key] + of_state[key], want) < 1e-12, key


@pytest.mark.parametrize("name", ["stacked", "vector_16", "long", "rnn"])
@pytest.mark.parametrize("cut", [1, 3])
def test_gradient_of_pieces_with_carried_states_is_the_whole_gradient(name: str, cut: int) -> None:
    """Pass states forward and their gradients back: two calls give the gradient of one."""
    problem = make_problem(cases.by_name(name))
    lengths = np.full(problem.case.batch, problem.case.time)
    layer = cases.build_layer(problem.case, "float64", problem.parameters)
    _, _, tape = layer.forward(problem.x, problem.state, lengths)
    want_dx, want_state, want = layer.backward(tape, problem.dy, problem.dstate)
    want = {key: np.array(grad) for key, grad in want.items()}

    _, middle, first = layer.forward(problem.x[:, :cut], problem.state)
    _, _, second = layer.forward(problem.x[:, cut:], middle)
    dx_second, d_middle, grads = layer.backward(second, problem.dy[:, cut:], problem.dstate)
    total = {key: np.array(grad) for key, grad in grads.items()}
    dx_first, d_initial, grads = layer.backward(first, problem.dy[:, :cut], d_middle)

    assert cases.relative_error(np.concatenate([dx_first, dx_second], axis=1), want_dx) < 1e-12
    for a, b in zip(as_tuple(d_initial), as_tuple(want_state), strict=True):
        assert cases.relative_error(a, b) < 1e-12
    for key, grad in grads.items():
        assert cases.relative_error(total[key] + grad, want[key]) < 1e-12, key


def test_gradient_of_a_batch_is_the_sum_over_its_sequences() -> None:
    problem = make_problem(cases.by_name("deep_both_ways"))
    want = backward(problem, problem.dy, problem.dstate)
    layer = cases.build_layer(problem.case, "float64", problem.parameters)
    total = {key: np.zeros_like(p) for key, p in problem.parameters.items()}
    for b, length in enumerate(problem.real_lengths):
        row = slice(b, b + 1)
        _, _, tape = layer.forward(problem.x[row, :length], tuple(s[:, row] for s in problem.state or ()))
        dstate = tuple(s[:, row] for s in problem.dstate)
        _, _, grads = layer.backward(tape, problem.dy[row, :length], dstate)
        for key, grad in grads.items():
            total[key] += grad
    for key, grad in total.items():
        assert cases.relative_error(grad, want[key]) < 1e-12, key


def test_two_tapes_of_one_layer_do_not_disturb_each_other() -> None:
    problem = make_problem(cases.by_name("deep_both_ways"))
    other = make_problem(cases.by_name("deep_both_ways"), seed=5)
    want = backward(problem, problem.dy, problem.dstate)
    layer = cases.build_layer(problem.case, "float64", problem.parameters)
    _, _, tape = layer.forward(problem.x, problem.state, problem.lengths)
    _, _, tape_of_other = layer.forward(other.x, other.state, other.lengths)
    dx, _, grads = layer.backward(tape, problem.dy, problem.dstate)
    np.testing.assert_array_equal(dx, want["dx"])
    for key, grad in grads.items():
        np.testing.assert_array_equal(grad, want[key])
    layer.backward(tape_of_other, other.dy, other.dstate)


def test_the_memory_of_a_used_tape_serves_the_next_one_and_no_second() -> None:
    problem = make_problem(cases.by_name("deep_both_ways"))
    want = backward(problem, problem.dy, problem.dstate)
    layer = cases.build_layer(problem.case, "float64", problem.parameters)

    def forward() -> Any:
        return layer.forward(problem.x, problem.state, problem.lengths)[2]

    used = forward()
    memory = used.core
    layer.backward(used, problem.dy, problem.dstate)
    tapes = [forward(), forward()]
    assert tapes[0].core is memory
    assert used.nbytes == 0
    for tape in tapes:
        _, _, grads = layer.backward(tape, problem.dy, problem.dstate)
        for key, grad in grads.items():
            np.testing.assert_array_equal(grad, want[key])
