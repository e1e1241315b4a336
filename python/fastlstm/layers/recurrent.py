"""Recurrent layers: stacked, bidirectional, over sequences of any lengths."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.layers._blocks import SHARED, MemoryBlocks
from fastlstm.layers._checkpointing import Checkpoints
from fastlstm.layers._parameters import (
    Parameterized,
    as_deviation,
    as_dtype,
    as_fraction,
    as_generator,
    as_lengths,
    as_real_array,
    as_size,
    first_rows,
    whole_sequences,
)
from fastlstm.layers._segments import Segments, as_resets

CELLS = tuple(_core.cells())
PRECISIONS = ("float32", "high", "bfloat16", "int8")
_NOISE = ("dropout", "recurrent_dropout", "weight_dropout", "weight_noise")
_DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log": lambda delta_t: 1.0 / np.log(np.e + delta_t),
    "inverse": lambda delta_t: 1.0 / np.where(delta_t == 0.0, 1.0, delta_t),
}
# Row blocks of a matrix that are not the gates one by one: (weight_ih, weight_hh, weight_gg).
_ROWS = {
    "gru": ("rzn", "rzn", ""),
    "peephole_article": ("ifgo", "ifo", ""),
    "tlstm": ("ifgo", "ifgod", ""),
    "fgr": ("ifgo", "ifgo", "ifo"),
}
_WITHOUT_BLOCKS = ("rnn", "gru", "peephole")
_UNPROJECTED = ("rnn", "gru", "tlstm", "peephole_article")
_TRUNCATED = {False: 0, True: 1, "peepholes": 2}
_IDENTITY = {"lstm": "noaf", "peephole": "peephole_identity", "peephole_article": "peephole_article_identity"}


def _as_precision(precision: Any, dtype: np.dtype) -> str:
    """The checked argument."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {precision!r}")
    if precision != "float32" and dtype != np.float32:
        raise ValueError(f"precision {precision!r} goes with dtype 'float32', got dtype {dtype.name!r}")
    return str(precision)


class Tape:
    """What a training forward pass leaves for the backward pass. Reusable: its memory grows to the largest call."""

    __slots__ = (
        "_y_starts",
        "checkpoints",
        "core",
        "fresh",
        "kept",
        "layer",
        "lengths",
        "padded_steps",
        "segments",
        "starts",
        "version",
        "weights",
    )

    def __init__(self) -> None:
        self.core = _core.Tape()
        self.checkpoints: Checkpoints | None = None  # of a call whose last chunk alone is in `core`
        self.layer: LSTM | None = None
        self.version = 0
        self.weights: np.ndarray | None = None  # of the call, where they are not the layer's own
        self.kept: dict[str, np.ndarray] = {}  # factors of the weights that are dropped
        self.lengths: np.ndarray
        self.starts: np.ndarray
        self._y_starts: np.ndarray | None = None
        self.padded_steps = 0
        self.fresh: dict[
            str, Any
        ] = {}  # places and sequences that started from learned states: a mask, or all or none
        self.segments: Segments | None = None  # that the core took for the sequences

    @property
    def y_starts(self) -> np.ndarray:
        """First row of each sequence's outputs; where none were wanted, as if they followed each other."""
        if self._y_starts is None:
            self._y_starts = first_rows(self.lengths)
        return self._y_starts

    @y_starts.setter
    def y_starts(self, starts: np.ndarray | None) -> None:
        self._y_starts = starts

    @property
    def n_sequences(self) -> int:
        """Sequences of the call."""
        return len(self.lengths) if self.segments is None else self.segments.n_sequences

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds; see :meth:`LSTM.activation_bytes`."""
        return self.core.nbytes + (0 if self.checkpoints is None else self.checkpoints.nbytes)


class LSTM(Parameterized):
    """Long short-term memory layer.

    Computes, for every step of every sequence (Gers, Schmidhuber and Cummins, Neural Computation 12(10), 2000)::

        i, f, o = sigmoid(W x + U h_prev + b)    g = tanh(W x + U h_prev + b)
        c = f * c_prev + i * g                   h = o * tanh(c)

    Parameters
    ----------
    input_size : int
        Features per time step.
    hidden_size : int
        Units per layer and direction.
    num_layers : int, default=1
        Layers stacked on each other.
    cell : str, default="lstm"
        Equations of a step, one of

        - "lstm": with forget gate, as above
        - "peephole": i and f also see c_prev, o also sees c, through a weight per unit (Gers, Schraudolph and
          Schmidhuber, JMLR 3, 2002); parameters ``weight_ci``, ``weight_cf``, ``weight_co`` (hidden,)
        - "peephole_article": i, f, o = sigmoid(W x + U c_prev + b), g = tanh(W x + b): the cell state recurs in
          place of h, through full matrices; ``weight_hh`` (3*hidden, hidden) holds i, f, o
        - "cifg": input gate tied to the forget gate, i = 1 - f (gates f, g, o)
        - "nig", "nfg", "nog": no input, forget, output gate; "niaf", "noaf": no input, output activation
          (the ablations of Greff et al., arXiv 1503.04069, on the LSTM without peepholes)
        - "fgr": full gate recurrence: the gates also see all gates of the step before (Greff et al.);
          parameters ``weight_gg`` (3*hidden, 3*hidden), rows and columns i, f, o; states h, c, i, f, o
        - "lstm1997": no forget gate, c = c_prev + i * g (Hochreiter and Schmidhuber, Neural Computation 9(8),
          1997); "lstm1997_squashed" with that paper's squashing, g = 4 sigmoid(.) - 2 and
          h = o * (2 sigmoid(c) - 1); "lstm1997_gates" and "lstm1997_gates_squashed" where the gates of the step
          before feed all gates and cell inputs, as in its appendix: ``weight_gg`` (3*hidden, 2*hidden), rows
          i, g, o and columns i, o; states h, c, i, o. See also `truncated`
        - "gru": gates r, z, n with the reset gate after the recurrent product (arXiv 1406.1078v1), as PyTorch's
        - "slstm", "slstm_exp": exponential input gate, i = exp(.), forget gate f = sigmoid(.) or exp(.), and a
          normaliser: c = f * c_prev + i * g, n = f * n_prev + i, h = o * c / n; computed relative to the running
          maximum m of the gates' logarithms, so that nothing overflows (Beck et al., xLSTM, arXiv 2405.04517).
          States h, c, n, m; n = 0 means no history
        - "gru_before": the GRU with the reset gate before the recurrent product (arXiv 1406.1078v3)
        - "tlstm": time-aware LSTM; the short-term part of c_prev, tanh(U_d c_prev + b_d), is weighted by g(delta_t)
          before the step, where delta_t is the time since the step before, given with x; ``weight_hh``
          (5*hidden, hidden) and ``bias_hh`` hold i, f, g, o, d (Baytas et al., KDD 2017)
        - "rnn", "rnn_relu": h = tanh(W x + U h_prev + b), or max(0, .) (Elman, Cognitive Science 14, 1990)
    bidirectional : bool, default=False
        Add a second direction that reads each sequence from its own end; outputs are concatenated.
    bias : bool, default=True
        Learn `bias_ih` and `bias_hh`.
    proj_size : int, default=0
        With a value above zero, what recurs and what a step puts out is h = W_r (o * tanh(c)), of this size (LSTMP:
        Sak, Senior and Beaufays, Interspeech 2014); parameter ``weight_hr`` (proj_size, hidden). For the cells with a
        cell state, but not "peephole_article" and "tlstm".
    output_proj_size : int, default=0
        Size of a second projection, which joins the output behind h and does not recur (the non-recurrent
        projection of the same paper); its rows follow in ``weight_hr``.
    cells_per_block : int, default=1
        Cells of a memory block, which have one input, forget and output gate in common (Hochreiter and Schmidhuber
        1997); a divisor of `hidden_size`. The gates then have hidden_size / cells_per_block rows in the matrices and
        biases. Not for the plain recurrent cells, the GRUs and the cells with peepholes.
    layer_norm : bool, default=False
        Normalise W x, U h_prev and, before the output squashing, c over their units, each to mean 0 and variance 1
        (plus 1e-5), times a learned gain: gates = LN(W x) + LN(U h_prev) + b, h = o * tanh(LN(c)) (Ba, Kiros and
        Hinton, arXiv 1607.06450). Parameters ``weight_ln_ih`` (gates*hidden,), ``weight_ln_hh`` (gates*hidden,),
        and for a cell with h = o * tanh(c) ``weight_ln_c``, ``bias_ln_c`` (hidden,). Where gates recur their product
        is normalised as well, gates = LN(W x) + LN(U h_prev) + LN(G gates_prev) + b, with gains ``weight_ln_gg``
        (gates*hidden,). In a step of two products each is normalised over its own gates: "gru_before" has
        r, z = sigmoid(LN(W x) + LN(U_rz h_prev) + b) and n = tanh(LN(W x) + LN(U_n (r * h_prev)) + b), W x over all
        three gates; "tlstm" has tanh(LN(U_d c_prev) + b_d), and the LSTM's four gates. A gate of a memory block counts
        once for each of its cells.
    dropout : float, default=0.0
        Fraction of each layer's input dropped between layers while training: one mask per sequence.
    recurrent_dropout : float, default=0.0
        Fraction of the cell input (g; the candidate n of a GRU) dropped while training, one mask per sequence, so
        that memory is not lost (Semeniuta, Severyn and Barth, COLING 2016). Not for the plain recurrent cells.
    zoneout : float or pair of floats, default=0.0
        Probability that a unit keeps, at a step of a training call, what it had before: of h and of c, or one number
        for both; drawn for each sequence, step and unit, in 65536ths. Inference takes the expectation, a mixture
        (Krueger et al., arXiv 1606.01305). h alone for the cells without c. With proj_size it is the projected h that
        is kept; for "slstm" and "slstm_exp" c, n and m are kept together, and the expectation is that of what
        they stand for, c e^m and n e^m.
    weight_dropout : float, default=0.0
        Fraction of the entries of ``weight_hh`` dropped in each training call, the same ones at every step
        (DropConnect on U: Merity, Keskar and Socher, arXiv 1708.02182).
    weight_noise : float, default=0.0
        Standard deviation of Gaussian noise that each training call adds to all parameters (Graves, NIPS 2011).
    cell_activation : {"tanh", "identity"}, default="tanh"
        Output squashing of the cells "lstm", "peephole" and "peephole_article".
    learn_initial_state : bool, default=False
        Learn the states that a sequence starts from if none are given: parameters ``h0`` and ``c0`` of each layer
        and direction (``h0_l0``, ...), zero at first; ``h0`` alone for "slstm", whose c starts without history.
    truncated : {False, True, "peepholes"}, default=False
        True is the truncated gradient of the papers of 1997 to 2002: errors that arrive at the net input of a gate or
        of the cell, or at a peephole, change the weights there and go on to x, and no further back in time. What is
        left is the constant error carousel, c. Not for the plain recurrent cells, the GRUs and "tlstm".
        "peepholes", for the cell "peephole", cuts at the peepholes alone: an error that arrives at one changes its
        weight and goes no further, all other gradients are full.
    time_decay : {"log", "inverse"}, default="log"
        Weight g of the short-term memory after the elapsed time `delta_t`, for the cell "tlstm":
        1 / log(e + delta_t), or 1 / delta_t; 1 where delta_t is 0.
    checkpoint_every : int, default=None
        Steps between the states that a training call keeps; the backward pass computes what lies between them again,
        chunk by chunk (Chen et al., arXiv 1604.06174; Gruslys et al., NeurIPS 2016). About the square root of the
        number of steps needs least memory, for one more forward pass. Gradients are the same but for rounding. The
        array x must not change before the backward call. Not for two directions. None: keep everything.
    dtype : {"float32", "float64"}, default="float32"
        Type of parameters and computation.
    precision : {"float32", "high", "bfloat16", "int8"}, default="float32"
        What the products of a float32 layer may do; parameters, states and pointwise operations stay float32.
        "float32": at least as accurate as a sum of float32 products; "high": relative error at most 1e-5;
        "bfloat16": the weight matrices are rounded to bfloat16; "int8", for inference alone: to 8 bits and a scale
        for each row, and what they multiply to as much of 16 bits as the sum allows, by its largest value. The
        smaller weights are faster where a step waits for them: with few sequences at a time. How the processor
        reaches a precision is chosen at run time, so "high" may be as good as "float32".
    batch_invariant : bool, default=False
        Use one order of the sums for any number of sequences, so that a stream, a single sequence and a batch give
        the same bits. All kernels of today do so in any case.
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises the parameters, uniformly in +-1/sqrt(hidden_size) as PyTorch does.

    Attributes
    ----------
    parameters : dict of str to ndarray
        Read-only views under PyTorch's names: ``weight_ih_l0`` (gates*hidden, input), ``weight_hh_l0``
        (gates*hidden, hidden), ``bias_ih_l0``, ``bias_hh_l0``, ..., ``_reverse`` for the second direction;
        gates i, f, g, o.
    directions : int
        2 if bidirectional, else 1.
    recurrent_size, output_size : int
        Size of h (hidden_size, or proj_size), and features per step of the output: directions * (hidden_size, or
        proj_size + output_proj_size).
    n_threads : int
        Threads a call may use, which it then wakes if they sleep; 0 (default) = the process default, see
        :func:`fastlstm.set_num_threads`.

    Notes
    -----
    Results do not depend on the number of threads, on the amount or content of padding, on the order of the
    sequences, or on what else is in the batch.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import LSTM
    >>> layer = LSTM(3, 5, random_state=0)
    >>> y, (h, c) = layer(np.zeros((2, 7, 3)), lengths=[7, 4])
    >>> y.shape, h.shape
    ((2, 7, 5), (1, 2, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        bidirectional: bool = False,
        bias: bool = True,
        cells_per_block: int = 1,
        proj_size: int = 0,
        output_proj_size: int = 0,
        layer_norm: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        weight_noise: float = 0.0,
        cell_activation: str = "tanh",
        learn_initial_state: bool = False,
        truncated: bool | str = False,
        time_decay: str = "log",
        checkpoint_every: int | None = None,
        dtype: Any = "float32",
        precision: str = "float32",
        batch_invariant: bool = False,
        random_state: Any = None,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}; got {cell!r}")
        if time_decay not in _DECAYS:
            raise ValueError(f"time_decay must be one of {', '.join(map(repr, _DECAYS))}; got {time_decay!r}")
        if cell_activation not in ("tanh", "identity"):
            raise ValueError(f"cell_activation must be 'tanh' or 'identity', got {cell_activation!r}")
        if cell_activation == "identity" and cell not in _IDENTITY:
            raise ValueError(
                f"cell_activation 'identity' goes with the cells {', '.join(_IDENTITY)}; got {cell!r}"
            )
        self.dropout = as_fraction(dropout, "dropout")
        self.recurrent_dropout = as_fraction(recurrent_dropout, "recurrent_dropout")
        self.weight_dropout = as_fraction(weight_dropout, "weight_dropout")
        self.weight_noise = as_deviation(weight_noise, "weight_noise")
        if recurrent_dropout and cell.startswith("rnn"):
            raise ValueError(
                f"the cell {cell!r} has no cell input to drop; recurrent_dropout must be 0.0, got {recurrent_dropout}"
            )
        self.truncated = _as_truncated(truncated, cell)
        self.input_size = as_size(input_size, "input_size")
        self.hidden_size = as_size(hidden_size, "hidden_size")
        self.num_layers = as_size(num_layers, "num_layers")
        self.proj_size = as_size(proj_size, "proj_size", least=0)
        self.output_proj_size = as_size(output_proj_size, "output_proj_size", least=0)
        if self.output_proj_size and not self.proj_size:
            raise ValueError("output_proj_size goes with a proj_size of at least 1")
        if self.proj_size and cell.startswith(_UNPROJECTED):
            raise ValueError(f"the cell {cell!r} takes no projection; proj_size must be 0, got {proj_size}")
        self.layer_norm = bool(layer_norm)
        self.zoneout, self._zoneout = _as_zoneout(zoneout, cell)
        self.cell = cell
        self.cell_activation = cell_activation
        self.time_decay = time_decay
        self.bidirectional = bool(bidirectional)
        if checkpoint_every is not None and self.bidirectional:
            raise ValueError(
                "checkpoint_every goes with one direction: a second one starts at the end of each sequence; with "
                f"bidirectional=True it must be None, got {checkpoint_every!r}"
            )
        self.checkpoint_every = (
            None if checkpoint_every is None else as_size(checkpoint_every, "checkpoint_every")
        )
        self.bias = bool(bias)
        self.dtype = as_dtype(dtype)
        self.precision = _as_precision(precision, self.dtype)
        self.batch_invariant = bool(batch_invariant)
        self.n_threads = 0
        self._expects = False  # whether training calls take the expectation of zoneout
        self._lock = threading.Lock()
        self._dstate_buffer: np.ndarray | None = None
        self._core = _core.Recurrent(
            _IDENTITY[cell] if cell_activation == "identity" else cell,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.bias,
            self.dtype.name,
            self.dropout,
            self.recurrent_dropout,
            _TRUNCATED[self.truncated],
            self.proj_size,
            self.output_proj_size,
            self.layer_norm,
            *self._zoneout,
            self.precision,
            self.batch_invariant,
        )
        self.directions = 2 if self.bidirectional else 1
        self.recurrent_size = int(self._core.recurrent_size)
        self.output_size = int(self._core.output_size) * self.directions
        self.cells_per_block = as_size(cells_per_block, "cells_per_block")
        self._blocks = None if self.cells_per_block == 1 else self._memory_blocks()
        self.learn_initial_state = bool(learn_initial_state)
        shapes = self._core.parameter_shapes if self._blocks is None else self._blocks.shapes
        self.parameter_shapes = shapes + [
            (f"{name}0_{suffix}", (self.recurrent_size if name == "h" else self.hidden_size,))
            for suffix in self._suffixes
            for name in self._learned_states
        ]
        bound = 1.0 / np.sqrt(self.hidden_size)
        values = np.zeros(self.n_parameters)
        drawn = sum(math.prod(shape) for _, shape in shapes)
        values[:drawn] = as_generator(random_state).uniform(-bound, bound, drawn)
        self._allocate(values)
        for name, view in self._views(self._flat).items():
            if name.startswith("weight_ln_"):
                view[...] = 1.0
            elif name.startswith("bias_ln_"):
                view[...] = 0.0

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states in the order of state tuples: ("h", "c"), ("h",), or ("h", "c", "n", "m")."""
        return tuple(self._core.state_names)

    def gates_of(self, name: str) -> str:
        """Gates, by letter, of the row blocks of a parameter ``weight_ih``, ``weight_hh``, ``weight_gg``, of their
        biases and gains.
        """
        kind = next(k for k, letters in enumerate(("ih", "hh", "gg")) if f"_{letters}" in name)
        cell = self.cell.removesuffix("_identity")
        return _ROWS[cell][kind] if cell in _ROWS else self._core.slot_names

    def gate_size(self, gate: str) -> int:
        """Rows of a gate: hidden_size, or the number of memory blocks for a gate of theirs."""
        return self.hidden_size // self.cells_per_block if gate in SHARED else self.hidden_size

    def gate_rows(self, name: str, gate: str) -> slice:
        """Rows of a gate, by letter, in a parameter; see :meth:`gates_of`."""
        gates = self.gates_of(name)
        begin = sum(self.gate_size(before) for before in gates[: gates.index(gate)])
        return slice(begin, begin + self.gate_size(gate))

    def _memory_blocks(self) -> MemoryBlocks:
        size = self.cells_per_block
        if self.cell.startswith(_WITHOUT_BLOCKS):
            raise ValueError(
                f"the cell {self.cell!r} has no memory blocks; cells_per_block must be 1, got {size}"
            )
        if self.hidden_size % size:
            raise ValueError(
                f"cells_per_block must divide hidden_size {self.hidden_size}, got cells_per_block {size}"
            )
        fed_by = "".join(name for name in self.state_names[2:] if name in "ifo")
        return MemoryBlocks(self._core.parameter_shapes, self.hidden_size, size, self.gates_of, fed_by)

    def _core_flat(self, flat: np.ndarray) -> np.ndarray:
        """What the kernels take, of the layer's parameters."""
        return flat[: self._core.n_parameters] if self._blocks is None else self._blocks.spread(flat)

    @property
    def _suffixes(self) -> list[str]:
        """Endings of the parameters' names, in the order of the places of a state."""
        ends = ("", "_reverse")[: self.directions]
        return [f"l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    @property
    def _learned_states(self) -> tuple[str, ...]:
        """Names of the states whose first value is a parameter."""
        learned = ("h",) if "n" in self.state_names else ("h", "c")
        return tuple(name for name in self.state_names if self.learn_initial_state and name in learned)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "cell": self.cell,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "cells_per_block": self.cells_per_block,
            "proj_size": self.proj_size,
            "output_proj_size": self.output_proj_size,
            "layer_norm": self.layer_norm,
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "zoneout": self.zoneout,
            "weight_dropout": self.weight_dropout,
            "weight_noise": self.weight_noise,
            "cell_activation": self.cell_activation,
            "learn_initial_state": self.learn_initial_state,
            "truncated": self.truncated,
            "time_decay": self.time_decay,
            "checkpoint_every": self.checkpoint_every,
            "dtype": self.dtype.name,
            "precision": self.precision,
            "batch_invariant": self.batch_invariant,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LSTM:
        """Layer of this configuration, freshly initialised."""
        return LSTM(**config)

    def without_noise(self, dtype: Any = None) -> LSTM:
        """Copy whose training calls compute what inference does: no dropout of any kind, no weight noise.

        They keep all steps (`checkpoint_every` is None).

        Parameters
        ----------
        dtype : {"float32", "float64"}, default=None
            Of the copy; None: the layer's.
        """
        off = {**{name: 0.0 for name in _NOISE}, "checkpoint_every": None}
        config = {**self.get_config(), **off, "dtype": self.dtype.name if dtype is None else dtype}
        twin = LSTM.from_config(config)
        twin.load_parameters(self.parameters)
        twin.n_threads = self.n_threads
        twin._expects = True
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "n_threads": self.n_threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LSTM.__init__(self, **state["config"])
        self._flat[...] = state["parameters"]
        self.n_threads = state["n_threads"]

    def parameters_changed(self) -> None:
        """To be called after writing into :attr:`flat`: the next call packs the weights again."""
        self._packed = False
        self._version = getattr(self, "_version", 0) + 1

    def packed_core(self) -> Any:
        """The kernel handle with current weights."""
        if not self._packed:
            with self._lock:
                if not self._packed:
                    self._core.load(self._core_flat(self._flat))
                    self._packed = True
        return self._core

    def _training_core(self, tape: Tape, rng_key: int) -> Any:
        """The kernel handle with the weights of a training call, which the tape keeps if they are noisy."""
        tape.weights, tape.kept = None, {}
        if not (self.weight_dropout or self.weight_noise):
            return self.packed_core()
        random = np.random.Generator(np.random.Philox(key=rng_key + (1 << 64)))
        weights = tape.weights = self._flat.copy()
        if self.weight_noise:
            weights += self.dtype.type(self.weight_noise) * random.standard_normal(weights.size, self.dtype)
        if self.weight_dropout:
            keep = 1.0 - self.weight_dropout
            for name, value in self._views(weights).items():
                if name.startswith("weight_hh_"):
                    kept = random.random(value.shape, np.float32) < keep
                    tape.kept[name] = kept.astype(self.dtype) * self.dtype.type(1.0 / keep)
                    value *= tape.kept[name]
        return self._core_with(weights)

    def _core_with(self, weights: np.ndarray | None) -> Any:
        """The kernel handle with the noisy weights of a call, or, for None, with the current ones."""
        if weights is None:
            return self.packed_core()
        with self._lock:
            self._core.load(self._core_flat(weights))
            self._packed = False
        return self._core

    def _core_forward(
        self,
        tape: Tape,
        core: Any,
        x: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        y: np.ndarray | None,
        y_starts: np.ndarray | None,
        state: Sequence[np.ndarray | None] | None,
        final: tuple[np.ndarray, ...],
        rng_key: int,
        decay: np.ndarray | None = None,
    ) -> None:
        """Training forward pass of the core, in chunks where checkpoints are wanted and the sequences long enough."""
        every, tape.checkpoints = self.checkpoint_every, None
        if every is None or lengths.max() <= every:
            arrays = (x, starts, lengths, y, y_starts, state, final)
            core.forward(*arrays, tape.core, rng_key, self.n_threads, decay, expects=self._expects)
            return
        tape.checkpoints = Checkpoints(every, x, starts, lengths, decay, rng_key)
        tape.checkpoints.forward(core, tape.core, y, y_starts, state, final, self.n_threads)

    def _core_backward(
        self, tape: Tape, grads: np.ndarray, *arguments: Any, dinitial: tuple[np.ndarray, ...] | None
    ) -> None:
        """Backward pass at the weights of the forward call; `grads` get the gradient of the layer's own."""
        weights = self._flat if tape.weights is None else tape.weights
        core_grads = grads[: self._core.n_parameters]
        if self._blocks is not None:
            core_grads = np.empty(self._core.n_parameters, self.dtype)
        if (tape.fresh or tape.checkpoints) and dinitial is None:
            dinitial = self.empty_states(len(tape.lengths))
        arguments = (self._core_flat(weights), core_grads, *arguments, dinitial, self.n_threads)
        if tape.checkpoints is None:
            self._core.backward(tape.core, len(tape.lengths), *arguments)
        else:
            tape.checkpoints.backward(self._core_with(tape.weights), tape.core, *arguments)
        if self._blocks is not None:
            self._blocks.add_up(core_grads, grads)
        if dinitial is not None and self.learn_initial_state:
            self._learned_gradient(tape, grads, dinitial)
        if tape.kept:
            views = self._views(grads)
            for name, factor in tape.kept.items():
                views[name] *= factor

    def activation_bytes(self, lengths: Any, *, with_delta_t: bool = False) -> int:
        """Bytes that a training call keeps for the backward pass, with `checkpoint_every` while that runs.

        The backward pass works in further memory: transposed weights, and the gradients of the inputs of the steps
        that it has on its tape.

        Parameters
        ----------
        lengths : array of int of shape (batch,)
            Steps of each sequence, at least 1; of each piece of one that is cut by resets.
        with_delta_t : bool, default=False
            Whether the call gives elapsed times.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If there is no length, or one below 1.
        TypeError
            If they are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> from fastlstm.layers import LSTM
        >>> lengths = np.full(32, 1000)
        >>> plain = LSTM(16, 64).activation_bytes(lengths)
        >>> LSTM(16, 64, checkpoint_every=32).activation_bytes(lengths) < 0.06 * plain
        True
        """
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or not lengths.size:
            raise ValueError(f"lengths has shape {lengths.shape}; expected one length per sequence, (batch,)")
        lengths = as_lengths(lengths, lengths.size, max(1, int(lengths.max())))
        every, kept = self.checkpoint_every, 0
        if every is not None and lengths.max() > every:
            a_state = sum(state.nbytes for state in self.empty_states(1))
            kept = a_state * sum(-(-length // every) for length in lengths.tolist())
            lengths = np.minimum(lengths, every)
        sizes = (len(lengths), int(lengths.max()), sum(lengths.tolist()))
        return kept + self._core.tape_bytes(*sizes, with_delta_t, self.n_threads)

    # ---- states that sequences start from ----

    def _learned_rows(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The learned states in an array of the parameters' form: views (num_layers * directions, size) by name."""
        rows, found, end = self.num_layers * self.directions, {}, 0
        sizes = {
            name: self.recurrent_size if name == "h" else self.hidden_size for name in self._learned_states
        }
        last = flat[flat.size - rows * sum(sizes.values()) :].reshape(rows, -1) if sizes else flat
        for name, size in sizes.items():
            found[name] = last[:, end : end + size]
            end += size
        return found

    def initial_state(self, n: int, flat: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """States of `n` new sequences, (num_layers * directions, n, size) each: zero, or the learned ones."""
        states, learned = self.empty_states(n), self._learned_rows(self._flat if flat is None else flat)
        for name, state in zip(self.state_names, states, strict=True):
            state[...] = learned[name][:, None] if name in learned else 0.0
        return states

    def _start(
        self,
        state: Sequence[np.ndarray | None] | None,
        n: int,
        tape: Tape | None,
        takes: np.ndarray | None = None,
    ) -> Sequence[np.ndarray | None] | None:
        """The given states, and the learned ones for the sequences that get none.

        `takes` (places, n, 1) says which sequences take the given states; None: all.
        """
        if tape is not None:
            tape.fresh = {}
        if not self.learn_initial_state:
            return state
        states = list(self.initial_state(n, None if tape is None else tape.weights))
        for k, name in enumerate(self.state_names):
            given = None if state is None else state[k]
            fresh: Any = given is None or (False if takes is None else ~takes)
            if given is not None:
                states[k] = np.where(fresh, states[k], given)
            if tape is not None:
                tape.fresh[name] = fresh
        return states

    def _learned_gradient(self, tape: Tape, grads: np.ndarray, dinitial: tuple[np.ndarray, ...]) -> None:
        """Gradients of the learned states: sums over the sequences that started from them."""
        gradients = dict(zip(self.state_names, dinitial, strict=True))
        for name, learned in self._learned_rows(grads).items():
            fresh = tape.fresh[name]
            gradient = gradients[name] if fresh is True else gradients[name] * fresh
            gradient.sum(axis=1, out=learned)

    # ---- padded batches: the public calls ----

    def __call__(
        self, x: Any, state: Any = None, lengths: Any = None, *, delta_t: Any = None, resets: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Run without keeping anything for a backward pass.

        Parameters
        ----------
        x : array of shape (batch, time, input_size)
        state : tuple of arrays of shape (num_layers * directions, batch, hidden_size), default=None
            Initial h (and c); None, or a None entry, means zeros, or the learned ones. h has proj_size columns if
            there is a projection.
        lengths : array of int of shape (batch,), default=None
            Real steps of each sequence, 1 to time; what follows them is never read. None: all steps.
        delta_t : array of shape (batch, time), default=None
            Time since the step before (for a second direction: the step that it comes from), at least 0, in any
            unit; for the cell "tlstm" alone. None: no time passes.
        resets : array of bool of shape (batch, time), default=None
            True at a step before which the state is set to that of a new sequence, because an episode ended; no
            gradient passes there. A second direction is cut at the same places. None: no resets.

        Returns
        -------
        y : ndarray of shape (batch, time, output_size)
            Outputs; zero after a sequence's end.
        state : tuple of ndarray of shape (num_layers * directions, batch, hidden_size)
            State after each sequence's last step (second direction: after its first).

        Raises
        ------
        ValueError
            Shapes or lengths that do not fit, with the shape that would.
        TypeError
            Elements that are not real numbers.
        """
        y, final, _ = self._padded(x, state, lengths, None, delta_t=delta_t, resets=resets)
        return y, final

    def forward(
        self,
        x: Any,
        state: Any = None,
        lengths: Any = None,
        *,
        delta_t: Any = None,
        resets: Any = None,
        rng_key: int = 0,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], Tape]:
        """As calling the layer, with dropout and noise (drawn from `rng_key`) and a tape for :meth:`backward`.

        A reset starts a sequence of its own, with dropout masks of its own. With weight dropout or weight noise the
        call needs exclusive use of the layer.
        """
        tape = Tape()
        y, final, _ = self._padded(x, state, lengths, tape, rng_key, delta_t, resets)
        return y, final, tape

    def return_all(
        self, x: Any, state: Any = None, lengths: Any = None, *, delta_t: Any = None, resets: Any = None
    ) -> dict[str, Any]:
        """Run and return everything a step computes.

        Parameters
        ----------
        x, state, lengths, delta_t, resets
            As for calling the layer.

        Returns
        -------
        dict
            ``"y"`` and ``"state"`` as from calling the layer; ``"c"`` for cells that have it, and ``"gates"``, a
            dict of the activated gates by letter (i, f, g, o; r, z, n and u, the recurrent part of n, for a GRU;
            h for a plain recurrent network; for "slstm" i and f are the logarithms of those gates); each
            (num_layers * directions, batch, time, hidden_size), zero after a sequence's end.
        """
        noisy = any((*self._zoneout, *(getattr(self, name) for name in _NOISE)))
        if self.checkpoint_every is not None or (noisy and not self._expects):
            return self.without_noise().return_all(x, state, lengths, delta_t=delta_t, resets=resets)
        y, final, tape = self.forward(x, state, lengths, delta_t=delta_t, resets=resets)
        names = self._core.slot_names
        found: dict[str, Any] = {"y": y, "state": final}
        if self._core.n_states > 1:
            found["c"] = self._recorded(tape, "state", 0)
        found["gates"] = {name: self._recorded(tape, "gate", slot) for slot, name in enumerate(names)}
        return found

    def _recorded(self, tape: Tape, kind: str, index: int) -> np.ndarray:
        """One gate or state of every layer and direction, (layers * directions, batch, time, hidden)."""
        n = tape.n_sequences
        places = self.num_layers * self.directions
        out = np.zeros((places, n, tape.padded_steps, self.hidden_size), self.dtype)
        for place in range(places):
            self._core.read(tape.core, kind, index, place, out[place], tape.y_starts)
        return out

    def backward(
        self, tape: Tape, dy: Any, dstate: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        """Back-propagate through time.

        Parameters
        ----------
        tape : Tape
            Of :meth:`forward`; used up by this call.
        dy : array of shape (batch, time, output_size) or None
            Gradient of the loss with respect to y; entries after a sequence's end are ignored.
        dstate : tuple of arrays shaped as the state, default=None
            Gradient with respect to the final state; None entries are zero.

        Returns
        -------
        dx : ndarray of shape (batch, time, input_size)
        dstate : tuple of ndarray
            Gradient with respect to the initial state.
        grads : dict of str to ndarray
            Gradients under the names of :attr:`parameters`.
        """
        if not isinstance(tape, Tape) or tape.layer is not self:
            raise ValueError("tape holds no forward call of this layer (a tape serves one backward call)")
        self._check_version(tape)
        self._check_trains()
        n, steps, starts, segments = tape.n_sequences, tape.padded_steps, tape.y_starts, tape.segments
        if dy is not None:
            dy = as_real_array(dy, self.dtype, "dy")
            if dy.shape != (n, steps, self.output_size):
                raise ValueError(f"dy has shape {dy.shape}; expected {(n, steps, self.output_size)}")
        dstate = self._check_state(dstate, n, "dstate")
        if segments is not None and dstate is not None:
            dstate = segments.spread(dstate, self.directions, initial=False)
        dx = np.zeros((n, steps, self.input_size), self.dtype)
        grads = np.empty_like(self._flat)
        dinitial = self.empty_states(len(starts))
        self._core_backward(
            tape, grads, dy, None if dy is None else starts, dstate, dx, starts, dinitial=dinitial
        )
        tape.layer = None
        if segments is not None:
            dinitial = segments.collect(dinitial, self.directions, initial=True)
        return dx, dinitial, self._views(grads)

    def _padded(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        tape: Tape | None,
        rng_key: int = 0,
        delta_t: Any = None,
        resets: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], Tape | None]:
        x = as_real_array(x, self.dtype, "x")
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x has shape {x.shape}; expected (batch, time, {self.input_size})")
        n, steps, _ = x.shape
        if n == 0 or steps == 0:
            raise ValueError(
                f"x has shape {x.shape}; expected at least one sequence and at least one time step"
            )
        allocate = np.empty if lengths is None else np.zeros  # what follows a sequence's end is zero
        lengths, (starts, _) = as_lengths(lengths, n, steps), whole_sequences(n, steps)
        y = allocate((n, steps, self.output_size), self.dtype)
        state = self._check_state(state, n, "state")
        decay = self._check_delta_t(delta_t, n, steps, lengths)
        segments = None if resets is None else Segments(as_resets(resets, n, steps), lengths)
        takes = None
        if segments is not None:
            starts, lengths = segments.starts, segments.lengths
            if state is not None:
                state = segments.spread(state, self.directions, initial=True)
                takes = segments.takes_initial(self.num_layers, self.directions)
        final = self.empty_states(len(starts))
        core = self.packed_core() if tape is None else self._training_core(tape, rng_key)
        state = self._start(state, len(starts), tape, takes)
        if tape is not None:
            tape.lengths, tape.starts, tape.y_starts, tape.padded_steps = lengths, starts, starts, steps
            tape.layer, tape.version, tape.segments = self, self._version, segments
        if tape is None:
            core.forward(x, starts, lengths, y, starts, state, final, None, 0, self.n_threads, decay)
        else:
            self._core_forward(tape, core, x, starts, lengths, y, starts, state, final, rng_key, decay)
        if segments is not None:
            final = segments.collect(final, self.directions, initial=False)
        return y, final, tape

    def _check_delta_t(self, delta_t: Any, n: int, steps: int, lengths: np.ndarray) -> np.ndarray | None:
        """Weights (n, steps) of the elapsed times; 1 in the padding, which is not read."""
        if delta_t is None:
            return None
        self.check_takes_time()
        delta_t = as_real_array(delta_t, np.dtype(np.float64), "delta_t")
        if delta_t.shape != (n, steps):
            raise ValueError(
                f"delta_t has shape {delta_t.shape}; expected {(n, steps)}, one time per step of x"
            )
        real = np.arange(steps) < lengths[:, None]
        bad = np.argwhere(real & ~((delta_t >= 0.0) & (delta_t < np.inf)))
        if bad.size:
            b, t = bad[0]
            raise ValueError(f"delta_t[{b}, {t}] is {delta_t[b, t]}; times must be finite and at least 0")
        return self.time_weights(np.where(real, delta_t, 0.0))

    @property
    def takes_time(self) -> bool:
        """Whether the cell has a use for elapsed times."""
        return self.cell == "tlstm"

    def check_takes_time(self) -> None:
        """Raise ValueError if the cell has no use for elapsed times."""
        if not self.takes_time:
            raise ValueError(f"delta_t goes with the cell 'tlstm'; this layer has the cell {self.cell!r}")

    def time_weights(self, delta_t: np.ndarray) -> np.ndarray:
        """g of elapsed times that are at least 0, in the layer's dtype."""
        return np.ascontiguousarray(_DECAYS[self.time_decay](delta_t), self.dtype)

    def empty_states(self, n: int) -> tuple[np.ndarray, ...]:
        """Uninitialised arrays for the states of `n` sequences, (num_layers * directions, n, size) each."""
        rows, rest = self.num_layers * self.directions, self._core.n_states - 1
        h = np.empty((rows, n, self.recurrent_size), self.dtype)
        if rest == 1:
            return h, np.empty((rows, n, self.hidden_size), self.dtype)
        return (h, *[np.empty((rows, n, self.hidden_size), self.dtype) for _ in range(rest)])

    def _check_state(self, state: Any, n: int, name: str) -> tuple[np.ndarray | None, ...] | None:
        if state is None:
            return None
        names = self.state_names
        if isinstance(state, np.ndarray):
            state = (state,)
        if not isinstance(state, (tuple, list)):
            raise TypeError(
                f"{name} must be a tuple of arrays ({', '.join(names)}), got {type(state).__name__}"
            )
        if len(state) != len(names):
            raise ValueError(f"{name} has {len(state)} arrays; expected {len(names)}: {', '.join(names)}")
        checked: list[np.ndarray | None] = []
        for label, value in zip(names, state, strict=True):
            if value is not None:
                size = self.recurrent_size if label == "h" else self.hidden_size
                shape = (self.num_layers * self.directions, n, size)
                value = as_real_array(value, self.dtype, f"{name} {label}")
                if value.shape != shape:
                    raise ValueError(f"{name} {label} has shape {value.shape}; expected {shape}")
            checked.append(value)
        return tuple(checked)

    # ---- ragged rows: what networks use; arguments are not checked beyond memory safety ----

    def run(
        self,
        values: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        want_y: bool = True,
        state: Sequence[np.ndarray | None] | None = None,
        decay: np.ndarray | None = None,
        takes: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
        """Inference on rows of `values` (rows, input_size): sequence b is `lengths[b]` rows from `starts[b]`.

        `decay` (rows,) holds :meth:`time_weights` of the elapsed times, for a cell that takes them; None: no time
        passes. `takes` (places, B, 1) says which sequences start from `state`, where others start from learned
        states; None: all. Returns y (sum(lengths), output_size), sequence after sequence (or None), and the final
        state.
        """
        y, y_starts, final = self._outputs(lengths, want_y)
        state = self._start(state, len(lengths), None, takes)
        self.packed_core().forward(
            values, starts, lengths, y, y_starts, state, final, None, 0, self.n_threads, decay
        )
        return y, final

    def run_training(
        self,
        values: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        want_y: bool = True,
        state: Sequence[np.ndarray | None] | None = None,
        tape: Tape | None = None,
        rng_key: int = 0,
        decay: np.ndarray | None = None,
        takes: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...], Tape]:
        """As :meth:`run`, with dropout and a tape (the given one is reused)."""
        y, y_starts, final = self._outputs(lengths, want_y)
        tape = Tape() if tape is None else tape
        tape.lengths, tape.starts, tape.padded_steps, tape.version = lengths, starts, 0, self._version
        tape.segments = None
        tape.y_starts = y_starts
        core = self._training_core(tape, rng_key)
        state = self._start(state, len(lengths), tape, takes)
        self._core_forward(tape, core, values, starts, lengths, y, y_starts, state, final, rng_key, decay)
        return y, final, tape

    def run_backward(
        self,
        tape: Tape,
        dy: np.ndarray | None = None,
        dstate: Sequence[np.ndarray | None] | None = None,
        want_dx: bool = False,
        want_dstate: bool = False,
        *,
        d_last: np.ndarray | None = None,
    ) -> tuple[np.ndarray | None, tuple[np.ndarray, ...] | None]:
        """Write the gradients of :meth:`run_training`'s call to :attr:`flat_grads`.

        dy is (sum(lengths), output_size) as y, `d_last` the gradient of :meth:`last_output` in place of `dstate`; dx
        comes back as (sum(lengths), input_size) if wanted.
        """
        self._check_version(tape)
        self._check_trains()
        n = len(tape.lengths)
        if d_last is not None:
            dstate = self.dstate_of_last(d_last)
        dx = np.empty((int(tape.lengths.sum()), self.input_size), self.dtype) if want_dx else None
        dinitial = None
        if want_dstate:
            dinitial = self.empty_states(n)
        self._core_backward(
            tape,
            self._grads,
            dy,
            tape.y_starts if dy is not None else None,
            dstate,
            dx,
            tape.y_starts if want_dx else None,
            dinitial=dinitial,
        )
        return dx, dinitial

    def _check_trains(self) -> None:
        if self.precision == "int8":
            raise ValueError("precision 'int8' is for inference: its rounded weights have no gradient")

    def last_output(
        self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, final: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Output of each direction after all the steps that it reads, (B, output_size): the final h of the top layer.

        Of a run with these arguments, whose final state is `final`; what it read is for layers that pass it on.
        """
        h = final[0]
        return np.concatenate((h[-2], h[-1]), axis=1) if self.bidirectional else h[-1]

    def dstate_of_last(self, d_last: np.ndarray) -> tuple[np.ndarray | None, ...]:
        """Gradient of the final states where that of :meth:`last_output` is `d_last`; reuses one buffer."""
        shape = (self.num_layers * self.directions, len(d_last), self.recurrent_size)
        buffer = self._dstate_buffer
        if buffer is None or buffer.shape != shape:
            buffer = self._dstate_buffer = np.zeros(shape, self.dtype)
        if self.bidirectional:
            buffer[-2] = d_last[:, : self.recurrent_size]
            buffer[-1] = d_last[:, self.recurrent_size :]
        else:
            buffer[-1] = d_last
        return (buffer, *[None] * (len(self.state_names) - 1))

    def _check_version(self, tape: Tape) -> None:
        if tape.version != self._version:
            raise ValueError(
                "the parameters changed after the forward call that filled the tape; run it again"
            )

    def _outputs(
        self, lengths: np.ndarray, want_y: bool
    ) -> tuple[np.ndarray | None, np.ndarray | None, tuple[np.ndarray, ...]]:
        final = self.empty_states(len(lengths))
        if not want_y:
            return None, None, final
        starts = first_rows(lengths)
        rows = int(starts[-1]) + int(lengths[-1])
        return np.empty((rows, self.output_size), self.dtype), starts, final


def _as_zoneout(zoneout: Any, cell: str) -> tuple[float | tuple[float, float], tuple[float, float]]:
    """The checked argument, and the probabilities of h and c."""
    one = np.ndim(zoneout) == 0
    if not one and len(zoneout) != 2:
        raise ValueError(f"zoneout must be a number or a pair for h and c, got {zoneout!r}")
    h, c = (as_fraction(p, "zoneout") for p in ((zoneout, zoneout) if one else zoneout))
    if cell.startswith(("rnn", "gru")):
        if c and not one:
            raise ValueError(f"the cell {cell!r} has no c to zone; zoneout must be a number or ({h}, 0.0)")
        return (h if one else (h, 0.0)), (h, 0.0)
    return (h if one else (h, c)), (h, c)


def _as_truncated(truncated: Any, cell: str) -> bool | str:
    """The checked argument."""
    if truncated not in (False, True, "peepholes"):
        raise ValueError(f"truncated must be False, True or 'peepholes', got {truncated!r}")
    if truncated == "peepholes":
        if cell not in ("peephole", "peephole_identity"):
            raise ValueError(f"the cell {cell!r} has no peepholes; truncated must be False or True")
        return "peepholes"
    if truncated and cell.startswith(("rnn", "gru", "tlstm")):
        raise ValueError(f"the cell {cell!r} has no truncated gradient; truncated must be False")
    return bool(truncated)


class RNN(LSTM):
    """Simple recurrent layer, h = tanh(W x + U h_prev + b) (Elman, Cognitive Science 14, 1990).

    Parameters and calls as :class:`LSTM`'s, with `nonlinearity` in place of `cell`.

    Parameters
    ----------
    nonlinearity : {"tanh", "relu"}, default="tanh"
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        **options: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        cell = "rnn" if nonlinearity == "tanh" else "rnn_relu"
        super().__init__(input_size, hidden_size, num_layers, cell=cell, **options)


class GRU(LSTM):
    """Gated recurrent unit (Cho et al., arXiv 1406.1078).

    ``r, z = sigmoid(W x + U h_prev + b)``, ``n = tanh(W_n x + b_n + r * (U_n h_prev + c_n))``,
    ``h = (1 - z) * n + z * h_prev``; PyTorch's and cuDNN's form and parameters (gates r, z, n).
    Parameters and calls are :class:`LSTM`'s, without `cell`.

    Parameters
    ----------
    reset_after : bool, default=True
        False: the reset gate acts before the recurrent product, ``n = tanh(W_n x + U_n (r * h_prev) + b_n)``
        (arXiv 1406.1078v3), as in ONNX's default and the first Keras.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import GRU
    >>> y, (h,) = GRU(3, 5, random_state=0)(np.zeros((2, 7, 3)))
    >>> h.shape
    (1, 2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        **options: Any,
    ) -> None:
        cell = "gru" if reset_after else "gru_before"
        super().__init__(input_size, hidden_size, num_layers, cell=cell, **options)
