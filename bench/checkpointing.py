"""Memory and time of training steps with checkpoints in time, beside plain ones, interleaved in one run.

    python bench/checkpointing.py [--threads 1,2] [--every K] [--quick] [--json FILE]

A step is a forward and a backward call over 1000 steps in float32, with gradients of x. Before they are timed, both
must give the same gradients. Memory is what the tape holds at most: the checkpoints and the tape of a chunk, with the
work space of the backward pass. Prints the median times, the spread, and the shares of time and memory; exits 1 where
a gradient is wrong, or checkpoints take more than 1.4 times as long or a tenth of the memory. Run it on an otherwise
idle machine.
"""

from __future__ import annotations

import argparse
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
from fastlstm.layers import LSTM
from fastlstm.layers._tape import Tape

TOLERANCE = 1e-4  # between sums of float32 in two orders, relative to the largest gradient
MOST_TIME, MOST_MEMORY = 1.4, 0.1
STEPS = 1000


@dataclass(frozen=True)
class CheckpointCase:
    """A layer and its batch; the shares are promised where `promised`."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int
    batch: int
    promised: bool = True

    @property
    def name(self) -> str:
        return f"{self.cell} {self.input_size}-{self.hidden_size}x{self.num_layers} B{self.batch}"


CASES = (
    CheckpointCase("lstm", 32, 128, 1, 32),
    CheckpointCase("lstm", 64, 64, 2, 32),
    CheckpointCase("gru", 32, 128, 1, 32),
    CheckpointCase("slstm", 32, 128, 1, 32),
    CheckpointCase("lstm", 32, 128, 1, 1, promised=False),  # few rows a chunk, all weights packed for each
)


class Step:
    """Training steps of one layer on one tape, as a training loop runs them."""

    def __init__(self, case: CheckpointCase, every: int | None) -> None:
        rng = np.random.default_rng(0)
        self.layer = LSTM(
            case.input_size,
            case.hidden_size,
            case.num_layers,
            cell=case.cell,
            checkpoint_every=every,
            random_state=0,
        )
        rows = case.batch * STEPS
        self.x = rng.standard_normal((rows, case.input_size), np.float32)
        self.dy = rng.standard_normal((rows, case.hidden_size), np.float32)
        self.starts = np.arange(case.batch) * STEPS
        self.lengths = np.full(case.batch, STEPS)
        self.tape = Tape()
        self.kept = 0

    def run(self) -> np.ndarray | None:
        self.layer.run_training(self.x, self.starts, self.lengths, tape=self.tape)
        checkpoints = self.tape.checkpoints
        self.kept = 0 if checkpoints is None else checkpoints.nbytes
        dx, _ = self.layer.run_backward(self.tape, self.dy, want_dx=True)
        return dx

    def outputs(self) -> dict[str, np.ndarray]:
        dx = self.run()
        assert dx is not None
        return {"x": dx, "weights": self.layer.flat_grads.copy()}

    @property
    def nbytes(self) -> int:
        """Most that the tape has held, after the first run."""
        return self.kept + self.tape.nbytes


def error_between(first: Step, second: Step) -> float:
    """The largest difference of the gradients, relative to the largest one of each kind."""
    got, want = first.outputs(), second.outputs()
    return max(float(np.abs(got[k] - a).max() / np.abs(a).max()) for k, a in want.items())


def run_case(
    case: CheckpointCase, every: int, threads: Sequence[int], options: dict[str, Any]
) -> list[dict[str, Any]]:
    plain, checkpointed = Step(case, None), Step(case, every)
    records = []
    for n in threads:
        _core.set_num_threads(n)
        error = error_between(checkpointed, plain)
        contenders = [Contender("", n, step.run, _core.set_num_threads) for step in (plain, checkpointed)]
        before, after = time_interleaved(contenders, **options)
        slower, memory = after.median / before.median, checkpointed.nbytes / plain.nbytes
        kept = slower <= MOST_TIME and memory <= MOST_MEMORY
        reached = error <= TOLERANCE and (kept or not case.promised)
        print(
            f"{case.name:20} {n:3d} {format_seconds(before.median):>10} {format_seconds(after.median):>12} "
            f"{(after.q3 - after.q1) / after.median:6.1%} {slower:6.2f} {plain.nbytes / 1e6:9.1f} "
            f"{checkpointed.nbytes / 1e6:9.1f} {memory:7.1%} {error:8.1e}" + ("" if reached else "  NO"),
            flush=True,
        )
        records.append(
            {"case": case.name, "threads": n, "every": every, "time_ratio": slower, "memory_ratio": memory}
            | {"bytes": [plain.nbytes, checkpointed.nbytes], "error": error, "promised": case.promised}
            | {"plain": asdict(before), "checkpointed": asdict(after), "reached": reached}
        )
    return records


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="checkpointing.py", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1", metavar="N[,N]")
    parser.add_argument("--every", type=int, default=32, metavar="K", help="steps of a chunk (default: 32)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the first case alone")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    try:
        threads = parse_threads(args.threads)
    except ValueError as error:
        parser.error(str(error))
    if args.every < 1:
        parser.error(f"--every must be at least 1, got {args.every}")
    machine = machine_record()
    print(describe_machine(machine))
    print(
        f"{f'case, {STEPS} steps':20} thr {'plain':>10} {'checkpointed':>12} {'IQR':>6}  times {'MB':>9} {'MB':>9} "
        f"{'share':>7} {'error':>8}"
    )
    records = [
        record
        for case in CASES[: 1 if args.quick else None]
        for record in run_case(case, args.every, threads, timing_options(args.quick))
    ]
    if args.json:
        write_json(args.json, {"schema": 1, "machine": machine, "threads": threads, "results": records})
    return 0 if all(record["reached"] for record in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())
