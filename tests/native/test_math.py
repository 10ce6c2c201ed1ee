"""Vector math of the native kernels against float64, at every magnitude and at the ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from native.float_cases import Array, Kernels

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


REFERENCES: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * _sigmoid(x),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "gelu": lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
PRODUCTS = ("silu", "quick_gelu", "gelu", "gelu_tanh")
"""x times a factor in 0 .. 1 that is a difference: exact to units of x."""


def inputs() -> Array:
    near = np.linspace(-12, 12, 200_001)
    far = np.concatenate(
        [np.linspace(-100, 100, 50_001), [s * 10.0**e for s in (-1, 1) for e in range(-45, 39)]]
    )
    x = np.concatenate([near, far]).astype(np.float32)
    return np.concatenate([x, np.zeros(-x.size % 16, np.float32)])


@pytest.mark.parametrize("lanes", ["16", "1"])
@pytest.mark.parametrize("name", REFERENCES)
@np.errstate(all="ignore")
def test_is_within_three_units_in_the_last_place(kernels: Kernels, name: str, lanes: str) -> None:
    x = inputs()
    exact = REFERENCES[name](x.astype(np.float64))
    y = kernels.math(name + lanes, x)
    single = exact.astype(np.float32)
    scale = np.maximum(np.abs(single), np.abs(x) if name in PRODUCTS else 0)
    errors = np.abs(y - exact) / np.spacing(scale)
    checked = np.isfinite(single) & (scale > 2.0**-120)
    assert errors[checked].max() < 3
    assert np.array_equal(y[~np.isfinite(single)], single[~np.isfinite(single)], equal_nan=True)
    assert np.abs(y[checked]).max() <= np.abs(single[checked]).max() * (1 + 1e-6)


ENDS = {
    "exp": (np.inf, 0.0),
    "tanh": (1.0, -1.0),
    "erf": (1.0, -1.0),
    "sigmoid": (1.0, 0.0),
    "relu": (np.inf, 0.0),
    "gelu": (np.inf, 0.0),
    "log": (np.inf, np.nan),
}
"""Limits at infinity and its negative."""


@pytest.mark.parametrize("lanes", ["16", "1"])
@pytest.mark.parametrize("name", REFERENCES)
def test_keeps_nan_and_reaches_its_limits(kernels: Kernels, name: str, lanes: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, *[0] * 11], np.float32)
    y = kernels.math(name + lanes, x)
    assert np.isnan(y[0])
    up, down = ENDS.get(name, (np.inf, None))
    assert np.array_equal(y[1], np.float32(up), equal_nan=True)
    if down is not None:
        assert np.array_equal(y[2], np.float32(down), equal_nan=True)
        assert np.isnan(down) or abs(y[4] - down) == 0
    assert name in ("exp", "log") or not np.isnan(y[3:]).any()


@pytest.mark.parametrize("lanes", ["16", "1"])
def test_log_of_zero_and_subnormals(kernels: Kernels, lanes: str) -> None:
    x = np.array([0, 1e-45, 1e-40, 1.17549435e-38, 1, *[2] * 11], np.float32)
    y = kernels.math(f"log{lanes}", x)
    assert y[0] == -np.inf
    assert np.allclose(y[1:], np.log(x[1:].astype(np.float64)), rtol=3e-7, atol=0)


@pytest.mark.parametrize("lanes", ["16", "1"])
@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_functions_are_odd(kernels: Kernels, name: str, lanes: str) -> None:
    x = inputs()
    assert np.array_equal(kernels.math(name + lanes, -x), -kernels.math(name + lanes, x))
