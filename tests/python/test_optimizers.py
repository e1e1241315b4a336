"""Optimizers against torch.optim, and clipping."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fastlstm.optimizers import (
    SGD,
    Adam,
    AdamW,
    Nadam,
    Optimizer,
    RMSprop,
    clip_by_global_norm,
    clip_by_value,
    get_optimizer,
    global_norm,
)

N = 1003  # not a multiple of any vector length
STEPS = 25

CASES = [
    ("sgd", {}),
    ("sgd", {"weight_decay": 0.01}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("rmsprop", {}),
    ("rmsprop", {"alpha": 0.9, "eps": 1e-6, "weight_decay": 0.01}),
    ("adam", {}),
    ("adam", {"beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.01}),
    ("adamw", {}),
    ("adamw", {"beta1": 0.5, "weight_decay": 0.2}),
    ("nadam", {}),
    ("nadam", {"momentum_decay": 0.05, "weight_decay": 0.01}),
]
IDS = [f"{kind}-{'-'.join(hyper) or 'plain'}" for kind, hyper in CASES]


def gradients(dtype: str) -> list[np.ndarray]:
    """Gradients of very different sizes, with exact zeros."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-6, 3, N)
    scale[::17] = 0.0
    return [(scale * rng.standard_normal(N)).astype(dtype) for _ in range(STEPS)]


def initial(dtype: str) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(N).astype(dtype)


def torch_optimizer(torch, kind: str, parameter, hyper: dict, learning_rate: float):
    hyper = dict(hyper)
    if "beta1" in hyper or "beta2" in hyper:
        hyper["betas"] = (hyper.pop("beta1", 0.9), hyper.pop("beta2", 0.999))
    cls = {"sgd": "SGD", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW", "nadam": "NAdam"}[kind]
    return getattr(torch.optim, cls)([parameter], lr=learning_rate, foreach=False, **hyper)


@pytest.fixture
def torch_double():
    """torch with float64 as its default: its Nadam keeps the product of the momenta in that dtype."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("float64", 1e-12, 1e-14), ("float32", 2e-5, 2e-6)])
@pytest.mark.parametrize(("kind", "hyper"), CASES, ids=IDS)
def test_steps_are_those_of_torch(
    torch_double, kind: str, hyper: dict, dtype: str, rtol: float, atol: float
) -> None:
    torch = torch_double
    params = initial(dtype)
    reference = torch.from_numpy(params.copy()).requires_grad_(True)
    theirs = torch_optimizer(torch, kind, reference, hyper, 0.01)
    ours = get_optimizer(kind, **hyper)
    for i, gradient in enumerate(gradients(dtype)):
        learning_rate = 0.01 / (1 + i)
        theirs.param_groups[0]["lr"] = learning_rate
        reference.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        ours.step(params, gradient, learning_rate)
    np.testing.assert_allclose(params, reference.detach().numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("kind", "hyper"), CASES, ids=IDS)
def test_gradients_are_only_read_and_the_scale_multiplies_them(kind: str, hyper: dict) -> None:
    one, two = get_optimizer(kind, **hyper), get_optimizer(kind, **hyper)
    a, b = initial("float64"), initial("float64")
    for gradient in gradients("float64")[:5]:
        before = gradient.copy()
        one.step(a, gradient, 0.01, scale=0.25)
        two.step(b, 0.25 * gradient, 0.01)
        np.testing.assert_array_equal(gradient, before)
    np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize(("kind", "hyper"), CASES, ids=IDS)
def test_the_state_continues_bit_for_bit(kind: str, hyper: dict) -> None:
    steps = gradients("float32")
    whole, first = get_optimizer(kind, **hyper), get_optimizer(kind, **hyper)
    a, b = initial("float32"), initial("float32")
    for gradient in steps:
        whole.step(a, gradient, 0.01)
    for gradient in steps[:10]:
        first.step(b, gradient, 0.01)
    state = first.state_dict()
    scalars = json.loads(json.dumps({key: value for key, value in state.items() if key != "slots"}))
    second = get_optimizer(kind, **hyper)
    second.load_state_dict({**scalars, "slots": [slot.copy() for slot in state["slots"]]})
    for gradient in steps[10:]:
        second.step(b, gradient, 0.01)
    np.testing.assert_array_equal(a, b)


def test_reset_forgets() -> None:
    optimizer = Nadam()
    gradient = gradients("float64")[0]
    a = initial("float64")
    optimizer.step(a, gradient, 0.1)
    optimizer.reset()
    assert optimizer.n_steps == 0
    b, c = initial("float64"), initial("float64")
    optimizer.step(b, gradient, 0.1)
    Nadam().step(c, gradient, 0.1)
    np.testing.assert_array_equal(b, c)


@pytest.mark.parametrize("cls", [SGD, RMSprop, Adam, AdamW, Nadam])
def test_configuration_makes_an_equal_optimizer(cls: type[Optimizer]) -> None:
    optimizer = cls(weight_decay=0.5)
    config = json.loads(json.dumps(optimizer.get_config()))
    again = get_optimizer(config.pop("kind"), **config)
    assert type(again) is cls
    assert again.get_config() == optimizer.get_config()
    assert repr(again) == repr(optimizer)
    assert get_optimizer(optimizer) is optimizer


@pytest.mark.parametrize(
    ("kind", "hyper", "error", "sentence"),
    [
        ("sgd", {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ("sgd", {"nesterov": True}, ValueError, "momentum above 0"),
        ("adam", {"beta1": -0.1}, ValueError, r"beta1 must be in \[0, 1\)"),
        ("adam", {"eps": float("inf")}, ValueError, "eps must be at least 0 and finite"),
        ("rmsprop", {"weight_decay": "a"}, TypeError, "weight_decay must be a number"),
        ("adagrad", {}, ValueError, "'adam', 'adamw'"),
    ],
)
def test_wrong_hyperparameters_are_refused(kind: str, hyper: dict, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        get_optimizer(kind, **hyper)


def test_state_of_another_optimizer_is_refused() -> None:
    adam = Adam()
    adam.step(initial("float32"), gradients("float32")[0], 0.1)
    with pytest.raises(ValueError, match="1 state arrays; the state holds 2"):
        RMSprop().load_state_dict(adam.state_dict())


def test_another_arena_is_refused() -> None:
    adam = Adam()
    adam.step(np.zeros(8), np.ones(8), 0.1)
    with pytest.raises(ValueError, match=r"\b8\b|\b9\b"):
        adam.step(np.zeros(9), np.ones(9), 0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_global_norm(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal(100_003).astype(dtype)
    exact = math.sqrt(math.fsum(float(value) ** 2 for value in x))
    assert global_norm(x) == pytest.approx(exact, rel=1e-7 if dtype == "float32" else 1e-13)
    assert global_norm(np.full(4, 1e30, dtype)) == pytest.approx(2e30, rel=1e-6)
    assert not math.isfinite(global_norm(np.array([1.0, np.nan], dtype)))
    assert not math.isfinite(global_norm(np.array([1.0, np.inf], dtype)))


def test_clipping_by_norm_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    gradient = np.random.default_rng(0).standard_normal(50)
    leaf = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    leaf.grad = torch.from_numpy(gradient.copy())
    expected = float(torch.nn.utils.clip_grad_norm_([leaf], 2.0))
    assert clip_by_global_norm(gradient, 2.0) == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-6)  # torch adds 1e-6 to the norm
    assert global_norm(gradient) == pytest.approx(2.0, rel=1e-13)


def test_short_and_broken_gradients_are_not_scaled() -> None:
    short = np.array([0.3, -0.4])
    assert clip_by_global_norm(short, 1.0) == pytest.approx(0.5)
    np.testing.assert_array_equal(short, [0.3, -0.4])
    broken = np.array([np.inf, 1.0])
    assert not math.isfinite(clip_by_global_norm(broken, 1.0))
    np.testing.assert_array_equal(broken, [np.inf, 1.0])


def test_clipping_by_value() -> None:
    gradient = np.array([-3.0, -0.5, 0.0, 2.0, np.nan])
    clip_by_value(gradient, 1.0)
    np.testing.assert_array_equal(gradient, [-1.0, -0.5, 0.0, 1.0, np.nan])


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_largest_norm_is_above_zero(max_norm: float) -> None:
    gradient = np.ones(3)
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        clip_by_global_norm(gradient, max_norm)
    assert (gradient == 1.0).all()
