"""Recurrent layers: stacked, bidirectional, over sequences of any lengths."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.layers._blocks import SHARED, MemoryBlocks
from fastlstm.layers._parameters import (
    as_deviation,
    as_dtype,
    as_fraction,
    as_generator,
    as_size,
)
from fastlstm.layers._recurrence import DECAYS, Recurrence
from fastlstm.layers._tape import Tape

CELLS = tuple(_core.cells())
PRECISIONS = ("float32", "high", "bfloat16", "int8")
_NOISE = ("dropout", "recurrent_dropout", "weight_dropout", "weight_noise")
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


class LSTM(Recurrence):
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
        the same bits. They do in any case but with AMX, whose tiles take batches and the inputs of long sequences.
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
        if time_decay not in DECAYS:
            raise ValueError(f"time_decay must be one of {', '.join(map(repr, DECAYS))}; got {time_decay!r}")
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
        self._spare = []
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

    @property
    def _suffixes(self) -> list[str]:
        """Endings of the parameters' names, in the order of the places of a state."""
        ends = ("", "_reverse")[: self.directions]
        return [f"l{layer}{end}" for layer in range(self.num_layers) for end in ends]

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


def _refuse_cell(options: dict[str, Any], name: str, instead: str) -> None:
    if "cell" in options:
        raise TypeError(f"{name} has a cell of its own, chosen by {instead}; cell= is for LSTM")


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
        _refuse_cell(options, "RNN", "nonlinearity")
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
        _refuse_cell(options, "GRU", "reset_after")
        cell = "gru" if reset_after else "gru_before"
        super().__init__(input_size, hidden_size, num_layers, cell=cell, **options)
