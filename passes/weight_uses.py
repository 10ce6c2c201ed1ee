"""How a graph reads a weight matrix: looked up or multiplied, as stored or transposed, by which nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from ..compiler.ir.constants import constant_tensor
from .base import decline, skip
from .logits import is_over_vocabulary

Reader: TypeAlias = "tuple[ir.Node, int]"
"""A node and which of its inputs."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


@dataclass(frozen=True, slots=True)
class WeightUses:
    """Who reads a weight, to look rows up or multiply.

    ``turned``: it is stored [in, out]. ``products``: readers whose result is a product with it, a Transpose
    in between included. ``multiplied``: the MatMul and Gemm nodes themselves; the activations are their
    input 0. ``head``: logits over a vocabulary come of it.
    """

    look_ups: tuple[Reader, ...]
    products: tuple[Reader, ...]
    multiplied: tuple[ir.Node, ...]
    turned: bool
    head: bool


def weight_uses(value: ir.Value, least: int = 0) -> WeightUses:
    """How ``value``, an initializer, is read; ``least``: elements from which on it counts as a weight.

    Raises: NoMatch if it is no weight matrix (without a reason), or is read in other ways (with one).
    """
    tensor = constant_tensor(value)
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in FLOATS or tensor.size < least:
        skip()
    multiplied: list[ir.Node] = []
    forms = {(node, index): _form(node, index, multiplied) for node, index in value.uses()}
    kinds = set(forms.values())
    if value.is_graph_output() or not kinds & {"columns", "rows", "table"}:
        skip()
    if "other" in kinds:
        decline("something else than a product or a look-up reads it")
    if "columns" in kinds and len(kinds) > 1:
        decline("it is read as it is and transposed")
    look_ups = tuple(reader for reader, form in forms.items() if form == "table")
    products = tuple(reader for reader, form in forms.items() if form != "table")
    head = any(is_over_vocabulary(node.outputs[0]) for node in multiplied)
    return WeightUses(look_ups, products, tuple(multiplied), "columns" in kinds, head)


def _form(node: ir.Node, index: int, multiplied: list[ir.Node]) -> str:
    if node.domain != "":
        return "other"
    if node.op_type == "Gather" and index == 0:
        return "table" if node.attributes.get_int("axis", 0) == 0 else "other"
    if node.op_type == "MatMul" and index == 1:
        multiplied.append(node)
        return "columns"
    if node.op_type == "Gemm" and index == 1 and node.attributes.get_int("transA", 0) == 0:
        multiplied.append(node)
        return "rows" if node.attributes.get_int("transB", 0) == 1 else "columns"
    if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0):
        read = [(u.node, u.idx) for u in node.outputs[0].uses()]
        if read and all((n.op_type, n.domain, i) == ("MatMul", "", 1) for n, i in read):
            multiplied += [n for n, _ in read]
            return "rows"
    return "other"
