"""Look-ups of rows that lie behind each other, as slices, which are views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant, is_constant
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from ..views import shape_constant


@dataclass(frozen=True)
class NativeRows(RewritePass):
    """Write Gather and GatherND by constant indices that follow each other as Slice, which copies nothing."""

    name: ClassVar[str] = "native-rows"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"Gather", "GatherND"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Swap one look-up."""
        data, indices = node.inputs[:2]
        places = constant(indices)
        if node.domain != "" or data is None or places is None or is_constant(data) or data.shape is None:
            skip()
        axis = node.attributes.get_int("axis", 0) if node.op_type == "Gather" else 0
        single = node.op_type == "Gather" and places.ndim == 0
        if node.op_type == "GatherND" and (
            node.attributes.get_int("batch_dims", 0) != 0 or places.ndim != 2 or places.shape[1] != 1
        ):
            decline("it looks up more than one index each")
        if node.op_type == "Gather" and places.ndim > 1:
            decline("its indices have more than one axis")
        axis %= len(data.shape)
        size, order = data.shape[axis], places.ravel()
        if not isinstance(size, int) or order.size == 0:
            decline("the size of the axis is not static")
        order = np.where(order < 0, order + size, order)
        first, last = int(order[0]), int(order[-1]) + 1
        if not np.array_equal(order, np.arange(first, last)):
            decline("its indices do not follow each other")
        bounds = [shape_constant(at, [n]) for n in (first, last, axis)]
        rows = at.op("Slice", data, *bounds)
        rows.type, dims = data.type, list(data.shape)
        rows.shape = ir.Shape([*dims[:axis], last - first, *dims[axis + 1 :]])
        at.replace(node.outputs[0], at.op("Squeeze", rows, bounds[2]) if single else rows)
        return f"rows {first} to {last - 1} of {size}"
