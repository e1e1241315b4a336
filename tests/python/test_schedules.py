"""Schedules against torch.optim.lr_scheduler and their own definitions."""

from __future__ import annotations

import json
import math

import pytest

from fastlstm.schedules import (
    Constant,
    Cosine,
    OneCycle,
    OnPlateau,
    Schedule,
    StepDecay,
    WarmUp,
    get_schedule,
)

STEPS_PER_EPOCH, EPOCHS = 7, 9
TOTAL = STEPS_PER_EPOCH * EPOCHS


def factors(schedule: Schedule, n: int = TOTAL) -> list[float]:
    schedule.prepare(STEPS_PER_EPOCH, EPOCHS)
    return [schedule(step) for step in range(n)]


def torch_factors(make, n: int = TOTAL) -> list[float]:
    """Learning rates of a torch scheduler, as factors of the initial rate 1."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant() -> None:
    assert factors(Constant()) == [1.0] * TOTAL


def test_step_is_that_of_torch() -> None:
    expected = torch_factors(lambda lr, opt: lr.StepLR(opt, step_size=2 * STEPS_PER_EPOCH, gamma=0.3))
    assert factors(StepDecay(step_size=2, gamma=0.3)) == pytest.approx(expected, rel=1e-12)


def test_cosine_is_that_of_torch() -> None:
    expected = torch_factors(lambda lr, opt: lr.CosineAnnealingLR(opt, T_max=TOTAL, eta_min=0.1))
    assert factors(Cosine(final_factor=0.1)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rise", [0.1, 0.3, 0.5])
def test_one_cycle_is_that_of_torch(rise: float) -> None:
    expected = torch_factors(
        lambda lr, opt: lr.OneCycleLR(
            opt, max_lr=1.0, total_steps=TOTAL, pct_start=rise, cycle_momentum=False
        )
    )
    ours = factors(OneCycle(rise=rise))
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert ours[0] == pytest.approx(1 / 25)
    assert max(ours) == pytest.approx(1.0, rel=0.02)
    assert ours[-1] == pytest.approx(1 / 25 / 1e4)
    peak = ours.index(max(ours))
    assert ours[: peak + 1] == sorted(ours[: peak + 1])
    assert ours[peak:] == sorted(ours[peak:], reverse=True)


@pytest.mark.parametrize("schedule", [Cosine(), OneCycle(), StepDecay(), WarmUp(OneCycle(), steps=3)])
def test_steps_beyond_the_end_are_harmless(schedule: Schedule) -> None:
    for factor in factors(schedule, 3 * TOTAL):
        assert math.isfinite(factor)
        assert 0 <= factor <= 1


@pytest.mark.parametrize("schedule", [Cosine(), OneCycle(), OneCycle(rise=0.0), OneCycle(rise=1.0)])
def test_a_training_of_one_step(schedule: Schedule) -> None:
    schedule.prepare(1, 1)
    assert 0 < schedule(0) <= 1


def test_plateau_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    metrics = [1.0, 0.9, 0.95, 0.91, 0.92, 0.5, 0.5, 0.5, 0.5, 0.5, 0.499, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.01, threshold_mode="abs", min_lr=0.2
    )
    ours = OnPlateau(factor=0.5, patience=2, threshold=0.01, min_factor=0.2)
    ours.prepare(STEPS_PER_EPOCH, EPOCHS)
    for metric in metrics:
        theirs.step(metric)
        ours.end_epoch(metric)
        assert ours(0) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_state_continues_and_prepare_begins_anew() -> None:
    one, two = OnPlateau(patience=1), OnPlateau(patience=1)
    for schedule in (one, two):
        schedule.prepare(1, 10)
    assert json.loads(json.dumps(one.state_dict()))["best"] is None
    for metric in (1.0, 1.0):
        one.end_epoch(metric)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for schedule in (one, two):
        schedule.end_epoch(1.0)
    assert one(0) == two(0) == pytest.approx(0.1)
    one.prepare(1, 10)
    assert one(0) == 1.0


def test_warm_up_multiplies_another_schedule() -> None:
    plain = factors(Cosine())
    warm = factors(WarmUp("cosine", steps=10))
    assert warm == pytest.approx([min(1.0, (i + 1) / 10) * factor for i, factor in enumerate(plain)])


def test_warm_up_passes_metrics_and_state_on() -> None:
    schedule = WarmUp(OnPlateau(patience=0), steps=1)
    schedule.prepare(1, 5)
    schedule.end_epoch(1.0)
    schedule.end_epoch(1.0)
    assert schedule(5) == pytest.approx(0.1)
    other = WarmUp(OnPlateau(patience=0), steps=1)
    other.prepare(1, 5)
    other.load_state_dict(schedule.state_dict())
    assert other(5) == schedule(5)


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one_cycle", "on_plateau", "warm_up"])
def test_names_configurations_and_reprs(name: str) -> None:
    schedule = get_schedule(name)
    assert schedule.name == name
    assert get_schedule(schedule) is schedule
    assert json.loads(json.dumps(schedule.get_config()))["name"] == name
    assert repr(schedule).startswith(type(schedule).__name__)
    schedule.load_state_dict(schedule.state_dict())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: get_schedule("linear"), "'constant', 'cosine'"),
        (lambda: StepDecay(step_size=0), "step_size must be a whole number"),
        (lambda: StepDecay(gamma=-1), "gamma must be a positive number"),
        (lambda: Cosine(final_factor=2), r"final_factor must lie in \[0, 1\]"),
        (lambda: OneCycle(rise=1.5), r"rise must lie in \[0, 1\]"),
        (lambda: OnPlateau(factor=1.0), "factor must lie between 0 and 1"),
        (lambda: OnPlateau(patience=-1), "patience must be a whole number"),
        (lambda: WarmUp(steps=0), "steps must be a whole number"),
    ],
)
def test_wrong_parameters_are_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
