"""Fitted models without their estimators: what production loads, with numpy alone.

A `Model` holds the network, the rule that turns its raw outputs into predictions, and, where the
training standardised its input, the mean and scale to do so. It gives the numbers that the estimator
gave, since both use the same network and the same decision functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlstm._metadata import decode_json
from fastlstm._version import __version__
from fastlstm.decision import Decision
from fastlstm.inputs import Normalization, Preparation, check_columns, hint_of_one
from fastlstm.missing import MissingValues
from fastlstm.network import SequenceNetwork
from fastlstm.serialization import (
    FORMAT_VERSION,
    ModelFormatError,
    PathLike,
    Tensors,
    read_safetensors,
    save_model,
)
from fastlstm.streaming import Stream, check_step_times, refuse_nonfinite

__all__ = ["Model", "Normalization", "load", "save_model"]


class PreparedStream(Stream):
    """A stream that prepares each time step, as whole sequences are, before the network sees it."""

    def __init__(
        self,
        preparation: Preparation,
        decide: Callable[[NDArray[Any]], NDArray[Any]],
        n_streams: int,
    ) -> None:
        network, missing = preparation.network, preparation.missing
        super().__init__(network, decide, n_streams)
        self._normalization = preparation.normalization
        self._missing = None if missing is None else missing.stream(self.n_streams)
        self._exact = np.empty((self.n_streams, preparation.n_features), dtype=np.float64)
        self._rounded = np.empty((self.n_streams, network.encoder.input_size), dtype=network.dtype)

    @property
    def _memory(self) -> tuple[NDArray[Any], ...]:
        return super()._memory + (() if self._missing is None else self._missing.memory)

    def raw_step(self, x_t: Any, delta_t: Any = None) -> NDArray[Any]:
        """As `Stream.raw_step`, for a time step in the units of the training data."""
        x_t, shape = np.asarray(x_t), self._exact.shape
        alone = self.n_streams == 1 and x_t.shape == shape[1:]
        if not (alone or x_t.shape == shape) or x_t.dtype.kind not in "fiub":
            raise ValueError(f"x_t must be numbers of shape {shape}, got {x_t.dtype} of shape {x_t.shape}")
        refuse_nonfinite(x_t.reshape(shape), allow_nan=self._missing is not None)
        times = None if delta_t is None else check_step_times(delta_t, self.n_streams)
        self._exact[...] = x_t
        if self._missing is None:
            return self._prepared_step(self._exact, times)
        kept = [array.copy() for array in self._missing.memory]
        try:
            inputs = self._missing.step(self._exact, times)
            return self._prepared_step(inputs, times if self.network.takes_time else None)
        except Exception:  # what the network refuses was not observed
            for array, before in zip(self._missing.memory, kept, strict=True):
                array[...] = before
            raise

    def _prepared_step(self, inputs: NDArray[Any], times: NDArray[Any] | None) -> NDArray[Any]:
        if self._normalization is not None:
            np.subtract(inputs, self._normalization.mean, out=inputs)
            np.divide(inputs, self._normalization.scale, out=inputs)
        with np.errstate(over="ignore"):
            np.copyto(self._rounded, inputs, casting="same_kind")
        return super().raw_step(self._rounded, times)


class Model:
    """A fitted classifier or regressor that needs numpy only.

    Made by `fastlstm.load`, or from the parts of a fitted estimator.

    Parameters
    ----------
    network : SequenceNetwork
        Encoder and head with their weights.
    decision : Decision
        How raw outputs become predictions.
    normalization : Normalization, optional
        Applied to the input (to what `missing` makes of it) before the network.
    missing : MissingValues, optional
        For models that read NaN as not observed.
    extra : mapping, optional
        Further facts about the model (plain data), stored with it and shown by `info`. With "feature_names", data
        frames have to have these columns.

    Attributes
    ----------
    kind : {"classifier", "regressor"}
    classes_ : ndarray of shape (n_classes,)
        The labels, with the dtype they had in training. Classifiers only.
    n_features_in_ : int
    """

    def __init__(
        self,
        network: SequenceNetwork,
        decision: Decision,
        *,
        normalization: Normalization | None = None,
        missing: MissingValues | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.decision = decision
        self.normalization = normalization
        self.extra = dict(extra or {})
        self.missing = missing
        if network.n_outputs != decision.n_outputs:
            raise ValueError(
                f"the network has {network.n_outputs} outputs and the decision needs {decision.n_outputs}"
            )
        self._preparation = Preparation(network, missing, normalization)
        self.n_features_in_ = self._preparation.n_features
        names = self.extra.get("feature_names")
        if names is not None and not (
            isinstance(names, list)
            and len(names) == self.n_features_in_
            and all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"feature_names must be {self.n_features_in_} names, got {names!r:.200}")

    def __repr__(self) -> str:
        return f"Model({self.kind}, {self.n_features_in_} features, {self.network.n_outputs} outputs)"

    @property
    def kind(self) -> str:
        """``"classifier"`` or ``"regressor"``."""
        return "classifier" if self.decision.is_classifier else "regressor"

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels in the order of the columns of `predict_proba`."""
        if self.decision.classes is None:
            raise AttributeError("a regressor has no classes_")
        return self.decision.classes

    def predict(
        self, X: Any, lengths: ArrayLike | None = None, *, delta_t: Any = None, return_std: bool = False
    ) -> Any:
        """Labels or values, as the estimator's `predict`.

        Parameters
        ----------
        X : sequences
            Array (n, T, F) or (n, T), or a list of (T_i, F) or (T_i,) arrays.
        lengths : array-like of int, shape (n,), optional
            Real lengths of a padded array.
        delta_t : sequences of times, optional
            Time since the step before, one number per step: array (n, T) or list of (T_i,) arrays. None: no
            time passes (with missing values: steps are counted).
        return_std : bool, default False
            Whether to return standard deviations too, of a regressor trained with ``loss="gaussian_nll"``.

        Returns
        -------
        ndarray of shape (n,) or (n, n_targets), or two of them

        Raises
        ------
        ValueError
            If X has another number of features or, of data frames, other columns, is not finite, or is empty; if
            `delta_t` does not fit X, or the model does not use it; for `return_std` of a model that predicts no
            deviations.
        """
        raw = self.raw_outputs(X, lengths, delta_t=delta_t)
        values = self.decision.predict(raw)
        return (values, self.decision.predict_std(raw)) if return_std else values

    @property
    def predict_proba(self) -> Callable[..., NDArray[np.float64]]:
        """``predict_proba(X, lengths=None, *, delta_t=None)``: shape (n, n_classes). Classifiers only."""
        if not self.decision.is_classifier:
            raise AttributeError("a regressor has no predict_proba")
        return self._predict_proba

    def _predict_proba(
        self, X: Any, lengths: ArrayLike | None = None, *, delta_t: Any = None
    ) -> NDArray[np.float64]:
        return self.decision.predict_proba(self.raw_outputs(X, lengths, delta_t=delta_t))

    def raw_outputs(self, X: Any, lengths: ArrayLike | None = None, *, delta_t: Any = None) -> NDArray[Any]:
        """Outputs of the network, shape (n, n_outputs), in its dtype."""
        sequences, times = self._preparation.read(X, lengths, delta_t)
        if sequences.n_features != self.n_features_in_:
            raise ValueError(
                f"X has {sequences.n_features} features, but the model was trained with {self.n_features_in_}."
                f"{hint_of_one(X, self.n_features_in_)}"
            )
        names = self.extra.get("feature_names")
        if names is not None:
            check_columns(X, names)
        return self.network.predict(self._preparation.apply(sequences, times))

    def stream(self, n_streams: int = 1) -> Stream:
        """Serve one time step at a time.

        Parameters
        ----------
        n_streams : int, default 1
            Number of independent sequences that advance together.

        Returns
        -------
        fastlstm.streaming.Stream
            ``step(x_t, delta_t=None)`` with x_t of shape (n_streams, n_features) gives what `predict` would give for
            the sequences so far.
        """
        if self.normalization is None and self.missing is None:
            return Stream(self.network, self.decision.predict, n_streams)
        return PreparedStream(self._preparation, self.decision.predict, n_streams)

    def at_precision(self, precision: str, *, batch_invariant: bool | None = None) -> Model:
        """The same model with products of another precision in its recurrent layers.

        Parameters
        ----------
        precision : {"float32", "high", "bfloat16", "int8"}
            As :class:`fastlstm.layers.LSTM` takes it. "int8" and "bfloat16" read a quarter and half of the memory,
            which is what a stream of a large network waits for.
        batch_invariant : bool, optional
            Whether a stream and any batch give the same bits with AMX, too; None: as this model.

        Returns
        -------
        Model

        Raises
        ------
        ValueError
            For another precision, and for a model trained in float64.
        """
        config = self.network.get_config()
        config["encoder"] = {**config["encoder"], "precision": precision}
        if batch_invariant is not None:
            config["encoder"]["batch_invariant"] = bool(batch_invariant)
        network = SequenceNetwork.from_config(config)
        network.load_parameters(self.network.parameters)
        return Model(
            network,
            self.decision,
            normalization=self.normalization,
            missing=self.missing,
            extra=self.extra,
        )

    @property
    def info(self) -> dict[str, Any]:
        """What the model is, as plain data (a new dict each time)."""
        facts: dict[str, Any] = {"kind": self.kind, "n_features": self.n_features_in_}
        if self.decision.classes is not None:
            facts["classes"] = self.decision.classes.tolist()
        facts["n_outputs"] = self.network.n_outputs
        facts["n_parameters"] = self.network.n_parameters
        facts["dtype"] = str(self.network.dtype)
        facts["normalized"] = self.normalization is not None
        facts["missing"] = "error" if self.missing is None else "observe"
        facts["network"] = self.network.get_config()
        return facts | {key: value for key, value in self.extra.items() if key not in facts}

    def save(self, path: PathLike) -> None:
        """Write the model to a safetensors file that `fastlstm.load` reads."""
        pair = None if self.normalization is None else (self.normalization.mean, self.normalization.scale)
        head_info = {**self.extra, **self.decision.to_dict()}
        fill = None if self.missing is None else self.missing.fill
        network = self.network
        save_model(
            path, network.get_config(), network.parameters, head_info, normalization=pair, missing=fill
        )


def load(
    path: PathLike,
    *,
    allow_nonfinite: bool = False,
    precision: str | None = None,
    batch_invariant: bool | None = None,
) -> Model:
    """Load a model that an estimator or `Model` saved. Needs numpy only and executes nothing.

    Parameters
    ----------
    path : str or path-like
        A ``.safetensors`` file.
    allow_nonfinite : bool, default False
        Accept weights that are NaN or infinite.
    precision : {"float32", "high", "bfloat16", "int8"}, optional
        Compute at this precision in place of the one of the training; see :meth:`Model.at_precision`.
    batch_invariant : bool, optional
        Whether a stream and any batch give the same bits with AMX, too; None: as in the training.

    Returns
    -------
    Model

    Raises
    ------
    ModelFormatError
        If the file is damaged, was not written by fastlstm, or needs a newer version.
    ValueError
        If the model cannot compute at that precision.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import fastlstm
    >>> fastlstm.load("missing.safetensors")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'missing.safetensors'
    """
    tensors, metadata = read_safetensors(path, allow_nonfinite=allow_nonfinite)
    with _blaming(os.fsdecode(path)):
        _check_version(metadata)
        network_config, head_info = (_configuration(metadata, key) for key in ("network", "head"))
        network = _build_network(network_config, _below("network.", tensors))
        decision = Decision.from_dict(head_info)
        extra = {key: value for key, value in head_info.items() if key not in decision.to_dict()}
        normalization = _below("normalization.", tensors)
        missing = _below("missing.", tensors)
        model = Model(
            network,
            decision,
            normalization=Normalization(**normalization) if normalization else None,
            missing=MissingValues(**missing) if missing else None,
            extra={**extra, "fastlstm_version": metadata.get("fastlstm_version")},
        )
    if precision is None and batch_invariant is None:
        return model
    kept = network.encoder.get_config()["precision"]
    return model.at_precision(kept if precision is None else precision, batch_invariant=batch_invariant)


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """Turn what a wrong configuration makes other parts raise into a ModelFormatError that names the file."""
    try:
        yield
    except ModelFormatError as error:
        raise ModelFormatError(error.reason, error.offset, source) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise ModelFormatError(f"the configuration does not fit: {reason}", None, source) from error


def _check_version(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != "fastlstm":
        raise ModelFormatError("a safetensors file, but not a fastlstm model (its metadata does not say so)")
    version = metadata.get("format_version", "")
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise ModelFormatError(f"the format version {version[:20]!r} is not a number")
    if int(version) > FORMAT_VERSION:
        writer = metadata.get("fastlstm_version", "a newer version")
        raise ModelFormatError(
            f"the file has model format {version} (written by fastlstm {writer}) and fastlstm {__version__} "
            f"reads formats up to {FORMAT_VERSION}: a newer fastlstm is needed"
        )


def _configuration(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    if key not in metadata:
        raise ModelFormatError(f"the metadata has no {key!r}")
    value = decode_json(metadata[key])
    if not isinstance(value, dict):
        raise ModelFormatError(f"the metadata {key!r} is not a JSON object")
    return value


def _below(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose name starts with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _build_network(config: Mapping[str, Any], weights: Tensors) -> SequenceNetwork:
    """The network of `config` with `weights`; its size is checked against the weights before it is built."""
    _check_sizes(config, weights)
    network = SequenceNetwork.from_config(config)
    for name, value in weights.items():
        if value.dtype != network.dtype:
            raise ModelFormatError(f"parameter {name!r} is {value.dtype} in a network of {network.dtype}")
    network.load_parameters(weights)
    return network


def _check_sizes(config: Mapping[str, Any], weights: Tensors) -> None:
    """The sizes in `config` are those of the weights, so the network takes no more memory than they do."""
    encoder = config["encoder"]
    sizes = {key: encoder[key] for key in ("input_size", "hidden_size", "num_layers")}
    for key, size in {**sizes, "n_outputs": config["n_outputs"]}.items():
        if type(size) is not int or size < 1:
            raise ModelFormatError(f"{key} is {size!r}, not a whole number above zero")
    hidden_size, recurrent_size = sizes["hidden_size"], encoder.get("proj_size") or sizes["hidden_size"]
    skip = encoder.get("skip")
    n_shown = sizes["num_layers"] if skip in ("output", "both") else 1
    _expect(weights, "encoder.weight_ih_l0", lambda rows, columns: columns == sizes["input_size"])
    _expect(
        weights,
        "head.weight",
        lambda rows, columns: rows == config["n_outputs"] and columns >= recurrent_size * n_shown,
    )
    for layer in range(sizes["num_layers"]):
        name = f"encoder.weight_hh_l{layer}"
        _expect(weights, name, lambda rows, columns: columns == recurrent_size and rows >= hidden_size)
        if encoder.get("proj_size"):
            name = f"encoder.weight_hr_l{layer}"
            _expect(weights, name, lambda rows, columns: rows >= recurrent_size and columns == hidden_size)
        if skip in ("input", "both"):
            name = f"encoder.weight_ih_l{layer}"
            _expect(weights, name, lambda rows, columns: columns >= sizes["input_size"])


def _expect(weights: Tensors, name: str, fits: Callable[[int, int], bool]) -> None:
    """The tensor exists and is a matrix whose numbers of rows and columns fit."""
    if name not in weights:
        raise ModelFormatError(f"parameter {name!r} is missing")
    shape = weights[name].shape
    if len(shape) != 2 or not fits(*shape):
        raise ModelFormatError(f"parameter {name!r} of shape {shape} does not fit the configuration")
