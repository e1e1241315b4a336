"""Gradient-descent optimizers over a flat parameter arena, and gradient clipping.

An optimizer owns the state arrays (`slots`) of one arena and its step count. One step is one fused pass in C
over parameters, gradients and slots, which also applies the gradient multiplier that clipping asks for. The
update rules, names and defaults are those of ``torch.optim``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlstm._core import optimizer_step, sum_squares

Array = NDArray[Any]

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "clip_by_global_norm",
    "clip_by_value",
    "get_optimizer",
    "global_norm",
]


def _check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` as a float in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not low <= value < high:
        bound = f"in [{low:g}, {high:g})" if high < math.inf else f"at least {low:g} and finite"
        raise ValueError(f"{name} must be {bound}; got {value!r}")
    return float(value)


class Optimizer:
    """Base of the optimizers: the state of one parameter arena and the call of the C pass.

    Attributes
    ----------
    kind : str
        Name of the update rule.
    slots : list of ndarray
        State arrays of the shape and dtype of the arena, made at the first step.
    n_steps : int
        Steps done so far.
    """

    kind: ClassVar[str]
    _n_slots: int = 0

    def __init__(self, **hyper: Any) -> None:
        self._config = dict(hyper)
        self._hyper: dict[str, Any] = {"lr": 0.0, "scale": 1.0, "step": 0, **hyper}
        self.slots: list[Array] = []
        self.n_steps = 0

    def step(self, params: Array, grads: Array, learning_rate: float, scale: float = 1.0) -> None:
        """Update `params` in place from `grads`.

        Parameters
        ----------
        params, grads : ndarray of shape (n_parameters,)
            C-contiguous, of one floating dtype; `grads` is only read.
        learning_rate : float
        scale : float
            Multiplies the gradient, as clipping by global norm asks.

        Raises
        ------
        ValueError
            If the arena is not the one of the earlier steps (by size or dtype).
        """
        if len(self.slots) != self._n_slots:
            self.slots = [np.zeros_like(params) for _ in range(self._n_slots)]
        self.n_steps += 1
        hyper = self._hyper
        hyper["lr"] = learning_rate
        hyper["scale"] = scale
        hyper["step"] = self.n_steps
        optimizer_step(self.kind, params, grads, self.slots, hyper)

    def get_config(self) -> dict[str, Any]:
        """Kind and hyperparameters, without the state; JSON-able."""
        return {"kind": self.kind, **self._config}

    def state_dict(self) -> dict[str, Any]:
        """The state: ``n_steps``, the list ``slots`` (the arrays, not copies) and scalars of the rule."""
        return {"n_steps": self.n_steps, "slots": list(self.slots)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state` that :meth:`state_dict` gave (arrays are copied).

        Raises
        ------
        ValueError
            If the number of state arrays is not that of this optimizer.
        """
        slots = [np.array(slot) for slot in state["slots"]]
        if len(slots) not in (0, self._n_slots):
            raise ValueError(f"{self.kind} has {self._n_slots} state arrays; the state holds {len(slots)}")
        self.slots = slots
        self.n_steps = int(state["n_steps"])

    def reset(self) -> None:
        """Forget the state."""
        self.load_state_dict({"n_steps": 0, "slots": []})

    def __repr__(self) -> str:
        parameters = ", ".join(f"{key}={value!r}" for key, value in self._config.items())
        return f"{type(self).__name__}({parameters})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's variant of it.

    Parameters
    ----------
    momentum : float in [0, 1)
    nesterov : bool
        Needs a positive momentum.
    weight_decay : float
        Added to the gradient as ``weight_decay * parameters``.

    Notes
    -----
    Source: I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML
    (2013).
    """

    kind = "sgd"

    def __init__(self, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> None:
        momentum = _check_number("momentum", momentum, 0.0, 1.0)
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov=True needs a momentum above 0")
        super().__init__(
            momentum=momentum,
            nesterov=bool(nesterov),
            weight_decay=_check_number("weight_decay", weight_decay, 0.0),
        )
        self._n_slots = 1 if momentum > 0.0 else 0


class RMSprop(Optimizer):
    """Gradient divided by a running root mean square of itself.

    Parameters
    ----------
    alpha : float in [0, 1)
        Decay of the running mean of squares.
    eps : float
        Added to the root.
    weight_decay : float
        Added to the gradient as ``weight_decay * parameters``.

    Notes
    -----
    Source: T. Tieleman, G. Hinton, "Lecture 6.5: RMSprop", Coursera (2012).
    """

    kind = "rmsprop"
    _n_slots = 1

    def __init__(self, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(
            alpha=_check_number("alpha", alpha, 0.0, 1.0),
            eps=_check_number("eps", eps, 0.0),
            weight_decay=_check_number("weight_decay", weight_decay, 0.0),
        )


class Adam(Optimizer):
    """Adaptive moment estimation.

    Parameters
    ----------
    beta1, beta2 : float in [0, 1)
        Decay of the running means of the gradient and of its square.
    eps : float
        Added to the root.
    weight_decay : float
        Added to the gradient as ``weight_decay * parameters``.

    Notes
    -----
    Source: D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR (2015).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.optimizers import Adam
    >>> parameters = np.array([1.0, -2.0])
    >>> Adam().step(parameters, np.array([0.5, -0.5]), learning_rate=0.1)
    >>> parameters.round(6).tolist()
    [0.9, -1.9]
    """

    kind = "adam"
    _n_slots = 2

    def __init__(
        self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(
            beta1=_check_number("beta1", beta1, 0.0, 1.0),
            beta2=_check_number("beta2", beta2, 0.0, 1.0),
            eps=_check_number("eps", eps, 0.0),
            weight_decay=_check_number("weight_decay", weight_decay, 0.0),
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: parameters shrink by ``1 - learning_rate * weight_decay`` each step.

    Parameters
    ----------
    beta1, beta2, eps : float
        As in :class:`Adam`.
    weight_decay : float

    Notes
    -----
    Source: I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR (2019).
    """

    kind = "adamw"

    def __init__(
        self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        super().__init__(beta1, beta2, eps, weight_decay)


class Nadam(Adam):
    """Adam with Nesterov's momentum.

    Parameters
    ----------
    beta1, beta2, eps, weight_decay : float
        As in :class:`Adam`.
    momentum_decay : float
        Rate at which the momentum warms up to `beta1`.

    Notes
    -----
    Source: T. Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop (2016).
    """

    kind = "nadam"

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
    ) -> None:
        super().__init__(beta1, beta2, eps, weight_decay)
        self._config["momentum_decay"] = _check_number("momentum_decay", momentum_decay, 0.0)
        self._mu_product = 1.0

    def _momentum(self, step: int) -> float:
        """Momentum of that step (counted from 1): ``beta1 * (1 - 0.96 ** (step * momentum_decay) / 2)``."""
        decay = self._config["momentum_decay"]
        return float(self._config["beta1"] * (1.0 - 0.5 * 0.96 ** (step * decay)))

    def step(self, params: Array, grads: Array, learning_rate: float, scale: float = 1.0) -> None:
        """Update `params` in place from `grads`; see :meth:`Optimizer.step`."""
        mu = self._momentum(self.n_steps + 1)
        self._mu_product *= mu
        hyper = self._hyper
        hyper["mu"] = mu
        hyper["mu_next"] = self._momentum(self.n_steps + 2)
        hyper["mu_product"] = self._mu_product
        super().step(params, grads, learning_rate, scale)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the product of the momenta so far."""
        return {**super().state_dict(), "mu_product": self._mu_product}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state` that :meth:`state_dict` gave (arrays are copied)."""
        super().load_state_dict(state)
        self._mu_product = float(state.get("mu_product", 1.0))


_OPTIMIZERS: dict[str, type[Optimizer]] = {cls.kind: cls for cls in (SGD, RMSprop, Adam, AdamW, Nadam)}


def get_optimizer(optimizer: str | Optimizer, **hyper: Any) -> Optimizer:
    """The optimizer of that name, or `optimizer` itself if it is one already.

    Parameters
    ----------
    optimizer : str or Optimizer
        ``"sgd"``, ``"rmsprop"``, ``"adam"``, ``"adamw"`` or ``"nadam"``.
    **hyper
        Hyperparameters of the named optimizer.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> from fastlstm.optimizers import get_optimizer
    >>> get_optimizer("sgd", momentum=0.9)
    SGD(momentum=0.9, nesterov=False, weight_decay=0.0)
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in _OPTIMIZERS:
        raise ValueError(
            f"optimizer must be one of {sorted(_OPTIMIZERS)} or an Optimizer object; got {optimizer!r}"
        )
    return _OPTIMIZERS[optimizer](**hyper)


def global_norm(grads: Array) -> float:
    """Euclidean norm of `grads`; the same bits for any number of threads.

    It is finite wherever all elements are, also where their squares overflow the dtype of `grads`.
    """
    norm = math.sqrt(sum_squares(grads))
    if norm < math.inf:
        return norm
    return math.sqrt(float(np.square(grads, dtype=np.float64).sum()))


def clip_by_global_norm(grads: Array, max_norm: float) -> float:
    """Scale `grads` in place so that their Euclidean norm is at most `max_norm`.

    Parameters
    ----------
    grads : ndarray of shape (n,)
    max_norm : float

    Returns
    -------
    float
        The norm before clipping. Where it is not finite, `grads` are left alone.

    Notes
    -----
    Source: R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML
    (2013).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.optimizers import clip_by_global_norm
    >>> gradient = np.array([3.0, 4.0])
    >>> clip_by_global_norm(gradient, 1.0), gradient.round(6).tolist()
    (5.0, [0.6, 0.8])
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm must be above 0; got {max_norm!r}")
    norm = global_norm(grads)
    if max_norm < norm < math.inf:
        grads *= grads.dtype.type(max_norm / norm)
    return norm


def clip_by_value(grads: Array, limit: float) -> None:
    """Bring every element of `grads` into ``[-limit, limit]``, in place."""
    np.clip(grads, -limit, limit, out=grads)
