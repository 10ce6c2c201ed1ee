"""Rotary embeddings whose cosines are shared by the batch, which ONNX Runtime's standard kernel refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, skip
from ..views import shape_constant

DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""dtypes that have a kernel; others are expanded into standard operators by the runtime, which broadcasts."""


@dataclass(frozen=True)
class LegalizeRotary(RewritePass):
    """Give RotaryEmbedding a form the kernel accepts when cosines or positions have batch 1 or unknown.

    Cosines of batch 1 become a table that com.microsoft RotaryEmbedding reads from position 0; positions
    and cosines of a batch that is not known to be the input's are expanded to it.
    """

    name: ClassVar[str] = "legalize-rotary"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"RotaryEmbedding"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Mend one RotaryEmbedding."""
        x, cos, sin = node.inputs[:3]
        positions = node.inputs[3] if len(node.inputs) > 3 else None
        if node.domain != "" or x is None or cos is None or sin is None or x.dtype not in DTYPES:
            skip()
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        shared = cos if positions is None else positions
        if _batch(shared) is not None and _batch(shared) == _batch(x) != 1:
            skip()
        if positions is not None:
            ids = _expand(at, positions, x)
            at.replace(node.outputs[0], at.op("RotaryEmbedding", x, cos, sin, ids, **attributes))
            return "positions expanded to the batch"
        heads = attributes.get("num_heads") or _heads(x)
        if _batch(cos) == 1 == _batch(sin) and (heads or not attributes.get("rotary_embedding_dim")):
            if heads:
                attributes["num_heads"] = heads
            zero = shape_constant(at, [0])
            tables = [at.op("Squeeze", value, zero) for value in (cos, sin)]
            for value, source in zip(tables, (cos, sin), strict=True):
                value.type, value.shape = source.type, ir.Shape(list(source.shape or ())[1:])
            turned = at.op("RotaryEmbedding", x, zero, *tables, domain="com.microsoft", **attributes)
            at.replace(node.outputs[0], turned)
            return "cosines of batch 1 read as a table from position 0"
        grown = [_expand(at, value, x) for value in (cos, sin)]
        at.replace(node.outputs[0], at.op("RotaryEmbedding", x, *grown, **attributes))
        return "cosines expanded to the batch"


def _batch(value: ir.Value) -> int | str | None:
    """The first dimension: a size, a symbol's name, or None if unknown."""
    if value.shape is None or len(value.shape) == 0:
        return None
    first = value.shape[0]
    return first if isinstance(first, int) else first.value


def _heads(x: ir.Value) -> int | None:
    """Heads of [batch, heads, sequence, size], None where not static."""
    heads = x.shape[1] if x.shape is not None and len(x.shape) == 4 else None
    return heads if isinstance(heads, int) else None


def _expand(at: Rewriter, value: ir.Value, x: ir.Value) -> ir.Value:
    """``value`` [1 or batch, ...] repeated over the batch of ``x``."""
    rest = list(value.shape or ())[1:]
    batch = at.op("Shape", x, start=0, end=1)
    batch.type, batch.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    target = at.op("Concat", batch, shape_constant(at, [1] * len(rest)), axis=0)
    target.type, target.shape = batch.type, ir.Shape([1 + len(rest)])
    grown = at.op("Expand", value, target)
    grown.type, grown.shape = value.type, ir.Shape([*(x.shape or ())[:1], *rest])
    return grown
