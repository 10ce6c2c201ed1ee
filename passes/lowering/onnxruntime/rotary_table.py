"""The cosines or sines of a rotary embedding as a table over positions, found by evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant
from ....compiler.program import dim_of
from ....compiler.reference import Array
from ...base import decline
from ...incremental.evaluation import FAILURES, Cut

_ROUNDING = 1e-6


def table_of(rotary: ir.Node, index: int, lengths: ir.Value, rows: int) -> Array:
    """float[rows, pairs]: what input ``index`` (1: cosines, 2: sines) of ``rotary`` holds at each position.

    ``lengths``: the graph input past_lengths; token ``i`` of row ``r`` is at position ``lengths[r] + i``.
    Raises: NoMatch unless every token's values depend on its position alone.
    """
    source = rotary.inputs[index]
    positions = rotary.inputs[3] if len(rotary.inputs) > 3 else None
    assert source is not None
    if positions is None:
        return _evaluated(source, lengths, rows)
    places = _evaluated(positions, lengths, rows)
    if not np.array_equal(places, np.arange(rows)):
        decline("it rotates by other than the tokens' positions")
    table = constant(source, limit=None)
    if table is None or table.ndim != 2:
        decline("its table is computed")
    if len(table) < rows:
        decline(f"its table has {len(table)} positions, the model {rows}")
    return table[:rows]


def _evaluated(value: ir.Value, lengths: ir.Value, rows: int) -> Array:
    graph = lengths.graph
    assert isinstance(graph, ir.Graph)
    cut = Cut([value], lambda v: v is lengths or _is_shape(v), graph.opset_imports)
    table = _at(cut, lengths, 0, rows)
    for past in sorted({0, 1, 2, 7, rows // 3, rows // 2, rows - 2, rows - 1}):
        for tokens in (1, 3):
            if past < 0 or past + tokens > rows:
                continue
            some = _at(cut, lengths, past, tokens)
            if not np.allclose(some, table[past : past + tokens], rtol=0, atol=_ROUNDING):
                decline("a token's rotation depends on more than its position")
    return table


def _at(cut: Cut, lengths: ir.Value, past: int, tokens: int) -> Array:
    """The rows for ``tokens`` tokens of one sequence behind ``past`` others."""
    batch, *_ = _names(lengths)
    feeds: dict[ir.Value, Array] = {}
    for leaf in cut.leaves:
        if leaf is lengths:
            feeds[leaf] = np.array([past], np.int64)
            continue
        sizes = {batch: 1, _tokens(leaf, batch): tokens}
        feeds[leaf] = np.array([n if isinstance(n, int) else sizes[n] for n in _dims(leaf)], np.int64)
    try:
        (found,) = cut.run(feeds)
    except FAILURES as error:
        decline(f"its rotation can't be evaluated ({type(error).__name__})")
    if found.shape[:2] != (1, tokens):
        decline(f"its rotation has shape {list(found.shape)} for one sequence of {tokens} tokens")
    rows: Array = found[0]
    return rows


def _is_shape(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Shape" and node.domain == ""


def _tokens(shape: ir.Value, batch: int | str | None) -> str | None:
    """The one named size of a Shape's result besides the batch."""
    others = {n for n in _dims(shape) if isinstance(n, str) and n != batch}
    if len(others) > 1 or any(n is None for n in _dims(shape)):
        decline("its rotation depends on more sizes than the number of tokens")
    return next(iter(others), None)


def _dims(shape: ir.Value) -> Sequence[int | str | None]:
    node = shape.producer()
    source = None if node is None else node.inputs[0]
    if node is None or source is None or not source.is_graph_input() or source.shape is None:
        decline("its rotation depends on a size that is no input's")
    start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
    return [dim_of(d) for d in source.shape][start : None if end is None else end.as_int()]


def _names(value: ir.Value) -> Sequence[int | str | None]:
    return [] if value.shape is None else [dim_of(d) for d in value.shape]
