"""CTC loss and gradient beside torch, interleaved in one run.

    python bench/ctc.py [--threads 1,2] [--quick] [--json FILE]

Log-probabilities of a random network in float32. Both sides return the losses and the gradient; before
they are timed, ours must agree to 1e-5 with torch in float64, and the error of either is printed. Prints
the median, its spread and the ratio torch / fastlstm; exits 1 where ours is wrong or the target is missed.
Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.benchmark import (
    Contender,
    describe_machine,
    format_seconds,
    machine_record,
    parse_threads,
    time_interleaved,
    timing_options,
    write_json,
)
from fastlstm.losses import ctc_loss

TOLERANCE = 1e-5


@dataclass(frozen=True)
class CtcCase:
    """T steps, B sequences, C classes, L labels; `target` is the ratio to reach."""

    time: int
    batch: int
    classes: int
    labels: int
    ragged: bool = False
    target: float | None = None

    @property
    def name(self) -> str:
        return f"{self.time}x{self.batch}x{self.classes}x{self.labels}" + ("-ragged" if self.ragged else "")


CASES = (
    CtcCase(200, 32, 40, 30, target=4.0),
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


Outputs = dict[str, np.ndarray]


def ours(arrays: Sequence[np.ndarray], threads: int) -> Contender:
    def outputs() -> Outputs:
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

    def outputs() -> Outputs:
        loss, gradient = (tensor.detach().numpy() for tensor in run())
        real = (np.arange(arrays[0].shape[1]) < arrays[2][:, None])[..., None]
        return {"loss": loss, "gradient": (gradient.swapaxes(0, 1) - np.exp(arrays[0])) * real}

    return Contender("torch", threads, run, torch.set_num_threads, outputs)


def error_of(contender: Contender, truth: Outputs) -> float:
    """The largest difference from the truth, relative to the largest value of each output."""
    found = contender.outputs() if contender.outputs else {}
    return max(float(np.abs(found[k] - a).max() / np.abs(a).max()) for k, a in truth.items())


def run_case(case: CtcCase, threads: Sequence[int], options: dict[str, Any]) -> list[dict[str, Any]]:
    arrays = make_arrays(case)
    contenders = [build(arrays, n) for n in threads for build in (ours, torch_contender)]
    exact = torch_contender((arrays[0].astype(np.float64), *arrays[1:]), 1)
    truth = exact.outputs() if exact.outputs else {}
    error, their_error = (error_of(contender, truth) for contender in contenders[:2])
    timings = time_interleaved(contenders, **options)
    records = []
    for k, n in enumerate(threads):
        mine, theirs = timings[2 * k : 2 * k + 2]
        ratio = theirs.median / mine.median
        reached = error <= TOLERANCE and (case.target is None or ratio >= case.target)
        records.append(
            {"case": case.name, "threads": n, "target": case.target, "ratio": ratio}
            | {
                "error": error,
                "torch_error": their_error,
                "ours": asdict(mine),
                "torch": asdict(theirs),
                "reached": reached,
            }
        )
        spread = (mine.q3 - mine.q1) / mine.median
        print(
            f"{case.name:22} {n:3d} {format_seconds(mine.median):>10} {spread:6.1%} "
            f"{format_seconds(theirs.median):>10} {ratio:6.1f} {case.target or '-':>6} {error:8.1e} {their_error:8.1e}"
            + ("" if reached else "  NO"),
            flush=True,
        )
    return records


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ctc.py", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1", metavar="N[,N]")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the first case alone")
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
    print(describe_machine(machine))
    print(
        f"{'case (T x B x C x L)':22} thr {'fastlstm':>10} {'IQR':>6} {'torch':>10}  ratio target    error of torch"
    )
    records = [
        record
        for case in CASES[: 1 if args.quick else None]
        for record in run_case(case, threads, timing_options(args.quick))
    ]
    if args.json:
        write_json(args.json, {"schema": 1, "machine": machine, "threads": threads, "results": records})
    return 0 if all(record["reached"] for record in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())
