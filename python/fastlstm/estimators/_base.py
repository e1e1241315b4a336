"""What the estimators share: input checks, the fit, and the attributes that scikit-learn users expect.

An estimator encodes its targets, builds a network and hands both to the trainer; after that, `predict`
is one pass of the network and a decision (`fastlstm.decision`) that a loaded model takes in the same way.
"""

from __future__ import annotations

import copy
import math
from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from fastlstm.callbacks import ScikitLearnCallbacks
from fastlstm.decision import Decision
from fastlstm.estimators._compat import CallbackSupportMixin
from fastlstm.estimators._data import (
    check_same_length,
    check_weights,
    is_table,
    merge_equal_rows,
    n_threads,
    random_generator,
)
from fastlstm.estimators._params import (
    Boolean,
    Choice,
    Instance,
    Nothing,
    Number,
    Rule,
    check_parameters,
)
from fastlstm.inputs import (
    Normalization,
    Preparation,
    check_columns,
    fit_missing,
    frame_columns,
    hint_of_one,
    read,
)
from fastlstm.layers import LSTM, Stack
from fastlstm.layers._connections import MERGES, SKIPS
from fastlstm.layers.recurrent import CELLS
from fastlstm.losses import Loss
from fastlstm.missing import MissingValues
from fastlstm.network import POOLINGS, SequenceNetwork
from fastlstm.optimizers import Optimizer, get_optimizer
from fastlstm.schedules import Schedule, get_schedule
from fastlstm.sequences import Sequences
from fastlstm.trainer import Trainer

if TYPE_CHECKING:
    from fastlstm.model import Model
    from fastlstm.trainer import History

_PRECISIONS = {  # of the layer: dtype, and what its products may do
    "float32": ("float32", "float32"),
    "float64": ("float64", "float32"),
    "high": ("float32", "high"),
    "bfloat16": ("float32", "bfloat16"),
}
_LAYER_OPTIONS = (
    "cell",
    "cell_activation",
    "time_decay",
    "cells_per_block",
    "proj_size",
    "layer_norm",
    "learn_initial_state",
    "truncated",
    "bidirectional",
    "dropout",
    "recurrent_dropout",
    "zoneout",
    "weight_dropout",
    "weight_noise",
    "checkpoint_every",
    "batch_invariant",
)
_UNCONNECTED = {"residual": False, "skip": None, "merge": "concat"}
_ARCHITECTURE = (
    "hidden_size",
    "num_layers",
    *_LAYER_OPTIONS,
    *_UNCONNECTED,
    "pooling",
    "missing",
    "precision",
)
_COUNT = Number(1, integer=True)
_SHARE = Number(0.0, 1.0)

RULES: dict[str, tuple[Rule, ...]] = {
    "hidden_size": (_COUNT,),
    "num_layers": (_COUNT,),
    "cell": (Choice(("lstm", *(cell for cell in CELLS if cell != "lstm"))),),
    "cell_activation": (Choice(("tanh", "identity")),),
    "time_decay": (Choice(("log", "inverse")),),
    "cells_per_block": (_COUNT,),
    "proj_size": (Number(0, integer=True),),
    "layer_norm": (Boolean(),),
    "learn_initial_state": (Boolean(),),
    "truncated": (Boolean(), Choice(("peepholes",))),
    "bidirectional": (Boolean(),),
    "residual": (Boolean(),),
    "skip": (Choice(tuple(skip for skip in SKIPS if skip)), Nothing()),
    "merge": (Choice(MERGES),),
    "dropout": (_SHARE,),
    "recurrent_dropout": (_SHARE,),
    "zoneout": (_SHARE, Instance((list, tuple), "a pair of floats")),
    "weight_dropout": (_SHARE,),
    "weight_noise": (Number(0.0),),
    "checkpoint_every": (_COUNT, Nothing()),
    "pooling": (Choice(POOLINGS),),
    "missing": (Choice(("error", "observe")),),
    "solver": (
        Choice(("adam", "adamw", "nadam", "rmsprop", "sgd")),
        Instance((Optimizer,), "an Optimizer of fastlstm.optimizers"),
    ),
    "learning_rate_init": (Number(0.0, low_open=True),),
    "learning_rate": (
        Choice(("constant", "step", "cosine", "one_cycle", "on_plateau", "warm_up")),
        Instance((Schedule,), "a Schedule of fastlstm.schedules"),
    ),
    "batch_size": (_COUNT,),
    "max_iter": (_COUNT,),
    "tol": (Number(0.0),),
    "n_iter_no_change": (_COUNT, Number(math.inf, high_open=False)),
    "early_stopping": (Boolean(),),
    "validation_fraction": (Number(0.0, 1.0, low_open=True),),
    "alpha": (Number(0.0),),
    "clip_norm": (Number(0.0, low_open=True), Nothing()),
    "shuffle": (Boolean(),),
    "precision": (Choice(tuple(_PRECISIONS)),),
    "batch_invariant": (Boolean(),),
    "n_jobs": (Number(1, integer=True), Number(high=-1, high_open=False, integer=True), Nothing()),
    "device": (Choice(("cpu",)),),
    "warm_start": (Boolean(),),
    "callbacks": (Instance((list, tuple), "a list of callbacks"), Nothing()),
    "verbose": (Number(0, integer=True), Boolean()),
}


class Encoded(NamedTuple):
    """Checked data: n sequences, their targets, their weights, and their elapsed times if there are any."""

    seqs: Sequences
    targets: NDArray[Any]
    weights: NDArray[np.float64] | None
    times: Sequences | None = None

    def rows(self, index: NDArray[Any]) -> Encoded:
        """The rows of an index array."""
        weights = None if self.weights is None else self.weights[index]
        times = None if self.times is None else self.times[index]
        return Encoded(self.seqs[index], self.targets[index], weights, times)

    def prepared(self, preparation: Preparation) -> Encoded:
        """The data as the network takes them."""
        return Encoded(preparation.apply(self.seqs, self.times), self.targets, self.weights)


class BaseLSTM(CallbackSupportMixin, BaseEstimator, metaclass=ABCMeta):
    """Base class of the estimators: `fit` in terms of what a subclass says about its targets."""

    _rules: ClassVar[dict[str, tuple[Rule, ...]]] = RULES

    # ---------------------------------------------------------------- what a subclass defines

    @abstractmethod
    def _check_y(self, y: Any, name: str) -> NDArray[Any]:
        """Checked `y`, one row per sequence."""

    @abstractmethod
    def _encode_fit(
        self, y: NDArray[Any], weights: NDArray[np.float64] | None, known: Decision | None, classes: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64] | None, Decision]:
        """Targets (n, ...), weights and decision from checked `y`; `known` is a decision to continue with."""

    @abstractmethod
    def _encode_eval(self, y: NDArray[Any], decision: Decision, name: str) -> NDArray[Any]:
        """Targets of an evaluation set, for a decision that is known."""

    @abstractmethod
    def _loss(self, decision: Decision) -> Loss:
        """The loss to train with."""

    @abstractmethod
    def _validation_score(
        self, outputs: NDArray[Any], targets: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        """Score of raw outputs, of which more is better."""

    # ---------------------------------------------------------------- fit

    def _fit(
        self,
        X: Any,
        y: Any,
        lengths: ArrayLike | None,
        sample_weight: ArrayLike | None,
        eval_set: Any = None,
        *,
        delta_t: Any = None,
        incremental: bool = False,
        classes: Any = None,
    ) -> Any:
        check_parameters(type(self).__name__, self.get_params(deep=False), self._rules)
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y is None."
            )
        fresh = not self.__sklearn_is_fitted__() or not (self.warm_start or incremental)
        if not fresh:
            self._check_architecture()
        data, decision = self._encode(X, y, lengths, delta_t, sample_weight, fresh, classes)
        rng = random_generator(self.random_state) if fresh else self._rng
        train, validation = self._validation(data, eval_set, decision, rng, incremental)
        loss = self._loss(decision)
        self._check_features(X, data.seqs, lengths, reset=fresh)
        if fresh:
            self._start(train, decision, rng)
        preparation = self._preparation
        train = train.prepared(preparation)
        validation = None if validation is None else validation.prepared(preparation)
        callbacks = [*(self.callbacks or ()), *self._scikit_learn_callbacks(X, y)]
        self._train(train, validation, loss, callbacks, incremental)
        return self

    def _encode(
        self,
        X: Any,
        y: Any,
        lengths: Any,
        delta_t: Any,
        sample_weight: Any,
        fresh: bool,
        classes: Any,
    ) -> tuple[Encoded, Decision]:
        """Checked training data, without the rows of weight zero."""
        seqs, times = self._read(X, lengths, delta_t)
        y = self._check_y(y, "y")
        check_same_length(len(seqs), y, "y")
        weights = check_weights(sample_weight, len(seqs))
        if weights is not None and not weights.all():
            present = np.flatnonzero(weights)
            seqs, y, weights = seqs[present], y[present], weights[present]
            times = None if times is None else times[present]
        targets, weights, decision = self._encode_fit(y, weights, None if fresh else self._decision, classes)
        return Encoded(seqs, targets, weights, times), decision

    def _read(
        self, X: Any, lengths: Any, delta_t: Any, name: str = "X", times_name: str = "delta_t"
    ) -> tuple[Sequences, Sequences | None]:
        """Checked sequences and elapsed times for training; missing values are told apart in float64."""
        observe = self.missing == "observe"
        dtype = np.dtype(np.float64 if observe else _PRECISIONS[self.precision][0])
        takes_time = self.cell == "tlstm"
        return read(
            X,
            lengths,
            delta_t,
            dtype=dtype,
            cell=self.cell,
            takes_time=takes_time,
            observe=observe,
            name=name,
            times_name=times_name,
        )

    @property
    def _preparation(self) -> Preparation:
        return Preparation(self.network_, self._missing_values, self._normalization)

    def _start(self, train: Encoded, decision: Decision, rng: np.random.Generator) -> None:
        """New network and empty records."""
        self.__dict__.pop("history_", None)  # not fitted until the training has ended
        n_inputs = train.seqs.n_features
        self._missing_values: MissingValues | None = None
        self._normalization: Normalization | None = None
        if self.missing == "observe":
            self._missing_values, self._normalization = fit_missing(train.seqs, train.times, train.weights)
            n_inputs = self._missing_values.n_inputs
        self.network_ = SequenceNetwork(
            self._encoder(n_inputs, rng),
            decision.n_outputs,
            pooling=self.pooling,
            head_dropout=self.dropout,
            random_state=rng,
        )
        self._rng = rng
        self._decision = decision
        self._architecture = {name: getattr(self, name) for name in _ARCHITECTURE}
        self._optimizer: Optimizer | None = None
        self.n_iter_ = 0
        self.t_ = 0
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] | None = None

    def _encoder(self, n_inputs: int, rng: np.random.Generator) -> LSTM | Stack:
        """New recurrent layers; a plain stack, unless the parameters connect them further."""
        options = {name: getattr(self, name) for name in _LAYER_OPTIONS}
        dtype, precision = _PRECISIONS[self.precision]
        options |= {"dtype": dtype, "precision": precision, "random_state": rng}
        if self.num_layers == 1:
            options["dropout"] = 0.0
        connections = {name: getattr(self, name) for name in _UNCONNECTED}
        if connections == _UNCONNECTED:
            return LSTM(n_inputs, self.hidden_size, self.num_layers, **options)
        return Stack(n_inputs, self.hidden_size, self.num_layers, **connections, **options)

    def _check_architecture(self) -> None:
        """Raise ValueError if the network to continue with is not the one that the parameters describe."""
        for name, value in self._architecture.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} was {value!r} when training started and is {getattr(self, name)!r} now: "
                    "to continue from the same network, set it back; to start anew, fit without warm_start"
                )

    def _validation(
        self, data: Encoded, eval_set: Any, decision: Decision, rng: np.random.Generator, incremental: bool
    ) -> tuple[Encoded, Encoded | None]:
        """Data to train on, and to validate on: `eval_set`, or a part held out, or nothing."""
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if eval_set is not None:
            return data, self._encode_eval_set(eval_set, data.seqs.n_features, decision)
        if not self.early_stopping:
            return data, None
        stratify = data.targets if decision.kind in ("binary", "multiclass") else None
        train, held_out = train_test_split(
            np.arange(len(data.seqs)),
            test_size=self.validation_fraction,
            stratify=stratify,
            random_state=int(rng.integers(2**31)),
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return data.rows(np.sort(train)), data.rows(np.sort(held_out))

    def _encode_eval_set(self, eval_set: Any, n_features: int, decision: Decision) -> Encoded:
        if isinstance(eval_set, list) and len(eval_set) == 1:
            eval_set = eval_set[0]
        if not isinstance(eval_set, tuple) or len(eval_set) not in (2, 3):
            raise ValueError(
                "eval_set must be a tuple (X, y) or (X, y, delta_t); make X with as_sequences to give lengths"
            )
        X, y, delta_t = eval_set if len(eval_set) == 3 else (*eval_set, None)
        seqs, times = self._read(X, None, delta_t, "eval_set[0]", "eval_set[2]")
        if seqs.n_features != n_features:
            raise ValueError(
                f"eval_set[0] has {seqs.n_features} features per time step, but X has {n_features}"
            )
        y = self._check_y(y, "eval_set[1]")
        check_same_length(len(seqs), y, "eval_set[1]")
        return Encoded(seqs, self._encode_eval(y, decision, "eval_set[1]"), None, times)

    def _scikit_learn_callbacks(self, X: Any, y: Any) -> list[ScikitLearnCallbacks]:
        """Bridge to the callbacks that `set_callbacks`, or a meta-estimator, has set."""
        if not getattr(self, "_skl_callbacks", None):
            return []
        context = self._init_callback_context(max_subtasks=self.max_iter)
        return [ScikitLearnCallbacks(context, lambda: {"history_": None}, X=X, y=y)]

    def _train(
        self,
        data: Encoded,
        validation: Encoded | None,
        loss: Loss,
        callbacks: list[Any],
        incremental: bool,
    ) -> None:
        """Train the network in place and record how it went."""
        n_rows = len(data.seqs)
        self.network_.encoder.n_threads = n_threads(self.n_jobs)
        if self.shuffle and n_rows <= self.batch_size:
            data = Encoded(*merge_equal_rows(*data[:3]))
        if self._optimizer is None or not incremental:
            self._optimizer = self._new_optimizer()
        trainer = self._new_trainer(self._optimizer, incremental, callbacks)
        arguments = (self.network_, *data[:3], loss)
        self._in_training = True
        try:
            if incremental:
                history = trainer.partial_fit(*arguments, estimator=self)
            else:
                scored = None if validation is None else (*validation[:3], self._validation_score)
                history = trainer.fit(*arguments, validation=scored, estimator=self)
        finally:
            del self._in_training
        self._record(history, n_rows, incremental)

    def _new_optimizer(self) -> Optimizer:
        if isinstance(self.solver, Optimizer):
            return copy.deepcopy(self.solver)
        hyper = {"momentum": 0.9, "nesterov": True} if self.solver == "sgd" else {}
        return get_optimizer(self.solver, **hyper)

    def _new_trainer(self, optimizer: Optimizer, incremental: bool, callbacks: list[Any]) -> Trainer:
        schedule = "constant" if incremental else copy.deepcopy(self.learning_rate)
        return Trainer(
            optimizer,
            learning_rate_init=self.learning_rate_init,
            schedule=get_schedule(schedule),
            batch_size=self.batch_size,
            max_iter=1 if incremental else self.max_iter,
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
            early_stopping=self.early_stopping,
            alpha=self.alpha,
            clip_norm=self.clip_norm,
            shuffle=self.shuffle,
            random_state=None if self._resumes_unseeded(incremental) else self._rng,
            verbose=int(self.verbose),
            callbacks=callbacks,
            checkpoint_dir=None if incremental else self.checkpoint_dir,
        )

    def _resumes_unseeded(self, incremental: bool) -> bool:
        """Whether the seed may come from a checkpoint, because the user gave none."""
        return self.random_state is None and self.checkpoint_dir is not None and not incremental

    def _record(self, history: History, n_rows: int, incremental: bool) -> None:
        """Set the fitted attributes from what the trainer did."""
        self.history_ = history
        self.n_iter_ = history.n_iter + (self.n_iter_ if incremental else 0)
        self.t_ += n_rows * history.n_iter
        self.loss_curve_ = [*self.loss_curve_, *history.loss_curve]
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else np.nan
        self.best_loss_ = min(self.loss_curve_, default=np.nan)
        if history.validation_scores:
            self.validation_scores_ = [*(self.validation_scores_ or []), *history.validation_scores]
        scores = self.validation_scores_
        self.best_validation_score_ = None if scores is None else max(scores)

    # ---------------------------------------------------------------- features

    def _check_features(self, X: Any, seqs: Sequences, lengths: Any, *, reset: bool) -> None:
        """Set (`reset`) or check the number and the names of the features."""
        table = lengths is None and is_table(X)
        if reset:
            self._fitted_on_table = table
        if table and self._fitted_on_table:
            validate_data(self, X, reset=reset, skip_check_array=True)
        elif reset:
            self._set_features(X, seqs)
        else:
            self._compare_features(X, seqs)

    def _set_features(self, X: Any, seqs: Sequences) -> None:
        self.n_features_in_ = seqs.n_features
        names = frame_columns(X)
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    @property
    def _feature_names(self) -> list[str] | None:
        """Names of the columns of the frames in training; None for other data, a table of one column a step too."""
        if self._fitted_on_table or not hasattr(self, "feature_names_in_"):
            return None
        return list(self.feature_names_in_)

    def _compare_features(self, X: Any, seqs: Sequences) -> None:
        expected = self._preparation.n_features
        if seqs.n_features != expected:
            raise ValueError(
                f"X has {seqs.n_features} features, but {type(self).__name__} "
                f"is expecting {expected} features as input.{hint_of_one(X, expected)}"
            )
        if not self._fitted_on_table:
            check_columns(X, self._feature_names)

    # ---------------------------------------------------------------- after fit

    def _raw_outputs(self, X: Any, lengths: ArrayLike | None, delta_t: Any = None) -> NDArray[Any]:
        """Outputs of the network (n, n_outputs) for checked input."""
        check_is_fitted(self)
        preparation = self._preparation
        seqs, times = preparation.read(X, lengths, delta_t)
        self._check_features(X, seqs, lengths, reset=False)
        self.network_.encoder.n_threads = n_threads(self.n_jobs)
        return self.network_.predict(preparation.apply(seqs, times))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        optimizer = self.__dict__.get("_optimizer")
        if optimizer is not None:  # arrays that came from a read-only memory map become our own
            optimizer.load_state_dict(optimizer.state_dict())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "history_") or hasattr(self, "_in_training")  # callbacks may predict

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self.missing == "observe"
        tags.target_tags.required = True
        return tags

    def _model(self) -> Model:
        """The fitted network and its decision, without the estimator."""
        from fastlstm.model import Model

        check_is_fitted(self)
        extra: dict[str, Any] = {"estimator": type(self).__name__}
        if self._feature_names is not None:
            extra["feature_names"] = self._feature_names
        return Model(
            self.network_,
            self._decision,
            normalization=self._normalization,
            missing=self._missing_values,
            extra=extra,
        )

    def save(self, path: Any) -> None:
        """Write the fitted model to a safetensors file, for `fastlstm.load`.

        Parameters
        ----------
        path : str or path-like
            File to create or replace; it is complete or untouched at any time.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        OSError
            If the file cannot be written.
        """
        self._model().save(path)

    def stream(self, n_streams: int = 1) -> Any:
        """Predict one time step at a time, for `n_streams` independent sequences that advance together.

        Parameters
        ----------
        n_streams : int, default=1
            Number of sequences.

        Returns
        -------
        fastlstm.streaming.Stream
            ``step(x_t, delta_t=None)`` with x_t of shape (n_streams, n_features) gives what `predict` would give for
            the sequences so far.
        """
        return self._model().stream(n_streams)
