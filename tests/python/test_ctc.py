"""CTC loss and gradient: torch, enumeration of all alignments, central differences, the corner cases."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from subprocesses import output_of

import fastlstm
from fastlstm import _core
from fastlstm.losses import ctc_loss


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def make_problem(
    n: int, steps: int, classes: int, longest: int, *, spread: float = 1.0, seed: int = 0, n_labels: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """log_probs, targets of the labels 1 .. n_labels (all by default), input_lengths, target_lengths."""
    rng = np.random.default_rng(seed)
    log_probs = log_softmax(rng.normal(size=(n, steps, classes)) * spread)
    targets = rng.integers(1, n_labels + 1 if n_labels else classes, size=(n, longest))
    target_lengths = rng.integers(0, longest + 1, size=n)
    input_lengths = rng.integers(min(2 * longest, steps), steps + 1, size=n)
    target_lengths[0], input_lengths[0] = longest, steps
    return log_probs, targets, input_lengths, target_lengths


def torch_ctc(
    log_probs: np.ndarray, targets: Any, input_lengths: Any, target_lengths: Any, blank: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Losses, and the gradient of their sum with respect to logits that log_softmax makes log_probs of."""
    torch = pytest.importorskip("torch")
    logits = torch.from_numpy(log_probs.astype(np.float64)).requires_grad_()
    given = [torch.from_numpy(np.asarray(a)) for a in (targets, input_lengths, target_lengths)]
    loss = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), *given, blank=blank, reduction="none", zero_infinity=True
    )
    loss.sum().backward()
    return loss.detach().numpy(), logits.grad.numpy()


def real_steps(log_probs: np.ndarray, input_lengths: Any) -> np.ndarray:
    return (np.arange(log_probs.shape[1]) < np.asarray(input_lengths)[:, None])[..., None]


def path_labels(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def enumerated(log_probs: np.ndarray, target: tuple[int, ...], blank: int) -> float:
    """p(target) of one sequence (time, classes) as the sum over all paths."""
    steps, classes = log_probs.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=steps):
        if path_labels(path, blank) == target:
            total += float(np.exp(log_probs[np.arange(steps), list(path)].sum()))
    return total


SHAPES = [
    (5, 12, 4, 3),
    (3, 40, 6, 15),
    (4, 37, 7, 16),  # as many pairs as lanes, and one more
    (2, 70, 9, 31),
    (2, 64, 5, 32),
    (7, 90, 40, 30),
    (2, 400, 11, 120),
]


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_torch(shape: tuple[int, int, int, int], spread: float, repeats: bool) -> None:
    problem = make_problem(*shape, spread=spread, n_labels=2 if repeats else 0)
    log_probs, _, input_lengths, _ = problem
    want, want_gradient = torch_ctc(*problem)
    loss, gradient = ctc_loss(*problem)
    possible = np.isfinite(loss)
    np.testing.assert_array_equal(want[~possible], 0)
    np.testing.assert_allclose(loss[possible], want[possible], rtol=1e-10)
    through_softmax = np.exp(log_probs) + gradient
    expected = np.where(real_steps(log_probs, input_lengths), through_softmax, 0)[possible]
    np.testing.assert_allclose(expected, want_gradient[possible], atol=1e-10, rtol=0)
    loss, gradient = ctc_loss(log_probs + 3.0, *problem[1:], from_logits=True)
    np.testing.assert_allclose(loss[possible], want[possible], rtol=1e-10)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-10, rtol=0)


@pytest.mark.parametrize("spread", [1.0, 20.0, 200.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_stays_near_float64(shape: tuple[int, int, int, int], spread: float) -> None:
    log_probs, *rest = make_problem(*shape, spread=spread)
    narrow = log_probs.astype(np.float32)
    for from_logits in (False, True):
        want, want_gradient = ctc_loss(narrow.astype(np.float64), *rest, from_logits=from_logits)
        loss, gradient = ctc_loss(narrow, *rest, from_logits=from_logits)
        assert gradient.dtype == np.float32 and loss.dtype == np.float64
        np.testing.assert_allclose(loss, want, rtol=3e-7)
        np.testing.assert_allclose(gradient, want_gradient, atol=5e-6, rtol=0)


@pytest.mark.parametrize("blank", [0, 1, 2])
@pytest.mark.parametrize("target_of", [(), (0,), (0, 0), (0, 1), (1, 0, 1), (1, 1, 1)], ids=str)
def test_agrees_with_enumeration(blank: int, target_of: tuple[int, ...]) -> None:
    labels = [c for c in range(3) if c != blank]
    target = tuple(labels[k] for k in target_of)
    log_probs = log_softmax(np.random.default_rng(blank).normal(size=(1, 6, 3)))
    loss, _ = ctc_loss(log_probs, np.array([target], int).reshape(1, -1), [6], [len(target)], blank)
    np.testing.assert_allclose(np.exp(-loss[0]), enumerated(log_probs[0], target, blank), rtol=1e-12)


@pytest.mark.parametrize("from_logits", [False, True])
def test_gradient_is_that_of_central_differences(from_logits: bool) -> None:
    x, *rest = make_problem(3, 9, 4, 4, n_labels=3, seed=3)
    _, gradient = ctc_loss(x, *rest, from_logits=from_logits)
    step, numeric = 1e-5, np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        up, down = (ctc_loss(each, *rest, from_logits=from_logits)[0].sum() for each in moved)
        numeric[index] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, atol=1e-9, rtol=0)


def test_each_real_step_has_posteriors_that_add_up_to_one() -> None:
    log_probs, *rest = make_problem(3, 5000, 20, 900, spread=3.0)
    _, gradient = ctc_loss(log_probs.astype(np.float32), *rest)
    total = -gradient.sum(axis=2, dtype=np.float64)
    np.testing.assert_allclose(total, real_steps(log_probs, rest[1])[..., 0], atol=1e-5)
    assert gradient.max() <= 0


@pytest.mark.parametrize(
    ("longest", "spread"), [(30, 1.0), (1200, 1.0), (2499, 1.0), (1200, 100.0), (30, 1000.0)]
)
def test_float32_is_safe_at_five_thousand_steps(longest: int, spread: float) -> None:
    """Log-likelihoods from -1e4 to -1e7, alignments that a scale factor per step would lose."""
    log_probs, targets, *_ = make_problem(1, 5000, 30, longest, spread=spread)
    narrow, lengths = log_probs.astype(np.float32), ([5000], [longest])
    want, want_gradient = ctc_loss(narrow.astype(np.float64), targets, *lengths)
    loss, gradient = ctc_loss(narrow, targets, *lengths)
    assert np.isfinite(want).all()
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-4, rtol=0)


def test_a_path_that_falls_behind_by_more_than_the_range_of_float32_counts() -> None:
    """Until the last step all but e^-9000 of the probability is on labels that the target does not end in."""
    log_probs = np.full((1, 90, 3), -100.0, np.float32)
    log_probs[:, :, 0] = -1e-6
    loss, gradient = ctc_loss(log_probs, [[1, 2] * 40], [90], [80])
    want, want_gradient = torch_ctc_of_log_probs(log_probs, [[1, 2] * 40], [90], [80])
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-5)


def torch_ctc_of_log_probs(log_probs: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
    """As torch_ctc, for log_probs that need not be normalised and the gradient with respect to them."""
    torch = pytest.importorskip("torch")
    leaf = torch.from_numpy(log_probs.astype(np.float64)).requires_grad_()
    given = [torch.tensor(a) for a in rest]
    loss = torch.nn.functional.ctc_loss(leaf.transpose(0, 1), *given, reduction="none")
    loss.sum().backward()
    return loss.detach().numpy(), leaf.grad.numpy() - np.exp(log_probs.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("from_logits", [False, True])
def test_impossible_targets(dtype: type, from_logits: bool) -> None:
    """Too short by labels, by repetitions, or to hold anything: infinite loss, gradient zero."""
    log_probs = log_softmax(np.random.default_rng(0).normal(size=(4, 3, 4))).astype(dtype)
    targets = np.array([[1, 2, 3, 1], [1, 1, 1, 0], [2, 3, 1, 0], [1, 0, 0, 0]])
    loss, gradient = ctc_loss(log_probs, targets, [3, 3, 3, 0], [4, 3, 3, 1], from_logits=from_logits)
    assert np.isinf(loss).tolist() == [True, True, False, True] and (loss > 0).all()
    np.testing.assert_array_equal(gradient[[0, 1, 3]], 0)
    assert (gradient[2] != 0).any() and np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_probabilities(dtype: type) -> None:
    log_probs = np.full((2, 4, 3), -np.inf, dtype)
    log_probs[0, range(4), [1, 0, 2, 2]] = 0.0  # one certain path
    log_probs[1, :, 0] = 0.0
    loss, gradient = ctc_loss(log_probs, [[1, 2], [1, 2]], [4, 4], [2, 2])
    assert loss.tolist() == [0.0, np.inf]
    np.testing.assert_array_equal(gradient[0], -np.exp(log_probs[0]))
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("from_logits", [False, True])
def test_empty_targets_and_sequences(from_logits: bool) -> None:
    log_probs = log_softmax(np.random.default_rng(0).normal(size=(2, 5, 3)))
    for targets in (np.zeros((2, 0), int), np.array([[1, 2], [1, 2]]), []):
        loss, gradient = ctc_loss(log_probs, targets, [5, 0], [0, 0], from_logits=from_logits)
        np.testing.assert_allclose(loss, [-log_probs[0, :, 0].sum(), 0.0], rtol=1e-12)
        want = np.exp(log_probs[0]) * from_logits - [1, 0, 0]
        np.testing.assert_allclose(gradient[0], want, atol=1e-12)
        np.testing.assert_array_equal(gradient[1], 0)


def test_nan_shows_and_stays_in_its_sequence() -> None:
    for dtype, from_logits in itertools.product((np.float32, np.float64), (False, True)):
        log_probs, targets, _, _ = make_problem(2, 30, 5, 4)
        x = log_probs.astype(dtype)
        x[0, 7, 0] = np.nan
        loss, gradient = ctc_loss(x, targets, [30, 30], [4, 4], from_logits=from_logits)
        assert np.isnan(loss[0]) and np.isnan(gradient[0]).any()
        assert np.isfinite(loss[1]) and np.isfinite(gradient[1]).all()


@pytest.mark.parametrize("from_logits", [False, True])
def test_padding_is_not_read(from_logits: bool) -> None:
    log_probs, targets, _, _ = make_problem(3, 20, 6, 5)
    lengths, target_lengths = np.array([20, 11, 0]), np.array([5, 2, 0])
    want, want_gradient = ctc_loss(log_probs, targets, lengths, target_lengths, from_logits=from_logits)
    spoiled = np.where(real_steps(log_probs, lengths), log_probs, np.nan)
    padded = np.where(np.arange(5) < target_lengths[:, None], targets, -100)
    loss, gradient = ctc_loss(spoiled, padded, lengths, target_lengths, from_logits=from_logits)
    np.testing.assert_array_equal(loss, want)
    np.testing.assert_array_equal(gradient, want_gradient)
    np.testing.assert_array_equal(gradient[1, 11:], 0)


def test_targets_may_come_one_after_another() -> None:
    log_probs, targets, lengths, target_lengths = make_problem(6, 30, 5, 7)
    flat = np.concatenate([row[:count] for row, count in zip(targets, target_lengths, strict=True)])
    want = ctc_loss(log_probs, targets, lengths, target_lengths)
    for got, expected in zip(ctc_loss(log_probs, flat, lengths, target_lengths), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_unusual_inputs_are_converted() -> None:
    log_probs, *rest = make_problem(2, 12, 5, 3)
    want, _ = ctc_loss(log_probs, *rest)
    turned = np.asfortranarray(log_probs)
    np.testing.assert_array_equal(ctc_loss(turned, *rest)[0], want)
    as_int32 = [np.asarray(a, np.int32) for a in rest]
    np.testing.assert_array_equal(ctc_loss(log_probs, *as_int32)[0], want)
    loss, gradient = ctc_loss(log_probs.astype(np.float16), *rest)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(loss, want, rtol=1e-2)
    assert ctc_loss(np.zeros((2, 12, 5), int), *rest)[1].dtype == np.float64


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("from_logits", [False, True])
def test_any_number_of_threads_gives_the_same_bits(dtype: type, from_logits: bool) -> None:
    log_probs, *rest = make_problem(19, 120, 12, 25)
    found = set()
    for n in (1, 2, 3, 7):
        fastlstm.set_num_threads(n)
        loss, gradient = ctc_loss(log_probs.astype(dtype), *rest, from_logits=from_logits)
        found.add(loss.tobytes() + gradient.tobytes())
    assert len(found) == 1


ALONE = """
import numpy as np
from fastlstm.losses import ctc_loss
import test_ctc
problem = test_ctc.make_problem(4, 90, 12, 25, spread=5.0)
want = test_ctc.torch_ctc(*problem)
loss, gradient = ctc_loss(*problem, from_logits=True)
error = max(np.abs(loss - want[0]).max(), np.abs(gradient - want[1]).max())
narrow = ctc_loss(problem[0].astype(np.float32), *problem[1:], from_logits=True)[1]
print(bool(error < 1e-9), bool(np.abs(narrow - want[1]).max() < 1e-5))
"""


@pytest.mark.parametrize("isa", [name for name, here in _core.isa_available().items() if here])
def test_every_instruction_set(isa: str) -> None:
    pytest.importorskip("torch")
    assert output_of(ALONE, FASTLSTM_ISA=isa) == "True True"


GOOD: dict[str, Any] = {
    "log_probs": np.zeros((2, 5, 3)),
    "targets": [[1, 2], [2, 1]],
    "input_lengths": [5, 4],
    "target_lengths": [2, 1],
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"log_probs": np.zeros((5, 3))}, r"log_probs must have the shape \(batch, time, classes\)"),
        ({"log_probs": np.zeros((2, 0, 3))}, "none of them 0"),
        ({"log_probs": np.zeros((2, 5, 3), complex)}, "real numbers"),
        ({"blank": 3}, "blank must be one of the 3 classes"),
        ({"blank": -1}, "blank must be one of the 3 classes"),
        ({"blank": 2}, r"targets\[0, 1\] is 2"),
        ({"targets": [[1, 3], [2, 1]]}, r"targets\[0, 1\] is 3"),
        ({"targets": [[1, 2], [-1, 1]]}, r"targets\[1, 0\] is -1"),
        ({"targets": [[1.0, 2.0], [1.0, 1.0]]}, "whole numbers"),
        ({"targets": [[1, 2]]}, r"targets must have the shape \(2, longest target\)"),
        ({"targets": [1, 2, 2, 1]}, "add up to 3"),
        ({"targets": [1, 0, 2]}, r"targets\[1\] is 0"),
        ({"input_lengths": [5, 6]}, r"input_lengths\[1\] is 6"),
        ({"input_lengths": [-1, 5]}, r"input_lengths\[0\] is -1"),
        ({"input_lengths": [5]}, "input_lengths must be 2 whole numbers"),
        ({"input_lengths": [5.0, 4.0]}, "input_lengths must be 2 whole numbers"),
        ({"target_lengths": [2, 3]}, r"target_lengths\[1\] is 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ctc_loss(**(GOOD | wrong))


def test_the_extension_checks_what_python_did_not() -> None:
    """The C library refuses whatever would make it read or write outside the arrays."""
    x, gradient, loss = np.zeros((1, 3, 2)), np.empty((1, 3, 2)), np.empty(1)
    labels = np.array([1])

    def call(*, length: int = 3, start: int = 0, count: int = 1, blank: int = 0, label: int = 1) -> None:
        labels[0] = label
        numbers = [np.array([value]) for value in (length, start, count)]
        _core.ctc_loss(
            "float64", 1, 3, 2, x, numbers[0], labels, numbers[1], numbers[2], blank, False, loss, gradient
        )

    call()
    assert np.isfinite(loss).all()
    for bad in (
        {"length": 4},
        {"length": -1},
        {"start": 1},
        {"start": -1},
        {"count": 2},
        {"count": -1},
        {"blank": 1},
        {"blank": 2},
        {"label": 2},
        {"label": -1},
    ):
        with pytest.raises(ValueError):
            call(**bad)
