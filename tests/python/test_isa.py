"""Every instruction set that the machine has, each in its own process, against the portable one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases import relative_error
from subprocesses import output_of, run_python

NAMES = ("portable", "avx2", "avx512")
WHICH = "import fastlstm._core as core; print(core.isa())"
SOLVE = """
import sys
import numpy as np
import cases
import fastlstm._core as core
names = ["vector_16", "above_vector", "deep_both_ways", "rnn_deep_both_ways", "large_hidden", "many_rows"]
results = {}
for name in names:
    problem = cases.make_problem(cases.by_name(name))
    for dtype in ("float32", "float64"):
        for key, value in cases.solve(problem, dtype).items():
            results[f"{dtype} {name} {key}"] = value
for dtype in ("float32", "float64"):
    x = np.linspace(-30, 30, 20_011).astype(dtype)
    for function in ("sigmoid", "tanh"):
        out = np.empty_like(x)
        core.apply_activation(function, x, out)
        results[f"{dtype} {function} y"] = out
np.savez(sys.argv[1], **results)
print(core.isa())
"""


def is_available(name: str) -> bool:
    return run_python(WHICH, FASTLSTM_ISA=name).returncode == 0


@pytest.fixture(scope="module")
def solutions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Results of `SOLVE` under each instruction set that can run here."""
    folder, found = tmp_path_factory.mktemp("isa"), {}
    for name in NAMES:
        path = Path(folder) / f"{name}.npz"
        if is_available(name):
            assert output_of(SOLVE, str(path), FASTLSTM_ISA=name) == name
            with np.load(path) as file:
                found[name] = dict(file)
    return found


def test_portable_is_always_there(solutions: dict[str, dict[str, np.ndarray]]) -> None:
    assert "portable" in solutions


@pytest.mark.parametrize("name", NAMES[1:])
def test_numbers_agree_with_the_portable_ones(name: str, solutions: dict[str, dict[str, np.ndarray]]) -> None:
    if name not in solutions:
        pytest.skip(f"no {name} on this machine")
    assert solutions[name].keys() == solutions["portable"].keys()
    for key, want in solutions["portable"].items():
        bound = 64 * np.finfo(want.dtype).eps
        assert relative_error(solutions[name][key], want) < bound, key


def test_default_is_the_widest_available(solutions: dict[str, dict[str, np.ndarray]]) -> None:
    widest = [name for name in NAMES if name in solutions][-1]
    chosen = output_of(WHICH, FASTLSTM_ISA="")
    assert chosen == widest or chosen not in NAMES


@pytest.mark.parametrize("name", ["avx9000", "scalar", "AVX2 ", "../portable", "a" * 5000])
def test_unknown_name_is_refused_with_a_sentence(name: str) -> None:
    done = run_python(WHICH, FASTLSTM_ISA=name)
    assert done.returncode == 1, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError", "ValueError")), done.stderr
    assert "FASTLSTM_ISA" in last
    assert "portable" in last, "the sentence lists what would be right"


def test_name_the_machine_lacks_is_refused_with_a_sentence(
    solutions: dict[str, dict[str, np.ndarray]],
) -> None:
    lacking = [name for name in NAMES if name not in solutions]
    for name in lacking:
        done = run_python(WHICH, FASTLSTM_ISA=name)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(("ImportError", "ValueError")), done.stderr
        assert "FASTLSTM_ISA" in last


def test_a_wrong_choice_is_no_fault_of_a_layer_or_of_a_model_file() -> None:
    for code in ("from fastlstm.layers import LSTM; LSTM(2, 2)", "import fastlstm; fastlstm.load('none')"):
        last = run_python(code, FASTLSTM_ISA="avx9000").stderr.strip().splitlines()[-1]
        assert last.startswith("ValueError: FASTLSTM_ISA names no instruction set of this build"), last


def test_importing_the_package_alone_does_not_need_the_choice() -> None:
    """`import fastlstm` stays usable for its version even when the core cannot be chosen."""
    assert output_of("import fastlstm; print(fastlstm.__version__)", FASTLSTM_ISA="avx9000")
