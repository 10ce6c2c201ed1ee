"""Padding with zeros in front of a convolution is the convolution's own padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.constants import constant, scalar
from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, rank


@dataclass(frozen=True)
class FoldConvPad(RaisingPass):
    """Fold a zero Pad of spatial dimensions into the Conv that reads it."""

    name: ClassVar[str] = "fold-conv-pad"
    anchors: ClassVar[frozenset[str]] = frozenset({"Conv"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Add the two paddings."""
        region = Region(node)
        pad = region.find(node.inputs[0], "Pad")
        if pad is None or len(pad.inputs) < 2:
            skip()
        x, amounts, *rest = pad.inputs
        value = rest[0] if rest else None
        count = rank(x)
        pads = constant(amounts)
        if pads is None or count is None or len(pads) != 2 * count or (len(rest) > 1 and rest[1] is not None):
            decline("the padding is not constant, or names its axes")
        if pad.attributes.get_string("mode", "constant") != "constant" or (
            value is not None and scalar(value) != 0
        ):
            decline("it does not pad with zeros")
        begin, end = [int(p) for p in pads[:count]], [int(p) for p in pads[count:]]
        if any(begin[:2]) or any(end[:2]) or min(begin + end) < 0:
            decline("it pads batch or channels, or crops")
        if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            decline("the convolution's own padding is automatic")
        spatial = count - 2
        own = list(node.attributes.get_ints("pads", (0,) * 2 * spatial))
        attributes = {name: a.value for name, a in node.attributes.items() if name != "auto_pad"}
        attributes["pads"] = [a + b for a, b in zip(own, begin[2:] + end[2:], strict=True)]
        region.close(node.outputs[0])
        at.replace(node.outputs[0], at.op("Conv", x, *node.inputs[1:], **attributes))
        return f"pads are {attributes['pads']}"
