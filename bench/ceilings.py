"""The machine's own ceilings: compiles ceilings.c with the system's compiler and runs it.

    python bench/ceilings.py [--threads 1,2] [--seconds 0.05]

prints JSON: for each number of threads the arithmetic peaks (GFLOP/s) and the read bandwidth of
every cache level (GB/s). :func:`floor` turns them into the least time that a case can take.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlstm.benchmark import Case, machine_record, parse_threads

SOURCE = Path(__file__).with_name("ceilings.c")
LEVELS = ("L1", "L2", "L3", "memory")
# Where the system does not say: small enough for any CPU of the last ten years.
_USUAL_CACHES = {"L1": 32 << 10, "L2": 256 << 10, "L3": 8 << 20}


class Meter:
    """The compiled program, kept for as long as it is in use (``with Meter() as meter``).

    Raises
    ------
    RuntimeError
        If there is no C compiler, or if the program does not compile or run.
    """

    def __enter__(self) -> Meter:
        self._folder = tempfile.TemporaryDirectory()
        try:
            self._program = _compile(Path(self._folder.name))
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def measure(self, threads: int, caches: dict[str, int], *, seconds: float = 0.01) -> dict[str, Any]:
        """{"threads": n, "gflops": {name: rate}, "read_gb_s": {level: rate}}, summed over the threads.

        `seconds` is the length of one of the five windows of each figure, whose best counts.
        """
        sizes = [str(size) for size in read_sizes(threads, caches)]
        return json.loads(_check([str(self._program), str(threads), str(seconds), *sizes]))


def _compile(folder: Path) -> Path:
    candidates = (os.environ.get("CC"), "cc", "gcc", "clang")
    compiler = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError("no C compiler found (set CC)")
    program = folder / "ceilings"
    _check([compiler, "-O2", "-pthread", str(SOURCE), "-o", str(program)])
    return program


def _check(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def read_sizes(threads: int, caches: dict[str, int]) -> list[int]:
    """Bytes that each thread reads to meet L1, L2, L3 and memory (L3 and memory are shared)."""
    level = _USUAL_CACHES | caches
    l3 = max(2 * level["L2"], min(level["L3"] // 4, 32 << 20) // threads)
    memory = max(4 * level["L3"], 64 << 20) // threads
    return [level["L1"] * 3 // 4, level["L2"] // 2, l3, min(memory, 512 << 20)]


@dataclass(frozen=True)
class Floor:
    """Least seconds for a case, and what sets them.

    `limit` is "arithmetic", or the cache level that the weights are read from; `rate` is that ceiling, in GFLOP/s or
    GB/s. A run of t seconds achieves rate * seconds / t of it.
    """

    seconds: float
    limit: str
    rate: float


def floor(case: Case, steps: int, machine: dict[str, Any], ceiling: dict[str, Any]) -> Floor | None:
    """The arithmetic of `case` at the peak of the instruction set in use, or reading its weights (the recurrent
    ones each time step) from the innermost cache that holds them, whichever takes longer.

    None for "fit", and where the ceilings of the instruction set are unknown.
    """
    peak = _peak(machine["isa"], case.precision, ceiling["gflops"])
    if peak is None or case.kind == "fit":
        return None
    arithmetic = Floor(case.flops(steps) / (peak * 1e9), "arithmetic", peak)
    return max(arithmetic, _reading(case, machine, ceiling), key=lambda each: each.seconds)


def _peak(isa: str, precision: str, rates: dict[str, float]) -> float | None:
    """GFLOP/s at which `isa` multiplies matrices: float32 in registers, or on AMX from six bfloat16 products."""
    vector = {"amx": "avx512"}.get(isa, isa)
    float32 = rates.get(f"fma_{vector}")
    tiles = rates.get("bf16_amx") if isa == "amx" else None
    if float32 is None or precision == "float32":
        return max(float32, tiles / 6) if float32 and tiles else float32
    if precision == "high":
        return tiles / 3 if tiles else float32
    return rates.get(f"{precision.replace('bfloat', 'bf')}_{isa}", float32)


_WEIGHT_BYTES = {"bfloat16": 2, "int8": 1}


def _reading(case: Case, machine: dict[str, Any], ceiling: dict[str, Any]) -> Floor:
    reads = case.time * (2 if case.kind == "train" else 1)
    size = _WEIGHT_BYTES.get(case.precision, 4)
    seconds, total, levels = 0.0, 0, []
    for layer in range(case.num_layers):
        recurrent, from_input = (
            size * case.gates * case.hidden_size * n for n in (case.recurrent_size, case.layer_input(layer))
        )
        kept = recurrent + (from_input if case.time == 1 else 0)
        levels.append(_level(kept / ceiling["threads"], machine["caches"]))
        read = case.directions * (recurrent * reads + from_input)
        seconds += read / (ceiling["read_gb_s"][levels[-1]] * 1e9)
        total += read
    return Floor(seconds, max(levels, key=LEVELS.index), total / seconds * 1e-9)


def _level(bytes_per_thread: float, caches: dict[str, int]) -> str:
    """The innermost cache level that holds so many bytes."""
    sizes = _USUAL_CACHES | caches
    return next((name for name in LEVELS[:-1] if bytes_per_thread <= sizes[name]), "memory")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure this machine's ceilings.")
    parser.add_argument("--threads", metavar="N[,N]", help="thread counts (default: 1 and all usable cores)")
    parser.add_argument("--seconds", type=float, default=0.05, help="length of one measuring window")
    args = parser.parse_args()
    caches = machine_record()["caches"]
    with Meter() as meter:
        rates = [meter.measure(n, caches, seconds=args.seconds) for n in parse_threads(args.threads)]
    print(json.dumps(rates, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
