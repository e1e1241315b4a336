"""Convolutional LSTM over sequences of signals or images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm.layers._parameters import (
    Parameterized,
    as_dtype,
    as_generator,
    as_lengths,
    as_real_array,
    as_size,
)

State = tuple[np.ndarray, np.ndarray]


class ConvTape:
    """What a training forward pass of :class:`ConvLSTM` leaves for the backward pass."""

    __slots__ = ("core", "layer", "shape", "version")

    def __init__(self, layer: ConvLSTM, shape: tuple[int, int]) -> None:
        self.core = _core.ConvTape()
        self.layer: ConvLSTM | None = layer
        self.shape = shape  # sequences, steps
        self.version = layer._version

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds."""
        return self.core.nbytes


class ConvLSTM(Parameterized):
    """LSTM whose products are convolutions, over sequences of signals (1-D) or images (2-D).

    Computes at every step, with ``*`` a convolution and ``.`` the product of elements::

        i, f = sigmoid(W * x + U * h_prev + V . c_prev + b)    g = tanh(W * x + U * h_prev + b)
        c = f . c_prev + i . g                                 o = sigmoid(W * x + U * h_prev + V_o . c + b)
        h = o . tanh(c)

    h and c are images of `spatial_shape` as x is: at the border the convolutions see zeros ("same" padding, as
    PyTorch's; of an even kernel the smaller half lies in front).

    Parameters
    ----------
    in_channels : int
        Channels of x. 0: there is no input, and the layer only lets its state evolve; x is an array without
        elements, (batch, time, 0, *spatial).
    hidden_channels : int
        Channels of h and c.
    kernel_size : int or tuple of int
        Pixels along each spatial axis that a convolution sees.
    spatial_shape : int or tuple of one or two int
        (length,) of the signals or (height, width) of the images.
    peephole : bool, default=True
        Learn V, a weight per channel and pixel of c for each of i, f and o. False: V = 0.
    bias : bool, default=True
        Learn b.
    dtype : {"float32", "float64"}, default="float32"
        Type of parameters and computation.
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises the parameters uniformly in +-1/sqrt(hidden_channels * pixels of the kernel).

    Attributes
    ----------
    parameters : dict of str to ndarray
        ``weight_ih`` (4 * hidden, in, *kernel), ``weight_hh`` (4 * hidden, hidden, *kernel), as PyTorch's
        convolutions have them, ``bias`` (4 * hidden,), and ``weight_ci``, ``weight_cf``, ``weight_co``, each
        (hidden, *spatial); gates i, f, g, o.
    n_threads : int
        Threads a call may use; 0 (default) = the process default. A sequence is computed by one thread.

    Notes
    -----
    Results do not depend on the number of threads, on the amount or content of padding, or on what else is in
    the batch.

    References
    ----------
    X. Shi, Z. Chen, H. Wang, D.-Y. Yeung, W.-K. Wong and W.-C. Woo, "Convolutional LSTM network: a machine
    learning approach for precipitation nowcasting", NeurIPS 2015 (arXiv 1506.04214).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import ConvLSTM
    >>> layer = ConvLSTM(1, 4, kernel_size=3, spatial_shape=(8, 6), random_state=0)
    >>> y, (h, c) = layer(np.zeros((2, 5, 1, 8, 6)), lengths=[5, 3])
    >>> y.shape, h.shape
    ((2, 5, 4, 8, 6), (2, 4, 8, 6))
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int | Sequence[int],
        spatial_shape: int | Sequence[int],
        *,
        peephole: bool = True,
        bias: bool = True,
        dtype: Any = "float32",
        random_state: Any = None,
    ) -> None:
        self.in_channels = _as_channels(in_channels)
        self.hidden_channels = as_size(hidden_channels, "hidden_channels")
        self.spatial_shape = as_spatial(spatial_shape)
        self.kernel_size = as_kernel(kernel_size, len(self.spatial_shape))
        self.peephole = bool(peephole)
        self.bias = bool(bias)
        self.dtype = as_dtype(dtype)
        self.n_threads = 0
        flat_axis = (1,) * (2 - len(self.spatial_shape))
        self._core = _core.ConvLSTM(
            self.in_channels,
            self.hidden_channels,
            flat_axis + self.spatial_shape,
            flat_axis + self.kernel_size,
            self.peephole,
            self.bias,
            self.dtype.name,
        )
        self.parameter_shapes = self._shapes()
        bound = 1.0 / math.sqrt(self.hidden_channels * math.prod(self.kernel_size))
        self._allocate(as_generator(random_state).uniform(-bound, bound, self.n_parameters))

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        hidden, kernel = self.hidden_channels, self.kernel_size
        shapes: list[tuple[str, tuple[int, ...]]] = [
            ("weight_ih", (4 * hidden, self.in_channels, *kernel)),
            ("weight_hh", (4 * hidden, hidden, *kernel)),
        ]
        if self.bias:
            shapes.append(("bias", (4 * hidden,)))
        if self.peephole:
            shapes += [(f"weight_c{gate}", (hidden, *self.spatial_shape)) for gate in "ifo"]
        return shapes

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "in_channels": self.in_channels,
            "hidden_channels": self.hidden_channels,
            "kernel_size": list(self.kernel_size),
            "spatial_shape": list(self.spatial_shape),
            "peephole": self.peephole,
            "bias": self.bias,
            "dtype": self.dtype.name,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "n_threads": self.n_threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.n_threads = state["n_threads"]

    def parameters_changed(self) -> None:
        """To be called after writing into :attr:`flat`: tapes of earlier calls are no longer valid."""
        self._version = getattr(self, "_version", 0) + 1

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, State]:
        """Run without keeping anything for a backward pass.

        Parameters
        ----------
        x : array of shape (batch, time, in_channels, *spatial)
        state : tuple of arrays of shape (batch, hidden_channels, *spatial), default=None
            Initial (h, c); None, or a None entry, means zeros.
        lengths : array of int of shape (batch,), default=None
            Real steps of each sequence, 1 to time; what follows them is never read. None: all steps.

        Returns
        -------
        y : ndarray of shape (batch, time, hidden_channels, *spatial)
            h of every step; zero after a sequence's end.
        state : tuple of ndarray of shape (batch, hidden_channels, *spatial)
            (h, c) after each sequence's last step.

        Raises
        ------
        ValueError
            Shapes or lengths that do not fit, with what would.
        TypeError
            Elements that are not real numbers.
        """
        y, final, _ = self._run(x, state, lengths, training=False)
        return y, final

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, State, ConvTape]:
        """As calling the layer, with a tape for :meth:`backward`."""
        y, final, tape = self._run(x, state, lengths, training=True)
        assert tape is not None
        return y, final, tape

    def backward(
        self, tape: ConvTape, dy: Any, dstate: Any = None
    ) -> tuple[np.ndarray, State, dict[str, np.ndarray]]:
        """Back-propagate through time; the gradients of the parameters go to :attr:`flat_grads`.

        Parameters
        ----------
        tape : ConvTape
            Of :meth:`forward`; used up by this call.
        dy : array of shape (batch, time, hidden_channels, *spatial) or None
            Gradient of the loss with respect to y; entries after a sequence's end are ignored.
        dstate : tuple of arrays shaped as the state, default=None
            Gradient with respect to the final state; None entries are zero.

        Returns
        -------
        dx : ndarray of shape (batch, time, in_channels, *spatial)
            Zero after a sequence's end.
        dstate : tuple of ndarray
            Gradient with respect to the initial state.
        grads : dict of str to ndarray
            Views of :attr:`flat_grads` under the names of :attr:`parameters`.
        """
        if not isinstance(tape, ConvTape) or tape.layer is not self:
            raise ValueError("tape holds no forward call of this layer (a tape serves one backward call)")
        if tape.version != self._version:
            raise ValueError(
                "the parameters changed after the forward call that filled the tape; run it again"
            )
        n, steps = tape.shape
        if dy is not None:
            dy = as_real_array(dy, self.dtype, "dy")
            wanted = (n, steps, self.hidden_channels, *self.spatial_shape)
            if dy.shape != wanted:
                raise ValueError(f"dy has shape {dy.shape}; expected {wanted}")
        dh_out, dc_out = self._check_state(dstate, n, "dstate")
        dx = np.zeros((n, steps, self.in_channels, *self.spatial_shape), self.dtype)
        dinitial = self._empty_state(n)
        self._core.backward(
            tape.core, self._flat, n, steps, self._grads, dy, dh_out, dc_out, dx, *dinitial, self.n_threads
        )
        tape.layer = None
        return dx, dinitial, self._views(self._grads)

    def _run(
        self, x: Any, state: Any, lengths: Any, training: bool
    ) -> tuple[np.ndarray, State, ConvTape | None]:
        x = self._check_x(x)
        n, steps = x.shape[:2]
        allocate = np.empty if lengths is None else np.zeros  # what follows a sequence's end is zero
        lengths = as_lengths(lengths, n, steps)
        h_in, c_in = self._check_state(state, n, "state")
        y = allocate((n, steps, self.hidden_channels, *self.spatial_shape), self.dtype)
        final = self._empty_state(n)
        tape = ConvTape(self, (n, steps)) if training else None
        core_tape = None if tape is None else tape.core
        self._core.forward(self._flat, x, steps, lengths, y, h_in, c_in, *final, core_tape, self.n_threads)
        return y, final, tape

    # ---- arguments ----

    def _check_x(self, x: Any) -> np.ndarray:
        x = as_real_array(x, self.dtype, "x")
        image = (self.in_channels, *self.spatial_shape)
        if x.ndim != 2 + len(image) or x.shape[2:] != image:
            wanted = ", ".join(map(str, image))
            raise ValueError(f"x has shape {x.shape}; expected (batch, time, {wanted})")
        if 0 in x.shape[:2]:
            raise ValueError(
                f"x has shape {x.shape}; expected at least one sequence and at least one time step"
            )
        return x

    def _empty_state(self, n: int) -> State:
        shape = (n, self.hidden_channels, *self.spatial_shape)
        return np.empty(shape, self.dtype), np.empty(shape, self.dtype)

    def _check_state(self, state: Any, n: int, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        if state is None:
            return None, None
        if not isinstance(state, (tuple, list)):
            raise TypeError(f"{name} must be a tuple of arrays (h, c), got {type(state).__name__}")
        if len(state) != 2:
            raise ValueError(f"{name} has {len(state)} arrays; expected 2: h, c")
        wanted = (n, self.hidden_channels, *self.spatial_shape)
        checked: list[np.ndarray | None] = []
        for label, value in zip("hc", state, strict=True):
            if value is not None:
                value = as_real_array(value, self.dtype, f"{name} {label}")
                if value.shape != wanted:
                    raise ValueError(f"{name} {label} has shape {value.shape}; expected {wanted}")
            checked.append(value)
        return checked[0], checked[1]


def _as_channels(value: Any) -> int:
    """An integer that may be 0."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value == 0:
        return 0
    return as_size(value, "in_channels")


def as_spatial(value: Any) -> tuple[int, ...]:
    """(length,) or (height, width); anything else is a TypeError or ValueError."""
    axes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(axes) not in (1, 2):
        raise ValueError(f"spatial_shape must be (length,) or (height, width), got {value!r}")
    return tuple(as_size(axis, "spatial_shape") for axis in axes)


def as_kernel(value: Any, n_axes: int) -> tuple[int, ...]:
    """Size along each spatial axis; anything else is a TypeError or ValueError."""
    axes = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n_axes
    if len(axes) != n_axes:
        raise ValueError(
            f"kernel_size must be an integer or have one for each of the {n_axes} spatial axes, got {value!r}"
        )
    return tuple(as_size(axis, "kernel_size") for axis in axes)
