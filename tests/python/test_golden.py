"""Golden files: numbers of PyTorch, stored once, so that the suite has an outside oracle without torch.

`tests/golden/make_golden.py` wrote them; inputs and parameters are in the files too.
"""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))
TOLERANCE = {"float64": 1e-11, "float32": 5e-6}


def read_problem(path: Path) -> tuple[cases.Problem, dict[str, np.ndarray]]:
    """The problem stored in a golden file and torch's float64 answers."""
    with np.load(path) as file:
        stored = dict(file)
    facts = {name.removeprefix("case/"): value.item() for name, value in stored.items() if "case/" in name}
    inputs = {name: value.astype(np.float64) for name, value in stored.items() if name.startswith("input/")}
    parameters = {
        name.removeprefix("input/parameter/"): value
        for name, value in inputs.items()
        if "/parameter/" in name
    }

    def states(kind: str) -> tuple[np.ndarray, ...]:
        return tuple(inputs[name] for name in sorted(inputs) if name.startswith(f"input/{kind}/"))

    problem = cases.Problem(
        case=cases.Case(**facts),
        parameters=parameters,
        x=inputs["input/x"],
        lengths=stored.get("lengths"),
        state=states("state") or None,
        dy=inputs["input/dy"],
        dstate=states("dstate"),
    )
    answers = {name.removeprefix("answer/"): value for name, value in stored.items() if "answer/" in name}
    return problem, answers


def test_there_are_golden_files() -> None:
    assert len(FILES) >= 5


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_numbers_of_torch(path: Path, dtype: str) -> None:
    problem, answers = read_problem(path)
    solution = cases.solve(problem, dtype)
    assert solution.keys() == answers.keys()
    for name, want in answers.items():
        assert cases.relative_error(solution[name], want) < TOLERANCE[dtype], name
