"""Saved models: the numbers of the estimator, labels that survive, and files that are refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm import LSTMClassifier, LSTMRegressor, Model, ModelFormatError, load
from fastlstm.decision import Decision
from fastlstm.layers import LSTM, Stack
from fastlstm.model import Normalization
from fastlstm.network import SequenceNetwork
from fastlstm.sequences import as_sequences
from fastlstm.serialization import read_safetensors, write_safetensors

RNG = np.random.default_rng(7)
X = [RNG.normal(5.0, 3.0, size=(length, 3)) for length in (4, 1, 6, 3, 5, 2)]


DEEP = {"num_layers": 3, "residual": True, "skip": "both"}


def make_network(n_outputs, dtype="float32", **options):
    make = Stack if options.keys() & {"residual", "skip", "merge"} else LSTM
    encoder = make(3, 4, dtype=dtype, random_state=0, **options)
    return SequenceNetwork(encoder, n_outputs, random_state=0)


def make_model(labels=("a", "b", "c"), **options):
    return Model(make_network(len(labels)), Decision("multiclass", np.asarray(labels)), **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# ----------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize(
    "labels",
    [
        ["x", "y", "z"],
        [1, 2, 30],
        [0.5, 1.5, 2.5],
        np.array([1, 2, 3], dtype=np.uint8),
        np.array(["p", "q", "r"], dtype="<U7"),
        np.array(["p", "q", "r"], dtype=object),
    ],
    ids=["str", "int", "float", "uint8", "wide str", "object"],
)
def test_labels_keep_their_dtype(labels, path):
    model = make_model(labels)
    model.save(path)
    loaded = load(path)
    assert loaded.classes_.dtype == np.asarray(labels).dtype
    np.testing.assert_array_equal(loaded.classes_, labels)
    assert loaded.predict(X).dtype == np.asarray(labels).dtype
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


@pytest.mark.parametrize("options", [{}, {"cell": "gru", "num_layers": 2}, DEEP], ids=str)
@pytest.mark.parametrize("precision", ["float32", "high", "bfloat16", "int8"])
def test_precision_of_a_loaded_model(path, precision, options):
    model = Model(make_network(3, **options), Decision("multiclass", np.arange(3)))
    model.save(path)
    loaded = load(path, precision=precision)
    assert loaded.info["network"]["encoder"]["precision"] == precision
    exact, found = model.raw_outputs(X), loaded.raw_outputs(X)
    np.testing.assert_allclose(found, exact, atol=0.05)
    assert (found == exact).all() == (precision in ("float32", "high"))  # too small for tiles
    stream = loaded.stream()
    for x_t in X[0]:
        outputs = stream.raw_step(x_t[None].astype(np.float32))
    np.testing.assert_array_equal(outputs[0], found[0])
    loaded.save(path)
    np.testing.assert_array_equal(load(path).raw_outputs(X), found)


def test_precision_that_a_model_cannot_have(path):
    Model(make_network(3, "float64"), Decision("multiclass", np.arange(3))).save(path)
    with pytest.raises(ValueError, match="precision 'int8' goes with dtype 'float32'"):
        load(path, precision="int8")
    with pytest.raises(ValueError, match="precision must be one of"):
        load(path, precision="int4")


def test_bool_labels(path):
    Model(make_network(1), Decision("binary", np.array([False, True]))).save(path)
    loaded = load(path)
    assert loaded.predict(X).dtype == np.bool_
    assert loaded.predict_proba(X).shape == (len(X), 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"cell": "rnn"},
        DEEP,
        {"num_layers": 2, "bidirectional": True, "merge": "sum"},
    ],
    ids=str,
)
def test_saving_changes_no_bit(dtype, options, path):
    model = Model(make_network(2, dtype, **options), Decision("regression", n_targets=2, flat=False))
    model.save(path)
    loaded = load(path)
    assert loaded.raw_outputs(X).dtype == dtype
    np.testing.assert_array_equal(loaded.raw_outputs(X), model.raw_outputs(X))


@pytest.mark.parametrize(
    ("estimator", "y"),
    [
        (LSTMClassifier, ["u", "v", "u", "v", "w", "w"]),
        (LSTMClassifier, [True, False, True, True, False, False]),
        (LSTMClassifier, [[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1]]),
        (LSTMRegressor, [0.5, 1.0, 2.0, -1.0, 0.0, 3.0]),
        (LSTMRegressor, [[1.0, 2.0], [0.0, 1.0], [3.0, 1.0], [2.0, 2.0], [1.0, 0.0], [0.0, 0.0]]),
    ],
    ids=["classes", "binary", "multilabel", "values", "multioutput"],
)
def test_predictions_are_those_of_the_estimator(estimator, y, path):
    fitted = estimator(hidden_size=4, max_iter=2, random_state=0).fit(X, np.array(y))
    fitted.save(path)
    model = load(path)
    np.testing.assert_array_equal(model.predict(X), fitted.predict(X))
    assert model.predict(X).dtype == fitted.predict(X).dtype
    assert model.info["estimator"] == estimator.__name__
    if estimator is LSTMClassifier:
        np.testing.assert_array_equal(model.predict_proba(X), fitted.predict_proba(X))
        np.testing.assert_array_equal(model.classes_, fitted.classes_)


def test_normalization_is_part_of_the_model(path):
    normalization = Normalization.of(as_sequences(X, dtype=np.float64))
    make_model(normalization=normalization, extra={"data": {"id": "who"}}).save(path)
    loaded = load(path)
    standardised = [(x - normalization.mean) / normalization.scale for x in X]
    np.testing.assert_array_equal(loaded.predict_proba(X), make_model().predict_proba(standardised))
    np.testing.assert_array_equal(loaded.normalization.mean, normalization.mean)
    assert loaded.info["normalized"]
    assert loaded.extra["data"] == {"id": "who"}


def test_saving_a_loaded_model_keeps_everything(path, tmp_path):
    make_model(normalization=Normalization([1, 2, 3], [1, 2, 3]), extra={"note": "é"}).save(path)
    again = tmp_path / "again.safetensors"
    load(path).save(again)
    load(again).save(path)
    assert again.read_bytes() == path.read_bytes()


def test_normalization_of_a_constant_feature():
    sequences = as_sequences([np.full((4, 1), 0.1)], dtype=np.float64)
    normalization = Normalization.of(sequences)
    assert normalization.scale.tolist() == [1.0]
    np.testing.assert_allclose(normalization.apply(sequences).values, 0.0, atol=1e-15)


@pytest.mark.parametrize(
    ("mean", "scale"),
    [([0, 0], [1]), ([[0]], [[1]]), ([0], [0]), ([0], [-1]), ([np.nan], [1]), ([0], [np.inf])],
)
def test_normalization_checks_its_numbers(mean, scale):
    with pytest.raises(ValueError, match="the normalization needs"):
        Normalization(mean, scale)


def test_padding_is_never_read():
    padded = np.full((len(X), 9, 3), np.nan)
    for row, x in zip(padded, X, strict=True):
        row[: len(x)] = x
    for normalization in (None, Normalization([1, 2, 3], [1, 2, 3])):
        model = make_model(normalization=normalization)
        lengths = [len(x) for x in X]
        np.testing.assert_array_equal(model.predict_proba(padded, lengths), model.predict_proba(X))


def test_info_is_plain_data(path):
    make_model(extra={"note": 1}).save(path)
    info = load(path).info
    assert json.loads(json.dumps(info)) == info
    assert info["kind"] == "classifier"
    assert info["classes"] == ["a", "b", "c"]
    assert info["n_features"] == 3
    assert info["note"] == 1


def test_a_regressor_has_neither_classes_nor_probabilities():
    model = Model(make_network(1), Decision("regression"))
    assert not hasattr(model, "predict_proba")
    assert not hasattr(model, "classes_")
    assert model.kind == "regressor"


def test_errors_of_predict():
    model = make_model()
    with pytest.raises(ValueError, match="X has 2 features, but the model was trained with 3"):
        model.predict([np.ones((4, 2))])
    with pytest.raises(ValueError, match="X"):
        model.predict([np.full((4, 3), np.nan)])


@pytest.mark.parametrize("names", ["abc", ["a", "b"], ["a", "b", 3], 7])
def test_names_of_features_that_do_not_fit(names):
    with pytest.raises(ValueError, match="feature_names must be 3 names"):
        make_model(extra={"feature_names": names})


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="3 outputs and the decision needs 2"):
        Model(make_network(3), Decision("multiclass", np.array(["a", "b"])))
    with pytest.raises(ValueError, match="1 features and the network 3"):
        make_model(normalization=Normalization([0], [1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("normalization", [None, Normalization([4, 5, 6], [1, 2, 3])])
@pytest.mark.parametrize("options", [{}, DEEP], ids=str)
def test_stream_gives_what_predict_gives(options, normalization, dtype):
    decision = Decision("regression", n_targets=2, flat=False)
    model = Model(make_network(2, dtype, **options), decision, normalization=normalization)
    stream = model.stream(2)
    x = np.stack([X[2], X[2][::-1]])
    for step in range(x.shape[1]):
        expected = model.predict(x[:, : step + 1])
        np.testing.assert_allclose(stream.step(x[:, step]), expected, rtol=1e-5, atol=1e-6)
    stream.reset()
    np.testing.assert_allclose(stream.raw_step(x[:, 0]), model.predict(x[:, :1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "x_t", [np.ones(3), np.ones((2, 2)), np.array([["1"] * 3] * 2), np.ones((2, 3)) * 1j]
)
def test_stream_refuses_other_steps(x_t):
    stream = make_model(normalization=Normalization([4, 5, 6], [1, 2, 3])).stream(2)
    with pytest.raises(ValueError, match=r"x_t must be numbers of shape \(2, 3\)"):
        stream.step(x_t)


@pytest.mark.parametrize("normalization", [None, Normalization([4, 5, 6], [1, 2, 3])])
def test_streams_refuse_what_is_not_finite_and_stay_as_they_were(normalization):
    stream, other = (make_model(normalization=normalization).stream() for _ in range(2))
    for step in X[0][:2]:
        np.testing.assert_array_equal(stream.raw_step(step), other.raw_step(step[None]))
    for wrong in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="x_t of stream 0, feature 1 is"):
            stream.step([1.0, wrong, 2.0])
    np.testing.assert_array_equal(stream.raw_step(X[0][2]), other.raw_step(X[0][2]))


def test_a_stream_keeps_the_weights_that_it_began_with():
    network = make_network(2)
    model = Model(network, Decision("regression", n_targets=2, flat=False))
    stream, expected = model.stream(), model.predict([X[0]])
    network.flat[:] += 0.5
    network.parameters_changed()
    for step in X[0]:
        found = stream.step(step)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", [[0, 1], "0", 0.0, True])
def test_streams_are_reset_by_number(which):
    stream = make_model().stream(2)
    stream.step(X[0][:2])
    kept = stream.snapshot()
    with pytest.raises(TypeError, match="which must be None or the number of one stream"):
        stream.reset(which)
    assert stream.snapshot() == kept


def test_snapshots_of_another_kind_or_damaged_are_refused():
    stream = make_model().stream()
    blob = stream.snapshot()
    other = Model(make_network(3, cell="peephole"), Decision("multiclass", np.array(["a", "b", "c"])))
    with pytest.raises(ValueError, match="of another shape, cell"):
        other.stream().restore(blob)
    for at in (4, len(blob) // 2, len(blob) - 1):
        damaged = bytearray(blob)
        damaged[at] ^= 1
        with pytest.raises(ValueError, match="damaged"):
            stream.restore(bytes(damaged))
    with pytest.raises(TypeError, match="a snapshot is bytes"):
        stream.restore(None)
    stream.restore(memoryview(blob))


@pytest.mark.parametrize("options", [{}, DEEP], ids=str)
def test_loading_imports_numpy_only(options, path):
    Model(make_network(3, **options), Decision("multiclass", np.array(["a", "b", "c"]))).save(path)
    program = (
        "import sys, fastlstm; model = fastlstm.load(sys.argv[1]); model.predict([[[1.0, 2.0, 3.0]]]); "
        "model.stream().step([[1.0, 2.0, 3.0]]); "
        "print(sorted({'sklearn', 'scipy', 'pandas', 'matplotlib', 'safetensors'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------- files that are refused


def changed(path, *, network=None, head=None, metadata=None, tensors=None, drop=()):
    """Write a good model, then change parts of it."""
    make_model(normalization=Normalization([0, 0, 0], [1, 1, 1])).save(path)
    stored, texts = read_safetensors(path)
    for key, change in (("network", network), ("head", head)):
        if change is not None:
            texts[key] = json.dumps({**json.loads(texts[key]), **change})
    texts.update(metadata or {})
    stored.update(tensors or {})
    for name in drop:
        stored.pop(name, None)
        texts.pop(name, None)
    write_safetensors(path, stored, texts)
    return path


def encoder_with(**change):
    return {"encoder": {**make_network(3).get_config()["encoder"], **change}}


HH, IH = "network.encoder.weight_hh_l0", "network.encoder.weight_ih_l0"

DEFECTS = {
    "not fastlstm": ({"drop": ["format"]}, "not a fastlstm model"),
    "no version": ({"drop": ["format_version"]}, "format version '' is not a number"),
    "odd version": ({"metadata": {"format_version": "²"}}, "is not a number"),
    "huge version": ({"metadata": {"format_version": "9" * 5000}}, "is not a number"),
    "newer version": (
        {"metadata": {"format_version": "2", "fastlstm_version": "9.1"}},
        r"has model format 2 \(written by fastlstm 9\.1\) and .* a newer fastlstm is needed",
    ),
    "no network": ({"drop": ["network"]}, "the metadata has no 'network'"),
    "no head": ({"drop": ["head"]}, "the metadata has no 'head'"),
    "network is no JSON": ({"metadata": {"network": "{"}}, "configuration is not valid"),
    "network is no object": ({"metadata": {"network": "[]"}}, "'network' is not a JSON object"),
    "network is empty": ({"metadata": {"network": "{}"}}, "missing 'encoder'"),
    "deep JSON": ({"metadata": {"network": "[" * 100_000}}, "nested deeper"),
    "encoder is no object": ({"network": {"encoder": 3}}, "does not fit"),
    "unknown network key": ({"network": {"run": "rm"}}, "unknown entries"),
    "unknown pooling": ({"network": {"pooling": "sum"}}, "pooling"),
    "unknown cell": ({"network": encoder_with(cell="magic")}, "does not fit"),
    "a billion layers": ({"network": encoder_with(num_layers=10**9)}, "weight_hh_l1' is missing"),
    "no layers": ({"network": encoder_with(num_layers=0)}, "num_layers is 0"),
    "layers is text": ({"network": encoder_with(num_layers="1")}, "num_layers is '1'"),
    "layers is a bool": ({"network": encoder_with(num_layers=True)}, "num_layers is True"),
    "hidden size too large": ({"network": encoder_with(hidden_size=10**9)}, "does not fit the configuration"),
    "input size too large": ({"network": encoder_with(input_size=10**9)}, "does not fit the configuration"),
    "outputs too large": ({"network": {"n_outputs": 10**9}}, "does not fit the configuration"),
    "direction without weights": ({"network": encoder_with(bidirectional=True)}, "do(es)? not fit|missing"),
    "parameter missing": ({"drop": [HH]}, "weight_hh_l0' is missing"),
    "bias missing": ({"drop": ["network.head.bias"]}, "head.bias"),
    "parameter unknown": ({"tensors": {"network.more": np.ones(2, np.float32)}}, "more"),
    "parameter of another dtype": ({"tensors": {IH: np.ones((16, 3))}}, "is float64 in a network of float32"),
    "parameter of another shape": ({"tensors": {IH: np.ones((4, 3), np.float32)}}, "weight_ih_l0"),
    "parameter is no matrix": ({"tensors": {HH: np.ones(64, np.float32)}}, "does not fit"),
    "NaN weight": ({"tensors": {IH: np.full((16, 3), np.nan, np.float32)}}, "is nan at index"),
    "unknown kind": ({"head": {"kind": "oracle"}}, "kind must be one of"),
    "no classes": ({"head": {"classes": None}}, "classes must be given"),
    "too few classes": (
        {"head": {"classes": {"__array__": "<U1", "shape": [2], "values": ["a", "b"]}}},
        "3 outputs and the decision needs 2",
    ),
    "classes is no array": ({"head": {"classes": {"a": 1}}}, "does not fit"),
    "scale missing": ({"drop": ["normalization.scale"]}, "does not fit"),
    "scale zero": ({"tensors": {"normalization.scale": np.zeros(3)}}, "scales above zero"),
    "normalization too wide": (
        {"tensors": {"normalization.mean": np.zeros(2), "normalization.scale": np.ones(2)}},
        "2 features and the network 3",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_refused(name, path):
    change, message = DEFECTS[name]
    with pytest.raises(ModelFormatError, match=message) as caught:
        load(changed(path, **change))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip": "all"}, "skip must be None"),
        ({"merge": "sum"}, "bidirectional=True"),
        ({"skip": "input"}, "weight_ih_l1' of shape .* does not fit"),
        ({"skip": "output"}, "head.weight' of shape .* does not fit"),
    ],
)
def test_stacks_that_do_not_fit_their_weights_are_refused(change, message, path):
    Model(make_network(1, num_layers=3, residual=True), Decision("regression")).save(path)
    stored, texts = read_safetensors(path)
    stored["network.encoder.weight_ih_l1"] = np.zeros((16, 2), np.float32)
    network = json.loads(texts["network"])
    network["encoder"] |= change
    write_safetensors(path, stored, {**texts, "network": json.dumps(network)})
    with pytest.raises(ModelFormatError, match=message):
        load(path)


def test_nonfinite_weights_on_request(path):
    weights = np.zeros((16, 3), np.float32)
    weights[1, 2] = np.inf
    changed(path, tensors={IH: weights})
    assert load(path, allow_nonfinite=True).network.parameters["encoder.weight_ih_l0"][1, 2] == np.inf


def test_unknown_facts_of_the_head_are_kept(path):
    assert load(changed(path, head={"from_the_future": [1, 2]})).info["from_the_future"] == [1, 2]


def test_truncated_models(path):
    make_model().save(path)
    content = path.read_bytes()
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(ModelFormatError):
            load(path)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.text(max_size=3),
    st.floats(),
    st.lists(st.integers()),
)
KEYS = ["input_size", "hidden_size", "num_layers", "cell", "bidirectional", "bias", "dropout", "dtype"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1), st.data())
def test_any_configuration_is_read_or_refused(tmp_path_factory, encoder, data):
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    head = data.draw(
        st.dictionaries(st.sampled_from(["kind", "classes", "n_targets", "flat", "variance"]), VALUES)
    )
    changed(path, network=encoder_with(**encoder), head=head)
    try:
        load(path)
    except ModelFormatError:
        return


def test_a_loaded_model_predicts_deviations(path):
    y = np.linspace(0.0, 1.0, len(X))
    estimator = LSTMRegressor(4, loss="gaussian_nll", max_iter=2, random_state=0).fit(X, y)
    estimator.save(path)
    for found, expected in zip(
        load(path).predict(X, return_std=True), estimator.predict(X, return_std=True), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="predicts no standard deviation"):
        make_model().predict(X, return_std=True)
