"""Memory blocks: cells that share their gates, as one layer whose gate weights are tied."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Shapes = list[tuple[str, tuple[int, ...]]]

SHARED = "ifo"  # gates that the cells of a block have in common


class MemoryBlocks:
    """Map between the parameters of a layer with memory blocks and those of one without.

    A block of `size` cells has one input, forget and output gate; the kernels see as many gates as cells, whose
    weights are copies. So parameters are spread before a call, and gradients of copies are added up after it.

    Parameters
    ----------
    shapes : list of (name, shape)
        Parameters of the layer without blocks.
    hidden : int
        Cells of a layer and direction.
    size : int
        Cells of a block; a divisor of `hidden`.
    gates_of : callable
        Gates, by letter, of the row blocks of a parameter.
    fed_by : str
        Gates of the step before that feed gates, by letter.

    Attributes
    ----------
    shapes : list of (name, shape)
        Parameters with one row, or column, for the gate of a block.
    """

    def __init__(
        self, shapes: Shapes, hidden: int, size: int, gates_of: Callable[[str], str], fed_by: str
    ) -> None:
        self.shapes: Shapes = []
        places, begin = [], 0
        for name, shape in shapes:
            rows, columns = np.arange(shape[0]), np.arange(math.prod(shape[1:]))
            real = np.ones(columns.size, bool)
            if any(kind in name for kind in ("_ih_", "_hh_", "_gg_")):
                rows = _units_to_gates(gates_of(name), hidden, size)
            if name.startswith("weight_gg"):
                columns = _units_to_gates(fed_by, hidden, size)
                real = np.arange(columns.size) % size == 0  # a gate is heard once
            compact = (int(rows[-1]) + 1, *([int(columns[-1]) + 1] if len(shape) > 1 else []))
            place = begin + rows[:, None] * math.prod(compact[1:]) + columns
            places.append(np.where(real, place, -1).reshape(-1))
            self.shapes.append((name, compact))
            begin += math.prod(compact)
        self._size = begin
        self._places = np.concatenate(places)
        self._places[self._places < 0] = begin

    def spread(self, flat: np.ndarray) -> np.ndarray:
        """Flat parameters of the layer without blocks."""
        return np.append(flat[: self._size], flat.dtype.type(0))[self._places]

    def add_up(self, gradients: np.ndarray, out: np.ndarray) -> None:
        """Gradients of the blocks' parameters into the beginning of `out`."""
        out[: self._size] = np.bincount(self._places, gradients, self._size + 1)[:-1]


def _units_to_gates(gates: str, hidden: int, size: int) -> np.ndarray:
    """Row of the compact matrix for each row of the full one, whose row blocks are `gates`."""
    found, begin = [], 0
    for gate in gates:
        rows = np.arange(hidden) // (size if gate in SHARED else 1)
        found.append(begin + rows)
        begin += int(rows[-1]) + 1
    return np.concatenate(found)
