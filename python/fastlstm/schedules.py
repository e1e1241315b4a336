"""Learning-rate schedules: what the initial learning rate is multiplied by at each minibatch.

A schedule is told once how long training may last (:meth:`Schedule.prepare`), is then a function of the
number of minibatches done, and may watch a metric at the end of each epoch (:meth:`Schedule.end_epoch`).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

__all__ = [
    "Constant",
    "Cosine",
    "OnPlateau",
    "OneCycle",
    "Schedule",
    "StepDecay",
    "WarmUp",
    "get_schedule",
]


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number; got {value!r}")
    return float(value)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1]; got {value!r}")
    return float(value)


class Schedule:
    """Base of the schedules; by itself it keeps the learning rate constant.

    Calling it with the number of minibatches done gives the factor of the next one.
    """

    name: ClassVar[str] = "constant"

    def prepare(self, steps_per_epoch: int, max_epochs: int) -> None:
        """Tell the schedule, before training, how many minibatches an epoch and how many epochs to expect."""
        self._steps_per_epoch = max(1, int(steps_per_epoch))
        self._n_steps = self._steps_per_epoch * max(1, int(max_epochs))

    def __call__(self, step: int) -> float:
        """Factor of the initial learning rate for minibatch number `step`, counted from 0."""
        return 1.0

    def end_epoch(self, metric: float) -> None:
        """Take note of the metric of a finished epoch, of which less is better."""

    def state_dict(self) -> dict[str, Any]:
        """What has been noted so far; JSON-able."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state` that :meth:`state_dict` gave."""

    def get_config(self) -> dict[str, Any]:
        """Name and parameters; JSON-able."""
        config: dict[str, Any] = {"name": self.name}
        for key, value in vars(self).items():
            if not key.startswith("_"):
                config[key] = value.get_config() if isinstance(value, Schedule) else value
        return config

    def __repr__(self) -> str:
        parameters = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({parameters})"


class Constant(Schedule):
    """The initial learning rate throughout."""


class StepDecay(Schedule):
    """Multiply the learning rate by `gamma` every `step_size` epochs.

    Parameters
    ----------
    step_size : int
        Epochs.
    gamma : float

    Examples
    --------
    >>> from fastlstm.schedules import StepDecay
    >>> schedule = StepDecay(step_size=2, gamma=0.5)
    >>> schedule.prepare(steps_per_epoch=1, max_epochs=5)
    >>> [schedule(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    name = "step"

    def __init__(self, step_size: int = 30, gamma: float = 0.1) -> None:
        if int(step_size) != step_size or step_size < 1:
            raise ValueError(f"step_size must be a whole number of epochs, at least 1; got {step_size!r}")
        self.step_size = int(step_size)
        self.gamma = _positive("gamma", gamma)

    def __call__(self, step: int) -> float:
        """Factor of minibatch `step`."""
        return float(self.gamma ** (step // (self._steps_per_epoch * self.step_size)))


class Cosine(Schedule):
    """Half a cosine wave from the initial learning rate down to `final_factor` of it over the whole training.

    Parameters
    ----------
    final_factor : float in [0, 1]

    Notes
    -----
    Source: I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR (2017), no
    restart.
    """

    name = "cosine"

    def __init__(self, final_factor: float = 0.0) -> None:
        self.final_factor = _fraction("final_factor", final_factor)

    def __call__(self, step: int) -> float:
        """Factor of minibatch `step`."""
        progress = min(1.0, step / self._n_steps)
        return self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


class OneCycle(Schedule):
    """Rise to the initial learning rate, then fall far below where it began, both along half a cosine wave.

    Parameters
    ----------
    rise : float in [0, 1]
        Share of the training spent rising.
    start_divisor : float
        The first learning rate is the initial one divided by this.
    final_divisor : float
        The last learning rate is the first one divided by this.

    Notes
    -----
    Source: L. N. Smith, N. Topin, "Super-convergence" (2018), with the parametrisation of
    ``torch.optim.OneCycleLR``.
    """

    name = "one_cycle"

    def __init__(self, rise: float = 0.3, start_divisor: float = 25.0, final_divisor: float = 1e4) -> None:
        self.rise = _fraction("rise", rise)
        self.start_divisor = _positive("start_divisor", start_divisor)
        self.final_divisor = _positive("final_divisor", final_divisor)

    def __call__(self, step: int) -> float:
        """Factor of minibatch `step`."""
        low = 1.0 / self.start_divisor
        last = self._n_steps - 1
        peak = self.rise * self._n_steps - 1.0
        if step <= peak and peak > 0.0:
            begin, end, progress = low, 1.0, step / peak
        else:
            begin, end = 1.0, low / self.final_divisor
            peak = max(peak, 0.0)
            progress = (min(step, last) - peak) / (last - peak) if last > peak else 1.0
        return end + (begin - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


class OnPlateau(Schedule):
    """Multiply the learning rate by `factor` when the metric has not improved for over `patience` epochs.

    The metric is the negated validation score where there is one, the training loss otherwise.

    Parameters
    ----------
    factor : float in (0, 1)
    patience : int
        Epochs without improvement that are tolerated.
    threshold : float
        Smallest change that counts as an improvement, in the units of the metric.
    min_factor : float in [0, 1]
        The learning rate never falls below this share of the initial one.
    """

    name = "on_plateau"

    def __init__(
        self, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4, min_factor: float = 0.0
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"factor must lie between 0 and 1; got {factor!r}")
        if int(patience) != patience or patience < 0:
            raise ValueError(f"patience must be a whole number of epochs, at least 0; got {patience!r}")
        self.factor = float(factor)
        self.patience = int(patience)
        self.threshold = float(threshold)
        self.min_factor = _fraction("min_factor", min_factor)
        self._current, self._best, self._bad_epochs = 1.0, math.inf, 0

    def prepare(self, steps_per_epoch: int, max_epochs: int) -> None:
        """Begin a training: forget what was noted in an earlier one."""
        super().prepare(steps_per_epoch, max_epochs)
        self._current, self._best, self._bad_epochs = 1.0, math.inf, 0

    def __call__(self, step: int) -> float:
        """Factor now; it does not depend on `step`."""
        return self._current

    def end_epoch(self, metric: float) -> None:
        """Count the epochs without improvement and cut the learning rate when there are too many."""
        if metric < self._best - self.threshold:
            self._best, self._bad_epochs = metric, 0
        else:
            self._bad_epochs += 1
        if self._bad_epochs > self.patience:
            self._current = max(self._current * self.factor, self.min_factor)
            self._bad_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """Factor, best metric so far and epochs since then."""
        best = self._best if math.isfinite(self._best) else None
        return {"current": self._current, "best": best, "bad_epochs": self._bad_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state` that :meth:`state_dict` gave."""
        self._current = float(state["current"])
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._bad_epochs = int(state["bad_epochs"])


class WarmUp(Schedule):
    """Raise the learning rate linearly over the first minibatches, then follow another schedule.

    Parameters
    ----------
    schedule : str or Schedule
        Followed from the first minibatch on; the warm-up multiplies it.
    steps : int
        Minibatches until the full rate. Minibatch `i` of the warm-up has the factor ``(i + 1) / steps``.

    Examples
    --------
    >>> from fastlstm.schedules import WarmUp
    >>> schedule = WarmUp("constant", steps=4)
    >>> schedule.prepare(steps_per_epoch=3, max_epochs=2)
    >>> [schedule(step) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    name = "warm_up"

    def __init__(self, schedule: str | Schedule = "constant", steps: int = 100) -> None:
        if int(steps) != steps or steps < 1:
            raise ValueError(f"steps must be a whole number of minibatches, at least 1; got {steps!r}")
        self.schedule = get_schedule(schedule)
        self.steps = int(steps)

    def prepare(self, steps_per_epoch: int, max_epochs: int) -> None:
        """Pass the length of the training on."""
        super().prepare(steps_per_epoch, max_epochs)
        self.schedule.prepare(steps_per_epoch, max_epochs)

    def __call__(self, step: int) -> float:
        """Factor of minibatch `step`."""
        return min(1.0, (step + 1) / self.steps) * self.schedule(step)

    def end_epoch(self, metric: float) -> None:
        """Pass the metric on."""
        self.schedule.end_epoch(metric)

    def state_dict(self) -> dict[str, Any]:
        """State of the schedule that is followed."""
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state` that :meth:`state_dict` gave."""
        self.schedule.load_state_dict(state)


_SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Constant, StepDecay, Cosine, OneCycle, OnPlateau, WarmUp)
}


def get_schedule(schedule: str | Schedule, **parameters: Any) -> Schedule:
    """The schedule of that name, or `schedule` itself if it is one already.

    Parameters
    ----------
    schedule : str or Schedule
        ``"constant"``, ``"step"``, ``"cosine"``, ``"one_cycle"``, ``"on_plateau"`` or ``"warm_up"``.
    **parameters
        Of the named schedule.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> from fastlstm.schedules import get_schedule
    >>> get_schedule("cosine", final_factor=0.1)
    Cosine(final_factor=0.1)
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in _SCHEDULES:
        raise ValueError(
            f"schedule must be one of {sorted(_SCHEDULES)} or a Schedule object; got {schedule!r}"
        )
    return _SCHEDULES[schedule](**parameters)
