"""Heads as views of flat activations, shapes and their constants: what several lowerings look at."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter

SWAP = (0, 2, 1, 3)
"""The permutation between [batch, heads, sequence, size] and [batch, sequence, heads, size]."""


def heads_of(value: ir.Value) -> tuple[int, int] | None:
    """Static (heads, size) of a [batch, heads, sequence, size] value, None where unknown."""
    if value.shape is None or len(value.shape) != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def is_swap(node: ir.Node) -> bool:
    """Whether ``node`` is the transpose that swaps heads and sequence."""
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and perm is not None and tuple(perm.as_ints()) == SWAP


def same_dims(a: Iterable[int | ir.SymbolicDim], b: Iterable[int | ir.SymbolicDim]) -> bool:
    """Whether two shapes are known to be equal: sizes or named symbols, no unknown dimension."""
    first, second = list(a), list(b)
    return first == second and all(isinstance(n, int) or n.value is not None for n in first)


def shape_constant(at: Rewriter, sizes: list[int]) -> ir.Value:
    """An int64 initializer with ``sizes``; one per graph."""
    name = "shape_" + "x".join(map(str, sizes)).replace("-", "m")
    known = at.graph.initializers.get(name) if isinstance(at.graph, ir.Graph) else None
    if known is not None and known.const_value is not None and known.const_value.numpy().tolist() == sizes:
        return known
    return at.const(np.array(sizes, np.int64), name)
