"""fastlstm beside torch, onnxruntime and openvino, interleaved in one run.

    python bench/vs_peers.py [--threads 1,2] [--filter REGEX] [--quick] [--peers torch,openvino]

Before a peer is timed its numbers are compared with ours: outputs, states or weight gradients must
agree to 1e-4 of their largest value. Prints a table and writes bench/results/<machine>.json, from
which bench/readme_table.py makes the table in the README. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ceilings
import numpy as np
from peers import load_peers

from fastlstm.benchmark import (
    Case,
    Contender,
    Problem,
    add_common_arguments,
    describe_machine,
    format_seconds,
    machine_record,
    make_problem,
    our_contenders,
    parse_threads,
    result_record,
    select_cases,
    time_interleaved,
    timing_options,
    write_json,
)

TOLERANCE = 1e-4
RESULTS = Path(__file__).with_name("results")
PADDED = "torch padded"


# --------------------------------------------------------------------------------- one case


def disagreement(reference: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> str | None:
    """What differs by more than TOLERANCE of the largest value; None if nothing does."""
    for name in reference.keys() & other.keys():
        ours, theirs = reference[name], other[name]
        if ours.shape != theirs.shape:
            return f"{name}: shape {theirs.shape} instead of {ours.shape}"
        error = float(np.abs(ours - theirs).max() / np.abs(ours).max())
        if not error <= TOLERANCE:
            return f"{name}: off by {error:.1e} of the largest value"
    return None


def agreeing(ours: Sequence[Contender], peers: Sequence[Contender], complaints: list[str]) -> list[Contender]:
    """`ours` and those `peers` whose outputs agree with them; the others are complained about."""
    reference = None
    kept = []
    for contender in (*ours, *peers):
        contender.use_threads(contender.threads)
        outputs = contender.outputs() if contender.outputs else {}
        reference = outputs if reference is None else reference
        problem = disagreement(reference, outputs)
        if problem:
            complaints.append(f"{contender.name}, {contender.threads} threads: {problem}")
        if problem is None or contender in ours:
            kept.append(contender)
    return kept


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
    ours = our_contenders(problem, threads)
    contenders = agreeing(ours, peer_contenders(problem, peers, threads, complaints), complaints)
    timings = time_interleaved(contenders, **options)
    records = [result_record(problem, c, t) for c, t in zip(contenders, timings, strict=True)]
    return records, [f"{case.name}: {complaint}" for complaint in complaints]


# ------------------------------------------------------------------------------- the summary


def summarise(
    case: Case, records: Sequence[dict[str, Any]], machine: dict[str, Any], ceiling: dict[str, Any] | None
) -> dict[str, Any]:
    """Our time, the best peer's, ratio, targets and share of the ceiling, for one number of threads."""
    seconds = {record["contender"]: record["median_s"] for record in records}
    ours = seconds.pop("fastlstm")
    best = min(seconds, key=seconds.__getitem__, default=None)
    steps = records[0]["steps"]
    opponents = dict(seconds)
    if best:
        opponents["best peer"] = seconds[best]
    if PADDED in seconds:
        opponents[f"{PADDED} x fill rate"] = seconds[PADDED] * steps / (case.time * (case.rows or case.batch))
    bound = ceilings.lower_bound(case, steps, machine, ceiling) if ceiling else None
    return {
        "case": case.name,
        "threads": records[0]["threads"],
        "ours_s": ours,
        "best_peer": best,
        "best_peer_s": seconds.get(best),
        "ratio": opponents["best peer"] / ours if best else None,
        "targets": _targets(case, opponents, ours, machine["isa"]),
        "bound_s": bound,
        "share_of_ceiling": bound / ours if bound else None,
    }


def _targets(case: Case, opponents: dict[str, float], ours: float, isa: str) -> list[dict[str, Any]]:
    found = []
    for target in case.targets:
        wanted = target.amx if isa == "amx" else target.avx512
        if wanted is None or target.opponent not in opponents:
            continue
        ratio = opponents[target.opponent] / ours
        found.append(
            {
                "opponent": target.opponent,
                "target": wanted,
                "ratio": ratio,
                "reached": ratio >= wanted,
            }
        )
    return found


HEADER = (
    f"{'case':42} {'thr':>3} {'fastlstm':>10} {'IQR':>6} {'best peer':>10} {'which':20} {'ratio':>6} "
    f"{'ceiling':>7}  target"
)


def print_summary(summary: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    ours = next(record for record in records if record["contender"] == "fastlstm")
    spread = (ours["q3_s"] - ours["q1_s"]) / ours["median_s"]
    peer, ratio, share = summary["best_peer_s"], summary["ratio"], summary["share_of_ceiling"]
    targets = "; ".join(
        f"{'ok' if t['reached'] else 'NO'} {t['ratio']:.2f} / {t['target']:g}"
        + (f" ({t['opponent']})" if t["opponent"] != "best peer" else "")
        for t in summary["targets"]
    )
    print(
        f"{summary['case']:42} {summary['threads']:3d} {format_seconds(summary['ours_s']):>10} {spread:6.1%} "
        f"{format_seconds(peer) if peer else '-':>10} {summary['best_peer'] or '-':20} "
        f"{f'{ratio:.2f}' if ratio else '-':>6} {f'{share:.0%}' if share else '-':>7}  {targets}",
        flush=True,
    )


# ------------------------------------------------------------------------------- the command


def result_path(machine: dict[str, Any]) -> Path:
    """bench/results/<cpu>-<usable CPUs>cpus-<isa>.json"""
    text = f"{machine['cpu']} {machine['usable_cpus']}cpus {machine['isa']}"
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") + ".json")


def measure_ceilings(threads: Sequence[int], machine: dict[str, Any], quick: bool) -> dict[str, Any]:
    try:
        return ceilings.measure(threads, machine["caches"], seconds=0.02 if quick else 0.1)
    except (RuntimeError, OSError) as error:
        print(f"no ceilings: {error}", file=sys.stderr)
        return {}


def run(
    cases: Sequence[Case],
    peers: Sequence[ModuleType],
    threads: Sequence[int],
    *,
    options: dict[str, Any],
    quick: bool,
) -> dict[str, Any]:
    """Runs everything, printing as it goes, and returns the JSON document."""
    machine = machine_record()
    machine["versions"] |= {peer.NAME: peer.version() for peer in peers}
    print(describe_machine(machine))
    limits = measure_ceilings(threads, machine, quick)
    for count, ceiling in limits.items():
        print(f"ceilings, {count} threads: GFLOP/s {ceiling['gflops']}, read GB/s {ceiling['read_gb_s']}")
    print(HEADER)
    document: dict[str, Any] = {"schema": 1, "machine": machine, "threads": list(threads), "ceilings": limits}
    document |= {"results": [], "summary": [], "complaints": []}
    for case in cases:
        records, complaints = run_case(case, peers, threads, options)
        for n in threads:
            rows = [record for record in records if record["threads"] == n]
            document["summary"].append(summarise(case, rows, machine, limits.get(str(n))))
            print_summary(document["summary"][-1], rows)
        document["results"] += records
        document["complaints"] += complaints
        for complaint in complaints:
            print(f"  ! {complaint}", file=sys.stderr)
    return document


def missed_targets(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each ratio that falls short."""
    return [
        f"{summary['case']}, {summary['threads']} threads, {target['opponent']}: "
        f"{target['ratio']:.2f} of {target['target']:g}"
        for summary in summaries
        for target in summary["targets"]
        if not target["reached"]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a target is missed, or a peer failed or disagrees with us; 2 for arguments that make no sense.

    A quick run is too short to judge targets by.
    """
    parser = argparse.ArgumentParser(prog="vs_peers.py", description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--peers", metavar="NAME[,NAME]", help="only these (torch, onnxruntime, openvino)")
    parser.add_argument(
        "--json", metavar="FILE", help="where to write (default: bench/results/<machine>.json)"
    )
    args = parser.parse_args(argv)
    try:
        cases = select_cases(args.filter, quick=args.quick)
        if args.list:
            print("\n".join(case.name for case in cases))
            return 0
        threads = parse_threads(args.threads)
    except ValueError as error:
        parser.error(str(error))
    peers, missing = load_peers(args.peers.split(",") if args.peers else None)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    document = run(cases, peers, threads, options=timing_options(args.quick), quick=args.quick)
    path = Path(args.json) if args.json else result_path(document["machine"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(str(path), document)
    print(f"written: {path}")
    missed = [] if args.quick else missed_targets(document["summary"])
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if document["complaints"] or missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
