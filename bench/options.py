"""What an option of a recurrent layer costs: a training step with it beside one without, interleaved in one run.

    python bench/options.py [--threads 1,2] [--quick] [--json FILE]

One step is forward and backward of an LSTM in float32. Prints the median, its spread and the time with the
option over the time without; exits 1 where a regulariser costs more than 15 %. Options that compute more than
the plain layer (projections, gates that recur) stand beside their floor, the ratio of the multiply-adds. Run it
on an otherwise idle machine.
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

LIMIT = 1.15


@dataclass(frozen=True)
class Shape:
    """T steps, B sequences, I inputs, H hidden units."""

    time: int
    batch: int
    inputs: int
    hidden: int

    @property
    def name(self) -> str:
        return f"{self.time}x{self.batch}x{self.inputs}x{self.hidden}"


SHAPES = (Shape(100, 32, 64, 128), Shape(100, 128, 64, 256), Shape(50, 1, 16, 32))
REGULARISERS: dict[str, dict[str, Any]] = {
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": (0.05, 0.3)},
    "weight_dropout": {"weight_dropout": 0.3},
    "weight_noise": {"weight_noise": 0.05},
    "truncated": {"truncated": True},
    "learn_initial_state": {"learn_initial_state": True},
}
MORE: dict[str, dict[str, Any]] = {
    "peephole": {"cell": "peephole"},
    "fgr": {"cell": "fgr"},
    "layer_norm": {"layer_norm": True},
    "proj_size": {},  # of half the hidden size
}


def make(shape: Shape, threads: int, name: str, options: dict[str, Any]) -> Contender:
    if name == "proj_size":
        options = {"proj_size": shape.hidden // 2}
    layer = LSTM(shape.inputs, shape.hidden, random_state=0, **options)
    x = np.random.default_rng(0).normal(size=(shape.batch, shape.time, shape.inputs)).astype(np.float32)
    dy = np.ones((shape.batch, shape.time, layer.output_size), np.float32)

    def run() -> None:
        _, _, tape = layer.forward(x, rng_key=1)
        layer.backward(tape, dy)

    return Contender(name, threads, run, _core.set_num_threads)


def products(shape: Shape, name: str) -> int:
    """Multiply-adds of a step and sequence."""
    gates = 4 * shape.hidden
    if name == "fgr":
        return gates * (shape.inputs + shape.hidden) + 9 * shape.hidden**2
    if name == "proj_size":
        return gates * (shape.inputs + shape.hidden // 2) + shape.hidden * (shape.hidden // 2)
    return gates * (shape.inputs + shape.hidden)


def run_shape(shape: Shape, threads: int, timing: dict[str, Any]) -> list[dict[str, Any]]:
    options = {"plain": {}, **REGULARISERS, **MORE}
    contenders = [make(shape, threads, name, given) for name, given in options.items()]
    plain, *rest = time_interleaved(contenders, **timing)
    records = []
    for name, found in zip([*REGULARISERS, *MORE], rest, strict=True):
        ratio, floor = found.median / plain.median, products(shape, name) / products(shape, "plain")
        reached = name in MORE or ratio <= LIMIT
        records.append(
            {"shape": shape.name, "threads": threads, "option": name, "ratio": ratio, "floor": floor}
            | {"plain": asdict(plain), "with": asdict(found), "reached": reached}
        )
        spread = (found.q3 - found.q1) / found.median
        print(
            f"{shape.name:16} {threads:3d} {name:20} {format_seconds(found.median):>10} {spread:6.1%} "
            f"{ratio:6.2f} {floor:6.2f}" + ("" if reached else "  NO"),
            flush=True,
        )
    return records


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="options.py", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1", metavar="N[,N]")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the first shape alone")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    try:
        threads = parse_threads(args.threads)
    except ValueError as error:
        parser.error(str(error))
    machine = machine_record()
    print(describe_machine(machine))
    print(f"{'T x B x I x H':16} thr {'option':20} {'a step':>10} {'IQR':>6}  ratio  floor")
    records = [
        record
        for shape in SHAPES[: 1 if args.quick else None]
        for n in threads
        for record in run_shape(shape, n, timing_options(args.quick))
    ]
    if args.json:
        write_json(args.json, {"schema": 1, "machine": machine, "threads": threads, "results": records})
    return 0 if all(record["reached"] for record in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())
