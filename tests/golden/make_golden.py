"""Write the golden files from PyTorch 2.13: ``python tests/golden/make_golden.py``.

Each holds one case: its facts, float32 inputs and parameters, and torch's float64 answers.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))

import torch_oracle  # noqa: E402
from cases import Case, Problem, by_name, make_problem, with_cell  # noqa: E402

DEEP = Case(
    "deep",
    input_size=4,
    hidden_size=6,
    num_layers=3,
    bidirectional=True,
    batch=5,
    time=7,
    ragged=True,
    with_state=True,
)
CASES = (
    *map(by_name, ("vector_16", "above_vector", "no_bias", "bidirectional", "rnn")),
    DEEP,
    with_cell(DEEP, "rnn"),
    with_cell(DEEP, "rnn_relu"),
)


def stored(problem: Problem) -> dict[str, np.ndarray]:
    """Flat dictionary of one problem and its answers."""
    inputs = {"x": problem.x, "dy": problem.dy}
    inputs |= {f"parameter/{name}": p for name, p in problem.parameters.items()}
    inputs |= {f"state/{k}": s for k, s in enumerate(problem.state or ())}
    inputs |= {f"dstate/{k}": s for k, s in enumerate(problem.dstate)}
    entries = {f"case/{name}": np.array(value) for name, value in asdict(problem.case).items()}
    entries |= {f"input/{name}": array.astype(np.float32) for name, array in inputs.items()}
    entries |= {f"answer/{name}": array for name, array in torch_oracle.solve(problem, "float64").items()}
    if problem.lengths is not None:
        entries["lengths"] = problem.lengths
    return entries


def main() -> None:
    for case in CASES:
        np.savez_compressed(HERE / f"{case.name}.npz", **stored(make_problem(case, seed=2026)))


if __name__ == "__main__":
    main()
