"""Speed of the layers and estimators on this machine: the part of the benchmark without peers.

One table of cases serves ``fastlstm bench`` and the comparison with other libraries in
``bench/``. Every number is the median of repetitions that are interleaved: each round runs every
contender once, in rotating order, so a slow minute of the machine hits all of them alike. Only
ratios of one run mean something; the interquartile range says how far even those can be trusted.

Examples
--------
>>> from fastlstm.benchmark import select_cases
>>> [case.name for case in select_cases("step-1x1x16x32")]
['step-1x1x16x32']
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm._benchmark_cases import CASES, Case, Problem, Target, make_problem, select_cases

__all__ = [
    "CASES",
    "Case",
    "Contender",
    "Problem",
    "Target",
    "Timing",
    "machine_record",
    "main",
    "make_problem",
    "our_contenders",
    "select_cases",
    "time_interleaved",
]

# ----------------------------------------------------------------------------------- the timing


def _no_threads(n: int) -> None:
    """For contenders whose number of threads is fixed when they are built."""


@dataclass
class Contender:
    """Something that can be timed beside others.

    Parameters
    ----------
    name : str
    threads : int
    run : callable
        Does the work once.
    use_threads : callable
        Called with `threads` before each timed block, outside the clock.
    outputs : callable or None
        Returns named arrays by which contenders are compared before they are timed.
    units : int
        Units of work in one call of `run` (epochs, say); times are per unit.
    """

    name: str
    threads: int
    run: Callable[[], object]
    use_threads: Callable[[int], None] = _no_threads
    outputs: Callable[[], dict[str, np.ndarray]] | None = None
    units: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds per unit of work over the repetitions: quartiles and the best one."""

    median: float
    q1: float
    q3: float
    best: float
    repetitions: int
    left_out: int = 0  # repetitions while somebody else slowed the processors down
    disturbed: bool = False  # fewer than three were without that, so that all count

    @classmethod
    def of(cls, samples: Sequence[float], quiet: Sequence[bool] | None = None) -> Timing:
        """Of those samples that are `quiet`, if they are three or more; else of all."""
        kept = samples if quiet is None else [each for each, calm in zip(samples, quiet, strict=True) if calm]
        disturbed = quiet is not None and len(kept) < 3
        if len(kept) < 3:
            kept = samples
        q1, median, q3 = (float(q) for q in np.quantile(kept, (0.25, 0.5, 0.75)))
        return cls(median, q1, q3, min(kept), len(kept), len(samples) - len(kept), disturbed)


class Neighbours:
    """Tells whether others use the processors, or the second threads of their cores, at the moment.

    A short loop of Python is timed on each processor (at most 4) and compared with its best time so far, of which
    `best` knows more where others have looked before: beside a busy second thread it takes about twice as long. Where
    that is the case now, :meth:`wait` waits for a second at most, and altogether no longer than `patience` seconds.
    """

    _SLOWER = 1.35

    def __init__(self, patience: float, best: dict[int, float] | None = None) -> None:
        self.patience = patience
        self._best = {} if best is None else best

    def quiet(self, processors: Collection[int] | None = None) -> list[int]:
        """Those of the processors (by default of all usable ones) that are not slower than at their best."""
        usable = os.sched_getaffinity(0)
        quiet = []
        try:
            for processor in sorted(usable if processors is None else processors)[:4]:
                os.sched_setaffinity(0, {processor})
                seconds = self._loop_seconds()
                best = self._best[processor] = min(seconds, self._best.get(processor, seconds))
                if seconds <= self._SLOWER * best:
                    quiet.append(processor)
        finally:
            os.sched_setaffinity(0, usable)
        return quiet

    def wait(self, threads: int) -> list[int]:
        """Waits until a processor is quiet, or all for more than one thread; those, or none if they do not get so."""
        start = time.perf_counter()
        wanted = 1 if threads == 1 else min(4, len(os.sched_getaffinity(0)))
        quiet = self.quiet()
        while len(quiet) < wanted and time.perf_counter() - start < min(1.0, self.patience):
            quiet = self.quiet()
        self.patience -= time.perf_counter() - start
        return quiet[:wanted] if len(quiet) >= wanted else []

    @staticmethod
    def _loop_seconds() -> float:
        seconds = []
        for _ in range(30):
            start = time.perf_counter()
            for _ in itertools.repeat(None, 2000):
                pass
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[10:])


@contextlib.contextmanager
def _pinned(processors: Collection[int]) -> Iterator[None]:
    """All threads of the process on those processors, as ``taskset`` does it; nothing for an empty collection."""
    if not processors:
        yield
        return
    before: dict[int, set[int]] = {}
    every = os.sched_getaffinity(0)
    try:
        for thread in _threads():
            with contextlib.suppress(OSError):  # one that has ended
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, processors)
        yield
    finally:
        for thread in _threads():  # those that have begun meanwhile, too
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, before.get(thread, every))


def _threads() -> list[int]:
    """Threads of this process, as Linux numbers them."""
    return [int(name) for name in os.listdir("/proc/self/task")]


_BEST_LOOPS: dict[int, float] = {}  # of the process: a neighbour may stay for a whole case

_PAUSE_SECONDS, _LONGEST_PAUSE = 0.02, 0.5


def _pause() -> None:
    """Waits until the worker threads of whoever ran before have stopped spinning.

    ONNX Runtime's do for up to 60 ms, and would take a processor away from a block of two threads.
    """
    end = time.perf_counter() + _LONGEST_PAUSE
    spinning = True
    while spinning and time.perf_counter() < end:
        used = time.process_time()
        time.sleep(_PAUSE_SECONDS)
        spinning = time.process_time() - used > 0.2 * _PAUSE_SECONDS


def _timed_block(contender: Contender, loops: int, *, warm: bool) -> float:
    """Seconds per unit over `loops` calls in a row, after an untimed one where `warm`."""
    contender.use_threads(contender.threads)
    _pause()
    run = contender.run
    if warm:
        run()
    start = time.perf_counter()
    for _ in itertools.repeat(None, loops):
        run()
    return (time.perf_counter() - start) / (loops * contender.units)


def _loops_for(contender: Contender, block_seconds: float) -> int:
    """How many calls fill a block; also warms the contender up."""
    seconds = _timed_block(contender, 1, warm=True) * contender.units
    if seconds < 0.1 * block_seconds:
        seconds = _timed_block(contender, 5, warm=False) * contender.units
    return max(1, round(block_seconds / max(seconds, 1e-9)))


def time_interleaved(
    contenders: Sequence[Contender],
    *,
    repetitions: int = 15,
    block_seconds: float = 0.02,
    max_seconds: float = 6.0,
    patience: float = 0.0,
) -> list[Timing]:
    """Times every contender once a round, in rotating order.

    Parameters
    ----------
    contenders : sequence of Contender
    repetitions : int
        Rounds; slow contenders get fewer (never under 3) so that none takes much more than `max_seconds`.
    block_seconds : float
        A contender is called in a row for about this long per round.
    patience : float
        Seconds to spend in all on waiting for moments in which nobody else uses the processors, and on repetitions
        that somebody disturbed nevertheless, which are left out if enough others remain (:class:`Neighbours`). One
        thread runs on one processor that is quiet. 0: not looked at.

    Returns
    -------
    list of Timing
        In the order of `contenders`.
    """
    samples: list[list[float]] = [[] for _ in contenders]
    calm: list[list[bool]] = [[] for _ in contenders]
    neighbours = Neighbours(patience, _BEST_LOOPS) if patience and hasattr(os, "sched_setaffinity") else None
    loops = [_loops_for(contender, block_seconds) for contender in contenders]
    spent = [0.0] * len(contenders)

    def wants_more(k: int) -> bool:
        kept = sum(calm[k]) if neighbours and neighbours.patience > 0 else len(samples[k])
        return kept < repetitions and (kept < 3 or spent[k] <= max_seconds)

    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in itertools.count():
            if not any(wants_more(k) for k in range(len(contenders))):
                break
            for k in filter(wants_more, _rotated(len(contenders), turn)):
                threads = contenders[k].threads
                processors = neighbours.wait(threads) if neighbours else []
                with _pinned(processors if threads == 1 else ()):
                    seconds = _timed_block(contenders[k], loops[k], warm=loops[k] > 1)
                undisturbed = neighbours is None or (
                    bool(processors) and neighbours.quiet(processors) == processors
                )
                samples[k].append(seconds)
                calm[k].append(undisturbed)
                block = seconds * loops[k] * contenders[k].units
                if neighbours and neighbours.patience > 0 and not undisturbed:
                    neighbours.patience -= block
                else:
                    spent[k] += block
            gc.collect(1)  # a full collection would cost more than a block
    finally:
        if collecting:
            gc.enable()
    return [Timing.of(each, quiet) for each, quiet in zip(samples, calm, strict=True)]


def _rotated(n: int, shift: int) -> Iterable[int]:
    return ((k + shift) % n for k in range(n))


# -------------------------------------------------------------------------------- our contenders


def our_contenders(problem: Problem, threads: Sequence[int]) -> list[Contender]:
    """What fastlstm offers for a case, once for every number of threads."""
    build = {"step": _our_step, "infer": _our_inference, "train": _our_training, "fit": _our_fit}
    return [build[problem.case.kind](problem, n) for n in threads]


def _our_layer(problem: Problem, **options: Any) -> Any:
    from fastlstm.layers import LSTM

    case = problem.case
    shape = (case.input_size, case.hidden_size, case.num_layers)
    layer = LSTM(*shape, **(case.layer_options | options))
    layer.load_parameters(problem.weights)
    return layer


def _set_our_threads(n: int) -> None:
    from fastlstm import _core

    _core.set_num_threads(n)


def _our_step(problem: Problem, threads: int) -> Contender:
    """One step of the layer's stream, called from Python."""
    from fastlstm.streaming import LayerStream

    _set_our_threads(threads)  # a stream keeps the number it was made under
    stream, x = LayerStream(_our_layer(problem), problem.case.batch), problem.x[:, 0].copy()

    def outputs() -> dict[str, np.ndarray]:
        stream.reset()
        for _ in range(3):
            h = stream.step(x)
        return {"h": h.copy()}

    return Contender("fastlstm", threads, lambda: stream.step(x), _set_our_threads, outputs)


def _our_inference(problem: Problem, threads: int) -> Contender:
    layer, x = _our_layer(problem), problem.x
    lengths = problem.lengths if problem.case.ragged else None

    def outputs() -> dict[str, np.ndarray]:
        y, state = layer(x, lengths=lengths)
        return {"y": y * problem.mask[..., None]} | dict(zip("hc", state, strict=False))

    return Contender("fastlstm", threads, lambda: layer(x, lengths=lengths), _set_our_threads, outputs)


def _training_step(problem: Problem, layer: Any) -> Callable[[], None]:
    mask = problem.mask
    values, dy = problem.x[mask], problem.dy[mask]
    starts = np.concatenate(([0], np.cumsum(problem.lengths)[:-1])).astype(np.int64)
    lengths = problem.lengths.astype(np.int64)
    tape: Any = None

    def run() -> None:
        nonlocal tape
        layer.parameters_changed()  # as after each optimiser step: packing the weights is part of the work
        _, _, tape = layer.run_training(values, starts, lengths, tape=tape, rng_key=1)
        layer.run_backward(tape, dy=dy)

    return run


def _our_training(problem: Problem, threads: int) -> Contender:
    run = _training_step(problem, _our_layer(problem))

    def outputs() -> dict[str, np.ndarray]:
        layer = _our_layer(problem, dropout=0.0)
        _training_step(problem, layer)()
        shapes = problem.case.parameter_shapes()
        ends = np.cumsum([int(np.prod(shape)) for _, shape in shapes])
        pieces = np.split(np.array(layer.flat_grads), ends[:-1])
        return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}

    return Contender("fastlstm", threads, run, _set_our_threads, outputs)


FIT_EPOCHS = 5


def _our_fit(problem: Problem, threads: int) -> Contender:
    """Whole epochs of ``fit``: shuffling, batches, loss, gradients, clipping, Adam."""
    from fastlstm import LSTMClassifier

    case = problem.case

    def run() -> None:
        model = LSTMClassifier(
            case.hidden_size,
            case.num_layers,
            bidirectional=case.bidirectional,
            batch_size=case.batch,
            max_iter=FIT_EPOCHS,
            n_iter_no_change=FIT_EPOCHS + 1,
            random_state=0,
        )
        model.fit(problem.x, problem.labels, lengths=problem.lengths if case.ragged else None)

    return Contender("fastlstm", threads, run, _set_our_threads, units=FIT_EPOCHS)


# ----------------------------------------------------------------------------------- the machine


def machine_record() -> dict[str, Any]:
    """What a reader needs to judge the numbers: CPU, caches, ISA in use, threads, versions, date.

    Returns
    -------
    dict
        JSON-able.
    """
    from fastlstm import __version__, _core

    return {
        "cpu": _cpu_model(),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": _usable_cpus(),
        "caches": _caches(),
        "isa": _core.isa(),
        "cpu_info": _core.cpu_info(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "fastlstm": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            **_versions("scikit-learn"),
        },
    }


def _versions(*distributions: str) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def _caches() -> dict[str, int]:
    """Bytes of the data caches of the first CPU, by level: {"L1": 32768, ...}; {} where unknown."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[:-1].isdigit():
            sizes[f"L{level}"] = int(size[:-1]) * units.get(size[-1], 1)
    return sizes


# ----------------------------------------------------------------------------------- the command


def timing_record(contender: Contender, timing: Timing) -> dict[str, Any]:
    """Who was timed and how long it took, JSON-able; seconds per unit of work."""
    return {
        "contender": contender.name,
        "threads": contender.threads,
        "median_s": timing.median,
        "q1_s": timing.q1,
        "q3_s": timing.q3,
        "best_s": timing.best,
        "repetitions": timing.repetitions,
        "left_out": timing.left_out,
        "disturbed": timing.disturbed,
    }


def result_record(problem: Problem, contender: Contender, timing: Timing) -> dict[str, Any]:
    """One row of the results, JSON-able."""
    case = problem.case
    shape = asdict(case)
    for key in ("targets", "quick"):
        del shape[key]
    record = {"case": case.name, **shape, "steps": problem.steps, **timing_record(contender, timing)}
    return record | {"gflops": case.flops(problem.steps) / timing.median * 1e-9}


def format_seconds(seconds: float) -> str:
    """Seconds with a unit that suits them: '2.61 us', '17.0 ms', '1.20 s'."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def parse_threads(text: str | None) -> list[int]:
    """Thread counts from '1,2'; 1 and the library's own choice where `text` is None.

    Raises
    ------
    ValueError
        If `text` holds anything but positive integers with commas between them.
    """
    if text is None:
        from fastlstm import _core

        return sorted({1, int(_core.get_num_threads())})
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"threads must be positive integers like 1 or 1,2; got {text!r}")
    return sorted({int(part) for part in parts})


def write_json(path: str, document: dict[str, Any]) -> None:
    """Writes `document` to the file `path`, or to standard output for '-'."""
    text = json.dumps(document, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


def timing_options(quick: bool) -> dict[str, Any]:
    """Arguments of :func:`time_interleaved` for a short or a full run."""
    if quick:
        return {"repetitions": 7, "block_seconds": 0.01, "max_seconds": 1.0}
    return {"repetitions": 15, "block_seconds": 0.02, "max_seconds": 2.0, "patience": 12.0}


def spread_of(record: dict[str, Any]) -> float:
    """How far the repetitions of a result record are apart: the distance of the quartiles by the median."""
    return float((record["q3_s"] - record["q1_s"]) / record["median_s"])


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that ``fastlstm bench`` and the comparison with peers share."""
    parser.add_argument("--filter", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("--threads", metavar="N[,N]", help="thread counts (default: 1 and all usable cores)")
    parser.add_argument("--quick", action="store_true", help="the short selection, fewer repetitions")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastlstm bench", description="Time the layers on this machine.")
    add_common_arguments(parser)
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write machine and results as JSON; without FILE to standard output, and nothing else there",
    )
    return parser


def run_cases(
    cases: Iterable[Case],
    threads: Sequence[int],
    options: dict[str, Any],
    report: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Times our contenders for each case; `report` gets each case's records as they come."""
    records: list[dict[str, Any]] = []
    for case in cases:
        problem = make_problem(case)
        contenders = our_contenders(problem, threads)
        timings = time_interleaved(contenders, **options)
        rows = [result_record(problem, c, t) for c, t in zip(contenders, timings, strict=True)]
        report(rows)
        records += rows
    return records


_HEADER = f"{'case':44} {'threads':>7} {'median':>10} {'IQR':>6} {'per step':>10} {'GFLOP/s':>8}"


def _print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        spread = spread_of(row)
        print(
            f"{row['case']:44} {row['threads']:7d} {format_seconds(row['median_s']):>10} {spread:6.1%} "
            f"{format_seconds(row['median_s'] / row['steps']):>10} {row['gflops']:8.1f}",
            flush=True,
        )


def describe_machine(machine: dict[str, Any]) -> str:
    """The machine record in one line, and a warning where other programs are running."""
    caches = ", ".join(f"{level} {size >> 10} KiB" for level, size in machine["caches"].items())
    versions = " ".join(f"{name} {version}" for name, version in machine["versions"].items())
    line = (
        f"{machine['cpu']}, {machine['usable_cpus']} usable CPUs ({caches}); ISA {machine['isa']}; {versions}"
    )
    if (machine["load_average"] or 0.0) > 0.5:
        line += f"\nwarning: load average {machine['load_average']:.1f}; other programs disturb the numbers"
    return line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``fastlstm bench``.

    Parameters
    ----------
    argv : sequence of str or None
        Arguments after the command's name; None takes ``sys.argv[1:]``.

    Returns
    -------
    int
        0, or 2 for arguments that make no sense.
    """
    try:
        args = _build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed what is wrong, or the help
        return int(stop.code or 0)
    try:
        cases = select_cases(args.filter, quick=args.quick)
        if args.list:
            print("\n".join(case.name for case in cases))
            return 0
        threads = parse_threads(args.threads)
    except ValueError as error:
        print(f"fastlstm bench: {error}", file=sys.stderr)
        return 2
    machine, silent = machine_record(), args.json == "-"
    if not silent:
        print(describe_machine(machine), _HEADER, sep="\n")
    report = (lambda rows: None) if silent else _print_rows
    records = run_cases(cases, threads, timing_options(args.quick), report)
    if args.json:
        write_json(args.json, {"schema": 1, "machine": machine, "results": records})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
