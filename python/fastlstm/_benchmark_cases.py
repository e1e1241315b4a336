"""The benchmark's case table, and the arrays of each case.

One table serves ``fastlstm bench``, the comparison with other libraries in ``bench/`` and the
table in the README. Shapes are written time x batch x input_size x hidden_size.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CASES", "Case", "Problem", "Target", "make_problem", "select_cases"]


@dataclass(frozen=True)
class Target:
    """Least ratio (time of the opponent / our time) to reach: with AMX, and on other machines. None = no target."""

    amx: float | None
    avx512: float | None
    opponent: str = "best peer"


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Parameters
    ----------
    kind : {"step", "infer", "train", "fit"}
        One streamed time step; a forward pass over the sequences; forward and backward pass with
        the gradient of every weight (not of the input); one epoch of ``LSTMClassifier.fit``.
    time, batch, input_size, hidden_size : int
        Steps of the longest sequence, sequences, input features, units.
    num_layers : int
    bidirectional : bool
    ragged : bool
        Lengths uniform in [time / 4, time] instead of all equal to `time`.
    rows : int
        Only for "fit": sequences in the training set (`batch` is the size of a minibatch).
    cell : {"lstm", "gru", "peephole"}
    proj_size : int
        Size of the projected h that recurs; 0 = no projection.
    layer_norm : bool
    dropout : float
        Between layers, for "train"; no part of what contenders are compared by.
    precision : {"float32", "high", "bfloat16", "int8"}
        Argument of the layer of that name, for "infer".
    quick : bool
        Part of the short selection (``--quick``).
    targets : tuple of Target
    """

    kind: str
    time: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    ragged: bool = False
    rows: int = 0
    cell: str = "lstm"
    proj_size: int = 0
    layer_norm: bool = False
    dropout: float = 0.0
    precision: str = "float32"
    quick: bool = False
    targets: tuple[Target, ...] = ()

    @property
    def name(self) -> str:
        """kind-TIMExBATCHxINPUTxHIDDEN and what else differs from the plain layer."""
        kind = self.kind if self.cell == "lstm" else f"{self.cell}-{self.kind}"
        parts = [kind, f"{self.time}x{self.batch}x{self.input_size}x{self.hidden_size}"]
        parts += [f"{self.num_layers}layers"] if self.num_layers > 1 else []
        parts += ["bidirectional"] if self.bidirectional else []
        parts += ["ragged"] if self.ragged else []
        parts += [f"projected{self.proj_size}"] if self.proj_size else []
        parts += ["layer_norm"] if self.layer_norm else []
        parts += [f"dropout{self.dropout:g}"] if self.dropout else []
        parts += [self.precision] if self.precision != "float32" else []
        return "-".join(parts)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def gates(self) -> int:
        """Blocks of hidden_size rows in a weight matrix."""
        return 3 if self.cell == "gru" else 4

    @property
    def recurrent_size(self) -> int:
        """Size of h."""
        return self.proj_size or self.hidden_size

    @property
    def layer_options(self) -> dict[str, Any]:
        """Keyword arguments of the layer, beside its sizes; `precision` only where it is not the default."""
        options: dict[str, Any] = {"cell": self.cell, "bidirectional": self.bidirectional}
        options |= {"proj_size": self.proj_size, "layer_norm": self.layer_norm, "dropout": self.dropout}
        return options | ({"precision": self.precision} if self.precision != "float32" else {})

    def parameter_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the layer's weights, in its order (PyTorch's, where PyTorch has them)."""
        sides = ("", "_reverse")[: self.directions]
        return [
            (f"{name}_l{layer}{side}", shape)
            for layer, side in itertools.product(range(self.num_layers), sides)
            for name, shape in self._direction_shapes(self.layer_input(layer)).items()
        ]

    def _direction_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        units, rows = self.hidden_size, self.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width)}
        shapes |= {"weight_hh": (rows, self.recurrent_size), "bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, units)
        if self.cell == "peephole":
            shapes |= {f"weight_c{gate}": (units,) for gate in "ifo"}
        if self.layer_norm:
            shapes |= {"weight_ln_ih": (rows,), "weight_ln_hh": (rows,)}
            shapes |= {"weight_ln_c": (units,), "bias_ln_c": (units,)} if self.cell != "gru" else {}
        return shapes

    def layer_input(self, layer: int) -> int:
        """Features that go into one layer of the stack."""
        return self.input_size if layer == 0 else self.directions * self.recurrent_size

    def flops(self, steps: int) -> float:
        """Multiply-adds, counted as two, of the matrix products over `steps` real steps of all sequences."""
        products = 0  # a real step
        training = self.kind in ("train", "fit")
        rows = self.gates * self.hidden_size
        for layer in range(self.num_layers):
            from_input, recurrent = self.layer_input(layer), self.recurrent_size
            products += rows * (from_input + recurrent) + self.hidden_size * self.proj_size
            if training:  # weights, hidden state, layer below
                products += rows * (from_input + 2 * recurrent + (from_input if layer else 0))
                products += 2 * self.hidden_size * self.proj_size
        return 2.0 * self.directions * steps * products


def _pair(amx: float, avx512: float | None = None) -> tuple[Target, ...]:
    return (Target(amx, amx if avx512 is None else avx512),)


def _with_precision(precision: str, ratio: float, *shapes: tuple[int, int, int, int]) -> tuple[Case, ...]:
    """Inference in a reduced precision; the target is for machines with AMX alone."""
    targets = (Target(ratio, None),)
    return tuple(Case("infer", *shape, precision=precision, targets=targets) for shape in shapes)


_BATCHES = ((100, 8, 64, 128), (100, 32, 64, 128), (100, 128, 64, 256), (50, 64, 512, 1024))


CASES: tuple[Case, ...] = (
    Case("step", 1, 1, 16, 32, quick=True, targets=_pair(10)),
    Case("step", 1, 1, 64, 128, quick=True, targets=_pair(5)),
    Case("step", 1, 1, 256, 256, targets=_pair(2.8)),
    Case("step", 1, 1, 512, 1024),
    Case("infer", 100, 1, 16, 32, quick=True, targets=_pair(2.2)),
    Case("infer", 100, 1, 64, 128, quick=True, targets=_pair(1.5)),
    Case("infer", 100, 1, 256, 256, targets=_pair(1.45)),
    Case("infer", 100, 1, 512, 1024, targets=_pair(1.05)),
    Case("infer", 100, 1, 64, 128, num_layers=2),
    Case("infer", 100, 8, 64, 128, targets=_pair(1.3, 1.1)),
    Case("infer", 100, 32, 64, 128, quick=True, targets=_pair(2.2, 1.1)),
    Case("infer", 100, 128, 64, 256, targets=_pair(2.2, 1.1)),
    Case("infer", 50, 64, 512, 1024, targets=_pair(1.8, 1.1)),
    Case("infer", 100, 32, 64, 128, ragged=True),
    Case("infer", 100, 32, 64, 128, num_layers=2, bidirectional=True),
    Case("infer", 100, 32, 64, 128, cell="gru", targets=_pair(3, 1.8)),
    Case("infer", 100, 32, 64, 128, cell="peephole"),
    Case("infer", 100, 32, 64, 128, proj_size=64),
    Case("infer", 100, 32, 64, 128, layer_norm=True),
    *_with_precision("high", 1.0, *_BATCHES),
    *_with_precision("bfloat16", 1.3, *_BATCHES),
    *_with_precision("int8", 1.2, (100, 1, 512, 1024)),
    Case("train", 100, 32, 16, 32, quick=True),
    Case("train", 100, 32, 64, 128, quick=True, targets=_pair(2.5, 1.3)),
    Case("train", 100, 128, 64, 256, targets=_pair(3, 1.3)),
    Case("train", 50, 64, 512, 1024, targets=_pair(2, 1.3)),
    Case("train", 28, 64, 28, 128),
    Case("train", 100, 32, 64, 128, cell="gru", targets=_pair(4, 2)),
    Case("train", 100, 32, 64, 128, cell="peephole"),
    Case("train", 100, 32, 64, 128, proj_size=64),
    Case("train", 100, 32, 64, 128, layer_norm=True),
    Case("train", 100, 32, 64, 128, num_layers=2, dropout=0.3),
    Case("train", 100, 32, 64, 128, num_layers=2, bidirectional=True, targets=_pair(4, 2.5)),
    Case("train", 100, 32, 64, 128, ragged=True),
    Case(
        *("train", 400, 64, 40, 128),
        ragged=True,
        targets=(Target(20, 15, "torch packed"), Target(1.5, 1.2, "torch padded x fill rate")),
    ),
    Case("fit", 20, 32, 12, 32, rows=270, quick=True, targets=_pair(5)),
)


def runs_here(case: Case) -> bool:
    """Whether the layer takes every option of `case`."""
    from fastlstm.layers import LSTM

    return case.layer_options.keys() <= inspect.signature(LSTM).parameters.keys()


def select_cases(pattern: str | None = None, *, quick: bool = False, more: Iterable[Any] = ()) -> list[Any]:
    """Cases that the layer can do and whose name contains a match of the regular expression `pattern`.

    Parameters
    ----------
    pattern : str or None
        Searched in :attr:`Case.name`; None selects every case.
    quick : bool
        Keep the short selection only.
    more : iterable
        What to select from beside the table: anything with ``name`` and ``quick``.

    Raises
    ------
    ValueError
        If `pattern` is not a regular expression, or if no case is left.
    """
    try:
        expression = re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"filter {pattern!r} is not a regular expression: {error}") from None
    table = (*filter(runs_here, CASES), *more)
    cases = [case for case in table if expression.search(case.name) and (case.quick or not quick)]
    if not cases:
        raise ValueError(f"no case matches the filter {pattern!r}; --list shows the names")
    return cases


@dataclass(frozen=True)
class Problem:
    """The arrays of a case, the same for everyone who is timed.

    ``x`` is (batch, time, input_size), for "fit" (rows, time, input_size), zero beyond each
    length; ``dy`` is the gradient of the output, (batch, time, directions * recurrent_size), zero
    beyond each length; ``weights`` has the layer's names and shapes.
    """

    case: Case
    x: np.ndarray
    lengths: np.ndarray
    weights: dict[str, np.ndarray]
    dy: np.ndarray
    labels: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(batch, time) bool: the real steps."""
        return np.arange(self.case.time) < self.lengths[:, None]

    @property
    def steps(self) -> int:
        """Real time steps of all sequences together."""
        return int(self.lengths.sum())


def make_problem(case: Case, seed: int = 0) -> Problem:
    """Random inputs and weights for `case`, the same for the same seed."""
    rng = np.random.default_rng(seed)
    n_sequences = case.rows or case.batch
    low = max(1, case.time // 4) if case.ragged else case.time
    lengths = rng.integers(low, case.time + 1, n_sequences)
    mask = np.arange(case.time) < lengths[:, None]
    x = rng.standard_normal((n_sequences, case.time, case.input_size), np.float32)
    dy = rng.standard_normal((n_sequences, case.time, case.directions * case.recurrent_size), np.float32)
    bound = case.hidden_size**-0.5
    weights = {
        name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in case.parameter_shapes()
    }
    for name in weights:
        if name.startswith("weight_ln_"):
            weights[name] += 0.5  # gains about 1 would amplify rounding over time
    labels = rng.integers(0, 9, n_sequences)
    return Problem(case, x * mask[..., None], lengths, weights, dy * mask[..., None], labels)
