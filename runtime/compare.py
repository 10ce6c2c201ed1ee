"""How far two results are apart: the metrics and the tolerances, in this one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler.program import dtype_name
from ..compiler.reference import Array

TOLERANCES = {
    "float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2, "int8": 5e-2, "int4": 2e-1,
    "pruned": 0.5,
}  # fmt: skip
"""Greatest scaled error by the dtype that was computed in, or weights are kept in; all else must be equal.
``pruned``: parts of weights are gone; no outputs at all are off by 1."""

KL_TOLERANCES = {"int8": 0.05, "int4": 1.0, "pruned": 1.0}
"""Greatest mean KL divergence, nats a position, of a language model with weights of that precision."""


def tolerance_for(dtype: str) -> float:
    """The tolerance of results computed in ``dtype`` (numpy's name); ``fp32`` and ``fp16`` are understood.

    >>> tolerance_for("fp16"), tolerance_for("int64")
    (0.01, 0.0)
    """
    return TOLERANCES.get({"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(dtype, dtype), 0.0)


@dataclass(frozen=True, slots=True)
class Limit:
    """What decides whether outputs are right: the scaled error, or for logits of quantized models KL.

    ``vocabulary``: width of the outputs that are judged as logits by ``mean_kl`` (nats); None: none are.
    """

    scaled: float
    mean_kl: float = 0.0
    vocabulary: int | None = None

    @classmethod
    def of(cls, precision: str, vocabulary: int | None = None, budget: float | None = None) -> Limit:
        """The limit of a precision; ``budget`` replaces its figure, mean KL for quantized language models."""
        if vocabulary is not None and precision in KL_TOLERANCES:
            mean_kl = KL_TOLERANCES[precision] if budget is None else budget
            return cls(tolerance_for(precision), mean_kl, vocabulary)
        return cls(tolerance_for(precision) if budget is None else budget)

    @property
    def figure(self) -> float:
        """The figure that decides."""
        return self.scaled if self.vocabulary is None else self.mean_kl

    def judges_as_logits(self, array: Any) -> bool:
        """Whether ``array`` is a tensor of logits to this limit."""
        return self.vocabulary is not None and np.ndim(array) > 1 and np.shape(array)[-1] == self.vocabulary


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor against its reference.

    ``scaled``: ``max|d| / max(1, max|ref|)``, by which ``ok`` is decided; ``relative``:
    ``|d|₂ / |ref|₂``; ``cosine``: of both as vectors; ``absolute``: ``max|d|``. ``note`` says in words
    what can't be said in numbers: another shape, NaN on one side.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scaled: float
    relative: float
    cosine: float
    absolute: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the scaled error is within the tolerance."""
        return self.scaled <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILS"
        text = f"{self.name}: scaled error {self.scaled:.2e} {verdict} (tolerance {self.tolerance:.0e})"
        return f"{text}: {self.note}" if self.note else text


def difference(name: str, actual: Any, expected: Any, tolerance: float | None = None) -> Difference:
    """Compare ``actual`` with ``expected``. Floats within ``tolerance``, all else exactly.

    ``tolerance``: scaled error; None takes the table's for the coarser float dtype of the two. NaN equals
    NaN and infinities equal themselves in the same place; anywhere else they make the error infinite.
    Lists (ONNX sequences) are compared item by item, and the worst item is returned.
    """
    if isinstance(actual, (list, tuple)) or isinstance(expected, (list, tuple)):
        return _sequence(name, actual, expected, tolerance)
    a, b = np.asarray(actual), np.asarray(expected)
    limit = _tolerance(a, b) if tolerance is None else tolerance
    if a.shape != b.shape:
        return _failure(name, a, limit, f"has shape {list(a.shape)}, the reference {list(b.shape)}")
    if _is_float(a) and _is_float(b):
        return _floats(name, a, b, limit)
    return _exact(name, a, b)


def scaled_error(actual: Any, expected: Any) -> float:
    """``max|d| / max(1, max|ref|)``; infinite if shapes differ or one side alone has NaN or infinities."""
    return difference("", actual, expected).scaled


def _sequence(name: str, actual: Any, expected: Any, tolerance: float | None) -> Difference:
    if not (isinstance(actual, (list, tuple)) and isinstance(expected, (list, tuple))):
        return _failure(name, np.zeros(0), tolerance or 0.0, "is a sequence on one side only")
    if len(actual) != len(expected):
        note = f"has {len(actual)} items, the reference {len(expected)}"
        return _failure(name, np.zeros(0), tolerance or 0.0, note)
    pairs = enumerate(zip(actual, expected, strict=True))
    items = [difference(f"{name}[{index}]", a, b, tolerance) for index, (a, b) in pairs]
    return max(items, key=lambda item: item.scaled, default=_exact(name, np.zeros(0), np.zeros(0)))


def _floats(name: str, a: Array, b: Array, tolerance: float) -> Difference:
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    x, y = a.astype(wide).ravel(), b.astype(wide).ravel()
    same = (x == y) | (np.isnan(x) & np.isnan(y))  # also infinities that agree
    finite = np.isfinite(x) & np.isfinite(y)
    if stray := int(np.count_nonzero(~same & ~finite)):
        note = f"{stray} of {x.size} values are NaN or infinite on one side only"
        return _failure(name, a, tolerance, note)
    x, y = x[finite], y[finite]
    if not x.size:
        return Difference(name, a.dtype.name, a.shape, 0.0, 0.0, 1.0, 0.0, tolerance)
    delta = np.abs(x - y)
    worst, largest = float(delta.max()), float(np.abs(y).max())
    norm_x, norm_y = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    distance = float(np.linalg.norm(delta))
    relative = distance / norm_y if norm_y else (math.inf if distance else 0.0)
    both = norm_x * norm_y
    cosine = (
        float(abs(np.vdot(x, y)) if wide is np.complex128 else np.dot(x, y)) / both
        if both
        else float(not distance)
    )
    return Difference(
        name, a.dtype.name, a.shape, worst / max(1.0, largest), relative, min(cosine, 1.0), worst, tolerance
    )


def _exact(name: str, a: Array, b: Array) -> Difference:
    """Integers, booleans and text: any difference fails; ``scaled`` is the share of values that differ."""
    if "O" in (a.dtype.kind, b.dtype.kind) or "U" in (a.dtype.kind, b.dtype.kind):
        a, b = a.astype(np.str_), b.astype(np.str_)
    wrong = np.asarray(a != b)
    count = int(np.count_nonzero(wrong))
    share = count / max(1, wrong.size)
    absolute = 0.0
    if count and a.dtype.kind in "iub" and b.dtype.kind in "iub":
        absolute = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    note = f"{count} of {wrong.size} values differ" if count else ""
    return Difference(name, a.dtype.name, a.shape, share, share, 1.0 - share, absolute, 0.0, note)


def _failure(name: str, a: Array, tolerance: float, note: str) -> Difference:
    return Difference(name, a.dtype.name, a.shape, math.inf, math.inf, 0.0, math.inf, tolerance, note)


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fc" or array.dtype in _SMALL_FLOATS


def _tolerance(a: Array, b: Array) -> float:
    return max((tolerance_for(array.dtype.name) for array in (a, b) if _is_float(array)), default=0.0)


_SMALL_FLOATS = frozenset(
    d.numpy() for d in ir.DataType if dtype_name(d).startswith(("bfloat", "float8", "float4"))
)


def differences(
    actual: Mapping[str, Any], expected: Mapping[str, Any], limit: Limit | float | None = None
) -> tuple[Difference, ...]:
    """Every tensor of ``expected`` against the one of that name; a missing one fails."""
    return tuple(_judged(name, actual, value, limit) for name, value in expected.items())


def _judged(name: str, actual: Mapping[str, Any], value: Any, limit: Limit | float | None) -> Difference:
    tolerance = limit.scaled if isinstance(limit, Limit) else limit
    if name not in actual:
        return _failure(name, np.asarray(value), tolerance or 0.0, "is missing")
    if isinstance(limit, Limit) and limit.judges_as_logits(value):
        return logits_difference(name, actual[name], value, limit.mean_kl)
    return difference(name, actual[name], value, tolerance)


@dataclass(frozen=True, slots=True)
class LanguageMetrics:
    """Two logit tensors as next-token distributions.

    ``top1``: share of positions with the same most likely token; ``mean_kl``, ``max_kl``:
    KL(reference ‖ actual) per position in nats.
    """

    top1: float
    mean_kl: float
    max_kl: float
    positions: int


def language_metrics(actual: Array, expected: Array) -> LanguageMetrics:
    """Compare logits, float[..., vocabulary]. One position is in float64 at a time.

    Raises: ValueError if the shapes differ.
    """
    if actual.shape != expected.shape or actual.ndim < 1:
        raise ValueError(f"logits of shapes {actual.shape} and {expected.shape} can't be compared")
    a, b = actual.reshape(-1, actual.shape[-1]), expected.reshape(-1, expected.shape[-1])
    kl = np.array([_kl(p, q) for p, q in zip(b, a, strict=True)])
    agree = [int(np.argmax(p)) == int(np.argmax(q)) for p, q in zip(b, a, strict=True)]
    if not len(kl):
        return LanguageMetrics(1.0, 0.0, 0.0, 0)
    return LanguageMetrics(float(np.mean(agree)), float(kl.mean()), float(kl.max()), len(kl))


def _kl(reference: Array, actual: Array) -> float:
    p, q = _log_softmax(reference), _log_softmax(actual)
    return max(0.0, float(np.sum(np.exp(p) * (p - q))))


def _log_softmax(logits: Array) -> Array:
    x = logits.astype(np.float64)
    x = x - x.max()
    return np.asarray(x - np.log(np.sum(np.exp(x))))


def logits_difference(name: str, actual: Array, expected: Array, mean_kl: float) -> Difference:
    """Two logit tensors as a Difference whose ``scaled`` is the mean KL, nats a position."""
    plain = difference(name, actual, expected, mean_kl)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return plain
    found = language_metrics(actual, expected)
    note = f"mean KL {found.mean_kl:.2g} nats, top-1 {found.top1:.3f} over {found.positions} positions"
    return replace(plain, scaled=found.mean_kl, note=note)


def worst(items: Sequence[Difference]) -> Difference | None:
    """The item that exceeds its tolerance most, or is nearest to it."""
    return max(items, key=lambda item: item.scaled / (item.tolerance or 1e-300), default=None)
