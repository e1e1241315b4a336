"""LSTMClassifier: labels, weights, ways to continue, and the company it keeps in scikit-learn."""

from __future__ import annotations

import copy
import io
import pickle

import joblib
import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_html_repr

import fastlstm
from fastlstm import LSTMClassifier, as_sequences


def classifier(**params):
    return LSTMClassifier(
        **{"hidden_size": 6, "learning_rate_init": 0.02, "max_iter": 8, "random_state": 0, **params}
    )


def check_same_outputs(one, other, X):
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "names",
    [["a", "bb", "ccc"], [10, 20, 30], [-1.0, 2.0, 7.0], np.array(["x", "y", "z"], dtype=object)],
)
def test_labels_of_any_type(ragged, names):
    X, y = ragged
    labels = np.asarray(names)[y]
    model = classifier(max_iter=25).fit(X, labels)
    assert model.classes_.tolist() == sorted(set(labels.tolist()))
    assert model.classes_.dtype == labels.dtype
    assert model.score(X, labels) > 0.9
    proba = model.predict_proba(X)
    assert proba.shape == (60, 3)
    np.testing.assert_array_equal(model.classes_[proba.argmax(axis=1)], model.predict(X))


def test_two_classes_have_one_logit(ragged):
    X, y = ragged
    model = classifier(max_iter=20).fit(X, y > 0)
    assert model.classes_.tolist() == [False, True]
    assert model.network_.n_outputs == 1
    logits = model.decision_function(X)
    assert logits.shape == (60,)
    np.testing.assert_array_equal(logits > 0, model.predict(X))
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(model.predict_proba(X)), atol=1e-12)


def test_multilabel(ragged):
    X, y = ragged
    Y = np.stack([y == 0, y > 0, y < 2], axis=1).astype(int)
    model = classifier(max_iter=40).fit(X, Y, eval_set=(X, Y))
    assert model.predict(X).shape == (60, 3)
    assert set(np.unique(model.predict(X))) <= {0, 1}
    assert model.predict_proba(X).shape == (60, 3)
    assert model.score(X, Y) == model.validation_scores_[-1] > 0.8
    sparse = pytest.importorskip("scipy.sparse")
    check_same_outputs(model, classifier(max_iter=40).fit(X, sparse.csr_array(Y)), X)
    with pytest.raises(ValueError, match="0/1 matrix of 3 columns"):
        model.set_params(warm_start=True).fit(X, Y[:, :2])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(60), r"at least 2 classes, but the training data has one class: \[0\.0\]"),
        (np.linspace(0, 1, 60), "continuous"),
        (np.r_[np.nan, np.arange(59) % 3], "y contains NaN at row 0"),
        (np.arange(30) % 3, "60 sequences but 30 targets"),
        (np.arange(120).reshape(60, 2) % 3, "Unknown label type: multiclass-multioutput"),
        (None, "requires y to be passed"),
    ],
)
def test_wrong_targets(ragged, y, message):
    with pytest.raises(ValueError, match=message):
        classifier().fit(ragged[0], y)


def test_column_vector_is_taken_with_a_warning(ragged):
    X, y = ragged
    with pytest.warns(DataConversionWarning):
        model = classifier().fit(X, y[:, None])
    check_same_outputs(model, classifier().fit(X, y), X)


# ---------------------------------------------------------------- input


def test_all_ways_to_give_the_data_are_one(ragged, padded):
    X, y = ragged
    array, lengths = padded(X)
    model = classifier().fit(X, y)
    for data, options in [
        (array, {"lengths": lengths}),
        (array[:, ::-1][:, ::-1].astype(">f8"), {"lengths": lengths.tolist()}),
        (as_sequences(array, lengths), {}),
        (as_sequences(X, dtype=np.float64), {}),
    ]:
        other = classifier().fit(data, y, **options)
        np.testing.assert_array_equal(other.predict_proba(data, **options), model.predict_proba(X))
        assert other.score(data, y, **options) == model.score(X, y)
        assert other.n_features_in_ == 3


def test_tables_are_univariate(ragged):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 7))
    y = table[:, -1] > 0
    model = classifier().fit(table, y)
    assert model.n_features_in_ == 7 and model.network_.encoder.input_size == 1
    check_same_outputs(model, classifier().fit(table[:, :, None], y), table)
    assert model.predict(list(table[:, :4])).shape == (40,)
    assert model.predict(table[:, :4, None]).shape == (40,)
    message = "X has 4 features, but LSTMClassifier is expecting 7 features as input"
    with pytest.raises(ValueError, match=message):
        model.predict(table[:, :4])
    univariate = classifier().fit(list(table), y)
    assert univariate.n_features_in_ == 1
    assert univariate.predict(table[:, :4]).shape == (40,)


def test_number_of_features_is_checked(ragged):
    X, y = ragged
    model = classifier().fit(X, y)
    message = "X has 2 features, but LSTMClassifier is expecting 3 features as input"
    for method in (model.predict, model.predict_proba, model.decision_function, model.predict_log_proba):
        with pytest.raises(ValueError, match=message):
            method([sequence[:, :2] for sequence in X])
    with pytest.raises(ValueError, match="1 features"):
        model.predict(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="NaN at sequence 1, time step 2, feature 0"):
        model.predict([X[0], np.array([[0, 0, 0], [0, 0, 0], [np.nan, 0, 0]])])


def test_feature_names(ragged, tmp_path):
    pd = pytest.importorskip("pandas")
    X, y = ragged
    frames = [pd.DataFrame(sequence, columns=["a", "b", "c"]) for sequence in X]
    model = classifier().fit(frames, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.n_features_in_ == 3
    np.testing.assert_array_equal(model.predict(frames), model.predict(X))
    model.save(tmp_path / "model.safetensors")
    loaded = fastlstm.load(tmp_path / "model.safetensors")
    assert loaded.info["feature_names"] == ["a", "b", "c"]
    np.testing.assert_array_equal(loaded.predict(frames), model.predict(X))
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    for other in (model, loaded, loaded.at_precision("high")):
        with pytest.raises(ValueError, match="feature names should match"):
            other.predict([frame.rename(columns={"a": "z"}) for frame in frames])
        with pytest.raises(ValueError, match="feature names should match"):
            other.predict([frame[["c", "b", "a"]] for frame in frames])
    with pytest.raises(ValueError, match=r"X\[1\] has the columns"):
        model.fit([frames[0], *(frame[["b", "a", "c"]] for frame in frames[1:])], y)
    assert not hasattr(model.fit(X, y), "feature_names_in_")
    with pytest.raises(ValueError, match=r"X\[1\] has the columns"):
        model.predict([frames[0], frames[1][["b", "a", "c"]]])


# ---------------------------------------------------------------- weights


def test_weight_zero_is_an_absent_row(ragged):
    X, y = ragged
    weights = (np.arange(60) % 4 > 0).astype(float)
    kept = [sequence for sequence, weight in zip(X, weights, strict=True) if weight]
    full = classifier(early_stopping=True, validation_fraction=0.3).fit(X, y, sample_weight=weights)
    less = classifier(early_stopping=True, validation_fraction=0.3).fit(kept, y[weights > 0])
    check_same_outputs(full, less, X)
    only = (y != 2).astype(float)
    assert classifier().fit(X, y, sample_weight=only).classes_.tolist() == [0, 1]


def test_integer_weights_equal_repeated_rows(ragged):
    X, y = ragged
    X, y = X[:20], y[:20]
    weights = np.arange(20) % 3
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(20), weights))
    one = classifier().fit(X, y, sample_weight=weights)
    two = classifier().fit([X[i] for i in order], y[order])
    check_same_outputs(one, two, X)


def test_class_weight_equals_sample_weight(ragged):
    X, y = ragged
    weight = {0: 1.0, 1: 2.5, 2: 0.5}
    by_class = classifier(class_weight=weight).fit(X, y)
    check_same_outputs(by_class, classifier().fit(X, y, sample_weight=[weight[label] for label in y]), X)
    uneven = np.r_[np.flatnonzero(y == 0)[:4], np.flatnonzero(y > 0)]
    counts = np.bincount(y[uneven])
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="class_weight of 1 is"):
            classifier(class_weight={**weight, 1: wrong}).fit(X, y)
    balanced = classifier(class_weight="balanced").fit([X[i] for i in uneven], y[uneven])
    manual = {label: len(uneven) / (3 * count) for label, count in enumerate(counts)}
    check_same_outputs(balanced, classifier(class_weight=manual).fit([X[i] for i in uneven], y[uneven]), X)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(60), "sample_weight is zero everywhere"),
        (np.r_[np.ones(59), -1], r"sample_weight\[59\] is -1\.0"),
        (np.r_[1, np.nan, np.ones(58)], r"sample_weight\[1\] is nan"),
        (np.ones(59), r"shape \(60,\)"),
        (np.ones((60, 1)), r"shape \(60,\)"),
    ],
)
def test_wrong_weights(ragged, weights, message):
    X, y = ragged
    with pytest.raises(ValueError, match=message):
        classifier().fit(X, y, sample_weight=weights)


# ---------------------------------------------------------------- training


def test_attributes_of_a_fit(ragged):
    X, y = ragged
    model = classifier(max_iter=5).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == 5
    assert model.loss_ == model.loss_curve_[-1]
    assert model.best_loss_ == min(model.loss_curve_)
    assert model.t_ == 300
    assert model.validation_scores_ is None and model.best_validation_score_ is None
    assert model.history_.n_iter == 5


def test_early_stopping_keeps_the_best_weights(ragged):
    X, y = ragged
    held_out = X[40:], y[40:]
    model = classifier(early_stopping=True, n_iter_no_change=2, learning_rate_init=0.3, max_iter=60)
    model.fit(X[:40], y[:40], eval_set=[held_out])
    assert model.n_iter_ < 60
    assert len(model.validation_scores_) == model.n_iter_
    assert model.best_validation_score_ == max(model.validation_scores_) == model.score(*held_out)


def test_early_stopping_holds_out_a_stratified_part(ragged):
    X, y = ragged
    model = classifier(early_stopping=True, validation_fraction=0.2, max_iter=3).fit(X, y)
    assert model.history_.n_sequences == 48
    multiples = np.array(model.validation_scores_) * 12
    np.testing.assert_allclose(multiples, multiples.round())
    with pytest.raises(ValueError, match="validation set is too small"):
        classifier(early_stopping=True, validation_fraction=0.01).fit(X, np.stack([y == 0, y == 1], axis=1))


@pytest.mark.parametrize("eval_set", [5, (1, 2, 3, 4), [([[1.0]], [0])] * 2])
def test_wrong_eval_set(ragged, eval_set):
    with pytest.raises(ValueError, match=r"eval_set must be a tuple \(X, y\)"):
        classifier().fit(*ragged, eval_set=eval_set)


def test_eval_set_with_an_unknown_label(ragged):
    X, y = ragged
    with pytest.raises(
        ValueError, match=r"eval_set\[1\] has labels that are not among the classes \[0, 1, 2\]"
    ):
        classifier().fit(X, y, eval_set=(X, y + 1))


def test_partial_fit(ragged):
    X, y = ragged
    model = classifier()
    model.partial_fit(X[:20], np.minimum(y[:20], 1), classes=[0, 1, 2])
    assert model.classes_.tolist() == [0, 1, 2]
    for _ in range(30):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9
    assert model.n_iter_ == len(model.loss_curve_) == 31
    assert model.t_ == 20 + 30 * 60
    with pytest.raises(ValueError, match="not the same as on the first call"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"not among the classes \[0, 1, 2\]: .*3.* at row"):
        model.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match="early_stopping"):
        classifier(early_stopping=True).partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="balanced"):
        classifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="class_weight='balanced' is not supported for partial_fit"):
        classifier(class_weight="balanced").partial_fit(X, y)


def test_partial_fit_continues_the_optimizer_through_a_pickle(ragged):
    X, y = ragged
    model = classifier(dropout=0.2).partial_fit(X, y, classes=[0, 1, 2])
    buffer = io.BytesIO(pickle.dumps(model))
    other = pickle.load(buffer)
    for _ in range(2):
        model.partial_fit(X, y)
        other.partial_fit(X, y)
    check_same_outputs(model, other, X)


def test_partial_fit_after_loading_from_a_memory_map(ragged, tmp_path):
    X, y = ragged
    model = classifier().partial_fit(X, y, classes=[0, 1, 2])
    joblib.dump(model, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    check_same_outputs(model.partial_fit(X, y), mapped.partial_fit(X, y), X)


def test_warm_start(ragged):
    X, y = ragged
    model = classifier(max_iter=3, warm_start=True).fit(X, y)
    before = model.loss_
    model.fit(X, y)
    assert model.loss_ < before
    assert model.n_iter_ == 3 and len(model.loss_curve_) == 6
    with pytest.raises(ValueError, match="hidden_size was 6 when training started and is 7 now"):
        model.set_params(hidden_size=7).fit(X, y)
    assert len(model.set_params(hidden_size=6, warm_start=False).fit(X, y).loss_curve_) == 3


@pytest.mark.parametrize("make", [int, np.random.RandomState, np.random.default_rng])
def test_random_state_decides_everything(ragged, make):
    X, y = ragged
    settings = {"dropout": 0.3, "early_stopping": True}
    one = classifier(random_state=make(3), **settings).fit(X, y)
    two = classifier(random_state=make(3), **settings).fit(X, y)
    check_same_outputs(one, two, X)
    other = classifier(random_state=make(4), **settings).fit(X, y)
    assert not np.array_equal(one.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize(
    "params",
    [
        {"cell": "rnn"},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.1},
        {"pooling": "mean"},
        {"pooling": "max"},
        {"solver": "sgd", "learning_rate_init": 0.1},
        {"solver": fastlstm.optimizers.AdamW(weight_decay=0.1)},
        {"learning_rate": "one_cycle"},
        {"learning_rate": fastlstm.schedules.Cosine(final_factor=0.1)},
        {"precision": "float64"},
        {"precision": "high"},
        {"precision": "bfloat16", "hidden_size": 12},
        {"alpha": 1e-3, "clip_norm": None, "shuffle": False},
        {"batch_size": 1000},
        {"n_iter_no_change": np.inf},
    ],
    ids=str,
)
def test_parameters_work(ragged, params):
    X, y = ragged
    model = classifier(**{"max_iter": 40, **params})
    before = {name: joblib.hash(value) for name, value in model.get_params().items()}
    assert model.fit(X, y).score(X, y) > 0.85
    assert {name: joblib.hash(value) for name, value in model.get_params().items()} == before
    assert model.network_.dtype == ("float64" if model.precision == "float64" else "float32")
    assert model.network_.encoder.precision in (model.precision, "float32")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"hidden_size": 0},
            "'hidden_size' parameter of LSTMClassifier must be a whole number of at least 1",
        ),
        ({"hidden_size": 2.0}, r"Got 2\.0 instead"),
        ({"num_layers": True}, "whole number of at least 1"),
        ({"cell": "gru4"}, "must be one of 'lstm', "),
        ({"pooling": "sum"}, "must be one of 'last', 'mean', 'max'"),
        ({"dropout": 1.0}, r"must be a number in \[0, 1\)"),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout"),
        ({"dropout": "0.1"}, r"must be a number in \[0, 1\)"),
        ({"solver": "lbfgs"}, "'adam'.*or an Optimizer of fastlstm.optimizers"),
        ({"learning_rate_init": 0.0}, "a number greater than 0"),
        ({"learning_rate_init": np.nan}, "a number greater than 0"),
        ({"learning_rate": "invscaling"}, "'constant'.*or a Schedule"),
        ({"clip_norm": -1.0}, "a number greater than 0 or None"),
        ({"validation_fraction": 0.0}, r"a number in \(0, 1\)"),
        ({"precision": "int3"}, "'float32'"),
        ({"device": "tpu"}, "must be 'cpu'"),
        ({"class_weight": "even"}, "a dict or 'balanced' or None"),
        ({"n_jobs": 0}, "None"),
        ({"callbacks": print}, "a list of callbacks or None"),
        ({"verbose": -1}, "at least 0"),
        ({"shuffle": None}, "True or False"),
    ],
    ids=str,
)
def test_wrong_parameters(ragged, params, message):
    with pytest.raises(ValueError, match=message):
        classifier(**params).fit(*ragged)


def test_callbacks_see_the_estimator(ragged):
    seen = []

    class Watch(fastlstm.callbacks.Callback):
        def on_epoch_end(self, net, *, trainer, history, **kwargs):
            seen.append((net, history.loss_curve[-1]))
            if len(seen) == 2:
                trainer.stop()

    model = classifier(callbacks=[Watch()]).fit(*ragged)
    assert [net for net, _ in seen] == [model, model]
    assert [loss for _, loss in seen] == model.loss_curve_


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_batch_begin", "on_batch_end"])
def test_callbacks_predict_and_save_with_the_weights_of_the_moment(ragged, tmp_path, hook):
    found = []

    def watch(net, **kwargs):
        net.save(tmp_path / "moment.safetensors")
        found.append(net.predict_proba(ragged[0]))
        saved = fastlstm.load(tmp_path / "moment.safetensors").predict_proba(ragged[0])
        np.testing.assert_array_equal(saved, found[-1])

    watcher = fastlstm.callbacks.Callback()
    setattr(watcher, hook, watch)
    watched, plain = classifier(callbacks=[watcher]), classifier()
    for model in (watched, plain):
        model.fit(*ragged)
    assert not np.array_equal(found[0], found[-1])
    np.testing.assert_array_equal(watched.predict_proba(ragged[0]), plain.predict_proba(ragged[0]))
    for X, y in (ragged, ragged):
        watched.partial_fit(X, y)


def test_a_fit_that_fails_leaves_an_estimator_that_is_not_fitted(ragged):
    class Fail(fastlstm.callbacks.Callback):
        def on_epoch_end(self, net, **kwargs):
            raise ZeroDivisionError

    model = classifier(callbacks=[Fail()])
    with pytest.raises(ZeroDivisionError):
        model.fit(*ragged)
    with pytest.raises(NotFittedError):
        model.predict(ragged[0])


def test_callbacks_of_scikit_learn(ragged):
    monitors = pytest.importorskip("sklearn.callback")
    X, y = ragged
    monitor = monitors.ScoringMonitor(scoring="accuracy")
    model = classifier(max_iter=3).set_callbacks(monitor).fit(X, y)
    scores = [row["accuracy"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == 3 and scores[-1] == model.score(X, y)
    assert not hasattr(model, "_callback_fit_ctx")


def test_n_jobs_changes_nothing_else(ragged):
    X, y = ragged
    before = fastlstm.get_num_threads()
    model = classifier(n_jobs=2).fit(X, y)
    check_same_outputs(model, classifier(n_jobs=-1).fit(X, y), X)
    check_same_outputs(model, classifier().fit(X, y), X)
    assert fastlstm.get_num_threads() == before


def test_checkpoints_resume(ragged, tmp_path):
    X, y = ragged

    class Interrupt(fastlstm.callbacks.Callback):
        def on_epoch_end(self, net, *, history, **kwargs):
            if history.n_iter == 4:
                raise RuntimeError("pulled the plug")

    settings = {"checkpoint_dir": tmp_path, "max_iter": 8}
    model = classifier(callbacks=[Interrupt()], **settings)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)
    resumed = classifier(**settings).fit(X, y)
    assert resumed.history_.resumed_epoch is not None
    check_same_outputs(resumed, classifier(max_iter=8).fit(X, y), X)


# ---------------------------------------------------------------- company


def test_nothing_works_before_fit(ragged, tmp_path):
    model = classifier()
    for call in (
        lambda: model.predict(ragged[0]),
        lambda: model.predict_proba(ragged[0]),
        lambda: model.save(tmp_path / "model.safetensors"),
        lambda: model.stream(),
    ):
        with pytest.raises(NotFittedError):
            call()
    assert not hasattr(model, "classes_")


def test_a_failed_fit_leaves_no_half_fitted_model(ragged):
    X, y = ragged
    model = classifier()
    with pytest.raises(ValueError, match="inconsistent"):
        model.fit(X, y[:-1])
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.fit(X, y)
    expected = model.predict_proba(X)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full((60, 2, 5), np.nan), y)
    with pytest.raises(ValueError, match=r"eval_set\[0\] has 2 features per time step, but X has 3"):
        model.fit(X, y, eval_set=([sequence[:, :2] for sequence in X], y))
    np.testing.assert_array_equal(model.predict_proba(X), expected)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(ragged, copy_of):
    X, y = ragged
    model = classifier(bidirectional=True, num_layers=2).fit(X, y)
    other = copy_of(model)
    check_same_outputs(model, other, X)
    expected = model.predict_proba(X)
    other.partial_fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_pickle_holds_plain_data_only(ragged):
    model = classifier().fit(*ragged)
    state = pickle.dumps(model)
    assert b"fastlstm._core" not in state
    assert len(state) < 12 * model.network_.flat.nbytes + 20_000


def test_clone_and_representations(ragged):
    model = classifier(solver="sgd")
    assert clone(model).get_params() == model.get_params()
    assert repr(model).startswith("LSTMClassifier(")
    assert "LSTMClassifier" in estimator_html_repr(model.fit(*ragged))


def test_save_and_load_give_the_same_numbers(ragged, tmp_path):
    X, y = ragged
    path = tmp_path / "model.safetensors"
    model = classifier().fit(X, np.array(["a", "b", "c"])[y])
    model.save(path)
    loaded = fastlstm.load(path)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert loaded.classes_.tolist() == ["a", "b", "c"]
    assert loaded.info["estimator"] == "LSTMClassifier"


def test_stream_predicts_the_sequence_so_far(ragged):
    X, y = ragged
    model = classifier().fit(X, y)
    stream = model.stream()
    for t in range(len(X[0])):
        assert stream.step(X[0][t : t + 1]) == model.predict([X[0][: t + 1]])


def test_pipeline_and_grid_search(ragged, padded):
    X, y = ragged
    array, _ = padded([sequence[:2] for sequence in X])
    pipeline = make_pipeline(FunctionTransformer(lambda a: a / 2), classifier(max_iter=3))
    assert pipeline.fit(array, y).predict(array).shape == (60,)
    search = GridSearchCV(classifier(max_iter=2), {"hidden_size": [2, 3]}, cv=2, n_jobs=2)
    search.fit(X, y)
    assert search.best_estimator_.predict(X).shape == (60,)
    assert len(cross_val_score(classifier(max_iter=2), array, y, cv=3)) == 3


def test_lengths_are_routed(ragged, padded):
    X, y = ragged
    array, lengths = padded(X)
    with config_context(enable_metadata_routing=True):
        model = classifier(max_iter=20).set_fit_request(lengths=True, sample_weight=True)
        model.set_score_request(lengths=True, sample_weight=False)
        params = {"lengths": lengths, "sample_weight": np.ones(60)}
        routed = cross_val_score(model, array, y, cv=3, params=params)
        model.set_predict_request(lengths=True)
    direct = cross_val_score(classifier(max_iter=20), X, y, cv=3)
    np.testing.assert_array_equal(routed, direct)


def test_batch_invariance_is_saved_with_the_model(ragged, tmp_path):
    X, y = ragged
    path = tmp_path / "model.safetensors"
    classifier(batch_invariant=True).fit(X, y).save(path)
    for option, expected in ((None, True), (False, False)):
        model = fastlstm.load(path, batch_invariant=option)
        assert model.network.encoder.batch_invariant is expected
    model = fastlstm.load(path, precision="high")
    stream = model.stream()
    for step in X[0]:
        raw = stream.raw_step(step)
    np.testing.assert_array_equal(raw, model.raw_outputs([X[0]]))


def test_one_sequence_in_place_of_several_gets_a_hint(ragged):
    X, y = ragged
    model = classifier().fit(X, y)
    with pytest.raises(ValueError, match=r"one sequence of shape \(time, features\) is given as \[X\]"):
        model.predict(X[0])


def test_missing_numbers_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.array([1, None, 3], dtype="Int64"), "b": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="NaN"):
        classifier().fit([frame, frame], [0, 1])
    model = classifier(missing="observe").fit([frame, frame * 2], [0, 1])
    assert model.n_features_in_ == 2
