"""What a process on one of the processors costs: our calls and the peers' on all of them, with it and without.

    python bench/busy_neighbour.py [--filter REGEX] [--peers torch,onnxruntime] [--quick] [--json FILE]

Everyone is timed on all usable processors, by turns, and then once more while the process loops on the last of them.
It takes half of that one, so work that goes to whoever is free takes n / (n - 1/2) times as long on n processors, and
work in equal shares twice as long. Prints the medians and the time with the process over the time without. Run it on
an otherwise idle machine of two processors or more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from peers import load_peers
from vs_peers import peer_contenders

from fastlstm.benchmark import (
    Case,
    add_common_arguments,
    describe_machine,
    format_seconds,
    machine_record,
    make_problem,
    our_contenders,
    select_cases,
    time_interleaved,
    timing_options,
    write_json,
)

WANTED = "^(infer|train)-100x(32x64x128|128x64x256)$"


@contextmanager
def busy(processor: int) -> Iterator[None]:
    """A process that loops on that processor."""
    loop = f"import os\nos.sched_setaffinity(0, {{{processor}}})\nprint(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def run_case(case: Case, peers: Sequence[ModuleType], timing: dict[str, Any]) -> list[dict[str, Any]]:
    """A record for each contender: medians in seconds without and with the process, and their ratio."""
    processors = sorted(os.sched_getaffinity(0))
    problem, complaints = make_problem(case), []
    contenders = our_contenders(problem, [len(processors)])
    contenders += peer_contenders(problem, peers, [len(processors)], complaints)
    for complaint in complaints:
        print(f"  ! {case.name}: {complaint}", file=sys.stderr)
    alone = time_interleaved(contenders, **timing)
    with busy(processors[-1]):
        beside = time_interleaved(contenders, **timing)
    return [
        {"case": case.name, "contender": who.name, "threads": who.threads}
        | {"alone_s": before.median, "beside_s": after.median, "ratio": after.median / before.median}
        for who, before, after in zip(contenders, alone, beside, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """0; 2 for arguments that make no sense."""
    parser = argparse.ArgumentParser(prog="busy_neighbour.py", description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--peers", metavar="NAME[,NAME]", help="only these")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    try:
        cases = select_cases(args.filter or WANTED)
    except ValueError as error:
        parser.error(str(error))
    if args.threads:
        parser.error("the number of threads is that of the usable processors")
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    peers, _ = load_peers(args.peers.split(",") if args.peers else None)
    timing = timing_options(args.quick) | {"patience": 0.0}
    machine = machine_record()
    print(describe_machine(machine))
    print(f"{'case':28} {'who':20} {'alone':>10} {'beside':>10}  ratio")
    results = []
    for case in cases:
        for record in run_case(case, peers, timing):
            results.append(record)
            print(
                f"{record['case']:28} {record['contender']:20} {format_seconds(record['alone_s']):>10} "
                f"{format_seconds(record['beside_s']):>10} {record['ratio']:6.2f}",
                flush=True,
            )
    if args.json:
        write_json(args.json, {"schema": 1, "machine": machine, "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
