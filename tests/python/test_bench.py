"""The benchmark's machinery on tiny shapes: cases, interleaving, agreement, JSON, README table.

Nothing here asserts a time.
"""

from __future__ import annotations

import importlib
import itertools
import json
import mmap
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastlstm import _benchmark_cases, _core, benchmark, layers
from fastlstm.benchmark import CASES, Case, Contender, Target, make_problem, select_cases
from fastlstm.layers import LSTM

BENCH = Path(__file__).parents[2] / "bench"
TINY = (
    Case("step", 1, 1, 3, 5, quick=True),
    Case("infer", 6, 2, 3, 5, quick=True),
    Case("infer", 8, 3, 3, 5, ragged=True),
    Case("infer", 6, 2, 3, 5, num_layers=2, bidirectional=True),
    Case("train", 6, 2, 3, 5),
    Case("train", 8, 3, 3, 5, num_layers=2, bidirectional=True, ragged=True),
    Case("infer", 6, 2, 3, 5, cell="gru"),
    Case("infer", 6, 2, 3, 5, cell="peephole"),
    Case("infer", 6, 2, 3, 5, proj_size=4),
    Case("train", 6, 2, 3, 5, cell="peephole"),
    Case("train", 6, 2, 3, 5, proj_size=4),
    Case("train", 6, 2, 3, 5, layer_norm=True),
    Case("train", 6, 2, 3, 5, num_layers=2, dropout=0.3),
    Case("fit", 5, 4, 3, 5, rows=9),
)
FAST = {"repetitions": 3, "block_seconds": 1e-5, "max_seconds": 0.1}


def ids(case: Case) -> str:
    return case.name


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waiting between contenders, and the number of threads put back afterwards."""
    monkeypatch.setattr(benchmark, "_pause", lambda: None)
    threads = _core.get_num_threads()
    yield
    _core.set_num_threads(threads)


@pytest.fixture
def tiny_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_benchmark_cases, "CASES", TINY)


def bench_module(name: str):
    """A script of bench/, which is not part of the installed package."""
    if not BENCH.is_dir():
        pytest.skip("bench/ is not there")
    if str(BENCH) not in sys.path:
        sys.path.insert(0, str(BENCH))
    return importlib.import_module(name)


# ------------------------------------------------------------------------------- the table


def test_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", TINY, ids=ids)
def test_parameter_shapes_are_the_layers(case: Case):
    layer = LSTM(case.input_size, case.hidden_size, case.num_layers, **case.layer_options)
    assert case.parameter_shapes() == [(name, tuple(shape)) for name, shape in layer.parameter_shapes]


def test_flops_of_known_shapes():
    assert Case("infer", 1, 1, 3, 5).flops(7) == 2 * 4 * 5 * (3 + 5) * 7
    assert Case("train", 1, 1, 3, 5).flops(7) == 2 * 4 * 5 * (2 * 3 + 3 * 5) * 7
    assert Case("infer", 1, 1, 3, 5, proj_size=2).flops(7) == 2 * (4 * 5 * (3 + 2) + 5 * 2) * 7


def test_select_cases():
    assert select_cases() == [case for case in CASES if _benchmark_cases.runs_here(case)]
    assert select_cases("^ctc", more=[Case("ctc", 1, 1, 1, 1)]) == [Case("ctc", 1, 1, 1, 1)]
    assert {case.kind for case in select_cases("^train")} == {"train"}
    assert all(case.quick for case in select_cases(quick=True))
    with pytest.raises(ValueError, match="no case matches"):
        select_cases("no such case")
    with pytest.raises(ValueError, match="regular expression"):
        select_cases("(")


@pytest.mark.parametrize("takes_precision", [False, True])
def test_cases_need_the_options_of_the_layer(takes_precision: bool, monkeypatch: pytest.MonkeyPatch):
    def layer(size, *, cell, bidirectional, proj_size, layer_norm, dropout): ...

    def newer_layer(size, *, cell, bidirectional, proj_size, layer_norm, dropout, precision): ...

    monkeypatch.setattr(layers, "LSTM", newer_layer if takes_precision else layer)
    assert any(case.precision == "int8" for case in select_cases()) == takes_precision
    assert {case.precision for case in select_cases()} >= {"float32"}


@pytest.mark.parametrize("case", TINY, ids=ids)
def test_problems_repeat_and_are_zero_in_the_padding(case: Case):
    problem, again = make_problem(case, 3), make_problem(case, 3)
    np.testing.assert_array_equal(problem.x, again.x)
    assert problem.x.dtype == problem.dy.dtype == np.float32
    assert not problem.x[~problem.mask].any() and not problem.dy[~problem.mask].any()
    assert problem.lengths.max() <= case.time
    assert case.ragged or (problem.lengths == case.time).all()


# ---------------------------------------------------------------------------------- timing


def test_rounds_are_interleaved_and_rotated():
    order: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(name, 1, lambda: order.append(name), units=2)

    timings = benchmark.time_interleaved(
        [contender("a"), contender("b")], repetitions=4, block_seconds=1e-12, max_seconds=10
    )
    assert [timing.repetitions for timing in timings] == [4, 4]
    assert "".join(order[-8:]) == "abbaabba"
    assert all(t.best <= t.q1 <= t.median <= t.q3 for t in timings)


def test_slow_contenders_get_three_rounds():
    timing = benchmark.time_interleaved([Contender("a", 1, lambda: None)], repetitions=9, max_seconds=0.0)
    assert timing[0].repetitions == 3


def test_repetitions_beside_a_neighbour_are_left_out_if_enough_remain():
    samples = [1.0, 5.0, 1.1, 6.0, 1.2]
    timing = benchmark.Timing.of(samples, [True, False, True, False, True])
    assert (timing.median, timing.repetitions, timing.left_out, timing.disturbed) == (1.1, 3, 2, False)
    timing = benchmark.Timing.of(samples, [True, False, True, False, False])
    assert (timing.median, timing.repetitions, timing.left_out, timing.disturbed) == (1.2, 5, 0, True)
    assert not benchmark.Timing.of([1.0, 1.1]).disturbed


def processors_of_speeds(monkeypatch: pytest.MonkeyPatch, *rounds: tuple[float, ...]) -> set[int]:
    """As many processors as a round has speeds, and those speeds one after another, the last one for ever."""
    speeds = itertools.chain(*rounds, itertools.cycle(rounds[-1]))
    usable = set(range(len(rounds[0])))
    monkeypatch.setattr(benchmark.Neighbours, "_loop_seconds", staticmethod(lambda: next(speeds)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, __: None)
    return usable


def test_neighbours_are_found_by_the_slower_loop(monkeypatch: pytest.MonkeyPatch):
    processors_of_speeds(monkeypatch, (1.0, 1.0), (2.0, 1.0), (1.2, 2.0), (1.3, 1.0), (2.0, 2.0), (1.0, 2.0))
    neighbours = benchmark.Neighbours(patience=60)
    assert neighbours.quiet() == [0, 1]
    assert neighbours.wait(1) == [1]
    assert neighbours.wait(2) == [0, 1]  # in the second round
    assert neighbours.wait(1) == [0]  # likewise


def test_a_neighbour_that_stays_is_found_by_what_was_best_before(monkeypatch: pytest.MonkeyPatch):
    processors_of_speeds(monkeypatch, (2.0, 1.0))
    best = {0: 1.0, 1: 1.0}
    assert benchmark.Neighbours(60, best).quiet() == [1]
    assert benchmark.Neighbours(60).quiet() == [0, 1]  # knows no better
    best = {}
    benchmark.Neighbours(60, best).quiet()
    assert best == {0: 2.0, 1: 1.0}


def test_the_processors_stay_as_they_were():
    usable = os.sched_getaffinity(0)
    benchmark.Neighbours(patience=0.1).wait(1)
    assert os.sched_getaffinity(0) == usable


def test_pinned_threads_get_their_processors_back_and_new_ones_all():
    usable = os.sched_getaffinity(0)
    stop = threading.Event()
    begun = threading.Thread(target=stop.wait, args=(60,))
    with benchmark._pinned([min(usable)]):
        assert os.sched_getaffinity(0) == {min(usable)}
        begun.start()
    assert os.sched_getaffinity(0) == usable
    assert begun.native_id is not None
    assert os.sched_getaffinity(begun.native_id) == usable
    stop.set()
    begun.join()


def test_waiting_for_quiet_ends(monkeypatch: pytest.MonkeyPatch):
    processors_of_speeds(monkeypatch, (1.0, 1.0), (9.0, 1.0))
    neighbours = benchmark.Neighbours(patience=0.01)
    assert neighbours.quiet() == [0, 1]
    assert not neighbours.wait(2)
    assert not neighbours.wait(2)


def test_disturbed_repetitions_are_repeated_and_left_out(monkeypatch: pytest.MonkeyPatch):
    # every other look finds somebody: before a repetition nobody, after each second one somebody
    processors_of_speeds(monkeypatch, (1.0,), (1.0,), (1.0,), (2.0,), (1.0,), (1.0,), (1.0,), (2.0,), (1.0,))
    contender = Contender("a", 1, lambda: None)
    (timing,) = benchmark.time_interleaved([contender], repetitions=5, block_seconds=1e-4, patience=60.0)
    assert (timing.repetitions, timing.left_out) == (5, 2)


def test_a_noisy_machine_is_measured_as_it_is(monkeypatch: pytest.MonkeyPatch):
    processors_of_speeds(monkeypatch, (1.0,), (9.0,))
    contender = Contender("a", 1, lambda: None)
    (timing,) = benchmark.time_interleaved([contender], repetitions=5, block_seconds=1e-4, patience=0.05)
    assert (timing.repetitions, timing.left_out) == (5, 0)


@pytest.mark.parametrize("case", TINY, ids=ids)
def test_our_contenders_run(case: Case):
    problem = make_problem(case)
    (contender,) = benchmark.our_contenders(problem, [1])
    (timing,) = benchmark.time_interleaved([contender], **FAST)
    record = benchmark.result_record(problem, contender, timing)
    assert record["case"] == case.name and record["median_s"] > 0
    json.dumps(record)


# ----------------------------------------------------------------------------- fastlstm bench


def test_bench_writes_json(tiny_table: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    assert benchmark.main(["--filter", "infer|train", "--quick", "--threads", "1,2", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    assert [(row["case"], row["threads"]) for row in document["results"]] == [
        ("infer-6x2x3x5", 1),
        ("infer-6x2x3x5", 2),
    ]
    assert {"cpu", "isa", "caches", "versions", "date"} <= document["machine"].keys()
    assert "infer-6x2x3x5" in capsys.readouterr().out


def test_bench_prints_only_json_on_request(tiny_table: None, capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["--filter", "infer", "--quick", "--threads", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 1


def test_bench_lists_cases(capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [case.name for case in select_cases()]


@pytest.mark.parametrize(
    "arguments", [["--threads", "0"], ["--threads", "1,x"], ["--filter", "nothing"], ["--unknown"]]
)
def test_bench_usage_errors_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(arguments) == 2
    assert capsys.readouterr().err


def test_nobody_is_timed_while_threads_of_another_one_spin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setattr(benchmark, "_LONGEST_PAUSE", 60.0)
    ended = []

    def spin():
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        ended.append(True)

    worker = threading.Thread(target=spin)
    worker.start()
    benchmark._pause()
    assert ended
    worker.join()


def test_format_seconds():
    assert [benchmark.format_seconds(s) for s in (2.614e-6, 1.7e-2, 0.123, 1.2)] == [
        "2.61 us",
        "17.0 ms",
        "123 ms",
        "1.20 s",
    ]


# -------------------------------------------------------------------------------------- peers


def can_do(library: str, case: Case) -> bool:
    """Whether an adapter has something to offer."""
    if library == "torch":
        return True
    if library == "jax":
        return case.kind != "fit" and case.precision == "float32" and not case.dropout
    plain = case.kind in ("step", "infer") and not case.proj_size
    cells = {"onnxruntime": ("lstm", "gru", "peephole"), "openvino": ("lstm",), "keras": ("lstm", "gru")}
    return plain and case.cell in cells[library] and not (library == "keras" and case.kind == "step")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["torch", "onnxruntime", "openvino", "keras", "jax"])
@pytest.mark.parametrize("case", TINY, ids=ids)
def test_peers_agree_with_us(case: Case, library: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PJRT_NPROC", "1")  # what JAX asks before it offers itself on one thread
    vs_peers, peers = bench_module("vs_peers"), bench_module("peers")
    found, missing = peers.load_peers([library])
    if missing:
        pytest.skip(f"{library}: {missing[library]}")
    records, complaints = vs_peers.run_case(case, found, [1], FAST)
    assert complaints == []
    assert records[0]["contender"] == "fastlstm"
    others = [record for record in records if record["contender"] != "fastlstm"]
    assert bool(others) == can_do(library, case)


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch):
    peers = bench_module("peers")
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "peers.jax_peer", raising=False)
    found, missing = peers.load_peers(["jax"])
    assert found == [] and "jax" in missing["jax"]


@pytest.mark.parametrize(
    "options",
    [{}, {"cell": "gru"}, {"cell": "peephole"}, {"proj_size": 4}, {"layer_norm": True}],
    ids=str,
)
def test_the_equations_for_loops_and_scans_are_ours(options: dict):
    equations = bench_module("peers.equations")

    def normalise(z: np.ndarray) -> np.ndarray:
        variance = z.var(-1, keepdims=True) + equations.NORM_EPSILON
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(variance)

    operations = equations.Operations(
        lambda z: 1 / (1 + np.exp(-z)), np.tanh, lambda z, n: np.split(z, n, -1), normalise
    )
    problem = make_problem(Case("infer", 6, 2, 3, 5, **options))
    weights = {name.removesuffix("_l0"): array for name, array in problem.weights.items()}
    h, c = np.zeros((2, problem.case.recurrent_size)), np.zeros((2, 5))
    (ours,) = benchmark.our_contenders(problem, [1])
    for x_t, y_t in zip(problem.x.swapaxes(0, 1), ours.outputs()["y"].swapaxes(0, 1), strict=True):
        wx = equations.from_input(operations, weights, x_t)
        h, c = equations.step(operations, problem.case.cell, weights, wx, h, c)
        np.testing.assert_allclose(y_t, h, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["high", "bfloat16", "int8"])
def test_reduced_precisions_are_compared_with_float32(precision: str, monkeypatch: pytest.MonkeyPatch):
    vs_peers, peers = bench_module("vs_peers"), bench_module("peers")
    layer = benchmark._our_layer

    def in_float32(problem, **options):
        return layer(replace(problem, case=replace(problem.case, precision="float32")), **options)

    monkeypatch.setattr(benchmark, "_our_layer", in_float32)
    found, _ = peers.load_peers(["torch", "onnxruntime", "openvino"])
    case = Case("infer", 20, 2, 16, 32, precision=precision)
    records, complaints = vs_peers.run_case(case, found, [1], FAST)
    assert complaints == []
    classes = {record["contender"].split()[-1] for record in records} - {"fastlstm"}
    assert classes <= {peers.PEER_PRECISION[precision]}
    if precision == "int8" and any(peer.NAME == "torch" for peer in found):
        assert classes


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors cannot be chosen here")
def test_everyone_is_timed_beside_a_busy_process(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    busy_neighbour, out = bench_module("busy_neighbour"), tmp_path / "out.json"
    arguments = ["--quick", "--peers", "torch", "--filter", "^infer-100x1x16x32$", "--json", str(out)]
    assert busy_neighbour.main(arguments) == 0
    results = json.loads(out.read_text())["results"]
    assert results[0]["contender"] == "fastlstm"
    assert all(record["ratio"] == record["beside_s"] / record["alone_s"] for record in results)
    printed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert printed[-len(results) :] == [[record["case"], record["contender"]] for record in results]
    with pytest.raises(SystemExit):
        busy_neighbour.main(["--threads", "1"])


def test_disagreement_is_noticed():
    disagreement = bench_module("comparison").disagreement
    ours = {"y": np.ones((2, 3)), "h": np.ones(2)}
    assert disagreement(ours, {"y": np.ones((2, 3))}) is None
    assert "shape" in disagreement(ours, {"y": np.ones((3, 2))})
    assert "off by" in disagreement(ours, {"y": np.full((2, 3), 1.001)})
    assert "off by" in disagreement(ours, {"y": np.full((2, 3), np.nan)})


def test_who_disagrees_is_not_timed():
    comparison = bench_module("comparison")

    def contender(name: str, value: float) -> Contender:
        return Contender(name, 1, lambda: None, outputs=lambda: {"y": np.array([value])})

    everyone = [contender(*each) for each in (("fastlstm", 1.0), ("near", 1.02), ("far", 1.5))]
    complaints: list[str] = []
    kept = comparison.agreeing(everyone, {"y": np.ones(1)}, "bfloat16", complaints)
    assert [each.name for each in kept] == ["fastlstm", "near"]
    assert len(complaints) == 1 and complaints[0].startswith("far, 1 threads")
    assert len(comparison.agreeing(everyone, {"y": np.ones(1)}, "float32", [])) == 1


def record(case: Case, contender: str, seconds: float) -> dict:
    problem = make_problem(case)
    timing = benchmark.Timing.of([seconds] * 3)
    return benchmark.result_record(problem, Contender(contender, 1, lambda: None), timing)


def a_document() -> dict:
    vs_peers = bench_module("vs_peers")
    targets = (Target(9.0, 3.0), Target(1.5, 1.2, "torch padded x fill rate"))
    case = Case("train", 8, 3, 3, 5, ragged=True, targets=targets)
    times = {"fastlstm": 0.5, "torch packed": 4.0, "torch padded": 1.0}
    records = [record(case, name, seconds) for name, seconds in times.items()]
    machine = benchmark.machine_record() | {"isa": "avx512"}
    summary = vs_peers.summarise(case, records, machine, None)
    return {
        "schema": 3,
        "machine": machine,
        "threads": [1],
        "results": records,
        "summary": [summary],
        "complaints": [],
    }


def test_summary_compares_with_the_best_peer_and_the_targets():
    (summary,) = a_document()["summary"]
    assert summary["best_peer"] == "torch padded" and summary["ratio"] == 2.0
    best, padded = summary["targets"]
    assert (best["target"], best["reached"]) == (3.0, False)
    assert padded["ratio"] < 2.0


def test_missed_targets_are_named():
    missed_targets = bench_module("comparison").missed_targets
    assert "best peer: 2.00 of 3" in missed_targets(a_document()["summary"])[0]
    reached = [summary | {"targets": []} for summary in a_document()["summary"]]
    assert missed_targets(reached) == []


def test_a_table_says_which_commits_were_measured():
    table, document = bench_module("readme_table"), a_document()
    assert "; commit" not in table.make_table(document)
    assert "; commit abc123." in table.make_table(document | {"sources": ["abc123"]})
    assert "; commits abc123, def456-dirty." in table.make_table(
        document | {"sources": ["abc123", "def456-dirty"]}
    )
    assert bench_module("comparison").source_revision()


def test_targets_without_a_column_for_the_machine():
    comparison = bench_module("comparison")
    case = replace(TINY[1], targets=(Target(1.2, None),))
    records = [record(case, name, seconds) for name, seconds in (("fastlstm", 1.0), ("torch", 2.0))]
    assert comparison.summarise(case, records, "avx512")["targets"] == []
    assert comparison.summarise(case, records, "amx")["targets"][0]["target"] == 1.2
    assert "there are none for avx2" in comparison.describe_targets("avx2")
    assert comparison.describe_targets("avx512").endswith("for AVX-512 without AMX")


def test_restless_cases_are_measured_again_and_the_calmer_time_counts():
    vs_peers = bench_module("vs_peers")

    def measured(spread: float, ours: float, disturbed: bool = False) -> dict:
        row = {"q1_s": 1.0, "q3_s": 1.0 + spread, "median_s": 1.0, "ours": ours, "disturbed": disturbed}
        return {"results": [row]}

    cases = [replace(TINY[1], batch=n) for n in (1, 2, 3, 4)]
    calm, restless, worse, disturbed = (case.name for case in cases)
    found = {calm: measured(0.01, 1), restless: measured(0.2, 2), worse: measured(0.4, 3)}
    found[disturbed] = measured(0.01, 6, True)
    order = []

    def again(case: Case) -> dict:
        order.append(case.name)
        return measured(0.5, 5) if case.name == restless else measured(0.04, 4)

    vs_peers.measure_again(found, cases, 0, again)
    assert not order
    vs_peers.measure_again(found, cases, 60, again)
    assert order == [disturbed, worse] + [restless] * (vs_peers.MOST_TIMES - 1)
    assert [found[name]["results"][0]["ours"] for name in (calm, restless, worse, disturbed)] == [1, 2, 4, 4]


def test_an_earlier_run_goes_on_where_it_was_made(tmp_path: Path):
    vs_peers = bench_module("vs_peers")
    document, path = a_document() | {"complaints": ["elsewhere: no"]}, tmp_path / "earlier.json"
    name = document["summary"][0]["case"]
    document["complaints"].append(f"{name}: torch: no")
    path.write_text(json.dumps(document))
    assert vs_peers.earlier(str(path), document["machine"], document["threads"]) == json.loads(
        path.read_text()
    )
    for machine, threads in (
        (document["machine"] | {"cpu": "another"}, document["threads"]),
        (document["machine"], [7]),
    ):
        with pytest.raises(ValueError, match=r"another cpu|number of threads"):
            vs_peers.earlier(str(path), machine, threads)
    found = vs_peers.by_case(document)
    assert found[name]["summary"] == [each for each in document["summary"] if each["case"] == name]
    assert found[name]["results"] == [each for each in document["results"] if each["case"] == name]
    assert found[name]["complaints"] == [f"{name}: torch: no"]


def test_summary_without_peers():
    vs_peers = bench_module("vs_peers")
    case = TINY[1]
    summary = vs_peers.summarise(case, [record(case, "fastlstm", 1.0)], benchmark.machine_record(), None)
    assert summary["best_peer"] is None and summary["ratio"] is None and summary["targets"] == []


def test_readme_table_replaces_what_is_between_the_markers(tmp_path: Path):
    table = bench_module("readme_table")
    readme, page, results = (tmp_path / name for name in ("README.md", "page.md", "results.json"))
    document = a_document()
    missed = {"opponent": "best peer", "target": 3, "ratio": 2.0, "reached": False}
    document["summary"][0] |= {"targets": [missed], "share_of_ceiling": 0.5}
    results.write_text(json.dumps(document))
    for path in (readme, page):
        path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = [str(results), "--readme", str(readme), "--page", str(page)]
    assert table.main([*arguments, "--check"]) == 1
    assert table.main(arguments) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "training (forward + backward), ragged" in text and "**2.00x**" in text
    assert "instruction set in use: avx512" in text
    assert "| 2.00 | 3 | 50% | 4.00 |" in page.read_text()
    assert table.main([*arguments, "--check"]) == 0


def test_each_machine_has_its_table_and_one_is_in_the_readme(tmp_path: Path):
    table = bench_module("readme_table")
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    for path in (readme, page):
        path.write_text(f"{table.BEGIN}\n{table.END}\n")
    for name, isa in (("first", "avx512"), ("second", "avx2")):
        document = a_document()
        document["machine"] |= {
            "isa": isa,
            "cpu_info": {"isa_available": {"avx512": True, "avx2": True, "portable": True}},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    files = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    arguments = ["--readme", str(readme), "--page", str(page)]
    assert table.main([*files, *arguments, "--main", "second"]) == 0
    assert readme.read_text().startswith("<!-- bench:begin second -->\n")
    assert "held to avx2" in readme.read_text() and "peers cannot be" in readme.read_text()
    assert "### first" in page.read_text() and "### second" not in page.read_text()
    assert "there are none for avx2" in page.read_text()
    assert table.main([*reversed(files), *arguments, "--check"]) == 0
    assert table.main([*files, *arguments, "--main", "first", "--check"]) == 1
    assert table.main([*files, *arguments, "--main", "third"]) == 1
    assert table.main([files[0], *arguments, "--check"]) == 1


def test_rows_are_described():
    table = bench_module("readme_table")
    case = Case("infer", 6, 2, 3, 5, cell="peephole", proj_size=4, precision="int8")
    words = table.describe_case(record(case, "fastlstm", 1.0))
    assert words == 'inference, peephole, projected to 4, `precision="int8"`'
    ctc = {"kind": "ctc", "time": 200, "batch": 32, "classes": 40, "labels": 30, "ragged": False}
    assert table.describe_case(ctc) == "CTC loss and gradient"
    assert table.describe_shape(ctc) == "200 x 32, 40 classes, 30 labels"


def test_fresh_processes_have_their_table():
    table, document = bench_module("readme_table"), a_document()
    document["cold"] = [{"library": "fastlstm", "case": "infer-6x2x3x5", "import_s": 0.1, "build_s": 0.01}]
    assert "| fastlstm | 100 ms | 10.0 ms | - | - |" in table.make_table(document)
    assert "left out" not in table.make_table(document)
    document["results"][0]["left_out"] = 1
    assert " 10% of the repetitions, ours and the peers'," in table.make_table(document)


def test_readme_without_markers_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = bench_module("readme_table")
    readme, results = tmp_path / "README.md", tmp_path / "results.json"
    results.write_text(json.dumps(a_document()))
    readme.write_text("nothing here\n")
    assert table.main([str(results), "--readme", str(readme)]) == 1
    assert readme.read_text() == "nothing here\n"
    assert "must hold" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- ceilings


def test_ceilings_compile_and_run():
    ceilings = bench_module("ceilings")
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler")
    caches = {"L1": 32 << 10, "L2": 64 << 10, "L3": 128 << 10}
    with ceilings.Meter() as meter:
        for n in (1, 2):
            measured = meter.measure(n, caches, seconds=1e-4)
            assert measured["threads"] == n and measured["gflops"]["fma_portable"] > 0
            assert all(measured["read_gb_s"][level] > 0 for level in ("L1", "L2", "L3", "memory"))


READS = {"L1": 100.0, "L2": 50.0, "L3": 20.0, "memory": 10.0}
CEILING = {"threads": 1, "gflops": {"fma_avx2": 100.0}, "read_gb_s": READS}
MACHINE = {"isa": "avx2", "caches": {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}}


def test_floor_is_the_slower_of_arithmetic_and_reading():
    floor = bench_module("ceilings").floor
    one = Case("infer", 100, 1, 64, 128)
    reading = floor(one, 100, MACHINE, CEILING)
    assert reading.seconds == pytest.approx((100 * 16 * 128 * 128 + 16 * 128 * 64) / 50e9)
    assert (reading.limit, reading.rate) == ("L2", pytest.approx(50))
    many = Case("infer", 100, 64, 64, 128)
    arithmetic = floor(many, 6400, MACHINE, CEILING)
    assert arithmetic.seconds == pytest.approx(many.flops(6400) / 100e9)
    assert (arithmetic.limit, arithmetic.rate) == ("arithmetic", 100)
    assert floor(TINY[-1], 9, MACHINE, CEILING) is None
    assert floor(one, 100, MACHINE | {"isa": "portable"}, CEILING) is None


@pytest.mark.parametrize(
    ("isa", "precision", "peak"),
    [
        ("amx", "float32", 500),
        ("amx", "high", 1000),
        ("amx", "bfloat16", 3000),
        ("amx", "int8", 6000),
        ("avx512", "float32", 170),
        ("avx512", "high", 170),
        ("avx512", "bfloat16", 340),
        ("avx2", "int8", 80),
    ],
)
def test_peak_of_each_precision(isa: str, precision: str, peak: float):
    rates = {"fma_avx2": 80, "fma_avx512": 170, "bf16_avx512": 340, "bf16_amx": 3000, "int8_amx": 6000}
    case, ceiling = Case("infer", 100, 512, 64, 128, precision=precision), CEILING | {"gflops": rates}
    assert bench_module("ceilings").floor(case, 51200, MACHINE | {"isa": isa}, ceiling).rate == peak


def test_smaller_weights_are_read_faster():
    floor = bench_module("ceilings").floor
    whole, bytes_only = (
        floor(Case("infer", 100, 1, 512, 1024, precision=p), 100, MACHINE, CEILING)
        for p in ("float32", "int8")
    )
    assert whole.seconds == pytest.approx(4 * bytes_only.seconds)


# ----------------------------------------------------------------------- the other programs


def test_ctc_records_and_their_summary():
    pytest.importorskip("torch")
    ctc, vs_peers = bench_module("ctc"), bench_module("vs_peers")
    case = ctc.CtcCase(8, 2, 4, 2, targets=(Target(1e9, 1e9),))
    records, complaints = ctc.run_case(case, [1], FAST)
    assert complaints == [] and [each["contender"] for each in records] == ["fastlstm", "torch"]
    summary = vs_peers.summarise(case, records, MACHINE, None)
    assert summary["best_peer"] == "torch" and not summary["targets"][0]["reached"]


def test_a_wrong_ctc_gradient_is_complained_about(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    ctc = bench_module("ctc")
    right = ctc.ctc_loss
    monkeypatch.setattr(ctc, "ctc_loss", lambda *arrays: (right(*arrays)[0], right(*arrays)[1] * 1.001))
    _, complaints = ctc.run_case(ctc.CtcCase(8, 2, 4, 2), [1], FAST)
    assert len(complaints) == 1 and "fastlstm" in complaints[0]


def test_fresh_processes_are_measured():
    cold = bench_module("cold")
    (found,) = cold.measure(["fastlstm"], 1)
    assert found["library"] == "fastlstm" and all(found[key] > 0 for key in cold.COLUMNS)
    with pytest.raises(RuntimeError, match="no_such_library"):
        cold.measure(["no_such_library"], 1)


def test_a_slow_import_is_a_missed_target():
    cold = bench_module("cold")
    records = [{"library": "fastlstm", "import_s": 0.2}, {"library": "torch", "import_s": 2.0}]
    assert len(cold.missed(records)) == 1 and "0.200 s" in cold.missed(records)[0]
    assert cold.missed([records[0] | {"import_s": 0.1}, records[1]]) == []


def test_exponents():
    scaling = bench_module("scaling")
    assert scaling.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert scaling.exponent([1, 2, 8], [4, 2, 0.5]) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("axis", "values", "work"),
    [("time", (2, 4), 1), ("num_layers", (1, 2), np.log2(1 + 10 / 8)), ("threads", (1, 2), -1)],
)
def test_scaling_along_an_axis(axis: str, values: tuple, work: float, monkeypatch: pytest.MonkeyPatch):
    scaling = bench_module("scaling")
    monkeypatch.setattr(scaling, "BASE", TINY[1])
    result = scaling.run_axis("infer", axis, values, FAST)
    assert [point["value"] for point in result["points"]] == list(values)
    assert result["work_exponent"] == pytest.approx(work)
    json.dumps(result)


def test_scaling_refuses_unknown_axes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench_module("scaling").main(["--axis", "time,color"])
    assert "hidden_size" in capsys.readouterr().err


def test_roofline_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    roofline, results, out = bench_module("roofline"), tmp_path / "results.json", tmp_path / "roofline.png"
    one, many = Case("infer", 100, 1, 64, 128), Case("infer", 100, 64, 64, 128)
    summarise = bench_module("vs_peers").summarise
    records = [record(case, name, s) for case in (many, one) for name, s in (("fastlstm", 1), ("torch", 2))]
    summary = [summarise(case, records[2 * k :][:2], MACHINE, CEILING) for k, case in enumerate((many, one))]
    machine = MACHINE | {"cpu": "a CPU", "date": "today"}
    document = {"machine": machine, "results": records, "summary": summary}
    found = roofline.shares(document, 1)
    assert [(share.case, share.floor.limit, share.unit) for share in found] == [
        (one, "L2", "GB/s"),
        (many, "arithmetic", "GFLOP/s"),
    ]
    assert all(share.peer == pytest.approx(share.ours / 2) for share in found)
    results.write_text(json.dumps(document))
    assert roofline.main([str(results), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert one.name in capsys.readouterr().out
    assert roofline.main([str(results), "--out", str(out), "--threads", "3"]) == 1


def fresh_pages(size: int) -> mmap.mmap:
    """Memory that is written to, and of its own, whatever the allocator has free."""
    pages = mmap.mmap(-1, size)
    pages.write(b"x" * size)
    return pages


def test_peak_memory_is_what_the_step_adds(monkeypatch: pytest.MonkeyPatch):
    memory = bench_module("memory")
    size = 64 << 20
    fake = Contender("fake", 1, lambda: fresh_pages(size).close())
    monkeypatch.setattr(memory, "_contender", lambda library, case: fake)
    assert 0.9 * size < memory.measure_peak("fastlstm", TINY[4]) < 2.5 * size


def test_growth_is_what_stays(monkeypatch: pytest.MonkeyPatch):
    memory = bench_module("memory")
    kept: list[mmap.mmap] = []
    size = 256 << 10
    monkeypatch.setattr(memory, "WARM_UP", 20)
    monkeypatch.setattr(memory, "_our_varying_step", lambda: lambda x: kept.append(fresh_pages(size)))
    assert 0.9 * 100 * size < memory.measure_growth("fastlstm", 100) < 1.5 * 100 * size


def test_our_memory_is_flat():
    memory = bench_module("memory")
    assert memory.in_fresh_process("fastlstm", "--calls", "200") < memory.MOST_GROWTH


def test_japanese_vowels_data_are_standardised():
    x_train, x_test, y_train, y_test = bench_module("japanese_vowels").standardised_data()
    assert (len(x_train), len(x_test), len(y_train), len(y_test)) == (270, 370, 270, 370)
    steps = np.concatenate(x_train)
    np.testing.assert_allclose(steps.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(steps.std(0), 1, atol=1e-4)
