"""Checks of constructor parameters, done at `fit` with a sentence that lists what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np


class Rule(Protocol):
    """What a parameter may be."""

    def accepts(self, value: Any) -> bool: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Number:
    """A finite number between two bounds; whole if `integer`."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True
    integer: bool = False

    def accepts(self, value: Any) -> bool:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral if self.integer else Real):
            return False
        number = float(value)
        above = number > self.low if self.low_open else number >= self.low
        below = number < self.high if self.high_open else number <= self.high
        return above and below

    def __str__(self) -> str:
        if self.low == math.inf:
            return "infinity"
        kind = "a whole number" if self.integer else "a number"
        if self.high == math.inf:
            return f"{kind} {'greater than' if self.low_open else 'of at least'} {self.low:g}"
        opening, closing = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{kind} in {opening}{self.low:g}, {self.high:g}{closing}"


@dataclass(frozen=True)
class Choice:
    """One of some strings."""

    options: tuple[str, ...]

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.options

    def __str__(self) -> str:
        names = ", ".join(map(repr, self.options))
        return f"one of {names}" if len(self.options) > 1 else names


@dataclass(frozen=True)
class Boolean:
    """True or False."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, (bool, np.bool_))

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Instance:
    """An object of one of some types."""

    types: tuple[type, ...]
    name: str

    def accepts(self, value: Any) -> bool:
        return isinstance(value, self.types)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Nothing:
    """None."""

    def accepts(self, value: Any) -> bool:
        return value is None

    def __str__(self) -> str:
        return "None"


def check_parameters(
    owner: str, parameters: Mapping[str, Any], rules: Mapping[str, tuple[Rule, ...]]
) -> None:
    """Check that each parameter obeys one of its rules.

    Parameters
    ----------
    owner : str
        Name of the class, for the message.
    parameters : mapping of str to object
        The values.
    rules : mapping of str to tuple of rules
        Parameters without a rule are not checked.

    Raises
    ------
    ValueError
        Names the first wrong parameter, its value and what is allowed.
    """
    for name, allowed in rules.items():
        value = parameters[name]
        if not any(rule.accepts(value) for rule in allowed):
            expected = " or ".join(map(str, allowed))
            raise ValueError(f"The {name!r} parameter of {owner} must be {expected}. Got {value!r} instead.")
