"""Attention masks: what of them the kernel does by itself, and the rest as floats added to the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Dim, DimRange
from ...base import NoMatch, decline
from ..mask_graph import mask_graph
from ..masks import Kind, kind_of
from ..views import same_dims, shape_constant


@dataclass(slots=True)
class Masks:
    """The masks of a program, each judged once, and what was left of them, built once."""

    dims: dict[str, DimRange]
    judged: dict[tuple[ir.Value, Dim, bool], Kind | None] = field(default_factory=dict)
    built: dict[tuple[ir.Value, ...], ir.Value] = field(default_factory=dict)

    def judge(self, mask: ir.Value, length: Dim, causal: bool) -> tuple[list[ir.Value], Kind]:
        """The conjuncts of ``mask`` that say more than which keys are near, and what the others say together.

        ``length``: of queries and keys, None if they are not known to be equally many. ``causal``: the
        attention masks causally by itself.
        """
        rest, kind = _conjuncts(mask), Kind(causal)
        if length is None:
            return rest, kind
        for _ in range(2):  # what is causal says that it does not matter what others say of keys ahead
            left = []
            for part in rest:
                found = self._kind(part, length, kind.causal)
                if found is None:
                    left.append(part)
                    continue
                window = min(filter(None, (kind.window, found.window)), default=0)
                kind = Kind(kind.causal or found.causal, window)
            rest = left
        return rest, kind

    def _kind(self, mask: ir.Value, length: int | str, causal: bool) -> Kind | None:
        case = mask, length, causal
        if case not in self.judged:
            try:
                self.judged[case] = kind_of(mask_graph(mask), length, self.dims, causal, windows=True)
            except NoMatch:
                self.judged[case] = None
        return self.judged[case]

    def added(self, mask: ir.Value, parts: Sequence[ir.Value], at: Rewriter) -> ir.Value:
        """The conjuncts left of ``mask``, with four axes, of floats: 0 where they are true, else -infinity.

        What was made for an earlier layer is used again; what was repeated stays broadcast.
        """
        key = tuple(parts)
        if key not in self.built:
            whole = mask if set(parts) == set(_conjuncts(mask)) and len(parts) > 1 else _all(parts, at)
            self.built[key] = _with_four_axes(_floats(whole, at), at)
        return self.built[key]


def require_readable(mask: ir.Value, keys: int | ir.SymbolicDim) -> None:
    """Require a mask that the kernel can add. Raises: NoMatch."""
    if mask.shape is None or not 1 <= len(mask.shape) <= 4:
        decline("its mask has an unknown rank")
    if mask.dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT):
        decline(f"its mask is of {mask.dtype}")
    if not same_dims([mask.shape[-1]], [keys]):  # a shorter one hides the keys behind it
        decline(f"its mask is not known to cover all keys ({mask.shape[-1]} of {keys})")


def _conjuncts(mask: ir.Value) -> list[ir.Value]:
    mask = _narrow(mask)
    node = mask.producer()
    if node is None or (node.domain, node.op_type) != ("", "And") or None in node.inputs:
        return [mask]
    return [part for value in node.inputs if value is not None for part in _conjuncts(value)]


def _narrow(mask: ir.Value) -> ir.Value:
    """``mask`` before it was repeated along axes, if it had as many."""
    node = mask.producer()
    source = node.inputs[0] if node is not None and (node.domain, node.op_type) == ("", "Expand") else None
    if source is None or source.shape is None or mask.shape is None or len(source.shape) != len(mask.shape):
        return mask
    pairs = zip(source.shape, mask.shape, strict=True)
    return source if all(a == 1 or same_dims([a], [b]) for a, b in pairs) else mask


def _all(parts: Sequence[ir.Value], at: Rewriter) -> ir.Value:
    first, *others = parts
    for other in others:
        both = at.op("And", first, other)
        both.type, both.shape = first.type, _broadcast(first.shape, other.shape)
        first = both
    return first


def _broadcast(a: ir.Shape | None, b: ir.Shape | None) -> ir.Shape | None:
    if a is None or b is None:
        return None
    count = max(len(a), len(b))
    pairs = zip(*([*[1] * (count - len(shape)), *shape] for shape in (a, b)), strict=True)
    return ir.Shape([y if x == 1 else x for x, y in pairs])


def _floats(mask: ir.Value, at: Rewriter) -> ir.Value:
    if mask.dtype != ir.DataType.BOOL:
        return mask
    shown, hidden = (at.const(np.array(v, np.float32), n) for v, n in ((0, "shown"), (-np.inf, "hidden")))
    made = at.op("Where", mask, shown, hidden)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), mask.shape
    return made


def _with_four_axes(mask: ir.Value, at: Rewriter) -> ir.Value:
    missing = 4 - len(mask.shape or ())
    if not missing:
        return mask
    made = at.op("Unsqueeze", mask, shape_constant(at, list(range(missing))))
    made.type, made.shape = mask.type, ir.Shape([*[1] * missing, *(mask.shape or ())])
    return made
