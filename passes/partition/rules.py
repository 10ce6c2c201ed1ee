"""How units pass operators that passes which remove units don't meet: quantized, fused, batched, computed."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..sparsity.flow import Blocked, Flow, Found, Rule, rank, size
from ..sparsity.flow_layers import RULES as LAYERS
from ..sparsity.flow_moves import across
from .heads import HEADS

X, W, Y = 0, 1, -1

MICROSOFT = "com.microsoft::"


class Misaligned(Blocked):
    """Shares would end within a block of quantized elements."""


def blocks_of(units: Array, block: int, what: str) -> Array:
    """The unit of every ``block`` elements, the last ones perhaps fewer. Raises: Misaligned."""
    padded = np.concatenate([units, units[-1:].repeat(-len(units) % block)]).reshape(-1, block)
    if (padded != padded[:, :1]).any():
        raise Misaligned(f"the share of a rank would end within a block of {block} of {what}")
    return padded[:, 0]


def _nbits(node: ir.Node, flow: Flow) -> Found:
    """MatMulNBits: rows of the stored weight are outputs, columns lie in blocks."""
    x, y = rank(node.inputs[X]), rank(node.outputs[0])
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise Blocked(f"MatMulNBits {node.name} has an order of its own")
    block, count = node.attributes.get_int("block_size", 32), node.attributes.get_int("N", 0)
    bits = node.attributes.get_int("bits", 4)
    if x - 1 in (units := flow.at(node, X)):
        flow.consumers[node] = None
        inner = blocks_of(units[x - 1], block, str(node.name))
        yield W, 1, inner
        yield from _flat_or(node, 2, count, 1, inner)
        if _has(node, 3):
            packs = 1 if node.inputs[3].dtype != ir.DataType.UINT8 else 8 // bits  # type: ignore[union-attr]
            if size(node.inputs[3], 1) != math.ceil(len(inner) / packs):  # type: ignore[arg-type]
                raise Blocked(f"the zero points of {node.name} are flat")
            yield 3, 1, blocks_of(inner, packs, f"zero points of {node.name}")
    if y - 1 in (units := flow.at(node, Y)):
        flow.producers[node] = None
        outer = units[y - 1]
        yield W, 0, outer
        yield from _flat_or(node, 2, count, 0, outer)
        if _has(node, 3):
            yield 3, 0, outer
        if _has(node, 5):
            yield 5, 0, outer
    for slot, other, shift in ((X, Y, y - x), (Y, X, x - y)):
        for axis, units_here in flow.at(node, slot).items():
            if axis != (x if slot == X else y) - 1:
                yield other, axis + shift, units_here


def _has(node: ir.Node, slot: int) -> bool:
    return slot < len(node.inputs) and node.inputs[slot] is not None


def _flat_or(node: ir.Node, slot: int, rows: int, axis: int, units: Array) -> Found:
    """``units`` of scales along ``axis``, which may be stored in one row."""
    value = node.inputs[slot]
    assert value is not None
    if rank(value) == 2:
        yield slot, axis, units
        return
    length = size(value, 0)
    if not isinstance(length, int) or rank(value) != 1:
        raise Blocked(f"the scales of {node.name} have an unknown form")
    yield slot, 0, np.tile(units, rows) if axis else units.repeat(length // rows)


def _integers(node: ir.Node, flow: Flow) -> Found:
    """MatMulIntegerToFloat: its columns are outputs; what it reads was rounded with all its elements."""
    x, y = rank(node.inputs[X]), rank(node.outputs[0])
    if x - 1 in flow.at(node, X):
        raise Blocked(f"MatMulIntegerToFloat {node.name} reads what is rounded by the greatest of them")
    if y - 1 in (units := flow.at(node, Y)):
        flow.producers[node] = None
        for slot in (W, 3, 5, 6):
            value = node.inputs[slot] if _has(node, slot) else None
            if value is not None and rank(value) and size(value, rank(value) - 1) != 1:
                yield slot, rank(value) - 1, units[y - 1]
    for slot, other in ((X, Y), (Y, X)):
        yield from ((other, axis, found) for axis, found in flow.at(node, slot).items() if axis != y - 1)


def _cut_nbits(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    for slot, name, axis in ((X, "K", rank(node.inputs[X]) - 1), (Y, "N", rank(node.outputs[0]) - 1)):
        if axis in (units := flow.at(node, slot)):
            node.attributes[name] = ir.AttrInt64(name, len(flow.keeps(units[axis])))


def _dequantize(node: ir.Node, flow: Flow) -> Found:
    """DequantizeLinear of a weight: scales per block, per channel, or one."""
    block = node.attributes.get_int("block_size", 0)
    along = node.attributes.get_int("axis", 1) % max(rank(node.inputs[X]), 1)
    for slot, other in ((X, Y), (Y, X)):
        for axis, units in flow.at(node, slot).items():
            yield other, axis, units
            for scale in (1, 2):
                value = node.inputs[scale] if _has(node, scale) else None
                if value is None or rank(value) == 0 or (rank(value) == 1 and size(value, 0) == 1):
                    continue
                if rank(value) == 1 and not block:
                    if axis == along:
                        yield scale, 0, units
                elif axis == along and block:
                    yield scale, axis, blocks_of(units, block, str(node.name))
                else:
                    yield scale, axis, units


def _gather_nd(node: ir.Node, flow: Flow) -> Found:
    batch, indices = node.attributes.get_int("batch_dims", 0), node.inputs[1]
    if not batch:
        yield from LAYERS["GatherND"].spread(node, flow)
        return
    picked = size(indices, -1)  # type: ignore[arg-type]
    if not isinstance(picked, int):
        raise Blocked(f"GatherND {node.name} picks from an unknown number of axes")
    behind, moved = batch + picked, rank(indices) - 1 - batch - picked
    for slot, other, edge, shift in ((X, Y, behind, moved), (Y, X, behind + moved, -moved)):
        for axis, units in flow.at(node, slot).items():
            if axis < edge:
                raise Blocked(f"GatherND {node.name} picks from them")
            yield other, axis + shift, units


def _cut_gather_nd(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    rule = LAYERS["GatherND"]
    if not node.attributes.get_int("batch_dims", 0) and rule.cut is not None:
        rule.cut(node, flow, at)


def _reshape(node: ir.Node, flow: Flow) -> Found:
    if constant(node.inputs[1]) is not None:
        yield from LAYERS["Reshape"].spread(node, flow)
        return
    yield from across(node, flow)
    for axis in flow.at(node, Y):
        _part(node, axis)


def _part(node: ir.Node, axis: int) -> tuple[ir.Node, int, int]:
    """The Concat that computes a Reshape's sizes, its input that has that of ``axis``, and where in it."""
    maker = node.inputs[1].producer() if node.inputs[1] is not None else None
    if maker is None or maker.op_type != "Concat" or maker.domain:
        raise Blocked(f"the sizes that Reshape {node.name} makes are computed")
    place = axis
    for slot, value in enumerate(maker.inputs):
        length = None if value is None else size(value, 0)
        if not isinstance(length, int):
            break
        if place < length:
            if constant(value) is None:
                break
            return maker, slot, place
        place -= length
    raise Blocked(f"the size that Reshape {node.name} makes of them is computed")


def _cut_reshape(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    rule = LAYERS["Reshape"]
    if constant(node.inputs[1]) is not None and rule.cut is not None:
        rule.cut(node, flow, at)
        return
    for axis, units in flow.at(node, Y).items():
        maker, slot, place = _part(node, axis)
        sizes = constant(maker.inputs[slot])
        assert sizes is not None
        if sizes[place] <= 0:
            continue
        changed = sizes.copy()
        changed[place] = len(flow.keeps(units))
        parts = list(maker.inputs)
        parts[slot] = at.const(changed, f"{node.outputs[0].name}.size")
        whole = at.op("Concat", *parts, axis=0)
        whole.type, whole.shape = maker.outputs[0].type, maker.outputs[0].shape
        node.replace_input_with(1, whole)


def _scatter(node: ir.Node, flow: Flow) -> Found:
    """ScatterElements: everything has the same axes, the one that is written along is no one's."""
    along = node.attributes.get_int("axis", 0) % rank(node.inputs[X])
    slots = (X, 1, 2, Y)
    for slot in slots:
        for axis, units in flow.at(node, slot).items():
            if axis == along:
                raise Blocked(f"ScatterElements {node.name} writes among them")
            yield from ((other, axis, units) for other in slots if other != slot)


def _fused_matmul(node: ir.Node, flow: Flow) -> Found:
    if any(node.attributes.get_int(n, 0) for n in ("transA", "transB", "transBatchA", "transBatchB")):
        raise Blocked(f"FusedMatMul {node.name} multiplies what is transposed")
    yield from LAYERS["MatMul"].spread(node, flow)


_ALIGNED = LAYERS["Add"]

RULES = {
    **LAYERS,
    **HEADS,
    "DequantizeLinear": Rule(_dequantize),
    "GatherND": Rule(_gather_nd, _cut_gather_nd),
    "Reshape": Rule(_reshape, _cut_reshape),
    "ScatterElements": Rule(_scatter),
    **dict.fromkeys(("And", "Or", "Not", "Round", "Floor", "Ceil", "Sign", "CastLike"), _ALIGNED),
    f"{MICROSOFT}MatMulNBits": Rule(_nbits, _cut_nbits),
    f"{MICROSOFT}MatMulIntegerToFloat": Rule(_integers),
    f"{MICROSOFT}FusedMatMul": Rule(_fused_matmul),
    f"{MICROSOFT}RotaryEmbedding": LAYERS["RotaryEmbedding"],
    **{f"{MICROSOFT}{name}": _ALIGNED for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")},
}
"""By operator, with its domain but for the standard one."""
