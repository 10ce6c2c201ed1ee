"""Norms of the native kernels against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miaotui.compiler.dialect.linear import normalized
from native.float_cases import Kernels


@pytest.mark.parametrize("kind", ["rms", "layer"])
@given(columns=st.integers(1, 300), seed=st.integers(0, 99), scaled=st.booleans(), moved=st.booleans())
def test_equals_the_reference_for_any_number_of_columns(
    kernels: Kernels, kind: str, columns: int, seed: int, scaled: bool, moved: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, scale, bias = rng.standard_normal((3, columns)).astype(np.float32)
    x += np.float32(rng.integers(-3, 4))
    wanted = normalized(x, kind, scale if scaled else None, bias if moved else None, 1e-5)
    y = kernels.norm(kind, x, scale if scaled else None, bias if moved else None)
    assert np.abs(y - wanted).max() <= 2e-6 * max(1, np.abs(wanted).max()) * max(1, np.abs(x).max())


@pytest.mark.parametrize("columns", [16, 384, 1027])
def test_layer_norm_survives_a_large_mean(kernels: Kernels, columns: int) -> None:
    x = np.random.default_rng(0).standard_normal(columns).astype(np.float32) + np.float32(1000)
    wanted = normalized(x, "layer", None, None, 1e-5)
    assert np.abs(kernels.norm("layer", x) - wanted).max() < 1e-3


def test_rows_of_zeros_stay_zero(kernels: Kernels) -> None:
    for kind in ("rms", "layer"):
        assert not kernels.norm(kind, np.zeros(37, np.float32)).any()


def test_nan_in_a_row_is_not_hidden(kernels: Kernels) -> None:
    x = np.ones(37, np.float32)
    x[36] = np.nan
    for kind in ("rms", "layer"):
        assert np.isnan(kernels.norm(kind, x)).all()
