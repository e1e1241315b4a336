"""The network: gradients through pooling and head, inference batches, parameters, configuration."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest

from fastlstm import as_sequences
from fastlstm import network as network_module
from fastlstm.layers import LSTM, RNN, Stack
from fastlstm.losses import get_loss
from fastlstm.network import POOLINGS, SequenceNetwork
from fastlstm.streaming import Stream


def make_sequences(n: int = 9, n_features: int = 3, dtype: str = "float64", longest: int = 7):
    rng = np.random.default_rng(n)
    arrays = [rng.standard_normal((rng.integers(1, longest + 1), n_features)) for _ in range(n)]
    return as_sequences(arrays, dtype=dtype)


def make_network(pooling: str = "last", *, n_outputs: int = 2, head_dropout: float = 0.0, **layer):
    layer = {"dtype": "float64", "random_state": 0, **layer}
    make = Stack if layer.keys() & {"residual", "skip", "merge"} else LSTM
    encoder = make(3, 5, layer.pop("num_layers", 1), **layer)
    return SequenceNetwork(encoder, n_outputs, pooling=pooling, head_dropout=head_dropout, random_state=1)


STACKS = [
    {"num_layers": 2, "residual": True, "skip": "both"},
    {"num_layers": 3, "bidirectional": True, "merge": "sum", "skip": "output"},
]
STRUCTURES = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True},
    *STACKS,
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_is_the_derivative_of_the_loss(pooling: str, structure: dict) -> None:
    network, seqs = make_network(pooling, **structure), make_sequences()
    loss, index = get_loss("squared"), np.array([4, 0, 7, 2])
    rng = np.random.default_rng(0)
    targets, weights = rng.standard_normal((len(seqs), 2)), rng.uniform(0.5, 2.0, len(seqs))
    arguments = (seqs, index, loss, targets, weights, 0)
    network.loss_and_gradient(*arguments)
    gradient = network.flat_grads.copy()
    picked = rng.choice(len(gradient), 40, replace=False)
    for i in picked:
        values = []
        for step in (1e-6, -2e-6, 1e-6):
            network.flat[i] += step
            network.parameters_changed()
            values.append(network.loss_and_gradient(*arguments))
        assert gradient[i] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_of_many_long_sequences(pooling: str, monkeypatch) -> None:
    """The way of large batches gives the numbers of the way of small ones."""
    network, seqs = make_network(pooling), make_sequences(20)
    targets = np.zeros((20, 2))
    arguments = (seqs, np.arange(20), get_loss("squared"), targets, None, 0)
    value, gradient = network.loss_and_gradient(*arguments), network.flat_grads.copy()
    monkeypatch.setattr(network_module, "_SMALL", 0)
    assert network.loss_and_gradient(*arguments) == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(network.flat_grads, gradient, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_outputs_follow_the_definition_of_the_pooling(pooling: str, bidirectional: bool) -> None:
    network, seqs = make_network(pooling, bidirectional=bidirectional), make_sequences()
    outputs = network.predict(seqs)
    weight, bias = network.parameters["head.weight"], network.parameters["head.bias"]
    for i, sequence in enumerate(seqs):
        y = network.encoder(sequence[None])[0][0]
        pooled = {"mean": y.mean(axis=0), "max": y.max(axis=0), "last": y[-1].copy()}[pooling]
        if pooling == "last" and bidirectional:
            pooled[5:] = y[0, 5:]
        np.testing.assert_allclose(outputs[i], weight @ pooled + bias, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("structure", STACKS, ids=str)
def test_outputs_of_a_stack_follow_the_definition_of_the_pooling(structure: dict, pooling: str) -> None:
    network, seqs = make_network(pooling, **structure), make_sequences()
    outputs = network.predict(seqs)
    weight, bias = network.parameters["head.weight"], network.parameters["head.bias"]
    for i, sequence in enumerate(seqs):
        y, (h, _) = network.encoder(sequence[None])
        pooled = {"mean": y[0].mean(axis=0), "max": y[0].max(axis=0), "last": y[0, -1]}[pooling]
        if pooling == "last" and network.encoder.bidirectional:
            pooled = (h[::2, 0] + h[1::2, 0]).ravel()
        np.testing.assert_allclose(outputs[i], weight @ pooled + bias, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_batches_of_inference_keep_the_order(pooling: str, monkeypatch) -> None:
    network, seqs = make_network(pooling), make_sequences(40)
    expected = network.predict(seqs)
    monkeypatch.setattr(network_module, "_MAX_BATCH_STEPS", 10)
    batches = list(network._inference_batches(seqs.lengths))
    assert len(batches) > 5
    assert sorted(np.concatenate(batches).tolist()) == list(range(40))
    np.testing.assert_allclose(network.predict(seqs), expected, rtol=1e-12, atol=1e-14)
    shuffled = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(network.predict(seqs[shuffled]), expected[shuffled], rtol=1e-12, atol=1e-14)


def test_a_sequence_longer_than_a_batch_is_predicted(monkeypatch) -> None:
    monkeypatch.setattr(network_module, "_MAX_BATCH_STEPS", 2)
    assert np.isfinite(make_network().predict(make_sequences(5))).all()


def test_predict_takes_another_dtype_and_refuses_another_width() -> None:
    network = make_network()
    seqs = make_sequences()
    single = as_sequences(list(seqs), dtype=np.float32)
    np.testing.assert_allclose(network.predict(single), network.predict(seqs), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="4 features per time step, but the network was built for 3"):
        network.predict(make_sequences(n_features=4))


def test_parameters_are_read_only_views_under_torchs_names() -> None:
    network = make_network()
    parameters = network.parameters
    assert list(parameters)[:2] == ["encoder.weight_ih_l0", "encoder.weight_hh_l0"]
    assert parameters["head.weight"].shape == (2, 5)
    assert sum(value.size for value in parameters.values()) == network.n_parameters
    with pytest.raises(ValueError, match="read-only"):
        parameters["head.bias"][0] = 1.0
    network.flat[:] = 0.5
    network.parameters_changed()
    assert all((value == 0.5).all() for value in network.parameters.values())
    np.testing.assert_array_equal(
        network.encoder.parameters["weight_ih_l0"], parameters["encoder.weight_ih_l0"]
    )


def test_arenas_are_aligned_for_vector_loads() -> None:
    network = make_network(dtype="float32")
    for array in (network.flat, network.flat_grads, network.head.flat, network.encoder.flat):
        assert array.ctypes.data % 64 == 0


def test_weight_views_leave_biases_out() -> None:
    network = make_network(num_layers=2)
    marks = np.zeros_like(network.flat)
    for view in network.weight_views(marks):
        view[:] = 1.0
    for name, view in network.named_views(marks).items():
        assert (view == (0.0 if "bias" in name else 1.0)).all(), name
    assert marks.sum() == sum(v.size for k, v in network.parameters.items() if "bias" not in k)


def test_parameters_load_by_name_all_or_nothing() -> None:
    network, other = make_network(), make_network(random_state=5)
    seqs = make_sequences()
    other.load_parameters({name: np.asfortranarray(v) for name, v in network.parameters.items()})
    np.testing.assert_array_equal(other.predict(seqs), network.predict(seqs))
    before = network.flat.copy()
    bad = dict(other.parameters)
    bad["head.bias"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"'head.bias' must have shape \(2,\)"):
        network.load_parameters(bad)
    del bad["head.bias"]
    bad["head.beta"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"missing \['head.bias'\], unknown \['head.beta'\]"):
        network.load_parameters(bad)
    np.testing.assert_array_equal(network.flat, before)
    network.load_parameters({"head.bias": [1.0, 2.0]}, strict=False)
    np.testing.assert_array_equal(network.parameters["head.bias"], [1.0, 2.0])


def test_head_dropout_is_a_function_of_the_key_and_absent_in_inference() -> None:
    network, seqs = make_network(head_dropout=0.5), make_sequences()
    loss, targets, index = get_loss("squared"), np.zeros((9, 2)), np.arange(9)
    values = [network.loss_and_gradient(seqs, index, loss, targets, None, key) for key in (1, 2, 1)]
    assert values[0] == values[2] != values[1]
    plain = make_network()
    plain.load_parameters(network.parameters)
    np.testing.assert_array_equal(network.predict(seqs), plain.predict(seqs))
    mask = network._head_mask((2000, 5), 3)
    assert set(np.unique(mask)) == {0.0, 2.0}
    assert mask.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
@pytest.mark.parametrize("structure", STRUCTURES[3:], ids=str)
def test_copies_are_equal_and_independent(structure: dict, make_copy) -> None:
    network, seqs = make_network("mean", **structure), make_sequences()
    targets, index, loss = np.zeros((9, 2)), np.arange(9), get_loss("squared")
    expected = network.predict(seqs)
    value = network.loss_and_gradient(seqs, index, loss, targets, None, 0)
    again = make_copy(network)
    np.testing.assert_array_equal(again.predict(seqs), expected)
    assert again.loss_and_gradient(seqs, index, loss, targets, None, 0) == value
    np.testing.assert_array_equal(again.flat_grads, network.flat_grads)
    again.flat[:] = 0.0
    again.parameters_changed()
    np.testing.assert_array_equal(network.predict(seqs), expected)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_configuration_makes_the_same_structure(cell: str) -> None:
    make = {"lstm": LSTM, "rnn": RNN}[cell]
    network = SequenceNetwork(make(3, 4, 2, bidirectional=True), 3, pooling="max", head_dropout=0.2)
    again = SequenceNetwork.from_config(json.loads(json.dumps(network.get_config())))
    assert again.get_config() == network.get_config()
    assert again.parameter_shapes == network.parameter_shapes
    again.load_parameters(network.parameters)
    seqs = make_sequences(dtype="float32")
    np.testing.assert_array_equal(again.predict(seqs), network.predict(seqs))
    assert "SequenceNetwork" in repr(network)


@pytest.mark.parametrize("structure", STACKS, ids=str)
def test_a_configuration_says_that_the_encoder_is_a_stack(structure: dict) -> None:
    network = make_network("max", **structure)
    config = json.loads(json.dumps(network.get_config()))
    assert config["encoder_type"] == "Stack"
    again = SequenceNetwork.from_config(config)
    assert again.get_config() == network.get_config()
    again.load_parameters(network.parameters)
    np.testing.assert_array_equal(again.predict(make_sequences()), network.predict(make_sequences()))


def test_configurations_of_plain_encoders_have_the_keys_they_always_had() -> None:
    assert set(make_network().get_config()) == {"encoder", "n_outputs", "pooling", "head_dropout"}


def test_wrong_configurations_are_refused() -> None:
    config = make_network().get_config()
    with pytest.raises(ValueError, match=r"unknown entries \['size'\]"):
        SequenceNetwork.from_config({**config, "size": 3})
    with pytest.raises(ValueError, match=r"missing \['encoder'\]"):
        SequenceNetwork.from_config({"n_outputs": 3})
    with pytest.raises(ValueError, match="encoder_type must be one of LSTM, Stack; got 'Dense'"):
        SequenceNetwork.from_config({**config, "encoder_type": "Dense"})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pooling": "sum"}, "pooling must be one of"),
        ({"head_dropout": 1.0}, "head_dropout must lie in"),
        ({"n_outputs": 0}, "n_outputs must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SequenceNetwork(LSTM(3, 4), **{"n_outputs": 1, **arguments})


def test_random_state_decides_the_head() -> None:
    def head(seed):
        return SequenceNetwork(LSTM(3, 4, random_state=0), 2, random_state=seed).parameters["head.weight"]

    np.testing.assert_array_equal(head(3), head(3))
    assert (head(3) != head(4)).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [1, 2, 20])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_bits_depend_on_neither_the_batch_nor_streaming(pooling: str, hidden: int, dtype: str) -> None:
    """In batches of few and of many outputs, which are pooled in different ways."""
    encoder = LSTM(3, hidden, dtype=dtype, batch_invariant=True, random_state=0)
    network = SequenceNetwork(encoder, 2, pooling=pooling, random_state=1)
    few = make_sequences(30, dtype=dtype, longest=40)
    many = as_sequences([few[i % 30] for i in range(-(-(1 << 17) // (hidden * 500)) * 30)], dtype=dtype)
    found, together = network.predict(few), network.predict(many)
    np.testing.assert_array_equal(together, np.tile(found, (len(many) // 30, 1)))
    for i in range(0, 30, 7):
        np.testing.assert_array_equal(network.predict(few[[i]]), found[[i]])
        stream = Stream(network, lambda raw: raw)
        for step in few[i]:
            raw = stream.step(step)
        np.testing.assert_array_equal(raw, found[[i]])
