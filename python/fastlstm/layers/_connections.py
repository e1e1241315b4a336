"""What connects the layers of a stack: sums and concatenations of arrays whose last axis holds the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SKIPS = (None, "input", "output", "both")
MERGES = ("concat", "sum")


@dataclass(frozen=True)
class Connections:
    """Residual and skip connections of a stack, and how its directions become one.

    Parameters
    ----------
    residual, skip, merge
        As :class:`fastlstm.layers.Stack` takes them.
    num_layers, directions : int
    input_size : int
        Features of the stack's input.
    unit_size : int
        Features of the output of one direction of a layer.
    """

    residual: bool
    skip: str | None
    merge: str
    num_layers: int
    directions: int
    input_size: int
    unit_size: int

    @property
    def size(self) -> int:
        """Features that a layer passes on."""
        return self.unit_size * (1 if self.merge == "sum" else self.directions)

    @property
    def joins_input(self) -> bool:
        """Whether every layer sees the stack's input."""
        return self.skip in ("input", "both")

    @property
    def n_shown(self) -> int:
        """Layers whose outputs are part of the stack's: all, or the last one."""
        return self.num_layers if self.skip in ("output", "both") else 1

    def adds(self, level: int) -> bool:
        """Whether a layer's input is added to its output."""
        return self.residual and (level > 0 or self.input_size == self.size)

    def layer_input(self, level: int, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What a layer sees of the output of the layer below, `x`, and of the stack's input `rows`."""
        return np.concatenate((x, rows), axis=-1) if level and self.joins_input else x

    def layer_output(self, level: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """What is passed on, where the layer makes `y` of the output of the layer below, `x`."""
        if self.merge == "sum":
            y = y[..., : self.size] + y[..., self.size :]
        return y + x if self.adds(level) else y

    def output(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """The stack's output of what its layers pass on."""
        return np.concatenate(outputs, axis=-1) if self.n_shown > 1 else outputs[-1]

    def d_passed_on(self, level: int, above: np.ndarray | None, dy: np.ndarray | None) -> np.ndarray | None:
        """Gradient of what a layer passes on: what comes down from `above`, and its part of dy if it has one."""
        first = level - self.num_layers + self.n_shown
        if dy is None or first < 0:
            return above
        shown = dy[:, first * self.size : (first + 1) * self.size]
        return shown if above is None else above + shown

    def d_layer(self, d_passed_on: np.ndarray | None) -> np.ndarray | None:
        """Gradient of the outputs of both directions of a layer."""
        if d_passed_on is None:
            return None
        return np.ascontiguousarray(np.tile(d_passed_on, 2) if self.merge == "sum" else d_passed_on)

    # ---- the output at the end of each sequence: see Stack.last_output ----

    def last_output(
        self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, h: np.ndarray
    ) -> np.ndarray:
        """Output (B, output_size) of each direction after all steps that it reads, with the final `h` of all layers."""
        n = len(lengths)
        of_ways = h.reshape(self.num_layers, self.directions, n, -1).transpose(2, 0, 1, 3)
        last = (of_ways.sum(axis=2) if self.merge == "sum" else of_ways).reshape(n, self.num_layers, -1)
        if self.adds(0):
            x = values[starts + lengths - 1]
            x[:, self.unit_size :] = values[starts, self.unit_size :]
            last = np.concatenate((last[:, :1] + x[:, None], last[:, 1:]), axis=1)
        if self.residual:
            last = np.cumsum(last, axis=1)
        return last[:, -self.n_shown :].reshape(n, -1)

    def d_final_h(self, d_last: np.ndarray) -> np.ndarray:
        """Gradient of the final h, (num_layers * directions, B, unit_size), of that of :meth:`last_output`."""
        n = len(d_last)
        dy = np.zeros((n, self.num_layers, self.size), d_last.dtype)
        dy[:, -self.n_shown :] = d_last.reshape(n, self.n_shown, -1)
        if self.residual:
            dy = np.cumsum(dy[:, ::-1], axis=1)[:, ::-1]
        of_ways = dy.reshape(n, self.num_layers, -1, self.unit_size)
        of_ways = np.broadcast_to(of_ways, (n, self.num_layers, self.directions, self.unit_size))
        return np.ascontiguousarray(of_ways.transpose(1, 2, 0, 3)).reshape(-1, n, self.unit_size)

    def add_d_input(self, d_last: np.ndarray, lengths: np.ndarray, dx: np.ndarray) -> None:
        """dx (sum(lengths), input_size) += what of that gradient goes through residual connections alone."""
        if self.adds(0):
            total = d_last.reshape(len(d_last), self.n_shown, -1).sum(axis=1)
            ends = np.cumsum(lengths)
            dx[ends - 1, : self.unit_size] += total[:, : self.unit_size]
            dx[ends - lengths, self.unit_size :] += total[:, self.unit_size :]
