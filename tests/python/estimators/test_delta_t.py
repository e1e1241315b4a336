"""Elapsed times in networks, estimators, model files and streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm import LSTMClassifier, LSTMRegressor, as_sequences
from fastlstm.diagnostics import gradient_flow
from fastlstm.layers import LSTM
from fastlstm.losses import get_loss
from fastlstm.network import SequenceNetwork
from fastlstm.sequences import as_times
from fastlstm.streaming import LayerStream

N = 60


def problem(n: int = N, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Sequences that tell nothing, times that tell the class: long or short pauses."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = [rng.normal(size=(length, 2)) for length in rng.integers(4, 10, n)]
    delta_t = [rng.exponential((0.3, 60.0)[label], len(x)) for x, label in zip(X, y, strict=True)]
    return X, delta_t, y


def pad(items: list[np.ndarray], fill: float) -> np.ndarray:
    longest = max(len(item) for item in items)
    padded = np.full((len(items), longest, *items[0].shape[1:]), fill)
    for row, item in zip(padded, items, strict=True):
        row[: len(item)] = item
    return padded


def classifier(**options: Any) -> LSTMClassifier:
    defaults = {"cell": "tlstm", "learning_rate_init": 0.02, "max_iter": 3, "random_state": 0}
    return LSTMClassifier(8, **{**defaults, **options})


# ---------------------------------------------------------------- layer, network


@pytest.mark.parametrize("bidirectional", [False, True])
def test_ragged_rows_of_a_layer_are_its_padded_call(bidirectional: bool) -> None:
    X, delta_t, _ = problem(7)
    layer = LSTM(2, 5, 2, cell="tlstm", bidirectional=bidirectional, dtype="float64", random_state=0)
    seqs = as_sequences(X, dtype=np.float64)
    lengths = seqs.lengths
    decay = layer.time_weights(np.concatenate(delta_t))
    y, final = layer.run(seqs.values, seqs.offsets[:-1], lengths, decay=decay)
    padded_y, padded_final, tape = layer.forward(pad(X, 0.0), lengths=lengths, delta_t=pad(delta_t, 0.0))
    real = np.arange(lengths.max()) < lengths[:, None]
    np.testing.assert_array_equal(y, padded_y[real])
    for a, b in zip(final, padded_final, strict=True):
        np.testing.assert_array_equal(a, b)
    dy = np.random.default_rng(0).standard_normal(padded_y.shape)
    _, _, grads = layer.backward(tape, dy)
    _, _, ragged_tape = layer.run_training(seqs.values, seqs.offsets[:-1], lengths, decay=decay)
    layer.run_backward(ragged_tape, np.ascontiguousarray(dy[real]))
    flat = np.concatenate([grads[name].ravel() for name, _ in layer.parameter_shapes])
    np.testing.assert_allclose(layer.flat_grads, flat, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_gradient_of_a_minibatch_is_that_of_the_padded_layer(pooling: str) -> None:
    """The network's minibatch, in any order of its sequences, against central differences of padded calls."""
    X, delta_t, y = problem(6)
    layer = LSTM(2, 3, cell="tlstm", dtype="float64", random_state=0)
    network = SequenceNetwork(layer, 1, pooling=pooling, random_state=0)
    seqs = as_sequences(X, dtype=np.float64)
    timed = network.with_times(seqs, as_times(delta_t, seqs))
    index, loss, targets = np.array([4, 0, 3]), get_loss("squared"), y[:, None].astype(float)
    network.loss_and_gradient(timed, index, loss, targets, None, 0)
    found = network.flat_grads.copy()
    chosen, times = [X[i] for i in index], [delta_t[i] for i in index]
    lengths = np.array([len(x) for x in chosen])
    real = np.arange(lengths.max()) < lengths[:, None]

    def value() -> float:
        out, (h, _) = layer(pad(chosen, 0.0), lengths=lengths, delta_t=pad(times, 0.0))
        reduce = {"mean": np.mean, "max": np.max}
        pooled = (
            h[-1]
            if pooling == "last"
            else np.array([reduce[pooling](o[r], axis=0) for o, r in zip(out, real, strict=True)])
        )
        return loss.value(network.head.forward(pooled), targets[index], None)

    for k in range(0, network.flat.size, 3):
        kept, ends = network.flat[k], []
        for step in (1e-5, -1e-5):
            network.flat[k] = kept + step
            network.parameters_changed()
            ends.append(value())
        network.flat[k] = kept
        network.parameters_changed()
        assert found[k] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-8)


def test_network_takes_sequences_with_and_without_times() -> None:
    X, delta_t, _ = problem(5)
    network = SequenceNetwork(LSTM(2, 3, cell="tlstm", random_state=0), 1, random_state=0)
    seqs = as_sequences(X)
    zeros = as_times([np.zeros(len(x)) for x in X], seqs)
    assert network.with_times(seqs, None) is seqs
    np.testing.assert_array_equal(network.predict(network.with_times(seqs, zeros)), network.predict(seqs))
    assert (network.predict(network.with_times(seqs, as_times(delta_t, seqs))) != network.predict(seqs)).all()
    plain = SequenceNetwork(LSTM(2, 3, random_state=0), 1, random_state=0)
    with pytest.raises(ValueError, match="delta_t goes with the cell 'tlstm'"):
        plain.with_times(seqs, zeros)
    with pytest.raises(ValueError, match="X has 3 features per time step"):
        plain.predict(network.with_times(seqs, zeros))


def test_weights_that_overflow_are_refused() -> None:
    network = SequenceNetwork(LSTM(1, 3, cell="tlstm", time_decay="inverse", random_state=0), 1)
    seqs = as_sequences([[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="delta_t at sequence 1, time step 1 is too close to 0"):
        network.with_times(seqs, as_times([[0.0], [1.0, 1e-45]], seqs))


# ---------------------------------------------------------------- estimators


def test_learns_what_only_the_times_tell() -> None:
    X, delta_t, y = problem(120)
    held_X, held_t, held_y = problem(60, seed=9)
    model = classifier(max_iter=60, learning_rate_init=0.03).fit(X, y, delta_t=delta_t)
    blind = classifier(max_iter=20).fit(X, y)
    assert model.score(held_X, held_y, delta_t=held_t) > 0.9
    assert blind.score(held_X, held_y) < 0.75
    assert model.predict_proba(held_X, delta_t=held_t).argmax(axis=1).tolist() == (
        model.predict(held_X, delta_t=held_t).tolist()
    )


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "pooling": "mean", "num_layers": 2}])
def test_padded_equals_ragged(options: dict[str, Any]) -> None:
    X, delta_t, y = problem()
    lengths = np.array([len(x) for x in X])
    ragged = classifier(**options).fit(X, y, delta_t=delta_t)
    padded_X, padded_t = pad(X, np.nan), pad(delta_t, np.nan)
    padded = classifier(**options).fit(padded_X, y, lengths=lengths, delta_t=padded_t)
    want = ragged.decision_function(X, delta_t=delta_t)
    np.testing.assert_array_equal(padded.decision_function(padded_X, lengths=lengths, delta_t=padded_t), want)
    np.testing.assert_array_equal(
        ragged.decision_function(as_sequences(X), delta_t=as_sequences(delta_t, dtype=np.float64)), want
    )


def test_zero_times_are_no_times() -> None:
    X, _, y = problem()
    zeros = [np.zeros(len(x)) for x in X]
    with_zeros = classifier().fit(X, y, delta_t=zeros)
    without = classifier().fit(X, y)
    np.testing.assert_array_equal(with_zeros.decision_function(X), without.decision_function(X))
    np.testing.assert_array_equal(
        with_zeros.decision_function(X, delta_t=zeros), without.decision_function(X)
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_times_stay_with_their_sequences(shuffle: bool) -> None:
    """Minibatches, weights of zero and the validation part take times and sequences together."""
    X, delta_t, y = problem()
    weights = np.ones(N)
    weights[::4] = 0.0
    kept = np.flatnonzero(weights)
    fewer = ([X[i] for i in kept], y[kept])
    a = classifier(shuffle=shuffle, batch_size=7).fit(X, y, delta_t=delta_t, sample_weight=weights)
    b = classifier(shuffle=shuffle, batch_size=7).fit(*fewer, delta_t=[delta_t[i] for i in kept])
    np.testing.assert_array_equal(
        a.decision_function(X, delta_t=delta_t), b.decision_function(X, delta_t=delta_t)
    )
    single = [
        b.decision_function([x], delta_t=[times])[0] for x, times in zip(X[:5], delta_t[:5], strict=True)
    ]
    np.testing.assert_array_equal(single, b.decision_function(X[:5], delta_t=delta_t[:5]))


def test_eval_set_and_early_stopping() -> None:
    X, delta_t, y = problem()
    held_X, held_t, held_y = problem(20, seed=5)
    model = classifier(max_iter=5).fit(X, y, delta_t=delta_t, eval_set=(held_X, held_y, held_t))
    assert model.validation_scores_[-1] == model.score(held_X, held_y, delta_t=held_t)
    blind = classifier(max_iter=5).fit(X, y, delta_t=delta_t, eval_set=(held_X, held_y))
    assert blind.validation_scores_[-1] == model.score(held_X, held_y)
    stopped = classifier(early_stopping=True, max_iter=5).fit(X, y, delta_t=delta_t)
    assert len(stopped.validation_scores_) == 5
    with pytest.raises(
        ValueError, match=r"eval_set\[2\] has 19 sequences of times, but eval_set\[0\] has 20"
    ):
        classifier().fit(X, y, delta_t=delta_t, eval_set=(held_X, held_y, held_t[:-1]))


def test_partial_fit_and_parameters() -> None:
    X, delta_t, y = problem()
    a = classifier().partial_fit(X, y, delta_t=delta_t).partial_fit(X, y, delta_t=delta_t)
    b = classifier().partial_fit(X, y).partial_fit(X, y)
    assert (a.decision_function(X) != b.decision_function(X)).all()
    inverse = classifier(time_decay="inverse").fit(X, y, delta_t=delta_t)
    assert inverse.network_.encoder.time_decay == "inverse"
    with pytest.raises(ValueError, match="time_decay was 'inverse' when training started"):
        inverse.set_params(time_decay="log").partial_fit(X, y)
    with pytest.raises(ValueError, match=r"time_decay.*'log', 'inverse'"):
        classifier(time_decay="linear").fit(X, y)
    assert classifier(cell="lstm", cell_activation="identity").fit(X, y).network_.encoder.cell_activation == (
        "identity"
    )


@pytest.mark.parametrize("time_decay", ["log", "inverse"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_stream_and_saved_model_give_the_bits_of_predict(
    tmp_path: Any, time_decay: str, precision: str
) -> None:
    X, delta_t, y = problem()
    model = LSTMRegressor(
        6, 2, cell="tlstm", time_decay=time_decay, precision=precision, max_iter=2, random_state=0
    )
    model.fit(X, y, delta_t=delta_t)
    want = model.predict(X, delta_t=delta_t)
    model.save(tmp_path / "model.safetensors")
    loaded = fastlstm.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(X, delta_t=delta_t), want)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    stream = loaded.stream()
    for x, times, value in zip(X, delta_t, want, strict=True):
        stream.reset()
        for t in range(len(x)):
            found = stream.step(x[t : t + 1], delta_t=times[t])
        assert found[0] == value


def test_stream_of_a_normalized_model() -> None:
    X, delta_t, y = problem()
    fitted = classifier().fit(X, y, delta_t=delta_t)._model()
    model = fastlstm.model.Model(
        fitted.network, fitted.decision, normalization=fastlstm.model.Normalization([1.0, 2.0], [3.0, 4.0])
    )
    stream = model.stream(2)
    for t in range(4):
        found = stream.raw_step(np.stack([X[0][t], X[1][t]]), [delta_t[0][t], delta_t[1][t]])
    want = model.raw_outputs([X[0][:4], X[1][:4]], delta_t=[delta_t[0][:4], delta_t[1][:4]])
    np.testing.assert_array_equal(found, want)
    assert model.predict_proba(X, delta_t=delta_t).shape == (N, 2)


def test_layer_stream() -> None:
    X, delta_t, _ = problem(1)
    layer = LSTM(2, 5, 2, cell="tlstm", random_state=0)
    stream = LayerStream(layer)
    for x_t, elapsed in zip(X[0], delta_t[0], strict=True):
        found = stream.step(x_t, delta_t=elapsed)
    np.testing.assert_array_equal(found, layer(X[0][None], delta_t=delta_t[0][None])[0][:, -1])


@pytest.mark.parametrize(
    ("delta_t", "error", "message"),
    [
        (-1.0, ValueError, "delta_t of stream 0 is -1.0; times must be finite and at least 0"),
        ([0.0, np.nan], ValueError, "delta_t of stream 1 is nan"),
        ([0.0, np.inf], ValueError, "delta_t of stream 1 is inf"),
        ([0.0] * 3, ValueError, r"delta_t has shape \(3,\); expected a number or shape \(2,\)"),
        ("soon", TypeError, "delta_t must hold real numbers"),
    ],
)
def test_bad_times_of_a_step(delta_t: Any, error: type[Exception], message: str) -> None:
    stream = LayerStream(LSTM(2, 3, cell="tlstm", random_state=0), 2)
    stream.step(np.ones((2, 2)))
    before = stream.state
    with pytest.raises(error, match=message):
        stream.step(np.ones((2, 2)), delta_t=delta_t)
    for a, b in zip(stream.state, before, strict=True):
        np.testing.assert_array_equal(a, b)


BAD_TIMES = {
    "too few sequences": (
        [[0.0, 1.0]],
        ValueError,
        "delta_t has 1 sequences of times, but X has 2 sequences",
    ),
    "too few steps": (
        [[0.0, 1.0], [0.0, 1.0]],
        ValueError,
        "delta_t has 2 times at sequence 1, but sequence 1 of X has 3 time steps",
    ),
    "two numbers a step": (
        [np.zeros((2, 2)), np.zeros((3, 2))],
        ValueError,
        "delta_t has 2 numbers per time step; expected one",
    ),
    "negative": (
        [[0.0, 1.0], [0.0, 1.0, -2.0]],
        ValueError,
        "delta_t is -2.0 at sequence 1, time step 2: times must be at least 0",
    ),
    "nan": ([[0.0, np.nan], [0.0] * 3], ValueError, "delta_t contains NaN at sequence 0, time step 1"),
    "infinite": (
        [[0.0] * 2, [np.inf] * 3],
        ValueError,
        "delta_t contains infinity .* at sequence 1, time step 0",
    ),
    "empty": ([], ValueError, "delta_t holds no sequences"),
    "a number": (1.0, ValueError, "delta_t must have shape"),
    "text": ([["a", "b"], ["c", "d", "e"]], ValueError, "must hold real numbers"),
    "a dict": ({"a": 1}, TypeError, "delta_t must be an array"),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict", "score", "load"])
@pytest.mark.parametrize("case", BAD_TIMES)
def test_bad_times(method: str, case: str) -> None:
    delta_t, error, message = BAD_TIMES[case]
    X, y = [np.ones((2, 1)), np.zeros((3, 1))], [0, 1]
    model = classifier(max_iter=1).fit(X, y)
    target = model._model().predict if method == "load" else getattr(model, method)
    arguments = (X,) if method in ("predict", "load") else (X, y)
    with pytest.raises(error, match=message):
        target(*arguments, delta_t=delta_t)


def test_cells_without_a_use_for_times() -> None:
    X, delta_t, y = problem()
    message = "delta_t goes with cell='tlstm' or missing='observe'; with cell='gru' nothing would use it"
    model = classifier(cell="gru").fit(X, y)
    for call in (
        lambda: classifier(cell="gru").fit(X, y, delta_t=delta_t),
        lambda: model.fit(X, y, eval_set=(X, y, delta_t)),
        lambda: model.predict(X, delta_t=delta_t),
        lambda: model._model().predict(X, delta_t=delta_t),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="delta_t goes with the cell 'tlstm'; this layer has the cell 'gru'"):
        model.fit(X, y).stream().step(X[0][:1], 1.0)


# ---------------------------------------------------------------- diagnostics


def test_gradient_flow_sees_the_times() -> None:
    """dL/dh of an earlier state by central differences of the padded call from that state on."""
    rng = np.random.default_rng(0)
    layer = LSTM(2, 4, cell="tlstm", dtype="float64", random_state=0)
    x, delta_t = rng.normal(size=(1, 5, 2)), rng.exponential(5.0, (1, 5))
    flow = gradient_flow(layer, x, delta_t=delta_t)
    _, state = layer(x[:, :2], delta_t=delta_t[:, :2])

    def loss(h: np.ndarray) -> float:
        return float(layer(x[:, 2:], (h, state[1]), delta_t=delta_t[:, 2:])[1][0].sum() / 2.0)

    steps = 1e-5 * np.eye(4)[:, None, None, :]
    slopes = [(loss(state[0] + step) - loss(state[0] - step)) / 2e-5 for step in steps]
    assert flow.norms[3] == pytest.approx(np.linalg.norm(slopes), rel=1e-7)
    assert flow.norms[3] != gradient_flow(layer, x).norms[3]
    with pytest.raises(ValueError, match="delta_t goes with the cell 'tlstm'"):
        gradient_flow(LSTM(2, 4), x, delta_t=delta_t)
