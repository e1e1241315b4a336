"""Parameters of a layer: one flat array, one flat gradient, named views."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def as_generator(random_state: Any) -> np.random.Generator:
    """Random generator from None, an int, a Generator or a RandomState."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31 - 1))
    return np.random.default_rng(random_state)


def as_dtype(dtype: Any) -> np.dtype:
    """float32 or float64; anything else is a ValueError."""
    found = np.dtype("V" if dtype is None else dtype)
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return np.dtype(found.type)


def as_size(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`; anything else is a TypeError or ValueError naming the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def as_fraction(value: Any, name: str) -> float:
    """A number in [0, 1); anything else is a TypeError or ValueError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return float(value)


def as_deviation(value: Any, name: str) -> float:
    """A finite number >= 0; anything else is a TypeError or ValueError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0.0 <= value < np.inf:
        raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
    return float(value)


@functools.lru_cache(maxsize=8)
def whole_sequences(n: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """First rows and lengths of `n` sequences of `steps` rows each, one after another; read-only."""
    found = np.arange(0, n * steps, steps, dtype=np.int64), np.full(n, steps, np.int64)
    for array in found:
        array.flags.writeable = False
    return found


def first_rows(lengths: np.ndarray) -> np.ndarray:
    """First row of each of at least one sequence, packed one after another."""
    return np.add.accumulate(lengths) - lengths


def as_lengths(lengths: Any, n: int, steps: int) -> np.ndarray:
    """Real steps of each of `n` sequences, int64: 1 to `steps`, or all of them for None."""
    if lengths is None:
        return whole_sequences(n, steps)[1]
    found = np.asarray(lengths)
    if found.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got dtype {found.dtype}")
    if found.shape != (n,):
        raise ValueError(f"lengths has shape {found.shape}; expected ({n},), one length per sequence")
    bad = np.flatnonzero((found < 1) | (found > steps))
    if bad.size:
        raise ValueError(f"lengths[{bad[0]}] is {found[bad[0]]}; expected 1 to {steps}")
    return np.ascontiguousarray(found, np.int64)


def as_real_array(x: Any, dtype: np.dtype, name: str) -> np.ndarray:
    """C-contiguous, aligned array of `dtype` from any real numeric array.

    A TypeError for complex numbers, objects and text, and for masked arrays, whose mask would be lost.
    """
    if type(x) is np.ndarray and x.dtype is dtype:
        flags = x.flags
        if flags.c_contiguous and flags.aligned:
            return x
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got an array of dtype {array.dtype}")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill it and give lengths= instead")
    return np.require(array, dtype, ["C", "A"])


def as_states(layer: Any, state: Any, n: int, name: str) -> tuple[np.ndarray | None, ...] | None:
    """The checked states of `n` sequences of a recurrent layer, or of a stack of them; None, or a None entry, stays."""
    if state is None:
        return None
    names = layer.state_names
    if isinstance(state, np.ndarray):
        state = (state,)
    if not isinstance(state, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of arrays ({', '.join(names)}), got {type(state).__name__}")
    if len(state) != len(names):
        raise ValueError(f"{name} has {len(state)} arrays; expected {len(names)}: {', '.join(names)}")
    checked: list[np.ndarray | None] = []
    for label, value in zip(names, state, strict=True):
        if value is not None:
            size = layer.recurrent_size if label == "h" else layer.hidden_size
            shape = (layer.num_layers * layer.directions, n, size)
            value = as_real_array(value, layer.dtype, f"{name} {label}")
            if value.shape != shape:
                raise ValueError(f"{name} {label} has shape {value.shape}; expected {shape}")
        checked.append(value)
    return tuple(checked)


class Parameterized:
    """Base of the layers. A subclass sets `parameter_shapes` and `dtype`, then calls `_allocate`."""

    parameter_shapes: list[tuple[str, tuple[int, ...]]]
    dtype: np.dtype
    _flat: np.ndarray
    _grads: np.ndarray

    @property
    def n_parameters(self) -> int:
        """Number of scalar parameters."""
        return sum(math.prod(shape) for _, shape in self.parameter_shapes)

    @property
    def flat(self) -> np.ndarray:
        """All parameters, 1-D and writable; call :meth:`parameters_changed` after writing."""
        return self._flat

    @property
    def flat_grads(self) -> np.ndarray:
        """Gradient of the last backward pass, laid out as :attr:`flat`."""
        return self._grads

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Read-only views of the parameters by name; change them with :meth:`load_parameters`."""
        views = self._views(self._flat)
        for view in views.values():
            view.flags.writeable = False
        return views

    def load_parameters(self, mapping: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters.

        Parameters
        ----------
        mapping : mapping of str to array
            Values by parameter name, shapes as in :attr:`parameters`.
        strict : bool, default=True
            Refuse missing and unknown names. With False, names that the layer lacks are passed over.

        Raises
        ------
        ValueError
            A name is missing or unknown (`strict`), or a shape differs. Nothing is changed then.
        """
        views = self._views(self._flat)
        if strict and set(mapping) != set(views):
            missing, unknown = sorted(set(views) - set(mapping)), sorted(set(mapping) - set(views))
            raise ValueError(f"parameters do not match the layer: missing {missing}, unknown {unknown}")
        wanted = {name: np.asarray(mapping[name]) for name in views if name in mapping}
        for name, value in wanted.items():
            if value.shape != views[name].shape:
                raise ValueError(f"{name} has shape {value.shape}; expected {views[name].shape}")
            if value.dtype.kind not in "fiub":
                raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}")
        for name, value in wanted.items():
            views[name][...] = value
        self.parameters_changed()

    def bind(self, flat: np.ndarray, grads: np.ndarray) -> None:
        """Keep parameters and gradients in slices of larger arrays from now on (the values are copied in)."""
        for array, name in ((flat, "flat"), (grads, "grads")):
            if array.shape != self._flat.shape or array.dtype != self.dtype or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name} must be a contiguous {self.dtype} array of {self._flat.size} elements, "
                    f"got {array.dtype} of shape {array.shape}"
                )
        flat[...] = self._flat
        self._flat, self._grads = flat, grads
        self.parameters_changed()

    def parameters_changed(self) -> None:
        """To be called after writing into :attr:`flat`."""

    def _allocate(self, values: np.ndarray) -> None:
        self._flat = np.ascontiguousarray(values, self.dtype)
        self._grads = np.zeros_like(self._flat)
        self.parameters_changed()

    def _views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        views, at = {}, 0
        for name, shape in self.parameter_shapes:
            size = math.prod(shape)
            views[name] = flat[at : at + size].reshape(shape)
            at += size
        return views

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        raise TypeError(f"{type(self).__name__} has no configuration")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Layer of this configuration, freshly initialised."""
        return cls(**config)

    def __repr__(self) -> str:
        defaults: dict[str, Any] = {}
        for cls in reversed(type(self).__mro__):
            if "__init__" in cls.__dict__ and cls is not object:
                defaults |= {name: p.default for name, p in inspect.signature(cls).parameters.items()}
        try:
            config = self.get_config()
        except TypeError:
            return super().__repr__()
        told = [f"{name}={v!r}" for name, v in config.items() if name not in defaults or defaults[name] != v]
        return f"{type(self).__name__}({', '.join(told)})"

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.get_config(), "parameters": self._flat.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["config"])  # type: ignore[misc]
        self._flat[...] = state["parameters"]
        self.parameters_changed()
