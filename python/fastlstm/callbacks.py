"""Callbacks: what may watch a training, and stop it.

The hooks and their first argument are skorch's: ``on_train_begin(net, ...)``, ``on_train_end``,
``on_epoch_begin``, ``on_epoch_end``, ``on_batch_begin``, ``on_batch_end``. `net` is the estimator, or the
trainer where there is none; an estimator predicts, scores and saves with the weights of the moment. The keyword
arguments are ``trainer`` and ``history`` in every hook; ``epoch`` (counted from 1) in those of an epoch; ``epoch``,
``batch`` (from 0), ``n_batches`` and, at its end, ``loss`` in those of a minibatch. A callback may be any object that
has some of the hooks and takes further keyword arguments. It stops the training with ``trainer.stop()``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

__all__ = ["HOOKS", "Callback", "PrintLog", "ProgressBar", "ScikitLearnCallbacks", "collect_hooks"]

HOOKS = (
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_batch_begin",
    "on_batch_end",
)


class Callback:
    """Base of the callbacks; every hook does nothing.

    Examples
    --------
    >>> from fastlstm.callbacks import Callback
    >>> class StopAt(Callback):
    ...     def __init__(self, loss):
    ...         self.loss = loss
    ...
    ...     def on_epoch_end(self, net, *, trainer, history, **kwargs):
    ...         if history.loss_curve[-1] < self.loss:
    ...             trainer.stop()
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Called once, before the first minibatch."""

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Called once, after the last minibatch, also after an interruption."""

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Called before the first minibatch of each epoch."""

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Called after each epoch, when its loss and score are in the history."""

    def on_batch_begin(self, net: Any, **kwargs: Any) -> None:
        """Called before each minibatch."""

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        """Called after each minibatch, when the weights have been updated."""


def collect_hooks(callbacks: Iterable[Any]) -> dict[str, list[Callable[..., Any]]]:
    """For each hook the bound methods to call; those that do nothing are left out.

    Raises
    ------
    TypeError
        If a callback is a class, not an object, or has none of the hooks.
    """
    hooks: dict[str, list[Callable[..., Any]]] = {name: [] for name in HOOKS}
    for callback in callbacks:
        if isinstance(callback, type) or not any(hasattr(callback, name) for name in HOOKS):
            raise TypeError(
                f"a callback must be an object with at least one of the hooks {HOOKS}; got {callback!r}"
            )
        for name in HOOKS:
            method = getattr(callback, name, None)
            if method is not None and getattr(method, "__func__", None) is not getattr(Callback, name):
                hooks[name].append(method)
    return hooks


def format_seconds(seconds: float) -> str:
    """A duration for reading: ``"4.2 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _epoch_summary(history: Any, max_iter: int) -> list[str]:
    """Loss, validation score, learning rate, speed and time left after the last finished epoch."""
    parts = [f"loss {history.loss_curve[-1]:.5g}"]
    if history.validation_scores:
        parts.append(f"validation {history.validation_scores[-1]:.5g}")
    parts.append(f"rate {history.learning_rates[-1]:.3g}")
    recent = history.seconds[-5:]
    mean_seconds = sum(recent) / len(recent)
    if mean_seconds > 0:
        parts.append(f"{history.n_sequences / mean_seconds:.0f} sequences/s")
    left = (max_iter - history.n_iter) * mean_seconds
    parts.append(f"left at most {format_seconds(left)}")
    return parts


class PrintLog(Callback):
    """One line an epoch: loss, validation score, learning rate, speed, time left; ``*`` marks the best.

    Parameters
    ----------
    sink : callable, optional
        Called with each line; :func:`print` by default.
    """

    def __init__(self, sink: Callable[[str], Any] | None = None) -> None:
        self.sink = sink

    def _write(self, line: str) -> None:
        if self.sink is None:
            print(line, flush=True)
        else:
            self.sink(line)

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Say where training goes on, if it was resumed."""
        history = kwargs["history"]
        if history.resumed_epoch is not None:
            self._write(f"resumed from a checkpoint in epoch {history.resumed_epoch}")

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Write the line of the epoch."""
        history, trainer = kwargs["history"], kwargs["trainer"]
        width = len(str(trainer.max_iter))
        best = "*" if history.best_epoch == history.n_iter else " "
        parts = _epoch_summary(history, trainer.max_iter)
        self._write(f"epoch {history.n_iter:{width}d}/{trainer.max_iter}{best} " + "  ".join(parts))

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Say why training ended."""
        history = kwargs["history"]
        reasons = {
            "max_iter": "all epochs done",
            "no_improvement": "no more improvement",
            "callback": "stopped by a callback",
            "interrupted": "interrupted",
            "diverged": "the loss or a gradient is not finite any more",
        }
        line = f"ended: {reasons.get(history.stop_reason, 'by an error')}"
        if history.best_weights_restored:
            line += f"; the weights of epoch {history.best_epoch} are kept"
        self._write(line)


class _Bar(Protocol):
    """What :class:`ProgressBar` needs of a progress bar."""

    def update(self, done: int, text: str) -> None: ...

    def close(self) -> None: ...


class _RichBar:
    """Live bar of the rich package."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("epoch {task.fields[text]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=total, text="")
        self._progress.start()

    def update(self, done: int, text: str) -> None:
        self._progress.update(self._task, completed=done, text=text)

    def close(self) -> None:
        self._progress.stop()


class _TqdmBar:
    """Live bar of the tqdm package."""

    def __init__(self, total: int) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, file=sys.stderr, unit="batch", desc="epoch")

    def update(self, done: int, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _make_bar(total: int) -> _Bar | None:
    """The bar of rich or tqdm; None where neither is installed."""
    for bar in (_RichBar, _TqdmBar):
        try:
            return bar(total)
        except ImportError:
            continue
    return None


class ProgressBar(Callback):
    """A live bar over all minibatches, drawn by rich or tqdm; without them, one line an epoch."""

    def __init__(self) -> None:
        self._bar: _Bar | None = None
        self._fallback: PrintLog | None = None
        self._summary = ""

    def __getstate__(self) -> dict[str, Any]:
        return {"_bar": None, "_fallback": None, "_summary": ""}

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Draw the empty bar."""
        trainer = kwargs["trainer"]
        self._summary = ""
        self._bar = _make_bar(trainer.max_iter * trainer.n_batches)
        self._fallback = PrintLog() if self._bar is None else None
        if self._fallback is not None:
            self._fallback.on_train_begin(net, **kwargs)

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            epoch, batch, n_batches = kwargs["epoch"], kwargs["batch"], kwargs["n_batches"]
            summary = self._summary or f"loss {kwargs['loss']:.5g}"
            done = (epoch - 1) * n_batches + batch + 1
            self._bar.update(done, f"{epoch}/{kwargs['trainer'].max_iter}  {summary}")

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Show the loss, the score and the speed of the epoch."""
        history, trainer = kwargs["history"], kwargs["trainer"]
        if self._fallback is not None:
            self._fallback.on_epoch_end(net, **kwargs)
        if self._bar is not None:
            self._summary = "  ".join(_epoch_summary(history, trainer.max_iter)[:-1])
            done = history.n_iter * trainer.n_batches
            self._bar.update(done, f"{history.n_iter}/{trainer.max_iter}  {self._summary}")

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._fallback is not None:
            self._fallback.on_train_end(net, **kwargs)
        if self._bar is not None:
            self._bar.close()
        self._bar = self._fallback = None


class ScikitLearnCallbacks(Callback):
    """Passes a training on to the callbacks set on an estimator by scikit-learn's callback protocol.

    The training is the root task of `context` and each epoch a task below it.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext
        What ``estimator._init_callback_context(max_subtasks=max_iter)`` returned.
    reconstruction_attributes : callable, optional
        Called with nothing, returns the fitted attributes with which an estimator could predict now.
    **data
        `X`, `y` and `metadata` of the fit, for the hooks that ask for them.
    """

    def __init__(
        self,
        context: Any,
        reconstruction_attributes: Callable[[], dict[str, Any]] | None = None,
        **data: Any,
    ) -> None:
        self.context = context
        self.data = data
        self.reconstruction_attributes = reconstruction_attributes
        self._epoch: Any = None

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin the root task."""
        self.context.call_on_fit_task_begin(estimator=net, **self.data)

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin the task of the epoch."""
        self._epoch = self.context.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(estimator=net, **self.data)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """End the task of the epoch; a callback that returns True ends the training."""
        wants_stop = self._epoch.call_on_fit_task_end(
            estimator=net, reconstruction_attributes=self.reconstruction_attributes, **self.data
        )
        self._epoch = None
        if wants_stop:
            kwargs["trainer"].stop()

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """End the root task, and the one of an epoch that was cut short."""
        if self._epoch is not None:
            self._epoch.call_on_fit_task_end(estimator=net, **self.data)
            self._epoch = None
        self.context.call_on_fit_task_end(
            estimator=net, reconstruction_attributes=self.reconstruction_attributes, **self.data
        )
