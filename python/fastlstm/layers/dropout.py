"""Dropout of features."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.layers._parameters import as_generator


class Dropout:
    """Zero a fraction `p` of the entries while training and scale the rest by 1 / (1 - p).

    Parameters
    ----------
    p : float in [0, 1)
        Probability that an entry is dropped.
    random_state : None, int, numpy Generator or RandomState, default=None

    Notes
    -----
    Srivastava et al., JMLR 15, 2014. Sequences as (batch, time, features) arrays get one mask per sequence, the
    same at every step (Gal and Ghahramani, NeurIPS 2016).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import Dropout
    >>> drop = Dropout(0.5, random_state=0)
    >>> y, mask = drop.forward(np.ones((2, 4), np.float32))
    >>> bool((drop.backward(mask, np.ones_like(y)) == y).all())
    True
    """

    def __init__(self, p: float, *, random_state: Any = None) -> None:
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be in [0, 1), got {p!r}")
        self.p = float(p)
        self._random = as_generator(random_state)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Inference: x unchanged."""
        return x

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training: (x * mask, mask)."""
        x = np.asarray(x)
        shape = (x.shape[0], 1, x.shape[2]) if x.ndim == 3 else x.shape
        keep = self._random.random(shape, dtype=np.float32) >= self.p
        mask = keep.astype(x.dtype) / x.dtype.type(1.0 - self.p)
        return x * mask, mask

    @staticmethod
    def backward(mask: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Gradient with respect to x."""
        return dy * mask
