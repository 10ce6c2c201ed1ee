"""How a rank's heads pass attention: query heads, the KV heads they share, the cache of those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.dialect import MIAOTUI
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..sparsity.flow import NONE, Blocked, Flow, Found, Rule, dims, rank, size

Y = -1


@dataclass(frozen=True, slots=True)
class Form:
    """Where an attention operator has its heads.

    ``counts``: attributes with the query and the KV heads, of values of three axes. ``shared``: slots whose
    heads are KV heads, inputs and outputs. ``bias``: input with a bias that may have an axis of heads, third
    from the last. ``each``: an input with one element for each query head. ``plain``: inputs without heads;
    what is none of these is not followed.
    """

    counts: tuple[str, str]
    shared: tuple[int, ...]
    bias: int
    each: int | None = None
    plain: tuple[int, ...] = ()


FORMS: Mapping[str, Form] = {
    "Attention": Form(("q_num_heads", "kv_num_heads"), (1, 2, 4, 5, -2, -3), 3, plain=(6,)),
    f"{MIAOTUI}::CachedAttention": Form(("", ""), (1, 2, 3, 4, -2, -3), 6, plain=(5,)),
    "com.microsoft::GroupQueryAttention": Form(
        ("num_heads", "kv_num_heads"), (1, 2, 3, 4, -2, -3), 10, 11, plain=(5, 6, 7, 8, 9, 14, 15, 16)
    ),
}
"""By operator; input 0 has the queries, output 0 the result."""


def form_of(node: ir.Node) -> Form | None:
    """Of an attention operator; None of any other."""
    return FORMS.get(f"{node.domain}::{node.op_type}".removeprefix("::"))


def head_counts(node: ir.Node) -> tuple[int, int]:
    """Query and KV heads. Raises: Blocked if they are not known."""
    form = form_of(node)
    assert form is not None
    found = [node.attributes.get_int(name, 0) if name else 0 for name in form.counts]
    if not all(found) and rank(node.inputs[0]) == 4:
        found = [int(n) if isinstance(n := size(v, 1), int) else 0 for v in node.inputs[:2] if v is not None]
    if len(found) < 2 or not all(found):
        raise Blocked(f"the number of heads of {node.op_type} {node.name} is not known")
    return found[0], found[1]


def _attention(node: ir.Node, flow: Flow) -> Found:
    form = FORMS[f"{node.domain}::{node.op_type}".removeprefix("::")]
    known = {0, *(slot for slot in form.shared if slot > 0), form.bias, form.each, *form.plain}
    for slot, value in enumerate(node.inputs):
        if value is not None and slot not in known:
            raise Blocked(f"{node.op_type} {node.name} reads {value.name} head by head")
    if any(o.uses() or o.is_graph_output() for o in node.outputs[3:]):
        raise Blocked(f"{node.op_type} {node.name} gives its scores, too")
    queries, keys = head_counts(node)
    units = _of_heads(node, flow, Y, queries)
    if units is None:
        # the result's heads say whose the others are; they are what is followed first
        if any(flow.at(node, slot) for slot in form.shared):
            raise Blocked(f"{node.op_type} {node.name} reads them as keys or values")
        units = _of_heads(node, flow, 0, queries, keys if _is_packed(node) else 0)
        if units is None:
            return
    shared = _shared(units, keys, flow)
    yield _over(node, Y, units)
    packed = (units, shared, shared) if _is_packed(node) else (units,)
    yield _over(node, 0, *packed)
    for slot in form.shared:
        if _slot(node, slot) is not None:
            yield _over(node, slot, shared)
    if form.each is not None and _slot(node, form.each) is not None:
        yield form.each, 0, units


def _is_packed(node: ir.Node) -> bool:
    """Whether keys and values are behind the queries."""
    return _slot(node, 1) is None


def _shared(units: Array, keys: int, flow: Flow) -> Array:
    """Units of the KV heads: all ranks that have one of their query heads hold them."""
    ranks = int(getattr(flow, "ranks", 1))
    rows = units.reshape(keys, -1)
    first = np.where(rows == NONE, 0, rows // (ranks + 1)).min(1)
    last = np.where(rows == NONE, ranks, rows % (ranks + 1)).max(1)
    return np.where((first == 0) & (last == ranks), NONE, first * (ranks + 1) + last)


def _of_heads(node: ir.Node, flow: Flow, slot: int, heads: int, behind: int = 0) -> Array | None:
    """Units by head of one slot; ``behind``: KV heads that follow twice on the same axis."""
    value = _slot(node, slot)
    found = flow.at(node, slot)
    if value is None or not found:
        return None
    axis = 1 if rank(value) == 4 else 2
    if any(other != axis for other in found):
        raise Blocked(f"{node.op_type} {node.name} mixes them")
    rows = found[axis].reshape(heads + 2 * behind, -1)
    if (rows != rows[:, :1]).any():
        raise Blocked(f"{node.op_type} {node.name} mixes them within a head")
    return np.asarray(rows[:heads, 0])


def _over(node: ir.Node, slot: int, *units: Array) -> tuple[int, int, Array]:
    value = _slot(node, slot)
    assert value is not None
    joined = np.concatenate(units)
    if rank(value) == 4:
        return slot, 1, joined
    width = size(value, 2)
    if not isinstance(width, int):
        raise Blocked(f"the width of {value.name} is not known")
    return slot, 2, joined.repeat(width // len(joined))


def _slot(node: ir.Node, slot: int) -> ir.Value | None:
    values = node.inputs if slot >= 0 else node.outputs
    place = slot if slot >= 0 else ~slot
    return values[place] if place < len(values) else None


def _cut_attention(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    form = FORMS[f"{node.domain}::{node.op_type}".removeprefix("::")]
    queries, keys = head_counts(node)
    units = _of_heads(node, flow, Y, queries)
    if units is None:
        return
    kept = flow.keeps(units)
    counts = len(kept), len(flow.keeps(_shared(units, keys, flow)))
    for name, count in zip(form.counts, counts, strict=True):
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64(name, count)
    bias = _slot(node, form.bias)
    if bias is None or rank(bias) < 3 or size(bias, rank(bias) - 3) != queries:
        return
    axis = rank(bias) - 3
    chosen = at.op("Gather", bias, at.const(kept, f"{node.name}.heads"), axis=axis)
    chosen.type = bias.type
    chosen.shape = ir.Shape([*dims(bias)[:axis], len(kept), *dims(bias)[axis + 1 :]])
    node.replace_input_with(form.bias, chosen)


HEADS = dict.fromkeys(FORMS, Rule(_attention, _cut_attention))
"""Rules by operator."""
