"""The metrics: what they are by definition, and that nothing wrong can pass."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from miaotui.runtime.compare import (
    TOLERANCES,
    Limit,
    difference,
    differences,
    language_metrics,
    scaled_error,
    tolerance_for,
    worst,
)

NAN, INF = float("nan"), float("inf")


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_metrics_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    b = rng.standard_normal((4, 5))
    a = b + 1e-3 * rng.standard_normal((4, 5))
    found = difference("y", a, b, 1.0)
    assert found.absolute == pytest.approx(np.max(np.abs(a - b)))
    assert found.scaled == pytest.approx(np.max(np.abs(a - b)) / max(1, np.max(np.abs(b))))
    assert found.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))
    assert found.cosine == pytest.approx(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.shape == (4, 5) and found.dtype == "float64"


def test_scaled_error_of_small_values_is_absolute_and_of_large_ones_relative() -> None:
    assert scaled_error(f32(0.002), f32(0.001)) == pytest.approx(0.001)
    assert scaled_error(f32(1010), f32(1000)) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("a", "b", "ok"),
    [
        (f32(1, NAN), f32(1, NAN), True),
        (f32(INF, -INF), f32(INF, -INF), True),
        (f32(1, NAN), f32(1, 2), False),
        (f32(1, 2), f32(1, NAN), False),
        (f32(INF), f32(-INF), False),
        (f32(INF), f32(NAN), False),
        (f32(INF), f32(3e38), False),
        (f32(NAN, NAN), f32(NAN, NAN), True),
        (f32(), f32(), True),
        (f32(1, 2), f32(1), False),
        (f32(1, 2).reshape(1, 2), f32(1, 2), False),
        (f32(-0.0), f32(0.0), True),
        (np.array([3, 4]), np.array([3, 4]), True),
        (np.array([3, 4]), np.array([3, 5]), False),
        (np.array([True]), np.array([False]), False),
        (np.array(["a"], object), np.array(["a"]), True),
        (np.array(["a"], object), np.array(["b"], object), False),
        (np.array([1], np.uint8), np.array([257]), False),
        (f32(1), np.array([1]), True),
        (np.array([1 + 2j]), np.array([1 + 2j]), True),
        (np.array([1 + 2j]), np.array([1 - 2j]), False),
    ],
)
def test_verdict(a: np.ndarray, b: np.ndarray, ok: bool) -> None:
    found = difference("y", a, b)
    assert found.ok is ok
    assert ok or found.scaled > 0
    assert ("FAILS" in str(found)) is not ok


def test_one_unit_beyond_the_tolerance_fails() -> None:
    one = f32(1)
    assert difference("y", one + np.float32(0.9e-4), one).ok
    assert not difference("y", one + np.float32(1.1e-4), one).ok


def test_the_coarser_dtype_sets_the_tolerance() -> None:
    b = np.ones(3, np.float32)
    assert difference("y", b.astype(np.float16), b).tolerance == TOLERANCES["float16"]
    assert difference("y", b.astype(ml_dtypes.bfloat16), b).tolerance == TOLERANCES["bfloat16"]
    assert difference("y", np.array([1]), np.array([1]), 0.5).tolerance == 0.0, "integers have none"


def test_no_tolerance_is_so_wide_that_it_can_not_fail() -> None:
    assert all(0 < limit <= (0.5 if kind == "pruned" else 0.2) for kind, limit in TOLERANCES.items())
    nothing = differences({"y": f32(0, 0)}, {"y": f32(3, -1)}, Limit.of("pruned"))
    assert not nothing[0].ok, "parts of weights may be gone, not all outputs"
    assert tolerance_for("fp32") == 1e-4 and tolerance_for("int64") == 0.0


def test_a_missing_output_fails_and_a_surplus_one_does_not_matter() -> None:
    rows = differences({"y": f32(1), "tap": f32(2)}, {"y": f32(1), "z": f32(1)})
    assert [row.name for row in rows] == ["y", "z"]
    assert rows[0].ok and not rows[1].ok and "missing" in rows[1].note


def test_sequences_are_compared_item_by_item() -> None:
    assert difference("s", [f32(1), f32(2)], [f32(1), f32(2)]).ok
    found = difference("s", [f32(1), f32(3)], [f32(1), f32(2)])
    assert not found.ok and found.name == "s[1]"
    assert not difference("s", [f32(1)], [f32(1), f32(2)]).ok
    assert not difference("s", [f32(1)], f32(1)).ok
    assert difference("s", [], []).ok


def test_worst_is_relative_to_the_tolerance() -> None:
    rows = [difference("a", f32(1.005), f32(1), 1e-2), difference("b", f32(1.0005), f32(1), 1e-4)]
    assert worst(rows) is rows[1]
    assert worst([]) is None


def test_language_metrics_equal_scipy_like_definitions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 4, 50)).astype(np.float32) * 3

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x.astype(np.float64))
        return np.asarray(e / e.sum(-1, keepdims=True))

    p, q = softmax(b), softmax(a)
    kl = (p * np.log(p / q)).sum(-1)
    found = language_metrics(a, b)
    assert found.positions == 12
    assert found.mean_kl == pytest.approx(kl.mean()) and found.max_kl == pytest.approx(kl.max())
    assert found.top1 == pytest.approx(np.mean(a.argmax(-1) == b.argmax(-1)))
    same = language_metrics(a, a)
    assert (same.top1, same.mean_kl, same.max_kl) == (1.0, 0.0, 0.0)


def test_language_metrics_survive_large_logits_and_refuse_other_shapes() -> None:
    big = np.array([[1e4, -1e4, 0.0]])
    assert math.isfinite(language_metrics(big, big + 5).max_kl)
    with pytest.raises(ValueError, match="shapes"):
        language_metrics(big, big[:, :2])
