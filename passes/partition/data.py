"""Data parallel: which dimension is the batch, and whether its rows can be computed apart from each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from ...compiler.errors import Problem
from ...compiler.program import Program, dim_of

_SIZES = frozenset(("Shape", "Size"))
_ALONG = {
    "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "TopK": -1, "LpNormalization": -1, "CumSum": None,
    "LayerNormalization": -1, "RMSNormalization": -1,
}  # fmt: skip
"""Operators that keep their sizes and compute along axes: where those begin if no attribute says."""

_SHOWN = 3


def batch_symbol(program: Program) -> str | None:
    """The named first dimension that all inputs of ``main`` share; None if there is none.

    A value of no dimensions goes to every replica.
    """
    firsts = {spec.shape[0] if spec.shape else None for spec in program.inputs() if spec.shape != ()}
    (first, *others) = firsts or {None}
    return first if isinstance(first, str) and not others else None


def batch_problems(program: Program) -> list[Problem]:
    """Why the rows of ``program`` can't be dealt out to replicas or micro-batches; empty if they can."""
    symbol = batch_symbol(program)
    if symbol is None:
        shown = ", ".join(map(str, program.inputs()))
        fact = f"inputs have no batch dimension of any size that all share: {shown}"
        return [Problem("--dp", fact, "use --dp 1, or export the model with a dynamic batch")]
    lacking = [s.name for s in program.outputs() if symbol not in (s.shape or ())]
    if lacking:
        fact = f"outputs {', '.join(lacking)} have no dimension {symbol!r} to join replicas' along"
        return [Problem("--dp", fact, "use --dp 1, or export the model with a dynamic batch")]
    mixing = [node for node in program.main.graph if mixes_rows(node, symbol)]
    if mixing:
        named = ", ".join(f"{node.name!r} ({node.op_type})" for node in mixing[:_SHOWN])
        more = f" and {len(mixing) - _SHOWN} more" if len(mixing) > _SHOWN else ""
        return [Problem("--dp", f"rows of {symbol!r} depend on each other at {named}{more}", "use --dp 1")]
    return []


def mixes_rows(node: ir.Node, symbol: str) -> bool:
    """Whether a row of what ``node`` gives may depend on several rows of what it reads.

    Told by the sizes: floats whose batch is gone, doubled, or longer or shorter behind the node, and
    operators that compute along it. What has no known sizes is trusted.
    """
    if node.op_type in _SIZES or not node.outputs:
        return False
    given = [dims for value in node.inputs if (dims := _float_dims(value)) is not None]
    if not any(_mentions(dim, symbol) for dims in given for dim in dims):
        return False
    outputs = [[dim_of(d) for d in v.shape] for v in node.outputs if v.shape is not None]
    if any(dims.count(symbol) > 1 or any(_is_shifted(dim, symbol) for dim in dims) for dims in outputs):
        return True
    known = [dims for dims in outputs if None not in dims]
    if known and not any(_mentions(dim, symbol) for dims in known for dim in dims):
        return True
    return any(given[0][axis] == symbol for axis in _axes(node, len(given[0])))


def _axes(node: ir.Node, rank: int) -> Iterator[int]:
    """Axes along which ``node`` computes."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _ALONG:
        return
    default = _ALONG[node.op_type]
    if default is None:
        yield 0
        return
    first = node.attributes.get_int("axis", default) % max(rank, 1)
    yield from range(first, rank if node.op_type.endswith("Normalization") else min(first + 1, rank))


def _float_dims(value: ir.Value | None) -> list[int | str | None] | None:
    if value is None or value.dtype is None or value.shape is None or not value.dtype.is_floating_point():
        return None
    return [dim_of(dim) for dim in value.shape]


def _mentions(dim: int | str | None, symbol: str) -> bool:
    return isinstance(dim, str) and re.search(rf"\b{re.escape(symbol)}\b", dim) is not None


def _is_shifted(dim: int | str | None, symbol: str) -> bool:
    """Whether rows were added or left out: ``batch - 1``, which is not 0 for no rows."""
    if not _mentions(dim, symbol) or str(dim).isidentifier():
        return False
    expression = ir.SymbolicDim(str(dim))
    try:
        left = expression.evaluate({name: 0 if name == symbol else 7 for name in expression.free_symbols()})
    except ValueError:  # a name that is no expression
        return True
    return left != 0
