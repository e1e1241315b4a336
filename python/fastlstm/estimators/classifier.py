"""Classification of whole sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags, column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from fastlstm.decision import Decision
from fastlstm.estimators._base import RULES, BaseLSTM
from fastlstm.estimators._compat import with_callbacks
from fastlstm.estimators._data import check_finite
from fastlstm.estimators._params import Choice, Instance, Nothing, Rule
from fastlstm.losses import Loss, get_loss

_LOSSES = {
    "binary": "sigmoid_cross_entropy",
    "multiclass": "softmax_cross_entropy",
    "multilabel": "sigmoid_cross_entropy",
}


class LSTMClassifier(ClassifierMixin, BaseLSTM):
    """LSTM network that assigns a label to each sequence.

    The sequences may have different lengths; every time step has the same number of features. Labels may
    be of any sortable type. With a 0/1 matrix as `y`, each column is a label of its own (multi-label).

    Parameters
    ----------
    hidden_size : int, default=64
        Number of units of each layer and direction.
    num_layers : int, default=1
        Number of stacked layers.
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
        What the classifying layer sees: the output after all steps, or the mean or maximum over time.
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
        Share of the training data that `early_stopping` holds out, stratified by label.
    alpha : float, default=0.0
        Strength of the L2 penalty on the weights.
    clip_norm : float or None, default=1.0
        Greatest Euclidean norm of the gradient of a minibatch.
    shuffle : bool, default=True
        Whether to shuffle the sequences before each epoch. If all of them fit into one minibatch, the
        result then does not depend on their order, and integer weights equal repeated rows exactly.
    class_weight : dict, "balanced" or None, default=None
        Weight of each class, multiplied with `sample_weight`.
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
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
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
        Accuracy on the validation data after each epoch, if there are any.
    best_validation_score_ : float or None
        Greatest of these.
    history_ : History
        Record of the last training.
    network_ : SequenceNetwork
        The trained network.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm import LSTMClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(loc=label, size=(rng.integers(5, 15), 2)) for label in (-1, 1) * 20]
    >>> y = ["low", "high"] * 20
    >>> model = LSTMClassifier(8, learning_rate_init=0.02, max_iter=10, random_state=0).fit(X, y)
    >>> model.predict([np.full((7, 2), 1.0), np.full((3, 2), -1.0)]).tolist()
    ['high', 'low']
    """

    _rules: ClassVar[dict[str, tuple[Rule, ...]]] = {
        **RULES,
        "class_weight": (Instance((dict, list), "a dict"), Choice(("balanced",)), Nothing()),
    }

    def __init__(
        self,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
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
        class_weight: Any = None,
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
        self.class_weight = class_weight
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
    ) -> LSTMClassifier:
        """Train the network.

        Parameters
        ----------
        X : array-like or list of array-likes
            Sequences: an array (n, T, n_features), a table (n, T) of univariate sequences, or a list of
            arrays (T_i, n_features) or (T_i,).
        y : array-like of shape (n,), or (n, n_labels) of 0 and 1
            Label of each sequence.
        lengths : array-like of int, shape (n,), optional
            Real lengths of padded sequences.
        delta_t : array-like or list of array-likes, optional
            Time since the step before, one number of at least 0 for each step and in any unit: an array (n, T)
            or a list of arrays (T_i,). For the cell ``"tlstm"`` and for ``missing="observe"``. None: no time
            passes (with missing values: steps are counted).
        sample_weight : array-like of shape (n,), optional
            Weight of each sequence; 0 counts as absent.
        eval_set : tuple (X, y) or (X, y, delta_t), optional
            Data whose accuracy is recorded after each epoch, and decides if `early_stopping`.

        Returns
        -------
        self : LSTMClassifier
        """
        return self._fit(X, y, lengths, sample_weight, eval_set, delta_t=delta_t)

    @with_callbacks
    def partial_fit(
        self,
        X: Any,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        delta_t: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> LSTMClassifier:
        """Train for one epoch on the given sequences, continuing from the previous call.

        Parameters
        ----------
        X, y, lengths, delta_t, sample_weight
            As in `fit`.
        classes : array-like of shape (n_classes,), optional
            All labels that any call may bring; needed by the first call unless `y` has them all.

        Returns
        -------
        self : LSTMClassifier
        """
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' is not supported for partial_fit: give a dict of class weights"
            )
        return self._fit(X, y, lengths, sample_weight, delta_t=delta_t, incremental=True, classes=classes)

    # ---------------------------------------------------------------- targets

    def _check_y(self, y: Any, name: str) -> NDArray[Any]:
        return _checked_labels(y, name)

    def _encode_fit(
        self, y: NDArray[Any], weights: NDArray[np.float64] | None, known: Decision | None, classes: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64] | None, Decision]:
        decision = known
        if decision is None:
            decision = _new_decision(y, classes)
        elif classes is not None and not np.array_equal(np.unique(np.asarray(classes)), self.classes_):
            raise ValueError(f"classes={classes!r} is not the same as on the first call: {self.classes_}")
        targets = _codes(y, decision, "y")
        if self.class_weight is not None:
            weights = self._class_weighted(y, weights)
        return targets, weights, decision

    def _class_weighted(self, y: NDArray[Any], weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Weights (n,) times the weights of the classes."""
        if isinstance(self.class_weight, Mapping):
            for label, weight in self.class_weight.items():
                if not (isinstance(weight, (int, float, np.integer, np.floating)) and 0.0 <= weight < np.inf):
                    raise ValueError(
                        f"class_weight of {label!r} is {weight!r}; weights are finite and at least 0"
                    )
        by_class = np.asarray(compute_sample_weight(self.class_weight, y), dtype=np.float64)
        return by_class if weights is None else by_class * weights

    def _encode_eval(self, y: NDArray[Any], decision: Decision, name: str) -> NDArray[Any]:
        return _codes(y, decision, name)

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels in the order of the columns of `predict_proba`."""
        if not hasattr(self, "_decision"):
            raise AttributeError(f"this {type(self).__name__} has no classes_ before fit")
        return np.asarray(self._decision.classes)

    def _loss(self, decision: Decision) -> Loss:
        return get_loss(_LOSSES[decision.kind])

    def _validation_score(
        self, outputs: NDArray[Any], targets: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        if self._decision.kind == "multiclass":
            right = outputs.argmax(axis=1) == targets
        else:
            right = ((outputs > 0) == (targets > 0)).all(axis=1)
        return float(np.average(right, weights=weights))

    # ---------------------------------------------------------------- predictions

    def predict(self, X: Any, *, lengths: ArrayLike | None = None, delta_t: Any = None) -> NDArray[Any]:
        """Most probable label of each sequence.

        Parameters
        ----------
        X : array-like or list of array-likes
            Sequences, as in `fit`.
        lengths : array-like of int, shape (n,), optional
            Real lengths of padded sequences.
        delta_t : array-like or list of array-likes, optional
            Time since the step before, as in `fit`.

        Returns
        -------
        ndarray of shape (n,), or (n, n_labels) of 0 and 1
        """
        raw = self._raw_outputs(X, lengths, delta_t)
        return self._decision.predict(raw)

    def predict_proba(
        self, X: Any, *, lengths: ArrayLike | None = None, delta_t: Any = None
    ) -> NDArray[np.float64]:
        """Probability of each class, in the order of `classes_`: shape (n, n_classes)."""
        raw = self._raw_outputs(X, lengths, delta_t)
        return self._decision.predict_proba(raw)

    def predict_log_proba(
        self, X: Any, *, lengths: ArrayLike | None = None, delta_t: Any = None
    ) -> NDArray[np.float64]:
        """Logarithm of the probability of each class: shape (n, n_classes)."""
        raw = self._raw_outputs(X, lengths, delta_t)
        return self._decision.predict_log_proba(raw)

    def decision_function(
        self, X: Any, *, lengths: ArrayLike | None = None, delta_t: Any = None
    ) -> NDArray[np.float64]:
        """Logits: shape (n,) for two classes (positive means ``classes_[1]``), else (n, n_classes)."""
        raw = self._raw_outputs(X, lengths, delta_t).astype(np.float64)
        return raw[:, 0] if self._decision.kind == "binary" else raw

    def score(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        delta_t: Any = None,
    ) -> float:
        """Accuracy of `predict`; for multi-label data, the share of sequences with all labels right."""
        return float(
            accuracy_score(y, self.predict(X, lengths=lengths, delta_t=delta_t), sample_weight=sample_weight)
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _checked_labels(y: Any, name: str) -> NDArray[Any]:
    """Labels (n,), or a 0/1 matrix (n, n_labels) for multi-label data."""
    if hasattr(y, "toarray"):
        y = y.toarray()
    if isinstance(y, np.ndarray):
        check_finite(y, name)
    check_classification_targets(y)
    kind = type_of_target(y, input_name=name)
    if kind == "multilabel-indicator":
        return np.asarray(y).astype(np.int64)
    if kind == "multiclass-multioutput":
        raise ValueError(f"Unknown label type: {kind}. {name} must be one label per row, or a 0/1 matrix.")
    return np.asarray(column_or_1d(y, warn=True))


def _new_decision(y: NDArray[Any], classes: Any) -> Decision:
    """What `y` (n,) or (n, n_labels) asks to predict; `classes` if not all labels are in `y`."""
    if y.ndim == 2:
        return Decision("multilabel", np.arange(y.shape[1]))
    labels = np.unique(y if classes is None else np.asarray(classes))
    if len(labels) < 2:
        raise ValueError(
            f"LSTMClassifier needs at least 2 classes, but the training data has one class: {labels.tolist()}"
        )
    return Decision("binary" if len(labels) == 2 else "multiclass", labels)


def _codes(y: NDArray[Any], decision: Decision, name: str) -> NDArray[Any]:
    """Targets for the loss: 0/1 (n, n_outputs), or class numbers (n,) for several classes."""
    classes = np.asarray(decision.classes)
    if decision.kind == "multilabel":
        if y.shape[1:] != classes.shape:
            raise ValueError(f"{name} must be a 0/1 matrix of {len(classes)} columns, got shape {y.shape}")
        return y.astype(np.float64)
    if y.ndim != 1:
        raise ValueError(f"{name} must have one label per row, as in the first fit, got shape {y.shape}")
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    unknown = np.flatnonzero(classes[codes] != y)
    if unknown.size:
        raise ValueError(
            f"{name} has labels that are not among the classes {classes.tolist()}: "
            f"{y[unknown[0]]!r} at row {unknown[0]}"
        )
    return codes if decision.kind == "multiclass" else codes[:, None].astype(np.float64)
