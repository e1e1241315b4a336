"""The benchmark's machinery on tiny shapes: cases, interleaving, agreement, JSON, README table.

Nothing here asserts a time.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastlstm import _benchmark_cases, _core, benchmark
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
    Case("fit", 5, 4, 3, 5, rows=9),
)
FAST = {"repetitions": 3, "block_seconds": 1e-5, "max_seconds": 0.1}


def ids(case: Case) -> str:
    return case.name


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waiting between contenders, and the number of threads put back afterwards."""
    monkeypatch.setattr(benchmark, "_PAUSE_SECONDS", 0.0)
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
    layer = LSTM(case.input_size, case.hidden_size, case.num_layers, bidirectional=case.bidirectional)
    assert case.parameter_shapes() == [(name, tuple(shape)) for name, shape in layer.parameter_shapes]


def test_flops_of_known_shapes():
    assert Case("infer", 1, 1, 3, 5).flops(7) == 2 * 4 * 5 * (3 + 5) * 7
    assert Case("train", 1, 1, 3, 5).flops(7) == 2 * 4 * 5 * (2 * 3 + 3 * 5) * 7


def test_select_cases():
    assert select_cases() == list(CASES)
    assert {case.kind for case in select_cases("^train")} == {"train"}
    assert all(case.quick for case in select_cases(quick=True))
    with pytest.raises(ValueError, match="no case matches"):
        select_cases("no such case")
    with pytest.raises(ValueError, match="regular expression"):
        select_cases("(")


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
    assert capsys.readouterr().out.split() == [case.name for case in CASES]


@pytest.mark.parametrize(
    "arguments", [["--threads", "0"], ["--threads", "1,x"], ["--filter", "nothing"], ["--unknown"]]
)
def test_bench_usage_errors_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(arguments) == 2
    assert capsys.readouterr().err


def test_format_seconds():
    assert [benchmark.format_seconds(s) for s in (2.614e-6, 1.7e-2, 0.123, 1.2)] == [
        "2.61 us",
        "17.0 ms",
        "123 ms",
        "1.20 s",
    ]


# -------------------------------------------------------------------------------------- peers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("case", TINY, ids=ids)
def test_peers_agree_with_us(case: Case, library: str):
    vs_peers = bench_module("vs_peers")
    peers, missing = bench_module("peers").load_peers([library])
    if missing:
        pytest.skip(f"{library}: {missing[library]}")
    records, complaints = vs_peers.run_case(case, peers, [1], FAST)
    assert complaints == []
    assert records[0]["contender"] == "fastlstm"
    if library == "torch" or case.kind in ("step", "infer"):
        assert len(records) > 1


def test_disagreement_is_noticed():
    vs_peers = bench_module("vs_peers")
    ours = {"y": np.ones((2, 3)), "h": np.ones(2)}
    assert vs_peers.disagreement(ours, {"y": np.ones((2, 3))}) is None
    assert "shape" in vs_peers.disagreement(ours, {"y": np.ones((3, 2))})
    assert "off by" in vs_peers.disagreement(ours, {"y": np.full((2, 3), 1.001)})
    assert "off by" in vs_peers.disagreement(ours, {"y": np.full((2, 3), np.nan)})


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
        "schema": 1,
        "machine": machine,
        "threads": [1],
        "ceilings": {},
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
    missed = bench_module("vs_peers").missed_targets(a_document()["summary"])
    assert "best peer: 2.00 of 3" in missed[0]
    reached = [summary | {"targets": []} for summary in a_document()["summary"]]
    assert bench_module("vs_peers").missed_targets(reached) == []


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
    measured = ceilings.measure([1, 2], caches, seconds=1e-4)
    for n in ("1", "2"):
        assert measured[n]["gflops"]["fma_portable"] > 0
        assert all(measured[n]["read_gb_s"][level] > 0 for level in ("L1", "L2", "L3", "memory"))


def test_lower_bound_takes_the_slower_of_arithmetic_and_reading():
    lower_bound = bench_module("ceilings").lower_bound
    machine = {"isa": "avx2", "caches": {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}}
    reads = {"L1": 100.0, "L2": 50.0, "L3": 20.0, "memory": 10.0}
    ceiling = {"threads": 1, "gflops": {"fma_avx2": 100.0}, "read_gb_s": reads}
    one = Case("infer", 100, 1, 64, 128)
    expected = (100 * 16 * 128 * 128 + 16 * 128 * 64) / 50e9
    assert lower_bound(one, 100, machine, ceiling) == pytest.approx(expected)
    many = Case("infer", 100, 64, 64, 128)
    assert lower_bound(many, 6400, machine, ceiling) == pytest.approx(many.flops(6400) / 100e9)
    assert lower_bound(TINY[-1], 9, machine, ceiling) is None
    assert lower_bound(one, 100, machine | {"isa": "portable"}, ceiling) is None


def test_japanese_vowels_data_are_standardised():
    x_train, x_test, y_train, y_test = bench_module("japanese_vowels").standardised_data()
    assert (len(x_train), len(x_test), len(y_train), len(y_test)) == (270, 370, 270, 370)
    steps = np.concatenate(x_train)
    np.testing.assert_allclose(steps.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(steps.std(0), 1, atol=1e-4)
