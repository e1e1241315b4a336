"""Make gradient_flow.png and gradient_flow.md: how far errors reach back through time, on real data.

    python docs/gradient_flow.py

Needs matplotlib; takes a few seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.datasets import load_japanese_vowels
from fastlstm.diagnostics import GradientFlow, gradient_flow
from fastlstm.layers import LSTM, RNN, chrono, forget_bias, orthogonal
from fastlstm.plotting import GradientFlowDisplay

HERE = Path(__file__).resolve().parent
STEPS, HIDDEN, SEQUENCES = 201, 64, 16
SHOWN = (1, 10, 25, 50, 100, 200)


def speech() -> np.ndarray:
    """Utterances of the Japanese Vowels data one after another, standardised: (SEQUENCES, STEPS, 12)."""
    values = np.concatenate(load_japanese_vowels().X_train)
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    return values[: SEQUENCES * STEPS].reshape(SEQUENCES, STEPS, -1)


def layers() -> dict[str, Any]:
    """Layers as they are before training."""
    size: dict[str, Any] = {"input_size": 12, "hidden_size": HIDDEN, "random_state": 0}
    made = {
        "plain RNN": RNN(**size),
        "plain RNN, orthogonal U": RNN(**size),
        "LSTM": LSTM(**size),
        "LSTM, forget bias 4": LSTM(**size),
        "LSTM, chrono 200": LSTM(**size),
        "no forget gate": LSTM(**size, cell="nfg"),
        "no forget gate, U = 0": LSTM(**size, cell="nfg"),
    }
    orthogonal(made["plain RNN, orthogonal U"], random_state=0)
    forget_bias(made["LSTM, forget bias 4"], 4.0)
    chrono(made["LSTM, chrono 200"], 200, random_state=0)
    carousel = made["no forget gate, U = 0"]
    carousel.load_parameters({"weight_hh_l0": np.zeros((3 * HIDDEN, HIDDEN))}, strict=False)
    return made


def draw(flows: dict[str, GradientFlow]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    colors = {name: f"C{k}" for k, name in enumerate(flows)}
    for ax, state, title in zip(axes, "hc", ("hidden state", "cell state"), strict=True):
        shown = {name: flow for name, flow in flows.items() if state == "c" or flow.norms[1] > 0}
        display = GradientFlowDisplay(shown, state=state).plot(ax=ax, linewidth=1.5)
        for name, line in display.lines_.items():
            line.set_color(colors[name])
        ax.set(title=f"Gradient at the {title}", ylim=(1e-33, 300))
        ax.legend(loc="lower left", fontsize="small")
    figure.savefig(HERE / "gradient_flow.png", dpi=110)


def table(flows: dict[str, GradientFlow]) -> str:
    """Norms at some lags, relative to lag 1; of the cell state where there is one."""
    head = ["", "state", *(f"k = {lag}" for lag in SHOWN)]
    lines = [head, ["---"] * 2 + ["---:"] * len(SHOWN)]
    for name, flow in flows.items():
        for state, norms in (("h", flow.norms), ("c", flow.cell_norms)):
            if norms is not None and norms[1] > 0:
                lines.append([name, state, *(f"{norms[lag] / norms[1]:.2g}" for lag in SHOWN)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(flows: dict[str, GradientFlow]) -> str:
    plain, lstm = flows["plain RNN"], flows["LSTM, forget bias 4"]
    full, carousel, biased = (
        np.asarray(flows[name].cell_norms)
        for name in ("no forget gate", "no forget gate, U = 0", "LSTM, forget bias 4")
    )
    spread = np.abs(carousel[1:] / carousel[1] - 1).max()
    above = [f"{flow.gate_saturation['f'][1]:.0%}" for flow in (flows["LSTM"], lstm)]
    return f"""# Vanishing gradients and the constant error carousel

Written by `docs/gradient_flow.py`; the numbers are measured, not quoted.

{SEQUENCES} sequences of {STEPS} steps are made of real speech (the Japanese Vowels utterances, 12 cepstrum
coefficients, standardised, one utterance after another). Layers of {HIDDEN} units read them as they are
before training. The loss is the mean of the last hidden state, scaled so that its gradient has norm 1, and
`fastlstm.diagnostics.gradient_flow` gives the exact norm of its gradient at the state k steps before the
end.

![Gradient norm against lag](gradient_flow.png)

Norms relative to k = 1, means over the sequences:

{table(flows)}

- **The plain recurrent network forgets exponentially.** Its gradient is multiplied by
  {(plain.norms[100] / plain.norms[1]) ** (1 / 99):.2f} a step: the spectral radius of U is
  {plain.spectral_radius["h"][0]:.2f}, and the slope of tanh takes the rest. After 200 steps
  {plain.norms[200] / plain.norms[1]:.0e} of it is left. An orthogonal U only slows this down.
- **The carousel keeps the error.** Along the cell state without a forget gate each step multiplies by 1.
  With U = 0 nothing else is left, and no norm up to k = 200 differs from the one at k = 1 by more than a
  relative {spread:.1g}. The rule of 1997 cuts all other ways on purpose; the full gradient adds the loops
  through U: {full[100] / full[1]:.2g} times the first value at k = 100, {full[200] / full[1]:.2g} times
  at k = 200.
- **A forget gate sets the rate.** With the default initial weights {above[0]} of the forget gate's
  activations are above 0.9, and the gradient vanishes in an LSTM too. After `forget_bias(layer, 4)`
  {above[1]} are, and the gradient at the cell state is still {biased[100] / biased[1]:.2g} times the first
  value at k = 100. `chrono(layer, 200)` spreads the rates of the units up to 200 steps.

Sources: S. Hochreiter, diploma thesis, TU Munich, 1991; S. Hochreiter and J. Schmidhuber, Neural
Computation 9(8), 1997; F. Gers, J. Schmidhuber and F. Cummins, Neural Computation 12(10), 2000; C. Tallec
and Y. Ollivier, ICLR 2018. Data: M. Kudo, J. Toyama and M. Shimbo, UCI, CC BY 4.0.
"""


def main() -> None:
    x = speech()
    flows = {name: gradient_flow(layer, x) for name, layer in layers().items()}
    draw(flows)
    (HERE / "gradient_flow.md").write_text(text(flows), encoding="ascii")


if __name__ == "__main__":
    main()
