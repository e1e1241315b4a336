"""Activations: distance to the exact value in units in the last place, over the whole range.

The oracle is numpy's long double (64-bit mantissa on x86-64) for float64 and float64 for float32.
Results below the smallest normal number may be flushed to zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fastlstm import _core

NAMES = ("sigmoid", "tanh")
MAX_ULP = 3.0
WIDER = {"float32": np.float64, "float64": np.longdouble}
HAS_LONG_DOUBLE = np.finfo(np.longdouble).nmant >= 63


def apply(name: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, 7.0)
    _core.apply_activation(name, x, out)
    return out


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The function in the next wider type; exp(-|x|) keeps every step in range."""
    wide = x.astype(WIDER[x.dtype.name])
    with np.errstate(under="ignore"):
        if name == "tanh":
            return np.tanh(wide)
        small = np.exp(-np.abs(wide))
        return np.where(wide >= 0, 1.0, small) / (1.0 + small)


def ulp_error(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| over the spacing of `got.dtype` at `want`, no finer than at the smallest normal."""
    info = np.finfo(got.dtype)
    _, exponent = np.frexp(np.maximum(np.abs(want), want.dtype.type(info.tiny)))
    unit = np.ldexp(want.dtype.type(1.0), exponent - 1 - info.nmant)
    gap = np.abs(got.astype(want.dtype) - want)
    flushed = (got == 0) & (np.abs(want) < info.tiny)
    return np.where(flushed, 0.0, gap / unit).astype(np.float64)


def worst(name: str, x: np.ndarray) -> tuple[float, float]:
    """The largest error in ulp over the numbers of `x`, and where it is."""
    errors = ulp_error(apply(name, x), exact(name, x))
    k = int(np.argmax(errors))
    return float(errors[k]), float(x[k])


def float32_of_bits(bits: np.ndarray) -> np.ndarray:
    x = bits.astype(np.uint32).view(np.float32)
    return x[~np.isnan(x)]


def samples(dtype: str) -> Iterator[np.ndarray]:
    """About two million numbers: all exponents, the range where the value moves, and the edges."""
    if dtype == "float32":
        yield float32_of_bits(np.arange(0, 2**32, 4099, dtype=np.uint64))
    else:
        bits = np.random.default_rng(0).integers(0, 2**64, 300_000, dtype=np.uint64).view(np.float64)
        yield bits[~np.isnan(bits)]
    for reach in (1e-3, 0.1, 0.7, 2.0, 10.0, 25.0, 110.0, 760.0):
        yield np.linspace(-reach, reach, 60_001).astype(dtype)
    edges = np.array(
        [0.0, np.log(2) / 2, np.log(2), 0.625, 1.0, 8.0, 9.01, 19.0, 87.3, 88.7, 104.0, 709.0, 745.0]
    )
    steps = np.arange(-300, 301) * np.finfo(dtype).eps
    near = (edges[:, None] * (1 + steps)).ravel()
    yield np.concatenate([near, -near]).astype(dtype)


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_sampled_numbers_are_within_the_bound(name: str, dtype: str) -> None:
    if dtype == "float64" and not HAS_LONG_DOUBLE:
        pytest.skip("this machine's long double is no wider than double")
    error, where = max(worst(name, x) for x in samples(dtype))
    assert error <= MAX_ULP, f"{name}({where!r}) is {error} ulp off"


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_float32_is_within_the_bound(name: str) -> None:
    chunk = 1 << 23
    for start in range(0, 2**32, chunk):
        x = float32_of_bits(np.arange(start, start + chunk, dtype=np.uint64))
        if x.size:
            error, where = worst(name, x)
            assert error <= MAX_ULP, f"{name}({where!r}) is {error} ulp off"


@pytest.mark.parametrize("dtype", WIDER)
def test_special_values(dtype: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).min], dtype)
    np.testing.assert_array_equal(apply("tanh", x), np.array([0, 0, 1, -1, 1, -1], dtype))
    np.testing.assert_array_equal(apply("sigmoid", x), np.array([0.5, 0.5, 1, 0, 1, 0], dtype))


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_nan_propagates_from_every_position(name: str, dtype: str) -> None:
    for k in range(37):
        x = np.ones(37, dtype)
        x[k] = np.nan
        np.testing.assert_array_equal(np.isnan(apply(name, x)), np.isnan(x))
    if dtype == "float32":
        payloads = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32)
        assert np.isnan(apply(name, payloads.view(np.float32))).all()


@pytest.mark.parametrize("dtype", WIDER)
def test_results_stay_in_their_range(dtype: str) -> None:
    x = np.concatenate(list(samples(dtype)))
    assert np.abs(apply("tanh", x)).max() <= 1.0
    gate = apply("sigmoid", x)
    assert gate.min() >= 0.0
    assert gate.max() <= 1.0


@pytest.mark.parametrize("dtype", WIDER)
@pytest.mark.parametrize("name", NAMES)
def test_a_number_gets_the_same_bits_wherever_it_stands(name: str, dtype: str) -> None:
    """Vector body and tail are one function; nothing beyond the end is written."""
    x = np.random.default_rng(0).normal(0, 3, 67).astype(dtype)
    whole = apply(name, x)
    for n in range(68):
        for start in (0, min(1, 67 - n), 67 - n):
            room = np.full(n + 2, 5.0, dtype)
            _core.apply_activation(name, np.ascontiguousarray(x[start : start + n]), room[1 : n + 1])
            np.testing.assert_array_equal(room[1 : n + 1], whole[start : start + n])
            assert room[0] == room[-1] == 5.0


def test_bad_arguments() -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="softplus"):
        _core.apply_activation("softplus", x, x.copy())
    with pytest.raises((ValueError, TypeError)):
        _core.apply_activation("tanh", x, np.ones(2, np.float32))
    with pytest.raises((ValueError, TypeError)):
        _core.apply_activation("tanh", x, np.ones(3, np.float64))
