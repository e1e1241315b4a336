"""Layers and fitted models as ONNX files, run by ONNX Runtime, and recurrent layers of ONNX files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import LSTMClassifier, LSTMRegressor
from fastlstm.interop import from_onnx, to_onnx
from fastlstm.layers import GRU, LSTM, RNN, Dense, Stack
from fastlstm.model import Model, Normalization

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

BATCH, TIME, INPUT, UNITS = 4, 7, 3, 5
LENGTHS = np.array([7, 3, 1, 5])
BOUND = 2e-6
CELLS: dict[str, tuple[type[LSTM], dict[str, Any]]] = {
    "lstm": (LSTM, {}),
    "peephole": (LSTM, {"cell": "peephole"}),
    "cifg": (LSTM, {"cell": "cifg"}),
    "nig": (LSTM, {"cell": "nig"}),
    "nfg": (LSTM, {"cell": "nfg"}),
    "nog": (LSTM, {"cell": "nog"}),
    "niaf": (LSTM, {"cell": "niaf"}),
    "noaf": (LSTM, {"cell": "noaf"}),
    "lstm1997": (LSTM, {"cell": "lstm1997"}),
    "lstm1997_squashed": (LSTM, {"cell": "lstm1997_squashed"}),
    "lstm_identity": (LSTM, {"cell_activation": "identity"}),
    "peephole_identity": (LSTM, {"cell": "peephole", "cell_activation": "identity"}),
    "gru": (GRU, {}),
    "gru_before": (GRU, {"reset_after": False}),
    "rnn": (RNN, {}),
    "rnn_relu": (RNN, {"nonlinearity": "relu"}),
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "deep_bidirectional": {"num_layers": 2, "bidirectional": True},
}
#: Cells that come back as another one, since the missing gate is one with a weight of zero.
CLOSED = ("nig", "nfg", "nog", "lstm1997")


def layer_of(cell: str, **options: Any) -> LSTM:
    kind, own = CELLS[cell]
    return kind(INPUT, UNITS, random_state=0, **own, **options)


def data(features: int = INPUT) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((BATCH, TIME, features)).astype(np.float32)


def outputs(path: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def assert_states(layer: LSTM, found: dict[str, np.ndarray], state: tuple[np.ndarray, ...]) -> None:
    for name, ours in zip(layer.state_names, state, strict=True):
        np.testing.assert_allclose(found[name], ours, rtol=0, atol=BOUND)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layers_go_both_ways(cell: str, shape: dict[str, Any], tmp_path: Path) -> None:
    layer, path, x = layer_of(cell, **shape), tmp_path / "layer.onnx", data()
    to_onnx(layer, path)
    found = outputs(path, x=x)
    y, state = layer(x)
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=BOUND)
    assert_states(layer, found, state)
    if cell in ("niaf", "lstm1997_squashed"):
        with pytest.raises(ValueError, match="activation functions"):
            from_onnx(path)
        return
    back = from_onnx(path)
    assert type(back) is type(layer)
    np.testing.assert_allclose(back(x)[0], y, rtol=0, atol=BOUND)
    if cell not in CLOSED:
        assert back.parameters.keys() == layer.parameters.keys()
        for name, value in layer.parameters.items():
            np.testing.assert_array_equal(back.parameters[name], value)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "peephole"])
def test_lengths_and_states_are_inputs_where_wanted(cell: str, tmp_path: Path) -> None:
    layer, x = layer_of(cell, num_layers=2, bidirectional=True), data()
    rng = np.random.default_rng(2)
    shape = (4, BATCH, UNITS)
    state = tuple(rng.standard_normal(shape).astype(np.float32) for _ in layer.state_names)
    y, final = layer(x, state, LENGTHS)
    to_onnx(layer, tmp_path / "layer.onnx", lengths=True, states=True)
    given = {f"{name}_in": value for name, value in zip(layer.state_names, state, strict=True)}
    found = outputs(tmp_path / "layer.onnx", x=x, lengths=LENGTHS.astype(np.int32), **given)
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=BOUND)
    assert_states(layer, found, final)
    np.testing.assert_array_equal(from_onnx(tmp_path / "layer.onnx")(x, state, LENGTHS)[0], y)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_learned_states_are_where_sequences_start(cell: str, tmp_path: Path) -> None:
    layer = layer_of(cell, num_layers=2, bidirectional=True, learn_initial_state=True)
    rng = np.random.default_rng(2)
    layer.load_parameters({name: rng.standard_normal(p.shape) for name, p in layer.parameters.items()})
    to_onnx(layer, tmp_path / "layer.onnx", lengths=True)
    found = outputs(tmp_path / "layer.onnx", x=data(), lengths=LENGTHS.astype(np.int32))
    y, state = layer(data(), lengths=LENGTHS)
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=BOUND)
    assert_states(layer, found, state)
    with pytest.raises(ValueError, match="initial state"):
        from_onnx(tmp_path / "layer.onnx")


STACKS: dict[str, dict[str, Any]] = {
    "residual": {"residual": True},
    "around_the_first": {"residual": True, "input_size": UNITS, "skip": "both"},
    "both_ways": {"residual": True, "input_size": 2 * UNITS, "bidirectional": True},
    "summed": {"residual": True, "input_size": UNITS, "bidirectional": True, "merge": "sum"},
    "skip_input": {"skip": "input", "bidirectional": True, "merge": "sum"},
    "skip_output": {"skip": "output", "bidirectional": True},
}


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_stacks(options: dict[str, Any], lengths: bool, tmp_path: Path) -> None:
    options = {"input_size": INPUT, **options}
    stack = Stack(hidden_size=UNITS, num_layers=3, learn_initial_state=True, random_state=0, **options)
    rng = np.random.default_rng(2)
    stack.load_parameters({name: 0.5 * rng.standard_normal(p.shape) for name, p in stack.parameters.items()})
    to_onnx(stack, tmp_path / "stack.onnx", lengths=lengths)
    given = {"lengths": LENGTHS.astype(np.int32)} if lengths else {}
    found = outputs(tmp_path / "stack.onnx", x=data(stack.input_size), **given)
    y, state = stack(data(stack.input_size), lengths=LENGTHS if lengths else None)
    np.testing.assert_allclose(found["y"], y, rtol=0, atol=BOUND)
    for name, ours in zip(stack.state_names, state, strict=True):
        np.testing.assert_allclose(found[name], ours, rtol=0, atol=BOUND)


def test_a_file_serves_one_step_at_a_time_and_any_batch(tmp_path: Path) -> None:
    layer, x = layer_of("lstm"), data()
    to_onnx(layer, tmp_path / "step.onnx", states=True)
    state = {"h_in": np.zeros((1, 1, UNITS), np.float32), "c_in": np.zeros((1, 1, UNITS), np.float32)}
    for t in range(TIME):
        found = outputs(tmp_path / "step.onnx", x=x[:1, t : t + 1], **state)
        state = {"h_in": found["h"], "c_in": found["c"]}
    np.testing.assert_allclose(found["y"][:, 0], layer(x[:1])[0][:, -1], rtol=0, atol=BOUND)


def test_float64_is_written_in_float32_and_what_training_does_stays_behind(tmp_path: Path) -> None:
    layer = LSTM(INPUT, UNITS, 2, dtype="float64", dropout=0.5, recurrent_dropout=0.5, random_state=0)
    to_onnx(layer, tmp_path / "layer.onnx")
    found = outputs(tmp_path / "layer.onnx", x=data())
    np.testing.assert_allclose(found["y"], layer(data())[0], rtol=0, atol=BOUND)


# ------------------------------------------------------------------------------------------------------- models


def ragged(n: int = 40) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(3)
    X = [
        (50.0 + 10.0 * rng.standard_normal((length, INPUT))).astype(np.float32)
        for length in rng.integers(1, TIME + 1, n)
    ]
    return X, np.array([x[0, 0] + x[-1, 1] for x in X], np.float64)


def padded(X: list[np.ndarray]) -> dict[str, np.ndarray]:
    lengths = np.array([len(x) for x in X], np.int32)
    x = np.full((len(X), lengths.max(), INPUT), 1e6, np.float32)
    for row, values in zip(x, X, strict=True):
        row[: len(values)] = values
    return {"x": x, "lengths": lengths}


def assert_same_predictions(model: Any, path: Path, X: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Of ragged sequences, and of those of one length by a file without lengths."""
    for lengths in (True, False):
        chosen = X if lengths else [x for x in X if len(x) == TIME]
        to_onnx(model, path, lengths=lengths)
        inputs = padded(chosen) if lengths else {"x": np.stack(chosen)}
        found = outputs(path, **inputs)
        if hasattr(model, "predict_proba"):
            np.testing.assert_array_equal(found["label"], model.predict(chosen))
            np.testing.assert_allclose(
                found["probabilities"], model.predict_proba(chosen), rtol=0, atol=BOUND
            )
        else:
            np.testing.assert_allclose(found["prediction"], model.predict(chosen), rtol=1e-5, atol=1e-5)
    return found


OPTIONS = {
    "last": {"cell": "cifg", "pooling": "last"},
    "mean": {"bidirectional": True, "num_layers": 2, "pooling": "mean"},
    "max": {"bidirectional": True, "pooling": "max"},
    "both_ends": {"cell": "peephole", "bidirectional": True, "pooling": "last"},
    "residual_last": {"num_layers": 2, "residual": True, "skip": "output", "hidden_size": INPUT},
    "summed_last": {
        "num_layers": 2,
        "residual": True,
        "bidirectional": True,
        "merge": "sum",
        "hidden_size": INPUT,
    },
    "residual_mean": {"num_layers": 2, "residual": True, "pooling": "mean", "hidden_size": INPUT},
}
LABELS: dict[str, Any] = {
    "numbers": lambda y: np.digitize(y, [90, 100, 110]) * 10 - 7,
    "words": lambda y: np.array(["low", "middle", "high"])[np.digitize(y, [95, 105])],
    "objects": lambda y: np.array(["a", "b", "c"], object)[np.digitize(y, [95, 105])],
    "two": lambda y: y > 100,
    "several": lambda y: np.stack([y > 95, y > 105], axis=1).astype(int),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("labels", LABELS)
def test_classifiers(labels: str, options: dict[str, Any], tmp_path: Path) -> None:
    X, y = ragged()
    model = LSTMClassifier(max_iter=3, random_state=0, **{"hidden_size": 8, **options}).fit(
        X, LABELS[labels](y)
    )
    assert_same_predictions(model, tmp_path / "model.onnx", X)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("targets", [1, 2])
def test_regressors(targets: int, options: dict[str, Any], tmp_path: Path) -> None:
    X, y = ragged()
    y = y if targets == 1 else np.stack([y, -y], axis=1)
    model = LSTMRegressor(max_iter=3, random_state=0, **{"hidden_size": 8, **options}).fit(X, y)
    assert_same_predictions(model, tmp_path / "model.onnx", X)


def test_deviations(tmp_path: Path) -> None:
    X, y = ragged()
    X = [x for x in X if len(x) == TIME]
    model = LSTMRegressor(8, max_iter=3, loss="gaussian_nll", random_state=0).fit(X, y[: len(X)])
    found = assert_same_predictions(model, tmp_path / "model.onnx", X)
    np.testing.assert_allclose(found["std"], model.predict(X, return_std=True)[1], rtol=1e-5)


def test_standardised_input(tmp_path: Path) -> None:
    X, y = ragged()
    fitted = LSTMRegressor(8, max_iter=2, random_state=0).fit(X, y)
    normalization = Normalization(np.full(INPUT, 50.0), np.array([10.0, 5.0, 20.0]))
    model = Model(fitted.network_, fitted._decision, normalization=normalization)
    assert_same_predictions(model, tmp_path / "model.onnx", X)


def test_loaded_models_and_their_encoders(tmp_path: Path) -> None:
    X, y = ragged()
    fitted = LSTMRegressor(8, max_iter=2, random_state=0).fit(X, y)
    fitted.save(tmp_path / "model.safetensors")
    loaded = fastlstm.load(tmp_path / "model.safetensors")
    to_onnx(loaded, tmp_path / "model.onnx")
    to_onnx(fitted, tmp_path / "fitted.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "fitted.onnx").read_bytes()
    encoder = from_onnx(tmp_path / "model.onnx")
    np.testing.assert_array_equal(encoder(data())[0], fitted.network_.encoder(data())[0])


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: LSTM(INPUT, UNITS, cell="tlstm"), "cell 'tlstm'"),
        (lambda: LSTM(INPUT, UNITS, layer_norm=True), "layer_norm"),
        (lambda: LSTM(INPUT, UNITS, proj_size=2), "proj_size"),
        (lambda: LSTM(INPUT, UNITS, zoneout=0.1), "zoneout"),
        (lambda: LSTM(INPUT, 6, cells_per_block=2), "cells_per_block"),
        (lambda: Stack(INPUT, UNITS, cell="fgr"), "cell 'fgr'"),
        (lambda: LSTMClassifier(4, missing="observe", max_iter=1), "missing='observe'"),
    ],
)
def test_what_onnx_does_not_compute_is_refused(made: Any, message: str, tmp_path: Path) -> None:
    thing = made()
    if isinstance(thing, LSTMClassifier):
        X, y = ragged(10)
        thing.fit(X, y > 100)
    with pytest.raises(ValueError, match=message):
        to_onnx(thing, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for thing in (Dense(3, 4), "model"):
        with pytest.raises(TypeError, match="expected a fitted estimator"):
            to_onnx(thing, path)
    X, y = ragged(10)
    with pytest.raises(ValueError, match="states"):
        to_onnx(LSTMRegressor(4, max_iter=1).fit(X, y), path, states=True)
    with pytest.raises(TypeError, match="path or bytes"):
        from_onnx(3)
    with pytest.raises(ValueError, match="no ONNX model"):
        from_onnx(b"no model at all")
    with pytest.raises(FileNotFoundError):
        from_onnx(path)


def changed(change: Any, tmp_path: Path, layer: LSTM | None = None) -> bytes:
    """A model, with something changed about it."""
    to_onnx(layer_of("lstm", num_layers=2) if layer is None else layer, tmp_path / "model.onnx", states=True)
    model = onnx.load(tmp_path / "model.onnx")
    change(model.graph, [node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN")])
    return bytes(model.SerializeToString())


def attribute(name: str, value: Any) -> Any:
    def change(graph: Any, nodes: list[Any]) -> None:
        for node in nodes:
            for item in list(node.attribute):
                if item.name == name:
                    node.attribute.remove(item)
            node.attribute.append(onnx.helper.make_attribute(name, value))

    return change


def constant(place: int, value: np.ndarray) -> Any:
    """Another constant as an input of the first node."""

    def change(graph: Any, nodes: list[Any]) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(value, "other"))
        nodes[0].input[place] = "other"

    return change


def no_recurrence(graph: Any, nodes: list[Any]) -> None:
    del graph.node[:], graph.initializer[:], graph.output[:]
    graph.node.append(onnx.helper.make_node("Identity", ["x"], ["y"]))
    graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", "t", "f"]))


def added_between(graph: Any, nodes: list[Any]) -> None:
    place = next(k for k, node in enumerate(graph.node) if node.output[0] == nodes[1].output[0])
    graph.node.insert(place, onnx.helper.make_node("Add", [nodes[1].input[0]] * 2, ["sum"]))
    graph.node[place + 1].input[0] = "sum"


def computed_weights(graph: Any, nodes: list[Any]) -> None:
    graph.node.insert(0, onnx.helper.make_node("Neg", [nodes[0].input[1]], ["computed"]))
    nodes[0].input[1] = "computed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_recurrence, "no node"),
        (added_between, "chain"),
        (computed_weights, "constants folded"),
        (attribute("clip", 3.0), "clip"),
        (attribute("direction", "reverse"), "reverse"),
        (attribute("direction", "bidirectional"), "does not fit"),
        (attribute("activations", ["Sigmoid", "Softsign", "Tanh"]), "Softsign"),
        (constant(1, np.zeros((1, 4 * UNITS + 1, INPUT), np.float32)), "does not fit"),
        (constant(2, np.zeros((4 * UNITS, UNITS), np.float32)), "does not fit"),
        (constant(2, np.zeros((1, 4 * (UNITS + 1), UNITS + 1), np.float32)), "does not fit"),
        (constant(5, np.ones((1, BATCH, UNITS), np.float32)), "initial state"),
        (lambda graph, nodes: attribute("input_forget", 1)(graph, nodes[:1]), "differ"),
    ],
)
def test_what_no_layer_computes_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_onnx(changed(change, tmp_path))


def test_an_initial_state_of_zero_is_nothing(tmp_path: Path) -> None:
    layer = layer_of("lstm")
    found = from_onnx(changed(constant(5, np.zeros((1, BATCH, UNITS), np.float32)), tmp_path, layer))
    np.testing.assert_array_equal(found(data())[0], layer(data())[0])


def test_half_precision_is_widened_and_constant_nodes_are_read(tmp_path: Path) -> None:
    def change(graph: Any, nodes: list[Any]) -> None:
        name = nodes[0].input[1]
        (tensor,) = (item for item in graph.initializer if item.name == name)
        narrow = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16))
        graph.node.insert(0, onnx.helper.make_node("Constant", [], ["narrow"], value=narrow))
        nodes[0].input[1] = "narrow"

    layer = layer_of("lstm")
    found = from_onnx(changed(change, tmp_path, layer))
    assert found.dtype == np.float32
    expected = layer.parameters["weight_ih_l0"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found.parameters["weight_ih_l0"], expected)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    ("kind", "dynamo"),
    [("LSTM", False), ("GRU", False), ("RNN", False), ("LSTM", True), ("GRU", True)],
)
def test_exports_of_torch(kind: str, dynamo: bool, directions: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(INPUT, UNITS, 2, batch_first=True, bidirectional=directions == 2).eval()
    path, x = tmp_path / "module.onnx", torch.from_numpy(data())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its older exporter and its own code
        torch.onnx.export(module, (x,), path, dynamo=dynamo, verbose=False)
    with torch.no_grad():
        expected = module(x)[0].numpy()
    np.testing.assert_allclose(from_onnx(path)(data())[0], expected, rtol=0, atol=BOUND)
