"""The numbers do not depend on the number of threads, and threads survive fork and sharing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import numpy as np
import pytest
from cases import Case, make_problem
from subprocesses import output_of, run_python

import fastlstm
from fastlstm import _core

HAS_OPENMP = _core.cpu_info()["openmp"]
SHARED = (
    Case("one_row_large_hidden", input_size=40, hidden_size=400, time=4),
    Case("few_rows_large_hidden", input_size=300, hidden_size=200, batch=3, time=4, ragged=True),
    Case("many_rows", input_size=20, hidden_size=65, batch=70, time=6),
    Case("many_ragged_rows", input_size=17, hidden_size=48, batch=61, time=12, ragged=True, with_state=True),
    Case(
        "more_rows_than_a_lane", input_size=12, hidden_size=40, num_layers=2, batch=150, time=18, ragged=True
    ),
    Case(
        "lanes_both_ways", input_size=8, hidden_size=33, bidirectional=True, num_layers=2, batch=140, time=15
    ),
    Case("both_ways", input_size=30, hidden_size=70, bidirectional=True, batch=33, time=7, ragged=True),
    Case("one_row_both_ways", input_size=30, hidden_size=300, bidirectional=True, time=8),
    Case("stack", input_size=9, hidden_size=60, num_layers=3, batch=40, time=6, ragged=True),
    Case(
        "stack_both_ways",
        input_size=33,
        hidden_size=50,
        num_layers=2,
        bidirectional=True,
        batch=19,
        time=8,
        ragged=True,
        with_state=True,
    ),
    Case("rnn", cell="rnn", input_size=64, hidden_size=200, batch=31, time=5, ragged=True),
    Case("wide_input", input_size=700, hidden_size=33, batch=16, time=4),
    Case("hoisted_by_many_threads", input_size=200, hidden_size=70, batch=16, time=4),
    Case("tiny", input_size=2, hidden_size=3, batch=2, time=3),
    *cases.random_cases(12, seed=7),
)


def bits(results: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in results.items()}


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_any_number_of_threads_gives_the_same_bits(case: Case, dtype: str) -> None:
    problem, found = make_problem(case), {}
    for n in (1, 2, 3, 7):
        fastlstm.set_num_threads(n)
        assert fastlstm.get_num_threads() == (n if HAS_OPENMP else 1)
        found[n] = bits(cases.solve(problem, dtype, n))
    for n in (2, 3, 7):
        different = [name for name in found[1] if found[n][name] != found[1][name]]
        assert not different, f"{n} threads change {different}"


def test_the_same_call_twice_gives_the_same_bits() -> None:
    problem = make_problem(SHARED[3])
    assert bits(cases.solve(problem, "float32", 3)) == bits(cases.solve(problem, "float32", 3))


@pytest.mark.usefixtures("restore_threads")
def test_calls_one_after_another_may_find_the_team_awake_or_asleep() -> None:
    """Who computes is then a matter of time, what comes out is not."""
    fastlstm.set_num_threads(3)
    problem = make_problem(SHARED[2])
    layer = cases.build_layer(problem.case, "float32", problem.parameters)
    want, _ = layer(problem.x)
    for k in range(30):
        time.sleep(0.002 * (k % 10 == 0))
        np.testing.assert_array_equal(layer(problem.x)[0], want)


@pytest.mark.parametrize("n_inner", [1, 2])
def test_python_threads_share_a_layer(n_inner: int) -> None:
    problem = make_problem(SHARED[3])
    layer = cases.build_layer(problem.case, "float32", problem.parameters)
    layer.n_threads = n_inner
    want, _ = layer(problem.x, problem.state, problem.lengths)
    gate = threading.Barrier(8)

    def call(_: int) -> bool:
        gate.wait(30)
        answers = [layer(problem.x, problem.state, problem.lengths)[0] for _ in range(5)]
        return all(np.array_equal(answer, want) for answer in answers)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


@pytest.mark.usefixtures("restore_threads")
def test_python_threads_share_a_fresh_layer() -> None:
    """The first calls pack the weights: a race would show as wrong numbers."""
    fastlstm.set_num_threads(1)
    problem = make_problem(SHARED[3])
    want, _ = cases.build_layer(problem.case, "float32", problem.parameters)(problem.x, None, problem.lengths)
    for _ in range(10):
        layer = cases.build_layer(problem.case, "float32", problem.parameters)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: layer(problem.x, None, problem.lengths)[0], range(4)))  # noqa: B023
        for answer in answers:
            np.testing.assert_array_equal(answer, want)


def test_python_threads_train_their_own_layers() -> None:
    problems = [make_problem(SHARED[k]) for k in (3, 4, 6, 7)]
    want = [bits(cases.solve(problem, "float32", 2)) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda problem: bits(cases.solve(problem, "float32", 2)), problems))
    assert got == want


FORK = """
import os, signal, sys, warnings
import numpy as np
import cases
warnings.simplefilter("ignore")
problem = cases.make_problem(cases.Case("fork", input_size=30, hidden_size=64, batch=40, time=9, ragged=True))
want = cases.solve(problem, "float32", 2)
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        same = all(np.array_equal(a, want[k]) for k, a in cases.solve(problem, "float32", 2).items())
        grandchild = os.fork()
        if grandchild == 0:
            again = cases.solve(problem, "float32", 2)
            os._exit(0 if all(np.array_equal(a, want[k]) for k, a in again.items()) else 3)
        os._exit(max(int(not same), os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])))
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
again = cases.solve(problem, "float32", 2)
same = all(np.array_equal(a, want[k]) for k, a in again.items())
print(codes, same)
"""


def test_fork_after_a_threaded_call_does_not_hang() -> None:
    assert output_of(FORK, timeout=60) == "[0, 0, 0] True"


FORK_AFTER_ANOTHER_LIBRARY = """
import os, signal
import torch
import numpy as np
from fastlstm.layers import LSTM
torch.set_num_threads(2)
for _ in range(3):
    (torch.randn(3000, 3000) + 1).exp().sum()  # leaves the OpenMP that we share a team on this thread
child = os.fork()
if child == 0:
    signal.alarm(30)
    layer = LSTM(64, 64)
    layer.n_threads = 2
    layer(np.ones((64, 50, 64), np.float32))
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_fork_after_another_library_used_openmp_does_not_hang() -> None:
    pytest.importorskip("torch")
    assert output_of(FORK_AFTER_ANOTHER_LIBRARY, timeout=120) == "0"


NO_MORE_THREADS = """
import pathlib, resource
import numpy as np
from fastlstm.layers import LSTM
layer, x = LSTM(64, 64, random_state=0), np.ones((64, 50, 64), np.float32)
layer.n_threads = 1
want = layer(x)[0]
held = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (60 << 20), held + (60 << 20)))
layer.n_threads = 16
print(bool((layer(x)[0] == want).all()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_system_that_has_no_more_threads_gets_fewer() -> None:
    assert output_of(NO_MORE_THREADS) == "True"


EXIT_WHILE_BUSY = """
import threading, numpy as np, cases, fastlstm
fastlstm.set_num_threads(2)
problem = cases.make_problem(cases.Case("exit", input_size=30, hidden_size=200, batch=40, time=200))
layer = cases.build_layer(problem.case, "float32", problem.parameters)
def work():
    while True:
        layer(problem.x)
threading.Thread(target=work, daemon=True).start()
layer(problem.x)
print("done")
"""


def test_interpreter_exit_while_a_thread_computes() -> None:
    assert output_of(EXIT_WHILE_BUSY, timeout=60) == "done"


def test_number_of_threads_from_the_environment() -> None:
    code = "import fastlstm; print(fastlstm.get_num_threads())"
    assert output_of(code, FASTLSTM_NUM_THREADS="3") == ("3" if HAS_OPENMP else "1")
    assert output_of(code, FASTLSTM_NUM_THREADS="", OMP_NUM_THREADS="1") == "1"
    assert int(output_of(code, FASTLSTM_NUM_THREADS="", OMP_NUM_THREADS="")) >= 1


@pytest.mark.parametrize("text", ["two", "-1", "2.5", "1025", "9" * 5000, "\N{ARABIC-INDIC DIGIT TWO}"])
def test_a_number_of_threads_that_is_none_is_told(text: str) -> None:
    done = run_python("import fastlstm; fastlstm.get_num_threads()", FASTLSTM_NUM_THREADS=text)
    assert done.returncode == 0 and "it is ignored" in done.stderr
    assert "ignored" not in run_python("import fastlstm", FASTLSTM_NUM_THREADS="0").stderr


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5", "99999999999999999999"])
def test_bad_number_in_the_environment_is_ignored_or_refused_never_a_crash(value: str) -> None:
    code = "import fastlstm; assert 1 <= fastlstm.get_num_threads() <= 1024"
    assert run_python(code, FASTLSTM_NUM_THREADS=value).returncode in (0, 1)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("bad", [-1, 1.5, "two", True, [2]])
def test_bad_number_of_threads(bad: object) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        fastlstm.set_num_threads(bad)
    assert len(str(caught.value).split()) >= 4
