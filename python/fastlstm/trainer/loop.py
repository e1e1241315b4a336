"""The training loop: minibatches, gradient clipping, the optimizer's step, early stopping, checkpoints.

A training is a pure function of the data, the configuration and one seed: shuffling, dropout and weight noise
of minibatch k are drawn from generators keyed by (seed, k), so no generator state is carried and a training
resumed from a checkpoint ends with the same bits. Per minibatch the loop does one forward and backward pass
in C, one pass for the gradient's norm and one for the optimizer, and almost nothing in Python.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastlstm._core import sum_squares
from fastlstm.callbacks import PrintLog, ProgressBar, collect_hooks
from fastlstm.losses import Loss, get_loss
from fastlstm.optimizers import Optimizer, clip_by_value, get_optimizer, global_norm
from fastlstm.schedules import Schedule, get_schedule
from fastlstm.trainer.batching import Batches, EpochPlan, check_weights
from fastlstm.trainer.checkpoint import Checkpoint, fingerprint, pack, unpack
from fastlstm.trainer.history import History
from fastlstm.trainer.state import (
    TrainingDivergedWarning,
    TrainingInterruptedWarning,
    TrainingState,
    draw_seed,
    real_number,
    whole_number,
)

if TYPE_CHECKING:
    from fastlstm.network import SequenceNetwork
    from fastlstm.sequences import Sequences

Array = NDArray[Any]
Score = Callable[[Array, Any, Array | None], float]
Validation = tuple["Sequences", Any, Array | None, Score | None]

__all__ = ["Trainer"]

_KEY_MASK = (1 << 64) - 1


class _Run:
    """One call of `fit`: the data, the network and the buffers of the loop."""

    def __init__(self, trainer: Trainer, network: SequenceNetwork, data: Batches, loss: Loss, net: Any):
        self.network, self.data, self.loss, self.net = network, data, loss, net
        self.validation: Validation | None = None
        self.initial = network.flat.copy()
        self.best: Array | None = None
        self.checkpoint: Checkpoint | None = None
        self.l2_pairs: list[tuple[Array, Array, Array]] = []
        if trainer.alpha:
            weights = network.weight_views(network.flat)
            gradients = network.weight_views(network.flat_grads)
            self.l2_pairs = [(w, g, np.empty_like(w)) for w, g in zip(weights, gradients, strict=True)]

    def add_l2(self, factor: float) -> float:
        """Add (+=) `factor` times the weights to their gradients; returns the L2 term of the loss."""
        total = 0.0
        for weights, gradients, scratch in self.l2_pairs:
            np.multiply(weights, weights.dtype.type(factor), out=scratch)
            gradients += scratch
            total += sum_squares(weights)
        return 0.5 * factor * total


class Trainer:
    """Trains a :class:`fastlstm.network.SequenceNetwork` by minibatch gradient descent.

    Parameters
    ----------
    optimizer : str or Optimizer
        See :func:`fastlstm.optimizers.get_optimizer`.
    learning_rate_init : float
    schedule : str or Schedule
        What `learning_rate_init` is multiplied by; see :func:`fastlstm.schedules.get_schedule`.
    batch_size : int
        Sequences of a minibatch.
    max_iter : int
        Epochs at most.
    tol : float
        Least change of the training loss (or validation score, with `early_stopping`) that counts as an
        improvement.
    n_iter_no_change : int
        Training stops when there was no improvement for more than this many epochs.
    early_stopping : bool
        Watch the validation score and end with the weights that scored best. Needs validation data.
    alpha : float
        L2 penalty: ``alpha / 2 * sum(weights**2) / sum of the minibatch's sample weights`` is added to the
        loss of a minibatch; biases are left out.
    clip_norm : float or None
        Largest Euclidean norm of the gradient; longer ones are scaled down.
    clip_value : float or None
        Largest magnitude of an element of the gradient; applied before `clip_norm`.
    shuffle : bool
        Without, minibatches are taken in the order of the data.
    random_state : int, Generator, RandomState or None
        One seed is drawn from it for each training. With None, a training that was stopped goes on from its
        checkpoint with the seed stored there.
    verbose : {0, 1, 2}
        Nothing, one line an epoch, or a live bar.
    callbacks : iterable of objects with hooks
        See :mod:`fastlstm.callbacks`.
    checkpoint_dir : path or None
        Folder for checkpoints. A training of the same configuration and data goes on from the one it finds
        there.
    checkpoint_every : int or None
        Minibatches between checkpoints; None is after each epoch.

    Attributes
    ----------
    history : History
        Of the latest training.
    n_batches : int
        Minibatches of an epoch.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm import as_sequences
    >>> from fastlstm.layers import LSTM
    >>> from fastlstm.network import SequenceNetwork
    >>> from fastlstm.trainer import Trainer
    >>> X = as_sequences([np.full((4, 1), i / 8) for i in range(8)])
    >>> network = SequenceNetwork(LSTM(1, 4, random_state=0), 1, random_state=0)
    >>> history = Trainer(max_iter=3, random_state=0).fit(network, X, np.arange(8.0), None, "squared")
    >>> history.n_iter
    3
    """

    def __init__(
        self,
        optimizer: str | Optimizer = "adam",
        *,
        learning_rate_init: float = 1e-3,
        schedule: str | Schedule = "constant",
        batch_size: int = 32,
        max_iter: int = 100,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        alpha: float = 0.0,
        clip_norm: float | None = 1.0,
        clip_value: float | None = None,
        shuffle: bool = True,
        random_state: Any = None,
        verbose: int = 0,
        callbacks: Iterable[Any] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        self.optimizer = get_optimizer(optimizer)
        self.schedule = copy.deepcopy(get_schedule(schedule))
        self.learning_rate_init = real_number("learning_rate_init", learning_rate_init, above=0.0)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.max_iter = whole_number("max_iter", max_iter, 1)
        self.tol = real_number("tol", tol)
        self.n_iter_no_change = (
            n_iter_no_change
            if n_iter_no_change == math.inf
            else whole_number("n_iter_no_change", n_iter_no_change, 1)
        )
        self.early_stopping = bool(early_stopping)
        self.alpha = real_number("alpha", alpha)
        self.clip_norm = None if clip_norm is None else real_number("clip_norm", clip_norm, above=0.0)
        self.clip_value = None if clip_value is None else real_number("clip_value", clip_value, above=0.0)
        self.shuffle = bool(shuffle)
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = list(callbacks or ())
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = (
            None if checkpoint_every is None else whole_number("checkpoint_every", checkpoint_every, 1)
        )
        self.history = History()
        self.n_batches = 0
        self._state: TrainingState | None = None
        self._stop_wanted = False
        self._hooks = collect_hooks(())

    # ------------------------------------------------------------------ entry points

    def fit(
        self,
        network: SequenceNetwork,
        seqs: Sequences,
        targets: Any,
        weights: Any,
        loss: str | Loss,
        *,
        validation: Validation | None = None,
        estimator: Any = None,
    ) -> History:
        """Train `network` in place, from its present parameters and a fresh optimizer.

        Parameters
        ----------
        network : SequenceNetwork
        seqs : Sequences
        targets : array-like
            One row per sequence, as `loss` takes them.
        weights : array-like of shape (n,) or None
            Sample weights; a sequence of weight 0 counts as absent.
        loss : str or Loss
        validation : tuple (seqs, targets, weights, score), optional
            ``score(raw outputs, targets, weights)`` is a number of which more is better; None for `score` is
            the negated loss.
        estimator : object, optional
            Handed to the callbacks.

        Returns
        -------
        History

        Raises
        ------
        ValueError
            If data and network do not fit, or `early_stopping` has no validation data.

        Warns
        -----
        TrainingDivergedWarning
            If the loss or a gradient was not finite: the best weights so far are kept.
        TrainingInterruptedWarning
            After Ctrl-C: the best weights so far are kept.
        """
        run = self._start(network, seqs, targets, weights, loss, validation, estimator)
        self.optimizer.reset()
        self.schedule.prepare(run.data.n_batches, self.max_iter)
        self._state = TrainingState(draw_seed(self.random_state))
        self.history = History(n_sequences=len(run.data))
        with self._checkpointing(run):
            if not self._state.finished:
                self._train(run, self._state, self.max_iter)
        return self.history

    def partial_fit(
        self,
        network: SequenceNetwork,
        seqs: Sequences,
        targets: Any,
        weights: Any,
        loss: str | Loss,
        *,
        estimator: Any = None,
    ) -> History:
        """Train for one epoch more, with the optimizer, the schedule and the history of the earlier calls.

        Parameters are those of :meth:`fit`. There is no early stopping and no checkpoint.

        Returns
        -------
        History
            Of all calls.
        """
        run = self._start(network, seqs, targets, weights, loss, None, estimator)
        if self._state is None:
            self.schedule.prepare(run.data.n_batches, self.max_iter)
            self._state = TrainingState(draw_seed(self.random_state))
            self.history = History()
        self.history.n_sequences = len(run.data)
        state = self._state
        state.batch, state.loss_sum, state.weight_sum, state.norm_sum = 0, 0.0, 0.0, 0.0
        self._train(run, state, state.epoch + 1, watch=False)
        return self.history

    def stop(self) -> None:
        """End the training after the present minibatch (from a batch hook) or epoch; for callbacks."""
        self._stop_wanted = True

    def _start(
        self,
        network: SequenceNetwork,
        seqs: Sequences,
        targets: Any,
        weights: Any,
        loss: str | Loss,
        validation: Validation | None,
        estimator: Any,
    ) -> _Run:
        """Check the data, once for the whole training."""
        network.check_sequences(seqs)
        loss = get_loss(loss)
        checked = loss.check_targets(targets, network.n_outputs, network.dtype)
        n = len(seqs)
        if len(checked) != n or n == 0:
            raise ValueError(
                f"there must be one target per sequence, and at least one; got {len(checked)} and {n}"
            )
        weights = check_weights(weights, n)
        data = Batches(seqs, checked, weights, self.batch_size, self.shuffle, network.dtype)
        if self.early_stopping and validation is None:
            raise ValueError("early_stopping needs validation data; give some or set early_stopping=False")
        run = _Run(self, network, data, loss, self if estimator is None else estimator)
        run.validation = self._check_validation(run, validation)
        extra: list[Any] = [PrintLog()] if self.verbose == 1 else [ProgressBar()] if self.verbose > 1 else []
        self._hooks = collect_hooks([*self.callbacks, *extra])
        self._stop_wanted = False
        self.n_batches = data.n_batches
        return run

    def _check_validation(self, run: _Run, validation: Validation | None) -> Validation | None:
        if validation is None:
            return None
        seqs, targets, weights, score = validation
        run.network.check_sequences(seqs, "the validation data")
        weights = check_weights(weights, len(seqs), "the validation weights")
        if weights is not None and not weights.all():
            kept = np.flatnonzero(weights)
            seqs, targets, weights = seqs[kept], np.asarray(targets)[kept], weights[kept]
        if score is None:
            loss = run.loss
            targets = loss.check_targets(targets, run.network.n_outputs, run.network.dtype)

            def score(outputs: Array, targets: Any, weights: Array | None) -> float:
                return -loss.value(outputs, targets, weights)

        return seqs, targets, weights, score

    # ------------------------------------------------------------------ the loop

    def _train(self, run: _Run, state: TrainingState, n_epochs: int, watch: bool = True) -> None:
        """Epochs until `n_epochs` are done or something ends them; then the weights that are to be kept."""
        self._notify("on_train_begin", run)
        # a checkpoint taken after the last epoch goes on to nothing
        reason = self._reason_to_end(state, n_epochs, watch) if state.batch == 0 else None
        try:
            with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
                while reason is None:
                    reason = self._epoch(run, state, watch)
                    if reason is None:
                        reason = self._reason_to_end(state, n_epochs, watch)
        except KeyboardInterrupt:
            reason = "interrupted"
        finally:
            self.history.drop_unfinished()
            self.history.stop_reason = reason
            if reason == "callback":
                self._save(run, state)
            self._keep_best(run, reason)
            self._notify("on_train_end", run)
        state.finished = reason in ("max_iter", "no_improvement", "diverged")
        if state.finished:
            self._save(run, state)
        self._warn(reason)

    def _reason_to_end(self, state: TrainingState, n_epochs: int, watch: bool) -> str | None:
        """Why training ends between two epochs, from the state alone; None if it goes on."""
        if watch and state.n_no_improvement > self.n_iter_no_change:
            return "no_improvement"
        return "max_iter" if state.epoch >= n_epochs else None

    def _epoch(self, run: _Run, state: TrainingState, watch: bool) -> str | None:
        """The rest of an epoch, its score and its entry in the history; why training ends, if it does."""
        began = time.perf_counter()
        plan = run.data.plan(state.seed, state.epoch)
        self._notify("on_epoch_begin", run, epoch=state.epoch + 1)
        reason = self._minibatches(run, state, plan)
        if reason is not None:
            return reason
        history = self.history
        loss = state.loss_sum / state.weight_sum
        score = self._score(run)
        if score is not None and not math.isfinite(score):
            return "diverged"
        history.loss_curve.append(loss)
        if score is not None:
            history.validation_scores.append(score)
        history.gradient_norms.append(state.norm_sum / len(plan.spans))
        history.learning_rates.append(self.learning_rate_init * self.schedule(state.step - 1))
        history.seconds.append(time.perf_counter() - began)
        state.epoch, state.batch = state.epoch + 1, 0
        state.loss_sum = state.weight_sum = state.norm_sum = 0.0
        return self._end_epoch(run, state, loss, score, watch)

    def _end_epoch(
        self, run: _Run, state: TrainingState, loss: float, score: float | None, watch: bool
    ) -> str | None:
        """After an epoch: best weights, patience, schedule, callbacks, checkpoint; why training ends."""
        metric = loss if score is None else -score
        if state.best_metric is None or metric < state.best_metric:
            if watch:
                run.best = np.empty_like(run.network.flat) if run.best is None else run.best
                run.best[:] = run.network.flat
            state.best_metric = metric
            self.history.best_epoch = state.epoch
        watched = metric if self.early_stopping else loss
        if state.stop_metric is not None and watched > state.stop_metric - self.tol:
            state.n_no_improvement += 1
        else:
            state.n_no_improvement = 0
        state.stop_metric = watched if state.stop_metric is None else min(state.stop_metric, watched)
        self.schedule.end_epoch(metric)
        self._notify("on_epoch_end", run, epoch=state.epoch)
        if self.checkpoint_every is None:
            self._save(run, state)
        return "callback" if self._stop_wanted else None

    def _minibatches(self, run: _Run, state: TrainingState, plan: EpochPlan) -> str | None:
        """The minibatches of `plan` from ``state.batch`` on; returns why training ends, if it does."""
        network, schedule, step_optimizer = run.network, self.schedule, self.optimizer.step
        values, loss, params, grads = run.data.values, run.loss, network.flat, network.flat_grads
        starts, lengths, targets, weights = plan.starts, plan.lengths, plan.targets, plan.weights
        clip_norm = math.inf if self.clip_norm is None else self.clip_norm
        gradient = network.step_gradient
        begin_hooks, end_hooks = self._hooks["on_batch_begin"], self._hooks["on_batch_end"]
        every = self.checkpoint_every if run.checkpoint is not None else None
        for batch in range(state.batch, len(plan.spans)):
            span, total = plan.spans[batch], plan.totals[batch]
            if begin_hooks:
                self._notify_batch("on_batch_begin", run, state, batch)
            batch_weights = None if weights is None else weights[span]
            rng_key = (state.seed + state.step) & _KEY_MASK
            value = gradient(values, starts[span], lengths[span], loss, targets[span], batch_weights, rng_key)
            if run.l2_pairs:
                value += run.add_l2(self.alpha / total)
            if self.clip_value is not None:
                clip_by_value(grads, self.clip_value)
            norm = global_norm(grads)
            if not math.isfinite(value + norm):
                return "diverged"
            scale = clip_norm / norm if norm > clip_norm else 1.0
            step_optimizer(params, grads, self.learning_rate_init * schedule(state.step), scale)
            network.parameters_changed()
            state.loss_sum += value * total
            state.weight_sum += total
            state.norm_sum += norm
            state.step += 1
            state.batch = batch + 1
            if end_hooks:
                self._notify_batch("on_batch_end", run, state, batch, loss=value)
            if every is not None and state.step % every == 0:
                self._save(run, state)
            if self._stop_wanted:
                return "callback"
        return None

    def _score(self, run: _Run) -> float | None:
        """Validation score now; NaN if an output is not finite; None without validation data."""
        if run.validation is None:
            return None
        seqs, targets, weights, score = run.validation
        assert score is not None
        outputs = run.network.predict(seqs)
        if not np.isfinite(outputs).all():
            return math.nan
        return float(score(outputs, targets, weights))

    def _keep_best(self, run: _Run, reason: str | None) -> None:
        """Put the best weights into the network where they are the ones to keep."""
        wanted = self.early_stopping or reason in ("interrupted", "diverged")
        kept = run.initial if run.best is None and reason == "diverged" else run.best
        if wanted and kept is not None:
            run.network.flat[:] = kept
            self.history.best_weights_restored = True
        run.network.parameters_changed()

    def _warn(self, reason: str | None) -> None:
        history = self.history
        kept = "the weights of the last minibatch before are kept"
        if history.best_weights_restored:
            best = history.best_epoch
            kept = f"the weights of epoch {best} are kept" if best else "the initial weights are kept"
        epoch = history.n_iter + 1
        if reason == "interrupted":
            warnings.warn(
                f"training was interrupted in epoch {epoch}: {kept}", TrainingInterruptedWarning, stacklevel=5
            )
        elif reason == "diverged":
            warnings.warn(
                f"training diverged in epoch {epoch}, the loss or a gradient is not finite: {kept}. A "
                f"smaller learning_rate_init or clip_norm, or standardised data, would help",
                TrainingDivergedWarning,
                stacklevel=5,
            )

    # ------------------------------------------------------------------ callbacks

    def _notify(self, hook: str, run: _Run, **entries: Any) -> None:
        for method in self._hooks[hook]:
            method(run.net, trainer=self, history=self.history, **entries)

    def _notify_batch(self, hook: str, run: _Run, state: TrainingState, batch: int, **entries: Any) -> None:
        epoch = state.epoch + 1
        self._notify(
            hook, run, epoch=epoch, batch=batch, n_batches=run.data.n_batches, training=True, **entries
        )

    # ------------------------------------------------------------------ checkpoints

    @contextlib.contextmanager
    def _checkpointing(self, run: _Run) -> Iterator[None]:
        """Go on from the checkpoint of this training, if there is one, and hold it meanwhile."""
        if self.checkpoint_dir is None:
            yield
            return
        with Checkpoint(self.checkpoint_dir, fingerprint(self._identity(run))) as checkpoint:
            run.checkpoint = checkpoint
            found = checkpoint.load()
            if found is not None and not (found[1]["state"]["finished"] and self.random_state is None):
                self._restore(run, *found)
            yield

    def _identity(self, run: _Run) -> dict[str, Any]:
        """All that the outcome of the training depends on; without a seed, the seed is left open."""
        network = run.network
        names = "learning_rate_init batch_size max_iter tol n_iter_no_change early_stopping alpha clip_norm"
        identity: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        identity |= {name: getattr(self, name) for name in ("clip_value", "shuffle")}
        identity["optimizer"] = self.optimizer.get_config()
        identity["schedule"] = self.schedule.get_config()
        identity["network"] = network.get_config()
        identity["loss"] = run.loss.get_config()
        identity["data"] = run.data.digest()
        if run.validation is not None:
            seqs, targets, weights, _ = run.validation
            identity["validation"] = Batches(seqs, np.asarray(targets), weights, 1).digest()
        if self.random_state is not None:
            assert self._state is not None
            identity["seed"] = self._state.seed
            identity["initial"] = hashlib.blake2b(network.flat.data, digest_size=16).hexdigest()
        return identity

    def _save(self, run: _Run, state: TrainingState) -> None:
        """Write a checkpoint; where the disk refuses, warn and train on."""
        if run.checkpoint is None:
            return
        tensors, entries = pack(run.network, run.best, self.optimizer, self.schedule)
        entries |= {"state": dataclasses.asdict(state), "history": self.history.to_dict()}
        try:
            run.checkpoint.save(tensors, entries)
        except OSError as error:
            warnings.warn(
                f"no checkpoint was written ({error}); training goes on and the earlier one is intact",
                RuntimeWarning,
                stacklevel=2,
            )

    def _restore(self, run: _Run, tensors: dict[str, Array], entries: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        run.best = unpack(tensors, entries, run.network, self.optimizer, self.schedule)
        self._state = TrainingState(**entries["state"])
        self.history = History.from_dict(entries["history"])
        if not self._state.finished:
            self.history.resumed_epoch = self._state.epoch + 1
