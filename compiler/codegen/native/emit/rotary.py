"""RotaryEmbedding that no attention took in: heads turned by the angles of their positions."""

from __future__ import annotations

import onnx_ir as ir

from ..views import reshaped, transposed
from .base import Entry, Operator, View
from .expressions import FLOAT
from .gathers import checked
from .loops import SMALL, aligned, names_of, offset, over_rows
from .views import input_of, required


def _rotary(node: ir.Node, entry: Entry) -> None:
    x = entry.view(required(node, 0))
    if x.strides[-1] != 1:
        x = entry.contiguous(required(node, 0))
    tables = [entry.view(required(node, place)) for place in (1, 2)]
    tables = [
        t if t.strides[-1] == 1 else entry.contiguous(required(node, place))
        for place, t in enumerate(tables, start=1)
    ]
    positions = input_of(node, 3)
    places = None if positions is None else entry.view(positions)
    y = entry.new(node.outputs[0])
    if len(x.shape) == 3:
        x, y = (_heads(view, node.attributes.get_int("num_heads", 0)) for view in (x, y))
    batch, _, tokens, size = x.shape
    names = names_of(3)
    i, k = names[0], names[2]
    pairs = tables[0].shape[-1]
    lines = []
    if places is None:
        rows = [t.pointer + offset([i, k], aligned(t, (batch, tokens, pairs))[:2]) for t in tables]
        inside = [_call(node, names, x, y, rows)]
    else:
        index = offset([i, k], aligned(places, (batch, tokens))).removeprefix(" + ") or "0"
        lines = [f"int64_t at = {checked(node, f'{places.pointer}[{index}]', tables[0].shape[0])};"]
        rows = [f"{t.pointer} + at * {t.strides[0]}" for t in tables]
        inside = ["if (at >= 0)", f"    {_call(node, names, x, y, rows)}"]
    grain = max(1, SMALL // size) if isinstance(size, int) else 16
    entry.step(node, over_rows(x.shape[:3], [*lines, *inside], grain))


def _call(node: ir.Node, names: str, x: View, y: View, rows: list[str]) -> str:
    heads = [f"{view.pointer}{offset(names, view.strides[:3])}" for view in (x, y)]
    width = node.attributes.get_int("rotary_embedding_dim", 0) or x.shape[3]
    pairs = width // 2 if isinstance(width, int) else f"({width} / 2)"
    interleaved = node.attributes.get_int("interleaved", 0)
    return f"rotate_head({heads[0]}, {heads[1]}, {x.shape[3]}, {rows[0]}, {rows[1]}, {pairs}, {interleaved});"


def _heads(view: View, count: int) -> View:
    """[batch, tokens, heads * size] as [batch, heads, tokens, size]."""
    batch, tokens, width = view.shape
    assert isinstance(width, int)
    split = reshaped(view, (batch, tokens, count, width // count))
    assert split is not None
    return transposed(split, (0, 2, 1, 3))


def _reason(node: ir.Node) -> str | None:
    x, cos = node.inputs[0], node.inputs[1]
    if x is None or x.dtype != FLOAT or x.shape is None or cos is None or cos.shape is None:
        return "it does not turn floats of known rank"
    if len(x.shape) == 3:
        heads = node.attributes.get_int("num_heads", 0)
        if not heads or not isinstance(x.shape[2], int):
            return "the size of its heads is not known"
    return None


OPERATORS = {"RotaryEmbedding": Operator(_rotary, _reason)}
