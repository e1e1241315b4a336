"""Peak memory of a training step, and growth over many calls with varying shapes, ours beside torch's.

    python bench/memory.py [--calls 10000] [--quick] [--json FILE]

Each number comes from a process of its own, on one thread. The peak is the most that three steps (forward and
backward) add to what the process holds once the libraries are imported and the weights, the batch and the gradient
of the output are there. The growth is what the process holds after the last call beyond what it held after 2000 calls
to warm up, of which the first has the largest shape; the calls are training steps on batches of 1 to 16 sequences
of 1 to 60 steps. Exits 1 where ours grows by more than 1 MiB. Linux only: the numbers are the kernel's (/proc/self).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.benchmark import (
    Case,
    Contender,
    describe_machine,
    machine_record,
    make_problem,
    our_contenders,
    write_json,
)

LIBRARIES = ("fastlstm", "torch")
MOST_GROWTH = 1 << 20
CASES = (
    Case("train", 100, 32, 64, 128, quick=True),
    Case("train", 100, 128, 64, 256),
    Case("train", 50, 64, 512, 1024),
    Case("train", 100, 32, 64, 128, num_layers=2, bidirectional=True),
    Case("train", 400, 64, 40, 128, ragged=True, quick=True),
    Case("train", 1000, 32, 32, 128),
)
WARM_UP = 2000
INPUT_SIZE, HIDDEN_SIZE, MOST_STEPS, MOST_SEQUENCES = 16, 32, 60, 16


# ------------------------------------------------------------------------------ the fresh process


def _kernel_bytes(file: str, key: str) -> int:
    """A line of /proc/self/<file>, in bytes."""
    lines = Path("/proc/self", file).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _held() -> int:
    """What the process holds now, counted page by page, which VmRSS is not."""
    return _kernel_bytes("smaps_rollup", "Rss")


def _reset_peak() -> None:
    """Lets VmHWM start again from what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _contender(library: str, case: Case) -> Contender:
    """The library's training step; torch's on PackedSequence where the batch is ragged."""
    problem = make_problem(case)
    if library == "fastlstm":
        contender = our_contenders(problem, [1])[0]
    else:
        contender = importlib.import_module("peers.torch_peer").contenders(problem, 1)[0]
    contender.use_threads(1)
    return contender


def measure_peak(library: str, case: Case) -> int:
    """Bytes that three training steps add at most."""
    contender = _contender(library, case)
    _reset_peak()
    before = _held()
    for _ in range(3):
        contender.run()
    return _kernel_bytes("status", "VmHWM") - before


def _our_varying_step() -> Callable[[np.ndarray], None]:
    from fastlstm import _core
    from fastlstm.layers import LSTM

    _core.set_num_threads(1)
    layer = LSTM(INPUT_SIZE, HIDDEN_SIZE, random_state=0)

    def step(x: np.ndarray) -> None:
        y, _, tape = layer.forward(x)
        layer.backward(tape, y)

    return step


def _torch_varying_step() -> Callable[[np.ndarray], None]:
    import torch

    torch.set_num_threads(1)
    module = torch.nn.LSTM(INPUT_SIZE, HIDDEN_SIZE, batch_first=True)
    weights = list(module.parameters())

    def step(x: np.ndarray) -> None:
        y, _ = module(torch.from_numpy(x))
        torch.autograd.grad(y, weights, y.detach())

    return step


def measure_growth(library: str, calls: int) -> int:
    """Bytes that the process holds more after `calls` training steps than before them, when it has warmed up."""
    step = _our_varying_step() if library == "fastlstm" else _torch_varying_step()
    rng = np.random.default_rng(0)
    step(np.ones((MOST_SEQUENCES, MOST_STEPS, INPUT_SIZE), np.float32))

    def run(n: int) -> int:
        for _ in range(n):
            shape = (rng.integers(1, MOST_SEQUENCES + 1), rng.integers(1, MOST_STEPS + 1), INPUT_SIZE)
            step(rng.standard_normal(shape, np.float32))
        return _held()

    before = run(WARM_UP)
    return run(calls) - before


# ------------------------------------------------------------------------------------ the parent


def in_fresh_process(library: str, *arguments: str) -> int:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", library, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"{library}: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout))


def run_case(case: Case, libraries: Sequence[str]) -> dict[str, Any]:
    peaks = {library: in_fresh_process(library, "--case", case.name) for library in libraries}
    print(_row(case.name, peaks), flush=True)
    return {"case": case.name, "peak_bytes": peaks}


def run_growth(libraries: Sequence[str], calls: int) -> dict[str, Any]:
    growth = {library: in_fresh_process(library, "--calls", str(calls)) for library in libraries}
    reached = growth["fastlstm"] <= MOST_GROWTH
    print(_row(f"growth over {calls} calls", growth) + ("" if reached else "  NO"), flush=True)
    return {"calls": calls, "growth_bytes": growth, "limit": MOST_GROWTH, "reached": reached}


def _row(title: str, found: dict[str, int]) -> str:
    cells = [f"{found[library] / 1e6:12.2f}" if library in found else f"{'-':>12}" for library in LIBRARIES]
    ratio = (
        f"{found['torch'] / found['fastlstm']:8.2f}" if all(found.get(n) for n in LIBRARIES) else f"{'-':>8}"
    )
    return f"{title:44}" + "".join(cells) + ratio


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memory.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--calls", type=int, default=10_000, metavar="N", help="of the growth (default: 10000)"
    )
    parser.add_argument("--quick", action="store_true", help="a few shapes, at most 1000 calls")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    parser.add_argument("--measure", metavar="LIBRARY", help=argparse.SUPPRESS)
    parser.add_argument("--case", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        case = next((case for case in CASES if case.name == args.case), None)
        print(measure_peak(args.measure, case) if case else measure_growth(args.measure, args.calls))
        return 0
    if args.calls < 1:
        parser.error(f"--calls must be at least 1, got {args.calls}")
    machine = machine_record()
    libraries = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    print(describe_machine(machine))
    print(f"{'MB, one thread':44}" + "".join(f"{name:>12}" for name in LIBRARIES) + f"{'ratio':>8}")
    results = [run_case(case, libraries) for case in CASES if case.quick or not args.quick]
    growth = run_growth(libraries, min(args.calls, 1000) if args.quick else args.calls)
    if args.json:
        write_json(args.json, {"schema": 2, "machine": machine, "results": results, "growth": growth})
    return 0 if growth["reached"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
