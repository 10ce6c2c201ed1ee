"""What an attention mask is, found by evaluating its rows: causal, causal with a window, or a bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.reference import Array
from ..base import NoMatch, decline
from .evaluation import FAILURES, LARGEST, SMALL, Cut, Probe, SizedEvaluator, equal, small_sizes

LOWEST = -1e4
"""Exporters fill masked scores with this or less: after Softmax nothing is left of them."""

Sample: TypeAlias = "tuple[Array, int, Array]"
"""Positions of queries, number of keys, and the mask between them."""


@dataclass(frozen=True, slots=True)
class Mask:
    """``window``: keys a query sees, itself included; 0 is all before it. ``bias``: what is added, if any."""

    window: int = 0
    bias: ir.Value | None = None


class Judge:
    """Judges masks of square attention: ``probe`` evaluates their rows, ``limit`` is the longest sequence."""

    __slots__ = ("evaluator", "limit", "probe")

    def __init__(self, evaluator: SizedEvaluator, probe: Probe, limit: int | None) -> None:
        self.evaluator, self.probe, self.limit = evaluator, probe, limit

    def judge(self, mask: ir.Value, rows: Callable[[ir.Value], ir.Value], causal: bool) -> Mask:
        """What ``mask`` does; ``rows`` writes a value's; ``causal``: the attention is causal besides.

        Raises: NoMatch if a query sees what comes after it, or if the mask can't be evaluated.
        """
        cut = self.probe.cut(rows(mask))
        samples = [
            (np.arange(size), size, self._checked(mask, cut, size)) for size in small_sizes(self.limit)
        ]
        for size, places in self._large(cut):
            found = self.probe.run(cut, places, size)
            if found is not None:
                samples.append((places, size, found))
        window = _window(samples, causal)
        if window is None:
            return Mask(0, mask)
        if all(_visible_zero(*sample) for sample in samples):
            return Mask(window)
        return Mask(window, self._stripped(mask, rows, samples, window))

    def _stripped(
        self, mask: ir.Value, rows: Callable[[ir.Value], ir.Value], samples: list[Sample], window: int
    ) -> ir.Value:
        """The part of a sum or choice that is all of ``mask`` where a query sees."""
        node = mask.producer()
        if node is None or node.domain != "" or node.op_type not in ("Add", "Where", "Expand"):
            return mask
        for part in (
            node.inputs[1:] if node.op_type == "Where" else node.inputs[: 1 + (node.op_type == "Add")]
        ):
            if part is None or part.dtype != mask.dtype or part not in self.evaluator.values.sized:
                continue
            try:
                cut = self.probe.cut(rows(part))
            except NoMatch:
                continue
            if all(self._same(cut, sample, window) for sample in samples):
                return self._stripped(part, rows, samples, window)
        return mask

    def _same(self, part: Cut, sample: Sample, window: int) -> bool:
        places, total, mask = sample
        found = self.probe.run(part, places, total)
        if found is None:
            return False
        seen = _seen(places, total, window)
        try:
            a, b = np.broadcast_arrays(found, np.broadcast_to(mask, (*mask.shape[:-2], *seen.shape)))
        except ValueError:
            return False
        return equal(a[..., seen], b[..., seen])

    def _checked(self, mask: ir.Value, rows: Cut, size: int) -> Array:
        try:
            whole, twice = (self.evaluator.at(mask, batch, size) for batch in (1, 2))
        except FAILURES as error:
            decline(f"the mask can't be evaluated at length {size} ({type(error).__name__})")
        if not equal(whole, twice):
            decline("the mask differs between the rows of a batch")
        found = self.probe.run(rows, np.arange(size), size)
        if found is None or not equal(whole, found):
            decline(f"the rows of the mask are not what they are in the whole sequence of {size}")
        return found

    def _large(self, rows: Cut) -> list[tuple[int, Array]]:
        found = []
        for number in sorted(rows.integers()):
            size = 2 * number + 3
            if number <= max(SMALL) // 2 or (self.limit is not None and number > self.limit):
                continue
            if size > LARGEST:
                decline(f"the mask uses the number {number}, which is too long to evaluate at")
            around = {0, 1, number - 1, number, number + 1, number + 2, size // 2, size - 2, size - 1}
            places = sorted(p for p in around if self.limit is None or p < self.limit)
            total = size if self.limit is None else min(size, self.limit)
            found.append((total, np.array([p for p in places if p < total], np.int64)))
        return found


def allowed(mask: Array) -> Array:
    """Which keys each query may see."""
    return mask if mask.dtype == np.bool_ else np.asarray(mask > LOWEST)


def _seen(places: Array, total: int, window: int) -> Array:
    """Keys a causal query sees with a window."""
    keys = np.arange(total)
    past = keys <= places[:, None]
    return past & (keys > places[:, None] - window) if window else past


def _window(samples: list[Sample], causal: bool) -> int | None:
    """Keys a query sees (0: all before it), None if it is another set. Raises: NoMatch if not causal."""
    squares = []
    widest, bounded = 0, False
    for places, total, mask in samples:
        past = _seen(places, total, 0)
        square = np.broadcast_to(allowed(mask), (*mask.shape[:-2], *past.shape))
        if not causal and (square & ~past).any():
            row = int(places[np.argwhere(square & ~past)[0][-2]])
            decline(f"the query at {row} sees keys that come after it: the model is no causal decoder")
        square = square & past
        counts = square.sum(-1)
        widest = max(widest, int(counts.max(initial=0)))
        bounded |= bool((counts < places + 1).any())
        squares.append(square)
    window = widest if bounded else 0
    right = all(
        (square == _seen(places, total, window)).all()
        for square, (places, total, _) in zip(squares, samples, strict=True)
    )
    return window if right else None


def _visible_zero(places: Array, total: int, mask: Array) -> bool:
    if mask.dtype == np.bool_:
        return True
    return bool((mask[allowed(mask)] == 0).all())
