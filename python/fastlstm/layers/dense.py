"""Fully connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.layers._parameters import Parameterized, as_dtype, as_generator, as_real_array, as_size


class Dense(Parameterized):
    """y = x weight^T + bias.

    Parameters
    ----------
    in_features, out_features : int
        Columns of x and of y.
    bias : bool, default=True
    dtype : {"float32", "float64"}, default="float32"
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises uniformly in +-1/sqrt(in_features), as PyTorch does.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import Dense
    >>> Dense(3, 2, random_state=0)(np.zeros((4, 3), np.float32)).shape
    (4, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        random_state: Any = None,
    ) -> None:
        self.in_features = as_size(in_features, "in_features")
        self.out_features = as_size(out_features, "out_features")
        self.bias = bool(bias)
        self.dtype = as_dtype(dtype)
        self._dtype_name = self.dtype.name
        self.parameter_shapes = [("weight", (self.out_features, self.in_features))]
        if self.bias:
            self.parameter_shapes.append(("bias", (self.out_features,)))
        bound = 1.0 / np.sqrt(self.in_features)
        self._allocate(as_generator(random_state).uniform(-bound, bound, self.n_parameters))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias,
            "dtype": self.dtype.name,
        }

    def forward(self, x: Any) -> np.ndarray:
        """y (n, out_features) of x (n, in_features)."""
        x = self._check(x, self.in_features, "x")
        y = np.empty((len(x), self.out_features), self.dtype)
        weight, bias = self._split(self._flat)
        _core.dense_forward(self._dtype_name, len(x), self.in_features, self.out_features, x, weight, bias, y)
        return y

    __call__ = forward

    def backward(self, x: Any, dy: Any, want_dx: bool = True) -> np.ndarray | None:
        """Write the gradients for dy (n, out_features) at x to :attr:`flat_grads`; return dx (n, in_features)."""
        x, dy = self._check(x, self.in_features, "x"), self._check(dy, self.out_features, "dy")
        if len(x) != len(dy):
            raise ValueError(f"x has {len(x)} rows and dy {len(dy)}; expected as many")
        dx = np.empty((len(x), self.in_features), self.dtype) if want_dx else None
        weight, _ = self._split(self._flat)
        dweight, dbias = self._split(self._grads)
        _core.dense_backward(
            self._dtype_name, len(x), self.in_features, self.out_features, x, weight, dy, dweight, dbias, dx
        )
        return dx

    def _split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        at = self.in_features * self.out_features
        return flat[:at], flat[at:] if self.bias else None

    def _check(self, x: Any, columns: int, name: str) -> np.ndarray:
        x = as_real_array(x, self.dtype, name)
        if x.ndim != 2 or x.shape[1] != columns or len(x) == 0:
            raise ValueError(f"{name} has shape {x.shape}; expected (n, {columns}) with n at least 1")
        return x
