"""Recurrent layers against the naive reference and against PyTorch, live."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference
from cases import TESTED, Case, Problem, make_problem, random_cases, relative_error

RANDOM = random_cases(200)
WITH_RELU = (*TESTED, *(cases.with_cell(case, "rnn_relu") for case in TESTED if case.cell == "rnn"))


def reference_solution(problem: Problem) -> dict[str, np.ndarray]:
    shape, parameters = problem.case.shape, problem.parameters
    y, final, tape = reference.forward(shape, parameters, problem.x, problem.state, problem.lengths)
    dx, initial, grads = reference.backward(shape, parameters, tape, problem.dy, problem.dstate)
    return cases.collect(y, final, dx, initial, grads)


def errors(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape, name
    return {name: relative_error(got[name], want[name]) for name in want}


def float32_errors(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """As `errors`, with the parameter gradients taken as one vector: a single entry may cancel to nothing."""

    def joined(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [name for name in want if name.startswith(("d_weight", "d_bias"))]
        rest = {name: array for name, array in results.items() if name not in names}
        return {**rest, "d_parameters": np.concatenate([results[name].ravel() for name in names])}

    return errors(joined(got), joined(want))


@pytest.mark.parametrize("case", WITH_RELU, ids=lambda case: case.name)
def test_float64_matches_the_reference(case: Case) -> None:
    problem = make_problem(case)
    gaps = errors(cases.solve(problem, "float64"), reference_solution(problem))
    assert max(gaps.values()) < 1e-11, gaps


@pytest.mark.parametrize("case", WITH_RELU, ids=lambda case: case.name)
def test_float32_is_close_to_the_reference(case: Case) -> None:
    problem = make_problem(case)
    solution = cases.solve(problem, "float32")
    assert all(array.dtype == np.float32 for array in solution.values())
    gaps = float32_errors(solution, reference_solution(problem))
    assert max(gaps.values()) < 5e-6, gaps


@pytest.mark.parametrize("case", RANDOM, ids=lambda case: case.name)
def test_random_configuration_matches_torch(case: Case) -> None:
    """float64 within 1e-11; float32 within 2e-6 of the float64 truth or as close as torch's float32."""
    pytest.importorskip("torch")
    import torch_oracle

    problem = make_problem(case, seed=1)
    truth = torch_oracle.solve(problem, "float64")
    gaps = errors(cases.solve(problem, "float64"), truth)
    assert max(gaps.values()) < 1e-11, (case, gaps)

    gaps = float32_errors(cases.solve(problem, "float32"), truth)
    torch_gaps = float32_errors(torch_oracle.solve(problem, "float32"), truth)
    assert all(gaps[name] <= max(2e-6, torch_gaps[name]) for name in gaps), (case, gaps, torch_gaps)


@pytest.mark.parametrize("case", cases.benchmark_cases(), ids=lambda case: case.name)
def test_benchmark_shape_matches_torch(case: Case) -> None:
    pytest.importorskip("torch")
    import torch_oracle

    problem = make_problem(case)
    truth = torch_oracle.solve(problem, "float64")
    gaps = float32_errors(cases.solve(problem, "float32"), truth)
    torch_gaps = float32_errors(torch_oracle.solve(problem, "float32"), truth)
    bound = 2e-6 * max(1.0, (case.hidden_size / 256) ** 0.5)  # one chain over the depth: grows with its root
    assert all(gaps[name] <= max(bound, torch_gaps[name]) for name in gaps), (gaps, torch_gaps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_inference_gives_the_bits_of_the_training_forward(case: Case, dtype: str) -> None:
    problem = make_problem(case)
    layer = cases.build_layer(case, dtype, problem.parameters)
    y, state = layer(problem.x, problem.state, problem.lengths)
    y_training, state_training, _ = layer.forward(problem.x, problem.state, problem.lengths)
    np.testing.assert_array_equal(y, y_training)
    for a, b in zip(cases.as_tuple(state), cases.as_tuple(state_training), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.name)
def test_run_on_scattered_rows_gives_the_bits_of_the_padded_call(case: Case) -> None:
    """`run` reads sequence b at rows starts[b] .. starts[b] + lengths[b] - 1, in any order, gaps skipped."""
    problem = make_problem(case)
    layer = cases.build_layer(case, "float32", problem.parameters)
    lengths = np.asarray(problem.real_lengths, dtype=np.int64)
    y, state = layer(problem.x, problem.state, lengths)
    given = None if problem.state is None else tuple(np.float32(s) for s in problem.state)
    rows, starts = problem.x.reshape(-1, case.input_size), np.arange(case.batch) * case.time
    values = np.full((rows.shape[0] + 3, case.input_size), np.nan, np.float32)
    values[3:] = rows
    got_y, got_state = layer.run(values, starts + 3, lengths, True, given)
    np.testing.assert_array_equal(got_y, np.concatenate([y[b, :n] for b, n in enumerate(lengths)]))
    for a, b in zip(cases.as_tuple(got_state), cases.as_tuple(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_parameters_have_the_names_and_shapes_of_torch(cell: str) -> None:
    case = Case("names", cell=cell, input_size=3, hidden_size=4, num_layers=2, bidirectional=True)
    layer = cases.build_layer(case)
    assert {name: p.shape for name, p in layer.parameters.items()} == case.shape.parameter_shapes()
    assert layer.n_parameters == sum(p.size for p in layer.parameters.values())
    assert layer.output_size == 8


def test_initial_parameters_are_uniform_as_in_torch_and_follow_the_seed() -> None:
    case = Case("initial", input_size=30, hidden_size=64)
    first, second = cases.build_layer(case), cases.build_layer(case)
    for name, p in first.parameters.items():
        np.testing.assert_array_equal(p, second.parameters[name])
        assert np.abs(p).max() <= 1 / 8
        assert abs(p.mean()) < 0.02
        assert np.abs(p).max() > 0.11
