"""Losses against torch, finite differences and their own definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastlstm import losses
from fastlstm.losses import get_loss

REGRESSION = ("squared", "absolute", "huber", "quantile")
NAMES = (*REGRESSION, "softmax_cross_entropy", "sigmoid_cross_entropy", "gaussian_nll")


def make_case(name: str, n: int = 7, d: int = 3, dtype: str = "float64"):
    """A loss with outputs and checked targets that fit it."""
    rng = np.random.default_rng(len(name))
    loss = get_loss(name, **{"huber": {"delta": 0.7}, "quantile": {"q": (0.1, 0.5, 0.8)}}.get(name, {}))
    if name == "softmax_cross_entropy":
        targets, k = rng.integers(0, d, n), d
    elif name == "sigmoid_cross_entropy":
        targets, k = rng.integers(0, 2, (n, d)), d
    else:
        targets, k = rng.standard_normal((n, d)), loss.n_outputs(d)
    outputs = rng.standard_normal((n, k)).astype(dtype)
    return loss, outputs, loss.check_targets(targets, k, dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_derivative_of_the_value(name: str, weighted: bool) -> None:
    loss, outputs, targets = make_case(name)
    weights = np.random.default_rng(1).uniform(0.1, 2.0, len(outputs)) if weighted else None
    _, gradient = loss.value_and_gradient(outputs, targets, weights)
    numeric = np.empty_like(outputs)
    for i in np.ndindex(outputs.shape):
        values = []
        for step in (1e-6, -1e-6):
            moved = outputs.copy()
            moved[i] += step
            values.append(loss.value(moved, targets, weights))
        numeric[i] = (values[0] - values[1]) / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9)


def torch_loss(name: str, outputs, targets):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    if name == "squared":
        return F.mse_loss(outputs, targets)
    if name == "absolute":
        return F.l1_loss(outputs, targets)
    if name == "huber":
        return F.huber_loss(outputs, targets, delta=0.7)
    if name == "softmax_cross_entropy":
        return F.cross_entropy(outputs, targets)
    if name == "sigmoid_cross_entropy":
        return F.binary_cross_entropy_with_logits(outputs, targets)
    if name == "gaussian_nll":
        d = targets.shape[1]
        return F.gaussian_nll_loss(outputs[:, :d], targets, outputs[:, d:].exp(), full=True)
    n, d = targets.shape
    error = targets[:, :, None] - outputs.reshape(n, d, 3)
    q = torch.tensor([0.1, 0.5, 0.8], dtype=outputs.dtype)
    return torch.maximum(q * error, (q - 1) * error).mean()


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 3e-6)])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_torch(name: str, dtype: str, rtol: float) -> None:
    torch = pytest.importorskip("torch")
    loss, outputs, targets = make_case(name, dtype=dtype)
    leaf = torch.from_numpy(outputs.copy()).requires_grad_(True)
    expected = torch_loss(name, leaf, torch.from_numpy(targets.copy()))
    expected.backward()
    value, gradient = loss.value_and_gradient(outputs, targets)
    assert value == pytest.approx(expected.item(), rel=rtol)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_is_an_absent_row(name: str) -> None:
    loss, outputs, targets = make_case(name)
    weights = np.array([1.0, 0.0, 2.0, 0.0, 0.5, 1.0, 1.0])
    kept = weights > 0
    value, gradient = loss.value_and_gradient(outputs, targets, weights)
    expected_value, expected = loss.value_and_gradient(outputs[kept], targets[kept], weights[kept])
    assert value == pytest.approx(expected_value, rel=1e-14)
    np.testing.assert_allclose(gradient[kept], expected, rtol=1e-14)
    assert not gradient[~kept].any()


@pytest.mark.parametrize("name", NAMES)
def test_whole_weights_repeat_rows_and_a_common_factor_cancels(name: str) -> None:
    loss, outputs, targets = make_case(name)
    weights = np.array([1.0, 3.0, 2.0, 1.0, 1.0, 2.0, 1.0])
    repeats = weights.astype(int)
    repeated = loss.value(np.repeat(outputs, repeats, axis=0), np.repeat(targets, repeats, axis=0))
    assert loss.value(outputs, targets, weights) == pytest.approx(repeated, rel=1e-13)
    value, gradient = loss.value_and_gradient(outputs, targets, weights)
    scaled_value, scaled_gradient = loss.value_and_gradient(outputs, targets, 7 * weights)
    assert value == pytest.approx(scaled_value, rel=1e-14)
    np.testing.assert_allclose(gradient, scaled_gradient, rtol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_and_inputs_are_not_written(name: str, weighted: bool) -> None:
    loss, outputs, targets = make_case(name, dtype="float32")
    weights = np.full(len(outputs), 0.5) if weighted else None
    before = outputs.copy(), targets.copy()
    outputs.flags.writeable = targets.flags.writeable = False
    value, gradient = loss.value_and_gradient(outputs, targets, weights)
    assert isinstance(value, float)
    assert gradient.dtype == np.float32
    assert gradient.shape == outputs.shape
    np.testing.assert_array_equal(outputs, before[0])
    np.testing.assert_array_equal(targets, before[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_cross_entropy"])
def test_huge_logits_neither_overflow_nor_lose_the_loss(name: str, dtype: str) -> None:
    outputs = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    targets = np.array([1, 1]) if name.startswith("softmax") else np.array([[0, 1], [0, 1]], dtype)
    value, gradient = get_loss(name).value_and_gradient(outputs, targets)
    assert value == pytest.approx(1e4 if name.startswith("softmax") else 5e3)
    assert np.isfinite(gradient).all()


def test_tiny_variance_is_bounded_and_can_recover() -> None:
    outputs = np.array([[0.0, -500.0]])
    value, gradient = losses.gaussian_nll(outputs, np.array([[1.0]]))
    assert np.isfinite(value)
    assert gradient[0, 1] < 0  # descent makes the variance grow


def test_a_loss_in_float32_is_summed_in_float64() -> None:
    outputs = np.zeros((3_000_000, 1), np.float32)
    outputs[:] = 0.1
    expected = float(np.float32(0.1) ** 2)
    assert losses.squared_loss(outputs, np.zeros_like(outputs))[0] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_makes_an_equal_loss(name: str) -> None:
    loss = make_case(name)[0]
    config = json.loads(json.dumps(loss.get_config()))
    again = get_loss(config.pop("name"), **config)
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert get_loss(loss) is loss
    assert repr(loss).startswith(type(loss).__name__)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'absolute', 'gaussian_nll'"):
        get_loss("logistic")


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("huber", {"delta": 0.0}, "delta must be a positive number"),
        ("huber", {"delta": float("nan")}, "delta must be a positive number"),
        ("quantile", {"q": 1.0}, "between 0 and 1"),
        ("quantile", {"q": ()}, "between 0 and 1"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, parameters: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        get_loss(name, **parameters)


@pytest.mark.parametrize(
    ("name", "targets", "n_outputs", "sentence"),
    [
        ("squared", [[1.0, 2.0]], 3, "one output per target"),
        ("squared", [[[1.0]]], 1, "do not fit"),
        ("squared", [1.0, np.nan], 1, "row 1 is not"),
        ("gaussian_nll", [[1.0, 2.0]], 2, "two outputs"),
        ("quantile", [[1.0]], 2, "1 outputs \\(one per quantile\\)"),
        ("softmax_cross_entropy", [0, 3], 3, r"\[0, 3\)"),
        ("softmax_cross_entropy", [-1, 0], 3, r"\[0, 3\)"),
        ("softmax_cross_entropy", [0.5], 3, "integer class indices"),
        ("sigmoid_cross_entropy", [[0.0, 2.0]], 2, r"\[0, 1\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(name: str, targets, n_outputs: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        get_loss(name).check_targets(targets, n_outputs)


def test_univariate_targets_become_a_column() -> None:
    assert get_loss("squared").check_targets([1, 2, 3], 1).shape == (3, 1)


@pytest.mark.parametrize("weights", [np.zeros(2), None])
def test_nothing_to_average_is_an_error(weights) -> None:
    outputs = np.zeros((2 if weights is not None else 0, 1))
    with pytest.raises(ValueError, match=r"positive number|empty minibatch"):
        losses.squared_loss(outputs, outputs, weights)
