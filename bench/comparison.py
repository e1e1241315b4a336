"""What the comparisons with other libraries have in common: who agrees with us, ratios, targets, a printed row."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from peers import PEER_PRECISION

from fastlstm.benchmark import Contender, Target, format_seconds, spread_of

OURS = "fastlstm"
PADDED = "torch padded"
# Of the largest value. Ours at "high" promises 1e-5 a product, which some hundred steps add to.
TOLERANCES = {"float32": 1e-4, "high": 1e-3, "bfloat16": 5e-2, "int8": 0.1}
TOLERANCE = TOLERANCES["float32"]

Outputs = Mapping[str, np.ndarray]


class Comparable(Protocol):
    """What a row is about: a case of the table, or one of CTC."""

    @property
    def name(self) -> str: ...

    @property
    def targets(self) -> tuple[Target, ...]: ...


def source_revision() -> str:
    """The commit that is measured, with "-dirty" where files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ------------------------------------------------------------------------------------ agreement


def error_of(found: Outputs, truth: Outputs) -> float:
    """The largest difference of what both have, relative to the largest value of each array; NaN for NaN."""
    shared = truth.keys() & found.keys()
    return max(
        (float(np.abs(found[k] - truth[k]).max() / np.abs(truth[k]).max()) for k in shared), default=0.0
    )


def disagreement(truth: Outputs, found: Outputs, tolerance: float = TOLERANCE) -> str | None:
    """What differs in shape, or by more than `tolerance` of the largest value; None if nothing does."""
    for name in truth.keys() & found.keys():
        if truth[name].shape != found[name].shape:
            return f"{name}: shape {found[name].shape} instead of {truth[name].shape}"
        error = error_of({name: found[name]}, {name: truth[name]})
        if not error <= tolerance:
            return f"{name}: off by {error:.1e} of the largest value"
    return None


def outputs_of(contender: Contender) -> dict[str, np.ndarray]:
    """What `contender` computes, with its number of threads; empty where it has nothing to compare."""
    contender.use_threads(contender.threads)
    return contender.outputs() if contender.outputs else {}


def agreeing(
    contenders: Sequence[Contender], truth: Outputs, precision: str, complaints: list[str]
) -> list[Contender]:
    """Ours and those peers whose outputs are near enough to `truth`; whoever is not is complained about."""
    kept = []
    for contender in contenders:
        ours = contender.name == OURS
        tolerance = TOLERANCES[precision if ours else PEER_PRECISION[precision]]
        problem = disagreement(truth, outputs_of(contender), tolerance)
        if problem:
            complaints.append(f"{contender.name}, {contender.threads} threads: {problem}")
        if ours or problem is None:
            kept.append(contender)
    return kept


# ---------------------------------------------------------------------------------- the summary


def summarise(
    case: Comparable,
    records: Sequence[dict[str, Any]],
    isa: str,
    *,
    fill_rate: float = 1.0,
    bound: float | None = None,
) -> dict[str, Any]:
    """Our time, the best peer's, ratio, targets and share of the ceiling, for one number of threads.

    `fill_rate` is the share of real steps in the padded batch, `bound` the least seconds that the machine allows.
    """
    seconds = {record["contender"]: record["median_s"] for record in records}
    ours = seconds.pop(OURS)
    best = min(seconds, key=seconds.__getitem__, default=None)
    opponents = dict(seconds)
    if best:
        opponents["best peer"] = seconds[best]
    if PADDED in seconds:
        opponents[f"{PADDED} x fill rate"] = seconds[PADDED] * fill_rate
    return {
        "case": case.name,
        "threads": records[0]["threads"],
        "ours_s": ours,
        "best_peer": best,
        "best_peer_s": seconds.get(best),
        "ratio": opponents["best peer"] / ours if best else None,
        "targets": _targets(case.targets, opponents, ours, isa),
        "bound_s": bound,
        "share_of_ceiling": bound / ours if bound else None,
    }


def _targets(
    targets: Sequence[Target], opponents: Mapping[str, float], ours: float, isa: str
) -> list[dict[str, Any]]:
    found = []
    for target in targets:
        wanted = target.amx if isa == "amx" else target.avx512
        if wanted is None or target.opponent not in opponents:
            continue
        ratio = opponents[target.opponent] / ours
        found.append(
            {"opponent": target.opponent, "target": wanted, "ratio": ratio, "reached": ratio >= wanted}
        )
    return found


def describe_targets(isa: str) -> str:
    """Which of the ratios that a case is to reach hold for the instruction set in use."""
    meant_for = "AMX" if isa == "amx" else "AVX-512 without AMX"
    borrowed = "" if isa in ("amx", "avx512") else f": there are none for {isa}"
    return f"targets: the ratios set for {meant_for}{borrowed}"


def missed_targets(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each ratio that falls short."""
    return [
        f"{summary['case']}, {summary['threads']} threads, {target['opponent']}: "
        f"{target['ratio']:.2f} of {target['target']:g}"
        for summary in summaries
        for target in summary["targets"]
        if not target["reached"]
    ]


HEADER = (
    f"{'case':42} {'thr':>3} {'fastlstm':>10} {'IQR':>6} {'best peer':>10} {'which':20} {'ratio':>6} "
    f"{'ceiling':>7}  target"
)


def print_summary(summary: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    ours = next(record for record in records if record["contender"] == OURS)
    spread = spread_of(ours)
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
