"""Checkpoints: a training that was stopped anywhere ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from training_cases import accuracy, make_data, make_network, make_trainer

from fastlstm.callbacks import Callback
from fastlstm.optimizers import SGD, Nadam
from fastlstm.schedules import OnPlateau, WarmUp
from fastlstm.serialization import ModelFormatError, read_safetensors
from fastlstm.trainer import Checkpoint, TrainingDivergedWarning, TrainingInterruptedWarning
from fastlstm.trainer.checkpoint import fingerprint

LOSS = "softmax_cross_entropy"


class Stopped(Exception):
    """Stands for whatever ends a training from outside."""


class StopAt(Callback):
    def __init__(self, step: int, error: type[BaseException] = Stopped) -> None:
        self.left, self.error = step, error

    def on_batch_end(self, net, **kwargs) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


def full_training(directory, *callbacks, **options):
    """A training with everything that has a state: noise, dropout, best weights, plateau schedule, nadam."""
    network = make_network(
        num_layers=2,
        dropout=0.2,
        weight_noise=0.01,
        head_dropout=0.2,
        pooling=options.pop("pooling", "last"),
    )
    held_out, labels = make_data(25, seed=3)
    options = {
        "optimizer": Nadam(),
        "schedule": WarmUp(OnPlateau(factor=0.5, patience=0), steps=5),
        "max_iter": 5,
        "n_iter_no_change": 4,
        "alpha": 0.01,
        "checkpoint_dir": directory,
        **options,
    }
    trainer = make_trainer(callbacks=callbacks, **options)
    weights = np.linspace(0.0, 2.0, 60)
    validation = (held_out, labels, None, accuracy)
    history = trainer.fit(network, *make_data(), weights, LOSS, validation=validation)
    return network.flat.copy(), history


@pytest.fixture(scope="module")
def uninterrupted():
    return full_training(None)


def assert_same_outcome(outcome, expected) -> None:
    np.testing.assert_array_equal(outcome[0], expected[0])
    for name in ("loss_curve", "validation_scores", "learning_rates", "gradient_norms", "best_epoch"):
        assert getattr(outcome[1], name) == getattr(expected[1], name), name


@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize("steps", [1, 8, 9, 21, 40])
def test_a_stopped_training_ends_with_the_same_bits(tmp_path, uninterrupted, every, steps: int) -> None:
    with pytest.raises(Stopped):
        full_training(tmp_path, StopAt(steps), checkpoint_every=every)
    outcome = full_training(tmp_path, checkpoint_every=every)
    assert_same_outcome(outcome, uninterrupted)
    assert (outcome[1].resumed_epoch is not None) == (steps > (every or 8))


@pytest.mark.parametrize("steps", [5, 17, 30])
def test_best_weights_and_patience_are_resumed(tmp_path, steps: int) -> None:
    options = {"early_stopping": True, "learning_rate_init": 0.1, "n_iter_no_change": 1, "tol": 0.05}
    expected = full_training(None, **options)
    assert 1 < expected[1].best_epoch < expected[1].n_iter
    with pytest.raises(Stopped):
        full_training(tmp_path, StopAt(steps), checkpoint_every=2, **options)
    assert_same_outcome(full_training(tmp_path, **options, checkpoint_every=2), expected)


@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("options", [{}, {"n_iter_no_change": 1, "tol": 10.0}], ids=["max_iter", "patience"])
def test_stopped_after_the_last_epoch_trains_no_further(tmp_path, options, every) -> None:
    """The window between the last epoch's checkpoint and the one that says that training is finished."""

    class StopAtTheEnd(Callback):
        def on_train_end(self, net, **kwargs) -> None:
            raise Stopped

    expected = full_training(None, **options)
    with pytest.raises(Stopped):
        full_training(tmp_path, StopAtTheEnd(), checkpoint_every=every, **options)
    outcome = full_training(tmp_path, checkpoint_every=every, **options)
    assert_same_outcome(outcome, expected)
    assert outcome[1].n_iter == expected[1].n_iter


def test_stopped_again_and_again(tmp_path, uninterrupted) -> None:
    for _ in range(4):
        with pytest.raises(Stopped):
            full_training(tmp_path, StopAt(9), checkpoint_every=1)
    assert_same_outcome(full_training(tmp_path, checkpoint_every=1), uninterrupted)


def test_ctrl_c_then_fit_goes_on(tmp_path, uninterrupted) -> None:
    with pytest.warns(TrainingInterruptedWarning):
        full_training(tmp_path, StopAt(20, KeyboardInterrupt))
    outcome = full_training(tmp_path)
    assert outcome[1].resumed_epoch == 3
    assert_same_outcome(outcome, uninterrupted)


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_batch_end"])
def test_a_callbacks_stop_then_fit_goes_on(tmp_path, uninterrupted, hook: str) -> None:
    class Stop:
        pass

    setattr(Stop, hook, lambda self, net, *, trainer, **kwargs: trainer.stop())
    assert full_training(tmp_path, Stop())[1].stop_reason == "callback"
    assert_same_outcome(full_training(tmp_path), uninterrupted)


def test_a_finished_training_is_not_repeated(tmp_path, uninterrupted) -> None:
    full_training(tmp_path)
    outcome = full_training(tmp_path, StopAt(1))  # would raise if a minibatch were trained
    assert_same_outcome(outcome, uninterrupted)
    assert outcome[1].stop_reason == uninterrupted[1].stop_reason


def test_another_configuration_data_or_start_is_another_training(tmp_path) -> None:
    def run(data=None, network=None, callbacks=(), loss=LOSS, **options):
        trainer = make_trainer(checkpoint_dir=tmp_path, callbacks=callbacks, **options)
        network = make_network() if network is None else network
        return trainer.fit(network, *(data or make_data()), None, loss)

    run()
    seqs, labels = make_data()
    others = [
        {"max_iter": 5},
        {"alpha": 0.1},
        {"optimizer": SGD()},
        {"schedule": "cosine"},
        {"random_state": 1},
        {"data": (seqs, 1 - labels)},
        {"data": make_data(seed=9)},
        {"network": make_network(seed=3)},
        {"network": make_network(pooling="mean")},
    ]
    for i, other in enumerate(others):
        assert run(**other).resumed_epoch is None
        assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 2 + i


def test_without_a_seed_the_one_of_the_checkpoint_is_taken(tmp_path) -> None:
    def run(directory, *callbacks, seed=None):
        network = make_network(seed=seed if seed is not None else int(np.random.default_rng().integers(1000)))
        trainer = make_trainer(
            random_state=None, checkpoint_dir=directory, callbacks=callbacks, checkpoint_every=1
        )
        return network, trainer.fit(network, *make_data(), None, LOSS)

    with pytest.raises(Stopped):
        run(tmp_path, StopAt(10), seed=4)
    saved = next(tmp_path.glob("*.safetensors")).read_bytes()
    first, history = run(tmp_path)
    assert history.resumed_epoch == 2
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(saved)
    second, _ = run(tmp_path)
    np.testing.assert_array_equal(first.flat, second.flat)
    # a finished training without a seed is done anew
    third, history = run(tmp_path)
    assert history.resumed_epoch is None
    assert (third.flat != second.flat).any()


def test_the_file_is_plain_safetensors_with_named_weights(tmp_path) -> None:
    flat, _ = full_training(tmp_path)
    (path,) = tmp_path.iterdir()  # neither a lock nor a temporary file is left
    tensors, metadata = read_safetensors(path)
    assert metadata["format"] == "fastlstm-checkpoint"
    assert {"weights.encoder.weight_ih_l0", "best.head.bias", "optimizer.0", "optimizer.1"} <= set(tensors)
    np.testing.assert_array_equal(tensors["weights.encoder.weight_ih_l0"].ravel(), flat[: 24 * 2])
    safetensors = pytest.importorskip("safetensors.numpy")
    assert set(safetensors.load_file(path)) == set(tensors)


def test_a_second_training_on_the_same_checkpoint_is_refused(tmp_path) -> None:
    class Inside(Callback):
        error: Exception | None = None

        def on_epoch_end(self, net, **kwargs) -> None:
            try:
                full_training(tmp_path)
            except RuntimeError as error:
                self.error = error

    inside = Inside()
    full_training(tmp_path, inside)
    assert "another training is using the checkpoint" in str(inside.error)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path) -> None:
    with Checkpoint(tmp_path, "abc") as checkpoint:
        checkpoint.save({"x": np.zeros(3)}, {"a": 1})
    leftover = tmp_path / f".{checkpoint.path.name}.0123.tmp"
    leftover.write_bytes(b"half")
    foreign = tmp_path / "notes.tmp"
    foreign.write_bytes(b"mine")
    with Checkpoint(tmp_path, "abc") as checkpoint:
        tensors, state = checkpoint.load()
    assert state == {"a": 1}
    assert tensors["x"].shape == (3,)
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.path.name, "notes.tmp"]


def test_a_damaged_checkpoint_is_reported_and_left_alone(tmp_path) -> None:
    full_training(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFormatError):
        full_training(tmp_path)
    assert path.read_bytes() == whole[: len(whole) // 2]
    path.write_bytes(whole.replace(b"fastlstm-checkpoint", b"another-checkpoints"))
    with pytest.raises(ModelFormatError, match="is not a checkpoint"):
        full_training(tmp_path)


def test_a_full_disk_warns_and_training_goes_on(tmp_path, monkeypatch, uninterrupted) -> None:
    from fastlstm.trainer import checkpoint

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    with pytest.warns(RuntimeWarning, match="no checkpoint was written"):
        outcome = full_training(tmp_path)
    assert_same_outcome(outcome, uninterrupted)


def test_a_diverged_training_is_finished(tmp_path) -> None:
    def run(*callbacks):
        network = make_network(n_outputs=1)
        trainer = make_trainer(
            optimizer=SGD(),
            learning_rate_init=1e30,
            clip_norm=None,
            checkpoint_dir=tmp_path,
            callbacks=callbacks,
        )
        return trainer.fit(network, make_data()[0], np.arange(60.0), None, "squared")

    with pytest.warns(TrainingDivergedWarning):
        run()
    assert run(StopAt(1)).stop_reason == "diverged"


def test_fingerprints() -> None:
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": object}) == fingerprint({"a": object})
    assert len(fingerprint({})) == 16


CHILD = """
import os, random, signal, sys, threading, time
import numpy as np
from test_checkpoint import full_training
from fastlstm.callbacks import Callback

class KillSelf(Callback):
    '''A thread that ends the process without warning, some microseconds after a given minibatch.'''

    def __init__(self, step, delay):
        self.left = step
        self.reached = threading.Event()
        threading.Thread(target=self.wait, args=(delay,), daemon=True).start()

    def wait(self, delay):
        self.reached.wait()
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def on_batch_end(self, net, **kwargs):
        self.left -= 1
        if self.left <= 0:
            self.reached.set()

directory, out, every, step, delay = sys.argv[1:]
callbacks = [KillSelf(int(step), float(delay))] if int(step) else []
flat, _ = full_training(directory, *callbacks, checkpoint_every=int(every) or None)
np.save(out, flat)
"""


def run_child(directory, out, every: int, step: int, delay: float) -> int:
    here = os.path.dirname(os.path.abspath(__file__))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *(path for path in sys.path if path)])}
    arguments = [sys.executable, "-c", CHILD, str(directory), str(out), str(every), str(step), repr(delay)]
    return subprocess.run(arguments, env=env, check=False, timeout=120).returncode


def check_kills(tmp_path, expected, n_kills: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    killed = 0
    for i in range(n_kills):
        directory, out = tmp_path / f"run{i}", tmp_path / f"run{i}.npy"
        every = int(rng.choice([0, 1, 2, 5]))
        code = run_child(directory, out, every, int(rng.integers(1, 34)), float(rng.uniform(0, 0.005)))
        assert code in (-signal.SIGKILL, 0)
        if code != 0:
            killed += 1
            assert run_child(directory, out, every, 0, 0.0) == 0
        np.testing.assert_array_equal(np.load(out), expected[0], err_msg=f"kill {i}")
    assert killed > 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_sigkill_then_resume_gives_the_same_bits(tmp_path, uninterrupted) -> None:
    check_kills(tmp_path, uninterrupted, 3, seed=0)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_sigkill_twenty_times(tmp_path, uninterrupted) -> None:
    check_kills(tmp_path, uninterrupted, 20, seed=int.from_bytes(os.urandom(4), "little"))
