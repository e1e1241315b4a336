"""CTC loss and gradient beside torch, interleaved in one run.

    python bench/ctc.py [--threads 1,2] [--quick] [--json FILE]

Log-probabilities of a random network in float32. Both sides return the losses and the gradient. Before they
are timed, ours must agree with torch in float64 to 1e-5, and torch in float32 to a rough 5 %; the error of
either is printed. Prints the median, its spread and the ratio torch / fastlstm; exits 1 where a result is wrong
or the target is missed. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import comparison
import numpy as np

from fastlstm import _core
from fastlstm.benchmark import (
    Contender,
    Target,
    describe_machine,
    format_seconds,
    machine_record,
    parse_threads,
    spread_of,
    time_interleaved,
    timing_options,
    timing_record,
    write_json,
)
from fastlstm.losses import ctc_loss

# torch adds logarithms in float32 and loses digits with each step: 3 % after 5000.
TOLERANCES = {"fastlstm": 1e-5, "torch": 5e-2}


@dataclass(frozen=True)
class CtcCase:
    """T steps, B sequences, C classes, L labels; `quick` ones are part of the short selection."""

    time: int
    batch: int
    classes: int
    labels: int
    ragged: bool = False
    quick: bool = False
    targets: tuple[Target, ...] = ()

    @property
    def name(self) -> str:
        shape = f"{self.time}x{self.batch}x{self.classes}x{self.labels}"
        return f"ctc-{shape}" + ("-ragged" if self.ragged else "")


CASES = (
    CtcCase(200, 32, 40, 30, quick=True, targets=(Target(4.0, 4.0),)),
    CtcCase(200, 32, 40, 30, ragged=True),
    CtcCase(100, 1, 30, 20),
    CtcCase(1000, 16, 40, 150),
    CtcCase(5000, 2, 40, 800),
    CtcCase(200, 16, 1000, 30),
)


def make_arrays(case: CtcCase) -> tuple[np.ndarray, ...]:
    """log_probs, targets, input_lengths, target_lengths."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(case.batch, case.time, case.classes))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    targets = rng.integers(1, case.classes, size=(case.batch, case.labels))
    lengths, labels = np.full(case.batch, case.time), np.full(case.batch, case.labels)
    if case.ragged:
        lengths = rng.integers(case.time // 2, case.time + 1, size=case.batch)
        labels = rng.integers(case.labels // 4, case.labels + 1, size=case.batch)
    return log_probs.astype(np.float32), targets, lengths, labels


def ours(arrays: Sequence[np.ndarray], threads: int) -> Contender:
    def outputs() -> dict[str, np.ndarray]:
        loss, gradient = ctc_loss(*arrays)
        return {"loss": loss, "gradient": gradient}

    return Contender("fastlstm", threads, lambda: ctc_loss(*arrays), _core.set_num_threads, outputs)


def torch_contender(arrays: Sequence[np.ndarray], threads: int) -> Contender:
    """torch in its own layout, (time, batch, classes); its gradient has exp(log_probs) added."""
    import torch

    log_probs = torch.from_numpy(np.ascontiguousarray(arrays[0].swapaxes(0, 1))).requires_grad_()
    targets, lengths, labels = (torch.from_numpy(array) for array in arrays[1:])

    def run() -> tuple[Any, Any]:
        loss = torch.nn.functional.ctc_loss(log_probs, targets, lengths, labels, reduction="none")
        return loss, torch.autograd.grad(loss.sum(), log_probs)[0]

    def outputs() -> dict[str, np.ndarray]:
        loss, gradient = (tensor.detach().numpy() for tensor in run())
        real = (np.arange(arrays[0].shape[1]) < arrays[2][:, None])[..., None]
        return {"loss": loss, "gradient": (gradient.swapaxes(0, 1) - np.exp(arrays[0])) * real}

    return Contender("torch", threads, run, torch.set_num_threads, outputs)


def run_case(
    case: CtcCase, threads: Sequence[int], options: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Result records of both for all numbers of threads, and complaints about wrong results."""
    arrays = make_arrays(case)
    truth = comparison.outputs_of(torch_contender((arrays[0].astype(np.float64), *arrays[1:]), 1))
    contenders = [build(arrays, n) for n in threads for build in (ours, torch_contender)]
    errors = [comparison.error_of(comparison.outputs_of(contender), truth) for contender in contenders]
    complaints = [
        f"{case.name}: {contender.name}, {contender.threads} threads: off by {error:.1e} of the largest value"
        for contender, error in zip(contenders, errors, strict=True)
        if not error <= TOLERANCES[contender.name]
    ]
    shape = asdict(case)
    for key in ("targets", "quick"):
        del shape[key]
    timings = time_interleaved(contenders, **options)
    records = [
        {"case": case.name, "kind": "ctc", **shape, **timing_record(contender, timing), "error": error}
        for contender, timing, error in zip(contenders, timings, errors, strict=True)
    ]
    return records, complaints


HEADER = f"{'case (T x B x C x L)':26} thr {'fastlstm':>10} {'IQR':>6} {'torch':>10}  ratio target    error of torch"


def print_row(summary: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    mine, theirs = records
    spread = spread_of(mine)
    target = next((f"{target['target']:g}" for target in summary["targets"]), "-")
    reached = all(target["reached"] for target in summary["targets"])
    print(
        f"{summary['case']:26} {summary['threads']:3d} {format_seconds(mine['median_s']):>10} {spread:6.1%} "
        f"{format_seconds(theirs['median_s']):>10} {summary['ratio']:6.1f} {target:>6} "
        f"{mine['error']:8.1e} {theirs['error']:8.1e}" + ("" if reached else "  NO"),
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ctc.py", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1", metavar="N[,N]")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the short selection")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    try:
        threads = parse_threads(args.threads)
    except ValueError as error:
        parser.error(str(error))
    try:
        import torch
    except ImportError:
        print("torch is not installed", file=sys.stderr)
        return 1
    machine = machine_record()
    machine["versions"]["torch"] = torch.__version__
    print(describe_machine(machine), HEADER, sep="\n")
    document: dict[str, Any] = {"schema": 2, "machine": machine, "threads": threads}
    document |= {"results": [], "summary": [], "complaints": []}
    for case in [case for case in CASES if case.quick or not args.quick]:
        records, complaints = run_case(case, threads, timing_options(args.quick))
        for n in threads:
            rows = [record for record in records if record["threads"] == n]
            document["summary"].append(comparison.summarise(case, rows, machine["isa"]))
            print_row(document["summary"][-1], rows)
        document["results"] += records
        document["complaints"] += complaints
    if args.json:
        write_json(args.json, document)
    problems = document["complaints"] + comparison.missed_targets(document["summary"])
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
