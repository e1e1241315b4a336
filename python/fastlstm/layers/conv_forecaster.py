"""Encoder-forecaster of convolutional LSTM layers: the frames that follow a sequence of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.layers._parameters import Parameterized, as_dtype, as_generator, as_real_array, as_size
from fastlstm.layers.convlstm import ConvLSTM, State, as_kernel, as_spatial
from fastlstm.layers.dense import Dense


class ForecasterTape:
    """What a training forward pass of :class:`ConvForecaster` leaves for the backward pass."""

    __slots__ = ("frames_shape", "hidden", "owner", "tapes")

    def __init__(self, owner: ConvForecaster) -> None:
        self.owner: ConvForecaster | None = owner
        self.tapes: list[Any] = []  # of the encoder's layers, then of the forecaster's
        self.hidden: np.ndarray  # (batch * horizon * pixels, channels of all forecaster layers)
        self.frames_shape: tuple[int, ...]


class ConvForecaster(Parameterized):
    """Predict the frames that follow: the encoder-forecaster of the convolutional LSTM.

    A stack of :class:`ConvLSTM` layers reads the frames of each sequence. The states that it ends in start a
    second stack of the same sizes, which has no input and runs for as many steps as are to be predicted. The h
    of all its layers together go through a 1x1 convolution to the predicted frames (figure 3 of the paper).

    Parameters
    ----------
    in_channels : int
        Channels of the frames that are read.
    hidden_channels : int or sequence of int
        Channels of each layer, the lowest first.
    kernel_size : int or tuple of int
        Pixels along each spatial axis that the convolutions of the layers see.
    spatial_shape : int or tuple of one or two int
        (length,) of signals or (height, width) of images.
    out_channels : int, default=None
        Channels of the predicted frames; None: `in_channels`.
    peephole : bool, default=True
        As of :class:`ConvLSTM`.
    bias : bool, default=True
        Learn the biases of the layers and of the 1x1 convolution.
    dtype : {"float32", "float64"}, default="float32"
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises the layers as :class:`ConvLSTM` and :class:`Dense` do.

    Attributes
    ----------
    parameters : dict of str to ndarray
        ``encoder.0.weight_ih`` and so on for each layer's own, ``forecaster.0. ...``, ``head.weight``
        (out, sum of hidden_channels) and ``head.bias`` (out,). The lowest forecaster layer has an empty
        ``weight_ih``.
    encoder, forecaster : list of ConvLSTM
        The layers; their parameters are slices of this one's.

    Notes
    -----
    The predictions are values of any sign. For frames of probabilities take them as logits of a cross entropy,
    as the paper does.

    References
    ----------
    X. Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation nowcasting",
    NeurIPS 2015 (arXiv 1506.04214), section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.layers import ConvForecaster
    >>> from fastlstm.optimizers import Adam
    >>> net = ConvForecaster(1, (4, 4), kernel_size=3, spatial_shape=(6, 6), random_state=0)
    >>> x, wanted = np.zeros((2, 5, 1, 6, 6)), np.ones((2, 3, 1, 6, 6))
    >>> optimizer, losses = Adam(), []
    >>> for _ in range(20):
    ...     frames, tape = net.forward(x, horizon=3)
    ...     losses.append(float(np.mean((frames - wanted) ** 2)))
    ...     dx = net.backward(tape, 2 * (frames - wanted) / frames.size)
    ...     optimizer.step(net.flat, net.flat_grads, learning_rate=0.05)
    ...     net.parameters_changed()
    >>> frames.shape, losses[-1] < losses[0] / 5
    ((2, 3, 1, 6, 6), True)
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | Sequence[int],
        kernel_size: int | Sequence[int],
        spatial_shape: int | Sequence[int],
        *,
        out_channels: int | None = None,
        peephole: bool = True,
        bias: bool = True,
        dtype: Any = "float32",
        random_state: Any = None,
    ) -> None:
        self.in_channels = as_size(in_channels, "in_channels")
        self.out_channels = (
            self.in_channels if out_channels is None else as_size(out_channels, "out_channels")
        )
        self.hidden_channels = _as_layers(hidden_channels)
        self.spatial_shape = as_spatial(spatial_shape)
        self.kernel_size = as_kernel(kernel_size, len(self.spatial_shape))
        self.peephole, self.bias = bool(peephole), bool(bias)
        self.dtype = as_dtype(dtype)
        random = as_generator(random_state)
        self.encoder = self._stack(self.in_channels, random)
        self.forecaster = self._stack(0, random)
        self.head = Dense(
            sum(self.hidden_channels),
            self.out_channels,
            bias=self.bias,
            dtype=self.dtype,
            random_state=random,
        )
        self.parameter_shapes = [
            (f"{prefix}.{name}", shape)
            for prefix, layer in self._named_layers()
            for name, shape in layer.parameter_shapes
        ]
        self._allocate(np.concatenate([layer.flat for _, layer in self._named_layers()]))
        self._bind_layers()

    def _stack(self, in_channels: int, random: np.random.Generator) -> list[ConvLSTM]:
        inputs = (in_channels, *self.hidden_channels[:-1])
        return [
            ConvLSTM(
                below,
                hidden,
                self.kernel_size,
                self.spatial_shape,
                peephole=self.peephole,
                bias=self.bias,
                dtype=self.dtype,
                random_state=random,
            )
            for below, hidden in zip(inputs, self.hidden_channels, strict=True)
        ]

    def _named_layers(self) -> list[tuple[str, Parameterized]]:
        named: list[tuple[str, Parameterized]] = []
        for name, layers in (("encoder", self.encoder), ("forecaster", self.forecaster)):
            named += [(f"{name}.{index}", layer) for index, layer in enumerate(layers)]
        return [*named, ("head", self.head)]

    def _bind_layers(self) -> None:
        """Make the layers' parameters and gradients slices of this one's."""
        at = 0
        for _, layer in self._named_layers():
            end = at + layer.n_parameters
            layer.bind(self._flat[at:end], self._grads[at:end])
            at = end

    def bind(self, flat: np.ndarray, grads: np.ndarray) -> None:
        """Keep parameters and gradients in slices of larger arrays from now on (the values are copied in)."""
        super().bind(flat, grads)
        self._bind_layers()

    def parameters_changed(self) -> None:
        """To be called after writing into :attr:`flat`: tapes of earlier calls are no longer valid."""
        for _, layer in self._named_layers():
            layer.parameters_changed()

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "in_channels": self.in_channels,
            "hidden_channels": list(self.hidden_channels),
            "kernel_size": list(self.kernel_size),
            "spatial_shape": list(self.spatial_shape),
            "out_channels": self.out_channels,
            "peephole": self.peephole,
            "bias": self.bias,
            "dtype": self.dtype.name,
        }

    def __call__(self, x: Any, horizon: int, lengths: Any = None) -> np.ndarray:
        """Predicted frames, without a tape; arguments as of :meth:`forward`."""
        return self._run(x, horizon, lengths, None)

    def forward(self, x: Any, horizon: int, lengths: Any = None) -> tuple[np.ndarray, ForecasterTape]:
        """Predict, with a tape for :meth:`backward`.

        Parameters
        ----------
        x : array of shape (batch, time, in_channels, *spatial)
            Frames that are known.
        horizon : int
            Number of frames to predict.
        lengths : array of int of shape (batch,), default=None
            Known frames of each sequence, 1 to time; what follows them is never read. None: all.

        Returns
        -------
        frames : ndarray of shape (batch, horizon, out_channels, *spatial)
            What follows each sequence's last known frame.
        tape : ForecasterTape

        Raises
        ------
        ValueError
            Shapes or lengths that do not fit, with what would; a horizon below 1.
        TypeError
            Elements that are not real numbers; a horizon that is no integer.
        """
        tape = ForecasterTape(self)
        frames = self._run(x, horizon, lengths, tape)
        tape.frames_shape = frames.shape
        return frames, tape

    def backward(self, tape: ForecasterTape, dframes: Any) -> np.ndarray:
        """Write the gradients of the parameters to :attr:`flat_grads`.

        Parameters
        ----------
        tape : ForecasterTape
            Of :meth:`forward`; used up by this call.
        dframes : array of the shape of the predicted frames
            Gradient of the loss with respect to them.

        Returns
        -------
        dx : ndarray of shape (batch, time, in_channels, *spatial)
            Zero after a sequence's end.
        """
        if not isinstance(tape, ForecasterTape) or tape.owner is not self:
            raise ValueError("tape holds no forward call of this layer (a tape serves one backward call)")
        dframes = as_real_array(dframes, self.dtype, "dframes")
        if dframes.shape != tape.frames_shape:
            raise ValueError(f"dframes has shape {dframes.shape}; expected {tape.frames_shape}")
        dhidden = self.head.backward(tape.hidden, self._rows(dframes))
        assert dhidden is not None
        dstates = self._forecaster_backward(tape, self._images(dhidden, dframes.shape))
        tape.owner = None
        dx: Any = None
        for layer, dstate in zip(reversed(self.encoder), dstates, strict=True):
            dx, _, _ = layer.backward(tape.tapes.pop(), dx, dstate)
        return dx

    def _run(self, x: Any, horizon: Any, lengths: Any, tape: ForecasterTape | None) -> np.ndarray:
        horizon, training = as_size(horizon, "horizon"), tape is not None
        states, hidden, tapes, y = [], [], [], x
        for layer in self.encoder:
            y, state, layer_tape = layer._run(y, None, lengths, training)
            states.append(state)
            tapes.append(layer_tape)
        y = self._no_input(len(y), horizon)
        for layer, state in zip(self.forecaster, states, strict=True):
            y, _, layer_tape = layer._run(y, state, None, training)
            hidden.append(y)
            tapes.append(layer_tape)
        rows = self._rows(np.concatenate(hidden, axis=2))
        if tape is not None:
            tape.hidden, tape.tapes = rows, tapes
        return np.ascontiguousarray(self._images(self.head.forward(rows), y.shape))

    def _forecaster_backward(self, tape: ForecasterTape, dhidden: np.ndarray) -> list[State]:
        """Gradients of the initial states, the highest layer's first; dhidden is that of all layers' h."""
        dstates, above = [], None
        ends = np.cumsum(self.hidden_channels)
        for layer, end in zip(reversed(self.forecaster), reversed(ends.tolist()), strict=True):
            dy = dhidden[:, :, end - layer.hidden_channels : end]
            dy = dy if above is None else dy + above
            above, dstate, _ = layer.backward(tape.tapes.pop(), dy)
            dstates.append(dstate)
        return dstates

    def _no_input(self, n: int, horizon: int) -> np.ndarray:
        return np.empty((n, horizon, 0, *self.spatial_shape), self.dtype)

    def _rows(self, images: np.ndarray) -> np.ndarray:
        """(n, steps, channels, *spatial) as (n * steps * pixels, channels)."""
        return np.ascontiguousarray(np.moveaxis(images, 2, -1)).reshape(-1, images.shape[2])

    def _images(self, rows: np.ndarray, like: tuple[int, ...]) -> np.ndarray:
        """Rows as images (n, steps, channels, *spatial), where n and steps are those of `like`."""
        return np.moveaxis(rows.reshape(*like[:2], *self.spatial_shape, rows.shape[1]), -1, 2)


def _as_layers(value: Any) -> tuple[int, ...]:
    layers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not layers:
        raise ValueError("hidden_channels must have the channels of at least one layer, got none")
    return tuple(as_size(channels, "hidden_channels") for channels in layers)
