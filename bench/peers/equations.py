"""The cells' equations, for libraries that have arrays and gradients but not the cell: torch in a loop, JAX in a scan.

Weights are those of one layer and direction under their names without suffix; which of them are there says
which options are on. Arrays are (..., features).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

NORM_EPSILON = 1e-5


class Operations(NamedTuple):
    """What the equations need of a library, beside operators: `split` cuts the last axis into n, `normalise`
    takes its mean to 0 and its variance to 1."""

    sigmoid: Callable[[Any], Any]
    tanh: Callable[[Any], Any]
    split: Callable[[Any, int], Any]
    normalise: Callable[[Any], Any]


def _normalised(op: Operations, weights: Mapping[str, Any], part: str, z: Any) -> Any:
    name = f"weight_ln_{part}"
    return op.normalise(z) * weights[name] if name in weights else z


def from_input(op: Operations, weights: Mapping[str, Any], x: Any) -> Any:
    """W x + b, which no step has to wait for: (..., features) -> (..., gates * H)."""
    return _normalised(op, weights, "ih", x @ weights["weight_ih"].T) + weights["bias_ih"]


def step(op: Operations, cell: str, weights: Mapping[str, Any], wx: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """h and c after a step with `wx` from :func:`from_input`; a GRU hands c through."""
    uh = _normalised(op, weights, "hh", h @ weights["weight_hh"].T) + weights["bias_hh"]
    return _gru(op, wx, uh, h, c) if cell == "gru" else _lstm(op, weights, wx + uh, c)


def _gru(op: Operations, wx: Any, uh: Any, h: Any, c: Any) -> tuple[Any, Any]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = op.split(wx, 3), op.split(uh, 3)
    r, z = op.sigmoid(x_r + h_r), op.sigmoid(x_z + h_z)
    n = op.tanh(x_n + r * h_n)
    return n + z * (h - n), c


def _lstm(op: Operations, weights: Mapping[str, Any], gates: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = op.split(gates, 4)
    peepholes = "weight_ci" in weights
    if peepholes:
        i, f = i + weights["weight_ci"] * c, f + weights["weight_cf"] * c
    c = op.sigmoid(f) * c + op.sigmoid(i) * op.tanh(g)
    if peepholes:
        o = o + weights["weight_co"] * c
    squashed = (
        op.normalise(c) * weights["weight_ln_c"] + weights["bias_ln_c"] if "bias_ln_c" in weights else c
    )
    h = op.sigmoid(o) * op.tanh(squashed)
    return (h @ weights["weight_hr"].T if "weight_hr" in weights else h), c
