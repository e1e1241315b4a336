"""Deep stacks of fully connected layers that train: highway and residual layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.layers._parameters import Parameterized, as_dtype, as_generator, as_real_array, as_size

_ACTIVATIONS = ("tanh", "relu")


class StackTape:
    """What the forward pass of a stack leaves for its backward pass: the arrays of each layer."""

    __slots__ = ("owner", "saved", "shape")

    def __init__(self, owner: Any, shape: tuple[int, ...]) -> None:
        self.owner = owner
        self.shape = shape
        self.saved: list[tuple[np.ndarray, ...]] = []


class _Stack(Parameterized):
    """Base: `num_layers` equal layers of width `size`, each with the dense transforms in `_transforms`."""

    _transforms: tuple[str, ...]

    def __init__(self, size: int, num_layers: int, activation: str, dtype: Any, random_state: Any) -> None:
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}; got {activation!r}")
        self.size = as_size(size, "size")
        self.num_layers = as_size(num_layers, "num_layers")
        self.activation = activation
        self.dtype = as_dtype(dtype)
        self.parameter_shapes = [
            (f"{kind}_{transform}_l{layer}", shape)
            for layer in range(self.num_layers)
            for transform in self._transforms
            for kind, shape in (("weight", (self.size, self.size)), ("bias", (self.size,)))
        ]
        bound = self._initial_bound()
        self._allocate(as_generator(random_state).uniform(-bound, bound, self.n_parameters))

    def _initial_bound(self) -> float:
        return float(1.0 / np.sqrt(self.size))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "size": self.size,
            "num_layers": self.num_layers,
            "activation": self.activation,
            "dtype": self.dtype.name,
        }

    def __call__(self, x: Any) -> np.ndarray:
        """Outputs of x (..., size), of the same shape; keeps nothing for a backward pass."""
        return self._run(x, None)

    def forward(self, x: Any) -> tuple[np.ndarray, StackTape]:
        """As calling the layer, with a tape for :meth:`backward`.

        Parameters
        ----------
        x : array of shape (..., size)
            Vectors, or sequences of vectors; each is transformed by itself.

        Returns
        -------
        y : ndarray of the shape of x
        tape : StackTape
        """
        tape = StackTape(self, np.shape(x))
        return self._run(x, tape), tape

    def backward(self, tape: StackTape, dy: Any) -> np.ndarray:
        """Write the gradients of the parameters to :attr:`flat_grads`.

        Parameters
        ----------
        tape : StackTape
            Of :meth:`forward`; used up by this call.
        dy : array of shape (..., size)
            Gradient of the loss with respect to y.

        Returns
        -------
        dx : ndarray of the shape of dy
        """
        if not isinstance(tape, StackTape) or tape.owner is not self:
            raise ValueError("tape holds no forward call of this layer (a tape serves one backward call)")
        dy = as_real_array(dy, self.dtype, "dy")
        if dy.shape != tape.shape:
            raise ValueError(f"dy has shape {dy.shape}; expected {tape.shape}, the shape of x")
        d = dy.reshape(-1, self.size)
        tape.owner = None
        for layer in reversed(range(self.num_layers)):
            d = self._layer_backward(layer, tape.saved.pop(), d)
        return d.reshape(tape.shape)

    def _run(self, x: Any, tape: StackTape | None) -> np.ndarray:
        x = as_real_array(x, self.dtype, "x")
        if x.ndim == 0 or x.shape[-1] != self.size or x.size == 0:
            raise ValueError(f"x has shape {x.shape}; expected (..., {self.size}) with at least one row")
        y = x.reshape(-1, self.size)
        for layer in range(self.num_layers):
            y, saved = self._layer_forward(layer, y)
            if tape is not None:
                tape.saved.append(saved)
        return y.reshape(x.shape)

    def _layer_forward(self, layer: int, x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Output (n, size) of one layer for x (n, size), and what its backward pass needs."""
        raise TypeError(f"{type(self).__name__} must define _layer_forward")

    def _layer_backward(self, layer: int, saved: tuple[np.ndarray, ...], dy: np.ndarray) -> np.ndarray:
        """Gradient (n, size) at the layer's input; writes those of its parameters."""
        raise TypeError(f"{type(self).__name__} must define _layer_backward")

    def _split(self, flat: np.ndarray, layer: int, transform: int) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of one transform, flat."""
        n_weights, n = self.size * self.size, self.size * (self.size + 1)
        at = (layer * len(self._transforms) + transform) * n
        return flat[at : at + n_weights], flat[at + n_weights : at + n]

    def _product(self, layer: int, transform: int, x: np.ndarray) -> np.ndarray:
        """x weight^T + bias, (n, size)."""
        z = np.empty_like(x)
        weight, bias = self._split(self._flat, layer, transform)
        _core.dense_forward(self.dtype.name, len(x), self.size, self.size, x, weight, bias, z)
        return z

    def _product_backward(self, layer: int, transform: int, x: np.ndarray, dz: np.ndarray) -> np.ndarray:
        """dx (n, size) of :meth:`_product`; writes the gradients of weight and bias."""
        dx = np.empty_like(x)
        weight, _ = self._split(self._flat, layer, transform)
        dweight, dbias = self._split(self._grads, layer, transform)
        _core.dense_backward(self.dtype.name, len(x), self.size, self.size, x, weight, dz, dweight, dbias, dx)
        return dx

    def _squash(self, z: np.ndarray) -> np.ndarray:
        """tanh or max(0, .) in place."""
        if self.activation == "relu":
            return np.maximum(z, 0, out=z)
        _core.apply_activation("tanh", z, z)
        return z

    def _squash_slope(self, a: np.ndarray) -> np.ndarray:
        """Derivative of the activation where its value is a."""
        return (a > 0).astype(a.dtype) if self.activation == "relu" else 1 - a * a


class Highway(_Stack):
    """Highway layers: each unit decides how much of its input it transforms and how much it carries on.

    ``y = H(x) * T(x) + x * (1 - T(x))`` with ``H(x) = activation(W_h x + b_h)`` and the transform gate
    ``T(x) = sigmoid(W_t x + b_t)``. With a negative `transform_bias` the layers carry at first, so that
    gradients reach the first of 50 or 100 layers.

    Parameters
    ----------
    size : int
        Features of x and of y.
    num_layers : int, default=1
        Layers stacked on each other.
    activation : {"tanh", "relu"}, default="tanh"
    transform_bias : float, default=-2.0
        Initial b_t; the paper takes -1 for ten layers to -4 for the deepest.
    dtype : {"float32", "float64"}, default="float32"
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises all but b_t uniformly in +-1/sqrt(size), as :class:`Dense` does.

    Attributes
    ----------
    parameters : dict of str to ndarray
        ``weight_h_l0`` (size, size), ``bias_h_l0`` (size,), ``weight_t_l0``, ``bias_t_l0``,
        ``weight_h_l1``, ...

    References
    ----------
    R. Srivastava, K. Greff and J. Schmidhuber, "Training very deep networks", NeurIPS 2015 (arXiv
    1507.06228).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import Highway
    >>> deep = Highway(4, num_layers=50, transform_bias=-4.0, random_state=0)
    >>> x = np.ones((2, 3, 4), np.float32)
    >>> y, tape = deep.forward(x)
    >>> y.shape, deep.backward(tape, np.ones_like(y)).shape
    ((2, 3, 4), (2, 3, 4))
    """

    _transforms = ("h", "t")

    def __init__(
        self,
        size: int,
        num_layers: int = 1,
        activation: str = "tanh",
        transform_bias: float = -2.0,
        *,
        dtype: Any = "float32",
        random_state: Any = None,
    ) -> None:
        if not np.isfinite(transform_bias):
            raise ValueError(f"transform_bias must be a finite number, got {transform_bias!r}")
        self.transform_bias = float(transform_bias)
        super().__init__(size, num_layers, activation, dtype, random_state)
        for layer in range(self.num_layers):
            self._split(self._flat, layer, 1)[1][...] = self.transform_bias

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {**super().get_config(), "transform_bias": self.transform_bias}

    def _layer_forward(self, layer: int, x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        h = self._squash(self._product(layer, 0, x))
        t = self._product(layer, 1, x)
        _core.apply_activation("sigmoid", t, t)
        y = h - x
        y *= t
        y += x
        return y, (x, h, t)

    def _layer_backward(self, layer: int, saved: tuple[np.ndarray, ...], dy: np.ndarray) -> np.ndarray:
        x, h, t = saved
        transformed = dy * t
        dx = dy - transformed
        dx += self._product_backward(layer, 0, x, transformed * self._squash_slope(h))
        dx += self._product_backward(layer, 1, x, transformed * (1 - t) * (h - x))
        return dx


class Residual(_Stack):
    """Residual layers, ``y = F(x) + x`` with ``F(x) = activation(W x + b)``: a highway layer without gates.

    Parameters
    ----------
    size : int
        Features of x and of y.
    num_layers : int, default=1
        Layers stacked on each other.
    activation : {"tanh", "relu"}, default="relu"
    dtype : {"float32", "float64"}, default="float32"
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises uniformly in +-1/(num_layers * sqrt(size)): with the factor 1/num_layers, the outputs of a
        stack stay within a bounded multiple of its inputs at any depth.

    Attributes
    ----------
    parameters : dict of str to ndarray
        ``weight_f_l0`` (size, size), ``bias_f_l0`` (size,), ``weight_f_l1``, ...

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", arXiv 1512.03385.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import Residual
    >>> Residual(4, num_layers=2, random_state=0)(np.zeros((5, 4))).shape
    (5, 4)
    """

    _transforms = ("f",)

    def __init__(
        self,
        size: int,
        num_layers: int = 1,
        activation: str = "relu",
        *,
        dtype: Any = "float32",
        random_state: Any = None,
    ) -> None:
        super().__init__(size, num_layers, activation, dtype, random_state)

    def _initial_bound(self) -> float:
        return super()._initial_bound() / self.num_layers

    def _layer_forward(self, layer: int, x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        f = self._squash(self._product(layer, 0, x))
        return f + x, (x, f)

    def _layer_backward(self, layer: int, saved: tuple[np.ndarray, ...], dy: np.ndarray) -> np.ndarray:
        x, f = saved
        dx = self._product_backward(layer, 0, x, dy * self._squash_slope(f))
        dx += dy
        return dx
