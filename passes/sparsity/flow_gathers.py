"""How units pass Gather and GatherND: picked by constant indices, or whole where others are picked."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from .flow import NONE, Blocked, Flow, Found, Rule, rank, size

X, INDICES, Y = 0, 1, -1


def _picked(node: ir.Node) -> tuple[int, int, Array | None]:
    """The axis that is picked from, how many axes stand for it afterwards, and the indices if constant."""
    indices = node.inputs[INDICES]
    picked = constant(indices)
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) % rank(node.inputs[X]), rank(indices), picked
    if (
        node.attributes.get_int("batch_dims", 0)
        or rank(indices) != 2
        or size(indices or node.outputs[0], 1) != 1
    ):
        raise Blocked(f"GatherND {node.name} picks from several axes")
    return 0, 1, None if picked is None else picked[:, 0]


def _gather(node: ir.Node, flow: Flow) -> Found:
    along, made, picked = _picked(node)
    x = node.inputs[X]
    assert x is not None
    for axis, units in flow.at(node, X).items():
        if axis != along:
            yield Y, axis if axis < along else axis + made - 1, units
        elif picked is None or made > 1:
            raise Blocked(f"{node.op_type} {node.name} picks from them")
        elif made:
            yield Y, axis, units[picked]
        elif units[picked] != NONE:
            raise Blocked(f"{node.op_type} {node.name} picks one of them")
    for axis, units in flow.at(node, Y).items():
        if not along <= axis < along + made:
            yield X, axis if axis < along else axis - made + 1, units
        elif picked is None or made > 1:
            raise Blocked(f"{node.op_type} {node.name} picks them")
        else:
            length = size(x, axis)
            if not isinstance(length, int):
                raise Blocked(f"the size of {x.name} along axis {axis} is not known")
            whole = np.full(length, NONE, np.int32)
            whole[picked] = units
            yield X, axis, whole


def _cut_gather(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    along, made, picked = _picked(node)
    units, x = flow.at(node, X).get(along), node.inputs[X]
    if units is None or picked is None or x is None:
        return
    kept = flow.keeps(units)
    positive = np.where(picked < 0, picked + len(units), picked).reshape(-1)
    places = np.searchsorted(kept, positive[np.isin(positive, kept)]).astype(np.int64)
    shape = (-1, 1) if node.op_type == "GatherND" else (-1,) if made else ()
    node.replace_input_with(INDICES, at.const(places.reshape(shape), f"{node.outputs[0].name}.indices"))


GATHERS = dict.fromkeys(("Gather", "GatherND"), Rule(_gather, _cut_gather))
"""By operator."""
