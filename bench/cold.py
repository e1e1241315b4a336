"""How long a fresh process takes to import a library, to build a layer and to run it for the first time.

    python bench/cold.py [--peers torch,openvino] [--case NAME] [--quick] [--json FILE]

Ours and the peers in turns, on one thread, each time in a new process; medians. A second call is there to compare
the first one with. ``import fastlstm`` imports its parts on first use; what the layers need counts as building.
Exits 1 where a process fails or ``import fastlstm`` takes longer than 0.15 s.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

OURS = "fastlstm"
MOST_IMPORT_SECONDS = 0.15
CASE = "infer-100x1x64x128"
COLUMNS = {"import_s": "import", "build_s": "build", "first_s": "first call", "second_s": "second call"}


# ------------------------------------------------------------------------------ the fresh process


def _seconds(function: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def measure_here(library: str, case_name: str) -> dict[str, float]:
    """Seconds of each column, in a process that has imported nothing yet."""
    times = {"import_s": _seconds(importlib.import_module, library)[0]}
    put_off = _seconds(importlib.import_module, "fastlstm.layers")[0] if library == OURS else 0.0
    from fastlstm.benchmark import make_problem, our_contenders, select_cases

    problem = make_problem(next(case for case in select_cases() if case.name == case_name))
    if library == OURS:
        times["build_s"], contenders = _seconds(our_contenders, problem, [1])
    else:
        peer = importlib.import_module(f"peers.{library}_peer")
        times["build_s"], contenders = _seconds(peer.contenders, problem, 1)
    times["build_s"] += put_off
    if contenders:
        contenders[0].use_threads(1)
        times["first_s"] = _seconds(contenders[0].run)[0]
        times["second_s"] = _seconds(contenders[0].run)[0]
    return times


# ------------------------------------------------------------------------------------ the parent


def _in_fresh_process(library: str, case_name: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", library, "--case", case_name]
    one_thread = os.environ | {"PJRT_NPROC": "1"}  # for JAX, which takes no number later
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=one_thread)
    if done.returncode != 0:
        raise RuntimeError(f"{library}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(libraries: Sequence[str], repetitions: int, case_name: str = CASE) -> list[dict[str, Any]]:
    """A record for each library, medians over fresh processes in turns; a library that fails raises RuntimeError."""
    found: dict[str, list[dict[str, float]]] = {library: [] for library in libraries}
    for _ in range(repetitions):
        for library in libraries:
            found[library].append(_in_fresh_process(library, case_name))
    return [
        {"library": library, "case": case_name, "repetitions": repetitions}
        | {key: statistics.median(times[key] for times in rounds) for key in rounds[0]}
        for library, rounds in found.items()
    ]


def missed(records: Sequence[dict[str, Any]]) -> list[str]:
    """A line if importing us takes too long."""
    return [
        f"import {OURS}: {record['import_s']:.3f} s of at most {MOST_IMPORT_SECONDS} s"
        for record in records
        if record["library"] == OURS and record["import_s"] > MOST_IMPORT_SECONDS
    ]


def print_table(records: Sequence[dict[str, Any]]) -> None:
    from fastlstm.benchmark import format_seconds

    print(f"{'fresh process, one thread':26}" + "".join(f"{title:>14}" for title in COLUMNS.values()))
    for record in records:
        cells = (format_seconds(record[key]) if key in record else "-" for key in COLUMNS)
        print(f"{record['library']:26}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def repetitions(quick: bool) -> int:
    return 1 if quick else 3


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cold.py", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", metavar="NAME[,NAME]", help="only these (default: all that are installed)")
    parser.add_argument("--case", default=CASE, help=f"what is called first (default: {CASE})")
    parser.add_argument("--quick", action="store_true", help="one process each")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    parser.add_argument("--measure", metavar="LIBRARY", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure_here(args.measure, args.case)))
        return 0
    from peers import load_peers

    from fastlstm.benchmark import describe_machine, machine_record, write_json

    peers, _ = load_peers(args.peers.split(",") if args.peers else None)
    machine = machine_record()
    print(describe_machine(machine))
    try:
        records = measure([OURS, *(peer.NAME for peer in peers)], repetitions(args.quick), args.case)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print_table(records)
    if args.json:
        write_json(args.json, {"schema": 2, "machine": machine, "cold": records})
    for line in missed(records):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed(records) else 0


if __name__ == "__main__":
    raise SystemExit(main())
