"""Regression on whole sequences."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags, check_array, column_or_1d

from fastlstm.decision import Decision
from fastlstm.estimators._base import RULES, BaseLSTM
from fastlstm.estimators._compat import with_callbacks
from fastlstm.estimators._data import check_finite
from fastlstm.estimators._params import Choice, Instance, Number, Rule
from fastlstm.losses import Loss, get_loss

_LOSSES = {
    "squared_error": "squared",
    "absolute_error": "absolute",
    "huber": "huber",
    "quantile": "quantile",
    "gaussian_nll": "gaussian_nll",
}


class LSTMRegressor(RegressorMixin, BaseLSTM):
    """LSTM network that predicts one or several numbers for each sequence.

    The sequences may have different lengths; every time step has the same number of features. The
    targets are used as they are: scale them to about unit variance (for example with
    `sklearn.compose.TransformedTargetRegressor`).

    Parameters
    ----------
    hidden_size : int, default=64
        Number of units of each layer and direction.
    num_layers : int, default=1
        Number of stacked layers.
    loss : str or Loss, default="squared_error"
        ``"squared_error"``, ``"absolute_error"``, ``"huber"`` (quadratic up to an error of 1),
        ``"quantile"``, or ``"gaussian_nll"``, which also learns the standard deviation of each
        prediction (Nix & Weigend 1994); or a loss of `fastlstm.losses`, such as ``Huber(delta=2.0)``.
    quantile : float, default=0.5
        The quantile that ``loss="quantile"`` predicts.
    cell : str, default="lstm"
        Recurrent cell, one of those of :class:`fastlstm.layers.LSTM`: ``"lstm"`` (with forget gate,
        Gers et al. 2000), ``"peephole"``, ``"gru"``, ``"rnn"``, ...; ``"tlstm"`` (Baytas et al. 2017)
        takes the time between steps into account, see `delta_t` of `fit`.
    cell_activation : {"tanh", "identity"}, default="tanh"
        Output squashing of the cells ``"lstm"``, ``"peephole"`` and ``"peephole_article"``.
    time_decay : {"log", "inverse"}, default="log"
        Weight of the short-term memory after the time delta_t, for the cell ``"tlstm"``:
        1 / log(e + delta_t), or 1 / delta_t.
    cells_per_block : int, default=1
        Cells of a memory block, whose gates they have in common (Hochreiter & Schmidhuber 1997).
    proj_size : int, default=0
        Size of the recurrent projection of an LSTM (Sak et al. 2014); 0: none.
    layer_norm : bool, default=False
        Whether the products of a step and the cell state are normalised over the units (Ba et al. 2016).
    learn_initial_state : bool, default=False
        Whether the states that a sequence starts from are learned; they are zero otherwise.
    truncated : {False, True, "peepholes"}, default=False
        Whether errors stop at the net inputs of gates and cells, as in the training of 1997, or at peepholes alone.
    bidirectional : bool, default=False
        Whether a second network reads each sequence from its end (Graves & Schmidhuber 2005).
    residual : bool, default=False
        Whether the input of each layer is added to its output: of all layers but the first, and of the first
        where the sizes agree (He et al. 2016; Wu et al. 2016).
    skip : {None, "input", "output", "both"}, default=None
        Connections from the input to every layer, from every layer to the output, or both (Graves 2013).
    merge : {"concat", "sum"}, default="concat"
        How the outputs of two directions become one; ``"sum"`` goes with `bidirectional`.
    dropout : float, default=0.0
        Share of the outputs of each layer that is zeroed during training.
    recurrent_dropout : float, default=0.0
        Share of the cell updates that is zeroed during training (Semeniuta et al. 2016); not for the
        plain recurrent cells.
    zoneout : float or (float, float), default=0.0
        Probability that a unit keeps its output and its cell state at a step of training, or one for each
        (Krueger et al. 2016).
    weight_dropout : float, default=0.0
        Share of the recurrent weights that each minibatch leaves out (DropConnect, Merity et al. 2017).
    weight_noise : float, default=0.0
        Standard deviation of the Gaussian noise that each minibatch adds to the recurrent layers'
        parameters (Graves 2011).
    checkpoint_every : int, default=None
        Steps between the states that training keeps; what lies between them is computed again, so that long
        sequences take a fraction of the memory and one more forward pass. About the square root of the length
        needs least (Chen et al. 2016). Not with `bidirectional`. None: keep everything.
    pooling : {"last", "mean", "max"}, default="last"
        What the output layer sees: the output after all steps, or the mean or maximum over time.
    missing : {"error", "observe"}, default="error"
        NaN in `X` is an error, or a value that was not observed. The network then sees, standardised, three
        numbers for each feature: its last observed value (before the first: its mean in the training
        data), whether it was observed now, and the time since it was last observed (Che et al.,
        Scientific Reports 8, 2018, the inputs of GRU-simple). Times come from `delta_t`; without it, steps
        are counted.
    solver : {"adam", "adamw", "nadam", "rmsprop", "sgd"} or Optimizer, default="adam"
        Optimiser. ``"sgd"`` has Nesterov momentum 0.9.
    learning_rate_init : float, default=1e-3
        Initial learning rate.
    learning_rate : str or Schedule, default="constant"
        How the learning rate changes: ``"constant"``, ``"step"``, ``"cosine"``, ``"one_cycle"``,
        ``"on_plateau"``, ``"warm_up"``. `partial_fit`, which cannot know how many epochs follow, keeps it constant.
    batch_size : int, default=32
        Number of sequences of a minibatch.
    max_iter : int, default=100
        Greatest number of epochs.
    tol : float, default=1e-4
        Training stops if neither loss nor score improve by `tol` for `n_iter_no_change` epochs.
    n_iter_no_change : int, default=10
        Number of epochs without improvement before training stops.
    early_stopping : bool, default=False
        Whether to stop by a validation score (of `eval_set`, else of `validation_fraction` of the data)
        and restore the best weights.
    validation_fraction : float, default=0.1
        Share of the training data that `early_stopping` holds out.
    alpha : float, default=0.0
        Strength of the L2 penalty on the weights.
    clip_norm : float or None, default=1.0
        Greatest Euclidean norm of the gradient of a minibatch.
    shuffle : bool, default=True
        Whether to shuffle the sequences before each epoch. If all of them fit into one minibatch, the
        result then does not depend on their order, and integer weights equal repeated rows exactly.
    precision : {"float32", "float64", "high", "bfloat16"}, default="float32"
        Numbers that the network computes with: those of a dtype, or float32 with faster products of the recurrent
        layers where the processor has them, as :class:`fastlstm.layers.LSTM` takes them.
    batch_invariant : bool, default=False
        Whether predictions have the same bits in any batch and step by step in a stream on processors with AMX, too,
        whose faster products this leaves unused; elsewhere they have in any case.
    n_jobs : int or None, default=None
        Number of threads; None follows `fastlstm.set_num_threads`, -1 takes all CPUs. The results do not
        depend on it.
    device : {"cpu"}, default="cpu"
        Where to compute.
    warm_start : bool, default=False
        Whether `fit` continues from the weights of the previous call.
    checkpoint_dir : path-like or None, default=None
        Folder for checkpoints; `fit` resumes from one that belongs to the same data and parameters.
    callbacks : list of Callback or None, default=None
        Called during training, see `fastlstm.callbacks`.
    random_state : int, RandomState, Generator or None, default=None
        Determines the initial weights, the shuffling, dropout and the held-out part.
    verbose : int, default=0
        1: a line for each epoch; 2: a progress bar.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a time step; number of columns if `fit` was given a table (n, T).
    feature_names_in_ : ndarray of str
        Names of those features, if `fit` was given data frames.
    n_iter_ : int
        Number of epochs.
    t_ : int
        Number of sequences seen, over all epochs.
    loss_ : float
        Training loss of the last epoch.
    loss_curve_ : list of float
        Training loss of each epoch.
    best_loss_ : float
        Least training loss.
    validation_scores_ : list of float or None
        Score of the validation data after each epoch, if there are any: R^2 for the squared error,
        minus the loss otherwise.
    best_validation_score_ : float or None
        Greatest of these.
    history_ : History
        Record of the last training.
    network_ : SequenceNetwork
        The trained network.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm import LSTMRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=(rng.integers(3, 9), 1)) for _ in range(60)]
    >>> y = [sequence[-1, 0] for sequence in X]
    >>> model = LSTMRegressor(16, learning_rate_init=0.02, max_iter=60, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.8
    True
    """

    _rules: ClassVar[dict[str, tuple[Rule, ...]]] = {
        **RULES,
        "loss": (Choice(tuple(_LOSSES)), Instance((Loss,), "a loss of fastlstm.losses")),
        "quantile": (Number(0.0, 1.0, low_open=True),),
    }

    def __init__(
        self,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        loss: Any = "squared_error",
        quantile: float = 0.5,
        cell: str = "lstm",
        cell_activation: str = "tanh",
        time_decay: str = "log",
        cells_per_block: int = 1,
        proj_size: int = 0,
        layer_norm: bool = False,
        learn_initial_state: bool = False,
        truncated: bool | str = False,
        bidirectional: bool = False,
        residual: bool = False,
        skip: str | None = None,
        merge: str = "concat",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        weight_noise: float = 0.0,
        checkpoint_every: int | None = None,
        pooling: str = "last",
        missing: str = "error",
        solver: Any = "adam",
        learning_rate_init: float = 1e-3,
        learning_rate: Any = "constant",
        batch_size: int = 32,
        max_iter: int = 100,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        alpha: float = 0.0,
        clip_norm: float | None = 1.0,
        shuffle: bool = True,
        precision: str = "float32",
        batch_invariant: bool = False,
        n_jobs: int | None = None,
        device: str = "cpu",
        warm_start: bool = False,
        checkpoint_dir: Any = None,
        callbacks: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.loss = loss
        self.quantile = quantile
        self.cell = cell
        self.cell_activation = cell_activation
        self.time_decay = time_decay
        self.cells_per_block = cells_per_block
        self.proj_size = proj_size
        self.layer_norm = layer_norm
        self.learn_initial_state = learn_initial_state
        self.truncated = truncated
        self.bidirectional = bidirectional
        self.residual = residual
        self.skip = skip
        self.merge = merge
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.zoneout = zoneout
        self.weight_dropout = weight_dropout
        self.weight_noise = weight_noise
        self.checkpoint_every = checkpoint_every
        self.pooling = pooling
        self.missing = missing
        self.solver = solver
        self.learning_rate_init = learning_rate_init
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.alpha = alpha
        self.clip_norm = clip_norm
        self.shuffle = shuffle
        self.precision = precision
        self.batch_invariant = batch_invariant
        self.n_jobs = n_jobs
        self.device = device
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.callbacks = callbacks
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        delta_t: Any = None,
        sample_weight: ArrayLike | None = None,
        eval_set: Any = None,
    ) -> LSTMRegressor:
        """Train the network.

        Parameters
        ----------
        X : array-like or list of array-likes
            Sequences: an array (n, T, n_features), a table (n, T) of univariate sequences, or a list of
            arrays (T_i, n_features) or (T_i,).
        y : array-like of shape (n,) or (n, n_targets)
            Targets of each sequence.
        lengths : array-like of int, shape (n,), optional
            Real lengths of padded sequences.
        delta_t : array-like or list of array-likes, optional
            Time since the step before, one number of at least 0 for each step and in any unit: an array (n, T)
            or a list of arrays (T_i,). For the cell ``"tlstm"`` and for ``missing="observe"``. None: no time
            passes (with missing values: steps are counted).
        sample_weight : array-like of shape (n,), optional
            Weight of each sequence; 0 counts as absent.
        eval_set : tuple (X, y) or (X, y, delta_t), optional
            Data whose score is recorded after each epoch, and decides if `early_stopping`.

        Returns
        -------
        self : LSTMRegressor
        """
        return self._fit(X, y, lengths, sample_weight, eval_set, delta_t=delta_t)

    @with_callbacks
    def partial_fit(
        self,
        X: Any,
        y: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        delta_t: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> LSTMRegressor:
        """Train for one epoch on the given sequences, continuing from the previous call.

        Parameters
        ----------
        X, y, lengths, delta_t, sample_weight
            As in `fit`.

        Returns
        -------
        self : LSTMRegressor
        """
        return self._fit(X, y, lengths, sample_weight, delta_t=delta_t, incremental=True)

    # ---------------------------------------------------------------- targets

    def _check_y(self, y: Any, name: str) -> NDArray[Any]:
        y = check_array(y, ensure_2d=False, dtype=np.float64, ensure_all_finite=False, input_name=name)
        if y.ndim > 2 or y.shape[1:] == (0,):
            raise ValueError(f"{name} must have shape (n,) or (n, n_targets), got {y.shape}")
        check_finite(y, name)
        return column_or_1d(y, warn=True) if y.shape[1:] == (1,) else y

    def _encode_fit(
        self, y: NDArray[Any], weights: NDArray[np.float64] | None, known: Decision | None, classes: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64] | None, Decision]:
        decision = known
        if decision is None:
            n_targets = y.shape[1] if y.ndim == 2 else 1
            variance = get_loss("gaussian_nll").name == self._make_loss().name
            decision = Decision("regression", n_targets=n_targets, flat=y.ndim == 1, variance=variance)
        return self._encode_eval(y, decision, "y"), weights, decision

    def _encode_eval(self, y: NDArray[Any], decision: Decision, name: str) -> NDArray[Any]:
        targets = y[:, None] if y.ndim == 1 else y
        if targets.shape[1] != decision.n_targets:
            raise ValueError(
                f"{name} has {targets.shape[1]} targets, but {type(self).__name__} "
                f"was fitted with {decision.n_targets}"
            )
        return targets

    def _make_loss(self) -> Loss:
        if isinstance(self.loss, Loss):
            return self.loss
        parameters = {"q": self.quantile} if self.loss == "quantile" else {}
        return get_loss(_LOSSES[self.loss], **parameters)

    def _loss(self, decision: Decision) -> Loss:
        loss = self._make_loss()
        if loss.n_outputs(decision.n_targets) != decision.n_outputs:
            raise ValueError(f"{loss!r} does not give one prediction per target")
        return loss

    def _validation_score(
        self, outputs: NDArray[Any], targets: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        if self.loss == "squared_error":
            return float(r2_score(targets, outputs, sample_weight=weights))
        return -self._make_loss().value(outputs.astype(np.float64), targets, weights)

    # ---------------------------------------------------------------- predictions

    def predict(
        self, X: Any, *, lengths: ArrayLike | None = None, delta_t: Any = None, return_std: bool = False
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predicted targets of each sequence.

        Parameters
        ----------
        X : array-like or list of array-likes
            Sequences, as in `fit`.
        lengths : array-like of int, shape (n,), optional
            Real lengths of padded sequences.
        delta_t : array-like or list of array-likes, optional
            Time since the step before, as in `fit`.
        return_std : bool, default=False
            Whether to return standard deviations too, with ``loss="gaussian_nll"``.

        Returns
        -------
        ndarray of shape (n,) or (n, n_targets), or two of them
        """
        raw = self._raw_outputs(X, lengths, delta_t)
        values = self._decision.predict(raw)
        return (values, self._decision.predict_std(raw)) if return_std else values

    def score(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        delta_t: Any = None,
    ) -> float:
        """Coefficient of determination R^2 of `predict`, the mean over the targets."""
        return float(
            r2_score(y, self.predict(X, lengths=lengths, delta_t=delta_t), sample_weight=sample_weight)
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
