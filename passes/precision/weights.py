"""Weights of 8 or 4 bits: matrices and embedding tables rounded block by block, activations as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.provenance import add_passes
from ...compiler.ir.quantized import BlockedWeight, emit_blocked
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ..approximation import Approximation
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline
from ..weight_uses import Reader, WeightUses, weight_uses
from .blocks import Rounded, Rounding, rounded_weight


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round the weights of MatMul and Gemm, and embedding tables, to blocks of few bits with a scale each.

    ``bits``: 8 or 4; tables keep 8. ``output``: bits of the output layer, which a tied table is stored apart
    for if they differ from its own. ``block``: columns that share a scale. ``scheme``:
    ``symmetric`` around zero, ``asymmetric`` with a zero point per block, ``auto`` the first for 8 bits, the
    second for 4. ``keep``: parts of names of weights that are left alone. ``least``: elements from which on
    a weight is worth it. Each weight is read, rounded and written by itself. Weights that the source has
    quantized already stay as they are.
    """

    name: ClassVar[str] = "quantize-weights"
    optional: ClassVar[bool] = False

    bits: int = 8
    output: int = 8
    block: int = 32
    scheme: str = "auto"
    keep: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        for name, bits in (("bits", self.bits), ("output", self.output)):
            if bits not in (4, 8):
                raise OptionError(place, f"{name}={bits} is not offered", "use 8 or 4")
        if self.block < 16 or self.block & (self.block - 1):
            raise OptionError(place, f"block={self.block} is no power of two from 16 on", "use 32")
        if self.scheme not in ("auto", "symmetric", "asymmetric"):
            raise OptionError(place, f"no scheme {self.scheme!r}", "use symmetric, asymmetric or auto")

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every weight of every entry; one that entries share is rounded once."""
        hits: list[Note] = []
        declined: list[Note] = []
        held: dict[tuple[int, Rounding], Rounded] = {}
        for model in program.entries.values():
            graph = model.graph
            place = {node: index for index, node in enumerate(graph)}
            for value in tuple(graph.initializers.values()):
                name = str(value.name)
                try:
                    uses = weight_uses(value, self.least)
                    tensor = constant_tensor(value)
                    assert tensor is not None
                    chosen = context.chosen(self, name)
                    if chosen is None:
                        decline("the budget keeps it")
                    roundings = chosen._roundings(name, uses, tensor)
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(name, left.reason))
                    continue
                for rounding, readers in roundings.items():
                    known = rounded_weight(tensor, uses.turned, rounding)
                    found = held.setdefault((id(tensor), rounding), known)
                    at = Rewriter(min((node for node, _ in readers), key=place.__getitem__))
                    _swap(value, found, uses.turned, readers, at)
                    rows, columns = found.weight.shape
                    text = f"{rows} x {columns} in {rounding.bits} bits, blocks of {rounding.block}"
                    hits.append(Note(name, text))
                    for made in at.made:
                        add_passes(made, [self.name])
                if not value.uses():
                    graph.initializers.pop(name, None)
        return PassResult(len(hits), tuple(hits), tuple(declined))

    def approximation(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext
    ) -> Approximation | None:
        """The weight rounded as its products read it; a table that is only looked up, as look-ups do."""
        try:
            roundings = self._roundings(name, uses, tensor)
        except NoMatch:
            return None
        found = [rounded_weight(tensor, uses.turned, rounding).weight for rounding in roundings]
        sizes = [_nbytes(weight) for weight in found]
        array = found[-1].numpy()
        return Approximation(array.T if uses.turned else array, sum(sizes), sizes[-1] if uses.products else 0)

    def _roundings(
        self, name: str, uses: WeightUses, tensor: ir.TensorProtocol
    ) -> dict[Rounding, list[Reader]]:
        """Which readers of a weight get which rounding. Raises: NoMatch if it has to stay."""
        if any(part in name for part in self.keep):
            decline("is to be kept")
        columns = tensor.shape.numpy()[0 if uses.turned else 1]
        if columns % self.block:
            decline(f"its {columns} columns are no multiple of the block of {self.block}")
        if tensor.dtype != ir.DataType.FLOAT:
            decline(f"there are no kernels for {tensor.dtype} products with blocked weights")
        found: dict[Rounding, list[Reader]] = {}
        bits = self.output if uses.head else self.bits
        for readers, wanted in ((uses.look_ups, 8), (uses.products, bits)):
            if readers:
                found.setdefault(self._rounding(wanted), []).extend(readers)
        return found

    def _rounding(self, bits: int) -> Rounding:
        symmetric = self.scheme == "symmetric" or (self.scheme == "auto" and bits == 8)
        ratios = (1.0,) if bits == 8 else (1.0, 0.95, 0.9, 0.85, 0.8)
        return Rounding(bits, self.block, symmetric, ratios)


def _nbytes(weight: BlockedWeight) -> int:
    parts = (weight.data, weight.scale, weight.zero_point, weight.offset)
    return sum(part.nbytes for part in parts if part is not None)


def _swap(value: ir.Value, found: Rounded, turned: bool, readers: Sequence[Reader], at: Rewriter) -> None:
    made = emit_blocked(found.weight, str(value.name), at)
    if turned:
        rows, columns = found.weight.shape
        made = at.op("Transpose", made, perm=(1, 0))
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([columns, rows])
    for node, index in readers:
        node.replace_input_with(index, made)
