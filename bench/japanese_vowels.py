"""Accuracy and time on real ragged data: LSTMClassifier beside a plain torch loop.

    python bench/japanese_vowels.py [--threads 1] [--seeds 5] [--epochs 60] [--json FILE]

JapaneseVowels: 270 training and 370 test sequences of 12 channels, 7 to 29 steps, 9 speakers. Both
train one LSTM of 64 units with a linear layer on the final state: Adam with learning rate 3e-3,
batches of 32, gradient norm clipped to 1, the same number of epochs and of threads. torch runs
with packed sequences or padded ones, whichever a short trial shows to be faster. The two take
turns, seed by seed, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.benchmark import describe_machine, machine_record, write_json
from fastlstm.datasets import load_japanese_vowels

HIDDEN, LEARNING_RATE, BATCH = 64, 3e-3, 32
Data = tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]


def standardised_data() -> Data:
    """X_train, X_test, y_train, y_test; each channel with mean 0, variance 1 over the training steps."""
    x_train, x_test, y_train, y_test = load_japanese_vowels(return_X_y=True)
    steps = np.concatenate(x_train)
    mean, scale = steps.mean(0), steps.std(0)
    x_train, x_test = ([(x - mean) / scale for x in part] for part in (x_train, x_test))
    return x_train, x_test, y_train, y_test


def fit_ours(data: Data, seed: int, epochs: int, threads: int) -> tuple[float, float]:
    """Seconds of `fit` and the accuracy on the test sequences."""
    from fastlstm import LSTMClassifier

    x_train, x_test, y_train, y_test = data
    _core.set_num_threads(threads)
    model = LSTMClassifier(
        HIDDEN, learning_rate_init=LEARNING_RATE, max_iter=epochs, batch_size=BATCH, random_state=seed
    )
    start = time.perf_counter()
    model.fit(x_train, y_train)
    return time.perf_counter() - start, float(model.score(x_test, y_test))


class TorchLoop:
    """The loop that a torch user writes; ragged batches `packed` or padded with the last step picked."""

    def __init__(self, data: Data, threads: int, packed: bool) -> None:
        import torch

        self.torch, self.packed = torch, packed
        torch.set_num_threads(threads)
        x_train, x_test, y_train, y_test = data
        self.train = [torch.from_numpy(x) for x in x_train]
        self.test = [torch.from_numpy(x) for x in x_test]
        classes = np.unique(y_train)
        self.y_train, self.y_test = (torch.from_numpy(np.searchsorted(classes, y)) for y in (y_train, y_test))
        self.n_classes = len(classes)

    def logits(self, lstm: Any, head: Any, sequences: Sequence[Any]) -> Any:
        rnn = self.torch.nn.utils.rnn
        if self.packed:
            return head(lstm(rnn.pack_sequence(sequences, enforce_sorted=False))[1][0][-1])
        last = self.torch.tensor([len(x) - 1 for x in sequences])
        y, _ = lstm(rnn.pad_sequence(sequences))
        return head(y[last, self.torch.arange(len(sequences))])

    def fit(self, seed: int, epochs: int) -> tuple[float, float]:
        """Seconds of training and the accuracy on the test sequences."""
        torch = self.torch
        torch.manual_seed(seed)
        start = time.perf_counter()
        lstm = torch.nn.LSTM(self.train[0].shape[1], HIDDEN)
        head = torch.nn.Linear(HIDDEN, self.n_classes)
        parameters = [*lstm.parameters(), *head.parameters()]
        adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        for _ in range(epochs):
            for rows in torch.randperm(len(self.train)).split(BATCH):
                adam.zero_grad()
                logits = self.logits(lstm, head, [self.train[row] for row in rows])
                torch.nn.functional.cross_entropy(logits, self.y_train[rows]).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                adam.step()
        seconds = time.perf_counter() - start
        with torch.inference_mode():
            predicted = self.logits(lstm, head, self.test).argmax(1)
        return seconds, float((predicted == self.y_test).float().mean())


def faster_torch_loop(data: Data, threads: int) -> TorchLoop | None:
    """The packed or the padded loop, by a trial of two epochs; None where torch is not installed."""
    try:
        loops = [TorchLoop(data, threads, packed) for packed in (True, False)]
    except ImportError:
        return None
    for loop in loops:
        loop.fit(0, 1)
    return min(loops, key=lambda loop: loop.fit(0, 2)[0])


def report(name: str, results: Sequence[tuple[float, float]]) -> dict[str, Any]:
    seconds, accuracies = ([result[k] for result in results] for k in (0, 1))
    record = {
        "name": name,
        "accuracies": accuracies,
        "median_accuracy": float(np.median(accuracies)),
        "seconds": seconds,
        "median_seconds": float(np.median(seconds)),
    }
    listed = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    print(
        f"{name:16} test accuracy {listed}  median {record['median_accuracy']:.3f}  "
        f"fit {record['median_seconds']:.2f} s (median)"
    )
    return record


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="japanese_vowels.py", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    machine, data = machine_record(), standardised_data()
    print(describe_machine(machine), f"threads: {args.threads}", sep="\n")
    torch_loop = faster_torch_loop(data, args.threads)
    runs: dict[str, Callable[[int], tuple[float, float]]] = {
        "fastlstm": lambda seed: fit_ours(data, seed, args.epochs, args.threads)
    }
    if torch_loop is not None:
        name = "torch packed" if torch_loop.packed else "torch padded"
        runs[name] = lambda seed: torch_loop.fit(seed, args.epochs)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for seed in range(args.seeds):
        for name, fit in runs.items():
            results[name].append(fit(seed))
    records = [report(name, each) for name, each in results.items()]
    if len(records) == 2:
        print(f"ratio torch / fastlstm: {records[1]['median_seconds'] / records[0]['median_seconds']:.2f}")
    if args.json:
        write_json(args.json, {"schema": 1, "machine": machine, "threads": args.threads, "results": records})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
