"""Weights of 8 or 4 bits: matrices and embedding tables rounded block by block, activations as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.provenance import add_passes
from ...compiler.ir.quantized import emit_blocked
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline, skip
from ..logits import is_logits
from .blocks import Rounded, Rounding, rounded_weight

FLOATS = (ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round the weights of MatMul and Gemm, and embedding tables, to blocks of few bits with a scale each.

    ``bits``: 8 or 4; tables and the output layer keep 8. ``block``: columns that share a scale. ``scheme``:
    ``symmetric`` around zero, ``asymmetric`` with a zero point per block, ``auto`` the first for 8 bits, the
    second for 4. ``keep``: parts of names of weights that are left alone. ``least``: elements from which on
    a weight is worth it. Each weight is read, rounded and written by itself. Weights that the source has
    quantized already stay as they are.
    """

    name: ClassVar[str] = "quantize-weights"
    optional: ClassVar[bool] = False

    bits: int = 8
    block: int = 32
    scheme: str = "auto"
    keep: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        if self.bits not in (4, 8):
            raise OptionError(place, f"bits={self.bits} is not offered", "use 8 or 4")
        if self.block < 16 or self.block & (self.block - 1):
            raise OptionError(place, f"block={self.block} is no power of two from 16 on", "use 32")
        if self.scheme not in ("auto", "symmetric", "asymmetric"):
            raise OptionError(place, f"no scheme {self.scheme!r}", "use symmetric, asymmetric or auto")

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every weight of every entry; one that entries share is rounded once."""
        hits: list[Note] = []
        declined: list[Note] = []
        held: dict[int, Rounded] = {}
        for model in program.entries.values():
            graph = model.graph
            place = {node: index for index, node in enumerate(graph)}
            for value in tuple(graph.initializers.values()):
                name = str(value.name)
                try:
                    uses = _uses(value, self.least)
                    rounding = self._rounding(name, uses)
                    tensor = constant_tensor(value)
                    assert tensor is not None
                    _check(tensor, uses, rounding)
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(name, left.reason))
                    continue
                found = held.setdefault(id(tensor), rounded_weight(tensor, uses.turned, rounding))
                first = min((usage.node for usage in value.uses()), key=place.__getitem__)
                at = Rewriter(first)
                _swap(value, found, uses.turned, at)
                rows, columns = found.weight.shape
                hits.append(
                    Note(name, f"{rows} x {columns} in {rounding.bits} bits, blocks of {rounding.block}")
                )
                for made in at.made:
                    add_passes(made, [self.name])
        return PassResult(len(hits), tuple(hits), tuple(declined))

    def _rounding(self, name: str, uses: _Uses) -> Rounding:
        if any(part in name for part in self.keep):
            decline("is to be kept")
        bits = 8 if uses.table or uses.head else self.bits
        symmetric = self.scheme == "symmetric" or (self.scheme == "auto" and bits == 8)
        ratios = (1.0,) if bits == 8 else (1.0, 0.95, 0.9, 0.85, 0.8)
        return Rounding(bits, self.block, symmetric, ratios)


@dataclass(frozen=True, slots=True)
class _Uses:
    """How a weight is read: its columns are outputs (``turned``), rows looked up, logits computed."""

    turned: bool
    table: bool
    head: bool


def _uses(value: ir.Value, least: int) -> _Uses:
    """How ``value`` is read. Raises: NoMatch if it is no weight, or read in other ways."""
    tensor = constant_tensor(value)
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype not in FLOATS or tensor.size < least:
        skip()
    forms = set[str]()
    products: list[ir.Value] = []
    for usage in value.uses():
        forms.add(_form(usage.node, usage.idx, products))
    if not forms or value.is_graph_output():
        skip()
    if not forms & {"columns", "rows", "table"}:
        skip()
    if "other" in forms:
        decline("something else than a product or a look-up reads it")
    if "columns" in forms and len(forms) > 1:
        decline("it is read as it is and transposed")
    return _Uses("columns" in forms, "table" in forms, any(map(is_logits, products)))


def _form(node: ir.Node, index: int, products: list[ir.Value]) -> str:
    if node.domain != "":
        return "other"
    if node.op_type == "Gather" and index == 0:
        return "table" if node.attributes.get_int("axis", 0) == 0 else "other"
    if node.op_type == "MatMul" and index == 1:
        products.append(node.outputs[0])
        return "columns"
    if node.op_type == "Gemm" and index == 1 and node.attributes.get_int("transA", 0) == 0:
        products.append(node.outputs[0])
        return "rows" if node.attributes.get_int("transB", 0) == 1 else "columns"
    if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0):
        read = [(u.node, u.idx) for u in node.outputs[0].uses()]
        if read and all((n.op_type, n.domain, i) == ("MatMul", "", 1) for n, i in read):
            products += [n.outputs[0] for n, _ in read]
            return "rows"
    return "other"


def _check(tensor: ir.TensorProtocol, uses: _Uses, rounding: Rounding) -> None:
    columns = tensor.shape.numpy()[0 if uses.turned else 1]
    if columns % rounding.block:
        decline(f"its {columns} columns are no multiple of the block of {rounding.block}")
    if tensor.dtype != ir.DataType.FLOAT:
        decline(f"there are no kernels for {tensor.dtype} products with blocked weights")


def _swap(value: ir.Value, found: Rounded, turned: bool, at: Rewriter) -> None:
    name = str(value.name)
    made = emit_blocked(found.weight, name, at)
    if turned:
        rows, columns = found.weight.shape
        made = at.op("Transpose", made, perm=(1, 0))
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([columns, rows])
    value.replace_all_uses_with(made)
    if isinstance(at.graph, ir.Graph) and not value.uses():
        at.graph.initializers.pop(name, None)
