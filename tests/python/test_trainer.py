"""The training loop: what it learns, when it stops, which weights it keeps, what it tells callbacks."""

from __future__ import annotations

import copy
import math
import pickle
import signal
import warnings

import numpy as np
import pytest
from training_cases import accuracy, make_data, make_network, make_trainer, train

from fastlstm import _core, as_sequences
from fastlstm.callbacks import Callback, PrintLog, ScikitLearnCallbacks, collect_hooks, format_seconds
from fastlstm.losses import get_loss
from fastlstm.optimizers import SGD, Adam
from fastlstm.schedules import OnPlateau, StepDecay
from fastlstm.trainer import TrainingDivergedWarning, TrainingInterruptedWarning
from fastlstm.trainer.batching import Batches, check_weights
from fastlstm.trainer.history import History
from fastlstm.trainer.state import draw_seed

LOSS = "softmax_cross_entropy"


def same_weights(one, two) -> bool:
    return np.array_equal(one.flat, two.flat)


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_it_learns(pooling: str) -> None:
    seqs, labels = make_data(200)
    network = make_network(pooling=pooling)
    _, history = train(network, (seqs, labels), max_iter=40, learning_rate_init=0.02)
    assert history.loss_curve[-1] < 0.5 * history.loss_curve[0]
    assert accuracy(network.predict(seqs), labels, None) > 0.9


@pytest.mark.parametrize(
    ("loss", "n_outputs"),
    [("squared", 1), ("absolute", 1), ("huber", 1), ("quantile", 1), ("gaussian_nll", 2)],
)
def test_regression_losses_learn(loss: str, n_outputs: int) -> None:
    seqs, _ = make_data(100)
    targets = np.array([sequence[:, 0].mean() for sequence in seqs])
    network = make_network(n_outputs=n_outputs)
    history = make_trainer(max_iter=15).fit(network, seqs, targets, None, loss)
    assert history.loss_curve[-1] < history.loss_curve[0]
    assert network.predict(seqs).shape == (100, n_outputs)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw", "nadam"])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle", "on_plateau", "warm_up"])
def test_every_optimizer_goes_with_every_schedule(optimizer: str, schedule: str) -> None:
    network, history = train(optimizer=optimizer, schedule=schedule, max_iter=2)
    assert np.isfinite(network.flat).all()
    assert history.n_iter == len(history.learning_rates) == 2


def test_schedule_sets_the_rates_and_is_copied() -> None:
    schedule = StepDecay(step_size=1, gamma=0.5)
    _, history = train(schedule=schedule, max_iter=3, learning_rate_init=0.04)
    assert history.learning_rates == pytest.approx([0.04, 0.02, 0.01])
    assert not hasattr(schedule, "_n_steps")


def test_plateau_schedule_watches_the_loss() -> None:
    schedule = OnPlateau(factor=0.5, patience=0, threshold=1e9)
    _, history = train(schedule=schedule, max_iter=4, learning_rate_init=0.01)
    assert history.learning_rates == pytest.approx([0.01, 0.01, 0.005, 0.0025])


# ---------------------------------------------------------------------- determinism


def everything_on() -> dict:
    return {"alpha": 0.1, "clip_norm": 0.5, "clip_value": 0.1, "optimizer": "nadam"}


def test_the_seed_decides_everything() -> None:
    def run(seed):
        return train(
            make_network(head_dropout=0.3, num_layers=2, dropout=0.2, weight_noise=0.02),
            random_state=seed,
            **everything_on(),
        )

    (one, first), (two, second), (three, _) = run(3), run(3), run(4)
    assert same_weights(one, two)
    assert first.loss_curve == second.loss_curve
    assert not same_weights(one, three)


@pytest.mark.parametrize("make_rng", [np.random.default_rng, np.random.RandomState, np.int64])
def test_kinds_of_random_state(make_rng) -> None:
    one, two = train(random_state=make_rng(5))[0], train(random_state=make_rng(5))[0]
    assert same_weights(one, two)


def test_a_generator_gives_each_training_its_own_seed() -> None:
    rng = np.random.default_rng(0)
    assert not same_weights(train(random_state=rng)[0], train(random_state=rng)[0])
    assert draw_seed(None) != draw_seed(None)
    with pytest.raises(TypeError, match="random_state must be None, an int"):
        draw_seed("7")


def test_the_number_of_threads_does_not_matter() -> None:
    before = _core.get_num_threads()
    try:
        trained = []
        for n_threads in (1, 2, 3, 7):
            _core.set_num_threads(n_threads)
            network = make_network(num_layers=2, bidirectional=True, pooling="mean")
            trained.append(train(network, batch_size=32, **everything_on())[0])
    finally:
        _core.set_num_threads(before)
    assert all(same_weights(trained[0], other) for other in trained[1:])


# ---------------------------------------------------------------------- sample weights


def test_weight_zero_is_an_absent_row() -> None:
    seqs, labels = make_data()
    weights = np.random.default_rng(0).integers(0, 3, len(seqs)).astype(float)
    kept = np.flatnonzero(weights)
    whole, first = train(data=(seqs, labels), weights=weights, alpha=0.1)
    part, second = train(data=(seqs[kept], labels[kept]), weights=weights[kept], alpha=0.1)
    assert same_weights(whole, part)
    assert first.loss_curve == second.loss_curve


def test_weight_one_is_no_weight() -> None:
    assert same_weights(train(weights=np.ones(60))[0], train()[0])
    half = np.arange(60) % 2 == 0
    seqs, labels = make_data()
    assert same_weights(train(weights=half.astype(float))[0], train(data=(seqs[half], labels[half]))[0])


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (np.ones(3), r"weights must have shape \(60,\)"),
        (np.full(60, -1.0), "finite and not negative"),
        (np.full(60, np.nan), "finite and not negative"),
        (np.zeros(60), "must not all be 0"),
    ],
)
def test_wrong_weights_are_refused(weights, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(weights=weights)
    assert check_weights(None, 3) is None


# ---------------------------------------------------------------------- regularisation and clipping


def one_step(**options):
    """Weights before, gradient and weights after one step of plain descent over all the data, in float64."""
    seqs, labels = make_data(dtype="float64")
    network = make_network("float64")
    before = network.flat.copy()
    network.loss_and_gradient(seqs, np.arange(60), get_loss(LOSS), labels, None, 0)
    gradient = network.flat_grads.copy()
    options = {"optimizer": SGD(), "learning_rate_init": 0.5, "batch_size": 60, "shuffle": False, **options}
    train(network, (seqs, labels), max_iter=1, **options)
    return network, before, gradient, (before - network.flat) / 0.5


def test_l2_pulls_on_weights_and_not_on_biases() -> None:
    network, before, gradient, step = one_step(alpha=3.0, clip_norm=None)
    pulled = network.named_views(step - gradient)
    for name, start in network.named_views(before).items():
        expected = 0.0 * start if "bias" in name else 3.0 / 60 * start
        np.testing.assert_allclose(pulled[name], expected, atol=1e-13)


def test_l2_is_part_of_the_reported_loss() -> None:
    options = {"max_iter": 1, "learning_rate_init": 1e-12, "batch_size": 60}
    network, plain = train(**options)
    _, penalised = train(alpha=3.0, **options)
    squares = sum(
        float((v.astype(float) ** 2).sum()) for k, v in network.parameters.items() if "bias" not in k
    )
    assert penalised.loss_curve[0] - plain.loss_curve[0] == pytest.approx(1.5 / 60 * squares, rel=1e-4)


def test_clipping_by_norm_and_by_value() -> None:
    _, _, gradient, step = one_step(clip_norm=0.01)
    np.testing.assert_allclose(step, gradient * 0.01 / np.linalg.norm(gradient), rtol=1e-9, atol=1e-14)
    _, _, gradient, step = one_step(clip_norm=None, clip_value=0.003)
    np.testing.assert_allclose(step, np.clip(gradient, -0.003, 0.003), rtol=1e-9, atol=1e-14)
    _, _, gradient, step = one_step(clip_norm=1e6)
    np.testing.assert_allclose(step, gradient, rtol=1e-9, atol=1e-14)


# ---------------------------------------------------------------------- minibatches


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (7, 8), (60, 8), (60, 60), (300, 8), (301, 7)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_takes_every_sequence_once(n: int, batch_size: int, shuffle: bool) -> None:
    seqs, labels = make_data(n)
    data = Batches(seqs, labels, None, batch_size, shuffle)
    for epoch in range(3):
        plan = data.plan(9, epoch)
        assert sorted(plan.starts.tolist()) == seqs.offsets[:-1].tolist()
        sizes = [span.stop - span.start for span in plan.spans]
        assert sorted(sizes)[1:] == [min(batch_size, n)] * (len(sizes) - 1)
        assert [span.start for span in plan.spans] == np.cumsum([0, *sizes])[:-1].tolist()
        assert plan.totals == sizes
        row = {start: i for i, start in enumerate(seqs.offsets[:-1].tolist())}
        rows = [row[start] for start in plan.starts.tolist()]
        np.testing.assert_array_equal(plan.lengths, seqs.lengths[rows])
        np.testing.assert_array_equal(plan.targets, labels[rows])
        assert shuffle or rows == list(range(n))
    assert data.n_batches == len(plan.spans)


def test_minibatches_hold_sequences_of_similar_length() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 2000)
    seqs = as_sequences([np.zeros((length, 1)) for length in lengths])
    plan = Batches(seqs, np.zeros(2000), None, 20).plan(0, 0)
    waste = 1 - lengths.sum() / sum(
        (span.stop - span.start) * plan.lengths[span].max() for span in plan.spans
    )
    assert waste < 0.1  # about 0.48 without sorting
    longest = [plan.lengths[span].max() for span in plan.spans]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_epochs_differ_and_can_be_planned_in_any_order() -> None:
    seqs, labels = make_data(300)
    data = Batches(seqs, labels, None, 8)
    second, first = data.plan(0, 1), data.plan(0, 0)
    assert (first.starts != second.starts).any()
    np.testing.assert_array_equal(data.plan(0, 1).starts, second.starts)


# ---------------------------------------------------------------------- stopping


def test_training_stops_when_the_loss_does_not_improve() -> None:
    _, history = train(tol=100.0, n_iter_no_change=3, max_iter=50)
    assert history.stop_reason == "no_improvement"
    assert history.n_iter == 1 + 3 + 1
    assert not history.best_weights_restored


def test_all_epochs_are_done_otherwise() -> None:
    _, history = train(max_iter=3, n_iter_no_change=50)
    assert history.stop_reason == "max_iter"
    assert history.n_iter == len(history) == 3
    assert history.n_sequences == 60


def scripted(scores: list[float], seen: list) -> tuple:
    """Validation data whose scores are given beforehand; notes the network's outputs at each."""
    seqs, labels = make_data(20, seed=1)
    remaining = iter(scores)

    def score(outputs, targets, weights):
        seen.append(outputs)
        return next(remaining)

    return seqs, labels, None, score


def test_early_stopping_keeps_the_best_weights() -> None:
    seen: list = []
    validation = scripted([0.1, 0.5, 0.9, 0.4, 0.9, 0.3, 0.2], seen)
    network, history = train(
        validation=validation, early_stopping=True, n_iter_no_change=3, tol=0.01, max_iter=20
    )
    assert history.stop_reason == "no_improvement"
    assert history.validation_scores == [0.1, 0.5, 0.9, 0.4, 0.9, 0.3, 0.2]
    assert (history.best_epoch, history.best_validation_score) == (3, 0.9)
    assert history.best_weights_restored
    np.testing.assert_array_equal(network.predict(validation[0]), seen[2])


def test_early_stopping_restores_also_after_the_last_epoch() -> None:
    seen: list = []
    validation = scripted([0.1, 0.9, 0.5], seen)
    network, history = train(validation=validation, early_stopping=True, max_iter=3)
    assert history.stop_reason == "max_iter"
    np.testing.assert_array_equal(network.predict(validation[0]), seen[1])


def test_validation_without_early_stopping_is_only_watched() -> None:
    validation = scripted([0.9, 0.5, 0.1], [])
    watched, history = train(validation=validation, max_iter=3)
    assert history.best_epoch == 1
    assert not history.best_weights_restored
    assert same_weights(watched, train(max_iter=3)[0])


def test_default_score_is_the_negated_loss_and_weight_zero_is_absent() -> None:
    seqs, labels = make_data(20, seed=1)
    weights = np.arange(20) % 2.0
    kept = np.flatnonzero(weights)
    network, history = train(validation=(seqs, labels, weights, None), max_iter=2)
    expected = -get_loss(LOSS).value(network.predict(seqs[kept]), labels[kept])
    assert history.validation_scores[-1] == pytest.approx(expected, rel=1e-6)


def test_early_stopping_without_validation_data_is_refused() -> None:
    with pytest.raises(ValueError, match="early_stopping needs validation data"):
        train(early_stopping=True)


# ---------------------------------------------------------------------- interruption and divergence


class Raise(Callback):
    """Raises at the end of minibatch number `at` (from 0) of the whole training."""

    def __init__(self, at: int, action) -> None:
        self.left, self.action = at, action

    def on_batch_end(self, net, **kwargs) -> None:
        if self.left == 0:
            self.action()
        self.left -= 1


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def listens_to_ctrl_c():
    """A shell that runs the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
@pytest.mark.parametrize("action", [interrupt, lambda: signal.raise_signal(signal.SIGINT)])
def test_ctrl_c_keeps_the_best_weights(action) -> None:
    seen: list = []
    validation = scripted([0.9, 0.1, 0.2], seen)
    with pytest.warns(TrainingInterruptedWarning, match="epoch 4: the weights of epoch 1 are kept"):
        network, history = train(validation=validation, max_iter=9, callbacks=[Raise(3 * 8 + 2, action)])
    assert (history.stop_reason, history.n_iter) == ("interrupted", 3)
    np.testing.assert_array_equal(network.predict(validation[0]), seen[0])


def test_ctrl_c_in_the_first_epoch_leaves_a_usable_network() -> None:
    start = make_network().flat
    with pytest.warns(TrainingInterruptedWarning, match="last minibatch"):
        network, history = train(callbacks=[Raise(2, interrupt)])
    assert history.n_iter == 0
    assert history.best_loss is None
    assert (network.flat != start).any()
    seqs, _ = make_data()
    np.testing.assert_array_equal(network.predict(seqs), copy.deepcopy(network).predict(seqs))


def test_a_second_fit_after_ctrl_c_is_a_fresh_one() -> None:
    seqs, labels = make_data()
    stopper = Raise(10, interrupt)
    trainer = make_trainer(callbacks=[stopper])
    with pytest.warns(TrainingInterruptedWarning):
        trainer.fit(make_network(), seqs, labels, None, LOSS)
    stopper.left = -1
    network = make_network()
    trainer.fit(network, seqs, labels, None, LOSS)
    assert same_weights(network, train()[0])


def test_divergence_stops_and_keeps_the_best_weights() -> None:
    seqs, _ = make_data(dtype="float32")
    network = make_network(n_outputs=1)
    trainer = make_trainer(optimizer=SGD(), learning_rate_init=1e30, clip_norm=None, max_iter=9)
    with pytest.warns(TrainingDivergedWarning, match="not finite"):
        history = trainer.fit(network, seqs, np.arange(60.0), None, "squared")
    assert history.stop_reason == "diverged"
    assert np.isfinite(network.flat).all()


def test_divergence_after_good_epochs_returns_to_the_best() -> None:
    class Explode(Callback):
        def on_epoch_end(self, net, *, trainer, epoch, **kwargs) -> None:
            trainer.learning_rate_init = 0.01 if epoch < 3 else math.inf

    seen: list = []
    validation = scripted([0.5, 0.9, 0.1, 0.2, 0.3], seen)
    with pytest.warns(TrainingDivergedWarning, match="weights of epoch 2 are kept"):
        network, _ = train(validation=validation, max_iter=9, callbacks=[Explode()])
    np.testing.assert_array_equal(network.predict(validation[0]), seen[1])


def test_a_score_that_is_not_finite_is_divergence() -> None:
    with pytest.warns(TrainingDivergedWarning):
        _, history = train(validation=scripted([0.5, math.nan], []))
    assert history.n_iter == 1


# ---------------------------------------------------------------------- callbacks


class Recorder:
    """Notes the hooks; not a Callback, as skorch's are not."""

    def __init__(self) -> None:
        self.calls: list = []

    def on_train_begin(self, net, X=None, y=None, **kwargs) -> None:
        self.calls.append(("train_begin", net))

    def on_train_end(self, net, **kwargs) -> None:
        self.calls.append(("train_end", kwargs["history"].stop_reason))

    def on_epoch_begin(self, net, **kwargs) -> None:
        self.calls.append(("epoch_begin", kwargs["epoch"]))

    def on_epoch_end(self, net, **kwargs) -> None:
        self.calls.append(("epoch_end", kwargs["epoch"], len(kwargs["history"].loss_curve)))

    def on_batch_begin(self, net, batch=None, training=None, **kwargs) -> None:
        self.calls.append(("batch_begin", batch, training))

    def on_batch_end(self, net, batch=None, **kwargs) -> None:
        assert math.isfinite(kwargs["loss"])
        assert kwargs["n_batches"] == 2
        self.calls.append(("batch_end", batch))


def test_hooks_are_called_in_order_with_the_estimator() -> None:
    recorder, estimator = Recorder(), object()
    seqs, labels = make_data()
    trainer = make_trainer(batch_size=30, max_iter=2, callbacks=[recorder])
    trainer.fit(make_network(), seqs, labels, None, LOSS, estimator=estimator)
    epoch = [("batch_begin", 0, True), ("batch_end", 0), ("batch_begin", 1, True), ("batch_end", 1)]
    assert recorder.calls == [
        ("train_begin", estimator),
        ("epoch_begin", 1),
        *epoch,
        ("epoch_end", 1, 1),
        ("epoch_begin", 2),
        *epoch,
        ("epoch_end", 2, 2),
        ("train_end", "max_iter"),
    ]


@pytest.mark.parametrize(
    ("hook", "n_iter"), [("on_epoch_end", 1), ("on_batch_end", 0), ("on_batch_begin", 0)]
)
def test_a_callback_can_stop(hook: str, n_iter: int) -> None:
    class Stop:
        pass

    setattr(Stop, hook, lambda self, net, *, trainer, **kwargs: trainer.stop())
    _, history = train(callbacks=[Stop()])
    assert (history.stop_reason, history.n_iter) == ("callback", n_iter)


def test_an_error_in_a_callback_comes_through_and_ends_the_training() -> None:
    recorder = Recorder()
    seqs, labels = make_data()
    trainer = make_trainer(batch_size=30, callbacks=[recorder, Raise(1, lambda: 1 // 0)])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(make_network(), seqs, labels, None, LOSS)
    assert recorder.calls[-1] == ("train_end", None)


@pytest.mark.parametrize("callback", [object(), Recorder])
def test_what_is_no_callback_is_refused(callback) -> None:
    with pytest.raises(TypeError, match="must be an object with at least one of the hooks"):
        train(callbacks=[callback])


def test_hooks_that_do_nothing_cost_nothing() -> None:
    assert not any(collect_hooks([Callback()]).values())
    assert [name for name, methods in collect_hooks([PrintLog()]).items() if methods] == [
        "on_train_begin",
        "on_train_end",
        "on_epoch_end",
    ]


def test_one_line_an_epoch(capsys) -> None:
    train(verbose=1, max_iter=2, validation=scripted([0.25, 0.125], []))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch 1/2* loss 0.")
    assert "validation 0.25" in lines[0]
    assert "sequences/s" in lines[0]
    assert "left at most" in lines[0]
    assert lines[1].startswith("epoch 2/2  loss 0.")
    assert lines[2] == "ended: all epochs done"


def test_a_sink_takes_the_lines() -> None:
    lines: list[str] = []
    train(callbacks=[PrintLog(lines.append)], max_iter=1)
    assert len(lines) == 2


@pytest.mark.parametrize("missing", [(), ("rich",), ("rich", "tqdm")])
def test_live_bar_with_and_without_its_packages(missing: tuple, monkeypatch, capsys) -> None:
    import sys

    for name in missing:
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=DeprecationWarning)
        train(verbose=2, max_iter=2)
    captured = capsys.readouterr()
    assert "2/2" in captured.out + captured.err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (12.34, "12.3 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_callbacks_of_scikit_learns_protocol() -> None:
    callback_module = pytest.importorskip("sklearn.callback")
    from sklearn.base import BaseEstimator

    class Watch:
        def __init__(self) -> None:
            self.seen: list = []

        def setup(self, estimator, context) -> None:
            self.seen.append("setup")

        def teardown(self, estimator, context) -> None:
            self.seen.append("teardown")

        def on_fit_task_begin(self, estimator, context) -> None:
            self.seen.append(f"begin {context.task_name}")

        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            self.seen.append(f"end {context.task_name}")
            return context.task_name == "epoch" and context.task_id == 1

    class Estimator(callback_module.CallbackSupportMixin, BaseEstimator):
        @callback_module.with_callbacks
        def fit(self, seqs, labels):
            context = self._init_callback_context(max_subtasks=5)
            bridge = ScikitLearnCallbacks(context, lambda: {"fitted_": True})
            trainer = make_trainer(max_iter=5, callbacks=[bridge])
            self.history_ = trainer.fit(make_network(), seqs, labels, None, LOSS, estimator=self)
            return self

    watch = Watch()
    fitted = Estimator().set_callbacks(watch).fit(*make_data())
    assert fitted.history_.stop_reason == "callback"
    epoch = ["begin epoch", "end epoch"]
    assert watch.seen == ["setup", "begin fit", *epoch, *epoch, "end fit", "teardown"]


# ---------------------------------------------------------------------- partial_fit, arguments, records


def test_partial_fit_goes_on_where_it_was() -> None:
    seqs, labels = make_data()
    network, trainer = make_network(), make_trainer(tol=0.0, n_iter_no_change=100)
    for _ in range(4):
        history = trainer.partial_fit(network, seqs, labels, None, LOSS)
    assert history.n_iter == 4
    assert same_weights(network, train()[0])


def test_partial_fit_survives_pickling() -> None:
    seqs, labels = make_data()
    network, trainer = make_network(), make_trainer()
    trainer.partial_fit(network, seqs, labels, None, LOSS)
    network, trainer = pickle.loads(pickle.dumps((network, trainer)))
    for _ in range(3):
        trainer.partial_fit(network, seqs, labels, None, LOSS)
    assert same_weights(network, train()[0])


def test_partial_fit_after_fit_and_on_other_data() -> None:
    network, trainer = make_network(), make_trainer(max_iter=2)
    trainer.fit(network, *make_data(), None, LOSS)
    history = trainer.partial_fit(network, *make_data(13, seed=5), None, LOSS)
    assert history.n_iter == 3
    assert history.n_sequences == 13
    assert trainer.optimizer.n_steps == 2 * 8 + 2


def test_partial_fit_after_ctrl_c_begins_a_new_epoch() -> None:
    network = make_network()
    stopper = Raise(3, interrupt)
    trainer = make_trainer(callbacks=[stopper])
    with pytest.warns(TrainingInterruptedWarning):
        trainer.partial_fit(network, *make_data(), None, LOSS)
    stopper.left = -1
    assert trainer.partial_fit(network, *make_data(), None, LOSS).n_iter == 1
    assert trainer.optimizer.n_steps == 4 + 8


def test_fit_resets_the_optimizer() -> None:
    optimizer = Adam()
    seqs, labels = make_data()
    for _ in range(2):
        network = make_network()
        make_trainer(optimizer=optimizer).fit(network, seqs, labels, None, LOSS)
    assert same_weights(network, train()[0])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"learning_rate_init": 0.0}, ValueError, "learning_rate_init must be finite and greater than 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"tol": -1.0}, ValueError, "tol must be finite and at least 0"),
        ({"alpha": "1"}, TypeError, "alpha must be a number"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be finite and greater than 0"),
        ({"clip_value": -1.0}, ValueError, "clip_value must be finite and greater than 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"optimizer": "lbfgs"}, ValueError, "optimizer must be one of"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make_trainer(**options)


def test_data_that_do_not_fit_are_refused() -> None:
    seqs, labels = make_data()
    with pytest.raises(ValueError, match="one target per sequence, and at least one; got 59 and 60"):
        train(data=(seqs, labels[:-1]))
    wide = as_sequences([np.zeros((2, 5))])
    with pytest.raises(ValueError, match="5 features per time step, but the network was built for 2"):
        train(data=(wide, labels[:1]))
    with pytest.raises(ValueError, match="the validation data has 5 features"):
        train(validation=(wide, labels[:1], None, None))


def test_history_rows_and_round_trip() -> None:
    _, history = train(max_iter=2, validation=scripted([0.5, 0.75], []))
    rows = history.rows()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["validation_score"] == 0.75
    assert set(rows[0]) >= {"loss", "learning_rate", "gradient_norm", "seconds"}
    assert History.from_dict(history.to_dict()) == history
    history.loss_curve.append(1.0)
    history.drop_unfinished()
    assert history.n_iter == 2
