"""The classic tasks of the LSTM papers, learnt by this library and judged by the papers' own criteria.

``python -m fastlstm.classics NAME`` trains one small network per seed on one thread, in float32, and prints
whether each met the criterion, the training sequences it saw and the seconds it took, beside the published figure
and an independent numpy reproduction. The optimizer is Adam in small batches with full back-propagation through
time; the papers of 1997 and 2002 took online steepest descent with a truncated gradient. Numbers of sequences are
therefore not comparable between the two.

Examples
--------
>>> from fastlstm.classics import CLASSICS, run_classic
>>> sorted(CLASSICS)[:2]
['adding', 'embedded-reber']
>>> run_classic("temporal-order-6a", 0).solved
True
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fastlstm import _classic_tasks as tasks

__all__ = ["CLASSICS", "Classic", "Run", "main", "run_classic", "summary"]

_REPRODUCTION = "npow/schmidhuber-problems (numpy, one core of an Apple M-series laptop)"


@dataclass(frozen=True)
class Run:
    """One seed of one task.

    Attributes
    ----------
    task : str
    seed : int
    solved : bool
        Whether the paper's criterion was met within the task's limit of sequences.
    sequences : int
        Training sequences seen until then.
    seconds, cpu_seconds : float
        Wall clock and processor time of training with its data and checks, without the last test.
    wrong, tested : int
        Of so many fresh sequences (spikes, for ``msd``), how many were wrong by the criterion.
    mean_error : float
        Mean absolute error of the outputs there; of ``embedded-reber``, the share of wrong steps.
    weights : int
        Weights of the network, the two biases of a gate counted as the one that they add up to.
    """

    task: str
    seed: int
    solved: bool
    sequences: int
    seconds: float
    cpu_seconds: float
    wrong: int
    tested: int
    mean_error: float
    weights: int


@dataclass(frozen=True)
class Classic:
    """One task: what it is, what was published, and how it is learnt here."""

    title: str
    source: str
    criterion: str
    network: str
    published: str
    reproduction: str
    reproduction_seconds: float | None
    train: Callable[[int], tasks.Result]


# --------------------------------------------------------------------------------------------- the table

_1997 = "Hochreiter and Schmidhuber, Neural Computation 9(8), 1997"
_2002 = "Gers, Schraudolph and Schmidhuber, JMLR 3, 2002"

CLASSICS: dict[str, Classic] = {
    "adding": Classic(
        title="adding problem, T = 100 to 110",
        source=f"{_1997}, experiment 4",
        criterion="the 2000 latest training sequences right (|error| < 0.04), their mean error below 0.01",
        network="4 cells with input and output gates (no forget gate), input gate bias -3",
        published="74,000 sequences (online gradient descent, mean of 10 trials), 1 of 2560 wrong, 93 weights",
        reproduction="39 s for 256,000 sequences; MSE 7e-4, 91 % within 0.04; 8 cells with forget gate",
        reproduction_seconds=39.0,
        train=tasks.train_adding,
    ),
    "embedded-reber": Classic(
        title="embedded Reber grammar",
        source=f"{_1997}, experiment 1",
        criterion="every possible next symbol more active than every impossible one, at every step of 256 "
        "training and 256 test strings",
        network="6 cells with input and output gates (no forget gate)",
        published="8,440 sequences (online gradient descent, mean of 30 trials), 100 % solved, 276 weights",
        reproduction="2.6 s for 4,000 sequences (seed 0; 4,800 on average); largest output possible on 200 strings",
        reproduction_seconds=2.6,
        train=tasks.train_embedded_reber,
    ),
    "temporal-order-6a": Classic(
        title="temporal order, two symbols, T = 100 to 110",
        source=f"{_1997}, experiment 6a",
        criterion="the 2000 latest training sequences right (all |errors| < 0.3), their mean error below 0.1",
        network="4 cells with input and output gates (no forget gate), input gate bias -3",
        published="31,390 sequences (online gradient descent, mean of 20 trials), 1 of 2560 wrong, 156 weights",
        reproduction="24 s, of which 13.6 s for 48,000 sequences of the LSTM (95 % right after 6,400); T = 50",
        reproduction_seconds=13.6,
        train=partial(tasks.train_temporal_order, "6a", 4),
    ),
    "temporal-order-6b": Classic(
        title="temporal order, three symbols, T = 100 to 110",
        source=f"{_1997}, experiment 6b",
        criterion="the 2000 latest training sequences right (all |errors| < 0.3), their mean error below 0.1",
        network="6 cells with input and output gates (no forget gate), input gate bias -3",
        published="571,100 sequences (online gradient descent, mean of 10 trials), 2 of 2560 wrong, 308 weights",
        reproduction="none of the same length",
        reproduction_seconds=None,
        train=partial(tasks.train_temporal_order, "6b", 6),
    ),
    "msd": Classic(
        title="measuring spike delays, 30 or 31 steps",
        source=_2002,
        criterion="1000 spikes in a row of one stream measured with |error| < 0.49",
        network="8 peephole cells with identity output, forget gate bias 4",
        published="10 runs of up to 10,000,000 streams (online gradient descent), 1 cell, 17 weights",
        reproduction="none of this form; see spike-repeat",
        reproduction_seconds=None,
        train=tasks.train_msd,
    ),
    "spike-repeat": Classic(
        title="repeating an interval of 30 to 60 steps between two spikes",
        source=f"the numpy reproduction, after {_2002}",
        criterion="99 % of 512 held-out sequences answered at the very step",
        network="8 peephole cells with identity output, forget gate bias 6, input gate bias -2; softmax over the steps",
        published="none: the task is not in the paper",
        reproduction="32 s for 96,000 sequences; 0.986 at the very step, mean of 7 seeds 0.947; 8 peephole cells",
        reproduction_seconds=32.0,
        train=tasks.train_spike_repeat,
    ),
}


def run_classic(name: str, seed: int = 0) -> Run:
    """Train and judge one seed of one task.

    Parameters
    ----------
    name : str
        A key of ``CLASSICS``.
    seed : int, default=0

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if name not in CLASSICS:
        raise ValueError(f"name must be one of {', '.join(CLASSICS)}; got {name!r}")
    result = CLASSICS[name].train(seed)
    return Run(
        name,
        seed,
        **asdict(result.clock),
        wrong=result.wrong,
        tested=result.tested,
        mean_error=result.mean_error,
        weights=result.learner.n_weights,
    )


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Seeds, failures and medians of the runs of one task, beside the published figures; JSON-able.

    A failed run counts with the sequences and seconds it used. ``speedup`` is the reproduction's seconds over the
    median of ours: both on other machines, so an order of magnitude and no more.
    """
    classic = CLASSICS[runs[0].task]
    facts = {key: value for key, value in vars(classic).items() if key != "train"}
    middle = {
        key: statistics.median(getattr(run, key) for run in runs)
        for key in ("sequences", "seconds", "cpu_seconds")
    }
    failures = sum(not run.solved for run in runs)
    ours = middle["seconds"]
    return {
        "name": runs[0].task,
        **facts,
        "optimizer": "Adam, small batches, full back-propagation through time, one thread, float32",
        "reproduction_source": _REPRODUCTION,
        "runs": [asdict(run) for run in runs],
        "failures": failures,
        "median": middle,
        "median_seed_solved": 2 * failures < len(runs),
        "speedup": classic.reproduction_seconds / ours if classic.reproduction_seconds else None,
    }


def _report(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['name']}: {found['title']}",
        f"  source        {found['source']}",
        f"  solved means  {found['criterion']}",
        f"  network       {found['network']}; {found['runs'][0]['weights']} weights",
        f"  trained by    {found['optimizer']}",
        "",
        f"  {'seed':>4}  solved  {'sequences':>9}  {'seconds':>7}  {'CPU s':>7}  {'wrong afterwards':>16}  mean error",
    ]
    for run in found["runs"]:
        solved = "yes" if run["solved"] else "no"
        after = f"{run['wrong']} of {run['tested']}"
        lines.append(
            f"  {run['seed']:>4}  {solved:<6}  {run['sequences']:>9,}  {run['seconds']:>7.2f}  "
            f"{run['cpu_seconds']:>7.2f}  {after:>16}  {run['mean_error']:.4f}"
        )
    middle = found["median"]
    lines += [
        "",
        f"  median        {middle['sequences']:,.0f} sequences, {middle['seconds']:.2f} s "
        f"({middle['cpu_seconds']:.2f} s CPU), {found['failures']} of {len(found['runs'])} seeds failed",
        f"  published     {found['published']}",
        f"  reproduction  {found['reproduction']}",
    ]
    if found["speedup"] is not None:
        lines.append(
            f"                {found['reproduction_source']}: {found['reproduction_seconds']:g} s, "
            f"{found['speedup']:.1f} times our median"
        )
    lines.append("  Ours is Adam: its number of sequences does not compare with the published one.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m fastlstm.classics``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the name of the program; by default those of the process.

    Returns
    -------
    int
        0 if the median seed of every task asked for was solved (or only a list was wanted), 1 if not, 2 for
        wrong usage.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fastlstm.classics",
        description="Learn a classic task of the LSTM papers and judge the result by the paper's criterion.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"{', '.join(CLASSICS)} or all")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="SEED", help="the first (%(default)s)")
    parser.add_argument("--json", action="store_true", help="write one JSON document to stdout")
    parser.add_argument("--list", action="store_true", help="list the tasks")
    try:
        arguments = parser.parse_args(argv)
        if arguments.seeds < 1:
            parser.error(f"--seeds must be at least 1; got {arguments.seeds}")
        if arguments.first_seed < 0:
            parser.error(f"--first-seed must be at least 0; got {arguments.first_seed}")
        if not arguments.list and arguments.name not in (*CLASSICS, "all"):
            parser.error(f"NAME must be one of {', '.join(CLASSICS)} or all; got {arguments.name}")
    except SystemExit as stop:
        return int(stop.code or 0)
    if arguments.list:
        titles = {name: classic.title for name, classic in CLASSICS.items()}
        rows = [f"{name:<18}  {title}" for name, title in titles.items()]
        print(json.dumps(titles, indent=2) if arguments.json else "\n".join(rows))
        return 0
    results = []
    for name in CLASSICS if arguments.name == "all" else [arguments.name]:
        first = arguments.first_seed
        runs = [run_classic(name, seed) for seed in range(first, first + arguments.seeds)]
        results.append(summary(runs))
        if not arguments.json:
            print(_report(results[-1]), end="\n\n", flush=True)
    if arguments.json:
        print(json.dumps(results if arguments.name == "all" else results[0], indent=2, allow_nan=False))
    return 0 if all(found["median_seed_solved"] for found in results) else 1


if __name__ == "__main__":
    sys.exit(main())
