"""How each classic task is trained and judged: what :mod:`fastlstm.classics` runs.

Sequences are made in blocks and cut into minibatches by their row ranges: nothing is done per time step in Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.datasets import make_adding_problem, make_embedded_reber, make_temporal_order, make_timing
from fastlstm.layers import LSTM
from fastlstm.losses import softmax_cross_entropy
from fastlstm.network import SequenceNetwork
from fastlstm.optimizers import Adam, global_norm
from fastlstm.sequences import Sequences

__all__ = [
    "MSD_DELAYS",
    "Clock",
    "Learner",
    "Result",
    "train_adding",
    "train_embedded_reber",
    "train_msd",
    "train_spike_repeat",
    "train_temporal_order",
]

Array = NDArray[Any]

MSD_DELAYS = (30, 31)
_FRESH = 2560  # test sequences, as in the paper of 1997
_IN_A_ROW = 2000  # training sequences that must be right one after another, as there


@dataclass(frozen=True)
class Clock:
    """How training went: whether it met the criterion, the sequences seen, wall clock and processor time."""

    solved: bool
    sequences: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Result:
    """A trained network, how training went, and its test: wrong ones of how many, mean absolute error."""

    learner: Learner
    clock: Clock
    wrong: int
    tested: int
    mean_error: float


class Learner:
    """A recurrent layer with a linear head, at the last step or at every step, and Adam.

    Parameters
    ----------
    n_inputs, hidden_size, n_outputs : int
    cell : str
        As of :class:`fastlstm.layers.LSTM`.
    biases : mapping of str to float
        Initial bias of a gate, by its letter: i, f, o.
    every_step : bool
        Whether the head answers at every step.
    rng : numpy Generator
    learning_rate, halve_every, lowest : float
        Step size, the number of steps in which it halves, and where that ends.
    beta2 : float
        Of Adam.
    cell_activation : str
        As of :class:`fastlstm.layers.LSTM`.
    """

    def __init__(
        self,
        n_inputs: int,
        hidden_size: int,
        n_outputs: int,
        *,
        cell: str,
        biases: Mapping[str, float],
        every_step: bool,
        rng: np.random.Generator,
        learning_rate: float,
        halve_every: float = np.inf,
        lowest: float = 0.0,
        beta2: float = 0.999,
        cell_activation: str = "tanh",
    ) -> None:
        encoder = LSTM(n_inputs, hidden_size, cell=cell, cell_activation=cell_activation, random_state=rng)
        encoder.n_threads = 1
        self.network = SequenceNetwork(encoder, n_outputs, random_state=rng)
        self.encoder, self.head = encoder, self.network.head
        self.every_step = every_step
        self.optimizer = Adam(beta2=beta2)
        self._schedule = (learning_rate, halve_every, lowest)
        self._tape: Any = None
        self._seen: Array = np.empty(0)
        bias = {name: encoder.parameters[name].copy() for name in ("bias_ih_l0", "bias_hh_l0")}
        for gate, value in biases.items():
            rows = encoder.gate_rows("bias_ih_l0", gate)
            bias["bias_ih_l0"][rows], bias["bias_hh_l0"][rows] = value, 0.0
        encoder.load_parameters(bias, strict=False)

    @property
    def n_weights(self) -> int:
        """Parameters, the two biases of a gate as one."""
        return self.network.n_parameters - int(self.encoder.parameters["bias_hh_l0"].size)

    def predict(self, X: Sequences) -> Array:
        """Outputs at the end of every sequence, or at every step."""
        y, state = self.encoder.run(X.values, X.offsets[:-1], X.lengths, want_y=self.every_step)
        return self.head.forward(y if self.every_step else state[0][-1])

    def forward(self, values: Array, starts: Array, lengths: Array) -> Array:
        """Outputs of a minibatch, to be followed by :meth:`learn`."""
        y, state, self._tape = self.encoder.run_training(
            values, starts, lengths, want_y=self.every_step, tape=self._tape
        )
        if self.every_step:
            assert y is not None
            self._seen = y
        else:
            self._seen = state[0][-1]
        return self.head.forward(self._seen)

    def learn(self, gradient: Array) -> None:
        """One step of Adam against the gradient of the outputs; its norm is at most 1."""
        back = self.head.backward(self._seen, gradient)
        if self.every_step:
            self.encoder.run_backward(self._tape, back)
        else:
            assert back is not None
            others = (None,) * (len(self.encoder.state_names) - 1)
            self.encoder.run_backward(self._tape, None, (back[None], *others))
        network = self.network
        rate, halve_every, lowest = self._schedule
        rate = max(lowest, rate * 0.5 ** (self.optimizer.n_steps / halve_every))
        norm = global_norm(network.flat_grads)
        self.optimizer.step(network.flat, network.flat_grads, rate, min(1.0, 1.0 / norm) if norm > 0 else 1.0)
        network.parameters_changed()


def _batches(X: Sequences, size: int) -> list[tuple[slice, slice, Array, Array]]:
    """Consecutive minibatches: their sequences, their rows, and where those start and how many they are."""
    offsets, lengths = X.offsets, X.lengths
    return [
        (
            slice(first, first + size),
            slice(int(offsets[first]), int(offsets[min(first + size, len(X))])),
            offsets[:-1][first : first + size],
            lengths[first : first + size],
        )
        for first in range(0, len(X), size)
    ]


class _Stopwatch:
    def __init__(self) -> None:
        self.start = (time.perf_counter(), time.process_time())

    def stop(self, solved: bool, sequences: int) -> Clock:
        wall, cpu = self.start
        return Clock(solved, sequences, time.perf_counter() - wall, time.process_time() - cpu)


class _Streak:
    """Right answers in a row, and the mean error of the latest `window` answers."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.right = 0
        self._errors = np.full(window, np.inf)
        self._at = 0

    def add(self, wrong: Array, errors: Array) -> None:
        """Take the answers of a minibatch, the oldest first."""
        last = np.flatnonzero(wrong)
        self.right = self.right + len(wrong) if last.size == 0 else len(wrong) - 1 - int(last[-1])
        self._errors[(self._at + np.arange(len(errors))) % self.window] = errors
        self._at += len(errors)

    def met(self, mean_error: float) -> bool:
        return self.right >= self.window and float(self._errors.mean()) < mean_error


# --------------------------------------------------------------------------------------------- the tasks


def _train_until_streak(
    learner: Learner,
    make: Callable[[int], tuple[Sequences, Array]],
    answer: Callable[[Array, Array], tuple[Array, Array, Array]],
    mean_error: float,
    batch_size: int,
    limit: int,
) -> Result:
    """Train on ever new sequences until 2000 in a row were right before the network learnt from them.

    `answer` gives which outputs are wrong, their absolute errors and the gradient of the loss.
    """
    watch, streak, seen = _Stopwatch(), _Streak(_IN_A_ROW), 0
    while seen < limit and not streak.met(mean_error):
        X, y = make(64 * batch_size)
        for sequences, _, starts, lengths in _batches(X, batch_size):
            wrong, errors, gradient = answer(learner.forward(X.values, starts, lengths), y[sequences])
            learner.learn(gradient)
            streak.add(wrong, errors)
            seen += len(wrong)
            if streak.met(mean_error):
                break
    clock = watch.stop(streak.met(mean_error), seen)
    X, y = make(_FRESH)
    wrong, errors, _ = answer(learner.predict(X), y)
    return Result(learner, clock, int(wrong.sum()), _FRESH, float(errors.mean()))


def train_adding(seed: int) -> Result:
    """The adding problem of T = 100."""
    rng = np.random.default_rng(seed)
    learner = Learner(
        2,
        4,
        1,
        cell="lstm1997",
        biases={"i": -3.0},
        every_step=False,
        rng=rng,
        learning_rate=0.03,
        halve_every=1000,
        lowest=1e-3,
    )

    def answer(outputs: Array, y: Array) -> tuple[Array, Array, Array]:
        error = outputs[:, 0] - y
        size = np.abs(error)
        return ~(size < 0.04), size, (error * np.float32(2.0 / len(y)))[:, None]

    def make(n: int) -> tuple[Sequences, Array]:
        return make_adding_problem(n, 100, random_state=rng)

    return _train_until_streak(learner, make, answer, 0.01, 16, 400_000)


def train_temporal_order(kind: str, hidden_size: int, seed: int) -> Result:
    """Temporal order, kind "6a" or "6b"."""
    rng = np.random.default_rng(seed)
    learner = Learner(
        8,
        hidden_size,
        4 if kind == "6a" else 8,
        cell="lstm1997",
        biases={"i": -3.0},
        every_step=False,
        rng=rng,
        learning_rate=0.03,
    )

    def answer(outputs: Array, y: Array) -> tuple[Array, Array, Array]:
        _, gradient = softmax_cross_entropy(outputs, y)
        size = np.abs(gradient) * len(y)  # of the probabilities: what the gradient is n times
        return np.logical_not((size < 0.3).all(axis=1)), size.mean(axis=1), gradient

    def make(n: int) -> tuple[Sequences, Array]:
        return make_temporal_order(n, kind, random_state=rng)

    return _train_until_streak(learner, make, answer, 0.1, 8, 200_000)


def _illegal(learner: Learner, data: tuple[Sequences, Array, Array]) -> Array:
    """At which steps some impossible symbol is as active as a possible one."""
    X, _, possible = data
    outputs = learner.predict(X)
    low = np.where(possible, outputs, np.inf).min(axis=1)
    return np.asarray(~(low > np.where(possible, -np.inf, outputs).max(axis=1)))


def train_embedded_reber(seed: int) -> Result:
    """The embedded Reber grammar."""
    rng = np.random.default_rng(seed)
    learner = Learner(
        7, 6, 7, cell="lstm1997", biases={}, every_step=True, rng=rng, learning_rate=0.04, beta2=0.98
    )
    train, test = make_embedded_reber(256, random_state=rng), make_embedded_reber(256, random_state=rng)
    following = Sequences(train[1][:, None], train[0].offsets)
    watch, seen, solved = _Stopwatch(), 0, False
    while seen < 60_000 and not solved:
        order = rng.permutation(256)
        X, y = train[0][order], following[order].values[:, 0]
        for sequences, rows, starts, lengths in _batches(X, 4):
            _, gradient = softmax_cross_entropy(learner.forward(X.values, starts, lengths), y[rows])
            learner.learn(gradient)
            seen += sequences.stop - sequences.start
        solved = not (_illegal(learner, train).any() or _illegal(learner, test).any())
    clock = watch.stop(solved, seen)
    fresh = make_embedded_reber(_FRESH, random_state=rng)
    illegal = _illegal(learner, fresh)
    wrong = np.logical_or.reduceat(illegal, fresh[0].offsets[:-1])
    return Result(learner, clock, int(wrong.sum()), _FRESH, float(illegal.mean()))


def _measured(outputs: Array, y: Array, mask: Array) -> tuple[Array, Array]:
    """Errors at the masked steps, and which of them are too large."""
    error = outputs[mask, 0] - y[mask]
    return error, ~(np.abs(error) < 0.49)


def train_msd(seed: int) -> Result:
    """Measuring spike delays."""
    rng = np.random.default_rng(seed)
    learner = Learner(
        1,
        8,
        1,
        cell="peephole",
        cell_activation="identity",
        biases={"f": 4.0},
        every_step=True,
        rng=rng,
        learning_rate=0.01,
        beta2=0.99,
    )

    def make(n: int, n_spikes: int) -> tuple[Sequences, Array, Array]:
        return make_timing(n, delays=MSD_DELAYS, n_spikes=n_spikes, random_state=rng)

    watch, seen, right, solved = _Stopwatch(), 0, 0, False
    while seen < 100_000 and not solved:
        X, y, mask = make(128, 10)
        for sequences, rows, starts, lengths in _batches(X, 8):
            outputs = learner.forward(X.values, starts, lengths)
            error, wrong = _measured(outputs, y[rows], mask[rows])
            gradient = np.zeros_like(outputs)
            gradient[mask[rows], 0] = error * np.float32(2.0 / len(error))
            learner.learn(gradient)
            right = 0 if wrong.any() else right + len(wrong)
            seen += sequences.stop - sequences.start
        if right >= 1000:
            X, y, mask = make(1, 1000)
            solved = not _measured(learner.predict(X), y, mask)[1].any()
            right = 0
    clock = watch.stop(solved, seen)
    X, y, mask = make(10, 1000)
    error, wrong = _measured(learner.predict(X), y, mask)
    return Result(learner, clock, int(wrong.sum()), len(wrong), float(np.abs(error).mean()))


def _late_or_early(outputs: Array, X: Sequences, y: Array) -> Array:
    """How many steps the largest output after the second spike is away from the target's 1."""
    spikes = X.values.reshape(len(X), -1)
    steps = spikes.shape[1]
    second = steps - 1 - spikes[:, ::-1].argmax(axis=1)
    answers = np.where(np.arange(steps) > second[:, None], outputs.reshape(len(X), -1), -np.inf)
    return np.abs(answers.argmax(axis=1) - y.reshape(len(X), -1).argmax(axis=1))


def train_spike_repeat(seed: int) -> Result:
    """Repeating an interval between two spikes.

    The answer is a step, so the loss is the cross-entropy of a softmax over the steps with it.
    """
    rng = np.random.default_rng(seed)
    learner = Learner(
        1,
        8,
        1,
        cell="peephole",
        cell_activation="identity",
        biases={"f": 6.0, "i": -2.0},
        every_step=True,
        rng=rng,
        learning_rate=0.03,
        halve_every=1500,
        lowest=1e-4,
        beta2=0.99,
    )

    def make(n: int) -> tuple[Sequences, Array, Array]:
        return make_timing(n, "repeat", delays=(30, 60), length=150, random_state=rng)

    watch, seen, solved = _Stopwatch(), 0, False
    held_out = make(512)
    while seen < 100_000 and not solved:
        X, y, _ = make(1024)
        for sequences, rows, starts, lengths in _batches(X, 16):
            outputs = learner.forward(X.values, starts, lengths).reshape(len(starts), -1)
            _, gradient = softmax_cross_entropy(outputs, y[rows].reshape(outputs.shape).argmax(axis=1))
            learner.learn(gradient.reshape(-1, 1))
            seen += sequences.stop - sequences.start
        off = _late_or_early(learner.predict(held_out[0]), held_out[0], held_out[1])
        solved = float((off == 0).mean()) >= 0.99
    clock = watch.stop(solved, seen)
    X, y, _ = make(_FRESH)
    off = _late_or_early(learner.predict(X), X, y)
    return Result(learner, clock, int((off > 0).sum()), _FRESH, float(off.mean()))
