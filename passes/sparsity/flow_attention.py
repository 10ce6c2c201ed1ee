"""How units pass attention and rotary embedding: whole heads, or the same channels of every head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from .flow import NONE, Blocked, Flow, Found, Rule, rank, size

X, Y = 0, -1


def _attention(node: ir.Node, flow: Flow) -> Found:
    if len(node.outputs) > 1 and any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        raise Blocked(f"Attention {node.name} has other outputs, too")
    if any(v is not None for v in node.inputs[4:]):
        raise Blocked(f"Attention {node.name} reads a cache of its own")
    counts = attention_heads(node)
    if counts is None:
        raise Blocked(f"the number of heads of Attention {node.name} is not known")
    queries, keys = counts
    group = queries // keys
    number = {X: queries, 1: keys, 2: keys, Y: queries}
    for slot in (X, Y):
        if (found := _of_heads(node, flow, slot, queries)) is not None:
            for other in (X, Y):
                yield _over_heads(node, other, found)
            rows = found.reshape(keys, group)
            whole = np.where((rows == rows[:, :1]).all(1), rows[:, 0], NONE)
            yield from (_over_heads(node, other, whole) for other in (1, 2))
    for slot in (1, 2):
        if (found := _of_heads(node, flow, slot, keys)) is not None:
            yield from (_over_heads(node, other, found) for other in (1, 2))
            yield from (_over_heads(node, other, found.repeat(group)) for other in (X, Y))
    for pair in ((X, 1), (2, Y)):  # scores sum over the channels of query and key; those of values come out
        for slot in pair:
            if (found := _of_channels(node, flow, slot, number[slot])) is not None:
                yield from (_over_channels(node, other, found, number[other]) for other in pair)


def attention_heads(node: ir.Node) -> tuple[int, int] | None:
    """Query and KV heads of an Attention."""
    q, k = node.inputs[:2]
    if rank(q) == 4:
        counts = tuple(size(v, 1) for v in (q, k) if v is not None)
    else:
        counts = tuple(node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads"))
    if any(not isinstance(n, int) or n < 1 for n in counts):
        return None
    return int(counts[0] or 0), int(counts[1] or 0)


def _of_heads(node: ir.Node, flow: Flow, slot: int, heads: int) -> Array | None:
    """Units by head of one input or output; None if it has none, or the same in every head."""
    return _along(node, flow, slot, heads)[0]


def _of_channels(node: ir.Node, flow: Flow, slot: int, heads: int) -> Array | None:
    """Units by channel of a head, where they are the same in all heads."""
    return _along(node, flow, slot, heads)[1]


def _along(node: ir.Node, flow: Flow, slot: int, heads: int) -> tuple[Array | None, Array | None]:
    """Units by head and by channel. Raises: Blocked for any others."""
    value = node.outputs[0] if slot < 0 else node.inputs[slot]
    found = flow.at(node, slot)
    if rank(value) == 4:
        if not found.keys() <= {1, 3}:
            raise Blocked(f"{node.op_type} {node.name} mixes them")
        return found.get(1), found.get(3)
    if not found.keys() <= {2}:
        raise Blocked(f"{node.op_type} {node.name} mixes them")
    if not found:
        return None, None
    rows = found[2].reshape(heads, -1)
    if (rows == rows[:, :1]).all():
        return np.asarray(rows[:, 0]), None
    if (rows == rows[0]).all():
        return None, np.asarray(rows[0])
    raise Blocked(f"{node.op_type} {node.name} mixes them within a head")


def _over_heads(node: ir.Node, slot: int, units: Array) -> tuple[int, int, Array]:
    value = node.outputs[0] if slot < 0 else node.inputs[slot]
    assert value is not None
    if rank(value) == 4:
        return slot, 1, units
    width = size(value, 2)
    if not isinstance(width, int):
        raise Blocked(f"the width of {value.name} is not known")
    return slot, 2, units.repeat(width // len(units))


def _over_channels(node: ir.Node, slot: int, units: Array, heads: int) -> tuple[int, int, Array]:
    value = node.outputs[0] if slot < 0 else node.inputs[slot]
    return (slot, 3, units) if rank(value) == 4 else (slot, 2, np.tile(units, heads))


def _cut_attention(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    queries, keys = attention_heads(node) or (1, 1)
    for slot, name, heads in ((X, "q_num_heads", queries), (1, "kv_num_heads", keys)):
        units = _of_heads(node, flow, slot, heads)
        if units is None:
            continue
        kept = flow.keeps(units)
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64(name, len(kept))
        mask = node.inputs[3] if slot == X and len(node.inputs) > 3 else None
        if mask is not None and rank(mask) > 2 and size(mask, -3) == heads:
            chosen = at.op("Gather", mask, at.const(kept, f"{node.name}.heads"), axis=rank(mask) - 3)
            chosen.type = mask.type
            chosen.shape = None if mask.shape is None else mask.shape.copy()
            if chosen.shape is not None:
                chosen.shape[rank(mask) - 3] = len(kept)
            node.replace_input_with(3, chosen)


def _rotary(node: ir.Node, flow: Flow) -> Found:
    heads = _rotary_heads(node)
    for slot in (X, Y):
        if (found := _of_heads(node, flow, slot, heads)) is not None:
            yield from (_over_heads(node, other, found) for other in (X, Y))
        if _of_channels(node, flow, slot, heads) is not None:
            raise Blocked(f"RotaryEmbedding {node.name} turns them in pairs")


def _rotary_heads(node: ir.Node) -> int:
    heads = size(node.outputs[0], 1) if rank(node.inputs[0]) == 4 else node.attributes.get_int("num_heads", 0)
    if not isinstance(heads, int) or heads < 1:
        raise Blocked(f"the number of heads of RotaryEmbedding {node.name} is not known")
    return heads


def _cut_rotary(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    units = _of_heads(node, flow, X, _rotary_heads(node))
    if units is not None and node.attributes.get_int("num_heads", 0) > 0:
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", len(flow.keeps(units)))


ATTENTION = {
    "Attention": Rule(_attention, _cut_attention),
    "RotaryEmbedding": Rule(_rotary, _cut_rotary),
}
"""By operator."""
