"""Attention, cached or not, with the rotary embeddings and norms of query and key inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.dialect import MIAOTUI
from ....compiler.ir.provenance import add_passes
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import DimRange, Program, dim_of
from ...base import NoMatch, Note, Pass, PassContext, PassResult, decline, import_domains, skip
from ..mask_graph import mask_graph
from ..masks import FULL, Kind, kind_of
from ..views import SWAP, shape_constant
from .mask import additive, require_covers
from .rotation import HeadNorm, Turn, head_norm, turn


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
        judged: dict[tuple[ir.Value, int | str, bool], Kind | None] = {}
        for graph in list(program.graphs()):
            for node in tuple(graph):
                if (node.domain, node.op_type) not in (("", "Attention"), (MIAOTUI, "CachedAttention")):
                    continue
                at, name = Rewriter(node), str(node.name)
                try:
                    text = _rewrite(node, at, program.dims, judged)
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
    mask: ir.Value | None = None
    kind: Kind = FULL


def _rewrite(
    node: ir.Node,
    at: Rewriter,
    dims: dict[str, DimRange],
    judged: dict[tuple[ir.Value, int | str, bool], Kind | None],
) -> str:
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None:
        skip()
    if query.dtype != ir.DataType.FLOAT:
        decline(f"it is computed in {query.dtype}, the kernel takes float32")
    inputs = [*node.inputs[3:], *[None] * 4]
    if node.domain == MIAOTUI:
        bias = inputs[3]
        if bias is not None and bias.dtype != ir.DataType.FLOAT:
            decline(f"its bias is of {bias.dtype}")
        kind = Kind(False, node.attributes.get_int("window", 0))
        call = _Call(query, key, value, tuple(inputs[:3]), bias, kind)
        sizes = [_head(v) for v in (query, key, value)]
        if None in sizes:
            decline("number of heads or head size is not static")
        return _build(node, at, call)
    _require_plain(node)
    mask, kind = _mask(node, query, key, dims, judged)
    heads = [_heads(node, v, n) for v, n in ((query, "q"), (key, "kv"), (value, "kv"))]
    split = [_split(at, v, n) for v, n in zip((query, key, value), heads, strict=True)]
    return _build(node, at, _Call(split[0], split[1], split[2], (), mask, kind))


def _require_plain(node: ir.Node) -> None:
    if any(v is not None for v in node.inputs[4:]):
        decline("it concatenates a cache")
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        decline("its scores are read too")
    for name in ("left_window_size", "right_window_size"):
        if node.attributes.get_int(name, -1) != -1:
            decline(f"it has a {name}")


def _mask(
    node: ir.Node,
    query: ir.Value,
    key: ir.Value,
    dims: dict[str, DimRange],
    judged: dict[tuple[ir.Value, int | str, bool], Kind | None],
) -> tuple[ir.Value | None, Kind]:
    """The mask that is left to be added, and what the kernel does by itself."""
    causal = bool(node.attributes.get_int("is_causal", 0))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    own = Kind(causal, 0)
    if mask is None:
        return None, own
    assert query.shape is not None and key.shape is not None
    length = dim_of(query.shape[-2])
    if length is not None and length == dim_of(key.shape[-2]):
        case = (mask, length, causal)
        if case not in judged:
            try:
                judged[case] = kind_of(mask_graph(mask), length, dims, causal, windows=True)
            except NoMatch:
                judged[case] = None
        found = judged[case]
        if found is not None:
            return None, found
    require_covers(mask, key.shape[-2])
    return mask, own


def _build(node: ir.Node, at: Rewriter, call: _Call) -> str:
    rotation, why = turn(call.query, call.key)
    query, key = (call.query, call.key) if rotation is None else (rotation.query, rotation.key)
    norms = _norms(query, key)
    query, key = (v if n is None else n.build(at) for v, n in zip((query, key), norms, strict=True))
    bias = None if call.mask is None else additive(call.mask, at)
    angles = (None, None) if rotation is None else rotation.angles(at)
    past = call.past or (None, None, None)
    scales = [None if norm is None else norm.scale for norm in norms]
    inputs: list[ir.Value | None] = [query, key, call.value, *past, bias, *angles, *scales]
    while inputs[-1] is None:
        inputs.pop()
    results = at.ops(
        "FusedAttention",
        *inputs,
        outputs=3 if call.past else 1,
        domain=MIAOTUI,
        scale=node.attributes.get_float("scale", 0.0) or None,
        softcap=node.attributes.get_float("softcap", 0.0) or None,
        window=call.kind.window or None,
        causal=int(call.kind.causal) or None,
        rotary=None if rotation is None else rotation.style,
        epsilon=next((norm.epsilon for norm in norms if norm is not None), None),
    )
    output = results[0]
    assert query.shape is not None and call.value.shape is not None
    output.type, output.shape = query.type, ir.Shape([*list(query.shape)[:3], call.value.shape[3]])
    if call.past:
        presents = results[1:]
    else:
        presents = (call.key, call.value)
    if len(node.outputs[0].shape or ()) == 3:
        output = _joined(at, output)
    at.replace(node.outputs[0], output)
    for old, new in zip(node.outputs[1:3], presents, strict=False):
        if old.name and (old.uses() or old.is_graph_output()):
            at.replace(old, new)
    return _text(call, rotation, why, norms)


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


def _head(value: ir.Value) -> tuple[int, int] | None:
    if value.shape is None or len(value.shape) != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def _heads(node: ir.Node, value: ir.Value, kind: str) -> tuple[int, int]:
    """Heads and their size of an operand, split or flat. Raises: NoMatch if they are not static."""
    found = _head(value)
    if found is not None:
        return found
    count = node.attributes.get_int(f"{kind}_num_heads", 0)
    width = None if value.shape is None or len(value.shape) != 3 else value.shape[2]
    if not count or not isinstance(width, int):
        decline("number of heads or head size is not static")
    return count, width // count


def _split(at: Rewriter, value: ir.Value, heads: tuple[int, int]) -> ir.Value:
    """[batch, heads, tokens, size] of an operand that may be [batch, tokens, hidden]."""
    assert value.shape is not None
    if len(value.shape) == 4:
        return value
    batch, tokens, _ = value.shape
    cut = at.op("Reshape", value, shape_constant(at, [0, 0, *heads]))
    cut.type, cut.shape = value.type, ir.Shape([batch, tokens, *heads])
    swapped = at.op("Transpose", cut, perm=SWAP)
    swapped.type, swapped.shape = value.type, ir.Shape([batch, heads[0], tokens, heads[1]])
    return swapped


def _joined(at: Rewriter, value: ir.Value) -> ir.Value:
    assert value.shape is not None
    batch, heads, tokens, size = value.shape
    assert isinstance(heads, int) and isinstance(size, int)
    swapped = at.op("Transpose", value, perm=SWAP)
    swapped.type, swapped.shape = value.type, ir.Shape([batch, tokens, heads, size])
    whole = at.op("Reshape", swapped, shape_constant(at, [0, 0, heads * size]))
    whole.type, whole.shape = value.type, ir.Shape([batch, tokens, heads * size])
    return whole
