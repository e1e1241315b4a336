"""One step of every recurrent cell, written as its paper has it, and the layer around it.

Float64 numpy, one sequence, one layer, one direction and one step at a time: slow, and short enough to be
checked against the equations. A step gets the states before it (h, or h and c) and returns those after it.
``w.x("i", x)`` is W_i x + b_i, ``w.h("i", h)`` is U_i h + b'_i, ``w.v("i")`` the peephole weights of gate i,
``w.g("i", i, o)`` is R_i [i, o], and ``w.c(c)`` is c, normalised if the layer normalises.

Sources: Elman, Cognitive Science 14, 1990 (rnn); Gers, Schmidhuber and Cummins, Neural Computation 12(10), 2000
(lstm); Hochreiter and Schmidhuber, Neural Computation 9(8), 1997 (lstm1997); Gers, Schraudolph and Schmidhuber,
JMLR 3, 2002 (peephole); Greff et al., arXiv 1503.04069 (cifg and the cells without one part); Cho et al., arXiv
1406.1078v1 (gru); Beck et al., arXiv 2405.04517 (slstm). Options of the layer: Sak, Senior and Beaufays, Interspeech
2014 (projections); Ba, Kiros and Hinton, arXiv 1607.06450 (layer_norm); Krueger et al., arXiv 1606.01305 (zoneout);
Hochreiter and Schmidhuber 1997 (memory blocks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Array = np.ndarray
Squash = Callable[[Array], Array]


def sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def identity(z: Array) -> Array:
    return z


def relu(z: Array) -> Array:
    return np.maximum(z, 0.0)


# ---- the cells ----


def rnn(w: Weights, x: Array, h: Array, squash: Squash = np.tanh) -> tuple[Array, ...]:
    return (squash(w.x("h", x) + w.h("h", h)),)


def lstm(w: Weights, x: Array, h: Array, c: Array, squash: Squash = np.tanh) -> tuple[Array, ...]:
    i = sigmoid(w.x("i", x) + w.h("i", h))
    f = sigmoid(w.x("f", x) + w.h("f", h))
    g = np.tanh(w.x("g", x) + w.h("g", h))
    o = sigmoid(w.x("o", x) + w.h("o", h))
    c = f * c + i * g
    return o * squash(w.c(c)), c


def peephole(w: Weights, x: Array, h: Array, c: Array, squash: Squash = np.tanh) -> tuple[Array, ...]:
    """i and f see the cell state before the step, o the one after it."""
    i = sigmoid(w.x("i", x) + w.h("i", h) + w.v("i") * c)
    f = sigmoid(w.x("f", x) + w.h("f", h) + w.v("f") * c)
    g = np.tanh(w.x("g", x) + w.h("g", h))
    c = f * c + i * g
    o = sigmoid(w.x("o", x) + w.h("o", h) + w.v("o") * c)
    return o * squash(w.c(c)), c


def peephole_article(w: Weights, x: Array, h: Array, c: Array, squash: Squash = np.tanh) -> tuple[Array, ...]:
    """The cell state before the step recurs through full matrices in all three gates; h is only an output."""
    i = sigmoid(w.x("i", x) + w.h("i", c))
    f = sigmoid(w.x("f", x) + w.h("f", c))
    o = sigmoid(w.x("o", x) + w.h("o", c))
    g = np.tanh(w.x("g", x))
    c = f * c + i * g
    return o * squash(w.c(c)), c


def cifg(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, ...]:
    f = sigmoid(w.x("f", x) + w.h("f", h))
    g = np.tanh(w.x("g", x) + w.h("g", h))
    o = sigmoid(w.x("o", x) + w.h("o", h))
    c = f * c + (1.0 - f) * g
    return o * np.tanh(w.c(c)), c


def nig(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, ...]:
    f = sigmoid(w.x("f", x) + w.h("f", h))
    g = np.tanh(w.x("g", x) + w.h("g", h))
    o = sigmoid(w.x("o", x) + w.h("o", h))
    c = f * c + g
    return o * np.tanh(w.c(c)), c


def nfg(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, ...]:
    i = sigmoid(w.x("i", x) + w.h("i", h))
    g = np.tanh(w.x("g", x) + w.h("g", h))
    o = sigmoid(w.x("o", x) + w.h("o", h))
    c = c + i * g
    return o * np.tanh(w.c(c)), c


def lstm1997(
    w: Weights,
    x: Array,
    h: Array,
    c: Array,
    *gates: Array,
    squash_input: Squash = np.tanh,
    squash_output: Squash = np.tanh,
) -> tuple[Array, ...]:
    """No forget gate. With gate recurrence all three inputs see both gates of the step before."""
    before = {name: w.g(name, *gates) if gates else 0.0 for name in "igo"}
    i = sigmoid(w.x("i", x) + w.h("i", h) + before["i"])
    g = squash_input(w.x("g", x) + w.h("g", h) + before["g"])
    o = sigmoid(w.x("o", x) + w.h("o", h) + before["o"])
    c = c + i * g
    h = o * squash_output(w.c(c))
    return (h, c, i, o) if gates else (h, c)


SQUASH_1997: dict[str, Squash] = {
    "squash_input": lambda z: 4.0 * sigmoid(z) - 2.0,
    "squash_output": lambda z: 2.0 * sigmoid(z) - 1.0,
}


def fgr(w: Weights, x: Array, h: Array, c: Array, i: Array, f: Array, o: Array) -> tuple[Array, ...]:
    """The gates, and not the cell input, see all gates of the step before."""
    before = {name: w.g(name, i, f, o) for name in "ifo"}
    i = sigmoid(w.x("i", x) + w.h("i", h) + before["i"])
    f = sigmoid(w.x("f", x) + w.h("f", h) + before["f"])
    g = np.tanh(w.x("g", x) + w.h("g", h))
    o = sigmoid(w.x("o", x) + w.h("o", h) + before["o"])
    c = f * c + i * g
    return o * np.tanh(w.c(c)), c, i, f, o


def nog(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, ...]:
    i = sigmoid(w.x("i", x) + w.h("i", h))
    f = sigmoid(w.x("f", x) + w.h("f", h))
    g = np.tanh(w.x("g", x) + w.h("g", h))
    c = f * c + i * g
    return np.tanh(w.c(c)), c


def niaf(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, ...]:
    i = sigmoid(w.x("i", x) + w.h("i", h))
    f = sigmoid(w.x("f", x) + w.h("f", h))
    g = w.x("g", x) + w.h("g", h)
    o = sigmoid(w.x("o", x) + w.h("o", h))
    c = f * c + i * g
    return o * np.tanh(w.c(c)), c


def gru(w: Weights, x: Array, h: Array) -> tuple[Array, ...]:
    """The reset gate acts after the recurrent product, whose bias it scales too."""
    r = sigmoid(w.x("r", x) + w.h("r", h))
    z = sigmoid(w.x("z", x) + w.h("z", h))
    n = np.tanh(w.x("n", x) + r * w.h("n", h))
    return ((1.0 - z) * n + z * h,)


def gru_before(w: Weights, x: Array, h: Array) -> tuple[Array, ...]:
    """The reset gate acts before the recurrent product."""
    r = sigmoid(w.x("r", x) + w.h("r", h))
    z = sigmoid(w.x("z", x) + w.h("z", h))
    n = np.tanh(w.x("n", x) + w.h("n", r * h))
    return ((1.0 - z) * n + z * h,)


def tlstm(w: Weights, x: Array, h: Array, c: Array, *, decay: float = 1.0) -> tuple[Array, ...]:
    """The short-term part of the cell state, s, is discounted by the weight of the elapsed time."""
    s = np.tanh(w.h("d", c))
    return lstm(w, x, h, (c - s) + s * decay)


def log_sigmoid(z: Array) -> Array:
    return -np.logaddexp(0.0, -z)


def slstm(
    w: Weights, x: Array, h: Array, c: Array, n: Array, m: Array, log_forget: Squash = log_sigmoid
) -> tuple[Array, ...]:
    """Exponential gates relative to m, a normaliser n; n = 0 is no history."""
    log_i = w.x("i", x) + w.h("i", h)
    log_f = log_forget(w.x("f", x) + w.h("f", h))
    g = np.tanh(w.x("g", x) + w.h("g", h))
    o = sigmoid(w.x("o", x) + w.h("o", h))
    new = np.where(n == 0.0, log_i, np.maximum(log_f + m, log_i))
    i, f = np.exp(log_i - new), np.where(n == 0.0, 0.0, np.exp(log_f + m - new))
    c, n = f * c + i * g, f * n + i
    return o * c / n, c, n, new


@dataclass(frozen=True)
class Cell:
    """Gates in the order of their rows in weight_ih and in weight_hh, and those with peephole weights."""

    step: Callable[..., tuple[Array, ...]]
    x_gates: str
    h_gates: str
    peepholes: str = ""
    n_states: int = 2
    fed_by_gates: str = ""
    normed_apart: str = ""  # h_gates whose products are normalised by themselves


CELLS: dict[str, Cell] = {
    "rnn": Cell(rnn, "h", "h", n_states=1),
    "rnn_relu": Cell(partial(rnn, squash=relu), "h", "h", n_states=1),
    "lstm": Cell(lstm, "ifgo", "ifgo"),
    "peephole": Cell(peephole, "ifgo", "ifgo", peepholes="ifo"),
    "peephole_identity": Cell(partial(peephole, squash=identity), "ifgo", "ifgo", peepholes="ifo"),
    "peephole_article": Cell(peephole_article, "ifgo", "ifo"),
    "peephole_article_identity": Cell(partial(peephole_article, squash=identity), "ifgo", "ifo"),
    "cifg": Cell(cifg, "fgo", "fgo"),
    "nig": Cell(nig, "fgo", "fgo"),
    "nfg": Cell(nfg, "igo", "igo"),
    "lstm1997": Cell(lstm1997, "igo", "igo"),
    "lstm1997_squashed": Cell(partial(lstm1997, **SQUASH_1997), "igo", "igo"),
    "lstm1997_gates": Cell(lstm1997, "igo", "igo", n_states=4, fed_by_gates="igo"),
    "lstm1997_gates_squashed": Cell(
        partial(lstm1997, **SQUASH_1997), "igo", "igo", n_states=4, fed_by_gates="igo"
    ),
    "fgr": Cell(fgr, "ifgo", "ifgo", n_states=5, fed_by_gates="ifo"),
    "nog": Cell(nog, "ifg", "ifg"),
    "niaf": Cell(niaf, "ifgo", "ifgo"),
    "noaf": Cell(partial(lstm, squash=identity), "ifgo", "ifgo"),
    "gru": Cell(gru, "rzn", "rzn", n_states=1),
    "gru_before": Cell(gru_before, "rzn", "rzn", n_states=1, normed_apart="n"),
    "tlstm": Cell(tlstm, "ifgo", "ifgod", normed_apart="d"),
    "slstm": Cell(slstm, "ifgo", "ifgo", n_states=4),
    "slstm_exp": Cell(partial(slstm, log_forget=identity), "ifgo", "ifgo", n_states=4),
}
#: What `cell_activation="identity"` makes of a cell.
WITH_IDENTITY = {
    "lstm": "noaf",
    "peephole": "peephole_identity",
    "peephole_article": "peephole_article_identity",
}


# ---- the layer around a cell ----


@dataclass(frozen=True)
class Weights:
    """Parameters of one layer and direction, by gate; `block` cells have i, f and o in common."""

    cell: Cell
    parameters: Mapping[str, Array]
    suffix: str
    block: int = 1

    def x(self, gate: str, x: Array) -> Array:
        return self._affine("ih", self.cell.x_gates, gate, x)

    def h(self, gate: str, h: Array) -> Array:
        return self._affine("hh", self.cell.h_gates, gate, h)

    def v(self, gate: str) -> Array:
        return self.parameters[f"weight_c{gate}_{self.suffix}"]

    def c(self, c: Array) -> Array:
        gain = self.parameters.get(f"weight_ln_c_{self.suffix}")
        return c if gain is None else gain * normalized(c) + self.parameters[f"bias_ln_c_{self.suffix}"]

    def g(self, gate: str, *gates: Array) -> Array:
        weight = self.parameters[f"weight_gg_{self.suffix}"]
        before = np.concatenate([value[:: self.block] for value in gates])
        gates = self.cell.fed_by_gates
        return self._rows(self._normalized("gg", gates, gates, weight @ before), gates, gate)

    def _affine(self, kind: str, gates: str, gate: str, value: Array) -> Array:
        product = self.parameters[f"weight_{kind}_{self.suffix}"] @ value
        apart = self.cell.normed_apart if kind == "hh" else ""
        together = apart if gate in apart else gates.removesuffix(apart)
        product = self._normalized(kind, gates, together, product)
        return self._rows(product + self.parameters.get(f"bias_{kind}_{self.suffix}", 0.0), gates, gate)

    def _normalized(self, kind: str, gates: str, together: str, product: Array) -> Array:
        """Over the gates that are normalised together; a gate of a block counts once for each cell."""
        gain = self.parameters.get(f"weight_ln_{kind}_{self.suffix}")
        if gain is None:
            return product
        sizes = gate_sizes(gates, 1, self.block)
        copies = [(self.block if gate in "ifo" else 1) * (gate in together) for gate in gates]
        return gain * normalized(product, np.repeat(copies, np.multiply(sizes, len(product) // sum(sizes))))

    def _rows(self, values: Array, gates: str, gate: str) -> Array:
        """Those of a gate, a value per cell."""
        sizes = gate_sizes(gates, 1, self.block)
        unit = len(values) // sum(sizes)
        begin = unit * sum(sizes[: gates.index(gate)])
        found = values[begin : begin + unit * sizes[gates.index(gate)]]
        return found if gate not in "ifo" else np.repeat(found, self.block)


def normalized(z: Array, counts: Array | None = None) -> Array:
    centred = z - np.average(z, weights=counts)
    return centred / np.sqrt(np.average(centred**2, weights=counts) + 1e-5)


def gate_sizes(gates: str, hidden: int, block: int) -> list[int]:
    """Rows of each gate in units of hidden / block: a shared gate has one, another one `block`."""
    return [hidden if gate in "ifo" else hidden * block for gate in gates]


def suffixes(num_layers: int, bidirectional: bool) -> list[str]:
    """Endings of the parameter names, one for each layer and direction, in the order of the states."""
    ends = ("", "_reverse") if bidirectional else ("",)
    return [f"l{layer}{end}" for layer in range(num_layers) for end in ends]


def parameter_shapes(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    *,
    proj_size: int = 0,
    output_proj_size: int = 0,
    cells_per_block: int = 1,
    layer_norm: bool = False,
    learn_initial_state: bool = False,
    **_: Any,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's parameters."""
    facts, shapes, learned = CELLS[cell], {}, {}
    recurrent, output = proj_size or hidden_size, proj_size + output_proj_size or hidden_size
    blocks = hidden_size // cells_per_block
    for suffix in suffixes(num_layers, bidirectional):
        width = input_size if suffix.startswith("l0") else output * (1 + bidirectional)
        x_rows = sum(gate_sizes(facts.x_gates, blocks, cells_per_block))
        h_rows = sum(gate_sizes(facts.h_gates, blocks, cells_per_block))
        shapes[f"weight_ih_{suffix}"] = (x_rows, width)
        shapes[f"weight_hh_{suffix}"] = (h_rows, recurrent)
        if bias:
            shapes[f"bias_ih_{suffix}"] = (x_rows,)
            shapes[f"bias_hh_{suffix}"] = (h_rows,)
        shapes |= {f"weight_c{gate}_{suffix}": (hidden_size,) for gate in facts.peepholes}
        if facts.fed_by_gates:
            rows = sum(gate_sizes(facts.fed_by_gates, blocks, cells_per_block))
            shapes[f"weight_gg_{suffix}"] = (rows, (facts.n_states - 2) * blocks)
        if proj_size:
            shapes[f"weight_hr_{suffix}"] = (output, hidden_size)
        if layer_norm:
            shapes |= {f"weight_ln_ih_{suffix}": (x_rows,), f"weight_ln_hh_{suffix}": (h_rows,)}
            if facts.fed_by_gates:
                shapes[f"weight_ln_gg_{suffix}"] = (rows,)
            if facts.n_states == 2 or facts.fed_by_gates:  # h = o * tanh(c)
                shapes |= {f"weight_ln_c_{suffix}": (hidden_size,), f"bias_ln_c_{suffix}": (hidden_size,)}
        if learn_initial_state:
            learned[f"h0_{suffix}"] = (recurrent,)
            if facts.n_states != 1 and not cell.startswith("slstm"):
                learned[f"c0_{suffix}"] = (hidden_size,)
    return shapes | learned


def state_sizes(cell: str, hidden_size: int, options: Mapping[str, Any]) -> list[int]:
    """Of h, and of the states beside it."""
    return [options.get("proj_size") or hidden_size] + [hidden_size] * (CELLS[cell].n_states - 1)


def one_step(
    cell: str, weights: Weights, x: Array, states: tuple[Array, ...], options: Mapping[str, Any]
) -> tuple[Array, tuple[Array, ...]]:
    """Output and states of a step, with what comes behind the cell: projections, zoneout."""
    new = CELLS[cell].step(weights, x, *states)
    output = new[0]
    if options.get("proj_size"):
        output = weights.parameters[f"weight_hr_{weights.suffix}"] @ new[0]
        new = (output[: options["proj_size"]], *new[1:])
    if "zoneout" in options:
        keep_h, keep_c = options["zoneout"]
        if cell.startswith("slstm"):
            new = (*zoned(states[:1], new[:1], keep_h, 0.0), *zoned_memory(states[1:], new[1:], keep_c))
        else:
            new = zoned(states, new, keep_h, keep_c)
        output = np.concatenate([new[0], output[len(new[0]) :]])
    return output, new


def zoned(
    before: tuple[Array, ...], new: tuple[Array, ...], keep_h: float, keep_c: float
) -> tuple[Array, ...]:
    """Expectation of h and of the first state after a step; gates that recur are not zoned."""
    shares = [keep_h, keep_c] + [0.0] * (len(new) - 2)
    return tuple(p * old + (1.0 - p) * value for p, old, value in zip(shares, before, new, strict=False))


def zoned_memory(before: tuple[Array, ...], new: tuple[Array, ...], keep: float) -> tuple[Array, ...]:
    """Expectation of c e^m and n e^m of (c, n, m); n = 0 is no history."""
    if keep == 0.0:
        return new
    was = np.where(before[1] == 0.0, -np.inf, np.log(keep) + before[2])
    now = np.log1p(-keep) + new[2]
    m = np.maximum(was, now)
    kept, taken = np.exp(was - m), np.exp(now - m)
    return kept * before[0] + taken * new[0], kept * before[1] + taken * new[1], m


def forward(
    cell: str,
    parameters: Mapping[str, Array],
    num_layers: int,
    bidirectional: bool,
    x: Array,
    state: tuple[Array, ...] | None = None,
    lengths: Any = None,
    hidden_size: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Outputs (batch, time, directions * hidden), zero after each sequence's end, and the final states."""
    batch, time, _ = x.shape
    options = options or {}
    rows = suffixes(num_layers, bidirectional)
    sizes = state_sizes(cell, hidden_size or parameters["weight_hh_l0"].shape[1], options)
    if state is None:
        state = tuple(np.zeros((len(rows), batch, size)) for size in sizes)
        for name, values in zip("hc", state, strict=False):
            for k, suffix in enumerate(rows):
                values[k] = parameters.get(f"{name}0_{suffix}", 0.0)
    lengths = [time] * batch if lengths is None else lengths
    final = tuple(np.zeros((len(rows), batch, size)) for size in sizes)
    y = None
    for b, length in enumerate(lengths):
        sequence = x[b, :length]
        for layer in range(num_layers):
            ways = []
            for k in [k for k, suffix in enumerate(rows) if suffix.startswith(f"l{layer}")]:
                backwards = rows[k].endswith("_reverse")
                weights = Weights(CELLS[cell], parameters, rows[k], options.get("cells_per_block", 1))
                states, outputs = tuple(s[k, b] for s in state), []
                for x_t in sequence[::-1] if backwards else sequence:
                    output, states = one_step(cell, weights, x_t, states, options)
                    outputs.append(output)
                ways.append(outputs[::-1] if backwards else outputs)
                for whole, value in zip(final, states, strict=True):
                    whole[k, b] = value
            sequence = np.concatenate(ways, axis=1)
        if y is None:
            y = np.zeros((batch, time, sequence.shape[1]))
        y[b, :length] = sequence
    return y, final
