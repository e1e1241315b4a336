"""The classic tasks are learnt, judged and reported; all of them with several seeds in the long tier."""

import json
import statistics

import numpy as np
import pytest

from fastlstm import _classic_tasks as tasks
from fastlstm.classics import CLASSICS, Classic, Run, main, run_classic, summary


def made_up(seed, solved=True, seconds=2.0):
    return Run("adding", seed, solved, 1000 * (seed + 1), seconds, seconds, 1, 2560, 0.005, 89)


@pytest.mark.parametrize("name", ["temporal-order-6a", "embedded-reber"])
def test_a_task_is_learnt(name):
    run = run_classic(name, 0)
    assert run.solved
    assert run.task == name
    assert run.wrong <= 0.02 * run.tested
    assert run.tested == 2560
    assert 0 <= run.mean_error < 0.1
    assert run.sequences > 0
    assert run.seconds > 0


def test_a_seed_fixes_the_run():
    first, again, other = (run_classic("temporal-order-6a", seed) for seed in (3, 3, 4))
    same = ("sequences", "wrong", "mean_error", "weights", "solved")
    assert [getattr(first, key) for key in same] == [getattr(again, key) for key in same]
    assert first.mean_error != other.mean_error


def test_unknown_task():
    with pytest.raises(ValueError, match=r"name must be one of adding, embedded-reber, .*; got 'xor'"):
        run_classic("xor")


@pytest.mark.parametrize("name", CLASSICS)
def test_every_task_states_its_facts(name):
    classic = CLASSICS[name]
    assert isinstance(classic, Classic)
    for text in (classic.title, classic.source, classic.criterion, classic.network, classic.published):
        assert text.strip() == text != ""
        assert text.isascii()
    seconds = classic.reproduction_seconds
    assert seconds is None or f"{seconds:g} s" in classic.reproduction


def test_outputs_that_are_not_numbers_solve_nothing():
    """Comparisons with NaN are false: they must not pass for small errors."""
    _, y, mask = tasks.make_timing(1, delays=(3, 4), n_spikes=3, random_state=0)
    _, wrong = tasks._measured(np.full((len(y), 1), np.nan, np.float32), y, mask)
    assert wrong.all()
    learner = tasks.Learner(
        7, 2, 7, cell="lstm1997", biases={}, every_step=True, rng=np.random.default_rng(0), learning_rate=0.1
    )
    learner.network.flat[:] = np.nan
    learner.network.parameters_changed()
    assert tasks._illegal(learner, tasks.make_embedded_reber(2, random_state=0)).all()


def test_streak_counts_from_the_last_wrong_answer():
    streak = tasks._Streak(4)
    streak.add(np.array([False, True, False]), np.array([0.1, 0.9, 0.1]))
    assert streak.right == 1
    assert not streak.met(1.0)
    streak.add(np.array([False, False]), np.array([0.1, 0.1]))
    assert streak.right == 3
    streak.add(np.array([False]), np.array([0.1]))
    assert streak.met(0.2)
    assert not streak.met(0.05)


def test_gate_biases_are_set_and_counted_once():
    learner = tasks.Learner(
        2,
        3,
        1,
        cell="peephole",
        biases={"f": 2.0, "o": -1.0},
        every_step=False,
        rng=np.random.default_rng(0),
        learning_rate=0.1,
    )
    parameters = learner.encoder.parameters
    total = parameters["bias_ih_l0"] + parameters["bias_hh_l0"]
    assert total[3:6].tolist() == [2.0] * 3
    assert total[9:].tolist() == [-1.0] * 3
    assert learner.n_weights == 4 * 3 * (2 + 3 + 1) + 3 * 3 + 3 + 1


# --------------------------------------------------------------------------------------------- the report


def test_summary_gives_medians_and_failures():
    found = summary([made_up(0), made_up(1, solved=False, seconds=4.0), made_up(2, seconds=3.0)])
    assert found["failures"] == 1
    assert found["median_seed_solved"]
    assert found["median"] == {"sequences": 2000, "seconds": 3.0, "cpu_seconds": 3.0}
    assert found["speedup"] == pytest.approx(13.0)
    assert "Adam" in found["optimizer"]
    json.dumps(found)
    assert not summary([made_up(0), made_up(1, solved=False)])["median_seed_solved"]


def test_command_lists_the_tasks(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(CLASSICS)
    assert main(["--list", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(CLASSICS)


def test_command_reports(capsys):
    assert main(["temporal-order-6a", "--seeds", "1"]) == 0
    text = capsys.readouterr().out
    for words in (
        "yes",
        "31,390 sequences",
        "13.6 s",
        "0 of 1 seeds failed",
        "does not compare",
        "176 weights",
    ):
        assert words in text


def test_command_writes_json(capsys):
    assert main(["temporal-order-6a", "--seeds", "2", "--first-seed", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in found["runs"]] == [5, 6]
    assert found["median"]["sequences"] == statistics.median(run["sequences"] for run in found["runs"])


def test_command_fails_where_the_median_seed_does(capsys, monkeypatch):
    monkeypatch.setattr("fastlstm.classics.run_classic", lambda name, seed: made_up(seed, solved=False))
    assert main(["adding"]) == 1
    assert "3 of 3 seeds failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "NAME must be one of"),
        (["xor"], "got xor"),
        (["adding", "--seeds", "0"], "--seeds must be at least 1"),
        (["adding", "--first-seed", "-1"], "--first-seed must be at least 0"),
    ],
)
def test_wrong_usage(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("name", CLASSICS)
def test_every_task_is_learnt_by_most_seeds(name):
    runs = [run_classic(name, seed) for seed in range(7)]
    assert sum(run.solved for run in runs) >= 5
    right = [run.wrong / run.tested for run in runs if run.solved]
    assert statistics.median(right) < 0.02
