"""Attention, cached or not, with the rotary embeddings and norms of query and key inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.dialect import MIAOTUI
from ....compiler.ir.provenance import add_passes
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Program, dim_of
from ...base import NoMatch, Note, Pass, PassContext, PassResult, decline, import_domains, skip
from ..masks import FULL, Kind
from ..views import heads_of
from .heads import heads, joined, split
from .mask import Masks, require_readable
from .rotation import HeadNorm, Turn, head_norm, turn
from .scale import scaling


@dataclass(frozen=True)
class NativeAttention(Pass):
    """Write Attention and CachedAttention, rotary embedding and norm per head in front, as FusedAttention.

    Masks that say no more than "causal" or "these many tokens back" at every length become attributes; others
    are added to the scores.
    """

    name: ClassVar[str] = "native-attention"
    optional: ClassVar[bool] = False

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Try every attention; layers that share a mask have it judged once."""
        hits: list[Note] = []
        declined: list[Note] = []
        masks = Masks(program.dims)
        for graph in list(program.graphs()):
            for node in tuple(graph):
                if (node.domain, node.op_type) not in (("", "Attention"), (MIAOTUI, "CachedAttention")):
                    continue
                at, name = Rewriter(node), str(node.name)
                try:
                    text = _rewrite(node, at, masks)
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(name, left.reason))
                    continue
                hits.append(Note(name, text))
                for made in at.made:
                    add_passes(made, [self.name])
        import_domains(program)
        return PassResult(len(hits), tuple(hits), tuple(declined))


@dataclass(frozen=True, slots=True)
class _Call:
    """An attention's operands with split heads, and what it does to the scores."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past: tuple[ir.Value | None, ...] = ()
    bias: ir.Value | None = None
    kind: Kind = FULL
    scale: float | None = None


def _rewrite(node: ir.Node, at: Rewriter, masks: Masks) -> str:
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None:
        skip()
    if query.dtype != ir.DataType.FLOAT:
        decline(f"it is computed in {query.dtype}, the kernel takes float32")
    if node.domain == MIAOTUI:
        return _cached(node, at, query, key, value)
    if any(v is not None for v in node.inputs[4:]):
        decline("it concatenates a cache")
    if any(v.uses() or v.is_graph_output() for v in node.outputs[3:]):
        decline("its scores are read too")
    if any(node.attributes.get_int(f"{side}_window_size", -1) != -1 for side in ("left", "right")):
        decline("it has a window of its own")
    sizes = [heads(node, v, n) for v, n in ((query, "q"), (key, "kv"), (value, "kv"))]
    assert query.shape is not None and key.shape is not None
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    parts: list[ir.Value] = []
    kind = Kind(bool(node.attributes.get_int("is_causal", 0)))
    if mask is not None:
        require_readable(mask, key.shape[-2])
        length = dim_of(query.shape[-2])
        parts, kind = masks.judge(mask, length if length == dim_of(key.shape[-2]) else None, kind.causal)
    bias = None if mask is None or not parts else masks.added(mask, parts, at)
    scale = _scale(node, sizes[0][1], at)
    query, key, value = (
        split(at, v, n) for v, n in zip(node.inputs[:3], sizes, strict=True) if v is not None
    )
    return _build(node, at, _Call(query, key, value, (), bias, kind, scale))


def _cached(node: ir.Node, at: Rewriter, query: ir.Value, key: ir.Value, value: ir.Value) -> str:
    bias = node.inputs[6] if len(node.inputs) > 6 else None
    if bias is not None and (bias.dtype != ir.DataType.FLOAT or bias.shape is None or len(bias.shape) != 4):
        decline("its bias is not known to be float32 with four axes")
    size = heads_of(query)
    if size is None or heads_of(key) is None or heads_of(value) is None:
        decline("number of heads or head size is not static")
    kind = Kind(False, node.attributes.get_int("window", 0))
    scale = _scale(node, size[1], at)
    query = node.inputs[0] or query
    return _build(node, at, _Call(query, key, value, tuple(node.inputs[3:6]), bias, kind, scale))


def _build(node: ir.Node, at: Rewriter, call: _Call) -> str:
    rotation, why = turn(call.query, call.key)
    query, key = (call.query, call.key) if rotation is None else (rotation.query, rotation.key)
    norms = _norms(query, key)
    query, key = (v if n is None else n.build(at) for v, n in zip((query, key), norms, strict=True))
    angles = (None, None) if rotation is None else rotation.angles(at)
    past = call.past or (None, None, None)
    gains = [None if norm is None else norm.scale for norm in norms]
    inputs: list[ir.Value | None] = [query, key, call.value, *past, call.bias, *angles, *gains]
    while inputs[-1] is None:
        inputs.pop()
    results = at.ops(
        "FusedAttention",
        *inputs,
        outputs=3 if call.past else 1,
        domain=MIAOTUI,
        scale=call.scale,
        softcap=node.attributes.get_float("softcap", 0.0) or None,
        window=call.kind.window or None,
        causal=int(call.kind.causal) or None,
        rotary=None if rotation is None else rotation.style,
        epsilon=next((norm.epsilon for norm in norms if norm is not None), None),
    )
    output = results[0]
    assert query.shape is not None and call.value.shape is not None
    output.type, output.shape = query.type, ir.Shape([*list(query.shape)[:3], call.value.shape[3]])
    presents = results[1:] if call.past else (call.key, call.value)
    at.replace(node.outputs[0], joined(at, output) if len(node.outputs[0].shape or ()) == 3 else output)
    for old, new in zip(node.outputs[1:3], presents, strict=False):
        if old.name and (old.uses() or old.is_graph_output()):
            at.replace(old, new)
    return _text(call, rotation, why, norms)


def _scale(node: ir.Node, size: int, at: Rewriter) -> float | None:
    """The factor of the scores; what query or key are multiplied with before is taken into it."""
    given = node.attributes.get_float("scale", 0.0)
    whole, taken = given or 1 / math.sqrt(size), False
    alone = not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    for operand in node.inputs[: 2 if alone else 1]:
        found = None if operand is None else scaling(operand)
        if found is not None:
            found.drop(at)
            whole, taken = whole * found.factor, True
    return whole if taken else given or None


def _text(
    call: _Call, rotation: Turn | None, why: str, norms: tuple[HeadNorm | None, HeadNorm | None]
) -> str:
    parts = ["over a cache" if call.past else "of a whole sequence"]
    parts += ["causal"] if call.kind.causal else []
    parts += [f"window of {call.kind.window}"] if call.kind.window else []
    parts += ["rotation inside"] if rotation is not None else [f"rotated before: {why}"] if why else []
    parts += ["norm per head inside"] if any(norms) else []
    return ", ".join(parts)


def _norms(query: ir.Value, key: ir.Value) -> tuple[HeadNorm | None, HeadNorm | None]:
    first, second = head_norm(query), head_norm(key)
    if first is not None and second is not None and first.epsilon != second.epsilon:
        return None, None
    return first, second
