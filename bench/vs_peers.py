"""fastlstm beside torch, onnxruntime, openvino, Keras and JAX, interleaved in one run.

    python bench/vs_peers.py [--threads 1,2] [--filter REGEX] [--quick] [--peers torch,openvino] [--again SECONDS]

Before a peer is timed its numbers are compared with ours: outputs, states or weight gradients must
agree to 1e-4 of their largest value; reduced precisions to what their class allows of ours in float32.
The machine's ceilings are measured beside each case, since clocks and neighbours change within minutes.
Repetitions beside somebody else on the processors are left out, by one rule for all (benchmark.Neighbours).
With --again the cases that somebody disturbed all the time, or whose repetitions were furthest apart, are measured
again, ours and the peers' together, and the calmer time counts, whoever was faster in it; --from does that with an
earlier run's results.
Prints tables and writes bench/results/<machine>.json, from which bench/readme_table.py makes the table in
the README. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ceilings
import cold
import comparison
import ctc
from ctc import CtcCase
from peers import NAMES, load_peers

from fastlstm.benchmark import (
    Case,
    Contender,
    Problem,
    add_common_arguments,
    describe_machine,
    machine_record,
    make_problem,
    our_contenders,
    parse_threads,
    result_record,
    select_cases,
    spread_of,
    time_interleaved,
    timing_options,
    write_json,
)

RESULTS = Path(__file__).with_name("results")
CALM = 0.05  # a spread that no second measurement needs
MOST_TIMES = 4  # that a case is measured


# --------------------------------------------------------------------------------- one case


def peer_contenders(
    problem: Problem, peers: Sequence[ModuleType], threads: Sequence[int], complaints: list[str]
) -> list[Contender]:
    """What the peers offer for the case; a peer that fails is complained about and left out."""
    found: list[Contender] = []
    for peer in peers:
        try:
            found += [contender for n in threads for contender in peer.contenders(problem, n)]
        except Exception as error:
            complaints.append(f"{peer.NAME}: {type(error).__name__}: {error}")
    return found


def run_case(
    case: Case, peers: Sequence[ModuleType], threads: Sequence[int], options: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Result records of everyone for one case, and complaints about those who had to be left out."""
    complaints: list[str] = []
    problem = make_problem(case)
    contenders = our_contenders(problem, threads)
    truth = comparison.outputs_of(our_contenders(make_problem(replace(case, precision="float32")), [1])[0])
    contenders += peer_contenders(problem, peers, threads, complaints)
    contenders = comparison.agreeing(contenders, truth, case.precision, complaints)
    timings = time_interleaved(contenders, **options)
    records = [result_record(problem, c, t) for c, t in zip(contenders, timings, strict=True)]
    return records, [f"{case.name}: {complaint}" for complaint in complaints]


def summarise(
    case: Case | CtcCase,
    records: Sequence[dict[str, Any]],
    machine: dict[str, Any],
    ceiling: dict[str, Any] | None,
) -> dict[str, Any]:
    """The summary of a case for one number of threads, with its fill rate, its ceiling and its floor."""
    if isinstance(case, CtcCase):
        return comparison.summarise(case, records, machine["isa"])
    steps = records[0]["steps"]
    floor = ceilings.floor(case, steps, machine, ceiling) if ceiling else None
    fill_rate = steps / (case.time * (case.rows or case.batch))
    bound = floor.seconds if floor else None
    summary = comparison.summarise(case, records, machine["isa"], fill_rate=fill_rate, bound=bound)
    return summary | {"ceiling": ceiling}


def measure(
    case: Case | CtcCase,
    peers: Sequence[ModuleType],
    threads: Sequence[int],
    options: dict[str, Any],
    machine: dict[str, Any],
    ceiling_now: Callable[[int], dict[str, Any] | None],
) -> dict[str, Any]:
    """What the document has of a case: "summary", "results" and "complaints"; prints it."""
    limits = {n: ceiling_now(n) for n in threads}
    if isinstance(case, CtcCase):
        records, complaints = ctc.run_case(case, threads, options)
    else:
        records, complaints = run_case(case, peers, threads, options)
    summaries = []
    for n in threads:
        rows = [record for record in records if record["threads"] == n]
        summaries.append(summarise(case, rows, machine, limits[n]))
        comparison.print_summary(summaries[-1], rows)
    for complaint in complaints:
        print(f"  ! {complaint}", file=sys.stderr)
    return {"summary": summaries, "results": records, "complaints": complaints}


def unrest(measured: dict[str, Any]) -> tuple[float, float]:
    """What speaks against a case's times: the share of rows that somebody disturbed all the time, and how far the
    repetitions are apart, the median of all rows."""
    rows = measured["results"]
    disturbed = sum(record.get("disturbed", False) for record in rows) / len(rows)
    return disturbed, statistics.median(spread_of(record) for record in rows)


def measure_again(
    measured: dict[str, dict[str, Any]],
    cases: Sequence[Case | CtcCase],
    seconds: float,
    again: Callable[[Case | CtcCase], dict[str, Any]],
) -> None:
    """Measures those of most unrest again for about so long, and keeps for each case the time of the least."""
    until, times = time.monotonic() + seconds, Counter(case.name for case in cases)
    while time.monotonic() < until:
        restless = [
            case
            for case in cases
            if unrest(measured[case.name]) > (0.0, CALM) and times[case.name] < MOST_TIMES
        ]
        if not restless:
            break
        case = max(restless, key=lambda case: (-times[case.name], unrest(measured[case.name])))
        times[case.name] += 1
        before, now = measured[case.name], again(case)
        better = unrest(now) < unrest(before)
        print(
            "  again: disturbed {:.0%}, spread {:.1%}; now {:.0%}, {:.1%}".format(
                *unrest(before), *unrest(now)
            )
            + (", which counts" if better else "")
        )
        if better:
            measured[case.name] = now


# ------------------------------------------------------------------------------- the command


def result_path(machine: dict[str, Any]) -> Path:
    """bench/results/<cpu>-<usable CPUs>cpus-<isa>.json"""
    text = f"{machine['cpu']} {machine['usable_cpus']}cpus {machine['isa']}"
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") + ".json")


@contextmanager
def ceiling_meter(machine: dict[str, Any]) -> Iterator[Callable[[int], dict[str, Any] | None]]:
    """The ceilings of the moment for a number of threads; None where there is no compiler to measure them with."""
    with ExitStack() as stack:
        try:
            meter = stack.enter_context(ceilings.Meter())
        except (RuntimeError, OSError) as error:
            print(f"no ceilings: {error}", file=sys.stderr)
            yield lambda threads: None
        else:
            yield lambda threads: meter.measure(threads, machine["caches"])


def measure_cold(peers: Sequence[ModuleType], quick: bool, complaints: list[str]) -> list[dict[str, Any]]:
    try:
        records = cold.measure([cold.OURS, *(peer.NAME for peer in peers)], cold.repetitions(quick))
    except RuntimeError as error:
        complaints.append(f"cold: {error}")
        return []
    cold.print_table(records)
    return records


def earlier(path: str, machine: dict[str, Any], threads: Sequence[int]) -> dict[str, Any]:
    """The document of an earlier run, of this machine, these versions and numbers of threads: ValueError if not."""
    document: dict[str, Any] = json.loads(Path(path).read_text())
    there = document["machine"]
    other = [key for key in ("cpu", "usable_cpus", "isa", "versions") if there[key] != machine[key]]
    if other or document["threads"] != list(threads):
        raise ValueError(f"{path} is of another {', '.join(other) or 'number of threads'}")
    return document


def by_case(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What :func:`measure` returned for each case of the document."""
    names = dict.fromkeys(record["case"] for record in document["summary"])
    return {
        name: {
            "summary": [record for record in document["summary"] if record["case"] == name],
            "results": [record for record in document["results"] if record["case"] == name],
            "complaints": [text for text in document["complaints"] if text.startswith(f"{name}:")],
        }
        for name in names
    }


def run(
    cases: Sequence[Case | CtcCase],
    peers: Sequence[ModuleType],
    threads: Sequence[int],
    *,
    options: dict[str, Any],
    quick: bool,
    with_cold: bool,
    again: float,
    path: str | None,
) -> dict[str, Any]:
    """Runs everything that `path` does not have, printing as it goes, and returns the JSON document."""
    machine = machine_record()
    machine["versions"] |= {peer.NAME: peer.version() for peer in peers}
    document: dict[str, Any] = {"schema": 3, "machine": machine, "threads": list(threads), "cold": []}
    document["sources"] = []
    measured: dict[str, dict[str, Any]] = {}
    if path:
        found = earlier(path, machine, threads)
        measured, document["cold"] = by_case(found), found["cold"]
        document["sources"] = found.get("sources", ["unknown"])
    print(describe_machine(machine))
    print(comparison.describe_targets(machine["isa"]), comparison.HEADER, sep="\n")
    with ceiling_meter(machine) as ceiling_now:
        revision = comparison.source_revision()

        def now(case: Case | CtcCase) -> dict[str, Any]:
            document["sources"] = list(dict.fromkeys([*document["sources"], revision]))
            return measure(case, peers, threads, options, machine, ceiling_now)

        for case in cases:
            if case.name not in measured:
                measured[case.name] = now(case)
        measure_again(measured, cases, again, now)
    document["again"] = bool(again) or bool(path and found.get("again"))
    for key in ("results", "summary", "complaints"):
        document[key] = [record for each in measured.values() for record in each[key]]
    if with_cold and not document["cold"]:
        document["cold"] = measure_cold(peers, quick, document["complaints"])
    return document


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a target is missed, or a peer failed or disagrees with us; 2 for arguments that make no sense.

    A quick run is too short to judge targets by.
    """
    parser = argparse.ArgumentParser(prog="vs_peers.py", description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--peers", metavar="NAME[,NAME]", help=f"only these ({', '.join(NAMES)})")
    parser.add_argument("--no-cold", action="store_true", help="leave out imports and first calls")
    parser.add_argument(
        "--again", metavar="SECONDS", type=float, default=0.0, help="spent on restless cases once more"
    )
    parser.add_argument(
        "--from", dest="path", metavar="FILE", help="an earlier run, in place of measuring all"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="where to write (default: bench/results/<machine>.json)"
    )
    args = parser.parse_args(argv)
    peers, missing = load_peers(args.peers.split(",") if args.peers else None)
    more = [case for case in ctc.CASES if case.targets] if any(peer.NAME == "torch" for peer in peers) else []
    try:
        cases = select_cases(args.filter, quick=args.quick, more=more)
        threads = parse_threads(args.threads)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    options = timing_options(args.quick)
    try:
        document = run(
            cases,
            peers,
            threads,
            options=options,
            quick=args.quick,
            with_cold=not args.no_cold,
            again=args.again,
            path=args.path,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    path = Path(args.json) if args.json else result_path(document["machine"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(str(path), document)
    print(f"written: {path}")
    missed = comparison.missed_targets(document["summary"]) + cold.missed(document["cold"])
    for line in [] if args.quick else missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if document["complaints"] or (missed and not args.quick) else 0


if __name__ == "__main__":
    raise SystemExit(main())
