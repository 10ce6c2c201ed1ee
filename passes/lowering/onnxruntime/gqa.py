"""Attention over a KV cache in ONNX Runtime's own kernel, GroupQueryAttention, with the rotation inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.dialect import MIAOTUI
from ....compiler.ir.constants import constant
from ....compiler.ir.provenance import add_passes
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Program, dim_of
from ...base import NoMatch, Note, Pass, PassContext, PassResult, decline, import_domains
from ..views import heads_of, is_swap, shape_constant
from .gqa_lengths import Lengths, at_capacity, counted
from .gqa_rotation import Rotation, Rotations
from .heads import Flat, constant_like, flat, merge_back

DTYPES = {"cpu": (ir.DataType.FLOAT,), "cuda": (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)}
"""dtypes of each device's kernel; on the CPU those that it does not cast."""

_WIDEST = 256
"""Elements of a head up to which CUDA has fused kernels."""


@dataclass(frozen=True)
class UseGroupQueryAttention(Pass):
    """Run attention over a KV cache as GroupQueryAttention, rotary embedding inside, cache in place.

    CPU: the number of new tokens goes in as ``query_seqlens``: without it the kernel takes several tokens
    behind a past for one row only. Queries are scaled beforehand and ``head_sink`` is -inf, which changes
    nothing in the result but the choice of kernel: onnxruntime 1.32 takes 270 µs for one token behind 2,048
    (9 heads of 64, 3 KV heads) in the kernel it chooses by itself, 118 in this one; for chunks up to 512
    tokens both are within 10 %.

    CUDA, fp16 and bf16: onnxruntime-gpu 1.31 has no ``query_seqlens``. The runtime therefore gives it chunks
    of one row, one token of any rows, or prompts that fill the capacity (``state.row_by_row``). The kernel
    reads of a cache what its rows hold, where the standard operators read all of its capacity.
    """

    name: ClassVar[str] = "group-query-attention"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Try every CachedAttention."""
        hits: list[Note] = []
        declined: list[Note] = []
        for model in program.entries.values():
            shared = _Shared(program.context, context.target.device, Rotations(program.context))
            for node in tuple(model.graph):
                if (node.domain, node.op_type) != (MIAOTUI, "CachedAttention"):
                    continue
                at = Rewriter(node)
                try:
                    text = _rewrite(node, at, shared)
                except NoMatch as left:
                    declined.append(Note(str(node.name), left.reason))
                    continue
                hits.append(Note(str(node.name), text))
                for made in at.made:
                    add_passes(made, [self.name])
        import_domains(program)
        return PassResult(len(hits), tuple(hits), tuple(declined))


@dataclass(slots=True)
class _Shared:
    """What all layers of a graph read: lengths by past_lengths and tokens, and tables."""

    context: int | None
    device: str
    rotations: Rotations
    lengths: dict[tuple[ir.Value, object], Lengths] = field(default_factory=dict)


def _rewrite(node: ir.Node, at: Rewriter, shared: _Shared) -> str:
    query, key, value, past_key, past_value, lengths, *rest = node.inputs
    bias = rest[0] if rest else None
    assert query is not None and key is not None and value is not None and lengths is not None
    heads, kv_heads, size = _sizes(query, key, value, shared.device)
    on_cpu = shared.device == "cpu"
    if not on_cpu and bias is not None:
        decline("CUDA's fused kernels take no bias")
    rows = None if lengths.shape is None else lengths.shape[0]
    if not on_cpu and isinstance(rows, int) and rows > 1:
        decline(f"onnxruntime-gpu 1.31 takes prompts row by row, and the program {rows} rows")
    why = ""
    rotation: Rotation | None = None
    try:
        rotation = shared.rotations.of(query, key, lengths, size)
    except NoMatch as left:
        why = f", rotated before: {left.reason}" if left.reason else ""
    sources = (query, key, value) if rotation is None else (rotation.query, rotation.key, value)
    plans = [flat(part) for part in sources]
    if None in plans:
        decline("number of heads or head size is not static")

    tables: Sequence[ir.Value | None] = (None, None)
    if rotation is not None:
        tables = [shared.rotations.stored(at, getattr(rotation, n), query, n) for n in ("cos", "sin")]
    scale = _scale(node, size)
    projected = [p for p in plans if p is not None]
    parts = _projections(at, projected, scale if on_cpu else 1.0, (heads, kv_heads, size))
    held = _lengths(at, query, parts[0], lengths, past_key, shared)
    softcap, window = node.attributes.get_float("softcap", 0.0), node.attributes.get_int("window", 0)
    inputs = [*parts, past_key, past_value, held.last, held.total, *tables]
    if on_cpu:
        sink = constant_like(at, f"sink_{heads}", np.full(heads, -np.inf), query)
        inputs += [None, _whole(at, bias, held.total), sink, None, None, None, None, held.new]
    results = at.ops(
        "GroupQueryAttention",
        *inputs,
        outputs=3,
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=1.0 if on_cpu else scale,
        softcap=softcap or None,
        local_window_size=window or None,
        do_rotary=int(rotation is not None) or None,
        rotary_interleaved=rotation.interleaved or None if rotation is not None else None,
    )
    _replace(at, node, results, heads, size)
    packed = ", projections packed" if parts[1] is None else ""
    inside = ", rotation inside" if rotation is not None else why
    return f"{heads} heads over {kv_heads}{inside}{packed}"


def _sizes(query: ir.Value, key: ir.Value, value: ir.Value, device: str) -> tuple[int, int, int]:
    found, keys, values = heads_of(query), heads_of(key), heads_of(value)
    if found is None or keys is None or values is None:
        decline("number of heads or head size is not static")
    if values[1] != found[1]:
        decline(f"values have heads of {values[1]}, keys of {found[1]}")
    if found[1] % 8:
        decline(f"the kernel wants heads of a multiple of 8, not of {found[1]}")
    if device != "cpu" and found[1] > _WIDEST:
        decline(f"CUDA has fused kernels for heads of up to {_WIDEST}, not of {found[1]}")
    if query.dtype not in DTYPES[device]:
        decline(f"there is no {device.upper()} kernel for {query.dtype}")
    return found[0], keys[0], found[1]


def _scale(node: ir.Node, size: int) -> float:
    scale = node.attributes.get("scale")
    return 1 / math.sqrt(size) if scale is None or not scale.as_float() else scale.as_float()


def _lengths(
    at: Rewriter,
    query: ir.Value,
    part: ir.Value | None,
    lengths: ir.Value,
    past: ir.Value | None,
    shared: _Shared,
) -> Lengths:
    """The lengths as the kernel takes them, once for all layers."""
    assert past is not None
    tokens = None if query.shape is None else dim_of(query.shape[2])
    case = lengths, tokens if tokens is not None else query
    if case not in shared.lengths:
        if shared.device == "cpu":
            shared.lengths[case] = counted(at, part, lengths)
        else:
            shared.lengths[case] = at_capacity(at, part, lengths, past, shared.context)
    return shared.lengths[case]


def _projections(
    at: Rewriter, plans: Sequence[Flat], scale: float, sizes: tuple[int, int, int]
) -> list[ir.Value | None]:
    """Query (scaled), key and value as [batch, tokens, hidden]; query alone if the three are its parts."""
    heads, kv_heads, size = sizes
    query, key, value = (plan.build(at) for plan in plans)
    widths = [heads * size, kv_heads * size, kv_heads * size]
    whole = _split_from([query, key, value], widths)
    factors = np.full(1, scale)
    if whole is not None:
        query = whole
        factors = np.repeat([scale, 1.0, 1.0], widths)
    if scale != 1:
        name = f"scale_{size}" if whole is None else f"scale_{heads}_{kv_heads}_{size}"
        scaled = at.op("Mul", query, constant_like(at, name, factors, query))
        scaled.type, scaled.shape = query.type, query.shape
        query = scaled
    return [query, None, None] if whole is not None else [query, key, value]


def _split_from(parts: Sequence[ir.Value], widths: Sequence[int]) -> ir.Value | None:
    """The value that ``parts`` side by side are, if a Split on the last axis made them for this alone."""
    node = parts[0].producer()
    if node is None or node.op_type != "Split" or node.domain != "" or len(node.outputs) != len(parts):
        return None
    source, last = node.inputs[0], node.attributes.get_int("axis", 0) in (-1, 2)
    if source is None or source.shape is None or len(source.shape) != 3 or not last:
        return None
    if tuple(parts) != tuple(node.outputs) or source.shape[2] != sum(widths):
        return None
    cut = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    equal = node.attributes.get_int("num_outputs", 0) == len(parts) and len(set(widths)) == 1
    return source if equal or (cut is not None and cut.tolist() == list(widths)) else None


def _whole(at: Rewriter, bias: ir.Value | None, total: ir.Value) -> ir.Value | None:
    """The bias with a column for every key, which the kernel does not broadcast."""
    if bias is None or bias.shape is None or bias.shape[-1] != 1:
        return bias
    wide = at.op("Cast", total, to=ir.DataType.INT64)
    row = at.op("Unsqueeze", wide, shape_constant(at, [0]))
    target = at.op("Concat", shape_constant(at, [1, 1, 1]), row, axis=0)
    grown = at.op("Expand", bias, target)
    grown.type, grown.shape = bias.type, ir.Shape([*list(bias.shape)[:-1], None])
    return grown


def _replace(at: Rewriter, node: ir.Node, results: Sequence[ir.Value], heads: int, size: int) -> None:
    output = node.outputs[0]
    results[0].type = output.type
    if output.shape is not None:
        results[0].shape = ir.Shape([output.shape[0], output.shape[2], heads * size])
    for old, new in zip(node.outputs[1:], results[1:], strict=True):
        at.replace(old, new)
    for reader in dict.fromkeys(usage.node for usage in output.uses()):
        if is_swap(reader) and not output.is_graph_output():
            merge_back(at, reader.outputs[0], results[0], (heads, size))
    if output.uses() or output.is_graph_output():
        split = at.op("Reshape", results[0], shape_constant(at, [0, 0, heads, size]))
        at.replace(output, at.op("Transpose", split, perm=(0, 2, 1, 3)))
