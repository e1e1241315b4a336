"""How the gradient shrinks or grows on its way back through time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastlstm.diagnostics import GradientFlow, gradient_flow

_STATES = {"h": "norms", "c": "cell_norms"}


class GradientFlowDisplay:
    """Gradient norm against the lag, one line per layer or network, on a logarithmic scale.

    Use `from_layers`, or `plot` if the flows are computed already.

    Parameters
    ----------
    flows : mapping of str to GradientFlow
        By the label of the line.
    state : {"h", "c"}, default "h"
        Gradient with respect to the hidden state, or to the cell state; cells without one are left out then.

    Attributes
    ----------
    figure_, ax_ : matplotlib figure and axes
        After `plot`.
    lines_ : dict of str to matplotlib line
        After `plot`, by label.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.diagnostics import gradient_flow
    >>> from fastlstm.layers import LSTM
    >>> from fastlstm.plotting import GradientFlowDisplay
    >>> x = np.random.default_rng(0).normal(size=(4, 30, 3))
    >>> display = GradientFlowDisplay({"LSTM": gradient_flow(LSTM(3, 8, random_state=0), x)})
    """

    def __init__(self, flows: Mapping[str, GradientFlow], *, state: str = "h") -> None:
        if state not in _STATES:
            raise ValueError(f"state must be 'h' or 'c', got {state!r}")
        self.flows = dict(flows)
        self.state = state

    @classmethod
    def from_layers(
        cls,
        layers: Mapping[str, Any],
        X: Any,
        y: Any = None,
        lengths: Any = None,
        *,
        state: str = "h",
        max_lag: int | None = None,
        ax: Any = None,
        **line_kw: Any,
    ) -> GradientFlowDisplay:
        """Compute the gradient flow of layers or networks and draw it.

        Parameters
        ----------
        layers : mapping of str to layer or SequenceNetwork
            By the label of the line.
        X, y, lengths, max_lag
            As for :func:`fastlstm.diagnostics.gradient_flow`.
        state : {"h", "c"}, default "h"
        ax : matplotlib axes, optional
            Where to draw; a new figure by default.
        **line_kw
            Passed to ``ax.plot`` for every line.

        Returns
        -------
        GradientFlowDisplay
        """
        flows = {name: gradient_flow(layer, X, y, lengths, max_lag=max_lag) for name, layer in layers.items()}
        return cls(flows, state=state).plot(ax=ax, **line_kw)

    def plot(self, ax: Any = None, **line_kw: Any) -> GradientFlowDisplay:
        """Draw the lines with matplotlib.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; a new figure by default.
        **line_kw
            Passed to ``ax.plot`` for every line.

        Returns
        -------
        GradientFlowDisplay
            Itself.
        """
        if ax is None:
            from matplotlib import pyplot

            _, ax = pyplot.subplots()
        self.lines_ = {}
        for label, flow in self.flows.items():
            norms = getattr(flow, _STATES[self.state])
            if norms is not None:
                shown = np.where(norms > 0, norms, np.nan)  # zero has no place on a logarithmic scale
                (self.lines_[label],) = ax.plot(flow.lags, shown, **{"label": label, **line_kw})
        ax.set_yscale("log")
        ax.set(xlabel="lag k (time steps)", ylabel=f"norm of dL/d{self.state}(T - k)")
        if self.lines_:
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
