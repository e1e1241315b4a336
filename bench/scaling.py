"""How the time of a layer grows with steps, batch, units, layers and threads, beside how its work grows.

    python bench/scaling.py [--kind infer,train] [--axis time,hidden] [--threads 1,2] [--quick] [--json FILE]

One dimension of the layer 100 x 32 x 64 x 128 (time x batch x input x hidden) is varied at a time, all its values in
turns in one run. The exponent e of time ~ value^e is the slope of the least-squares line through the logarithms. The
exponent of the work is that of the multiply-adds a thread has to do: an axis whose time has the smaller one gets
cheaper per product as it grows. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm.benchmark import (
    Case,
    describe_machine,
    format_seconds,
    machine_record,
    make_problem,
    our_contenders,
    parse_threads,
    time_interleaved,
    timing_options,
    timing_record,
    write_json,
)

BASE = Case("infer", 100, 32, 64, 128)
KINDS = ("infer", "train")
AXES: dict[str, tuple[int, ...]] = {
    "time": (25, 50, 100, 200, 400),
    "batch": (1, 4, 16, 64, 256),
    "hidden_size": (32, 64, 128, 256, 512),
    "num_layers": (1, 2, 3, 4),
}
THREADS = "threads"


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the least-squares line of log(seconds) over log(values)."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def points(kind: str, axis: str, values: Sequence[int]) -> list[tuple[Case, int]]:
    """The case and the number of threads of each value of an axis."""
    base = replace(BASE, kind=kind)
    if axis == THREADS:
        return [(base, n) for n in values]
    return [(replace(base, **{axis: value}), 1) for value in values]


def run_axis(kind: str, axis: str, values: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """Times of all values of an axis, and the exponents of time and work."""
    cases = points(kind, axis, values)
    problems = [make_problem(case) for case, _ in cases]
    contenders = [our_contenders(problem, [n])[0] for problem, (_, n) in zip(problems, cases, strict=True)]
    timings = time_interleaved(contenders, **options)
    work = [case.flops(problem.steps) / n for problem, (case, n) in zip(problems, cases, strict=True)]
    rows = [
        {"value": value, **timing_record(contender, timing)}
        for value, contender, timing in zip(values, contenders, timings, strict=True)
    ]
    return {
        "kind": kind,
        "axis": axis,
        "points": rows,
        "exponent": exponent(values, [timing.median for timing in timings]),
        "work_exponent": exponent(values, work),
    }


HEADER = f"{'kind':6} {'axis':12} {'exponent':>8} {'of work':>8}  value: time"


def print_axis(result: dict[str, Any]) -> None:
    times = ", ".join(f"{point['value']}: {format_seconds(point['median_s'])}" for point in result["points"])
    print(
        f"{result['kind']:6} {result['axis']:12} {result['exponent']:8.2f} {result['work_exponent']:8.2f}  {times}",
        flush=True,
    )


def _chosen(text: str | None, known: Sequence[str], what: str) -> list[str]:
    names = list(known) if text is None else text.split(",")
    if not set(names) <= set(known):
        raise ValueError(f"{what} must be of {', '.join(known)}; got {text!r}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scaling.py", description=__doc__.splitlines()[0])
    parser.add_argument("--kind", metavar="NAME[,NAME]", help=f"only these ({', '.join(KINDS)})")
    parser.add_argument("--axis", metavar="NAME[,NAME]", help=f"only these ({', '.join((*AXES, THREADS))})")
    parser.add_argument(
        "--threads", metavar="N[,N]", help="values of that axis (default: 1 and all usable cores)"
    )
    parser.add_argument("--quick", action="store_true", help="the three smallest values, fewer repetitions")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    try:
        kinds, axes = _chosen(args.kind, KINDS, "kind"), _chosen(args.axis, (*AXES, THREADS), "axis")
        threads = parse_threads(args.threads)
    except ValueError as error:
        parser.error(str(error))
    values = {name: each[: 3 if args.quick else None] for name, each in AXES.items()}
    values |= {THREADS: tuple(threads)} if len(threads) > 1 else {}
    machine = machine_record()
    print(describe_machine(machine), HEADER, sep="\n")
    results = []
    for kind in kinds:
        for axis in (name for name in axes if name in values):
            results.append(run_axis(kind, axis, values[axis], timing_options(args.quick)))
            print_axis(results[-1])
    if args.json:
        write_json(args.json, {"schema": 2, "machine": machine, "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
